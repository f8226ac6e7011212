/// attention, its gradient and cache_write against naive oracles in double.
#include "tests/check.h"

#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

enum { Q, K, V, KEY_COUNT, RESET, INPUTS };

typedef struct heads {
    int64_t B, Lq, Lk, H, Hkv, D, count, window;
    bool causal;
    double scale;
    const double *const *in;
} heads;

static heads heads_of(const kr_attrs *a, const kr_shape *s, const double *const *in) {
    heads v = {.B = s[Q].dim[0],
               .Lq = s[Q].dim[1],
               .Lk = s[K].dim[1],
               .H = a->i[0],
               .Hkv = a->i[1],
               .D = s[Q].dim[2] / a->i[0],
               .window = a->i[2],
               .causal = !a->i[3],
               .in = in};
    v.scale = a->r[0] != 0 ? a->r[0] : v.D ? 1 / sqrt((double)v.D) : 1;
    v.count = in[KEY_COUNT] ? (int64_t)in[KEY_COUNT][0] : v.Lk;
    if (v.count > v.Lk) v.count = v.Lk;
    if (v.count < 0) v.count = 0;
    return v;
}

/// Which document key s is of.
static int64_t document(const heads *v, int64_t b, int64_t s) {
    int64_t n = 0;
    for (int64_t k = 1; k <= s && v->in[RESET]; k++) n += v->in[RESET][b * v->Lk + k] > 0;
    return n;
}

static bool sees(const heads *v, int64_t b, int64_t t, int64_t s) {
    const int64_t place = t + v->count - v->Lq;
    if (s >= v->count || (v->causal && s > place) || (v->window && s <= place - v->window)) return false;
    return document(v, b, s) == document(v, b, place > 0 ? place : 0);
}

static int64_t q_at(const heads *v, int64_t b, int64_t t, int64_t h) { return ((b * v->Lq + t) * v->H + h) * v->D; }
static int64_t k_at(const heads *v, int64_t b, int64_t s, int64_t h) {
    return ((b * v->Lk + s) * v->Hkv + h / (v->H / v->Hkv)) * v->D;
}
static double dot(const double *x, const double *y, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i] * y[i];
    return sum;
}

static void forward(const kr_attrs *a, const kr_shape *shape, const double *const *in, const kr_shape *out_shape,
                    double *const *out) {
    (void)out_shape;
    const heads v = heads_of(a, shape, in);
    for (int64_t b = 0; b < v.B; b++)
        for (int64_t h = 0; h < v.H; h++)
            for (int64_t t = 0; t < v.Lq; t++) {
                double total = 0, *o = out[0] + q_at(&v, b, t, h);
                for (int64_t s = 0; s < v.Lk; s++) {
                    if (!sees(&v, b, t, s)) continue;
                    const double p = exp(v.scale * dot(in[Q] + q_at(&v, b, t, h), in[K] + k_at(&v, b, s, h), v.D));
                    total += p;
                    for (int64_t n = 0; n < v.D; n++) o[n] += p * in[V][k_at(&v, b, s, h) + n];
                }
                for (int64_t n = 0; n < v.D && total > 0; n++) o[n] /= total;
                out[1][(b * v.H + h) * v.Lq + t] = log(total);
            }
}

/// in: do, dlse, q, k, v, key_count, reset, o, lse.
static void backward(const kr_attrs *a, const kr_shape *shape, const double *const *in, const kr_shape *out_shape,
                     double *const *out) {
    (void)out_shape;
    const heads v = heads_of(a, shape + 2, in + 2);
    for (int64_t b = 0; b < v.B; b++)
        for (int64_t h = 0; h < v.H; h++)
            for (int64_t t = 0; t < v.Lq; t++) {
                const int64_t q = q_at(&v, b, t, h), row = (b * v.H + h) * v.Lq + t;
                const double delta = dot(in[0] + q, in[7] + q, v.D) - (in[1] ? in[1][row] : 0);
                for (int64_t s = 0; s < v.Lk; s++) {
                    const int64_t k = k_at(&v, b, s, h);
                    if (!sees(&v, b, t, s)) continue;
                    const double p = exp(v.scale * dot(v.in[Q] + q, v.in[K] + k, v.D) - in[8][row]);
                    const double ds = v.scale * p * (dot(in[0] + q, v.in[V] + k, v.D) - delta);
                    for (int64_t n = 0; n < v.D; n++) {
                        out[Q][q + n] += ds * v.in[K][k + n];
                        out[K][k + n] += ds * v.in[Q][q + n];
                        out[V][k + n] += p * in[0][q + n];
                    }
                }
            }
}

typedef struct options {
    int64_t window, count; ///< count 0: no key_count
    bool reset, not_causal;
    double scale;
} options;

