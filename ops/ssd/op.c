/// Mamba-2's scan: a state [P, N] per head that decays by one number per token (state-space duality).
///
///   d_t = clamp(softplus(dt_t + dt_bias));   S_t = exp(d_t A) S_{t-1} + d_t x_t (outer) B_t
///   y_t = S_t C_t + D x_t;   out_t = y_t silu(z_t)
///
/// Both directions go chunk by chunk in matrix products (ssd_chunk.h), so time is linear in the length. The forward op
/// saves the state at the start of every chunk, and nothing else; the gradient op computes the rest again.
///
/// source Dao & Gu 2024, arXiv:2405.21060, sections 6 and 7
#include "ops/ssd/work.h"
#include "ops/graph/internal.h"
#include "ops/cpu/kernels.h"

#include <math.h>

KR_KERNEL_DECLARE(ssd_scan)
KR_KERNEL_DECLARE(ssd_scan_grad_carry)
KR_KERNEL_DECLARE(ssd_scan_grad)
KR_KERNEL_DECLARE(ssd_scan_grad_sum)

enum { GROUPS, CHUNK, DT_SOFTPLUS, SAVED_SIZE, ZERO_START };
enum { DT_MIN, DT_MAX };
enum { X, DT, A, B, C, D, Z, DT_BIAS, H0, RESET, INPUTS };
enum { OUT, LAST, SAVED, OUTPUTS };
// The gradient op: dout, dlast, then the forward inputs without h0 (the saved states hold it).
enum { DOUT, DLAST, FORWARD, GRAD_RESET = FORWARD + H0, GRAD_SAVED, GRAD_INPUTS };
enum { DX, DDT, DA, DB, DC, DD, DZ, DDT_BIAS, DH0, GRAD_OUTPUTS };

static bool is(const kr_shape *s, kr_shape want) { return kr_shape_equal(s, &want); }

static kr_chunk_size measure(const kr_attrs *t, const kr_shape *in) {
    const int64_t heads = in[A].dim[0], groups = t->i[GROUPS];
    return kr_chunk_measure(in[X].dim[0], in[X].dim[1], heads, groups, 1, heads ? in[X].dim[2] / heads : 0,
                            in[B].dim[2] / groups, t->i[CHUNK]);
}

/// in: x, dt, A, B, C, D, z, dt_bias.
static kr_status check_inputs(const char *op, const kr_attrs *t, const kr_shape *in, const kr_dtype *dtype,
                              const kr_shape *reset, kr_dtype reset_dtype) {
    static const char *const names[] = {"x", "dt", "A", "B", "C", "D", "z", "dt_bias"};
    const int64_t groups = t->i[GROUPS];
    char text[160];
    for (int k = X; k <= DT_BIAS; k++)
        KR_FAIL_IF(in[k].rank >= 0 && dtype[k] != KR_F32, KR_BAD_SHAPE, "%s: %s is %s, want f32", op, names[k],
                   kr_dtype_name(dtype[k]));
    KR_FAIL_IF(groups < 1, KR_BAD_SHAPE, "%s: %lld groups, want at least 1", op, (long long)groups);
    KR_FAIL_IF(t->i[CHUNK] < 0, KR_BAD_SHAPE, "%s: chunk is %lld, want 0 or more", op, (long long)t->i[CHUNK]);
    KR_FAIL_IF(t->i[SAVED_SIZE] < 0, KR_BAD_SHAPE, "%s: saved is %lld, want 0 or more", op,
               (long long)t->i[SAVED_SIZE]);
    KR_FAIL_IF(in[X].rank != 3, KR_BAD_SHAPE, "%s: x is %s, want [batch, length, channels]", op,
               kr_shape_text(&in[X], text));
    const int64_t batch = in[X].dim[0], length = in[X].dim[1], channels = in[X].dim[2];
    KR_FAIL_IF(in[A].rank != 1, KR_BAD_SHAPE, "%s: A is %s, want [heads]", op, kr_shape_text(&in[A], text));
    const int64_t heads = in[A].dim[0];
    KR_FAIL_IF(heads ? channels % heads : channels, KR_BAD_SHAPE,
               "%s: A has %lld heads, want a divisor of %lld channels", op, (long long)heads, (long long)channels);
    KR_FAIL_IF(heads % groups, KR_BAD_SHAPE, "%s: %lld groups, want a divisor of %lld heads", op, (long long)groups,
               (long long)heads);
    KR_FAIL_IF(!is(&in[DT], KR_SHAPE(batch, length, heads)), KR_BAD_SHAPE, "%s: dt is %s, want [%lld, %lld, %lld]", op,
               kr_shape_text(&in[DT], text), (long long)batch, (long long)length, (long long)heads);
    KR_FAIL_IF(in[B].rank != 3 || in[B].dim[0] != batch || in[B].dim[1] != length || in[B].dim[2] % groups,
               KR_BAD_SHAPE, "%s: B is %s, want [%lld, %lld, %lld*states]", op, kr_shape_text(&in[B], text),
               (long long)batch, (long long)length, (long long)groups);
    KR_FAIL_IF(!kr_shape_equal(&in[C], &in[B]), KR_BAD_SHAPE, "%s: C is %s, want [%lld, %lld, %lld] as B", op,
               kr_shape_text(&in[C], text), (long long)batch, (long long)length, (long long)in[B].dim[2]);
    KR_FAIL_IF(in[D].rank >= 0 && !is(&in[D], KR_SHAPE(heads)) && !is(&in[D], KR_SHAPE(channels)), KR_BAD_SHAPE,
               "%s: D is %s, want [%lld] or [%lld]", op, kr_shape_text(&in[D], text), (long long)heads,
               (long long)channels);
    KR_FAIL_IF(in[Z].rank >= 0 && !kr_shape_equal(&in[Z], &in[X]), KR_BAD_SHAPE, "%s: z is %s, want [%lld, %lld, %lld]",
               op, kr_shape_text(&in[Z], text), (long long)batch, (long long)length, (long long)channels);
    KR_FAIL_IF(in[DT_BIAS].rank >= 0 && !is(&in[DT_BIAS], KR_SHAPE(heads)), KR_BAD_SHAPE,
               "%s: dt_bias is %s, want [%lld]", op, kr_shape_text(&in[DT_BIAS], text), (long long)heads);
    KR_FAIL_IF(reset->rank >= 0 && (reset_dtype != KR_I32 || !is(reset, KR_SHAPE(batch, length))), KR_BAD_SHAPE,
               "%s: reset is %s %s, want i32 [%lld, %lld]", op, kr_dtype_name(reset_dtype), kr_shape_text(reset, text),
               (long long)batch, (long long)length);
    return KR_OK;
}

