#include "ops/ssd.h"
#include "tests/check.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { K, Q, X, ADT, DT, TRAP, MIMO_X, D, H0, K0, V0, RESET, INPUTS };
enum { RANK, CHUNK };

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }

typedef struct sizes {
    int64_t batch, length, heads, rank, width, states, chunk, chunks;
} sizes;

static sizes sizes_of(const kr_attrs *a, const kr_shape *in) {
    const int64_t heads = in[ADT].dim[2], rank = a->i[RANK];
    sizes s = {in[X].dim[0], in[X].dim[1], heads, rank, heads ? in[X].dim[2] / heads : 0,
               heads ? in[K].dim[2] / heads / rank : 0};
    const kr_chunk_size m = kr_chunk_measure(s.batch, s.length, heads, 0, rank, s.width, s.states, a->i[CHUNK]);
    s.chunk = m.chunk;
    s.chunks = m.chunks;
    return s;
}

/// One head at one token.
typedef struct moment {
    int64_t row, step;             ///< element numbers: of the token, of dt
    double lambda, dt, omega, gamma, alpha; ///< omega and alpha are zero where a document starts
    bool fresh;
} moment;

static moment moment_of(const sizes *s, const double *const *in, const double *reset, int64_t b, int64_t t, int64_t h) {
    moment m = {.row = b * s->length + t};
    m.step = m.row * s->heads + h;
    m.lambda = sigmoid(in[TRAP][m.step]);
    m.dt = in[DT][m.step];
    m.fresh = reset && reset[m.row] > 0;
    m.omega = m.fresh ? 0 : (1 - m.lambda) * m.dt;
    m.gamma = m.lambda * m.dt;
    m.alpha = m.fresh ? 0 : exp(in[ADT][m.step]);
    return m;
}

static int64_t key_at(const sizes *s, int64_t row, int64_t h, int64_t r, int64_t n) {
    return ((row * s->heads + h) * s->rank + r) * s->states + n;
}
static int64_t out_at(const sizes *s, int64_t row, int64_t h, int64_t r, int64_t p) {
    return ((row * s->rank + r) * s->heads + h) * s->width + p;
}
static int64_t before_at(const sizes *s, int64_t b, int64_t h, int64_t r, int64_t n) { // of k0 [B, R, H, N]
    return ((b * s->rank + r) * s->heads + h) * s->states + n;
}
static int64_t saved_at(const sizes *s, int64_t b, int64_t c, int64_t h, int64_t p, int64_t n) {
    return (((b * s->chunks + c) * s->heads + h) * s->states + n) * s->width + p;
}
static double mimo_at(const sizes *s, const double *const *in, int64_t h, int64_t r, int64_t p) {
    return in[MIMO_X] ? in[MIMO_X][(h * s->rank + r) * s->width + p] : 1;
}

/// U_t[p, n]; t = -1: from k0 and v0.
static double outer(const sizes *s, const double *const *in, const double *k0, const double *v0, int64_t b, int64_t t,
                    int64_t h, int64_t p, int64_t n) {
    double u = 0;
    if (t < 0 && !(k0 && v0)) return 0;
    for (int64_t r = 0; r < s->rank; r++) {
        const int64_t row = b * s->length + t;
        const double k = t < 0 ? k0[before_at(s, b, h, r, n)] : in[K][key_at(s, row, h, r, n)];
        const double x = t < 0 ? v0[(b * s->heads + h) * s->width + p] : in[X][(row * s->heads + h) * s->width + p];
        u += k * x * mimo_at(s, in, h, r, p);
    }
    return u;
}

