/// Causal depthwise convolution over time with carried state (MATH 4): the short filter in front of a selective scan.
///
///   p_t = bias + sum_j weight_j xx_{t+j},  xx = state followed by x;   y_t = silu(p_t) or p_t
///
/// Tap j = W-1 meets the token itself. The next state is the last W-1 rows of xx. A reset cuts the sequence: no tap
/// reaches over it, and inputs before the last reset are zeros in the next state.
///
/// Backward: dp = dy silu'(p) with p computed again; dxx_{t+j} += weight_j dp_t; dweight_j = sum_t dp_t xx_{t+j};
/// the gradient of the next state is added to the last rows of dxx, as far as it was not zeroed.
#include "ops/conv/work.h"
#include "ops/graph/internal.h"
#include "ops/cpu/kernels.h"

KR_KERNEL_DECLARE(causal_conv1d_weights)
KR_KERNEL_DECLARE(causal_conv1d)
KR_KERNEL_DECLARE(causal_conv1d_grad_weights)
KR_KERNEL_DECLARE(causal_conv1d_grad)
KR_KERNEL_DECLARE(causal_conv1d_grad_sum)

enum { SILU };
enum { X, WEIGHT, BIAS, STATE, RESET, INPUTS };
enum { Y, NEXT, OUTPUTS };
enum { DY, DNEXT, FORWARD, GRAD_INPUTS = FORWARD + INPUTS }; // then the forward inputs
enum { DX, DWEIGHT, DBIAS, DSTATE, GRAD_OUTPUTS };

/// in: x, weight, bias, state, reset. *state gets the shape of a state.
static kr_status check_inputs(const char *op, const kr_shape *in, const kr_dtype *dtype, kr_shape *state) {
    static const char *const names[] = {"x", "weight", "bias", "state", "reset"};
    char text[160], want[160];
    KR_FAIL_IF(in[X].rank != 3, KR_BAD_SHAPE, "%s: x is %s, want [batch, length, channels]", op,
               kr_shape_text(&in[X], text));
    const int64_t batch = in[X].dim[0], length = in[X].dim[1], channels = in[X].dim[2];
    KR_FAIL_IF(in[WEIGHT].rank != 2 || in[WEIGHT].dim[0] != channels || in[WEIGHT].dim[1] < 1, KR_BAD_SHAPE,
               "%s: weight is %s, want [%lld, taps] with at least one tap", op, kr_shape_text(&in[WEIGHT], text),
               (long long)channels);
    *state = KR_SHAPE(batch, in[WEIGHT].dim[1] - 1, channels);
    const kr_shape wanted[] = {in[X], in[WEIGHT], KR_SHAPE(channels), *state, KR_SHAPE(batch, length)};
    for (int k = X; k < INPUTS; k++) {
        const kr_dtype type = k == RESET ? KR_I32 : KR_F32;
        KR_FAIL_IF(in[k].rank >= 0 && (dtype[k] != type || !kr_shape_equal(&in[k], &wanted[k])), KR_BAD_SHAPE,
                   "%s: %s is %s %s, want %s %s", op, names[k], kr_dtype_name(dtype[k]), kr_shape_text(&in[k], text),
                   kr_dtype_name(type), kr_shape_text(&wanted[k], want));
    }
    return KR_OK;
}

static kr_status causal_conv1d_shape(const kr_attrs *t, const kr_shape *in, const kr_dtype *dtype, int inputs,
                                     kr_shape *out, kr_dtype *out_dtype) {
    (void)t, (void)inputs;
    KR_TRY(check_inputs("causal_conv1d", in, dtype, &out[NEXT]));
    out[Y] = in[X];
    out_dtype[Y] = out_dtype[NEXT] = KR_F32;
    return KR_OK;
}

static kr_status causal_conv1d_grad_shape(const kr_attrs *t, const kr_shape *in, const kr_dtype *dtype, int inputs,
                                          kr_shape *out, kr_dtype *out_dtype) {
    (void)t, (void)inputs;
    const char *op = "causal_conv1d_grad";
    const kr_shape *x = in + FORWARD;
    char text[160], want[160];
    kr_shape state;
    KR_TRY(check_inputs(op, x, dtype + FORWARD, &state));
    KR_FAIL_IF(in[DY].rank >= 0 && (dtype[DY] != KR_F32 || !kr_shape_equal(&in[DY], &x[X])), KR_BAD_SHAPE,
               "%s: dy is %s, want %s", op, kr_shape_text(&in[DY], text), kr_shape_text(&x[X], want));
    KR_FAIL_IF(in[DNEXT].rank >= 0 && (dtype[DNEXT] != KR_F32 || !kr_shape_equal(&in[DNEXT], &state)), KR_BAD_SHAPE,
               "%s: dnext is %s, want %s", op, kr_shape_text(&in[DNEXT], text), kr_shape_text(&state, want));
    out[DX] = x[X];
    out[DWEIGHT] = x[WEIGHT];
    out[DBIAS] = x[BIAS].rank >= 0 ? x[BIAS] : KR_SHAPE(0);
    out[DSTATE] = x[STATE].rank >= 0 ? state : KR_SHAPE(0);
    for (int k = 0; k < GRAD_OUTPUTS; k++) out_dtype[k] = KR_F32;
    return KR_OK;
}

