// The training loop. Everything that a step needs follows from its number and the seed, so a run can be left after any
// step and taken up again with the same bits.
#include "tools/train/trainer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void kr_trainer_fill(kr_trainer *t, int64_t row) {
    const kr_train_settings *s = t->settings;
    for (int64_t b = 0; b < s->batch_size; b++) {
        const int64_t at = b * s->seq_len;
        int32_t *reset = t->reset ? t->reset + at : NULL;
        if (s->carry_state)
            kr_data_stream(t->data, s->seed, s->batch_size, row + b, t->tokens + at, t->targets + at, reset);
        else kr_data_row(t->data, s->seed, row + b, t->tokens + at, t->targets + at, reset);
    }
}

/// Of the update under way.
static double learning_rate(const kr_trainer *t) { return kr_schedule_lr(&t->schedule, t->state.step); }

kr_status kr_trainer_run(kr_trainer *t, kr_plan *plan, float *loss, float *grad_norm, unsigned flags) {
    const kr_train_settings *s = t->settings;
    const size_t bytes = (size_t)s->batch_size * (size_t)s->seq_len * sizeof(int32_t);
    float rate = (float)learning_rate(t);
    kr_binding bindings[6] = {
        {"tokens", t->tokens, bytes}, {"targets", t->targets, bytes}, {"loss", loss, sizeof *loss}};
    int count = 3;
    if (t->reset) bindings[count++] = (kr_binding){"reset", t->reset, bytes};
    if (plan == t->update) {
        bindings[count++] = (kr_binding){"learning_rate", &rate, sizeof rate};
        bindings[count++] = (kr_binding){"grad_norm", grad_norm, sizeof *grad_norm};
    }
    return kr_plan_run(t->session, plan, bindings, count, flags);
}

static int64_t rows_per_step(const kr_train_settings *s) { return s->batch_size * s->grad_accumulation; }

/// All micro-batches of the present step. The loss is their mean.
static kr_status run_step(kr_trainer *t, double *loss, double *grad_norm, unsigned flags) {
    const kr_train_settings *s = t->settings;
    double sum = 0;
    float norm = 0;
    for (int64_t micro = 0; micro < s->grad_accumulation; micro++) {
        float one = 0;
        kr_trainer_fill(t, t->state.row + micro * s->batch_size);
        KR_TRY(kr_trainer_run(t, micro + 1 < s->grad_accumulation ? t->accumulate : t->update, &one, &norm, flags));
        sum += one;
        if (!isfinite(one)) break; // the rest would only add to gradients that are thrown away
    }
    *loss = sum / (double)s->grad_accumulation;
    *grad_norm = norm;
    return KR_OK;
}

kr_status kr_trainer_evaluate(kr_trainer *t, double *loss) {
    const kr_train_settings *s = t->settings;
    const int64_t windows = kr_data_windows(t->data), all = (windows + s->batch_size - 1) / s->batch_size;
    const int64_t batches = s->eval_batches && s->eval_batches < all ? s->eval_batches : all;
    double sum = 0, counted = 0;
    for (int64_t k = 0; k < batches; k++) {
        int64_t targets = 0;
        for (int64_t b = 0; b < s->batch_size; b++) {
            const int64_t at = b * s->seq_len;
            kr_data_window(t->data, k * s->batch_size + b, t->tokens + at, t->targets + at,
                           t->reset ? t->reset + at : NULL);
            for (int64_t i = at; i < at + s->seq_len; i++) targets += t->targets[i] >= 0;
        }
        float mean = 0;
        KR_TRY(kr_trainer_run(t, t->evaluate, &mean, NULL, 0));
        if (!isfinite(mean)) {
            KR_TRY(kr_trainer_run(t, t->evaluate, &mean, NULL, KR_RUN_CHECK));
            KR_FAIL(KR_NOT_FINITE, "the held-out loss is %g", mean);
        }
        // The plan's loss is the mean over what is not ignored: borders of documents and what is beyond the text.
        const double rows = (double)targets / (double)s->seq_len;
        sum += (double)mean * rows;
        counted += rows;
    }
    *loss = counted > 0 ? sum / counted : 0;
    return KR_OK;
}