static void forward(const kr_attrs *a, const kr_shape *shape, const double *const *in, const kr_shape *out_shape,
                    double *const *out) {
    const sizes s = sizes_of(a, shape);
    for (int64_t b = 0; b < s.batch; b++)
        for (int64_t h = 0; h < s.heads; h++)
            for (int64_t p = 0; p < s.width; p++) {
                const int64_t head = b * s.heads + h;
                for (int64_t n = 0; n < s.states; n++) {
                    double S = in[H0] ? in[H0][(head * s.width + p) * s.states + n] : 0;
                    for (int64_t t = 0; t < s.length; t++) {
                        const moment m = moment_of(&s, in, in[RESET], b, t, h);
                        const double before = S + m.omega * outer(&s, in, in[K0], in[V0], b, t - 1, h, p, n);
                        if (t % s.chunk == 0) out[4][saved_at(&s, b, t / s.chunk, h, p, n)] = before;
                        S = m.alpha * before + m.gamma * outer(&s, in, 0, 0, b, t, h, p, n);
                        for (int64_t r = 0; r < s.rank; r++)
                            out[0][out_at(&s, m.row, h, r, p)] += S * in[Q][key_at(&s, m.row, h, r, n)];
                    }
                    out[1][(head * s.width + p) * s.states + n] = S;
                }
                for (int64_t t = 0; t < s.length && in[D]; t++)
                    for (int64_t r = 0; r < s.rank; r++) {
                        const int64_t row = b * s.length + t;
                        out[0][out_at(&s, row, h, r, p)] += in[D][h] * mimo_at(&s, in, h, r, p) * in[X][(row * s.heads + h) * s.width + p];
                    }
                out[3][head * s.width + p] = s.length ? in[X][((b * s.length + s.length - 1) * s.heads + h) * s.width + p]
                                             : in[V0] ? in[V0][head * s.width + p] : 0;
            }
    for (int64_t i = 0; i < kr_shape_count(&out_shape[2]); i++) {
        const int64_t n = i % s.states, h = i / s.states % s.heads, r = i / s.states / s.heads % s.rank;
        const int64_t b = i / s.states / s.heads / s.rank;
        out[2][i] = s.length ? in[K][key_at(&s, b * s.length + s.length - 1, h, r, n)] : in[K0] ? in[K0][i] : 0;
    }
}

/// The gradient op for one state of one channel, from whatever is in `saved`: what the state adds to each gradient.
/// in: dout, dh_last, dk_last, dv_last, k, q, x, adt, dt, trap, mimo_x, D, k0, v0, reset, saved.
static void backward_state(const sizes *s, const double *const *all, double *const *out, int64_t b, int64_t h, int64_t p,
                           int64_t n) {
    const double *dout = all[0], *dh_last = all[1], *const *in = all + 4, *k0 = all[12], *v0 = all[13], *reset = all[14];
    const int64_t head = b * s->heads + h;
    double before[s->length + 1], after[s->length + 1]; // the state before a token with what is pending, and after it
    for (int64_t t = 0; t < s->length; t++) {
        const moment m = moment_of(s, in, reset, b, t, h);
        before[t] = t % s->chunk ? after[t - 1] + m.omega * outer(s, in, k0, v0, b, t - 1, h, p, n)
                                 : all[15][saved_at(s, b, t / s->chunk, h, p, n)];
        after[t] = m.alpha * before[t] + m.gamma * outer(s, in, 0, 0, b, t, h, p, n);
    }
    double G = dh_last ? dh_last[(head * s->width + p) * s->states + n] : 0, omega = 0; // of the token after
    for (int64_t t = s->length - 1; t >= -1; t--) {
        const int64_t row = b * s->length + t, x = (row * s->heads + h) * s->width + p;
        const moment m = t >= 0 ? moment_of(s, in, reset, b, t, h) : (moment){0};
        if (t < 0 && !(k0 && v0 && s->length)) break;
        double g = G, dU = omega * G;
        if (t + 1 < s->length) { // domega of the token after
            const moment next = moment_of(s, in, reset, b, t + 1, h);
            const double domega = next.fresh ? 0 : G * outer(s, in, k0, v0, b, t, h, p, n);
            out[4][next.step] += (1 - next.lambda) * domega;
            out[5][next.step] -= next.dt * domega * next.lambda * (1 - next.lambda);
        }
        if (t >= 0) {
            for (int64_t r = 0; r < s->rank && dout; r++) {
                g += dout[out_at(s, row, h, r, p)] * in[Q][key_at(s, row, h, r, n)];
                out[1][key_at(s, row, h, r, n)] += dout[out_at(s, row, h, r, p)] * after[t];
            }
            const double dgamma = g * outer(s, in, 0, 0, b, t, h, p, n);
            out[3][m.step] += m.alpha * g * before[t];
            out[4][m.step] += m.lambda * dgamma;
            out[5][m.step] += m.dt * dgamma * m.lambda * (1 - m.lambda);
            dU += m.gamma * g;
        }
        for (int64_t r = 0; r < s->rank; r++) {
            const double mimo = mimo_at(s, in, h, r, p);
            const double k = t < 0 ? k0[before_at(s, b, h, r, n)] : in[K][key_at(s, row, h, r, n)];
            const double v = t < 0 ? v0[head * s->width + p] : in[X][x];
            *(t < 0 ? &out[9][before_at(s, b, h, r, n)] : &out[0][key_at(s, row, h, r, n)]) += dU * v * mimo;
            *(t < 0 ? &out[10][head * s->width + p] : &out[2][x]) += dU * k * mimo;
            if (in[MIMO_X]) out[6][(h * s->rank + r) * s->width + p] += dU * k * v;
        }
        if (t < 0) break;
        omega = m.omega;
        G = m.alpha * g;
    }
    out[8][(head * s->width + p) * s->states + n] = G;
}

