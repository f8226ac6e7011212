/// What the stages of trapezoid_scan_grad have in common: operands and sums.
#ifndef KRAIT_OPS_TRAPEZOID_CPU_BACKWARD_H
#define KRAIT_OPS_TRAPEZOID_CPU_BACKWARD_H

#include "ops/trapezoid/cpu_args.h"

enum { DOUT, DH_LAST, DK_LAST, DV_LAST, DTHETA, FORWARD, K0 = FORWARD + ANG + 1, V0, RESET, SAVED, ANGLES, OUT };
enum { DK, DQ, DX, DADT, DDT, DTRAP, DMIMO_X, DSKIP, DZ, DK_BIAS, DQ_BIAS, DANG, DH0, DK0, DV0, DTHETA0 };

typedef struct backward {
    trapezoid s;
    source dout, out; ///< out: what the forward pass gave, where it has a gate
    const float *dh_last, *dk_last, *dv_last, *dtheta, *angles;
    float *saved;
    sink dkeys[2], dx, dadt, ddt, dtrap, dz, dang;
    float *dmimo, *dD, *dbias[2], *dh0, *dk0, *dv0, *dtheta0;
    bool zero_start;
    float *sums, *shares; ///< workspace (trapezoid.h)
} backward;

static backward backward_of(const kr_call *call) {
    const kr_arg *in = call->in, *out = call->out;
    backward d = {.s = trapezoid_of(call->attrs, in + FORWARD, &in[K0], &in[V0], &in[RESET]),
                  .dout = source_of(&in[DOUT]),
                  .dh_last = in[DH_LAST].data,
                  .dk_last = in[DK_LAST].data,
                  .dv_last = in[DV_LAST].data,
                  .dtheta = in[DTHETA].data,
                  .saved = in[SAVED].data,
                  .angles = in[ANGLES].data,
                  .dkeys = {sink_of(&out[DK]), sink_of(&out[DQ])},
                  .dx = sink_of(&out[DX]),
                  .dadt = sink_of(&out[DADT]),
                  .ddt = sink_of(&out[DDT]),
                  .dtrap = sink_of(&out[DTRAP]),
                  .dmimo = out[DMIMO_X].data,
                  .dD = out[DSKIP].data,
                  .dbias = {out[DK_BIAS].data, out[DQ_BIAS].data},
                  .dh0 = out[DH0].data,
                  .dk0 = out[DK0].data,
                  .dv0 = out[DV0].data,
                  .dtheta0 = out[DTHETA0].data,
                  .zero_start = call->attrs->i[ZERO_START] != 0};
    if (d.s.z.at) d.out = source_of(&in[OUT]), d.dz = sink_of(&out[DZ]);
    if (d.s.turn.turns) d.dang = sink_of(&out[DANG]);
    const kr_chunk_layout layout = kr_chunk_arrange(&d.s.size, true);
    const kr_turn_layout turns = kr_turn_arrange(&d.s.size, &d.s.turn, true);
    d.sums = (float *)call->work + kr_turn_sums_at(&d.s.size, &layout, &turns);
    d.shares = (float *)call->work + kr_turn_shares_at(&d.s.size, &d.s.turn, &layout, &turns);
    return d;
}

/// The sums over time of one head.
static float *sums_of(const backward *d, place at) {
    return d->sums + (at.b * d->s.size.heads + at.head) * kr_turn_sums(&d->s.size, &d->s.turn);
}

#endif
