#!/bin/sh
# Runs the commands that the book shows, and compares what it shows of their output. Called by `meson test`:
#   book_runs.sh KRAIT SOURCE "C COMPILER AND FLAGS" [PAGE ...]
#
# A page's ```sh blocks run one after another in a directory that looks like the repository's root and is thrown away. A
# ```text block is output of the ```sh block before it: its lines stand in there, in this order, whatever their
# indentation; a line of dots stands for any others. `<!-- needs PROGRAM ... -->` before a block: it is passed over where
# one of these is missing (or, for a name that ends in .pc, where pkg-config knows no such library). Commands find this
# build as if it were installed: `krait`, `cc`, and the library through pkg-config.
set -eu
krait=$1 source=$2 cc=$3
shift 3
[ $# -gt 0 ] || set -- "$source"/docs/book/*.md

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM
mkdir "$work/bin" "$work/include"
ln -s "$krait" "$work/bin/krait"
ln -s "$source" "$work/include/krait"
printf '#!/bin/sh\nPATH=%s\nexec %s "$@"\n' "'$PATH'" "$cc" >"$work/bin/cc"
chmod +x "$work/bin/cc"
build=$(dirname "$krait")
PATH=$work/bin:$PATH
CPATH=$work/include
PKG_CONFIG_PATH=$build/meson-uninstalled${PKG_CONFIG_PATH:+:$PKG_CONFIG_PATH}
LD_LIBRARY_PATH=$build${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export PATH CPATH PKG_CONFIG_PATH LD_LIBRARY_PATH
wrong=0

# PAGE DIRECTORY: writes the blocks as NUMBER.sh, NUMBER.needs and NUMBER.text, and NUMBER.line.
blocks() {
  awk -v to="$2" '
    /^```/ && file != "" { close(file); file = ""; next }
    /^```sh$/ { file = sprintf("%s/%03d.sh", to, ++n); print FNR > (to "/" sprintf("%03d", n) ".line"); printf "" > file
                if (needs != "") print needs > sprintf("%s/%03d.needs", to, n); needs = ""; next }
    /^```text$/ { if (!n) { print "line " FNR ": output of nothing"; exit 1 }
                  file = sprintf("%s/%03d.text", to, n); printf "" > file; next }
    /^```/ { file = "/dev/null"; next }
    file != "" { print > file; next }
    /^<!-- needs .* -->$/ { needs = $0; sub(/^<!-- needs /, "", needs); sub(/ -->$/, "", needs) }
  ' "$1"
}

# TEXT OUTPUT: the first line of TEXT that is not where it should be in OUTPUT, if there is one.
missing() {
  awk '
    function trim(line) { gsub(/^[ \t]+|[ \t\r]+$/, "", line); return line }
    NR == FNR { want[++wants] = trim($0); next }
    { line = trim($0); while (at < wants && (want[at + 1] == "..." || want[at + 1] == "")) at++; if (line == want[at + 1]) at++ }
    END { while (at < wants && (want[at + 1] == "..." || want[at + 1] == "")) at++; if (at < wants) print want[at + 1] }
  ' "$1" "$2"
}

has() {
  case $1 in
  *.pc) pkg-config --exists "${1%.pc}" 2>/dev/null ;;
  *) command -v "$1" >/dev/null ;;
  esac
}

ran=0
for page; do
  name=$(basename "$page" .md)
  mkdir "$work/$name" "$work/$name.blocks"
  # Runs of whoever works in the sources are not the book's, and must not get its own among them.
  for entry in "$source"/*; do [ "$entry" = "$source/runs" ] || ln -s "$entry" "$work/$name"; done
  blocks "$page" "$work/$name.blocks" || { echo "$page: cannot be taken apart"; exit 1; }
  for block in "$work/$name.blocks"/*.sh; do
    [ -e "$block" ] || continue
    stem=${block%.sh} at="$page:$(cat "${block%.sh}.line")"
    if [ -e "$stem.needs" ]; then
      lacks=
      # A list of words.
      # shellcheck disable=SC2013
      for need in $(cat "$stem.needs"); do has "$need" || lacks="$lacks $need"; done
      [ -z "$lacks" ] || { echo "$at: passed over, there is no$lacks"; continue; }
    fi
    ran=$((ran + 1))
    if ! (cd "$work/$name" && sh -e "$block") >"$stem.out" 2>&1 </dev/null; then
      echo "$at: fails, after saying:"
      cat "$stem.out"
      wrong=1
      break
    fi
    [ -e "$stem.text" ] || continue
    line=$(missing "$stem.text" "$stem.out")
    [ -z "$line" ] || { echo "$at: prints no line \"$line\" where the page has it, but:"; cat "$stem.out"; wrong=1; }
  done
done
echo "$ran blocks of commands ran"
[ "$ran" -gt 0 ] && [ "$wrong" = 0 ]
