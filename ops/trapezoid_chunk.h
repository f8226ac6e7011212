/// What the forward and the backward pass of Mamba-3's scan have in common, on the chunk machinery of ssd_chunk.h.
///
/// The trapezoid rule gives token s the weight gamma_s when it arrives and omega_{s+1} one token later, with the decay
/// that the state gets in between; so for everything after token s its coefficient is ghat_s = gamma_s + omega_{s+1},
/// and the state that goes from chunk to chunk already holds what is pending (MATH 7.5). After the last token nothing
/// is pending: the last state is the true one, and the caller gets the last keys and values to go on from.
///
/// Keys and queries are given as every head wants them, or with biases and angles: then the heads of a group share what
/// is in memory, and every chunk adds the bias of a head and turns its pairs on the way into the scratch. A unit takes a
/// few heads along together, so that what they share is read from near.
#ifndef KRAIT_OPS_TRAPEZOID_CHUNK_H
#define KRAIT_OPS_TRAPEZOID_CHUNK_H

#include "ops/pairs.h"
#include "ops/ssd_chunk.h"
#include "ops/trapezoid.h"

enum { RANK, CHUNK, GROUPS, APART, ZERO_START };
/// Inputs that the forward and the backward pass have in one order.
enum { K, Q, X, ADT, DT, TRAP, MIMO_X, SKIP, Z, K_BIAS, Q_BIAS, ANG };

typedef struct trapezoid {
    kr_chunk_size size;
    kr_turn_size turn;
    source keys[2], x, adt, dt, trap, z, ang;      ///< keys: k and q
    const float *bias[2], *mimo, *D, *k0, *v0;     ///< k0 and v0: both or neither
    const int32_t *reset;
    int64_t apart;                                 ///< from the first of a pair to the second; 0: next to each other
    bool own_angles;                               ///< every head has its ang
} trapezoid;

static trapezoid trapezoid_of(const kr_attrs *t, const kr_arg *in, const kr_arg *k0, const kr_arg *v0, const kr_arg *reset) {
    const int64_t heads = in[ADT].shape.dim[2], rank = t->i[RANK];
    const bool turns = t->i[GROUPS] > 0;
    trapezoid s = {.keys = {source_of(&in[K]), source_of(&in[Q])}, .x = source_of(&in[X]), .adt = source_of(&in[ADT]),
                   .dt = source_of(&in[DT]), .trap = source_of(&in[TRAP]), .z = source_of(&in[Z]), .ang = source_of(&in[ANG]),
                   .bias = {in[K_BIAS].data, in[Q_BIAS].data}, .mimo = in[MIMO_X].data, .D = in[SKIP].data, .reset = reset->data};
    if (k0->data && v0->data) s.k0 = k0->data, s.v0 = v0->data;
    const int64_t states = turns ? in[K_BIAS].shape.dim[2] : heads ? in[K].shape.dim[2] / heads / rank : 0;
    s.size = kr_chunk_measure(in[K].shape.dim[0], in[K].shape.dim[1], heads, turns ? t->i[GROUPS] : 0, rank,
                              heads ? in[X].shape.dim[2] / heads : 0, states, t->i[CHUNK]);
    s.own_angles = turns && in[ANG].shape.rank == 4;
    s.turn = kr_turn_measure(&s.size, turns, turns ? kr_arg_cols(&in[ANG]) : 0);
    s.apart = t->i[APART] ? states / 2 : 0;
    return s;
}

/// Batch row, the number of its first token, the heads of a unit and the head at hand.
typedef struct place {
    int64_t b, row, group, first_head, head_end, head;
} place;

static place place_of(const kr_chunk_size *s, int64_t unit) {
    const int64_t in_group = s->heads / s->groups, block = unit % s->blocks, end = (block + 1) * s->block;
    place at = {.b = unit / s->blocks / s->groups, .group = unit / s->blocks % s->groups};
    at.row = at.b * s->length;
    at.head = at.first_head = at.group * in_group + block * s->block;
    at.head_end = at.group * in_group + (end < in_group ? end : in_group);
    return at;
}

/// The heads of a unit, one after the other: place `at` of each.
#define EACH_HEAD(s, unit, at) for (place at = place_of(s, unit); at.head < at.head_end; at.head++)

