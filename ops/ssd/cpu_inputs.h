/// What both directions of ssd_scan read, and the steps of its heads.
///
/// d, a and all that is made of them by running products and sums over time is one number per token and head: the heads
/// of a bundle are the lanes, so 16 recurrences go through a chunk at the price of one. Products want them by head, one
/// row of tokens each; both forms are kept.
#ifndef KRAIT_OPS_SSD_CPU_INPUTS_H
#define KRAIT_OPS_SSD_CPU_INPUTS_H

#include "ops/ssd/args.h"
#include "ops/ssd/cpu_matrix.h"
#include "ops/ssd/work.h"

typedef struct ssd {
    kr_chunk_size size;
    kr_ssd_cut cut;
    source x, dt, B, C, z;
    const float *A, *D, *dt_bias;
    const int32_t *reset;
    bool softplus, D_per_channel;
    float dt_min, dt_max; // 0: none
} ssd;

/// in: the forward inputs up to dt_bias.
static inline ssd ssd_of(const kr_attrs *t, const kr_arg *in, const kr_arg *reset) {
    const int64_t heads = in[SSD_A].shape.dim[0], groups = t->i[SSD_GROUPS];
    ssd s = {.x = source_of(&in[SSD_X]),
             .dt = source_of(&in[SSD_DT]),
             .B = source_of(&in[SSD_B]),
             .C = source_of(&in[SSD_C]),
             .z = source_of(&in[SSD_Z]),
             .A = in[SSD_A].data,
             .D = in[SSD_D].data,
             .dt_bias = in[SSD_DT_BIAS].data,
             .reset = reset->data,
             .softplus = t->i[SSD_DT_SOFTPLUS] != 0,
             .dt_min = (float)t->r[SSD_DT_MIN],
             .dt_max = (float)t->r[SSD_DT_MAX]};
    s.size = kr_chunk_measure(in[SSD_X].shape.dim[0], in[SSD_X].shape.dim[1], heads, groups, 1,
                              heads ? in[SSD_X].shape.dim[2] / heads : 0, in[SSD_B].shape.dim[2] / groups,
                              t->i[SSD_CHUNK]);
    s.cut = kr_ssd_cut_of(&s.size);
    s.D_per_channel = s.D && in[SSD_D].shape.dim[0] != heads;
    return s;
}

/// Heads [head, head + count) of one group, at most a bundle, in batch row b.
typedef struct bundle {
    int64_t b, group, head, count;
} bundle;

/// The scratch of a part, and the chunk at hand.
typedef struct work {
    int64_t tokens;
    matrix q, k, qt, kt, dqt, dkt, dkeys, scores, weights, dots, sum_weights, v, scaled_v, y, dy, scaled_dy, vt, dyt,
        loaded;
    float *lanes;
    float *rows[KR_SSD_STEPS]; ///< token t and head h of the bundle at 16 t + h
    matrix cols[KR_SSD_STEPS]; ///< and in row h, column t; zeros in the padding of those that are factors
    float *state;
    int64_t state_floats, state_pitch;
    prefetch *ahead;
} work;

static inline work work_of(const kr_chunk_size *s, const kr_ssd_layout *l, float *base, prefetch *ahead) {
    const int64_t r = s->rows_pitch, w = s->width_pitch, n = s->states_pitch;
    work o = {.q = {base + l->q, n},
              .k = {base + l->k, n},
              .qt = {base + l->qt, r},
              .kt = {base + l->kt, r},
              .dqt = {base + l->dqt, r},
              .dkt = {base + l->dkt, r},
              .dkeys = {base + l->dkeys, n},
              .scores = {base + l->scores, r},
              .weights = {base + l->weights, r},
              .dots = {base + l->dots, r},
              .sum_weights = {base + l->sum_weights, r},
              .v = {base + l->v, w},
              .scaled_v = {base + l->scaled_v, w},
              .y = {base + l->y, w},
              .dy = {base + l->dy, w},
              .scaled_dy = {base + l->scaled_dy, w},
              .vt = {base + l->vt, r},
              .dyt = {base + l->dyt, r},
              .loaded = {base + l->loaded, w},
              .lanes = base + l->lanes,
              .state = base + l->state,
              .state_floats = l->state_floats,
              .state_pitch = w,
              .ahead = ahead};
    for (int i = 0; i < KR_SSD_STEPS; i++) o.rows[i] = base + l->rows[i], o.cols[i] = (matrix){base + l->cols[i], r};
    return o;
}

/// The state of head i of those that the scratch has room for.
static inline matrix state_of(const work *w, int64_t i) {
    return (matrix){w->state + i * w->state_floats, w->state_pitch};
}

/// Whether a state [states, width] packed in memory can be used where it lies: it is as its products want it padded.
static inline bool in_place(const kr_chunk_size *s) { return s->width % KR_LANES == 0 && s->states % 4 == 0; }

/// Whether products can write a chunk's values [tokens, width] to memory themselves.
static inline bool whole_tiles(const kr_chunk_size *s, const work *w) {
    return s->width % KR_LANES == 0 && w->tokens % 4 == 0;
}

/// Row `lane` of steps of one kind, by token.
static inline float *of_head(const work *w, int step, int64_t lane) {
    return w->cols[step].at + lane * w->cols[step].pitch;
}

static inline void turn_steps(const work *w, int step) {
    transpose(w->rows[step], KR_LANES, w->tokens, KR_LANES, w->cols[step], true);
}

