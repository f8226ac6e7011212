/// Small matrix products for kernels: everything lies in the first two caches, so nothing is packed. Tiles of rows by
/// vectors of sums stay in registers while the depth goes by; elements of a are broadcast, rows of b are vectors.
///
/// All matrices are padded: columns to whole vectors of 16, rows to multiples of 4. What lies in the padding may be any
/// finite number as far as these products are concerned, except along the depth, which is taken exactly.
///
/// Inside a chunk one operand or the result is block-triangular (`rank` rows of a token see all rows of their own and
/// of earlier tokens), and what is known to be zero is not computed: see `extent`.
#ifndef KRAIT_OPS_CPU_SMALL_PRODUCT_H
#define KRAIT_OPS_CPU_SMALL_PRODUCT_H

#include "ops/cpu/lanes.h"

#include <stdbool.h>

#if defined(__AVX512F__)
enum { TALL = 12, HALF = 8, SHORT = 4, WIDE = 2 };
#elif defined(__AVX__)
enum { TALL = 4, HALF = 4, SHORT = 4, WIDE = 1 };
#else
enum { TALL = 2, HALF = 2, SHORT = 2, WIDE = 1 };
#endif

#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#define NO_UNROLL _Pragma("clang loop unroll(disable)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#define NO_UNROLL _Pragma("GCC unroll 1")
#endif

typedef struct matrix {
    float *at;
    int64_t pitch;
} matrix;

/// What is known of the operands: nothing; c is wanted on and below the diagonal only; a is lower triangular; a is
/// given transposed and lies lower triangular.
enum extent { FULL, LOWER_RESULT, LOWER_LEFT, LOWER_ACROSS };

/// Rows of memory that will be wanted soon, `bytes` each. A head takes a few cache lines of each row, so the hardware
/// sees no stream to follow; while the products of one head run, they prefetch the rows of the next.
typedef struct stream {
    const char *row;
    int64_t pitch, rows, bytes, at; ///< at: how much of the row is prefetched
} stream;
enum { AHEAD = 16, LINE = 64, LINES_AT_ONCE = 10, STRETCH = 16 };
typedef struct prefetch {
    stream list[AHEAD];
    int count;
} prefetch;

KR_INLINE void prefetch_rows(prefetch *p, const float *at, int64_t pitch, int64_t rows, int64_t floats) {
    if (!at || rows <= 0 || floats <= 0 || p->count == AHEAD) return;
    p->list[p->count++] = (stream){(const char *)at, pitch * (int64_t)sizeof(float), rows,
                                   floats * (int64_t)sizeof(float), 0};
}

KR_INLINE void prefetch_next(prefetch *p) {
    if (!p->count) return;
    stream *a = &p->list[p->count - 1];
    const char *row = a->row;
    int64_t at = a->at, rows = a->rows;
    NO_UNROLL for (int k = 0; k < LINES_AT_ONCE && rows; k++) {
        __builtin_prefetch(row + at, 0, 2);
        at += LINE;
        const int64_t end = a->bytes + (int64_t)((uintptr_t)row % LINE); // rows need not start with a line
        if (at >= end) at = 0, row += a->pitch, rows--;
    }
    a->row = row, a->at = at, a->rows = rows;
    p->count -= !rows;
}

/// c = times from + scale (a0 b0) + a b, where every term may be absent (null at). Sums that have a part from the state
/// and a part from the chunk are made in one go, so that they are written once.
typedef struct product {
    enum extent extent;        ///< of a, b and c; a0 and b0 are full
    int64_t rank;              ///< rows of a token; the diagonal is blocks of rank by rank
    int64_t rows, cols, depth;
    matrix a, b, c;
    bool across;               ///< a is given as [depth, rows]
    matrix a0, b0;
    int64_t depth0;
    const float *scale;        ///< of every row of a0 b0
    const float *col_scale;    ///< of every column of a0 b0, padded
    matrix with;               ///< [rows, cols]: where lanes is not null, lanes[row] gets (a0 b0)[row] . with[row],
    float *lanes;              ///< unscaled and still to be summed over lanes;
    float *col_dots; ///< where not null, col_dots[col] gets (a0 b0)[:, col] . with[:, col], unscaled and padded
    matrix from;               ///< may be c
    float times;
    prefetch *ahead;           ///< may be null
} product;

