/// Mamba-3's scan: Mamba-2's state with a second-order step and, with several inputs and outputs, a matrix in place of
/// the outer product.
///
///   lambda_t = sigmoid(trap_t);   U_t = sum_r (mimo_x_r x_t) (outer) k_{t,r}
///   S_t = exp(adt_t) (S_{t-1} + (1 - lambda_t) dt_t U_{t-1}) + lambda_t dt_t U_t        the trapezoid rule
///   o_{t,r} = S_t q_{t,r} + D mimo_x_r x_t
///
/// Before the first token, U comes from k0 and v0. Where a document starts neither S nor U reach over. Kernels and
/// saved states are those of ssd_scan, in chunks of tokens times rank rows (trapezoid_chunk.h says how the rule fits
/// in).
///
/// With groups, biases and angles k and q are what rotary_mix makes of K and Q, but only a chunk at a time: in memory
/// they would be as many times K and Q as a group has heads, written once and read twice. A gate z is applied to o.
#include "ops/trapezoid/work.h"
#include "ops/graph/internal.h"
#include "ops/cpu/kernels.h"

KR_KERNEL_DECLARE(trapezoid_scan)
KR_KERNEL_DECLARE(trapezoid_scan_grad)
KR_KERNEL_DECLARE(trapezoid_scan_grad_sum)

enum { RANK, CHUNK, GROUPS, HALF, SAVED_SIZE, ANGLES_SIZE, ZERO_START };
enum { K, Q, X, ADT, DT, TRAP, MIMO_X, D, Z, K_BIAS, Q_BIAS, ANG, H0, K0, V0, THETA0, RESET, INPUTS };
enum { OUT, H_LAST, K_LAST, V_LAST, THETA_LAST, SAVED, ANGLES, OUTPUTS };
// The gradient op: upstream gradients, then the forward inputs without h0 and theta0 (what is saved holds them).
enum {
    DOUT,
    DH_LAST,
    DK_LAST,
    DV_LAST,
    DTHETA,
    FORWARD,
    GRAD_K0 = FORWARD + H0,
    GRAD_V0,
    GRAD_RESET,
    GRAD_SAVED,
    GRAD_ANGLES,
    GRAD_OUT,
    GRAD_INPUTS
};
enum { DK, DQ, DX, DADT, DDT, DTRAP, DMIMO_X, DSKIP, DZ, DK_BIAS, DQ_BIAS, DANG, DH0, DK0, DV0, DTHETA0, GRAD_OUTPUTS };

/// Both sizes, from the shapes of K to ANG.
typedef struct sizes {
    kr_chunk_size scan;
    kr_turn_size turn;
} sizes;

static sizes measure(const kr_attrs *t, const kr_shape *in) {
    const int64_t heads = in[ADT].dim[2], rank = t->i[RANK], groups = t->i[GROUPS];
    const int64_t states = groups > 0 ? in[K_BIAS].dim[2] : heads ? in[K].dim[2] / heads / rank : 0;
    sizes s = {.scan = kr_chunk_measure(in[K].dim[0], in[K].dim[1], heads, groups, rank,
                                        heads ? in[X].dim[2] / heads : 0, states, t->i[CHUNK])};
    s.turn = kr_turn_measure(&s.scan, groups > 0, groups > 0 ? in[ANG].dim[in[ANG].rank - 1] : 0);
    return s;
}

static kr_status check_one(const char *op, const char *name, const kr_shape *s, kr_dtype dtype, bool optional,
                           kr_dtype want_dtype, kr_shape want) {
    char text[160], want_text[160];
    if (optional && s->rank < 0) return KR_OK;
    KR_FAIL_IF(dtype != want_dtype || !kr_shape_equal(s, &want), KR_BAD_SHAPE, "%s: %s is %s %s, want %s %s", op, name,
               kr_dtype_name(dtype), kr_shape_text(s, text), kr_dtype_name(want_dtype),
               kr_shape_text(&want, want_text));
    return KR_OK;
}