static void backward(const kr_attrs *a, const kr_shape *shape, const double *const *all, const kr_shape *out_shape,
                     double *const *out) {
    const double *dout = all[0], *dk_last = all[2], *dv_last = all[3], *const *in = all + 4;
    const sizes s = sizes_of(a, shape + 4);
    for (int64_t b = 0; b < s.batch; b++)
        for (int64_t h = 0; h < s.heads; h++)
            for (int64_t p = 0; p < s.width; p++) {
                for (int64_t n = 0; n < s.states; n++) backward_state(&s, all, out, b, h, p, n);
                for (int64_t t = 0; t < s.length && dout && in[D]; t++)
                    for (int64_t r = 0; r < s.rank; r++) {
                        const int64_t row = b * s.length + t, x = (row * s.heads + h) * s.width + p;
                        const double d = dout[out_at(&s, row, h, r, p)], mimo = mimo_at(&s, in, h, r, p);
                        out[2][x] += in[D][h] * d * mimo;
                        out[7][h] += d * mimo * in[X][x];
                        if (in[MIMO_X]) out[6][(h * s.rank + r) * s.width + p] += in[D][h] * d * in[X][x];
                    }
                const int64_t head = b * s.heads + h, last = ((b * s.length + s.length - 1) * s.heads + h) * s.width + p;
                if (dv_last) *(s.length ? &out[2][last] : &out[10][head * s.width + p]) += dv_last[head * s.width + p];
            }
    for (int64_t i = 0; i < kr_shape_count(&out_shape[9]) && dk_last; i++) {
        const int64_t n = i % s.states, h = i / s.states % s.heads, r = i / s.states / s.heads % s.rank;
        const int64_t b = i / s.states / s.heads / s.rank;
        *(s.length ? &out[0][key_at(&s, b * s.length + s.length - 1, h, r, n)] : &out[9][i]) += dk_last[i];
    }
}

/// What a case has besides k, q, x, adt, dt and trap; mimo_x comes with a rank above 1.
enum { HAS_MIMO = 1, HAS_D = 2, HAS_H0 = 4, HAS_K0 = 8, HAS_V0 = 16, HAS_RESET = 32, EVERYTHING = 63 };

static check_case make(int64_t batch, int64_t length, int64_t heads, int64_t rank, int64_t width, int64_t states,
                       int64_t chunk, unsigned has) {
    const kr_shape none = CHECK_ABSENT, keys = KR_SHAPE(batch, length, heads * rank * states);
    const kr_shape steps = KR_SHAPE(batch, length, heads);
    check_case c = {.op = "trapezoid_scan", .attrs = {.i = {rank, chunk}}, .inputs = INPUTS,
        .shape = {keys, keys, KR_SHAPE(batch, length, heads * width), steps, steps, steps,
                  has & HAS_MIMO || rank > 1 ? KR_SHAPE(heads, rank, width) : none, has & HAS_D ? KR_SHAPE(heads) : none,
                  has & HAS_H0 ? KR_SHAPE(batch, heads, width, states) : none,
                  has & HAS_K0 ? KR_SHAPE(batch, rank, heads, states) : none,
                  has & HAS_V0 ? KR_SHAPE(batch, heads, width) : none, has & HAS_RESET ? KR_SHAPE(batch, length) : none},
        .dtype = {[RESET] = KR_I32},
        .lo = {[ADT] = -2, [DT] = 0.01, [TRAP] = -3, [RESET] = -8}, // a reset above 0 in one of 10
        .hi = {[ADT] = -0.01, [DT] = 1, [TRAP] = 3, [RESET] = 1},
        .no_loss = 16, .seed = (uint64_t)(length * 1000 + heads * 100 + width * 10 + states + rank)};
    c.tolerance = 3e-6;
    c.grad_tolerance = 1e-5;
    return c;
}

/// The gradient op on the same operands, with states that nobody computed: it must take them as they are.
static check_case make_backward(const check_case *f, unsigned upstream) {
    check_case c = {.op = "trapezoid_scan_grad", .attrs = f->attrs, .inputs = 16, .tolerance = 1e-5, .seed = f->seed};
    kr_shape in[CHECK_MAX], out[CHECK_MAX];
    kr_dtype in_type[CHECK_MAX], out_type[CHECK_MAX];
    check_shapes(f, in, in_type, out, out_type);
    for (int k = 0; k < 4; k++) c.shape[k] = upstream >> k & 1 ? out[k] : CHECK_ABSENT;
    for (int k = K; k <= RESET; k++) {
        if (k == H0) continue;
        const int to = k < H0 ? k + 4 : k + 3;
        c.shape[to] = f->shape[k];
        c.dtype[to] = f->dtype[k];
        c.lo[to] = f->lo[k];
        c.hi[to] = f->hi[k];
    }
    c.shape[15] = out[4];
    return c;
}