/// Keeps the carries of before a step, or puts them back.
static kr_status keep_carries(kr_trainer *t, bool restore) {
    size_t at = 0;
    for (int k = 0; k < kr_session_slots(t->session) && t->carried_bytes; k++) {
        const kr_slot *slot = kr_session_slot(t->session, k);
        if (slot->kind != KR_SLOT_CARRY) continue;
        KR_TRY(restore ? kr_session_write(t->session, k, t->carried + at, slot->bytes)
                       : kr_session_read(t->session, k, t->carried + at, slot->bytes));
        at += slot->bytes;
    }
    return KR_OK;
}

/// Calls `look` with every persistent f32 tensor of the given kinds, a piece after the other, copied to the host.
static kr_status each_slot(kr_session *session, unsigned kinds,
                           kr_status (*look)(kr_session *, int, int64_t first, float *, int64_t)) {
    enum { PIECE = 1 << 20 };
    float *copy = malloc(PIECE * sizeof *copy);
    KR_FAIL_IF(!copy, KR_NO_MEMORY, "no memory to look at the parameters");
    kr_status status = KR_OK;
    for (int k = 0; k < kr_session_slots(session); k++) {
        const kr_slot *slot = kr_session_slot(session, k);
        const int64_t n = kr_shape_count(&slot->shape);
        if (!(kinds >> slot->kind & 1) || slot->dtype != KR_F32) continue;
        for (int64_t first = 0; first < n && !status; first += PIECE) {
            const int64_t count = n - first < PIECE ? n - first : PIECE;
            status = kr_session_read_at(session, k, (size_t)first * sizeof *copy, copy, (size_t)count * sizeof *copy);
            if (!status) status = look(session, k, first, copy, count);
        }
    }
    free(copy);
    return status;
}

static kr_status want_finite(kr_session *session, int index, int64_t first, float *values, int64_t n) {
    for (int64_t k = 0; k < n; k++)
        KR_FAIL_IF(!isfinite(values[k]), KR_NOT_FINITE, "%s is %g at element %lld after the update",
                   kr_session_slot(session, index)->name, values[k], (long long)(first + k));
    return KR_OK;
}

static kr_status clear(kr_session *session, int index, int64_t first, float *values, int64_t n) {
    memset(values, 0, (size_t)n * sizeof *values);
    return kr_session_write_at(session, index, (size_t)first * sizeof *values, values, (size_t)n * sizeof *values);
}

kr_status kr_trainer_save(kr_trainer *t, bool best) {
    char *state;
    KR_TRY(each_slot(t->session, 1u << KR_SLOT_PARAM | 1u << KR_SLOT_OPTIMIZER, want_finite));
    KR_TRY(kr_state_json(&t->state, kr_data_path(t->data), &state));
    const kr_status status = kr_run_save(t->directory, t->session, t->state.step, state, t->settings->carry_state, best,
                                        t->settings->keep);
    free(state);
    return status;
}

kr_status kr_trainer_explain(kr_trainer *t, const char *what, double value) {
    // adamw has left the parameters alone, so the same rows give the same numbers again, node by node.
    double loss, grad_norm;
    // Sums of micro-batches are carries too, and the only ones where no state is carried.
    kr_status status = t->settings->carry_state ? keep_carries(t, true)
                                                : each_slot(t->session, 1u << KR_SLOT_CARRY, clear);
    if (!status) status = run_step(t, &loss, &grad_norm, KR_RUN_CHECK);
    const char *shown = isnan(value) ? "nan" : value > 0 ? "inf" : "-inf"; // "-nan" would only puzzle
    if (status == KR_NOT_FINITE) return kr_status_prefix(status, "the %s is %s", what, shown);
    KR_TRY(status);
    KR_FAIL(KR_NOT_FINITE, "the %s is %s, though the result of every node is finite", what, shown);
}

/// Adds to a failure what the user has left.
static kr_status not_finite(kr_trainer *t, kr_status status) {
    char path[KR_RUN_PATH];
    if (status != KR_NOT_FINITE) return status;
    char message[1024];
    snprintf(message, sizeof message, "%s", kr_status_message());
    const bool saved = kr_run_latest(t->directory, path);
    KR_FAIL(KR_NOT_FINITE,
            "after step %lld: %s. Nothing was saved; %s%s. A lower --learning-rate or --grad-clip, or a longer "
            "--warmup, often helps",
            (long long)t->state.step, message,
            saved ? "the last good checkpoint is " : "there is no earlier checkpoint", saved ? path : "");
}

