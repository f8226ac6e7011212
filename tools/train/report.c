// report.md and loss.svg: what a run was and how it went, readable without any program of ours.
#include "tools/train/report.h"
#include "tools/cli/text.h"
#include "tools/train/metrics.h"
#include "tools/train/run.h"
#include "tools/train/schedule.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { WIDTH = 800, HEIGHT = 420, LEFT = 60, RIGHT = 20, TOP = 20, BOTTOM = 50 };

typedef struct frame {
    double first, last, low, high; // steps across, loss upwards
} frame;

static double across(const frame *f, double step) {
    return LEFT + (WIDTH - LEFT - RIGHT) * (step - f->first) / (f->last - f->first);
}

static double down(const frame *f, double loss) {
    return TOP + (HEIGHT - TOP - BOTTOM) * (f->high - loss) / (f->high - f->low);
}

/// Bounds of everything finite, widened so that neither axis is empty.
static frame find_frame(const kr_metric *m, int count) {
    frame f = {0, 1, INFINITY, -INFINITY};
    for (int k = 0; k < count; k++) {
        const double values[2] = {m[k].loss, m[k].eval_loss};
        for (int v = 0; v < 2; v++)
            if (isfinite(values[v])) f.low = fmin(f.low, values[v]), f.high = fmax(f.high, values[v]);
        f.last = fmax(f.last, (double)m[k].step);
    }
    if (!(f.low <= f.high)) f.low = 0, f.high = 1;
    const double margin = fmax((f.high - f.low) * 0.05, 1e-3);
    f.low -= margin;
    f.high += margin;
    return f;
}

/// A distance of 1, 2 or 5 times a power of ten that gives about six lines.
static double tick(double span) {
    const double raw = span / 6, power = pow(10, floor(log10(raw)));
    return power * (raw / power < 1.5 ? 1 : raw / power < 3.5 ? 2 : raw / power < 7.5 ? 5 : 10);
}