/// k, q, k_bias, q_bias and ang: [B, L, H*R*N], or with groups [B, L, R*G*N], [H, R, N] and [B, L, S]. Gives N.
static kr_status check_keys(const char *op, const kr_attrs *t, const kr_shape *in, const kr_dtype *dtype,
                            int64_t *states) {
    const int64_t rank = t->i[RANK], groups = t->i[GROUPS], heads = in[ADT].dim[2];
    char text[160], bias_text[160];
    KR_FAIL_IF(in[K].rank != 3, KR_BAD_SHAPE, "%s: k is %s, want [batch, length, %s]", op, kr_shape_text(&in[K], text),
               groups ? "rank*groups*states" : "heads*rank*states");
    const int64_t batch = in[X].dim[0], length = in[X].dim[1], columns = in[K].dim[2];
    const kr_shape keys = KR_SHAPE(batch, length, columns);
    KR_TRY(check_one(op, "k", &in[K], dtype[K], false, KR_F32, keys));
    if (!groups) {
        KR_FAIL_IF(in[K_BIAS].rank >= 0 || in[Q_BIAS].rank >= 0 || in[ANG].rank >= 0, KR_BAD_SHAPE,
                   "%s: biases or angles without groups, want at least 1 group", op);
        KR_FAIL_IF(heads ? columns % (heads * rank) : columns, KR_BAD_SHAPE,
                   "%s: k has %lld columns, want a multiple of %lld heads x rank %lld", op, (long long)columns,
                   (long long)heads, (long long)rank);
        *states = heads ? columns / heads / rank : 0;
        return check_one(op, "q", &in[Q], dtype[Q], false, KR_F32, keys);
    }
    KR_FAIL_IF(groups < 0 || heads % groups, KR_BAD_SHAPE, "%s: %lld groups, want a divisor of %lld heads", op,
               (long long)groups, (long long)heads);
    KR_FAIL_IF(in[K_BIAS].rank != 3 || in[K_BIAS].dim[2] * rank * groups != columns, KR_BAD_SHAPE,
               "%s: k_bias is %s and k %s, want [heads, rank, states] and rank %lld * %lld groups * states columns", op,
               kr_shape_text(&in[K_BIAS], bias_text), kr_shape_text(&in[K], text), (long long)rank, (long long)groups);
    *states = in[K_BIAS].dim[2];
    KR_TRY(check_one(op, "q", &in[Q], dtype[Q], false, KR_F32, keys));
    KR_TRY(check_one(op, "k_bias", &in[K_BIAS], dtype[K_BIAS], false, KR_F32, KR_SHAPE(heads, rank, *states)));
    KR_TRY(check_one(op, "q_bias", &in[Q_BIAS], dtype[Q_BIAS], false, KR_F32, KR_SHAPE(heads, rank, *states)));
    const int64_t pairs = in[ANG].rank > 0 ? in[ANG].dim[in[ANG].rank - 1] : 0;
    const kr_shape shared = KR_SHAPE(batch, length, pairs), separate = KR_SHAPE(batch, length, heads, pairs);
    KR_FAIL_IF(dtype[ANG] != KR_F32 || pairs > *states / 2 ||
                   (!kr_shape_equal(&in[ANG], &shared) && !kr_shape_equal(&in[ANG], &separate)),
               KR_BAD_SHAPE,
               "%s: ang is %s %s, want f32 [%lld, %lld, pairs] or [%lld, %lld, %lld, pairs] with at most %lld pairs",
               op, kr_dtype_name(dtype[ANG]), kr_shape_text(&in[ANG], text), (long long)batch, (long long)length,
               (long long)batch, (long long)length, (long long)heads, (long long)(*states / 2));
    return KR_OK;
}

