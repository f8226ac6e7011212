/// Sixteen lanes of f32, written once with compiler vector extensions and built for every instruction set: one zmm,
/// two ymm or four xmm registers. All functions are static inline and free of libc, so kernel files stay
/// self-contained. Error bounds are relative, measured over all finite f32 inputs by tests/test_lanes.c.
#ifndef KRAIT_OPS_CPU_LANES_H
#define KRAIT_OPS_CPU_LANES_H

#include "ops/cpu/kernels.h"
#ifdef __SSE__
#include <immintrin.h>
#endif

#define KR_LANES 16
#define KR_INLINE static inline __attribute__((always_inline, unused))

typedef float kr_vf __attribute__((vector_size(64)));
typedef int32_t kr_vi __attribute__((vector_size(64)));
typedef float kr_vf_unaligned __attribute__((vector_size(64), aligned(4), may_alias));

KR_INLINE kr_vf kr_v_load(const float *p) { return *(const kr_vf_unaligned *)p; }
KR_INLINE void kr_v_store(float *p, kr_vf v) { *(kr_vf_unaligned *)p = v; }
KR_INLINE kr_vf kr_v_set(float x) {
    return (kr_vf){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x};
}
KR_INLINE kr_vi kr_v_seti(int32_t x) {
    return (kr_vi){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x};
}
/// The first n lanes (0..16), zeros elsewhere. Never reads past p + n.
KR_INLINE kr_vf kr_v_load_n(const float *p, int64_t n) {
    if (n >= KR_LANES) return kr_v_load(p);
#ifdef __AVX512F__
    return (kr_vf)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
#else
    kr_vf v = kr_v_set(0);
    for (int k = 0; k < n; k++) v[k] = p[k];
    return v;
#endif
}
KR_INLINE void kr_v_store_n(float *p, kr_vf v, int64_t n) {
    if (n >= KR_LANES) { kr_v_store(p, v); return; }
#ifdef __AVX512F__
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
#else
    for (int k = 0; k < n; k++) p[k] = v[k];
#endif
}
/// Where a cache line shall be when it is wanted: in the first cache, in the second, or in the first to be written.
enum { KR_PREFETCH_NEAR, KR_PREFETCH_FAR, KR_PREFETCH_WRITE };

/// Prefetches the line `floats` behind x. It may lie outside of the tensor: nothing is read through it.
KR_INLINE void kr_prefetch(const float *x, int64_t floats, const int where) {
    const void *at = (const void *)((uintptr_t)x + (uintptr_t)(floats * (int64_t)sizeof *x));
    if (where == KR_PREFETCH_NEAR) __builtin_prefetch(at, 0, 3);
    else if (where == KR_PREFETCH_FAR) __builtin_prefetch(at, 0, 2);
    else __builtin_prefetch(at, 1, 3);
}

/// Lanes of yes where mask is all ones, of no where it is zero.
KR_INLINE kr_vf kr_v_select(kr_vi mask, kr_vf yes, kr_vf no) {
#ifdef __AVX512DQ__
    return (kr_vf)_mm512_mask_blend_ps(_mm512_movepi32_mask((__m512i)mask), (__m512)no, (__m512)yes);
#else
    return (kr_vf)((mask & (kr_vi)yes) | (~mask & (kr_vi)no));
#endif
}
KR_INLINE kr_vf kr_v_abs(kr_vf x) { return (kr_vf)((kr_vi)x & kr_v_seti(0x7fffffff)); }
/// Where either is NaN the result is b for min, b for max (as x86 does); inputs of kernels are tested elsewhere.
#ifdef __AVX512F__
KR_INLINE kr_vf kr_v_min(kr_vf a, kr_vf b) { return (kr_vf)_mm512_min_ps((__m512)a, (__m512)b); }
KR_INLINE kr_vf kr_v_max(kr_vf a, kr_vf b) { return (kr_vf)_mm512_max_ps((__m512)a, (__m512)b); }
#else
KR_INLINE kr_vf kr_v_min(kr_vf a, kr_vf b) { return kr_v_select(a < b, a, b); }
KR_INLINE kr_vf kr_v_max(kr_vf a, kr_vf b) { return kr_v_select(a > b, a, b); }
#endif
/// The lanes' sum in one fixed tree, the same at every width.
KR_INLINE float kr_v_sum(kr_vf v) {
    float a[8], b[4];
    for (int k = 0; k < 8; k++) a[k] = v[k] + v[k + 8];
    for (int k = 0; k < 4; k++) b[k] = a[k] + a[k + 4];
    return (b[0] + b[2]) + (b[1] + b[3]);
}
KR_INLINE float kr_v_max_lane(kr_vf v) {
    float m = v[0];
    for (int k = 1; k < KR_LANES; k++) m = v[k] > m ? v[k] : m;
    return m;
}
/// Square root per lane, correctly rounded. Compilers do not find sqrtps in the generic loop.
KR_INLINE kr_vf kr_v_sqrt(kr_vf x) {
#ifdef __AVX512F__
    return (kr_vf)_mm512_sqrt_ps((__m512)x);
#else
    union { kr_vf v; float lane[KR_LANES]; } u = {x};
#ifdef __SSE__
    for (int k = 0; k < KR_LANES; k += 4) _mm_store_ps(u.lane + k, _mm_sqrt_ps(_mm_load_ps(u.lane + k)));
#else
    for (int k = 0; k < KR_LANES; k++) u.lane[k] = __builtin_sqrtf(u.lane[k]);
#endif
    return u.v;
#endif
}