static check_case make(int64_t B, int64_t Lq, int64_t Lk, int64_t H, int64_t Hkv, int64_t D, options o) {
    const check_case c = {.op = "attention",
                          .attrs = {.i = {H, Hkv, o.window, o.not_causal}, .r = {o.scale}},
                          .inputs = INPUTS,
                          .shape = {KR_SHAPE(B, Lq, H * D), KR_SHAPE(B, Lk, Hkv * D), KR_SHAPE(B, Lk, Hkv * D),
                                    o.count ? KR_SHAPE(1) : CHECK_ABSENT, o.reset ? KR_SHAPE(B, Lk) : CHECK_ABSENT},
                          .dtype = {[KEY_COUNT] = KR_I32, [RESET] = KR_I32},
                          .lo = {[Q] = -2, [K] = -2, [KEY_COUNT] = (double)o.count, [RESET] = -4},
                          .hi = {[Q] = 2, [K] = 2, [KEY_COUNT] = (double)o.count, [RESET] = 1},
                          .tolerance = 2e-6,
                          .grad_tolerance = 3e-6,
                          .seed = (uint64_t)(Lq * 1000 + Lk * 100 + D)};
    return c;
}

static check_case make_backward(const check_case *f, bool with_lse) {
    check_case c = {.op = "attention_grad", .attrs = f->attrs, .inputs = 9, .tolerance = 3e-6, .seed = f->seed};
    kr_shape in[CHECK_MAX], out[CHECK_MAX];
    kr_dtype in_type[CHECK_MAX], out_type[CHECK_MAX];
    check_shapes(f, in, in_type, out, out_type);
    c.shape[0] = c.shape[7] = out[0];
    c.shape[1] = with_lse ? out[1] : CHECK_ABSENT;
    c.shape[8] = out[1];
    c.lo[8] = 1, c.hi[8] = 3;
    for (int k = 0; k < INPUTS; k++) {
        c.shape[k + 2] = f->shape[k];
        c.dtype[k + 2] = f->dtype[k];
        c.lo[k + 2] = f->lo[k];
        c.hi[k + 2] = f->hi[k];
    }
    return c;
}

static void check_kernels(check_case c) {
    check_forward(&c, forward);
    for (int with = 0; with < 2; with++) {
        const check_case g = make_backward(&c, with);
        check_forward(&g, backward);
    }
}
static void check_all(check_case c) {
    check_kernels(c);
    check_gradient(&c, forward);
}

Test(attention, causal) {
    check_all(make(2, 7, 7, 4, 2, 8, (options){0}));
    check_all(make(1, 3, 10, 2, 2, 5, (options){.scale = 0.7}));
    check_all(make(2, 5, 9, 6, 2, 17, (options){.scale = -0.5}));
    check_all(make(1, 13, 13, 1, 1, 33, (options){0}));
}
Test(attention, one_query) {
    check_all(make(2, 1, 9, 4, 1, 8, (options){0}));
    check_all(make(1, 1, 1, 2, 2, 4, (options){0}));
    check_all(make(2, 1, 20, 3, 3, 7, (options){.window = 5}));
    check_all(make(2, 1, 20, 10, 1, 3, (options){.count = 11}));
    check_all(make(2, 1, 20, 4, 2, 3, (options){.reset = true}));
}
Test(attention, not_causal) {
    check_all(make(2, 6, 6, 2, 1, 4, (options){.not_causal = true}));
    check_all(make(2, 6, 11, 2, 1, 4, (options){.not_causal = true, .reset = true}));
    check_all(make(1, 12, 5, 2, 1, 4, (options){.not_causal = true, .reset = true, .count = 4}));
}
Test(attention, windows) {
    static const int64_t windows[] = {1, 2, 5, 100};
    for (int k = 0; k < 4; k++) {
        check_all(make(2, 9, 12, 2, 1, 6, (options){.window = windows[k]}));
        check_all(make(2, 9, 12, 2, 1, 6, (options){.window = windows[k], .reset = true}));
    }
}
Test(attention, documents) {
    check_all(make(3, 11, 11, 2, 1, 4, (options){.reset = true}));
    check_all(make(3, 4, 11, 2, 2, 4, (options){.reset = true, .count = 9}));
}
Test(attention, cache_that_is_not_full) {
    check_all(make(2, 3, 16, 2, 1, 4, (options){.count = 7}));
    check_all(make(2, 3, 16, 2, 1, 4, (options){.count = 3}));
    check_all(make(2, 3, 16, 2, 1, 4, (options){.count = 99}));
}

/// More queries than keys: the first see none. Their lse is minus infinity, so no loss may read it.
Test(attention, queries_without_keys) {
    check_case c = make(2, 6, 4, 2, 1, 4, (options){0});
    c.no_loss = 2;
    check_all(c);
    c = make(2, 5, 9, 2, 1, 4, (options){.count = 2});
    c.no_loss = 2;
    check_all(c);
    c = make(1, 1, 9, 2, 1, 4, (options){.count = -1});
    c.no_loss = 2;
    check_all(c);
}