/// in: k to ang; then k0, v0, reset.
static kr_status check_inputs(const char *op, const kr_attrs *t, const kr_shape *in, const kr_dtype *dtype,
                              const kr_shape *k0, const kr_shape *v0, const kr_shape *reset, const kr_dtype *before) {
    const int64_t rank = t->i[RANK];
    char text[160];
    KR_FAIL_IF(rank < 1, KR_BAD_SHAPE, "%s: rank is %lld, want at least 1", op, (long long)rank);
    KR_FAIL_IF(t->i[CHUNK] < 0, KR_BAD_SHAPE, "%s: chunk is %lld, want 0 or more", op, (long long)t->i[CHUNK]);
    KR_FAIL_IF(t->i[SAVED_SIZE] < 0 || t->i[ANGLES_SIZE] < 0, KR_BAD_SHAPE,
               "%s: saved is %lld and angles %lld, want 0 or more", op, (long long)t->i[SAVED_SIZE],
               (long long)t->i[ANGLES_SIZE]);
    KR_FAIL_IF(in[X].rank != 3, KR_BAD_SHAPE, "%s: x is %s, want [batch, length, channels]", op,
               kr_shape_text(&in[X], text));
    KR_FAIL_IF(in[ADT].rank != 3, KR_BAD_SHAPE, "%s: adt is %s, want [batch, length, heads]", op,
               kr_shape_text(&in[ADT], text));
    const int64_t batch = in[X].dim[0], length = in[X].dim[1], heads = in[ADT].dim[2], channels = in[X].dim[2];
    int64_t states = 0;
    KR_FAIL_IF(heads ? channels % heads : channels, KR_BAD_SHAPE,
               "%s: adt has %lld heads, want a divisor of %lld channels", op, (long long)heads, (long long)channels);
    const int64_t width = heads ? channels / heads : 0;
    const kr_shape steps = KR_SHAPE(batch, length, heads);
    KR_TRY(check_keys(op, t, in, dtype, &states));
    KR_TRY(check_one(op, "x", &in[X], dtype[X], false, KR_F32, in[X]));
    KR_TRY(check_one(op, "adt", &in[ADT], dtype[ADT], false, KR_F32, steps));
    KR_TRY(check_one(op, "dt", &in[DT], dtype[DT], false, KR_F32, steps));
    KR_TRY(check_one(op, "trap", &in[TRAP], dtype[TRAP], false, KR_F32, steps));
    KR_FAIL_IF(in[MIMO_X].rank < 0 && rank > 1, KR_BAD_SHAPE, "%s: rank %lld without mimo_x, want rank 1 or mimo_x", op,
               (long long)rank);
    KR_FAIL_IF(in[Z].rank >= 0 && rank > 1, KR_BAD_SHAPE, "%s: rank %lld with a gate z, want rank 1 or no z", op,
               (long long)rank);
    KR_TRY(check_one(op, "mimo_x", &in[MIMO_X], dtype[MIMO_X], true, KR_F32, KR_SHAPE(heads, rank, width)));
    KR_TRY(check_one(op, "D", &in[D], dtype[D], true, KR_F32, KR_SHAPE(heads)));
    KR_TRY(check_one(op, "z", &in[Z], dtype[Z], true, KR_F32, in[X]));
    KR_TRY(check_one(op, "k0", k0, before[0], true, KR_F32, KR_SHAPE(batch, rank, heads, states)));
    KR_TRY(check_one(op, "v0", v0, before[1], true, KR_F32, KR_SHAPE(batch, heads, width)));
    return check_one(op, "reset", reset, before[2], true, KR_I32, KR_SHAPE(batch, length));
}

static kr_shape state_shape(const kr_chunk_size *s) { return KR_SHAPE(s->batch, s->heads, s->width, s->states); }
static kr_shape key_shape(const kr_chunk_size *s) { return KR_SHAPE(s->batch, s->rank, s->heads, s->states); }
static kr_shape value_shape(const kr_chunk_size *s) { return KR_SHAPE(s->batch, s->heads, s->width); }
static kr_shape out_shape_of(const kr_chunk_size *s) {
    return KR_SHAPE(s->batch, s->length, s->rank * s->heads * s->width);
}
static kr_shape theta_shape(const sizes *s) { return KR_SHAPE(s->scan.batch, s->scan.heads, s->turn.pairs); }

static kr_status trapezoid_scan_shape(const kr_attrs *t, const kr_shape *in, const kr_dtype *dtype, int inputs,
                                      kr_shape *out, kr_dtype *out_dtype) {
    (void)inputs;
    const char *op = "trapezoid_scan";
    const kr_dtype before[] = {dtype[K0], dtype[V0], dtype[RESET]};
    KR_TRY(check_inputs(op, t, in, dtype, &in[K0], &in[V0], &in[RESET], before));
    const sizes s = measure(t, in);
    out[OUT] = out_shape_of(&s.scan);
    out[H_LAST] = state_shape(&s.scan);
    out[K_LAST] = key_shape(&s.scan);
    out[V_LAST] = value_shape(&s.scan);
    out[THETA_LAST] = theta_shape(&s);
    out[SAVED] = kr_saved_shape(t->i[SAVED_SIZE]);
    out[ANGLES] = kr_saved_shape(t->i[ANGLES_SIZE]);
    for (int k = 0; k < OUTPUTS; k++) out_dtype[k] = KR_F32;
    KR_TRY(check_one(op, "theta0", &in[THETA0], dtype[THETA0], true, KR_F32, out[THETA_LAST]));
    return check_one(op, "h0", &in[H0], dtype[H0], true, KR_F32, out[H_LAST]);
}

