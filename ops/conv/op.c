/// Causal depthwise convolution over time with carried state (docs/book/2-mamba.md): the short filter in front of a
/// selective scan.
///
///   p_t = bias + sum_j weight_j xx_{t+j},  xx = state followed by x;   y_t = silu(p_t) or p_t
///
/// Tap j = W-1 meets the token itself. The next state is the last W-1 rows of xx. A reset cuts the sequence: no tap
/// reaches over it, and inputs before the last reset are zeros in the next state.
///
/// Backward: dp = dy silu'(p) with p computed again; dxx_{t+j} += weight_j dp_t; dweight_j = sum_t dp_t xx_{t+j};
/// the gradient of the next state is added to the last rows of dxx, as far as it was not zeroed.
#include "ops/conv/args.h"
#include "ops/graph/internal.h"
#include "ops/graph/signature.h"

#define FORWARD_INPUTS(from)                                                        \
    [(from) + CONV_X] = {"x", "B L C"}, [(from) + CONV_WEIGHT] = {"weight", "C W"}, \
              [(from) + CONV_BIAS] = {"bias", "C", KR_OPTIONAL},                    \
              [(from) + CONV_STATE] = {"state", "B W-1 C", KR_OPTIONAL},            \
              [(from) + CONV_RESET] = {"reset", "B L", KR_OPTIONAL, KR_I32}

static const kr_signature causal_conv1d_signature = {
    .in = {FORWARD_INPUTS(0)},
    .out = {[CONV_Y] = {"y", "B L C"}, [CONV_NEXT] = {"next", "B W-1 C"}},
};
static const kr_signature causal_conv1d_grad_signature = {
    .in = {[CONV_GRAD_DY] = {"dy", "B L C", KR_OPTIONAL},
           [CONV_GRAD_DNEXT] = {"dnext", "B W-1 C", KR_OPTIONAL},
           FORWARD_INPUTS(CONV_GRAD_FORWARD)},
    .out = {[CONV_GRAD_DX] = {"dx", "@x"},
            [CONV_GRAD_DWEIGHT] = {"dweight", "@weight"},
            [CONV_GRAD_DBIAS] = {"dbias", "@bias"},
            [CONV_GRAD_DSTATE] = {"dstate", "@state"}},
};

static kr_status check_taps(const kr_op *op, const kr_attrs *t, const kr_shape *in, kr_letters *l) {
    (void)t, (void)in;
    KR_FAIL_IF(kr_letter(l, "W") < 1, KR_BAD_SHAPE, "%s: weight has no taps, want [C W] with W at least 1", op->name);
    return KR_OK;
}

/// A multiply-add per tap, the bias, and 10 for silu.
static void causal_conv1d_cost(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs, double *flops,
                               double *bytes) {
    (void)inputs, (void)out;
    const double elements = (double)kr_shape_count(&in[CONV_X]), taps = (double)in[CONV_WEIGHT].dim[1];
    *flops = elements * (2 * taps + 1 + (t->i[CONV_SILU] ? 10 : 0));
    *bytes = 4 * (2 * elements + (double)kr_shape_count(&in[CONV_WEIGHT]));
}

static void causal_conv1d_grad_cost(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs,
                                    double *flops, double *bytes) {
    (void)inputs, (void)out;
    const double elements = (double)kr_shape_count(&in[CONV_GRAD_FORWARD + CONV_X]),
                 taps = (double)in[CONV_GRAD_FORWARD + CONV_WEIGHT].dim[1];
    *flops = elements * (4 * taps + 1 + (t->i[CONV_SILU] ? 2 * taps + 14 : 0));
    *bytes = 4 * (3 * elements + 2 * (double)kr_shape_count(&in[CONV_GRAD_FORWARD + CONV_WEIGHT]));
}

extern const kr_op kr_op_causal_conv1d_grad;

static void causal_conv1d_derivative(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *din) {
    kr_value in[CONV_GRAD_INPUTS] = {[CONV_GRAD_DY] = dout[CONV_Y], [CONV_GRAD_DNEXT] = dout[CONV_NEXT]};
    for (int k = CONV_X; k < CONV_INPUTS; k++) in[CONV_GRAD_FORWARD + k] = n->in[k];
    if (!dout[CONV_Y].id && !dout[CONV_NEXT].id) return;
    const kr_value first = kr_append(g, &kr_op_causal_conv1d_grad, &n->attrs, in, CONV_GRAD_INPUTS);
    if (!first.id) return;
    for (int k = CONV_X; k <= CONV_STATE; k++)
        if (n->in[k].id) din[k] = kr_sibling(g, first, k);
}

const kr_op kr_op_causal_conv1d = {
    .name = "causal_conv1d",
    .inputs = CONV_INPUTS,
    .outputs = CONV_OUTPUTS,
    .zero_absent = BIT(CONV_BIAS) | BIT(CONV_STATE) | BIT(CONV_RESET),
    .keeps_in = BIT(CONV_INPUTS) - 1,
    .attr = {.i = {"silu"}},
    .signature = &causal_conv1d_signature,
    .check = check_taps,
    .grad = causal_conv1d_derivative,
    .cost = causal_conv1d_cost,
};

/// Reads dy [B, L, C]? and dnext [B, W-1, C]?, then the forward inputs; gives dx, dweight, dbias and dstate (empty
/// where the input is absent).
const kr_op kr_op_causal_conv1d_grad = {
    .name = "causal_conv1d_grad",
    .inputs = CONV_GRAD_INPUTS,
    .outputs = CONV_GRAD_OUTPUTS,
    .flags = KR_OP_NO_GRADIENT,
    .zero_absent = BIT(CONV_GRAD_DY) | BIT(CONV_GRAD_DNEXT) | BIT(CONV_GRAD_FORWARD + CONV_RESET),
    .attr = {.i = {"silu"}},
    .signature = &causal_conv1d_grad_signature,
    .check = check_taps,
    .cost = causal_conv1d_grad_cost,
};

kr_value (kr_causal_conv1d)(kr_graph *g, kr_value x, kr_value weight, kr_value bias, kr_value state, kr_value reset,
                            bool silu, kr_value *next) {
    const kr_attrs t = {.i = {[CONV_SILU] = silu}};
    const kr_value in[CONV_INPUTS] = {x, weight, bias, state, reset};
    const kr_value y = kr_append(g, &kr_op_causal_conv1d, &t, in, CONV_INPUTS);
    if (next) *next = y.id ? kr_sibling(g, y, CONV_NEXT) : KR_NONE;
    return y;
}