/// Whole blocks, ends of blocks, several segments of keys.
Test(attention, blocks) {
    check_kernels(make(1, 96, 96, 1, 1, 16, (options){0}));
    check_kernels(make(1, 97, 97, 2, 1, 33, (options){0}));
    check_kernels(make(1, 200, 200, 1, 1, 5, (options){0}));
    check_kernels(make(1, 130, 301, 1, 1, 4, (options){0}));
    check_kernels(make(1, 101, 300, 2, 2, 4, (options){.window = 37}));
    check_kernels(make(1, 250, 250, 1, 1, 3, (options){.not_causal = true}));
}
Test(attention, blocks_of_documents) {
    check_case c = make(2, 210, 210, 1, 1, 3, (options){.reset = true});
    c.lo[RESET] = -40;
    check_kernels(c);
    c = make(1, 210, 210, 1, 1, 3, (options){.reset = true, .not_causal = true});
    c.lo[RESET] = -70;
    check_kernels(c);
}
Test(attention, many_heads_of_one_key_head) { check_kernels(make(1, 1, 120, 100, 1, 3, (options){0})); }
Test(attention, wide_heads) { check_kernels(make(1, 9, 14, 1, 1, 530, (options){0})); }

Test(attention, nothing) {
    check_all(make(2, 0, 3, 2, 1, 4, (options){0}));
    check_all(make(0, 3, 3, 2, 1, 4, (options){.reset = true}));
    check_all(make(2, 3, 3, 2, 1, 0, (options){0}));
    check_case c = make(2, 3, 0, 2, 1, 4, (options){.reset = true});
    c.no_loss = 2;
    check_all(c);
}

static void refuse(check_case c, int input, kr_shape shape, const char *part) {
    c.shape[input] = shape;
    kr_shape out[CHECK_MAX];
    kr_dtype type[CHECK_MAX];
    cr_assert_neq(kr_op_shapes(kr_op_find(c.op), &c.attrs, c.shape, c.dtype, c.inputs, out, type), KR_OK);
    cr_assert(strstr(kr_status_message(), part), "\"%s\" is not in \"%s\"", part, kr_status_message());
}

Test(attention, bad_shapes) {
    const check_case c = make(2, 5, 6, 4, 2, 8, (options){.count = 3, .reset = true});
    refuse(c, Q, KR_SHAPE(5, 32), "q is [5, 32], want [batch, length, heads*coordinates]");
    refuse(c, K, KR_SHAPE(6, 16), "k is [6, 16], want [batch, length, heads*coordinates]");
    refuse(c, Q, KR_SHAPE(2, 5, 33), "q is [2, 5, 33], want columns for 4 heads");
    refuse(c, K, KR_SHAPE(2, 6, 17), "k is f32 [2, 6, 17], want f32 [2, 6, 16]");
    refuse(c, V, KR_SHAPE(2, 5, 16), "v is f32 [2, 5, 16], want f32 [2, 6, 16]");
    refuse(c, KEY_COUNT, KR_SHAPE(2), "key_count is i32 [2], want i32 [1]");
    refuse(c, RESET, KR_SHAPE(2, 5), "reset is i32 [2, 5], want i32 [2, 6]");
    check_case bad = c;
    bad.attrs.i[1] = 3;
    refuse(bad, Q, c.shape[Q], "4 heads and 3 key heads");
    bad = make(2, 5, 6, 4, 2, 8, (options){.window = 3, .not_causal = true});
    refuse(bad, Q, c.shape[Q], "a window of 3 keys without causal order");
}

// cache_write -------------------------------------------------------------------------------------------------------

static void write_rows(const kr_attrs *a, const kr_shape *shape, const double *const *in, const kr_shape *out_shape,
                       double *const *out) {
    (void)a, (void)out_shape;
    const int64_t B = shape[0].dim[0], capacity = shape[0].dim[1], C = shape[0].dim[2], L = shape[1].dim[1];
    for (int64_t i = 0; i < B * capacity * C; i++) {
        const int64_t t = i / C % capacity - (int64_t)in[2][0];
        out[0][i] = t >= 0 && t < L ? in[1][(i / C / capacity * L + t) * C + i % C] : in[0][i];
    }
}

Test(cache_write, positions) {
    static const double positions[] = {0, 3, 6, 8, 9, 100, -1, -2, -50};
    for (int k = 0; k < 9; k++)
        for (int64_t length = 0; length <= 4; length += 2) {
            const check_case c = {.op = "cache_write",
                                  .inputs = 3,
                                  .shape = {KR_SHAPE(3, 9, 5), KR_SHAPE(3, length, 5), KR_SHAPE(1)},
                                  .dtype = {[2] = KR_I32},
                                  .lo = {[2] = positions[k]},
                                  .hi = {[2] = positions[k]},
                                  .tolerance = 1e-30};
            check_forward(&c, write_rows);
        }
}
Test(cache_write, bad_shapes) {
    const check_case c = {.op = "cache_write",
                          .inputs = 3,
                          .shape = {KR_SHAPE(3, 9, 5), KR_SHAPE(3, 2, 5), KR_SHAPE(1)},
                          .dtype = {[2] = KR_I32}};
    refuse(c, 0, KR_SHAPE(9, 5), "cache is [9, 5], want [batch, capacity, columns]");
    refuse(c, 1, KR_SHAPE(3, 2, 4), "x is f32 [3, 2, 4], want f32 [3, 2, 5]");
    refuse(c, 2, KR_SHAPE(3), "position is i32 [3], want i32 [1]");
}