static void check_both(check_case c) {
    check_forward(&c, forward);
    check_gradient(&c, forward);
}

static void check_backward(check_case c) {
    static const unsigned upstream[] = {15, 1, 14};
    for (int k = 0; k < 3; k++) {
        const check_case g = make_backward(&c, upstream[k]);
        check_forward(&g, backward);
    }
}

Test(trapezoid_scan, all_operands) { check_both(make(2, 19, 2, 1, 5, 16, 8, EVERYTHING)); }
Test(trapezoid_scan, bare) { check_both(make(2, 5, 3, 1, 2, 3, 0, 0)); }
Test(trapezoid_scan, each_operand_alone) {
    for (unsigned has = 1; has <= HAS_RESET; has *= 2) check_both(make(1, 7, 2, 1, 3, 4, 3, has));
    for (unsigned has = 1; has <= HAS_RESET; has *= 2) check_both(make(1, 7, 2, 2, 3, 4, 3, EVERYTHING & ~has));
}
Test(trapezoid_scan, ranks) {
    for (int64_t rank = 2; rank <= 5; rank++) check_both(make(2, 9, 2, rank, 3, 4, 4, EVERYTHING));
    check_both(make(1, 7, 1, 8, 2, 2, 5, EVERYTHING));
    check_both(make(1, 5, 1, 17, 2, 2, 3, EVERYTHING));
}
Test(trapezoid_scan, lengths_around_a_chunk) {
    static const int64_t lengths[] = {1, 7, 8, 9, 16, 29};
    for (int k = 0; k < 6; k++) check_both(make(1, lengths[k], 2, 1, 3, 5, 8, EVERYTHING));
    for (int k = 0; k < 5; k++) check_both(make(1, lengths[k], 1, 3, 2, 2, 8, EVERYTHING));
}
Test(trapezoid_scan, lengths_around_a_long_chunk) {
    static const int64_t lengths[] = {31, 32, 33, 67};
    for (int k = 0; k < 4; k++) check_both(make(1, lengths[k], 1, 1, 2, 2, 0, EVERYTHING & ~HAS_RESET));
    check_both(make(1, 67, 1, 1, 2, 2, 33, EVERYTHING));
    check_both(make(1, 33, 1, 4, 2, 2, 16, EVERYTHING));
}
Test(trapezoid_scan, head_widths) {
    static const int64_t widths[] = {1, 4, 15, 16, 17, 33};
    for (int k = 0; k < 6; k++) check_both(make(1, 6, 2, 2, widths[k], 3, 4, EVERYTHING));
}
Test(trapezoid_scan, state_sizes) {
    static const int64_t states[] = {1, 4, 15, 16, 31, 48};
    for (int k = 0; k < 6; k++) check_both(make(1, 6, 1, 2, 3, states[k], 4, EVERYTHING));
}
Test(trapezoid_scan, many_units) { check_both(make(23, 3, 3, 1, 2, 2, 2, EVERYTHING)); }
Test(trapezoid_scan, published_sizes) {
    check_case c = make(1, 130, 2, 1, 64, 128, 0, EVERYTHING & ~HAS_RESET);
    c.tolerance = 1e-5;
    check_forward(&c, forward);
    c = make(1, 40, 2, 4, 64, 128, 0, EVERYTHING);
    c.tolerance = 1e-5;
    check_forward(&c, forward);
}
Test(trapezoid_scan, one_token) {
    check_both(make(1, 1, 2, 1, 20, 18, 0, EVERYTHING));
    check_both(make(2, 1, 2, 3, 17, 5, 0, EVERYTHING & ~HAS_RESET));
    check_both(make(1, 1, 2, 18, 3, 5, 0, HAS_K0 | HAS_V0));
    check_both(make(1, 1, 2, 2, 3, 5, 0, 0));
}
Test(trapezoid_scan, nothing) {
    check_both(make(2, 0, 3, 2, 4, 5, 0, EVERYTHING));
    check_both(make(2, 0, 3, 1, 4, 5, 0, 0));
    check_both(make(0, 3, 3, 2, 4, 5, 0, EVERYTHING));
    check_both(make(2, 3, 0, 2, 0, 0, 0, EVERYTHING));
    check_both(make(2, 3, 2, 2, 0, 5, 0, EVERYTHING));
    check_both(make(2, 3, 2, 2, 4, 0, 0, EVERYTHING));
}
Test(trapezoid_scan, extreme_steps) {
    check_case c = make(1, 40, 2, 2, 4, 8, 8, HAS_H0 | HAS_K0 | HAS_V0);
    c.lo[ADT] = -300;
    c.hi[DT] = 20;
    c.lo[TRAP] = -60;
    c.hi[TRAP] = 60;
    check_forward(&c, forward);
}
Test(trapezoid_scan, every_token_starts_anew) {
    check_case c = make(2, 9, 2, 2, 3, 4, 4, EVERYTHING);
    c.lo[RESET] = c.hi[RESET] = 1;
    check_both(c);
}
Test(trapezoid_scan_grad, operands) {
    check_backward(make(2, 19, 2, 1, 5, 16, 8, EVERYTHING));
    check_backward(make(2, 40, 3, 1, 3, 4, 0, 0));
    check_backward(make(1, 9, 2, 3, 18, 17, 4, EVERYTHING));
}
Test(trapezoid_scan_grad, units) { check_backward(make(23, 5, 3, 2, 3, 4, 2, EVERYTHING)); }
Test(trapezoid_scan_grad, published_sizes) {
    check_backward(make(1, 70, 1, 1, 64, 128, 0, EVERYTHING & ~HAS_RESET));
    check_backward(make(1, 20, 1, 4, 64, 64, 0, EVERYTHING));
}
Test(trapezoid_scan_grad, nothing) {
    check_backward(make(2, 0, 3, 2, 4, 5, 0, EVERYTHING));
    check_backward(make(0, 3, 3, 2, 4, 5, 0, EVERYTHING));
    check_backward(make(2, 3, 0, 2, 0, 0, 0, EVERYTHING));
    check_backward(make(2, 3, 2, 2, 0, 5, 0, EVERYTHING));
    check_backward(make(2, 3, 2, 2, 4, 0, 0, EVERYTHING));
}

