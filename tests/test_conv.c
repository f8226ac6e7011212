#include "ops/conv/args.h"
#include "tests/check.h"

#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

/// One case, as the oracles see it: in is x, weight, bias, state, reset.
typedef struct conv {
    int64_t batch, length, channels, taps;
    const double *const *in;
    bool silu;
} conv;

static conv conv_of(const kr_attrs *t, const kr_shape *shape, const double *const *in) {
    return (conv){shape[CONV_X].dim[0], shape[CONV_X].dim[1], shape[CONV_X].dim[2], shape[CONV_WEIGHT].dim[1], in,
                  t->i[CONV_SILU] != 0};
}

/// Where the input at time t >= -(taps - 1) lies: in x or the state. Null when there is none, or when a reset lies
/// after it, up to time `now`.
static const double *source(const conv *v, int64_t b, int64_t t, int64_t now, int64_t c) {
    for (int64_t s = t < 0 ? 0 : t + 1; s <= now && v->in[CONV_RESET]; s++)
        if (v->in[CONV_RESET][b * v->length + s] > 0) return NULL;
    if (t >= 0) return &v->in[CONV_X][(b * v->length + t) * v->channels + c];
    return v->in[CONV_STATE] ? &v->in[CONV_STATE][(b * (v->taps - 1) + v->taps - 1 + t) * v->channels + c] : NULL;
}

static double before_activation(const conv *v, int64_t b, int64_t t, int64_t c) {
    double p = v->in[CONV_BIAS] ? v->in[CONV_BIAS][c] : 0;
    for (int64_t j = 0; j < v->taps; j++) {
        const double *x = source(v, b, t - (v->taps - 1) + j, t, c);
        if (x) p += v->in[CONV_WEIGHT][c * v->taps + j] * *x;
    }
    return p;
}

static void forward(const kr_attrs *a, const kr_shape *shape, const double *const *in, const kr_shape *out_shape,
                    double *const *out) {
    (void)out_shape;
    const conv v = conv_of(a, shape, in);
    for (int64_t b = 0; b < v.batch; b++)
        for (int64_t c = 0; c < v.channels; c++) {
            for (int64_t t = 0; t < v.length; t++) {
                const double p = before_activation(&v, b, t, c);
                out[CONV_Y][(b * v.length + t) * v.channels + c] = v.silu ? p / (1 + exp(-p)) : p;
            }
            for (int64_t k = 0; k < v.taps - 1; k++) {
                const double *x = source(&v, b, v.length - (v.taps - 1) + k, v.length - 1, c);
                out[CONV_NEXT][(b * (v.taps - 1) + k) * v.channels + c] = x ? *x : 0;
            }
        }
}

/// in: dy, dnext, x, weight, bias, state, reset.
static void backward(const kr_attrs *a, const kr_shape *shape, const double *const *in, const kr_shape *out_shape,
                     double *const *out) {
    (void)out_shape;
    const conv v = conv_of(a, shape + CONV_GRAD_FORWARD, in + CONV_GRAD_FORWARD);
    const double *x0 = v.in[CONV_X], *state0 = v.in[CONV_STATE];
    for (int64_t b = 0; b < v.batch; b++)
        for (int64_t c = 0; c < v.channels; c++) {
            for (int64_t t = 0; t < v.length && in[CONV_GRAD_DY]; t++) {
                const double p = before_activation(&v, b, t, c), s = 1 / (1 + exp(-p));
                const double dp = in[CONV_GRAD_DY][(b * v.length + t) * v.channels + c] *
                                  (v.silu ? s * (1 + p * (1 - s)) : 1);
                if (v.in[CONV_BIAS]) out[CONV_GRAD_DBIAS][c] += dp;
                for (int64_t j = 0; j < v.taps; j++) {
                    const int64_t from = t - (v.taps - 1) + j;
                    const double *x = source(&v, b, from, t, c);
                    if (!x) continue;
                    out[CONV_GRAD_DWEIGHT][c * v.taps + j] += dp * *x;
                    double *dx = from >= 0 ? &out[CONV_GRAD_DX][x - x0] : &out[CONV_GRAD_DSTATE][x - state0];
                    *dx += dp * v.in[CONV_WEIGHT][c * v.taps + j];
                }
            }
            for (int64_t k = 0; k < v.taps - 1 && in[CONV_GRAD_DNEXT]; k++) {
                const int64_t from = v.length - (v.taps - 1) + k;
                const double *x = source(&v, b, from, v.length - 1, c);
                if (x)
                    *(from >= 0 ? &out[CONV_GRAD_DX][x - x0] : &out[CONV_GRAD_DSTATE][x - state0]) +=
                        in[CONV_GRAD_DNEXT][(b * (v.taps - 1) + k) * v.channels + c];
            }
        }
}

enum { HAS_BIAS = 1, HAS_STATE = 2, HAS_RESET = 4, HAS_SILU = 8, ALL = 15 };

