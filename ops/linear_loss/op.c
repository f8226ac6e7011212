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
/// of rows of logits at a time, overwritten by their gradient, which is multiplied into dx and dW and then dropped.
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
#include "ops/graph/internal.h"
#include "ops/graph/signature.h"
#include "ops/linear_loss/args.h"
#include "ops/linear_loss/rounds.h"
#include "ops/softmax/args.h"

static const kr_signature linear_cross_entropy_signature = {
    .in = {[LINEAR_LOSS_X] = {"x", "... D"},
           [LINEAR_LOSS_WEIGHT] = {"weight", "V D"},
           [LINEAR_LOSS_TARGETS] = {"targets", "...", .dtype = KR_I32}},
    .out = {[LINEAR_LOSS_LOSS] = {"loss", "1"},
            [LINEAR_LOSS_PER_TOKEN] = {"per_token", "..."},
            [LINEAR_LOSS_LSE] = {"lse", "..."},
            [LINEAR_LOSS_DX] = {"dx", "... D"},
            [LINEAR_LOSS_DWEIGHT] = {"dweight", "V D"}},
    .i = {[LINEAR_LOSS_VALID_VOCAB] = KR_AT_LEAST(0),
          [LINEAR_LOSS_PRECISION] = KR_BETWEEN(0, 2),
          [LINEAR_LOSS_ROWS] = KR_AT_LEAST(0)},
};

static kr_status check_vocabulary(const kr_op *op, const kr_attrs *t, const kr_shape *in, kr_letters *l) {
    const int64_t V = kr_letter(l, "V"), valid = t->i[LINEAR_LOSS_VALID_VOCAB];
    (void)in;
    KR_FAIL_IF(valid > V, KR_BAD_ARGUMENT, "%s: valid_vocab is %lld, want 0 to %lld", op->name, (long long)valid,
               (long long)V);
    return KR_OK;
}

/// [..., D] as [rows, D].
static kr_value as_rows(kr_graph *g, kr_value v, int64_t rows, int64_t cols) {
    return kr_reshape(g, v, KR_SHAPE(rows, cols));
}

/// What per_token and lse are wanted for besides the loss is rare (a penalty on lse), and holds all logits.
static void from_all_logits(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *dx, kr_value *dweight) {
    const kr_shape s = kr_value_shape(g, n->in[LINEAR_LOSS_X]);
    const int64_t rows = kr_value_count(g, n->in[LINEAR_LOSS_TARGETS]), D = s.dim[s.rank - 1];
    const int64_t V = kr_value_shape(g, n->in[LINEAR_LOSS_WEIGHT]).dim[0];
    kr_shape wide = s;
    wide.dim[s.rank - 1] = V;
    const kr_value x = as_rows(g, n->in[LINEAR_LOSS_X], rows, D);
    const kr_value logits = kr_reshape(g, kr_linear(g, x, n->in[LINEAR_LOSS_WEIGHT], KR_NONE), wide);
    const kr_value in[CROSS_ENTROPY_GRAD_INPUTS] = {[CROSS_ENTROPY_GRAD_LOGITS] = logits,
                                                    [CROSS_ENTROPY_GRAD_TARGETS] = n->in[LINEAR_LOSS_TARGETS],
                                                    [CROSS_ENTROPY_GRAD_LSE] = n->out[LINEAR_LOSS_LSE],
                                                    [CROSS_ENTROPY_GRAD_DPER_TOKEN] = dout[LINEAR_LOSS_PER_TOKEN],
                                                    [CROSS_ENTROPY_GRAD_DLSE] = dout[LINEAR_LOSS_LSE]};
    const kr_attrs valid = {.i = {[CROSS_ENTROPY_VALID_VOCAB] = n->attrs.i[LINEAR_LOSS_VALID_VOCAB]}};
    const kr_value all = kr_append(g, kr_op_find("cross_entropy_grad"), &valid, in, CROSS_ENTROPY_GRAD_INPUTS);
    const kr_value dlogits = as_rows(g, all, rows, V);
    *dx = kr_reshape(g, kr_matmul(g, dlogits, n->in[LINEAR_LOSS_WEIGHT], false, false, KR_NONE, KR_NONE, KR_ACT_NONE),
                     s);
    *dweight = kr_matmul(g, dlogits, x, true, false, KR_NONE, KR_NONE, KR_ACT_NONE);
}

