/// One token of a scan alone, as in decoding, where the way through chunks would touch the state five times.
#ifndef KRAIT_OPS_SSD_CPU_STEP_H
#define KRAIT_OPS_SSD_CPU_STEP_H

#include "ops/ssd/cpu_matrix.h"

typedef struct token_step {
    int64_t rank, states, width;
    matrix k, scaled_v; ///< keys [count, states], and values [count, width] times what they weigh
    matrix q, y;        ///< [rank, states] and [rank, width], with room for whole vectors
    float *spare;       ///< [16, states]
} token_step;

/// Rows of a state [width, states] after the token, S' = decay S + sum_i v_i (outer) k_i: `rows` of them from the p-th.
KR_INLINE void step_rows(const token_step *c, const float *from, float *to, float decay, const int64_t count, int64_t p,
                         int64_t rows) {
    const int64_t n = c->states;
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < n; j += KR_LANES) {
            kr_vf s = from ? kr_v_set(decay) * kr_v_load_n(from + i * n + j, n - j) : kr_v_set(0);
            for (int64_t k = 0; k < count; k++)
                s += kr_v_set(c->scaled_v.at[k * c->scaled_v.pitch + p + i]) * kr_v_load(c->k.at + k * c->k.pitch + j);
            kr_v_store_n(to + i * n + j, s, n - j);
        }
}

/// S' with `count` keys and values, and y = S' q. from (null: zero) and to (null: not wanted) are [width, states] in
/// memory and may be the same.
static inline void step_token(const token_step *c, const float *from, float *to, float decay, int64_t count) {
    const int64_t n = c->states;
    _Alignas(64) float lanes[16 * KR_LANES];
    for (int64_t p = 0; p < c->width; p += 16) {
        const int64_t rows = c->width - p < 16 ? c->width - p : 16;
        const float *before = from ? from + p * n : 0;
        float *after = to ? to + p * n : c->spare;
        if (count == 1) step_rows(c, before, after, decay, 1, p, rows);
        else if (count == 2) step_rows(c, before, after, decay, 2, p, rows);
        else step_rows(c, before, after, decay, count, p, rows);
        for (int64_t r = 0; r < c->rank; r++) {
            const float *q = c->q.at + r * c->q.pitch;
            for (int64_t i = 0; i < 16; i++) {
                kr_vf sum = kr_v_set(0);
                for (int64_t j = 0; i < rows && j < n; j += KR_LANES)
                    sum += kr_v_load_n(after + i * n + j, n - j) * kr_v_load(q + j);
                kr_v_store(lanes + i * KR_LANES, sum);
            }
            sum_lanes(lanes, 16, c->y.at + r * c->y.pitch + p);
        }
    }
}

#endif
