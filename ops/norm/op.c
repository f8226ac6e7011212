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
#include "ops/norm/args.h"
#include "ops/graph/internal.h"
#include "ops/cpu/kernels.h"

#include <stdio.h>

extern const kr_op kr_op_rms_norm_grad, kr_op_layer_norm_grad;

KR_KERNEL_DECLARE(rms_norm)
KR_KERNEL_DECLARE(rms_norm_grad)
KR_KERNEL_DECLARE(layer_norm)
KR_KERNEL_DECLARE(layer_norm_grad)
KR_KERNEL_DECLARE(norm_grad_sum)

static kr_status want_shape(const char *op, const char *what, const kr_shape *got, const kr_shape *want) {
    char a[160], b[160];
    KR_FAIL_IF(!kr_shape_equal(got, want), KR_BAD_SHAPE, "%s: %s is %s, want %s", op, what, kr_shape_text(got, a),
               kr_shape_text(want, b));
    return KR_OK;
}

static kr_status want_f32(const char *op, const kr_shape *in, const kr_dtype *dtype, int inputs) {
    for (int k = 0; k < inputs; k++)
        KR_FAIL_IF(in[k].rank >= 0 && dtype[k] != KR_F32, KR_BAD_SHAPE, "%s: input %d is %s, want f32", op, k,
                   kr_dtype_name(dtype[k]));
    return KR_OK;
}

/// Checks x against the groups and gives the shape [..., groups] of the saved numbers.
static kr_status saved_shape(const char *op, const kr_attrs *t, const kr_shape *x, int64_t group, kr_shape *saved) {
    char text[160];
    KR_FAIL_IF(x->rank < 1, KR_BAD_SHAPE, "%s: x is a scalar, want an axis to normalise", op);
    const int64_t d = x->dim[x->rank - 1];
    KR_FAIL_IF(group < 0 || (group && d % group), KR_BAD_SHAPE,
               "%s: group_size %lld does not divide the last axis of %s", op, (long long)group, kr_shape_text(x, text));
    KR_FAIL_IF(!(t->r[NORM_EPS] >= 0), KR_BAD_ARGUMENT, "%s: eps is %g, want at least 0", op, t->r[NORM_EPS]);
    *saved = *x;
    saved->dim[x->rank - 1] = d ? d / (group ? group : d) : 0;
    return KR_OK;
}

static kr_status check_rows(const char *op, const kr_shape *x, const kr_shape *in, const char *const *names,
                            uint32_t rows, int inputs) {
    const kr_shape vector = KR_SHAPE(x->dim[x->rank - 1]);
    for (int k = 0; k < inputs; k++)
        if (in[k].rank >= 0) KR_TRY(want_shape(op, names[k], &in[k], rows >> k & 1 ? x : &vector));
    return KR_OK;
}

// Shapes ----------------------------------------------------------------------------------------------------------

static kr_status rms_norm_shape(const kr_attrs *t, const kr_shape *in, const kr_dtype *dtype, int inputs, kr_shape *out,
                                kr_dtype *out_dtype) {
    static const char *const names[] = {"x", "residual", "z", "weight", "bias"};
    (void)out_dtype; // f32 is 0, as everything was before
    KR_TRY(want_f32("rms_norm", in, dtype, inputs));
    KR_TRY(saved_shape("rms_norm", t, &in[RMS_X], t->i[NORM_GROUP], &out[2]));
    KR_FAIL_IF(in[RMS_RESIDUAL].rank >= 0 && in[RMS_Z].rank >= 0, KR_BAD_ARGUMENT,
               "rms_norm: got both a residual and a gate z, want at most one of them");
    KR_TRY(check_rows("rms_norm", &in[RMS_X], in, names, 7, inputs));
    out[0] = out[1] = in[RMS_X];
    return KR_OK;
}

static kr_status layer_norm_shape(const kr_attrs *t, const kr_shape *in, const kr_dtype *dtype, int inputs,
                                  kr_shape *out, kr_dtype *out_dtype) {
    static const char *const names[] = {"x", "residual", "weight", "bias"};
    (void)out_dtype;
    KR_TRY(want_f32("layer_norm", in, dtype, inputs));
    KR_TRY(saved_shape("layer_norm", t, &in[LAYER_X], 0, &out[2]));
    KR_TRY(check_rows("layer_norm", &in[LAYER_X], in, names, 3, inputs));
    out[0] = out[1] = in[LAYER_X];
    out[3] = out[2];
    return KR_OK;
}

