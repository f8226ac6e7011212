/// Softmax, and the mean token loss over logits.
#include "ops/graph/internal.h"
#include "ops/graph/signature.h"
#include "ops/softmax/args.h"

extern const kr_op kr_op_softmax_grad, kr_op_cross_entropy_grad;

// Softmax ---------------------------------------------------------------------------------------------------------

static const kr_signature softmax_signature = {.in = {[SOFTMAX_X] = {"x", "... V"}},
                                               .out = {[SOFTMAX_Y] = {"y", "... V"}}};
static const kr_signature softmax_grad_signature = {
    .in = {[SOFTMAX_GRAD_DY] = {"dy", "... V"}, [SOFTMAX_GRAD_Y] = {"y", "... V"}},
    .out = {[SOFTMAX_GRAD_DX] = {"dx", "... V"}},
};

static void softmax_derivative(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *din) {
    din[0] = kr_append(g, &kr_op_softmax_grad, &(kr_attrs){0}, (kr_value[]){dout[0], n->out[0]}, 2);
}

static void softmax_cost(const kr_attrs *attrs, const kr_shape *in, const kr_shape *out, int inputs, double *flops,
                         double *bytes) {
    (void)attrs, (void)in;
    *flops = 5.0 * (double)kr_shape_count(&out[0]);
    *bytes = 4.0 * (inputs + 1) * (double)kr_shape_count(&out[0]);
}

const kr_op kr_op_softmax = {
    .name = "softmax",
    .inputs = 1,
    .outputs = 1,
    .keeps_out = 1,
    .signature = &softmax_signature,
    .grad = softmax_derivative,
    .cost = softmax_cost,
};
const kr_op kr_op_softmax_grad = {
    .name = "softmax_grad",
    .inputs = 2,
    .outputs = 1,
    .flags = KR_OP_NO_GRADIENT,
    .signature = &softmax_grad_signature,
    .cost = softmax_cost,
};

kr_value(kr_softmax)(kr_graph *g, kr_value x) { return kr_append(g, &kr_op_softmax, &(kr_attrs){0}, &x, 1); }

// Cross-entropy ---------------------------------------------------------------------------------------------------

static const kr_signature cross_entropy_signature = {
    .in = {[CROSS_ENTROPY_LOGITS] = {"logits", "... V"}, [CROSS_ENTROPY_TARGETS] = {"targets", "...", .dtype = KR_I32}},
    .out = {[CROSS_ENTROPY_LOSS] = {"loss", "1"},
            [CROSS_ENTROPY_PER_TOKEN] = {"per_token", "..."},
            [CROSS_ENTROPY_LSE] = {"lse", "..."}},
    .i = {[CROSS_ENTROPY_VALID_VOCAB] = KR_AT_LEAST(0)},
};
static const kr_signature cross_entropy_grad_signature = {
    .in = {[CROSS_ENTROPY_GRAD_LOGITS] = {"logits", "... V"},
           [CROSS_ENTROPY_GRAD_TARGETS] = {"targets", "...", .dtype = KR_I32},
           [CROSS_ENTROPY_GRAD_LSE] = {"lse", "..."},
           [CROSS_ENTROPY_GRAD_DLOSS] = {"dloss", "1", KR_OPTIONAL},
           [CROSS_ENTROPY_GRAD_DPER_TOKEN] = {"dper_token", "...", KR_OPTIONAL},
           [CROSS_ENTROPY_GRAD_DLSE] = {"dlse", "...", KR_OPTIONAL}},
    .out = {[CROSS_ENTROPY_GRAD_DLOGITS] = {"dlogits", "... V"}},
    .i = {[CROSS_ENTROPY_VALID_VOCAB] = KR_AT_LEAST(0)},
};

static kr_status check_vocabulary(const kr_op *op, const kr_attrs *t, const kr_shape *in, kr_letters *l) {
    const int64_t V = kr_letter(l, "V"), valid = t->i[CROSS_ENTROPY_VALID_VOCAB];
    (void)in;
    KR_FAIL_IF(valid > V, KR_BAD_ARGUMENT, "%s: valid_vocab is %lld, want 0 to %lld", op->name, (long long)valid,
               (long long)V);
    return KR_OK;
}

static void cross_entropy_derivative(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *din) {
    const kr_value in[CROSS_ENTROPY_GRAD_INPUTS] = {[CROSS_ENTROPY_GRAD_LOGITS] = n->in[CROSS_ENTROPY_LOGITS],
                                                    [CROSS_ENTROPY_GRAD_TARGETS] = n->in[CROSS_ENTROPY_TARGETS],
                                                    [CROSS_ENTROPY_GRAD_LSE] = n->out[CROSS_ENTROPY_LSE],
                                                    [CROSS_ENTROPY_GRAD_DLOSS] = dout[CROSS_ENTROPY_LOSS],
                                                    [CROSS_ENTROPY_GRAD_DPER_TOKEN] = dout[CROSS_ENTROPY_PER_TOKEN],
                                                    [CROSS_ENTROPY_GRAD_DLSE] = dout[CROSS_ENTROPY_LSE]};
    din[CROSS_ENTROPY_LOGITS] = kr_append(g, &kr_op_cross_entropy_grad, &n->attrs, in, CROSS_ENTROPY_GRAD_INPUTS);
}

static void cross_entropy_cost(const kr_attrs *attrs, const kr_shape *in, const kr_shape *out, int inputs,
                               double *flops, double *bytes) {
    (void)attrs, (void)out, (void)inputs;
    *flops = 4.0 * (double)kr_shape_count(&in[CROSS_ENTROPY_LOGITS]);
    *bytes = 4.0 * (double)kr_shape_count(&in[CROSS_ENTROPY_LOGITS]);
}

const kr_op kr_op_cross_entropy = {
    .name = "cross_entropy",
    .inputs = 2,
    .outputs = 3,
    .keeps_in = 3,
    .keeps_out = 4,
    .attr = {.i = {"valid_vocab"}},
    .signature = &cross_entropy_signature,
    .check = check_vocabulary,
    .grad = cross_entropy_derivative,
    .cost = cross_entropy_cost,
};

kr_value(kr_cross_entropy)(kr_graph *g, kr_value logits, kr_value targets, int64_t valid_vocab, kr_value *per_token,
                           kr_value *lse) {
    const kr_value loss = kr_append(g, &kr_op_cross_entropy,
                                    &(kr_attrs){.i = {[CROSS_ENTROPY_VALID_VOCAB] = valid_vocab}},
                                    (kr_value[]){logits, targets}, CROSS_ENTROPY_INPUTS);
    if (per_token) *per_token = kr_sibling(g, loss, CROSS_ENTROPY_PER_TOKEN);
    if (lse) *lse = kr_sibling(g, loss, CROSS_ENTROPY_LSE);
    return loss;
}

static void cross_entropy_grad_cost(const kr_attrs *attrs, const kr_shape *in, const kr_shape *out, int inputs,
                                    double *flops, double *bytes) {
    (void)attrs, (void)in, (void)inputs;
    *flops = 4.0 * (double)kr_shape_count(&out[0]);
    *bytes = 8.0 * (double)kr_shape_count(&out[0]);
}

const kr_op kr_op_cross_entropy_grad = {
    .name = "cross_entropy_grad",
    .inputs = 6,
    .outputs = 1,
    .flags = KR_OP_NO_GRADIENT,
    .attr = {.i = {"valid_vocab"}},
    .signature = &cross_entropy_grad_signature,
    .check = check_vocabulary,
    .cost = cross_entropy_grad_cost,
};
