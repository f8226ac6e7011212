#include "models/internal.h"

typedef struct leaky_config {
    double leak;
} leaky_config;

static const kr_key keys[] = {
    KR_KEY_REAL(leaky_config, leak, 0.5, 0, 1, "share of the memory that a step keeps"),
    {0},
};

/// h_t = leak h_{t-1} + (1 - leak) W_x x_t;  y_t = W_o h_t. x [B, L, d_model] to the same; state h [B, d_model].
static kr_value leaky(kr_graph *g, const kr_block_config *c, kr_value x) {
    const leaky_config *k = c->keys;
    const int64_t B = kr_value_shape(g, x).dim[0], D = c->d_model;
    const kr_value in = kr_affine(g, kr_block_linear(g, c, "in_proj", x, D, false, 1), 1 - k->leak, 0);
    const kr_value keep = kr_affine(g, in, 0, k->leak);
    const kr_value h0 = kr_carry(g, "memory", KR_F32, KR_SHAPE(B, D));
    kr_value next;
    const kr_value h = kr_linear_scan(g, keep, in, h0, c->reset, &next);
    kr_carry_set(g, h0, next);
    return kr_block_linear(g, c, "out_proj", h, D, false, kr_block_output_scale(c));
}

const kr_block_kind kr_block_leaky = {
    .name = "leaky", .keys = keys, .config_bytes = sizeof(leaky_config), .build = leaky,
};
