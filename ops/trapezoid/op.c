/// Mamba-3's scan: Mamba-2's state with a second-order step and, with several inputs and outputs, a matrix in place of
/// the outer product.
///
///   lambda_t = sigmoid(trap_t);   U_t = sum_r (mimo_x_r x_t) (outer) k_{t,r}
///   S_t = exp(adt_t) (S_{t-1} + (1 - lambda_t) dt_t U_{t-1}) + lambda_t dt_t U_t        the trapezoid rule
///   o_{t,r} = S_t q_{t,r} + D mimo_x_r x_t
///
/// Before the first token, U comes from k0 and v0. Where a document starts neither S nor U reach over. States are
/// saved as ssd_scan saves them, in chunks of tokens times rank rows; the kernels are this family's own (cpu_chunk.h
/// says
/// how the rule fits in).
///
/// With groups, biases and angles k and q are made here of K and Q: pairs of coordinates rotate by angles that add up
/// over
/// time. A pair (a, b) rotated by theta is (a cos - b sin, a sin + b cos). Products of two vectors rotated by theta_t
/// and
/// theta_s depend on theta_t - theta_s only: this is how a real recurrence gets complex eigenvalues. It happens a chunk
/// at a time: in memory k and q would be as many times K and Q as a group has heads, written once and read twice. The
/// gradient of a rotation is the rotation back; that of an angle is e = k0 dk1 - k1 dk0 per pair, and as angles add up,
/// dtheta_t = sum_{t' >= t} e_t', which a reset cuts as it cuts theta. A gate z is applied to o.
///
/// source Lahoti et al. 2026, arXiv:2603.15569
#include "ops/graph/internal.h"
#include "ops/graph/signature.h"
#include "ops/trapezoid/work.h"

#define FORWARD_INPUTS(from)                                                                            \
    [(from) + TRAPEZOID_K] = {"k", "groups ? B L rank*groups*N : B L H*rank*N"},                        \
              [(from) + TRAPEZOID_Q] = {"q", "groups ? B L rank*groups*N : B L H*rank*N"},              \
              [(from) + TRAPEZOID_X] = {"x", "B L H*P"}, [(from) + TRAPEZOID_ADT] = {"adt", "B L H"},   \
              [(from) + TRAPEZOID_DT] = {"dt", "B L H"}, [(from) + TRAPEZOID_TRAP] = {"trap", "B L H"}, \
              [(from) + TRAPEZOID_MIMO_X] = {"mimo_x", "H rank P", KR_OPTIONAL},                        \
              [(from) + TRAPEZOID_D] = {"D", "H", KR_OPTIONAL},                                         \
              [(from) + TRAPEZOID_Z] = {"z", "B L H*P", KR_OPTIONAL},                                   \
              [(from) + TRAPEZOID_K_BIAS] = {"k_bias", "groups ? H rank N : absent"},                   \
              [(from) + TRAPEZOID_Q_BIAS] = {"q_bias", "groups ? H rank N : absent"},                   \
              [(from) + TRAPEZOID_ANG] = {"ang", "groups ? B L S | B L H S : absent"}
#define ATTRIBUTES                                                                            \
    {                                                                                         \
        [TRAPEZOID_RANK] = KR_BETWEEN(1, 1 << 16), [TRAPEZOID_CHUNK] = KR_AT_LEAST(0),        \
        [TRAPEZOID_GROUPS] = KR_AT_LEAST(0), [TRAPEZOID_SAVED_SIZE] = KR_AT_LEAST(0),         \
        [TRAPEZOID_ANGLES_SIZE] = KR_AT_LEAST(0)                                              \
    }

