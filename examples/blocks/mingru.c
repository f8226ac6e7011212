#include <krait.h>

typedef struct mingru_config {
    int64_t expand;
    bool bias;
} mingru_config;

static const kr_key keys[] = {
    KR_KEY_INT(mingru_config, expand, 2, 1, 64, "inner width over d_model"),
    KR_KEY_BOOL(mingru_config, bias, false, "of in_proj and out_proj"),
    {0},
};

/// minGRU: a gated recurrent unit whose gates see the input alone, so that it is linear in its state.
///   z_t = sigmoid(W_z x_t)                        how much is new
///   h_t = (1 - z_t) h_{t-1} + z_t (W_h x_t)
///   y_t = W_o h_t
/// x [B, L, d_model] to [B, L, d_model]. State: h [B, expand * d_model].
///   source Feng et al. 2024, "Were RNNs all we needed?", arXiv:2410.01201, section 3.1
static kr_value mingru(kr_graph *g, const kr_block_config *c, kr_value x) {
    const mingru_config *own = c->keys;
    const int64_t B = kr_value_shape(g, x).dim[0], E = own->expand * c->d_model;
    kr_value part[2], last;
    kr_split(g, kr_block_linear(g, c, "in_proj", x, 2 * E, own->bias, 1), -1, (int64_t[]){E, E}, 2, part);
    const kr_value z = kr_sigmoid(g, part[0]);
    const kr_value h0 = kr_carry(g, "hidden", KR_F32, KR_SHAPE(B, E));
    const kr_value h = kr_linear_scan(g, kr_affine(g, z, -1, 1), kr_mul(g, z, part[1]), h0, c->reset, &last);
    kr_carry_set(g, h0, last);
    return kr_block_linear(g, c, "out_proj", h, c->d_model, own->bias, kr_block_output_scale(c));
}

static const kr_block_kind kind = {
    .name = "mingru", .keys = keys, .config_bytes = sizeof(mingru_config), .build = mingru,
};
KR_BLOCK_EXPORT(kind);
