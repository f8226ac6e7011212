/// What the two stages of selective_scan's gradient share: operands and gradients by name. For kernel files only.
#ifndef KRAIT_OPS_SELECTIVE_SCAN_CPU_GRAD_H
#define KRAIT_OPS_SELECTIVE_SCAN_CPU_GRAD_H

#include "ops/selective_scan/cpu_tile.h"

/// A gradient that is written row by row; data is null when nobody reads it.
typedef struct sink {
    float *data;
    int64_t pitch;
} sink;

KR_INLINE sink sink_of(const kr_arg *a) { return (sink){a->data, kr_arg_pitch(a)}; }

typedef struct scan_grad {
    scan s;
    const float *dout, *dlast, *saved;
    int64_t dout_pitch;
    sink du, ddelta, dB, dC, dz;
} scan_grad;

/// in: dout, dlast, u, delta, A, B, C, D, z, delta_bias, reset, saved.
/// out: du, ddelta, dA, dB, dC, dD, dz, ddelta_bias, dh0.
KR_INLINE scan_grad scan_grad_of(const kr_call *call) {
    scan_grad d = {.s = scan_of(call->attrs, call->in + 2, &call->in[10]), .dout = call->in[0].data,
                   .dlast = call->in[1].data, .saved = call->in[11].data, .du = sink_of(&call->out[0]),
                   .ddelta = sink_of(&call->out[1]), .dB = sink_of(&call->out[3]), .dC = sink_of(&call->out[4]),
                   .dz = sink_of(&call->out[6])};
    if (d.dout) d.dout_pitch = kr_arg_pitch(&call->in[0]);
    if (!d.s.z) d.dz.data = 0;
    return d;
}

#endif
