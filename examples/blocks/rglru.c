#include <krait.h>

/// The recurrent block of Griffin: a convolution and a real-gated linear recurrent unit (RG-LRU) on one branch, a GELU on the
/// other.
///   r_t = sigmoid(W_a u_t + b_a)                  recurrence gate
///   i_t = sigmoid(W_x u_t + b_x)                  input gate
///   a_t = a^(8 r_t), a = sigmoid(Lambda) per channel
///   h_t = a_t h_{t-1} + sqrt(1 - a_t^2) (i_t u_t)
/// x [B, L, d_model] to [B, L, d_model]. State: the last d_conv - 1 inputs of the convolution, and h [B, expand * d_model].
/// -log a starts spread over [0.001, 0.1], which puts a into [0.9, 0.999] as in the paper; -Lambda is what is stored.
///   source De et al. 2024, "Griffin", arXiv:2402.19427, section 2.4 and appendix A
static kr_value rglru(kr_graph *g, const kr_block_config *c, kr_value x) {
    const int64_t B = kr_value_shape(g, x).dim[0], E = c->expand * c->d_model, W = c->d_conv;
    const kr_init spread = {KR_INIT_DT_BIAS, 0.001, 0.1, 0};
    kr_block_config gates = *c;
    gates.bias = true;
    kr_value branch[2], gate[2], conv_next, last;
    kr_split(g, kr_block_linear(g, c, "in_proj", x, 2 * E, 1), -1, (int64_t[]){E, E}, 2, branch);

    const kr_value conv_state = kr_carry(g, "conv_state", KR_F32, KR_SHAPE(B, W - 1, E));
    const kr_value u = kr_block_conv(g, c, branch[0], W, true, false, conv_state, &conv_next);
    kr_carry_set(g, conv_state, conv_next);

    kr_split(g, kr_block_linear(g, &gates, "gate_proj", u, 2 * E, 1), -1, (int64_t[]){E, E}, 2, gate);
    const kr_value minus_log_a = kr_softplus(g, kr_param(g, "Lambda", KR_SHAPE(E), spread, 0));
    const kr_value log_a = kr_affine(g, kr_mul(g, kr_sigmoid(g, gate[0]), minus_log_a), -8, 0);
    // 1 - a^2, kept from 0 where the root has no slope
    const kr_value rest = kr_clamp(g, kr_affine(g, kr_exp(g, kr_affine(g, log_a, 2, 0)), -1, 1), 1e-6, 1);
    const kr_value input = kr_mul(g, kr_sqrt(g, rest), kr_mul(g, kr_sigmoid(g, gate[1]), u));
    const kr_value h0 = kr_carry(g, "hidden", KR_F32, KR_SHAPE(B, E));
    const kr_value h = kr_linear_scan(g, kr_exp(g, log_a), input, h0, c->reset, &last);
    kr_carry_set(g, h0, last);
    return kr_block_linear(g, c, "out_proj", kr_mul(g, h, kr_gelu(g, branch[1])), c->d_model, kr_block_output_scale(c));
}

static const kr_block_kind kind = {.name = "rglru", .build = rglru};
KR_BLOCK_EXPORT(kind);
