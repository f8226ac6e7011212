/// Causal depthwise convolution over time, with the taps before the first token carried as state (MATH: y_t is the bias
/// plus the sum over W taps of w_j x_{t-W+1+j}, then optionally SiLU).
#include "ops/internal.h"

#include "ops/kernels.h"

KR_KERNEL_DECLARE(causal_conv1d)
KR_KERNEL_DECLARE(causal_conv1d_grad)
KR_KERNEL_DECLARE(causal_conv1d_grad_combine)

extern const kr_op kr_op_causal_conv1d_grad;

enum { MAX_TAPS = 256 };

static kr_status check_operand(const char *op, const char *name, const kr_shape *got, kr_dtype dtype, kr_dtype want_dtype,
                               const kr_shape *want) {
    char text[160], wanted[160];
    KR_FAIL_IF(got->rank >= 0 && (dtype != want_dtype || !kr_shape_equal(got, want)), KR_BAD_SHAPE, "%s: %s is %s %s, want %s %s",
               op, name, kr_dtype_name(dtype), kr_shape_text(got, text), kr_dtype_name(want_dtype), kr_shape_text(want, wanted));
    return KR_OK;
}

/// Checks x, weight, bias?, state?, reset? at in[0..4] and gives the shapes of x and the state.
static kr_status check_inputs(const char *op, const kr_shape *in, const kr_dtype *dtype, kr_shape *state) {
    char text[160];
    const kr_shape *x = &in[0], *w = &in[1];
    KR_FAIL_IF(x->rank != 3 || dtype[0] != KR_F32, KR_BAD_SHAPE, "%s: x is %s %s, want f32 [B, L, C]", op, kr_dtype_name(dtype[0]),
               kr_shape_text(x, text));
    KR_FAIL_IF(w->rank != 2 || dtype[1] != KR_F32 || w->dim[0] != x->dim[2] || w->dim[1] < 1 || w->dim[1] > MAX_TAPS, KR_BAD_SHAPE,
               "%s: weight is %s %s, want f32 [%ld, 1 to %d taps]", op, kr_dtype_name(dtype[1]), kr_shape_text(w, text),
               (long)x->dim[2], MAX_TAPS);
    const kr_shape channels = KR_SHAPE(x->dim[2]), rows = KR_SHAPE(x->dim[0], x->dim[1]);
    *state = KR_SHAPE(x->dim[0], w->dim[1] - 1, x->dim[2]);
    KR_TRY(check_operand(op, "bias", &in[2], dtype[2], KR_F32, &channels));
    KR_TRY(check_operand(op, "state", &in[3], dtype[3], KR_F32, state));
    return check_operand(op, "reset", &in[4], dtype[4], KR_I32, &rows);
}

static kr_status conv_shape(const kr_attrs *attrs, const kr_shape *in_shape, const kr_dtype *in_dtype, int inputs,
                            kr_shape *out_shape, kr_dtype *out_dtype) {
    (void)attrs, (void)inputs;
    KR_TRY(check_inputs("causal_conv1d", in_shape, in_dtype, &out_shape[1]));
    out_shape[0] = in_shape[0];
    out_dtype[0] = out_dtype[1] = KR_F32;
    return KR_OK;
}

static void conv_derivative(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *din) {
    const kr_value in[] = {n->in[0], n->in[1], n->in[2], n->in[3], n->in[4], dout[0], dout[1]};
    din[0] = kr_append(g, &kr_op_causal_conv1d_grad, &n->attrs, in, 7);
    din[1] = kr_sibling(g, din[0], 1);
    if (n->in[2].id) din[2] = kr_sibling(g, din[0], 2);
    if (n->in[3].id) din[3] = kr_sibling(g, din[0], 3);
}

static void conv_cost(const kr_attrs *attrs, const kr_shape *in, const kr_shape *out, int inputs, double *flops, double *bytes) {
    (void)out, (void)inputs;
    const double n = (double)kr_shape_count(&in[0]);
    *flops = n * (2.0 * (double)in[1].dim[1] + (attrs->i[0] ? 4 : 1));
    *bytes = 8.0 * n;
}

static const kr_stage conv_stages[] = {KR_STAGE(causal_conv1d)};
const kr_op kr_op_causal_conv1d = {.name = "causal_conv1d", .inputs = 5, .outputs = 2, .optional = 7u << 2,
    .zero_absent = 3u << 2, .rows_in = 1, .rows_out = 1, .skip_out = 2, .keeps_in = 31, .attr = {.i = {"silu"}},
    .shape = conv_shape, .grad = conv_derivative, .cost = conv_cost, .stages = conv_stages, .stage_count = 1};

kr_value (kr_causal_conv1d)(kr_graph *g, kr_value x, kr_value weight, kr_value bias, kr_value state, kr_value reset, bool silu,
                            kr_value *next) {
    const kr_value in[] = {x, weight, bias, state, reset};
    const kr_value y = kr_append(g, &kr_op_causal_conv1d, &(kr_attrs){.i = {silu}}, in, 5);
    if (next) *next = kr_sibling(g, y, 1);
    return y;
}

/// x, weight, bias?, state?, reset?, dy [B, L, C]?, dnext [B, W-1, C]? to dx, dweight, dbias, dstate.
static kr_status conv_grad_shape(const kr_attrs *attrs, const kr_shape *in_shape, const kr_dtype *in_dtype, int inputs,
                                 kr_shape *out_shape, kr_dtype *out_dtype) {
    (void)attrs, (void)inputs;
    KR_TRY(check_inputs("causal_conv1d_grad", in_shape, in_dtype, &out_shape[3]));
    KR_TRY(check_operand("causal_conv1d_grad", "dy", &in_shape[5], in_dtype[5], KR_F32, &in_shape[0]));
    KR_TRY(check_operand("causal_conv1d_grad", "dnext", &in_shape[6], in_dtype[6], KR_F32, &out_shape[3]));
    out_shape[0] = in_shape[0];
    out_shape[1] = in_shape[1];
    out_shape[2] = KR_SHAPE(in_shape[0].dim[2]);
    for (int k = 0; k < 4; k++) out_dtype[k] = KR_F32;
    return KR_OK;
}

static void conv_grad_cost(const kr_attrs *attrs, const kr_shape *in, const kr_shape *out, int inputs, double *flops,
                           double *bytes) {
    (void)attrs, (void)out, (void)inputs;
    const double n = (double)kr_shape_count(&in[0]);
    *flops = n * (6.0 * (double)in[1].dim[1] + 6);
    *bytes = 12.0 * n;
}

/// Sums of dweight and dbias of every batch row: [B, C, W + 1].
static size_t conv_grad_work(const kr_attrs *attrs, const kr_shape *in, const kr_shape *out, int inputs) {
    (void)attrs, (void)out, (void)inputs;
    return (size_t)(in[0].dim[0] * in[0].dim[2] * (in[1].dim[1] + 1)) * sizeof(float);
}

static const kr_stage conv_grad_stages[] = {KR_STAGE(causal_conv1d_grad), KR_STAGE(causal_conv1d_grad_combine)};
const kr_op kr_op_causal_conv1d_grad = {.name = "causal_conv1d_grad", .inputs = 7, .outputs = 4, .flags = KR_OP_NO_GRADIENT,
    .optional = 31u << 2, .zero_absent = 3u << 2 | 3u << 5, .rows_in = 1u | 1u << 5, .rows_out = 1, .skip_out = 15,
    .attr = {.i = {"silu"}}, .shape = conv_grad_shape, .cost = conv_grad_cost, .work = conv_grad_work,
    .stages = conv_grad_stages, .stage_count = 2};