static bool due(int64_t every, int64_t step) { return every > 0 && step % every == 0; }

/// One update with its bookkeeping. *m is filled for the log.
static kr_status advance(kr_trainer *t, kr_metric *m) {
    const kr_train_settings *s = t->settings;
    const double before = kr_seconds();
    double loss, norm;
    const double lr = learning_rate(t);
    KR_TRY(keep_carries(t, false));
    KR_TRY(run_step(t, &loss, &norm, 0));
    if (!isfinite(loss)) return kr_trainer_explain(t, "loss", loss);
    if (!isfinite(norm)) return kr_trainer_explain(t, "gradient norm", norm);
    const double now = kr_seconds();
    t->state.step++;
    t->state.row += rows_per_step(s);
    t->state.tokens += rows_per_step(s) * s->seq_len;
    t->step_tokens += rows_per_step(s) * s->seq_len;
    t->step_seconds += now - before;
    *m = (kr_metric){.step = t->state.step, .tokens = t->state.tokens, .loss = loss, .lr = lr, .grad_norm = norm,
                     .seconds = now - t->start, .eval_loss = NAN};
    return KR_OK;
}

/// Held-out loss, and whether it is the best so far.
static kr_status evaluate(kr_trainer *t, kr_metric *m, bool *best) {
    KR_TRY(kr_trainer_evaluate(t, &t->eval_loss));
    m->eval_loss = t->eval_loss;
    *best = !(t->state.best_loss <= t->eval_loss);
    if (*best) {
        t->state.best_loss = t->eval_loss;
        t->state.best_step = t->state.step;
    }
    return KR_OK;
}

/// What follows an update: evaluation, log, checkpoint.
static kr_status keep_books(kr_trainer *t, kr_metric *m, bool last) {
    const kr_train_settings *s = t->settings;
    const bool leaving = last || t->interrupted;
    bool best = false;
    if (last || due(s->eval_every, m->step)) KR_TRY(evaluate(t, m, &best));
    const bool logged = leaving || due(s->log_every, m->step) || m->step == 1 || !isnan(m->eval_loss);
    if (logged) KR_TRY(kr_metrics_write(t->metrics, m));
    kr_trainer_show_step(t, m, logged);
    if (leaving || best || due(s->save_every, m->step)) KR_TRY(kr_trainer_save(t, best));
    if (!isnan(m->eval_loss) && t->progress.live)
        kr_progress_note(&t->progress, "step %lld: held-out loss %.4f%s", (long long)m->step, m->eval_loss,
                         best ? ", the best so far; saved" : "");
    return KR_OK;
}

static bool wanted_to_stop(const kr_trainer *t) { return t->host->stop && t->host->stop(t->host->own); }

static kr_status steps(kr_trainer *t) {
    const kr_train_settings *s = t->settings;
    double window_start = 0;
    int64_t window_tokens = 0;
    kr_metric m = {.step = t->state.step, .eval_loss = NAN};
    t->interrupted = s->stop_after > 0 && t->state.step >= s->stop_after && t->state.step < s->steps;
    while (t->state.step < s->steps && !t->interrupted) {
        KR_TRY(advance(t, &m));
        const double spent = t->step_seconds - window_start;
        m.tokens_per_second = spent > 0 ? (double)(t->step_tokens - window_tokens) / spent : 0;
        if (due(s->log_every, m.step)) window_start = t->step_seconds, window_tokens = t->step_tokens;
        const bool last = m.step >= s->steps;
        t->interrupted = !last && (wanted_to_stop(t) || (s->stop_after > 0 && m.step >= s->stop_after));
        KR_TRY(keep_books(t, &m, last));
    }
    if (isnan(t->eval_loss) && !t->interrupted) { // resumed at its end
        bool best;
        return evaluate(t, &m, &best);
    }
    return KR_OK;
}

kr_status kr_trainer_loop(kr_trainer *t) {
    const kr_train_host *host = t->host;
    if (host->steps) host->steps(host->own, true);
    t->progress = kr_progress_start(host->progress, t->state.step, t->settings->steps);
    const kr_status status = steps(t);
    kr_progress_end(&t->progress);
    if (host->steps) host->steps(host->own, false);
    return not_finite(t, status);
}
