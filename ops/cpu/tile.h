/// The product of two matrices, for kernels: c = from + bias + op(a) op(b), by one thread.
///
/// The result is made tile by tile: TILE_ROWS by PANEL sums stay in registers while K goes by (the register blocking of
/// Goto & van de Geijn 2008, "Anatomy of high-performance matrix multiplication"). A piece of op(b), PACKED floats at
/// most, is packed into panels [depth][PANEL] that stay in the second cache and serve all rows. a is read where it
/// lies, STRIP rows at a time; when it is transposed, a strip is packed too. Both are packed, and c is written, along
/// their rows: from memory beyond the caches, whole rows come several times as fast as columns of lines. While a strip
/// is multiplied, the next one and the next piece of b are prefetched into the second cache, a few lines before each
/// tile, and so is the room of the tile in c: what comes from memory then costs bandwidth, but no waiting.
/// Every element is summed along K in one order, whatever tile, strip or block it is in, so the bits of a product do
/// not depend on how its rows and columns are shared out; where K is longer than a piece is deep, the sum so far waits
/// in c.
#ifndef KRAIT_OPS_CPU_TILE_H
#define KRAIT_OPS_CPU_TILE_H

#include "ops/cpu/lanes.h"

#if defined(__AVX512F__)
enum { TILE_ROWS = 8, TILE_PART = 4, TILE_VECTORS = 3 }; // 24 of 32 registers hold sums
#elif defined(__AVX__)
enum { TILE_ROWS = 6, TILE_PART = 2, TILE_VECTORS = 1 }; // 12 of 16, two registers to a vector
#else
enum { TILE_ROWS = 2, TILE_PART = 2, TILE_VECTORS = 1 }; // 8 of 16, four registers to a vector
#endif
enum {
    PANEL = TILE_VECTORS * KR_LANES,
    GROUP = 24, // rows that a panel serves while it is in the first cache; a multiple of TILE_ROWS
    BURST = 32, // steps along K
    STRIP = 96, // a multiple of GROUP
    PACKED = 128 * 1024,
    DEEP = 640,            // most of K in a piece
    DEEP_TRANSPOSED = 240, // the same where a is transposed
};

#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#define UNROLL_FOUR _Pragma("clang loop unroll_count(4)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#define UNROLL_FOUR _Pragma("GCC unroll 4")
#endif

#define KR_TILE static __attribute__((unused)) // whoever includes this file may want a part of it

