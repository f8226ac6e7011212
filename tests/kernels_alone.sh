#!/bin/sh
# What the objects of the kernels must hold to, read from the objects themselves:
#   they call nothing but memory copies and BLAS: no allocation, no threads, no mathematics of libc;
#   they define nothing but kernels of their own instruction set, so the linker cannot mix the builds up;
#   a build for a lower level uses no registers of a higher one.
#   kernels_alone.sh BUILD
set -eu
build=$1 levels=0 wrong=0

complain() {
  echo "$1"
  wrong=$((wrong + 1))
}

for isa in base avx2 avx512; do
  folder=$build/libkernels_$isa.a.p
  [ -d "$folder" ] || continue
  levels=$((levels + 1))
  case $isa in
    base) forbidden='%[yz]mm[0-9]' ;;
    avx2) forbidden='%zmm[0-9]' ;;
    *) forbidden='' ;;
  esac
  for object in "$folder"/*.o; do
    name=$isa/$(basename "$object")
    for symbol in $(nm -g --undefined-only "$object" | awk '{print $NF}'); do
      case $symbol in
        memcpy | memset | memmove | cblas_* | _GLOBAL_OFFSET_TABLE_) ;;
        __asan_* | __ubsan_* | __stack_chk_fail) ;;
        *) complain "$name: a kernel calls $symbol" ;;
      esac
    done
    for symbol in $(nm -g --defined-only "$object" | awk '{print $NF}'); do
      case $symbol in
        kr_kernel_*_"$isa" | __*) ;;
        *) complain "$name: defines $symbol, which is no kernel of this level" ;;
      esac
    done
    if [ -n "$forbidden" ] && objdump -d "$object" | grep -q -E "$forbidden"; then
      complain "$name: uses registers of a higher level"
    fi
  done
done
[ "$levels" -gt 0 ] || complain "$build holds no kernels"
[ "$wrong" = 0 ]
