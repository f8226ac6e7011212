/// Adam's bias corrections (Kingma & Ba 2015, arXiv:1412.6980, algorithm 1).
///
/// A moment that starts at zero and is an average with weights (1 - beta) beta^k has after t updates the total weight
/// e(t) = 1 - beta^t, by which it is divided. For beta near 1 and small t that difference loses most of its digits when
/// it is taken from the power. Here the power never appears: from e(1) = 1 - beta
///
///     e(2t) = e(t) (2 - e(t))          e(t + 1) = e(t) + (1 - e(t)) (1 - beta)
///
/// reach any t along its binary digits. All terms are positive, so each step adds a rounding and makes no earlier one
/// larger. Kernels may call no library, hence no expm1.
#ifndef KRAIT_OPS_TRAIN_CORRECTION_H
#define KRAIT_OPS_TRAIN_CORRECTION_H

#include <stdint.h>

/// 1 - beta^step for beta in [0, 1) and step >= 1.
static inline double kr_bias_correction(double beta, int64_t step) {
    double e = 0;
    for (int bit = step > 0 ? 63 - __builtin_clzll((unsigned long long)step) : -1; bit >= 0; bit--) {
        e *= 2 - e;
        if (step >> bit & 1) e += (1 - e) * (1 - beta);
    }
    return e;
}

#endif
