#include "ops/selective_scan/args.h"
#include "tests/check.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNK = 32, LANES = 16 }; // what the saved states are laid out for

static double softplus(double x) { return x > 20 ? x : log1p(exp(x)); }
static double sigmoid(double x) { return 1 / (1 + exp(-x)); }

/// The sizes and element addresses of one case.
typedef struct sizes {
    int64_t batch, length, channels, states, groups;
    const kr_shape *shape;
} sizes;

static sizes sizes_of(const kr_shape *in) {
    sizes s = {in[SELECTIVE_U].dim[0], in[SELECTIVE_U].dim[1], in[SELECTIVE_U].dim[2], in[SELECTIVE_A].dim[1], 1, in};
    if (in[SELECTIVE_B].rank == 4) s.groups = in[SELECTIVE_B].dim[2];
    if (in[SELECTIVE_C].rank == 4) s.groups = in[SELECTIVE_C].dim[2];
    return s;
}

/// Where B or C of (batch, time, channel, state) lies.
static int64_t at(const sizes *s, int which, int64_t b, int64_t t, int64_t e, int64_t n) {
    if (s->shape[which].rank == 2) return e * s->states + n;
    return ((b * s->length + t) * s->groups + e / (s->channels / s->groups)) * s->states + n;
}

/// Where the state before chunk c lies among the saved states [B, chunks, tiles, N, 16].
static int64_t saved_at(const sizes *s, int64_t b, int64_t c, int64_t e, int64_t n) {
    const int64_t width = s->channels / s->groups, tiles = (width + LANES - 1) / LANES;
    const int64_t chunks = (s->length + CHUNK - 1) / CHUNK, within = e % width;
    const int64_t tile = e / width * tiles + within / LANES;
    return (((b * chunks + c) * s->groups * tiles + tile) * s->states + n) * LANES + within % LANES;
}

static double step(const kr_attrs *a, const double *const *in, int64_t row, int64_t e, int64_t channels) {
    const double raw = in[SELECTIVE_DELTA][row * channels + e] +
                       (in[SELECTIVE_DELTA_BIAS] ? in[SELECTIVE_DELTA_BIAS][e] : 0);
    return a->i[SELECTIVE_DELTA_SOFTPLUS] ? softplus(raw) : raw;
}

static void forward(const kr_attrs *a, const kr_shape *shape, const double *const *in, const kr_shape *out_shape,
                    double *const *out) {
    (void)out_shape;
    const sizes s = sizes_of(shape);
    for (int64_t b = 0; b < s.batch; b++)
        for (int64_t e = 0; e < s.channels; e++) {
            double h[s.states + 1];
            for (int64_t n = 0; n < s.states; n++)
                h[n] = in[SELECTIVE_H0] ? in[SELECTIVE_H0][(b * s.channels + e) * s.states + n] : 0;
            for (int64_t t = 0; t < s.length; t++) {
                const int64_t row = b * s.length + t, i = row * s.channels + e;
                const double dt = step(a, in, row, e, s.channels), u = in[SELECTIVE_U][i];
                double y = in[SELECTIVE_D] ? in[SELECTIVE_D][e] * u : 0;
                for (int64_t n = 0; n < s.states; n++) {
                    if (t % CHUNK == 0) out[SELECTIVE_SAVED][saved_at(&s, b, t / CHUNK, e, n)] = h[n];
                    if (in[SELECTIVE_RESET] && in[SELECTIVE_RESET][row] > 0) h[n] = 0;
                    h[n] = exp(dt * in[SELECTIVE_A][e * s.states + n]) * h[n] +
                           dt * in[SELECTIVE_B][at(&s, SELECTIVE_B, b, t, e, n)] * u;
                    y += in[SELECTIVE_C][at(&s, SELECTIVE_C, b, t, e, n)] * h[n];
                }
                out[SELECTIVE_OUT][i] = in[SELECTIVE_Z] ? y * in[SELECTIVE_Z][i] * sigmoid(in[SELECTIVE_Z][i]) : y;
            }
            for (int64_t n = 0; n < s.states; n++) out[SELECTIVE_LAST][(b * s.channels + e) * s.states + n] = h[n];
        }
}