static kr_shape state_shape(const kr_chunk_size *s) { return KR_SHAPE(s->batch, s->heads, s->width, s->states); }

static kr_status ssd_scan_shape(const kr_attrs *t, const kr_shape *in, const kr_dtype *dtype, int inputs, kr_shape *out,
                                kr_dtype *out_dtype) {
    (void)inputs;
    char text[160];
    KR_TRY(check_inputs("ssd_scan", t, in, dtype, &in[RESET], dtype[RESET]));
    const kr_chunk_size s = measure(t, in);
    out[OUT] = in[X];
    out[LAST] = state_shape(&s);
    out[SAVED] = kr_saved_shape(t->i[SAVED_SIZE]);
    for (int k = 0; k < OUTPUTS; k++) out_dtype[k] = KR_F32;
    KR_FAIL_IF(in[H0].rank >= 0 && (dtype[H0] != KR_F32 || !kr_shape_equal(&in[H0], &out[LAST])), KR_BAD_SHAPE,
               "ssd_scan: h0 is %s %s, want f32 [%lld, %lld, %lld, %lld]", kr_dtype_name(dtype[H0]),
               kr_shape_text(&in[H0], text), (long long)s.batch, (long long)s.heads, (long long)s.width,
               (long long)s.states);
    return KR_OK;
}

static kr_status ssd_scan_grad_shape(const kr_attrs *t, const kr_shape *in, const kr_dtype *dtype, int inputs,
                                     kr_shape *out, kr_dtype *out_dtype) {
    (void)inputs;
    char text[160];
    const char *op = "ssd_scan_grad";
    const kr_shape *x = in + FORWARD;
    KR_TRY(check_inputs(op, t, x, dtype + FORWARD, &in[GRAD_RESET], dtype[GRAD_RESET]));
    const kr_chunk_size s = measure(t, x);
    const kr_shape state = state_shape(&s), saved = kr_saved_shape(t->i[SAVED_SIZE]);
    KR_FAIL_IF(in[DOUT].rank >= 0 && (dtype[DOUT] != KR_F32 || !kr_shape_equal(&in[DOUT], &x[X])), KR_BAD_SHAPE,
               "%s: dout is %s, want the shape of x", op, kr_shape_text(&in[DOUT], text));
    KR_FAIL_IF(in[DLAST].rank >= 0 && (dtype[DLAST] != KR_F32 || !kr_shape_equal(&in[DLAST], &state)), KR_BAD_SHAPE,
               "%s: dlast is %s, want [%lld, %lld, %lld, %lld]", op, kr_shape_text(&in[DLAST], text),
               (long long)s.batch, (long long)s.heads, (long long)s.width, (long long)s.states);
    KR_FAIL_IF(dtype[GRAD_SAVED] != KR_F32 || !kr_shape_equal(&in[GRAD_SAVED], &saved), KR_BAD_SHAPE,
               "%s: saved is %s, want the third output of ssd_scan", op, kr_shape_text(&in[GRAD_SAVED], text));
    for (int k = DX; k <= DDT_BIAS; k++) out[k] = x[k].rank >= 0 ? x[k] : KR_SHAPE(0);
    out[DH0] = state;
    for (int k = 0; k < GRAD_OUTPUTS; k++) out_dtype[k] = KR_F32;
    return KR_OK;
}

