/// Mamba-3's scan: Mamba-2's state with a second-order step and, with several inputs and outputs, a matrix in place of
/// the outer product.
///
///   lambda_t = sigmoid(trap_t);   U_t = sum_r (mimo_x_r x_t) (outer) k_{t,r}
///   S_t = exp(adt_t) (S_{t-1} + (1 - lambda_t) dt_t U_{t-1}) + lambda_t dt_t U_t        the trapezoid rule
///   o_{t,r} = S_t q_{t,r} + D mimo_x_r x_t
///
/// Before the first token, U comes from k0 and v0. Where a document starts neither S nor U reach over. Kernels and saved
/// states are those of ssd_scan, in chunks of tokens times rank rows (trapezoid.cpu.c says how the rule fits in).
#include "ops/ssd.h"
#include "ops/internal.h"
#include "ops/kernels.h"

KR_KERNEL_DECLARE(trapezoid_scan)
KR_KERNEL_DECLARE(trapezoid_scan_grad)
KR_KERNEL_DECLARE(trapezoid_scan_grad_sum)

enum { RANK, CHUNK, ZERO_START };
enum { K, Q, X, ADT, DT, TRAP, MIMO_X, D, H0, K0, V0, RESET, INPUTS };
enum { OUT, H_LAST, K_LAST, V_LAST, SAVED, OUTPUTS };
// The gradient op: upstream gradients, then the forward inputs without h0 (the saved states hold it).
enum { DOUT, DH_LAST, DK_LAST, DV_LAST, FORWARD, GRAD_K0 = FORWARD + H0, GRAD_V0, GRAD_RESET, GRAD_SAVED, GRAD_INPUTS };
enum { DK, DQ, DX, DADT, DDT, DTRAP, DMIMO_X, DSKIP, DH0, DK0, DV0, GRAD_OUTPUTS };

static kr_chunk_size measure(const kr_attrs *t, const kr_shape *in) {
    const int64_t heads = in[ADT].dim[2], rank = t->i[RANK];
    return kr_chunk_measure(in[K].dim[0], in[K].dim[1], heads, 0, rank, heads ? in[X].dim[2] / heads : 0,
                            heads ? in[K].dim[2] / heads / rank : 0, t->i[CHUNK]);
}

static kr_status check_one(const char *op, const char *name, const kr_shape *s, kr_dtype dtype, bool optional, kr_dtype want_dtype,
                           kr_shape want) {
    char text[160], want_text[160];
    if (optional && s->rank < 0) return KR_OK;
    KR_FAIL_IF(dtype != want_dtype || !kr_shape_equal(s, &want), KR_BAD_SHAPE, "%s: %s is %s %s, want %s %s", op, name,
               kr_dtype_name(dtype), kr_shape_text(s, text), kr_dtype_name(want_dtype), kr_shape_text(&want, want_text));
    return KR_OK;
}

