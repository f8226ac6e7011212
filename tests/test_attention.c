/// attention, its gradient and cache_write against naive oracles in double.
#include "ops/attention/args.h"
#include "tests/check.h"

#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

typedef struct heads {
    int64_t B, Lq, Lk, H, Hkv, D, count, window;
    bool causal;
    double scale;
    const double *const *in;
} heads;

static heads heads_of(const kr_attrs *a, const kr_shape *s, const double *const *in) {
    heads v = {.B = s[ATTENTION_Q].dim[0],
               .Lq = s[ATTENTION_Q].dim[1],
               .Lk = s[ATTENTION_K].dim[1],
               .H = a->i[ATTENTION_HEADS],
               .Hkv = a->i[ATTENTION_KV_HEADS],
               .D = s[ATTENTION_Q].dim[2] / a->i[ATTENTION_HEADS],
               .window = a->i[ATTENTION_WINDOW],
               .causal = !a->i[ATTENTION_NOT_CAUSAL],
               .in = in};
    v.scale = a->r[ATTENTION_SCALE] != 0 ? a->r[ATTENTION_SCALE] : v.D ? 1 / sqrt((double)v.D) : 1;
    v.count = in[ATTENTION_KEY_COUNT] ? (int64_t)in[ATTENTION_KEY_COUNT][0] : v.Lk;
    if (v.count > v.Lk) v.count = v.Lk;
    if (v.count < 0) v.count = 0;
    return v;
}

/// Which document key s is of.
static int64_t document(const heads *v, int64_t b, int64_t s) {
    int64_t n = 0;
    for (int64_t k = 1; k <= s && v->in[ATTENTION_RESET]; k++) n += v->in[ATTENTION_RESET][b * v->Lk + k] > 0;
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
                double total = 0, *o = out[ATTENTION_O] + q_at(&v, b, t, h);
                for (int64_t s = 0; s < v.Lk; s++) {
                    if (!sees(&v, b, t, s)) continue;
                    const double p = exp(
                        v.scale * dot(in[ATTENTION_Q] + q_at(&v, b, t, h), in[ATTENTION_K] + k_at(&v, b, s, h), v.D));
                    total += p;
                    for (int64_t n = 0; n < v.D; n++) o[n] += p * in[ATTENTION_V][k_at(&v, b, s, h) + n];
                }
                for (int64_t n = 0; n < v.D && total > 0; n++) o[n] /= total;
                out[ATTENTION_LSE][(b * v.H + h) * v.Lq + t] = log(total);
            }
}

