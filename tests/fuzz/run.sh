#!/usr/bin/env bash
# A short, repeatable run of one fuzz harness (tests/fuzz/NAME.c) over seeds that are in the sources already:
#
#   tests/fuzz/run.sh HARNESS KRAIT SOURCE-FOLDER [LIBFUZZER-OPTION...]
#
# For hours, with the library itself instrumented, in a build folder of its own:
#
#   CC=clang meson setup build-fuzz -Dtests=enabled -Dfuzz=true -Db_sanitize=address,undefined -Db_lundef=false
#   ninja -C build-fuzz
#   tests/fuzz/run.sh build-fuzz/tests/fuzz/fuzz_graph build-fuzz/krait . -runs=-1 -max_total_time=7200 -seed=0
#
# What fails is left in the working directory as crash-..., leak-... or timeout-...; HARNESS crash-... runs it again.
set -euo pipefail
harness=$1 krait=$2 source=$3
shift 3
corpus=$(mktemp -d)
trap 'rm -rf "$corpus"' EXIT

case $(basename "$harness") in
  fuzz_tensors)
    for f in "$source"/tests/golden/*.safetensors; do
      [ "$(stat -c %s "$f")" -gt 8192 ] || cp "$f" "$corpus"
    done ;;
  fuzz_graph)
    cp "$source"/docs/book/*.kg "$corpus"
    for mode in eval train; do
      for model in mamba1-1m mamba2-1m mamba3-1m hybrid-1m; do
        "$krait" graph --model "$model" --mode "$mode" --emit text --seq-len 8 >"$corpus/$model.$mode"
      done
    done ;;
  fuzz_config) cp "$source/krait.yaml" "$corpus" ;;
  fuzz_model)
    printf '{"d_model": 8, "n_layer": 2, "vocab_size": 256, "ssm_cfg": {"layer": "Mamba1"}}' >"$corpus/mamba"
    for f in "$source"/tests/golden/*.json; do [ ! -f "$f" ] || cp "$f" "$corpus"; done ;;
  fuzz_data)
    { printf '\x10\x00'; head -c 2000 "$source/README.md"; } >"$corpus/plain"
    { printf '\x10\x02'; head -c 2000 "$source/README.md"; } >"$corpus/documents"
    { printf '\x10\x03'; head -c 2000 "$source/README.md" | zstd -q -c; } >"$corpus/packed" ;;
  *) echo "run.sh: no seeds are known for $harness" >&2; exit 2 ;;
esac
# The same inputs in every run of the suite: an error found here is an error of the change at hand, not of the hour.
"$harness" -seed=1 -keep_seed=1 -runs=3000 -max_total_time=5 -timeout=60 -rss_limit_mb=3000 "$@" "$corpus"