/// in: k, q, x, adt, dt, trap, mimo_x, D; then k0, v0, reset.
static kr_status check_inputs(const char *op, const kr_attrs *t, const kr_shape *in, const kr_dtype *dtype,
                              const kr_shape *before, const kr_dtype *before_dtype) {
    const int64_t rank = t->i[RANK];
    char text[160];
    KR_FAIL_IF(rank < 1, KR_BAD_SHAPE, "%s: rank is %lld, want at least 1", op, (long long)rank);
    KR_FAIL_IF(t->i[CHUNK] < 0, KR_BAD_SHAPE, "%s: chunk is %lld, want 0 or more", op, (long long)t->i[CHUNK]);
    KR_FAIL_IF(in[X].rank != 3, KR_BAD_SHAPE, "%s: x is %s, want [batch, length, channels]", op, kr_shape_text(&in[X], text));
    KR_FAIL_IF(in[ADT].rank != 3, KR_BAD_SHAPE, "%s: adt is %s, want [batch, length, heads]", op, kr_shape_text(&in[ADT], text));
    KR_FAIL_IF(in[K].rank != 3, KR_BAD_SHAPE, "%s: k is %s, want [batch, length, heads*rank*states]", op,
               kr_shape_text(&in[K], text));
    const int64_t batch = in[X].dim[0], length = in[X].dim[1], heads = in[ADT].dim[2];
    const int64_t channels = in[X].dim[2], columns = in[K].dim[2];
    KR_FAIL_IF(heads ? channels % heads : channels, KR_BAD_SHAPE, "%s: adt has %lld heads, want a divisor of %lld channels",
               op, (long long)heads, (long long)channels);
    KR_FAIL_IF(heads ? columns % (heads * rank) : columns, KR_BAD_SHAPE, "%s: k has %lld columns, want a multiple of %lld heads x rank %lld",
               op, (long long)columns, (long long)heads, (long long)rank);
    const int64_t width = heads ? channels / heads : 0, states = heads ? columns / heads / rank : 0;
    const kr_shape steps = KR_SHAPE(batch, length, heads), keys = KR_SHAPE(batch, length, columns);
    KR_TRY(check_one(op, "x", &in[X], dtype[X], false, KR_F32, in[X]));
    KR_TRY(check_one(op, "k", &in[K], dtype[K], false, KR_F32, keys));
    KR_TRY(check_one(op, "q", &in[Q], dtype[Q], false, KR_F32, keys));
    KR_TRY(check_one(op, "adt", &in[ADT], dtype[ADT], false, KR_F32, steps));
    KR_TRY(check_one(op, "dt", &in[DT], dtype[DT], false, KR_F32, steps));
    KR_TRY(check_one(op, "trap", &in[TRAP], dtype[TRAP], false, KR_F32, steps));
    KR_FAIL_IF(in[MIMO_X].rank < 0 && rank > 1, KR_BAD_SHAPE, "%s: rank %lld without mimo_x, want rank 1 or mimo_x", op,
               (long long)rank);
    KR_TRY(check_one(op, "mimo_x", &in[MIMO_X], dtype[MIMO_X], true, KR_F32, KR_SHAPE(heads, rank, width)));
    KR_TRY(check_one(op, "D", &in[D], dtype[D], true, KR_F32, KR_SHAPE(heads)));
    KR_TRY(check_one(op, "k0", &before[0], before_dtype[0], true, KR_F32, KR_SHAPE(batch, rank, heads, states)));
    KR_TRY(check_one(op, "v0", &before[1], before_dtype[1], true, KR_F32, KR_SHAPE(batch, heads, width)));
    return check_one(op, "reset", &before[2], before_dtype[2], true, KR_I32, KR_SHAPE(batch, length));
}

static kr_shape state_shape(const kr_chunk_size *s) { return KR_SHAPE(s->batch, s->heads, s->width, s->states); }
static kr_shape key_shape(const kr_chunk_size *s) { return KR_SHAPE(s->batch, s->rank, s->heads, s->states); }
static kr_shape value_shape(const kr_chunk_size *s) { return KR_SHAPE(s->batch, s->heads, s->width); }
static kr_shape out_shape_of(const kr_chunk_size *s) {
    return KR_SHAPE(s->batch, s->length, s->rank * s->heads * s->width);
}
static kr_shape saved_shape(const kr_chunk_size *s) {
    return KR_SHAPE(s->batch, s->chunks, s->heads, s->states, s->width);
}

static kr_status trapezoid_scan_shape(const kr_attrs *t, const kr_shape *in, const kr_dtype *dtype, int inputs,
                                      kr_shape *out, kr_dtype *out_dtype) {
    (void)inputs;
    KR_TRY(check_inputs("trapezoid_scan", t, in, dtype, in + K0, dtype + K0));
    const kr_chunk_size s = measure(t, in);
    out[OUT] = out_shape_of(&s);
    out[H_LAST] = state_shape(&s);
    out[K_LAST] = key_shape(&s);
    out[V_LAST] = value_shape(&s);
    out[SAVED] = saved_shape(&s);
    for (int k = 0; k < OUTPUTS; k++) out_dtype[k] = KR_F32;
    return check_one("trapezoid_scan", "h0", &in[H0], dtype[H0], true, KR_F32, out[H_LAST]);
}

