/// Mamba-2's scan: a state [P, N] per head that decays by one number per token (state-space duality).
///
///   d_t = clamp(softplus(dt_t + dt_bias));   S_t = exp(d_t A) S_{t-1} + d_t x_t (outer) B_t
///   y_t = S_t C_t + D x_t;   out_t = y_t silu(z_t)
///
/// Both directions go chunk by chunk in matrix products (docs/book/3-mamba-2.md), so time is linear in the length. The
/// forward op saves the state at the start of every chunk, and nothing else; the gradient op computes the rest again.
///
/// source Dao & Gu 2024, arXiv:2405.21060, sections 6 and 7
#include "ops/graph/internal.h"
#include "ops/graph/signature.h"
#include "ops/ssd/work.h"

#include <math.h>

#define FORWARD_INPUTS(from)                                                                                      \
    [(from) + SSD_X] = {"x", "B L H*P"}, [(from) + SSD_DT] = {"dt", "B L H"}, [(from) + SSD_A] = {"A", "H"},      \
              [(from) + SSD_B] = {"B", "B L groups*N"}, [(from) + SSD_C] = {"C", "B L groups*N"},                 \
              [(from) + SSD_D] = {"D", "H | H*P", KR_OPTIONAL}, [(from) + SSD_Z] = {"z", "B L H*P", KR_OPTIONAL}, \
              [(from) + SSD_DT_BIAS] = {"dt_bias", "H", KR_OPTIONAL}
#define ATTRIBUTES \
    { [SSD_GROUPS] = KR_AT_LEAST(1), [SSD_CHUNK] = KR_AT_LEAST(0), [SSD_SAVED_SIZE] = KR_AT_LEAST(0) }

// What is saved is private to the kernels of a target: so many elements as the attribute `saved` says.
static const kr_signature ssd_scan_signature = {
    .in = {FORWARD_INPUTS(0), [SSD_H0] = {"h0", "B H P N", KR_OPTIONAL},
           [SSD_RESET] = {"reset", "B L", KR_OPTIONAL, KR_I32}},
    .out = {[SSD_Y] = {"y", "B L H*P"}, [SSD_LAST] = {"last", "B H P N"}, [SSD_SAVED] = {"saved", "saved"}},
    .i = ATTRIBUTES,
};
static const kr_signature ssd_scan_grad_signature = {
    .in = {[SSD_GRAD_DY] = {"dy", "B L H*P", KR_OPTIONAL},
           [SSD_GRAD_DLAST] = {"dlast", "B H P N", KR_OPTIONAL},
           FORWARD_INPUTS(SSD_GRAD_FORWARD),
           [SSD_GRAD_RESET] = {"reset", "B L", KR_OPTIONAL, KR_I32},
           [SSD_GRAD_SAVED] = {"saved", "saved"}},
    .out = {[SSD_GRAD_DX] = {"dx", "@x"},
            [SSD_GRAD_DDT] = {"ddt", "@dt"},
            [SSD_GRAD_DA] = {"dA", "@A"},
            [SSD_GRAD_DB] = {"dB", "@B"},
            [SSD_GRAD_DC] = {"dC", "@C"},
            [SSD_GRAD_DD] = {"dD", "@D"},
            [SSD_GRAD_DZ] = {"dz", "@z"},
            [SSD_GRAD_DDT_BIAS] = {"ddt_bias", "@dt_bias"},
            [SSD_GRAD_DH0] = {"dh0", "B H P N"}},
    .i = ATTRIBUTES,
};

static kr_status check_groups(const kr_op *op, const kr_attrs *t, const kr_shape *in, kr_letters *l) {
    const int64_t H = kr_letter(l, "H"), groups = t->i[SSD_GROUPS];
    (void)in;
    KR_FAIL_IF(H % groups, KR_BAD_SHAPE, "%s: %lld groups, want a divisor of %lld heads", op->name, (long long)groups,
               (long long)H);
    return KR_OK;
}

/// Multiply-adds of the chunk's products (docs/book/3-mamba-2.md), with half of those inside a chunk;
/// scores are made once for the heads of a group.
static void ssd_scan_cost(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs, double *flops,
                          double *bytes) {
    (void)inputs;
    const kr_chunk_size s = kr_ssd_measure(t, in);
    const double tokens = (double)(s.batch * s.length), channels = (double)(s.heads * s.width), n = (double)s.states;
    const double shared = (double)s.groups * n;
    *flops = tokens * ((double)s.chunk * (shared + channels) + 4 * channels * n + 30 * (double)s.heads);
    *bytes = 4 * (tokens * (channels * (2 + (in[SSD_Z].rank >= 0)) + 2 * shared + (double)s.heads) +
                  (double)kr_shape_count(&out[SSD_SAVED]) + 2 * (double)kr_shape_count(&out[SSD_LAST]));
}

