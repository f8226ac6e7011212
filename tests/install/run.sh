#!/bin/sh
# Installs a build into a temporary folder, moves that, and uses it as an outsider would: pkg-config, a C compiler, a
# program of one's own, the `krait` command. Called by `meson test`:
#   run.sh BUILD SOURCE PREFIX "C COMPILER AND FLAGS" ["C++ COMPILER AND FLAGS"]
set -eu
build=$1 source=$2 prefix=$3 cc=$4 cxx=${5-}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM
meson install -C "$build" --no-rebuild --quiet --destdir "$work/stage"
mv "$work/stage/$prefix" "$work/moved"

pc=$(find "$work/moved" -name krait.pc)
PKG_CONFIG_PATH=$(dirname "$pc")${PKG_CONFIG_PATH:+:$PKG_CONFIG_PATH}
export PKG_CONFIG_PATH
cflags=$(pkg-config --cflags krait)
libs=$(pkg-config --libs krait)
lm_cflags=$(pkg-config --cflags krait-lm)
lm_libs=$(pkg-config --libs krait-lm)
libdir=$(pkg-config --variable=libdir krait)

# Flags are lists of words: they are meant to be split.
# shellcheck disable=SC2086
{
  cp "$source/tests/install/program.c" "$work"
  $cc -std=c17 -O1 -Wall -Wextra -Wpedantic -Werror $cflags "$work/program.c" -o "$work/program" $libs -lm "-Wl,-rpath,$libdir"
  cp "$source/tests/install/generate.c" "$work"
  $cc -std=c17 -O1 -Wall -Wextra -Wpedantic -Werror $lm_cflags "$work/generate.c" -o "$work/generate" $lm_libs "-Wl,-rpath,$libdir"
  for header in krait.h runtime/kernel.h runtime/runtime.h ops/ops.h compiler/compiler.h models/models.h krait_lm.h \
    tools/lm/lm.h tools/train/train.h tools/config/settings.h; do
    echo "#include <krait/$header>" >"$work/alone.c"
    $cc -std=c17 -fsyntax-only -Wall -Wextra -Werror $cflags "$work/alone.c"
    [ -z "$cxx" ] || $cxx -x c++ -std=c++17 -fsyntax-only -Wall -Wextra -Werror $cflags "$work/alone.c"
  done
}
"$work/program"
"$work/moved/bin/krait" --help >"$work/help"
grep -q pretrain "$work/help"

# A block of one's own: what `krait new-block` writes is built, tested and trained against the installed library.
"$work/moved/bin/krait" new-block mine --out "$work/mine" >"$work/said"
make -s -C "$work/mine" CC="$cc" CFLAGS="-O1 -Wall -Wextra -Wpedantic -Werror" mine.so test
i=0
while [ $i -lt 3000 ]; do echo "a line of text, number $i"; i=$((i + 7)); done >"$work/text"
"$work/generate" "$work/text" "$work/own-run" >"$work/said" 2>&1 || { cat "$work/said"; exit 1; }
[ "$(wc -l <"$work/said")" = 1 ] || { echo "the library printed by itself:"; cat "$work/said"; exit 1; }
"$work/moved/bin/krait" generate --checkpoint "$work/own-run" --max-new-tokens 5 >/dev/null
"$work/moved/bin/krait" pretrain --block "$work/mine/mine.so" --config "$work/mine/krait.yaml" --model mine-1m \
  --text-file "$work/text" --output-dir "$work/run" --steps 2 --warmup 1 --batch-size 2 --seq-len 32 2>"$work/said"
"$work/moved/bin/krait" generate --block "$work/mine/mine.so" --checkpoint "$work/run" --max-new-tokens 5 >/dev/null
