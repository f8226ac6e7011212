// What a run says of itself: what is trained and what it needs, each step, how it ended.
#include "tools/cli/text.h"
#include "tools/train/report.h"
#include "tools/train/trainer.h"

#include <math.h>
#include <stdarg.h>

void kr_trainer_say(const kr_trainer *t, const char *format, ...) {
    if (!t->host->report) return;
    va_list args;
    va_start(args, format);
    vfprintf(t->host->report, format, args);
    va_end(args);
    fflush(t->host->report);
}

void kr_trainer_describe(const kr_trainer *t) {
    FILE *out = t->host->report;
    if (!out) return;
    const kr_train_settings *s = t->settings;
    const kr_model_config *m = t->model;
    static const char *const schedules[] = {"cosine", "wsd", "constant"};
    const char *source = t->host->model_source;
    char a[32], b[32], c[32], layers[160];
    if (t->graph.text)
        fprintf(out, "graph    %s: %lld parameters\n", s->graph, (long long)t->stats.param_elements);
    else
        fprintf(out, "model    %s%s%s%s: %s, d_model %lld, vocabulary %lld: %lld parameters\n", m->name,
                 source ? " (" : "", source ? source : "", source ? ")" : "", kr_layers_text(m, layers),
                (long long)m->d_model, (long long)m->vocab_size, (long long)t->stats.param_elements);
    if (m->vocab_size > 256)
        fprintf(out, "         text is read as bytes: of the vocabulary only ids 0 to 255 occur\n");
    if (t->data) {
        fprintf(out, "text     %s: %lld bytes to learn from, %lld held out", kr_data_path(t->data),
                (long long)kr_data_train_bytes(t->data), (long long)kr_data_held_out_bytes(t->data));
        if (s->document_separator) fprintf(out, ", %lld documents", (long long)kr_data_documents(t->data));
        fprintf(out, "\n");
    }
    const double tokens = (double)s->batch_size * (double)s->seq_len * (double)s->grad_accumulation;
    fprintf(out, "steps    %lld of %.0f tokens (%lld x %lld", (long long)s->steps, tokens, (long long)s->batch_size,
            (long long)s->seq_len);
    if (s->grad_accumulation > 1) fprintf(out, ", %lld micro-batches", (long long)s->grad_accumulation);
    if (s->carry_state) fprintf(out, ", which go on where the ones before ended");
    fprintf(out, "): %s tokens\n", kr_count_text(tokens * (double)s->steps, a));
    fprintf(out, "rate     %g, %lld steps of warm-up, %s", s->learning_rate, (long long)s->warmup,
            schedules[s->schedule]);
    if (s->schedule != KR_SCHEDULE_CONSTANT) fprintf(out, " to %g", t->schedule.lr_min);
    fprintf(out, "; betas %g %g, decay %g, clip %g; seed %llu\n", s->beta1, s->beta2, s->weight_decay, s->grad_clip,
            (unsigned long long)s->seed);
    fprintf(out, "machine  %s\n", t->machine);
    fprintf(out, "memory   %s expected: %s in arenas, of which %s activations (%.3f times the lower bound)\n",
           kr_bytes_text((double)t->memory.total, a), kr_bytes_text((double)t->memory.arenas, b),
           kr_bytes_text((double)t->stats.peak, c),
           t->stats.bound ? (double)t->stats.peak / (double)t->stats.bound : 1.0);
    if (t->stats.recomputed)
        fprintf(out, "         %d of %d steps are recomputed in the backward part: %.1f %% more time (estimated)\n",
                t->stats.recomputed, t->stats.steps, 100 * t->stats.extra);
    if (kr_blas_warning()) fprintf(out, "warning  %s\n", kr_blas_warning());
    const size_t available = kr_memory_available();
    if (available && t->memory.total > available + t->memory.process)
        fprintf(out, "warning  only %s are available: a smaller --batch-size or --seq-len needs less\n",
                kr_bytes_text((double)available, a));
    if (s->dry_run || s->memory_report) kr_memory_print(&t->memory, &t->stats, out);
    if (s->memory_report)
        kr_memory_curve_print(&t->curve, t->memory.total - kr_plan_stats_bytes(&t->stats), out);
    fflush(out);
}

void kr_trainer_show_step(kr_trainer *t, const kr_metric *m, bool logged) {
    char line[256], left[32], eval[48] = "";
    if (!kr_progress_due(&t->progress, logged)) return;
    kr_duration_text(kr_progress_left(&t->progress, m->step), left);
    if (!isnan(m->eval_loss)) snprintf(eval, sizeof eval, " | held out %.4f", m->eval_loss);
    if (t->progress.live)
        snprintf(line, sizeof line, "loss %.3f  lr %.1e  norm %.2f  %.0f tokens/s  %s left", m->loss, m->lr,
                 m->grad_norm, m->tokens_per_second, left);
    else
        snprintf(line, sizeof line, "step %lld/%lld | loss %.4f%s | lr %.2e | grad norm %.3f | %.0f tokens/s | %s left",
                 (long long)m->step, (long long)t->progress.total, m->loss, eval, m->lr, m->grad_norm,
                 m->tokens_per_second, left);
    kr_progress_show(&t->progress, m->step, line);
}

static kr_status report(const kr_trainer *t) {
    char a[32];
    const double speed = t->step_seconds > 0 ? (double)t->step_tokens / t->step_seconds : 0;
    const kr_report report = {.directory = t->directory, .settings = t->settings, .model = t->model, .stats = &t->stats,
                              .memory = &t->memory, .state = &t->state, .eval_loss = t->eval_loss,
                              .seconds = t->step_seconds, .tokens_per_second = speed, .highest = kr_memory_highest(),
                              .machine = t->machine};
    KR_TRY(kr_report_write(&report));
    kr_trainer_say(t, "held out %.4f nats per byte (%.4f bits); best %.4f at step %lld\n", t->eval_loss,
                   t->eval_loss / M_LN2, t->state.best_loss, (long long)t->state.best_step);
    kr_trainer_say(t, "speed    %.0f tokens/s, %s in all\n", speed, kr_duration_text(kr_seconds() - t->start, a));
    kr_trainer_say(t, "run      %s (report.md, loss.svg, metrics.jsonl, best, latest)\n", t->directory);
    return KR_OK;
}

kr_status kr_trainer_finish(const kr_trainer *t) {
    char a[32], b[32];
    if (t->interrupted)
        kr_trainer_say(t, "stopped  at step %lld, saved; to go on: the same command with --resume --output-dir %s\n",
                       (long long)t->state.step, t->directory);
    else KR_TRY(report(t));
    if (t->settings->memory_report)
        kr_trainer_say(t, "memory   %s resident at most, %s expected\n",
                       kr_bytes_text((double)kr_memory_highest(), a), kr_bytes_text((double)t->memory.total, b));
    return KR_OK;
}