static bool last_of_unit(place at) { return at.head + 1 == at.head_end; }

/// The state of a head: [states, width]; in the backward pass [width, states].
static matrix state_at(const kr_chunk_size *s, const chunk *c, place at, bool backward) {
    return state_of(c, s, at.head - at.first_head, backward);
}

static bool is_reset(const trapezoid *s, int64_t row) { return s->reset && s->reset[row] > 0; }

// Angles ------------------------------------------------------------------------------------------------------------

/// The scratch of the angles (trapezoid.h).
typedef struct turning {
    int64_t pitch;
    double *running;
    float *speed, *sine, *cosine, *felt, *e, *dang;
    matrix sums[2]; ///< of dk and dq
} turning;

static turning turning_of(const kr_chunk_size *s, const kr_turn_size *w, const kr_turn_layout *l, float *base) {
    return (turning){w->pitch, (double *)(base + l->running), base + l->speed, base + l->sine, base + l->cosine, base + l->felt,
                     base + l->e, base + l->dang, {{base + l->dk, s->states_pitch}, {base + l->dq, s->states_pitch}}};
}

/// Row of ang and its gradient for one token and head.
static int64_t angle_row(const trapezoid *s, int64_t row, int64_t head) {
    return s->own_angles ? row * s->size.heads + head : row;
}

/// tanh(ang) of a chunk's tokens, for the heads of a unit together or for each.
static void load_speeds(const trapezoid *s, const turning *w, place at, int64_t row, int64_t tokens) {
    const int64_t pairs = s->turn.pairs;
    if (!s->own_angles && at.head != at.first_head) return;
    for (int64_t t = 0; t < tokens; t++) {
        const float *ang = s->ang.at + angle_row(s, row + t, at.head) * s->ang.pitch;
        for (int64_t j = 0; j < pairs; j += KR_LANES) kr_v_store(w->speed + t * w->pitch + j, kr_v_tanh(kr_v_load_n(ang + j, pairs - j)));
    }
}

/// Sines and cosines of the chunk's angles theta_t = theta_{t-1} + pi tanh(ang_t) dt_t; `running`, [pairs], goes on.
/// Sums are in double, so that they stay good over any length (in f32 the error is 0.1 rad after 65,000 tokens).
static void load_angles(const trapezoid *s, const turning *w, const float *dt, int64_t row, int64_t tokens, double *running) {
    const int64_t pitch = w->pitch;
    const int32_t *reset = s->reset ? s->reset + row : 0;
    for (int64_t j = 0; j < s->turn.pairs; j += KR_LANES) {
        kr_vd theta = *(kr_vd_unaligned *)(running + j);
        const float *speed = w->speed + j;
        float *sines = w->sine + j, *cosines = w->cosine + j;
        for (int64_t t = 0; t < tokens; t++) {
            kr_vf sine, cosine;
            if (reset && reset[t] > 0) theta = (kr_vd){0};
            theta += __builtin_convertvector(kr_v_load(speed + t * pitch), kr_vd) * (KR_PI * (double)dt[t]);
            kr_v_sincos(__builtin_convertvector(kr_v_wrap(theta), kr_vf), &sine, &cosine);
            kr_v_store(sines + t * pitch, sine);
            kr_v_store(cosines + t * pitch, cosine);
        }
        *(kr_vd_unaligned *)(running + j) = kr_v_wrap(theta);
    }
}

/// The columns of a row of N that do not turn: two ranges.
typedef struct columns {
    int64_t from, to;
} columns;
static columns still(const trapezoid *s, int which) {
    const int64_t states = s->size.states, pairs = s->turn.pairs;
    if (!s->apart) return which ? (columns){states, states} : (columns){2 * pairs, states};
    return which ? (columns){s->apart + pairs, states} : (columns){pairs, s->apart};
}

