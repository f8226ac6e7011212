#!/usr/bin/env bash
# Installs what Krait is built with, and only what is missing.
#
#   tools/setup.sh           to build the library and the krait command
#   tools/setup.sh --tests   also for the test suites: gcc, make, Criterion and the sanitizers' libraries
#
# Each need is tried out (a command runs, a program compiles), so what was installed by other means counts as well, and
# with everything there no network is touched. On Debian and Ubuntu apt installs the rest, through sudo when the caller
# is not root; elsewhere the script says what to install, and fails.
set -euo pipefail

tests=no
for argument in "$@"; do
  case $argument in
    --tests) tests=yes ;;
    -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) echo "setup.sh: unknown argument '$argument'; known: --tests, --help" >&2; exit 2 ;;
  esac
done

# compiles "COMPILER AND FLAGS" "#include lines": a program with them compiles and links.
compiles() {
  local out
  out=$(mktemp)
  # The words of $1 are meant to be split.
  # shellcheck disable=SC2086
  if printf '%b\nint main(void) { return 0; }\n' "$2" | $1 -x c - -o "$out" 2>/dev/null; then
    rm -f "$out"
  else
    rm -f "$out"
    return 1
  fi
}

missing=()
need() { # need PACKAGE COMMAND...: the package is missing unless the command succeeds
  local package=$1
  shift
  "$@" >/dev/null 2>&1 || missing+=("$package")
}

find_missing() {
  missing=()
  need clang compiles clang '#include <stdio.h>'
  need libomp-dev compiles 'clang -fopenmp' '#include <omp.h>'
  need meson meson --version
  need ninja-build ninja --version
  need pkg-config pkg-config --version
  need libopenblas-openmp-dev pkg-config --exists openblas
  need libzstd-dev pkg-config --exists libzstd
  need libxxhash-dev pkg-config --exists libxxhash
  need libyaml-dev pkg-config --exists yaml-0.1
  need libjson-c-dev pkg-config --exists json-c
  [ $tests = yes ] || return 0
  need gcc compiles 'gcc -fopenmp' '#include <omp.h>'
  need libcriterion-dev pkg-config --exists criterion
  need make make --version
  # clang's sanitizers are a package of their own from Debian 12 on, named after clang's version.
  if compiles clang '' && ! compiles 'clang -fsanitize=address,undefined' ''; then
    missing+=("libclang-rt-$(clang -dumpversion | cut -d. -f1)-dev")
  fi
}

give_up() {
  {
    echo "setup.sh: $1"
    echo "Missing (names of the Debian packages): ${missing[*]}"
    echo "Install them, or what your system calls them, and run this again."
  } >&2
  exit 1
}

install_missing() {
  command -v apt-get >/dev/null || give_up "this system has no apt-get, so it does not know how to install packages here."
  local root=()
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || give_up "installing packages needs root, and there is no sudo."
    root=(sudo)
  fi
  local apt=("${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Acquire::Retries=3 -o Dpkg::Use-Pty=0
    -o DPkg::Lock::Timeout=120)
  local log
  log=$(mktemp)
  echo "setup.sh: installing ${missing[*]}"
  # A list that cannot be refreshed may still be good enough: the install decides.
  "${apt[@]}" update >"$log" 2>&1 || true
  if ! "${apt[@]}" install -y --no-install-recommends "${missing[@]}" >>"$log" 2>&1 </dev/null; then
    tail -n 15 "$log" >&2
    rm -f "$log"
    give_up "apt-get could not install them (its last lines are above)."
  fi
  rm -f "$log"
}

# Twice: the sanitizers' package has a name only once clang is there.
for _ in 1 2; do
  find_missing
  [ ${#missing[@]} = 0 ] && break
  install_missing
done
find_missing
[ ${#missing[@]} = 0 ] || give_up "these were installed but still do not work."

oldest=1.0.0
if [ "$(printf '%s\n' "$oldest" "$(meson --version)" | sort -V | head -n 1)" != "$oldest" ]; then
  echo "setup.sh: meson is $(meson --version), Krait needs $oldest (Debian 12, Ubuntu 24.04, or: pip install meson)" >&2
  exit 1
fi
