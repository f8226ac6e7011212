/// Linear recurrence h_t = a_t h_{t-1} + b_t, elementwise along axis 1: the primitive of every diagonal state-space
/// model. It keeps its result, and its gradient is the same recurrence backwards in time:
///
///   g_t = dh_t + a_{t+1} g_{t+1};   db_t = g_t;   da_t = g_t h_{t-1};   dh0 = a_1 g_1
///
/// source Martin & Cundy 2018, arXiv:1709.04057 (backward pass, section 2.3)
#include "ops/graph/internal.h"
#include "ops/linear_scan/args.h"

static const kr_signature linear_scan_signature = {
    .in = {[LINEAR_SCAN_A] = {"a", "B L C"},
           [LINEAR_SCAN_B] = {"b", "B L C"},
           [LINEAR_SCAN_H0] = {"h0", "B C", KR_OPTIONAL},
           [LINEAR_SCAN_RESET] = {"reset", "B L", KR_OPTIONAL, KR_I32}},
    .out = {[LINEAR_SCAN_H] = {"h", "B L C"}, [LINEAR_SCAN_LAST] = {"last", "B C"}},
};
static const kr_signature linear_scan_grad_signature = {
    .in = {[LINEAR_SCAN_GRAD_DH] = {"dh", "B L C", KR_OPTIONAL},
           [LINEAR_SCAN_GRAD_DLAST] = {"dlast", "B C", KR_OPTIONAL},
           [LINEAR_SCAN_GRAD_A] = {"a", "B L C"},
           [LINEAR_SCAN_GRAD_H] = {"h", "B L C"},
           [LINEAR_SCAN_GRAD_H0] = {"h0", "B C", KR_OPTIONAL},
           [LINEAR_SCAN_GRAD_RESET] = {"reset", "B L", KR_OPTIONAL, KR_I32}},
    .out = {[LINEAR_SCAN_GRAD_DA] = {"da", "B L C"},
            [LINEAR_SCAN_GRAD_DB] = {"db", "B L C"},
            [LINEAR_SCAN_GRAD_DH0] = {"dh0", "B C"}},
};

extern const kr_op kr_op_linear_scan_grad;

static void linear_scan_derivative(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *din) {
    const kr_value in[LINEAR_SCAN_GRAD_INPUTS] = {
        [LINEAR_SCAN_GRAD_DH] = dout[LINEAR_SCAN_H],   [LINEAR_SCAN_GRAD_DLAST] = dout[LINEAR_SCAN_LAST],
        [LINEAR_SCAN_GRAD_A] = n->in[LINEAR_SCAN_A],   [LINEAR_SCAN_GRAD_H] = n->out[LINEAR_SCAN_H],
        [LINEAR_SCAN_GRAD_H0] = n->in[LINEAR_SCAN_H0], [LINEAR_SCAN_GRAD_RESET] = n->in[LINEAR_SCAN_RESET]};
    if (!dout[LINEAR_SCAN_H].id && !dout[LINEAR_SCAN_LAST].id) return;
    const kr_value first = kr_append(g, &kr_op_linear_scan_grad, &n->attrs, in, LINEAR_SCAN_GRAD_INPUTS);
    if (!first.id) return;
    din[LINEAR_SCAN_A] = first;
    din[LINEAR_SCAN_B] = kr_sibling(g, first, LINEAR_SCAN_GRAD_DB);
    if (n->in[LINEAR_SCAN_H0].id) din[LINEAR_SCAN_H0] = kr_sibling(g, first, LINEAR_SCAN_GRAD_DH0);
}

const kr_op kr_op_linear_scan = {
    .name = "linear_scan",
    .inputs = LINEAR_SCAN_INPUTS,
    .outputs = LINEAR_SCAN_OUTPUTS,
    .zero_absent = BIT(LINEAR_SCAN_H0) | BIT(LINEAR_SCAN_RESET),
    .keeps_in = BIT(LINEAR_SCAN_A) | BIT(LINEAR_SCAN_H0) | BIT(LINEAR_SCAN_RESET),
    .keeps_out = BIT(LINEAR_SCAN_H),
    .signature = &linear_scan_signature,
    .grad = linear_scan_derivative,
};

/// Reads dh [B, L, C]? and dlast [B, C]?, a, h, h0? and reset?; gives da, db and dh0.
const kr_op kr_op_linear_scan_grad = {
    .name = "linear_scan_grad",
    .inputs = LINEAR_SCAN_GRAD_INPUTS,
    .outputs = LINEAR_SCAN_GRAD_OUTPUTS,
    .flags = KR_OP_NO_GRADIENT,
    .zero_absent = BIT(LINEAR_SCAN_GRAD_DH) | BIT(LINEAR_SCAN_GRAD_DLAST) | BIT(LINEAR_SCAN_GRAD_H0) |
                   BIT(LINEAR_SCAN_GRAD_RESET),
    .signature = &linear_scan_grad_signature,
};

kr_value (kr_linear_scan)(kr_graph *g, kr_value a, kr_value b, kr_value h0, kr_value reset, kr_value *last) {
    const kr_attrs t = {0};
    const kr_value in[LINEAR_SCAN_INPUTS] = {a, b, h0, reset};
    const kr_value h = kr_append(g, &kr_op_linear_scan, &t, in, LINEAR_SCAN_INPUTS);
    if (last) *last = h.id ? kr_sibling(g, h, LINEAR_SCAN_LAST) : KR_NONE;
    return h;
}
