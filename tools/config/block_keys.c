// Keys of blocks in krait.yaml: the blocks' own tables say what a model can have beside the keys of every model.
#include "tools/config/block_keys.h"
#include "tools/cli/text.h"

#include <math.h>
#include <string.h>

/// A field for the value of any key.
typedef union slot {
    int64_t integer;
    double real, range[2];
    bool truth;
    int choice;
} slot;

static kr_option option_of(const kr_key *k) {
    static const kr_option_type types[] = {
        [KR_KEY_IS_INT] = KR_OPTION_INTEGER, [KR_KEY_IS_REAL] = KR_OPTION_REAL, [KR_KEY_IS_BOOL] = KR_OPTION_FLAG,
        [KR_KEY_IS_CHOICE] = KR_OPTION_CHOICE, [KR_KEY_IS_RANGE] = KR_OPTION_RANGE};
    return (kr_option){.name = k->name, .type = types[k->type], .lo = k->lo, .hi = k->hi, .choices = k->choices,
                       .help = k->help, .flags = isnan(k->value) ? KR_OPTION_AUTO : 0};
}

/// The word of a choice, "a|b|c", with its length.
static const char *choice_word(const char *choices, int index, int *length) {
    for (int i = 0; i < index; i++) choices = strchr(choices, '|') + 1;
    *length = (int)strcspn(choices, "|");
    return choices;
}

/// As krait.yaml spells keys.
static void underline(char *text) {
    for (char *c = text; *c; c++)
        if (*c == '-') *c = '_';
}

/// One value, as kr_settings has it.
static kr_status set_key(const kr_yaml *node, const char *label, const char *what, const char *section,
                         const kr_key *k, kr_settings *to) {
    const kr_option row = option_of(k);
    slot v = {.integer = KR_KEY_AUTO};
    char name[64];
    snprintf(name, sizeof name, "%s%s%s", section ? section : "", section ? "." : "", k->name);
    if (k->type == KR_KEY_IS_REAL) v.real = NAN;
    KR_TRY(kr_yaml_set(node, label, what, &row, &v));
    switch (k->type) {
    case KR_KEY_IS_INT:
        return v.integer == KR_KEY_AUTO ? KR_OK : kr_settings_set(to, name, "%lld", (long long)v.integer);
    case KR_KEY_IS_REAL: return isnan(v.real) ? KR_OK : kr_settings_set(to, name, "%.17g", v.real);
    case KR_KEY_IS_BOOL: return kr_settings_set(to, name, v.truth ? "true" : "false");
    case KR_KEY_IS_CHOICE: {
        int length;
        const char *word = choice_word(k->choices, v.choice, &length);
        return kr_settings_set(to, name, "%.*s", length, word);
    }
    case KR_KEY_IS_RANGE: break;
    }
    return kr_settings_set(to, name, "%.17g,%.17g", v.range[0], v.range[1]);
}

/// The kinds that a model can have keys of, its own first.
typedef struct kinds {
    const kr_block_kind *at[KR_BLOCK_KINDS_MAX];
    int own, all;
} kinds;

static bool in_section(const kr_block_kind *kind, const char *section) {
    return section ? kind->section && !strcmp(kind->section, section) : !kind->section;
}

static const kr_key *find_key(const kinds *known, const char *section, const char *name) {
    for (int i = 0; i < known->all; i++)
        for (const kr_key *k = known->at[i]->keys; k && k->name && in_section(known->at[i], section); k++)
            if (kr_same_name(k->name, name)) return k;
    return NULL;
}

/// The kind whose keys stand in a section of that name, or null.
static const kr_block_kind *find_section(const kinds *known, const char *name) {
    for (int i = 0; i < known->all; i++)
        if (known->at[i]->section && kr_same_name(known->at[i]->section, name)) return known->at[i];
    return NULL;
}

