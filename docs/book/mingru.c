/// minGRU: a gated unit whose gate does not look at the state, so that the state can be scanned.
///   z_t = sigmoid(W_z x_t);   h_t = (1 - z_t) h_{t-1} + z_t (W_h x_t);   y_t = W_o h_t
/// x [B, L, d_model] to [B, L, d_model]. State: h [B, E].
///   source Feng et al. 2024, "Were RNNs all we needed?", arXiv:2410.01201, section 3.1
#include <krait/krait.h>

#include <math.h>

static kr_value linear(kr_graph *g, const char *name, kr_value x, int64_t in, int64_t out) {
    const kr_init start = {.kind = KR_INIT_UNIFORM, .a = 1 / sqrt((double)in)};
    return kr_linear(g, x, kr_param(g, name, KR_SHAPE(out, in), start, KR_PARAM_DECAY), KR_NONE);
}

static kr_value mingru(kr_graph *g, const kr_block_config *c, kr_value x) {
    const int64_t B = kr_value_shape(g, x).dim[0], D = c->d_model, E = c->expand * D;
    kr_value part[2], next;
    kr_split(g, linear(g, "in_proj.weight", x, D, 2 * E), -1, (int64_t[]){E, E}, 2, part);
    const kr_value z = kr_sigmoid(g, part[0]);
    const kr_value h0 = kr_carry(g, "memory", KR_F32, KR_SHAPE(B, E));
    const kr_value h = kr_linear_scan(g, kr_affine(g, z, -1, 1), kr_mul(g, z, part[1]), h0, c->reset, &next);
    kr_carry_set(g, h0, next);
    return linear(g, "out_proj.weight", h, E, D);
}

const kr_block_kind kr_block_mingru = {.name = "mingru", .build = mingru};