static void linear_cross_entropy_derivative(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *din) {
    if (dout[LINEAR_LOSS_LOSS].id) {
        din[LINEAR_LOSS_X] = kr_mul(g, n->out[LINEAR_LOSS_DX], dout[LINEAR_LOSS_LOSS]);
        din[LINEAR_LOSS_WEIGHT] = kr_mul(g, n->out[LINEAR_LOSS_DWEIGHT], dout[LINEAR_LOSS_LOSS]);
    }
    if (!dout[LINEAR_LOSS_PER_TOKEN].id && !dout[LINEAR_LOSS_LSE].id) return;
    kr_value dx, dweight;
    from_all_logits(g, n, dout, &dx, &dweight);
    din[LINEAR_LOSS_X] = din[LINEAR_LOSS_X].id ? kr_add(g, din[LINEAR_LOSS_X], dx) : dx;
    din[LINEAR_LOSS_WEIGHT] = din[LINEAR_LOSS_WEIGHT].id ? kr_add(g, din[LINEAR_LOSS_WEIGHT], dweight) : dweight;
}

/// One product for the logits and one for each gradient that is wanted; 8 for an exponential and 4 around it.
static void linear_cross_entropy_cost(const kr_attrs *attrs, const kr_shape *in, const kr_shape *out, int inputs,
                                      double *flops, double *bytes) {
    (void)inputs;
    const double rows = (double)kr_shape_count(&in[LINEAR_LOSS_TARGETS]), V = (double)in[LINEAR_LOSS_WEIGHT].dim[0];
    const double D = (double)in[LINEAR_LOSS_WEIGHT].dim[1];
    const int dx = out[LINEAR_LOSS_DX].rank >= 0, dweight = out[LINEAR_LOSS_DWEIGHT].rank >= 0;
    const double rounds = (double)kr_linear_loss_rounds(kr_shape_count(&in[LINEAR_LOSS_TARGETS]),
                                                        attrs->i[LINEAR_LOSS_ROWS]);
    *flops = rows * V * (2 * D * (1 + dx + dweight) + 12);
    *bytes = 4 * (rows * D * (1 + dx + dweight) + rounds * V * D * (1 + dx + 2 * dweight));
}

const kr_op kr_op_linear_cross_entropy = {
    .name = "linear_cross_entropy",
    .inputs = LINEAR_LOSS_INPUTS,
    .outputs = LINEAR_LOSS_OUTPUTS,
    .keeps_in = BIT(LINEAR_LOSS_X) | BIT(LINEAR_LOSS_WEIGHT) | BIT(LINEAR_LOSS_TARGETS),
    .keeps_out = BIT(LINEAR_LOSS_LSE) | BIT(LINEAR_LOSS_DX) | BIT(LINEAR_LOSS_DWEIGHT),
    .attr = {.i = {"valid_vocab", "precision", "rows"}},
    .signature = &linear_cross_entropy_signature,
    .check = check_vocabulary,
    .grad = linear_cross_entropy_derivative,
    .cost = linear_cross_entropy_cost,
};

kr_value(kr_linear_cross_entropy)(kr_graph *g, kr_value x, kr_value weight, kr_value targets, int64_t valid_vocab,
                                  kr_value *per_token, kr_value *lse) {
    const kr_value loss = kr_append(g, &kr_op_linear_cross_entropy,
                                    &(kr_attrs){.i = {[LINEAR_LOSS_VALID_VOCAB] = valid_vocab}},
                                    (kr_value[]){x, weight, targets}, LINEAR_LOSS_INPUTS);
    if (per_token) *per_token = kr_sibling(g, loss, LINEAR_LOSS_PER_TOKEN);
    if (lse) *lse = kr_sibling(g, loss, LINEAR_LOSS_LSE);
    return loss;
}
