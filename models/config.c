/// The official config.json (state-spaces/mamba, config_mamba.py), read and written, with Krait's own keys beside it.
/// Keys that Krait does not know are refused where they change the mathematics and passed over where they only choose a
/// kernel.
#include "models/models.h"

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

typedef enum kind { INTEGER, INT, REAL, TRUTH, NOT, TEXT } kind; // NOT: stored negated

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
static const key block_keys[] = {{"layer", TEXT, AT(layer), 32},
                                 {"d_state", INTEGER, AT(block.d_state), 0},
                                 {"d_conv", INTEGER, AT(block.d_conv), 0},
                                 {"expand", INTEGER, AT(block.expand), 0},
                                 {"headdim", INTEGER, AT(block.headdim), 0},
                                 {"ngroups", INTEGER, AT(block.ngroups), 0},
                                 {"d_ssm", INTEGER, AT(block.d_ssm), 0},
                                 {"chunk_size", INTEGER, AT(block.chunk_size), 0},
                                 {"mimo_rank", INTEGER, AT(block.mimo_rank), 0},
                                 {"hidden", INTEGER, AT(block.hidden), 0},
                                 {"is_mimo", TRUTH, AT(block.is_mimo), 0},
                                 {"is_outproj_norm", TRUTH, AT(block.is_outproj_norm), 0},
                                 {"rmsnorm", NOT, AT(block.no_rmsnorm), 0},
                                 {"norm_before_gate", TRUTH, AT(block.norm_before_gate), 0},
                                 {"D_has_hdim", TRUTH, AT(block.D_has_hdim), 0},
                                 {"rope_fraction", REAL, AT(block.rope_fraction), 0},
                                 {"A_floor", REAL, AT(block.A_floor), 0},
                                 {"base_decay", REAL, AT(block.base_decay), 0},
                                 {"dt_min", REAL, AT(block.dt_min), 0},
                                 {"dt_max", REAL, AT(block.dt_max), 0},
                                 {"dt_scale", REAL, AT(block.dt_scale), 0},
                                 {"dt_init_floor", REAL, AT(block.dt_init_floor), 0},
                                 {"conv_bias", TRUTH, AT(block.conv_bias), 0},
                                 {"bias", TRUTH, AT(block.bias), 0},
                                 {0}};
static const key attention_keys[] = {{"num_heads", INTEGER, AT(block.attention.num_heads), 0},
                                     {"num_heads_kv", INTEGER, AT(block.attention.num_heads_kv), 0},
                                     {"head_dim", INTEGER, AT(block.attention.head_dim), 0},
                                     {"mlp_dim", INTEGER, AT(block.attention.mlp_dim), 0},
                                     {"d_conv", INTEGER, AT(block.attention.d_conv), 0},
                                     {"rotary_emb_dim", INTEGER, AT(block.attention.rotary_emb_dim), 0},
                                     {"rotary_emb_base", REAL, AT(block.attention.rotary_emb_base), 0},
                                     {"rotary_emb_interleaved", TRUTH, AT(block.attention.rotary_emb_interleaved), 0},
                                     {"qkv_proj_bias", TRUTH, AT(block.attention.qkv_proj_bias), 0},
                                     {"out_proj_bias", TRUTH, AT(block.attention.out_proj_bias), 0},
                                     {"causal", NOT, AT(block.attention.not_causal), 0},
                                     {"softmax_scale", REAL, AT(block.attention.softmax_scale), 0},
                                     {"window", INTEGER, AT(block.attention.window), 0},
                                     {0}};

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
    case NOT:
        KR_FAIL_IF(!json_object_is_type(v, json_type_boolean), KR_BAD_FILE, "config: \"%s\" is %s, want true or false",
                   k->name, json_object_to_json_string(v));
        *(bool *)to = json_object_get_boolean(v) != (k->kind == NOT);
        return KR_OK;
    default:
        KR_FAIL_IF(!json_object_is_type(v, json_type_string) || strlen(json_object_get_string(v)) >= k->room,
                   KR_BAD_FILE, "config: \"%s\" is %s, want a text of at most %zu characters", k->name,
                   json_object_to_json_string(v), k->room - 1);
        snprintf(to, k->room, "%s", json_object_get_string(v));
        return KR_OK;
    }
}

