#include "models/internal.h"

typedef struct mamba2_config {
    int64_t d_state, d_conv, expand, headdim, ngroups, d_ssm, chunk_size;
    bool rmsnorm, norm_before_gate, D_has_hdim, conv_bias, bias;
    kr_step_config step;
    double dt_limit[2];
} mamba2_config;

static const kr_key keys[] = {
    KR_KEY_INT(mamba2_config, d_state, 128, 1, 4096, "state per channel"),
    KR_KEY_INT(mamba2_config, d_conv, 4, 1, 256, "taps of the convolution"),
    KR_KEY_INT(mamba2_config, expand, 2, 1, 64, "inner width over d_model"),
    KR_KEY_INT(mamba2_config, headdim, 64, 1, 1 << 16, "channels of a head"),
    KR_KEY_INT(mamba2_config, ngroups, 1, 1, 1 << 16, "groups of B and C"),
    KR_KEY_INT(mamba2_config, d_ssm, KR_KEY_DERIVED, 1, 1 << 24, "width that goes through the scan; auto: all"),
    KR_KEY_INT(mamba2_config, chunk_size, KR_KEY_DERIVED, 1, 1 << 16, "tokens of a chunk; auto: chosen by the op"),
    KR_KEY_BOOL(mamba2_config, rmsnorm, true, "gated norm after the scan"),
    KR_KEY_BOOL(mamba2_config, norm_before_gate, false, "order of the two"),
    KR_KEY_BOOL(mamba2_config, D_has_hdim, false, "D per channel instead of per head"),
    KR_STEP_KEYS(mamba2_config, step),
    KR_KEY_BOOL(mamba2_config, conv_bias, true, "of the convolution"),
    KR_KEY_BOOL(mamba2_config, bias, false, "of in_proj and out_proj"),
    KR_KEY_RANGE(mamba2_config, dt_limit, 0, "clamp of the step: [low, high]"),
    {0},
};

/// Mamba-2 block. x [B, L, d_model] to [B, L, d_model]; parameters named as in `mamba_ssm.modules.Mamba2`.
/// State: the last d_conv - 1 inputs of the convolution and the scan's S [B, H, P, N].
///   source Dao & Gu 2024, arXiv:2405.21060, figure 6 and listing 1
static kr_value mamba2(kr_graph *g, const kr_block_config *c, kr_value u) {
    const mamba2_config *k = c->keys;
    const int64_t B = kr_value_shape(g, u).dim[0], D = c->d_model, E = k->expand * D, P = k->headdim;
    const int64_t S = kr_key_or(k->d_ssm, E), H = kr_block_count(g, "d_ssm", S, "headdim", P), W = k->d_conv;
    const int64_t G = k->ngroups, N = k->d_state, C = S + 2 * G * N;
    const int64_t M = E - S; // channels of a plain gated MLP beside the scan
    kr_value in[5], x[3], conv_next, last;

    // [z0 | x0 | z | xBC | dt] = in_proj u
    const kr_value projected = kr_block_linear(g, c, "in_proj", u, 2 * E + 2 * G * N + H, k->bias, 1);
    kr_split(g, projected, -1, (int64_t[]){M, M, S, C, H}, 5, in);

    // xBC = silu(conv(xBC))
    const kr_value conv_state = kr_carry(g, "conv_state", KR_F32, KR_SHAPE(B, W - 1, C));
    const kr_value xBC = kr_block_conv(g, c, in[3], W, k->conv_bias, true, conv_state, &conv_next);
    kr_carry_set(g, conv_state, conv_next);
    kr_split(g, xBC, -1, (int64_t[]){S, G * N, G * N}, 3, x);

    // S_t = exp(dt A) S_{t-1} + dt x_t (outer) B_t;  y_t = S_t C_t + D x_t
    const kr_value dt_bias = kr_param(g, "dt_bias", KR_SHAPE(H), kr_dt_bias(g, &k->step), 0);
    const kr_init rates = {.kind = KR_INIT_LOG_UNIFORM, .a = 1, .b = 16};
    const kr_value A_log = kr_param(g, "A_log", KR_SHAPE(H), rates, 0);
    const kr_value skip = kr_param(g, "D", KR_SHAPE(k->D_has_hdim ? S : H), kr_ones, 0);
    const kr_value h0 = kr_carry(g, "ssm_state", KR_F32, KR_SHAPE(B, H, P, N));
    kr_value y = kr_ssd_scan(g, &(kr_ssd_scan_args){.x = x[0], .dt = in[4], .A = kr_neg(g, kr_exp(g, A_log)), .B = x[1],
        .C = x[2], .D = skip, .z = k->rmsnorm ? KR_NONE : in[2], .dt_bias = dt_bias, .h0 = h0, .reset = c->reset,
        .groups = G, .chunk = kr_key_or(k->chunk_size, 0), .dt_min = k->dt_limit[0], .dt_max = k->dt_limit[1],
        .dt_softplus = true}, &last);
    kr_carry_set(g, h0, last);

    if (k->rmsnorm)
        y = kr_rms_norm_full(g, y, KR_NONE, in[2], kr_param(g, "norm.weight", KR_SHAPE(S), kr_ones, 0), KR_NONE, 1e-5,
                             S / G, k->norm_before_gate, NULL);
    if (M) y = kr_concat(g, (kr_value[]){kr_mul(g, kr_silu(g, in[0]), in[1]), y}, 2, -1);
    return kr_block_linear(g, c, "out_proj", y, D, k->bias, kr_block_output_scale(c));
}

const kr_block_kind kr_block_mamba2 = {
    .name = "mamba2", .official = "Mamba2", .keys = keys, .config_bytes = sizeof(mamba2_config), .build = mamba2,
};
