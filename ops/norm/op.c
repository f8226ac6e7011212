/// RMSNorm and LayerNorm with what stands around them in a block, so that one pass over memory does it all.
///
///   rms_norm    r = x + residual?;  v = r, or r*silu(z) when gated before the norm
///               rho = 1/sqrt(mean_group(v^2) + eps);  n = v*rho;  y = n*weight + bias?
///               y *= silu(z) when gated after the norm
///   layer_norm  r = x + residual?;  m = mean(r);  rho = 1/sqrt(mean((r-m)^2) + eps);  y = (r-m)*rho*weight + bias?
///
/// r is an output too: the new residual stream. What the backward pass needs besides it is one number per row (and
/// group), rho (and m), which are the last outputs. With u = dy*weight, the gradient of the norm alone is
///   rms_norm    dv = rho*(u - n*mean(u*n))
///   layer_norm  dr = rho*(u - mean(u) - n*mean(u*n))
/// The gradient ops add dstream, undo the gate, and sum dweight and dbias over rows in a fixed number of partial sums.
/// Gradients that arrive at rho or m themselves are honoured; nothing in the library sends any.
///   source Zhang & Sennrich 2019, arXiv:1910.07467; Ba et al. 2016, arXiv:1607.06450;
///          the gate: Dao & Gu 2024, arXiv:2405.21060
#include "ops/graph/internal.h"
#include "ops/graph/signature.h"
#include "ops/norm/args.h"

extern const kr_op kr_op_rms_norm_grad, kr_op_layer_norm_grad;

// Signatures ------------------------------------------------------------------------------------------------------
// D: what is normalised; G: its groups, each of which has a rho.

static const kr_signature rms_norm_signature = {
    .in = {[RMS_X] = {"x", "... D"},
           [RMS_RESIDUAL] = {"residual", "... D", KR_OPTIONAL},
           [RMS_Z] = {"z", "... D", KR_OPTIONAL},
           [RMS_WEIGHT] = {"weight", "D"},
           [RMS_BIAS] = {"bias", "D", KR_OPTIONAL}},
    .out = {[RMS_Y] = {"y", "... D"}, [RMS_STREAM] = {"stream", "... D"}, [RMS_RHO] = {"rho", "... G"}},
    .i = {[NORM_GROUP] = KR_AT_LEAST(0)},
    .r = {[NORM_EPS] = KR_AT_LEAST(0)},
};
static const kr_signature rms_norm_grad_signature = {
    .in = {[RMS_GRAD_DY] = {"dy", "... D"},
           [RMS_GRAD_DSTREAM] = {"dstream", "... D", KR_OPTIONAL},
           [RMS_GRAD_R] = {"r", "... D"},
           [RMS_GRAD_Z] = {"z", "... D", KR_OPTIONAL},
           [RMS_GRAD_WEIGHT] = {"weight", "D"},
           [RMS_GRAD_BIAS] = {"bias", "D", KR_OPTIONAL},
           [RMS_GRAD_RHO] = {"rho", "... G"},
           [RMS_GRAD_DRHO] = {"drho", "... G", KR_OPTIONAL}},
    .out = {[RMS_GRAD_DX] = {"dx", "... D"},
            [RMS_GRAD_DZ] = {"dz", "... D"},
            [RMS_GRAD_DWEIGHT] = {"dweight", "D"},
            [RMS_GRAD_DBIAS] = {"dbias", "D"}},
    .i = {[NORM_GROUP] = KR_AT_LEAST(0)},
    .r = {[NORM_EPS] = KR_AT_LEAST(0)},
};
static const kr_signature layer_norm_signature = {
    .in = {[LAYER_X] = {"x", "... D"},
           [LAYER_RESIDUAL] = {"residual", "... D", KR_OPTIONAL},
           [LAYER_WEIGHT] = {"weight", "D"},
           [LAYER_BIAS] = {"bias", "D", KR_OPTIONAL}},
    .out = {[LAYER_Y] = {"y", "... D"},
            [LAYER_STREAM] = {"stream", "... D"},
            [LAYER_MEAN] = {"mean", "... G"},
            [LAYER_RHO] = {"rho", "... G"}},
    .r = {[NORM_EPS] = KR_AT_LEAST(0)},
};
static const kr_signature layer_norm_grad_signature = {
    .in = {[LAYER_GRAD_DY] = {"dy", "... D"},
           [LAYER_GRAD_DSTREAM] = {"dstream", "... D", KR_OPTIONAL},
           [LAYER_GRAD_R] = {"r", "... D"},
           [LAYER_GRAD_WEIGHT] = {"weight", "D"},
           [LAYER_GRAD_MEAN] = {"mean", "... G"},
           [LAYER_GRAD_RHO] = {"rho", "... G"},
           [LAYER_GRAD_DMEAN] = {"dmean", "... G", KR_OPTIONAL},
           [LAYER_GRAD_DRHO] = {"drho", "... G", KR_OPTIONAL}},
    .out = {[LAYER_GRAD_DX] = {"dx", "... D"},
            [LAYER_GRAD_DWEIGHT] = {"dweight", "D"},
            [LAYER_GRAD_DBIAS] = {"dbias", "D"}},
    .r = {[NORM_EPS] = KR_AT_LEAST(0)},
};

