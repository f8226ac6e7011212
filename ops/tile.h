/// The product of two matrices that fit in the caches: c = from + bias + op(a) op(b), for kernels.
///
/// The result is made tile by tile: TILE_ROWS by PANEL sums stay in registers while K goes by (the register blocking of
/// Goto & van de Geijn 2008, "Anatomy of high-performance matrix multiplication"). A piece of op(b), PACKED floats at
/// most, is packed into panels [depth][PANEL] that stay in the second cache and serve all rows. a is read where it
/// lies; when it is transposed, STRIP rows at a time are packed too. Both are packed, and c is written, along their
/// rows: from memory beyond the caches, whole rows come several times as fast as columns of lines.
/// Every element is summed along K in one order, whatever tile it is in; where K is longer than a piece is deep, the
/// sum so far waits in c.
#ifndef KRAIT_OPS_TILE_H
#define KRAIT_OPS_TILE_H

#include "ops/lanes.h"

#if defined(__AVX512F__)
enum { TILE_ROWS = 12, TILE_PART = 4, TILE_VECTORS = 2 }; // 24 of 32 registers hold sums
#elif defined(__AVX__)
enum { TILE_ROWS = 6, TILE_PART = 2, TILE_VECTORS = 1 }; // 12 of 16, two registers to a vector
#else
enum { TILE_ROWS = 2, TILE_PART = 2, TILE_VECTORS = 1 }; // 8 of 16, four registers to a vector
#endif
enum {
    PANEL = TILE_VECTORS * KR_LANES,
    STRIP = 192, // a multiple of TILE_ROWS
    PACKED = 128 * 320,
    DEEP = 320, // most of K in a piece
    DEEP_TRANSPOSED = 128,
};

#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

#define KR_TILE static __attribute__((unused)) // whoever includes this file may want a part of it

/// Matrices with their pitches: a [m, k] or transposed [k, m], b [k, n] or transposed [n, k], c and from [m, n], and
/// bias [n]. from and bias may be null; from may be c.
typedef struct tile_product {
    int64_t m, n, k;
    const float *a, *b, *from, *bias;
    float *c;
    int64_t lda, ldb, ldf, ldc;
    int ta, tb;
} tile_product;

// Packing b -------------------------------------------------------------------------------------------------------

/// Lane l of a step that swaps squares of s by s between the rows i (x) and i + s (y).
#define LOW_LANE(l, s) ((l) & (s) ? 16 + (l) - (s) : (l))
#define HIGH_LANE(l, s) ((l) & (s) ? 16 + (l) : (l) + (s))
#define LANES_OF(f, s)                                                                                            \
    f(0, s), f(1, s), f(2, s), f(3, s), f(4, s), f(5, s), f(6, s), f(7, s), f(8, s), f(9, s), f(10, s), f(11, s), \
        f(12, s), f(13, s), f(14, s), f(15, s)
// clang-format off
#define SWAP_SQUARES(v, s)                                                      \
    UNROLL for (int i = 0; i < 16; i++)                                         \
        if (!(i & (s))) {                                                       \
            const kr_vf x = v[i], y = v[i + (s)];                               \
            v[i] = __builtin_shufflevector(x, y, LANES_OF(LOW_LANE, s));        \
            v[i + (s)] = __builtin_shufflevector(x, y, LANES_OF(HIGH_LANE, s)); \
        }

/// to[k * PANEL + j] = from[j * pitch + k], 16 by 16.
KR_TILE void tile_transpose(const float *from, int64_t pitch, float *to) {
    kr_vf v[16];
    UNROLL for (int j = 0; j < 16; j++) v[j] = kr_v_load(from + j * pitch);
    SWAP_SQUARES(v, 8)
    SWAP_SQUARES(v, 4)
    SWAP_SQUARES(v, 2)
    SWAP_SQUARES(v, 1)
    UNROLL for (int k = 0; k < 16; k++) kr_v_store(to + k * PANEL, v[k]);
}
// clang-format on

