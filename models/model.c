/// A language model is a list of blocks on a residual stream, x + mixer(norm(x)), with the add fused into the next norm
/// as the official code does it (docs/book/5).
#include "models/internal.h"
#include "models/keys.h"

#include <string.h>

kr_model_config kr_model_defaults(void) {
    kr_model_config c = {.name = "custom",
                         .vocab_size = 256,
                         .pad_vocab_size_multiple = 8,
                         .d_model = 160,
                         .n_layer = 5,
                         .layer = "mamba1",
                         .rms_norm = true,
                         .tie_embeddings = true,
                         .norm_epsilon = 1e-5,
                         .context = 4096};
    return c;
}

int64_t kr_model_vocab(const kr_model_config *c) {
    const int64_t m = c->pad_vocab_size_multiple > 0 ? c->pad_vocab_size_multiple : 1;
    return (c->vocab_size + m - 1) / m * m;
}

const kr_block_kind *kr_model_layer(const kr_model_config *c, int index) {
    const char *at = c->layers;
    if (!*at) return kr_block_find(c->layer);
    for (; index > 0 && at; index--) {
        at = strchr(at, ',');
        if (at) at++;
    }
    if (!at) return NULL;
    char name[32];
    const size_t length = strcspn(at, ",");
    if (length >= sizeof name) return NULL;
    memcpy(name, at, length);
    name[length] = 0;
    return kr_block_find(name);
}

int kr_model_kinds(const kr_model_config *c, const kr_block_kind *kinds[KR_BLOCK_KINDS_MAX], int *all) {
    int own = 0;
    for (int i = 0; i < c->n_layer + 1; i++) { // one more, so that a model without layers has its `layer`
        const kr_block_kind *kind = kr_model_layer(c, i);
        int k = 0;
        while (k < own && kinds[k] != kind) k++;
        if (kind && k == own) kinds[own++] = kind;
        if (!c->layers[0]) break;
    }
    *all = own;
    for (int i = 0; kr_block_at(i); i++) {
        int k = 0;
        while (k < own && kinds[k] != kr_block_at(i)) k++;
        if (k == own) kinds[(*all)++] = kr_block_at(i);
    }
    return own;
}

bool kr_mode_parse(const char *name, kr_mode *out) {
    static const char *const names[] = {"train", "eval", "prefill", "decode", "logits"};
    for (int i = 0; i < 5; i++)
        if (!strcmp(name, names[i])) {
            *out = (kr_mode)i;
            return true;
        }
    return false;
}

static kr_status check(const kr_model_config *c, int64_t batch, int64_t length) {
    KR_FAIL_IF(c->d_model < 1 || c->d_model > 1 << 20, KR_BAD_ARGUMENT, "model: d_model is %ld, want 1 to %d",
               (long)c->d_model, 1 << 20);
    KR_FAIL_IF(c->n_layer < 0 || c->n_layer > 4096, KR_BAD_ARGUMENT, "model: n_layer is %d, want 0 to 4096",
               c->n_layer);
    KR_FAIL_IF(c->vocab_size < 1 || c->vocab_size > 1 << 24, KR_BAD_ARGUMENT, "model: vocab_size is %ld, want 1 to %d",
               (long)c->vocab_size, 1 << 24);
    KR_FAIL_IF(c->pad_vocab_size_multiple < 1 || c->pad_vocab_size_multiple > 65536, KR_BAD_ARGUMENT,
               "model: pad_vocab_size_multiple is %ld, want 1 to 65536", (long)c->pad_vocab_size_multiple);
    KR_FAIL_IF(!(c->norm_epsilon >= 0), KR_BAD_ARGUMENT, "model: norm_epsilon is %g, want at least 0", c->norm_epsilon);
    KR_FAIL_IF(c->context < 1 || c->context > 1 << 28, KR_BAD_ARGUMENT, "model: context is %ld, want 1 to %d",
               (long)c->context, 1 << 28);
    KR_FAIL_IF(c->d_intermediate < 0 || c->d_intermediate > 1 << 24, KR_BAD_ARGUMENT,
               "model: d_intermediate is %ld, want 0 to %d", (long)c->d_intermediate, 1 << 24);
    for (int i = 0; i < (c->layers[0] ? c->n_layer : 1); i++)
        KR_FAIL_IF(!kr_model_layer(c, i), KR_BAD_ARGUMENT, "model: layer %d of \"%s\" is an unknown block", i,
                   c->layers[0] ? c->layers : c->layer);
    const kr_block_kind *kinds[KR_BLOCK_KINDS_MAX];
    int all;
    const int own = kr_model_kinds(c, kinds, &all);
    KR_TRY(kr_settings_check(&c->keys, kinds, own, all));
    KR_FAIL_IF(batch < 0 || length < 0 || batch > 1 << 24 || length > 1 << 28, KR_BAD_SHAPE,
               "model: batch %ld by length %ld is out of range", (long)batch, (long)length);
    return KR_OK;
}

