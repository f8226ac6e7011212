/// The backward pass over one chunk; cpu_engine.h has the theory.
#ifndef KRAIT_OPS_TRAPEZOID_CPU_ENGINE_BACKWARD_H
#define KRAIT_OPS_TRAPEZOID_CPU_ENGINE_BACKWARD_H

#include "ops/trapezoid/cpu_engine.h"

/// values = w Z and weights = w K, where dots is Z and scores is K; dots becomes m F off the diagonal. From that, with
/// the rows taken from last to first, the sums over what is below row t: by column, and over the columns left of t.
KR_INLINE void weigh_back_columns(const chunk *c, const int64_t rank) {
    for (int64_t j = 0; j < c->rows; j += KR_LANES) {
        const int64_t first = j / rank, last = (j + KR_LANES - 1) / rank;
        const kr_vi token = (kr_vi)kr_v_load(c->token + j);
        const kr_vf ghat = kr_v_load(c->ghat + j), gamma = kr_v_load(c->gamma + j), one = kr_v_set(1),
                    zero = kr_v_set(0);
        const float *scores = c->scores.at + first * rank * c->scores.pitch + j;
        float *dots = c->dots.at + first * rank * c->dots.pitch + j;
        float *values = c->values.at + first * rank * c->values.pitch + j;
        float *weights = c->weights.at + first * rank * c->weights.pitch + j;
        kr_vf m = zero, diagonal = zero, column = zero;
        for (int64_t t = first; t < c->tokens; t++) {
            m = next_decay(c, m, t);
            kr_vf off = m, w = m * ghat;
            kr_vi own = kr_v_seti(0);
            if (t <= last) {
                own = token == kr_v_seti((int32_t)t);
                w = kr_v_select(own, gamma, w);
                m = kr_v_select(own, one, m);
            }
            for (int64_t r = 0; r < rank; r++) {
                const kr_vf z = kr_v_load(dots), k = kr_v_load(scores), f = z * k;
                kr_v_store(values, z * w);
                kr_v_store(weights, k * w);
                kr_v_store(dots, f * off);
                if (t <= last) diagonal += kr_v_select(own, f, zero);
                scores += c->scores.pitch, dots += c->dots.pitch, values += c->values.pitch,
                    weights += c->weights.pitch;
            }
        }
        for (int64_t t = c->tokens - 1; t >= first; t--) {
            float *lanes = c->lanes[0] + t * KR_LANES;
            for (int64_t r = 0; r < rank; r++) {
                dots -= c->dots.pitch;
                column += kr_v_load(dots);
            }
            const kr_vf left = t <= last ? kr_v_select(token < kr_v_seti((int32_t)t), column, zero) : column;
            kr_v_store(lanes, j ? kr_v_load(lanes) + left * ghat : left * ghat);
        }
        kr_v_store(c->to_end + j, m);
        kr_v_store(c->scale + j, m * ghat);
        kr_v_store(c->column + j, column);
        kr_v_store(c->diagonal + j, diagonal);
    }
}

static void weigh_back(const chunk *c) {
    if (c->rank == 1) weigh_back_columns(c, 1);
    else weigh_back_columns(c, c->rank);
}

static float dot_matrices(matrix a, matrix b, int64_t rows, int64_t cols) {
    kr_vf even = kr_v_set(0), odd = kr_v_set(0);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j += KR_LANES) {
            const kr_vf x = kr_v_load(a.at + i * a.pitch + j) * kr_v_load(b.at + i * b.pitch + j);
            if (i & 1) odd += x;
            else even += x;
        }
    return kr_v_sum(even + odd);
}

/// A saved state, in place or in the scratch.
static matrix saved_state(const chunk *c, float *saved) {
    if (in_place(c)) return (matrix){saved, c->width};
    load_matrix(c->loaded, saved, c->width, c->states, c->width);
    return c->loaded;
}

