/// Training ops: the global gradient norm, the AdamW update and the number of the update.
#include "ops/graph/internal.h"
#include "ops/graph/signature.h"
#include "ops/train/args.h"

static const kr_signature sq_norm_signature = {.in = {{"every value", "any"}}, .out = {[SQ_NORM_SUM] = {"sum", "1"}}};

static void sq_norm_cost(const kr_attrs *attrs, const kr_shape *in, const kr_shape *out, int inputs, double *flops,
                         double *bytes) {
    (void)attrs, (void)out;
    double elements = 0;
    for (int i = 0; i < inputs; i++) elements += (double)kr_shape_count(&in[i]);
    *flops = 2 * elements;
    *bytes = 4 * elements;
}

const kr_op kr_op_sq_norm = {
    .name = "sq_norm",
    .inputs = 1,
    .outputs = 1,
    .flags = KR_OP_VARIADIC | KR_OP_NO_GRADIENT,
    .signature = &sq_norm_signature,
    .cost = sq_norm_cost,
};

kr_value(kr_sq_norm)(kr_graph *g, const kr_value *values, int count) {
    return kr_append(g, &kr_op_sq_norm, &(kr_attrs){0}, values, count);
}

static const kr_signature adamw_signature = {
    .in = {[ADAMW_P] = {"p", "..."},
           [ADAMW_G] = {"g", "..."},
           [ADAMW_M] = {"m", "..."},
           [ADAMW_V] = {"v", "..."},
           [ADAMW_LEARNING_RATE] = {"learning_rate", "1"},
           [ADAMW_STEP] = {"step", "1", .dtype = KR_I64},
           [ADAMW_SQ_NORM] = {"sq_norm", "1", KR_OPTIONAL}},
    .out = {[ADAMW_NEW_P] = {"new_p", "..."}, [ADAMW_NEW_M] = {"new_m", "..."}, [ADAMW_NEW_V] = {"new_v", "..."}},
};

static void adamw_cost(const kr_attrs *attrs, const kr_shape *in, const kr_shape *out, int inputs, double *flops,
                       double *bytes) {
    (void)attrs, (void)out, (void)inputs;
    *flops = 14.0 * (double)kr_shape_count(&in[ADAMW_P]);
    *bytes = 28.0 * (double)kr_shape_count(&in[ADAMW_P]);
}

const kr_op kr_op_adamw = {
    .name = "adamw",
    .inputs = ADAMW_INPUTS,
    .outputs = ADAMW_OUTPUTS,
    .flags = KR_OP_NO_GRADIENT,
    .attr = {.r = {"beta1", "beta2", "eps", "weight_decay", "max_norm"}},
    .signature = &adamw_signature,
    .cost = adamw_cost,
};

kr_value(kr_adamw)(kr_graph *g, const kr_adamw_args *a) {
    const kr_value in[ADAMW_INPUTS] = {[ADAMW_P] = a->p,
                                       [ADAMW_G] = a->g,
                                       [ADAMW_M] = a->m,
                                       [ADAMW_V] = a->v,
                                       [ADAMW_LEARNING_RATE] = a->learning_rate,
                                       [ADAMW_STEP] = a->step,
                                       [ADAMW_SQ_NORM] = a->sq_norm};
    const kr_attrs t = {.r = {[ADAMW_BETA1] = a->beta1,
                              [ADAMW_BETA2] = a->beta2,
                              [ADAMW_EPS] = a->eps,
                              [ADAMW_WEIGHT_DECAY] = a->weight_decay,
                              [ADAMW_MAX_NORM] = a->max_norm}};
    return kr_append(g, &kr_op_adamw, &t, in, ADAMW_INPUTS);
}

static const kr_signature count_step_signature = {
    .in = {[COUNT_STEP_STEP] = {"step", "1", .dtype = KR_I64}, [COUNT_STEP_SQ_NORM] = {"sq_norm", "1", KR_OPTIONAL}},
    .out = {[COUNT_STEP_NEXT] = {"next", "1", .dtype = KR_I64}},
};

const kr_op kr_op_count_step = {
    .name = "count_step",
    .inputs = COUNT_STEP_INPUTS,
    .outputs = COUNT_STEP_OUTPUTS,
    .flags = KR_OP_NO_GRADIENT,
    .signature = &count_step_signature,
};

kr_value(kr_count_step)(kr_graph *g, kr_value step, kr_value sq_norm) {
    return kr_append(g, &kr_op_count_step, &(kr_attrs){0}, (const kr_value[]){step, sq_norm}, COUNT_STEP_INPUTS);
}