/// MATH 17: a multiply-add per tap, the bias, and 10 for silu.
static void causal_conv1d_cost(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs, double *flops,
                               double *bytes) {
    (void)inputs, (void)out;
    const double elements = (double)kr_shape_count(&in[X]), taps = (double)in[WEIGHT].dim[1];
    *flops = elements * (2 * taps + 1 + (t->i[SILU] ? 10 : 0));
    *bytes = 4 * (2 * elements + (double)kr_shape_count(&in[WEIGHT]));
}

static void causal_conv1d_grad_cost(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs,
                                    double *flops, double *bytes) {
    (void)inputs, (void)out;
    const double elements = (double)kr_shape_count(&in[FORWARD + X]), taps = (double)in[FORWARD + WEIGHT].dim[1];
    *flops = elements * (4 * taps + 1 + (t->i[SILU] ? 2 * taps + 14 : 0));
    *bytes = 4 * (3 * elements + 2 * (double)kr_shape_count(&in[FORWARD + WEIGHT]));
}

/// Never 0, so that kernels always have a base to count from.
static size_t floats(int64_t n) { return (size_t)(n + KR_CONV_LANES) * sizeof(float); }

static size_t causal_conv1d_work(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs) {
    (void)t, (void)out, (void)inputs;
    return floats(kr_conv_forward_floats(in[X].dim[2], in[WEIGHT].dim[1]));
}

static size_t causal_conv1d_grad_work(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs) {
    (void)t, (void)out, (void)inputs;
    const kr_shape *x = in + FORWARD;
    return floats(kr_conv_backward_floats(x[X].dim[0], x[X].dim[2], x[WEIGHT].dim[1]));
}

extern const kr_op kr_op_causal_conv1d_grad;

static void causal_conv1d_derivative(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *din) {
    kr_value in[GRAD_INPUTS] = {[DY] = dout[Y], [DNEXT] = dout[NEXT]};
    for (int k = X; k < INPUTS; k++) in[FORWARD + k] = n->in[k];
    if (!dout[Y].id && !dout[NEXT].id) return;
    const kr_value first = kr_append(g, &kr_op_causal_conv1d_grad, &n->attrs, in, GRAD_INPUTS);
    if (!first.id) return;
    for (int k = X; k <= STATE; k++)
        if (n->in[k].id) din[k] = kr_sibling(g, first, k);
}

#define BIT(k) (1u << (k))
static const kr_stage forward_stages[] = {KR_STAGE(causal_conv1d_weights), KR_STAGE(causal_conv1d)};
static const kr_stage backward_stages[] = {KR_STAGE(causal_conv1d_grad_weights), KR_STAGE(causal_conv1d_grad),
                                           KR_STAGE(causal_conv1d_grad_sum)};

const kr_op kr_op_causal_conv1d = {
    .name = "causal_conv1d", .inputs = INPUTS, .outputs = OUTPUTS, .optional = BIT(BIAS) | BIT(STATE) | BIT(RESET),
    .zero_absent = BIT(BIAS) | BIT(STATE) | BIT(RESET), .keeps_in = BIT(INPUTS) - 1, .attr = {.i = {"silu"}},
    .shape = causal_conv1d_shape, .grad = causal_conv1d_derivative, .cost = causal_conv1d_cost,
};
KR_CPU(causal_conv1d,
    .rows_in = BIT(X), .rows_out = BIT(Y), .skip_out = BIT(NEXT), .work = causal_conv1d_work,
    KR_STAGES(forward_stages))

/// Reads dy [B, L, C]? and dnext [B, W-1, C]?, then the forward inputs; gives dx, dweight, dbias and dstate (empty
/// where the input is absent).
const kr_op kr_op_causal_conv1d_grad = {
    .name = "causal_conv1d_grad", .inputs = GRAD_INPUTS, .outputs = GRAD_OUTPUTS, .flags = KR_OP_NO_GRADIENT,
    .optional = BIT(DY) | BIT(DNEXT) | BIT(FORWARD + BIAS) | BIT(FORWARD + STATE) | BIT(FORWARD + RESET),
    .zero_absent = BIT(DY) | BIT(DNEXT) | BIT(FORWARD + RESET), .attr = {.i = {"silu"}},
    .shape = causal_conv1d_grad_shape, .cost = causal_conv1d_grad_cost,
};
KR_CPU(causal_conv1d_grad,
    .rows_in = BIT(DY) | BIT(FORWARD + X), .rows_out = BIT(DX), .skip_out = BIT(GRAD_OUTPUTS) - 1,
    .inplace = {BIT(DY)}, .work = causal_conv1d_grad_work, KR_STAGES(backward_stages))

kr_value (kr_causal_conv1d)(kr_graph *g, kr_value x, kr_value weight, kr_value bias, kr_value state, kr_value reset,
                            bool silu, kr_value *next) {
    const kr_attrs t = {.i = {[SILU] = silu}};
    const kr_value in[INPUTS] = {x, weight, bias, state, reset};
    const kr_value y = kr_append(g, &kr_op_causal_conv1d, &t, in, INPUTS);
    if (next) *next = y.id ? kr_sibling(g, y, NEXT) : KR_NONE;
    return y;
}
