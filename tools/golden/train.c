// Golden cases of training: AdamW, clipping, learning rates. The update is made by the compiler's optimiser pass: with
// loss = sum <p, g>, g being fed, the gradient of p is g itself.
#include "tools/golden/golden.h"
#include "tools/train/schedule.h"

#include <stdlib.h>
#include <string.h>

enum { PARAMS = 16 };

/// A training plan over parameters p0, p1, ... shaped as `in.<prefix>0`, ..., and its session.
typedef struct trial {
    int params;
    kr_plan *plan;
    kr_session *session;
    float learning_rate;
    kr_binding bindings[PARAMS + 2];
    char names[PARAMS][16];
} trial;

static kr_status compile(kr_golden *c, trial *t, kr_graph *g, const char *prefix, const kr_optimizer *optimizer) {
    kr_value loss = KR_NONE;
    for (t->params = 0; t->params < PARAMS; t->params++) {
        char tensor[32], param[32];
        const int k = t->params;
        snprintf(tensor, sizeof tensor, "in.%s%d", prefix, k);
        const kr_tensor_entry *e = kr_tensors_find(c->file, tensor);
        if (!e) break;
        snprintf(param, sizeof param, "p%d", k);
        snprintf(t->names[k], sizeof t->names[k], "g%d", k);
        const kr_value p = kr_param(g, param, e->shape, (kr_init){.kind = KR_INIT_ZEROS}, KR_PARAM_DECAY);
        const kr_value each = kr_mul(g, p, kr_stop_gradient(g, kr_input(g, t->names[k], KR_F32, e->shape)));
        const kr_value sum = kr_sum(g, kr_reshape(g, each, KR_SHAPE(kr_value_count(g, each))), 0, true);
        loss = loss.id ? kr_add(g, loss, sum) : sum;
    }
    KR_FAIL_IF(!t->params, KR_BAD_FILE, "it has no tensor \"in.%s0\"", prefix);
    kr_output(g, "loss", loss);
    KR_TRY(kr_graph_status(g));
    const kr_compile_options how = {.goal = KR_GOAL_TRAIN, .target = c->target, .optimizer = *optimizer};
    return kr_compile(g, &how, &t->plan, NULL);
}

static kr_status trial_start(kr_golden *c, trial *t, const char *prefix, const kr_optimizer *optimizer) {
    kr_graph *g;
    *t = (trial){0};
    KR_TRY(kr_graph_new(&g));
    kr_status status = compile(c, t, g, prefix, optimizer);
    kr_graph_free(g);
    if (!status) status = kr_session_open(c->device, c->threads, &t->session);
    if (!status) status = kr_session_add(t->session, t->plan);
    if (!status) status = kr_session_init(t->session, 0);
    return status;
}

static void trial_end(trial *t) {
    kr_session_close(t->session);
    kr_plan_free(t->plan);
}

/// One update with the gradients `in.g{k}<suffix>`; *norm gets their norm.
static kr_status trial_step(kr_golden *c, trial *t, const char *suffix, float *norm) {
    for (int k = 0; k < t->params; k++) {
        char tensor[64];
        kr_golden_tensor g;
        snprintf(tensor, sizeof tensor, "in.g%d%s", k, suffix);
        KR_TRY(kr_golden_read(c, tensor, KR_GOLDEN_PLAIN, &g));
        float *data = kr_golden_f32(c, &g);
        KR_FAIL_IF(!data, KR_NO_MEMORY, "no memory for tensor \"%s\"", tensor);
        t->bindings[k] = (kr_binding){t->names[k], data, (size_t)g.count * sizeof *data};
    }
    t->bindings[t->params] = (kr_binding){"learning_rate", &t->learning_rate, sizeof t->learning_rate};
    t->bindings[t->params + 1] = (kr_binding){"grad_norm", norm, sizeof *norm};
    return kr_plan_run(t->session, t->plan, t->bindings, t->params + 2, 0);
}

/// A list of numbers "[0.1, 0.2]"; false when it has no entry `index`.
static bool list_entry(const char *list, int64_t index, double *out) {
    const char *at = strchr(list, '[');
    for (at = at ? at + 1 : NULL; at && *at && *at != ']'; index--) {
        char *end;
        *out = strtod(at, &end);
        if (end == at) return false;
        if (!index) return true;
        at = end + strspn(end, ", ");
    }
    return false;
}

