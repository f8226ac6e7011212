/// Mamba-1's selective scan (S6): a diagonal linear recurrence whose step size, input map and output map depend on the
/// token.
///
///   dt_t = softplus(delta_t + delta_bias)
///   h_t  = exp(dt_t A) h_{t-1} + dt_t B_t u_t        per channel e and state n
///   y_t  = sum_n C_t h_t + D u_t;   out_t = y_t silu(z_t)
///
/// Keeping h for all tokens would take N times the memory of u. So the op saves the state only at the start of every
/// chunk of KR_SCAN_CHUNK tokens, and the gradient op recomputes the rest, one chunk at a time, while it runs backwards
/// (docs/book/2-mamba.md). Where reset is 1 the state before the token counts as zero, in both directions.
///
/// source Gu & Dao 2023, arXiv:2312.00752, algorithm 2
#include "ops/graph/internal.h"
#include "ops/graph/signature.h"
#include "ops/selective_scan/args.h"
#include "ops/selective_scan/size.h"

#define FORWARD_INPUTS(from)                                                                                          \
    [(from) + SELECTIVE_U] = {"u", "B L E"}, [(from) + SELECTIVE_DELTA] = {"delta", "B L E"},                         \
              [(from) + SELECTIVE_A] = {"A", "E N"}, [(from) + SELECTIVE_B] = {"B", "B L G N | B L N | E N"},         \
              [(from) + SELECTIVE_C] = {"C", "B L G N | B L N | E N"},                                                \
              [(from) + SELECTIVE_D] = {"D", "E", KR_OPTIONAL}, [(from) + SELECTIVE_Z] = {"z", "B L E", KR_OPTIONAL}, \
              [(from) + SELECTIVE_DELTA_BIAS] = {"delta_bias", "E", KR_OPTIONAL}

// What is saved is private to the kernels of a target: so many elements as the attribute `saved` says.
static const kr_signature selective_scan_signature = {
    .in = {FORWARD_INPUTS(0), [SELECTIVE_H0] = {"h0", "B E N", KR_OPTIONAL},
           [SELECTIVE_RESET] = {"reset", "B L", KR_OPTIONAL, KR_I32}},
    .out = {[SELECTIVE_OUT] = {"out", "B L E"},
            [SELECTIVE_LAST] = {"last", "B E N"},
            [SELECTIVE_SAVED] = {"saved", "saved"}},
    .i = {[SELECTIVE_SAVED_SIZE] = KR_AT_LEAST(0)},
};
static const kr_signature selective_scan_grad_signature = {
    .in = {[SELECTIVE_GRAD_DOUT] = {"dout", "B L E", KR_OPTIONAL},
           [SELECTIVE_GRAD_DLAST] = {"dlast", "B E N", KR_OPTIONAL},
           FORWARD_INPUTS(SELECTIVE_GRAD_FORWARD),
           [SELECTIVE_GRAD_RESET] = {"reset", "B L", KR_OPTIONAL, KR_I32},
           [SELECTIVE_GRAD_SAVED] = {"saved", "saved"}},
    .out = {[SELECTIVE_GRAD_DU] = {"du", "@u"},
            [SELECTIVE_GRAD_DDELTA] = {"ddelta", "@delta"},
            [SELECTIVE_GRAD_DA] = {"dA", "@A"},
            [SELECTIVE_GRAD_DB] = {"dB", "@B"},
            [SELECTIVE_GRAD_DC] = {"dC", "@C"},
            [SELECTIVE_GRAD_DD] = {"dD", "@D"},
            [SELECTIVE_GRAD_DZ] = {"dz", "@z"},
            [SELECTIVE_GRAD_DDELTA_BIAS] = {"ddelta_bias", "@delta_bias"},
            [SELECTIVE_GRAD_DH0] = {"dh0", "B E N"}},
    .i = {[SELECTIVE_SAVED_SIZE] = KR_AT_LEAST(0)},
};

/// Groups of B or C, in any of their forms; 0: constant over time, so it has none.
static int64_t groups_of(const kr_shape *x) { return x->rank == 4 ? x->dim[2] : x->rank == 3; }

static kr_status check_groups(const kr_op *op, const kr_shape *in, const kr_letters *l) {
    const int64_t E = kr_letter(l, "E"), B = groups_of(&in[SELECTIVE_B]), C = groups_of(&in[SELECTIVE_C]);
    for (int k = SELECTIVE_B; k <= SELECTIVE_C; k++) {
        const int64_t G = groups_of(&in[k]);
        KR_FAIL_IF(in[k].rank > 2 && (G < 1 || E % G), KR_BAD_SHAPE,
                   "%s: %s has %lld groups, want a divisor of E = %lld", op->name, k == SELECTIVE_B ? "B" : "C",
                   (long long)G, (long long)E);
    }
    KR_FAIL_IF(B && C && B != C, KR_BAD_SHAPE, "%s: B has %lld groups and C has %lld, want the same", op->name,
               (long long)B, (long long)C);
    return KR_OK;
}

static kr_status check_forward(const kr_op *op, const kr_attrs *t, const kr_shape *in, kr_letters *l) {
    (void)t;
    return check_groups(op, in, l);
}
static kr_status check_backward(const kr_op *op, const kr_attrs *t, const kr_shape *in, kr_letters *l) {
    (void)t;
    return check_groups(op, in + SELECTIVE_GRAD_FORWARD, l);
}