static kr_status trapezoid_scan_grad_shape(const kr_attrs *t, const kr_shape *in, const kr_dtype *dtype, int inputs,
                                           kr_shape *out, kr_dtype *out_dtype) {
    (void)inputs;
    const char *op = "trapezoid_scan_grad";
    const kr_shape *x = in + FORWARD;
    KR_TRY(check_inputs(op, t, x, dtype + FORWARD, &in[GRAD_K0], &in[GRAD_V0], &in[GRAD_RESET], dtype + GRAD_K0));
    const sizes s = measure(t, x);
    KR_TRY(check_one(op, "dout", &in[DOUT], dtype[DOUT], true, KR_F32, out_shape_of(&s.scan)));
    KR_TRY(check_one(op, "dh_last", &in[DH_LAST], dtype[DH_LAST], true, KR_F32, state_shape(&s.scan)));
    KR_TRY(check_one(op, "dk_last", &in[DK_LAST], dtype[DK_LAST], true, KR_F32, key_shape(&s.scan)));
    KR_TRY(check_one(op, "dv_last", &in[DV_LAST], dtype[DV_LAST], true, KR_F32, value_shape(&s.scan)));
    KR_TRY(check_one(op, "dtheta", &in[DTHETA], dtype[DTHETA], true, KR_F32, theta_shape(&s)));
    KR_TRY(check_one(op, "saved", &in[GRAD_SAVED], dtype[GRAD_SAVED], false, KR_F32, kr_saved_shape(t->i[SAVED_SIZE])));
    KR_TRY(check_one(op, "angles", &in[GRAD_ANGLES], dtype[GRAD_ANGLES], false, KR_F32, kr_saved_shape(t->i[ANGLES_SIZE])));
    KR_TRY(check_one(op, "out", &in[GRAD_OUT], dtype[GRAD_OUT], x[Z].rank < 0, KR_F32, out_shape_of(&s.scan)));
    for (int k = DK; k <= DANG; k++) out[k] = x[k].rank >= 0 ? x[k] : KR_SHAPE(0);
    out[DH0] = state_shape(&s.scan);
    out[DK0] = key_shape(&s.scan);
    out[DV0] = value_shape(&s.scan);
    out[DTHETA0] = theta_shape(&s);
    for (int k = 0; k < GRAD_OUTPUTS; k++) out_dtype[k] = KR_F32;
    return KR_OK;
}

/// MATH 17, with half of the products inside a chunk; for an angle's sine and cosine about 60, for a pair of k and one
/// of q 16 and for their biases 2 per state.
static void trapezoid_scan_cost(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs, double *flops,
                                double *bytes) {
    (void)inputs;
    const sizes all = measure(t, in);
    const kr_chunk_size *s = &all.scan;
    const double heads = (double)(s->batch * s->length * s->heads), r = (double)s->rank, p = (double)s->width;
    const double n = (double)s->states, rows = (double)s->chunk * r, pairs = (double)all.turn.pairs;
    *flops = heads * (r * (rows * (n + p) + 4 * n * p) + 40 + (all.turn.turns ? pairs * (60 + 16 * r) + 2 * r * n : 0));
    *bytes = 4 * (heads * ((1 + r + (in[Z].rank >= 0)) * p + 3) + 2 * (double)kr_shape_count(&in[K]) +
                  (double)kr_shape_count(&out[SAVED]) + 2 * (double)kr_shape_count(&out[H_LAST]));
}

