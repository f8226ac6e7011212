/// The official config.json (state-spaces/mamba, config_mamba.py), read and written, with Krait's own keys beside it.
/// Keys that Krait does not know are refused where they change the mathematics and passed over where they only choose a
/// kernel.
#include "models/keys.h"

#include <json-c/json.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char *const passed_over[] = {"fused_add_norm",
                                          "residual_in_fp32",
                                          "use_fast_path",
                                          "device",
                                          "dtype",
                                          "use_mem_eff_path",
                                          "initializer_cfg",
                                          "layer_idx",
                                          "dt_init",
                                          "d_model",
                                          "embed_dim",
                                          "activation",
                                          "process_group",
                                          "sequence_parallel",
                                          "fuse_pregate_headwise_norm"};

/// Keys of the model itself; those of blocks are in the blocks' tables.
typedef enum kind { INTEGER, INT, REAL, TRUTH, TEXT } kind;

typedef struct key {
    const char *name;
    kind kind;
    size_t offset, room;
} key;

#define AT(member) offsetof(kr_model_config, member)
static const key model_keys[] = {
    {"name", TEXT, AT(name), 64}, {"d_model", INTEGER, AT(d_model), 0}, {"n_layer", INT, AT(n_layer), 0},
    {"vocab_size", INTEGER, AT(vocab_size), 0}, {"pad_vocab_size_multiple", INTEGER, AT(pad_vocab_size_multiple), 0},
    {"d_intermediate", INTEGER, AT(d_intermediate), 0}, {"context", INTEGER, AT(context), 0},
    {"rms_norm", TRUTH, AT(rms_norm), 0}, {"tie_embeddings", TRUTH, AT(tie_embeddings), 0},
    {"norm_epsilon", REAL, AT(norm_epsilon), 0}, {0}};
static const key layer_key = {"layer", TEXT, AT(layer), 32};

static kr_status read_key(const key *k, struct json_object *v, kr_model_config *c) {
    char *to = (char *)c + k->offset;
    const bool integer = json_object_is_type(v, json_type_int),
               real = integer || json_object_is_type(v, json_type_double);
    if (json_object_is_type(v, json_type_null)) return KR_OK; // the default
    switch (k->kind) {
    case INTEGER:
        KR_FAIL_IF(!integer, KR_BAD_FILE, "config: \"%s\" is %s, want an integer", k->name,
                   json_object_to_json_string(v));
        *(int64_t *)(void *)to = json_object_get_int64(v);
        return KR_OK;
    case INT:
        KR_FAIL_IF(!integer || json_object_get_int64(v) < 0 || json_object_get_int64(v) > 4096, KR_BAD_FILE,
                   "config: \"%s\" is %s, want 0 to 4096", k->name, json_object_to_json_string(v));
        *(int *)(void *)to = json_object_get_int(v);
        return KR_OK;
    case REAL:
        KR_FAIL_IF(!real, KR_BAD_FILE, "config: \"%s\" is %s, want a number", k->name, json_object_to_json_string(v));
        *(double *)(void *)to = json_object_get_double(v);
        return KR_OK;
    case TRUTH:
        KR_FAIL_IF(!json_object_is_type(v, json_type_boolean), KR_BAD_FILE, "config: \"%s\" is %s, want true or false",
                   k->name, json_object_to_json_string(v));
        *(bool *)to = json_object_get_boolean(v);
        return KR_OK;
    default:
        KR_FAIL_IF(!json_object_is_type(v, json_type_string) || strlen(json_object_get_string(v)) >= k->room,
                   KR_BAD_FILE, "config: \"%s\" is %s, want a text of at most %zu characters", k->name,
                   json_object_to_json_string(v), k->room - 1);
        snprintf(to, k->room, "%s", json_object_get_string(v));
        return KR_OK;
    }
}

static bool is_passed_over(const char *name) {
    for (size_t i = 0; i < sizeof passed_over / sizeof *passed_over; i++)
        if (!strcmp(name, passed_over[i])) return true;
    return false;
}

// Keys of blocks --------------------------------------------------------------------------------------------------

