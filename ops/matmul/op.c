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
#include "ops/cpu/kernels.h"

#include <limits.h>
#include <string.h>

KR_KERNEL_DECLARE(matmul)

extern const kr_op kr_op_matmul;

enum { TRANSPOSE_A, TRANSPOSE_B, ACTIVATION, PRECISION };
enum { PRECISIONS = 3 };
enum { A, B, BIAS, RESIDUAL };

/// The gradient op of each activation, act_grad(dy, kept), and whether it keeps y = act(x) or x itself.
static const struct activation {
    const char *grad;
    bool keeps_y;
} activations[] = {{0, false},           {"silu_grad", false},   {"relu_grad", true},
                   {"gelu_grad", false}, {"sigmoid_grad", true}, {"softplus_grad", false}};
enum { ACTIVATIONS = sizeof activations / sizeof *activations };
static const char *const activation_names[ACTIVATIONS] = {"silu", "relu", "gelu", "sigmoid", "softplus"};

static kr_status matmul_shape(const kr_attrs *t, const kr_shape *in, const kr_dtype *dtype, int inputs, kr_shape *out,
                              kr_dtype *out_dtype) {
    char text_a[160], text_b[160];
    const kr_shape *a = &in[A], *b = &in[B];
    for (int k = 0; k < inputs; k++)
        KR_FAIL_IF(in[k].rank >= 0 && dtype[k] != KR_F32, KR_BAD_SHAPE, "matmul: input %d is %s, want f32", k,
                   kr_dtype_name(dtype[k]));
    KR_FAIL_IF((t->i[TRANSPOSE_A] | t->i[TRANSPOSE_B]) & ~1ll, KR_BAD_ARGUMENT,
               "matmul: transpose_a and transpose_b are %lld and %lld, want 0 or 1", (long long)t->i[TRANSPOSE_A],
               (long long)t->i[TRANSPOSE_B]);
    KR_FAIL_IF(t->i[ACTIVATION] < 0 || t->i[ACTIVATION] >= ACTIVATIONS, KR_BAD_ARGUMENT,
               "matmul: activation is %lld, want 0 to %d", (long long)t->i[ACTIVATION], ACTIVATIONS - 1);
    KR_FAIL_IF(t->i[PRECISION] < 0 || t->i[PRECISION] >= PRECISIONS, KR_BAD_ARGUMENT,
               "matmul: precision is %lld, want 0 (f32), 1 (bf16) or 2 (bf16 emulated)", (long long)t->i[PRECISION]);
    KR_FAIL_IF(t->i[ACTIVATION] && in[RESIDUAL].rank >= 0, KR_BAD_ARGUMENT,
               "matmul: a node has either an activation or a residual, not both");
    KR_FAIL_IF(a->rank < 2 || b->rank < 2, KR_BAD_SHAPE, "matmul: a is %s and b is %s, want at least two axes each",
               kr_shape_text(a, text_a), kr_shape_text(b, text_b));
    const int64_t *da = a->dim + a->rank - 2, *db = b->dim + b->rank - 2;
    const int64_t m = da[t->i[TRANSPOSE_A]], k = da[!t->i[TRANSPOSE_A]];
    const int64_t kb = db[t->i[TRANSPOSE_B]], n = db[!t->i[TRANSPOSE_B]];
    const bool leading = b->rank == 2 ||
                         (a->rank == b->rank && !memcmp(a->dim, b->dim, (size_t)(a->rank - 2) * sizeof *a->dim));
    KR_FAIL_IF(
        k != kb || !leading, KR_BAD_SHAPE,
        "matmul: a%s is %s and b%s is %s, want [..., M, K] and [..., K, N] with the same K and leading axes (or no "
        "leading axes in b)",
        t->i[TRANSPOSE_A] ? " transposed" : "", kr_shape_text(a, text_a), t->i[TRANSPOSE_B] ? " transposed" : "",
        kr_shape_text(b, text_b));
    KR_FAIL_IF(k > INT_MAX || n > INT_MAX || m > INT_MAX, KR_BAD_SHAPE, "matmul: %lld by %lld by %lld is too large",
               (long long)m, (long long)n, (long long)k);
    out[0] = *a;
    out[0].dim[a->rank - 2] = m;
    out[0].dim[a->rank - 1] = n;
    out_dtype[0] = KR_F32;
    KR_FAIL_IF(in[BIAS].rank >= 0 && (in[BIAS].rank != 1 || in[BIAS].dim[0] != n), KR_BAD_SHAPE,
               "matmul: bias is %s, want [%lld]", kr_shape_text(&in[BIAS], text_a), (long long)n);
    KR_FAIL_IF(in[RESIDUAL].rank >= 0 && !kr_shape_equal(&in[RESIDUAL], &out[0]), KR_BAD_SHAPE,
               "matmul: residual is %s, want %s", kr_shape_text(&in[RESIDUAL], text_a), kr_shape_text(&out[0], text_b));
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
    const kr_attrs t = {.i = {[TRANSPOSE_A] = ta, [TRANSPOSE_B] = tb, [PRECISION] = like->attrs.i[PRECISION]}};
    return kr_append(g, &kr_op_matmul, &t, (kr_value[]){a, b, KR_NONE, KR_NONE}, 4);
}