static void ssd_scan_grad_cost(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs, double *flops,
                               double *bytes) {
    (void)inputs, (void)out;
    const kr_chunk_size s = kr_ssd_measure(t, in + SSD_GRAD_FORWARD);
    const double tokens = (double)(s.batch * s.length), channels = (double)(s.heads * s.width), n = (double)s.states;
    const double shared = (double)s.groups * n,
                 again = in[SSD_GRAD_FORWARD + SSD_Z].rank >= 0 ? 1 : 0; // y for the gate
    const kr_ssd_cut cut = kr_ssd_cut_of(&s);
    const double carried = (double)(cut.segments - 1) /
                           (double)cut.segments; // of the tokens, by all segments but the first
    *flops = tokens * ((double)s.chunk * (3 * shared + (2 + again) * channels) +
                       (8 + 2 * (again + carried)) * channels * n + 60 * (double)s.heads);
    *bytes = 4 * (tokens * (channels * (3 + 2 * (in[SSD_GRAD_FORWARD + SSD_Z].rank >= 0)) + 4 * shared +
                            2 * (double)s.heads) +
                  (double)kr_shape_count(&in[SSD_GRAD_SAVED]));
}

extern const kr_op kr_op_ssd_scan_grad;

static void ssd_scan_derivative(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *din) {
    kr_value in[SSD_GRAD_INPUTS] = {[SSD_GRAD_DY] = dout[SSD_Y],
                                    [SSD_GRAD_DLAST] = dout[SSD_LAST],
                                    [SSD_GRAD_RESET] = n->in[SSD_RESET],
                                    [SSD_GRAD_SAVED] = n->out[SSD_SAVED]};
    kr_attrs t = n->attrs;
    double start = 0;
    t.i[SSD_ZERO_START] = !n->in[SSD_H0].id || (kr_value_is_splat(g, n->in[SSD_H0], &start) && start == 0);
    for (int k = SSD_X; k <= SSD_DT_BIAS; k++) in[SSD_GRAD_FORWARD + k] = n->in[k];
    if (!dout[SSD_Y].id && !dout[SSD_LAST].id) return;
    const kr_value first = kr_append(g, &kr_op_ssd_scan_grad, &t, in, SSD_GRAD_INPUTS);
    if (!first.id) return;
    for (int k = SSD_X; k <= SSD_H0; k++)
        if (n->in[k].id) din[k] = kr_sibling(g, first, k);
}

const kr_op kr_op_ssd_scan = {
    .name = "ssd_scan",
    .inputs = SSD_INPUTS,
    .outputs = SSD_OUTPUTS,
    .zero_absent = BIT(SSD_D) | BIT(SSD_DT_BIAS) | BIT(SSD_H0) | BIT(SSD_RESET),
    .keeps_in = BIT(SSD_X) | BIT(SSD_DT) | BIT(SSD_A) | BIT(SSD_B) | BIT(SSD_C) | BIT(SSD_D) | BIT(SSD_Z) |
                BIT(SSD_DT_BIAS) | BIT(SSD_RESET),
    .keeps_out = BIT(SSD_SAVED),
    .attr = {.i = {"groups", "chunk", "dt_softplus", "saved"}, .r = {"dt_min", "dt_max"}},
    .signature = &ssd_scan_signature,
    .check = check_groups,
    .grad = ssd_scan_derivative,
    .cost = ssd_scan_cost,
};

/// Reads dout [B, L, H*P]? and dlast [B, H, P, N]?, the forward inputs x to dt_bias, reset? and the saved states; gives
/// the gradients of x, dt, A, B, C, D, z, dt_bias (empty where the input is absent) and h0. zero_start: the scan had no
/// h0, so what is saved of the first chunk is zero.
const kr_op kr_op_ssd_scan_grad = {
    .name = "ssd_scan_grad",
    .inputs = SSD_GRAD_INPUTS,
    .outputs = SSD_GRAD_OUTPUTS,
    .flags = KR_OP_NO_GRADIENT,
    .zero_absent = BIT(SSD_GRAD_DY) | BIT(SSD_GRAD_DLAST) | BIT(SSD_GRAD_RESET),
    .attr = {.i = {"groups", "chunk", "dt_softplus", "saved", "zero_start"}, .r = {"dt_min", "dt_max"}},
    .signature = &ssd_scan_grad_signature,
    .check = check_groups,
    .cost = ssd_scan_grad_cost,
};

kr_value (kr_ssd_scan)(kr_graph *g, const kr_ssd_scan_args *a, kr_value *last) {
    // attributes are finite, so that they print: 0 stands for no limit
    const kr_attrs t = {
        .i = {[SSD_GROUPS] = a->groups ? a->groups : 1, [SSD_CHUNK] = a->chunk, [SSD_DT_SOFTPLUS] = a->dt_softplus},
        .r = {[SSD_DT_MIN] = a->dt_min, [SSD_DT_MAX] = isfinite(a->dt_max) ? a->dt_max : 0}};
    const kr_value in[SSD_INPUTS] = {
        [SSD_X] = a->x,   [SSD_DT] = a->dt,      [SSD_A] = a->A, [SSD_B] = a->B,
        [SSD_C] = a->C,   [SSD_D] = a->D,        [SSD_Z] = a->z, [SSD_DT_BIAS] = a->dt_bias,
        [SSD_H0] = a->h0, [SSD_RESET] = a->reset};
    const kr_value out = kr_append(g, &kr_op_ssd_scan, &t, in, SSD_INPUTS);
    if (last) *last = out.id ? kr_sibling(g, out, SSD_LAST) : KR_NONE;
    return out;
}