/// -|x|. Set by sign bit, so NaN stays NaN.
KR_INLINE kr_vf kr_v_minus_abs(kr_vf x) { return (kr_vf)((kr_vi)x | kr_v_seti((int32_t)0x80000000)); }

#ifdef __AVX512DQ__
/// e^x for x below 2^21 in magnitude where the bit of `keep` is set, else 0: 2^n e^r with x = n log(2) + r. The
/// polynomial is minimax on |r| <= log(2) / 2 with its first two coefficients exact (3.1e-9); scalef overflows to
/// infinity by itself.
KR_INLINE kr_vf kr_v_exp_where(__mmask16 keep, kr_vf x) {
    const kr_vf magic = kr_v_set(12582912.0f), n = x * kr_v_set(1.44269504f) + magic - magic; // 1.5 * 2^23: rounds
    kr_vf r = n * kr_v_set(-0.693359375f) + x;
    r = n * kr_v_set(2.12194440e-4f) + r;
    kr_vf p = kr_v_set(1.381454018e-3f);
    p = p * r + kr_v_set(8.368745109e-3f);
    p = p * r + kr_v_set(4.166839078e-2f);
    p = p * r + kr_v_set(0.166665204f);
    p = p * r + kr_v_set(0.4999999343f);
    p = p * r + kr_v_set(1.0f);
    p = p * r + kr_v_set(1.0f);
    return (kr_vf)_mm512_maskz_scalef_ps(keep, (__m512)p, (__m512)n);
}
/// Lanes at which e^x is a normal number or more; a NaN is one of them.
KR_INLINE __mmask16 kr_v_exp_kept(kr_vf x) {
    return _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-87.33654f), _CMP_NLT_UQ);
}
#endif

/// e^x. Relative error below 1e-7; 0 below -87.34, infinity above 88.72, NaN stays NaN.
KR_INLINE kr_vf kr_v_exp(kr_vf x) {
#ifdef __AVX512DQ__
    return kr_v_exp_where(kr_v_exp_kept(x), kr_v_min(kr_v_set(1000.0f), x)); // a NaN passes
#else
    const kr_vf magic = kr_v_set(12582912.0f); // 1.5 * 2^23: adding it rounds to an integer in the low bits
    const kr_vf lo = kr_v_set(-87.33654f), hi = kr_v_set(88.72283f);
    const kr_vi under = x < lo, over = x > hi, unknown = x != x; // all ones is a NaN too
    x = kr_v_min(hi, kr_v_max(lo, x));
    const kr_vf k = x * kr_v_set(1.44269504f) + magic, n = k - magic;
    kr_vf r = x - n * kr_v_set(0.693359375f);
    r = r + n * kr_v_set(2.12194440e-4f);
    kr_vf p = kr_v_set(1.381454018e-3f); // as in kr_v_exp_where
    p = p * r + kr_v_set(8.368745109e-3f);
    p = p * r + kr_v_set(4.166839078e-2f);
    p = p * r + kr_v_set(0.166665204f);
    p = p * r + kr_v_set(0.4999999343f);
    p = p * r + kr_v_set(1.0f);
    p = p * r + kr_v_set(1.0f);
    kr_vi y = (kr_vi)p + ((kr_vi)k << 23);
    y = (y & ~over) | (over & kr_v_seti(0x7f800000));
    return (kr_vf)((y & ~under) | unknown);
#endif
}