/// MATH 17, with half of the products inside a chunk; scores are made once for the heads of a group.
static void ssd_scan_cost(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs, double *flops,
                          double *bytes) {
    (void)inputs;
    const kr_chunk_size s = measure(t, in);
    const double tokens = (double)(s.batch * s.length), channels = (double)(s.heads * s.width), n = (double)s.states;
    const double shared = (double)s.groups * n;
    *flops = tokens * ((double)s.chunk * (shared + channels) + 4 * channels * n + 30 * (double)s.heads);
    *bytes = 4 * (tokens * (channels * (2 + (in[Z].rank >= 0)) + 2 * shared + (double)s.heads) +
                  (double)kr_shape_count(&out[SAVED]) + 2 * (double)kr_shape_count(&out[LAST]));
}

static void ssd_scan_grad_cost(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs, double *flops,
                               double *bytes) {
    (void)inputs, (void)out;
    const kr_chunk_size s = measure(t, in + FORWARD);
    const double tokens = (double)(s.batch * s.length), channels = (double)(s.heads * s.width), n = (double)s.states;
    const double shared = (double)s.groups * n, again = in[FORWARD + Z].rank >= 0 ? 1 : 0; // y for the gate
    const kr_ssd_cut cut = kr_ssd_cut_of(&s);
    const double carried = (double)(cut.segments - 1) /
                           (double)cut.segments; // of the tokens, by all segments but the first
    *flops = tokens * ((double)s.chunk * (3 * shared + (2 + again) * channels) +
                       (8 + 2 * (again + carried)) * channels * n + 60 * (double)s.heads);
    *bytes = 4 * (tokens * (channels * (3 + 2 * (in[FORWARD + Z].rank >= 0)) + 4 * shared + 2 * (double)s.heads) +
                  (double)kr_shape_count(&in[GRAD_SAVED]));
}

static size_t bytes_of(int64_t floats) { return (size_t)(floats + KR_CHUNK_LANES) * sizeof(float); }

static size_t ssd_scan_work(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs) {
    (void)out, (void)inputs;
    const kr_chunk_size s = measure(t, in);
    return bytes_of(kr_ssd_floats(&s, false));
}

static size_t ssd_scan_grad_work(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs) {
    (void)out, (void)inputs;
    const kr_chunk_size s = measure(t, in + FORWARD);
    return bytes_of(kr_ssd_floats(&s, true));
}

/// The best chunk for the shapes; the states before each are saved: [B, chunks, H, N, P].
static kr_status settle(const char *op, const kr_target *target, kr_attrs *t, const kr_shape *in) {
    const kr_chunk_size s = measure(t, in);
    if (!t->i[CHUNK]) t->i[CHUNK] = s.chunk;
    return kr_settle_saved(op, target, &t->i[SAVED_SIZE], KR_SHAPE(s.batch, s.chunks, s.heads, s.states, s.width));
}
static kr_status ssd_scan_specialise(const kr_target *target, kr_attrs *t, const kr_shape *in, int inputs) {
    (void)inputs;
    return settle("ssd_scan", target, t, in);
}
static kr_status ssd_scan_grad_specialise(const kr_target *target, kr_attrs *t, const kr_shape *in, int inputs) {
    (void)inputs;
    return settle("ssd_scan_grad", target, t, in + FORWARD);
}

extern const kr_op kr_op_ssd_scan_grad;

static void ssd_scan_derivative(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *din) {
    kr_value in[GRAD_INPUTS] = {[DOUT] = dout[OUT], [DLAST] = dout[LAST], [GRAD_RESET] = n->in[RESET],
                                [GRAD_SAVED] = n->out[SAVED]};
    kr_attrs t = n->attrs;
    double start = 0;
    t.i[ZERO_START] = !n->in[H0].id || (kr_value_is_splat(g, n->in[H0], &start) && start == 0);
    for (int k = X; k <= DT_BIAS; k++) in[FORWARD + k] = n->in[k];
    if (!dout[OUT].id && !dout[LAST].id) return;
    const kr_value first = kr_append(g, &kr_op_ssd_scan_grad, &t, in, GRAD_INPUTS);
    if (!first.id) return;
    for (int k = X; k <= H0; k++)
        if (n->in[k].id) din[k] = kr_sibling(g, first, k);
}