/// The gradient op by its recurrence (docs/book/2-mamba.md), from whatever states are in `saved`.
static void backward(const kr_attrs *a, const kr_shape *shape, const double *const *all, const kr_shape *out_shape,
                     double *const *out) {
    (void)out_shape;
    const double *dout = all[SELECTIVE_GRAD_DOUT], *dlast = all[SELECTIVE_GRAD_DLAST],
                 *reset = all[SELECTIVE_GRAD_RESET],
                 *saved = all[SELECTIVE_GRAD_SAVED], *const *in = all + SELECTIVE_GRAD_FORWARD;
    const sizes s = sizes_of(shape + SELECTIVE_GRAD_FORWARD);
    for (int64_t b = 0; b < s.batch; b++)
        for (int64_t e = 0; e < s.channels; e++)
            for (int64_t n = 0; n < s.states; n++) {
                double before[s.length + 1], after[s.length + 1];
                for (int64_t t = 0; t < s.length; t++) {
                    const int64_t row = b * s.length + t, i = row * s.channels + e;
                    const double dt = step(a, in, row, e, s.channels);
                    before[t] = t % CHUNK ? after[t - 1] : saved[saved_at(&s, b, t / CHUNK, e, n)];
                    if (reset && reset[row] > 0) before[t] = 0;
                    after[t] = exp(dt * in[SELECTIVE_A][e * s.states + n]) * before[t] +
                               dt * in[SELECTIVE_B][at(&s, SELECTIVE_B, b, t, e, n)] * in[SELECTIVE_U][i];
                }
                const int64_t state = (b * s.channels + e) * s.states + n;
                double g = dlast ? dlast[state] : 0;
                for (int64_t t = s.length - 1; t >= 0; t--) {
                    const int64_t row = b * s.length + t, i = row * s.channels + e;
                    const double dt = step(a, in, row, e, s.channels), u = in[SELECTIVE_U][i],
                                 An = in[SELECTIVE_A][e * s.states + n];
                    const double raw = in[SELECTIVE_DELTA][i] +
                                       (in[SELECTIVE_DELTA_BIAS] ? in[SELECTIVE_DELTA_BIAS][e] : 0),
                                 z = in[SELECTIVE_Z] ? in[SELECTIVE_Z][i] : 0;
                    const double slope = a->i[SELECTIVE_DELTA_SOFTPLUS] ? sigmoid(raw) : 1, decay = exp(dt * An),
                                 d = dout ? dout[i] : 0;
                    const double dy = in[SELECTIVE_Z] ? d * z * sigmoid(z) : d,
                                 Bn = in[SELECTIVE_B][at(&s, SELECTIVE_B, b, t, e, n)];
                    const double Cn = in[SELECTIVE_C][at(&s, SELECTIVE_C, b, t, e, n)];
                    const double gate_slope = sigmoid(z) * (1 + z * (1 - sigmoid(z)));
                    g += dy * Cn;
                    const double q = g * decay * before[t], ddelta = (q * An + u * g * Bn) * slope;
                    out[SELECTIVE_GRAD_DC][at(&s, SELECTIVE_C, b, t, e, n)] += dy * after[t];
                    out[SELECTIVE_GRAD_DB][at(&s, SELECTIVE_B, b, t, e, n)] += g * dt * u;
                    out[SELECTIVE_GRAD_DA][e * s.states + n] += q * dt;
                    out[SELECTIVE_GRAD_DDELTA][i] += ddelta;
                    if (in[SELECTIVE_DELTA_BIAS]) out[SELECTIVE_GRAD_DDELTA_BIAS][e] += ddelta;
                    out[SELECTIVE_GRAD_DU][i] += dt * g * Bn;
                    if (in[SELECTIVE_Z]) out[SELECTIVE_GRAD_DZ][i] += d * gate_slope * Cn * after[t];
                    g = reset && reset[row] > 0 ? 0 : decay * g;
                }
                out[SELECTIVE_GRAD_DH0][state] = g;
            }
    for (int64_t i = 0; i < s.batch * s.length * s.channels; i++) { // what does not depend on the state
        const int64_t e = i % s.channels;
        const double d = dout ? dout[i] : 0, z = in[SELECTIVE_Z] ? in[SELECTIVE_Z][i] : 0,
                     dy = in[SELECTIVE_Z] ? d * z * sigmoid(z) : d;
        if (!in[SELECTIVE_D]) continue;
        out[SELECTIVE_GRAD_DD][e] += dy * in[SELECTIVE_U][i];
        out[SELECTIVE_GRAD_DU][i] += in[SELECTIVE_D][e] * dy;
        if (in[SELECTIVE_Z])
            out[SELECTIVE_GRAD_DZ][i] += d * sigmoid(z) * (1 + z * (1 - sigmoid(z))) * in[SELECTIVE_D][e] *
                                         in[SELECTIVE_U][i];
    }
}