static kr_status rms_norm_grad_shape(const kr_attrs *t, const kr_shape *in, const kr_dtype *dtype, int inputs,
                                     kr_shape *out, kr_dtype *out_dtype) {
    static const char *const names[] = {"dy", "dstream", "r", "z", "weight", "bias"};
    const char *op = "rms_norm_grad";
    kr_shape saved;
    (void)out_dtype;
    KR_TRY(want_f32(op, in, dtype, inputs));
    KR_TRY(saved_shape(op, t, &in[RMSG_DY], t->i[NORM_GROUP], &saved));
    KR_TRY(check_rows(op, &in[RMSG_DY], in, names, 15, 6));
    KR_TRY(want_shape(op, "rho", &in[RMSG_RHO], &saved));
    if (in[RMSG_DRHO].rank >= 0) KR_TRY(want_shape(op, "drho", &in[RMSG_DRHO], &saved));
    out[0] = out[1] = in[RMSG_DY];
    out[2] = out[3] = in[RMSG_WEIGHT];
    return KR_OK;
}

static kr_status layer_norm_grad_shape(const kr_attrs *t, const kr_shape *in, const kr_dtype *dtype, int inputs,
                                       kr_shape *out, kr_dtype *out_dtype) {
    static const char *const names[] = {"dy", "dstream", "r", "weight"};
    const char *op = "layer_norm_grad";
    kr_shape saved;
    (void)out_dtype;
    KR_TRY(want_f32(op, in, dtype, inputs));
    KR_TRY(saved_shape(op, t, &in[LAYERG_DY], 0, &saved));
    KR_TRY(check_rows(op, &in[LAYERG_DY], in, names, 7, 4));
    for (int k = LAYERG_MEAN; k <= LAYERG_DRHO; k++)
        if (in[k].rank >= 0) KR_TRY(want_shape(op, "mean, rho or its gradient", &in[k], &saved));
    out[0] = in[LAYERG_DY];
    out[1] = out[2] = in[LAYERG_WEIGHT];
    return KR_OK;
}

// Gradients -------------------------------------------------------------------------------------------------------

/// A gradient that nobody sent, as zeros.
static kr_value or_zero(kr_graph *g, kr_value v, kr_shape s) { return v.id ? v : kr_const(g, 0, KR_F32, s); }

static void rms_norm_backward(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *din) {
    const kr_value x = n->in[RMS_X], residual = n->in[RMS_RESIDUAL], z = n->in[RMS_Z], bias = n->in[RMS_BIAS];
    if (!dout[0].id && !dout[2].id) { // only the stream goes on
        din[RMS_X] = dout[1];
        if (residual.id) din[RMS_RESIDUAL] = dout[1];
        return;
    }
    const kr_value dy = or_zero(g, dout[0], kr_value_shape(g, x)), r = residual.id ? n->out[1] : x;
    const kr_value dx = kr_append(g, &kr_op_rms_norm_grad, &n->attrs,
                                  (kr_value[]){dy, dout[1], r, z, n->in[RMS_WEIGHT], bias, n->out[2], dout[2]},
                                  RMSG_INPUTS);
    din[RMS_X] = dx;
    if (residual.id) din[RMS_RESIDUAL] = dx;
    if (z.id) din[RMS_Z] = kr_sibling(g, dx, 1);
    din[RMS_WEIGHT] = kr_sibling(g, dx, 2);
    if (bias.id) din[RMS_BIAS] = kr_sibling(g, dx, 3);
}

static void layer_norm_backward(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *din) {
    const kr_value x = n->in[LAYER_X], residual = n->in[LAYER_RESIDUAL], bias = n->in[LAYER_BIAS];
    if (!dout[0].id && !dout[2].id && !dout[3].id) {
        din[LAYER_X] = dout[1];
        if (residual.id) din[LAYER_RESIDUAL] = dout[1];
        return;
    }
    const kr_value dy = or_zero(g, dout[0], kr_value_shape(g, x)), r = residual.id ? n->out[1] : x;
    const kr_value dx = kr_append(
        g, &kr_op_layer_norm_grad, &n->attrs,
        (kr_value[]){dy, dout[1], r, n->in[LAYER_WEIGHT], n->out[2], n->out[3], dout[2], dout[3]}, LAYERG_INPUTS);
    din[LAYER_X] = dx;
    if (residual.id) din[LAYER_RESIDUAL] = dx;
    din[LAYER_WEIGHT] = kr_sibling(g, dx, 1);
    if (bias.id) din[LAYER_BIAS] = kr_sibling(g, dx, 2);
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
    cost_of(4 + r + b + (z ? SILU_FLOPS : 0), in, out, inputs, 3, flops, bytes);
}
static void rms_norm_grad_cost(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs, double *flops,
                               double *bytes) {
    (void)t;
    cost_of(10 + (in[RMSG_Z].rank >= 0 ? SILU_FLOPS + 6 : 0), in, out, inputs, 4, flops, bytes);
}
static void layer_norm_cost(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs, double *flops,
                            double *bytes) {
    (void)t;
    cost_of(7 + (in[LAYER_RESIDUAL].rank >= 0) + (in[LAYER_BIAS].rank >= 0), in, out, inputs, 4, flops, bytes);
}
static void layer_norm_grad_cost(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs, double *flops,
                                 double *bytes) {
    (void)t;
    cost_of(13, in, out, inputs, 3, flops, bytes);
}

