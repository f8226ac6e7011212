/// Rotary position embedding: pair i of every head rotates by position * base^(-2i/rotary_dim), so that the product of
/// a
/// query and a key depends on how far apart they are (docs/book/5-hybrids-and-memory.md). The gradient rotates back by
/// the same angles.
///
/// source Su et al. 2021, arXiv:2104.09864
#include "ops/graph/internal.h"
#include "ops/graph/signature.h"
#include "ops/rope/args.h"

static const kr_signature rope_signature = {
    .in = {[ROPE_X] = {"x", "B L heads*D"}, [ROPE_POSITION] = {"position", "1", KR_OPTIONAL, KR_I32}},
    .out = {[ROPE_Y] = {"y", "@x"}},
    .i = {[ROPE_HEADS] = KR_AT_LEAST(1)},
    .r = {[ROPE_BASE] = KR_BETWEEN(1, 1e30)},
};

static kr_status check_pairs(const kr_op *op, const kr_attrs *t, const kr_shape *in, kr_letters *l) {
    const int64_t rotary = t->i[ROPE_ROTARY_DIM], D = kr_letter(l, "D");
    (void)in;
    KR_FAIL_IF(rotary < 0 || rotary % 2 || rotary > D, KR_BAD_ARGUMENT,
               "%s: rotary_dim is %lld, want an even number up to the %lld coordinates of a head", op->name,
               (long long)rotary, (long long)D);
    return KR_OK;
}

static void rope_derivative(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *din) {
    kr_attrs t = n->attrs;
    t.i[ROPE_BACK] = !t.i[ROPE_BACK];
    din[ROPE_X] = kr_append(g, n->op, &t, (kr_value[]){dout[ROPE_Y], n->in[ROPE_POSITION]}, ROPE_INPUTS);
}

static void rope_cost(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs, double *flops,
                      double *bytes) {
    (void)out, (void)inputs;
    const double tokens = (double)(in[ROPE_X].dim[0] * in[ROPE_X].dim[1]);
    *flops = tokens * 3 * (double)(t->i[ROPE_HEADS] * t->i[ROPE_ROTARY_DIM]) +
             25 * (double)(in[ROPE_X].dim[1] * t->i[ROPE_ROTARY_DIM]);
    *bytes = 8 * (double)kr_shape_count(&in[ROPE_X]);
}

/// x, position?; `back` rotates by the negative angles: the gradient.
const kr_op kr_op_rope = {
    .name = "rope",
    .inputs = ROPE_INPUTS,
    .outputs = ROPE_OUTPUTS,
    .zero_absent = BIT(ROPE_POSITION),
    .keeps_in = BIT(ROPE_POSITION),
    .attr = {.i = {"heads", "rotary_dim", "interleaved", "back"}, .r = {"base"}},
    .signature = &rope_signature,
    .check = check_pairs,
    .grad = rope_derivative,
    .cost = rope_cost,
};

kr_value(kr_rope)(kr_graph *g, kr_value x, kr_value position, int64_t heads, int64_t rotary_dim, double base,
                  bool interleaved) {
    const kr_attrs t = {.i = {[ROPE_HEADS] = heads, [ROPE_ROTARY_DIM] = rotary_dim, [ROPE_INTERLEAVED] = interleaved},
                        .r = {[ROPE_BASE] = base}};
    return kr_append(g, &kr_op_rope, &t, (kr_value[]){x, position}, ROPE_INPUTS);
}
