/// Sixteen pairs of coordinates in lanes, and angles in double: what kernels that rotate need.
#ifndef KRAIT_OPS_CPU_PAIRS_H
#define KRAIT_OPS_CPU_PAIRS_H

#include "ops/cpu/lanes.h"

typedef double kr_vd __attribute__((vector_size(128)));
typedef double kr_vd_unaligned __attribute__((vector_size(128), aligned(8), may_alias));

#define KR_PI 3.14159265358979323846

/// Between -pi and pi, for |theta| up to 1e15. Adding 1.5 * 2^52 rounds to an integer.
KR_INLINE kr_vd kr_v_wrap(kr_vd theta) {
    const kr_vd turns = theta * (0.5 / KR_PI) + 6755399441055744.0;
    return theta - (turns - 6755399441055744.0) * (2 * KR_PI);
}

/// sin and cos of an angle in double, |theta| up to 1e15, with the error of f32 polynomials on the first quadrant only:
/// what is left of theta = n pi/2 + r is taken in double.
KR_INLINE void kr_v_sincos_double(kr_vd theta, kr_vf *sine, kr_vf *cosine) {
    typedef int64_t integers __attribute__((vector_size(128)));
    const kr_vd k = theta * (2 / KR_PI) + 6755399441055744.0, n = k - 6755399441055744.0;
    const kr_vf r = __builtin_convertvector(theta - n * (KR_PI / 2), kr_vf);
    kr_v_sincos_reduced(r, __builtin_convertvector((integers)k, kr_vi), sine, cosine);
}

/// Pairs j .. j + 15 of a row, of which `left` exist; the second of a pair is `apart` further, or next to the first
/// (apart 0).
KR_INLINE void kr_pairs_load(const float *x, int64_t apart, int64_t j, int64_t left, kr_vf *a, kr_vf *b) {
    if (apart) {
        *a = kr_v_load_n(x + j, left);
        *b = kr_v_load_n(x + apart + j, left);
        return;
    }
    const kr_vf low = kr_v_load_n(x + 2 * j, 2 * left);
    const kr_vf high = left > 8 ? kr_v_load_n(x + 2 * j + 16, 2 * left - 16) : kr_v_set(0);
    *a = __builtin_shufflevector(low, high, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    *b = __builtin_shufflevector(low, high, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}

KR_INLINE void kr_pairs_store(float *y, int64_t apart, int64_t j, int64_t left, kr_vf a, kr_vf b) {
    if (apart) {
        kr_v_store_n(y + j, a, left);
        kr_v_store_n(y + apart + j, b, left);
        return;
    }
    kr_v_store_n(y + 2 * j, __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23),
                 2 * left);
    if (left > 8)
        kr_v_store_n(y + 2 * j + 16,
                     __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31),
                     2 * left - 16);
}

#endif
