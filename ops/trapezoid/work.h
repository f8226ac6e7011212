/// What the rules of trapezoid_scan and its kernels must agree on: what a scan has whose keys and queries turn, and
/// where its part of the workspace lies.
#ifndef KRAIT_OPS_TRAPEZOID_WORK_H
#define KRAIT_OPS_TRAPEZOID_WORK_H

#include "ops/ssd/chunk_size.h"
#include "ops/trapezoid/args.h"

/// pairs: how many pairs of coordinates turn; pitch: rounded up to whole vectors. Where nothing turns both are 0.
/// parts: units that share the keys, queries and angles of a batch row (none without heads).
typedef struct kr_turn_size {
    bool turns;
    int64_t pairs, pitch, parts;
} kr_turn_size;

static inline kr_turn_size kr_turn_measure(const kr_chunk_size *s, bool turns, int64_t pairs) {
    return (kr_turn_size){turns, pairs, kr_round_up(pairs, KR_CHUNK_LANES),
                          turns && s->heads ? s->groups * s->blocks : 0};
}

/// The scratch of one slot besides that of ssd.h, as offsets in floats.
typedef struct kr_turn_layout {
    int64_t running;             ///< for every head of the unit, double [pairs]: the angles so far
    int64_t speed, sine, cosine; ///< [tokens, pairs]
    int64_t felt;                ///< for every head of the unit, [pairs]: what its angles feel of all later tokens
    int64_t e, dang;             ///< [tokens, pairs]
    int64_t dk, dq;              ///< [rows, states], sums over the unit's heads
    int64_t floats;
} kr_turn_layout;

static inline kr_turn_layout kr_turn_arrange(const kr_chunk_size *s, const kr_turn_size *w, bool backward) {
    const int64_t angles = s->chunk * w->pitch, rows = w->turns && backward ? s->chunk * s->rank : 0;
    const int64_t back = backward ? angles : 0;
    int64_t at = 0;
    kr_turn_layout l = {0};
    l.running = at, at += 2 * s->block * w->pitch;
    l.speed = at, at += angles;
    l.sine = at, at += angles;
    l.cosine = at, at += angles;
    l.felt = at, at += backward ? s->block * w->pitch : 0;
    l.e = at, at += back;
    l.dang = at, at += back;
    l.dk = kr_chunk_take(&at, rows, s->states_pitch);
    l.dq = kr_chunk_take(&at, rows, s->states_pitch);
    l.floats = at;
    return l;
}

// Workspace: the scratch of every slot, first that of ssd.h; then, in the backward pass,
//   for every batch row and head: a vector with the sum dD over time, the sums dmimo_x, rank rows [width], and those of
//   the biases' gradients, rank rows [states] for k and for q;
//   where several units share keys, queries and angles, for each unit: its shares of dK and dQ, [length, rank, states]
//   each, and of dang, [length, pairs].
static inline int64_t kr_turn_slot(const kr_chunk_layout *l, const kr_turn_layout *t) { return l->floats + t->floats; }
static inline int64_t kr_turn_mimo_at(const kr_chunk_size *s, int64_t r) { return KR_CHUNK_LANES + r * s->width_pitch; }
static inline int64_t kr_turn_bias_at(const kr_chunk_size *s) { return kr_turn_mimo_at(s, s->rank); }
static inline int64_t kr_turn_sums(const kr_chunk_size *s, const kr_turn_size *w) {
    return kr_turn_bias_at(s) + (w->turns ? 2 * s->rank * s->states_pitch : 0);
}
static inline int64_t kr_turn_sums_at(const kr_chunk_size *s, const kr_chunk_layout *l, const kr_turn_layout *t) {
    return kr_chunk_slots(s) * kr_turn_slot(l, t);
}
static inline int64_t kr_turn_shares_at(const kr_chunk_size *s, const kr_turn_size *w, const kr_chunk_layout *l,
                                        const kr_turn_layout *t) {
    return kr_turn_sums_at(s, l, t) + s->batch * s->heads * kr_turn_sums(s, w);
}
static inline int64_t kr_turn_keys(const kr_chunk_size *s) { return s->length * s->rank * s->states; }
static inline int64_t kr_turn_share(const kr_chunk_size *s, const kr_turn_size *w) {
    return 2 * kr_turn_keys(s) + s->length * w->pairs;
}
static inline int64_t kr_turn_floats(const kr_chunk_size *s, const kr_turn_size *w, bool backward) {
    const kr_chunk_layout l = kr_chunk_arrange(s, backward);
    const kr_turn_layout t = kr_turn_arrange(s, w, backward);
    if (!backward) return kr_turn_sums_at(s, &l, &t);
    return kr_turn_shares_at(s, w, &l, &t) + (w->parts > 1 ? kr_chunk_units(s) * kr_turn_share(s, w) : 0);
}

/// Both sizes, from the shapes of K to ANG.
typedef struct kr_trapezoid_size {
    kr_chunk_size scan;
    kr_turn_size turn;
} kr_trapezoid_size;

static inline kr_trapezoid_size kr_trapezoid_measure(const kr_attrs *t, const kr_shape *in) {
    const int64_t heads = in[TRAPEZOID_ADT].dim[2], rank = t->i[TRAPEZOID_RANK], groups = t->i[TRAPEZOID_GROUPS];
    const int64_t states = groups > 0 ? in[TRAPEZOID_K_BIAS].dim[2] : heads ? in[TRAPEZOID_K].dim[2] / heads / rank : 0;
    kr_trapezoid_size s = {.scan = kr_chunk_measure(in[TRAPEZOID_K].dim[0], in[TRAPEZOID_K].dim[1], heads, groups, rank,
                                        heads ? in[TRAPEZOID_X].dim[2] / heads : 0, states, t->i[TRAPEZOID_CHUNK])};
    s.turn = kr_turn_measure(&s.scan, groups > 0, groups > 0 ? in[TRAPEZOID_ANG].dim[in[TRAPEZOID_ANG].rank - 1] : 0);
    return s;
}

#endif
