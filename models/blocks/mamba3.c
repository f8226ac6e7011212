#include "models/internal.h"

typedef struct mamba3_config {
    int64_t d_state, expand, headdim, ngroups, chunk_size, mimo_rank;
    bool is_mimo, is_outproj_norm, bias;
    double rope_fraction, A_floor;
    kr_step_config step;
    int a_activation;
} mamba3_config;

/// How the projection becomes A: -heavy_tail (official since 2026-06), or -softplus (before).
enum { HEAVY_TAIL, SOFTPLUS };

static const kr_key keys[] = {
    KR_KEY_INT(mamba3_config, d_state, 128, 1, 4096, "state per channel"),
    KR_KEY_INT(mamba3_config, expand, 2, 1, 64, "inner width over d_model"),
    KR_KEY_INT(mamba3_config, headdim, 64, 1, 1 << 16, "channels of a head"),
    KR_KEY_INT(mamba3_config, ngroups, 1, 1, 1 << 16, "groups of B and C"),
    KR_KEY_INT(mamba3_config, chunk_size, KR_KEY_DERIVED, 1, 1 << 16, "tokens of a chunk; auto: chosen by the op"),
    KR_KEY_INT(mamba3_config, mimo_rank, 4, 1, 64, "inputs and outputs of a head, with is_mimo"),
    KR_KEY_BOOL(mamba3_config, is_mimo, false, "several inputs and outputs a head"),
    KR_KEY_BOOL(mamba3_config, is_outproj_norm, false, "norm before the gate"),
    KR_KEY_REAL(mamba3_config, rope_fraction, 0.5, 0, 1, "share of the state that rotates; 0: none"),
    KR_KEY_REAL(mamba3_config, A_floor, 1e-4, 1e-12, 1e6, "least rate of decay"),
    KR_STEP_KEYS(mamba3_config, step),
    KR_KEY_BOOL(mamba3_config, bias, false, "of in_proj and out_proj"),
    KR_KEY_CHOICE(mamba3_config, a_activation, HEAVY_TAIL, "heavy_tail|softplus", "form of A"),
    {0},
};

