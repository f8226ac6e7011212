#!/bin/sh
# The documentation says what is so: its links lead to files, the code that it quotes stands there, and the block that
# README shows is the block.
#   docs_hold.sh SOURCE
set -eu
cd "$1"
wrong=0

# Links have no blanks in them.
# shellcheck disable=SC2013
for page in README.md CONTRIBUTING.md $(find docs data tests -name '*.md' | sort); do
  for link in $(grep -o '](\([^)]*\))' "$page" | sed 's/^](//; s/)$//; s/#.*//' | grep -v '^[a-z]*:'); do
    [ -e "$(dirname "$page")/$link" ] || { echo "$page: there is no $link"; wrong=1; }
  done
done

# shellcheck disable=SC2016
shown=$(awk '/^```c$/ { inside = 1; text = ""; next }
  /^```$/ { if (inside && text ~ /internal.h/) printf "%s", text; inside = 0; next }
  inside { text = text $0 "\n" }' README.md)
if [ "$shown" != "$(cat models/blocks/mamba1.c)" ]; then
  echo "README.md: the block under \"Defining a block\" is not models/blocks/mamba1.c any more"
  wrong=1
fi
# A block of code under a line that is only a link to a file, `[path](link):`, is a quotation: its lines stand in that
# file, in this order, however far they are indented. Lines of dots stand for what is left out. All C code of the book is
# quoted.
quotations() {
  awk -v page="$1" '
    function say(text) { print page ":" FNR ": " text; wrong = 1 }
    function trim(line) { gsub(/^[ \t]+|[ \t\r]+$/, "", line); return line }
    BEGIN { folder = page; sub(/[^\/]*$/, "", folder) }
    /^```/ && inside { inside = 0; source = ""; next }
    /^```/ {
      inside = 1; count = at = 0
      if (source == "" && /^```c$/ && page ~ /^docs\/book\//) say("C code that names no file")
      while (source != "" && (getline line < source) > 0) text[++count] = trim(line)
      if (source != "") close(source)
      if (source != "" && !count) say("cannot read " source)
      next
    }
    inside {
      line = trim($0)
      if (!count || line == "" || line == "...") next
      for (k = at + 1; k <= count && text[k] != line; k++);
      if (k > count) say("not in " source " (any more, or not after the line before): " line)
      else at = k
      next
    }
    /^\[[^]]*\]\([^)]*\):$/ { source = $0; sub(/^[^(]*\(/, "", source); sub(/\):$/, "", source); source = folder source; next }
    NF { source = "" }
    END { if (inside) say("a block of code that does not end"); exit wrong }
  ' "$1"
}
for page in README.md CONTRIBUTING.md $(find docs -name '*.md' | sort); do
  quotations "$page" || wrong=1
done
[ "$wrong" = 0 ]