/// Norm of the stream after adding h to it: *stream becomes h + *stream (or h at the first).
static kr_value add_norm(kr_graph *g, const kr_model_config *c, const char *name, kr_value h, kr_value *stream) {
    kr_scope_push(g, "%s", name);
    const kr_value w = kr_param(g, "weight", KR_SHAPE(c->d_model), (kr_init){.kind = KR_INIT_CONSTANT, .a = 1}, 0);
    const kr_value y =
        c->rms_norm ? kr_rms_norm_full(g, h, *stream, KR_NONE, w, KR_NONE, c->norm_epsilon, 0, false, stream)
                    : kr_layer_norm_full(g, h, *stream, w,
                                         kr_param(g, "bias", KR_SHAPE(c->d_model), (kr_init){.kind = KR_INIT_ZEROS}, 0),
                                         c->norm_epsilon, stream);
    kr_scope_pop(g);
    return y;
}

/// One sub-layer: norm of the stream, then the block; h becomes what the next norm adds to the stream.
static kr_value sublayer(kr_graph *g, const kr_model_config *c, const kr_block_kind *kind, const kr_settings *keys,
                         const kr_block_config *block, const char *norm, const char *scope, kr_value h,
                         kr_value *stream) {
    const kr_value normed = add_norm(g, c, norm, h, stream);
    kr_scope_push(g, "%s", scope);
    h = kr_block_build(g, kind, keys, block, normed);
    kr_scope_pop(g);
    return h;
}

/// ids i32 [B, L] to the normed stream [B, L, d_model]; *embedding gets the (tied) embedding weight.
static kr_value backbone(kr_graph *g, const kr_model_config *c, kr_value ids, kr_value reset, bool generating,
                         kr_value *embedding) {
    const kr_block_config block = {.d_model = c->d_model, .n_layer = c->n_layer, .zero_bias = true, .reset = reset,
                                   .capacity = generating ? c->context : 0};
    const kr_block_kind *mlp = kr_block_find("gated_mlp");
    kr_settings mlp_keys = {0};
    if (c->d_intermediate) kr_settings_set(&mlp_keys, "hidden", "%lld", (long long)c->d_intermediate);
    kr_scope_push(g, "backbone");
    *embedding = kr_param(g, "embedding.weight", KR_SHAPE(kr_model_vocab(c), c->d_model),
                          (kr_init){.kind = KR_INIT_NORMAL, .a = 0.02}, 0);
    kr_value h = kr_embedding(g, *embedding, ids), stream = KR_NONE;
    for (int i = 0; i < c->n_layer; i++) {
        kr_scope_push(g, "layers.%d", i);
        h = sublayer(g, c, kr_model_layer(c, i), &c->keys, &block, "norm", "mixer", h, &stream);
        if (c->d_intermediate) h = sublayer(g, c, mlp, &mlp_keys, &block, "norm2", "mlp", h, &stream);
        kr_scope_pop(g);
    }
    h = add_norm(g, c, "norm_f", h, &stream);
    kr_scope_pop(g);
    return h;
}

static void build(kr_graph *g, const kr_model_config *c, kr_mode mode, int64_t batch, int64_t length) {
    const bool generating = mode == KR_MODE_PREFILL || mode == KR_MODE_DECODE;
    const bool training = mode == KR_MODE_TRAIN || mode == KR_MODE_EVAL;
    kr_graph_carries(g, generating || (mode == KR_MODE_TRAIN && c->carry_state));
    kr_value weight;
    const kr_value ids = kr_input(g, "tokens", KR_I32, KR_SHAPE(batch, length));
    const kr_value reset = training && c->reset_input ? kr_input(g, "reset", KR_I32, KR_SHAPE(batch, length)) : KR_NONE;
    kr_value h = backbone(g, c, ids, reset, generating, &weight);
    if (!c->tie_embeddings)
        weight = kr_param(g, "lm_head.weight", KR_SHAPE(kr_model_vocab(c), c->d_model),
                          kr_uniform(kr_fan_in(c->d_model)), KR_PARAM_DECAY);
    if (generating) // only the last position decides what comes next
        h = kr_reshape(g, kr_slice(g, h, 1, length - 1, 1), KR_SHAPE(batch, c->d_model));
    kr_scope_push(g, "lm_head");
    if (training) {
        const kr_value targets = kr_input(g, "targets", KR_I32, KR_SHAPE(batch, length));
        kr_output(g, "loss", kr_linear_cross_entropy(g, h, weight, targets, 0, NULL, NULL));
    } else {
        kr_output(g, "logits", kr_linear(g, h, weight, KR_NONE));
    }
    kr_scope_pop(g);
}

kr_status kr_model_build(const kr_model_config *c, kr_mode mode, int64_t batch, int64_t length, kr_graph **out) {
    *out = NULL;
    if (mode == KR_MODE_DECODE) length = 1;
    KR_TRY(check(c, batch, length));
    KR_FAIL_IF(mode == KR_MODE_PREFILL && length < 1, KR_BAD_SHAPE, "model: prefill needs at least one token");
    KR_TRY(kr_graph_new(out));
    build(*out, c, mode, batch, length);
    const kr_status status = kr_graph_status(*out);
    if (status) {
        kr_graph_free(*out);
        *out = NULL;
    }
    return status;
}
