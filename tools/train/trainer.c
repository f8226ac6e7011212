// Setting up a training run: plans, memory, data, session, and where an earlier run stopped. Everything that can be
// wrong is found here, before the first step; nothing is allocated after it.
#include "tools/train/trainer.h"

#include "runtime/cpu/bf16.h"
#include "tools/cli/device.h"
#include "tools/cli/text.h"
#include "tools/config/train_options.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/// `budget`: bytes that the arenas of this plan may need; 0: as many as they do.
static kr_status compile(kr_trainer *t, kr_goal goal, size_t budget, kr_plan **plan, kr_plan_stats *stats) {
    const kr_train_settings *s = t->settings;
    const bool training = goal != KR_GOAL_FORWARD;
    kr_graph *g;
    if (t->graph.text) KR_TRY(kr_graph_file_build(&t->graph, training, s->carry_state, &g));
    else KR_TRY(kr_model_build(t->model, training ? KR_MODE_TRAIN : KR_MODE_EVAL, s->batch_size, s->seq_len, &g));
    const kr_compile_options options = {
        .goal = goal, .target = t->target, .accumulation = (int)s->grad_accumulation, .memory = budget,
        .curve = plan == &t->update && (budget || (s->memory_report && !s->memory)) ? &t->curve : NULL,
        // What is held out is measured as krait generate will run it.
        .precision = training ? (kr_precision)s->precision : KR_PRECISION_F32,
        .optimizer = kr_train_optimizer(s)};
    const kr_status status = kr_compile(g, &options, plan, stats);
    kr_graph_free(g);
    if (!status) t->plan[t->plan_count++] = *plan;
    return status;
}

/// The plan of the earlier micro-batches. Its budget leaves it as much room in the arena that the two plans share.
static kr_status compile_accumulate(kr_trainer *t, size_t budget) {
    kr_plan_stats first;
    KR_TRY(compile(t, KR_GOAL_ACCUMULATE, 0, &t->accumulate, &first));
    if (!budget) return KR_OK;
    const size_t room = budget - (kr_plan_stats_bytes(&t->stats) - t->stats.peak);
    if (first.peak <= room) return KR_OK;
    kr_plan_free(t->plan[--t->plan_count]);
    return compile(t, KR_GOAL_ACCUMULATE, kr_plan_stats_bytes(&first) - first.peak + room, &t->accumulate, &first);
}

/// The largest first, so that the arenas that plans share need not grow.
static kr_status make_plans(kr_trainer *t, size_t budget) {
    kr_plan_stats other;
    const bool split = t->settings->grad_accumulation > 1;
    KR_TRY(compile(t, split ? KR_GOAL_TRAIN_LAST : KR_GOAL_TRAIN, budget, &t->update, &t->stats));
    if (split) KR_TRY(compile_accumulate(t, budget));
    return compile(t, KR_GOAL_FORWARD, 0, &t->evaluate, &other);
}

/// Plans that fit into --memory with all that the process holds beside their arenas. That is known when there are
/// plans, and compiling takes memory too, which the C library keeps: so it is looked at again after each attempt.
static kr_status fit_plans(kr_trainer *t, int threads) {
    const kr_train_settings *s = t->settings;
    const size_t wanted = (size_t)s->memory;
    for (size_t budget = 0, round = 0; round < 5; round++) {
        const kr_status status = make_plans(t, budget);
        const bool too_little = status && t->curve.count && t->curve.chosen < 0;
        if (too_little) return kr_memory_refuse(&t->curve, s->memory, wanted > budget ? wanted - budget : 0);
        KR_TRY(status);
        t->memory = kr_memory_estimate(t->plan, t->plan_count, threads, t->data ? kr_data_memory(t->data) : 0);
        if (t->memory.total <= wanted && (budget || !s->memory_report)) return KR_OK; // else the curve is still to come
        if (!wanted) return KR_OK;
        const size_t besides = t->memory.total - kr_plan_stats_bytes(&t->stats);
        budget = wanted > besides ? wanted - besides : 1;
        while (t->plan_count) kr_plan_free(t->plan[--t->plan_count]);
    }
    char a[32];
    KR_FAIL(KR_BAD_ARGUMENT, "--memory %zu is too little: the plans together, evaluation included, need %s; a smaller "
            "--batch-size or a shorter --seq-len needs less", wanted, kr_bytes_text((double)t->memory.total, a));
}

