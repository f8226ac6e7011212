/// What the rules of trapezoid_scan and its kernels must agree on: the workspace of its chunks, and what a scan has
/// besides whose keys and queries rotate.
#ifndef KRAIT_OPS_TRAPEZOID_WORK_H
#define KRAIT_OPS_TRAPEZOID_WORK_H

#include "ops/ssd/chunk_size.h"
#include "ops/trapezoid/args.h"

/// The scratch of one slot, as offsets in floats. Matrices have their rows padded to 16.
typedef struct kr_trapezoid_layout {
    int64_t q, k, dq, dk;                      ///< [rows, states]
    int64_t kt;                                ///< [states, rows]
    int64_t scores, weights, dots, values;     ///< [rows, rows]
    int64_t v, scaled_v, y, dy, scaled_dy, dv; ///< [rows, width]
    int64_t vt;                                ///< [width, rows]
    int64_t start, end;                        ///< [states, width]
    int64_t start_t;                           ///< [width, states]
    int64_t state;                             ///< for every head of the unit, [states, width] or its transpose
    int64_t lanes, vectors;                    ///< three [rows, 16]; KR_TRAPEZOID_VECTORS of [rows]
    int64_t floats;
} kr_trapezoid_layout;
enum { KR_TRAPEZOID_VECTORS = 17 };

static inline kr_trapezoid_layout kr_trapezoid_arrange(const kr_chunk_size *s, bool backward) {
    const int64_t rows = s->chunk * s->rank, back = backward ? rows : 0;
    const int64_t deep_states = backward ? s->states : 0, wide = backward ? s->width : 0;
    int64_t at = 0;
    kr_trapezoid_layout l = {0};
    l.q = kr_chunk_take(&at, rows, s->states_pitch);
    const int64_t alone = rows + kr_round_up(s->rank, KR_CHUNK_LANES); // a single token takes those before it along
    l.k = kr_chunk_take(&at, alone, s->states_pitch);
    l.kt = kr_chunk_take(&at, s->states, s->rows_pitch);
    l.scores = kr_chunk_take(&at, rows, s->rows_pitch);
    l.weights = kr_chunk_take(&at, rows, s->rows_pitch);
    l.v = kr_chunk_take(&at, rows, s->width_pitch);
    l.scaled_v = kr_chunk_take(&at, alone, s->width_pitch);
    l.y = kr_chunk_take(&at, rows, s->width_pitch);
    l.vectors = kr_chunk_take(&at, KR_TRAPEZOID_VECTORS, s->rows_pitch);
    l.dq = kr_chunk_take(&at, back, s->states_pitch);
    l.dk = kr_chunk_take(&at, back, s->states_pitch);
    l.dots = kr_chunk_take(&at, back, s->rows_pitch);
    l.values = kr_chunk_take(&at, back, s->rows_pitch);
    l.dy = kr_chunk_take(&at, back, s->width_pitch);
    l.scaled_dy = kr_chunk_take(&at, back, s->width_pitch);
    l.dv = kr_chunk_take(&at, back, s->width_pitch);
    l.vt = kr_chunk_take(&at, wide, s->rows_pitch);
    l.start = kr_chunk_take(&at, deep_states, s->width_pitch);
    l.end = kr_chunk_take(&at, deep_states, s->width_pitch);
    l.start_t = kr_chunk_take(&at, wide, s->states_pitch);
    l.lanes = kr_chunk_take(&at, back, 3 * KR_CHUNK_LANES);
    l.state = at;
    at += s->block * (backward ? kr_round_up(s->width, KR_CHUNK_LANES) * s->states_pitch
                               : kr_round_up(s->states, KR_CHUNK_LANES) * s->width_pitch);
    l.floats = at;
    return l;
}

/// pairs: how many pairs of coordinates rotate; pitch: rounded up to whole vectors. Where nothing rotates both are 0.
/// parts: units that share the keys, queries and angles of a batch row (none without heads).
typedef struct kr_rotate_size {
    bool rotates;
    int64_t pairs, pitch, parts;
} kr_rotate_size;

static inline kr_rotate_size kr_rotate_measure(const kr_chunk_size *s, bool rotates, int64_t pairs) {
    return (kr_rotate_size){rotates, pairs, kr_round_up(pairs, KR_CHUNK_LANES),
                            rotates && s->heads ? s->groups * s->blocks : 0};
}