/// Keys that need more than a conversion; false: not one of these.
static kr_status read_special(const char *name, struct json_object *v, kr_model_config *c, bool *known) {
    *known = true;
    if (!strcmp(name, "dt_rank")) {
        const bool automatic = json_object_is_type(v, json_type_string) && !strcmp(json_object_get_string(v), "auto");
        KR_FAIL_IF(!automatic && !json_object_is_type(v, json_type_int), KR_BAD_FILE,
                   "config: \"dt_rank\" is %s, want an integer or \"auto\"", json_object_to_json_string(v));
        c->block.dt_rank = automatic ? 0 : json_object_get_int64(v);
    } else if (!strcmp(name, "dt_limit")) {
        double limit[2] = {0, INFINITY};
        KR_FAIL_IF(!json_object_is_type(v, json_type_array) || json_object_array_length(v) != 2, KR_BAD_FILE,
                   "config: \"dt_limit\" is %s, want two numbers", json_object_to_json_string(v));
        for (size_t i = 0; i < 2; i++) limit[i] = json_object_get_double(json_object_array_get_idx(v, i));
        KR_FAIL_IF(!(limit[0] >= 0 && limit[1] >= limit[0]), KR_BAD_FILE,
                   "config: \"dt_limit\" is %s, want 0 <= low <= high", json_object_to_json_string(v));
        c->block.dt_limit_min = limit[0];
        c->block.dt_limit_max = isinf(limit[1]) ? 0 : limit[1];
    } else if (!strcmp(name, "a_activation")) {
        const char *text = json_object_is_type(v, json_type_string) ? json_object_get_string(v) : "";
        KR_FAIL_IF(strcmp(text, "softplus") && strcmp(text, "heavy_tail"), KR_BAD_FILE,
                   "config: \"a_activation\" is %s, want \"heavy_tail\" or \"softplus\"",
                   json_object_to_json_string(v));
        c->block.a_activation = !strcmp(text, "softplus") ? KR_A_SOFTPLUS : KR_A_HEAVY_TAIL;
    } else *known = false;
    return KR_OK;
}

static kr_status read_keys(struct json_object *o, const char *where, const key *keys, kr_model_config *c) {
    KR_FAIL_IF(!json_object_is_type(o, json_type_object), KR_BAD_FILE, "config: %s is not an object", where);
    json_object_object_foreach(o, name, v) {
        bool known = false;
        for (const key *k = keys; k->name && !known; k++)
            if (!strcmp(name, k->name)) {
                known = true;
                KR_TRY(read_key(k, v, c));
            }
        if (!known && keys == block_keys) KR_TRY(read_special(name, v, c, &known));
        if (!known && keys == model_keys)
            known = !strcmp(name, "ssm_cfg") || !strcmp(name, "attn_cfg") || !strcmp(name, "attn_layer_idx") ||
                    !strcmp(name, "layers");
        for (size_t i = 0; i < sizeof passed_over / sizeof *passed_over && !known; i++)
            known = !strcmp(name, passed_over[i]);
        KR_FAIL_IF(!known, KR_BAD_FILE, "config: unknown key \"%s\" in %s", name, where);
    }
    return KR_OK;
}

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
    struct json_object *v;
    KR_TRY(read_keys(o, "the configuration", model_keys, c));
    if (json_object_object_get_ex(o, "ssm_cfg", &v)) KR_TRY(read_keys(v, "ssm_cfg", block_keys, c));
    if (json_object_object_get_ex(o, "attn_cfg", &v)) KR_TRY(read_keys(v, "attn_cfg", attention_keys, c));
    KR_TRY(read_layers(o, c));
    KR_FAIL_IF(!kr_block_find(c->layer), KR_UNSUPPORTED,
               "config: there is no block \"%s\" (one of your own has to be registered first: --block FILE.so)",
               c->layer);
    snprintf(c->layer, sizeof c->layer, "%s", kr_block_find(c->layer)->name);
    for (int i = 0; i < c->n_layer && c->layers[0]; i++)
        KR_FAIL_IF(!kr_model_layer(c, i), KR_UNSUPPORTED,
                   "config: layer %d of \"%s\" is no block that exists (one of your own has to be "
                   "registered first: --block FILE.so)",
                   i, c->layers);
    return KR_OK;
}

