/// The mean token loss of x weight^T, without the logits.
///
/// For T tokens, V words and width D the logits are T V floats, which for a large vocabulary is more than all else that
/// a training step keeps (1,024 tokens and 50,280 words: 206 MB, and as much again for their gradient). But each row of
/// the gradient depends on its own row of logits alone:
///
///   z_t = W x_t,   loss = 1/count sum_t (lse(z_t) - z_t[target_t]),   dz_t = (softmax(z_t) - onehot(target_t)) / count
///   dx_t = W^T dz_t,   dW = sum_t dz_t x_t^T
///
/// so the op makes the gradient together with the loss, as Hsu et al. 2024 (Liger Kernel, arXiv:2410.10989) do: a block
/// of rows of logits at a time, overwritten by their gradient, which is multiplied into dx and dW and then forgotten.
/// dx and dW are of the loss itself; the gradient rule scales them by dloss, which is 1 where the loss is what is
/// differentiated, and then nothing is left of it. Where nobody reads dx or dW, as in an evaluation, they are not made.
///
/// The rounds of the op are the blocks, its stages what all workers do to a block (kernels: cpu.c). That
/// takes three products, each of T V D multiply-adds, as the unfused graph does. The way without rounds, in which a
/// worker has a block of rows to itself, needs either a dW of its own for every worker (V D floats each) or a second
/// pass that multiplies the logits again for blocks of W, a fourth product.
///
/// With a precision of bf16 the operands of all three products are rounded, the gradient of the logits among them;
/// logits, losses and what is summed stay f32.
///
/// What one block costs besides arithmetic is reading W twice and reading and writing dW, so blocks are as large as
/// rounds.h and the target allow: with few words the logits stay in the caches, with many there are 32 MiB of them.
#include "ops/linear_loss/rounds.h"
#include "ops/graph/internal.h"
#include "ops/cpu/kernels.h"

KR_KERNEL_DECLARE(linear_cross_entropy_logits)
KR_KERNEL_DECLARE(linear_cross_entropy_rows)
KR_KERNEL_DECLARE(linear_cross_entropy_products)

enum { X, WEIGHT, TARGETS };
enum { VALID_VOCAB, PRECISION, ROWS }; // rows of logits in memory at a time
enum { PRECISIONS = 3 };
enum { LOSS, PER_TOKEN, LSE, DX, DWEIGHT, OUTPUTS };
#define BIT(i) (1u << (i))

static kr_status linear_cross_entropy_shape(const kr_attrs *attrs, const kr_shape *in, const kr_dtype *dtype,
                                            int inputs, kr_shape *out, kr_dtype *out_dtype) {
    (void)inputs;
    char text[160], want[160];
    KR_FAIL_IF(dtype[WEIGHT] != KR_F32 || in[WEIGHT].rank != 2, KR_BAD_SHAPE,
               "linear_cross_entropy: weight is %s %s, want f32 [V, D]", kr_dtype_name(dtype[WEIGHT]),
               kr_shape_text(&in[WEIGHT], text));
    const int64_t V = in[WEIGHT].dim[0], D = in[WEIGHT].dim[1];
    KR_FAIL_IF(dtype[X] != KR_F32 || in[X].rank < 1 || in[X].dim[in[X].rank - 1] != D, KR_BAD_SHAPE,
               "linear_cross_entropy: x is %s %s, want f32 [..., %lld]", kr_dtype_name(dtype[X]),
               kr_shape_text(&in[X], text), (long long)D);
    kr_shape rows = in[X];
    rows.rank--;
    KR_FAIL_IF(dtype[TARGETS] != KR_I32 || !kr_shape_equal(&in[TARGETS], &rows), KR_BAD_SHAPE,
               "linear_cross_entropy: targets are %s %s, want i32 %s", kr_dtype_name(dtype[TARGETS]),
               kr_shape_text(&in[TARGETS], text), kr_shape_text(&rows, want));
    KR_FAIL_IF(attrs->i[0] < 0 || attrs->i[0] > V, KR_BAD_ARGUMENT,
               "linear_cross_entropy: valid_vocab is %lld, want 0 to %lld", (long long)attrs->i[0], (long long)V);
    KR_FAIL_IF(attrs->i[1] < 0 || attrs->i[1] >= PRECISIONS, KR_BAD_ARGUMENT,
               "linear_cross_entropy: precision is %lld, want 0 (f32), 1 (bf16) or 2 (bf16 emulated)",
               (long long)attrs->i[1]);
    KR_FAIL_IF(attrs->i[ROWS] < 0, KR_BAD_ARGUMENT, "linear_cross_entropy: rows is %lld, want 1 or more, or 0 for the "
               "target's choice", (long long)attrs->i[ROWS]);
    out[LOSS] = KR_SHAPE(1);
    out[PER_TOKEN] = out[LSE] = rows;
    out[DX] = in[X];
    out[DWEIGHT] = in[WEIGHT];
    for (int k = 0; k < OUTPUTS; k++) out_dtype[k] = KR_F32;
    return KR_OK;
}

/// [..., D] as [rows, D].
static kr_value as_rows(kr_graph *g, kr_value v, int64_t rows, int64_t cols) {
    return kr_reshape(g, v, KR_SHAPE(rows, cols));
}

