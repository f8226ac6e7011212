/// A block of scores on the CPU: which of them are visible, and the products around them. For kernel files.
///
/// rows (queries) by keys, at most KR_ATTENTION_ROWS each, at that pitch. Row r sees the keys from[r] .. to[r] - 1, and
/// both bounds never fall from row to row; so what the rows of a tile see together is from[first] .. to[last], and the
/// products skip what no row of a tile sees: on the diagonal of causal attention that is almost half. Scores that are
/// not visible are zeros once soften or its like went over the block.
#ifndef KRAIT_OPS_ATTENTION_CPU_BLOCK_H
#define KRAIT_OPS_ATTENTION_CPU_BLOCK_H

#include "ops/attention/args.h"
#include "ops/attention/size.h"
#include "ops/cpu/tile.h"

enum { ROWS = KR_ATTENTION_ROWS, DEPTH = 256, FEW = 8 };
#define LOG2E 1.44269504088896340736f

/// One call, with the strides and limits that all blocks share.
typedef struct attention {
    kr_attention_size s;
    const float *q, *k, *v;
    int64_t q_pitch, k_pitch, v_pitch;
    int64_t count, window; ///< keys that exist; how many of them a query sees (0: all)
    int causal;
    float scale;
    const int32_t *reset;
} attention;

/// in: the forward inputs.
static attention attention_of(const kr_call *call, const kr_arg *in) {
    const kr_attrs *t = call->attrs;
    attention a = {.s = kr_attention_measure(&in[ATTENTION_Q].shape, &in[ATTENTION_K].shape, t->i[ATTENTION_HEADS],
                                             t->i[ATTENTION_KV_HEADS]),
                   .q = in[ATTENTION_Q].data,
                   .k = in[ATTENTION_K].data,
                   .v = in[ATTENTION_V].data,
                   .q_pitch = kr_arg_pitch(&in[ATTENTION_Q]),
                   .k_pitch = kr_arg_pitch(&in[ATTENTION_K]),
                   .v_pitch = kr_arg_pitch(&in[ATTENTION_V]),
                   .window = t->i[ATTENTION_WINDOW],
                   .causal = !t->i[ATTENTION_NOT_CAUSAL],
                   .reset = in[ATTENTION_RESET].data};
    const int32_t *count = in[ATTENTION_KEY_COUNT].data;
    a.count = !count || *count > a.s.keys ? a.s.keys : *count < 0 ? 0 : *count;
    a.scale = (float)(t->r[ATTENTION_SCALE] != 0 ? t->r[ATTENTION_SCALE]
                      : a.s.dim                  ? 1 / __builtin_sqrt((double)a.s.dim)
                                                 : 1);
    return a;
}

/// lo[i] .. hi[i] - 1 are the keys that query first + i of batch row b sees. Its own place among the keys is p: the
/// last query's is the last key that exists. Without causal order a query sees its whole document.
static void ranges(const attention *a, int64_t b, int64_t first, int64_t n, int32_t *lo, int32_t *hi) {
    const int32_t *reset = a->reset ? a->reset + b * a->s.keys : 0;
    int64_t start = -1, stop = a->count; // the document; start -1: look for it
    for (int64_t i = 0; i < n; i++) {
        const int64_t p = first + i + a->count - a->s.queries, at = p > 0 ? p : 0;
        const int64_t least = a->window && p - a->window + 1 > 0 ? p - a->window + 1 : 0;
        lo[i] = hi[i] = 0;
        if (!a->count || (a->causal && p < 0)) continue;
        if (reset && (start < 0 || reset[at] > 0)) {
            for (start = at; start > least && !(reset[start] > 0); start--) {}
            for (stop = at + 1; !a->causal && stop < a->count && !(reset[stop] > 0); stop++) {}
        }
        lo[i] = (int32_t)(start > least ? start : least);
        hi[i] = (int32_t)(a->causal ? p + 1 : stop);
    }
}

/// What a block's rows see, counted from its first key.
typedef struct visible {
    int64_t rows, keys;
    int32_t from[ROWS], to[ROWS];
} visible;

/// Of `rows` queries with these ranges, `keys` keys from `first` on. Gives whether any is seen.
static int look(visible *v, const int32_t *lo, const int32_t *hi, int64_t rows, int64_t first, int64_t keys) {
    v->rows = rows, v->keys = keys;
    int any = 0;
    for (int64_t r = 0; r < rows; r++) {
        const int64_t from = lo[r] - first, to = hi[r] - first;
        v->from[r] = (int32_t)(from < 0 ? 0 : from > keys ? keys : from);
        v->to[r] = (int32_t)(to < 0 ? 0 : to > keys ? keys : to);
        any |= v->from[r] < v->to[r];
    }
    return any;
}

/// The rows that see any of the keys first .. last - 1: [*begin, *end).
KR_INLINE void rows_that_see(const visible *v, int64_t first, int64_t last, int64_t *begin, int64_t *end) {
    for (*begin = 0; *begin < v->rows && v->to[*begin] <= first; ++*begin) {}
    for (*end = v->rows; *end > *begin && v->from[*end - 1] >= last; --*end) {}
}

// Products --------------------------------------------------------------------------------------------------------

/// Of 16 vectors, the sums (or largest lanes) of each, as one vector: halves are folded onto each other four times.
#define FOLD(v, s, combine)                                                                      \
    UNROLL for (int i = 0; i < (s); i++) {                                                       \
        const kr_vf x = v[i], y = v[i + (s)];                                                    \
        v[i] = combine(__builtin_shufflevector(x, y, LANES_OF(LOW_LANE, s)),                     \
                       __builtin_shufflevector(x, y, LANES_OF(HIGH_LANE, s)));                   \
    }
