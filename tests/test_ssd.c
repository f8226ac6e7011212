#include "ops/ssd/args.h"
#include "ops/ssd/work.h"
#include "tests/check.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static double softplus(double x) { return x > 20 ? x : log1p(exp(x)); }
static double sigmoid(double x) { return 1 / (1 + exp(-x)); }

typedef struct sizes {
    int64_t batch, length, heads, width, states, groups, chunk, chunks;
    bool D_per_channel;
} sizes;

static sizes sizes_of(const kr_attrs *a, const kr_shape *in) {
    const int64_t heads = in[SSD_A].dim[0], groups = a->i[SSD_GROUPS];
    sizes s = {in[SSD_X].dim[0],
               in[SSD_X].dim[1],
               heads,
               heads ? in[SSD_X].dim[2] / heads : 0,
               in[SSD_B].dim[2] / groups,
               groups};
    const kr_chunk_size m = kr_chunk_measure(s.batch, s.length, heads, groups, 1, s.width, s.states, a->i[SSD_CHUNK]);
    s.chunk = m.chunk;
    s.chunks = m.chunks;
    s.D_per_channel = in[SSD_D].rank >= 0 && in[SSD_D].dim[0] != heads;
    return s;
}

/// A head at a token: what the recurrence needs of it.
typedef struct moment {
    int64_t row, x, dt, b; ///< element numbers: of the token, of x and z at p = 0, of dt, of B and C at n = 0
    double raw, d, slope, decay;
    bool fresh;
} moment;

static moment moment_of(const kr_attrs *a, const sizes *s, const double *const *in, const double *reset, int64_t b,
                        int64_t t, int64_t h) {
    moment m = {.row = b * s->length + t};
    m.dt = m.row * s->heads + h;
    m.x = m.dt * s->width;
    m.b = (m.row * s->groups + h / (s->heads / s->groups)) * s->states;
    m.raw = in[SSD_DT][m.dt] + (in[SSD_DT_BIAS] ? in[SSD_DT_BIAS][h] : 0);
    m.d = a->i[SSD_DT_SOFTPLUS] ? softplus(m.raw) : m.raw;
    m.slope = a->i[SSD_DT_SOFTPLUS] ? sigmoid(m.raw) : 1;
    if (a->r[SSD_DT_MIN] > 0 && m.d < a->r[SSD_DT_MIN]) m.d = a->r[SSD_DT_MIN], m.slope = 0;
    if (a->r[SSD_DT_MAX] > 0 && m.d > a->r[SSD_DT_MAX]) m.d = a->r[SSD_DT_MAX], m.slope = 0;
    m.fresh = reset && reset[m.row] > 0;
    m.decay = m.fresh ? 0 : exp(m.d * in[SSD_A][h]);
    return m;
}

static double skip_of(const sizes *s, const double *const *in, int64_t h, int64_t p) {
    return !in[SSD_D] ? 0 : s->D_per_channel ? in[SSD_D][h * s->width + p] : in[SSD_D][h];
}

/// Element number of a saved state [B, chunks, H, N, P].
static int64_t saved_at(const sizes *s, int64_t b, int64_t c, int64_t h, int64_t p, int64_t n) {
    return (((b * s->chunks + c) * s->heads + h) * s->states + n) * s->width + p;
}

static void forward(const kr_attrs *a, const kr_shape *shape, const double *const *in, const kr_shape *out_shape,
                    double *const *out) {
    (void)out_shape;
    const sizes s = sizes_of(a, shape);
    for (int64_t b = 0; b < s.batch; b++)
        for (int64_t h = 0; h < s.heads; h++)
            for (int64_t p = 0; p < s.width; p++) {
                const int64_t first = ((b * s.heads + h) * s.width + p) * s.states;
                double S[s.states + 1];
                for (int64_t n = 0; n < s.states; n++) S[n] = in[SSD_H0] ? in[SSD_H0][first + n] : 0;
                for (int64_t t = 0; t < s.length; t++) {
                    const moment m = moment_of(a, &s, in, in[SSD_RESET], b, t, h);
                    const double x = in[SSD_X][m.x + p];
                    double y = skip_of(&s, in, h, p) * x;
                    for (int64_t n = 0; n < s.states; n++) {
                        if (t % s.chunk == 0) out[SSD_SAVED][saved_at(&s, b, t / s.chunk, h, p, n)] = S[n];
                        S[n] = m.decay * S[n] + m.d * x * in[SSD_B][m.b + n];
                        y += S[n] * in[SSD_C][m.b + n];
                    }
                    out[SSD_Y][m.x + p] = in[SSD_Z] ? y * in[SSD_Z][m.x + p] * sigmoid(in[SSD_Z][m.x + p]) : y;
                }
                for (int64_t n = 0; n < s.states; n++) out[SSD_LAST][first + n] = S[n];
            }
}