/// No group where there is nothing to normalise.
static kr_status one_group(const kr_op *op, const kr_attrs *t, const kr_shape *in, kr_letters *l) {
    (void)op, (void)t, (void)in;
    return kr_letter_let(l, "G", kr_letter(l, "D") > 0);
}

static kr_status some_groups(const kr_op *op, const kr_attrs *t, const kr_shape *in, kr_letters *l) {
    const int64_t D = kr_letter(l, "D"), size = t->i[NORM_GROUP] ? t->i[NORM_GROUP] : D;
    (void)in;
    KR_FAIL_IF(size && D % size, KR_BAD_SHAPE, "%s: group_size is %lld, want a divisor of D = %lld", op->name,
               (long long)size, (long long)D);
    return kr_letter_let(l, "G", size ? D / size : 0);
}

static kr_status rms_norm_check(const kr_op *op, const kr_attrs *t, const kr_shape *in, kr_letters *l) {
    KR_FAIL_IF(in[RMS_RESIDUAL].rank >= 0 && in[RMS_Z].rank >= 0, KR_BAD_ARGUMENT,
               "rms_norm: got both a residual and a gate z, want at most one of them");
    return some_groups(op, t, in, l);
}

// Gradients -------------------------------------------------------------------------------------------------------

/// A gradient that nobody sent, as zeros.
static kr_value or_zero(kr_graph *g, kr_value v, kr_shape s) { return v.id ? v : kr_const(g, 0, KR_F32, s); }

static void rms_norm_backward(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *din) {
    const kr_value x = n->in[RMS_X], residual = n->in[RMS_RESIDUAL], z = n->in[RMS_Z], bias = n->in[RMS_BIAS];
    if (!dout[RMS_Y].id && !dout[RMS_RHO].id) { // only the stream goes on
        din[RMS_X] = dout[RMS_STREAM];
        if (residual.id) din[RMS_RESIDUAL] = dout[RMS_STREAM];
        return;
    }
    const kr_value dy = or_zero(g, dout[RMS_Y], kr_value_shape(g, x)), r = residual.id ? n->out[RMS_STREAM] : x;
    const kr_value dx = kr_append(
        g, &kr_op_rms_norm_grad, &n->attrs,
        (kr_value[]){dy, dout[RMS_STREAM], r, z, n->in[RMS_WEIGHT], bias, n->out[RMS_RHO], dout[RMS_RHO]},
        RMS_GRAD_INPUTS);
    din[RMS_X] = dx;
    if (residual.id) din[RMS_RESIDUAL] = dx;
    if (z.id) din[RMS_Z] = kr_sibling(g, dx, RMS_GRAD_DZ);
    din[RMS_WEIGHT] = kr_sibling(g, dx, RMS_GRAD_DWEIGHT);
    if (bias.id) din[RMS_BIAS] = kr_sibling(g, dx, RMS_GRAD_DBIAS);
}