/// sum += a b, with b from its first row on. Lines are prefetched a few at a time, so that they do not fill the buffers
/// that the products themselves need for what lies in the second cache.
KR_INLINE void accumulate(kr_vf sum[TALL][WIDE], const float *a, int64_t along_rows, int64_t along_depth, matrix b,
                          int64_t depth, const int rows, const int vectors, prefetch *ahead) {
    for (int64_t from = 0, to; from < depth; from = to) {
        if (ahead) prefetch_next(ahead);
        to = from + STRETCH < depth ? from + STRETCH : depth;
        for (int64_t k = from; k < to; k++, a += along_depth, b.at += b.pitch) {
            kr_vf w[WIDE];
            UNROLL for (int v = 0; v < vectors; v++) w[v] = kr_v_load(b.at + v * KR_LANES);
            UNROLL for (int r = 0; r < rows; r++) {
                const kr_vf x = kr_v_set(a[r * along_rows]);
                UNROLL for (int v = 0; v < vectors; v++) sum[r][v] += x * w[v];
            }
        }
    }
}

/// The tile of c at row i and column j, where a counts from `begin` along its depth.
KR_INLINE void tile(const product *p, int64_t i, int64_t j, int64_t begin, int64_t depth, const bool across,
                    const int rows, const int vectors) {
    kr_vf sum[TALL][WIDE];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < vectors; v++) sum[r][v] = kr_v_set(0);
    if (p->a0.at) {
        accumulate(sum, p->a0.at + i * p->a0.pitch, p->a0.pitch, 1, (matrix){p->b0.at + j, p->b0.pitch}, p->depth0,
                   rows, vectors, p->ahead);
        if (p->lanes) {
            UNROLL for (int r = 0; r < rows; r++) {
                const float *with = p->with.at + (i + r) * p->with.pitch + j;
                float *lanes = p->lanes + (i + r) * KR_LANES;
                kr_vf dot = j ? kr_v_load(lanes) : kr_v_set(0);
                UNROLL for (int v = 0; v < vectors; v++) dot += sum[r][v] * kr_v_load(with + v * KR_LANES);
                kr_v_store(lanes, dot);
            }
        }
        if (p->col_dots) {
            UNROLL for (int v = 0; v < vectors; v++) {
                float *dots = p->col_dots + j + v * KR_LANES;
                const float *with = p->with.at + i * p->with.pitch + j + v * KR_LANES;
                kr_vf even = i ? kr_v_load(dots) : kr_v_set(0), odd = kr_v_set(0);
                UNROLL for (int r = 0; r < rows; r += 2) {
                    even += sum[r][v] * kr_v_load(with + r * p->with.pitch);
                    odd += sum[r + 1][v] * kr_v_load(with + (r + 1) * p->with.pitch);
                }
                kr_v_store(dots, even + odd);
            }
        }
        if (p->col_scale) {
            UNROLL for (int r = 0; r < rows; r++)
                UNROLL for (int v = 0; v < vectors; v++) sum[r][v] *= kr_v_load(p->col_scale + j + v * KR_LANES);
        }
        if (p->scale) {
            UNROLL for (int r = 0; r < rows; r++)
                UNROLL for (int v = 0; v < vectors; v++) sum[r][v] *= kr_v_set(p->scale[i + r]);
        }
    }
    if (p->from.at) {
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int v = 0; v < vectors; v++)
                sum[r][v] += kr_v_set(p->times) * kr_v_load(p->from.at + (i + r) * p->from.pitch + j + v * KR_LANES);
    }
    if (p->a.at) {
        const float *a = p->a.at + (across ? begin * p->a.pitch + i : i * p->a.pitch + begin);
        const matrix b = {p->b.at + begin * p->b.pitch + j, p->b.pitch};
        accumulate(sum, a, across ? 1 : p->a.pitch, across ? p->a.pitch : 1, b, depth, rows, vectors, p->ahead);
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < vectors; v++)
            kr_v_store(p->c.at + (i + r) * p->c.pitch + j + v * KR_LANES, sum[r][v]);
}

typedef void tile_kernel(const product *p, int64_t i, int64_t j, int64_t begin, int64_t depth);
#define TILE(name, across, rows, vectors)                                                          \
    static void name(const product *p, int64_t i, int64_t j, int64_t begin, int64_t depth) {       \
        tile(p, i, j, begin, depth, across, rows, vectors);                                        \
    }
TILE(wide_tall, false, TALL, WIDE)
TILE(wide_half, false, HALF, WIDE)
TILE(wide_short, false, SHORT, WIDE)
TILE(narrow_tall, false, TALL, 1)
TILE(narrow_half, false, HALF, 1)
TILE(narrow_short, false, SHORT, 1)
TILE(across_wide_tall, true, TALL, WIDE)
TILE(across_wide_half, true, HALF, WIDE)
TILE(across_wide_short, true, SHORT, WIDE)
TILE(across_narrow_tall, true, TALL, 1)
TILE(across_narrow_half, true, HALF, 1)
TILE(across_narrow_short, true, SHORT, 1)
static tile_kernel *const tile_kernels[2][2][3] = {
    {{wide_tall, wide_half, wide_short}, {narrow_tall, narrow_half, narrow_short}},
    {{across_wide_tall, across_wide_half, across_wide_short},
     {across_narrow_tall, across_narrow_half, across_narrow_short}},
};

