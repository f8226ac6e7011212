/// Data-dependent rotations of Mamba-3 (MATH 7.1 to 7.3): pairs of coordinates turn by angles that add up over time.
///
/// A pair (a, b) turned by theta is (a cos - b sin, a sin + b cos). Products of two vectors turned by theta_t and
/// theta_s depend on theta_t - theta_s only: this is how a real recurrence gets complex eigenvalues. The gradient of a
/// rotation is the rotation back; the gradient of the angle is, per pair,
///
///   e_t = u0 w1 - u1 w0     u: the pair before its rotation, w: the gradient turned back
///
/// and as theta_t = theta_{t-1} + pi tanh(ang_t) dt_t adds up over time, dtheta_t = sum_{t' >= t} e_t', which a reset
/// cuts as it cuts theta. Both running sums go over time in pieces: totals of the pieces first, then every piece on its
/// own.
///
/// source Lahoti et al. 2026, arXiv:2603.15569
#include "ops/rotary/size.h"
#include "ops/graph/internal.h"
#include "ops/cpu/kernels.h"

KR_KERNEL_DECLARE(rotary_mix_turns)
KR_KERNEL_DECLARE(rotary_mix)
KR_KERNEL_DECLARE(rotary_mix_grad_turns)
KR_KERNEL_DECLARE(rotary_mix_grad)
KR_KERNEL_DECLARE(rotary_mix_grad_angles)

#define BIT(k) (1u << (k))

enum { GROUPS, RANK, HALF };
enum { K_IN, Q_IN, K_BIAS, Q_BIAS, ANG, DT, THETA0, RESET, INPUTS };
enum { K_OUT, Q_OUT, THETA, OUTPUTS };
enum { DK_OUT, DQ_OUT, DTHETA, FORWARD, GRAD_INPUTS = FORWARD + INPUTS }; // then the forward inputs

static kr_status check_mix(const char *op, const kr_attrs *t, const kr_shape *in, const kr_dtype *dtype,
                           kr_rotary_size *size) {
    static const char *const names[] = {"K", "Q", "k_bias", "q_bias", "ang", "dt", "theta0", "reset"};
    char text[160], want[160];
    const kr_shape *K = &in[K_IN], *bias = &in[K_BIAS], *ang = &in[ANG];
    const int64_t G = t->i[GROUPS], R = t->i[RANK];
    KR_FAIL_IF(K->rank != 3, KR_BAD_SHAPE, "%s: K is %s, want [batch, length, rank*groups*states]", op,
               kr_shape_text(K, text));
    KR_FAIL_IF(bias->rank != 3, KR_BAD_SHAPE, "%s: k_bias is %s, want [heads, rank, states]", op,
               kr_shape_text(bias, text));
    const int64_t B = K->dim[0], L = K->dim[1], H = bias->dim[0], N = bias->dim[2];
    KR_FAIL_IF(G < 1 || R < 1 || H % G, KR_BAD_ARGUMENT,
               "%s: %lld groups and rank %lld for %lld heads, want at least 1 of each and groups that divide the heads",
               op, (long long)G, (long long)R, (long long)H);
    KR_FAIL_IF(bias->dim[1] != R || K->dim[2] != R * G * N, KR_BAD_SHAPE,
               "%s: K is %s and k_bias %s, want [%lld, %lld, %lld] for rank %lld, %lld groups and %lld states", op,
               kr_shape_text(K, text), kr_shape_text(bias, want), (long long)B, (long long)L,
               (long long)(R * G * N), (long long)R, (long long)G, (long long)N);
    const int64_t S = ang->rank > 0 ? ang->dim[ang->rank - 1] : 0;
    const kr_shape shared = KR_SHAPE(B, L, S), separate = KR_SHAPE(B, L, H, S);
    KR_FAIL_IF(S > N / 2 || (!kr_shape_equal(ang, &shared) && !kr_shape_equal(ang, &separate)), KR_BAD_SHAPE,
               "%s: ang is %s, want [%lld, %lld, pairs] or [%lld, %lld, %lld, pairs] with at most %lld pairs", op,
               kr_shape_text(ang, text), (long long)B, (long long)L, (long long)B, (long long)L, (long long)H,
               (long long)(N / 2));
    const kr_shape wanted[] = {*K, *K, *bias, *bias, *ang, KR_SHAPE(B, L, H), KR_SHAPE(B, H, S), KR_SHAPE(B, L)};
    for (int k = 0; k < INPUTS; k++) {
        const kr_dtype type = k == RESET ? KR_I32 : KR_F32;
        KR_FAIL_IF(in[k].rank >= 0 && (dtype[k] != type || !kr_shape_equal(&in[k], &wanted[k])), KR_BAD_SHAPE,
                   "%s: %s is %s %s, want %s %s", op, names[k], kr_dtype_name(dtype[k]), kr_shape_text(&in[k], text),
                   kr_dtype_name(type), kr_shape_text(&wanted[k], want));
    }
    *size = kr_rotary_measure(K, bias, ang, G);
    return KR_OK;
}