static void backward(const kr_attrs *a, const kr_shape *shape, const double *const *in, const kr_shape *out_shape,
                     double *const *out) {
    (void)out_shape;
    const heads v = heads_of(a, shape + ATTENTION_GRAD_FORWARD, in + ATTENTION_GRAD_FORWARD);
    for (int64_t b = 0; b < v.B; b++)
        for (int64_t h = 0; h < v.H; h++)
            for (int64_t t = 0; t < v.Lq; t++) {
                const int64_t q = q_at(&v, b, t, h), row = (b * v.H + h) * v.Lq + t;
                const double delta = dot(in[ATTENTION_GRAD_DO] + q, in[ATTENTION_GRAD_O] + q, v.D) -
                                     (in[ATTENTION_GRAD_DLSE] ? in[ATTENTION_GRAD_DLSE][row] : 0);
                for (int64_t s = 0; s < v.Lk; s++) {
                    const int64_t k = k_at(&v, b, s, h);
                    if (!sees(&v, b, t, s)) continue;
                    const double p = exp(v.scale * dot(v.in[ATTENTION_Q] + q, v.in[ATTENTION_K] + k, v.D) -
                                         in[ATTENTION_GRAD_LSE][row]);
                    const double ds = v.scale * p *
                                      (dot(in[ATTENTION_GRAD_DO] + q, v.in[ATTENTION_V] + k, v.D) - delta);
                    for (int64_t n = 0; n < v.D; n++) {
                        out[ATTENTION_GRAD_DQ][q + n] += ds * v.in[ATTENTION_K][k + n];
                        out[ATTENTION_GRAD_DK][k + n] += ds * v.in[ATTENTION_Q][q + n];
                        out[ATTENTION_GRAD_DV][k + n] += p * in[ATTENTION_GRAD_DO][q + n];
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
    const check_case c = {
        .op = "attention",
        .attrs = {.i = {[ATTENTION_HEADS] = H,
                        [ATTENTION_KV_HEADS] = Hkv,
                        [ATTENTION_WINDOW] = o.window,
                        [ATTENTION_NOT_CAUSAL] = o.not_causal},
                  .r = {[ATTENTION_SCALE] = o.scale}},
        .inputs = ATTENTION_INPUTS,
        .shape = {[ATTENTION_Q] = KR_SHAPE(B, Lq, H * D),
                  [ATTENTION_K] = KR_SHAPE(B, Lk, Hkv * D),
                  [ATTENTION_V] = KR_SHAPE(B, Lk, Hkv * D),
                  [ATTENTION_KEY_COUNT] = o.count ? KR_SHAPE(1) : CHECK_ABSENT,
                  [ATTENTION_RESET] = o.reset ? KR_SHAPE(B, Lk) : CHECK_ABSENT},
        .dtype = {[ATTENTION_KEY_COUNT] = KR_I32, [ATTENTION_RESET] = KR_I32},
        .lo = {[ATTENTION_Q] = -2, [ATTENTION_K] = -2, [ATTENTION_KEY_COUNT] = (double)o.count, [ATTENTION_RESET] = -4},
        .hi = {[ATTENTION_Q] = 2, [ATTENTION_K] = 2, [ATTENTION_KEY_COUNT] = (double)o.count, [ATTENTION_RESET] = 1},
        .tolerance = 2e-6,
        .grad_tolerance = 3e-6,
        .seed = (uint64_t)(Lq * 1000 + Lk * 100 + D)};
    return c;
}

static check_case make_backward(const check_case *f, bool with_lse) {
    check_case c = {
        .op = "attention_grad", .attrs = f->attrs, .inputs = ATTENTION_GRAD_INPUTS, .tolerance = 3e-6, .seed = f->seed};
    kr_shape in[CHECK_MAX], out[CHECK_MAX];
    kr_dtype in_type[CHECK_MAX], out_type[CHECK_MAX];
    check_shapes(f, in, in_type, out, out_type);
    c.shape[ATTENTION_GRAD_DO] = c.shape[ATTENTION_GRAD_O] = out[ATTENTION_O];
    c.shape[ATTENTION_GRAD_DLSE] = with_lse ? out[ATTENTION_LSE] : CHECK_ABSENT;
    c.shape[ATTENTION_GRAD_LSE] = out[ATTENTION_LSE];
    c.lo[ATTENTION_GRAD_LSE] = 1, c.hi[ATTENTION_GRAD_LSE] = 3;
    for (int k = 0; k < ATTENTION_INPUTS; k++) {
        c.shape[ATTENTION_GRAD_FORWARD + k] = f->shape[k];
        c.dtype[ATTENTION_GRAD_FORWARD + k] = f->dtype[k];
        c.lo[ATTENTION_GRAD_FORWARD + k] = f->lo[k];
        c.hi[ATTENTION_GRAD_FORWARD + k] = f->hi[k];
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
    c.lo[ATTENTION_RESET] = -40;
    check_kernels(c);
    c = make(1, 210, 210, 1, 1, 3, (options){.reset = true, .not_causal = true});
    c.lo[ATTENTION_RESET] = -70;
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

Test(attention, bad_shapes) {
    const check_case c = make(2, 5, 6, 4, 2, 8, (options){.count = 3, .reset = true});
    check_refused(&c, ATTENTION_Q, KR_SHAPE(5, 32), "q is [5, 32], want [B Lq heads*D] with heads = 4");
    check_refused(&c, ATTENTION_K, KR_SHAPE(6, 16),
           "k is [6, 16], want [B Lk kv_heads*D] with B = 2 (from q), kv_heads = 2, D = 8 (from q)");
    check_refused(&c, ATTENTION_Q, KR_SHAPE(2, 5, 33), "q is [2, 5, 33], want [B Lq heads*D] with heads = 4");
    check_refused(&c, ATTENTION_K, KR_SHAPE(2, 6, 17), "k is [2, 6, 17], want [B Lk kv_heads*D]");
    check_refused(&c, ATTENTION_V, KR_SHAPE(2, 5, 16), "v is [2, 5, 16], want [B Lk kv_heads*D] = [2, 6, 16]");
    check_refused(&c, ATTENTION_KEY_COUNT, KR_SHAPE(2), "key_count is [2], want [1]");
    check_refused(&c, ATTENTION_RESET, KR_SHAPE(2, 5), "reset is [2, 5], want [B Lk] = [2, 6]");
    check_case bad = c;
    bad.attrs.i[ATTENTION_KV_HEADS] = 3;
    check_refused(&bad, ATTENTION_Q, c.shape[ATTENTION_Q],
           "k is [2, 6, 16], want [B Lk kv_heads*D] with B = 2 (from q), kv_heads = 3");
    bad = make(2, 5, 6, 4, 3, 8, (options){0});
    check_refused(&bad, ATTENTION_Q, c.shape[ATTENTION_Q], "4 heads and 3 key heads, want a multiple");
    bad = make(2, 5, 6, 4, 2, 8, (options){.window = 3, .not_causal = true});
    check_refused(&bad, ATTENTION_Q, c.shape[ATTENTION_Q], "a window of 3 keys without causal order");
}

// cache_write -------------------------------------------------------------------------------------------------------

static void write_rows(const kr_attrs *a, const kr_shape *shape, const double *const *in, const kr_shape *out_shape,
                       double *const *out) {
    (void)a, (void)out_shape;
    const int64_t B = shape[CACHE_WRITE_CACHE].dim[0], capacity = shape[CACHE_WRITE_CACHE].dim[1],
                  C = shape[CACHE_WRITE_CACHE].dim[2], L = shape[CACHE_WRITE_X].dim[1];
    for (int64_t i = 0; i < B * capacity * C; i++) {
        const int64_t t = i / C % capacity - (int64_t)in[CACHE_WRITE_POSITION][0];
        out[CACHE_WRITE_Y][i] = t >= 0 && t < L ? in[CACHE_WRITE_X][(i / C / capacity * L + t) * C + i % C]
                                                : in[CACHE_WRITE_CACHE][i];
    }
}

Test(cache_write, positions) {
    static const double positions[] = {0, 3, 6, 8, 9, 100, -1, -2, -50};
    for (int k = 0; k < 9; k++)
        for (int64_t length = 0; length <= 4; length += 2) {
            const check_case c = {.op = "cache_write",
                                  .inputs = CACHE_WRITE_INPUTS,
                                  .shape = {[CACHE_WRITE_CACHE] = KR_SHAPE(3, 9, 5),
                                            [CACHE_WRITE_X] = KR_SHAPE(3, length, 5),
                                            [CACHE_WRITE_POSITION] = KR_SHAPE(1)},
                                  .dtype = {[CACHE_WRITE_POSITION] = KR_I32},
                                  .lo = {[CACHE_WRITE_POSITION] = positions[k]},
                                  .hi = {[CACHE_WRITE_POSITION] = positions[k]},
                                  .tolerance = 1e-30};
            check_forward(&c, write_rows);
        }
}
Test(cache_write, bad_shapes) {
    const check_case c = {.op = "cache_write",
                          .inputs = CACHE_WRITE_INPUTS,
                          .shape = {[CACHE_WRITE_CACHE] = KR_SHAPE(3, 9, 5),
                                    [CACHE_WRITE_X] = KR_SHAPE(3, 2, 5),
                                    [CACHE_WRITE_POSITION] = KR_SHAPE(1)},
                          .dtype = {[CACHE_WRITE_POSITION] = KR_I32}};
    check_refused(&c, CACHE_WRITE_CACHE, KR_SHAPE(9, 5), "cache is [9, 5], want [B Lmax C]");
    check_refused(&c, CACHE_WRITE_X, KR_SHAPE(3, 2, 4), "x is [3, 2, 4], want [B L C]");
    check_refused(&c, CACHE_WRITE_POSITION, KR_SHAPE(3), "position is [3], want [1]");
}