// S: pairs that rotate. What is saved is private to the kernels of a target: as many elements as the attributes say.
static const kr_signature trapezoid_scan_signature = {
    .in = {FORWARD_INPUTS(0), [TRAPEZOID_H0] = {"h0", "B H P N", KR_OPTIONAL},
           [TRAPEZOID_K0] = {"k0", "B rank H N", KR_OPTIONAL}, [TRAPEZOID_V0] = {"v0", "B H P", KR_OPTIONAL},
           [TRAPEZOID_THETA0] = {"theta0", "B H S", KR_OPTIONAL},
           [TRAPEZOID_RESET] = {"reset", "B L", KR_OPTIONAL, KR_I32}},
    .out = {[TRAPEZOID_O] = {"o", "B L rank*H*P"},
            [TRAPEZOID_H_LAST] = {"h_last", "B H P N"},
            [TRAPEZOID_K_LAST] = {"k_last", "B rank H N"},
            [TRAPEZOID_V_LAST] = {"v_last", "B H P"},
            [TRAPEZOID_THETA_LAST] = {"theta_last", "B H S"},
            [TRAPEZOID_SAVED] = {"saved", "saved"},
            [TRAPEZOID_ANGLES] = {"angles", "angles"}},
    .i = ATTRIBUTES,
};
static const kr_signature trapezoid_scan_grad_signature = {
    .in = {[TRAPEZOID_GRAD_DO] = {"do", "B L rank*H*P", KR_OPTIONAL},
           [TRAPEZOID_GRAD_DH_LAST] = {"dh_last", "B H P N", KR_OPTIONAL},
           [TRAPEZOID_GRAD_DK_LAST] = {"dk_last", "B rank H N", KR_OPTIONAL},
           [TRAPEZOID_GRAD_DV_LAST] = {"dv_last", "B H P", KR_OPTIONAL},
           [TRAPEZOID_GRAD_DTHETA_LAST] = {"dtheta_last", "B H S", KR_OPTIONAL},
           FORWARD_INPUTS(TRAPEZOID_GRAD_FORWARD),
           [TRAPEZOID_GRAD_K0] = {"k0", "B rank H N", KR_OPTIONAL},
           [TRAPEZOID_GRAD_V0] = {"v0", "B H P", KR_OPTIONAL},
           [TRAPEZOID_GRAD_RESET] = {"reset", "B L", KR_OPTIONAL, KR_I32},
           [TRAPEZOID_GRAD_SAVED] = {"saved", "saved"},
           [TRAPEZOID_GRAD_ANGLES] = {"angles", "angles"},
           [TRAPEZOID_GRAD_O] = {"o", "B L rank*H*P", KR_OPTIONAL}},
    .out = {[TRAPEZOID_GRAD_DK] = {"dk", "@k"},
            [TRAPEZOID_GRAD_DQ] = {"dq", "@q"},
            [TRAPEZOID_GRAD_DX] = {"dx", "@x"},
            [TRAPEZOID_GRAD_DADT] = {"dadt", "@adt"},
            [TRAPEZOID_GRAD_DDT] = {"ddt", "@dt"},
            [TRAPEZOID_GRAD_DTRAP] = {"dtrap", "@trap"},
            [TRAPEZOID_GRAD_DMIMO_X] = {"dmimo_x", "@mimo_x"},
            [TRAPEZOID_GRAD_DD] = {"dD", "@D"},
            [TRAPEZOID_GRAD_DZ] = {"dz", "@z"},
            [TRAPEZOID_GRAD_DK_BIAS] = {"dk_bias", "@k_bias"},
            [TRAPEZOID_GRAD_DQ_BIAS] = {"dq_bias", "@q_bias"},
            [TRAPEZOID_GRAD_DANG] = {"dang", "@ang"},
            [TRAPEZOID_GRAD_DH0] = {"dh0", "B H P N"},
            [TRAPEZOID_GRAD_DK0] = {"dk0", "B rank H N"},
            [TRAPEZOID_GRAD_DV0] = {"dv0", "B H P"},
            [TRAPEZOID_GRAD_DTHETA0] = {"dtheta0", "B H S"}},
    .i = ATTRIBUTES,
};

static kr_status check_scan(const kr_op *op, const kr_attrs *t, const kr_shape *in, kr_letters *l) {
    const int64_t rank = t->i[TRAPEZOID_RANK], groups = t->i[TRAPEZOID_GROUPS], H = kr_letter(l, "H");
    KR_FAIL_IF(in[TRAPEZOID_MIMO_X].rank < 0 && rank > 1, KR_BAD_SHAPE,
               "%s: rank %lld without mimo_x, want rank 1 or mimo_x", op->name, (long long)rank);
    KR_FAIL_IF(in[TRAPEZOID_Z].rank >= 0 && rank > 1, KR_BAD_SHAPE, "%s: rank %lld with a gate z, want rank 1 or no z",
               op->name, (long long)rank);
    KR_FAIL_IF(groups && H % groups, KR_BAD_SHAPE, "%s: %lld groups, want a divisor of %lld heads", op->name,
               (long long)groups, (long long)H);
    KR_FAIL_IF(groups && kr_letter(l, "S") > kr_letter(l, "N") / 2, KR_BAD_SHAPE,
               "%s: ang has %lld pairs, want at most %lld, half of N", op->name, (long long)kr_letter(l, "S"),
               (long long)(kr_letter(l, "N") / 2));
    return groups ? KR_OK : kr_letter_let(l, "S", 0);
}
static kr_status check_scan_back(const kr_op *op, const kr_attrs *t, const kr_shape *in, kr_letters *l) {
    KR_FAIL_IF(in[TRAPEZOID_GRAD_FORWARD + TRAPEZOID_Z].rank >= 0 && in[TRAPEZOID_GRAD_O].rank < 0, KR_BAD_SHAPE,
               "%s: o is missing, want what the scan gave, as there is a gate z", op->name);
    return check_scan(op, t, in + TRAPEZOID_GRAD_FORWARD, l);
}

