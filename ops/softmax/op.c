/// Softmax, and the mean token loss over logits.
#include "ops/graph/internal.h"

#include "ops/cpu/kernels.h"
#include "ops/softmax/softmax.h"

KR_KERNEL_DECLARE(softmax)
KR_KERNEL_DECLARE(softmax_grad)
KR_KERNEL_DECLARE(cross_entropy)
KR_KERNEL_DECLARE(cross_entropy_combine)
KR_KERNEL_DECLARE(cross_entropy_grad)

extern const kr_op kr_op_softmax_grad, kr_op_cross_entropy_grad;

// Softmax ---------------------------------------------------------------------------------------------------------

static kr_status softmax_shape(const kr_attrs *attrs, const kr_shape *in_shape, const kr_dtype *in_dtype, int inputs,
                               kr_shape *out_shape, kr_dtype *out_dtype) {
    (void)attrs;
    char text[160], want[160];
    for (int i = 0; i < inputs; i++)
        KR_FAIL_IF(in_dtype[i] != KR_F32 || in_shape[i].rank < 1 || !kr_shape_equal(&in_shape[i], &in_shape[0]),
                   KR_BAD_SHAPE, "softmax: input %d is %s %s, want f32 %s with an axis", i, kr_dtype_name(in_dtype[i]),
                   kr_shape_text(&in_shape[i], text), kr_shape_text(&in_shape[0], want));
    out_shape[0] = in_shape[0];
    out_dtype[0] = KR_F32;
    return KR_OK;
}

static void softmax_derivative(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *din) {
    din[0] = kr_append(g, &kr_op_softmax_grad, &(kr_attrs){0}, (kr_value[]){dout[0], n->out[0]}, 2);
}

static void softmax_cost(const kr_attrs *attrs, const kr_shape *in, const kr_shape *out, int inputs, double *flops,
                         double *bytes) {
    (void)attrs, (void)in;
    *flops = 5.0 * (double)kr_shape_count(&out[0]);
    *bytes = 4.0 * (inputs + 1) * (double)kr_shape_count(&out[0]);
}

static const kr_stage softmax_stages[] = {KR_STAGE(softmax)};
const kr_op kr_op_softmax = {
    .name = "softmax", .inputs = 1, .outputs = 1, .keeps_out = 1, .shape = softmax_shape, .grad = softmax_derivative,
    .cost = softmax_cost,
};
KR_CPU(softmax,
    .rows_in = 1, .rows_out = 1, .inplace = {1}, KR_STAGES(softmax_stages))
static const kr_stage softmax_grad_stages[] = {KR_STAGE(softmax_grad)};
const kr_op kr_op_softmax_grad = {
    .name = "softmax_grad", .inputs = 2, .outputs = 1, .flags = KR_OP_NO_GRADIENT, .shape = softmax_shape,
    .cost = softmax_cost,
};
KR_CPU(softmax_grad,
    .rows_in = 3, .rows_out = 1, .inplace = {3}, KR_STAGES(softmax_grad_stages))

kr_value(kr_softmax)(kr_graph *g, kr_value x) { return kr_append(g, &kr_op_softmax, &(kr_attrs){0}, &x, 1); }

// Cross-entropy ---------------------------------------------------------------------------------------------------

/// logits [..., V] and targets [...] fit; *rows is the shape of the targets.
static kr_status check_logits(const char *op, const kr_attrs *attrs, const kr_shape *in_shape, const kr_dtype *in_dtype,
                              kr_shape *rows) {
    char text[160], want[160];
    KR_FAIL_IF(in_dtype[0] != KR_F32 || in_shape[0].rank < 1, KR_BAD_SHAPE, "%s: logits are %s %s, want f32 [..., V]",
               op, kr_dtype_name(in_dtype[0]), kr_shape_text(&in_shape[0], text));
    *rows = in_shape[0];
    rows->rank--;
    KR_FAIL_IF(in_dtype[1] != KR_I32 || !kr_shape_equal(&in_shape[1], rows), KR_BAD_SHAPE,
               "%s: targets are %s %s, want i32 %s", op, kr_dtype_name(in_dtype[1]), kr_shape_text(&in_shape[1], text),
               kr_shape_text(rows, want));
    const int64_t V = in_shape[0].dim[in_shape[0].rank - 1];
    KR_FAIL_IF(attrs->i[0] < 0 || attrs->i[0] > V, KR_BAD_ARGUMENT, "%s: valid_vocab is %ld, want 0 to %ld", op,
               (long)attrs->i[0], (long)V);
    return KR_OK;
}

