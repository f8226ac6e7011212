/// Mamba-1's selective scan (S6): a diagonal linear recurrence whose step size, input map and output map depend on the
/// token.
///
///   dt_t = softplus(delta_t + delta_bias)
///   h_t  = exp(dt_t A) h_{t-1} + dt_t B_t u_t        per channel e and state n
///   y_t  = sum_n C_t h_t + D u_t;   out_t = y_t silu(z_t)
///
/// Keeping h for all tokens would take N times the memory of u. So the op saves the state only at the start of every
/// chunk of KR_SCAN_CHUNK tokens, and the gradient op recomputes the rest, one chunk at a time, while it runs backwards
/// (MATH 5). Where reset is 1 the state before the token counts as zero, in both directions.
///
/// source Gu & Dao 2023, arXiv:2312.00752, algorithm 2
#include "ops/selective_scan/size.h"
#include "ops/graph/internal.h"
#include "ops/cpu/kernels.h"

KR_KERNEL_DECLARE(selective_scan)
KR_KERNEL_DECLARE(selective_scan_grad)
KR_KERNEL_DECLARE(selective_scan_grad_sum)

enum { DELTA_SOFTPLUS, SAVED_SIZE };
enum { U, DELTA, A, B, C, D, Z, DELTA_BIAS, H0, RESET, INPUTS };
enum { OUT, LAST, SAVED, OUTPUTS };
// The gradient op: dout, dlast, then the forward inputs without h0 (the saved states hold it).
enum { DOUT, DLAST, FORWARD, GRAD_RESET = FORWARD + H0, GRAD_SAVED, GRAD_INPUTS };
enum { DU, DDELTA, DA, DB, DC, DD, DZ, DDELTA_BIAS, DH0, GRAD_OUTPUTS };

static bool is(const kr_shape *s, kr_shape want) { return kr_shape_equal(s, &want); }

/// B or C: [B, L, N], [B, L, G, N] or [E, N]. *groups is 0 until a form fixes it.
static kr_status check_form(const char *op, const char *name, const kr_shape *x, int64_t batch, int64_t length,
                            int64_t channels, int64_t states, int64_t *groups) {
    char text[160];
    if (x->rank == 2 && is(x, KR_SHAPE(channels, states))) return KR_OK;
    int64_t g = 0;
    if (x->rank == 3 && is(x, KR_SHAPE(batch, length, states))) g = 1;
    if (x->rank == 4 && is(x, KR_SHAPE(batch, length, x->dim[2], states))) g = x->dim[2];
    KR_FAIL_IF(g <= 0, KR_BAD_SHAPE, "%s: %s is %s, want [%lld, %lld, %lld], [%lld, %lld, G, %lld] or [%lld, %lld]", op,
               name, kr_shape_text(x, text), (long long)batch, (long long)length, (long long)states, (long long)batch,
               (long long)length, (long long)states, (long long)channels, (long long)states);
    KR_FAIL_IF(channels % g, KR_BAD_SHAPE, "%s: %s has %lld groups, want a divisor of %lld channels", op, name,
               (long long)g, (long long)channels);
    KR_FAIL_IF(*groups && *groups != g, KR_BAD_SHAPE, "%s: B has %lld groups and C has %lld, want the same", op,
               (long long)*groups, (long long)g);
    *groups = g;
    return KR_OK;
}