static kr_status open_data(kr_trainer *t) {
    const kr_train_settings *s = t->settings;
    if (!s->text_file) {
        KR_FAIL_IF(!s->dry_run, KR_BAD_ARGUMENT, "no text to learn: give --text-file FILE");
        return KR_OK;
    }
    kr_status status = kr_data_open(s->text_file, s->seq_len, &t->data);
    if (status) return kr_status_prefix(status, "--text-file");
    if (s->document_separator) {
        status = kr_data_split(t->data, s->document_separator);
        if (status) return kr_status_prefix(status, "--document-separator");
    }
    t->state.data_fingerprint = kr_data_fingerprint(t->data);
    return KR_OK;
}

/// Loads what DIR/latest holds and checks that it is the same run.
static kr_status resume(kr_trainer *t, const char *checkpoint) {
    char *text, label[KR_RUN_PATH + 16], note[512];
    kr_train_state saved;
    KR_TRY(kr_checkpoint_load(checkpoint, NULL, KR_LOAD_STATE, &text));
    snprintf(label, sizeof label, "%s/state.json", checkpoint);
    const kr_status status = kr_state_parse(text, strlen(text), label, &saved);
    free(text);
    KR_TRY(status);
    KR_TRY(kr_state_continues(&saved, &t->state, note, sizeof note));
    const unsigned what = KR_LOAD_PARAMS | KR_LOAD_OPTIMIZER | (t->settings->carry_state ? KR_LOAD_CARRIES : 0) |
                          (saved.uncounted ? KR_LOAD_FEWER : 0);
    KR_TRY(kr_checkpoint_load(checkpoint, t->session, what, NULL));
    if (saved.uncounted)
        KR_TRY(kr_session_write(t->session, kr_session_find(t->session, KR_OPTIMIZER_STEP), &saved.step,
                                sizeof saved.step));
    if (*note) kr_trainer_say(t, "note     settings changed since the checkpoint: %s\n", note);
    t->state.step = saved.step;
    t->state.row = saved.row;
    t->state.tokens = saved.tokens;
    t->state.best_loss = saved.best_loss;
    t->state.best_step = saved.best_step;
    kr_trainer_say(t, "resumed  %s at step %lld\n", checkpoint, (long long)saved.step);
    return KR_OK;
}

static kr_status open_run(kr_trainer *t, char checkpoint[KR_RUN_PATH]) {
    const kr_train_settings *s = t->settings;
    if (s->output_dir) {
        KR_FAIL_IF(!*s->output_dir || strlen(s->output_dir) + 64 > KR_RUN_PATH, KR_BAD_ARGUMENT,
                   "--output-dir is empty or too long");
        strcpy(t->directory, s->output_dir);
    } else {
        KR_TRY(kr_run_directory(t->model->name, s->resume, t->directory));
    }
    const bool exists = kr_run_latest(t->directory, checkpoint);
    KR_FAIL_IF(s->resume && !exists, KR_BAD_ARGUMENT, "--resume: there is no checkpoint in %s", t->directory);
    KR_FAIL_IF(!s->resume && exists, KR_BAD_ARGUMENT,
               "%s holds a run already (%s): add --resume to go on with it, or choose another --output-dir",
               t->directory, checkpoint);
    return kr_directory_make(t->directory);
}

static kr_status open_session(kr_trainer *t, int threads) {
    KR_TRY(kr_session_open(t->device, threads, &t->session));
    for (int k = 0; k < t->plan_count; k++) KR_TRY(kr_session_add(t->session, t->plan[k]));
    const size_t elements = (size_t)t->settings->batch_size * (size_t)t->settings->seq_len;
    t->tokens = calloc(elements, sizeof *t->tokens);
    t->targets = calloc(elements, sizeof *t->targets);
    if (kr_plan_find(t->update, "reset") >= 0) t->reset = calloc(elements, sizeof *t->reset);
    for (int k = 0; k < kr_session_slots(t->session) && t->settings->carry_state; k++)
        if (kr_session_slot(t->session, k)->kind == KR_SLOT_CARRY)
            t->carried_bytes += kr_session_slot(t->session, k)->bytes;
    t->carried = malloc(t->carried_bytes + 1);
    KR_FAIL_IF(!t->tokens || !t->targets || !t->carried || (!t->reset && kr_plan_find(t->update, "reset") >= 0),
               KR_NO_MEMORY, "no memory for a batch");
    return KR_OK;
}

