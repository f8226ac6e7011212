/// The product of two matrices that fit in the caches: c = from + bias + op(a) op(b), for kernels.
///
/// The result is made tile by tile: TILE_ROWS by PANEL sums stay in registers while K goes by (the register blocking of
/// Goto & van de Geijn 2008, "Anatomy of high-performance matrix multiplication"). op(b) is packed into panels
/// [DEPTH][PANEL] that stay in the first cache and serve all rows; a is read where it lies, or, when it is transposed,
/// packed once per STRIP rows. K is cut every DEPTH, with the sums so far in c. Every element is summed along K in one
/// order, whatever tile it is in, so the way a result is cut into blocks does not show in its bits.
#ifndef KRAIT_OPS_TILE_H
#define KRAIT_OPS_TILE_H

#include "ops/lanes.h"

#if defined(__AVX512F__)
enum { TILE_ROWS = 12, TILE_PART = 4, TILE_VECTORS = 2 }; // 24 of 32 registers hold sums
#elif defined(__AVX__)
enum { TILE_ROWS = 6, TILE_PART = 2, TILE_VECTORS = 1 };  // 12 of 16, two registers to a vector
#else
enum { TILE_ROWS = 2, TILE_PART = 2, TILE_VECTORS = 1 };  // 8 of 16, four registers to a vector
#endif
enum { PANEL = TILE_VECTORS * KR_LANES, DEPTH = 256, STRIP = 8 * TILE_ROWS };

#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

/// Matrices with their pitches: a [m, k] or transposed [k, m], b [k, n] or transposed [n, k], c and from [m, n], bias [n].
/// from and bias may be null; from may be c.
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

/// to[k * PANEL + j] = from[j * pitch + k], 16 by 16.
static void tile_transpose(const float *from, int64_t pitch, float *to) {
    kr_vf v[16];
    UNROLL for (int j = 0; j < 16; j++) v[j] = kr_v_load(from + j * pitch);
    SWAP_SQUARES(v, 8)
    SWAP_SQUARES(v, 4)
    SWAP_SQUARES(v, 2)
    SWAP_SQUARES(v, 1)
    UNROLL for (int k = 0; k < 16; k++) kr_v_store(to + k * PANEL, v[k]);
}

/// panel[k][j] = op(b)[k][j] for `depth` rows; zeros from `cols` up to the next multiple of 16.
static void tile_pack(const float *b, int64_t pitch, int transposed, int64_t depth, int64_t cols, float *panel) {
    for (int64_t j = 0; j < PANEL && j < cols; j += KR_LANES) {
        const int64_t left = cols - j < KR_LANES ? cols - j : KR_LANES;
        if (!transposed) {
            for (int64_t k = 0; k < depth; k++) kr_v_store(panel + k * PANEL + j, kr_v_load_n(b + k * pitch + j, left));
            continue;
        }
        int64_t k = 0;
        if (left == KR_LANES)
            for (; k + 16 <= depth; k += 16) tile_transpose(b + j * pitch + k, pitch, panel + k * PANEL + j);
        for (; k < depth; k++) {
            for (int64_t l = 0; l < left; l++) panel[k * PANEL + j + l] = b[(j + l) * pitch + k];
            for (int64_t l = left; l < KR_LANES; l++) panel[k * PANEL + j + l] = 0;
        }
    }
}

/// strip[r / TILE_ROWS][k][r % TILE_ROWS] = a[k][r] for `rows` columns of a transposed a: tiles then read it in order.
/// Rows of a are the outer loop: read across, their lines would be evicted before their next piece is wanted.
static void tile_pack_strip(const float *a, int64_t pitch, int64_t depth, int64_t rows, float *strip) {
    const int64_t whole = rows / TILE_ROWS * TILE_ROWS;
    for (int64_t k = 0; k < depth; k++, a += pitch, strip += TILE_ROWS) {
        for (int64_t r = 0; r < whole; r += TILE_ROWS) __builtin_memcpy(strip + r * depth, a + r, TILE_ROWS * sizeof *a);
        for (int64_t r = whole; r < rows; r++) strip[whole * depth + r - whole] = a[r];
    }
}

// Tiles -----------------------------------------------------------------------------------------------------------

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

/// One panel of columns against `rows` rows of a (or of a strip).
KR_INLINE void tile_column(const float *a, int strip, int64_t lda, const float *panel, int64_t depth, float *c, int64_t ldc,
                           const float *from, int64_t ldf, const float *bias, int64_t rows, int64_t cols) {
    tile_kernel *const *kernel = tile_kernels[strip][cols <= KR_LANES];
    for (int64_t r = 0; r < rows;) {
        const int64_t left = rows - r, at = strip ? r / TILE_ROWS * depth * TILE_ROWS + r % TILE_ROWS : r * lda;
        const int size = left >= TILE_ROWS ? 0 : left >= TILE_PART ? 1 : 2;
        kernel[size](a + at, lda, panel, depth, c + r * ldc, ldc, from ? from + r * ldf : 0, ldf, bias, cols);
        r += size == 0 ? TILE_ROWS : size == 1 ? TILE_PART : 1;
    }
}

/// c = from + bias + op(a) op(b). m, n and k may be anything from 1 up.
static void tile_multiply(const tile_product *p) {
    _Alignas(64) float panel[DEPTH * PANEL], strip[DEPTH * STRIP];
    const int64_t step = p->ta ? STRIP : p->m;
    for (int64_t row = 0; row < p->m; row += step) {
        const int64_t rows = p->m - row < step ? p->m - row : step;
        for (int64_t k = 0; k < p->k; k += DEPTH) {
            const int64_t depth = p->k - k < DEPTH ? p->k - k : DEPTH, ldf = k ? p->ldc : p->ldf;
            const float *a = p->ta ? strip : p->a + k, *from = k ? p->c : p->from, *bias = k ? 0 : p->bias;
            if (p->ta) tile_pack_strip(p->a + k * p->lda + row, p->lda, depth, rows, strip);
            for (int64_t j = 0; j < p->n; j += PANEL) {
                tile_pack(p->b + (p->tb ? j * p->ldb + k : k * p->ldb + j), p->ldb, p->tb, depth, p->n - j, panel);
                tile_column(a, p->ta, p->lda, panel, depth, p->c + row * p->ldc + j, p->ldc,
                            from ? from + row * ldf + j : 0, ldf, bias ? bias + j : 0, rows, p->n - j);
            }
        }
    }
}

#endif