static size_t norm_grad_work(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs) {
    (void)t, (void)out, (void)inputs;
    const int64_t d = in[0].dim[in[0].rank - 1], rows = d ? kr_shape_count(&in[0]) / d : 0;
    return (size_t)(norm_partials(rows) * 2 * d) * sizeof(float);
}

// Descriptors -----------------------------------------------------------------------------------------------------

static const kr_stage rms_norm_stages[] = {KR_STAGE(rms_norm)};
static const kr_stage layer_norm_stages[] = {KR_STAGE(layer_norm)};
static const kr_stage rms_norm_grad_stages[] = {KR_STAGE(rms_norm_grad), KR_STAGE(norm_grad_sum)};
static const kr_stage layer_norm_grad_stages[] = {KR_STAGE(layer_norm_grad), KR_STAGE(norm_grad_sum)};

const kr_op kr_op_rms_norm = {
    .name = "rms_norm", .inputs = 5, .outputs = 3, .optional = 1 << RMS_RESIDUAL | 1 << RMS_Z | 1 << RMS_BIAS,
    .zero_absent = 1 << RMS_RESIDUAL | 1 << RMS_BIAS, .adds_first = 1 + RMS_RESIDUAL, .keeps_in = 0x1f,
    .keeps_out = 6, .attr = {.i = {"group_size", "norm_before_gate"}, .r = {"eps"}}, .shape = rms_norm_shape,
    .grad = rms_norm_backward, .cost = rms_norm_cost,
};
KR_CPU(rms_norm,
    .rows_in = 7, .rows_out = 3, .skip_out = 6, .inplace = {7, 3}, .fuses = KR_FUSES_FIRST_ADDEND,
    KR_STAGES(rms_norm_stages))

const kr_op kr_op_rms_norm_grad = {
    .name = "rms_norm_grad", .inputs = RMSG_INPUTS, .outputs = 4, .flags = KR_OP_NO_GRADIENT,
    .optional = 1 << RMSG_DSTREAM | 1 << RMSG_Z | 1 << RMSG_BIAS | 1 << RMSG_DRHO,
    .zero_absent = 1 << RMSG_DSTREAM | 1 << RMSG_BIAS | 1 << RMSG_DRHO, .added = 1 + RMSG_DSTREAM,
    .attr = {.i = {"group_size", "norm_before_gate"}, .r = {"eps"}}, .shape = rms_norm_grad_shape,
    .cost = rms_norm_grad_cost,
};
KR_CPU(rms_norm_grad,
    .rows_in = 15, .rows_out = 3, .skip_out = 15, .inplace = {15, 15}, .fuses = KR_FUSES_ADDEND,
    .work = norm_grad_work, KR_STAGES(rms_norm_grad_stages))

const kr_op kr_op_layer_norm = {
    .name = "layer_norm", .inputs = 4, .outputs = 4, .optional = 1 << LAYER_RESIDUAL | 1 << LAYER_BIAS,
    .zero_absent = 1 << LAYER_RESIDUAL | 1 << LAYER_BIAS, .adds_first = 1 + LAYER_RESIDUAL, .keeps_in = 0xf,
    .keeps_out = 14, .attr = {.r = {"eps"}}, .shape = layer_norm_shape, .grad = layer_norm_backward,
    .cost = layer_norm_cost,
};
KR_CPU(layer_norm,
    .rows_in = 3, .rows_out = 3, .skip_out = 14, .inplace = {3, 3}, .fuses = KR_FUSES_FIRST_ADDEND,
    KR_STAGES(layer_norm_stages))

const kr_op kr_op_layer_norm_grad = {
    .name = "layer_norm_grad", .inputs = LAYERG_INPUTS, .outputs = 3, .flags = KR_OP_NO_GRADIENT,
    .optional = 1 << LAYERG_DSTREAM | 1 << LAYERG_DMEAN | 1 << LAYERG_DRHO,
    .zero_absent = 1 << LAYERG_DSTREAM | 1 << LAYERG_DMEAN | 1 << LAYERG_DRHO, .added = 1 + LAYERG_DSTREAM,
    .attr = {.r = {"eps"}}, .shape = layer_norm_grad_shape, .cost = layer_norm_grad_cost,
};
KR_CPU(layer_norm_grad,
    .rows_in = 7, .rows_out = 1, .skip_out = 7, .inplace = {7}, .fuses = KR_FUSES_ADDEND, .work = norm_grad_work,
    KR_STAGES(layer_norm_grad_stages))

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