static void layer_norm_backward(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *din) {
    const kr_value x = n->in[LAYER_X], residual = n->in[LAYER_RESIDUAL], bias = n->in[LAYER_BIAS];
    if (!dout[LAYER_Y].id && !dout[LAYER_MEAN].id && !dout[LAYER_RHO].id) {
        din[LAYER_X] = dout[LAYER_STREAM];
        if (residual.id) din[LAYER_RESIDUAL] = dout[LAYER_STREAM];
        return;
    }
    const kr_value dy = or_zero(g, dout[LAYER_Y], kr_value_shape(g, x)), r = residual.id ? n->out[LAYER_STREAM] : x;
    const kr_value dx = kr_append(g, &kr_op_layer_norm_grad, &n->attrs,
                                  (kr_value[]){dy, dout[LAYER_STREAM], r, n->in[LAYER_WEIGHT], n->out[LAYER_MEAN],
                                               n->out[LAYER_RHO], dout[LAYER_MEAN], dout[LAYER_RHO]},
                                  LAYER_GRAD_INPUTS);
    din[LAYER_X] = dx;
    if (residual.id) din[LAYER_RESIDUAL] = dx;
    din[LAYER_WEIGHT] = kr_sibling(g, dx, LAYER_GRAD_DWEIGHT);
    if (bias.id) din[LAYER_BIAS] = kr_sibling(g, dx, LAYER_GRAD_DBIAS);
}

// Costs and workspace ---------------------------------------------------------------------------------------------

static void cost_of(double flops_each, const kr_shape *in, const kr_shape *out, int inputs, int outputs, double *flops,
                    double *bytes) {
    double elements = 0;
    for (int k = 0; k < inputs; k++) elements += in[k].rank >= 0 ? (double)kr_shape_count(&in[k]) : 0;
    for (int k = 0; k < outputs; k++) elements += (double)kr_shape_count(&out[k]);
    *flops = flops_each * (double)kr_shape_count(&out[0]);
    *bytes = 4 * elements;
}

enum { SILU_FLOPS = 20 }; // an exponential, a division and what is around them

static void rms_norm_cost(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs, double *flops,
                          double *bytes) {
    (void)t;
    const bool z = in[RMS_Z].rank >= 0, r = in[RMS_RESIDUAL].rank >= 0, b = in[RMS_BIAS].rank >= 0;
    cost_of(4 + r + b + (z ? SILU_FLOPS : 0), in, out, inputs, RMS_OUTPUTS, flops, bytes);
}
static void rms_norm_grad_cost(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs, double *flops,
                               double *bytes) {
    (void)t;
    cost_of(10 + (in[RMS_GRAD_Z].rank >= 0 ? SILU_FLOPS + 6 : 0), in, out, inputs, RMS_GRAD_OUTPUTS, flops, bytes);
}
static void layer_norm_cost(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs, double *flops,
                            double *bytes) {
    (void)t;
    cost_of(7 + (in[LAYER_RESIDUAL].rank >= 0) + (in[LAYER_BIAS].rank >= 0), in, out, inputs, LAYER_OUTPUTS, flops,
            bytes);
}
static void layer_norm_grad_cost(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs, double *flops,
                                 double *bytes) {
    (void)t;
    cost_of(13, in, out, inputs, LAYER_GRAD_OUTPUTS, flops, bytes);
}

// Descriptors -----------------------------------------------------------------------------------------------------

