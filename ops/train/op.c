/// Training ops: the global gradient norm and the AdamW update.
#include "ops/graph/internal.h"

#include "ops/cpu/kernels.h"
#include "ops/train/blocks.h"

KR_KERNEL_DECLARE(sq_norm)
KR_KERNEL_DECLARE(sq_norm_combine)
KR_KERNEL_DECLARE(adamw)

static kr_status sq_norm_shape(const kr_attrs *attrs, const kr_shape *in_shape, const kr_dtype *in_dtype, int inputs,
                               kr_shape *out_shape, kr_dtype *out_dtype) {
    (void)attrs, (void)in_shape;
    for (int i = 0; i < inputs; i++)
        KR_FAIL_IF(in_dtype[i] != KR_F32, KR_BAD_SHAPE, "sq_norm: input %d is %s, want f32", i,
                   kr_dtype_name(in_dtype[i]));
    out_shape[0] = KR_SHAPE(1);
    out_dtype[0] = KR_F32;
    return KR_OK;
}

static void sq_norm_cost(const kr_attrs *attrs, const kr_shape *in, const kr_shape *out, int inputs, double *flops,
                         double *bytes) {
    (void)attrs, (void)out;
    double elements = 0;
    for (int i = 0; i < inputs; i++) elements += (double)kr_shape_count(&in[i]);
    *flops = 2 * elements;
    *bytes = 4 * elements;
}

/// One double per block of every input.
static size_t sq_norm_work(const kr_attrs *attrs, const kr_shape *in, const kr_shape *out, int inputs) {
    (void)attrs, (void)out;
    int64_t blocks = 0;
    for (int i = 0; i < inputs; i++) blocks += kr_norm_blocks(kr_shape_count(&in[i]));
    return (size_t)blocks * sizeof(double);
}

static const kr_stage sq_norm_stages[] = {KR_STAGE(sq_norm), KR_STAGE(sq_norm_combine)};
const kr_op kr_op_sq_norm = {
    .name = "sq_norm", .inputs = 1, .outputs = 1, .flags = KR_OP_VARIADIC | KR_OP_NO_GRADIENT, .shape = sq_norm_shape,
    .cost = sq_norm_cost,
};
KR_CPU(sq_norm,
    .work = sq_norm_work, KR_STAGES(sq_norm_stages))

kr_value(kr_sq_norm)(kr_graph *g, const kr_value *values, int count) {
    return kr_append(g, &kr_op_sq_norm, &(kr_attrs){0}, values, count);
}

static kr_status adamw_shape(const kr_attrs *attrs, const kr_shape *in_shape, const kr_dtype *in_dtype, int inputs,
                             kr_shape *out_shape, kr_dtype *out_dtype) {
    (void)attrs, (void)inputs;
    static const char *const names[] = {"p", "g", "m", "v"};
    char want[160], got[160];
    for (int i = 0; i < 4; i++)
        KR_FAIL_IF(in_dtype[i] != KR_F32 || !kr_shape_equal(&in_shape[i], &in_shape[0]), KR_BAD_SHAPE,
                   "adamw: %s is %s %s, want f32 %s", names[i], kr_dtype_name(in_dtype[i]),
                   kr_shape_text(&in_shape[i], got), kr_shape_text(&in_shape[0], want));
    KR_FAIL_IF(kr_shape_count(&in_shape[4]) != 3 || in_dtype[4] != KR_F32, KR_BAD_SHAPE,
               "adamw: hyper is %s, want f32 [3]", kr_shape_text(&in_shape[4], got));
    KR_FAIL_IF(in_shape[5].rank >= 0 && (kr_shape_count(&in_shape[5]) != 1 || in_dtype[5] != KR_F32), KR_BAD_SHAPE,
               "adamw: sq_norm is %s, want f32 [1]", kr_shape_text(&in_shape[5], got));
    for (int k = 0; k < 3; k++) {
        out_shape[k] = in_shape[0];
        out_dtype[k] = KR_F32;
    }
    return KR_OK;
}

static void adamw_cost(const kr_attrs *attrs, const kr_shape *in, const kr_shape *out, int inputs, double *flops,
                       double *bytes) {
    (void)attrs, (void)out, (void)inputs;
    *flops = 14.0 * (double)kr_shape_count(&in[0]);
    *bytes = 28.0 * (double)kr_shape_count(&in[0]);
}

static const kr_stage adamw_stages[] = {KR_STAGE(adamw)};
const kr_op kr_op_adamw = {
    .name = "adamw", .inputs = 6, .outputs = 3, .flags = KR_OP_NO_GRADIENT, .optional = 1u << 5,
    .attr = {.r = {"beta1", "beta2", "eps", "weight_decay", "max_norm"}}, .shape = adamw_shape, .cost = adamw_cost,
};
KR_CPU(adamw,
    .inplace = {1u << 0, 1u << 2, 1u << 3}, KR_STAGES(adamw_stages))

kr_value(kr_adamw)(kr_graph *g, const kr_adamw_args *a) {
    const kr_value in[] = {a->p, a->g, a->m, a->v, a->hyper, a->sq_norm};
    return kr_append(g, &kr_op_adamw, &(kr_attrs){.r = {a->beta1, a->beta2, a->eps, a->weight_decay, a->max_norm}}, in,
                     6);
}
