/// Reductions over one axis of [outer, n, inner]; see reduce.h for how the work is cut.
///
/// inner > 1 (columns): whole rows are added into a strip of accumulators, four at a time as a small tree.
/// inner = 1 (rows): 64 partial results in four vectors, then one fixed tree.
/// Sums are blocked: 1,024 elements or 64 rows are summed by themselves before they join the rest, which keeps the
/// rounding error near that of pairwise summation (Higham 1993, doi:10.1137/0914050).
/// Both orders depend on shapes alone. Inputs come through a walk, so that any strides work and packed ones are free.
#include "ops/lanes.h"
#include "ops/reduce.h"
#include "ops/strided.h"

enum { WIDTH = KR_REDUCE_WIDTH, TILE = 1024, ROWS = 64 };

typedef enum reduction { SUM, MAX } reduction;

/// NaN wins, as a maximum of something unknown is unknown.
KR_INLINE kr_vf larger(kr_vf a, kr_vf b) { return kr_v_select((a > b) | (a != a), a, b); }
KR_INLINE kr_vf combine(reduction r, kr_vf a, kr_vf b) { return r == SUM ? a + b : larger(a, b); }
KR_INLINE kr_vf neutral(reduction r) { return kr_v_set(r == SUM ? 0 : -__builtin_inff()); }

/// The first n lanes, the neutral value elsewhere.
KR_INLINE kr_vf load_padded(reduction r, const float *p, int64_t n) {
#ifdef __AVX512F__
    return (kr_vf)_mm512_mask_loadu_ps((__m512)neutral(r), (__mmask16)((1u << n) - 1), p);
#else
    float lanes[KR_LANES];
    kr_v_store(lanes, neutral(r));
    for (int64_t k = 0; k < n; k++) lanes[k] = p[k];
    return kr_v_load(lanes);
#endif
}

/// n packed elements from flat index `at` of the input (operand 0).
KR_INLINE const float *fetch(const kr_walk *w, int64_t at, int64_t n, float *temp) {
    return (const float *)(const void *)kr_walk_fetch(w, 0, at, n, (char *)temp);
}

KR_INLINE float across(reduction r, kr_vf v) {
    if (r == SUM) return kr_v_sum(v);
    float m = v[0];
    for (int k = 1; k < KR_LANES; k++) m = v[k] > m || v[k] != v[k] ? v[k] : m;
    return m;
}

/// Adds n packed elements to four vectors of partial results.
KR_INLINE void reduce_run(reduction r, const float *p, int64_t n, kr_vf acc[4]) {
    int64_t i = 0;
    for (; i + 4 * KR_LANES <= n; i += 4 * KR_LANES)
        for (int k = 0; k < 4; k++) acc[k] = combine(r, acc[k], kr_v_load(p + i + k * KR_LANES));
    for (int k = 0; i < n; i += KR_LANES, k++) {
        const kr_vf v = i + KR_LANES <= n ? kr_v_load(p + i) : load_padded(r, p + i, n - i);
        acc[k] = combine(r, acc[k], v);
    }
}

KR_INLINE float reduce_row(reduction r, const kr_walk *w, int64_t at, int64_t n) {
    kr_vf total = neutral(r);
    float temp[TILE] __attribute__((aligned(64)));
    for (int64_t i = 0, run; i < n; i += run) {
        run = n - i < TILE ? n - i : TILE;
        kr_vf acc[4] = {neutral(r), neutral(r), neutral(r), neutral(r)};
        reduce_run(r, fetch(w, at + i, run, temp), run, acc);
        total = combine(r, total, combine(r, combine(r, acc[0], acc[1]), combine(r, acc[2], acc[3])));
    }
    return across(r, total);
}

KR_INLINE float combine_one(reduction r, float a, float b) { return r == SUM ? a + b : a > b || a != a ? a : b; }

/// acc[0, width) takes in one row, or four as a tree.
KR_INLINE void take_row(reduction r, float *acc, const float *x, int64_t width) {
    for (int64_t i = 0; i < width; i++) acc[i] = combine_one(r, acc[i], x[i]);
}
KR_INLINE void take_four(reduction r, float *acc, const float *const x[4], int64_t width) {
    const float *p = x[0], *q = x[1], *s = x[2], *t = x[3];
    for (int64_t i = 0; i < width; i++)
        acc[i] = combine_one(r, acc[i], combine_one(r, combine_one(r, p[i], q[i]), combine_one(r, s[i], t[i])));
}

