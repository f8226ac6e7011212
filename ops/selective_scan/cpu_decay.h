/// What selective_scan takes exponentials of: exp(dt A) once per token, channel and state, the step size and the gate
/// once per token and channel. The first is most of the scan's arithmetic, so AVX-512 has a shorter way than lanes.h
/// (and AVX2 one with a smaller table); their error bounds are tested together with those of lanes.h.
///
///   2^y = 2^k 2^(y-k), k = y rounded to 1/32; 2^(k - floor k) comes from a table in two registers, and on |y-k| <=
/// 1/64
///   2^(y-k) = (s^2 + b) / (a^2 + b) with s = y - k + a, a = 1 / log(2): a square completed, one multiply-add where
///   Horner's rule takes two.
///
/// With y = dt A' the product is part of the multiply-adds that round y and that reduce it, so that all of exp(dt A) is
/// seven instructions: t = dt A' + magic; k - a = sigma t - c; s = dt A' - (k - a); s^2 + b; the table at t's low bits;
/// their product; its scaling by 2^floor(k - a), which overflows and vanishes by itself. `magic` is an integer in
/// [2^18, 2^19), so t's last five bits are those of 32 k; it is odd and sigma is not quite 1 because a must be
/// c - sigma magic, while c has no bits below 1/32. A' takes sigma in.
/// Exact at 0; relative error below 3e-7 for |y| <= 4, beyond that below 2.5e-7 + 1.2e-7 |y|, which is what rounding y
/// costs anyway. NaN stays NaN.
#ifndef KRAIT_OPS_SELECTIVE_SCAN_CPU_DECAY_H
#define KRAIT_OPS_SELECTIVE_SCAN_CPU_DECAY_H

#include "ops/cpu/lanes.h"

#include <stdbool.h>

#ifdef __AVX512DQ__

#define EXP2_MAGIC 305723.0f
#define EXP2_SIGMA 0.99999988f ///< 1 - 2^-23
#define RATE_OF_LOG 1.44269487f ///< A' / A: sigma / log(2)
/// Beyond this a rate says that everything is forgotten at once; s^2 would overflow not much further out.
#define RATE_MOST 1e15f

/// (a^2 + b)^-1 2^(i/32 - floor(i/32 - a)).
static const float exp2_table[32] __attribute__((aligned(64))) = {
    0.960918844f, 0.981960177f, 1.00346231f, 1.02543533f, 1.04788935f, 1.07083523f, 1.09428346f, 1.11824512f,
    1.14273155f, 1.16775405f, 1.19332457f, 1.219455f, 1.24615753f, 1.27344489f, 1.30132961f, 0.664912522f,
    0.679472208f, 0.694350719f, 0.70955503f, 0.725092232f, 0.740969718f, 0.757194817f, 0.77377522f, 0.790718734f,
    0.808033168f, 0.825726807f, 0.843807876f, 0.862284839f, 0.881166458f, 0.900461495f, 0.920179009f, 0.9403283f,
};