/// Multiply-adds of the chunk's products (docs/book/4-mamba-3.md), with half of those inside a chunk; for an angle's
/// sine and cosine about 60, for a pair of k and one of q 16 and for their biases 2 per state.
static void trapezoid_scan_cost(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs, double *flops,
                                double *bytes) {
    (void)inputs;
    const kr_trapezoid_size all = kr_trapezoid_measure(t, in);
    const kr_chunk_size *s = &all.scan;
    const double heads = (double)(s->batch * s->length * s->heads), r = (double)s->rank, p = (double)s->width;
    const double n = (double)s->states, rows = (double)s->chunk * r, pairs = (double)all.rotate.pairs;
    *flops = heads *
             (r * (rows * (n + p) + 4 * n * p) + 40 + (all.rotate.rotates ? pairs * (60 + 16 * r) + 2 * r * n : 0));
    *bytes = 4 *
             (heads * ((1 + r + (in[TRAPEZOID_Z].rank >= 0)) * p + 3) + 2 * (double)kr_shape_count(&in[TRAPEZOID_K]) +
              (double)kr_shape_count(&out[TRAPEZOID_SAVED]) + 2 * (double)kr_shape_count(&out[TRAPEZOID_H_LAST]));
}

static void trapezoid_scan_grad_cost(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs,
                                     double *flops, double *bytes) {
    (void)inputs, (void)out;
    const kr_trapezoid_size all = kr_trapezoid_measure(t, in + TRAPEZOID_GRAD_FORWARD);
    const kr_chunk_size *s = &all.scan;
    const double heads = (double)(s->batch * s->length * s->heads), r = (double)s->rank, p = (double)s->width;
    const double n = (double)s->states, rows = (double)s->chunk * r, pairs = (double)all.rotate.pairs;
    *flops = heads * (r * (rows * (3 * n + 2 * p) + 10 * n * p) +
                      (in[TRAPEZOID_GRAD_FORWARD + TRAPEZOID_Z].rank >= 0 ? 30 * p : 0) + 80 +
                      (all.rotate.rotates ? pairs * (70 + 36 * r) + 6 * r * n : 0));
    *bytes = 4 * (heads * ((2 + r + 3 * (in[TRAPEZOID_GRAD_FORWARD + TRAPEZOID_Z].rank >= 0)) * p + 6) +
                  4 * (double)kr_shape_count(&in[TRAPEZOID_GRAD_FORWARD + TRAPEZOID_K]) +
                  (double)kr_shape_count(&in[TRAPEZOID_GRAD_SAVED]));
}

extern const kr_op kr_op_trapezoid_scan_grad;

static void trapezoid_scan_derivative(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *din) {
    kr_value in[TRAPEZOID_GRAD_INPUTS] = {[TRAPEZOID_GRAD_K0] = n->in[TRAPEZOID_K0],
                                          [TRAPEZOID_GRAD_V0] = n->in[TRAPEZOID_V0],
                                          [TRAPEZOID_GRAD_RESET] = n->in[TRAPEZOID_RESET],
                                          [TRAPEZOID_GRAD_SAVED] = n->out[TRAPEZOID_SAVED],
                                          [TRAPEZOID_GRAD_ANGLES] = n->out[TRAPEZOID_ANGLES],
                                          [TRAPEZOID_GRAD_O] = n->in[TRAPEZOID_Z].id ? n->out[TRAPEZOID_O] : KR_NONE};
    kr_attrs t = n->attrs;
    bool any = false;
    t.i[TRAPEZOID_ZERO_START] = !n->in[TRAPEZOID_H0].id && !(n->in[TRAPEZOID_K0].id && n->in[TRAPEZOID_V0].id);
    for (int k = TRAPEZOID_O; k <= TRAPEZOID_THETA_LAST; k++)
        any |= dout[k].id != 0, in[TRAPEZOID_GRAD_DO + k] = dout[k];
    for (int k = TRAPEZOID_K; k <= TRAPEZOID_ANG; k++) in[TRAPEZOID_GRAD_FORWARD + k] = n->in[k];
    if (!any) return;
    const kr_value first = kr_append(g, &kr_op_trapezoid_scan_grad, &t, in, TRAPEZOID_GRAD_INPUTS);
    if (!first.id) return;
    for (int k = TRAPEZOID_K; k <= TRAPEZOID_THETA0; k++)
        if (n->in[k].id) din[k] = kr_sibling(g, first, k);
}

