// krait.yaml: what may stand in it, and what it means. Every section goes through an option table (options.c), so a
// wrong key, type or range is told with its line and the nearest known key. The whole file is checked when it is read.
#include "tools/cli/text.h"
#include "tools/config/block_keys.h"
#include "tools/config/config.h"
#include "tools/config/train_options.h"
#include "tools/config/yaml.h"

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

/// A model as it is being read: what the file spells otherwise than kr_model_config stands beside it.
typedef struct entry {
    kr_model_config model;
    char attn_layer_idx[1024]; ///< "9,18,27"
} entry;

#define MODEL(name) offsetof(entry, model.name)
/// Keys of the model itself; those of blocks are in the blocks' tables.
static const kr_option model_options[] = {
    {"layer", KR_OPTION_NAME, MODEL(layer), .hi = sizeof((kr_model_config *)0)->layer, .help = "block of every layer"},
    {"layers", KR_OPTION_WORDS, MODEL(layers), .hi = sizeof((kr_model_config *)0)->layers,
     .help = "a block for each layer"},
    {"attn-layer-idx", KR_OPTION_WORDS, offsetof(entry, attn_layer_idx), .hi = sizeof((entry *)0)->attn_layer_idx,
     .help = "layers (from 0) that are attention"},
    {"d-model", KR_OPTION_INTEGER, MODEL(d_model), 1, 1 << 20, .help = "width"},
    {"n-layer", KR_OPTION_INT, MODEL(n_layer), 1, 4096, .help = "layers"},
    {"d-intermediate", KR_OPTION_INTEGER, MODEL(d_intermediate), 0, 1 << 24,
     .help = "gated MLP after every layer; 0: none"},
    {"context", KR_OPTION_INTEGER, MODEL(context), 1, 1 << 28,
     .help = "tokens that attention remembers when generating"},
    {"vocab-size", KR_OPTION_INTEGER, MODEL(vocab_size), 1, 1 << 24, .help = "256 for bytes"},
    {"pad-vocab-size-multiple", KR_OPTION_INTEGER, MODEL(pad_vocab_size_multiple), 1, 1 << 16,
     .help = "rows of the embedding are rounded up to it"},
    {"rms-norm", KR_OPTION_FLAG, MODEL(rms_norm), .help = "else LayerNorm"},
    {"tie-embeddings", KR_OPTION_FLAG, MODEL(tie_embeddings), .help = "the head is the embedding"},
    {"norm-epsilon", KR_OPTION_REAL, MODEL(norm_epsilon), 1e-30, 1, .help = "1e-5 in published models"},
    {0},
};

static const kr_option target_options[] = {
    {"device", KR_OPTION_CHOICE, offsetof(kr_machine, device), .choices = "cpu", .help = "what runs the plans"},
    {"threads", KR_OPTION_INTEGER, offsetof(kr_machine, threads), 0, 4096, .help = "0: all that the process may use"},
    {"isa", KR_OPTION_CHOICE, offsetof(kr_machine, isa), .choices = "auto|base|avx2|avx512",
     .help = "highest instruction set level"},
    {0},
};

/// Whether `name` is a block; the message of the failure names the nearest one.
static kr_status want_block(const kr_config *c, const kr_yaml *node, const char *key, const char *name) {
    if (kr_block_find(name)) return KR_OK;
    const char *names[64];
    int count = 0;
    for (; kr_block_at(count) && count < 64; count++) names[count] = kr_block_at(count)->name;
    const char *nearest = kr_nearest(name, names, count);
    KR_FAIL(KR_BAD_ARGUMENT,
            "%s:%d: %s in model %s is '%s', an unknown block%s%s%s (one of your own: --block FILE.so)",
            c->label, kr_yaml_find(node, key)->line, key, node->key, name, nearest ? "; did you mean '" : "",
            nearest ? nearest : "", nearest ? "'?" : "");
}

/// `layers: [a, b]`: its words are blocks, and there are n_layer of them.
static kr_status read_layers(const kr_config *c, const kr_yaml *node, kr_model_config *m) {
    const kr_yaml *list = kr_yaml_find(node, "layers");
    int count = 0;
    KR_FAIL_IF(kr_yaml_find(node, "layer") || kr_yaml_find(node, "attn_layer_idx"), KR_BAD_ARGUMENT,
               "%s:%d: model %s has layers; leave layer and attn_layer_idx out", c->label, list->line, node->key);
    for (const kr_yaml *word = list->first; word; word = word->next, count++)
        KR_TRY(want_block(c, node, "layers", word->text));
    KR_FAIL_IF(kr_yaml_find(node, "n_layer") && m->n_layer != count, KR_BAD_ARGUMENT,
               "%s:%d: model %s has %d layers in its list, and n_layer %d; leave n_layer out", c->label, list->line,
               node->key, count, m->n_layer);
    m->n_layer = count;
    snprintf(m->layer, sizeof m->layer, "%s", kr_block_find(list->first->text)->name);
    return KR_OK;
}