/// What per_token and lse are wanted for besides the loss is rare (a penalty on lse), and holds all logits.
static void from_all_logits(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *dx, kr_value *dweight) {
    const kr_shape s = kr_value_shape(g, n->in[X]);
    const int64_t rows = kr_value_count(g, n->in[TARGETS]), D = s.dim[s.rank - 1];
    const int64_t V = kr_value_shape(g, n->in[WEIGHT]).dim[0];
    kr_shape wide = s;
    wide.dim[s.rank - 1] = V;
    const kr_value x = as_rows(g, n->in[X], rows, D);
    const kr_value logits = kr_reshape(g, kr_linear(g, x, n->in[WEIGHT], KR_NONE), wide);
    const kr_value in[] = {logits, n->in[TARGETS], n->out[LSE], KR_NONE, dout[PER_TOKEN], dout[LSE]};
    const kr_attrs valid = {.i = {n->attrs.i[0]}};
    const kr_value all = kr_append(g, kr_op_find("cross_entropy_grad"), &valid, in, 6);
    const kr_value dlogits = as_rows(g, all, rows, V);
    *dx = kr_reshape(g, kr_matmul(g, dlogits, n->in[WEIGHT], false, false, KR_NONE, KR_NONE, KR_ACT_NONE), s);
    *dweight = kr_matmul(g, dlogits, x, true, false, KR_NONE, KR_NONE, KR_ACT_NONE);
}

static void linear_cross_entropy_derivative(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *din) {
    if (dout[LOSS].id) {
        din[X] = kr_mul(g, n->out[DX], dout[LOSS]);
        din[WEIGHT] = kr_mul(g, n->out[DWEIGHT], dout[LOSS]);
    }
    if (!dout[PER_TOKEN].id && !dout[LSE].id) return;
    kr_value dx, dweight;
    from_all_logits(g, n, dout, &dx, &dweight);
    din[X] = din[X].id ? kr_add(g, din[X], dx) : dx;
    din[WEIGHT] = din[WEIGHT].id ? kr_add(g, din[WEIGHT], dweight) : dweight;
}

/// One product for the logits and one for each gradient that is wanted; 8 for an exponential and 4 around it.
static void linear_cross_entropy_cost(const kr_attrs *attrs, const kr_shape *in, const kr_shape *out, int inputs,
                                      double *flops, double *bytes) {
    (void)inputs;
    const double rows = (double)kr_shape_count(&in[TARGETS]), V = (double)in[WEIGHT].dim[0];
    const double D = (double)in[WEIGHT].dim[1];
    const int dx = out[DX].rank >= 0, dweight = out[DWEIGHT].rank >= 0;
    const double rounds = (double)kr_linear_loss_rounds(kr_shape_count(&in[TARGETS]), attrs->i[ROWS]);
    *flops = rows * V * (2 * D * (1 + dx + dweight) + 12);
    *bytes = 4 * (rows * D * (1 + dx + dweight) + rounds * V * D * (1 + dx + 2 * dweight));
}

static size_t linear_cross_entropy_work(const kr_attrs *attrs, const kr_shape *in, const kr_shape *out, int inputs) {
    (void)out, (void)inputs;
    const int64_t V = in[WEIGHT].dim[0], each = attrs->i[ROWS];
    const int64_t losses = (each + 15) / 16 * 16;
    return sizeof(kr_linear_loss_head) + (size_t)(losses + each * kr_linear_loss_pitch(V)) * sizeof(float);
}

static int64_t linear_cross_entropy_rounds(const kr_attrs *attrs, const kr_shape *in, const kr_shape *out, int inputs) {
    (void)out, (void)inputs;
    return kr_linear_loss_rounds(kr_shape_count(&in[TARGETS]), attrs->i[ROWS]);
}

static kr_status linear_cross_entropy_specialise(const kr_target *target, kr_attrs *attrs, const kr_shape *in,
                                                 int inputs) {
    (void)inputs;
    const int64_t rows = kr_shape_count(&in[TARGETS]), most = (int64_t)(target->logits / sizeof(float));
    if (attrs->i[ROWS] > rows) attrs->i[ROWS] = rows;
    if (!attrs->i[ROWS]) attrs->i[ROWS] = kr_linear_loss_rows(rows, in[WEIGHT].dim[0], most);
    return KR_OK;
}

static const kr_stage stages[] = {KR_STAGE(linear_cross_entropy_logits), KR_STAGE(linear_cross_entropy_rows),
                                  KR_STAGE(linear_cross_entropy_products)};

const kr_op kr_op_linear_cross_entropy = {
    .name = "linear_cross_entropy", .inputs = 3, .outputs = OUTPUTS, .keeps_in = BIT(X) | BIT(WEIGHT) | BIT(TARGETS),
    .keeps_out = BIT(LSE) | BIT(DX) | BIT(DWEIGHT), .attr = {.i = {"valid_vocab", "precision", "rows"}},
    .shape = linear_cross_entropy_shape, .grad = linear_cross_entropy_derivative, .cost = linear_cross_entropy_cost,
};
KR_CPU(linear_cross_entropy,
    .rows_in = BIT(X) | BIT(WEIGHT), .rows_out = BIT(DX),
    .skip_out = BIT(PER_TOKEN) | BIT(LSE) | BIT(DX) | BIT(DWEIGHT), .work = linear_cross_entropy_work,
    .rounds = linear_cross_entropy_rounds,
    .specialise = linear_cross_entropy_specialise, KR_STAGES(stages))

kr_value(kr_linear_cross_entropy)(kr_graph *g, kr_value x, kr_value weight, kr_value targets, int64_t valid_vocab,
                                  kr_value *per_token, kr_value *lse) {
    const kr_value loss = kr_append(g, &kr_op_linear_cross_entropy, &(kr_attrs){.i = {valid_vocab}},
                                    (kr_value[]){x, weight, targets}, 3);
    if (per_token) *per_token = kr_sibling(g, loss, PER_TOKEN);
    if (lse) *lse = kr_sibling(g, loss, LSE);
    return loss;
}