/// Names the nearest key that the model or one of its blocks has, and whose it is. A block with a section is looked
/// into where its section is read, and only there.
static kr_status unknown_key(const kr_yaml *node, const char *label, const char *what, const kinds *known,
                             const char *section, const kr_option *of_model) {
    enum { MOST = 512 };
    const char *names[MOST], *of[MOST] = {0};
    char all[1024] = "", nearest_name[80];
    int count = 0;
    size_t n = 0;
    for (const kr_option *o = of_model; o && o->name && count < MOST; o++) names[count++] = o->name;
    for (int i = 0; i < (section ? known->all : known->own); i++)
        for (const kr_key *k = known->at[i]->keys; k && k->name && in_section(known->at[i], section); k++) {
            if (count == MOST) break;
            of[count] = known->at[i]->name;
            names[count++] = k->name;
        }
    for (int i = 0; i < known->own && !section && count < MOST; i++)
        if (known->at[i]->section) names[count++] = known->at[i]->section;
    const char *nearest = kr_nearest(node->key, names, count), *block = NULL;
    for (int i = 0; i < count; i++) {
        if (names[i] == nearest) block = of[i];
        n += n < sizeof all ? (size_t)snprintf(all + n, sizeof all - n, "%s%s", i ? ", " : "", names[i]) : 0;
    }
    underline(all);
    snprintf(nearest_name, sizeof nearest_name, "%s", nearest ? nearest : "");
    underline(nearest_name);
    if (nearest)
        KR_FAIL(KR_BAD_ARGUMENT, "%s:%d: unknown key '%s' in %s; did you mean '%s'%s%s?", label, node->key_line,
                node->key, what, nearest_name, block && !section ? " of " : "", block && !section ? block : "");
    KR_FAIL(KR_BAD_ARGUMENT, "%s:%d: unknown key '%s' in %s; it can have: %s", label, node->key_line, node->key, what,
            all);
}

kr_status kr_block_keys_apply(const kr_yaml *model, const char *label, const char *what, const kr_option *of_model,
                              kr_model_config *m) {
    kinds known;
    known.own = kr_model_kinds(m, known.at, &known.all);
    for (const kr_yaml *node = model->first; node; node = node->next) {
        const kr_key *k = find_key(&known, NULL, node->key);
        const kr_block_kind *kind = find_section(&known, node->key);
        if (kr_option_find(of_model, node->key)) continue;
        if (k) {
            KR_TRY(set_key(node, label, what, NULL, k, &m->keys));
        } else if (kind) {
            char inside[160];
            snprintf(inside, sizeof inside, "%s of %s", node->key, what);
            KR_TRY(kr_yaml_want_map(node, label, inside));
            for (const kr_yaml *inner = node->first; inner; inner = inner->next) {
                k = find_key(&known, kind->section, inner->key);
                if (!k) return unknown_key(inner, label, inside, &known, kind->section, NULL);
                KR_TRY(set_key(inner, label, inside, kind->section, k, &m->keys));
            }
        } else {
            return unknown_key(node, label, what, &known, NULL, of_model);
        }
    }
    return KR_OK;
}

void kr_block_keys_print(const kr_block_kind *kind, FILE *to) {
    fprintf(to, "%s is a block. Its keys in a model of krait.yaml%s%s%s, their defaults, and what they can be:\n\n",
            kind->name, kind->section ? ", under '" : "", kind->section ? kind->section : "",
            kind->section ? ":'" : "");
    for (const kr_key *k = kind->keys; k && k->name; k++) {
        char value[32], range[64] = "";
        if (isnan(k->value)) snprintf(value, sizeof value, "auto");
        else if (k->type == KR_KEY_IS_BOOL) snprintf(value, sizeof value, "%s", k->value != 0 ? "true" : "false");
        else if (k->type == KR_KEY_IS_RANGE) snprintf(value, sizeof value, "[%.15g, .inf]", k->value);
        else if (k->type != KR_KEY_IS_CHOICE) snprintf(value, sizeof value, "%.15g", k->value);
        else {
            int length;
            const char *word = choice_word(k->choices, (int)k->value, &length);
            snprintf(value, sizeof value, "%.*s", length, word);
        }
        if (k->type == KR_KEY_IS_INT || k->type == KR_KEY_IS_REAL)
            snprintf(range, sizeof range, "%.15g to %.15g", k->lo, k->hi);
        else if (k->type == KR_KEY_IS_CHOICE) snprintf(range, sizeof range, "%s", k->choices);
        fprintf(to, "  %-22s  %-10s  %-19s  %s\n", k->name, value, range, k->help);
    }
    if (!kind->keys || !kind->keys->name) fprintf(to, "  none\n");
}
