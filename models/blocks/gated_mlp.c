#include "models/internal.h"

/// Gated MLP: y = W2 (a * silu(b)), [a | b] = W1 x (value first, gate second). x [..., d_model] to [..., d_model];
/// parameters as in `mamba_ssm.modules.mlp.GatedMLP`. No state.
///   source Shazeer 2020, "GLU variants improve transformer", arXiv:2002.05202
static kr_value gated_mlp(kr_graph *g, const kr_block_config *c, kr_value x) {
    const int64_t hidden = ((c->hidden > 0 ? c->hidden : 8 * c->d_model / 3) + 127) / 128 * 128;
    kr_value half[2];
    kr_split(g, kr_block_linear(g, c, "fc1", x, 2 * hidden, 1), -1, (int64_t[]){hidden, hidden}, 2, half);
    return kr_block_linear(g, c, "fc2", kr_mul(g, half[0], kr_silu(g, half[1])), c->d_model, kr_output_scale(c));
}

const kr_block_kind kr_block_gated_mlp = {.name = "gated_mlp", .build = gated_mlp};
