/// rotary_mix, its gradient and rope against naive oracles in double.
#include "tests/check.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { K_IN, Q_IN, K_BIAS, Q_BIAS, ANG, DT, THETA0, RESET, INPUTS };

typedef struct mix {
    int64_t B, L, H, G, R, N, S;
    bool half, shared;
    const double *const *in;
} mix;

static mix mix_of(const kr_attrs *a, const kr_shape *s, const double *const *in) {
    return (mix){.B = s[K_IN].dim[0],
                 .L = s[K_IN].dim[1],
                 .H = s[K_BIAS].dim[0],
                 .G = a->i[0],
                 .R = a->i[1],
                 .N = s[K_BIAS].dim[2],
                 .S = s[ANG].dim[s[ANG].rank - 1],
                 .half = a->i[2],
                 .shared = s[ANG].rank == 3,
                 .in = in};
}

static int64_t ang_at(const mix *m, int64_t b, int64_t t, int64_t h, int64_t s) {
    return m->shared ? (b * m->L + t) * m->S + s : ((b * m->L + t) * m->H + h) * m->S + s;
}
static bool cut(const mix *m, int64_t b, int64_t t) { return m->in[RESET] && m->in[RESET][b * m->L + t] > 0; }

/// Angles [B, H, L + 1, S]; entry 0 is theta0, entry t + 1 the angle after token t. To be freed.
static double *angles_of(const mix *m) {
    double *all = malloc((size_t)(m->B * m->H * (m->L + 1) * m->S + 1) * sizeof *all);
    for (int64_t b = 0; b < m->B; b++)
        for (int64_t h = 0; h < m->H; h++)
            for (int64_t s = 0; s < m->S; s++) {
                double *theta = all + (b * m->H + h) * (m->L + 1) * m->S + s;
                *theta = m->in[THETA0] ? m->in[THETA0][(b * m->H + h) * m->S + s] : 0;
                for (int64_t t = 0; t < m->L; t++, theta += m->S)
                    theta[m->S] = (cut(m, b, t) ? 0 : *theta) +
                                  M_PI * tanh(m->in[ANG][ang_at(m, b, t, h, s)]) * m->in[DT][(b * m->L + t) * m->H + h];
            }
    return all;
}
static double angle(const mix *m, const double *all, int64_t b, int64_t t, int64_t h, int64_t s) {
    return all[((b * m->H + h) * (m->L + 1) + t + 1) * m->S + s];
}

/// The pair and place of coordinate n; -1 where it does not turn.
static int64_t pair_of(const mix *m, int64_t n, bool *second) {
    const int64_t offset = m->N / 2;
    *second = m->half ? n >= offset : n % 2;
    const int64_t j = m->half ? n - (*second ? offset : 0) : n / 2;
    return j < m->S ? j : -1;
}
static int64_t partner(const mix *m, int64_t n, bool second) {
    return m->half ? n + (second ? -m->N / 2 : m->N / 2) : n + (second ? -1 : 1);
}
static int64_t in_at(const mix *m, int64_t b, int64_t t, int64_t h, int64_t r, int64_t n) {
    return ((b * m->L + t) * m->R * m->G + r * m->G + h / (m->H / m->G)) * m->N + n;
}
static int64_t out_at(const mix *m, int64_t b, int64_t t, int64_t h, int64_t r, int64_t n) {
    return ((b * m->L + t) * m->H * m->R + h * m->R + r) * m->N + n;
}