/// What a case has besides u, delta, A, B and C.
enum { HAS_D = 1, HAS_Z = 2, HAS_BIAS = 4, HAS_H0 = 8, HAS_RESET = 16, SOFTPLUS = 32, CONSTANT_B = 64, CONSTANT_C = 128,
       EVERYTHING = 63 };

/// groups 0: B and C are [B, L, N].
static check_case make(int64_t batch, int64_t length, int64_t channels, int64_t states, int64_t groups, unsigned has) {
    const kr_shape u = KR_SHAPE(batch, length, channels), e = KR_SHAPE(channels), none = CHECK_ABSENT;
    const kr_shape constant = KR_SHAPE(channels, states);
    const kr_shape form = groups ? KR_SHAPE(batch, length, groups, states) : KR_SHAPE(batch, length, states);
    check_case c = {.op = "selective_scan",
                    .attrs = {.i = {[SELECTIVE_DELTA_SOFTPLUS] = (has & SOFTPLUS) != 0}},
                    .inputs = SELECTIVE_INPUTS,
                    .shape = {[SELECTIVE_U] = u,
                              [SELECTIVE_DELTA] = u,
                              [SELECTIVE_A] = constant,
                              [SELECTIVE_B] = has & CONSTANT_B ? constant : form,
                              [SELECTIVE_C] = has & CONSTANT_C ? constant : form,
                              [SELECTIVE_D] = has & HAS_D ? e : none,
                              [SELECTIVE_Z] = has & HAS_Z ? u : none,
                              [SELECTIVE_DELTA_BIAS] = has & HAS_BIAS ? e : none,
                              [SELECTIVE_H0] = has & HAS_H0 ? KR_SHAPE(batch, channels, states) : none,
                              [SELECTIVE_RESET] = has & HAS_RESET ? KR_SHAPE(batch, length) : none},
                    .dtype = {[SELECTIVE_RESET] = KR_I32},
                    .lo = {[SELECTIVE_DELTA] = has & SOFTPLUS ? -3 : 0.01,
                           [SELECTIVE_A] = -2,
                           [SELECTIVE_RESET] = -6}, // a reset above 0 in one of 8
                    .hi = {[SELECTIVE_DELTA] = 1, [SELECTIVE_A] = -0.05, [SELECTIVE_RESET] = 1},
                    .no_loss = 1 << SELECTIVE_SAVED,
                    .seed = (uint64_t)(length * 1000 + channels * 10 + states)};
    c.tolerance = 2e-6;
    c.grad_tolerance = 3e-6;
    return c;
}