const kr_op kr_op_trapezoid_scan = {
    .name = "trapezoid_scan",
    .inputs = TRAPEZOID_INPUTS,
    .outputs = TRAPEZOID_OUTPUTS,
    .zero_absent = BIT(TRAPEZOID_D) | BIT(TRAPEZOID_H0) | BIT(TRAPEZOID_K0) | BIT(TRAPEZOID_V0) |
                   BIT(TRAPEZOID_THETA0) | BIT(TRAPEZOID_RESET),
    .keeps_in = TRAPEZOID_STEPS | TRAPEZOID_EXTRAS | BIT(TRAPEZOID_K0) | BIT(TRAPEZOID_V0) | BIT(TRAPEZOID_RESET),
    .keeps_out = BIT(TRAPEZOID_O) | BIT(TRAPEZOID_SAVED) | BIT(TRAPEZOID_ANGLES),
    .attr = {.i = {"rank", "chunk", "groups", "half", "saved", "angles"}},
    .signature = &trapezoid_scan_signature,
    .check = check_scan,
    .grad = trapezoid_scan_derivative,
    .cost = trapezoid_scan_cost,
};

/// Reads the gradients of o [B, L, R*H*P]?, of the last state, key, x and angles (all optional), the forward inputs k
/// to ang, k0?, v0?, reset?, the saved states and angles, and with a gate the output; gives the gradients of k to ang
/// (empty where the input is absent), h0, k0, v0 and theta0. zero_start: the scan had neither h0 nor k0 and v0, so the
/// state before it is zero.
const kr_op kr_op_trapezoid_scan_grad = {
    .name = "trapezoid_scan_grad",
    .inputs = TRAPEZOID_GRAD_INPUTS,
    .outputs = TRAPEZOID_GRAD_OUTPUTS,
    .flags = KR_OP_NO_GRADIENT,
    .zero_absent = (BIT(TRAPEZOID_GRAD_FORWARD) - 1) | BIT(TRAPEZOID_GRAD_RESET),
    .attr = {.i = {"rank", "chunk", "groups", "half", "saved", "angles", "zero_start"}},
    .signature = &trapezoid_scan_grad_signature,
    .check = check_scan_back,
    .cost = trapezoid_scan_grad_cost,
};

kr_value(kr_trapezoid_scan)(kr_graph *g, const kr_trapezoid_scan_args *a, kr_trapezoid_scan_state *last) {
    const kr_attrs t = {.i = {[TRAPEZOID_RANK] = a->rank ? a->rank : 1,
                              [TRAPEZOID_CHUNK] = a->chunk,
                              [TRAPEZOID_HALF] = a->half,
                              [TRAPEZOID_GROUPS] = a->groups ? a->groups : a->k_bias.id != 0}};
    const kr_value in[TRAPEZOID_INPUTS] = {
        [TRAPEZOID_K] = a->k,           [TRAPEZOID_Q] = a->q,           [TRAPEZOID_X] = a->x,
        [TRAPEZOID_ADT] = a->adt,       [TRAPEZOID_DT] = a->dt,         [TRAPEZOID_TRAP] = a->trap,
        [TRAPEZOID_MIMO_X] = a->mimo_x, [TRAPEZOID_D] = a->D,           [TRAPEZOID_Z] = a->z,
        [TRAPEZOID_K_BIAS] = a->k_bias, [TRAPEZOID_Q_BIAS] = a->q_bias, [TRAPEZOID_ANG] = a->ang,
        [TRAPEZOID_H0] = a->h0,         [TRAPEZOID_K0] = a->k0,         [TRAPEZOID_V0] = a->v0,
        [TRAPEZOID_THETA0] = a->theta0, [TRAPEZOID_RESET] = a->reset};
    const kr_value out = kr_append(g, &kr_op_trapezoid_scan, &t, in, TRAPEZOID_INPUTS);
    if (last)
        *last = out.id ? (kr_trapezoid_scan_state){kr_sibling(g, out, TRAPEZOID_H_LAST),
                                                   kr_sibling(g, out, TRAPEZOID_K_LAST),
                                                   kr_sibling(g, out, TRAPEZOID_V_LAST),
                                                   kr_sibling(g, out, TRAPEZOID_THETA_LAST)}
                       : (kr_trapezoid_scan_state){KR_NONE, KR_NONE, KR_NONE, KR_NONE};
    return out;
}