static kr_status adamw_steps(kr_golden *c, trial *t, int64_t steps) {
    const char *list = kr_tensors_metadata(c->file, "lrs");
    double constant;
    KR_TRY(kr_golden_real(c, "lr", &constant));
    for (int k = 0; k < t->params; k++) {
        char slot[32], tensor[32];
        snprintf(slot, sizeof slot, "p%d", k);
        snprintf(tensor, sizeof tensor, "in.p%d", k);
        KR_TRY(kr_golden_write_slot(c, t->session, kr_session_find(t->session, slot), tensor));
    }
    for (int64_t s = 1; s <= steps; s++) {
        double lr = constant;
        char suffix[32];
        float norm;
        KR_FAIL_IF(list && *list && !list_entry(list, s - 1, &lr), KR_BAD_FILE, "its metadata \"lrs\" has no step %lld",
                   (long long)s);
        t->learning_rate = (float)lr;
        snprintf(suffix, sizeof suffix, ".step%lld", (long long)s);
        KR_TRY(trial_step(c, t, suffix, &norm));
        for (int k = 0; k < t->params; k++) {
            char slot[32], tensor[64];
            snprintf(slot, sizeof slot, "p%d", k);
            snprintf(tensor, sizeof tensor, "out.p%d%s", k, suffix);
            KR_TRY(kr_golden_compare_slot(c, t->session, slot, tensor, 1e-6, 1e-6));
        }
    }
    for (int k = 0; k < t->params; k++)
        for (int which = 0; which < 2; which++) {
            char slot[32], tensor[32];
            snprintf(slot, sizeof slot, "%s.p%d", which ? "exp_avg_sq" : "exp_avg", k);
            snprintf(tensor, sizeof tensor, "out.%c%d", which ? 'v' : 'm', k);
            KR_TRY(kr_golden_compare_slot(c, t->session, slot, tensor, 1e-6, 1e-6));
        }
    return KR_OK;
}

kr_status kr_golden_adamw(kr_golden *c) {
    kr_optimizer o = {0};
    int64_t steps;
    KR_TRY(kr_golden_real(c, "beta1", &o.beta1));
    KR_TRY(kr_golden_real(c, "beta2", &o.beta2));
    KR_TRY(kr_golden_real(c, "eps", &o.eps));
    KR_TRY(kr_golden_real(c, "weight_decay", &o.weight_decay));
    KR_TRY(kr_golden_integer(c, "steps", &steps));
    trial t;
    kr_status status = trial_start(c, &t, "p", &o);
    if (!status) status = adamw_steps(c, &t, steps);
    trial_end(&t);
    return status;
}

/// With beta1 = 0 the first moment after a step is the gradient as it was after clipping.
static kr_status clipped(kr_golden *c, trial *t) {
    float norm;
    kr_golden_tensor want;
    KR_TRY(trial_step(c, t, "", &norm));
    KR_TRY(kr_golden_read(c, "out.norm", KR_GOLDEN_PLAIN, &want));
    KR_FAIL_IF(want.count != 1, KR_BAD_FILE, "tensor \"out.norm\" has %lld elements, want 1", (long long)want.count);
    KR_TRY(kr_golden_compare(c, "out.norm", &norm, &want, 0, 1e-6));
    for (int k = 0; k < t->params; k++) {
        char slot[32], tensor[32];
        snprintf(slot, sizeof slot, "exp_avg.p%d", k);
        snprintf(tensor, sizeof tensor, "out.g%d", k);
        KR_TRY(kr_golden_compare_slot(c, t->session, slot, tensor, 1e-6, 1e-6));
    }
    return KR_OK;
}

kr_status kr_golden_clip_grad_norm(kr_golden *c) {
    kr_optimizer o = {.eps = 1e-8};
    KR_TRY(kr_golden_real(c, "max_norm", &o.max_norm));
    trial t;
    kr_status status = trial_start(c, &t, "g", &o);
    if (!status) status = clipped(c, &t);
    trial_end(&t);
    return status;
}

kr_status kr_golden_lr_schedule(kr_golden *c) {
    kr_schedule s = {0};
    kr_golden_tensor step;
    KR_TRY(kr_golden_real(c, "lr_max", &s.lr_max));
    KR_TRY(kr_golden_real(c, "lr_min", &s.lr_min));
    KR_TRY(kr_golden_integer(c, "warmup", &s.warmup));
    KR_TRY(kr_golden_integer(c, "total", &s.total));
    KR_TRY(kr_golden_integer(c, "decay", &s.decay));
    KR_TRY(kr_golden_read(c, "in.step", KR_GOLDEN_PLAIN, &step));
    static const struct {
        const char *tensor;
        kr_schedule_kind kind;
        bool square_root;
    } kinds[] = {{"out.cosine", KR_SCHEDULE_COSINE, false},
                 {"out.wsd_linear", KR_SCHEDULE_WSD, false},
                 {"out.wsd_sqrt", KR_SCHEDULE_WSD, true}};
    double *got = kr_pool_take(c->pool, (size_t)(step.count + 1) * sizeof *got);
    KR_FAIL_IF(!got, KR_NO_MEMORY, "no memory for %lld steps", (long long)step.count);
    for (int k = 0; k < 3; k++) {
        kr_golden_tensor want;
        KR_TRY(kr_golden_read(c, kinds[k].tensor, KR_GOLDEN_PLAIN, &want));
        KR_FAIL_IF(want.count != step.count, KR_BAD_FILE, "tensor \"%s\" has not as many elements as in.step",
                   kinds[k].tensor);
        s.kind = kinds[k].kind;
        s.square_root = kinds[k].square_root;
        for (int64_t i = 0; i < step.count; i++) got[i] = kr_schedule_lr(&s, (int64_t)step.data[i]);
        kr_golden_compare_f64(c, kinds[k].tensor, got, &want, 0, 1e-12);
    }
    return KR_OK;
}
