/// How a kernel gets its symbols. A kernel file (ops/FAMILY/cpu*.c) is compiled once per instruction set with
/// -DKR_ISA=avx2 and
/// so on; everything in it is static or KR_KERNEL.
#ifndef KRAIT_OPS_CPU_KERNELS_H
#define KRAIT_OPS_CPU_KERNELS_H

#include "runtime/target.h"

#define KR_JOIN_(a, b) a##b
#define KR_JOIN(a, b) KR_JOIN_(a, b)

// In a kernel file: KR_KERNEL(rms_norm) { ... uses call, part, parts ... }
#ifdef KR_ISA
#define KR_KERNEL(name)                                                                  \
    void KR_JOIN(kr_kernel_##name##_, KR_ISA)(const kr_call *call, int part, int parts); \
    void KR_JOIN(kr_kernel_##name##_, KR_ISA)(const kr_call *call, int part, int parts)
#endif

// In an op file: KR_KERNEL_DECLARE(rms_norm) at file scope, then KR_STAGE(rms_norm) inside a kr_stage array.
#define KR_KERNEL_DECLARE(name)        \
    kr_kernel kr_kernel_##name##_base; \
    kr_kernel kr_kernel_##name##_avx2; \
    kr_kernel kr_kernel_##name##_avx512;
#ifdef KR_HAVE_AVX2
#define KR_AVX2_(name) kr_kernel_##name##_avx2
#else
#define KR_AVX2_(name) 0
#endif
#ifdef KR_HAVE_AVX512
#define KR_AVX512_(name) kr_kernel_##name##_avx512
#else
#define KR_AVX512_(name) 0
#endif
#define KR_STAGE(name) {{kr_kernel_##name##_base, KR_AVX2_(name), KR_AVX512_(name)}}

// The CPU's implementation of an op, by the designators of kr_impl: KR_CPU(rms_norm, .rows_in = 7, KR_STAGES(stages))
#define KR_CPU(name, ...)            \
    extern const kr_impl kr_cpu_##name; \
    const kr_impl kr_cpu_##name = {__VA_ARGS__};
#define KR_STAGES(array) .kernels = (array), .stages = sizeof(array) / sizeof *(array)

#endif