/// k - a of t = y + magic.
KR_INLINE kr_vf exp2_shift(kr_vf t) {
    return (kr_vf)_mm512_fmsub_ps((__m512)t, _mm512_set1_ps(EXP2_SIGMA), _mm512_set1_ps(EXP2_MAGIC + 45 / 32.0f));
}
/// 2^y of t, k - a and s.
KR_INLINE kr_vf exp2_of(kr_vf t, kr_vf k, kr_vf s) {
    const __m512 low = _mm512_load_ps(exp2_table), high = _mm512_load_ps(exp2_table + 16);
    const __m512 p = _mm512_fmadd_ps((__m512)s, (__m512)s, _mm512_set1_ps(2.08131361f));
    const __m512 step = _mm512_permutex2var_ps(low, (__m512i)t, high);
    return (kr_vf)_mm512_scalef_ps(_mm512_mul_ps(p, step), (__m512)k);
}
/// exp(dt A) with rate = A RATE_OF_LOG.
KR_INLINE kr_vf decay_of(kr_vf dt, kr_vf rate) {
    const __m512 t = _mm512_fmadd_ps((__m512)dt, (__m512)rate, _mm512_set1_ps(EXP2_MAGIC));
    const kr_vf k = exp2_shift((kr_vf)t);
    return exp2_of((kr_vf)t, k, (kr_vf)_mm512_fmsub_ps((__m512)dt, (__m512)rate, (__m512)k));
}
/// 2^(i/32).
static const float exp2_steps[32] __attribute__((aligned(64))) = {
    1.0f, 1.0218972f, 1.04427373f, 1.06714046f, 1.09050775f, 1.1143868f, 1.13878858f, 1.1637249f,
    1.18920708f, 1.21524739f, 1.24185777f, 1.26905096f, 1.29683959f, 1.32523668f, 1.35425556f, 1.38390994f,
    1.41421354f, 1.44518077f, 1.47682619f, 1.50916445f, 1.54221082f, 1.5759809f, 1.61049032f, 1.64575553f,
    1.68179286f, 1.71861935f, 1.75625217f, 1.79470909f, 1.8340081f, 1.87416768f, 1.91520655f, 1.95714414f,
};
/// e^-x for |x| < 1e15. Once per token it may keep more digits: k is exact, 1 / log(2) comes in two parts, and the
/// square stays open. Relative error below 4e-7 while the result is a normal number.
KR_INLINE kr_vf exp_of_minus(kr_vf x) {
    const __m512 low = _mm512_load_ps(exp2_steps), high = _mm512_load_ps(exp2_steps + 16);
    const __m512 magic = _mm512_set1_ps(EXP2_MAGIC), log2e = _mm512_set1_ps(1.44269504f);
    const __m512 t = _mm512_fnmadd_ps((__m512)x, log2e, magic), k = _mm512_sub_ps(t, magic);
    const kr_vf r = kr_v_set(-1.92596299e-8f) * x + (kr_vf)_mm512_fnmsub_ps((__m512)x, log2e, k);
    kr_vf p = r * kr_v_set(0.240226498f) + kr_v_set(0.69315733f);
    p = p * r + kr_v_set(1.0f);
    p *= (kr_vf)_mm512_permutex2var_ps(low, (__m512i)t, high);
    return (kr_vf)_mm512_scalef_ps((__m512)p, k);
}
#define EXP_BOUND 110 ///< e^-x is 0 there, and e^x infinite

#elif defined(__AVX2__)

#define EXP2_MAGIC 1572864.0f ///< 1.5 * 2^20
#define RATE_OF_LOG 1.44269504f
#define RATE_MOST __builtin_inff()

