/// What the stages of trapezoid_scan_grad have in common: operands and sums.
#ifndef KRAIT_OPS_TRAPEZOID_CPU_BACKWARD_H
#define KRAIT_OPS_TRAPEZOID_CPU_BACKWARD_H

#include "ops/trapezoid/cpu_args.h"

typedef struct backward {
    trapezoid s;
    source dout, out; ///< out: what the forward pass gave, where it has a gate
    const float *dh_last, *dk_last, *dv_last, *dtheta, *angles;
    float *saved;
    sink dkeys[2], dx, dadt, ddt, dtrap, dz, dang;
    float *dmimo, *dD, *dbias[2], *dh0, *dk0, *dv0, *dtheta0;
    bool zero_start;
    float *sums, *shares; ///< workspace (work.h)
} backward;

static backward backward_of(const kr_call *call) {
    const kr_arg *in = call->in, *out = call->out;
    backward d = {.s = trapezoid_of(call->attrs, in + TRAPEZOID_GRAD_FORWARD, &in[TRAPEZOID_GRAD_K0],
                                    &in[TRAPEZOID_GRAD_V0], &in[TRAPEZOID_GRAD_RESET]),
                  .dout = source_of(&in[TRAPEZOID_GRAD_DO]),
                  .dh_last = in[TRAPEZOID_GRAD_DH_LAST].data,
                  .dk_last = in[TRAPEZOID_GRAD_DK_LAST].data,
                  .dv_last = in[TRAPEZOID_GRAD_DV_LAST].data,
                  .dtheta = in[TRAPEZOID_GRAD_DTHETA_LAST].data,
                  .saved = in[TRAPEZOID_GRAD_SAVED].data,
                  .angles = in[TRAPEZOID_GRAD_ANGLES].data,
                  .dkeys = {sink_of(&out[TRAPEZOID_GRAD_DK]), sink_of(&out[TRAPEZOID_GRAD_DQ])},
                  .dx = sink_of(&out[TRAPEZOID_GRAD_DX]),
                  .dadt = sink_of(&out[TRAPEZOID_GRAD_DADT]),
                  .ddt = sink_of(&out[TRAPEZOID_GRAD_DDT]),
                  .dtrap = sink_of(&out[TRAPEZOID_GRAD_DTRAP]),
                  .dmimo = out[TRAPEZOID_GRAD_DMIMO_X].data,
                  .dD = out[TRAPEZOID_GRAD_DD].data,
                  .dbias = {out[TRAPEZOID_GRAD_DK_BIAS].data, out[TRAPEZOID_GRAD_DQ_BIAS].data},
                  .dh0 = out[TRAPEZOID_GRAD_DH0].data,
                  .dk0 = out[TRAPEZOID_GRAD_DK0].data,
                  .dv0 = out[TRAPEZOID_GRAD_DV0].data,
                  .dtheta0 = out[TRAPEZOID_GRAD_DTHETA0].data,
                  .zero_start = call->attrs->i[TRAPEZOID_ZERO_START] != 0};
    if (d.s.z.at) d.out = source_of(&in[TRAPEZOID_GRAD_O]), d.dz = sink_of(&out[TRAPEZOID_GRAD_DZ]);
    if (d.s.rotate.rotates) d.dang = sink_of(&out[TRAPEZOID_GRAD_DANG]);
    const kr_trapezoid_layout layout = kr_trapezoid_arrange(&d.s.size, true);
    const kr_rotate_layout rotates = kr_rotate_arrange(&d.s.size, &d.s.rotate, true);
    d.sums = (float *)call->work + kr_trapezoid_sums_at(&d.s.size, &layout, &rotates);
    d.shares = (float *)call->work + kr_trapezoid_shares_at(&d.s.size, &d.s.rotate, &layout, &rotates);
    return d;
}

/// The sums over time of one head.
static float *sums_of(const backward *d, place at) {
    return d->sums + (at.b * d->s.size.heads + at.head) * kr_trapezoid_sums(&d->s.size, &d->s.rotate);
}

#endif
