// metrics.jsonl: one object per logged step, and the same numbers as TensorBoard events. Lines are written whole and
// at once; a run that is killed between two checkpoints leaves lines of steps that resuming will do again, so those
// are dropped when a run is resumed.
#include "tools/train/metrics.h"
#include "tools/train/events.h"

#include <errno.h>
#include <json-c/json.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct kr_metrics {
    char *path;
    FILE *file;
    kr_events *events;
};

static char *join(const char *directory, const char *name) {
    char *path = NULL;
    return asprintf(&path, "%s/%s", directory, name) < 0 ? NULL : path;
}

static double number(json_object *o, const char *key) {
    json_object *value;
    return json_object_object_get_ex(o, key, &value) && value ? json_object_get_double(value) : NAN;
}

static bool read_line(const char *line, kr_metric *out) {
    json_object *o = json_tokener_parse(line);
    const bool good = o && json_object_is_type(o, json_type_object) && !isnan(number(o, "step"));
    if (good)
        *out = (kr_metric){
            .step = (int64_t)number(o, "step"), .tokens = (int64_t)number(o, "tokens"), .loss = number(o, "loss"),
            .lr = number(o, "lr"), .grad_norm = number(o, "grad_norm"), .seconds = number(o, "time"),
            .tokens_per_second = number(o, "tokens_per_second"), .eval_loss = number(o, "eval_loss")};
    if (o) json_object_put(o);
    return good;
}

kr_status kr_metrics_read(const char *directory, kr_metric **out, int *count) {
    char *path = join(directory, "metrics.jsonl"), *text = NULL;
    KR_FAIL_IF(!path, KR_NO_MEMORY, "%s: no memory to read its metrics", directory);
    size_t bytes;
    const kr_status status = kr_file_read(path, &text, &bytes);
    free(path);
    if (status) return status;
    int room = 1;
    for (size_t k = 0; k < bytes; k++) room += text[k] == '\n';
    kr_metric *list = calloc((size_t)room, sizeof *list);
    *count = 0;
    char *rest = text, *line;
    while (list && (line = strsep(&rest, "\n")))
        if (read_line(line, &list[*count])) ++*count;
    free(text);
    KR_FAIL_IF(!list, KR_NO_MEMORY, "%s: no memory to read its metrics", directory);
    return *out = list, KR_OK;
}

/// Rewrites metrics.jsonl without what comes after step `last`: later steps, a cut line, foreign lines.
static kr_status keep_until(const char *path, int64_t last) {
    char *text;
    size_t bytes, kept = 0;
    KR_TRY(kr_file_read(path, &text, &bytes));
    for (char *line = text, *end; (end = memchr(line, '\n', bytes - (size_t)(line - text))); line = end + 1) {
        kr_metric m;
        *end = 0;
        const bool keep = read_line(line, &m) && m.step <= last;
        *end = '\n';
        const size_t length = (size_t)(end + 1 - line);
        if (keep) {
            memmove(text + kept, line, length);
            kept += length;
        }
    }
    const kr_status status = kept == bytes ? KR_OK : kr_file_write(path, text, kept);
    free(text);
    return status;
}

kr_status kr_metrics_open(const char *directory, int64_t resumed, kr_metrics **out) {
    kr_metrics *m = calloc(1, sizeof *m);
    KR_FAIL_IF(!m, KR_NO_MEMORY, "%s: no memory for metrics", directory);
    m->path = join(directory, "metrics.jsonl");
    kr_status status = m->path ? KR_OK : kr_status_record(KR_NO_MEMORY, __FILE__, __LINE__, "no memory for metrics");
    if (!status && resumed > 0 && access(m->path, F_OK) == 0) status = keep_until(m->path, resumed);
    if (!status) {
        m->file = fopen(m->path, resumed > 0 ? "ae" : "we");
        if (!m->file)
            status = kr_status_record(KR_IO, __FILE__, __LINE__, "cannot write %s: %s", m->path, strerror(errno));
    }
    if (!status) status = kr_events_open(directory, &m->events);
    if (status) return kr_metrics_close(m), status;
    return *out = m, KR_OK;
}

/// JSON has no NaN; null says that there is no such number.
static const char *json_number(double value, char text[40]) {
    if (isfinite(value)) snprintf(text, 40, "%.9g", value);
    else strcpy(text, "null");
    return text;
}

kr_status kr_metrics_write(kr_metrics *m, const kr_metric *v) {
    char line[512], loss[40], lr[40], norm[40], speed[40], seconds[40], eval[40];
    int n = snprintf(line, sizeof line,
                     "{\"step\": %lld, \"loss\": %s, \"lr\": %s, \"grad_norm\": %s, \"tokens\": %lld, "
                     "\"tokens_per_second\": %s, \"time\": %s",
                     (long long)v->step, json_number(v->loss, loss), json_number(v->lr, lr),
                     json_number(v->grad_norm, norm), (long long)v->tokens, json_number(v->tokens_per_second, speed),
                     json_number(v->seconds, seconds));
    if (!isnan(v->eval_loss))
        n += snprintf(line + n, sizeof line - (size_t)n, ", \"eval_loss\": %s", json_number(v->eval_loss, eval));
    n += snprintf(line + n, sizeof line - (size_t)n, "}\n");
    const bool good = fwrite(line, 1, (size_t)n, m->file) == (size_t)n && fflush(m->file) == 0;
    KR_FAIL_IF(!good, KR_IO, "cannot write %s: %s", m->path, strerror(errno));
    KR_TRY(kr_events_scalar(m->events, v->step, "loss/train", v->loss));
    KR_TRY(kr_events_scalar(m->events, v->step, "lr", v->lr));
    KR_TRY(kr_events_scalar(m->events, v->step, "grad_norm", v->grad_norm));
    KR_TRY(kr_events_scalar(m->events, v->step, "tokens_per_second", v->tokens_per_second));
    if (!isnan(v->eval_loss)) KR_TRY(kr_events_scalar(m->events, v->step, "loss/eval", v->eval_loss));
    return KR_OK;
}

kr_status kr_metrics_close(kr_metrics *m) {
    if (!m) return KR_OK;
    kr_status status = kr_events_close(m->events);
    if (m->file && fclose(m->file) != 0)
        status = kr_status_record(KR_IO, __FILE__, __LINE__, "cannot write %s: %s", m->path, strerror(errno));
    free(m->path);
    free(m);
    return status;
}