/// panels[j / PANEL][k][j % PANEL] = op(b)[k][j] for `depth` rows; zeros from `cols` up to the next multiple of 16.
KR_TILE void tile_pack(const float *b, int64_t pitch, int transposed, int64_t depth, int64_t cols, float *panels) {
    if (!transposed) {
        for (int64_t k = 0; k < depth; k++)
            for (int64_t j = 0; j < cols; j += KR_LANES)
                kr_v_store(panels + j / PANEL * PANEL * depth + k * PANEL + j % PANEL,
                           kr_v_load_n(b + k * pitch + j, cols - j));
        return;
    }
    for (int64_t j = 0; j < cols; j += KR_LANES) {
        float *to = panels + j / PANEL * PANEL * depth + j % PANEL;
        const float *from = b + j * pitch;
        int64_t k = 0;
        if (cols - j >= KR_LANES)
            for (; k + 16 <= depth; k += 16) tile_transpose(from + k, pitch, to + k * PANEL);
        for (; k < depth; k++)
            for (int64_t l = 0; l < KR_LANES; l++) to[k * PANEL + l] = l < cols - j ? from[l * pitch + k] : 0;
    }
}

/// strip[r / TILE_ROWS][k][r % TILE_ROWS] = a[k][r] for `rows` columns of a transposed a: tiles then read it in order.
/// Rows of a are the outer loop: read across, their lines would be evicted before their next piece is wanted.
KR_TILE void tile_pack_strip(const float *a, int64_t pitch, int64_t depth, int64_t rows, float *strip) {
    const int64_t whole = rows / TILE_ROWS * TILE_ROWS;
    for (int64_t k = 0; k < depth; k++, a += pitch, strip += TILE_ROWS) {
        for (int64_t r = 0; r < whole; r += TILE_ROWS)
            __builtin_memcpy(strip + r * depth, a + r, TILE_ROWS * sizeof *a);
        for (int64_t r = whole; r < rows; r++) strip[whole * depth + r - whole] = a[r];
    }
}

// Tiles -----------------------------------------------------------------------------------------------------------

// clang-format off
/// c = from + bias + a panel, for `rows` rows and at most 16 * vectors columns.
KR_INLINE void tile(const float *a, int64_t along_m, int64_t along_k, const float *panel, int64_t depth, float *c,
                    int64_t ldc, const float *from, int64_t ldf, const float *bias, int64_t cols, const int rows,
                    const int vectors) {
    kr_vf acc[TILE_ROWS][TILE_VECTORS], add[TILE_VECTORS];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < vectors; v++) acc[r][v] = kr_v_set(0);
    for (int64_t k = 0; k < depth; k++, panel += PANEL, a += along_k) {
        kr_vf w[TILE_VECTORS];
        UNROLL for (int v = 0; v < vectors; v++) w[v] = kr_v_load(panel + v * KR_LANES);
        UNROLL for (int r = 0; r < rows; r++) {
            const kr_vf x = kr_v_set(a[r * along_m]);
            UNROLL for (int v = 0; v < vectors; v++) acc[r][v] += x * w[v];
        }
    }
    UNROLL for (int v = 0; v < vectors; v++)
        add[v] = bias ? kr_v_load_n(bias + v * KR_LANES, cols - v * KR_LANES) : kr_v_set(0);
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < vectors; v++) {
            const int64_t at = v * KR_LANES, left = cols - at;
            const kr_vf y = from ? kr_v_load_n(from + r * ldf + at, left) + add[v] : add[v];
            kr_v_store_n(c + r * ldc + at, y + acc[r][v], left);
        }
}
// clang-format on

typedef void tile_kernel(const float *a, int64_t pitch, const float *panel, int64_t depth, float *c, int64_t ldc,
                         const float *from, int64_t ldf, const float *bias, int64_t cols);
#define TILE(name, along_m, along_k, rows, vectors)                                                           \
    static void name(const float *a, int64_t pitch, const float *panel, int64_t depth, float *c, int64_t ldc, \
                     const float *from, int64_t ldf, const float *bias, int64_t cols) {                       \
        (void)pitch;                                                                                          \
        tile(a, along_m, along_k, panel, depth, c, ldc, from, ldf, bias, cols, rows, vectors);                \
    }
