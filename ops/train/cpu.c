#include "ops/cpu/lanes.h"

#include "ops/train/args.h"
#include "ops/train/blocks.h"
#include "ops/train/correction.h"

/// Sum of squares of at most KR_NORM_BLOCK elements, in sixteen lanes and two chains.
static double block_square(const float *x, int64_t n) {
    kr_vf a = kr_v_set(0), b = kr_v_set(0);
    int64_t i = 0;
    for (; i + 2 * KR_LANES <= n; i += 2 * KR_LANES) {
        const kr_vf p = kr_v_load(x + i), q = kr_v_load(x + i + KR_LANES);
        a += p * p;
        b += q * q;
    }
    for (; i < n; i += KR_LANES) {
        const kr_vf p = kr_v_load_n(x + i, n - i);
        a += p * p;
    }
    return (double)kr_v_sum(a + b);
}

/// Blocks of all inputs in one numbering; a part takes a range of them.
KR_KERNEL(sq_norm) {
    double *sums = call->work;
    int64_t total = 0, begin, end, base = 0;
    for (int i = 0; i < call->inputs; i++) total += kr_norm_blocks(kr_shape_count(&call->in[i].shape));
    kr_share(total, part, parts, &begin, &end);
    for (int i = 0; i < call->inputs && base < end; i++) {
        const int64_t count = kr_shape_count(&call->in[i].shape), blocks = kr_norm_blocks(count);
        const float *x = call->in[i].data;
        for (int64_t b = begin > base ? begin - base : 0; b < blocks && base + b < end; b++) {
            const int64_t at = b * KR_NORM_BLOCK;
            sums[base + b] = block_square(x + at, count - at < KR_NORM_BLOCK ? count - at : KR_NORM_BLOCK);
        }
        base += blocks;
    }
}

KR_KERNEL(sq_norm_combine) {
    (void)parts;
    if (part) return;
    const double *sums = call->work;
    int64_t total = 0;
    for (int i = 0; i < call->inputs; i++) total += kr_norm_blocks(kr_shape_count(&call->in[i].shape));
    double sum = 0;
    for (int64_t b = 0; b < total; b++) sum += sums[b];
    *(float *)call->out[SQ_NORM_SUM].data = (float)sum;
}

/// Of the squared gradient norm. Where there is none nothing is known to be wrong.
static int is_finite(const float *square) { return !square || (*square >= 0 && *square <= 3.402823466e38f); }

/// Decoupled AdamW, with the gradient scaled by min(1, max_norm / (norm + 1e-6)) first:
///
///     p <- p (1 - lr wd) - lr m^ / (sqrt(v^) + eps)        m^ = m / (1 - beta1^t),  v^ = v / (1 - beta2^t)
///
/// In the loop the factors that do not depend on the element are one number each: `keep` = 1 - lr wd,
/// `rate` = lr / (1 - beta1^t), `root` = 1 / sqrt(1 - beta2^t). When the norm is not finite nothing changes: the caller
/// sees it in the norm and still has good parameters.
KR_KERNEL(adamw) {
    const int64_t n = kr_shape_count(&call->in[ADAMW_P].shape), block = 4096, blocks = (n + block - 1) / block;
    const float *p = call->in[ADAMW_P].data, *g = call->in[ADAMW_G].data, *m = call->in[ADAMW_M].data,
                *v = call->in[ADAMW_V].data;
    const float *square = call->in[ADAMW_SQ_NORM].data;
    float *new_p = call->out[ADAMW_NEW_P].data, *new_m = call->out[ADAMW_NEW_M].data,
          *new_v = call->out[ADAMW_NEW_V].data;
    const double beta1 = call->attrs->r[ADAMW_BETA1], beta2 = call->attrs->r[ADAMW_BETA2],
                 weight_decay = call->attrs->r[ADAMW_WEIGHT_DECAY], max_norm = call->attrs->r[ADAMW_MAX_NORM];
    const double learning_rate = (double)*(const float *)call->in[ADAMW_LEARNING_RATE].data;
    const int64_t t = *(const int64_t *)call->in[ADAMW_STEP].data;
    const int finite = is_finite(square);
    int64_t begin, end;
    kr_share(blocks, part, parts, &begin, &end);
    if (begin == end) return;
    double scale = 1;
    if (square) {
        const double norm = __builtin_sqrt((double)*square);
        if (max_norm > 0 && max_norm < norm + 1e-6) scale = max_norm / (norm + 1e-6);
    }
    // Through f32, so that builds that round the last bit of the double in another way give the same weights.
    const float correction1 = (float)kr_bias_correction(beta1, t),
                correction2 = (float)kr_bias_correction(beta2, t);
    const kr_vf b1 = kr_v_set((float)beta1), c1 = kr_v_set((float)(1 - beta1)), b2 = kr_v_set((float)beta2),
                c2 = kr_v_set((float)(1 - beta2)), eps = kr_v_set((float)call->attrs->r[ADAMW_EPS]),
                keep = kr_v_set((float)(1 - learning_rate * weight_decay)),
                rate = kr_v_set((float)(learning_rate / (double)correction1)),
                root = kr_v_set((float)(1 / __builtin_sqrt((double)correction2))), factor = kr_v_set((float)scale);
    begin *= block;
    end = end * block < n ? end * block : n;
    for (int64_t i = begin; i < end; i += KR_LANES) {
        const int64_t left = end - i;
        const kr_vf p0 = kr_v_load_n(p + i, left), m0 = kr_v_load_n(m + i, left), v0 = kr_v_load_n(v + i, left);
        const kr_vf gi = kr_v_load_n(g + i, left) * factor;
        const kr_vf m1 = b1 * m0 + c1 * gi, v1 = b2 * v0 + c2 * (gi * gi);
        const kr_vf p1 = p0 * keep - rate * m1 / (kr_v_sqrt(v1) * root + eps);
        kr_v_store_n(new_p + i, finite ? p1 : p0, left);
        kr_v_store_n(new_m + i, finite ? m1 : m0, left);
        kr_v_store_n(new_v + i, finite ? v1 : v0, left);
    }
}

KR_KERNEL(count_step) {
    (void)parts;
    if (part) return;
    *(int64_t *)call->out[COUNT_STEP_NEXT].data = *(const int64_t *)call->in[COUNT_STEP_STEP].data +
                                                  is_finite(call->in[COUNT_STEP_SQ_NORM].data);
}
