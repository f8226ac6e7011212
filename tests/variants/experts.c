#include "models/models.h"

/// A block with keys of its own: the sum of a few linear maps, weighed by a gate or all alike.
typedef struct experts_config {
    int64_t n_experts;
    double sharpness;
    int mixing;
    bool bias;
} experts_config;

enum { GATED, EVEN };

static const kr_key keys[] = {
    KR_KEY_INT(experts_config, n_experts, 2, 1, 16, "how many maps"),
    KR_KEY_REAL(experts_config, sharpness, 1, 0, 100, "of the gate; 0: it does not choose"),
    KR_KEY_CHOICE(experts_config, mixing, GATED, "gated|even", "what weighs the maps"),
    KR_KEY_BOOL(experts_config, bias, false, "of the maps"),
    {0},
};

static kr_value experts(kr_graph *g, const kr_block_config *c, kr_value x) {
    const experts_config *own = c->keys;
    const kr_shape shape = kr_value_shape(g, x);
    const int64_t B = shape.dim[0], L = shape.dim[1], D = c->d_model, E = own->n_experts;
    kr_value y = kr_block_linear(g, c, "experts", x, E * D, own->bias, kr_block_output_scale(c));
    y = kr_reshape(g, y, KR_SHAPE(B, L, E, D));
    if (own->mixing == GATED) {
        const kr_value gate = kr_affine(g, kr_block_linear(g, c, "gate", x, E, false, 1), own->sharpness, 0);
        y = kr_mul(g, y, kr_reshape(g, kr_softmax(g, gate), KR_SHAPE(B, L, E, 1)));
    }
    return kr_sum(g, y, 2, false);
}

static const kr_block_kind kind = {
    .name = "experts", .keys = keys, .config_bytes = sizeof(experts_config), .build = experts,
};
KR_BLOCK_EXPORT(kind);
