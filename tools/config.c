// krait.yaml: what may stand in it, and what it means. Every section goes through an option table (options.c), so a
// wrong key, type or range is told with its line and the nearest known key. The whole file is checked when it is read.
#include "tools/config.h"
#include "tools/train.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct kr_config {
    kr_pool *pool;
    const char *label;
    bool builtin;
    const kr_yaml *models, *targets; ///< null when the file lacks them
    const kr_yaml *root;
};

#define MODEL(name) offsetof(kr_model_config, name)
static const kr_option model_options[] = {
    {"layer", KR_OPTION_NAME, MODEL(layer), .hi = sizeof((kr_model_config *)0)->layer, .help = "block of every layer"},
    {"d-model", KR_OPTION_INTEGER, MODEL(d_model), 1, 1 << 20, .help = "width"},
    {"n-layer", KR_OPTION_INT, MODEL(n_layer), 1, 4096, .help = "blocks"},
    {"vocab-size", KR_OPTION_INTEGER, MODEL(vocab_size), 1, 1 << 24, .help = "256 for bytes"},
    {"pad-vocab-size-multiple", KR_OPTION_INTEGER, MODEL(pad_vocab_size_multiple), 1, 1 << 16,
     .help = "rows of the embedding are rounded up to it"},
    {"rms-norm", KR_OPTION_FLAG, MODEL(rms_norm), .help = "else LayerNorm"},
    {"tie-embeddings", KR_OPTION_FLAG, MODEL(tie_embeddings), .help = "the head is the embedding"},
    {"norm-epsilon", KR_OPTION_REAL, MODEL(norm_epsilon), 1e-30, 1, .help = "1e-5 in published models"},
    {"d-state", KR_OPTION_INTEGER, MODEL(block.d_state), 1, 1 << 16, .help = "state per channel"},
    {"d-conv", KR_OPTION_INTEGER, MODEL(block.d_conv), 1, 1 << 10, .help = "taps of the convolution"},
    {"expand", KR_OPTION_INTEGER, MODEL(block.expand), 1, 64, .help = "inner width over d_model"},
    {"dt-rank", KR_OPTION_INTEGER, MODEL(block.dt_rank), 0, 1 << 20, .help = "0: d_model / 16, rounded up"},
    {"bias", KR_OPTION_FLAG, MODEL(block.bias), .help = "of in_proj and out_proj"},
    {"conv-bias", KR_OPTION_FLAG, MODEL(block.conv_bias), .help = "of the convolution"},
    {"dt-min", KR_OPTION_REAL, MODEL(block.dt_min), 1e-12, 1e6, .help = "least initial step"},
    {"dt-max", KR_OPTION_REAL, MODEL(block.dt_max), 1e-12, 1e6, .help = "largest initial step"},
    {"dt-init-floor", KR_OPTION_REAL, MODEL(block.dt_init_floor), 1e-12, 1e6, .help = "floor of the initial step"},
    {"dt-scale", KR_OPTION_REAL, MODEL(block.dt_scale), 1e-12, 1e6, .help = "scale of dt_proj's initial weights"},
    {0},
};

static const kr_option target_options[] = {
    {"device", KR_OPTION_CHOICE, offsetof(kr_target, device), .choices = "cpu", .help = "what runs the plans"},
    {"threads", KR_OPTION_INTEGER, offsetof(kr_target, threads), 0, 4096, .help = "0: all that the process may use"},
    {"isa", KR_OPTION_CHOICE, offsetof(kr_target, isa), .choices = "auto|base|avx2|avx512",
     .help = "highest instruction set level"},
    {0},
};


static kr_status read_model(const kr_config *c, const kr_yaml *node, kr_model_config *out) {
    char what[128];
    *out = kr_model_defaults();
    KR_FAIL_IF(strlen(node->key) >= sizeof out->name, KR_BAD_ARGUMENT,
               "%s:%d: the name '%s' is longer than %zu characters", c->label, node->key_line, node->key,
               sizeof out->name - 1);
    snprintf(what, sizeof what, "model %s", node->key);
    KR_TRY(kr_yaml_apply(node, c->label, what, model_options, out));
    strcpy(out->name, node->key);
    static const char *const needed[] = {"layer", "d_model", "n_layer", "vocab_size"};
    for (int k = 0; k < 4; k++)
        KR_FAIL_IF(!kr_yaml_find(node, needed[k]), KR_BAD_ARGUMENT, "%s:%d: model %s has no %s", c->label,
                   node->key_line, node->key, needed[k]);
    if (!kr_block_find(out->layer)) {
        const char *names[64];
        int count = 0;
        for (; count < kr_block_kind_count && count < 64; count++) names[count] = kr_block_kinds[count]->name;
        const char *nearest = kr_nearest(out->layer, names, count);
        KR_FAIL(KR_BAD_ARGUMENT, "%s:%d: layer in model %s is '%s', which is no block%s%s%s", c->label,
                kr_yaml_find(node, "layer")->line, node->key, out->layer, nearest ? "; did you mean '" : "",
                nearest ? nearest : "", nearest ? "'?" : "");
    }
    return KR_OK;
}

static kr_status read_target(const kr_config *c, const kr_yaml *node, kr_target *out) {
    char what[128];
    *out = (kr_target){0};
    snprintf(what, sizeof what, "target %.100s", node->key);
    return kr_yaml_apply(node, c->label, what, target_options, out);
}

static kr_status want_map(const kr_config *c, const kr_yaml *node, const char *of) {
    KR_FAIL_IF(node->kind != KR_YAML_MAP || !node->first, KR_BAD_ARGUMENT, "%s:%d: '%s' wants a map of names to %s",
               c->label, node->line, node->key, of);
    return KR_OK;
}

