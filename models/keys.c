/// Blocks declare their hyper-parameters in tables; here values go through the tables into the blocks' structs.
#include "models/keys.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

// Settings --------------------------------------------------------------------------------------------------------

const char *kr_settings_get(const kr_settings *s, const char *name) {
    for (int i = 0; i < s->count; i++)
        if (!strcmp(s->at[i].name, name)) return s->at[i].value;
    return NULL;
}

kr_status kr_settings_set(kr_settings *s, const char *name, const char *format, ...) {
    char value[sizeof s->at->value];
    va_list list;
    va_start(list, format);
    const int length = vsnprintf(value, sizeof value, format, list);
    va_end(list);
    KR_FAIL_IF(!name[0] || strlen(name) >= sizeof s->at->name, KR_BAD_ARGUMENT,
               "settings: the key '%s' is empty or longer than %zu characters", name, sizeof s->at->name - 1);
    KR_FAIL_IF(length < 1 || (size_t)length >= sizeof value, KR_BAD_ARGUMENT,
               "settings: the value of %s is empty or longer than %zu characters", name, sizeof value - 1);
    int i = 0;
    while (i < s->count && strcmp(s->at[i].name, name)) i++;
    KR_FAIL_IF(i == KR_SETTINGS_MAX, KR_UNSUPPORTED, "settings: %s is one too many, at most %d can be given", name,
               KR_SETTINGS_MAX);
    if (i == s->count) strcpy(s->at[s->count++].name, name);
    strcpy(s->at[i].value, value);
    return KR_OK;
}

// One value -------------------------------------------------------------------------------------------------------

static kr_status out_of_range(const kr_key *k, const char *spelling, const char *text) {
    KR_FAIL(KR_BAD_ARGUMENT, "%s is %s, want %.15g to %.15g%s", spelling, text, k->lo, k->hi,
            isnan(k->value) ? ", or auto" : "");
}

static kr_status parse_choice(const kr_key *k, const char *spelling, const char *text, int *to) {
    int index = 0;
    for (const char *word = k->choices; word; index++) {
        const char *end = strchr(word, '|');
        const size_t length = end ? (size_t)(end - word) : strlen(word);
        if (strlen(text) == length && !strncmp(word, text, length)) return *to = index, KR_OK;
        word = end ? end + 1 : NULL;
    }
    KR_FAIL(KR_BAD_ARGUMENT, "%s is %s, want one of %s", spelling, text, k->choices);
}

static kr_status parse_range(const kr_key *k, const char *spelling, const char *text, double to[2]) {
    char *end;
    const double low = strtod(text, &end);
    const bool two = end != text && *end == ',';
    const char *rest = two ? end + 1 : "";
    const double high = strtod(rest, &end);
    KR_FAIL_IF(!two || end == rest || *end || !isfinite(low) || !(low >= k->lo) || !(high >= low), KR_BAD_ARGUMENT,
               "%s is [%s], want %.15g <= low <= high", spelling, text, k->lo);
    to[0] = low;
    to[1] = high;
    return KR_OK;
}

static void set_default(const kr_key *k, void *to) {
    switch (k->type) {
    case KR_KEY_IS_INT: *(int64_t *)to = isnan(k->value) ? KR_KEY_AUTO : (int64_t)k->value; break;
    case KR_KEY_IS_REAL: *(double *)to = k->value; break;
    case KR_KEY_IS_BOOL: *(bool *)to = k->value != 0; break;
    case KR_KEY_IS_CHOICE: *(int *)to = (int)k->value; break;
    case KR_KEY_IS_RANGE: ((double *)to)[0] = k->value, ((double *)to)[1] = INFINITY; break;
    }
}

kr_status kr_key_parse(const kr_key *k, const char *spelling, const char *text, void *to) {
    char *end;
    if (!text || (isnan(k->value) && !strcmp(text, "auto"))) return set_default(k, to), KR_OK;
    switch (k->type) {
    case KR_KEY_IS_INT: {
        errno = 0;
        const long long value = strtoll(text, &end, 10);
        KR_FAIL_IF(end == text || *end, KR_BAD_ARGUMENT, "%s is %s, want an integer", spelling, text);
        if (errno || (double)value < k->lo || (double)value > k->hi) return out_of_range(k, spelling, text);
        *(int64_t *)to = value;
        return KR_OK;
    }
    case KR_KEY_IS_REAL: {
        const double value = strtod(text, &end);
        KR_FAIL_IF(end == text || *end, KR_BAD_ARGUMENT, "%s is %s, want a number", spelling, text);
        if (!(value >= k->lo && value <= k->hi)) return out_of_range(k, spelling, text);
        *(double *)to = value;
        return KR_OK;
    }
    case KR_KEY_IS_BOOL:
        KR_FAIL_IF(strcmp(text, "true") && strcmp(text, "false"), KR_BAD_ARGUMENT, "%s is %s, want true or false",
                   spelling, text);
        *(bool *)to = text[0] == 't';
        return KR_OK;
    case KR_KEY_IS_CHOICE: return parse_choice(k, spelling, text, to);
    case KR_KEY_IS_RANGE: return parse_range(k, spelling, text, to);
    }
    KR_FAIL(KR_BAD_ARGUMENT, "%s has an unknown type", spelling);
}

// Tables ----------------------------------------------------------------------------------------------------------

const char *kr_key_name(const kr_block_kind *kind, const kr_key *k, char text[64]) {
    snprintf(text, 64, "%s%s%s", kind->section ? kind->section : "", kind->section ? "." : "", k->name);
    return text;
}

const kr_key *kr_key_find(const kr_block_kind *kind, const char *name) {
    for (const kr_key *k = kind->keys; k && k->name; k++)
        if (!strcmp(k->name, name)) return k;
    return NULL;
}

