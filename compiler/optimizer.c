/// The update as part of the graph: global norm, clipping inside AdamW, new parameters, moments and the step count
/// assigned to their storage. Gradients of micro-batches add up in carries until the last one, which alone counts.
#include "compiler/pass.h"

static kr_value accumulator(kr_graph *g, kr_value param) {
    char name[512];
    snprintf(name, sizeof name, "gradient.%s", kr_value_node(g, param)->name);
    return kr_carry_kind(g, name, KR_F32, kr_value_shape(g, param), KR_CARRY_GRADIENT);
}

static kr_value moment(kr_graph *g, kr_value param, const char *which) {
    char name[512];
    snprintf(name, sizeof name, "%s.%s", which, kr_value_node(g, param)->name);
    return kr_carry_kind(g, name, KR_F32, kr_value_shape(g, param), KR_CARRY_OPTIMIZER);
}

/// sum_so_far + gradient / accumulation, and what the carry holds afterwards.
static void accumulate(kr_compilation *c, bool last) {
    kr_graph *g = c->g;
    const double share = 1.0 / (c->options->accumulation > 1 ? c->options->accumulation : 1);
    for (int i = 0; i < c->param_count; i++) {
        if (!c->grads[i].id) continue;
        const kr_value sum = accumulator(g, c->params[i]);
        const kr_value now = kr_add(g, sum, kr_affine(g, c->grads[i], share, 0));
        if (last) kr_assign(g, sum, kr_const(g, 0, KR_F32, kr_value_shape(g, sum)));
        else kr_assign(g, sum, now);
        c->grads[i] = now;
    }
}

static kr_status update(kr_compilation *c) {
    kr_graph *g = c->g;
    const kr_optimizer *o = &c->options->optimizer;
    KR_FAIL_IF(!(o->beta1 >= 0 && o->beta1 < 1 && o->beta2 >= 0 && o->beta2 < 1), KR_BAD_ARGUMENT,
               "optimizer: betas are %g and %g, want both in [0, 1)", o->beta1, o->beta2);
    KR_FAIL_IF(!(o->eps >= 0) || !(o->weight_decay >= 0) || !(o->max_norm >= 0), KR_BAD_ARGUMENT,
               "optimizer: eps %g, weight_decay %g and max_norm %g must not be negative", o->eps, o->weight_decay,
               o->max_norm);
    kr_value *list = c->grads;
    int count = 0;
    kr_value *present = kr_host_alloc(((size_t)c->param_count + 1) * sizeof *present);
    KR_FAIL_IF(!present, KR_NO_MEMORY, "optimizer: no memory");
    for (int i = 0; i < c->param_count; i++)
        if (list[i].id) present[count++] = list[i];
    if (!count) {
        kr_host_free(present, ((size_t)c->param_count + 1) * sizeof *present);
        KR_FAIL(KR_BAD_ARGUMENT, "optimizer: the loss depends on no parameter");
    }
    const kr_value learning_rate = kr_input(g, "learning_rate", KR_F32, KR_SHAPE(1));
    const kr_value finished = kr_carry_kind(g, KR_OPTIMIZER_STEP, KR_I64, KR_SHAPE(1), KR_CARRY_OPTIMIZER);
    const kr_value square = kr_sq_norm(g, present, count);
    kr_host_free(present, ((size_t)c->param_count + 1) * sizeof *present);
    kr_output(g, "grad_norm", kr_sqrt(g, square));
    const kr_value step = kr_count_step(g, finished, square);
    kr_assign(g, finished, step);
    for (int i = 0; i < c->param_count; i++) {
        if (!list[i].id) continue;
        const kr_value p = c->params[i], m = moment(g, p, "exp_avg"), v = moment(g, p, "exp_avg_sq");
        const bool decay = kr_value_node(g, p)->attrs.i[0] & KR_PARAM_DECAY;
        const kr_value next = kr_adamw(g, &(kr_adamw_args){.p = p, .g = list[i], .m = m, .v = v,
            .learning_rate = learning_rate, .step = step, .sq_norm = square, .beta1 = o->beta1, .beta2 = o->beta2,
            .eps = o->eps, .weight_decay = decay ? o->weight_decay : 0, .max_norm = o->max_norm});
        KR_TRY(kr_graph_status(g));
        kr_assign(g, p, next);
        kr_assign(g, m, kr_sibling(g, next, 1));
        kr_assign(g, v, kr_sibling(g, next, 2));
    }
    return kr_graph_status(g);
}

kr_status kr_pass_optimizer(kr_compilation *c) {
    kr_graph_set_scope(c->g, "optimizer");
    kr_status status = KR_OK;
    const kr_goal goal = c->options->goal;
    if (goal == KR_GOAL_ACCUMULATE || goal == KR_GOAL_TRAIN_LAST) accumulate(c, goal == KR_GOAL_TRAIN_LAST);
    if (goal == KR_GOAL_TRAIN || goal == KR_GOAL_TRAIN_LAST) status = update(c);
    kr_graph_set_scope(c->g, NULL);
    return status ? status : kr_graph_status(c->g);
}
