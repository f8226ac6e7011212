#include "models/internal.h"

typedef struct tinymamba_config {
    int64_t expand;
    double base_decay;
    bool bias;
} tinymamba_config;

static const kr_key keys[] = {
    KR_KEY_INT(tinymamba_config, expand, 2, 1, 64, "inner width over d_model"),
    KR_KEY_REAL(tinymamba_config, base_decay, 1, 1e-12, 1e6, "how fast memory fades at most"),
    KR_KEY_BOOL(tinymamba_config, bias, false, "of in_proj and out_proj"),
    {0},
};

/// A gated state whose memory decays, all linear in the state:
///   a_t = exp(-base_decay sigmoid(W_d x_t + V_d goal + b_d))   how much is kept
///   i_t = sigmoid(W_i x_t + W_g goal + b_i)                    how much is let in
///   h_t = a_t h_{t-1} + i_t (W_x x_t)
///   y_t = W_o (h_t sigmoid(W_s x_t + b_s))                     how much is shown
/// x [B, L, d_model] to [B, L, d_model]. The goal, one vector per row, is optional; without it its terms are absent.
/// State: h [B, E]. Slow decay (base_decay small) remembers for long, a large one drops it within tokens.
static kr_value tinymamba(kr_graph *g, const kr_block_config *c, kr_value x) {
    const tinymamba_config *k = c->keys;
    const int64_t B = kr_value_shape(g, x).dim[0], D = c->d_model, E = k->expand * D;
    kr_value part[3], h_next;

    // One product for W_d, W_i and W_s; the goal shifts the first two
    kr_split(g, kr_block_linear(g, c, "gate_proj", x, 3 * E, true, 1), -1, (int64_t[]){E, E, E}, 3, part);
    if (c->goal.id) {
        const kr_init start = kr_uniform(kr_fan_in(D));
        const kr_value w = kr_param(g, "goal_proj.weight", KR_SHAPE(2 * E, D), start, KR_PARAM_DECAY);
        const kr_value goal = kr_reshape(g, kr_linear(g, c->goal, w, KR_NONE), KR_SHAPE(B, 1, 2 * E));
        kr_value shift[2];
        kr_split(g, goal, -1, (int64_t[]){E, E}, 2, shift);
        part[0] = kr_add(g, part[0], shift[0]);
        part[1] = kr_add(g, part[1], shift[1]);
    }
    const kr_value keep = kr_exp(g, kr_affine(g, kr_sigmoid(g, part[0]), -k->base_decay, 0));
    const kr_value let_in = kr_mul(g, kr_sigmoid(g, part[1]), kr_block_linear(g, c, "in_proj", x, E, k->bias, 1));
    const kr_value h0 = kr_carry(g, "memory", KR_F32, KR_SHAPE(B, E));
    const kr_value h = kr_linear_scan(g, keep, let_in, h0, c->reset, &h_next);
    kr_carry_set(g, h0, h_next);
    const kr_value shown = kr_mul(g, h, kr_sigmoid(g, part[2]));
    return kr_block_linear(g, c, "out_proj", shown, D, k->bias, kr_block_output_scale(c));
}

const kr_block_kind kr_block_tinymamba = {
    .name = "tinymamba", .keys = keys, .config_bytes = sizeof(tinymamba_config), .build = tinymamba,
};