static void close_trainer(kr_trainer *t) {
    kr_session_close(t->session);
    kr_device_close(t->device);
    for (int k = 0; k < t->plan_count; k++) kr_plan_free(t->plan[k]);
    kr_data_close(t->data);
    free(t->tokens);
    free(t->targets);
    free(t->reset);
    free(t->carried);
    kr_graph_file_close(&t->graph);
}

static kr_status prepare(kr_trainer *t) {
    const kr_train_settings *s = t->settings;
    KR_TRY(kr_train_check(s));
    KR_FAIL_IF(t->model->vocab_size < 256, KR_BAD_ARGUMENT,
               "model %s has a vocabulary of %lld; text is read as bytes, which needs 256", t->model->name,
               (long long)t->model->vocab_size);
    KR_TRY(kr_tool_target(t->host->device, &t->target));
    const int wanted = (int)(s->threads ? s->threads : t->host->threads), threads = wanted ? wanted : kr_cpu_count();
    KR_TRY(open_data(t));
    KR_TRY(fit_plans(t, threads));
    snprintf(t->machine, sizeof t->machine, "%d thread%s, %s, OpenBLAS %s", threads, threads == 1 ? "" : "s",
             kr_isa_name(kr_isa_best()), kr_blas_prepare());
    if (s->precision) {
        const kr_bf16_path path = s->precision == KR_PRECISION_BF16 ? kr_bf16_best() : KR_BF16_EMULATED;
        const size_t used = strlen(t->machine);
        snprintf(t->machine + used, sizeof t->machine - used, ", products in bf16 (%s)", kr_bf16_path_name(path));
    }
    kr_trainer_describe(t);
    if (s->dry_run) return KR_OK;

    char checkpoint[KR_RUN_PATH];
    KR_TRY(open_run(t, checkpoint));
    KR_TRY(kr_tool_device(t->host->device, &t->device));
    KR_TRY(open_session(t, threads));
    return s->resume ? resume(t, checkpoint) : kr_session_init(t->session, s->seed);
}

/// What a graph written by hand says about its batches, and what it must have for these settings.
static kr_status open_graph(kr_trainer *t, kr_train_settings *s, kr_model_config *m) {
    KR_TRY(kr_graph_file_open(s->graph, &t->graph));
    KR_FAIL_IF(s->document_separator && !t->graph.reset, KR_BAD_ARGUMENT,
               "--document-separator: %s has no input \"reset\" (i32 [B, L], 1 where a document starts)", s->graph);
    KR_FAIL_IF(s->carry_state && !t->graph.state, KR_BAD_ARGUMENT, "--carry-state: %s has no carry to keep state in",
               s->graph);
    KR_FAIL_IF(s->carry_state && !t->graph.reset, KR_BAD_ARGUMENT,
               "--carry-state: %s has no input \"reset\" (i32 [B, L]), which says where a stream starts over",
               s->graph);
    s->batch_size = t->graph.batch;
    s->seq_len = t->graph.length;
    t->state.graph_fingerprint = t->graph.fingerprint;
    const char *slash = strrchr(s->graph, '/'), *name = slash ? slash + 1 : s->graph;
    snprintf(m->name, sizeof m->name, "%.*s", (int)strcspn(name, "."), name);
    if (!m->name[0]) strcpy(m->name, "graph");
    return KR_OK;
}

kr_status kr_train(const kr_train_settings *settings, const kr_model_config *model, const kr_train_host *host) {
    kr_train_settings s = *settings;
    kr_model_config own = model ? *model : kr_model_defaults();
    own.carry_state = s.carry_state;
    own.reset_input = s.carry_state || s.document_separator; // streams start over somewhere
    kr_trainer t = {.settings = &s, .model = &own, .host = host, .start = kr_seconds(), .eval_loss = NAN,
                    .state = {.best_loss = NAN}};
    kr_status status = s.graph ? open_graph(&t, &s, &own) : KR_OK;
    t.schedule = kr_train_schedule(&s);
    t.state.model = own;
    t.state.settings = s;
    if (!status) status = prepare(&t);
    if (!status && !s.dry_run) {
        kr_trainer_say(&t, "run      %s\n", t.directory);
        status = kr_metrics_open(t.directory, t.state.step, &t.metrics);
        if (!status) status = kr_trainer_loop(&t);
        if (status) kr_metrics_close(t.metrics); // the message of the failure is the one to keep
        else status = kr_metrics_close(t.metrics);
        if (!status) status = kr_trainer_finish(&t);
    }
    close_trainer(&t);
    return status;
}
