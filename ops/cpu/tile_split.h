/// Products in f32 by the tiles for bf16 (AMX), for kernels: c = from + bias + op(a) op(b), by one thread.
///
/// An f32 has 24 significant bits, which three bf16 of 8 bits hold exactly: x = x1 + x2 + x3, where x1 is x rounded, x2
/// what is left rounded, and x3 what is left then. Of the nine products of the parts of x and y,
///
///   x y = x1 y1 + (x1 y2 + x2 y1) + (x1 y3 + x2 y2 + x3 y1) + ...
///
/// the three that are left out are at most 2^-24 |x y| together, as much as rounding one product to f32 may cost, and
/// the six are exact in f32, which is what they are summed in: 32 of a kind along K, then into the sum, the small kinds
/// first. So a sum has the error of f32 arithmetic, and less than one that adds K products one by one (Henry, Tang and
/// Heinecke 2019, "Leveraging the bfloat16 artificial intelligence datatype for higher-precision computations",
/// arXiv:1904.06376).
///
/// A Xeon multiplies 16 times as fast in bf16, so six products would take 0.38 of the time. Measured is 0.5 for a block
/// (400 against 197 GFLOP/s a core), since the clock is lower meanwhile (2.5 GHz; 3.1 with multiply-adds whose operands
/// are loaded), and 0.6 for whole products, since all parts come from the second cache, 32 bytes a cycle.
///
/// Two things differ from arithmetic on f32. Operands under 2^-103 lose low bits, which would be denormal parts. And
/// what is not finite, or rounds up to infinity, leaves no number in any sum that it is in; such sums are computed
/// again in f32. Which ones depends on their own operands alone, so as in tile.h the bits of an element do not depend
/// on the
/// block that it is in.
///
/// Parts are packed, and c is written, by what tile_beside.h has for that.
#ifndef KRAIT_OPS_CPU_TILE_SPLIT_H
#define KRAIT_OPS_CPU_TILE_SPLIT_H

#include "ops/cpu/tile_beside.h"

/// Whether splitting takes less time than multiply-adds do. Packing is not worth while for a few rows or columns, and a
/// block of c costs as much as one step along K.
KR_TILE int split_pays(int64_t m, int64_t n, int64_t k, kr_bf16_path path) {
#if defined(__AVX512F__)
    return path == KR_BF16_MATRIX && m >= 3 * BF16_BLOCK && n >= 3 * BF16_BLOCK && k >= 3 * BF16_STEP;
#else
    (void)m, (void)n, (void)k, (void)path;
    return 0;
#endif
}

#if defined(__AVX512F__)

// Blocks of 32 by 32 ----------------------------------------------------------------------------------------------

