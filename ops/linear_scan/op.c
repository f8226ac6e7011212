/// Linear recurrence h_t = a_t h_{t-1} + b_t, elementwise along axis 1: the primitive of every diagonal state-space
/// model. It keeps its result, and its gradient is the same recurrence backwards in time:
///
///   g_t = dh_t + a_{t+1} g_{t+1};   db_t = g_t;   da_t = g_t h_{t-1};   dh0 = a_1 g_1
///
/// source Martin & Cundy 2018, arXiv:1709.04057 (backward pass, section 2.3)
#include "ops/graph/internal.h"
#include "ops/cpu/kernels.h"

KR_KERNEL_DECLARE(linear_scan)
KR_KERNEL_DECLARE(linear_scan_grad)

enum { A, B, H0, RESET, INPUTS };
enum { H, LAST, OUTPUTS };
enum { GRAD_DH, GRAD_DLAST, GRAD_A, GRAD_H, GRAD_H0, GRAD_RESET, GRAD_INPUTS };
enum { DA, DB, DH0, GRAD_OUTPUTS };

static kr_status check(const char *op, const char *name, const kr_shape *got, kr_dtype dtype, kr_shape want,
                       kr_dtype want_dtype) {
    char seen[160], wanted[160];
    KR_FAIL_IF(got->rank >= 0 && (dtype != want_dtype || !kr_shape_equal(got, &want)), KR_BAD_SHAPE,
               "%s: %s is %s %s, want %s %s", op, name, kr_dtype_name(dtype), kr_shape_text(got, seen),
               kr_dtype_name(want_dtype), kr_shape_text(&want, wanted));
    return KR_OK;
}

static kr_status linear_scan_shape(const kr_attrs *t, const kr_shape *in, const kr_dtype *dtype, int inputs,
                                   kr_shape *out, kr_dtype *out_dtype) {
    (void)t, (void)inputs;
    char text[160];
    KR_FAIL_IF(in[A].rank != 3, KR_BAD_SHAPE, "linear_scan: a is %s, want [batch, length, channels]",
               kr_shape_text(&in[A], text));
    out[H] = in[A];
    out[LAST] = KR_SHAPE(in[A].dim[0], in[A].dim[2]);
    out_dtype[H] = out_dtype[LAST] = KR_F32;
    KR_TRY(check("linear_scan", "a", &in[A], dtype[A], out[H], KR_F32));
    KR_TRY(check("linear_scan", "b", &in[B], dtype[B], out[H], KR_F32));
    KR_TRY(check("linear_scan", "h0", &in[H0], dtype[H0], out[LAST], KR_F32));
    return check("linear_scan", "reset", &in[RESET], dtype[RESET], KR_SHAPE(in[A].dim[0], in[A].dim[1]), KR_I32);
}

static kr_status linear_scan_grad_shape(const kr_attrs *t, const kr_shape *in, const kr_dtype *dtype, int inputs,
                                        kr_shape *out, kr_dtype *out_dtype) {
    (void)t, (void)inputs;
    const char *op = "linear_scan_grad";
    char text[160];
    KR_FAIL_IF(in[GRAD_A].rank != 3, KR_BAD_SHAPE, "%s: a is %s, want [batch, length, channels]", op,
               kr_shape_text(&in[GRAD_A], text));
    out[DA] = out[DB] = in[GRAD_A];
    out[DH0] = KR_SHAPE(in[GRAD_A].dim[0], in[GRAD_A].dim[2]);
    for (int k = 0; k < GRAD_OUTPUTS; k++) out_dtype[k] = KR_F32;
    KR_TRY(check(op, "a", &in[GRAD_A], dtype[GRAD_A], out[DA], KR_F32));
    KR_TRY(check(op, "dh", &in[GRAD_DH], dtype[GRAD_DH], out[DA], KR_F32));
    KR_TRY(check(op, "h", &in[GRAD_H], dtype[GRAD_H], out[DA], KR_F32));
    KR_TRY(check(op, "dlast", &in[GRAD_DLAST], dtype[GRAD_DLAST], out[DH0], KR_F32));
    KR_TRY(check(op, "h0", &in[GRAD_H0], dtype[GRAD_H0], out[DH0], KR_F32));
    return check(op, "reset", &in[GRAD_RESET], dtype[GRAD_RESET], KR_SHAPE(out[DA].dim[0], out[DA].dim[1]), KR_I32);
}

extern const kr_op kr_op_linear_scan_grad;

static void linear_scan_derivative(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *din) {
    const kr_value in[GRAD_INPUTS] = {dout[H], dout[LAST], n->in[A], n->out[H], n->in[H0], n->in[RESET]};
    if (!dout[H].id && !dout[LAST].id) return;
    const kr_value first = kr_append(g, &kr_op_linear_scan_grad, &n->attrs, in, GRAD_INPUTS);
    if (!first.id) return;
    din[A] = first;
    din[B] = kr_sibling(g, first, DB);
    if (n->in[H0].id) din[H0] = kr_sibling(g, first, DH0);
}

#define BIT(k) (1u << (k))
static const kr_stage forward_stages[] = {KR_STAGE(linear_scan)};
static const kr_stage backward_stages[] = {KR_STAGE(linear_scan_grad)};

const kr_op kr_op_linear_scan = {
    .name = "linear_scan", .inputs = INPUTS, .outputs = OUTPUTS, .optional = BIT(H0) | BIT(RESET),
    .zero_absent = BIT(H0) | BIT(RESET), .keeps_in = BIT(A) | BIT(H0) | BIT(RESET), .keeps_out = BIT(H),
    .shape = linear_scan_shape, .grad = linear_scan_derivative,
};
KR_CPU(linear_scan,
    .rows_in = BIT(A) | BIT(B), .rows_out = BIT(H), .skip_out = BIT(LAST), .inplace = {BIT(A) | BIT(B)},
    KR_STAGES(forward_stages))

/// Reads dh [B, L, C]? and dlast [B, C]?, a, h, h0? and reset?; gives da, db and dh0.
const kr_op kr_op_linear_scan_grad = {
    .name = "linear_scan_grad", .inputs = GRAD_INPUTS, .outputs = GRAD_OUTPUTS, .flags = KR_OP_NO_GRADIENT,
    .optional = BIT(GRAD_DH) | BIT(GRAD_DLAST) | BIT(GRAD_H0) | BIT(GRAD_RESET),
    .zero_absent = BIT(GRAD_DH) | BIT(GRAD_DLAST) | BIT(GRAD_H0) | BIT(GRAD_RESET), .shape = linear_scan_grad_shape,
};
KR_CPU(linear_scan_grad,
    .rows_in = BIT(GRAD_DH) | BIT(GRAD_A) | BIT(GRAD_H), .rows_out = BIT(DA) | BIT(DB),
    .skip_out = BIT(DA) | BIT(DB) | BIT(DH0),
    .inplace = {BIT(GRAD_DH) | BIT(GRAD_A) | BIT(GRAD_H), BIT(GRAD_DH) | BIT(GRAD_A)}, KR_STAGES(backward_stages))

kr_value (kr_linear_scan)(kr_graph *g, kr_value a, kr_value b, kr_value h0, kr_value reset, kr_value *last) {
    const kr_attrs t = {0};
    const kr_value in[INPUTS] = {a, b, h0, reset};
    const kr_value h = kr_append(g, &kr_op_linear_scan, &t, in, INPUTS);
    if (last) *last = h.id ? kr_sibling(g, h, LAST) : KR_NONE;
    return h;
}