/// Bad shapes are refused with a message that says what was seen and what is wanted.
static void refuse(check_case c, int input, kr_shape shape, const char *part) {
    c.shape[input] = shape;
    kr_shape out[CHECK_MAX];
    kr_dtype type[CHECK_MAX];
    cr_assert_eq(kr_op_find(c.op)->shape(&c.attrs, c.shape, c.dtype, c.inputs, out, type), KR_BAD_SHAPE);
    cr_assert(strstr(kr_status_message(), part), "\"%s\" is not in \"%s\"", part, kr_status_message());
}

Test(trapezoid_scan, bad_shapes) {
    check_case c = make(2, 5, 3, 2, 4, 6, 0, EVERYTHING);
    refuse(c, X, KR_SHAPE(5, 12), "x is [5, 12], want [batch, length, channels]");
    refuse(c, X, KR_SHAPE(2, 5, 13), "adt has 3 heads, want a divisor of 13 channels");
    refuse(c, K, KR_SHAPE(2, 5, 35), "k has 35 columns, want a multiple of 3 heads x rank 2");
    refuse(c, Q, KR_SHAPE(2, 5, 35), "q is f32 [2, 5, 35], want f32 [2, 5, 36]");
    refuse(c, DT, KR_SHAPE(2, 5, 7), "dt is f32 [2, 5, 7], want f32 [2, 5, 3]");
    refuse(c, MIMO_X, KR_SHAPE(3, 4, 2), "mimo_x is f32 [3, 4, 2], want f32 [3, 2, 4]");
    refuse(c, MIMO_X, CHECK_ABSENT, "rank 2 without mimo_x");
    refuse(c, D, KR_SHAPE(5), "D is f32 [5], want f32 [3]");
    refuse(c, H0, KR_SHAPE(2, 3, 6, 4), "h0 is f32 [2, 3, 6, 4], want f32 [2, 3, 4, 6]");
    refuse(c, K0, KR_SHAPE(2, 3, 2, 6), "k0 is f32 [2, 3, 2, 6], want f32 [2, 2, 3, 6]");
    refuse(c, V0, KR_SHAPE(2, 3, 6), "v0 is f32 [2, 3, 6], want f32 [2, 3, 4]");
    refuse(c, RESET, KR_SHAPE(2, 6), "reset is i32 [2, 6], want i32 [2, 5]");
    c.attrs.i[RANK] = 0;
    refuse(c, X, c.shape[X], "rank is 0, want at least 1");
}