/// attn_layer_idx of official configurations: those layers are attention, the others `layer`.
static kr_status read_attention_layers(const kr_config *c, const kr_yaml *node, const char *indices,
                                       kr_model_config *m) {
    const kr_yaml *list = kr_yaml_find(node, "attn_layer_idx");
    bool attends[4096] = {false};
    for (const char *at = indices; at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL) {
        char *end;
        const long index = strtol(at, &end, 10);
        KR_FAIL_IF(end == at || (*end && *end != ',') || index < 0 || index >= m->n_layer, KR_BAD_ARGUMENT,
                   "%s:%d: attn_layer_idx in model %s has %.*s, want layers 0 to %d", c->label, list->line, node->key,
                   (int)strcspn(at, ","), at, m->n_layer - 1);
        attends[index] = true;
    }
    KR_TRY(want_block(c, node, "attn_layer_idx", "attention"));
    size_t n = 0;
    for (int k = 0; k < m->n_layer; k++) {
        n += (size_t)snprintf(m->layers + n, sizeof m->layers - n, "%s%s", k ? "," : "",
                              attends[k] ? "attention" : m->layer);
        KR_FAIL_IF(n >= sizeof m->layers, KR_BAD_ARGUMENT, "%s:%d: model %s has too many layers for attn_layer_idx",
                   c->label, list->line, node->key);
    }
    return KR_OK;
}

static kr_status read_model(const kr_config *c, const kr_yaml *node, kr_model_config *out) {
    char what[128];
    entry e = {.model = kr_model_defaults()};
    kr_model_config *m = &e.model;
    KR_FAIL_IF(strlen(node->key) >= sizeof m->name, KR_BAD_ARGUMENT,
               "%s:%d: the name '%s' is longer than %zu characters", c->label, node->key_line, node->key,
               sizeof m->name - 1);
    snprintf(what, sizeof what, "model %s", node->key);
    strcpy(m->name, node->key);
    KR_TRY(kr_yaml_want_map(node, c->label, what));
    for (const kr_yaml *key = node->first; key; key = key->next) {
        const kr_option *o = kr_option_find(model_options, key->key);
        if (o) KR_TRY(kr_yaml_set(key, c->label, what, o, &e));
    }
    // Blocks first: they say which other keys there can be
    const bool listed = kr_yaml_find(node, "layers");
    if (listed) KR_TRY(read_layers(c, node, m));
    else if (kr_yaml_find(node, "layer")) KR_TRY(want_block(c, node, "layer", m->layer));
    KR_TRY(kr_block_keys_apply(node, c->label, what, model_options, m));
    static const char *const needed[] = {"d_model", "vocab_size", "layer", "n_layer"};
    for (int k = 0; k < (listed ? 2 : 4); k++)
        KR_FAIL_IF(!kr_yaml_find(node, needed[k]), KR_BAD_ARGUMENT, "%s:%d: model %s has no %s", c->label,
                   node->key_line, node->key, needed[k]);
    if (!listed && e.attn_layer_idx[0]) KR_TRY(read_attention_layers(c, node, e.attn_layer_idx, m));
    *out = *m;
    return KR_OK;
}

static kr_status read_target(const kr_config *c, const kr_yaml *node, kr_machine *out) {
    char what[128];
    *out = (kr_machine){0};
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
            kr_machine machine;
            for (const kr_yaml *n = m->first; n; n = n->next) KR_TRY(read_target(c, n, &machine));
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

kr_status kr_config_target(const kr_config *c, const char *name, kr_machine *out) {
    const kr_yaml *node = find_exact(c->targets, name);
    if (node) return read_target(c, node, out);
    if (!c->targets && !strcmp(name, "local")) return *out = (kr_machine){0}, KR_OK;
    return no_such(c, "target", c->targets, name);
}

kr_status kr_config_section(const kr_config *c, const char *section, const kr_option *table, void *to) {
    const kr_yaml *node = kr_yaml_find(c->root, section);
    return node ? kr_yaml_apply(node, c->label, section, table, to) : KR_OK;
}