static check_case make(int64_t batch, int64_t length, int64_t channels, int64_t taps, unsigned has) {
    const kr_shape none = CHECK_ABSENT;
    const check_case c = {.op = "causal_conv1d",
                          .attrs = {.i = {[CONV_SILU] = (has & HAS_SILU) != 0}},
                          .inputs = CONV_INPUTS,
                          .shape = {[CONV_X] = KR_SHAPE(batch, length, channels),
                                    [CONV_WEIGHT] = KR_SHAPE(channels, taps),
                                    [CONV_BIAS] = has & HAS_BIAS ? KR_SHAPE(channels) : none,
                                    [CONV_STATE] = has & HAS_STATE ? KR_SHAPE(batch, taps - 1, channels) : none,
                                    [CONV_RESET] = has & HAS_RESET ? KR_SHAPE(batch, length) : none},
                          .dtype = {[CONV_RESET] = KR_I32},
                          .lo = {[CONV_RESET] = -4},
                          .hi = {[CONV_RESET] = 1}, // a reset above 0 in one of 6
                          .tolerance = 1e-6,
                          .grad_tolerance = 1e-6,
                          .seed = (uint64_t)(length * 100 + channels)};
    return c;
}

static check_case make_backward(const check_case *f, bool with_y, bool with_next) {
    check_case c = {.op = "causal_conv1d_grad",
                    .attrs = f->attrs,
                    .inputs = CONV_GRAD_INPUTS,
                    .tolerance = f->tolerance,
                    .seed = f->seed};
    kr_shape in[CHECK_MAX], out[CHECK_MAX];
    kr_dtype in_type[CHECK_MAX], out_type[CHECK_MAX];
    check_shapes(f, in, in_type, out, out_type);
    c.shape[CONV_GRAD_DY] = with_y ? out[CONV_Y] : CHECK_ABSENT;
    c.shape[CONV_GRAD_DNEXT] = with_next ? out[CONV_NEXT] : CHECK_ABSENT;
    for (int k = 0; k < CONV_INPUTS; k++) {
        c.shape[CONV_GRAD_FORWARD + k] = f->shape[k];
        c.dtype[CONV_GRAD_FORWARD + k] = f->dtype[k];
        c.lo[CONV_GRAD_FORWARD + k] = f->lo[k];
        c.hi[CONV_GRAD_FORWARD + k] = f->hi[k];
    }
    return c;
}

static void check_all(check_case c) {
    check_forward(&c, forward);
    check_gradient(&c, forward);
    for (int k = 1; k <= 3; k++) {
        const check_case g = make_backward(&c, k & 1, k & 2);
        check_forward(&g, backward);
    }
}

Test(causal_conv1d, each_combination) {
    for (unsigned has = 0; has <= ALL; has++) check_all(make(2, 9, 5, 4, has));
}
Test(causal_conv1d, taps) {
    static const int64_t taps[] = {1, 2, 3, 5, 9, 20};
    for (int k = 0; k < 6; k++) check_all(make(2, 7, 3, taps[k], ALL));
    check_all(make(1, 7, 3, 6, 0));
}
Test(causal_conv1d, short_sequences) {
    for (int64_t length = 1; length <= 4; length++)
        for (unsigned has = 0; has <= ALL; has += 2) check_all(make(2, length, 3, 4, has));
}
Test(causal_conv1d, channel_tails) {
    static const int64_t channels[] = {1, 15, 16, 17, 70, 260};
    for (int k = 0; k < 6; k++) check_all(make(1, 5, channels[k], 4, ALL & ~HAS_RESET));
}
Test(causal_conv1d, blocks_of_tokens) {
    check_all(make(1, 133, 3, 4, ALL));
    check_all(make(1, 130, 2, 70, ALL)); // taps reach over a whole block
    check_all(make(1, 64, 2, 4, HAS_STATE));
}
Test(causal_conv1d, more_rows_than_partial_sums) { check_all(make(37, 3, 4, 4, ALL)); }
Test(causal_conv1d, nothing) {
    check_all(make(2, 0, 3, 4, ALL));
    check_all(make(2, 0, 3, 4, HAS_BIAS));
    check_all(make(0, 5, 3, 4, ALL));
    check_all(make(2, 5, 0, 4, ALL));
}

static void refuse(check_case c, int input, kr_shape shape, const char *part) {
    cr_assert_eq(check_refused(&c, input, shape, part), KR_BAD_SHAPE);
}

Test(causal_conv1d, bad_shapes) {
    const check_case c = make(2, 5, 6, 4, ALL);
    refuse(c, CONV_X, KR_SHAPE(5, 6), "x is [5, 6], want [B L C]");
    refuse(c, CONV_WEIGHT, KR_SHAPE(5, 4), "weight is [5, 4], want [C W] with C = 6 (from x)");
    const check_case none = make(2, 5, 6, 4, ALL & ~HAS_STATE);
    refuse(none, CONV_WEIGHT, KR_SHAPE(6, 0), "weight has no taps");
    refuse(c, CONV_BIAS, KR_SHAPE(5), "bias is [5], want [C] = [6] with C = 6 (from x)");
    refuse(c, CONV_STATE, KR_SHAPE(2, 4, 6), "state is [2, 4, 6], want [B W-1 C] = [2, 3, 6]");
    refuse(c, CONV_RESET, KR_SHAPE(2, 4), "reset is [2, 4], want [B L] = [2, 5]");
}
