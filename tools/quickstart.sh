#!/usr/bin/env bash
# From a fresh clone to a trained language model, in under six minutes on two cores:
#
#   tools/quickstart.sh [--steps N]
#
# Installs what is missing (tools/setup.sh), builds Krait into build/, trains the preset mamba3-1m on the bundled text
# for about two minutes, and shows what it writes. To run it again is fine: the build is brought up to date, and the
# training starts afresh in a folder of its own under runs/.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

steps=1000
while [ $# -gt 0 ]; do
  case $1 in
    --steps) steps=${2:?--steps needs a number}; shift 2 ;;
    -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) echo "quickstart.sh: unknown argument '$1'; known: --steps N, --help" >&2; exit 2 ;;
  esac
done

started=$SECONDS
say() { printf '\n== %s (%d s)\n' "$1" $((SECONDS - started)); }

say "What is needed to build"
tools/setup.sh

say "Build"
# A folder that a broken set-up left behind has no build.ninja: meson simply sets it up again.
[ -f build/build.ninja ] || CC=clang CXX=clang++ meson setup build --buildtype=release -Dtests=disabled >/dev/null
if [ -t 1 ]; then ninja -C build krait; else ninja -C build --quiet krait; fi
echo "build/krait is up to date"

say "Train mamba3-1m on tiny Shakespeare"
run=runs/quickstart-$(date +%Y%m%d-%H%M%S)
build/krait pretrain --model mamba3-1m --target local -- \
  --text-file data/tinyshakespeare.txt.zst --output-dir "$run" \
  --steps "$steps" --batch-size 8 --seq-len 256 \
  --learning-rate 3e-3 --warmup 50 --schedule cosine --min-learning-rate 1e-4 \
  --weight-decay 0.1 --grad-clip 1 \
  --eval-every 100 --save-every 200 --log-every 20 --seed 1

say "What it writes"
build/krait generate --checkpoint "$run/best" --prompt "ROMEO:" --max-new-tokens 400 --temperature 0.8 --top-k 40 --seed 1

say "Done"
cat <<END
The run         $run
  checkpoints   $run/best, $run/latest
  report        $run/report.md
  measurements  $run/metrics.jsonl
More text       build/krait generate --checkpoint $run/best --prompt "JULIET:"
The tests       tools/test.sh
END
