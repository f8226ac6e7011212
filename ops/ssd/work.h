/// What the rules of ssd_scan and its kernels must agree on besides chunks (chunk_size.h): units of work and the
/// workspace.
///
/// Heads do not meet in the forward pass, so a part takes any run of (batch row, head) and shares what a group's heads
/// have in common within it. In the backward pass they meet in dB and dC; a unit is all heads of a group, which share
/// everything, and where there are few batch rows and groups time is cut instead: into segments, whose last adjoint
/// state is known once every segment after it has said what it adds (stage ssd_scan_grad_carry).
#ifndef KRAIT_OPS_SSD_WORK_H
#define KRAIT_OPS_SSD_WORK_H

#include "ops/ssd/args.h"
#include "ops/ssd/chunk_size.h"

enum {
    KR_SSD_BUNDLE = KR_CHUNK_LANES, ///< heads whose steps are taken together, one a lane
    KR_SSD_UNITS = 8,               ///< units of the backward pass wanted before time is left whole
    KR_SSD_SEGMENT = 4,             ///< least chunks of a segment
    KR_SSD_SLOTS = 32,              ///< most parts that can be at work at once
};

/// How the backward pass is cut: [batch, groups, segments] units of `segment` chunks.
typedef struct kr_ssd_cut {
    int64_t in_group, segments, segment, units;
} kr_ssd_cut;

static inline kr_ssd_cut kr_ssd_cut_of(const kr_chunk_size *s) {
    const int64_t rows = s->batch * s->groups, most = s->chunks / KR_SSD_SEGMENT;
    kr_ssd_cut c = {.in_group = s->heads / s->groups, .segments = rows ? (KR_SSD_UNITS + rows - 1) / rows : 1};
    if (c.segments > most) c.segments = most;
    if (c.segments < 1) c.segments = 1;
    c.segment = (s->chunks + c.segments - 1) / c.segments;
    if (c.segment) c.segments = (s->chunks + c.segment - 1) / c.segment;
    c.units = rows * c.segments;
    return c;
}

/// Per token and head of the bundle: d, a, e (a from the chunk's first token on), m_n (a from here to its end), m_n d,
/// the slope of softplus; and what sums over heads or time need: dd's direct part, rho, <dy S q>, and what flows over.
enum {
    KR_SSD_DT,
    KR_SSD_DECAY,
    KR_SSD_FROM_START,
    KR_SSD_TO_END,
    KR_SSD_SCALE,
    KR_SSD_FORWARD,
    KR_SSD_SLOPE = KR_SSD_FORWARD,
    KR_SSD_DIRECT,
    KR_SSD_RHO,
    KR_SSD_INTER,
    KR_SSD_FLOW,
    KR_SSD_STEPS
};

/// The scratch of one part, as offsets in floats. Matrices have their rows padded to 16.
typedef struct kr_ssd_layout {
    int64_t q, k;                               ///< [chunk, states]
    int64_t qt, kt, dqt, dkt;                   ///< [states, chunk]
    int64_t dkeys;                              ///< [chunk, states]: dC, then dB
    int64_t scores, weights, dots, sum_weights; ///< [chunk, chunk]
    int64_t v, scaled_v, y;                     ///< [chunk, width]
    int64_t dy, scaled_dy;                      ///< [chunk, width]
    int64_t vt, dyt;                            ///< [width, chunk]
    int64_t loaded;                             ///< [states, width]
    int64_t lanes;                              ///< [chunk, 16]
    int64_t rows[KR_SSD_STEPS];                 ///< [chunk, heads of a bundle]
    int64_t cols[KR_SSD_STEPS];                 ///< the same, [heads of a bundle, chunk]
    int64_t state, state_floats;                ///< of every head of a bundle, backward of the group: [states, width]
    int64_t floats;
} kr_ssd_layout;

