/// What the forward and the backward pass of Mamba-3's scan have in common, on the chunk engine of cpu_engine.h.
///
/// The trapezoid rule gives token s the weight gamma_s when it arrives and omega_{s+1} one token later, with the decay
/// that the state gets in between; so for everything after token s its coefficient is ghat_s = gamma_s + omega_{s+1},
/// and the state that goes from chunk to chunk already holds what is pending (docs/book/4-mamba-3.md). After the last
/// token nothing is pending: the last state is the true one, and the caller gets the last keys and values to go on
/// from.
///
/// Keys and queries are given as every head wants them, or with biases and angles: then the heads of a group share what
/// is in memory, and every chunk adds the bias of a head and rotates its pairs on the way into the scratch. A unit
/// takes
/// a few heads along together, so that what they share is read from near.
#ifndef KRAIT_OPS_TRAPEZOID_CPU_CHUNK_H
#define KRAIT_OPS_TRAPEZOID_CPU_CHUNK_H

#include "ops/trapezoid/cpu_rotate.h"

/// Rows (token, rank) of `cols` each, where the ranks of a token lie `step` apart.
static void load_ranks(const chunk *c, matrix to, const float *from, int64_t pitch, int64_t step, int64_t cols) {
    for (int64_t t = 0, i = 0; t < c->tokens; t++)
        for (int64_t r = 0; r < c->rank; r++, i++)
            for (int64_t j = 0; j < cols; j += KR_LANES)
                kr_v_store(to.at + i * to.pitch + j, kr_v_load_n(from + t * pitch + r * step + j, cols - j));
    for (int64_t i = c->rows; i < kr_round_up(c->rows, KR_LANES); i++)
        clear(to.at + i * to.pitch, kr_round_up(cols, KR_LANES));
}

/// Column of the first state of rank r of a head in k and q, as they lie in memory.
static int64_t key_column(const trapezoid *s, place at, int64_t r) {
    const kr_chunk_size *z = &s->size;
    return (s->rotate.rotates ? r * z->groups + at.group : at.head * z->rank + r) * z->states;
}

/// k and q of the chunk from token `first` for one head; where they rotate, after load_steps.
static void load_keys(const trapezoid *s, const chunk *c, const rotation *w, place at, int64_t first, double *running) {
    const int64_t n = s->size.states, row = at.row + first, rank = c->rank;
    if (s->rotate.rotates) {
        load_speeds(s, w, at, row, c->tokens);
        load_angles(s, w, c->spare[0], row, c->tokens, running);
    }
    for (int k = 0; k < 2; k++) {
        const matrix to = k == TRAPEZOID_K ? c->k : c->q;
        const float *from = s->keys[k].at + row * s->keys[k].pitch;
        const int64_t pitch = s->keys[k].pitch;
        if (!s->rotate.rotates) load_ranks(c, to, from + key_column(s, at, 0), pitch, n, n);
        for (int64_t r = 0; r < rank && s->rotate.rotates; r++) {
            const float *x = from + key_column(s, at, r), *bias = s->bias[k] + (at.head * rank + r) * n;
            float *put = to.at + r * to.pitch;
            for (int i = 0; i < 5; i++) prefetch_next(c->ahead);
            if (s->apart) rotate_rows(s, w, x, pitch, bias, put, rank * to.pitch, c->tokens, s->apart);
            else rotate_rows(s, w, x, pitch, bias, put, rank * to.pitch, c->tokens, 0);
        }
    }
}

/// mimo_x of one head, rank and 16 channels; ones where absent.
KR_INLINE kr_vf mimo_of(const trapezoid *s, int64_t head, int64_t r, int64_t j) {
    const int64_t p = s->size.width;
    return s->mimo ? kr_v_load_n(s->mimo + (head * s->size.rank + r) * p + j, p - j) : kr_v_set(1);
}

/// v = x mimo_x for `tokens` tokens of one head.
static void load_values(const trapezoid *s, const chunk *c, matrix to, const float *x, int64_t pitch, int64_t tokens,
                        int64_t head) {
    const int64_t p = s->size.width, rank = s->size.rank;
    for (int64_t j = 0; j < p; j += KR_LANES)
        for (int64_t r = 0; r < rank; r++) {
            const kr_vf mimo = mimo_of(s, head, r, j);
            prefetch_next(c->ahead);
            for (int64_t t = 0; t < tokens; t++)
                kr_v_store(to.at + (t * rank + r) * to.pitch + j, mimo * kr_v_load_n(x + t * pitch + j, p - j));
        }
    for (int64_t i = tokens * rank; i < kr_round_up(tokens * rank, KR_LANES); i++)
        clear(to.at + i * to.pitch, kr_round_up(p, KR_LANES));
}

