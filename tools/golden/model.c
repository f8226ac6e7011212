// Golden cases of language models: logits, loss and gradients of one batch; the greedy continuation of a prompt through
// the plans that `krait generate` uses; then AdamW updates through the plan that `krait pretrain` uses.
#include "tools/golden/golden.h"

#include <string.h>

typedef struct subject {
    kr_golden *c;
    kr_model_config config;
    kr_session *session;
    kr_plan *logits, *gradients, *train, *prefill, *decode;
    int64_t steps, batch, length, prompt, vocab, new_tokens;
    const int32_t *ids, *labels, *first; ///< [steps, B, L], [steps, B, L], [B, prompt]
} subject;

static kr_status read_ids(kr_golden *c, const char *tensor, int rank, kr_golden_tensor *t, const int32_t **out) {
    KR_TRY(kr_golden_read(c, tensor, KR_GOLDEN_PLAIN, t));
    KR_FAIL_IF(t->shape.rank != rank || !t->count, KR_BAD_FILE, "tensor \"%s\" has not the rank %d", tensor, rank);
    *out = kr_golden_i32(c, t);
    KR_FAIL_IF(!*out, KR_NO_MEMORY, "no memory for tensor \"%s\"", tensor);
    return KR_OK;
}

static kr_status read_case(subject *m, const char *json) {
    kr_golden_tensor ids, labels, prompt;
    const kr_status status = kr_model_config_parse(json, strlen(json), &m->config);
    if (status == KR_UNSUPPORTED) snprintf(m->c->skipped, sizeof m->c->skipped, "%s", kr_status_message());
    KR_TRY(status);
    KR_TRY(kr_golden_real(m->c, "norm_epsilon", &m->config.norm_epsilon));
    KR_TRY(read_ids(m->c, "in.ids", 3, &ids, &m->ids));
    KR_TRY(read_ids(m->c, "in.labels", 3, &labels, &m->labels));
    KR_TRY(read_ids(m->c, "in.prompt", 2, &prompt, &m->first));
    KR_FAIL_IF(!kr_shape_equal(&ids.shape, &labels.shape) || prompt.shape.dim[0] != ids.shape.dim[1], KR_BAD_FILE,
               "in.ids, in.labels and in.prompt do not fit together");
    m->steps = ids.shape.dim[0], m->batch = ids.shape.dim[1], m->length = ids.shape.dim[2];
    m->prompt = prompt.shape.dim[1];
    m->vocab = kr_model_vocab(&m->config);
    KR_TRY(kr_golden_integer(m->c, "new_tokens", &m->new_tokens));
    m->config.context = m->prompt + m->new_tokens; // caches just large enough
    return KR_OK;
}

static kr_status compile(subject *m, kr_mode mode, int64_t length, const kr_compile_options *options, kr_plan **plan) {
    kr_graph *g;
    KR_TRY(kr_model_build(&m->config, mode, m->batch, length, &g));
    kr_compile_options how = *options;
    how.target = m->c->target;
    kr_status status = kr_compile(g, &how, plan, NULL);
    kr_graph_free(g);
    return status ? status : kr_session_add(m->session, *plan);
}

static kr_status compile_all(subject *m) {
    kr_compile_options train = {.goal = KR_GOAL_TRAIN};
    const kr_compile_options forward = {.goal = KR_GOAL_FORWARD}, gradients = {.goal = KR_GOAL_GRADIENTS};
    KR_TRY(kr_golden_real(m->c, "beta1", &train.optimizer.beta1));
    KR_TRY(kr_golden_real(m->c, "beta2", &train.optimizer.beta2));
    KR_TRY(kr_golden_real(m->c, "eps", &train.optimizer.eps));
    KR_TRY(kr_golden_real(m->c, "weight_decay", &train.optimizer.weight_decay));
    KR_TRY(kr_golden_real(m->c, "clip", &train.optimizer.max_norm));
    KR_TRY(compile(m, KR_MODE_LOGITS, m->length, &forward, &m->logits));
    KR_TRY(compile(m, KR_MODE_TRAIN, m->length, &gradients, &m->gradients));
    KR_TRY(compile(m, KR_MODE_TRAIN, m->length, &train, &m->train));
    KR_TRY(compile(m, KR_MODE_PREFILL, m->prompt, &forward, &m->prefill));
    return compile(m, KR_MODE_DECODE, 1, &forward, &m->decode);
}