/// The gradients of decays and coefficients from the sums; `through` is e_n <G, S>.
static void trapezoid_coefficients(const chunk *c, float through, bool fresh, bool ending) {
    const int64_t rank = c->rank, n = c->tokens;
    sum_lanes(c->lanes[0], n, c->flow);
    if (ending || !c->width) clear(c->rho, c->rows);
    else sum_lanes(c->lanes[1], c->rows, c->rho);
    if (fresh || !c->states) clear(c->inter, c->rows);
    else sum_lanes(c->lanes[2], c->rows, c->inter);
    float later = 0; // from S to this token and all later ones
    for (int64_t t = n - 1; t >= 0; t--) {
        for (int64_t r = 0; r < rank; r++) later += c->from_start[t * rank + r] * c->inter[t * rank + r];
        c->da[t] = c->flow[t] + later;
    }
    for (int64_t t = 0; t < n; t++) {
        float column = 0, diagonal = 0, rho = 0;
        for (int64_t i = t * rank; i < (t + 1) * rank; i++)
            column += c->column[i], diagonal += c->diagonal[i], rho += c->rho[i];
        c->dghat[t] = column + c->to_end[t * rank] * rho;
        c->dgamma[t] = diagonal;
        c->da[t] += through;
        through += c->scale[t * rank] * rho;
    }
}

/// Adds to dq and dk. Gives dv, dghat, dgamma and da; and makes of `adjoint`
/// [width, states], the gradient of the state after the chunk, that of the state before it. Reads q, k, scores, v, dy,
/// start, decay, ghat and gamma.
/// fresh: the state before is zero and its gradient is not wanted; ending: the state after has no gradient.
static void trapezoid_backward(chunk *c, matrix adjoint, bool fresh, bool ending) {
    float through = 0;
    trapezoid_decays(c);
    transpose(c->v.at, c->v.pitch, kr_round_up(c->rows, KR_LANES), c->width, c->vt, true);
    multiply(&(product){LOWER_RESULT, c->rank, c->rows, c->rows, c->width, c->dy, c->vt, c->dots, .ahead = c->ahead});
    for (int64_t i = 0; i < c->rows; i++) c->dskip += c->dots.at[i * c->dots.pitch + i]; // <dy_t, v_t>
    weigh_back(c);
    product dq = {.rank = c->rank, .rows = c->rows, .cols = c->states, .c = c->dq, .ahead = c->ahead}, dk = dq, dv = dq;
    dk.c = c->dk, dv.c = c->dv, dv.cols = c->width;
    if (c->dq_set) dq.from = c->dq, dq.times = 1;
    if (c->dk_set) dk.from = c->dk, dk.times = 1;
    dq.extent = LOWER_LEFT, dq.a = c->values, dq.b = c->k, dq.depth = c->rows;
    dk.extent = LOWER_ACROSS, dk.a = c->values, dk.b = c->q, dk.depth = c->rows, dk.across = true;
    if (c->skip) dv.from = c->dy, dv.times = c->skip;
    dv.extent = LOWER_ACROSS, dv.a = c->weights, dv.b = c->dy, dv.depth = c->rows, dv.across = true;
    if (!fresh) {
        transpose(c->start.at, c->start.pitch, c->states, c->width, c->start_t, true);
        dq.a0 = c->dy, dq.b0 = c->start_t, dq.depth0 = c->width, dq.scale = c->from_start;
        dq.with = c->q, dq.lanes = c->lanes[2];
    }
    if (!ending) {
        transpose(adjoint.at, adjoint.pitch, c->width, c->states, c->end, true);
        dk.a0 = c->v, dk.b0 = adjoint, dk.depth0 = c->width, dk.scale = c->scale;
        dv.a0 = c->k, dv.b0 = c->end, dv.depth0 = c->states, dv.scale = c->scale;
        dv.with = c->v, dv.lanes = c->lanes[1];
    }
    multiply(&dq), c->dq_set = true;
    multiply(&dk), c->dk_set = true;
    multiply(&dv);
    if (!fresh) {
        const float e = c->from_start[c->rows - 1];
        if (!ending) through = e * dot_matrices(adjoint, c->start_t, c->width, c->states);
        scale_rows(c->scaled_dy, c->dy, c->from_start, c->rows, c->width);
        product before = {FULL,         c->rank, c->width, c->states, c->rows,
                          c->scaled_dy, c->q,    adjoint,  true,      .ahead = c->ahead};
        if (!ending) before.from = adjoint, before.times = e;
        multiply(&before);
    }
    trapezoid_coefficients(c, through, fresh, ending);
}

#endif
