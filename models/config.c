/// The official config.json (state-spaces/mamba, config_mamba.py), read and written. Keys that Krait does not know are
/// refused where they change the mathematics and passed over where they only choose a kernel.
#include "models/models.h"

#include <json-c/json.h>
#include <string.h>

static const char *const passed_over[] = {"fused_add_norm", "residual_in_fp32", "use_fast_path", "device", "dtype",
    "attn_layer_idx", "attn_cfg", "d_intermediate", "norm_epsilon", "name", "use_mem_eff_path", "initializer_cfg"};

static kr_status get_integer(struct json_object *o, const char *key, int64_t *out) {
    struct json_object *v;
    if (!json_object_object_get_ex(o, key, &v)) return KR_OK;
    KR_FAIL_IF(!json_object_is_type(v, json_type_int), KR_BAD_FILE, "config: \"%s\" is %s, want an integer", key,
               json_object_to_json_string(v));
    *out = json_object_get_int64(v);
    return KR_OK;
}

static kr_status get_real(struct json_object *o, const char *key, double *out) {
    struct json_object *v;
    if (!json_object_object_get_ex(o, key, &v)) return KR_OK;
    KR_FAIL_IF(!json_object_is_type(v, json_type_int) && !json_object_is_type(v, json_type_double), KR_BAD_FILE,
               "config: \"%s\" is %s, want a number", key, json_object_to_json_string(v));
    *out = json_object_get_double(v);
    return KR_OK;
}

static kr_status get_bool(struct json_object *o, const char *key, bool *out) {
    struct json_object *v;
    if (!json_object_object_get_ex(o, key, &v)) return KR_OK;
    KR_FAIL_IF(!json_object_is_type(v, json_type_boolean), KR_BAD_FILE, "config: \"%s\" is %s, want true or false", key,
               json_object_to_json_string(v));
    *out = json_object_get_boolean(v);
    return KR_OK;
}

static kr_status get_text(struct json_object *o, const char *key, char *out, size_t room) {
    struct json_object *v;
    if (!json_object_object_get_ex(o, key, &v)) return KR_OK;
    KR_FAIL_IF(!json_object_is_type(v, json_type_string) || strlen(json_object_get_string(v)) >= room, KR_BAD_FILE,
               "config: \"%s\" is %s, want a text of at most %zu characters", key, json_object_to_json_string(v), room - 1);
    snprintf(out, room, "%s", json_object_get_string(v));
    return KR_OK;
}

static kr_status known_keys(struct json_object *o, const char *where, const char *const *known) {
    json_object_object_foreach(o, key, value) {
        (void)value;
        bool found = false;
        for (int i = 0; known[i] && !found; i++) found = !strcmp(key, known[i]);
        for (size_t i = 0; i < sizeof passed_over / sizeof *passed_over && !found; i++) found = !strcmp(key, passed_over[i]);
        KR_FAIL_IF(!found, KR_BAD_FILE, "config: unknown key \"%s\" in %s", key, where);
    }
    return KR_OK;
}

static kr_status read_block(struct json_object *o, kr_model_config *c) {
    static const char *const known[] = {"layer", "d_state", "d_conv", "expand", "dt_rank", "dt_min", "dt_max", "dt_init",
                                        "dt_scale", "dt_init_floor", "conv_bias", "bias", "d_model", NULL};
    KR_TRY(known_keys(o, "ssm_cfg", known));
    kr_block_config *b = &c->block;
    KR_TRY(get_text(o, "layer", c->layer, sizeof c->layer));
    KR_TRY(get_integer(o, "d_state", &b->d_state));
    KR_TRY(get_integer(o, "d_conv", &b->d_conv));
    KR_TRY(get_integer(o, "expand", &b->expand));
    struct json_object *rank;
    if (json_object_object_get_ex(o, "dt_rank", &rank) && json_object_is_type(rank, json_type_string)) {
        KR_FAIL_IF(strcmp(json_object_get_string(rank), "auto"), KR_BAD_FILE, "config: \"dt_rank\" is %s, want an integer or \"auto\"",
                   json_object_to_json_string(rank));
        b->dt_rank = 0;
    } else KR_TRY(get_integer(o, "dt_rank", &b->dt_rank));
    KR_TRY(get_real(o, "dt_min", &b->dt_min));
    KR_TRY(get_real(o, "dt_max", &b->dt_max));
    KR_TRY(get_real(o, "dt_scale", &b->dt_scale));
    KR_TRY(get_real(o, "dt_init_floor", &b->dt_init_floor));
    KR_TRY(get_bool(o, "conv_bias", &b->conv_bias));
    return get_bool(o, "bias", &b->bias);
}