// Logits, loss, gradients -----------------------------------------------------------------------------------------

static kr_binding batch_of(const subject *m, const char *name, const int32_t *ids, int64_t step) {
    return (kr_binding){name, (void *)(ids + step * m->batch * m->length),
                        (size_t)(m->batch * m->length) * sizeof *ids};
}

static kr_status check_logits(subject *m) {
    kr_golden_tensor want;
    KR_TRY(kr_golden_read(m->c, "out.logits", KR_GOLDEN_PLAIN, &want));
    KR_FAIL_IF(want.count != m->batch * m->length * m->vocab, KR_BAD_FILE,
               "tensor \"out.logits\" has %lld elements, want %lld", (long long)want.count,
               (long long)(m->batch * m->length * m->vocab));
    float *got = kr_pool_take(m->c->pool, (size_t)(want.count + 1) * sizeof *got);
    KR_FAIL_IF(!got, KR_NO_MEMORY, "no memory for the logits");
    KR_TRY(kr_plan_run(
        m->session, m->logits,
        (kr_binding[]){batch_of(m, "tokens", m->ids, 0), {"logits", got, (size_t)want.count * sizeof *got}}, 2, 0));
    return kr_golden_compare(m->c, "out.logits", got, &want, 1e-5, 1e-5);
}

static kr_status check_gradients(subject *m) {
    kr_golden *c = m->c;
    const int tensors = kr_tensors_count(c->file);
    kr_binding *bindings = kr_pool_take(c->pool, (size_t)(tensors + 2) * sizeof *bindings);
    KR_FAIL_IF(!bindings, KR_NO_MEMORY, "no memory for the gradients");
    int count = 0;
    bindings[count++] = batch_of(m, "tokens", m->ids, 0);
    bindings[count++] = batch_of(m, "targets", m->labels, 0);
    for (int k = 0; k < tensors; k++) {
        const kr_tensor_entry *e = kr_tensors_at(c->file, k);
        if (strncmp(e->name, "grad.param.", 11)) continue;
        const size_t bytes = (size_t)kr_shape_count(&e->shape) * sizeof(float);
        bindings[count++] = (kr_binding){kr_pool_format(c->pool, "grad.%s", e->name + 11),
                                         kr_pool_take(c->pool, bytes + 1), bytes};
        KR_FAIL_IF(!bindings[count - 1].data, KR_NO_MEMORY, "no memory for tensor \"%s\"", e->name);
    }
    KR_TRY(kr_plan_run(m->session, m->gradients, bindings, count, 0));
    for (int k = 2; k < count; k++) {
        const char *tensor = kr_pool_format(c->pool, "grad.param.%s", bindings[k].name + 5);
        kr_golden_tensor want;
        KR_TRY(kr_golden_read(c, tensor, KR_GOLDEN_PLAIN, &want));
        KR_TRY(kr_golden_compare(c, tensor, bindings[k].data, &want, 1e-5, 1e-5));
    }
    return KR_OK;
}

// Greedy continuation ---------------------------------------------------------------------------------------------

static int32_t largest(const float *x, int64_t n) {
    int64_t best = 0;
    for (int64_t k = 1; k < n; k++)
        if (x[k] > x[best]) best = k;
    return (int32_t)best;
}

static kr_status check_greedy(subject *m) {
    kr_golden *c = m->c;
    kr_golden_tensor tokens, logits;
    KR_TRY(kr_golden_read(c, "out.greedy_tokens", KR_GOLDEN_PLAIN, &tokens));
    KR_TRY(kr_golden_read(c, "out.greedy_logits", KR_GOLDEN_PLAIN, &logits));
    KR_FAIL_IF(tokens.count != m->batch * m->new_tokens || logits.count != tokens.count * m->vocab, KR_BAD_FILE,
               "out.greedy_tokens and out.greedy_logits do not fit together");
    const size_t row = (size_t)(m->batch * m->vocab) * sizeof(float);
    float *now = kr_pool_take(c->pool, row + 1), *got = kr_pool_take(c->pool, (size_t)(logits.count + 1) * sizeof *got);
    int32_t *next = kr_pool_take(c->pool, (size_t)(m->batch + 1) * sizeof *next);
    KR_FAIL_IF(!now || !got || !next, KR_NO_MEMORY, "no memory for the continuation");
    KR_TRY(kr_session_reset_carries(m->session));
    for (int64_t t = 0; t < m->new_tokens; t++) {
        const kr_binding first = {"tokens", (void *)m->first, (size_t)(m->batch * m->prompt) * sizeof *next};
        const kr_binding again = {"tokens", next, (size_t)m->batch * sizeof *next};
        KR_TRY(kr_plan_run(m->session, t ? m->decode : m->prefill,
                           (kr_binding[]){t ? again : first, {"logits", now, row}}, 2, 0));
        for (int64_t b = 0; b < m->batch; b++) {
            memcpy(got + (b * m->new_tokens + t) * m->vocab, now + b * m->vocab, (size_t)m->vocab * sizeof *got);
            next[b] = largest(now + b * m->vocab, m->vocab);
            KR_FAIL_IF(next[b] != (int32_t)tokens.data[b * m->new_tokens + t], KR_BAD_FILE,
                       "greedy token %lld of row %lld is %d, want %d", (long long)t, (long long)b, next[b],
                       (int)tokens.data[b * m->new_tokens + t]);
        }
    }
    return kr_golden_compare(c, "out.greedy_logits", got, &logits, 1e-5, 1e-5);
}