#define BIT(k) (1u << (k))
static const kr_stage forward_stages[] = {KR_STAGE(ssd_scan)};
static const kr_stage backward_stages[] = {KR_STAGE(ssd_scan_grad_carry), KR_STAGE(ssd_scan_grad),
                                           KR_STAGE(ssd_scan_grad_sum)};

const kr_op kr_op_ssd_scan = {
    .name = "ssd_scan", .inputs = INPUTS, .outputs = OUTPUTS,
    .optional = BIT(D) | BIT(Z) | BIT(DT_BIAS) | BIT(H0) | BIT(RESET),
    .zero_absent = BIT(D) | BIT(DT_BIAS) | BIT(H0) | BIT(RESET),
    .keeps_in = BIT(X) | BIT(DT) | BIT(A) | BIT(B) | BIT(C) | BIT(D) | BIT(Z) | BIT(DT_BIAS) | BIT(RESET),
    .keeps_out = BIT(SAVED), .attr = {.i = {"groups", "chunk", "dt_softplus", "saved"}, .r = {"dt_min", "dt_max"}},
    .shape = ssd_scan_shape, .grad = ssd_scan_derivative, .cost = ssd_scan_cost,
};
KR_CPU(ssd_scan,
    .rows_in = BIT(X) | BIT(DT) | BIT(B) | BIT(C) | BIT(Z), .rows_out = BIT(OUT), .skip_out = BIT(LAST) | BIT(SAVED),
    .inplace = {BIT(X) | BIT(Z), BIT(H0)}, .specialise = ssd_scan_specialise, .work = ssd_scan_work, KR_STAGES(forward_stages))

/// Reads dout [B, L, H*P]? and dlast [B, H, P, N]?, the forward inputs x to dt_bias, reset? and the saved states; gives
/// the gradients of x, dt, A, B, C, D, z, dt_bias (empty where the input is absent) and h0. zero_start: the scan had no
/// h0, so what is saved of the first chunk is zero.
const kr_op kr_op_ssd_scan_grad = {
    .name = "ssd_scan_grad", .inputs = GRAD_INPUTS, .outputs = GRAD_OUTPUTS, .flags = KR_OP_NO_GRADIENT,
    .optional = BIT(DOUT) | BIT(DLAST) | BIT(FORWARD + D) | BIT(FORWARD + Z) | BIT(FORWARD + DT_BIAS) | BIT(GRAD_RESET),
    .zero_absent = BIT(DOUT) | BIT(DLAST) | BIT(GRAD_RESET),
    .attr = {.i = {"groups", "chunk", "dt_softplus", "saved", "zero_start"}, .r = {"dt_min", "dt_max"}},
    .shape = ssd_scan_grad_shape, .cost = ssd_scan_grad_cost,
};
KR_CPU(ssd_scan_grad,
    .rows_in = BIT(DOUT) | BIT(FORWARD + X) | BIT(FORWARD + DT) | BIT(FORWARD + B) | BIT(FORWARD + C) | BIT(FORWARD + Z),
    .rows_out = BIT(DX) | BIT(DDT) | BIT(DB) | BIT(DC) | BIT(DZ), .skip_out = BIT(GRAD_OUTPUTS) - 1,
    .inplace = {BIT(DOUT) | BIT(FORWARD + X), BIT(FORWARD + DT)}, .specialise = ssd_scan_grad_specialise,
    .work = ssd_scan_grad_work,
    KR_STAGES(backward_stages))

kr_value (kr_ssd_scan)(kr_graph *g, const kr_ssd_scan_args *a, kr_value *last) {
    // attributes are finite, so that they print: 0 stands for no limit
    const kr_attrs t = {.i = {[GROUPS] = a->groups ? a->groups : 1, [CHUNK] = a->chunk, [DT_SOFTPLUS] = a->dt_softplus},
                        .r = {[DT_MIN] = a->dt_min, [DT_MAX] = isfinite(a->dt_max) ? a->dt_max : 0}};
    const kr_value in[INPUTS] = {a->x, a->dt, a->A, a->B, a->C, a->D, a->z, a->dt_bias, a->h0, a->reset};
    const kr_value out = kr_append(g, &kr_op_ssd_scan, &t, in, INPUTS);
    if (last) *last = out.id ? kr_sibling(g, out, LAST) : KR_NONE;
    return out;
}