/// Eight entries of a table in one register, by the low 3 bits of each lane.
KR_INLINE kr_vi look_up(__m256i table, kr_vi index) {
    typedef int32_t half __attribute__((vector_size(32)));
    const half low = __builtin_shufflevector(index, index, 0, 1, 2, 3, 4, 5, 6, 7);
    const half high = __builtin_shufflevector(index, index, 8, 9, 10, 11, 12, 13, 14, 15);
    return __builtin_shufflevector((half)_mm256_permutevar8x32_epi32(table, (__m256i)low),
                                   (half)_mm256_permutevar8x32_epi32(table, (__m256i)high),
                                   0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}
/// p 2^k, t = k + magic with k in eighths. The entries are the bits of 2^(i/8) less those that 8 k brings along when it
/// is added above them.
KR_INLINE kr_vf times_exp2(kr_vf p, kr_vf t) {
    const __m256i table = _mm256_setr_epi32(0x3f800000, 0x3f7b95c2, 0x3f7837f0, 0x3f75fed7, 0x3f7504f3, 0x3f75672a,
                                            0x3f7744fd, 0x3f7ac0c7);
    return p * (kr_vf)(look_up(table, (kr_vi)t) + ((kr_vi)t << 20));
}
/// exp(dt A): 2^(k + r) with |r| <= 1/16, for which a cubic does. Below -126 octaves at most 1.2e-38, infinity above
/// 127.9.
KR_INLINE kr_vf decay_of(kr_vf dt, kr_vf rate) {
    const kr_vf y = kr_v_min(kr_v_set(128), kr_v_max(kr_v_set(-127), dt * rate)); // in this order a NaN passes
    const kr_vf t = y + kr_v_set(EXP2_MAGIC), r = y - (t - kr_v_set(EXP2_MAGIC));
    kr_vf p = kr_v_set(5.5496222e-2f);
    p = p * r + kr_v_set(0.24025763f);
    p = p * r + kr_v_set(0.693147214f);
    p = p * r + kr_v_set(1.0f);
    return times_exp2(p, t);
}
/// e^-x for |x| <= 88: 2^k e^r, log(2) in two parts of which the first times k is exact.
KR_INLINE kr_vf exp_of_minus(kr_vf x) {
    const kr_vf t = kr_v_set(EXP2_MAGIC) - x * kr_v_set(1.44269504f), k = t - kr_v_set(EXP2_MAGIC);
    kr_vf r = -x - k * kr_v_set(0.693359375f);
    r = r + k * kr_v_set(2.12194440e-4f);
    kr_vf p = kr_v_set(0.166642985f);
    p = p * r + kr_v_set(0.500064779f);
    p = p * r + kr_v_set(1.00000005f);
    p = p * r + kr_v_set(1.0f);
    return times_exp2(p, t);
}
#define EXP_BOUND 88 ///< e^-x is 0 there

#else

#define RATE_OF_LOG 1.44269504f
#define RATE_MOST __builtin_inff()
KR_INLINE kr_vf decay_of(kr_vf dt, kr_vf rate) { return kr_v_exp2(dt * rate); }
KR_INLINE kr_vf exp_of_minus_abs(kr_vf x) { return kr_v_exp_minus_abs(x); }
KR_INLINE kr_vf gate_of(kr_vf z) { return kr_v_sigmoid(z); }

#endif

#ifdef EXP_BOUND
/// e^-|x|. In this order of operands a NaN passes. Relative error below 4e-7 while it is a normal number.
KR_INLINE kr_vf exp_of_minus_abs(kr_vf x) { return exp_of_minus(kr_v_min(kr_v_set(EXP_BOUND), kr_v_abs(x))); }
/// 1 / (1 + e^-z). Relative error below 5e-7.
KR_INLINE kr_vf gate_of(kr_vf z) {
    const kr_vf bound = kr_v_set(EXP_BOUND);
    return kr_v_set(1) / (kr_v_set(1) + exp_of_minus(kr_v_max(-bound, kr_v_min(bound, z))));
}
#endif

/// A' of A. In this order of operands a NaN passes.
KR_INLINE kr_vf rate_of(kr_vf A) {
    return kr_v_min(kr_v_set(RATE_MOST), kr_v_max(kr_v_set(-RATE_MOST), A * kr_v_set(RATE_OF_LOG)));
}

/// log(1 + e^raw) where asked for, else raw. Relative error below 5e-7.
KR_INLINE kr_vf step_of(bool softplus, kr_vf raw) {
    return softplus ? kr_v_max(raw, kr_v_set(0)) + kr_v_log1p_unit(exp_of_minus_abs(raw)) : raw;
}
/// The same, and its slope from the same exponential.
KR_INLINE kr_vf step_and_slope(bool softplus, kr_vf raw, kr_vf *slope) {
    const kr_vf one = kr_v_set(1), zero = kr_v_set(0);
    *slope = one;
    if (!softplus) return raw;
    const kr_vf e = exp_of_minus_abs(raw);
    *slope = kr_v_select(raw < zero, e, one) / (one + e);
    return kr_v_max(raw, zero) + kr_v_log1p_unit(e);
}

#endif