static const char *section_of(const kr_block_kind *kind) {
    return kind->official_section ? kind->official_section : kind->section ? kind->section : "ssm_cfg";
}

/// The known kinds, the model's own first.
typedef struct kinds {
    const kr_block_kind *at[KR_BLOCK_KINDS_MAX];
    int own, all;
} kinds;

static kinds kinds_of(const kr_model_config *c) {
    kinds k;
    k.own = kr_model_kinds(c, k.at, &k.all);
    return k;
}

/// Before blocks declared their keys, 0 or less meant "the default" for these, and files written by hand or by other
/// programs may say so. None of them makes sense at 0.
static bool was_default(const char *name, struct json_object *v) {
    static const char *const names[] = {"d_state", "dt_rank", "headdim", "ngroups", "d_ssm", "chunk_size", "mimo_rank",
                                        "hidden", "A_floor", "base_decay", "attention.num_heads",
                                        "attention.num_heads_kv", "attention.head_dim", "attention.rotary_emb_base",
                                        "attention.softmax_scale"};
    const bool number = json_object_is_type(v, json_type_int) || json_object_is_type(v, json_type_double);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(name, names[i])) return number && json_object_get_double(v) <= 0;
    return false;
}

/// A value of a block's key, as kr_settings has it.
static kr_status read_block_key(const kr_block_kind *kind, const kr_key *k, struct json_object *v,
                                kr_model_config *c) {
    static const char *const wants[] = {
        [KR_KEY_IS_INT] = "an integer", [KR_KEY_IS_REAL] = "a number", [KR_KEY_IS_BOOL] = "true or false",
        [KR_KEY_IS_CHOICE] = "a text", [KR_KEY_IS_RANGE] = "two numbers, the lower one first"};
    const json_type type = json_object_get_type(v);
    const bool text = type == json_type_string, automatic = text && isnan(k->value);
    const bool fits[] = {[KR_KEY_IS_INT] = type == json_type_int || automatic,
        [KR_KEY_IS_REAL] = type == json_type_int || type == json_type_double || automatic,
        [KR_KEY_IS_BOOL] = type == json_type_boolean, [KR_KEY_IS_CHOICE] = text,
        [KR_KEY_IS_RANGE] = type == json_type_array && json_object_array_length(v) == 2};
    char name[64], spelling[80], value[64];
    kr_key_value parsed;
    kr_key_name(kind, k, name);
    if (type == json_type_null || was_default(name, v)) return KR_OK;
    KR_FAIL_IF(!fits[k->type], KR_BAD_FILE, "config: \"%s\" is %s, want %s%s", k->name, json_object_to_json_string(v),
               wants[k->type], isnan(k->value) ? ", or \"auto\"" : "");
    if (k->type == KR_KEY_IS_RANGE)
        snprintf(value, sizeof value, "%.17g,%.17g", json_object_get_double(json_object_array_get_idx(v, 0)),
                 json_object_get_double(json_object_array_get_idx(v, 1)));
    else if (type == json_type_double) snprintf(value, sizeof value, "%.17g", json_object_get_double(v));
    else snprintf(value, sizeof value, "%s", json_object_get_string(v));
    snprintf(spelling, sizeof spelling, "config: \"%s\"", k->name);
    const kr_status status = kr_key_parse(k, spelling, value, &parsed);
    return status ? KR_BAD_FILE : strcmp(value, "auto") ? kr_settings_set(&c->keys, name, "%s", value) : KR_OK;
}

/// ssm_cfg, attn_cfg or a section of another kind.
static kr_status read_section(struct json_object *o, const char *section, const kinds *known, kr_model_config *c) {
    KR_FAIL_IF(!json_object_is_type(o, json_type_object), KR_BAD_FILE, "config: %s is not an object", section);
    json_object_object_foreach(o, name, v) {
        const kr_block_kind *first = NULL, *kind = NULL;
        const kr_key *k = NULL;
        for (int i = 0; i < known->all && !k; i++) {
            if (strcmp(section_of(known->at[i]), section)) continue;
            kind = known->at[i];
            if (!first) first = kind;
            k = kr_key_find(kind, name);
        }
        char list[512];
        if (k) KR_TRY(read_block_key(kind, k, v, c));
        else
            KR_FAIL_IF(strcmp(name, "layer") && !is_passed_over(name), KR_BAD_FILE,
                       "config: unknown key \"%s\" in %s; keys of %s: %s", name, section, first->name,
                       kr_keys_list(first, list, sizeof list));
    }
    return KR_OK;
}