/// in: u, delta, A, B, C, D, z, delta_bias.
static kr_status check_inputs(const char *op, const kr_shape *in, const kr_dtype *dtype, const kr_shape *reset,
                              kr_dtype reset_dtype) {
    static const char *const names[] = {"u", "delta", "A", "B", "C", "D", "z", "delta_bias"};
    char text[160];
    for (int k = U; k <= DELTA_BIAS; k++)
        KR_FAIL_IF(in[k].rank >= 0 && dtype[k] != KR_F32, KR_BAD_SHAPE, "%s: %s is %s, want f32", op, names[k],
                   kr_dtype_name(dtype[k]));
    KR_FAIL_IF(in[U].rank != 3, KR_BAD_SHAPE, "%s: u is %s, want [batch, length, channels]", op,
               kr_shape_text(&in[U], text));
    KR_FAIL_IF(in[A].rank != 2 || in[A].dim[0] != in[U].dim[2], KR_BAD_SHAPE, "%s: A is %s, want [%lld, states]", op,
               kr_shape_text(&in[A], text), (long long)in[U].dim[2]);
    const int64_t batch = in[U].dim[0], length = in[U].dim[1], channels = in[U].dim[2], states = in[A].dim[1];
    for (int k = DELTA; k <= Z; k += Z - DELTA)
        KR_FAIL_IF(in[k].rank >= 0 && !kr_shape_equal(&in[k], &in[U]), KR_BAD_SHAPE,
                   "%s: %s is %s, want [%lld, %lld, %lld]", op, names[k], kr_shape_text(&in[k], text), (long long)batch,
                   (long long)length, (long long)channels);
    int64_t groups = 0;
    KR_TRY(check_form(op, "B", &in[B], batch, length, channels, states, &groups));
    KR_TRY(check_form(op, "C", &in[C], batch, length, channels, states, &groups));
    for (int k = D; k <= DELTA_BIAS; k += DELTA_BIAS - D)
        KR_FAIL_IF(in[k].rank >= 0 && !is(&in[k], KR_SHAPE(channels)), KR_BAD_SHAPE, "%s: %s is %s, want [%lld]", op,
                   names[k], kr_shape_text(&in[k], text), (long long)channels);
    KR_FAIL_IF(reset->rank >= 0 && (reset_dtype != KR_I32 || !is(reset, KR_SHAPE(batch, length))), KR_BAD_SHAPE,
               "%s: reset is %s %s, want i32 [%lld, %lld]", op, kr_dtype_name(reset_dtype), kr_shape_text(reset, text),
               (long long)batch, (long long)length);
    return KR_OK;
}

static kr_status selective_scan_shape(const kr_attrs *t, const kr_shape *in, const kr_dtype *dtype, int inputs,
                                      kr_shape *out, kr_dtype *out_dtype) {
    (void)inputs;
    char text[160];
    KR_FAIL_IF(t->i[SAVED_SIZE] < 0, KR_BAD_SHAPE, "selective_scan: saved is %lld, want 0 or more",
               (long long)t->i[SAVED_SIZE]);
    KR_TRY(check_inputs("selective_scan", in, dtype, &in[RESET], dtype[RESET]));
    const kr_scan_size s = kr_scan_measure(&in[U], &in[A], &in[B], &in[C]);
    out[OUT] = in[U];
    out[LAST] = KR_SHAPE(s.batch, s.channels, s.states);
    out[SAVED] = kr_saved_shape(t->i[SAVED_SIZE]);
    for (int k = 0; k < OUTPUTS; k++) out_dtype[k] = KR_F32;
    KR_FAIL_IF(in[H0].rank >= 0 && (dtype[H0] != KR_F32 || !kr_shape_equal(&in[H0], &out[LAST])), KR_BAD_SHAPE,
               "selective_scan: h0 is %s %s, want f32 [%lld, %lld, %lld]", kr_dtype_name(dtype[H0]),
               kr_shape_text(&in[H0], text), (long long)s.batch, (long long)s.channels, (long long)s.states);
    return KR_OK;
}

static kr_status selective_scan_grad_shape(const kr_attrs *t, const kr_shape *in, const kr_dtype *dtype, int inputs,
                                           kr_shape *out, kr_dtype *out_dtype) {
    (void)inputs;
    char text[160];
    const char *op = "selective_scan_grad";
    const kr_shape *x = in + FORWARD;
    KR_TRY(check_inputs(op, x, dtype + FORWARD, &in[GRAD_RESET], dtype[GRAD_RESET]));
    const kr_scan_size s = kr_scan_measure(&x[U], &x[A], &x[B], &x[C]);
    const kr_shape state = KR_SHAPE(s.batch, s.channels, s.states), saved = kr_saved_shape(t->i[SAVED_SIZE]);
    KR_FAIL_IF(in[DOUT].rank >= 0 && (dtype[DOUT] != KR_F32 || !kr_shape_equal(&in[DOUT], &x[U])), KR_BAD_SHAPE,
               "%s: dout is %s, want the shape of u", op, kr_shape_text(&in[DOUT], text));
    KR_FAIL_IF(in[DLAST].rank >= 0 && (dtype[DLAST] != KR_F32 || !kr_shape_equal(&in[DLAST], &state)), KR_BAD_SHAPE,
               "%s: dlast is %s, want [%lld, %lld, %lld]", op, kr_shape_text(&in[DLAST], text), (long long)s.batch,
               (long long)s.channels, (long long)s.states);
    KR_FAIL_IF(dtype[GRAD_SAVED] != KR_F32 || !kr_shape_equal(&in[GRAD_SAVED], &saved), KR_BAD_SHAPE,
               "%s: saved is %s, want the third output of selective_scan", op, kr_shape_text(&in[GRAD_SAVED], text));
    for (int k = DU; k <= DDELTA_BIAS; k++) out[k] = x[k].rank >= 0 ? x[k] : KR_SHAPE(0);
    out[DH0] = state;
    for (int k = 0; k < GRAD_OUTPUTS; k++) out_dtype[k] = KR_F32;
    return KR_OK;
}