/// 2^x. Relative error below 1.9e-7, exact at integers; below -126 at most 1.2e-38, infinity from 128, NaN stays NaN.
/// The decay of a scan takes one per token, channel and state, so AVX-512 uses its own range reduction and scaling.
KR_INLINE kr_vf kr_v_exp2(kr_vf x) {
#ifdef __AVX512DQ__
    const kr_vf f = (kr_vf)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); // x - floor(x)
    kr_vf p = kr_v_set(1.8793185e-3f); // minimax on [0, 1), exact at both ends
    p = p * f + kr_v_set(8.990996e-3f);
    p = p * f + kr_v_set(5.5818677e-2f);
    p = p * f + kr_v_set(0.24015927f);
    p = p * f + kr_v_set(0.6931517f);
    p = p * f + kr_v_set(1.0f);
    return (kr_vf)_mm512_scalef_ps((__m512)p, (__m512)x); // p * 2^floor(x)
#else
    const kr_vf magic = kr_v_set(12582912.0f); // 1.5 * 2^23, as in kr_v_exp
    x = kr_v_min(kr_v_set(128.0f), kr_v_max(kr_v_set(-126.0f), x)); // in this order a NaN passes
    const kr_vi unknown = x != x;
    const kr_vf k = x + magic, f = x - (k - magic);
    kr_vf p = kr_v_set(1.3264726e-3f); // minimax on [-1/2, 1/2], exact at 0
    p = p * f + kr_v_set(9.6715130e-3f);
    p = p * f + kr_v_set(5.5507336e-2f);
    p = p * f + kr_v_set(0.24022242f);
    p = p * f + kr_v_set(0.69314700f);
    p = p * f + kr_v_set(1.0f);
    return (kr_vf)(((kr_vi)p + ((kr_vi)k << 23)) | unknown);
#endif
}

/// Natural logarithm of x > 0. Relative error below 1e-7; log(0) = -inf, x < 0 is NaN.
/// Denormal inputs count as zero.
KR_INLINE kr_vf kr_v_log(kr_vf x) {
    const kr_vi bits = (kr_vi)x;
    const kr_vi e0 = ((bits - kr_v_seti(0x3f3504f3)) >> 23); // x = m * 2^e with m in [sqrt(1/2), sqrt(2))
    const kr_vf m = (kr_vf)(bits - (e0 << 23)), e = __builtin_convertvector(e0, kr_vf);
    const kr_vf f = m - kr_v_set(1.0f), z = f * f;
    kr_vf p = kr_v_set(7.0376836292e-2f);
    p = p * f + kr_v_set(-1.1514610310e-1f);
    p = p * f + kr_v_set(1.1676998740e-1f);
    p = p * f + kr_v_set(-1.2420140846e-1f);
    p = p * f + kr_v_set(1.4249322787e-1f);
    p = p * f + kr_v_set(-1.6668057665e-1f);
    p = p * f + kr_v_set(2.0000714765e-1f);
    p = p * f + kr_v_set(-2.4999993993e-1f);
    p = p * f + kr_v_set(3.3333331174e-1f);
    kr_vf y = f * z * p + e * kr_v_set(-2.12194440e-4f) - z * kr_v_set(0.5f);
    y = f + y + e * kr_v_set(0.693359375f);
    y = kr_v_select(x < kr_v_set(1.17549435e-38f), kr_v_set(-__builtin_inff()), y);
    y = kr_v_select(x < kr_v_set(0.0f), kr_v_set(__builtin_nanf("")), y);
    y = kr_v_select(x == kr_v_set(__builtin_inff()), x, y);
    return kr_v_select(x != x, x, y);
}

/// log(1 + u) for u in [0, 1], relative error below 2e-7 down to u = 0. A polynomial is as many operations as the way
/// by atanh, and needs no division (minimax for log(1 + u) / u, exact at 0: 3.3e-8).
KR_INLINE kr_vf kr_v_log1p_unit(kr_vf u) {
    kr_vf p = kr_v_set(5.3648291915e-3f);
    p = p * u + kr_v_set(-3.0065811015e-2f);
    p = p * u + kr_v_set(7.92045647e-2f);
    p = p * u + kr_v_set(-0.13753804684f);
    p = p * u + kr_v_set(0.19153655972f);
    p = p * u + kr_v_set(-0.2485716391f);
    p = p * u + kr_v_set(0.33321322645f);
    p = p * u + kr_v_set(-0.49999647964f);
    p = p * u + kr_v_set(1.0f);
    return p * u;
}

/// 1 / (1 + e^-x). Relative error below 2e-7; 0 below -87.34.
KR_INLINE kr_vf kr_v_sigmoid(kr_vf x) {
    const kr_vf one = kr_v_set(1.0f);
#ifdef __AVX512DQ__
    const __mmask16 kept = kr_v_exp_kept(x); // no way past it for what e^-x makes of the rest
    const kr_vf e = kr_v_exp_where(kept, -kr_v_min(kr_v_set(88.0f), x));
    return (kr_vf)_mm512_maskz_div_ps(kept, (__m512)one, (__m512)(one + e));
#else
    const kr_vf e = kr_v_exp(kr_v_minus_abs(x));
    return kr_v_select(x < kr_v_set(0), e, one) / (one + e);
#endif
}
/// x * sigmoid(x). Relative error below 2.5e-7; 0 below -87.34.
KR_INLINE kr_vf kr_v_silu(kr_vf x) { return x * kr_v_sigmoid(x); }