/// 6 FLOP per state and 6 per channel of a token, and an exponential (counted as 8) per state.
static void selective_scan_cost(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs, double *flops,
                                double *bytes) {
    (void)t, (void)inputs;
    const kr_scan_size s = kr_scan_measure(&in[SELECTIVE_U], &in[SELECTIVE_A], &in[SELECTIVE_B], &in[SELECTIVE_C]);
    const double tokens = (double)(s.batch * s.length), channels = (double)s.channels, states = (double)s.states;
    *flops = tokens * channels * (14 * states + 22);
    *bytes = 4 * (tokens * (channels * (3 + (in[SELECTIVE_Z].rank >= 0)) + 2 * (double)s.groups * states) +
                  (double)kr_shape_count(&out[SELECTIVE_SAVED]) + 2 * (double)kr_shape_count(&out[SELECTIVE_LAST]) +
                  channels * states);
}

static void selective_scan_grad_cost(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs,
                                     double *flops, double *bytes) {
    (void)t, (void)inputs, (void)out;
    const kr_shape *x = in + SELECTIVE_GRAD_FORWARD;
    const kr_scan_size s = kr_scan_measure(&x[SELECTIVE_U], &x[SELECTIVE_A], &x[SELECTIVE_B], &x[SELECTIVE_C]);
    const double tokens = (double)(s.batch * s.length), channels = (double)s.channels, states = (double)s.states;
    *flops = tokens * channels * (28 * states + 44);
    *bytes = 4 * (tokens * (channels * (5 + 2 * (x[SELECTIVE_Z].rank >= 0)) + 4 * (double)s.groups * states) +
                  (double)kr_shape_count(&in[SELECTIVE_GRAD_SAVED]) + 2 * channels * states * (double)(s.batch + 1));
}

extern const kr_op kr_op_selective_scan_grad;

static void selective_scan_derivative(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *din) {
    kr_value in[SELECTIVE_GRAD_INPUTS] = {[SELECTIVE_GRAD_DOUT] = dout[SELECTIVE_OUT],
                                          [SELECTIVE_GRAD_DLAST] = dout[SELECTIVE_LAST],
                                          [SELECTIVE_GRAD_RESET] = n->in[SELECTIVE_RESET],
                                          [SELECTIVE_GRAD_SAVED] = n->out[SELECTIVE_SAVED]};
    for (int k = SELECTIVE_U; k <= SELECTIVE_DELTA_BIAS; k++) in[SELECTIVE_GRAD_FORWARD + k] = n->in[k];
    if (!dout[SELECTIVE_OUT].id && !dout[SELECTIVE_LAST].id) return;
    const kr_value first = kr_append(g, &kr_op_selective_scan_grad, &n->attrs, in, SELECTIVE_GRAD_INPUTS);
    if (!first.id) return;
    for (int k = SELECTIVE_U; k <= SELECTIVE_H0; k++)
        if (n->in[k].id) din[k] = kr_sibling(g, first, k);
}

const kr_op kr_op_selective_scan = {
    .name = "selective_scan",
    .inputs = SELECTIVE_INPUTS,
    .outputs = SELECTIVE_OUTPUTS,
    .zero_absent = BIT(SELECTIVE_D) | BIT(SELECTIVE_DELTA_BIAS) | BIT(SELECTIVE_H0) | BIT(SELECTIVE_RESET),
    .keeps_in = BIT(SELECTIVE_U) | BIT(SELECTIVE_DELTA) | BIT(SELECTIVE_A) | BIT(SELECTIVE_B) | BIT(SELECTIVE_C) |
                BIT(SELECTIVE_D) | BIT(SELECTIVE_Z) | BIT(SELECTIVE_DELTA_BIAS) | BIT(SELECTIVE_RESET),
    .keeps_out = BIT(SELECTIVE_SAVED),
    .attr = {.i = {"delta_softplus", "saved"}},
    .signature = &selective_scan_signature,
    .check = check_forward,
    .grad = selective_scan_derivative,
    .cost = selective_scan_cost,
};

/// Reads dout [B, L, E]? and dlast [B, E, N]?, the forward inputs u to delta_bias, reset? and the saved states; gives
/// the gradients of u, delta, A, B, C, D, z, delta_bias (empty where the input is absent) and h0.
const kr_op kr_op_selective_scan_grad = {
    .name = "selective_scan_grad",
    .inputs = SELECTIVE_GRAD_INPUTS,
    .outputs = SELECTIVE_GRAD_OUTPUTS,
    .flags = KR_OP_NO_GRADIENT,
    .zero_absent = BIT(SELECTIVE_GRAD_DOUT) | BIT(SELECTIVE_GRAD_DLAST) | BIT(SELECTIVE_GRAD_RESET),
    .attr = {.i = {"delta_softplus", "saved"}},
    .signature = &selective_scan_grad_signature,
    .check = check_backward,
    .cost = selective_scan_grad_cost,
};

kr_value (kr_selective_scan)(kr_graph *g, const kr_selective_scan_args *a, kr_value *last) {
    const kr_attrs t = {.i = {[SELECTIVE_DELTA_SOFTPLUS] = a->delta_softplus}};
    const kr_value in[SELECTIVE_INPUTS] = {[SELECTIVE_U] = a->u,   [SELECTIVE_DELTA] = a->delta,
                                           [SELECTIVE_A] = a->A,   [SELECTIVE_B] = a->B,
                                           [SELECTIVE_C] = a->C,   [SELECTIVE_D] = a->D,
                                           [SELECTIVE_Z] = a->z,   [SELECTIVE_DELTA_BIAS] = a->delta_bias,
                                           [SELECTIVE_H0] = a->h0, [SELECTIVE_RESET] = a->reset};
    const kr_value out = kr_append(g, &kr_op_selective_scan, &t, in, SELECTIVE_INPUTS);
    if (last) *last = out.id ? kr_sibling(g, out, SELECTIVE_LAST) : KR_NONE;
    return out;
}
