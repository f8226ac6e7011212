#include "models/internal.h"

/// Causal attention with grouped queries, rotary positions, an optional convolution over q, k and v, and an optional
/// gated MLP beside the heads. x [B, L, d_model] to [B, L, d_model]; parameters as in `mamba_ssm.modules.mha.MHA`.
/// State: the cache of rotated keys and of values [B, capacity, Hkv*Dh], the number of tokens in it, and the
/// convolution's last raw inputs.
///   source Vaswani et al. 2017, arXiv:1706.03762; grouped queries: Ainslie et al. 2023, arXiv:2305.13245
static kr_value attention(kr_graph *g, const kr_block_config *c, kr_value x) {
    const kr_attention_config *a = &c->attention;
    const kr_shape shape = kr_value_shape(g, x);
    const int64_t B = shape.dim[0], L = shape.dim[1], D = c->d_model, H = kr_or(a->num_heads, D >= 64 ? D / 64 : 1);
    const int64_t Hkv = kr_or(a->num_heads_kv, H), Dh = kr_or(a->head_dim, D / H), Q = H * Dh, KV = Hkv * Dh;
    const int64_t mlp = a->mlp_dim > 0 ? (a->mlp_dim + 255) / 256 * 256 : 0, W = a->d_conv;
    kr_block_config in_config = *c, out_config = *c;
    in_config.bias = a->qkv_proj_bias;
    out_config.bias = a->out_proj_bias;
    kr_value in[2], qkv[3], up[2], conv_next;

    const kr_value projected = kr_block_linear(g, &in_config, "in_proj", x, Q + 2 * KV + mlp, 1);
    kr_split(g, projected, -1, (int64_t[]){Q + 2 * KV, mlp}, mlp ? 2 : 1, in);
    if (W > 0) {
        const kr_value raw = kr_carry(g, "conv_state", KR_F32, KR_SHAPE(B, W - 1, Q + 2 * KV));
        in[0] = kr_block_conv(g, c, in[0], W, true, false, raw, &conv_next);
        kr_carry_set(g, raw, conv_next);
    }
    kr_split(g, in[0], -1, (int64_t[]){Q, KV, KV}, 3, qkv);

    // Positions count on from the tokens in the cache
    const bool cached = a->capacity > 0;
    const kr_value seen = cached ? kr_carry(g, "tokens_seen", KR_F32, KR_SHAPE(1)) : KR_NONE;
    const kr_value position = cached ? kr_cast(g, seen, KR_I32) : KR_NONE;
    const double base = a->rotary_emb_base > 0 ? a->rotary_emb_base : 10000;
    for (int i = 0; i < 2 && a->rotary_emb_dim > 0; i++)
        qkv[i] = kr_rope(g, qkv[i], position, i ? Hkv : H, a->rotary_emb_dim, base, a->rotary_emb_interleaved);
    kr_value key_count = KR_NONE;
    for (int i = 1; i < 3 && cached; i++) {
        const kr_value cache = kr_carry(g, i == 1 ? "key_cache" : "value_cache", KR_F32, KR_SHAPE(B, a->capacity, KV));
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
        .scale = a->softmax_scale, .not_causal = a->not_causal});
    if (mlp) {
        kr_split(g, in[1], -1, (int64_t[]){mlp / 2, mlp / 2}, 2, up);
        o = kr_concat(g, (kr_value[]){o, kr_mul(g, up[0], kr_silu(g, up[1]))}, 2, -1);
    }
    return kr_block_linear(g, &out_config, "out_proj", o, D, kr_output_scale(c));
}

const kr_block_kind kr_block_attention = {.name = "attention", .official = "MHA", .build = attention};