/// The gradient op by its recurrence (docs/book/3-mamba-2.md), from whatever states are in `saved`.
static void backward(const kr_attrs *a, const kr_shape *shape, const double *const *all, const kr_shape *out_shape,
                     double *const *out) {
    (void)out_shape;
    const double *dout = all[SSD_GRAD_DY], *dlast = all[SSD_GRAD_DLAST], *reset = all[SSD_GRAD_RESET],
                 *saved = all[SSD_GRAD_SAVED], *const *in = all + SSD_GRAD_FORWARD;
    const sizes s = sizes_of(a, shape + SSD_GRAD_FORWARD);
    const int64_t step = s.states;
    double *S = calloc((size_t)((s.length + 1) * s.states + 1), sizeof *S); // before each token
    double *T = calloc((size_t)((s.length + 1) * s.states + 1), sizeof *T); // after it
    for (int64_t b = 0; b < s.batch; b++)
        for (int64_t h = 0; h < s.heads; h++)
            for (int64_t p = 0; p < s.width; p++) {
                double g[s.states + 1];
                const int64_t first = ((b * s.heads + h) * s.width + p) * s.states;
                for (int64_t t = 0; t < s.length; t++) {
                    const moment m = moment_of(a, &s, in, reset, b, t, h);
                    for (int64_t n = 0; n < s.states; n++) {
                        S[t * step + n] = t % s.chunk ? T[(t - 1) * step + n]
                                                      : saved[saved_at(&s, b, t / s.chunk, h, p, n)];
                        T[t * step + n] = m.decay * S[t * step + n] + m.d * in[SSD_X][m.x + p] * in[SSD_B][m.b + n];
                    }
                }
                for (int64_t n = 0; n < s.states; n++) g[n] = dlast ? dlast[first + n] : 0;
                for (int64_t t = s.length - 1; t >= 0; t--) {
                    const moment m = moment_of(a, &s, in, reset, b, t, h);
                    const double x = in[SSD_X][m.x + p], z = in[SSD_Z] ? in[SSD_Z][m.x + p] : 0,
                                 d = dout ? dout[m.x + p] : 0;
                    const double skip = skip_of(&s, in, h, p), dy = in[SSD_Z] ? d * z * sigmoid(z) : d;
                    double y = skip * x, da = 0, dd = 0, dx = skip * dy;
                    for (int64_t n = 0; n < s.states; n++) {
                        g[n] += dy * in[SSD_C][m.b + n];
                        y += T[t * step + n] * in[SSD_C][m.b + n];
                        out[SSD_GRAD_DC][m.b + n] += T[t * step + n] * dy;
                        out[SSD_GRAD_DB][m.b + n] += m.d * g[n] * x;
                        dx += m.d * g[n] * in[SSD_B][m.b + n];
                        dd += x * g[n] * in[SSD_B][m.b + n];
                        da += m.decay * g[n] * S[t * step + n];
                        g[n] *= m.decay;
                    }
                    out[SSD_GRAD_DX][m.x + p] = dx;
                    out[SSD_GRAD_DDT][m.dt] += (dd + in[SSD_A][h] * da) * m.slope;
                    out[SSD_GRAD_DA][h] += da * m.d;
                    if (in[SSD_D]) out[SSD_GRAD_DD][s.D_per_channel ? h * s.width + p : h] += dy * x;
                    if (in[SSD_Z]) out[SSD_GRAD_DZ][m.x + p] = d * y * sigmoid(z) * (1 + z * (1 - sigmoid(z)));
                    if (in[SSD_DT_BIAS]) out[SSD_GRAD_DDT_BIAS][h] += (dd + in[SSD_A][h] * da) * m.slope;
                }
                for (int64_t n = 0; n < s.states; n++) out[SSD_GRAD_DH0][first + n] = g[n];
            }
    free(S);
    free(T);
}

/// What a case has besides x, dt, A, B and C.
enum { HAS_D = 1, HAS_Z = 2, HAS_BIAS = 4, HAS_H0 = 8, HAS_RESET = 16, HAS_SOFTPLUS = 32, EVERYTHING = 63, WIDE_D = 64,
       CLAMP = 128 };