static kr_status cross_entropy_shape(const kr_attrs *attrs, const kr_shape *in_shape, const kr_dtype *in_dtype,
                                     int inputs, kr_shape *out_shape, kr_dtype *out_dtype) {
    (void)inputs;
    KR_TRY(check_logits("cross_entropy", attrs, in_shape, in_dtype, &out_shape[1]));
    out_shape[0] = KR_SHAPE(1);
    out_shape[2] = out_shape[1];
    out_dtype[0] = out_dtype[1] = out_dtype[2] = KR_F32;
    return KR_OK;
}

static void cross_entropy_derivative(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *din) {
    const kr_value in[] = {n->in[0], n->in[1], n->out[2], dout[0], dout[1], dout[2]};
    din[0] = kr_append(g, &kr_op_cross_entropy_grad, &n->attrs, in, 6);
}

static void cross_entropy_cost(const kr_attrs *attrs, const kr_shape *in, const kr_shape *out, int inputs,
                               double *flops, double *bytes) {
    (void)attrs, (void)out, (void)inputs;
    *flops = 4.0 * (double)kr_shape_count(&in[0]);
    *bytes = 4.0 * (double)kr_shape_count(&in[0]);
}

static size_t cross_entropy_work(const kr_attrs *attrs, const kr_shape *in, const kr_shape *out, int inputs) {
    (void)attrs, (void)out, (void)inputs;
    return (size_t)kr_loss_blocks(kr_shape_count(&in[1])) * sizeof(kr_loss_partial);
}

static const kr_stage cross_entropy_stages[] = {KR_STAGE(cross_entropy), KR_STAGE(cross_entropy_combine)};
const kr_op kr_op_cross_entropy = {
    .name = "cross_entropy", .inputs = 2, .outputs = 3, .keeps_in = 3, .keeps_out = 4, .attr = {.i = {"valid_vocab"}},
    .shape = cross_entropy_shape, .grad = cross_entropy_derivative, .cost = cross_entropy_cost,
};
KR_CPU(cross_entropy,
    .rows_in = 1, .skip_out = 6, .work = cross_entropy_work, KR_STAGES(cross_entropy_stages))

kr_value(kr_cross_entropy)(kr_graph *g, kr_value logits, kr_value targets, int64_t valid_vocab, kr_value *per_token,
                           kr_value *lse) {
    const kr_value loss = kr_append(g, &kr_op_cross_entropy, &(kr_attrs){.i = {valid_vocab}},
                                    (kr_value[]){logits, targets}, 2);
    if (per_token) *per_token = kr_sibling(g, loss, 1);
    if (lse) *lse = kr_sibling(g, loss, 2);
    return loss;
}

/// logits, targets, lse, dloss [1]?, dper_token [...]?, dlse [...]? to dlogits.
static kr_status cross_entropy_grad_shape(const kr_attrs *attrs, const kr_shape *in_shape, const kr_dtype *in_dtype,
                                          int inputs, kr_shape *out_shape, kr_dtype *out_dtype) {
    (void)inputs;
    kr_shape rows;
    char text[160];
    KR_TRY(check_logits("cross_entropy_grad", attrs, in_shape, in_dtype, &rows));
    static const int by_row[] = {2, 4, 5};
    for (int k = 0; k < 3; k++) {
        const kr_shape *s = &in_shape[by_row[k]];
        KR_FAIL_IF(s->rank >= 0 && (in_dtype[by_row[k]] != KR_F32 || !kr_shape_equal(s, &rows)), KR_BAD_SHAPE,
                   "cross_entropy_grad: input %d is %s, want one f32 for each target", by_row[k],
                   kr_shape_text(s, text));
    }
    KR_FAIL_IF(in_shape[3].rank >= 0 && kr_shape_count(&in_shape[3]) != 1, KR_BAD_SHAPE,
               "cross_entropy_grad: dloss is %s, want [1]", kr_shape_text(&in_shape[3], text));
    out_shape[0] = in_shape[0];
    out_dtype[0] = KR_F32;
    return KR_OK;
}

static void cross_entropy_grad_cost(const kr_attrs *attrs, const kr_shape *in, const kr_shape *out, int inputs,
                                    double *flops, double *bytes) {
    (void)attrs, (void)in, (void)inputs;
    *flops = 4.0 * (double)kr_shape_count(&out[0]);
    *bytes = 8.0 * (double)kr_shape_count(&out[0]);
}

static const kr_stage cross_entropy_grad_stages[] = {KR_STAGE(cross_entropy_grad)};
const kr_op kr_op_cross_entropy_grad = {
    .name = "cross_entropy_grad", .inputs = 6, .outputs = 1, .flags = KR_OP_NO_GRADIENT, .optional = 7u << 3,
    .attr = {.i = {"valid_vocab"}}, .shape = cross_entropy_grad_shape, .cost = cross_entropy_grad_cost,
};
KR_CPU(cross_entropy_grad,
    .rows_in = 1, .rows_out = 1, .inplace = {1}, KR_STAGES(cross_entropy_grad_stages))
