// Golden cases of the scans of Mamba-2 and Mamba-3, and of attention. In the files heads have an axis of their own; in
// Krait they lie beside each other in the last one.
#include "tools/golden/golden.h"

#include <string.h>

#define IN(name) kr_golden_input(b, name, KR_GOLDEN_PLAIN)
#define IN_TIME(name) kr_golden_input(b, name, KR_GOLDEN_TIME_LAST)

/// The axes from `axis` on as one; the empty value stays empty.
static kr_value merge(kr_golden_graph *b, kr_value value, int axis) {
    kr_shape shape = kr_value_shape(b->g, value);
    if (!value.id || shape.rank <= axis) return value;
    for (int k = axis + 1; k < shape.rank; k++) shape.dim[axis] *= shape.dim[k];
    shape.rank = axis + 1;
    return kr_reshape(b->g, value, shape);
}
#define IN_MERGED(name, axis) merge(b, IN(name), axis)

/// The value in the shape of the file's tensor.
static kr_value shaped_as(kr_golden_graph *b, kr_value value, const char *tensor) {
    const kr_tensor_entry *e = kr_tensors_find(b->c->file, tensor);
    return e ? kr_reshape(b->g, value, e->shape) : value;
}

static void output(kr_golden_graph *b, const char *name, kr_value value) {
    kr_golden_output(b, name, shaped_as(b, value, kr_pool_format(b->c->pool, "out.%s", name)), KR_GOLDEN_PLAIN);
}

static kr_status size_of(kr_golden *c, const char *tensor, int rank, const kr_shape **out) {
    const kr_tensor_entry *e = kr_tensors_find(c->file, tensor);
    KR_FAIL_IF(!e || e->shape.rank != rank, KR_BAD_FILE, "it has no tensor \"%s\" of rank %d", tensor, rank);
    *out = &e->shape;
    return KR_OK;
}

kr_status kr_golden_ssd(kr_golden *c) {
    kr_ssd_scan_args a = {0};
    kr_golden_graph graph, *b = &graph;
    const kr_shape *B = NULL;
    kr_value last;
    int64_t softplus;
    KR_TRY(kr_golden_integer(c, "chunk_size", &a.chunk));
    KR_TRY(kr_golden_integer(c, "dt_softplus", &softplus));
    KR_TRY(kr_golden_real(c, "dt_limit_lo", &a.dt_min));
    KR_TRY(kr_golden_real(c, "dt_limit_hi", &a.dt_max));
    KR_TRY(size_of(c, "in.B", 4, &B));
    KR_TRY(kr_golden_begin(c, b));
    a.groups = B->dim[2];
    a.dt_softplus = softplus != 0;
    a.x = IN_MERGED("x", 2), a.z = IN_MERGED("z", 2), a.B = IN_MERGED("B", 2), a.C = IN_MERGED("C", 2);
    a.dt = IN("dt"), a.A = IN("A"), a.D = IN_MERGED("D", 0), a.dt_bias = IN("dt_bias"), a.h0 = IN("initial_state");
    output(b, "y", kr_ssd_scan(b->g, &a, &last));
    output(b, "final_state", last);
    return kr_golden_run(b, NULL);
}

// Mamba-3: trapezoid_scan and the output stage ---------------------------------------------------------

/// K, Q [B, L, R?, G, N] and what follows them, up to o [B, L, R*H*P]; the states are outputs of the graph.
static kr_value mamba3_core(kr_golden_graph *b, int64_t rank, int64_t groups, bool half) {
    const bool mimo = kr_golden_has(b->c, "in.MIMO_V");
    const kr_value bias[2] = {IN("K_bias"), IN("Q_bias")}, k0 = IN("k_state");
    kr_trapezoid_scan_args scan = {.k = IN_MERGED("K", 2),
                                   .q = IN_MERGED("Q", 2),
                                   .k_bias = bias[0],
                                   .q_bias = bias[1],
                                   .ang = IN("Angles"),
                                   .x = IN_MERGED("V", 2),
                                   .adt = IN_TIME("ADT"),
                                   .dt = IN_TIME("DT"),
                                   .trap = IN_TIME("Trap"),
                                   .mimo_x = IN("MIMO_V"),
                                   .D = IN("D"),
                                   .h0 = IN("ssm_state"),
                                   .k0 = k0,
                                   .v0 = IN("v_state"),
                                   .theta0 = IN("angle_state"),
                                   .rank = rank,
                                   .groups = groups,
                                   .half = half};
    if (!mimo) { // no axis of ranks in the file
        const kr_shape heads = kr_value_shape(b->g, bias[0]), state = kr_value_shape(b->g, k0);
        scan.k_bias = kr_reshape(b->g, bias[0], KR_SHAPE(heads.dim[0], 1, heads.dim[1]));
        scan.q_bias = kr_reshape(b->g, bias[1], KR_SHAPE(heads.dim[0], 1, heads.dim[1]));
        if (k0.id) scan.k0 = kr_reshape(b->g, k0, KR_SHAPE(state.dim[0], 1, state.dim[1], state.dim[2]));
        scan.z = IN_MERGED("Z", 2);
    }
    kr_trapezoid_scan_state last;
    const kr_value o = kr_trapezoid_scan(b->g, &scan, &last);
    kr_golden_angle(b, "final_angle", last.theta);
    output(b, "final_ssm", last.h);
    output(b, "final_k", last.k);
    output(b, "final_v", last.v);
    return o;
}

