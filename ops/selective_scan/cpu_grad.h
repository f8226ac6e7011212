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

KR_INLINE scan_grad scan_grad_of(const kr_call *call) {
    scan_grad d = {.s = scan_of(call->attrs, call->in + SELECTIVE_GRAD_FORWARD, &call->in[SELECTIVE_GRAD_RESET]),
                   .dout = call->in[SELECTIVE_GRAD_DOUT].data,
                   .dlast = call->in[SELECTIVE_GRAD_DLAST].data,
                   .saved = call->in[SELECTIVE_GRAD_SAVED].data,
                   .du = sink_of(&call->out[SELECTIVE_GRAD_DU]),
                   .ddelta = sink_of(&call->out[SELECTIVE_GRAD_DDELTA]),
                   .dB = sink_of(&call->out[SELECTIVE_GRAD_DB]),
                   .dC = sink_of(&call->out[SELECTIVE_GRAD_DC]),
                   .dz = sink_of(&call->out[SELECTIVE_GRAD_DZ])};
    if (d.dout) d.dout_pitch = kr_arg_pitch(&call->in[SELECTIVE_GRAD_DOUT]);
    if (!d.s.z) d.dz.data = 0;
    return d;
}

#endif