const kr_op kr_op_rms_norm = {
    .name = "rms_norm",
    .inputs = RMS_INPUTS,
    .outputs = RMS_OUTPUTS,
    .zero_absent = 1 << RMS_RESIDUAL | 1 << RMS_BIAS,
    .adds_first = 1 + RMS_RESIDUAL,
    .keeps_in = 0x1f,
    .keeps_out = 6,
    .attr = {.i = {"group_size", "norm_before_gate"}, .r = {"eps"}},
    .signature = &rms_norm_signature,
    .check = rms_norm_check,
    .grad = rms_norm_backward,
    .cost = rms_norm_cost,
};

const kr_op kr_op_rms_norm_grad = {
    .name = "rms_norm_grad",
    .inputs = RMS_GRAD_INPUTS,
    .outputs = RMS_GRAD_OUTPUTS,
    .flags = KR_OP_NO_GRADIENT,
    .zero_absent = 1 << RMS_GRAD_DSTREAM | 1 << RMS_GRAD_BIAS | 1 << RMS_GRAD_DRHO,
    .added = 1 + RMS_GRAD_DSTREAM,
    .attr = {.i = {"group_size", "norm_before_gate"}, .r = {"eps"}},
    .signature = &rms_norm_grad_signature,
    .check = some_groups,
    .cost = rms_norm_grad_cost,
};

const kr_op kr_op_layer_norm = {
    .name = "layer_norm",
    .inputs = LAYER_INPUTS,
    .outputs = LAYER_OUTPUTS,
    .zero_absent = 1 << LAYER_RESIDUAL | 1 << LAYER_BIAS,
    .adds_first = 1 + LAYER_RESIDUAL,
    .keeps_in = 0xf,
    .keeps_out = 14,
    .attr = {.r = {"eps"}},
    .signature = &layer_norm_signature,
    .check = one_group,
    .grad = layer_norm_backward,
    .cost = layer_norm_cost,
};

const kr_op kr_op_layer_norm_grad = {
    .name = "layer_norm_grad",
    .inputs = LAYER_GRAD_INPUTS,
    .outputs = LAYER_GRAD_OUTPUTS,
    .flags = KR_OP_NO_GRADIENT,
    .zero_absent = 1 << LAYER_GRAD_DSTREAM | 1 << LAYER_GRAD_DMEAN | 1 << LAYER_GRAD_DRHO,
    .added = 1 + LAYER_GRAD_DSTREAM,
    .attr = {.r = {"eps"}},
    .signature = &layer_norm_grad_signature,
    .check = one_group,
    .cost = layer_norm_grad_cost,
};

// Builders --------------------------------------------------------------------------------------------------------

kr_value(kr_rms_norm_full)(kr_graph *g, kr_value x, kr_value residual, kr_value z, kr_value weight, kr_value bias,
                           double eps, int64_t group_size, bool norm_before_gate, kr_value *stream) {
    const kr_attrs t = {.i = {[NORM_GROUP] = group_size, [NORM_BEFORE_GATE] = norm_before_gate},
                        .r = {[NORM_EPS] = eps}};
    const kr_value y = kr_append(g, &kr_op_rms_norm, &t, (kr_value[]){x, residual, z, weight, bias}, 5);
    if (stream) *stream = !y.id ? KR_NONE : residual.id ? kr_sibling(g, y, 1) : x;
    return y;
}

kr_value(kr_rms_norm)(kr_graph *g, kr_value x, kr_value weight, double eps) {
    return (kr_rms_norm_full)(g, x, KR_NONE, KR_NONE, weight, KR_NONE, eps, 0, false, NULL);
}

kr_value(kr_layer_norm_full)(kr_graph *g, kr_value x, kr_value residual, kr_value weight, kr_value bias, double eps,
                             kr_value *stream) {
    const kr_attrs t = {.r = {[NORM_EPS] = eps}};
    const kr_value y = kr_append(g, &kr_op_layer_norm, &t, (kr_value[]){x, residual, weight, bias}, 4);
    if (stream) *stream = !y.id ? KR_NONE : residual.id ? kr_sibling(g, y, 1) : x;
    return y;
}