/// total[0, width) becomes the reduction of rows k0 .. k1 of the columns from `column`. Narrow rows are taken `group`
/// at a time, side by side, and folded into one at the end.
KR_INLINE void reduce_columns(reduction r, const kr_walk *w, const kr_reduce_cut *c, int64_t o, int64_t k0, int64_t k1,
                              int64_t column, int64_t width, float *total) {
    float temp[4][WIDTH] __attribute__((aligned(64))), acc[WIDTH] __attribute__((aligned(64)));
    const float none = neutral(r)[0];
    const int64_t most = WIDTH / width < k1 - k0 ? WIDTH / width : k1 - k0;
    const int64_t group = c->columns == 1 && most > 1 ? most : 1;
    const int64_t wide = group * width, groups = (k1 - k0) / group;
    const int64_t first = (o * c->n + k0) * c->inner + column, step = group * c->inner;
    for (int64_t i = 0; i < wide; i++) total[i] = none;
    for (int64_t block = 0; block < groups; block += ROWS) {
        const int64_t end = block + ROWS < groups ? block + ROWS : groups;
        for (int64_t i = 0; i < wide; i++) acc[i] = none;
        for (int64_t k = block; k < end;) {
            const float *row[4];
            const int rows = end - k < 4 ? 1 : 4;
            for (int j = 0; j < rows; j++)
                row[j] = fetch(w, first + (k + j) * step, wide, temp[j]);
            if (rows == 4) take_four(r, acc, row, wide);
            else take_row(r, acc, row[0], wide);
            k += rows;
        }
        take_row(r, total, acc, wide);
    }
    const int64_t rest = (k1 - k0 - groups * group) * width;
    if (rest > 0) take_row(r, total, fetch(w, first + groups * step, rest, temp[0]), rest);
    for (int64_t k = 1; k < group; k++) take_row(r, total, total + k * width, width);
}

/// Partial results of this part's (outer, segment, column block) items; straight to the output with one segment.
KR_INLINE void first_stage(reduction r, float scale, const kr_call *call, int part, int parts) {
    const kr_reduce_cut c = kr_reduce_cut_of(&call->in->shape, (int)call->attrs->i[0]);
    const kr_arg *args[] = {call->in};
    kr_walk w;
    kr_walk_make(&w, args, 1);
    float *to = (float *)(c.segments > 1 ? call->work : call->out->data);
    if (c.segments > 1) scale = 1;
    int64_t begin, end;
    if (c.inner == 1) { // items are (outer, segment)
        kr_share(c.outer * c.segments, part, parts, &begin, &end);
        for (int64_t item = begin; item < end; item++) {
            int64_t k0, k1;
            kr_share(c.n, (int)(item % c.segments), (int)c.segments, &k0, &k1);
            to[item] = scale * reduce_row(r, &w, item / c.segments * c.n + k0, k1 - k0);
        }
        return;
    }
    kr_share(c.outer * c.segments * c.columns, part, parts, &begin, &end);
    float acc[WIDTH] __attribute__((aligned(64)));
    for (int64_t item = begin; item < end; item++) {
        const int64_t column = item % c.columns * WIDTH, segment = item / c.columns % c.segments;
        const int64_t o = item / c.columns / c.segments, width = c.inner - column < WIDTH ? c.inner - column : WIDTH;
        int64_t k0, k1;
        kr_share(c.n, (int)segment, (int)c.segments, &k0, &k1);
        reduce_columns(r, &w, &c, o, k0, k1, column, width, acc);
        float *out = to + (o * c.segments + segment) * c.inner + column;
        for (int64_t i = 0; i < width; i++) out[i] = scale * acc[i];
    }
}

/// Combines the segments of every result in order. Results are few, so they are shared one by one in blocks.
KR_INLINE void second_stage(reduction r, float scale, const kr_call *call, int part, int parts) {
    enum { BLOCK = 256 };
    const kr_reduce_cut c = kr_reduce_cut_of(&call->in->shape, (int)call->attrs->i[0]);
    if (c.segments < 2) return;
    const float *work = (const float *)call->work;
    float *out = (float *)call->out->data;
    const int64_t total = c.outer * c.inner;
    int64_t begin, end;
    kr_share((total + BLOCK - 1) / BLOCK, part, parts, &begin, &end);
    end = end * BLOCK < total ? end * BLOCK : total;
    for (int64_t i = begin * BLOCK; i < end; i++) {
        const float *p = work + i / c.inner * c.segments * c.inner + i % c.inner;
        float sum = p[0];
        for (int64_t s = 1; s < c.segments; s++) {
            const float x = p[s * c.inner];
            sum = r == SUM ? sum + x : sum > x || sum != sum ? sum : x;
        }
        out[i] = scale * sum;
    }
}

