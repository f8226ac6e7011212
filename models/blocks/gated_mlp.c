#include "models/internal.h"

typedef struct gated_mlp_config {
    int64_t hidden;
    bool bias;
} gated_mlp_config;

static const kr_key keys[] = {
    KR_KEY_INT(gated_mlp_config, hidden, KR_KEY_DERIVED, 1, 1 << 24,
               "width inside, rounded up to a multiple of 128; auto: 8/3 d_model"),
    KR_KEY_BOOL(gated_mlp_config, bias, false, "of fc1 and fc2"),
    {0},
};

/// Gated MLP: y = W2 (a * silu(b)), [a | b] = W1 x (value first, gate second). x [..., d_model] to [..., d_model];
/// parameters as in `mamba_ssm.modules.mlp.GatedMLP`. No state.
///   source Shazeer 2020, "GLU variants improve transformer", arXiv:2002.05202
static kr_value gated_mlp(kr_graph *g, const kr_block_config *c, kr_value x) {
    const gated_mlp_config *k = c->keys;
    const int64_t hidden = (kr_key_or(k->hidden, 8 * c->d_model / 3) + 127) / 128 * 128;
    kr_value half[2];
    kr_split(g, kr_block_linear(g, c, "fc1", x, 2 * hidden, k->bias, 1), -1, (int64_t[]){hidden, hidden}, 2, half);
    const kr_value gated = kr_mul(g, half[0], kr_silu(g, half[1]));
    return kr_block_linear(g, c, "fc2", gated, c->d_model, k->bias, kr_block_output_scale(c));
}

const kr_block_kind kr_block_gated_mlp = {
    .name = "gated_mlp", .keys = keys, .config_bytes = sizeof(gated_mlp_config), .build = gated_mlp,
};