/// MATH 17: 6 FLOP per state and 6 per channel of a token, and an exponential (counted as 8) per state.
static void selective_scan_cost(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs, double *flops,
                                double *bytes) {
    (void)t, (void)inputs;
    const kr_scan_size s = kr_scan_measure(&in[U], &in[A], &in[B], &in[C]);
    const double tokens = (double)(s.batch * s.length), channels = (double)s.channels, states = (double)s.states;
    *flops = tokens * channels * (14 * states + 22);
    *bytes = 4 * (tokens * (channels * (3 + (in[Z].rank >= 0)) + 2 * (double)s.groups * states) +
                  (double)kr_shape_count(&out[SAVED]) + 2 * (double)kr_shape_count(&out[LAST]) + channels * states);
}

static void selective_scan_grad_cost(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs,
                                     double *flops, double *bytes) {
    (void)t, (void)inputs, (void)out;
    const kr_shape *x = in + FORWARD;
    const kr_scan_size s = kr_scan_measure(&x[U], &x[A], &x[B], &x[C]);
    const double tokens = (double)(s.batch * s.length), channels = (double)s.channels, states = (double)s.states;
    *flops = tokens * channels * (28 * states + 44);
    *bytes = 4 * (tokens * (channels * (5 + 2 * (x[Z].rank >= 0)) + 4 * (double)s.groups * states) +
                  (double)kr_shape_count(&in[GRAD_SAVED]) + 2 * channels * states * (double)(s.batch + 1));
}

/// Never 0, so that kernels always have a base to count from.
static size_t floats(int64_t n) { return (size_t)(n + KR_SCAN_LANES) * sizeof(float); }

static size_t selective_scan_work(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs) {
    (void)t, (void)out, (void)inputs;
    const kr_scan_size s = kr_scan_measure(&in[U], &in[A], &in[B], &in[C]);
    return floats(kr_scan_forward_floats(&s));
}

static size_t selective_scan_grad_work(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs) {
    (void)t, (void)out, (void)inputs;
    const kr_shape *x = in + FORWARD;
    const kr_scan_size s = kr_scan_measure(&x[U], &x[A], &x[B], &x[C]);
    return floats(kr_scan_backward_floats(&s));
}

/// A state per chunk of KR_SCAN_CHUNK tokens, in tiles of channels: [B, chunks, tiles, N, LANES].
static kr_status settle(const char *op, const kr_target *target, kr_attrs *t, const kr_shape *x) {
    const kr_scan_size s = kr_scan_measure(&x[U], &x[A], &x[B], &x[C]);
    return kr_settle_saved(op, target, &t->i[SAVED_SIZE],
                           KR_SHAPE(s.batch, s.chunks, s.tiles, s.states, KR_SCAN_LANES));
}
static kr_status selective_scan_specialise(const kr_target *target, kr_attrs *t, const kr_shape *in, int inputs) {
    (void)inputs;
    return settle("selective_scan", target, t, in);
}
static kr_status selective_scan_grad_specialise(const kr_target *target, kr_attrs *t, const kr_shape *in, int inputs) {
    (void)inputs;
    return settle("selective_scan_grad", target, t, in + FORWARD);
}

extern const kr_op kr_op_selective_scan_grad;

