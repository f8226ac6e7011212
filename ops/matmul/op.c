/// Matrix products.
///
/// One op, `matmul`, is every dense product of a model: op(a) [..., M, K] by op(b) [..., K, N], where op transposes the
/// last two axes or does nothing. What usually follows a product is part of it, while a block of the result is still
/// in cache: y = act(op(a) op(b) + bias), or y = op(a) op(b) + bias + residual. A transposed operand is read as it
/// lies, and all matrices may be slices with a row pitch, so neither splits of an activation nor gradients need copies.
///
/// Operands may be rounded to bf16 before they are multiplied (precision: 0 f32, 1 bf16, 2 bf16 emulated, see
/// kr_precision); the sums, and all that a product reads and writes, are f32. Products in f32 keep all bits of their
/// operands; where the machine has a matrix unit for bf16, large ones are made there of parts (ops/cpu/tile_split.h).
///
/// Gradients are products again, of the same precision: da = dy op(b)^T, db = op(a)^T dy. When b has no leading axes (a
/// weight), the leading axes of a are rows, and db is one product with K = all rows.
#include "ops/graph/internal.h"
#include "ops/graph/signature.h"
#include "ops/matmul/args.h"

#include <limits.h>

extern const kr_op kr_op_matmul;

/// The gradient op of each activation, act_grad(dy, kept), and whether it keeps y = act(x) or x itself.
static const struct activation {
    const char *grad;
    bool keeps_y;
} activations[] = {{0, false},           {"silu_grad", false},   {"relu_grad", true},
                   {"gelu_grad", false}, {"sigmoid_grad", true}, {"softplus_grad", false}};
enum { ACTIVATIONS = sizeof activations / sizeof *activations };
static const char *const activation_names[ACTIVATIONS] = {"silu", "relu", "gelu", "sigmoid", "softplus"};

static const kr_signature matmul_signature = {
    .in = {[MATMUL_A] = {"a", "transpose_a ? ... K M : ... M K"},
           [MATMUL_B] = {"b", "transpose_b ? ...? N K : ...? K N"},
           [MATMUL_BIAS] = {"bias", "N", KR_OPTIONAL},
           [MATMUL_RESIDUAL] = {"residual", "... M N", KR_OPTIONAL}},
    .out = {[MATMUL_Y] = {"y", "... M N"}},
    .i = {[MATMUL_TRANSPOSE_A] = KR_YES_OR_NO,
          [MATMUL_TRANSPOSE_B] = KR_YES_OR_NO,
          [MATMUL_ACTIVATION] = KR_BETWEEN(0, ACTIVATIONS - 1),
          [MATMUL_PRECISION] = KR_BETWEEN(0, 2)}, // f32, bf16, bf16 emulated
};

static kr_status matmul_check(const kr_op *op, const kr_attrs *t, const kr_shape *in, kr_letters *l) {
    const int64_t M = kr_letter(l, "M"), N = kr_letter(l, "N"), K = kr_letter(l, "K");
    (void)op;
    KR_FAIL_IF(t->i[MATMUL_ACTIVATION] && in[MATMUL_RESIDUAL].rank >= 0, KR_BAD_ARGUMENT,
               "matmul: a node has either an activation or a residual, not both");
    KR_FAIL_IF(K > INT_MAX || N > INT_MAX || M > INT_MAX, KR_BAD_SHAPE, "matmul: %lld by %lld by %lld is too large",
               (long long)M, (long long)N, (long long)K);
    return KR_OK;
}

/// [..., R, C] as one matrix of all rows; unchanged when it is one already.
static kr_value as_matrix(kr_graph *g, kr_value v) {
    const kr_shape s = kr_value_shape(g, v);
    if (!v.id || s.rank <= 2) return v;
    const int64_t cols = s.dim[s.rank - 1];
    int64_t rows = 1;
    for (int k = 0; k + 1 < s.rank; k++) rows *= s.dim[k];
    return kr_reshape(g, v, KR_SHAPE(rows, cols));
}

static kr_value product(kr_graph *g, const kr_node *like, kr_value a, kr_value b, bool ta, bool tb) {
    const kr_attrs t = {.i = {[MATMUL_TRANSPOSE_A] = ta,
                              [MATMUL_TRANSPOSE_B] = tb,
                              [MATMUL_PRECISION] = like->attrs.i[MATMUL_PRECISION]}};
    return kr_append(g, &kr_op_matmul, &t, (kr_value[]){a, b, KR_NONE, KR_NONE}, MATMUL_INPUTS);
}