/// 16 pairs from the j-th, of which `left` exist, of rows x to rows `to`.
KR_INLINE void turn_pairs(const float *sine, const float *cosine, int64_t angles, const float *x, int64_t pitch, const float *bias,
                          float *to, int64_t step, int64_t tokens, int64_t j, const int64_t apart, const int64_t left) {
    kr_vf bias_a, bias_b;
    kr_pairs_load(bias, apart, j, left, &bias_a, &bias_b);
    for (int64_t t = 0; t < tokens; t++, x += pitch, to += step, sine += angles, cosine += angles) {
        const kr_vf s = kr_v_load(sine), c = kr_v_load(cosine);
        kr_vf a, b;
        kr_pairs_load(x, apart, j, left, &a, &b);
        a += bias_a, b += bias_b;
        kr_pairs_store(to, apart, j, left, a * c - b * s, a * s + b * c);
    }
}

/// The same for 16 columns that do not turn.
KR_INLINE void shift_columns(const float *x, int64_t pitch, const float *bias, float *to, int64_t step, int64_t tokens,
                             const int64_t left) {
    const kr_vf more = kr_v_load_n(bias, left);
    for (int64_t t = 0; t < tokens; t++, x += pitch, to += step) kr_v_store_n(to, kr_v_load_n(x, left) + more, left);
}

/// Keys or queries of one rank: to = Rot(theta_t) (x_t + bias) for every token. Whole vectors have code of their own.
KR_INLINE void turn_rows(const trapezoid *s, const turning *w, const float *x, int64_t pitch, const float *bias, float *to,
                         int64_t step, int64_t tokens, const int64_t apart) {
    const int64_t pairs = s->turn.pairs, angles = w->pitch;
    for (int64_t j = 0; j < pairs; j += KR_LANES) {
        const float *sine = w->sine + j, *cosine = w->cosine + j;
        if (pairs - j >= KR_LANES) turn_pairs(sine, cosine, angles, x, pitch, bias, to, step, tokens, j, apart, KR_LANES);
        else turn_pairs(sine, cosine, angles, x, pitch, bias, to, step, tokens, j, apart, pairs - j);
    }
    for (int k = 0; k < 2; k++) {
        const columns range = still(s, k);
        for (int64_t n = range.from; n < range.to; n += KR_LANES) {
            if (range.to - n >= KR_LANES) shift_columns(x + n, pitch, bias + n, to + n, step, tokens, KR_LANES);
            else shift_columns(x + n, pitch, bias + n, to + n, step, tokens, range.to - n);
        }
    }
}

// Loads -------------------------------------------------------------------------------------------------------------

/// Rows (token, rank) of `cols` each, where the ranks of a token lie `step` apart.
static void load_ranks(const chunk *c, matrix to, const float *from, int64_t pitch, int64_t step, int64_t cols) {
    for (int64_t t = 0, i = 0; t < c->tokens; t++)
        for (int64_t r = 0; r < c->rank; r++, i++)
            for (int64_t j = 0; j < cols; j += KR_LANES)
                kr_v_store(to.at + i * to.pitch + j, kr_v_load_n(from + t * pitch + r * step + j, cols - j));
    for (int64_t i = c->rows; i < kr_round_up(c->rows, KR_LANES); i++) clear(to.at + i * to.pitch, kr_round_up(cols, KR_LANES));
}

/// Column of the first state of rank r of a head in k and q, as they lie in memory.
static int64_t key_column(const trapezoid *s, place at, int64_t r) {
    const kr_chunk_size *z = &s->size;
    return (s->turn.turns ? r * z->groups + at.group : at.head * z->rank + r) * z->states;
}

/// k and q of the chunk from token `first` for one head; where they turn, after load_steps.
static void load_keys(const trapezoid *s, const chunk *c, const turning *w, place at, int64_t first, double *running) {
    const int64_t n = s->size.states, row = at.row + first, rank = c->rank;
    if (s->turn.turns) {
        load_speeds(s, w, at, row, c->tokens);
        load_angles(s, w, c->spare[0], row, c->tokens, running);
    }
    for (int k = 0; k < 2; k++) {
        const matrix to = k == K ? c->k : c->q;
        const float *from = s->keys[k].at + row * s->keys[k].pitch;
        const int64_t pitch = s->keys[k].pitch;
        if (!s->turn.turns) load_ranks(c, to, from + key_column(s, at, 0), pitch, n, n);
        for (int64_t r = 0; r < rank && s->turn.turns; r++) {
            const float *x = from + key_column(s, at, r), *bias = s->bias[k] + (at.head * rank + r) * n;
            float *put = to.at + r * to.pitch;
            if (s->apart) turn_rows(s, w, x, pitch, bias, put, rank * to.pitch, c->tokens, s->apart);
            else turn_rows(s, w, x, pitch, bias, put, rank * to.pitch, c->tokens, 0);
        }
    }
}

