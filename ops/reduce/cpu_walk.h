/// How reductions go through [outer, n, inner]: for kernel files. See cut.h for how the work is cut.
///
/// inner > 1 (columns): whole rows are added into a strip of accumulators, four at a time as a small tree.
/// inner = 1 (rows): 64 partial results in four vectors, then one fixed tree.
/// Sums are blocked: 1,024 elements or 64 rows are summed by themselves before they join the rest, which keeps the
/// rounding error near that of pairwise summation (Higham 1993, doi:10.1137/0914050).
/// Both orders depend on shapes alone.
#ifndef KRAIT_OPS_REDUCE_CPU_WALK_H
#define KRAIT_OPS_REDUCE_CPU_WALK_H

#include "ops/cpu/lanes.h"
#include "ops/reduce/cut.h"

enum { WIDTH = KR_REDUCE_WIDTH, TILE = 1024, ROWS = 64 };

/// What is reduced: a function that gives n packed elements from flat index `at`, in a place of its own or in `temp`.
/// It is asked for every element once.
typedef struct source {
    const float *(*fetch)(void *of, int64_t at, int64_t n, float *temp);
    void *of;
} source;

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

KR_INLINE float reduce_row(reduction r, const source *w, int64_t at, int64_t n) {
    kr_vf total = neutral(r);
    float temp[TILE] __attribute__((aligned(64)));
    for (int64_t i = 0, run; i < n; i += run) {
        run = n - i < TILE ? n - i : TILE;
        kr_vf acc[4] = {neutral(r), neutral(r), neutral(r), neutral(r)};
        reduce_run(r, w->fetch(w->of, at + i, run, temp), run, acc);
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
KR_INLINE void reduce_columns(reduction r, const source *w, const kr_reduce_cut *c, int64_t o, int64_t k0, int64_t k1,
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
                row[j] = w->fetch(w->of, first + (k + j) * step, wide, temp[j]);
            if (rows == 4) take_four(r, acc, row, wide);
            else take_row(r, acc, row[0], wide);
            k += rows;
        }
        take_row(r, total, acc, wide);
    }
    const int64_t rest = (k1 - k0 - groups * group) * width;
    if (rest > 0) take_row(r, total, w->fetch(w->of, first + groups * step, rest, temp[0]), rest);
    for (int64_t k = 1; k < group; k++) take_row(r, total, total + k * width, width);
}

/// Partial results of this part's (outer, segment, column block) items in `work`; straight in `out` with one segment.
KR_INLINE void first_stage(reduction r, float scale, const source *w, const kr_reduce_cut *c, float *out, float *work,
                           int part, int parts) {
    float *to = c->segments > 1 ? work : out;
    if (c->segments > 1) scale = 1;
    int64_t begin, end;
    if (c->inner == 1) { // items are (outer, segment)
        kr_share(c->outer * c->segments, part, parts, &begin, &end);
        for (int64_t item = begin; item < end; item++) {
            int64_t k0, k1;
            kr_share(c->n, (int)(item % c->segments), (int)c->segments, &k0, &k1);
            to[item] = scale * reduce_row(r, w, item / c->segments * c->n + k0, k1 - k0);
        }
        return;
    }
    kr_share(c->outer * c->segments * c->columns, part, parts, &begin, &end);
    float acc[WIDTH] __attribute__((aligned(64)));
    for (int64_t item = begin; item < end; item++) {
        const int64_t column = item % c->columns * WIDTH, segment = item / c->columns % c->segments;
        const int64_t o = item / c->columns / c->segments,
                      width = c->inner - column < WIDTH ? c->inner - column : WIDTH;
        int64_t k0, k1;
        kr_share(c->n, (int)segment, (int)c->segments, &k0, &k1);
        reduce_columns(r, w, c, o, k0, k1, column, width, acc);
        float *p = to + (o * c->segments + segment) * c->inner + column;
        for (int64_t i = 0; i < width; i++) p[i] = scale * acc[i];
    }
}

/// Combines the segments of every result in order. Results are few, so they are shared one by one in blocks.
KR_INLINE void second_stage(reduction r, float scale, const kr_reduce_cut *c, float *out, const float *work, int part,
                            int parts) {
    enum { GRAIN = 256 };
    if (c->segments < 2) return;
    const int64_t total = c->outer * c->inner;
    int64_t begin, end;
    kr_share((total + GRAIN - 1) / GRAIN, part, parts, &begin, &end);
    end = end * GRAIN < total ? end * GRAIN : total;
    for (int64_t i = begin * GRAIN; i < end; i++) {
        const float *p = work + i / c->inner * c->segments * c->inner + i % c->inner;
        float sum = p[0];
        for (int64_t s = 1; s < c->segments; s++) {
            const float x = p[s * c->inner];
            sum = r == SUM ? sum + x : sum > x || sum != sum ? sum : x;
        }
        out[i] = scale * sum;
    }
}

#endif
