/// What softmax and the losses do to one row.
#ifndef KRAIT_OPS_SOFTMAX_CPU_ROW_H
#define KRAIT_OPS_SOFTMAX_CPU_ROW_H

#include "ops/cpu/lanes.h"

#define KR_ROW static __attribute__((unused)) // whoever includes this file may want a part of it

/// The largest of a row; -infinity of none.
KR_ROW float row_max(const float *x, int64_t n) {
    kr_vf m = kr_v_set(-__builtin_inff());
    int64_t i = 0;
    for (; i + KR_LANES <= n; i += KR_LANES) m = kr_v_max(kr_v_load(x + i), m);
    float best = kr_v_max_lane(m);
    for (; i < n; i++) best = x[i] > best ? x[i] : best;
    return best;
}

/// Sum of e^(x - shift) over a row; y (may be null, may be x) gets the terms. NaN anywhere makes the sum NaN.
KR_ROW float row_exp_sum(const float *x, int64_t n, float shift, float *y) {
    kr_vf sum = kr_v_set(0);
    const kr_vf minus = kr_v_set(shift);
    int64_t i = 0;
    for (; i + KR_LANES <= n; i += KR_LANES) {
        const kr_vf e = kr_v_exp(kr_v_load(x + i) - minus);
        if (y) kr_v_store(y + i, e);
        sum += e;
    }
    if (i < n) {
        const kr_vf e = kr_v_exp(kr_v_load_n(x + i, n - i) - minus);
        if (y) kr_v_store_n(y + i, e, n - i);
        for (int64_t k = 0; k < n - i; k++) sum[k] += e[k];
    }
    return kr_v_sum(sum);
}

#endif