const char *kr_keys_list(const kr_block_kind *kind, char *text, size_t bytes) {
    size_t n = (size_t)snprintf(text, bytes, "%s", kind->keys && kind->keys->name ? "" : "none");
    for (const kr_key *k = kind->keys; k && k->name && n < bytes; k++)
        n += (size_t)snprintf(text + n, bytes - n, "%s%s", n ? ", " : "", k->name);
    return text;
}

kr_status kr_block_read(const kr_block_kind *kind, const kr_settings *given, void *keys) {
    for (const kr_key *k = kind->keys; k && k->name; k++) {
        char name[64], spelling[128];
        snprintf(spelling, sizeof spelling, "%s: %s", kind->name, k->name);
        KR_TRY(kr_key_parse(k, spelling, kr_settings_get(given, kr_key_name(kind, k, name)),
                            (char *)keys + k->offset));
    }
    return KR_OK;
}

kr_value kr_block_build(kr_graph *g, const kr_block_kind *kind, const kr_settings *given, const kr_block_config *c,
                        kr_value x) {
    union { max_align_t align; char bytes[KR_BLOCK_KEYS_BYTES]; } keys;
    kr_block_config own = *c;
    own.keys = &keys;
    const kr_status status = kr_block_read(kind, given, &keys);
    if (status) return kr_graph_fail(g, status), KR_NONE;
    return kind->build(g, &own, x);
}

kr_status kr_settings_check(const kr_settings *s, const kr_block_kind *const *kinds, int own, int all) {
    for (int i = 0; i < s->count; i++) {
        bool known = false;
        char name[64], list[512];
        for (int j = 0; j < all && !known; j++)
            for (const kr_key *k = kinds[j]->keys; k && k->name && !known; k++)
                known = !strcmp(kr_key_name(kinds[j], k, name), s->at[i].name);
        KR_FAIL_IF(!known, KR_BAD_ARGUMENT, "model: unknown key %s%s%s%s%s", s->at[i].name, own ? "; keys of " : "",
                   own ? kinds[0]->name : "", own ? ": " : "", own ? kr_keys_list(kinds[0], list, sizeof list) : "");
    }
    return KR_OK;
}

/// A model's own keys, which no block can have in the same place.
static const char *const taken[] = {"name", "layer", "layers", "attn_layer_idx", "d_model", "n_layer", "d_intermediate",
                                    "context", "vocab_size", "pad_vocab_size_multiple", "rms_norm", "tie_embeddings",
                                    "norm_epsilon", "ssm_cfg", "attn_cfg"};

static bool is_word(const char *text, size_t longest) {
    bool word = isalpha((unsigned char)text[0]) && strlen(text) <= longest;
    for (const char *c = text; *c; c++) word &= isalnum((unsigned char)*c) || *c == '_';
    for (size_t i = 0; i < sizeof taken / sizeof *taken; i++) word &= strcmp(text, taken[i]) != 0;
    return word;
}

kr_status kr_keys_check(const kr_block_kind *kind) {
    static const size_t bytes[] = {[KR_KEY_IS_INT] = sizeof(int64_t), [KR_KEY_IS_REAL] = sizeof(double),
        [KR_KEY_IS_BOOL] = sizeof(bool), [KR_KEY_IS_CHOICE] = sizeof(int), [KR_KEY_IS_RANGE] = 2 * sizeof(double)};
    KR_FAIL_IF(kind->config_bytes > KR_BLOCK_KEYS_BYTES, KR_BAD_ARGUMENT,
               "block: %s has %zu bytes of keys, want at most %d", kind->name, kind->config_bytes, KR_BLOCK_KEYS_BYTES);
    KR_FAIL_IF(kind->section && !is_word(kind->section, 31), KR_BAD_ARGUMENT,
               "block: the section '%s' of %s must be a word of letters, digits and _ that is not a key of models",
               kind->section, kind->name);
    for (const kr_key *k = kind->keys; k && k->name; k++) {
        const bool number = k->type == KR_KEY_IS_INT || k->type == KR_KEY_IS_REAL;
        char spelling[128], text[32];
        kr_key_value value;
        snprintf(spelling, sizeof spelling, "block: the default of %s in %s", k->name, kind->name);
        KR_FAIL_IF(!is_word(k->name, 31), KR_BAD_ARGUMENT,
                   "block: the key '%s' of %s must be a word of at most 31 letters, digits and _ that is not a key of "
                   "models",
                   k->name, kind->name);
        KR_FAIL_IF(kr_key_find(kind, k->name) != k, KR_BAD_ARGUMENT, "block: %s has the key %s twice", kind->name,
                   k->name);
        KR_FAIL_IF(k->type < KR_KEY_IS_INT || k->type > KR_KEY_IS_RANGE ||
                       k->offset + bytes[k->type] > kind->config_bytes || !k->help ||
                       (k->type == KR_KEY_IS_CHOICE && !k->choices) || (isnan(k->value) && !number),
                   KR_BAD_ARGUMENT, "block: the key %s of %s has a type, field, help or default that cannot be used",
                   k->name, kind->name);
        int choices = k->type == KR_KEY_IS_CHOICE;
        for (const char *c = choices ? k->choices : ""; *c; c++) choices += *c == '|';
        KR_FAIL_IF(choices && !(k->value >= 0 && k->value < choices), KR_BAD_ARGUMENT, "%s is %g, want 0 to %d",
                   spelling, k->value, choices - 1);
        snprintf(text, sizeof text, k->type == KR_KEY_IS_INT ? "%.0f" : "%.17g", k->value);
        if (number && !isnan(k->value)) KR_TRY(kr_key_parse(k, spelling, text, &value));
    }
    return KR_OK;
}