/// Mamba-3 block, SISO (rank 1) and MIMO. u [B, L, d_model] to [B, L, d_model]; parameters as in
/// `mamba_ssm.modules.Mamba3`. State: rotary angle [B, H, S], S [B, H, P, N], and the key [B, R, H, N] and value
/// [B, H, P] of the token before, which the trapezoid rule mixes into the next step. There is no convolution.
///   source Lahoti et al. 2026, "Mamba-3", arXiv:2603.15569; code of state-spaces/mamba
static kr_value mamba3(kr_graph *g, const kr_block_config *c, kr_value u) {
    const mamba3_config *m = c->keys;
    const kr_shape shape = kr_value_shape(g, u);
    const int64_t B = shape.dim[0], L = shape.dim[1], D = c->d_model, E = m->expand * D, P = m->headdim;
    const int64_t H = kr_block_count(g, "expand * d_model", E, "headdim", P), N = m->d_state;
    const int64_t G = m->ngroups, R = m->is_mimo ? m->mimo_rank : 1;
    const int64_t S = (int64_t)((double)N * m->rope_fraction) / 2, K = N * G * R;
    enum { Z, X, KEY, QUERY, DT, A, TRAP, ANGLE };
    kr_value in[8];
    kr_trapezoid_scan_state last;

    const kr_value projected = kr_block_linear(g, c, "in_proj", u, 2 * E + 2 * K + 3 * H + S, m->bias, 1);
    kr_split(g, projected, -1, (int64_t[]){E, E, K, K, H, H, H, S}, 8, in);

    // dt = softplus(ddt + bias);  A = min(-heavy_tail(ddA), -A_floor), data dependent
    const kr_value dt_bias = kr_param(g, "dt_bias", KR_SHAPE(H), kr_dt_bias(g, &m->step), 0);
    const kr_value dt = kr_softplus(g, kr_add(g, in[DT], dt_bias));
    const kr_value rate = m->a_activation == SOFTPLUS ? kr_softplus(g, in[A]) : kr_heavy_tail(g, in[A]);
    const kr_value adt = kr_mul(g, kr_clamp(g, kr_neg(g, rate), -INFINITY, -m->A_floor), dt);

    // Norms of B and C; the scan adds the biases and rotates pairs by angles that add up over time
    const kr_value k_bias = kr_param(g, "B_bias", KR_SHAPE(H, R, N), kr_ones, 0);
    const kr_value q_bias = kr_param(g, "C_bias", KR_SHAPE(H, R, N), kr_ones, 0);
    const kr_value k_weight = kr_param(g, "B_norm.weight", KR_SHAPE(N), kr_ones, 0);
    const kr_value q_weight = kr_param(g, "C_norm.weight", KR_SHAPE(N), kr_ones, 0);
    const kr_value k = kr_rms_norm(g, kr_reshape(g, in[KEY], KR_SHAPE(B, L, R * G, N)), k_weight, 1e-5);
    const kr_value q = kr_rms_norm(g, kr_reshape(g, in[QUERY], KR_SHAPE(B, L, R * G, N)), q_weight, 1e-5);
    const kr_value theta0 = kr_carry(g, "angle_state", KR_F32, KR_SHAPE(B, H, S));

    // S_t = alpha S_{t-1} + beta U_{t-1} + gamma U_t (trapezoid rule);  o_r = S_t q_r + D v_r
    kr_value mix = KR_NONE, gate = KR_NONE, merge = KR_NONE;
    if (m->is_mimo) {
        const kr_init share = {.kind = KR_INIT_CONSTANT, .a = 1.0 / (double)R};
        mix = kr_param(g, "mimo_x", KR_SHAPE(H, R, P), share, KR_PARAM_DECAY);
        gate = kr_param(g, "mimo_z", KR_SHAPE(H, R, P), kr_ones, KR_PARAM_DECAY);
        merge = kr_param(g, "mimo_o", KR_SHAPE(H, R, P), share, KR_PARAM_DECAY);
    }
    const kr_value h0 = kr_carry(g, "ssm_state", KR_F32, KR_SHAPE(B, H, P, N));
    const kr_value k0 = kr_carry(g, "k_state", KR_F32, KR_SHAPE(B, R, H, N));
    const kr_value v0 = kr_carry(g, "v_state", KR_F32, KR_SHAPE(B, H, P));
    const kr_value skip = kr_param(g, "D", KR_SHAPE(H), kr_ones, 0);
    const kr_value wn = m->is_outproj_norm ? kr_param(g, "norm.weight", KR_SHAPE(E), kr_ones, 0) : KR_NONE;
    const bool gated = !m->is_mimo && !wn.id; // by the scan itself
    kr_value o = kr_trapezoid_scan(g, &(kr_trapezoid_scan_args){.k = kr_reshape(g, k, KR_SHAPE(B, L, K)),
        .q = kr_reshape(g, q, KR_SHAPE(B, L, K)), .k_bias = k_bias, .q_bias = q_bias, .ang = in[ANGLE], .groups = G,
        .half = m->is_mimo, .x = in[X], .adt = adt, .dt = dt, .trap = in[TRAP], .mimo_x = mix,
        .D = skip, .z = gated ? in[Z] : KR_NONE, .h0 = h0, .k0 = k0, .v0 = v0,
        .theta0 = theta0, .reset = c->reset, .rank = R, .chunk = kr_key_or(m->chunk_size, 0)}, &last);
    kr_carry_set(g, h0, last.h);
    kr_carry_set(g, k0, last.k);
    kr_carry_set(g, v0, last.v);
    kr_carry_set(g, theta0, last.theta);

    // Otherwise a norm per head, and the gate; MIMO gates every rank and merges the ranks
    if (!m->is_mimo) {
        if (!gated) o = kr_rms_norm_full(g, o, KR_NONE, in[Z], wn, KR_NONE, 1e-5, P, true, NULL);
        return kr_block_linear(g, c, "out_proj", o, D, m->bias, kr_block_output_scale(c));
    }
    o = kr_reshape(g, o, KR_SHAPE(B, L, R, E));
    if (wn.id) o = kr_rms_norm_full(g, o, KR_NONE, KR_NONE, wn, KR_NONE, 1e-5, P, true, NULL);
    gate = kr_reshape(g, kr_transpose(g, gate, 0, 1), KR_SHAPE(R, E));
    merge = kr_reshape(g, kr_transpose(g, merge, 0, 1), KR_SHAPE(R, E));
    const kr_value z = kr_mul(g, kr_reshape(g, in[Z], KR_SHAPE(B, L, 1, E)), gate);
    const kr_value ranks = kr_mul(g, kr_mul(g, o, kr_silu(g, z)), merge);
    return kr_block_linear(g, c, "out_proj", kr_sum(g, ranks, 2, false), D, m->bias, kr_block_output_scale(c));
}

const kr_block_kind kr_block_mamba3 = {
    .name = "mamba3", .official = "Mamba3", .keys = keys, .config_bytes = sizeof(mamba3_config), .build = mamba3,
};
