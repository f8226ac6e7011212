// state.json: where a run is, and with what it was made. The settings are written through their option table, so a
// new flag is saved and compared without another line here.
#include "tools/train/state.h"
#include "tools/config/train_options.h"

#include <inttypes.h>
#include <json-c/json.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char format_name[] = "krait run 2";
// Its checkpoints lack the optimiser's step count, which is the number of the step here.
static const char uncounted_format[] = "krait run 1";

/// The shortest decimal that reads back to the same double.
static json_object *real_json(double value) {
    char text[40];
    for (int digits = 6; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        if (strtod(text, NULL) == value) break;
    }
    return json_object_new_double_s(value, text);
}

static json_object *option_json(const kr_option *o, const void *from) {
    const void *field = (const char *)from + o->offset;
    switch (o->type) {
    case KR_OPTION_FLAG: return json_object_new_boolean(*(const bool *)field);
    case KR_OPTION_INTEGER: return json_object_new_int64(*(const int64_t *)field);
    case KR_OPTION_INT: return json_object_new_int(*(const int *)field);
    case KR_OPTION_SEED: return json_object_new_uint64(*(const uint64_t *)field);
    case KR_OPTION_REAL: return real_json(*(const double *)field);
    case KR_OPTION_CHOICE: {
        const char *word = o->choices;
        for (int k = 0; k < *(const int *)field; k++) word = strchr(word, '|') + 1;
        return json_object_new_string_len(word, (int)strcspn(word, "|"));
    }
    default: return NULL; // texts are paths of this machine: told elsewhere, and no part of the training
    }
}

static bool is_saved(const kr_option *o) {
    return !(o->flags & (KR_OPTION_COMMAND_LINE | KR_OPTION_LOCAL)) && o->type != KR_OPTION_TEXT &&
           o->type != KR_OPTION_LIST;
}

kr_status kr_state_json(const kr_train_state *s, const char *data_path, char **out) {
    char *model = kr_model_config_json(&s->model), hash[24];
    json_object *root = json_object_new_object(), *data = json_object_new_object(),
                *settings = json_object_new_object();
    KR_FAIL_IF(!model || !root || !data || !settings, KR_NO_MEMORY, "no memory for state.json");
    snprintf(hash, sizeof hash, "%016" PRIx64, s->data_fingerprint);
    json_object_object_add(data, "path", json_object_new_string(data_path));
    json_object_object_add(data, "fingerprint", json_object_new_string(hash));
    json_object_object_add(data, "next_row", json_object_new_int64(s->row));
    for (const kr_option *o = kr_train_options; o->name; o++) {
        if (!is_saved(o)) continue;
        char key[80];
        snprintf(key, sizeof key, "%s", o->name);
        for (char *c = key; *c; c++)
            if (*c == '-') *c = '_';
        json_object_object_add(settings, key, option_json(o, &s->settings));
    }
    json_object_object_add(root, "format", json_object_new_string(format_name));
    json_object_object_add(root, "step", json_object_new_int64(s->step));
    json_object_object_add(root, "tokens", json_object_new_int64(s->tokens));
    json_object_object_add(root, "best_loss", isnan(s->best_loss) ? NULL : real_json(s->best_loss));
    json_object_object_add(root, "best_step", json_object_new_int64(s->best_step));
    if (s->graph_fingerprint) {
        snprintf(hash, sizeof hash, "%016" PRIx64, s->graph_fingerprint);
        json_object_object_add(root, "graph", json_object_new_string(hash));
    }
    json_object_object_add(root, "data", data);
    json_object_object_add(root, "model", json_tokener_parse(model));
    json_object_object_add(root, "settings", settings);
    free(model);
    const int style = JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_SPACED | JSON_C_TO_STRING_NOSLASHESCAPE;
    const char *text = json_object_to_json_string_ext(root, style);
    *out = text && asprintf(out, "%s\n", text) > 0 ? *out : NULL;
    json_object_put(root);
    KR_FAIL_IF(!*out, KR_NO_MEMORY, "no memory for state.json");
    return KR_OK;
}

