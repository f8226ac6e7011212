/// What the stages of ssd_scan's gradient share: their operands, units of work, dy, and the adjoint recurrence.
#ifndef KRAIT_OPS_SSD_CPU_GRAD_H
#define KRAIT_OPS_SSD_CPU_GRAD_H

#include "ops/ssd/cpu_inputs.h"

typedef struct grad {
    ssd s;
    source dout;
    const float *dlast;
    float *saved;
    sink dx, ddt, dz, dB, dC;
    float *dh0;
    bool zero_start;
    kr_ssd_layout layout;
    kr_ssd_sums at;
    float *work;
} grad;

/// in: dout, dlast, x, dt, A, B, C, D, z, dt_bias, reset, saved.
/// out: dx, ddt, dA, dB, dC, dD, dz, ddt_bias, dh0.
static inline grad grad_of(const kr_call *call) {
    grad g = {.s = ssd_of(call->attrs, call->in + SSD_GRAD_FORWARD, &call->in[SSD_GRAD_RESET]),
              .dout = source_of(&call->in[SSD_GRAD_DY]),
              .dlast = call->in[SSD_GRAD_DLAST].data,
              .saved = call->in[SSD_GRAD_SAVED].data,
              .dx = sink_of(&call->out[SSD_GRAD_DX]),
              .ddt = sink_of(&call->out[SSD_GRAD_DDT]),
              .dz = sink_of(&call->out[SSD_GRAD_DZ]),
              .dB = sink_of(&call->out[SSD_GRAD_DB]),
              .dC = sink_of(&call->out[SSD_GRAD_DC]),
              .dh0 = call->out[SSD_GRAD_DH0].data,
              .zero_start = call->attrs->i[SSD_ZERO_START] != 0,
              .work = call->work};
    if (!g.s.z.at) g.dz.at = 0;
    g.layout = kr_ssd_arrange(&g.s.size, true);
    g.at = kr_ssd_sums_of(&g.s.size, &g.s.cut, &g.layout);
    return g;
}

/// A unit: segment number `segment` of batch row b and a group, and its chunks [begin, end).
typedef struct unit {
    int64_t b, group, segment, begin, end;
} unit;

static inline unit unit_of(const ssd *s, int64_t number) {
    const int64_t segments = s->cut.segments, rest = number / segments;
    unit u = {.b = rest / s->size.groups, .group = rest % s->size.groups, .segment = number % segments};
    u.begin = u.segment * s->cut.segment;
    u.end = u.begin + s->cut.segment < s->size.chunks ? u.begin + s->cut.segment : s->size.chunks;
    return u;
}

/// Number of a unit's first head among all batch rows, segments and heads: where its sums lie.
static inline int64_t heads_at(const ssd *s, unit u, int64_t segment) {
    return (u.b * s->cut.segments + segment) * s->size.heads + u.group * s->cut.in_group;
}

/// Heads of the group from its h-th on.
static inline bundle bundle_at(const ssd *s, unit u, int64_t h) {
    const int64_t left = s->cut.in_group - h;
    return (bundle){u.b, u.group, u.group * s->cut.in_group + h, left < KR_SSD_BUNDLE ? left : KR_SSD_BUNDLE};
}

static inline int64_t chunk_tokens(const kr_chunk_size *s, int64_t i) {
    return i + 1 == s->chunks ? s->length - i * s->chunk : s->chunk;
}

/// dy, the gradient before the gate, and e dy; zeros in the padding.
static inline void load_dy(const grad *g, const work *w, int64_t row, int64_t head, int64_t lane) {
    const ssd *s = &g->s;
    const int64_t p = s->size.width, column = head * p;
    for (int64_t t = 0; t < w->tokens; t++) {
        const kr_vf e = kr_v_set(w->rows[KR_SSD_FROM_START][t * KR_LANES + lane]);
        for (int64_t j = 0; j < p; j += KR_LANES) {
            kr_vf dy = g->dout.at ? kr_v_load_n(g->dout.at + (row + t) * g->dout.pitch + column + j, p - j)
                                  : kr_v_set(0);
            if (s->z.at) dy *= kr_v_silu(kr_v_load_n(s->z.at + (row + t) * s->z.pitch + column + j, p - j));
            kr_v_store(w->dy.at + t * w->dy.pitch + j, dy);
            kr_v_store(w->scaled_dy.at + t * w->scaled_dy.pitch + j, dy * e);
        }
    }
}

/// H = times H + sum over the chunk's tokens of e C (outer) dy: the gradient of the state before the chunk. times 0:
/// the state after it has none.
static inline void carry_adjoint(const ssd *s, const work *w, matrix adjoint, float times) {
    product before = {FULL,         1,       s->size.states, s->size.width,    w->tokens, w->q,
                      w->scaled_dy, adjoint, true,           .ahead = w->ahead};
    if (times != 0) before.from = adjoint, before.times = times;
    multiply(&before);
}

#endif