static bool is_section(const char *name, const kinds *known) {
    for (int i = 0; i < known->all; i++)
        if (!strcmp(name, section_of(known->at[i]))) return true;
    return false;
}

// Layers ----------------------------------------------------------------------------------------------------------

static kr_status append_layer(kr_model_config *c, int index, const char *name) {
    const size_t used = strlen(c->layers);
    const int wrote = snprintf(c->layers + used, sizeof c->layers - used, "%s%s", index ? "," : "", name);
    KR_FAIL_IF(wrote < 0 || (size_t)wrote >= sizeof c->layers - used, KR_BAD_FILE,
               "config: the list of layers is too long");
    return KR_OK;
}

/// `layers` (Krait) or `attn_layer_idx` (official) to the list of blocks.
static kr_status read_layers(struct json_object *o, kr_model_config *c) {
    struct json_object *v;
    if (json_object_object_get_ex(o, "layers", &v)) {
        KR_FAIL_IF(!json_object_is_type(v, json_type_array), KR_BAD_FILE, "config: \"layers\" is not a list");
        c->layers[0] = 0;
        c->n_layer = (int)json_object_array_length(v);
        for (int i = 0; i < c->n_layer; i++) {
            struct json_object *name = json_object_array_get_idx(v, (size_t)i);
            KR_FAIL_IF(!json_object_is_type(name, json_type_string), KR_BAD_FILE,
                       "config: layer %d is %s, want the name of a block", i, json_object_to_json_string(name));
            KR_TRY(append_layer(c, i, json_object_get_string(name)));
        }
        return KR_OK;
    }
    if (!json_object_object_get_ex(o, "attn_layer_idx", &v) || json_object_is_type(v, json_type_null)) return KR_OK;
    KR_FAIL_IF(!json_object_is_type(v, json_type_array), KR_BAD_FILE, "config: \"attn_layer_idx\" is not a list");
    const int attending = (int)json_object_array_length(v);
    if (!attending) return KR_OK;
    bool *at = calloc((size_t)c->n_layer + 1, sizeof *at);
    KR_FAIL_IF(!at, KR_NO_MEMORY, "config: no memory");
    kr_status status = KR_OK;
    for (int i = 0; i < attending && !status; i++) {
        struct json_object *index = json_object_array_get_idx(v, (size_t)i);
        const int64_t where = json_object_is_type(index, json_type_int) ? json_object_get_int64(index) : -1;
        if (where < 0 || where >= c->n_layer)
            status = kr_status_record(KR_BAD_FILE, __FILE__, __LINE__,
                                      "config: \"attn_layer_idx\" has %s, want 0 to %d",
                                      json_object_to_json_string(index), c->n_layer - 1);
        else at[where] = true;
    }
    c->layers[0] = 0;
    const kr_block_kind *ssm = kr_block_find(c->layer);
    for (int i = 0; i < c->n_layer && !status; i++)
        status = append_layer(c, i, at[i] ? "attention" : ssm ? ssm->name : c->layer);
    free(at);
    return status;
}

