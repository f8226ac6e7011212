/// The forward pass over one chunk, and over a single token; ssd_chunk.h has the theory.
#ifndef KRAIT_OPS_SSD_CHUNK_FORWARD_H
#define KRAIT_OPS_SSD_CHUNK_FORWARD_H

#include "ops/ssd_chunk.h"

/// weights = scores w, and m_n.
KR_INLINE void weigh_columns(const chunk *c, const int64_t rank) {
    for (int64_t j = 0; j < c->rows; j += KR_LANES) {
        const int64_t first = j / rank, last = (j + KR_LANES - 1) / rank;
        const kr_vi token = (kr_vi)kr_v_load(c->token + j);
        const kr_vf ghat = kr_v_load(c->ghat + j), gamma = kr_v_load(c->gamma + j), one = kr_v_set(1);
        const float *scores = c->scores.at + first * rank * c->scores.pitch + j;
        float *weights = c->weights.at + first * rank * c->weights.pitch + j;
        kr_vf m = kr_v_set(0);
        int64_t t = first;
        for (; t <= last && t < c->tokens; t++) {
            const kr_vi own = token == kr_v_seti((int32_t)t);
            m = next_decay(c, m, t);
            const kr_vf w = kr_v_select(own, gamma, m * ghat);
            m = kr_v_select(own, one, m);
            for (int64_t r = 0; r < rank; r++, scores += c->scores.pitch, weights += c->weights.pitch)
                kr_v_store(weights, kr_v_load(scores) * w);
        }
        for (; t < c->tokens; t++) {
            m = next_decay(c, m, t);
            const kr_vf w = m * ghat;
            for (int64_t r = 0; r < rank; r++, scores += c->scores.pitch, weights += c->weights.pitch)
                kr_v_store(weights, kr_v_load(scores) * w);
        }
        kr_v_store(c->to_end + j, m);
        kr_v_store(c->scale + j, m * ghat);
    }
}

static void weigh(const chunk *c) {
    if (c->rank == 1) weigh_columns(c, 1);
    else weigh_columns(c, c->rank);
}

/// Where a chunk finds the state before it and leaves that after it. `saved` (may be null) is where the state before this
/// chunk is kept for the backward pass, the next chunk's is `step` further; `state` is the head's scratch.
typedef struct passage {
    matrix before, after;
} passage;

static passage pass_state(const chunk *c, matrix state, float *saved, int64_t step, bool begins, bool ends) {
    if (!saved) return (passage){state, state};
    if (begins || !in_place(c)) store_matrix(saved, c->width, state, c->states, c->width);
    if (!in_place(c)) return (passage){state, state};
    return (passage){{saved, c->width}, ends ? state : (matrix){saved + step, c->width}};
}

/// y from q, scores, v, decay, ghat and gamma; then the state [states, width] after the chunk, unless nobody wants it.
/// fresh: the state before is zero, whatever lies there.
static void chunk_forward(const chunk *c, passage state, bool fresh, bool wanted) {
    chunk_decays(c);
    weigh(c);
    chunk_output(c, state.before, fresh);
    if (!wanted) return;
    scale_rows(c->scaled_v, c->v, c->scale, c->rows, c->width);
    product after = {FULL, c->rank, c->states, c->width, c->rows, c->k, c->scaled_v, state.after, true, .ahead = c->ahead};
    if (!fresh) after.from = state.before, after.times = c->from_start[c->rows - 1];
    multiply(&after);
}

/// Rows of a state [width, states] after one token, S' = decay S + sum_i v_i (outer) k_i: `rows` of them from the p-th.
KR_INLINE void step_rows(const chunk *c, const float *from, float *to, float decay, const int64_t count, int64_t p, int64_t rows) {
    const int64_t n = c->states;
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < n; j += KR_LANES) {
            kr_vf s = from ? kr_v_set(decay) * kr_v_load_n(from + i * n + j, n - j) : kr_v_set(0);
            for (int64_t k = 0; k < count; k++)
                s += kr_v_set(c->scaled_v.at[k * c->scaled_v.pitch + p + i]) * kr_v_load(c->k.at + k * c->k.pitch + j);
            kr_v_store_n(to + i * n + j, s, n - j);
        }
}

/// One token alone, as in decoding, where the way through chunks would touch the state five times: S' with `count` keys
/// k and values scaled_v, and y = S' q. from (null: zero) and to (null: not wanted) are [width, states] in memory and may
/// be the same.
static void chunk_step(const chunk *c, const float *from, float *to, float decay, int64_t count) {
    const int64_t n = c->states;
    _Alignas(64) float lanes[16 * KR_LANES];
    for (int64_t p = 0; p < c->width; p += 16) {
        const int64_t rows = c->width - p < 16 ? c->width - p : 16;
        const float *before = from ? from + p * n : 0;
        float *after = to ? to + p * n : c->state;
        if (count == 1) step_rows(c, before, after, decay, 1, p, rows);
        else if (count == 2) step_rows(c, before, after, decay, 2, p, rows);
        else step_rows(c, before, after, decay, count, p, rows);
        for (int64_t r = 0; r < c->rank; r++) {
            const float *q = c->q.at + r * c->q.pitch;
            for (int64_t i = 0; i < 16; i++) {
                kr_vf sum = kr_v_set(0);
                for (int64_t j = 0; i < rows && j < n; j += KR_LANES) sum += kr_v_load_n(after + i * n + j, n - j) * kr_v_load(q + j);
                kr_v_store(lanes + i * KR_LANES, sum);
            }
            sum_lanes(lanes, 16, c->y.at + r * c->y.pitch + p);
        }
    }
}

#endif