static inline kr_ssd_layout kr_ssd_arrange(const kr_chunk_size *s, bool backward) {
    const int64_t t = s->chunk, n = s->states, p = s->width, in_group = s->heads / s->groups;
    const int64_t r = s->rows_pitch, back = backward ? t : 0;
    int64_t at = 0;
    kr_ssd_layout l = {0};
    l.q = kr_chunk_take(&at, t, s->states_pitch);
    l.k = kr_chunk_take(&at, t, s->states_pitch);
    l.kt = kr_chunk_take(&at, n, r);
    l.scores = kr_chunk_take(&at, t, r);
    l.weights = kr_chunk_take(&at, t, r);
    l.v = kr_chunk_take(&at, t, s->width_pitch);
    l.scaled_v = kr_chunk_take(&at, t, s->width_pitch);
    l.y = kr_chunk_take(&at, t, s->width_pitch);
    l.qt = kr_chunk_take(&at, backward ? n : 0, r);
    l.dqt = kr_chunk_take(&at, backward ? n : 0, r);
    l.dkt = kr_chunk_take(&at, backward ? n : 0, r);
    l.dkeys = kr_chunk_take(&at, back, s->states_pitch);
    l.dots = kr_chunk_take(&at, back, r);
    l.sum_weights = kr_chunk_take(&at, back, r);
    l.dy = kr_chunk_take(&at, back, s->width_pitch);
    l.scaled_dy = kr_chunk_take(&at, back, s->width_pitch);
    l.vt = kr_chunk_take(&at, backward ? p : 0, r);
    l.dyt = kr_chunk_take(&at, backward ? p : 0, r);
    l.loaded = kr_chunk_take(&at, backward ? n : 0, s->width_pitch);
    l.lanes = kr_chunk_take(&at, back, KR_CHUNK_LANES);
    for (int i = 0; i < (backward ? KR_SSD_STEPS : KR_SSD_FORWARD); i++) {
        l.rows[i] = kr_chunk_take(&at, t, KR_SSD_BUNDLE);
        l.cols[i] = kr_chunk_take(&at, KR_SSD_BUNDLE, r);
    }
    l.state = at;
    l.state_floats = kr_round_up(n, KR_CHUNK_LANES) * s->width_pitch;
    at += (backward || in_group < KR_SSD_BUNDLE ? in_group : KR_SSD_BUNDLE) * l.state_floats;
    l.floats = at;
    return l;
}

static inline int64_t kr_ssd_slots(int64_t units) { return units < KR_SSD_SLOTS ? units : KR_SSD_SLOTS; }

/// Workspace of the backward pass: the scratch of every slot; then for every batch row, segment and head
///   what it adds to dA and ddt_bias, and by what the segment's decay takes an adjoint state through it;
///   what it adds to dD: [width], or 16 lanes still to be summed where D is one number per head;
///   where there are several segments, what it adds to the adjoint state before it, [states, width].
typedef struct kr_ssd_sums {
    int64_t dA, dbias, decay, skip, state, floats;
} kr_ssd_sums;

static inline kr_ssd_sums kr_ssd_sums_of(const kr_chunk_size *s, const kr_ssd_cut *c, const kr_ssd_layout *l) {
    const int64_t heads = s->batch * c->segments * s->heads, line = kr_round_up(heads, KR_CHUNK_LANES);
    kr_ssd_sums at = {.dA = kr_ssd_slots(c->units) * l->floats};
    at.dbias = at.dA + line;
    at.decay = at.dbias + line;
    at.skip = at.decay + line;
    at.state = at.skip + heads * (s->width_pitch ? s->width_pitch : KR_CHUNK_LANES);
    at.floats = at.state + (c->segments > 1 ? heads * l->state_floats : 0);
    return at;
}

static inline int64_t kr_ssd_floats(const kr_chunk_size *s, bool backward) {
    const kr_ssd_layout l = kr_ssd_arrange(s, backward);
    const kr_ssd_cut c = kr_ssd_cut_of(s);
    return backward ? kr_ssd_sums_of(s, &c, &l).floats : kr_ssd_slots(s->batch * s->heads) * l.floats;
}

/// From the attributes, and the shapes of x to reset.
static inline kr_chunk_size kr_ssd_measure(const kr_attrs *t, const kr_shape *in) {
    const int64_t heads = in[SSD_A].dim[0], groups = t->i[SSD_GROUPS];
    return kr_chunk_measure(in[SSD_X].dim[0], in[SSD_X].dim[1], heads, groups, 1, heads ? in[SSD_X].dim[2] / heads : 0,
                            in[SSD_B].dim[2] / groups, t->i[SSD_CHUNK]);
}

#endif