// Updates ---------------------------------------------------------------------------------------------------------

static kr_status check_training(subject *m) {
    kr_golden *c = m->c;
    kr_golden_tensor loss, norm;
    double lr;
    KR_TRY(kr_golden_real(c, "lr", &lr));
    KR_TRY(kr_golden_read(c, "out.loss", KR_GOLDEN_PLAIN, &loss));
    KR_TRY(kr_golden_read(c, "out.grad_norm", KR_GOLDEN_PLAIN, &norm));
    KR_FAIL_IF(loss.count != m->steps + 1 || norm.count != m->steps, KR_BAD_FILE,
               "out.loss or out.grad_norm has a wrong length");
    float *losses = kr_pool_take(c->pool, (size_t)(2 * m->steps + 1) * sizeof *losses), *norms = losses + m->steps + 1;
    KR_FAIL_IF(!losses, KR_NO_MEMORY, "no memory for the losses");
    float learning_rate = (float)lr;
    for (int64_t s = 0; s < m->steps; s++) {
        const kr_binding bindings[] = {batch_of(m, "tokens", m->ids, s),
                                       batch_of(m, "targets", m->labels, s),
                                       {"learning_rate", &learning_rate, sizeof learning_rate},
                                       {"loss", &losses[s], sizeof *losses},
                                       {"grad_norm", &norms[s], sizeof *norms}};
        KR_TRY(kr_plan_run(m->session, m->train, bindings, 5, 0));
    }
    KR_TRY(kr_plan_run(m->session, m->gradients,
                       (kr_binding[]){batch_of(m, "tokens", m->ids, 0),
                                      batch_of(m, "targets", m->labels, 0),
                                      {"loss", &losses[m->steps], sizeof *losses}},
                       3, 0));
    KR_TRY(kr_golden_compare(c, "out.loss", losses, &loss, 2e-6, 2e-6));
    KR_TRY(kr_golden_compare(c, "out.grad_norm", norms, &norm, 1e-6, 1e-5));
    for (int k = 0; k < kr_tensors_count(c->file); k++) {
        const char *tensor = kr_tensors_at(c->file, k)->name;
        if (!strncmp(tensor, "after.param.", 12))
            KR_TRY(kr_golden_compare_slot(c, m->session, tensor + 12, tensor, 1e-5, 1e-5));
    }
    return KR_OK;
}

static kr_status run(subject *m, const char *json) {
    KR_TRY(read_case(m, json));
    KR_TRY(kr_session_open(m->c->device, m->c->threads, &m->session));
    KR_TRY(compile_all(m));
    KR_TRY(kr_session_init(m->session, 0));
    KR_TRY(kr_golden_write_params(m->c, m->session, "param."));
    KR_TRY(check_logits(m));
    KR_TRY(check_gradients(m));
    KR_TRY(check_greedy(m));
    return check_training(m);
}

kr_status kr_golden_language_model(kr_golden *c) {
    const char *json;
    KR_TRY(kr_golden_text(c, "config", &json));
    subject m = {.c = c};
    const kr_status status = run(&m, json);
    kr_session_close(m.session);
    kr_plan *const plans[] = {m.logits, m.gradients, m.train, m.prefill, m.decode};
    for (int k = 0; k < 5; k++) kr_plan_free(plans[k]);
    return *c->skipped ? KR_OK : status;
}