static void forward(const kr_attrs *a, const kr_shape *shape, const double *const *in, const kr_shape *out_shape,
                    double *const *out) {
    (void)out_shape;
    const mix m = mix_of(a, shape, in);
    double *all = angles_of(&m);
    for (int64_t b = 0; b < m.B; b++)
        for (int64_t h = 0; h < m.H; h++) {
            for (int64_t t = 0; t < m.L; t++)
                for (int64_t r = 0; r < m.R; r++)
                    for (int64_t n = 0; n < m.N; n++) {
                        bool second;
                        const int64_t j = pair_of(&m, n, &second), other = partner(&m, n, second);
                        const double theta = j < 0 ? 0 : angle(&m, all, b, t, h, j);
                        for (int w = 0; w < 2; w++) {
                            const double *bias = in[K_BIAS + w] + (h * m.R + r) * m.N;
                            const double x = in[w][in_at(&m, b, t, h, r, n)] + bias[n];
                            const double y = j < 0 ? 0 : in[w][in_at(&m, b, t, h, r, other)] + bias[other];
                            out[w][out_at(&m, b, t, h, r, n)] = second ? y * sin(theta) + x * cos(theta)
                                                                       : x * cos(theta) - y * sin(theta);
                        }
                    }
            for (int64_t s = 0; s < m.S; s++) {
                const double turns = angle(&m, all, b, m.L - 1, h, s) / (2 * M_PI);
                out[2][(b * m.H + h) * m.S + s] = (turns - floor(turns)) * 2 * M_PI;
            }
        }
    free(all);
}

/// in: dk, dq, dtheta, then the forward inputs.
static void backward(const kr_attrs *a, const kr_shape *shape, const double *const *in, const kr_shape *out_shape,
                     double *const *out) {
    (void)out_shape;
    const mix m = mix_of(a, shape + 3, in + 3);
    double *all = angles_of(&m);
    for (int64_t b = 0; b < m.B; b++)
        for (int64_t h = 0; h < m.H; h++) {
            double felt[m.S + 1];
            for (int64_t s = 0; s < m.S; s++) felt[s] = in[2] ? in[2][(b * m.H + h) * m.S + s] : 0;
            for (int64_t t = m.L - 1; t >= 0; t--) {
                for (int64_t r = 0; r < m.R; r++)
                    for (int64_t n = 0; n < m.N; n++) {
                        bool second;
                        const int64_t j = pair_of(&m, n, &second), other = partner(&m, n, second);
                        const double theta = j < 0 ? 0 : angle(&m, all, b, t, h, j);
                        for (int w = 0; w < 2; w++) {
                            if (!in[w]) continue;
                            const double x = in[w][out_at(&m, b, t, h, r, n)],
                                         y = j < 0 ? 0 : in[w][out_at(&m, b, t, h, r, other)];
                            const double back = second ? x * cos(theta) - y * sin(theta)
                                                       : x * cos(theta) + y * sin(theta);
                            out[w][in_at(&m, b, t, h, r, n)] += back;
                            out[K_BIAS + w][(h * m.R + r) * m.N + n] += back;
                            if (j < 0) continue;
                            const int64_t bias = (h * m.R + r) * m.N;
                            const double u = m.in[w][in_at(&m, b, t, h, r, other)] + m.in[K_BIAS + w][bias + other];
                            felt[j] += second ? u * back : -u * back;
                        }
                    }
                for (int64_t s = 0; s < m.S; s++) {
                    const int64_t at = ang_at(&m, b, t, h, s), row = (b * m.L + t) * m.H + h;
                    const double speed = tanh(m.in[ANG][at]);
                    out[ANG][at] += felt[s] * M_PI * m.in[DT][row] * (1 - speed * speed);
                    out[DT][row] += felt[s] * M_PI * speed;
                    if (cut(&m, b, t)) felt[s] = 0;
                }
            }
            for (int64_t s = 0; s < m.S; s++) out[THETA0][(b * m.H + h) * m.S + s] = felt[s];
        }
    free(all);
}

enum { HALF = 1, SEPARATE = 2, START = 4, CUTS = 8 };

static check_case make(int64_t B, int64_t L, int64_t H, int64_t G, int64_t R, int64_t N, int64_t S, unsigned has) {
    const kr_shape none = CHECK_ABSENT;
    const check_case c = {.op = "rotary_mix",
                          .attrs = {.i = {G, R, (has & HALF) != 0}},
                          .inputs = INPUTS,
                          .shape = {KR_SHAPE(B, L, R * G * N), KR_SHAPE(B, L, R * G * N), KR_SHAPE(H, R, N),
                                    KR_SHAPE(H, R, N), has & SEPARATE ? KR_SHAPE(B, L, H, S) : KR_SHAPE(B, L, S),
                                    KR_SHAPE(B, L, H), has & START ? KR_SHAPE(B, H, S) : none,
                                    has & CUTS ? KR_SHAPE(B, L) : none},
                          .dtype = {[RESET] = KR_I32},
                          .lo = {[DT] = 0.01, [RESET] = -5, [THETA0] = 0.1},
                          .hi = {[DT] = 1.5, [RESET] = 1, [THETA0] = 6},
                          .tolerance = 2e-6,
                          .grad_tolerance = 3e-6,
                          .seed = (uint64_t)(L * 1000 + H * 100 + N)};
    return c;
}