static kr_status trapezoid_scan_grad_shape(const kr_attrs *t, const kr_shape *in, const kr_dtype *dtype, int inputs,
                                           kr_shape *out, kr_dtype *out_dtype) {
    (void)inputs;
    const char *op = "trapezoid_scan_grad";
    const kr_shape *x = in + FORWARD;
    KR_TRY(check_inputs(op, t, x, dtype + FORWARD, in + GRAD_K0, dtype + GRAD_K0));
    const kr_chunk_size s = measure(t, x);
    KR_TRY(check_one(op, "dout", &in[DOUT], dtype[DOUT], true, KR_F32, out_shape_of(&s)));
    KR_TRY(check_one(op, "dh_last", &in[DH_LAST], dtype[DH_LAST], true, KR_F32, state_shape(&s)));
    KR_TRY(check_one(op, "dk_last", &in[DK_LAST], dtype[DK_LAST], true, KR_F32, key_shape(&s)));
    KR_TRY(check_one(op, "dv_last", &in[DV_LAST], dtype[DV_LAST], true, KR_F32, value_shape(&s)));
    KR_TRY(check_one(op, "saved", &in[GRAD_SAVED], dtype[GRAD_SAVED], false, KR_F32, saved_shape(&s)));
    for (int k = DK; k <= DSKIP; k++) out[k] = x[k].rank >= 0 ? x[k] : KR_SHAPE(0);
    out[DH0] = state_shape(&s);
    out[DK0] = key_shape(&s);
    out[DV0] = value_shape(&s);
    for (int k = 0; k < GRAD_OUTPUTS; k++) out_dtype[k] = KR_F32;
    return KR_OK;
}

/// MATH 17, with half of the products inside a chunk.
static void trapezoid_scan_cost(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs, double *flops,
                                double *bytes) {
    (void)inputs;
    const kr_chunk_size s = measure(t, in);
    const double heads = (double)(s.batch * s.length * s.heads), r = (double)s.rank, p = (double)s.width;
    const double n = (double)s.states, rows = (double)s.chunk * r;
    *flops = heads * (r * (rows * (n + p) + 4 * n * p) + 40);
    *bytes = 4 * (heads * (2 * r * n + (1 + r) * p + 3) + (double)kr_shape_count(&out[SAVED]) +
                  2 * (double)kr_shape_count(&out[H_LAST]));
}

static void trapezoid_scan_grad_cost(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs, double *flops,
                                     double *bytes) {
    (void)inputs, (void)out;
    const kr_chunk_size s = measure(t, in + FORWARD);
    const double heads = (double)(s.batch * s.length * s.heads), r = (double)s.rank, p = (double)s.width;
    const double n = (double)s.states, rows = (double)s.chunk * r;
    *flops = heads * (r * (rows * (3 * n + 2 * p) + 10 * n * p) + 80);
    *bytes = 4 * (heads * (4 * r * n + (2 + r) * p + 6) + (double)kr_shape_count(&in[GRAD_SAVED]));
}

static size_t bytes_of(int64_t floats) { return (size_t)(floats + KR_CHUNK_LANES) * sizeof(float); }

static size_t trapezoid_scan_work(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs) {
    (void)out, (void)inputs;
    const kr_chunk_size s = measure(t, in);
    return bytes_of(kr_chunk_floats(&s, false));
}

static size_t trapezoid_scan_grad_work(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs) {
    (void)out, (void)inputs;
    const kr_chunk_size s = measure(t, in + FORWARD);
    return bytes_of(kr_chunk_floats(&s, true));
}

extern const kr_op kr_op_trapezoid_scan_grad;

static void trapezoid_scan_derivative(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *din) {
    kr_value in[GRAD_INPUTS] = {[DOUT] = dout[OUT], [DH_LAST] = dout[H_LAST], [DK_LAST] = dout[K_LAST], [DV_LAST] = dout[V_LAST],
                                [GRAD_K0] = n->in[K0], [GRAD_V0] = n->in[V0], [GRAD_RESET] = n->in[RESET],
                                [GRAD_SAVED] = n->out[SAVED]};
    kr_attrs t = n->attrs;
    t.i[ZERO_START] = !n->in[H0].id && !(n->in[K0].id && n->in[V0].id);
    for (int k = K; k <= D; k++) in[FORWARD + k] = n->in[k];
    if (!dout[OUT].id && !dout[H_LAST].id && !dout[K_LAST].id && !dout[V_LAST].id) return;
    const kr_value first = kr_append(g, &kr_op_trapezoid_scan_grad, &t, in, GRAD_INPUTS);
    if (!first.id) return;
    for (int k = K; k <= V0; k++)
        if (n->in[k].id) din[k] = kr_sibling(g, first, k);
}