TILE(tile_wide, pitch, 1, TILE_ROWS, TILE_VECTORS)
TILE(tile_wide_part, pitch, 1, TILE_PART, TILE_VECTORS)
TILE(tile_wide_row, pitch, 1, 1, TILE_VECTORS)
TILE(tile_narrow, pitch, 1, TILE_ROWS, 1)
TILE(tile_narrow_part, pitch, 1, TILE_PART, 1)
TILE(tile_narrow_row, pitch, 1, 1, 1)
TILE(strip_wide, 1, TILE_ROWS, TILE_ROWS, TILE_VECTORS)
TILE(strip_wide_part, 1, TILE_ROWS, TILE_PART, TILE_VECTORS)
TILE(strip_wide_row, 1, TILE_ROWS, 1, TILE_VECTORS)
TILE(strip_narrow, 1, TILE_ROWS, TILE_ROWS, 1)
TILE(strip_narrow_part, 1, TILE_ROWS, TILE_PART, 1)
TILE(strip_narrow_row, 1, TILE_ROWS, 1, 1)
static tile_kernel *const tile_kernels[2][2][3] = {
    {{tile_wide, tile_wide_part, tile_wide_row}, {tile_narrow, tile_narrow_part, tile_narrow_row}},
    {{strip_wide, strip_wide_part, strip_wide_row}, {strip_narrow, strip_narrow_part, strip_narrow_row}},
};

/// `rows` rows of c from packed panels: c = from + bias + a panels. a lies in rows with a pitch, or in a strip.
KR_TILE void tile_rows(const float *a, int strip, int64_t lda, const float *panels, int64_t depth, float *c,
                       int64_t ldc, const float *from, int64_t ldf, const float *bias, int64_t rows, int64_t cols) {
    for (int64_t r = 0; r < rows;) {
        const int64_t left = rows - r, step = left >= TILE_ROWS ? TILE_ROWS : left >= TILE_PART ? TILE_PART : 1;
        const int64_t at = strip ? r / TILE_ROWS * depth * TILE_ROWS + r % TILE_ROWS : r * lda;
        const int size = step == TILE_ROWS ? 0 : step == TILE_PART ? 1 : 2;
        for (int64_t j = 0; j < cols; j += PANEL) {
            tile_kernel *const kernel = tile_kernels[strip][cols - j <= KR_LANES][size];
            kernel(a + at, lda, panels + j * depth, depth, c + r * ldc + j, ldc, from ? from + r * ldf + j : 0, ldf,
                   bias ? bias + j : 0, cols - j);
        }
        r += step;
    }
}

/// c = from + bias + op(a) op(b). m, n and k may be anything from 1 up.
KR_TILE void tile_multiply(const tile_product *p) {
    _Alignas(64) float panels[PACKED], strip[STRIP * DEEP_TRANSPOSED];
    const int64_t deep = p->ta ? DEEP_TRANSPOSED : DEEP, pieces = (p->k + deep - 1) / deep;
    const int64_t most = (p->k + pieces - 1) / pieces, width = PACKED / most / PANEL * PANEL;
    const int64_t height = p->ta ? STRIP : p->m;
    for (int64_t j = 0; j < p->n; j += width)
        for (int64_t k = 0; k < p->k; k += most) {
            const int64_t cols = p->n - j < width ? p->n - j : width, depth = p->k - k < most ? p->k - k : most;
            const float *from = k ? p->c : p->from, *bias = k || !p->bias ? 0 : p->bias + j;
            const int64_t ldf = k ? p->ldc : p->ldf;
            tile_pack(p->b + (p->tb ? j * p->ldb + k : k * p->ldb + j), p->ldb, p->tb, depth, cols, panels);
            for (int64_t r = 0; r < p->m; r += height) {
                const int64_t rows = p->m - r < height ? p->m - r : height;
                const float *a = p->ta ? strip : p->a + r * p->lda + k, *add = from ? from + r * ldf + j : 0;
                if (p->ta) tile_pack_strip(p->a + k * p->lda + r, p->lda, depth, rows, strip);
                tile_rows(a, p->ta, p->lda, panels, depth, p->c + r * p->ldc + j, p->ldc, add, ldf, bias, rows, cols);
            }
        }
}

#endif