static check_case make_backward(const check_case *f, unsigned given) {
    check_case c = {
        .op = "rotary_mix_grad", .attrs = f->attrs, .inputs = INPUTS + 3, .tolerance = 3e-6, .seed = f->seed};
    kr_shape in[CHECK_MAX], out[CHECK_MAX];
    kr_dtype in_type[CHECK_MAX], out_type[CHECK_MAX];
    check_shapes(f, in, in_type, out, out_type);
    for (int k = 0; k < 3; k++) c.shape[k] = given >> k & 1 ? out[k] : CHECK_ABSENT;
    for (int k = 0; k < INPUTS; k++) {
        c.shape[k + 3] = f->shape[k];
        c.dtype[k + 3] = f->dtype[k];
        c.lo[k + 3] = f->lo[k];
        c.hi[k + 3] = f->hi[k];
    }
    return c;
}

static void check_all(check_case c) {
    check_forward(&c, forward);
    check_gradient(&c, forward);
    for (unsigned given = 7; given >= 5; given--) {
        const check_case g = make_backward(&c, given);
        check_forward(&g, backward);
    }
}

Test(rotary_mix, each_combination) {
    for (unsigned has = 0; has < 16; has++) check_all(make(2, 7, 4, 2, 2, 10, 3, has));
}
Test(rotary_mix, pairs) {
    for (unsigned has = 0; has <= HALF; has++) {
        check_all(make(1, 5, 2, 1, 1, 8, 4, has | START));
        check_all(make(1, 5, 2, 1, 1, 34, 9, has | START));
        check_all(make(1, 5, 2, 1, 1, 64, 16, has | START));
        check_all(make(1, 3, 1, 1, 1, 75, 37, has | START));
        check_all(make(1, 3, 2, 2, 3, 5, 1, has | START));
    }
}
Test(rotary_mix, short_sequences) {
    for (int64_t length = 1; length <= 3; length++)
        for (unsigned has = 0; has < 16; has += 5) check_all(make(2, length, 2, 1, 1, 6, 2, has));
}
Test(rotary_mix, nothing) {
    check_all(make(2, 0, 2, 1, 1, 6, 2, START | CUTS));
    check_all(make(2, 0, 2, 1, 1, 6, 2, 0));
    check_all(make(0, 3, 2, 1, 1, 6, 2, START));
    check_all(make(1, 3, 2, 1, 1, 6, 0, SEPARATE));
    check_all(make(1, 3, 0, 1, 1, 6, 2, START));
    check_all(make(1, 3, 2, 1, 1, 0, 0, HALF));
}

/// Sequences in several pieces, with and without a reset in some of them.
static void check_long(check_case c) {
    check_forward(&c, forward);
    const check_case g = make_backward(&c, 7);
    check_forward(&g, backward);
}
Test(rotary_mix, pieces) {
    check_case c = make(2, 195, 2, 1, 1, 4, 1, START);
    check_long(c);
    c = make(1, 150, 3, 1, 2, 6, 2, START | CUTS | HALF | SEPARATE);
    c.lo[RESET] = -60;
    check_long(c);
    c = make(1, 128, 1, 1, 1, 2, 1, CUTS);
    c.lo[RESET] = -150;
    check_long(c);
}
Test(rotary_mix, more_pieces_than_partial_sums) {
    const check_case c = make(70, 3, 1, 1, 1, 4, 2, 0);
    check_all(c);
}