static void trapezoid_scan_grad_cost(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs,
                                     double *flops, double *bytes) {
    (void)inputs, (void)out;
    const sizes all = measure(t, in + FORWARD);
    const kr_chunk_size *s = &all.scan;
    const double heads = (double)(s->batch * s->length * s->heads), r = (double)s->rank, p = (double)s->width;
    const double n = (double)s->states, rows = (double)s->chunk * r, pairs = (double)all.turn.pairs;
    *flops = heads * (r * (rows * (3 * n + 2 * p) + 10 * n * p) + (in[FORWARD + Z].rank >= 0 ? 30 * p : 0) + 80 +
                      (all.turn.turns ? pairs * (70 + 36 * r) + 6 * r * n : 0));
    *bytes = 4 * (heads * ((2 + r + 3 * (in[FORWARD + Z].rank >= 0)) * p + 6) +
                  4 * (double)kr_shape_count(&in[FORWARD + K]) + (double)kr_shape_count(&in[GRAD_SAVED]));
}

static size_t bytes_of(int64_t floats) { return (size_t)(floats + KR_CHUNK_LANES) * sizeof(float); }

static size_t trapezoid_scan_work(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs) {
    (void)out, (void)inputs;
    const sizes s = measure(t, in);
    return bytes_of(kr_turn_floats(&s.scan, &s.turn, false));
}

static size_t trapezoid_scan_grad_work(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs) {
    (void)out, (void)inputs;
    const sizes s = measure(t, in + FORWARD);
    return bytes_of(kr_turn_floats(&s.scan, &s.turn, true));
}

/// As ssd_scan: [B, chunks, H, N, P]; and the angles before each chunk, [B, chunks, H, S].
static kr_status settle(const char *op, const kr_target *target, kr_attrs *t, const kr_shape *in) {
    const sizes s = measure(t, in);
    if (!t->i[CHUNK]) t->i[CHUNK] = s.scan.chunk;
    KR_TRY(kr_settle_saved(op, target, &t->i[SAVED_SIZE],
                           KR_SHAPE(s.scan.batch, s.scan.chunks, s.scan.heads, s.scan.states, s.scan.width)));
    return kr_settle_saved(op, target, &t->i[ANGLES_SIZE],
                           KR_SHAPE(s.scan.batch, s.scan.chunks, s.scan.heads, s.turn.pairs));
}
static kr_status trapezoid_scan_specialise(const kr_target *target, kr_attrs *t, const kr_shape *in, int inputs) {
    (void)inputs;
    return settle("trapezoid_scan", target, t, in);
}
static kr_status trapezoid_scan_grad_specialise(const kr_target *target, kr_attrs *t, const kr_shape *in, int inputs) {
    (void)inputs;
    return settle("trapezoid_scan_grad", target, t, in + FORWARD);
}

extern const kr_op kr_op_trapezoid_scan_grad;

static void trapezoid_scan_derivative(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *din) {
    kr_value in[GRAD_INPUTS] = {
        [GRAD_K0] = n->in[K0],        [GRAD_V0] = n->in[V0],          [GRAD_RESET] = n->in[RESET],
        [GRAD_SAVED] = n->out[SAVED], [GRAD_ANGLES] = n->out[ANGLES], [GRAD_OUT] = n->in[Z].id ? n->out[OUT] : KR_NONE};
    kr_attrs t = n->attrs;
    bool any = false;
    t.i[ZERO_START] = !n->in[H0].id && !(n->in[K0].id && n->in[V0].id);
    for (int k = OUT; k <= THETA_LAST; k++) any |= dout[k].id != 0, in[DOUT + k] = dout[k];
    for (int k = K; k <= ANG; k++) in[FORWARD + k] = n->in[k];
    if (!any) return;
    const kr_value first = kr_append(g, &kr_op_trapezoid_scan_grad, &t, in, GRAD_INPUTS);
    if (!first.id) return;
    for (int k = K; k <= THETA0; k++)
        if (n->in[k].id) din[k] = kr_sibling(g, first, k);
}

#define BIT(k) (1u << (k))
static const kr_stage forward_stages[] = {KR_STAGE(trapezoid_scan)};
static const kr_stage backward_stages[] = {KR_STAGE(trapezoid_scan_grad), KR_STAGE(trapezoid_scan_grad_sum)};

enum {
    STEPS = BIT(K) | BIT(Q) | BIT(X) | BIT(ADT) | BIT(DT) | BIT(TRAP) | BIT(Z) | BIT(ANG),
    EXTRAS = BIT(MIMO_X) | BIT(D) | BIT(Z) | BIT(K_BIAS) | BIT(Q_BIAS) | BIT(ANG),
};