/// e^-|x|, 0 where |x| is above 87.34.
KR_INLINE kr_vf kr_v_exp_minus_abs(kr_vf x) {
    const kr_vf v = kr_v_minus_abs(x);
#ifdef __AVX512DQ__
    return kr_v_exp_where(kr_v_exp_kept(v), v);
#else
    return kr_v_exp(v);
#endif
}
/// x > 20 ? x : log1p(e^x), evaluated as max(x, 0) + log1p(e^-|x|): no overflow, relative error below
/// 2.5e-7; 0 below -87.34.
KR_INLINE kr_vf kr_v_softplus(kr_vf x) {
    return kr_v_max(x, kr_v_set(0)) + kr_v_log1p_unit(kr_v_exp_minus_abs(x));
}
/// tanh, relative error below 2e-7.
KR_INLINE kr_vf kr_v_tanh(kr_vf x) {
    const kr_vf a = kr_v_abs(x), q = x * x, one = kr_v_set(1.0f);
    const kr_vf e = kr_v_exp(a * kr_v_set(-2.0f));
    const kr_vf big = (kr_vf)((kr_vi)((one - e) / (one + e)) | ((kr_vi)x & kr_v_seti((int32_t)0x80000000)));
    kr_vf p = kr_v_set(-5.70498872745e-3f);
    p = p * q + kr_v_set(2.06390887954e-2f);
    p = p * q + kr_v_set(-5.37397155531e-2f);
    p = p * q + kr_v_set(1.33314422036e-1f);
    p = p * q + kr_v_set(-3.33332819422e-1f);
    return kr_v_select(a < kr_v_set(0.625f), x + x * q * p, big);
}

/// sin and cos of r + quadrant pi/2 for |r| <= pi/4: polynomials, and the signs and the swap that the quadrant wants.
KR_INLINE void kr_v_sincos_reduced(kr_vf r, kr_vi quadrant, kr_vf *sine, kr_vf *cosine) {
    const kr_vf z = r * r;
    kr_vf s = kr_v_set(-1.9515295891e-4f);
    s = s * z + kr_v_set(8.3321608736e-3f);
    s = s * z + kr_v_set(-1.6666654611e-1f);
    s = s * z * r + r;
    kr_vf c = kr_v_set(2.443315711809948e-5f);
    c = c * z + kr_v_set(-1.388731625493765e-3f);
    c = c * z + kr_v_set(4.166664568298827e-2f);
    c = c * z * z - kr_v_set(0.5f) * z + kr_v_set(1.0f);
    const kr_vi swap = -(quadrant & kr_v_seti(1)); // all ones in odd quadrants
    const kr_vi sign_s = (quadrant & kr_v_seti(2)) << 30, sign_c = ((quadrant + kr_v_seti(1)) & kr_v_seti(2)) << 30;
    *sine = (kr_vf)((kr_vi)kr_v_select(swap, c, s) ^ sign_s);
    *cosine = (kr_vf)((kr_vi)kr_v_select(swap, s, c) ^ sign_c);
}

/// sin and cos of x together. Absolute error below 1e-7 for |x| up to 8192; beyond that the reduction loses digits.
/// Infinities and NaN give NaN. x = n pi/2 + r with pi/2 in three parts, of which the first two have so few bits that
/// their products with n are exact.
KR_INLINE void kr_v_sincos(kr_vf x, kr_vf *sine, kr_vf *cosine) {
    const kr_vf magic = kr_v_set(12582912.0f); // 1.5 * 2^23, as in kr_v_exp
    const kr_vf k = x * kr_v_set(0.636619772f) + magic, n = k - magic;
    kr_vf r = x - n * kr_v_set(1.5703125f);
    r = r - n * kr_v_set(4.837512969970703125e-4f);
    r = r - n * kr_v_set(7.54978995489188216e-8f);
    kr_v_sincos_reduced(r, (kr_vi)k, sine, cosine);
}
KR_INLINE kr_vf kr_v_sin(kr_vf x) {
    kr_vf s, c;
    kr_v_sincos(x, &s, &c);
    return s;
}
KR_INLINE kr_vf kr_v_cos(kr_vf x) {
    kr_vf s, c;
    kr_v_sincos(x, &s, &c);
    return c;
}

#endif