static void matmul_grad(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *din) {
    const bool ta = n->attrs.i[TRANSPOSE_A], tb = n->attrs.i[TRANSPOSE_B];
    const int act = (int)n->attrs.i[ACTIVATION];
    const kr_value a = n->in[A], b = n->in[B], bias = n->in[BIAS], y = n->out[0];
    const bool has_residual = n->in[RESIDUAL].id != 0;
    kr_value dy = dout[0];
    const kr_shape sa = kr_value_shape(g, a), sb = kr_value_shape(g, b);
    if (has_residual) din[RESIDUAL] = dy;
    if (act) { // what the activation saw was never stored, so where the derivative needs it, multiply again
        kr_attrs linear = n->attrs;
        linear.i[ACTIVATION] = KR_ACT_NONE;
        const kr_value again[] = {a, b, bias, KR_NONE};
        const kr_value kept = activations[act].keeps_y ? y : kr_append(g, &kr_op_matmul, &linear, again, 4);
        dy = kr_map(g, activations[act].grad, (kr_value[]){dy, kept}, 2, 0, 0);
    }
    const kr_value rows = as_matrix(g, dy);
    if (bias.id) din[BIAS] = kr_sum(g, rows, 0, false);
    const bool shared = sb.rank == 2 && sa.rank > 2;
    if (!ta) din[A] = product(g, n, dy, b, false, !tb);
    else if (!shared) din[A] = product(g, n, b, dy, tb, true);
    else din[A] = kr_transpose(g, product(g, n, dy, b, false, !tb), -1, -2);
    if (shared && ta) { // rows of a transposed batch cannot be strung together: one db per entry, then their sum
        const kr_value db = tb ? product(g, n, dy, a, true, true) : product(g, n, a, dy, false, false);
        din[B] = kr_sum_to(g, db, sb);
    } else {
        const kr_value left = shared ? as_matrix(g, a) : a, right = shared ? rows : dy;
        din[B] = tb ? product(g, n, right, left, true, ta) : product(g, n, left, right, !ta, false);
    }
}

static void matmul_cost(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs, double *flops,
                        double *bytes) {
    const int64_t k = in[A].dim[in[A].rank - (t->i[TRANSPOSE_A] ? 2 : 1)];
    const double count = (double)kr_shape_count(&out[0]);
    const int extra = (in[BIAS].rank >= 0) + (in[RESIDUAL].rank >= 0) + (t->i[ACTIVATION] != KR_ACT_NONE);
    *flops = count * (2.0 * (double)k + extra);
    double elements = count;
    for (int i = 0; i < inputs; i++) elements += in[i].rank >= 0 ? (double)kr_shape_count(&in[i]) : 0;
    *bytes = 4 * elements;
}

static const kr_stage matmul_stages[] = {KR_STAGE(matmul)};

const kr_op kr_op_matmul = {
    .name = "matmul", .inputs = 4, .outputs = 1, .optional = 1 << BIAS | 1 << RESIDUAL,
    .zero_absent = 1 << BIAS | 1 << RESIDUAL, .added = 1 + RESIDUAL, .activations = activation_names,
    .activation = ACTIVATION, .keeps_in = 1 << A | 1 << B | 1 << BIAS, .keeps_out = 1,
    .attr = {.i = {"transpose_a", "transpose_b", "activation", "precision"}}, .shape = matmul_shape,
    .grad = matmul_grad, .cost = matmul_cost,
};
KR_CPU(matmul,
    .rows_in = 1 << A | 1 << B | 1 << RESIDUAL, .rows_out = 1, .inplace = {1 << RESIDUAL},
    .fuses = KR_FUSES_ADDEND | KR_FUSES_ACTIVATION, KR_STAGES(matmul_stages))

kr_value(kr_matmul)(kr_graph *g, kr_value a, kr_value b, bool transpose_a, bool transpose_b, kr_value bias,
                    kr_value residual, int activation) {
    const kr_attrs t = {.i = {[TRANSPOSE_A] = transpose_a, [TRANSPOSE_B] = transpose_b, [ACTIVATION] = activation}};
    const bool split = activation && residual.id; // the residual comes after the activation: a node of its own
    const kr_value y = kr_append(g, &kr_op_matmul, &t, (kr_value[]){a, b, bias, split ? KR_NONE : residual}, 4);
    return split ? (kr_add)(g, y, residual) : y;
}

kr_value(kr_linear)(kr_graph *g, kr_value x, kr_value weight, kr_value bias) {
    const kr_shape s = kr_value_shape(g, x);
    if (!x.id || s.rank != 1) return (kr_matmul)(g, x, weight, false, true, bias, KR_NONE, KR_ACT_NONE);
    const kr_value y = (kr_matmul)(g, (kr_reshape)(g, x, KR_SHAPE(1, s.dim[0])), weight, false, true, bias, KR_NONE,
                                   KR_ACT_NONE);
    return (kr_reshape)(g, y, KR_SHAPE(kr_value_count(g, y)));
}