static void matmul_grad(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *din) {
    const bool ta = n->attrs.i[MATMUL_TRANSPOSE_A], tb = n->attrs.i[MATMUL_TRANSPOSE_B];
    const int act = (int)n->attrs.i[MATMUL_ACTIVATION];
    const kr_value a = n->in[MATMUL_A], b = n->in[MATMUL_B], bias = n->in[MATMUL_BIAS], y = n->out[MATMUL_Y];
    const bool has_residual = n->in[MATMUL_RESIDUAL].id != 0;
    kr_value dy = dout[MATMUL_Y];
    const kr_shape sa = kr_value_shape(g, a), sb = kr_value_shape(g, b);
    if (has_residual) din[MATMUL_RESIDUAL] = dy;
    if (act) { // what the activation saw was never stored, so where the derivative needs it, multiply again
        kr_attrs linear = n->attrs;
        linear.i[MATMUL_ACTIVATION] = KR_ACT_NONE;
        const kr_value again[] = {a, b, bias, KR_NONE};
        const kr_value kept = activations[act].keeps_y ? y : kr_append(g, &kr_op_matmul, &linear, again, MATMUL_INPUTS);
        dy = kr_map(g, activations[act].grad, (kr_value[]){dy, kept}, 2, 0, 0);
    }
    const kr_value rows = as_matrix(g, dy);
    if (bias.id) din[MATMUL_BIAS] = kr_sum(g, rows, 0, false);
    const bool shared = sb.rank == 2 && sa.rank > 2;
    if (!ta) din[MATMUL_A] = product(g, n, dy, b, false, !tb);
    else if (!shared) din[MATMUL_A] = product(g, n, b, dy, tb, true);
    else din[MATMUL_A] = kr_transpose(g, product(g, n, dy, b, false, !tb), -1, -2);
    if (shared && ta) { // rows of a transposed batch cannot be strung together: one db per entry, then their sum
        const kr_value db = tb ? product(g, n, dy, a, true, true) : product(g, n, a, dy, false, false);
        din[MATMUL_B] = kr_sum_to(g, db, sb);
    } else {
        const kr_value left = shared ? as_matrix(g, a) : a, right = shared ? rows : dy;
        din[MATMUL_B] = tb ? product(g, n, right, left, true, ta) : product(g, n, left, right, !ta, false);
    }
}

static void matmul_cost(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs, double *flops,
                        double *bytes) {
    const int64_t k = in[MATMUL_A].dim[in[MATMUL_A].rank - (t->i[MATMUL_TRANSPOSE_A] ? 2 : 1)];
    const double count = (double)kr_shape_count(&out[0]);
    const int extra = (in[MATMUL_BIAS].rank >= 0) + (in[MATMUL_RESIDUAL].rank >= 0) +
                      (t->i[MATMUL_ACTIVATION] != KR_ACT_NONE);
    *flops = count * (2.0 * (double)k + extra);
    double elements = count;
    for (int i = 0; i < inputs; i++) elements += in[i].rank >= 0 ? (double)kr_shape_count(&in[i]) : 0;
    *bytes = 4 * elements;
}

const kr_op kr_op_matmul = {
    .name = "matmul",
    .inputs = MATMUL_INPUTS,
    .outputs = MATMUL_OUTPUTS,
    .zero_absent = 1 << MATMUL_BIAS | 1 << MATMUL_RESIDUAL,
    .added = 1 + MATMUL_RESIDUAL,
    .activations = activation_names,
    .activation = MATMUL_ACTIVATION,
    .keeps_in = 1 << MATMUL_A | 1 << MATMUL_B | 1 << MATMUL_BIAS,
    .keeps_out = 1,
    .attr = {.i = {"transpose_a", "transpose_b", "activation", "precision"}},
    .signature = &matmul_signature,
    .check = matmul_check,
    .grad = matmul_grad,
    .cost = matmul_cost,
};

kr_value(kr_matmul)(kr_graph *g, kr_value a, kr_value b, bool transpose_a, bool transpose_b, kr_value bias,
                    kr_value residual, int activation) {
    const kr_attrs t = {
        .i = {
            [MATMUL_TRANSPOSE_A] = transpose_a, [MATMUL_TRANSPOSE_B] = transpose_b, [MATMUL_ACTIVATION] = activation}};
    const bool split = activation && residual.id; // the residual comes after the activation: a node of its own
    const kr_value y = kr_append(g, &kr_op_matmul, &t, (kr_value[]){a, b, bias, split ? KR_NONE : residual},
                                 MATMUL_INPUTS);
    return split ? (kr_add)(g, y, residual) : y;
}

kr_value(kr_linear)(kr_graph *g, kr_value x, kr_value weight, kr_value bias) {
    const kr_shape s = kr_value_shape(g, x);
    if (!x.id || s.rank != 1) return (kr_matmul)(g, x, weight, false, true, bias, KR_NONE, KR_ACT_NONE);
    const kr_value y = (kr_matmul)(g, (kr_reshape)(g, x, KR_SHAPE(1, s.dim[0])), weight, false, true, bias, KR_NONE,
                                   KR_ACT_NONE);
    return (kr_reshape)(g, y, KR_SHAPE(kr_value_count(g, y)));
}