static kr_status read_model(struct json_object *o, kr_model_config *c) {
    struct json_object *ssm, *layer;
    KR_FAIL_IF(!json_object_is_type(o, json_type_object), KR_BAD_FILE, "config: the configuration is not an object");
    for (const key *k = model_keys; k->name; k++) {
        struct json_object *v;
        if (json_object_object_get_ex(o, k->name, &v)) KR_TRY(read_key(k, v, c));
    }
    if (c->context < 1) c->context = kr_model_defaults().context; // once 0 meant the default
    if (json_object_object_get_ex(o, "ssm_cfg", &ssm) && json_object_is_type(ssm, json_type_object) &&
        json_object_object_get_ex(ssm, "layer", &layer))
        KR_TRY(read_key(&layer_key, layer, c));
    KR_TRY(read_layers(o, c));
    KR_FAIL_IF(!kr_block_find(c->layer), KR_UNSUPPORTED,
               "config: unknown block \"%s\" (one of your own has to be registered first: --block FILE.so)", c->layer);
    snprintf(c->layer, sizeof c->layer, "%s", kr_block_find(c->layer)->name);
    for (int i = 0; i < c->n_layer && c->layers[0]; i++)
        KR_FAIL_IF(!kr_model_layer(c, i), KR_UNSUPPORTED,
                   "config: layer %d of \"%s\" is an unknown block (one of your own has to be registered first: "
                   "--block FILE.so)",
                   i, c->layers);
    const kinds known = kinds_of(c);
    json_object_object_foreach(o, name, v) {
        bool own = !strcmp(name, "attn_layer_idx") || !strcmp(name, "layers") || is_passed_over(name);
        for (const key *k = model_keys; k->name && !own; k++) own = !strcmp(name, k->name);
        if (own) continue;
        KR_FAIL_IF(!is_section(name, &known), KR_BAD_FILE, "config: unknown key \"%s\" in the configuration", name);
        KR_TRY(read_section(v, name, &known, c));
    }
    return KR_OK;
}

kr_status kr_model_config_parse(const char *json, size_t bytes, kr_model_config *out) {
    kr_model_config c = kr_model_defaults();
    c.d_model = 2560; // the official dataclass defaults, for keys that a file leaves out
    c.n_layer = 64;
    c.vocab_size = 50277;
    snprintf(c.layer, sizeof c.layer, "Mamba1");
    KR_FAIL_IF(bytes > 1 << 24, KR_BAD_FILE, "config: %zu bytes, want at most %d", bytes, 1 << 24);
    struct json_tokener *reader = json_tokener_new_ex(16);
    KR_FAIL_IF(!reader, KR_NO_MEMORY, "config: no memory");
    struct json_object *o = json_tokener_parse_ex(reader, json, (int)bytes);
    const enum json_tokener_error error = json_tokener_get_error(reader);
    const size_t at = json_tokener_get_parse_end(reader);
    json_tokener_free(reader);
    if (error != json_tokener_success || !o) {
        json_object_put(o);
        KR_FAIL(KR_BAD_FILE, "config: %s at byte %zu", json_tokener_error_desc(error), at);
    }
    const kr_status status = read_model(o, &c);
    json_object_put(o);
    if (!status) *out = c;
    return status;
}

// Writing ---------------------------------------------------------------------------------------------------------

/// Keys of the model whose value is not the default's.
static void write_model_keys(struct json_object *o, const kr_model_config *c) {
    kr_model_config usual = kr_model_defaults();
    // These are always written, whatever their value
    usual.d_model = usual.vocab_size = usual.pad_vocab_size_multiple = -1;
    usual.rms_norm = !c->rms_norm;
    usual.tie_embeddings = !c->tie_embeddings;
    for (const key *k = model_keys; k->name; k++) {
        const char *at = (const char *)c + k->offset, *default_at = (const char *)&usual + k->offset;
        struct json_object *v = NULL;
        switch (k->kind) {
        case INTEGER:
            if (memcmp(at, default_at, sizeof(int64_t))) v = json_object_new_int64(*(const int64_t *)(const void *)at);
            break;
        case INT: v = json_object_new_int(*(const int *)(const void *)at); break;
        case REAL:
            if (memcmp(at, default_at, sizeof(double))) v = json_object_new_double(*(const double *)(const void *)at);
            break;
        case TRUTH:
            if (*(const bool *)at != *(const bool *)default_at) v = json_object_new_boolean(*(const bool *)at);
            break;
        default: v = json_object_new_string(at);
        }
        if (v) json_object_object_add(o, k->name, v);
    }
}