static void selective_scan_derivative(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *din) {
    kr_value in[GRAD_INPUTS] = {[DOUT] = dout[OUT], [DLAST] = dout[LAST], [GRAD_RESET] = n->in[RESET],
                                [GRAD_SAVED] = n->out[SAVED]};
    for (int k = U; k <= DELTA_BIAS; k++) in[FORWARD + k] = n->in[k];
    if (!dout[OUT].id && !dout[LAST].id) return;
    const kr_value first = kr_append(g, &kr_op_selective_scan_grad, &n->attrs, in, GRAD_INPUTS);
    if (!first.id) return;
    for (int k = U; k <= H0; k++)
        if (n->in[k].id) din[k] = kr_sibling(g, first, k);
}

#define BIT(k) (1u << (k))
static const kr_stage forward_stages[] = {KR_STAGE(selective_scan)};
static const kr_stage backward_stages[] = {KR_STAGE(selective_scan_grad), KR_STAGE(selective_scan_grad_sum)};

const kr_op kr_op_selective_scan = {
    .name = "selective_scan", .inputs = INPUTS, .outputs = OUTPUTS,
    .optional = BIT(D) | BIT(Z) | BIT(DELTA_BIAS) | BIT(H0) | BIT(RESET),
    .zero_absent = BIT(D) | BIT(DELTA_BIAS) | BIT(H0) | BIT(RESET),
    .keeps_in = BIT(U) | BIT(DELTA) | BIT(A) | BIT(B) | BIT(C) | BIT(D) | BIT(Z) | BIT(DELTA_BIAS) | BIT(RESET),
    .keeps_out = BIT(SAVED), .attr = {.i = {"delta_softplus", "saved"}}, .shape = selective_scan_shape,
    .grad = selective_scan_derivative, .cost = selective_scan_cost,
};
KR_CPU(selective_scan,
    .rows_in = BIT(U) | BIT(DELTA) | BIT(B) | BIT(C) | BIT(Z), .rows_out = BIT(OUT),
    .skip_out = BIT(LAST) | BIT(SAVED), .inplace = {BIT(U) | BIT(DELTA) | BIT(Z)}, .specialise = selective_scan_specialise,
    .work = selective_scan_work,
    KR_STAGES(forward_stages))

/// Reads dout [B, L, E]? and dlast [B, E, N]?, the forward inputs u to delta_bias, reset? and the saved states; gives
/// the gradients of u, delta, A, B, C, D, z, delta_bias (empty where the input is absent) and h0.
const kr_op kr_op_selective_scan_grad = {
    .name = "selective_scan_grad", .inputs = GRAD_INPUTS, .outputs = GRAD_OUTPUTS, .flags = KR_OP_NO_GRADIENT,
    .optional = BIT(DOUT) | BIT(DLAST) | BIT(FORWARD + D) | BIT(FORWARD + Z) | BIT(FORWARD + DELTA_BIAS) | BIT(GRAD_RESET),
    .zero_absent = BIT(DOUT) | BIT(DLAST) | BIT(GRAD_RESET), .attr = {.i = {"delta_softplus", "saved"}},
    .shape = selective_scan_grad_shape, .cost = selective_scan_grad_cost,
};
KR_CPU(selective_scan_grad,
    .rows_in = BIT(DOUT) | BIT(FORWARD + U) | BIT(FORWARD + DELTA) | BIT(FORWARD + B) | BIT(FORWARD + C) | BIT(FORWARD + Z),
    .rows_out = BIT(DU) | BIT(DDELTA) | BIT(DB) | BIT(DC) | BIT(DZ), .skip_out = BIT(GRAD_OUTPUTS) - 1,
    .inplace = {BIT(DOUT) | BIT(FORWARD + U), BIT(FORWARD + DELTA)}, .specialise = selective_scan_grad_specialise,
    .work = selective_scan_grad_work,
    KR_STAGES(backward_stages))

kr_value (kr_selective_scan)(kr_graph *g, const kr_selective_scan_args *a, kr_value *last) {
    const kr_attrs t = {.i = {[DELTA_SOFTPLUS] = a->delta_softplus}};
    const kr_value in[INPUTS] = {a->u, a->delta, a->A, a->B, a->C, a->D, a->z, a->delta_bias, a->h0, a->reset};
    const kr_value out = kr_append(g, &kr_op_selective_scan, &t, in, INPUTS);
    if (last) *last = out.id ? kr_sibling(g, out, LAST) : KR_NONE;
    return out;
}