#define AMX __attribute__((target("amx-tile,amx-bf16")))
#define LOAD(first, second, x, part)                 \
    _tile_loadd(first, x + (part)*BF16_TILE, PITCH); \
    _tile_loadd(second, x##1 + (part)*BF16_TILE, PITCH);
#define MULTIPLY                           \
    _tile_dpbf16ps(0, 4, 6);               \
    if (wide) _tile_dpbf16ps(1, 4, 7);     \
    if (high) {                            \
        _tile_dpbf16ps(2, 5, 6);           \
        if (wide) _tile_dpbf16ps(3, 5, 7); \
    }                                      \
    split_beside(side);

/// c [32][32] = a b, or c + a b, where a and b are two rows of `steps` tiles each; high, wide: the second of a and of b
/// is there too.
KR_TILE AMX void split_block(const uint32_t *a, const uint32_t *b, int64_t steps, int high, int wide, float *c,
                             int64_t ldc, int add, split_side *side, tile_ahead *next) {
    enum { PITCH = 4 * BF16_SIDE }; // bytes
    const int64_t out = 4 * ldc;
    const uint32_t *a1 = a + high * steps * SPLIT_TILE, *b1 = b + wide * steps * SPLIT_TILE;
    float *below = c + BF16_SIDE * ldc;
    __asm__ volatile("" : : "r"(a), "r"(b), "r"(c) : "memory"); // gcc's tile loads do not say that they read memory
    if (add) {
        _tile_loadd(0, c, out);
        _tile_loadd(1, c + BF16_SIDE, out);
        _tile_loadd(2, below, out);
        _tile_loadd(3, below + BF16_SIDE, out);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t s = 0; s < steps; s++, a += SPLIT_TILE, a1 += SPLIT_TILE, b += SPLIT_TILE, b1 += SPLIT_TILE) {
        tile_fetch(next);
        LOAD(4, 5, a, 2)
        LOAD(6, 7, b, 0)
        MULTIPLY
        LOAD(4, 5, a, 1)
        MULTIPLY
        LOAD(6, 7, b, 1)
        MULTIPLY
        LOAD(4, 5, a, 0)
        MULTIPLY
        LOAD(6, 7, b, 2)
        MULTIPLY
        LOAD(6, 7, b, 0)
        MULTIPLY
    }
    _tile_stored(0, c, out);
    _tile_stored(1, c + BF16_SIDE, out);
    _tile_stored(2, below, out);
    _tile_stored(3, below + BF16_SIDE, out);
}
#undef LOAD
#undef MULTIPLY
#undef AMX

// Products --------------------------------------------------------------------------------------------------------

/// The strip from row r on will be packed in so many turns, and after it what lies at `ahead`.
KR_TILE void split_begin_strip(split_side *w, int64_t r, const float *ahead, uint32_t *to, int64_t turns) {
    w->rows = split_least(w->p->m - r, BF16_BLOCK);
    w->lines = split_row(w->p, r, w->at.k);
    w->ahead = ahead;
    w->to = to;
    w->line = w->step = w->half = 0;
    w->left = w->steps * (w->p->ta ? w->rows + 2 * split_ceil(w->rows, BF16_SIDE) : w->rows);
    w->pack = (split_pace){w->left, turns, 0};
}

/// sums = c, filled up with zeros.
KR_TILE void split_copy(const float *c, int64_t pitch, const split_place *at, float *sums) {
    for (int64_t i = 0; i < BF16_BLOCK; i++)
        for (int64_t j = 0; j < BF16_BLOCK; j += KR_LANES) {
            const int64_t left = split_least(at->cols - j, KR_LANES);
            kr_v_store(sums + i * BF16_BLOCK + j,
                       i < at->rows && left > 0 ? kr_v_load_n(c + i * pitch + j, left) : kr_v_set(0));
        }
}

/// All rows by one piece of b, which is packed.
KR_TILE void split_multiply_piece(const tile_product *p, const tile_piece *at, const tile_piece *next,
                                  const uint32_t *panels) {
    _Alignas(64) uint32_t strip[2][BF16_BLOCK * SPLIT_DEEP / 2 * SPLIT_PARTS];
    _Alignas(64) float sums[2][BF16_BLOCK * BF16_BLOCK];
    split_side w = {.p = p, .at = *at, .steps = split_ceil(at->depth, BF16_STEP)};
    const int64_t turns = w.steps * SPLIT_TURNS, across = split_ceil(at->cols, BF16_BLOCK);
    // Whole blocks go from the tiles to c, where nothing is added behind them or could be lost.
    const int whole = at->k ? !split_in_place(p) : !p->from && !p->bias;
    tile_ahead ahead = tile_ahead_b(p, next, w.steps * across * split_ceil(p->m, BF16_BLOCK));
    w.store = (split_pace){BF16_BLOCK, turns, 0};
    split_begin_strip(&w, 0, split_row(p, split_least(BF16_BLOCK, p->m - 1), at->k), strip[0], 1);
    while (w.left) split_pack_portion(&w);
    int made = 0, packed = 0;
    for (int64_t r = 0; r < p->m; r += BF16_BLOCK, packed ^= 1) {
        const int64_t then = r + BF16_BLOCK, later = then + BF16_BLOCK;
        w.pack = (split_pace){0, 1, 0};
        if (then < p->m)
            split_begin_strip(&w, then, later < p->m ? split_row(p, later, at->k) : split_row(p, 0, next->k),
                              strip[!packed], turns * across);
        for (int64_t j = 0; j < at->cols; j += BF16_BLOCK, made ^= 1) {
            const split_place now = {r, at->j + j, split_least(p->m - r, BF16_BLOCK),
                                     split_least(at->cols - j, BF16_BLOCK)};
            const int direct = whole && now.rows == BF16_BLOCK && now.cols == BF16_BLOCK;
            float *const c = p->c + now.row * p->ldc + now.column;
            if (at->k && !direct) split_copy(c, p->ldc, &now, sums[made]);
            w.soon = c;
            w.soon_from = p->from && !at->k ? p->from + now.row * p->ldf + now.column : 0;
            w.soon_rows = now.rows;
            split_block(strip[packed], panels + j / BF16_SIDE * w.steps * SPLIT_TILE, w.steps, now.rows > BF16_SIDE,
                        now.cols > BF16_SIDE, direct ? c : sums[made], direct ? p->ldc : BF16_BLOCK, at->k > 0, &w,
                        &ahead);
            split_follow(&w, &now, direct ? 0 : sums[made]);
        }
        while (w.left) split_pack_portion(&w);
    }
    split_follow(&w, &(split_place){0}, 0);
}

/// c = from + bias + op(a) op(b). m, n and k may be anything from 1 up.
KR_TILE void split_multiply(const tile_product *p) {
    _Alignas(64) uint32_t panels[SPLIT_PACKED];
    const int64_t pieces = split_ceil(p->k, p->ta ? SPLIT_DEEP_TRANSPOSED : SPLIT_DEEP);
    const int64_t most = split_ceil(split_ceil(p->k, pieces), BF16_STEP) * BF16_STEP;
    const int64_t fits = SPLIT_PACKED / (most / 2 * SPLIT_PARTS) / BF16_BLOCK * BF16_BLOCK;
    const tile_cut cut = {split_ceil(split_ceil(p->n, split_ceil(p->n, fits)), BF16_BLOCK) * BF16_BLOCK, most};
    bf16_matrix_begin();
    tile_piece next;
    for (tile_piece at = tile_piece_at(p, &cut, 0, 0); at.cols; at = next) {
        next = tile_piece_after(p, &cut, &at);
        split_pack_b(p->b + (p->tb ? at.j * p->ldb + at.k : at.k * p->ldb + at.j), p->ldb, p->tb, at.cols, at.depth,
                     panels);
        split_multiply_piece(p, &at, &next, panels);
    }
    bf16_matrix_end();
}
#endif

#endif
