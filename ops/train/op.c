/// Training ops: the global gradient norm, the AdamW update and the number of the update.
#include "ops/graph/internal.h"


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

const kr_op kr_op_sq_norm = {
    .name = "sq_norm", .inputs = 1, .outputs = 1, .flags = KR_OP_VARIADIC | KR_OP_NO_GRADIENT, .shape = sq_norm_shape,
    .cost = sq_norm_cost,
};

kr_value(kr_sq_norm)(kr_graph *g, const kr_value *values, int count) {
    return kr_append(g, &kr_op_sq_norm, &(kr_attrs){0}, values, count);
}

/// The operands that adamw and count_step share: one element each.
static kr_status one_element(const char *op, const char *name, kr_dtype want, const kr_shape *shape, kr_dtype dtype) {
    char got[160];
    KR_FAIL_IF(kr_shape_count(shape) != 1 || dtype != want, KR_BAD_SHAPE, "%s: %s is %s %s, want %s [1]", op, name,
               kr_dtype_name(dtype), kr_shape_text(shape, got), kr_dtype_name(want));
    return KR_OK;
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
    KR_TRY(one_element("adamw", "learning_rate", KR_F32, &in_shape[4], in_dtype[4]));
    KR_TRY(one_element("adamw", "step", KR_I64, &in_shape[5], in_dtype[5]));
    if (in_shape[6].rank >= 0) KR_TRY(one_element("adamw", "sq_norm", KR_F32, &in_shape[6], in_dtype[6]));
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

const kr_op kr_op_adamw = {
    .name = "adamw", .inputs = 7, .outputs = 3, .flags = KR_OP_NO_GRADIENT, .optional = 1u << 6,
    .attr = {.r = {"beta1", "beta2", "eps", "weight_decay", "max_norm"}}, .shape = adamw_shape, .cost = adamw_cost,
};

kr_value(kr_adamw)(kr_graph *g, const kr_adamw_args *a) {
    const kr_value in[] = {a->p, a->g, a->m, a->v, a->learning_rate, a->step, a->sq_norm};
    return kr_append(g, &kr_op_adamw, &(kr_attrs){.r = {a->beta1, a->beta2, a->eps, a->weight_decay, a->max_norm}}, in,
                     7);
}

static kr_status count_step_shape(const kr_attrs *attrs, const kr_shape *in_shape, const kr_dtype *in_dtype, int inputs,
                                  kr_shape *out_shape, kr_dtype *out_dtype) {
    (void)attrs, (void)inputs;
    KR_TRY(one_element("count_step", "step", KR_I64, &in_shape[0], in_dtype[0]));
    if (in_shape[1].rank >= 0) KR_TRY(one_element("count_step", "sq_norm", KR_F32, &in_shape[1], in_dtype[1]));
    out_shape[0] = in_shape[0];
    out_dtype[0] = KR_I64;
    return KR_OK;
}

const kr_op kr_op_count_step = {
    .name = "count_step", .inputs = 2, .outputs = 1, .flags = KR_OP_NO_GRADIENT, .optional = 1u << 1,
    .shape = count_step_shape,
};

kr_value(kr_count_step)(kr_graph *g, kr_value step, kr_value sq_norm) {
    return kr_append(g, &kr_op_count_step, &(kr_attrs){0}, (const kr_value[]){step, sq_norm}, 2);
}