/// An angle that has turned a thousand times is as good as a fresh one.
Test(rotary_mix, long_turns) {
    check_case c = make(1, 2000, 1, 1, 1, 2, 1, 0);
    c.lo[ANG] = 2, c.hi[ANG] = 5, c.lo[DT] = 0.9, c.hi[DT] = 1.1;
    kr_shape in[CHECK_MAX], out[CHECK_MAX];
    kr_dtype in_type[CHECK_MAX], out_type[CHECK_MAX];
    const kr_op *op = check_shapes(&c, in, in_type, out, out_type);
    static float K[4000], bias[2] = {1, 0}, ang[2000], dt[2000], k[4000], q[4000], theta[1];
    double angles[2000], sum = 0, *values = angles;
    for (int t = 0; t < 2000; t++) {
        ang[t] = 2 + 3 * kr_random_uniform(7, 0, (uint64_t)t);
        dt[t] = 0.9f + 0.2f * kr_random_uniform(7, 1, (uint64_t)t);
        values[t] = sum += M_PI * tanh(ang[t]) * dt[t];
    }
    float *const data[] = {K, K, bias, bias, ang, dt, NULL, NULL}, *const result[] = {k, q, theta};
    kr_arg in_arg[INPUTS] = {{0}}, out_arg[3] = {{0}};
    for (int i = 0; i < INPUTS + 3; i++) {
        kr_arg *x = i < INPUTS ? &in_arg[i] : &out_arg[i - INPUTS];
        x->data = i < INPUTS ? data[i] : result[i - INPUTS];
        x->shape = i < INPUTS ? in[i] : out[i - INPUTS];
        int64_t step = 1;
        for (int n = x->shape.rank - 1; n >= 0; n--) {
            x->stride[n] = step;
            step *= x->shape.dim[n];
        }
    }
    for (kr_isa isa = 0; isa <= kr_isa_best(); isa++) {
        check_ok(check_call(op, &c.attrs, in_arg, INPUTS, out_arg, isa, 2, false), "rotary_mix");
        for (int t = 0; t < 2000; t++) {
            // tanh and dt round every step by up to 2e-7 of a turn of at most pi: 1e-5 rad for 2000 random errors
            cr_assert_float_eq(k[2 * t], cos(values[t]), 2e-5, "token %d: %.8f, want %.8f", t, k[2 * t],
                               cos(values[t]));
            cr_assert_float_eq(k[2 * t + 1], sin(values[t]), 2e-5);
        }
    }
}

static void refuse(check_case c, int input, kr_shape shape, const char *part) {
    c.shape[input] = shape;
    kr_shape out[CHECK_MAX];
    kr_dtype type[CHECK_MAX];
    cr_assert_neq(kr_op_find(c.op)->shape(&c.attrs, c.shape, c.dtype, c.inputs, out, type), KR_OK);
    cr_assert(strstr(kr_status_message(), part), "\"%s\" is not in \"%s\"", part, kr_status_message());
}

Test(rotary_mix, bad_shapes) {
    const check_case c = make(2, 5, 4, 2, 1, 6, 2, START | CUTS);
    refuse(c, K_IN, KR_SHAPE(5, 12), "K is [5, 12], want [batch, length, rank*groups*states]");
    refuse(c, K_IN, KR_SHAPE(2, 5, 13), "K is [2, 5, 13] and k_bias [4, 1, 6], want [2, 5, 12]");
    refuse(c, Q_IN, KR_SHAPE(2, 4, 12), "Q is f32 [2, 4, 12], want f32 [2, 5, 12]");
    refuse(c, K_BIAS, KR_SHAPE(4, 6), "k_bias is [4, 6], want [heads, rank, states]");
    refuse(c, K_BIAS, KR_SHAPE(3, 1, 6), "2 groups and rank 1 for 3 heads");
    refuse(c, ANG, KR_SHAPE(2, 5, 4), "ang is [2, 5, 4], want [2, 5, pairs] or [2, 5, 4, pairs] with at most 3 pairs");
    refuse(c, DT, KR_SHAPE(2, 5, 2), "dt is f32 [2, 5, 2], want f32 [2, 5, 4]");
    refuse(c, THETA0, KR_SHAPE(2, 4, 3), "theta0 is f32 [2, 4, 3], want f32 [2, 4, 2]");
    refuse(c, RESET, KR_SHAPE(2, 4), "reset is i32 [2, 4], want i32 [2, 5]");
}

// rope --------------------------------------------------------------------------------------------------------------

