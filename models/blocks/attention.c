#include "models/internal.h"

typedef struct attention_config {
    int64_t num_heads, num_heads_kv, head_dim, mlp_dim, d_conv, rotary_emb_dim, window;
    double rotary_emb_base, softmax_scale;
    bool rotary_emb_interleaved, qkv_proj_bias, out_proj_bias, causal;
} attention_config;

static const kr_key keys[] = {
    KR_KEY_INT(attention_config, num_heads, KR_KEY_DERIVED, 1, 1 << 16, "query heads; auto: d_model / 64, at least 1"),
    KR_KEY_INT(attention_config, num_heads_kv, KR_KEY_DERIVED, 1, 1 << 16,
               "heads of keys and values; auto: num_heads"),
    KR_KEY_INT(attention_config, head_dim, KR_KEY_DERIVED, 1, 1 << 16, "auto: d_model / num_heads"),
    KR_KEY_INT(attention_config, mlp_dim, 0, 0, 1 << 24,
               "gated MLP beside the heads, rounded up to a multiple of 256; 0: none"),
    KR_KEY_INT(attention_config, d_conv, 0, 0, 256, "taps of a convolution over q, k and v; 0: none"),
    KR_KEY_INT(attention_config, rotary_emb_dim, 0, 0, 1 << 16, "coordinates of a head that rotate; 0: none"),
    KR_KEY_REAL(attention_config, rotary_emb_base, 10000, 1, 1e12, "base of the rotary frequencies"),
    KR_KEY_BOOL(attention_config, rotary_emb_interleaved, false, "pairs (2i, 2i+1) instead of halves"),
    KR_KEY_BOOL(attention_config, qkv_proj_bias, true, "of in_proj"),
    KR_KEY_BOOL(attention_config, out_proj_bias, true, "of out_proj"),
    KR_KEY_BOOL(attention_config, causal, true, "queries see no later keys"),
    KR_KEY_REAL(attention_config, softmax_scale, KR_KEY_DERIVED, 1e-12, 1e6, "auto: 1 / sqrt(head_dim)"),
    KR_KEY_INT(attention_config, window, 0, 0, 1 << 28, "keys that a query sees, itself included; 0: no window"),
    {0},
};

/// Causal attention with grouped queries, rotary positions, an optional convolution over q, k and v, and an optional
/// gated MLP beside the heads. x [B, L, d_model] to [B, L, d_model]; parameters as in `mamba_ssm.modules.mha.MHA`.
/// State: the cache of rotated keys and of values [B, capacity, Hkv*Dh], the number of tokens in it, and the
/// convolution's last raw inputs.
///   source Vaswani et al. 2017, arXiv:1706.03762; grouped queries: Ainslie et al. 2023, arXiv:2305.13245
static kr_value attention(kr_graph *g, const kr_block_config *c, kr_value x) {
    const attention_config *a = c->keys;
    const kr_shape shape = kr_value_shape(g, x);
    const int64_t B = shape.dim[0], L = shape.dim[1], D = c->d_model, H = kr_key_or(a->num_heads, D >= 64 ? D / 64 : 1);
    const int64_t Hkv = kr_key_or(a->num_heads_kv, H), Dh = kr_key_or(a->head_dim, D / H), Q = H * Dh, KV = Hkv * Dh;
    const int64_t mlp = (a->mlp_dim + 255) / 256 * 256, W = a->d_conv;
    kr_value in[2], qkv[3], up[2], conv_next;

    const kr_value projected = kr_block_linear(g, c, "in_proj", x, Q + 2 * KV + mlp, a->qkv_proj_bias, 1);
    kr_split(g, projected, -1, (int64_t[]){Q + 2 * KV, mlp}, mlp ? 2 : 1, in);
    if (W > 0) {
        const kr_value raw = kr_carry(g, "conv_state", KR_F32, KR_SHAPE(B, W - 1, Q + 2 * KV));
        in[0] = kr_block_conv(g, c, in[0], W, true, false, raw, &conv_next);
        kr_carry_set(g, raw, conv_next);
    }
    kr_split(g, in[0], -1, (int64_t[]){Q, KV, KV}, 3, qkv);

    // Positions count on from the tokens in the cache
    const bool cached = c->capacity > 0;
    const kr_value seen = cached ? kr_carry(g, "tokens_seen", KR_F32, KR_SHAPE(1)) : KR_NONE;
    const kr_value position = cached ? kr_cast(g, seen, KR_I32) : KR_NONE;
    const double base = a->rotary_emb_base;
    for (int i = 0; i < 2 && a->rotary_emb_dim > 0; i++)
        qkv[i] = kr_rope(g, qkv[i], position, i ? Hkv : H, a->rotary_emb_dim, base, a->rotary_emb_interleaved);
    kr_value key_count = KR_NONE;
    for (int i = 1; i < 3 && cached; i++) {
        const kr_value cache = kr_carry(g, i == 1 ? "key_cache" : "value_cache", KR_F32, KR_SHAPE(B, c->capacity, KV));
        qkv[i] = kr_cache_write(g, cache, qkv[i], position);
        kr_carry_set(g, cache, qkv[i]);
    }
    if (cached) {
        const kr_value after = kr_affine(g, seen, 1, (double)L);
        kr_carry_set(g, seen, after);
        key_count = kr_cast(g, after, KR_I32);
    }
    kr_value o = kr_attention(g, &(kr_attention_args){.q = qkv[0], .k = qkv[1], .v = qkv[2], .key_count = key_count,
        .reset = cached ? KR_NONE : c->reset, .heads = H, .kv_heads = Hkv, .window = a->window,
        .scale = isnan(a->softmax_scale) ? 0 : a->softmax_scale, .not_causal = !a->causal});
    if (mlp) {
        kr_split(g, in[1], -1, (int64_t[]){mlp / 2, mlp / 2}, 2, up);
        o = kr_concat(g, (kr_value[]){o, kr_mul(g, up[0], kr_silu(g, up[1]))}, 2, -1);
    }
    return kr_block_linear(g, c, "out_proj", o, D, a->out_proj_bias, kr_block_output_scale(c));
}

const kr_block_kind kr_block_attention = {
    .name = "attention", .official = "MHA", .keys = keys, .config_bytes = sizeof(attention_config),
    .section = "attention", .official_section = "attn_cfg", .build = attention,
};
