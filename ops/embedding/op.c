/// Rows of a table by index, and the gradient that adds them back.
#include "ops/embedding/args.h"
#include "ops/graph/internal.h"
#include "ops/graph/signature.h"

extern const kr_op kr_op_embedding_grad;

static const kr_signature embedding_signature = {
    .in = {[EMBEDDING_WEIGHT] = {"weight", "V D"}, [EMBEDDING_IDS] = {"ids", "...", .dtype = KR_I32}},
    .out = {[EMBEDDING_Y] = {"y", "... D"}},
};
static const kr_signature embedding_grad_signature = {
    .in = {[EMBEDDING_GRAD_IDS] = {"ids", "...", .dtype = KR_I32},
           [EMBEDDING_GRAD_DY] = {"dy", "... D"},
           [EMBEDDING_GRAD_ACCUMULATE] = {"accumulate", "V D", KR_OPTIONAL}},
    .out = {[EMBEDDING_GRAD_DWEIGHT] = {"dweight", "V D"}}, // accumulate + sum of the rows of dy by id
};

static void embedding_derivative(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *din) {
    const kr_value in[EMBEDDING_GRAD_INPUTS] = {
        [EMBEDDING_GRAD_IDS] = n->in[EMBEDDING_IDS], [EMBEDDING_GRAD_DY] = dout[EMBEDDING_Y]};
    const kr_attrs t = {.shape = kr_value_shape(g, n->in[EMBEDDING_WEIGHT])};
    din[EMBEDDING_WEIGHT] = kr_append(g, &kr_op_embedding_grad, &t, in, EMBEDDING_GRAD_INPUTS);
}

static void embedding_cost(const kr_attrs *attrs, const kr_shape *in, const kr_shape *out, int inputs, double *flops,
                           double *bytes) {
    (void)attrs, (void)in, (void)inputs;
    *flops = 0;
    *bytes = 8.0 * (double)kr_shape_count(&out[0]);
}

const kr_op kr_op_embedding = {
    .name = "embedding",
    .inputs = 2,
    .outputs = 1,
    .keeps_in = 1u << EMBEDDING_IDS,
    .signature = &embedding_signature,
    .grad = embedding_derivative,
    .cost = embedding_cost,
};

kr_value(kr_embedding)(kr_graph *g, kr_value weight, kr_value ids) {
    return kr_append(g, &kr_op_embedding, &(kr_attrs){0}, (kr_value[]){weight, ids}, EMBEDDING_INPUTS);
}

/// V and D are those of the attribute `shape`.
static kr_status check_table(const kr_op *op, const kr_attrs *t, const kr_shape *in, kr_letters *l) {
    char text[160];
    (void)in;
    KR_FAIL_IF(t->shape.rank != 2 || t->shape.dim[0] < 0 || t->shape.dim[1] < 0, KR_BAD_SHAPE,
               "%s: shape is %s, want [V D]", op->name, kr_shape_text(&t->shape, text));
    KR_TRY(kr_letter_let(l, "V", t->shape.dim[0]));
    return kr_letter_let(l, "D", t->shape.dim[1]);
}

static void embedding_grad_cost(const kr_attrs *attrs, const kr_shape *in, const kr_shape *out, int inputs,
                                double *flops, double *bytes) {
    (void)attrs, (void)inputs;
    *flops = (double)kr_shape_count(&in[EMBEDDING_GRAD_DY]);
    *bytes = 12.0 * (double)kr_shape_count(&in[EMBEDDING_GRAD_DY]) + 4.0 * (double)kr_shape_count(&out[0]);
}

const kr_op kr_op_embedding_grad = {
    .name = "embedding_grad",
    .inputs = 3,
    .outputs = 1,
    .flags = KR_OP_NO_GRADIENT,
    .zero_absent = 1u << EMBEDDING_GRAD_ACCUMULATE,
    .added = 1 + EMBEDDING_GRAD_ACCUMULATE,
    .attr = {.shape = "shape"},
    .signature = &embedding_grad_signature,
    .check = check_table,
    .cost = embedding_grad_cost,
};
