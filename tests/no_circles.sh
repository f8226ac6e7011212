#!/bin/sh
# No file needs, by a chain of calls, a file that needs it back: read from the symbols that the objects define and use.
# And no header includes itself by way of others.
#   no_circles.sh SOURCE BUILD
set -eu
source=$1 build=$2 wrong=0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM

# circles FILE WHAT: FILE has a line "A B" for each A that needs B
circles() {
  [ -s "$1" ] || {
    echo "nothing was found about $2"
    wrong=$((wrong + 1))
  }
  tsort <"$1" >/dev/null 2>"$work/loops" && return
  echo "$2 in circles:"
  sed -e 's/^tsort: /  /' -e 's/.*contains a loop.*/  --/' "$work/loops"
  wrong=$((wrong + 1))
}

# One node, not a circle: the families of ops and their table, since a gradient rule is written in the other families'
# words.
# Objects of files that are gone may lie about in the build folder: what counts is what is built now.
cd "$build"
# shellcheck disable=SC2046 # a list of words
set -- $(sed -n 's/^ *"output": "\(lib\(krait\|krait_lm\|rooms\)\.[^"]*\.p\/[^"]*\|krait\.p\/[^"]*\)".*/\1/p' compile_commands.json)
nm -gA "$@" | sed -e 's|^.*\.p/\([^:]*\)\.c\.o: *|\1 |' -e 's/^ops_[^ ]*_op /ops_families /' \
  -e 's/^ops_graph_table /ops_families /' >"$work/symbols"
awk 'BEGIN { n = 0 } $2 == "U" { symbol[n] = $3; user[n++] = $1 } NF == 4 && $3 ~ /[TDRB]/ { owner[$4] = $1 }
  END { for (i = 0; i < n; i++) if (symbol[i] in owner && owner[symbol[i]] != user[i]) print user[i], owner[symbol[i]] }' \
  "$work/symbols" | sort -u >"$work/calls"
circles "$work/calls" "files that call each other"

cd "$source"
for header in $(find krait.h krait_lm.h runtime ops compiler models tools -name '*.h'); do
  sed -n 's/^ *# *include "\(.*\)".*/\1/p' "$header" | while read -r target; do
    beside=$(dirname "$header")/$target
    [ -e "$beside" ] && target=${beside#./}
    echo "$header $target"
  done
done >"$work/includes"
circles "$work/includes" "headers that include each other"
[ "$wrong" = 0 ]