static void write_layers(struct json_object *o, const kr_model_config *c) {
    if (!c->layers[0]) return;
    struct json_object *list = json_object_new_array();
    for (int i = 0; i < c->n_layer && list; i++) {
        const kr_block_kind *kind = kr_model_layer(c, i);
        json_object_array_add(list, json_object_new_string(kind ? kind->name : "?"));
    }
    json_object_object_add(o, "layers", list);
}

static struct json_object *value_json(const kr_key *k, const kr_key_value *v) {
    switch (k->type) {
    case KR_KEY_IS_INT:
        return v->integer == KR_KEY_AUTO ? json_object_new_string("auto") : json_object_new_int64(v->integer);
    case KR_KEY_IS_REAL:
        return isnan(v->real) ? json_object_new_string("auto") : json_object_new_double(v->real);
    case KR_KEY_IS_BOOL: return json_object_new_boolean(v->truth);
    case KR_KEY_IS_CHOICE: {
        const char *word = k->choices;
        for (int i = 0; i < v->choice; i++) word = strchr(word, '|') + 1;
        return json_object_new_string_len(word, (int)strcspn(word, "|"));
    }
    case KR_KEY_IS_RANGE: break;
    }
    struct json_object *pair = json_object_new_array();
    for (int i = 0; i < 2 && pair; i++) json_object_array_add(pair, json_object_new_double(v->range[i]));
    return pair;
}

/// The section of that name in `o`, made when it is not there; null when memory ends.
static struct json_object *open_section(struct json_object *o, const char *name) {
    struct json_object *section;
    if (json_object_object_get_ex(o, name, &section)) return section;
    section = json_object_new_object();
    if (section && json_object_object_add(o, name, section)) {
        json_object_put(section);
        return NULL;
    }
    return section;
}

/// The kind's keys that were given; `complete`: the others too. A key that several blocks have is written once, and as
/// null where their defaults differ.
static bool write_block_keys(struct json_object *o, const kr_block_kind *kind, const kr_model_config *c,
                             bool complete) {
    for (const kr_key *k = kind->keys; k && k->name; k++) {
        char name[64];
        const char *given = kr_settings_get(&c->keys, kr_key_name(kind, k, name));
        kr_key_value value;
        if ((!given && !complete) || kr_key_parse(k, k->name, given, &value)) continue;
        struct json_object *section = open_section(o, section_of(kind));
        if (!section) return false;
        struct json_object *v = value_json(k, &value), *there;
        if (!json_object_object_get_ex(section, k->name, &there)) {
            json_object_object_add(section, k->name, v);
        } else {
            if (!json_object_equal(v, there)) json_object_object_add(section, k->name, NULL);
            json_object_put(v);
        }
    }
    return true;
}

static char *write_model(const kr_model_config *c, bool complete) {
    struct json_object *o = json_object_new_object(), *ssm = NULL;
    const kr_block_kind *kind = kr_block_find(c->layer);
    char *text = NULL;
    if (o) {
        write_model_keys(o, c);
        write_layers(o, c);
        ssm = open_section(o, "ssm_cfg");
    }
    if (ssm) {
        const kinds known = kinds_of(c);
        bool whole = true;
        json_object_object_add(ssm, "layer",
                               json_object_new_string(kind && kind->official ? kind->official : c->layer));
        for (int i = 0; i < known.all && whole; i++)
            whole = write_block_keys(o, known.at[i], c, complete && i < known.own);
        // Official files of every block say how Mamba-1 ranks its step
        if (!json_object_object_get_ex(ssm, "dt_rank", NULL))
            json_object_object_add(ssm, "dt_rank", json_object_new_string("auto"));
        const char *json = whole ? json_object_to_json_string_ext(o, JSON_C_TO_STRING_PRETTY) : NULL;
        if (json) text = strdup(json);
    }
    json_object_put(o);
    return text;
}

char *kr_model_config_json(const kr_model_config *c) { return write_model(c, false); }

char *kr_model_config_json_complete(const kr_model_config *c) { return write_model(c, true); }