static check_case make(int64_t batch, int64_t length, int64_t heads, int64_t width, int64_t states, int64_t groups,
                       int64_t chunk, unsigned has) {
    const kr_shape x = KR_SHAPE(batch, length, heads * width), h = KR_SHAPE(heads), none = CHECK_ABSENT;
    const kr_shape shared = KR_SHAPE(batch, length, groups * states), wide = KR_SHAPE(heads * width);
    check_case c = {
        .op = "ssd_scan",
        .attrs = {.i = {[SSD_GROUPS] = groups, [SSD_CHUNK] = chunk, [SSD_DT_SOFTPLUS] = (has & HAS_SOFTPLUS) != 0},
                  .r = {[SSD_DT_MIN] = has & CLAMP ? 0.2 : 0, [SSD_DT_MAX] = has & CLAMP ? 0.6 : 0}},
        .inputs = SSD_INPUTS,
        .shape = {[SSD_X] = x,
                  [SSD_DT] = KR_SHAPE(batch, length, heads),
                  [SSD_A] = h,
                  [SSD_B] = shared,
                  [SSD_C] = shared,
                  [SSD_D] = has & WIDE_D  ? wide
                            : has & HAS_D ? h
                                          : none,
                  [SSD_Z] = has & HAS_Z ? x : none,
                  [SSD_DT_BIAS] = has & HAS_BIAS ? h : none,
                  [SSD_H0] = has & HAS_H0 ? KR_SHAPE(batch, heads, width, states) : none,
                  [SSD_RESET] = has & HAS_RESET ? KR_SHAPE(batch, length) : none},
        .dtype = {[SSD_RESET] = KR_I32},
        .lo =
            {[SSD_DT] = has & HAS_SOFTPLUS ? -3 : 0.01, [SSD_A] = -2, [SSD_RESET] = -8}, // a reset above 0 in one of 10
        .hi = {[SSD_DT] = 1, [SSD_A] = -0.05, [SSD_RESET] = 1},
        .no_loss = 1 << SSD_SAVED,
        .seed = (uint64_t)(length * 1000 + heads * 100 + width * 10 + states)};
    c.tolerance = 3e-6;
    c.grad_tolerance = 1e-5;
    return c;
}