const kr_op kr_op_trapezoid_scan = {
    .name = "trapezoid_scan", .inputs = INPUTS, .outputs = OUTPUTS,
    .optional = EXTRAS | BIT(H0) | BIT(K0) | BIT(V0) | BIT(THETA0) | BIT(RESET),
    .zero_absent = BIT(D) | BIT(H0) | BIT(K0) | BIT(V0) | BIT(THETA0) | BIT(RESET),
    .keeps_in = STEPS | EXTRAS | BIT(K0) | BIT(V0) | BIT(RESET), .keeps_out = BIT(OUT) | BIT(SAVED) | BIT(ANGLES),
    .attr = {.i = {"rank", "chunk", "groups", "half", "saved", "angles"}}, .shape = trapezoid_scan_shape,
    .grad = trapezoid_scan_derivative, .cost = trapezoid_scan_cost,
};
KR_CPU(trapezoid_scan,
    .rows_in = STEPS, .rows_out = BIT(OUT), .skip_out = BIT(OUTPUTS) - 1 - BIT(OUT),
    .inplace = {BIT(X) | BIT(Z), BIT(H0), BIT(K0)}, .specialise = trapezoid_scan_specialise,
    .work = trapezoid_scan_work, KR_STAGES(forward_stages))

/// Reads the gradients of o [B, L, R*H*P]?, of the last state, key, x and angles (all optional), the forward inputs k
/// to ang, k0?, v0?, reset?, the saved states and angles, and with a gate the output; gives the gradients of k to ang
/// (empty where the input is absent), h0, k0, v0 and theta0. zero_start: the scan had neither h0 nor k0 and v0, so the
/// state before it is zero.
const kr_op kr_op_trapezoid_scan_grad = {
    .name = "trapezoid_scan_grad", .inputs = GRAD_INPUTS, .outputs = GRAD_OUTPUTS, .flags = KR_OP_NO_GRADIENT,
    .optional = (BIT(FORWARD) - 1) | EXTRAS << FORWARD | BIT(GRAD_K0) | BIT(GRAD_V0) | BIT(GRAD_RESET) | BIT(GRAD_OUT),
    .zero_absent = (BIT(FORWARD) - 1) | BIT(GRAD_RESET),
    .attr = {.i = {"rank", "chunk", "groups", "half", "saved", "angles", "zero_start"}}, .shape = trapezoid_scan_grad_shape,
    .cost = trapezoid_scan_grad_cost,
};
KR_CPU(trapezoid_scan_grad,
    .rows_in = BIT(DOUT) | STEPS << FORWARD | BIT(GRAD_OUT),
    .rows_out = BIT(DK) | BIT(DQ) | BIT(DX) | BIT(DADT) | BIT(DDT) | BIT(DTRAP) | BIT(DZ) | BIT(DANG),
    .skip_out = BIT(GRAD_OUTPUTS) - 1, .inplace = {BIT(FORWARD + K), BIT(FORWARD + Q)},
    .specialise = trapezoid_scan_grad_specialise, .work = trapezoid_scan_grad_work, KR_STAGES(backward_stages))

kr_value(kr_trapezoid_scan)(kr_graph *g, const kr_trapezoid_scan_args *a, kr_trapezoid_scan_state *last) {
    const kr_attrs t = {.i = {[RANK] = a->rank ? a->rank : 1,
                              [CHUNK] = a->chunk,
                              [HALF] = a->half,
                              [GROUPS] = a->groups ? a->groups : a->k_bias.id != 0}};
    const kr_value in[INPUTS] = {a->k,      a->q,      a->x,   a->adt, a->dt, a->trap, a->mimo_x, a->D,    a->z,
                                 a->k_bias, a->q_bias, a->ang, a->h0,  a->k0, a->v0,   a->theta0, a->reset};
    const kr_value out = kr_append(g, &kr_op_trapezoid_scan, &t, in, INPUTS);
    if (last)
        *last = out.id ? (kr_trapezoid_scan_state){kr_sibling(g, out, H_LAST), kr_sibling(g, out, K_LAST),
                                                   kr_sibling(g, out, V_LAST), kr_sibling(g, out, THETA_LAST)}
                       : (kr_trapezoid_scan_state){KR_NONE, KR_NONE, KR_NONE, KR_NONE};
    return out;
}
