#include "tests/check.h"

#include <criterion/criterion.h>
#include <math.h>

double check_get(const void *data, kr_dtype dtype, int64_t i) {
    switch (dtype) {
    case KR_F32: return ((const float *)data)[i];
    case KR_F64: return ((const double *)data)[i];
    case KR_BF16: return kr_bf16_to_f32(((const uint16_t *)data)[i]);
    case KR_I32: return ((const int32_t *)data)[i];
    case KR_I64: return (double)((const int64_t *)data)[i];
    case KR_U8: case KR_BOOL: return ((const uint8_t *)data)[i];
    default: return NAN;
    }
}

void check_set(void *data, kr_dtype dtype, int64_t i, double x) {
    switch (dtype) {
    case KR_F32: ((float *)data)[i] = (float)x; break;
    case KR_F64: ((double *)data)[i] = x; break;
    case KR_BF16: ((uint16_t *)data)[i] = kr_f32_to_bf16((float)x); break;
    case KR_I32: ((int32_t *)data)[i] = (int32_t)x; break;
    case KR_I64: ((int64_t *)data)[i] = (int64_t)x; break;
    case KR_U8: ((uint8_t *)data)[i] = (uint8_t)x; break;
    case KR_BOOL: ((uint8_t *)data)[i] = x != 0; break;
    default: break;
    }
}

static bool is_integer(kr_dtype t) { return t == KR_I32 || t == KR_I64 || t == KR_U8 || t == KR_BOOL; }

void check_random(double *out, int64_t n, kr_dtype dtype, double lo, double hi, uint64_t seed, uint64_t stream) {
    for (int64_t i = 0; i < n; i++) {
        const double u = kr_random_uniform(seed, stream, (uint64_t)i);
        if (is_integer(dtype)) out[i] = floor(lo + u * (hi - lo + 1));
        else {
            double rounded = lo + u * (hi - lo);
            check_set(&rounded, dtype, 0, rounded);
            out[i] = check_get(&rounded, dtype, 0);
        }
    }
}

void check_ok(kr_status s, const char *what) {
    cr_assert(s == KR_OK, "%s: %s: %s (%s)", what, kr_status_name(s), kr_status_message(), kr_status_place());
}

void check_close(const void *got, kr_dtype dtype, const double *want, int64_t n, double tolerance, const char *what) {
    double scale = 1;
    for (int64_t i = 0; i < n; i++)
        if (isfinite(want[i]) && 1 + fabs(want[i]) > scale) scale = 1 + fabs(want[i]);
    const double allowed = is_integer(dtype) ? 0 : tolerance * scale;
    for (int64_t i = 0; i < n; i++) {
        const double g = check_get(got, dtype, i), w = want[i];
        const bool same = isfinite(w) ? fabs(g - w) <= allowed : isnan(w) ? isnan(g) : g == w;
        cr_assert(same, "%s: element %lld of %lld: got %.9g, want %.9g, off by %.3g, allowed %.3g", what, (long long)i,
                  (long long)n, g, w, fabs(g - w), allowed);
    }
}