static float one_over_n(const kr_call *call) { return 1.0f / (float)call->in->shape.dim[call->attrs->i[0]]; }

KR_KERNEL(sum) { first_stage(SUM, 1, call, part, parts); }
KR_KERNEL(sum_second) { second_stage(SUM, 1, call, part, parts); }
KR_KERNEL(mean) { first_stage(SUM, one_over_n(call), call, part, parts); }
KR_KERNEL(mean_second) { second_stage(SUM, one_over_n(call), call, part, parts); }
KR_KERNEL(max) { first_stage(MAX, 1, call, part, parts); }
KR_KERNEL(max_second) { second_stage(MAX, 1, call, part, parts); }

/// dx is dy at the first element of the axis that equals the maximum (or is NaN), 0 elsewhere. Inputs dy, x, y; dy and
/// y have the shape of the reduction.
KR_KERNEL(max_grad) {
    const kr_reduce_cut c = kr_reduce_cut_of(&call->in[1].shape, (int)call->attrs->i[0]);
    const float *dy = (const float *)call->in[0].data, *x = (const float *)call->in[1].data;
    const float *y = (const float *)call->in[2].data;
    float *dx = (float *)call->out->data;
    int64_t begin, end;
    kr_share(c.outer * c.columns, part, parts, &begin, &end);
    for (int64_t item = begin; item < end; item++) {
        const int64_t o = item / c.columns, column = item % c.columns * WIDTH;
        const int64_t width = c.inner - column < WIDTH ? c.inner - column : WIDTH;
        float left[WIDTH]; // the gradient that still looks for its place
        const float *most = y + o * c.inner + column;
        memcpy(left, dy + o * c.inner + column, (size_t)width * sizeof *left);
        for (int64_t k = 0; k < c.n; k++) {
            const int64_t at = (o * c.n + k) * c.inner + column;
            for (int64_t i = 0; i < width; i++) {
                const float v = x[at + i];
                const int here = v == most[i] || v != v;
                dx[at + i] = here ? left[i] : 0;
                left[i] = here ? 0 : left[i];
            }
        }
    }
}

/// One compensated addition: *sum += x, what was rounded away goes to *lost.
///   source Kahan 1965, doi:10.1145/363707.363723
KR_INLINE float add_kahan(float x, float *sum, float *lost) {
    const float term = x - *lost, next = *sum + term;
    *lost = (next - *sum) - term;
    return *sum = next;
}

/// Running sums of n neighbours from flat index `at`.
static void cumsum_row(const kr_walk *w, int64_t at, int64_t n, int reverse, float *out) {
    float temp[TILE], sum = 0, lost = 0;
    for (int64_t k = 0, run; k < n; k += run) {
        run = n - k < TILE ? n - k : TILE;
        const int64_t first = reverse ? n - k - run : k;
        const float *x = fetch(w, at + first, run, temp);
        for (int64_t i = 0; i < run; i++) {
            const int64_t j = reverse ? run - 1 - i : i;
            out[first + j] = add_kahan(x[j], &sum, &lost);
        }
    }
}

/// Running sums along the axis. They are compensated, so that the error of the last one does not grow with n.
KR_KERNEL(cumsum) {
    const kr_reduce_cut c = kr_reduce_cut_of(&call->in->shape, (int)call->attrs->i[0]);
    const int reverse = call->attrs->i[1] != 0;
    const kr_arg *args[] = {call->in};
    kr_walk w;
    kr_walk_make(&w, args, 1);
    float *out = (float *)call->out->data, temp[WIDTH], sum[WIDTH], lost[WIDTH];
    int64_t begin, end;
    kr_share(c.outer * c.columns, part, parts, &begin, &end);
    for (int64_t item = begin; item < end; item++) {
        if (c.inner == 1) {
            cumsum_row(&w, item * c.n, c.n, reverse, out + item * c.n);
            continue;
        }
        const int64_t o = item / c.columns, column = item % c.columns * WIDTH;
        const int64_t width = c.inner - column < WIDTH ? c.inner - column : WIDTH;
        for (int64_t i = 0; i < width; i++) sum[i] = lost[i] = 0;
        for (int64_t k = 0; k < c.n; k++) {
            const int64_t at = (o * c.n + (reverse ? c.n - 1 - k : k)) * c.inner + column;
            const float *x = fetch(&w, at, width, temp);
            for (int64_t i = 0; i < width; i++) out[at + i] = add_kahan(x[i], &sum[i], &lost[i]);
        }
    }
}