static kr_status read_model(struct json_object *o, kr_model_config *c) {
    static const char *const known[] = {"d_model", "n_layer", "vocab_size", "ssm_cfg", "rms_norm", "tie_embeddings",
                                        "pad_vocab_size_multiple", NULL};
    KR_FAIL_IF(!json_object_is_type(o, json_type_object), KR_BAD_FILE, "config: not a JSON object");
    KR_TRY(known_keys(o, "the configuration", known));
    int64_t layers = c->n_layer, intermediate = 0;
    KR_TRY(get_text(o, "name", c->name, sizeof c->name));
    KR_TRY(get_integer(o, "d_model", &c->d_model));
    KR_TRY(get_integer(o, "n_layer", &layers));
    KR_FAIL_IF(layers < 0 || layers > 4096, KR_BAD_FILE, "config: \"n_layer\" is %ld, want 0 to 4096", (long)layers);
    c->n_layer = (int)layers;
    KR_TRY(get_integer(o, "vocab_size", &c->vocab_size));
    KR_TRY(get_integer(o, "pad_vocab_size_multiple", &c->pad_vocab_size_multiple));
    KR_TRY(get_bool(o, "rms_norm", &c->rms_norm));
    KR_TRY(get_bool(o, "tie_embeddings", &c->tie_embeddings));
    KR_TRY(get_real(o, "norm_epsilon", &c->norm_epsilon));
    KR_TRY(get_integer(o, "d_intermediate", &intermediate));
    KR_FAIL_IF(intermediate, KR_UNSUPPORTED, "config: d_intermediate is %ld; blocks with an MLP are not available", (long)intermediate);
    struct json_object *v;
    KR_FAIL_IF(json_object_object_get_ex(o, "attn_layer_idx", &v) && json_object_is_type(v, json_type_array) &&
               json_object_array_length(v), KR_UNSUPPORTED, "config: attn_layer_idx is %s; attention layers are not available",
               json_object_to_json_string(v));
    if (!json_object_object_get_ex(o, "ssm_cfg", &v)) return KR_OK;
    KR_FAIL_IF(!json_object_is_type(v, json_type_object), KR_BAD_FILE, "config: \"ssm_cfg\" is not an object");
    return read_block(v, c);
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
    kr_status status = read_model(o, &c);
    json_object_put(o);
    if (!status && !kr_block_find(c.layer))
        status = kr_status_record(KR_UNSUPPORTED, __FILE__, __LINE__, "config: there is no block \"%s\"", c.layer);
    if (!status) {
        snprintf(c.layer, sizeof c.layer, "%s", kr_block_find(c.layer)->name);
        *out = c;
    }
    return status;
}

char *kr_model_config_json(const kr_model_config *c) {
    struct json_object *o = json_object_new_object(), *b = json_object_new_object();
    const kr_block_kind *kind = kr_block_find(c->layer);
    char *text = NULL;
    if (o && b) {
        json_object_object_add(o, "name", json_object_new_string(c->name));
        json_object_object_add(o, "d_model", json_object_new_int64(c->d_model));
        json_object_object_add(o, "n_layer", json_object_new_int64(c->n_layer));
        json_object_object_add(o, "vocab_size", json_object_new_int64(c->vocab_size));
        json_object_object_add(o, "pad_vocab_size_multiple", json_object_new_int64(c->pad_vocab_size_multiple));
        json_object_object_add(o, "rms_norm", json_object_new_boolean(c->rms_norm));
        json_object_object_add(o, "tie_embeddings", json_object_new_boolean(c->tie_embeddings));
        json_object_object_add(o, "norm_epsilon", json_object_new_double(c->norm_epsilon));
        json_object_object_add(b, "layer", json_object_new_string(kind && kind->official ? kind->official : c->layer));
        json_object_object_add(b, "d_state", json_object_new_int64(c->block.d_state));
        json_object_object_add(b, "d_conv", json_object_new_int64(c->block.d_conv));
        json_object_object_add(b, "expand", json_object_new_int64(c->block.expand));
        json_object_object_add(b, "dt_rank", c->block.dt_rank > 0 ? json_object_new_int64(c->block.dt_rank)
                                                                  : json_object_new_string("auto"));
        json_object_object_add(b, "dt_min", json_object_new_double(c->block.dt_min));
        json_object_object_add(b, "dt_max", json_object_new_double(c->block.dt_max));
        json_object_object_add(b, "dt_scale", json_object_new_double(c->block.dt_scale));
        json_object_object_add(b, "dt_init_floor", json_object_new_double(c->block.dt_init_floor));
        json_object_object_add(b, "conv_bias", json_object_new_boolean(c->block.conv_bias));
        json_object_object_add(b, "bias", json_object_new_boolean(c->block.bias));
        json_object_object_add(o, "ssm_cfg", b);
        b = NULL;
        const char *json = json_object_to_json_string_ext(o, JSON_C_TO_STRING_PRETTY);
        if (json) text = strdup(json);
    }
    json_object_put(b);
    json_object_put(o);
    return text;
}