static kr_status check(kr_config *c) {
    static const char *const sections[] = {"models", "targets", "pretrain"};
    KR_FAIL_IF(c->root->kind != KR_YAML_MAP, KR_BAD_ARGUMENT, "%s:%d: want a map with models, targets and pretrain",
               c->label, c->root->line);
    for (const kr_yaml *m = c->root->first; m; m = m->next) {
        if (!strcmp(m->key, "models")) {
            KR_TRY(want_map(c, m, "models"));
            c->models = m;
            kr_model_config model;
            for (const kr_yaml *n = m->first; n; n = n->next) KR_TRY(read_model(c, n, &model));
        } else if (!strcmp(m->key, "targets")) {
            KR_TRY(want_map(c, m, "targets"));
            c->targets = m;
            kr_target target;
            for (const kr_yaml *n = m->first; n; n = n->next) KR_TRY(read_target(c, n, &target));
        } else if (!strcmp(m->key, "pretrain")) {
            kr_train_settings settings = kr_train_defaults();
            KR_TRY(kr_yaml_apply(m, c->label, "pretrain", kr_train_options, &settings));
        } else {
            const char *nearest = kr_nearest(m->key, sections, 3);
            KR_FAIL(KR_BAD_ARGUMENT, "%s:%d: unknown section '%s'; %s%s%s", c->label, m->key_line, m->key,
                    nearest ? "did you mean '" : "there are models, targets and pretrain", nearest ? nearest : "",
                    nearest ? "'?" : "");
        }
    }
    return KR_OK;
}

kr_status kr_config_parse(const char *text, size_t bytes, const char *label, kr_config **out) {
    kr_pool *pool = kr_pool_new();
    kr_config *c = pool ? kr_pool_take(pool, sizeof *c) : NULL;
    KR_FAIL_IF(!c, KR_NO_MEMORY, "%s: no memory to read it", label);
    c->pool = pool;
    c->label = kr_pool_text(pool, label);
    kr_yaml *root;
    kr_status status = kr_yaml_parse(text, bytes, label, pool, &root);
    if (status == KR_BAD_FILE) status = KR_BAD_ARGUMENT; // a configuration that cannot be used, like a wrong flag
    if (!status) {
        c->root = root;
        status = check(c);
    }
    if (status) return kr_pool_free(pool), status;
    return *out = c, KR_OK;
}

static kr_status load_builtin(kr_config **out) {
    KR_TRY(kr_config_parse(kr_builtin_yaml, strlen(kr_builtin_yaml), "built-in krait.yaml", out));
    (*out)->builtin = true;
    return KR_OK;
}

kr_status kr_config_load(const char *path, kr_config **out) {
    if (!path && access("krait.yaml", F_OK) != 0 && errno == ENOENT) return load_builtin(out);
    if (!path) path = "krait.yaml";
    char *text;
    size_t bytes;
    KR_TRY(kr_file_read(path, &text, &bytes));
    const kr_status status = kr_config_parse(text, bytes, path, out);
    free(text);
    return status;
}

void kr_config_free(kr_config *c) {
    if (c) kr_pool_free(c->pool);
}

const char *kr_config_label(const kr_config *c) { return c->label; }

const char *kr_config_model_name(const kr_config *c, int index) {
    const kr_yaml *m = c->models ? c->models->first : NULL;
    while (m && index-- > 0) m = m->next;
    return m ? m->key : NULL;
}

/// A model or target of that exact name.
static const kr_yaml *find_exact(const kr_yaml *map, const char *name) {
    for (const kr_yaml *m = map ? map->first : NULL; m; m = m->next)
        if (!strcmp(m->key, name)) return m;
    return NULL;
}

static kr_status no_such(const kr_config *c, const char *what, const kr_yaml *map, const char *name) {
    const char *names[64] = {0};
    char all[512] = "";
    int count = 0;
    size_t n = 0;
    for (const kr_yaml *m = map ? map->first : NULL; m && count < 64; m = m->next) {
        names[count] = m->key;
        if (n + strlen(m->key) + 3 < sizeof all) n += (size_t)sprintf(all + n, "%s%s", count ? ", " : "", m->key);
        count++;
    }
    const char *nearest = kr_nearest(name, names, count);
    KR_FAIL(KR_BAD_ARGUMENT, "unknown %s '%s'%s%s%s; %s has %s", what, name, nearest ? "; did you mean '" : "",
            nearest ? nearest : "", nearest ? "'?" : "", c->label, count ? all : "none");
}

kr_status kr_config_model(const kr_config *c, const char *name, kr_model_config *out) {
    const kr_yaml *node = find_exact(c->models, name);
    if (node) return read_model(c, node, out);
    if (!c->builtin) { // the user's file adds models; the presets stay within reach
        kr_config *builtin;
        KR_TRY(load_builtin(&builtin));
        node = find_exact(builtin->models, name);
        const kr_status status = node ? read_model(builtin, node, out) : KR_OK;
        kr_config_free(builtin);
        if (node) return status;
    }
    return no_such(c, "model", c->models, name);
}

kr_status kr_config_target(const kr_config *c, const char *name, kr_target *out) {
    const kr_yaml *node = find_exact(c->targets, name);
    if (node) return read_target(c, node, out);
    if (!c->targets && !strcmp(name, "local")) return *out = (kr_target){0}, KR_OK;
    return no_such(c, "target", c->targets, name);
}

kr_status kr_config_section(const kr_config *c, const char *section, const kr_option *table, void *to) {
    const kr_yaml *node = kr_yaml_find(c->root, section);
    return node ? kr_yaml_apply(node, c->label, section, table, to) : KR_OK;
}
