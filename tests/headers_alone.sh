#!/bin/sh
# Every header compiles alone: it needs no other before it. Public headers are C++ too, without a warning.
#   headers_alone.sh SOURCE "C COMPILER" "C++ COMPILER or nothing" PUBLIC-HEADER...
set -eu
cd "$1"
cc=$2 cxx=$3
shift 3
wrong=0

# alone HEADER COMPILER...: the header as the only line of a program
alone() {
  header=$1
  shift
  echo "#include \"$header\"" | "$@" -I. -D_GNU_SOURCE -Wall -Wextra -Werror -Wno-unused-function -Wno-psabi -fsyntax-only - || {
    echo "$header does not compile alone with: $*"
    wrong=$((wrong + 1))
  }
}

# Compilers are lists of words ("ccache clang"): they are meant to be split.
# shellcheck disable=SC2086
{
  for header in $(find krait.h krait_lm.h runtime ops compiler models tools tests -name '*.h' | sort); do
    alone "$header" $cc -std=gnu17 -x c
  done
  for header in "$@"; do
    alone "$header" $cc -std=c17 -x c
    [ -z "$cxx" ] || alone "$header" $cxx -std=c++17 -x c++
  done
}
[ "$wrong" = 0 ]