/// The gradient op on the same operands, with states that nobody computed: it must take them as they are.
static check_case make_backward(const check_case *f, bool with_out, bool with_last) {
    check_case c = {
        .op = "ssd_scan_grad", .attrs = f->attrs, .inputs = SSD_GRAD_INPUTS, .tolerance = 1e-5, .seed = f->seed};
    kr_shape in[CHECK_MAX], out[CHECK_MAX];
    kr_dtype in_type[CHECK_MAX], out_type[CHECK_MAX];
    check_shapes(f, in, in_type, out, out_type);
    c.shape[SSD_GRAD_DY] = with_out ? out[SSD_Y] : CHECK_ABSENT;
    c.shape[SSD_GRAD_DLAST] = with_last ? out[SSD_LAST] : CHECK_ABSENT;
    for (int k = SSD_X; k <= SSD_DT_BIAS; k++) {
        c.shape[SSD_GRAD_FORWARD + k] = f->shape[k];
        c.lo[SSD_GRAD_FORWARD + k] = f->lo[k];
        c.hi[SSD_GRAD_FORWARD + k] = f->hi[k];
    }
    c.shape[SSD_GRAD_RESET] = f->shape[SSD_RESET];
    c.dtype[SSD_GRAD_RESET] = KR_I32;
    c.lo[SSD_GRAD_RESET] = f->lo[SSD_RESET];
    c.hi[SSD_GRAD_RESET] = f->hi[SSD_RESET];
    c.shape[SSD_GRAD_SAVED] = out[SSD_SAVED];
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

Test(ssd_scan, all_operands) { check_both(make(2, 19, 4, 5, 16, 2, 8, EVERYTHING)); }
Test(ssd_scan, bare) { check_both(make(2, 5, 3, 2, 3, 1, 0, 0)); }
Test(ssd_scan, each_operand_alone) {
    for (unsigned has = 1; has <= HAS_SOFTPLUS; has *= 2) check_both(make(1, 7, 2, 3, 4, 1, 3, has));
    for (unsigned has = 1; has <= HAS_SOFTPLUS; has *= 2) check_both(make(1, 7, 2, 3, 4, 1, 3, EVERYTHING & ~has));
}
Test(ssd_scan, skip_per_channel) { check_both(make(2, 9, 3, 18, 4, 1, 4, EVERYTHING | WIDE_D)); }
Test(ssd_scan, limits_of_dt) {
    check_both(make(1, 24, 3, 4, 8, 1, 8, HAS_SOFTPLUS | CLAMP | HAS_BIAS));
    check_both(make(1, 9, 3, 4, 8, 1, 8, CLAMP));
}
Test(ssd_scan, lengths_around_a_chunk) {
    static const int64_t lengths[] = {1, 7, 8, 9, 16, 29};
    for (int k = 0; k < 6; k++) check_both(make(1, lengths[k], 2, 3, 5, 1, 8, EVERYTHING));
}
Test(ssd_scan, lengths_around_a_long_chunk) {
    static const int64_t lengths[] = {31, 32, 33, 67};
    for (int k = 0; k < 4; k++) check_both(make(1, lengths[k], 1, 2, 3, 1, 0, EVERYTHING & ~HAS_RESET));
    check_both(make(1, 67, 1, 2, 3, 1, 33, EVERYTHING));
}
Test(ssd_scan, head_widths) {
    static const int64_t widths[] = {1, 4, 15, 16, 17, 33};
    for (int k = 0; k < 6; k++) check_both(make(1, 6, 2, widths[k], 3, 1, 4, EVERYTHING));
}
Test(ssd_scan, state_sizes) {
    static const int64_t states[] = {1, 4, 15, 16, 31, 64};
    for (int k = 0; k < 6; k++) check_both(make(1, 6, 2, 3, states[k], 1, 4, EVERYTHING));
}
Test(ssd_scan, groups) {
    check_both(make(2, 11, 6, 3, 4, 3, 4, EVERYTHING));
    check_both(make(1, 5, 6, 2, 3, 6, 4, EVERYTHING));
    check_both(make(1, 5, 21, 2, 3, 1, 4, EVERYTHING));
}
Test(ssd_scan, many_units) { check_both(make(40, 3, 4, 2, 2, 2, 2, EVERYTHING)); }
Test(ssd_scan, published_sizes) {
    check_case c = make(1, 130, 3, 64, 128, 1, 0, EVERYTHING & ~HAS_RESET);
    c.tolerance = 1e-5;
    check_forward(&c, forward);
    c = make(2, 70, 5, 16, 64, 1, 0, EVERYTHING);
    check_forward(&c, forward);
    c = make(1, 200, 1, 40, 256, 1, 300, HAS_SOFTPLUS);
    check_forward(&c, forward);
}
Test(ssd_scan, one_token) {
    check_both(make(1, 1, 4, 20, 18, 2, 0, EVERYTHING));
    check_both(make(3, 1, 2, 33, 40, 1, 0, HAS_SOFTPLUS | HAS_H0));
    check_both(make(1, 1, 2, 3, 5, 1, 0, 0));
}
Test(ssd_scan, nothing) {
    check_both(make(2, 0, 3, 4, 5, 1, 0, EVERYTHING));
    check_both(make(0, 3, 3, 4, 5, 1, 0, EVERYTHING));
    check_both(make(2, 3, 0, 0, 5, 1, 0, EVERYTHING));
    check_both(make(2, 3, 2, 0, 5, 1, 0, EVERYTHING));
    check_both(make(2, 3, 2, 4, 0, 1, 0, EVERYTHING));
    check_both(make(2, 0, 3, 4, 5, 1, 0, HAS_D));
}
Test(ssd_scan, extreme_steps) {
    check_case c = make(1, 40, 3, 4, 8, 1, 16, HAS_SOFTPLUS | HAS_H0);
    c.lo[SSD_DT] = -60; // the state stands still
    c.hi[SSD_DT] = 200; // the state is forgotten at once
    c.lo[SSD_A] = -30;
    check_forward(&c, forward);
}
Test(ssd_scan, every_token_starts_anew) {
    check_case c = make(2, 9, 2, 3, 4, 1, 4, EVERYTHING);
    c.lo[SSD_RESET] = c.hi[SSD_RESET] = 1;
    check_both(c);
}
Test(ssd_scan_grad, operands) {
    check_backward(make(2, 19, 4, 5, 16, 2, 8, EVERYTHING));
    check_backward(make(2, 40, 3, 3, 4, 1, 0, 0));
    check_backward(make(1, 7, 2, 35, 18, 1, 4, HAS_Z | WIDE_D));
}
Test(ssd_scan_grad, units) {
    check_backward(make(2, 9, 21, 3, 4, 1, 4, EVERYTHING));  // a group of more heads than a bundle has
    check_backward(make(40, 5, 4, 3, 4, 2, 2, EVERYTHING)); // more units than slots
}
/// Where batch rows and groups are few, time is cut into segments, whose adjoint states meet in order.
Test(ssd_scan_grad, segments) {
    const check_case c = make(1, 37, 3, 4, 5, 1, 2, EVERYTHING); // 19 chunks
    const kr_chunk_size s = kr_chunk_measure(1, 37, 3, 1, 1, 4, 5, 2);
    cr_assert_eq(kr_ssd_cut_of(&s).segments, 4);
    check_both(c);
    check_backward(c);
    check_backward(make(1, 37, 18, 16, 8, 1, 2, HAS_D | HAS_SOFTPLUS)); // states used in place, two bundles
    check_backward(make(2, 65, 4, 3, 16, 2, 4, EVERYTHING & ~HAS_RESET)); // 17 chunks: two segments of 9 and 8
}
Test(ssd_scan_grad, published_sizes) {
    check_backward(make(1, 130, 2, 64, 128, 1, 0, EVERYTHING & ~HAS_RESET));
    check_backward(make(1, 70, 5, 16, 64, 1, 0, EVERYTHING));
}
Test(ssd_scan_grad, nothing) {
    check_backward(make(2, 0, 3, 4, 5, 1, 0, EVERYTHING));
    check_backward(make(0, 3, 3, 4, 5, 1, 0, EVERYTHING));
    check_backward(make(2, 3, 0, 0, 5, 1, 0, EVERYTHING));
    check_backward(make(2, 3, 2, 0, 5, 1, 0, EVERYTHING));
    check_backward(make(2, 3, 2, 4, 0, 1, 0, EVERYTHING));
}

/// Bad shapes are refused with a message that says what was seen and what is wanted.
Test(ssd_scan, bad_shapes) {
    check_case c = make(2, 5, 6, 4, 3, 2, 0, EVERYTHING);
    check_refused(&c, SSD_X, KR_SHAPE(5, 24), "x is [5, 24], want [B L H*P]");
    check_refused(&c, SSD_A, KR_SHAPE(7), "A is [7], want [H] = [6] with H = 6 (from dt)");
    check_refused(&c, SSD_DT, KR_SHAPE(2, 5, 7), "x is [2, 5, 24], want [B L H*P] with H = 7 (from dt)");
    check_refused(&c, SSD_B, KR_SHAPE(2, 5, 7), "B is [2, 5, 7], want [B L groups*N] with B = 2, L = 5 (from x), groups = 2");
    check_refused(&c, SSD_C, KR_SHAPE(2, 5, 8),
           "C is [2, 5, 8], want [B L groups*N] = [2, 5, 6] with B = 2, L = 5 (from x), groups = 2, N = 3 (from B)");
    check_refused(&c, SSD_D, KR_SHAPE(5), "D is [5], want [H] or [H*P] with H = 6 (from dt), P = 4 (from x)");
    check_refused(&c, SSD_Z, KR_SHAPE(2, 5, 23), "z is [2, 5, 23], want [B L H*P] = [2, 5, 24]");
    check_refused(&c, SSD_DT_BIAS, KR_SHAPE(5), "dt_bias is [5], want [H] = [6]");
    check_refused(&c, SSD_H0, KR_SHAPE(2, 6, 3, 4), "h0 is [2, 6, 3, 4], want [B H P N] = [2, 6, 4, 3]");
    check_refused(&c, SSD_RESET, KR_SHAPE(2, 6), "reset is [2, 6], want [B L] = [2, 5]");
    c.attrs.i[SSD_GROUPS] = 4;
    c.shape[SSD_B] = c.shape[SSD_C] = KR_SHAPE(2, 5, 12);
    check_refused(&c, SSD_X, c.shape[SSD_X], "4 groups, want a divisor of 6 heads");
    c.attrs.i[SSD_GROUPS] = 0;
    check_refused(&c, SSD_X, c.shape[SSD_X], "groups is 0, want at least 1");
    c.attrs.i[SSD_GROUPS] = 2;
    c.attrs.i[SSD_SAVED_SIZE] = -1;
    check_refused(&c, SSD_B, KR_SHAPE(2, 5, 6), "saved is -1, want at least 0");
}