/// Prefetches what a head reads of one chunk, and for what its unit shares where the chunk is new.
static void prefetch_head(const trapezoid *s, const chunk *c, int64_t row, place at, int64_t head) {
    const int64_t n = s->size.states, p = s->size.width, rotates = s->rotate.rotates;
    prefetch_rows(c->ahead, s->z.at ? s->z.at + row * s->z.pitch + head * p : 0, s->z.pitch, c->tokens, p);
    prefetch_rows(c->ahead, s->x.at + row * s->x.pitch + head * p, s->x.pitch, c->tokens, p);
    if (rotates && head != at.first_head) return;
    at.head = head;
    for (int k = 0; k < 2; k++)
        for (int64_t r = 0; r < (rotates ? c->rank : 1); r++)
            prefetch_rows(c->ahead, s->keys[k].at + row * s->keys[k].pitch + key_column(s, at, r), s->keys[k].pitch,
                          c->tokens, rotates ? n : c->rank * n);
    if (rotates && !s->own_angles)
        prefetch_rows(c->ahead, s->ang.at + row * s->ang.pitch, s->ang.pitch, c->tokens, s->rotate.pairs);
}

/// What of token `t` of the batch row waits for it to come: omega, or zero where it starts a document or is not there.
static float omega_of(const trapezoid *s, place at, int64_t t) {
    if (t >= s->size.length || is_reset(s, at.row + t)) return 0;
    const float lambda = kr_v_sigmoid(kr_v_set(s->trap.at[(at.row + t) * s->trap.pitch + at.head]))[0];
    return (1 - lambda) * s->dt.at[(at.row + t) * s->dt.pitch + at.head];
}

/// Sets D, decay, ghat and gamma of the chunk from token `first`; spare[0] gets dt and spare[1] lambda.
static void load_steps(const trapezoid *s, chunk *c, place at, int64_t first) {
    const int64_t n = c->tokens, row = at.row + first;
    c->skip = s->D ? s->D[at.head] : 0;
    float *dt = c->spare[0], *lambda = c->spare[1];
    for (int64_t t = 0; t < n; t++) {
        c->decay[t] = s->adt.at[(row + t) * s->adt.pitch + at.head];
        dt[t] = s->dt.at[(row + t) * s->dt.pitch + at.head];
        lambda[t] = s->trap.at[(row + t) * s->trap.pitch + at.head];
    }
    for (int64_t t = 0; t < n; t += KR_LANES) {
        kr_v_store(c->decay + t, kr_v_exp(kr_v_load(c->decay + t)));
        kr_v_store(lambda + t, kr_v_sigmoid(kr_v_load(lambda + t)));
    }
    float omega = omega_of(s, at, first + n);
    for (int64_t t = n - 1; t >= 0; t--) {
        const float gamma = lambda[t] * dt[t];
        for (int64_t r = 0; r < c->rank; r++) {
            c->gamma[t * c->rank + r] = gamma;
            c->ghat[t * c->rank + r] = gamma + omega;
        }
        const bool fresh = is_reset(s, row + t);
        omega = fresh ? 0 : (1 - lambda[t]) * dt[t];
        if (fresh) c->decay[t] = 0;
    }
    trapezoid_resize(c, n);
}

/// Keys [rank, states] and values [rank, width] of the token before the first.
static void load_before(const trapezoid *s, const chunk *c, place at, matrix keys, matrix values) {
    const kr_chunk_size *z = &s->size;
    load_matrix(keys, s->k0 + (at.b * z->rank * z->heads + at.head) * z->states, z->heads * z->states, z->rank,
                z->states);
    load_values(s, c, values, s->v0 + (at.b * z->heads + at.head) * z->width, 0, 1, at.head);
}

/// The part of the scratch that must start as zeros: that of the triangles, and what lies beside keys and queries.
static void start_slot(const trapezoid *s, const chunk *c, bool backward) {
    const int64_t rows = kr_round_up(s->size.chunk * s->size.rank, KR_LANES);
    trapezoid_start(c, &s->size, backward);
    clear_matrix(c->k, rows, s->size.states);
    clear_matrix(c->q, rows, s->size.states);
}

#endif