/// Matrices with their pitches: a [m, k] or transposed [k, m], b [k, n] or transposed [n, k], c and from [m, n], and
/// bias [n]. from and bias may be null; from may be c. finish, where not null, is called with every block of c that is
/// done, while it is in the second cache.
typedef struct tile_product {
    int64_t m, n, k;
    const float *a, *b, *from, *bias;
    float *c;
    int64_t lda, ldb, ldf, ldc;
    int ta, tb;
    void (*finish)(float *c, int64_t rows, int64_t cols, int64_t pitch, int how);
    int how;
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

/// v[i][l] becomes v[l][i].
KR_INLINE void tile_turn(kr_vf v[16]) {
    SWAP_SQUARES(v, 8)
    SWAP_SQUARES(v, 4)
    SWAP_SQUARES(v, 2)
    SWAP_SQUARES(v, 1)
}

/// to[k * PANEL + j] = from[j * pitch + k], 16 by 16.
KR_TILE void tile_transpose(const float *from, int64_t pitch, float *to) {
    kr_vf v[16];
    UNROLL for (int j = 0; j < 16; j++) v[j] = kr_v_load(from + j * pitch);
    tile_turn(v);
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

// Prefetching -----------------------------------------------------------------------------------------------------

/// A matrix that will be wanted soon: its lines are prefetched row by row, `pace` every BURST steps along K; many at
/// once would keep what the present tile reads waiting.
typedef struct tile_ahead {
    const float *row;
    int64_t pitch, rows, lines, line, pace;
} tile_ahead;

KR_TILE tile_ahead tile_ahead_of(const float *from, int64_t pitch, int64_t rows, int64_t cols, int64_t bursts) {
    const int64_t lines = cols / KR_LANES + 1; // a row may begin anywhere in its first line
    return (tile_ahead){from, pitch, rows, lines, 0, rows * lines / (bursts ? bursts : 1) + 1};
}

KR_INLINE void tile_fetch(tile_ahead *next) {
    for (int64_t k = next->pace; k > 0 && next->rows > 0; k--) {
        __builtin_prefetch(next->row + next->line * KR_LANES, 0, 2);
        if (++next->line < next->lines) continue;
        next->line = 0;
        next->row += next->pitch;
        next->rows--;
    }
}

// Tiles -----------------------------------------------------------------------------------------------------------

// clang-format off
/// c = from + bias + a panel, for `rows` rows and at most 16 * vectors columns.
KR_INLINE void tile(const float *a, int64_t along_m, int64_t along_k, const float *panel, int64_t depth, float *c,
                    int64_t ldc, const float *from, int64_t ldf, const float *bias, int64_t cols, tile_ahead *next,
                    const int rows, const int vectors) {
    kr_vf acc[TILE_ROWS][TILE_VECTORS], add[TILE_VECTORS];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < vectors; v++) acc[r][v] = kr_v_set(0);
    // Every third row has a pointer: with one and two pitches as index the loop needs no other addresses. The compiler
    // is not told how they are related, for it would then compute them from one another in every step.
    const float *row[(TILE_ROWS + 2) / 3];
    UNROLL for (int r = 0; r < rows; r += 3) {
        row[r / 3] = a + r * along_m;
        __asm__("" : "+r"(row[r / 3]));
    }
    for (int64_t k = 0; k < depth;) {
        const int64_t end = depth - k < BURST ? depth : k + BURST;
        if (next) {
            tile_fetch(&next[0]);
            tile_fetch(&next[1]);
        }
        UNROLL_FOUR
        for (; k < end; k++, panel += PANEL) {
            kr_vf w[TILE_VECTORS];
            UNROLL for (int v = 0; v < vectors; v++) w[v] = kr_v_load(panel + v * KR_LANES);
            UNROLL for (int r = 0; r < rows; r++) {
                const kr_vf x = kr_v_set(row[r / 3][k * along_k + r % 3 * along_m]);
                UNROLL for (int v = 0; v < vectors; v++) acc[r][v] += x * w[v];
            }
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
                         const float *from, int64_t ldf, const float *bias, int64_t cols, tile_ahead *next);
#define TILE(name, along_m, along_k, rows, vectors)                                                           \
    static void name(const float *a, int64_t pitch, const float *panel, int64_t depth, float *c, int64_t ldc, \
                     const float *from, int64_t ldf, const float *bias, int64_t cols, tile_ahead *next) {     \
        (void)pitch;                                                                                          \
        tile(a, along_m, along_k, panel, depth, c, ldc, from, ldf, bias, cols, next, rows, vectors);          \
    }
#define TILES(vectors)                                                \
    TILE(tile_##vectors, pitch, 1, TILE_ROWS, vectors)                \
    TILE(tile_part_##vectors, pitch, 1, TILE_PART, vectors)           \
    TILE(tile_row_##vectors, pitch, 1, 1, vectors)                    \
    TILE(tile_strip_##vectors, 1, TILE_ROWS, TILE_ROWS, vectors)      \
    TILE(tile_strip_part_##vectors, 1, TILE_ROWS, TILE_PART, vectors) \
    TILE(tile_strip_row_##vectors, 1, TILE_ROWS, 1, vectors)
#define TILES_OF(vectors)                                                             \
    {                                                                                 \
        {tile_##vectors, tile_part_##vectors, tile_row_##vectors}, {                  \
            tile_strip_##vectors, tile_strip_part_##vectors, tile_strip_row_##vectors \
        }                                                                             \
    }
TILES(1)
#ifdef __AVX512F__
TILES(2)
TILES(3)
#endif
static tile_kernel *const tile_kernels[TILE_VECTORS][2][3] = {
    TILES_OF(1),
#ifdef __AVX512F__
    TILES_OF(2),
    TILES_OF(3),
#endif
};

/// `rows` rows of c from packed panels: c = from + bias + a panels. a lies in rows with a pitch, or in a strip.
/// Meanwhile the two matrices at `next` are prefetched, if it is not null.
KR_TILE void tile_rows_ahead(const float *a, int strip, int64_t lda, const float *panels, int64_t depth, float *c,
                             int64_t ldc, const float *from, int64_t ldf, const float *bias, int64_t rows, int64_t cols,
                             tile_ahead *next) {
    for (int64_t group = 0; group < rows; group += GROUP) {
        const int64_t end = rows - group < GROUP ? rows : group + GROUP;
        for (int64_t j = 0; j < cols; j += PANEL) {
            const int64_t vectors = cols - j < PANEL ? (cols - j + KR_LANES - 1) / KR_LANES : TILE_VECTORS;
            for (int64_t r = group; r < end;) {
                const int64_t left = end - r, step = left >= TILE_ROWS ? TILE_ROWS : left >= TILE_PART ? TILE_PART : 1;
                const int64_t at = strip ? r / TILE_ROWS * depth * TILE_ROWS + r % TILE_ROWS : r * lda;
                const int size = step == TILE_ROWS ? 0 : step == TILE_PART ? 1 : 2;
                for (int64_t i = r; next && i < r + step; i++)
                    for (int64_t v = 0; v < vectors; v++) __builtin_prefetch(c + i * ldc + j + v * KR_LANES, 1, 3);
                tile_kernels[vectors - 1][strip][size](a + at, lda, panels + j * depth, depth, c + r * ldc + j, ldc,
                                                       from ? from + r * ldf + j : 0, ldf, bias ? bias + j : 0,
                                                       cols - j, next);
                r += step;
            }
        }
    }
}

KR_TILE void tile_rows(const float *a, int strip, int64_t lda, const float *panels, int64_t depth, float *c,
                       int64_t ldc, const float *from, int64_t ldf, const float *bias, int64_t rows, int64_t cols) {
    tile_rows_ahead(a, strip, lda, panels, depth, c, ldc, from, ldf, bias, rows, cols, 0);
}

// Blocks ----------------------------------------------------------------------------------------------------------

/// One piece of op(b): its columns j to j + cols, its rows k to k + depth.
typedef struct tile_piece {
    int64_t j, k, cols, depth;
} tile_piece;

/// How b is cut: width by most, the last of each smaller.
typedef struct tile_cut {
    int64_t width, most;
} tile_cut;

KR_TILE tile_piece tile_piece_at(const tile_product *p, const tile_cut *cut, int64_t j, int64_t k) {
    const int64_t cols = p->n - j, depth = p->k - k;
    return (tile_piece){j, k, cols < cut->width ? cols : cut->width, depth < cut->most ? depth : cut->most};
}

/// The piece after that one, along K first; no columns behind the last.
KR_TILE tile_piece tile_piece_after(const tile_product *p, const tile_cut *cut, const tile_piece *at) {
    if (at->k + at->depth < p->k) return tile_piece_at(p, cut, at->j, at->k + at->depth);
    if (at->j + at->cols < p->n) return tile_piece_at(p, cut, at->j + at->cols, 0);
    return (tile_piece){0};
}

/// Prefetches rows r to r + STRIP of a's piece from k on, in that many bursts.
KR_TILE tile_ahead tile_ahead_a(const tile_product *p, int64_t r, int64_t k, int64_t depth, int64_t bursts) {
    const int64_t rows = p->m - r < STRIP ? p->m - r : STRIP;
    return p->ta ? tile_ahead_of(p->a + k * p->lda + r, p->lda, depth, rows, bursts)
                 : tile_ahead_of(p->a + r * p->lda + k, p->lda, rows, depth, bursts);
}

KR_TILE tile_ahead tile_ahead_b(const tile_product *p, const tile_piece *b, int64_t bursts) {
    return p->tb ? tile_ahead_of(p->b + b->j * p->ldb + b->k, p->ldb, b->cols, b->depth, bursts)
                 : tile_ahead_of(p->b + b->k * p->ldb + b->j, p->ldb, b->depth, b->cols, bursts);
}

/// All rows by one piece of b, which is packed.
KR_TILE void tile_multiply_piece(const tile_product *p, const tile_piece *at, const tile_piece *next,
                                 const float *panels, float *strip) {
    const int64_t k = at->k,
                  bursts = (at->cols + PANEL - 1) / PANEL * ((at->depth + BURST - 1) / BURST); // of a row of tiles
    const int64_t ldf = k ? p->ldc : p->ldf;
    const float *from = k ? p->c : p->from, *bias = k || !p->bias ? 0 : p->bias + at->j;
    tile_ahead ahead[2] = {[1] = tile_ahead_b(p, next, bursts * ((p->m + TILE_ROWS - 1) / TILE_ROWS))};
    for (int64_t r = 0; r < p->m; r += STRIP) {
        const int64_t rows = p->m - r < STRIP ? p->m - r : STRIP, tiles = (rows + TILE_ROWS - 1) / TILE_ROWS;
        const float *a = p->ta ? strip : p->a + r * p->lda + k, *add = from ? from + r * ldf + at->j : 0;
        float *c = p->c + r * p->ldc + at->j;
        ahead[0] = r + rows < p->m ? tile_ahead_a(p, r + rows, k, at->depth, bursts * tiles)
                                   : tile_ahead_a(p, 0, next->k, next->depth, bursts * tiles);
        if (p->ta) tile_pack_strip(p->a + k * p->lda + r, p->lda, at->depth, rows, strip);
        tile_rows_ahead(a, p->ta, p->lda, panels, at->depth, c, p->ldc, add, ldf, bias, rows, at->cols, ahead);
        if (p->finish && k + at->depth == p->k) p->finish(c, rows, at->cols, p->ldc, p->how);
    }
}

/// c = from + bias + op(a) op(b). m, n and k may be anything from 1 up.
KR_TILE void tile_multiply(const tile_product *p) {
    _Alignas(64) float panels[PACKED], strip[STRIP * DEEP_TRANSPOSED];
    const int64_t deep = p->ta ? DEEP_TRANSPOSED : DEEP, pieces = (p->k + deep - 1) / deep;
    const int64_t most = (p->k + pieces - 1) / pieces;
    const tile_cut cut = {PACKED / most / PANEL * PANEL, most};
    tile_piece next;
    for (tile_piece at = tile_piece_at(p, &cut, 0, 0); at.cols; at = next) {
        next = tile_piece_after(p, &cut, &at);
        const float *b = p->b + (p->tb ? at.j * p->ldb + at.k : at.k * p->ldb + at.j);
        tile_pack(b, p->ldb, p->tb, at.depth, at.cols, panels);
        tile_multiply_piece(p, &at, &next, panels, strip);
    }
}

#endif