/// The gradient op on the same operands, with states that nobody computed: it must take them as they are.
static check_case make_backward(const check_case *f, bool with_out, bool with_last) {
    check_case c = {.op = "selective_scan_grad",
                    .attrs = f->attrs,
                    .inputs = SELECTIVE_GRAD_INPUTS,
                    .tolerance = f->tolerance * 3,
                    .seed = f->seed};
    kr_shape in[CHECK_MAX], out[CHECK_MAX];
    kr_dtype in_type[CHECK_MAX], out_type[CHECK_MAX];
    check_shapes(f, in, in_type, out, out_type);
    c.shape[SELECTIVE_GRAD_DOUT] = with_out ? out[SELECTIVE_OUT] : CHECK_ABSENT;
    c.shape[SELECTIVE_GRAD_DLAST] = with_last ? out[SELECTIVE_LAST] : CHECK_ABSENT;
    for (int k = SELECTIVE_U; k <= SELECTIVE_DELTA_BIAS; k++) {
        c.shape[SELECTIVE_GRAD_FORWARD + k] = f->shape[k];
        c.lo[SELECTIVE_GRAD_FORWARD + k] = f->lo[k];
        c.hi[SELECTIVE_GRAD_FORWARD + k] = f->hi[k];
    }
    c.shape[SELECTIVE_GRAD_RESET] = f->shape[SELECTIVE_RESET];
    c.dtype[SELECTIVE_GRAD_RESET] = KR_I32;
    c.lo[SELECTIVE_GRAD_RESET] = f->lo[SELECTIVE_RESET];
    c.hi[SELECTIVE_GRAD_RESET] = f->hi[SELECTIVE_RESET];
    c.shape[SELECTIVE_GRAD_SAVED] = out[SELECTIVE_SAVED];
    return c;
}

static void check_both(check_case c) {
    check_forward(&c, forward);
    check_gradient(&c, forward);
}

static void check_backward(check_case c) {
    for (int k = 1; k <= 3; k++) {
        const check_case g = make_backward(&c, k & 1, k & 2);
        check_forward(&g, backward);
    }
}

Test(selective_scan, all_operands) { check_both(make(2, 19, 20, 16, 0, EVERYTHING)); }
Test(selective_scan, bare) { check_both(make(2, 5, 3, 2, 0, 0)); }
Test(selective_scan, each_operand_alone) {
    for (unsigned has = 1; has <= SOFTPLUS; has *= 2) check_both(make(1, 7, 5, 3, 0, has));
    for (unsigned has = 1; has <= SOFTPLUS; has *= 2) check_both(make(1, 7, 5, 3, 0, EVERYTHING & ~has));
}
Test(selective_scan, state_sizes) {
    static const int64_t states[] = {1, 4, 7, 16, 31, 64};
    for (int k = 0; k < 6; k++) check_both(make(1, 6, 17, states[k], 0, EVERYTHING));
}
Test(selective_scan, hundred_states) { check_both(make(1, 3, 5, 100, 0, EVERYTHING)); }
Test(selective_scan, lengths_around_a_chunk) {
    static const int64_t lengths[] = {1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 71};
    for (int k = 0; k < 6; k++) check_both(make(1, lengths[k], 4, 5, 0, EVERYTHING));
}
Test(selective_scan, channel_tails) {
    static const int64_t channels[] = {1, 15, 16, 17, 33, 72};
    for (int k = 0; k < 6; k++) check_both(make(1, 4, channels[k], 3, 0, EVERYTHING));
}
Test(selective_scan, groups) {
    check_both(make(2, 37, 8, 4, 2, EVERYTHING));
    check_both(make(1, 5, 60, 2, 3, EVERYTHING)); // 20 channels a group: a whole tile and a part of one
    check_both(make(1, 5, 6, 16, 6, EVERYTHING));
    check_both(make(1, 5, 6, 2, 1, EVERYTHING));
}
Test(selective_scan, constant_maps) {
    check_both(make(2, 9, 20, 4, 0, EVERYTHING | CONSTANT_B | CONSTANT_C));
    check_both(make(2, 9, 20, 4, 0, EVERYTHING | CONSTANT_B));
    check_both(make(2, 9, 20, 4, 2, EVERYTHING | CONSTANT_C));
    check_both(make(1, 40, 3, 17, 0, CONSTANT_B | CONSTANT_C));
}
Test(selective_scan, many_units) { check_both(make(5, 3, 150, 2, 0, EVERYTHING)); }
Test(selective_scan, nothing) {
    check_both(make(2, 0, 3, 4, 0, EVERYTHING));
    check_both(make(0, 3, 3, 4, 0, EVERYTHING));
    check_both(make(2, 3, 0, 4, 0, EVERYTHING));
    check_both(make(2, 3, 5, 0, 0, EVERYTHING));
    check_both(make(2, 0, 3, 4, 0, HAS_D));
}
Test(selective_scan, extreme_steps) {
    check_case c = make(1, 20, 18, 8, 0, SOFTPLUS | HAS_H0);
    c.lo[SELECTIVE_DELTA] = -60; // the state stands still
    c.hi[SELECTIVE_DELTA] = 200; // the state is forgotten at once
    c.lo[SELECTIVE_A] = -30;
    check_forward(&c, forward);
}
Test(selective_scan_grad, operands) {
    check_backward(make(2, 19, 20, 16, 0, EVERYTHING));
    check_backward(make(2, 40, 3, 3, 0, 0));
    check_backward(make(1, 7, 35, 18, 0, HAS_Z));
}
Test(selective_scan_grad, forms) {
    check_backward(make(2, 37, 8, 4, 2, EVERYTHING));
    check_backward(make(2, 9, 20, 4, 0, EVERYTHING | CONSTANT_B | CONSTANT_C));
    check_backward(make(2, 9, 20, 4, 0, EVERYTHING | CONSTANT_B));
    check_backward(make(40, 3, 20, 4, 0, EVERYTHING)); // one unit a row: dB and dC without partial sums
}
Test(selective_scan_grad, nothing) {
    check_backward(make(2, 0, 3, 4, 0, EVERYTHING));
    check_backward(make(0, 3, 3, 4, 0, EVERYTHING));
    check_backward(make(2, 3, 0, 4, 0, EVERYTHING));
    check_backward(make(2, 3, 5, 0, 0, EVERYTHING));
}