/// mimo_x of one head, rank and 16 channels; ones where absent.
KR_INLINE kr_vf mimo_of(const trapezoid *s, int64_t head, int64_t r, int64_t j) {
    const int64_t p = s->size.width;
    return s->mimo ? kr_v_load_n(s->mimo + (head * s->size.rank + r) * p + j, p - j) : kr_v_set(1);
}

/// v = x mimo_x for `tokens` tokens of one head.
static void load_values(const trapezoid *s, matrix to, const float *x, int64_t pitch, int64_t tokens, int64_t head) {
    const int64_t p = s->size.width, rank = s->size.rank;
    for (int64_t j = 0; j < p; j += KR_LANES)
        for (int64_t r = 0; r < rank; r++) {
            const kr_vf mimo = mimo_of(s, head, r, j);
            for (int64_t t = 0; t < tokens; t++)
                kr_v_store(to.at + (t * rank + r) * to.pitch + j, mimo * kr_v_load_n(x + t * pitch + j, p - j));
        }
    for (int64_t i = tokens * rank; i < kr_round_up(tokens * rank, KR_LANES); i++)
        clear(to.at + i * to.pitch, kr_round_up(p, KR_LANES));
}

/// Asks for what a head reads of one chunk, and for what its unit shares where the chunk is new.
static void want_head(const trapezoid *s, const chunk *c, int64_t row, place at, int64_t head) {
    const int64_t n = s->size.states, p = s->size.width, turns = s->turn.turns;
    want(c->ahead, s->z.at ? s->z.at + row * s->z.pitch + head * p : 0, s->z.pitch, c->tokens, p);
    want(c->ahead, s->x.at + row * s->x.pitch + head * p, s->x.pitch, c->tokens, p);
    if (turns && head != at.first_head) return;
    at.head = head;
    for (int k = 0; k < 2; k++)
        for (int64_t r = 0; r < (turns ? c->rank : 1); r++)
            want(c->ahead, s->keys[k].at + row * s->keys[k].pitch + key_column(s, at, r), s->keys[k].pitch, c->tokens,
                 turns ? n : c->rank * n);
    if (turns && !s->own_angles) want(c->ahead, s->ang.at + row * s->ang.pitch, s->ang.pitch, c->tokens, s->turn.pairs);
}

/// What of token `t` of the batch row waits for it to come: omega, or zero where it starts a document or is not there.
static float omega_of(const trapezoid *s, place at, int64_t t) {
    if (t >= s->size.length || is_reset(s, at.row + t)) return 0;
    const float lambda = kr_v_sigmoid(kr_v_set(s->trap.at[(at.row + t) * s->trap.pitch + at.head]))[0];
    return (1 - lambda) * s->dt.at[(at.row + t) * s->dt.pitch + at.head];
}

/// Sets decay, ghat and gamma of the chunk from token `first`; spare[0] gets dt and spare[1] lambda.
static void load_steps(const trapezoid *s, chunk *c, place at, int64_t first) {
    const int64_t n = c->tokens, row = at.row + first;
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
    chunk_resize(c, n);
}

/// Keys [rank, states] and values [rank, width] of the token before the first.
static void load_before(const trapezoid *s, place at, matrix keys, matrix values) {
    const kr_chunk_size *z = &s->size;
    load_matrix(keys, s->k0 + (at.b * z->rank * z->heads + at.head) * z->states, z->heads * z->states, z->rank, z->states);
    load_values(s, values, s->v0 + (at.b * z->heads + at.head) * z->width, 0, 1, at.head);
}

/// The part of the scratch that must start as zeros: that of the triangles, and what lies beside keys and queries.
static void start_slot(const trapezoid *s, const chunk *c, bool backward) {
    const int64_t rows = kr_round_up(s->size.chunk * s->size.rank, KR_LANES);
    chunk_start(c, &s->size, backward);
    clear_matrix(c->k, rows, s->size.states);
    clear_matrix(c->q, rows, s->size.states);
}

#endif