kr_status kr_model_config_parse(const char *json, size_t bytes, kr_model_config *out) {
    kr_model_config c = kr_model_defaults();
    c.d_model = 2560; // the official dataclass defaults, for keys that a file leaves out
    c.n_layer = 64;
    c.vocab_size = 50277;
    c.block.attention.qkv_proj_bias = c.block.attention.out_proj_bias = true;
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

/// Keys whose value is not the default's.
static void write_keys(struct json_object *o, const key *keys, const kr_model_config *c,
                       const kr_model_config *defaults) {
    for (const key *k = keys; k->name; k++) {
        const char *at = (const char *)c + k->offset, *usual = (const char *)defaults + k->offset;
        struct json_object *v = NULL;
        switch (k->kind) {
        case INTEGER:
            if (memcmp(at, usual, sizeof(int64_t))) v = json_object_new_int64(*(const int64_t *)(const void *)at);
            break;
        case INT: v = json_object_new_int(*(const int *)(const void *)at); break;
        case REAL:
            if (memcmp(at, usual, sizeof(double))) v = json_object_new_double(*(const double *)(const void *)at);
            break;
        case TRUTH:
        case NOT:
            if (*(const bool *)at != *(const bool *)usual)
                v = json_object_new_boolean(*(const bool *)at != (k->kind == NOT));
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

char *kr_model_config_json(const kr_model_config *c) {
    struct json_object *o = json_object_new_object(), *ssm = json_object_new_object(),
                       *attention = json_object_new_object();
    const kr_block_kind *kind = kr_block_find(c->layer);
    kr_model_config usual = kr_model_defaults();
    usual.block.attention.qkv_proj_bias = usual.block.attention.out_proj_bias = true;
    // These are always written, whatever their value
    usual.d_model = usual.vocab_size = usual.pad_vocab_size_multiple = -1;
    usual.rms_norm = !c->rms_norm;
    usual.tie_embeddings = !c->tie_embeddings;
    char *text = NULL;
    if (o && ssm && attention) {
        write_keys(o, model_keys, c, &usual);
        write_layers(o, c);
        write_keys(ssm, block_keys, c, &usual);
        json_object_object_add(ssm, "layer",
                               json_object_new_string(kind && kind->official ? kind->official : c->layer));
        json_object_object_add(ssm, "dt_rank", c->block.dt_rank > 0 ? json_object_new_int64(c->block.dt_rank)
                                                                    : json_object_new_string("auto"));
        if (c->block.a_activation == KR_A_SOFTPLUS)
            json_object_object_add(ssm, "a_activation", json_object_new_string("softplus"));
        if (c->block.dt_limit_min > 0 || c->block.dt_limit_max > 0) {
            struct json_object *limit = json_object_new_array();
            json_object_array_add(limit, json_object_new_double(c->block.dt_limit_min));
            json_object_array_add(limit,
                                  json_object_new_double(c->block.dt_limit_max > 0 ? c->block.dt_limit_max : INFINITY));
            json_object_object_add(ssm, "dt_limit", limit);
        }
        json_object_object_add(o, "ssm_cfg", ssm);
        ssm = NULL;
        write_keys(attention, attention_keys, c, &usual);
        if (json_object_object_length(attention)) {
            json_object_object_add(o, "attn_cfg", attention);
            attention = NULL;
        }
        const char *json = json_object_to_json_string_ext(o, JSON_C_TO_STRING_PRETTY);
        if (json) text = strdup(json);
    }
    json_object_put(attention);
    json_object_put(ssm);
    json_object_put(o);
    return text;
}
