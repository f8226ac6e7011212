#!/bin/sh
# All benchmarks of docs/benchmarks.md, and the page itself.
#
#   tools/compare/run.sh [--only-krait] [--lock FILE] [--realtime] [--krait FILE]
#
# --only-krait: measure Krait again and keep the rivals' figures of the last run (minutes instead of an hour).
# --realtime: give what is being measured real-time priority (root), for machines where other things run too.
# The rivals are installed into .cache/compare, with what tools/compare/requirements.txt says.
set -eu
cd "$(dirname "$0")/../.."
venv=.cache/compare
only='' common=''
while [ $# -gt 0 ]; do
  case $1 in
    --only-krait) only=--only-krait ;;
    --realtime) common="$common --realtime" ;;
    --lock | --krait)
      [ $# -ge 2 ] || { echo "run.sh: $1 wants a file" >&2; exit 2; }
      common="$common $1 $2"
      shift
      ;;
    *)
      sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
      exit 2
      ;;
  esac
  shift
done
if [ ! -x $venv/bin/python ]; then
  # Packages of the system count, so that a torch that is there is not fetched again.
  python3 -m venv --system-site-packages $venv
  $venv/bin/pip install --quiet --extra-index-url https://download.pytorch.org/whl/cpu -r tools/compare/requirements.txt
fi
# Files of whoever runs this have no blanks in their names, or are given by the environment of a shell that quotes.
# shellcheck disable=SC2086
{
  $venv/bin/python tools/compare/measure.py $common
  $venv/bin/python tools/compare/compare.py $only $common
}
$venv/bin/python tools/compare/report.py
