#!/usr/bin/env bash
# Everything that must hold before a change lands:
#
#   tools/test.sh
#
# Installs what is missing (tools/setup.sh --tests), then
#   build-test      clang, release: all suites, and the golden vectors at every instruction set level of this machine
#   build-gcc       gcc, release: all suites but the slow ones, whose kernels the golden vectors go through at every level
#   build-sanitize  clang with AddressSanitizer, LeakSanitizer and UndefinedBehaviorSanitizer, assertions on: all suites,
#                   and the fuzz harnesses for a moment (tests/fuzz/run.sh says how to run one for hours)
# A suite has many times the time that it takes on a quiet machine: what ends it early is a deadlock, not other work.
# Warnings are errors in all three. The folders stay, so that the next run compiles only what changed. The last line
# counts every test case, "N passed, N failed, N skipped"; the exit status is 1 when any failed or none ran.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case ${1-} in
  '') ;;
  -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit 0 ;;
  *) echo "test.sh: unknown argument '$1'; known: --help" >&2; exit 2 ;;
esac

passed=0 failed=0 skipped=0 failures=()
say() { printf '\n== %s (%d s)\n' "$1" "$SECONDS"; }
count() { # count PASSED FAILED SKIPPED NAME
  passed=$((passed + $1)) failed=$((failed + $2)) skipped=$((skipped + $3))
  printf '%s: %d passed, %d failed, %d skipped in it\n' "$4" "$1" "$2" "$3"
  [ "$2" = 0 ] || failures+=("$4")
}

# build FOLDER C-COMPILER C++-COMPILER OPTION...
build() {
  local folder=$1 cc=$2 cxx=$3 configure=(meson configure "$1")
  shift 3
  [ -f "$folder/build.ninja" ] || configure=(env CC="$cc" CXX="$cxx" meson setup "$folder")
  if ! "${configure[@]}" -Dwerror=true -Dtests=enabled "$@" >"$folder.log" 2>&1 ||
    ! ninja -C "$folder" -k 0 >"$folder.log" 2>&1; then
    # From the first failure on, without the command lines; a set-up that failed has no such line and ends with the reason.
    { sed -n '/^FAILED:/,$p' "$folder.log" | grep -vE '^(clang|gcc|g\+\+|\[[0-9]+/)' || tail -n 20 "$folder.log"; } | head -n 80
    count 0 1 0 "$folder (build)"
    return 1
  fi
  rm -f "$folder.log"
}

# One line per suite of the newest `meson test` in FOLDER: passed failed skipped name. A suite that is a Criterion
# binary counts its cases, any other one is a case of its own.
results() {
  python3 - "$1/meson-logs/testlog.json" <<'PYTHON'
import json, re, sys
for line in open(sys.argv[1], encoding="utf-8"):
    test = json.loads(line)
    text = re.sub("\x1b\\[[0-9;]*m", "", test.get("stdout", "") + test.get("stderr", ""))
    found = re.findall(r"Tested: (\d+) \| Passing: (\d+) \| Failing: (\d+)", text)
    good = test["result"] in ("OK", "EXPECTEDFAIL")
    if found:
        tested, passed, failed = map(int, found[-1])
        skipped = max(0, tested - passed - failed)
    else:
        passed, failed, skipped = int(good), 0, int(test["result"] == "SKIP")
    if not good and test["result"] != "SKIP" and not failed:
        failed = 1  # a time-out, a crash at exit, a leak found after the last case
    print(passed, failed, skipped, test["name"])
PYTHON
}

# suites FOLDER MESON-TEST-ARGUMENT...
suites() {
  local folder=$1 a b c name
  shift
  rm -f "$folder/meson-logs/testlog.json"
  meson test -C "$folder" --no-rebuild --print-errorlogs "$@" >"$folder.log" 2>&1 || grep -vE '^ *[0-9]+/[0-9]+ .* (OK|SKIP) ' "$folder.log"
  if [ ! -s "$folder/meson-logs/testlog.json" ]; then
    cat "$folder.log"
    count 0 1 0 "$folder (no suite ran)"
    return
  fi
  rm -f "$folder.log"
  while read -r a b c name; do count "$a" "$b" "$c" "$folder $name"; done < <(results "$folder")
}

levels() { # levels KRAIT: the instruction set levels of this machine, up to the best that the program finds
  local best level
  best=$("$1" version | sed -n 's/^cpu *\([a-z0-9]*\),.*/\1/p')
  for level in base avx2 avx512; do
    echo "$level"
    [ "$level" != "$best" ] || break
  done
}

golden() { # golden FOLDER LEVEL
  local log=$1.golden.log line name="golden vectors, $1, $2"
  "$1/krait" golden tests/golden --isa "$2" >"$log" 2>&1 || { grep -iE 'fail|error' "$log" || cat "$log"; } | tail -n 40
  line=$(tail -n 1 "$log")
  if [[ $line =~ ^([0-9]+)\ passed,\ ([0-9]+)\ failed,\ ([0-9]+)\ skipped$ ]]; then
    count "${BASH_REMATCH[1]}" "${BASH_REMATCH[2]}" "${BASH_REMATCH[3]}" "$name"
  else
    count 0 1 0 "$name (ended with: $line)"
  fi
  rm -f "$log"
}

say "What is needed to build and test"
tools/setup.sh --tests

say "clang, release"
if build build-test clang clang++ --buildtype=release; then
  suites build-test --timeout-multiplier 4
  for level in $(levels build-test/krait); do golden build-test "$level"; done
fi

say "gcc, release"
if build build-gcc gcc g++ --buildtype=release; then
  suites build-gcc --no-suite slow --timeout-multiplier 4
  for level in $(levels build-gcc/krait); do golden build-gcc "$level"; done
fi

say "clang, sanitizers"
if build build-sanitize clang clang++ --buildtype=debugoptimized -Db_sanitize=address,undefined -Db_lundef=false; then
  suites build-sanitize --timeout-multiplier 12
fi

say "End"
for name in "${failures[@]}"; do echo "failed: $name"; done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