#define BIT(k) (1u << (k))
static const kr_stage forward_stages[] = {KR_STAGE(trapezoid_scan)};
static const kr_stage backward_stages[] = {KR_STAGE(trapezoid_scan_grad), KR_STAGE(trapezoid_scan_grad_sum)};

enum { STEPS = BIT(K) | BIT(Q) | BIT(X) | BIT(ADT) | BIT(DT) | BIT(TRAP) };

const kr_op kr_op_trapezoid_scan = {
    .name = "trapezoid_scan", .inputs = INPUTS, .outputs = OUTPUTS,
    .optional = BIT(MIMO_X) | BIT(D) | BIT(H0) | BIT(K0) | BIT(V0) | BIT(RESET),
    .zero_absent = BIT(D) | BIT(H0) | BIT(K0) | BIT(V0) | BIT(RESET),
    .rows_in = STEPS, .rows_out = BIT(OUT), .skip_out = BIT(H_LAST) | BIT(K_LAST) | BIT(V_LAST) | BIT(SAVED),
    .inplace1 = BIT(H0), .inplace2 = BIT(K0),
    .keeps_in = STEPS | BIT(MIMO_X) | BIT(D) | BIT(K0) | BIT(V0) | BIT(RESET), .keeps_out = BIT(SAVED),
    .attr = {.i = {"rank", "chunk"}}, .shape = trapezoid_scan_shape, .grad = trapezoid_scan_derivative,
    .cost = trapezoid_scan_cost, .work = trapezoid_scan_work, .stages = forward_stages, .stage_count = 1,
};

/// Reads the gradients of o [B, L, R*H*P]?, of the last state, key and x (all optional), the forward inputs k to D, k0?,
/// v0?, reset? and the saved states; gives the gradients of k, q, x, adt, dt, trap, mimo_x, D (empty where the input is
/// absent), h0, k0 and v0. zero_start: the scan had neither h0 nor k0 and v0, so the state before it is zero.
const kr_op kr_op_trapezoid_scan_grad = {
    .name = "trapezoid_scan_grad", .inputs = GRAD_INPUTS, .outputs = GRAD_OUTPUTS, .flags = KR_OP_NO_GRADIENT,
    .optional = BIT(DOUT) | BIT(DH_LAST) | BIT(DK_LAST) | BIT(DV_LAST) | BIT(FORWARD + MIMO_X) | BIT(FORWARD + D) |
                BIT(GRAD_K0) | BIT(GRAD_V0) | BIT(GRAD_RESET),
    .zero_absent = BIT(DOUT) | BIT(DH_LAST) | BIT(DK_LAST) | BIT(DV_LAST) | BIT(GRAD_RESET),
    .rows_in = BIT(DOUT) | STEPS << FORWARD, .rows_out = BIT(DK) | BIT(DQ) | BIT(DX) | BIT(DADT) | BIT(DDT) | BIT(DTRAP),
    .skip_out = BIT(GRAD_OUTPUTS) - 1, .inplace = BIT(FORWARD + K), .inplace1 = BIT(FORWARD + Q),
    .attr = {.i = {"rank", "chunk", "zero_start"}}, .shape = trapezoid_scan_grad_shape, .cost = trapezoid_scan_grad_cost,
    .work = trapezoid_scan_grad_work, .stages = backward_stages, .stage_count = 2,
};

kr_value (kr_trapezoid_scan)(kr_graph *g, const kr_trapezoid_scan_args *a, kr_value *h_last, kr_value *k_last,
                             kr_value *v_last) {
    const kr_attrs t = {.i = {[RANK] = a->rank ? a->rank : 1, [CHUNK] = a->chunk}};
    const kr_value in[INPUTS] = {a->k, a->q, a->x, a->adt, a->dt, a->trap, a->mimo_x, a->D, a->h0, a->k0, a->v0, a->reset};
    const kr_value out = kr_append(g, &kr_op_trapezoid_scan, &t, in, INPUTS);
    if (h_last) *h_last = out.id ? kr_sibling(g, out, H_LAST) : KR_NONE;
    if (k_last) *k_last = out.id ? kr_sibling(g, out, K_LAST) : KR_NONE;
    if (v_last) *v_last = out.id ? kr_sibling(g, out, V_LAST) : KR_NONE;
    return out;
}