static json_object *get(json_object *o, const char *key, json_type type) {
    json_object *value;
    if (!json_object_object_get_ex(o, key, &value)) return NULL;
    if (type == json_type_double && json_object_is_type(value, json_type_int)) return value;
    return json_object_is_type(value, type) ? value : NULL;
}

static kr_status read_settings(json_object *from, const char *label, kr_train_settings *out) {
    *out = kr_train_defaults();
    for (const kr_option *o = kr_train_options; o->name; o++) {
        json_object *value;
        if (!is_saved(o)) continue;
        char key[80];
        snprintf(key, sizeof key, "%s", o->name);
        for (char *c = key; *c; c++)
            if (*c == '-') *c = '_';
        if (!json_object_object_get_ex(from, key, &value) || !value) continue;
        // -1 stands for "derived" (a tenth); the ranges are those of people.
        if (o->type == KR_OPTION_REAL && json_object_get_double(value) < o->lo) {
            *(double *)((char *)out + o->offset) = -1;
        } else if (o->type == KR_OPTION_INTEGER && json_object_get_int64(value) == -1) {
            *(int64_t *)((char *)out + o->offset) = -1;
        } else {
            char spelling[160];
            snprintf(spelling, sizeof spelling, "%s: %s", label, key);
            KR_TRY(kr_option_set(o, spelling, json_object_get_string(value), out));
        }
    }
    return KR_OK;
}

static kr_status read_state(json_object *root, const char *label, kr_train_state *out) {
    json_object *format = get(root, "format", json_type_string), *step = get(root, "step", json_type_int),
                *tokens = get(root, "tokens", json_type_int), *best = get(root, "best_loss", json_type_double),
                *best_step = get(root, "best_step", json_type_int), *data = get(root, "data", json_type_object),
                *model = get(root, "model", json_type_object), *settings = get(root, "settings", json_type_object);
    const char *named = format ? json_object_get_string(format) : "";
    const bool uncounted = !strcmp(named, uncounted_format);
    KR_FAIL_IF(!uncounted && strcmp(named, format_name), KR_BAD_FILE,
               "%s: \"format\" is not \"%s\": not the state of a run, or of another version", label, format_name);
    json_object *hash = data ? get(data, "fingerprint", json_type_string) : NULL;
    json_object *row = data ? get(data, "next_row", json_type_int) : NULL;
    KR_FAIL_IF(!step || !tokens || !best_step || !hash || !row || !model || !settings, KR_BAD_FILE,
               "%s: one of step, tokens, best_step, data, model, settings is missing or of a wrong type", label);
    *out = (kr_train_state){.step = json_object_get_int64(step), .row = json_object_get_int64(row),
                            .tokens = json_object_get_int64(tokens), .best_step = json_object_get_int64(best_step),
                            .uncounted = uncounted, .best_loss = best ? json_object_get_double(best) : NAN,
                            .data_fingerprint = strtoull(json_object_get_string(hash), NULL, 16)};
    KR_FAIL_IF(out->step < 0 || out->row < 0 || out->tokens < 0, KR_BAD_FILE,
               "%s: step, next_row or tokens is negative", label);
    json_object *graph = get(root, "graph", json_type_string);
    if (graph) out->graph_fingerprint = strtoull(json_object_get_string(graph), NULL, 16);
    const char *text = json_object_to_json_string_ext(model, JSON_C_TO_STRING_PLAIN);
    KR_TRY(kr_model_config_parse(text, strlen(text), &out->model));
    return read_settings(settings, label, &out->settings);
}

kr_status kr_state_parse(const char *json, size_t bytes, const char *label, kr_train_state *out) {
    KR_FAIL_IF(bytes > 1 << 24, KR_BAD_FILE, "%s: %zu bytes are too many for a state", label, bytes);
    json_tokener *reader = json_tokener_new_ex(16);
    KR_FAIL_IF(!reader, KR_NO_MEMORY, "%s: no memory to read it", label);
    json_object *root = json_tokener_parse_ex(reader, json, (int)bytes);
    const enum json_tokener_error error = json_tokener_get_error(reader);
    const size_t at = json_tokener_get_parse_end(reader);
    json_tokener_free(reader);
    if (error != json_tokener_success || !json_object_is_type(root, json_type_object)) {
        json_object_put(root);
        KR_FAIL(KR_BAD_FILE, "%s: %s at byte %zu", label,
                error ? json_tokener_error_desc(error) : "not a JSON object", at);
    }
    const kr_status status = read_state(root, label, out);
    json_object_put(root);
    return status;
}