static void rope(const kr_attrs *a, const kr_shape *shape, const double *const *in, const kr_shape *out_shape,
                 double *const *out) {
    (void)out_shape;
    const int64_t B = shape[0].dim[0], L = shape[0].dim[1], H = a->i[0], D = shape[0].dim[2] / H, turning = a->i[1];
    for (int64_t row = 0; row < B * L; row++)
        for (int64_t h = 0; h < H; h++) {
            const double *x = in[0] + (row * H + h) * D, position = (in[1] ? in[1][0] : 0) + (double)(row % L);
            double *y = out[0] + (row * H + h) * D;
            for (int64_t n = 0; n < D; n++) y[n] = x[n];
            for (int64_t i = 0; i < turning / 2; i++) {
                const int64_t p = a->i[2] ? 2 * i : i, q = a->i[2] ? 2 * i + 1 : i + turning / 2;
                const double angle = (a->i[3] ? -1 : 1) * position * pow(a->r[0], -2.0 * (double)i / (double)turning);
                y[p] = x[p] * cos(angle) - x[q] * sin(angle);
                y[q] = x[p] * sin(angle) + x[q] * cos(angle);
            }
        }
}

static check_case make_rope(int64_t B, int64_t L, int64_t H, int64_t D, int64_t turning, bool interleaved,
                            bool position) {
    const check_case c = {.op = "rope",
                          .attrs = {.i = {H, turning, interleaved}, .r = {10000}},
                          .inputs = 2,
                          .shape = {KR_SHAPE(B, L, H * D), position ? KR_SHAPE(1) : CHECK_ABSENT},
                          .dtype = {[1] = KR_I32},
                          .lo = {[1] = 100},
                          .hi = {[1] = 100000},
                          .tolerance = 1e-6,
                          .grad_tolerance = 1e-6,
                          .seed = (uint64_t)(L * 100 + D)};
    return c;
}

static void check_rope(check_case c) {
    for (c.attrs.i[2] = 0; c.attrs.i[2] < 2; c.attrs.i[2]++) {
        check_forward(&c, rope);
        check_gradient(&c, rope);
    }
}

Test(rope, each_combination) {
    check_rope(make_rope(2, 5, 3, 8, 8, false, false));
    check_rope(make_rope(2, 5, 3, 8, 8, false, true));
    check_rope(make_rope(2, 5, 3, 9, 6, false, true));
    check_rope(make_rope(1, 37, 2, 7, 0, false, true));
}
Test(rope, tails) {
    static const int64_t turning[] = {2, 14, 16, 18, 32, 34, 66};
    for (int k = 0; k < 7; k++) check_rope(make_rope(1, 19, 2, 67, turning[k], false, true));
}
Test(rope, bases) {
    check_case c = make_rope(1, 40, 1, 16, 16, false, true);
    static const double bases[] = {1, 2, 1000, 500000, 1e30};
    for (int k = 0; k < 5; k++) {
        c.attrs.r[0] = bases[k];
        check_rope(c);
    }
}
Test(rope, back) {
    check_case c = make_rope(2, 5, 3, 8, 6, false, true);
    c.attrs.i[3] = 1;
    check_rope(c);
}
Test(rope, nothing) {
    check_rope(make_rope(2, 0, 3, 8, 6, false, true));
    check_rope(make_rope(0, 4, 3, 8, 6, false, true));
    check_rope(make_rope(2, 4, 3, 0, 0, false, true));
}
Test(rope, bad_shapes) {
    const check_case c = make_rope(2, 5, 3, 8, 6, false, true);
    refuse(c, 0, KR_SHAPE(5, 24), "x is f32 [5, 24], want f32 [batch, length, heads*coordinates]");
    refuse(c, 0, KR_SHAPE(2, 5, 25), "3 heads, want a divisor of the 25 columns of x");
    refuse(c, 0, KR_SHAPE(2, 5, 12), "rotary_dim is 6, want an even number up to the 4 coordinates of a head");
    refuse(c, 1, KR_SHAPE(2), "position is i32 [2], want i32 [1]");
    check_case bad = c;
    bad.attrs.r[0] = 0;
    refuse(bad, 1, KR_SHAPE(1), "base is 0, want 1 to 1e30");
}
