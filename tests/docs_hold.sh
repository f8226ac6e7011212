#!/bin/sh
# The documentation says what is so: its links lead to files, and the block that README shows is the block.
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
shown=$(sed -n '/^```c$/,/^```$/{/^```/d;p}' README.md | sed -n '/internal.h/,/^const kr_block_kind/p')
if [ "$shown" != "$(cat models/blocks/mamba1.c)" ]; then
  echo "README.md: the block under \"Defining a block\" is not models/blocks/mamba1.c any more"
  wrong=1
fi
[ "$wrong" = 0 ]