/// The scratch of one slot besides that of its chunks (kr_trapezoid_layout), as offsets in floats.
typedef struct kr_rotate_layout {
    int64_t running;             ///< for every head of the unit, double [pairs]: the angles so far
    int64_t speed, sine, cosine; ///< [tokens, pairs]
    int64_t felt;                ///< for every head of the unit, [pairs]: what its angles feel of all later tokens
    int64_t e, dang;             ///< [tokens, pairs]
    int64_t dk, dq;              ///< [rows, states], sums over the unit's heads
    int64_t floats;
} kr_rotate_layout;

static inline kr_rotate_layout kr_rotate_arrange(const kr_chunk_size *s, const kr_rotate_size *w, bool backward) {
    const int64_t angles = s->chunk * w->pitch, rows = w->rotates && backward ? s->chunk * s->rank : 0;
    const int64_t back = backward ? angles : 0;
    int64_t at = 0;
    kr_rotate_layout l = {0};
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

// Workspace: the scratch of every slot, kr_trapezoid_layout before kr_rotate_layout; then, in the backward pass,
//   for every batch row and head: a vector with the sum dD over time, the sums dmimo_x, rank rows [width], and those of
//   the biases' gradients, rank rows [states] for k and for q;
//   where several units share keys, queries and angles, for each unit: its shares of dK and dQ, [length, rank, states]
//   each, and of dang, [length, pairs].
static inline int64_t kr_trapezoid_slot(const kr_trapezoid_layout *l, const kr_rotate_layout *t) {
    return l->floats + t->floats;
}
static inline int64_t kr_trapezoid_mimo_at(const kr_chunk_size *s, int64_t r) {
    return KR_CHUNK_LANES + r * s->width_pitch;
}
static inline int64_t kr_trapezoid_bias_at(const kr_chunk_size *s) { return kr_trapezoid_mimo_at(s, s->rank); }
static inline int64_t kr_trapezoid_sums(const kr_chunk_size *s, const kr_rotate_size *w) {
    return kr_trapezoid_bias_at(s) + (w->rotates ? 2 * s->rank * s->states_pitch : 0);
}
static inline int64_t kr_trapezoid_sums_at(const kr_chunk_size *s, const kr_trapezoid_layout *l,
                                           const kr_rotate_layout *t) {
    return kr_chunk_slots(s) * kr_trapezoid_slot(l, t);
}
static inline int64_t kr_trapezoid_shares_at(const kr_chunk_size *s, const kr_rotate_size *w,
                                             const kr_trapezoid_layout *l, const kr_rotate_layout *t) {
    return kr_trapezoid_sums_at(s, l, t) + s->batch * s->heads * kr_trapezoid_sums(s, w);
}
static inline int64_t kr_trapezoid_keys(const kr_chunk_size *s) { return s->length * s->rank * s->states; }
static inline int64_t kr_trapezoid_share(const kr_chunk_size *s, const kr_rotate_size *w) {
    return 2 * kr_trapezoid_keys(s) + s->length * w->pairs;
}
static inline int64_t kr_trapezoid_floats(const kr_chunk_size *s, const kr_rotate_size *w, bool backward) {
    const kr_trapezoid_layout l = kr_trapezoid_arrange(s, backward);
    const kr_rotate_layout t = kr_rotate_arrange(s, w, backward);
    if (!backward) return kr_trapezoid_sums_at(s, &l, &t);
    return kr_trapezoid_shares_at(s, w, &l, &t) + (w->parts > 1 ? kr_chunk_units(s) * kr_trapezoid_share(s, w) : 0);
}

/// Both sizes, from the shapes of K to ANG.
typedef struct kr_trapezoid_size {
    kr_chunk_size scan;
    kr_rotate_size rotate;
} kr_trapezoid_size;

static inline kr_trapezoid_size kr_trapezoid_measure(const kr_attrs *t, const kr_shape *in) {
    const int64_t heads = in[TRAPEZOID_ADT].dim[2], rank = t->i[TRAPEZOID_RANK], groups = t->i[TRAPEZOID_GROUPS];
    const int64_t states = groups > 0 ? in[TRAPEZOID_K_BIAS].dim[2] : heads ? in[TRAPEZOID_K].dim[2] / heads / rank : 0;
    kr_trapezoid_size s = {.scan = kr_chunk_measure(in[TRAPEZOID_K].dim[0], in[TRAPEZOID_K].dim[1], heads, groups, rank,
                                        heads ? in[TRAPEZOID_X].dim[2] / heads : 0, states, t->i[TRAPEZOID_CHUNK])};
    s.rotate = kr_rotate_measure(&s.scan, groups > 0,
                                 groups > 0 ? in[TRAPEZOID_ANG].dim[in[TRAPEZOID_ANG].rank - 1] : 0);
    return s;
}

#endif