static void multiply(const product *p) {
    const int64_t rows = (p->rows + 3) / 4 * 4, cols = (p->cols + KR_LANES - 1) / KR_LANES * KR_LANES;
    for (int64_t j = 0; j < cols; j += WIDE * KR_LANES)
        for (int64_t i = 0, height; i < rows; i += height) {
            const int64_t left = rows - i;
            const int size = left >= TALL && (left != 2 * HALF || HALF == TALL) ? 0 : left >= HALF ? 1 : 2;
            height = size == 0 ? TALL : size == 1 ? HALF : SHORT;
            int64_t begin = 0, end = p->depth, wide = cols;
            if (p->extent != FULL) {
                const int64_t last = (i + height - 1) / p->rank * p->rank + p->rank; // end of the last row's token
                if (p->extent == LOWER_RESULT && last < wide) wide = (last + KR_LANES - 1) / KR_LANES * KR_LANES;
                if (p->extent == LOWER_LEFT && last < end) end = last;
                if (p->extent == LOWER_ACROSS) begin = i / p->rank * p->rank;
                if (j >= wide) continue;
            }
            tile_kernels[p->across][wide - j < WIDE * KR_LANES][size](p, i, j, begin, end > begin ? end - begin : 0);
        }
}

// Transposes
// ------------------------------------------------------------------------------------------------------------

/// Lane l of a step that swaps squares of s by s between the rows i (x) and i + s (y).
#define LOW_LANE(l, s) ((l) & (s) ? 16 + (l) - (s) : (l))
#define HIGH_LANE(l, s) ((l) & (s) ? 16 + (l) : (l) + (s))
#define LANES_OF(f, s)                                                                                              \
    f(0, s), f(1, s), f(2, s), f(3, s), f(4, s), f(5, s), f(6, s), f(7, s), f(8, s), f(9, s), f(10, s), f(11, s),   \
        f(12, s), f(13, s), f(14, s), f(15, s)
#define SWAP_SQUARES(v, s)                                                      \
    UNROLL for (int i = 0; i < 16; i++)                                         \
        if (!(i & (s))) {                                                       \
            const kr_vf x = v[i], y = v[i + (s)];                               \
            v[i] = __builtin_shufflevector(x, y, LANES_OF(LOW_LANE, s));        \
            v[i + (s)] = __builtin_shufflevector(x, y, LANES_OF(HIGH_LANE, s)); \
        }
KR_INLINE void transpose_square(kr_vf v[16]) {
    SWAP_SQUARES(v, 8)
    SWAP_SQUARES(v, 4)
    SWAP_SQUARES(v, 2)
    SWAP_SQUARES(v, 1)
}

/// to[j][i] = from[i][j] for [rows, cols]. padded: `to` has room for whole squares of 16, and gets zeros there.
static void transpose(const float *from, int64_t pitch, int64_t rows, int64_t cols, matrix to, bool padded) {
    for (int64_t i = 0; i < rows; i += 16)
        for (int64_t j = 0; j < cols; j += 16) {
            kr_vf v[16];
            const float *at = from + i * pitch + j;
            if (rows - i >= 16 && cols - j >= 16) {
                UNROLL for (int k = 0; k < 16; k++) v[k] = kr_v_load(at + k * pitch);
            } else {
                for (int k = 0; k < 16; k++) v[k] = i + k < rows ? kr_v_load_n(at + k * pitch, cols - j) : kr_v_set(0);
            }
            transpose_square(v);
            float *put = to.at + j * to.pitch + i;
            if (padded || (rows - i >= 16 && cols - j >= 16)) {
                UNROLL for (int k = 0; k < 16; k++) kr_v_store(put + k * to.pitch, v[k]);
            } else {
                for (int k = 0; k < 16 && j + k < cols; k++) kr_v_store_n(put + k * to.pitch, v[k], rows - i);
            }
        }
}

/// sums[i] = the sum over lanes of row i of [count, 16], in one fixed tree. count is rounded up to 16.
static inline void sum_lanes(const float *lanes, int64_t count, float *sums) {
    for (int64_t i = 0; i < count; i += 16) {
        kr_vf v[16];
        UNROLL for (int k = 0; k < 16; k++) v[k] = kr_v_load(lanes + (i + k) * KR_LANES);
        transpose_square(v);
        UNROLL for (int k = 0; k < 8; k++) v[k] += v[k + 8];
        UNROLL for (int k = 0; k < 4; k++) v[k] += v[k + 4];
        kr_v_store(sums + i, (v[0] + v[2]) + (v[1] + v[3]));
    }
}

#endif