/// Bad shapes are refused with a message that says what was seen and what is wanted.
static void refuse(check_case c, int input, kr_shape shape, const char *part) {
    cr_assert_eq(check_refused(&c, input, shape, part), KR_BAD_SHAPE);
}

Test(selective_scan, bad_shapes) {
    const check_case c = make(2, 5, 6, 4, 2, EVERYTHING);
    refuse(c, SELECTIVE_U, KR_SHAPE(5, 6), "u is [5, 6], want [B L E]");
    refuse(c, SELECTIVE_DELTA, KR_SHAPE(2, 5, 7), "delta is [2, 5, 7], want [B L E] = [2, 5, 6]");
    refuse(c, SELECTIVE_A, KR_SHAPE(5, 4), "A is [5, 4], want [E N] with E = 6 (from u)");
    check_case four = c;
    four.shape[SELECTIVE_C] = KR_SHAPE(2, 5, 4, 4);
    refuse(four, SELECTIVE_B, KR_SHAPE(2, 5, 4, 4), "B has 4 groups, want a divisor of E = 6");
    refuse(c, SELECTIVE_B, KR_SHAPE(2, 5, 3, 4),
           "C is [2, 5, 2, 4], want [B L G N] or [B L N] or [E N] with B = 2, L = 5 (from u), G = 3 (from B)");
    refuse(c, SELECTIVE_C, KR_SHAPE(2, 5, 4), "B has 2 groups and C has 1, want the same");
    refuse(c, SELECTIVE_C, KR_SHAPE(2, 5, 5), "C is [2, 5, 5], want [B L G N]");
    refuse(c, SELECTIVE_D, KR_SHAPE(5), "D is [5], want [E] = [6]");
    refuse(c, SELECTIVE_H0, KR_SHAPE(2, 6, 3), "h0 is [2, 6, 3], want [B E N] = [2, 6, 4]");
    refuse(c, SELECTIVE_RESET, KR_SHAPE(2, 6), "reset is [2, 6], want [B L] = [2, 5]");
}