/// The first key whose values differ; gives false when there is none. Nested objects are looked into.
static bool first_difference(json_object *a, json_object *b, char *text, size_t bytes) {
    json_object_object_foreach(a, key, value) {
        json_object *other;
        if (!strcmp(key, "name")) continue; // models may be renamed
        if (!json_object_object_get_ex(b, key, &other)) other = NULL;
        if (json_object_equal(value, other)) continue;
        if (json_object_is_type(value, json_type_object) && json_object_is_type(other, json_type_object)) {
            if (first_difference(value, other, text, bytes)) return true;
            continue;
        }
        snprintf(text, bytes, "%s is %s in the checkpoint, %s now", key, json_object_to_json_string(value),
                 other ? json_object_to_json_string(other) : "absent");
        return true;
    }
    return false;
}

kr_status kr_state_continues(const kr_train_state *saved, const kr_train_state *now, char *note, size_t note_bytes) {
    KR_FAIL_IF(saved->graph_fingerprint != now->graph_fingerprint, KR_BAD_ARGUMENT,
               "--resume: the checkpoint is not one of this %s (--graph fingerprint %016" PRIx64 " there, %016" PRIx64
               " now)",
               now->graph_fingerprint ? "graph" : "model", saved->graph_fingerprint, now->graph_fingerprint);
    // What was said then must hold now, by being said again or as a default
    char *then_text = kr_model_config_json(&saved->model), *now_text = kr_model_config_json_complete(&now->model);
    json_object *a = then_text ? json_tokener_parse(then_text) : NULL,
                *b = now_text ? json_tokener_parse(now_text) : NULL;
    char difference[256];
    const bool memory = a && b, differs = memory && first_difference(a, b, difference, sizeof difference);
    json_object_put(a);
    json_object_put(b);
    free(then_text);
    free(now_text);
    KR_FAIL_IF(!memory, KR_NO_MEMORY, "no memory to compare models");
    KR_FAIL_IF(differs, KR_BAD_ARGUMENT, "--resume: the model is not the one of the checkpoint: %s", difference);
    KR_FAIL_IF(saved->data_fingerprint != now->data_fingerprint, KR_BAD_ARGUMENT,
               "--resume: the text is not the one of the checkpoint (fingerprint %016" PRIx64 " there, %016" PRIx64
               " now); give the same --text-file and --document-separator",
               saved->data_fingerprint, now->data_fingerprint);
    KR_FAIL_IF(saved->settings.carry_state != now->settings.carry_state, KR_BAD_ARGUMENT,
               "--resume: the checkpoint was trained %s --carry-state",
               saved->settings.carry_state ? "with" : "without");
    KR_FAIL_IF(now->settings.carry_state && saved->settings.batch_size != now->settings.batch_size, KR_BAD_ARGUMENT,
               "--resume: --carry-state has a stream for each of %lld rows; --batch-size cannot become %lld",
               (long long)saved->settings.batch_size, (long long)now->settings.batch_size);
    KR_FAIL_IF(saved->step > now->settings.steps, KR_BAD_ARGUMENT,
               "--resume: the checkpoint is at step %lld, beyond --steps %lld", (long long)saved->step,
               (long long)now->settings.steps);
    size_t n = 0;
    note[0] = 0;
    for (const kr_option *o = kr_train_options; o->name; o++) {
        if (!is_saved(o)) continue;
        json_object *then = option_json(o, &saved->settings), *next = option_json(o, &now->settings);
        if (!json_object_equal(then, next) && n < note_bytes) {
            n += (size_t)snprintf(note + n, note_bytes - n, "%s%s %s", n ? ", " : "", o->name,
                                  json_object_get_string(then));
            if (n < note_bytes) n += (size_t)snprintf(note + n, note_bytes - n, " -> %s", json_object_get_string(next));
        }
        json_object_put(then);
        json_object_put(next);
    }
    return KR_OK;
}
