#include "models/internal.h"

typedef struct mamba1_config {
    int64_t d_state, d_conv, expand, dt_rank;
    kr_step_config step;
    double dt_scale;
    bool conv_bias, bias;
} mamba1_config;

static const kr_key keys[] = {
    KR_KEY_INT(mamba1_config, d_state, 16, 1, 4096, "state per channel"),
    KR_KEY_INT(mamba1_config, d_conv, 4, 1, 256, "taps of the convolution"),
    KR_KEY_INT(mamba1_config, expand, 2, 1, 64, "inner width over d_model"),
    KR_STEP_KEYS(mamba1_config, step),
    KR_KEY_REAL(mamba1_config, dt_scale, 1, 0, 1e6, "scale of dt_proj's initial weights"),
    KR_KEY_BOOL(mamba1_config, conv_bias, true, "of the convolution"),
    KR_KEY_BOOL(mamba1_config, bias, false, "of in_proj and out_proj"),
    KR_KEY_INT(mamba1_config, dt_rank, KR_KEY_DERIVED, 1, 1 << 20, "auto: d_model / 16, rounded up"),
    {0},
};

/// Mamba-1 block. x [B, L, d_model] to [B, L, d_model]; parameters named as in `mamba_ssm.modules.Mamba`.
/// State: the last d_conv - 1 inputs of the convolution [B, d_conv - 1, E] and the scan's h [B, E, N].
///   source Gu & Dao 2023, arXiv:2312.00752, figure 3 and algorithm 2
static kr_value mamba1(kr_graph *g, const kr_block_config *c, kr_value x) {
    const mamba1_config *k = c->keys;
    const int64_t B = kr_value_shape(g, x).dim[0], D = c->d_model, E = k->expand * D;
    const int64_t N = k->d_state, W = k->d_conv, R = kr_key_or(k->dt_rank, (D + 15) / 16);
    const double dt_range = k->dt_scale / sqrt((double)R);
    kr_value path[2], select[3], conv_next, h_next;

    // [x | z] = in_proj u
    kr_split(g, kr_block_linear(g, c, "in_proj", x, 2 * E, k->bias, 1.0), -1, (int64_t[]){E, E}, 2, path);

    // x = silu(conv(x)), over the inputs of the call before
    const kr_value conv_state = kr_carry(g, "conv_state", KR_F32, KR_SHAPE(B, W - 1, E));
    const kr_value u = kr_block_conv(g, c, path[0], W, k->conv_bias, true, conv_state, &conv_next);
    kr_carry_set(g, conv_state, conv_next);

    // [dt | B | C] = x_proj x;  delta = dt_proj dt (its bias enters before the softplus, inside the scan)
    const kr_init start = kr_uniform(kr_fan_in(E));
    const kr_value x_proj = kr_param(g, "x_proj.weight", KR_SHAPE(R + 2 * N, E), start, KR_PARAM_DECAY);
    kr_split(g, kr_linear(g, u, x_proj, KR_NONE), -1, (int64_t[]){R, N, N}, 3, select);
    const kr_value dt_proj = kr_param(g, "dt_proj.weight", KR_SHAPE(E, R), kr_uniform(dt_range), KR_PARAM_DECAY);
    const kr_value dt_bias = kr_param(g, "dt_proj.bias", KR_SHAPE(E), kr_dt_bias(g, &k->step), 0);

    // h_t = exp(delta A) h_{t-1} + delta B x_t;  y_t = C h_t + D x_t;  y * silu(z)
    const kr_value A_log = kr_param(g, "A_log", KR_SHAPE(E, N), (kr_init){.kind = KR_INIT_LOG_ARANGE}, 0);
    const kr_value skip = kr_param(g, "D", KR_SHAPE(E), kr_ones, 0);
    const kr_value h = kr_carry(g, "ssm_state", KR_F32, KR_SHAPE(B, E, N));
    const kr_value y = kr_selective_scan(g, &(kr_selective_scan_args){
        .u = u, .delta = kr_linear(g, select[0], dt_proj, KR_NONE), .A = kr_neg(g, kr_exp(g, A_log)), .B = select[1],
        .C = select[2], .D = skip, .z = path[1], .delta_bias = dt_bias, .h0 = h, .reset = c->reset,
        .delta_softplus = true}, &h_next);
    kr_carry_set(g, h, h_next);
    return kr_block_linear(g, c, "out_proj", y, D, k->bias, kr_block_output_scale(c));
}

const kr_block_kind kr_block_mamba1 = {
    .name = "mamba1", .official = "Mamba1", .keys = keys, .config_bytes = sizeof(mamba1_config), .build = mamba1,
};
