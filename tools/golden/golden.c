// Reading golden files and comparing with them.
#include "tools/golden/golden.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

bool kr_golden_has(const kr_golden *c, const char *name) { return kr_tensors_find(c->file, name) != NULL; }

/// [B, X..., L] to [B, L, X...].
static void time_to_front(kr_golden_tensor *t, const double *from) {
    const int last = t->shape.rank - 1;
    const int64_t batch = t->shape.dim[0], length = t->shape.dim[last];
    int64_t inner = 1;
    for (int k = 1; k < last; k++) inner *= t->shape.dim[k];
    for (int64_t b = 0; b < batch; b++)
        for (int64_t x = 0; x < inner; x++)
            for (int64_t l = 0; l < length; l++)
                t->data[(b * length + l) * inner + x] = from[(b * inner + x) * length + l];
    for (int k = last; k > 1; k--) t->shape.dim[k] = t->shape.dim[k - 1];
    t->shape.dim[1] = length;
}

kr_status kr_golden_read(kr_golden *c, const char *name, kr_golden_layout layout, kr_golden_tensor *out) {
    *out = (kr_golden_tensor){0};
    const kr_tensor_entry *e = kr_tensors_find(c->file, name);
    KR_FAIL_IF(!e, KR_BAD_FILE, "it has no tensor \"%s\"", name);
    kr_golden_tensor t = {.shape = e->shape, .count = kr_shape_count(&e->shape)};
    t.data = kr_pool_take(c->pool, (size_t)(t.count + 1) * sizeof *t.data);
    KR_FAIL_IF(!t.data, KR_NO_MEMORY, "no memory for tensor \"%s\"", name);
    KR_TRY(kr_tensors_to_f64(e, t.data, t.count));
    if (layout == KR_GOLDEN_TIME_LAST && t.shape.rank > 2) {
        const double *from = t.data;
        t.data = kr_pool_take(c->pool, (size_t)(t.count + 1) * sizeof *t.data);
        KR_FAIL_IF(!t.data, KR_NO_MEMORY, "no memory for tensor \"%s\"", name);
        time_to_front(&t, from);
    }
    *out = t;
    return KR_OK;
}

kr_status kr_golden_text(const kr_golden *c, const char *key, const char **out) {
    *out = kr_tensors_metadata(c->file, key);
    KR_FAIL_IF(!*out, KR_BAD_FILE, "its metadata has no \"%s\"", key);
    return KR_OK;
}

kr_status kr_golden_real(const kr_golden *c, const char *key, double *out) {
    const char *text;
    char *end;
    KR_TRY(kr_golden_text(c, key, &text));
    *out = strtod(text, &end);
    KR_FAIL_IF(end == text || *end, KR_BAD_FILE, "its metadata \"%s\" is \"%s\", want a number", key, text);
    return KR_OK;
}

kr_status kr_golden_integer(const kr_golden *c, const char *key, int64_t *out) {
    const char *text;
    char *end;
    KR_TRY(kr_golden_text(c, key, &text));
    errno = 0;
    *out = strtoll(text, &end, 10);
    KR_FAIL_IF(end == text || *end || errno, KR_BAD_FILE, "its metadata \"%s\" is \"%s\", want an integer", key, text);
    return KR_OK;
}

float *kr_golden_f32(kr_golden *c, const kr_golden_tensor *t) {
    float *out = kr_pool_take(c->pool, (size_t)(t->count + 1) * sizeof *out);
    for (int64_t k = 0; out && k < t->count; k++) out[k] = (float)t->data[k];
    return out;
}

int32_t *kr_golden_i32(kr_golden *c, const kr_golden_tensor *t) {
    int32_t *out = kr_pool_take(c->pool, (size_t)(t->count + 1) * sizeof *out);
    for (int64_t k = 0; out && k < t->count; k++) out[k] = (int32_t)t->data[k];
    return out;
}

void kr_golden_compare_f64(kr_golden *c, const char *name, const double *got, const kr_golden_tensor *want,
                           double absolute, double relative) {
    double error = 0, largest = 0;
    for (int64_t k = 0; k < want->count; k++) {
        const double difference = fabs(got[k] - want->data[k]);
        if (!(difference <= error))
            error = isnan(difference) ? INFINITY : difference; // NaN compares false with anything
        if (fabs(want->data[k]) > largest) largest = fabs(want->data[k]);
    }
    const double tolerance = absolute + relative * largest, share = error > 0 ? error / tolerance : 0;
    c->compared++;
    if (c->compared > 1 && share <= c->worst) return;
    c->worst = share;
    c->error = error;
    c->tolerance = tolerance;
    snprintf(c->worst_name, sizeof c->worst_name, "%s", name);
}

kr_status kr_golden_compare(kr_golden *c, const char *name, const float *got, const kr_golden_tensor *want,
                            double absolute, double relative) {
    double *wide = kr_pool_take(c->pool, (size_t)(want->count + 1) * sizeof *wide);
    KR_FAIL_IF(!wide, KR_NO_MEMORY, "no memory to compare \"%s\"", name);
    for (int64_t k = 0; k < want->count; k++) wide[k] = got[k];
    kr_golden_compare_f64(c, name, wide, want, absolute, relative);
    return KR_OK;
}

kr_status kr_golden_compare_usual(kr_golden *c, const char *name, const float *got, const kr_golden_tensor *want) {
    const double within = c->within > 0 ? c->within : KR_GOLDEN_TOLERANCE;
    return kr_golden_compare(c, name, got, want, within, within);
}

void kr_golden_wrap(float *got, const kr_golden_tensor *want) {
    for (int64_t k = 0; k < want->count; k++)
        got[k] -= (float)(2 * M_PI * round((got[k] - want->data[k]) / (2 * M_PI)));
}

kr_status kr_golden_compare_slot(kr_golden *c, kr_session *s, const char *slot, const char *tensor, double absolute,
                                 double relative) {
    kr_golden_tensor want;
    KR_TRY(kr_golden_read(c, tensor, KR_GOLDEN_PLAIN, &want));
    const int index = kr_session_find(s, slot);
    KR_FAIL_IF(index < 0, KR_BAD_FILE, "tensor \"%s\" has no counterpart \"%s\"", tensor, slot);
    float *got = kr_pool_take(c->pool, (size_t)(want.count + 1) * sizeof *got);
    KR_FAIL_IF(!got, KR_NO_MEMORY, "no memory to compare \"%s\"", tensor);
    KR_TRY(kr_session_read(s, index, got, (size_t)want.count * sizeof *got));
    return kr_golden_compare(c, tensor, got, &want, absolute, relative);
}