/// Angles that turn many times over lose digits: those files have a tolerance of their own.
static kr_status mamba3_begin(kr_golden *c, kr_golden_graph *b, bool *half) {
    const char *mode, *rotary;
    KR_TRY(kr_golden_text(c, "mode", &mode));
    KR_TRY(kr_golden_text(c, "rotary", &rotary));
    if (!strcmp(mode, "large")) c->within = 1e-4;
    *half = !strcmp(rotary, "half");
    return kr_golden_begin(c, b);
}

kr_status kr_golden_mamba3_siso(kr_golden *c) {
    kr_golden_graph graph, *b = &graph;
    const kr_shape *K = NULL;
    bool half;
    KR_TRY(size_of(c, "in.K", 4, &K));
    KR_TRY(mamba3_begin(c, b, &half));
    output(b, "y", mamba3_core(b, 1, K->dim[2], half));
    return kr_golden_run(b, NULL);
}

/// [H, R, P] to [R, H*P].
static kr_value by_rank(kr_golden_graph *b, kr_value weight) {
    return weight.id ? merge(b, kr_transpose(b->g, weight, 0, 1), 1) : weight;
}

kr_status kr_golden_mamba3_mimo(kr_golden *c) {
    kr_golden_graph graph, *b = &graph;
    const kr_shape *K = NULL, *V = NULL;
    double eps;
    bool half;
    KR_TRY(size_of(c, "in.K", 5, &K));
    KR_TRY(size_of(c, "in.V", 4, &V));
    KR_TRY(kr_golden_real(c, "norm_eps", &eps));
    KR_TRY(mamba3_begin(c, b, &half));
    const int64_t B = V->dim[0], L = V->dim[1], P = V->dim[3], E = V->dim[2] * P, R = K->dim[2];
    const kr_value weight = IN_MERGED("norm_weight", 0), z = IN_MERGED("Z", 2), gate = by_rank(b, IN("MIMO_Z"));
    const kr_value out = by_rank(b, IN("MIMO_Out"));
    kr_value o = kr_reshape(b->g, mamba3_core(b, R, K->dim[3], half), KR_SHAPE(B, L, R, E));
    if (weight.id) o = kr_rms_norm_full(b->g, o, KR_NONE, KR_NONE, weight, KR_NONE, eps, P, true, NULL);
    if (z.id) o = kr_mul(b->g, o, kr_silu(b->g, kr_mul(b->g, kr_reshape(b->g, z, KR_SHAPE(B, L, 1, E)), gate)));
    if (out.id) o = kr_sum(b->g, kr_mul(b->g, o, out), 2, false);
    output(b, "y", o);
    return kr_golden_run(b, NULL);
}

// Attention -------------------------------------------------------------------------------------------------------

kr_status kr_golden_attention(kr_golden *c) {
    kr_golden_graph graph, *b = &graph;
    const kr_shape *q = NULL, *k = NULL;
    kr_attention_args a = {0};
    int64_t causal, rotary, interleaved;
    double base;
    KR_TRY(kr_golden_integer(c, "causal", &causal));
    KR_TRY(kr_golden_integer(c, "rotary_dim", &rotary));
    KR_TRY(kr_golden_integer(c, "rotary_interleaved", &interleaved));
    KR_TRY(kr_golden_real(c, "rotary_base", &base));
    KR_TRY(kr_golden_real(c, "softmax_scale", &a.scale));
    KR_TRY(size_of(c, "in.q", 4, &q));
    KR_TRY(size_of(c, "in.k", 4, &k));
    KR_TRY(kr_golden_begin(c, b));
    a.heads = q->dim[2], a.kv_heads = k->dim[2], a.not_causal = !causal;
    a.q = IN_MERGED("q", 2), a.k = IN_MERGED("k", 2), a.v = IN_MERGED("v", 2);
    if (rotary) { // query i stands where key i + Lk - Lq stands
        const kr_value first = kr_const(b->g, (double)(k->dim[1] - q->dim[1]), KR_I32, KR_SHAPE(1));
        a.q = kr_rope(b->g, a.q, first, a.heads, rotary, base, interleaved != 0);
        a.k = kr_rope(b->g, a.k, KR_NONE, a.kv_heads, rotary, base, interleaved != 0);
    }
    const kr_value o = kr_attention(b->g, &a);
    output(b, "o", o);
    output(b, "lse", kr_sibling(b->g, o, 1));
    return kr_golden_run(b, NULL);
}
