/// Rows of a table by index, and the gradient that adds them back.
#include "ops/graph/internal.h"

#include "ops/cpu/kernels.h"

KR_KERNEL_DECLARE(embedding)
KR_KERNEL_DECLARE(embedding_grad)

extern const kr_op kr_op_embedding_grad;

static kr_status embedding_shape(const kr_attrs *attrs, const kr_shape *in_shape, const kr_dtype *in_dtype, int inputs,
                                 kr_shape *out_shape, kr_dtype *out_dtype) {
    (void)attrs, (void)inputs;
    char text[160];
    KR_FAIL_IF(in_shape[0].rank != 2 || in_dtype[0] != KR_F32, KR_BAD_SHAPE,
               "embedding: weight is %s %s, want f32 [V, D]", kr_dtype_name(in_dtype[0]),
               kr_shape_text(&in_shape[0], text));
    KR_FAIL_IF(in_dtype[1] != KR_I32 || in_shape[1].rank >= KR_MAX_RANK, KR_BAD_SHAPE,
               "embedding: ids are %s %s, want i32 of rank at most %d", kr_dtype_name(in_dtype[1]),
               kr_shape_text(&in_shape[1], text), KR_MAX_RANK - 1);
    out_shape[0] = in_shape[1];
    out_shape[0].dim[out_shape[0].rank++] = in_shape[0].dim[1];
    out_dtype[0] = KR_F32;
    return KR_OK;
}

static void embedding_derivative(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *din) {
    const kr_value in[] = {n->in[1], dout[0], KR_NONE};
    din[0] = kr_append(g, &kr_op_embedding_grad, &(kr_attrs){.shape = kr_value_shape(g, n->in[0])}, in, 3);
}

static void embedding_cost(const kr_attrs *attrs, const kr_shape *in, const kr_shape *out, int inputs, double *flops,
                           double *bytes) {
    (void)attrs, (void)in, (void)inputs;
    *flops = 0;
    *bytes = 8.0 * (double)kr_shape_count(&out[0]);
}

static const kr_stage embedding_stages[] = {KR_STAGE(embedding)};
const kr_op kr_op_embedding = {
    .name = "embedding", .inputs = 2, .outputs = 1, .keeps_in = 1u << 1, .shape = embedding_shape,
    .grad = embedding_derivative, .cost = embedding_cost,
};
KR_CPU(embedding,
    .rows_in = 1u << 0, .rows_out = 1, KR_STAGES(embedding_stages))

kr_value(kr_embedding)(kr_graph *g, kr_value weight, kr_value ids) {
    return kr_append(g, &kr_op_embedding, &(kr_attrs){0}, (kr_value[]){weight, ids}, 2);
}

/// ids i32 [...], dy [..., D], accumulate [V, D]? to [V, D] = accumulate + sum of the rows of dy by id.
static kr_status embedding_grad_shape(const kr_attrs *attrs, const kr_shape *in_shape, const kr_dtype *in_dtype,
                                      int inputs, kr_shape *out_shape, kr_dtype *out_dtype) {
    (void)inputs;
    char text[160], want[160];
    kr_shape rows = in_shape[0];
    KR_FAIL_IF(attrs->shape.rank != 2, KR_BAD_SHAPE, "embedding_grad: shape is %s, want [V, D]",
               kr_shape_text(&attrs->shape, text));
    KR_FAIL_IF(in_dtype[0] != KR_I32 || rows.rank >= KR_MAX_RANK, KR_BAD_SHAPE,
               "embedding_grad: ids are %s %s, want i32", kr_dtype_name(in_dtype[0]), kr_shape_text(&rows, text));
    rows.dim[rows.rank++] = attrs->shape.dim[1];
    KR_FAIL_IF(in_dtype[1] != KR_F32 || !kr_shape_equal(&in_shape[1], &rows), KR_BAD_SHAPE,
               "embedding_grad: dy is %s %s, want f32 %s", kr_dtype_name(in_dtype[1]),
               kr_shape_text(&in_shape[1], text), kr_shape_text(&rows, want));
    KR_FAIL_IF(in_shape[2].rank >= 0 && (in_dtype[2] != KR_F32 || !kr_shape_equal(&in_shape[2], &attrs->shape)),
               KR_BAD_SHAPE, "embedding_grad: accumulate is %s, want f32 %s", kr_shape_text(&in_shape[2], text),
               kr_shape_text(&attrs->shape, want));
    out_shape[0] = attrs->shape;
    out_dtype[0] = KR_F32;
    return KR_OK;
}

static void embedding_grad_cost(const kr_attrs *attrs, const kr_shape *in, const kr_shape *out, int inputs,
                                double *flops, double *bytes) {
    (void)attrs, (void)inputs;
    *flops = (double)kr_shape_count(&in[1]);
    *bytes = 12.0 * (double)kr_shape_count(&in[1]) + 4.0 * (double)kr_shape_count(&out[0]);
}

static const kr_stage embedding_grad_stages[] = {KR_STAGE(embedding_grad)};
const kr_op kr_op_embedding_grad = {
    .name = "embedding_grad", .inputs = 3, .outputs = 1, .flags = KR_OP_NO_GRADIENT, .optional = 1u << 2,
    .zero_absent = 1u << 2, .added = 1 + 2, .attr = {.shape = "shape"}, .shape = embedding_grad_shape,
    .cost = embedding_grad_cost,
};
KR_CPU(embedding_grad,
    .rows_in = 1u << 1, .inplace = {1u << 2}, .fuses = KR_FUSES_ADDEND, KR_STAGES(embedding_grad_stages))