static kr_shape turned(const kr_rotary_size *s) {
    return KR_SHAPE(s->batch, s->length, s->heads * s->rank * s->states);
}

static kr_status rotary_mix_shape(const kr_attrs *t, const kr_shape *in, const kr_dtype *dtype, int inputs,
                                  kr_shape *out, kr_dtype *out_dtype) {
    (void)inputs;
    kr_rotary_size s;
    KR_TRY(check_mix("rotary_mix", t, in, dtype, &s));
    out[K_OUT] = out[Q_OUT] = turned(&s);
    out[THETA] = KR_SHAPE(s.batch, s.heads, s.pairs);
    for (int k = 0; k < OUTPUTS; k++) out_dtype[k] = KR_F32;
    return KR_OK;
}

static kr_status rotary_mix_grad_shape(const kr_attrs *t, const kr_shape *in, const kr_dtype *dtype, int inputs,
                                       kr_shape *out, kr_dtype *out_dtype) {
    (void)inputs;
    static const char *const names[] = {"dk", "dq", "dtheta"};
    char text[160], want[160];
    kr_rotary_size s;
    KR_TRY(check_mix("rotary_mix_grad", t, in + FORWARD, dtype + FORWARD, &s));
    const kr_shape wanted[] = {turned(&s), turned(&s), KR_SHAPE(s.batch, s.heads, s.pairs)};
    for (int k = 0; k < FORWARD; k++)
        KR_FAIL_IF(in[k].rank >= 0 && (dtype[k] != KR_F32 || !kr_shape_equal(&in[k], &wanted[k])), KR_BAD_SHAPE,
                   "rotary_mix_grad: %s is %s %s, want f32 %s", names[k], kr_dtype_name(dtype[k]),
                   kr_shape_text(&in[k], text), kr_shape_text(&wanted[k], want));
    for (int k = K_IN; k <= THETA0; k++) {
        out[k] = k == THETA0 ? wanted[DTHETA] : in[FORWARD + k];
        out_dtype[k] = KR_F32;
    }
    return KR_OK;
}

/// A tanh per angle; about 60 for an angle's sine and cosine; a bias and 4 multiply-adds for a pair of k and one of q.
static void rotary_mix_cost(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs, double *flops,
                            double *bytes) {
    (void)inputs;
    const kr_rotary_size s = kr_rotary_measure(&in[K_IN], &in[K_BIAS], &in[ANG], t->i[GROUPS]);
    const double tokens = (double)(s.batch * s.length), angles = (double)(s.heads * s.pairs);
    *flops = tokens * (60 * angles + 16 * angles * (double)s.rank + 2 * (double)(s.heads * s.rank * s.states));
    *bytes = 4 * (2 * (double)kr_shape_count(&in[K_IN]) + 2 * (double)kr_shape_count(&out[K_OUT]) +
                  (double)kr_shape_count(&in[ANG]) + tokens * (double)s.heads);
}

static void rotary_mix_grad_cost(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs, double *flops,
                                 double *bytes) {
    (void)inputs, (void)out;
    const kr_shape *x = in + FORWARD;
    const kr_rotary_size s = kr_rotary_measure(&x[K_IN], &x[K_BIAS], &x[ANG], t->i[GROUPS]);
    const double tokens = (double)(s.batch * s.length), angles = (double)(s.heads * s.pairs);
    *flops = tokens * (70 * angles + 30 * angles * (double)s.rank + 6 * (double)(s.heads * s.rank * s.states));
    *bytes = 4 * (4 * (double)kr_shape_count(&x[K_IN]) + 2 * tokens * (double)(s.heads * s.rank * s.states) +
                  2 * (double)kr_shape_count(&x[ANG]) + 2 * tokens * (angles + (double)s.heads));
}

static size_t rotary_mix_work(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs) {
    (void)out, (void)inputs;
    const kr_rotary_size s = kr_rotary_measure(&in[K_IN], &in[K_BIAS], &in[ANG], t->i[GROUPS]);
    return (size_t)kr_rotary_forward_bytes(&s) + 64; // never 0, so that kernels always have a base to count from
}