static void draw_axes(FILE *out, const frame *f) {
    const double dy = tick(f->high - f->low), dx = fmax(tick(f->last - f->first), 1);
    for (double y = ceil(f->low / dy) * dy; y <= f->high; y += dy)
        fprintf(out, "<line x1='%d' x2='%d' y1='%.1f' y2='%.1f' stroke='#8884'/>"
                "<text x='%d' y='%.1f' text-anchor='end'>%.4g</text>\n", LEFT, WIDTH - RIGHT, down(f, y), down(f, y),
                LEFT - 8, down(f, y) + 4, fabs(y) < dy / 2 ? 0.0 : y);
    for (double x = ceil(f->first / dx) * dx; x <= f->last; x += dx)
        fprintf(out, "<line x1='%.1f' x2='%.1f' y1='%d' y2='%d' stroke='#8884'/>"
                "<text x='%.1f' y='%d' text-anchor='middle'>%.0f</text>\n", across(f, x), across(f, x), TOP,
                HEIGHT - BOTTOM, across(f, x), HEIGHT - BOTTOM + 18, x);
    fprintf(out, "<text x='%d' y='%d' text-anchor='middle'>step</text>\n", (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10);
    fprintf(out, "<text transform='translate(14 %d) rotate(-90)' text-anchor='middle'>loss, nats per byte</text>\n",
            (TOP + HEIGHT - BOTTOM) / 2);
}

static void draw_curve(FILE *out, const frame *f, const kr_metric *m, int count, bool held_out) {
    const char *color = held_out ? "#d62728" : "#1f77b4";
    fprintf(out, "<polyline fill='none' stroke='%s' stroke-width='%s' points='", color, held_out ? "2" : "1.5");
    for (int k = 0; k < count; k++) {
        const double loss = held_out ? m[k].eval_loss : m[k].loss;
        if (isfinite(loss)) fprintf(out, "%.1f,%.1f ", across(f, (double)m[k].step), down(f, loss));
    }
    fprintf(out, "'/>\n");
    for (int k = 0; k < count && held_out; k++)
        if (isfinite(m[k].eval_loss))
            fprintf(out, "<circle cx='%.1f' cy='%.1f' r='3' fill='%s'><title>step %lld: %.4f</title></circle>\n",
                    across(f, (double)m[k].step), down(f, m[k].eval_loss), color, (long long)m[k].step, m[k].eval_loss);
    fprintf(out, "<text x='%d' y='%d' fill='%s'>%s</text>\n", WIDTH - RIGHT - 110, TOP + (held_out ? 36 : 18), color,
            held_out ? "held out" : "training");
}

static void draw(FILE *out, const kr_metric *m, int count) {
    const frame f = find_frame(m, count);
    fprintf(out, "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 %d %d' width='%d' height='%d' "
            "font-family='sans-serif' font-size='12' fill='#777'>\n<title>Loss by step</title>\n", WIDTH, HEIGHT, WIDTH,
            HEIGHT);
    draw_axes(out, &f);
    draw_curve(out, &f, m, count, false);
    draw_curve(out, &f, m, count, true);
    fprintf(out, "</svg>\n");
}

const char *kr_layers_text(const kr_model_config *m, char text[160]) {
    const kr_block_kind *first = kr_model_layer(m, 0);
    size_t n = 0;
    if (!m->layers[0]) {
        snprintf(text, 160, "%d layers of %s", m->n_layer, first ? first->name : m->layer);
        return text;
    }
    n += (size_t)snprintf(text, 160, "%d layers:", m->n_layer);
    for (int k = 0; k < m->n_layer && n < 160; k++) { // each kind where it comes first, with how many there are
        const kr_block_kind *kind = kr_model_layer(m, k);
        int count = 0;
        bool earlier = false;
        for (int i = 0; i < m->n_layer; i++) {
            count += kr_model_layer(m, i) == kind;
            earlier |= i < k && kr_model_layer(m, i) == kind;
        }
        if (!earlier)
            n += (size_t)snprintf(text + n, 160 - n, "%s %d %s", k ? "," : "", count, kind ? kind->name : "?");
    }
    return text;
}

static void describe(FILE *out, const kr_report *r) {
    const kr_train_settings *s = r->settings;
    const kr_model_config *m = r->model;
    char a[32], b[32], c[32];
    static const char *const schedules[] = {"cosine", "wsd", "constant"};
    fprintf(out, "# Run `%s`\n\n![loss](loss.svg)\n\n", r->directory);
    fprintf(out, "| | |\n|---|---|\n");
    char layers[160];
    if (s->graph)
        fprintf(out, "| graph | %s, %s parameters |\n", s->graph, kr_count_text((double)r->stats->param_elements, a));
    else
        fprintf(out, "| model | %s: %s, d_model %lld, %s parameters |\n", m->name, kr_layers_text(m, layers),
                (long long)m->d_model, kr_count_text((double)r->stats->param_elements, a));
    fprintf(out, "| text | %s |\n", s->text_file);
    fprintf(out, "| steps | %lld of %lld, %s bytes seen |\n", (long long)r->state->step, (long long)s->steps,
            kr_count_text((double)r->state->tokens, a));
    fprintf(out, "| held-out loss | %.4f nats per byte (%.4f bits) at the end |\n", r->eval_loss, r->eval_loss / M_LN2);
    if (!isnan(r->state->best_loss))
        fprintf(out, "| best | %.4f at step %lld |\n", r->state->best_loss, (long long)r->state->best_step);
    fprintf(out, "| batch | %lld rows of %lld bytes, %lld micro-batch%s per step |\n", (long long)s->batch_size,
            (long long)s->seq_len, (long long)s->grad_accumulation, s->grad_accumulation == 1 ? "" : "es");
    const kr_schedule schedule = kr_train_schedule(s);
    fprintf(out, "| learning rate | %g, %s to %g, warm-up %lld |\n", s->learning_rate, schedules[s->schedule],
            s->schedule == KR_SCHEDULE_CONSTANT ? s->learning_rate : schedule.lr_min, (long long)s->warmup);
    fprintf(out, "| AdamW | betas %g, %g; epsilon %g; decay %g; clip %g |\n", s->beta1, s->beta2, s->epsilon,
            s->weight_decay, s->grad_clip);
    fprintf(out, "| seed | %llu |\n", (unsigned long long)s->seed);
    fprintf(out, "| machine | %s |\n", r->machine);
    fprintf(out, "| speed | %.0f tokens/s over %s |\n", r->tokens_per_second, kr_duration_text(r->seconds, a));
    fprintf(out, "| memory | %s expected, %s at most; activations %s |\n", kr_bytes_text((double)r->memory->total, a),
            kr_bytes_text((double)r->highest, b), kr_bytes_text((double)r->stats->peak, c));
    fprintf(out,
            "\n`best` and `latest` are the checkpoints; `metrics.jsonl` has every logged step. To let it write:\n\n"
            "    krait generate --checkpoint %s%s%s --prompt \"...\"\n",
            r->directory, s->graph ? " --graph " : "", s->graph ? s->graph : "");
}

static kr_status write_file(const kr_report *r, const char *name, const kr_metric *metrics, int count) {
    char *text = NULL, path[KR_RUN_PATH];
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    KR_FAIL_IF(!out, KR_NO_MEMORY, "no memory for %s", name);
    if (metrics) draw(out, metrics, count);
    else describe(out, r);
    const bool whole = fclose(out) == 0;
    snprintf(path, sizeof path, "%s/%s", r->directory, name);
    const kr_status status = whole ? kr_file_write(path, text, bytes)
                                   : kr_status_record(KR_NO_MEMORY, __FILE__, __LINE__, "no memory for %s", name);
    free(text);
    return status;
}

kr_status kr_report_write(const kr_report *r) {
    kr_metric *metrics;
    int count;
    KR_TRY(kr_metrics_read(r->directory, &metrics, &count));
    kr_status status = write_file(r, "loss.svg", metrics, count);
    free(metrics);
    if (!status) status = write_file(r, "report.md", NULL, 0);
    return status;
}
