#!/bin/sh
# Adds an elementwise op, an op in a new family, a block with a hyper-parameter, a pass and a target to a scratch copy of
# the sources, at the places that CONTRIBUTING.md names, builds that and uses each of them. CONTRIBUTING.md's table of
# places has to say as many files and lines as were needed here. Called by `meson test`:
#   run.sh SOURCE "C COMPILER"
set -eu
source=$1 cc=$2
here=$source/tests/adding
if ! git -C "$source" ls-files --error-unmatch CONTRIBUTING.md >/dev/null 2>&1; then
  echo "not a git checkout: what belongs to the sources is not known"
  exit 77
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM
copy=$work/krait
mkdir "$copy"
(cd "$source" && git ls-files -z | tar -c --null -T - -f - ) | tar -x -C "$copy" -f -
cd "$copy"
rm -rf tests/adding

die() {
  echo "tests/adding: $*" >&2
  exit 1
}
start() { kind=$1 files=0 lines=0; }
# put FROM TO: a new file
put() {
  [ ! -e "$2" ] || die "$kind: $2 exists already"
  mkdir -p "$(dirname "$2")"
  cp "$here/$1" "$2"
  files=$((files + 1))
}
# insert FILE ANCHOR LINE: LINE after the one line of FILE that begins with ANCHOR
insert() {
  A=$2 L=$3 awk 'BEGIN { a = ENVIRON["A"]; l = ENVIRON["L"] } { print } index($0, a) == 1 { print l; n++ } END { exit n != 1 }' \
    "$1" >"$work/new" || die "$kind: $1 has not exactly one line that begins with: $2"
  cp "$work/new" "$1"
  lines=$((lines + 1))
}
# done_with: CONTRIBUTING.md has the row "| KIND | FILES | LINES | ..."
done_with() {
  echo "$kind: $files new files, $lines lines"
  grep -q "^| $kind | $files | $lines |" "$source/CONTRIBUTING.md" ||
    die "CONTRIBUTING.md does not say: | $kind | $files | $lines |; it says: $(grep "^| $kind |" "$source/CONTRIBUTING.md")"
}

start "an elementwise op"
insert ops/elementwise/map.def 'MAP_F(square,' 'MAP_F(cube, X, x * x * x, NUM(3) * x * x)'
insert ops/ops.h 'kr_value kr_square(' 'kr_value kr_cube(kr_graph *, kr_value);'
insert ops/here.h '#define kr_square(' '#define kr_cube(g, ...) kr_cube(KR_HERE(g), __VA_ARGS__)'
done_with

start "an op of a new family"
for name in args.h op.c impl.c cpu.c; do put op/ops/mix/$name ops/mix/$name; done
insert ops/table.def 'OP(matmul)' 'OP(mix)'
insert ops/ops.h 'kr_value kr_cumsum(' 'kr_value kr_mix(kr_graph *, kr_value, kr_value, double share);'
insert ops/here.h '#define kr_cumsum(' '#define kr_mix(g, ...) kr_mix(KR_HERE(g), __VA_ARGS__)'
insert ops/meson.build 'ops_sources = files(' "  'mix/op.c', 'mix/impl.c',"
insert ops/meson.build 'kernel_sources = files(' "  'mix/cpu.c',"
done_with

start "a block with a hyper-parameter"
put block/models/blocks/leaky.c models/blocks/leaky.c
insert models/blocks.c '#define BLOCKS(X) \' '    X(leaky) \'
insert models/meson.build 'models_sources = files(' "  'blocks/leaky.c',"
done_with

start "a pass"
put pass/compiler/order.c compiler/order.c
insert compiler/pass.h 'kr_status kr_pass_simplify(' 'kr_status kr_pass_order(kr_compilation *);'
insert compiler/compile.c '    {"simplify",' '    {"order", kr_pass_order},'
insert compiler/meson.build 'compiler_sources = files(' "  'order.c',"
done_with

start "a target"
put target/plain.c plain/plain.c
done_with

# Built: the baseline alone, and only what is run.
CC=$cc meson setup build --buildtype=debug -Disa= -Dtests=disabled -Dwerror=true >"$work/said" 2>&1 &&
  ninja -C build krait >>"$work/said" 2>&1 || { tail -n 40 "$work/said"; die "the copy does not build"; }
# $cc is a list of words.
# shellcheck disable=SC2086
$cc -std=gnu17 -D_GNU_SOURCE -Wall -Wextra -Werror -O1 -I. -shared -fPIC plain/plain.c -o plain/libkrait_plain.so -Lbuild -lkrait
# shellcheck disable=SC2086
$cc -std=gnu17 -D_GNU_SOURCE -Wall -Wextra -Werror -O1 -I. "$here/check.c" -o check -Lbuild -lkrait -lm "-Wl,-rpath,$copy/build"
krait=build/krait

./check "$here/graph.kg" || die "the ops do not compute what they should"

# The pass: it swaps the operands of the sum, under its name and not before.
$krait graph --from "$here/graph.kg" --after simplify >before.kg
$krait graph --from "$here/graph.kg" --after order >after.kg
sum() { sed -n 's/^[^=]* = add(\(%[^,]*\), \(%[^)]*\)).*/\1 \2/p' "$1"; }
[ -n "$(sum before.kg)" ] || die "no sum in the graph before the pass: $(cat before.kg)"
[ "$(sum after.kg)" = "$(sum before.kg | awk '{ print $2, $1 }')" ] ||
  die "the pass has not swapped ($(sum before.kg)): it has ($(sum after.kg))"

# The block: its key stands in krait.yaml and in the help; its range is enforced.
awk 'BEGIN { for (i = 0; i < 3000; i += 3) print "a line of text, number " i }' >text
model() { printf 'models:\n  leaky-tiny: {layer: leaky, d_model: 16, n_layer: 1, vocab_size: 256, leak: %s}\n' "$1"; }
train() {
  $krait pretrain --config "$1" --model leaky-tiny --text-file text --output-dir "$2" --steps 2 --warmup 1 \
    --batch-size 2 --seq-len 16 --threads 1 --device "$3" >"$work/said" 2>&1
}
model 0.25 >good.yaml
model 1.5 >bad.yaml
$krait help leaky | grep -q 'leak' || die "krait help leaky does not list its key"
train good.yaml run cpu || { cat "$work/said"; die "the block does not train"; }
if train bad.yaml bad cpu; then die "leak 1.5 was taken"; fi
grep -q 'leak' "$work/said" || { cat "$work/said"; die "the refusal does not name leak"; }

# The target: found by its name; golden files and a training step.
export KRAIT_TARGET_PATH="$copy/plain"
mkdir few
cp "$source"/tests/golden/elementwise.case1.safetensors "$source"/tests/golden/gated_mlp.case1.safetensors few
$krait golden few --device plain >"$work/said" 2>&1 || { cat "$work/said"; die "golden files fail on the target"; }
grep -q '^2 passed, 0 failed, 0 skipped' "$work/said" || { cat "$work/said"; die "not both golden files were run"; }
train good.yaml run-plain plain || { cat "$work/said"; die "the target does not train"; }
if KRAIT_TARGET_PATH='' train good.yaml run-none plain; then die "the target was found without KRAIT_TARGET_PATH"; fi