static size_t rotary_mix_grad_work(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs) {
    (void)out, (void)inputs;
    const kr_shape *x = in + FORWARD;
    const kr_rotary_size s = kr_rotary_measure(&x[K_IN], &x[K_BIAS], &x[ANG], t->i[GROUPS]);
    return (size_t)kr_rotary_backward_bytes(&s) + 64;
}

extern const kr_op kr_op_rotary_mix_grad;

static void rotary_mix_derivative(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *din) {
    kr_value in[GRAD_INPUTS] = {dout[K_OUT], dout[Q_OUT], dout[THETA]};
    for (int k = 0; k < INPUTS; k++) in[FORWARD + k] = n->in[k];
    const kr_value first = kr_append(g, &kr_op_rotary_mix_grad, &n->attrs, in, GRAD_INPUTS);
    for (int k = K_IN; k <= THETA0 && first.id; k++)
        if (n->in[k].id) din[k] = kr_sibling(g, first, k);
}

static const kr_stage forward_stages[] = {KR_STAGE(rotary_mix_turns), KR_STAGE(rotary_mix)};
static const kr_stage backward_stages[] = {KR_STAGE(rotary_mix_grad_turns), KR_STAGE(rotary_mix_grad),
                                           KR_STAGE(rotary_mix_grad_angles)};

const kr_op kr_op_rotary_mix = {
    .name = "rotary_mix", .inputs = INPUTS, .outputs = OUTPUTS, .optional = BIT(THETA0) | BIT(RESET),
    .zero_absent = BIT(THETA0) | BIT(RESET), .keeps_in = BIT(INPUTS) - 1, .attr = {.i = {"groups", "rank", "half"}},
    .shape = rotary_mix_shape, .grad = rotary_mix_derivative, .cost = rotary_mix_cost,
};
KR_CPU(rotary_mix,
    .rows_in = BIT(K_IN) | BIT(Q_IN) | BIT(ANG) | BIT(DT), .rows_out = BIT(K_OUT) | BIT(Q_OUT),
    .skip_out = BIT(OUTPUTS) - 1, .work = rotary_mix_work, KR_STAGES(forward_stages))

/// Reads dk?, dq? [B, L, H*R*N] and dtheta? [B, H, S], then the forward inputs; gives the gradients of K, Q, k_bias,
/// q_bias, ang, dt and theta0.
const kr_op kr_op_rotary_mix_grad = {
    .name = "rotary_mix_grad", .inputs = GRAD_INPUTS, .outputs = THETA0 + 1, .flags = KR_OP_NO_GRADIENT,
    .optional = BIT(DK_OUT) | BIT(DQ_OUT) | BIT(DTHETA) | BIT(FORWARD + THETA0) | BIT(FORWARD + RESET),
    .zero_absent = BIT(DK_OUT) | BIT(DQ_OUT) | BIT(DTHETA) | BIT(FORWARD + THETA0) | BIT(FORWARD + RESET),
    .attr = {.i = {"groups", "rank", "half"}}, .shape = rotary_mix_grad_shape, .cost = rotary_mix_grad_cost,
};
KR_CPU(rotary_mix_grad,
    .rows_in = BIT(DK_OUT) | BIT(DQ_OUT) | BIT(FORWARD + K_IN) | BIT(FORWARD + Q_IN) | BIT(FORWARD + ANG) | BIT(FORWARD + DT),
    .rows_out = BIT(K_IN) | BIT(Q_IN) | BIT(ANG) | BIT(DT), .skip_out = BIT(THETA0 + 1) - 1,
    .work = rotary_mix_grad_work, KR_STAGES(backward_stages))

kr_value (kr_rotary_mix)(kr_graph *g, const kr_rotary_mix_args *a, kr_value *q, kr_value *theta) {
    const kr_attrs t = {.i = {[GROUPS] = a->groups, [RANK] = a->rank, [HALF] = a->half}};
    const kr_value in[INPUTS] = {a->K, a->Q, a->k_bias, a->q_bias, a->ang, a->dt, a->theta0, a->reset};
    const kr_value k = kr_append(g, &kr_op_rotary_mix, &t, in, INPUTS);
    if (q) *q = k.id ? kr_sibling(g, k, Q_OUT) : KR_NONE;
    if (theta) *theta = k.id ? kr_sibling(g, k, THETA) : KR_NONE;
    return k;
}
