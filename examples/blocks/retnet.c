#include <krait.h>

#include <math.h>

typedef struct retnet_config {
    int64_t expand, headdim;
    bool bias;
} retnet_config;

static const kr_key keys[] = {
    KR_KEY_INT(retnet_config, expand, 2, 1, 64, "inner width over d_model"),
    KR_KEY_INT(retnet_config, headdim, 32, 1, 1 << 16, "channels of a head"),
    KR_KEY_BOOL(retnet_config, bias, false, "of in_proj and out_proj"),
    {0},
};

/// Multi-scale retention of RetNet: attention without softmax, whose heads decay at fixed rates.
///   q, k rotate by their position (rotary);  gamma_h = 1 - 2^(-5-h)
///   S_t = gamma S_{t-1} + v_t (outer) k_t;  o_t = S_t q_t / sqrt(head size)
///   y = W_o (norm_per_head(o) silu(W_g x))
/// That is the scan of Mamba-2 with a step of 1 and one group for each head, and so it runs in chunks.
/// x [B, L, d_model] to [B, L, d_model]. State: S [B, H, P, P] and the number of tokens so far.
///   source Sun et al. 2023, "Retentive network", arXiv:2307.08621, section 2
static kr_value retnet(kr_graph *g, const kr_block_config *c, kr_value x) {
    const kr_shape shape = kr_value_shape(g, x);
    const retnet_config *own = c->keys;
    const int64_t B = shape.dim[0], L = shape.dim[1], E = own->expand * c->d_model, P = own->headdim;
    const int64_t H = kr_block_count(g, "expand * d_model", E, "headdim", P);
    kr_value part[4], last;
    kr_split(g, kr_block_linear(g, c, "in_proj", x, 4 * E, own->bias, 1), -1, (int64_t[]){E, E, E, E}, 4, part);

    const kr_value seen = kr_carry(g, "tokens_seen", KR_F32, KR_SHAPE(1)), position = kr_cast(g, seen, KR_I32);
    kr_carry_set(g, seen, kr_affine(g, seen, 1, (double)L));
    const kr_value q = kr_rope(g, part[0], position, H, P / 2 * 2, 10000, true);
    const kr_value k = kr_rope(g, part[1], position, H, P / 2 * 2, 10000, true);

    // log gamma_h, h = 0 .. H - 1
    const kr_value number = kr_cumsum(g, kr_const(g, 1, KR_F32, KR_SHAPE(H)), 0, false);
    const kr_value rate = kr_log(g, kr_affine(g, kr_exp(g, kr_affine(g, number, -M_LN2, -4 * M_LN2)), -1, 1));
    const kr_value h0 = kr_carry(g, "state", KR_F32, KR_SHAPE(B, H, P, P));
    const kr_value o = kr_ssd_scan(g, &(kr_ssd_scan_args){.x = part[2], .dt = kr_const(g, 1, KR_F32, KR_SHAPE(B, L, H)),
        .A = rate, .B = k, .C = kr_affine(g, q, 1 / sqrt((double)P), 0), .h0 = h0, .reset = c->reset,
        .groups = H, .dt_max = INFINITY}, &last);
    kr_carry_set(g, h0, last);
    const kr_value weight = kr_param(g, "norm.weight", KR_SHAPE(E), (kr_init){KR_INIT_CONSTANT, 1, 0, 0}, 0);
    const kr_value y = kr_rms_norm_full(g, o, KR_NONE, part[3], weight, KR_NONE, 1e-5, P, true, NULL);
    return kr_block_linear(g, c, "out_proj", y, c->d_model, own->bias, kr_block_output_scale(c));
}

static const kr_block_kind kind = {
    .name = "retnet", .keys = keys, .config_bytes = sizeof(retnet_config), .build = retnet,
};
KR_BLOCK_EXPORT(kind);
