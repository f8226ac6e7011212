/// The forward pass over one chunk, and over a single token; cpu_engine.h has the theory.
#ifndef KRAIT_OPS_TRAPEZOID_CPU_ENGINE_FORWARD_H
#define KRAIT_OPS_TRAPEZOID_CPU_ENGINE_FORWARD_H

#include "ops/trapezoid/cpu_engine.h"
#include "ops/ssd/cpu_step.h"

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

/// Where a chunk finds the state before it and leaves that after it. `saved` (may be null) is where the state before
/// this chunk is kept for the backward pass, the next chunk's is `step` further; `state` is the head's scratch.
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
static void trapezoid_forward(const chunk *c, passage state, bool fresh, bool wanted) {
    trapezoid_decays(c);
    weigh(c);
    trapezoid_output(c, state.before, fresh);
    if (!wanted) return;
    scale_rows(c->scaled_v, c->v, c->scale, c->rows, c->width);
    product after = {FULL, c->rank,     c->states,   c->width, c->rows,
                     c->k, c->scaled_v, state.after, true,     .ahead = c->ahead};
    if (!fresh) after.from = state.before, after.times = c->from_start[c->rows - 1];
    multiply(&after);
}

/// One token alone, with `count` keys k and values scaled_v (ops/ssd/cpu_step.h).
static void trapezoid_step(const chunk *c, const float *from, float *to, float decay, int64_t count) {
    step_token(&(token_step){c->rank, c->states, c->width, c->k, c->scaled_v, c->q, c->y, c->state}, from, to, decay,
               count);
}

#endif