/// The steps of a bundle over the chunk whose first token is row `row`; slopes too for the way back.
static inline void load_steps(const ssd *s, const work *w, int64_t row, bundle at, bool slopes) {
    const kr_vf bias = s->dt_bias ? kr_v_load_n(s->dt_bias + at.head, at.count) : kr_v_set(0), zero = kr_v_set(0),
                one = kr_v_set(1);
    const kr_vf A = kr_v_load_n(s->A + at.head, at.count), least = kr_v_set(s->dt_min), most = kr_v_set(s->dt_max);
    kr_vf e = one, m = one;
    for (int64_t t = 0; t < w->tokens; t++) {
        const kr_vf x = kr_v_load_n(s->dt.at + (row + t) * s->dt.pitch + at.head, at.count) + bias;
        kr_vf d = s->softplus ? kr_v_softplus(x) : x, inside = s->softplus && slopes ? kr_v_sigmoid(x) : one;
        if (s->dt_min > 0) inside = kr_v_select(d < least, zero, inside), d = kr_v_max(d, least);
        if (s->dt_max > 0) inside = kr_v_select(d > most, zero, inside), d = kr_v_min(d, most);
        const kr_vf a = s->reset && s->reset[row + t] > 0 ? zero : kr_v_exp(d * A);
        e *= a;
        kr_v_store(w->rows[KR_SSD_DT] + t * KR_LANES, d);
        kr_v_store(w->rows[KR_SSD_DECAY] + t * KR_LANES, a);
        kr_v_store(w->rows[KR_SSD_FROM_START] + t * KR_LANES, e);
        if (slopes) kr_v_store(w->rows[KR_SSD_SLOPE] + t * KR_LANES, inside);
    }
    for (int64_t t = w->tokens - 1; t >= 0; t--) {
        kr_v_store(w->rows[KR_SSD_TO_END] + t * KR_LANES, m);
        kr_v_store(w->rows[KR_SSD_SCALE] + t * KR_LANES, m * kr_v_load(w->rows[KR_SSD_DT] + t * KR_LANES));
        m *= kr_v_load(w->rows[KR_SSD_DECAY] + t * KR_LANES);
    }
    turn_steps(w, KR_SSD_DT);
    turn_steps(w, KR_SSD_FROM_START);
    turn_steps(w, KR_SSD_SCALE);
}

/// B and C of the group, and the scores C B^T of all pairs that can meet.
static inline void load_group(const ssd *s, const work *w, int64_t row, int64_t group) {
    const int64_t n = s->size.states;
    load_matrix(w->k, s->B.at + row * s->B.pitch + group * n, s->B.pitch, w->tokens, n);
    load_matrix(w->q, s->C.at + row * s->C.pitch + group * n, s->C.pitch, w->tokens, n);
    transpose(w->k.at, w->k.pitch, kr_round_up(w->tokens, KR_LANES), n, w->kt, true);
    multiply(&(product){LOWER_RESULT, 1, w->tokens, w->tokens, n, w->q, w->kt, w->scores, .ahead = w->ahead});
}

/// y = scores w v + e (C S) + D x: the output of a chunk before the gate, from the state `before` it (null: zero).
/// D is `skip` times v.
static inline void multiply_output(const kr_chunk_size *s, const work *w, int64_t lane, matrix before, float skip,
                                   matrix to) {
    product y = {LOWER_LEFT, 1, w->tokens, s->width, w->tokens, w->weights, w->v, to, .ahead = w->ahead};
    if (before.at) y.a0 = w->q, y.b0 = before, y.depth0 = s->states, y.scale = of_head(w, KR_SSD_FROM_START, lane);
    if (skip != 0) y.from = w->v, y.times = skip;
    multiply(&y);
}

KR_INLINE kr_vf skip_weight(const ssd *s, int64_t head, int64_t j) {
    const int64_t p = s->size.width;
    return !s->D ? kr_v_set(0) : s->D_per_channel ? kr_v_load_n(s->D + head * p + j, p - j) : kr_v_set(s->D[head]);
}

/// Prefetches what a head reads of one chunk, and for what its bundle reads of it where that comes next.
static inline void prefetch_inputs(const ssd *s, const work *w, int64_t row, bundle at, int64_t head, bool first) {
    const int64_t n = s->size.states, p = s->size.width;
    prefetch_rows(w->ahead, s->z.at ? s->z.at + row * s->z.pitch + head * p : 0, s->z.pitch, w->tokens, p);
    prefetch_rows(w->ahead, s->x.at + row * s->x.pitch + head * p, s->x.pitch, w->tokens, p);
    if (!first) return;
    prefetch_rows(w->ahead, s->dt.at + row * s->dt.pitch + at.head, s->dt.pitch, w->tokens, at.count);
    prefetch_rows(w->ahead, s->C.at + row * s->C.pitch + at.group * n, s->C.pitch, w->tokens, n);
    prefetch_rows(w->ahead, s->B.at + row * s->B.pitch + at.group * n, s->B.pitch, w->tokens, n);
}

/// The units of a part, [begin, end), and its scratch: number `slot` of kr_ssd_slots(units).
#define EACH_UNIT_OF(units, ...)                                                                       \
    do {                                                                                               \
        const int slots = (int)kr_ssd_slots(units), busy = parts < slots ? parts : slots, slot = part; \
        int64_t begin, end;                                                                            \
        if (slot < busy) {                                                                             \
            kr_share(units, slot, busy, &begin, &end);                                                 \
            __VA_ARGS__                                                                                \
        }                                                                                              \
    } while (0)

#endif