#define FOLD_ALL(v, combine) FOLD(v, 8, combine) FOLD(v, 4, combine) FOLD(v, 2, combine) FOLD(v, 1, combine)
KR_INLINE kr_vf plus(kr_vf x, kr_vf y) { return x + y; }
KR_INLINE kr_vf sums_of(kr_vf v[16]) {
    FOLD_ALL(v, plus)
    return v[0];
}
KR_INLINE kr_vf largest_of(kr_vf v[16]) {
    FOLD_ALL(v, kr_v_max)
    return v[0];
}

/// c = a b^T for a few rows: keys are read once, as they lie, 16 at a time.
static void few_scores(const float *a, int64_t lda, const float *b, int64_t ldb, int64_t dim, const visible *v,
                       float *c) {
    for (int64_t key = 0; key < v->keys; key += KR_LANES)
        for (int64_t r = 0; r < v->rows; r++) {
            kr_vf sum[KR_LANES];
            for (int64_t i = 0; i < KR_LANES; i++) {
                sum[i] = kr_v_set(0);
                if (key + i >= v->keys) continue;
                const float *x = a + r * lda, *y = b + (key + i) * ldb;
                int64_t n = 0;
                for (; n + KR_LANES <= dim; n += KR_LANES) sum[i] += kr_v_load(x + n) * kr_v_load(y + n);
                if (n < dim) sum[i] += kr_v_load_n(x + n, dim - n) * kr_v_load_n(y + n, dim - n);
            }
            kr_v_store(c + r * ROWS + key, sums_of(sum));
        }
}

/// c [rows, keys] = a [rows, dim] b [keys, dim]^T, where visible.
static void multiply_scores(const float *a, int64_t lda, const float *b, int64_t ldb, int64_t dim, const visible *v,
                            float *c) {
    _Alignas(64) float panel[DEPTH * PANEL];
    if (v->rows < FEW) {
        few_scores(a, lda, b, ldb, dim, v, c);
        return;
    }
    for (int64_t j = 0; j < v->keys; j += PANEL) {
        const int64_t cols = v->keys - j < PANEL ? v->keys - j : PANEL;
        int64_t r, end, at = 0;
        rows_that_see(v, j, j + cols, &r, &end);
        do {
            const int64_t depth = dim - at < DEPTH ? dim - at : DEPTH;
            float *to = c + r * ROWS + j;
            if (r >= end) break;
            tile_pack(b + j * ldb + at, ldb, 1, depth, cols, panel);
            tile_rows(a + r * lda + at, 0, lda, panel, depth, to, ROWS, at ? to : 0, ROWS, 0, end - r, cols);
            at += depth;
        } while (at < dim);
    }
}

/// c [rows, dim] += a [rows, keys] b [keys, dim].
static void add_to_rows(const float *a, const float *b, int64_t ldb, int64_t dim, const visible *v, float *c,
                        int64_t ldc) {
    _Alignas(64) float panel[ROWS * PANEL];
    for (int64_t j = 0; j < dim; j += PANEL) {
        const int64_t cols = dim - j < PANEL ? dim - j : PANEL;
        tile_pack(b + j, ldb, 0, v->keys, cols, panel);
        for (int64_t r = 0; r < v->rows; r += TILE_ROWS) {
            const int64_t rows = v->rows - r < TILE_ROWS ? v->rows - r : TILE_ROWS;
            const int64_t from = v->from[r], to = v->to[r + rows - 1];
            float *at = c + r * ldc + j;
            if (from < to)
                tile_rows(a + r * ROWS + from, 0, ROWS, panel + from * PANEL, to - from, at, ldc, at, ldc, 0, rows,
                          cols);
        }
    }
}

/// c [keys, dim] += a [rows, keys]^T b [rows, dim].
__attribute__((unused)) static void add_to_keys(const float *a, const float *b, int64_t ldb, int64_t dim,
                                                const visible *v, float *c, int64_t ldc) {
    _Alignas(64) float panel[ROWS * PANEL], strip[ROWS * ROWS];
    tile_pack_strip(a, ROWS, v->rows, v->keys, strip);
    for (int64_t j = 0; j < dim; j += PANEL) {
        const int64_t cols = dim - j < PANEL ? dim - j : PANEL;
        tile_pack(b + j, ldb, 0, v->rows, cols, panel);
        for (int64_t key = 0; key < v->keys; key += TILE_ROWS) {
            const int64_t keys = v->keys - key < TILE_ROWS ? v->keys - key : TILE_ROWS;
            float *at = c + key * ldc + j;
            int64_t r, end;
            rows_that_see(v, key, key + keys, &r, &end);
            if (r < end)
                tile_rows(strip + key * v->rows + r * TILE_ROWS, 1, 0, panel + r * PANEL, end - r, at, ldc, at, ldc, 0,
                          keys, cols);
        }
    }
}

/// Lanes of 16 keys from `key` that lie in from .. to - 1.
KR_INLINE kr_vi seen(int64_t key, int64_t from, int64_t to) {
    const kr_vi lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, at = lane + kr_v_seti((int32_t)key);
    return (at >= kr_v_seti((int32_t)from)) & (at < kr_v_seti((int32_t)to));
}

static void zero_rows(float *x, int64_t pitch, int64_t rows, int64_t cols) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t n = 0; n < cols; n++) x[r * pitch + n] = 0;
}

/// A unit's place in an order of `n` that pairs long with short: first, last, second, last but one ... Every share of
/// consecutive units then has about the same work under causal order.
KR_INLINE int64_t balanced(int64_t unit, int64_t n) { return unit % 2 ? n - 1 - unit / 2 : unit / 2; }

#endif
