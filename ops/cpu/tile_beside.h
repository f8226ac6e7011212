/// What the vector units have to do for products of parts (tile_split.h): to pack both operands, and to look after the
/// sums. A piece of b is packed at once; all else is cut into small portions that are done beside the tile products,
/// which keep the tile unit busy for 16 cycles each and leave the other units idle.
///
/// Parts of both operands are packed as in tile_bf16.h, a pair being two elements 16 steps of K apart: a in tiles
/// [part][16 rows][16 pairs], b in tiles [part][16 pairs][16 columns], those of a row or column of tiles along K.
#ifndef KRAIT_OPS_CPU_TILE_BESIDE_H
#define KRAIT_OPS_CPU_TILE_BESIDE_H

#include "ops/cpu/tile_bf16.h"

enum {
    SPLIT_PARTS = 3,
    SPLIT_TURNS = 6,                      // products of a tile with all its parts
    SPLIT_TILE = SPLIT_PARTS * BF16_TILE, // words of a tile with all its parts
    SPLIT_DEEP = 416,                     // most of K in a piece
    SPLIT_DEEP_TRANSPOSED = 320,          // the same where a is transposed, whose lines then lie in as many rows
    SPLIT_PACKED = 256 * 1024,            // most words of a piece of b: 1 MiB
};

#if defined(__AVX512F__)

// Packing ---------------------------------------------------------------------------------------------------------

/// The bf16 nearest to each lane, as f32. Any of two that are as near will do.
KR_INLINE kr_vi split_nearest(kr_vf x) { return ((kr_vi)x + kr_v_seti(0x8000)) & kr_v_seti((int32_t)0xffff0000); }

/// Pairs of x (lower halves) and y, split: one line of each part's tile.
KR_INLINE void split_line(kr_vf x, kr_vf y, uint32_t *to) {
    for (int part = 0; part < SPLIT_PARTS; part++, to += BF16_TILE) {
        const kr_vi low = part < 2 ? split_nearest(x) : (kr_vi)x, high = part < 2 ? split_nearest(y) : (kr_vi)y;
        kr_v_store((float *)to, bf16_pairs(low, high));
        x -= (kr_vf)low;
        y -= (kr_vf)high;
    }
}

/// 16 by 16 elements from `rows` rows of `cols` in memory, zeros behind them.
KR_INLINE void split_load(const float *from, int64_t pitch, int64_t rows, int64_t cols, kr_vf v[BF16_SIDE]) {
    if (rows >= BF16_SIDE && cols >= BF16_SIDE) {
        UNROLL for (int i = 0; i < BF16_SIDE; i++) v[i] = kr_v_load(from + i * pitch);
        return;
    }
    for (int i = 0; i < BF16_SIDE; i++) v[i] = i < rows && cols > 0 ? kr_v_load_n(from + i * pitch, cols) : kr_v_set(0);
}

/// A tile of `cols` columns of op(b) and `depth` steps of K.
KR_INLINE void split_pack_tile(const float *b, int64_t pitch, const int transposed, int64_t cols, int64_t depth,
                               uint32_t *to) {
    kr_vf x[BF16_SIDE], y[BF16_SIDE];
    const int64_t second = depth > BF16_SIDE ? BF16_SIDE : 0, left = depth - BF16_SIDE;
    if (transposed) {
        split_load(b, pitch, cols, depth, x);
        split_load(b + second, pitch, cols, left, y);
        tile_turn(x);
        tile_turn(y);
    } else {
        split_load(b, pitch, depth, cols, x);
        split_load(b + second * pitch, pitch, left, cols, y);
    }
    for (int q = 0; q < BF16_SIDE; q++) split_line(x[q], y[q], to + q * BF16_SIDE);
}

/// Tiles, those of 16 columns along K one after another; read along the rows of memory.
KR_INLINE void split_pack(const float *b, int64_t pitch, const int transposed, int64_t cols, int64_t depth,
                          uint32_t *to) {
    const int64_t steps = (depth + BF16_STEP - 1) / BF16_STEP, lines = (cols + BF16_SIDE - 1) / BF16_SIDE;
    for (int64_t n = 0; n < lines * steps; n++) {
        const int64_t i = transposed ? n / steps : n % lines, s = transposed ? n % steps : n / lines;
        const int64_t j = i * BF16_SIDE, k = s * BF16_STEP;
        split_pack_tile(b + (transposed ? j * pitch + k : k * pitch + j), pitch, transposed, cols - j, depth - k,
                        to + (i * steps + s) * SPLIT_TILE);
    }
}

/// A piece of op(b), before anything is multiplied by it.
KR_TILE void split_pack_b(const float *b, int64_t pitch, int transposed, int64_t cols, int64_t depth, uint32_t *to) {
    if (transposed) split_pack(b, pitch, 1, cols, depth, to);
    else split_pack(b, pitch, 0, cols, depth, to);
}

KR_INLINE int64_t split_least(int64_t a, int64_t b) { return a < b ? a : b; }
KR_INLINE int64_t split_ceil(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// Where row r of op(a) begins in the piece.
KR_INLINE const float *split_row(const tile_product *p, int64_t r, int64_t k) {
    return p->a + (p->ta ? k * p->lda + r : r * p->lda + k);
}

// Beside the tiles ------------------------------------------------------------------------------------------------

/// A block of c.
typedef struct split_place {
    int64_t row, column, rows, cols;
} split_place;

/// So many portions of work, spread evenly over so many turns.
typedef struct split_pace {
    int64_t portions, turns, due;
} split_pace;

/// What is done beside a block: the block before is looked after, and the next strip of a, the rows of one block, is
/// packed. Both go line by line, a turn for every four tile products, which take 64 cycles: the tile unit must find its
/// next instructions among the 512 that the core holds, so there is room for some 100 others in a turn.
typedef struct split_side {
    const tile_product *p;
    tile_piece at;
    split_pace store, pack;
    split_place done;              // the block before, which has no rows where there is none
    int64_t row;                   // of it, the next that is looked after
    float *sums, *c;               // that row; sums null: it is in c already
    __mmask16 first, second;       // its columns
    const float *soon, *soon_from; // what the present block writes and what is added to that, row by row
    int64_t soon_rows;
    const float *lines, *ahead;     // of the strip that is packed, and of what will be packed after it
    uint32_t *to;                   // the line in the first of its tiles
    int64_t rows, line, step, half; // rows of the strip, and what is packed next
    int64_t left, steps;            // portions of the strip; steps along K
    kr_vf transposed[2][BF16_SIDE];     // halves of a tile of a transposed a
} split_side;

/// Packs one line of 32 elements; where a is transposed, its tile's halves are transposed before, a portion each.
/// Prefetches the same elements of what comes after the strip.
KR_INLINE void split_pack_portion(split_side *w) {
    const int64_t pitch = w->p->lda, k = w->step * BF16_STEP, left = w->at.depth - k;
    uint32_t *to = w->to + w->step * SPLIT_TILE;
    w->left--;
    if (!w->p->ta) { // along the rows of memory
        const float *from = w->lines + k;
        __builtin_prefetch(w->ahead + k, 0, 2); // lines come to the second cache in twos
        if (left >= BF16_STEP) {
            split_line(kr_v_load(from), kr_v_load(from + BF16_SIDE), to);
            w->step++;
            if (left > BF16_STEP) return;
        } else {
            split_line(kr_v_load_n(from, left),
                       left > BF16_SIDE ? kr_v_load_n(from + BF16_SIDE, left - BF16_SIDE) : kr_v_set(0), to);
        }
        w->step = 0;
        w->lines += pitch;
        w->ahead += pitch;
        w->to += ++w->line % BF16_SIDE ? BF16_SIDE : w->steps * SPLIT_TILE - BF16_TILE + BF16_SIDE;
    } else if (w->half < 2) {
        const int64_t before = k + w->half * BF16_SIDE, rows = w->at.depth - before, at = before * pitch + w->line;
        for (int64_t i = 0; i < BF16_SIDE && i < rows; i++) __builtin_prefetch(w->ahead + at + i * pitch, 0, 2);
        kr_vf *v = w->transposed[w->half++];
        split_load(w->lines + (rows > 0 ? at : 0), pitch, rows, w->rows - w->line, v);
        tile_turn(v);
    } else {
        const int64_t in = w->line % BF16_SIDE;
        to += w->line / BF16_SIDE * w->steps * SPLIT_TILE + in * BF16_SIDE;
        split_line(w->transposed[0][in], w->transposed[1][in], to);
        w->line++;
        if (in + 1 < BF16_SIDE && w->line < w->rows) return;
        w->half = 0;
        if (w->line < w->rows) return;
        w->line = 0;
        w->step++;
    }
}

/// Whether the first part of what is added to a product is what c holds, so that it is lost when c is written.
KR_INLINE int split_in_place(const tile_product *p) { return p->from == p->c; }

/// The elements of a row that are not finite, summed again in f32: over all of K so far, or where what is added to that
/// is lost by now, over that of the piece.
KR_TILE __attribute__((noinline)) void split_repair(const split_side *w, kr_vf value[2]) {
    const tile_product *p = w->p;
    const int64_t row = w->done.row + w->row, j = w->done.column, k = split_in_place(p) ? w->at.k : 0;
    float exact[BF16_BLOCK] = {0}, made[BF16_BLOCK];
    tile_multiply(&(tile_product){.m = 1,
                                  .n = w->done.cols,
                                  .k = w->at.k + w->at.depth - k,
                                  .a = split_row(p, row, k),
                                  .b = p->b + (p->tb ? j * p->ldb + k : k * p->ldb + j),
                                  .from = p->from ? p->from + row * p->ldf + j : 0,
                                  .bias = p->bias && !k ? p->bias + j : 0,
                                  .c = exact,
                                  .lda = p->lda,
                                  .ldb = p->ldb,
                                  .ldf = p->ldf,
                                  .ldc = BF16_BLOCK,
                                  .ta = p->ta,
                                  .tb = p->tb});
    kr_v_store(made, value[0]);
    kr_v_store(made + KR_LANES, value[1]);
    for (int x = 0; x < BF16_BLOCK; x++)
        if (!(made[x] - made[x] == 0)) made[x] = exact[x];
    value[0] = kr_v_load(made);
    value[1] = kr_v_load(made + KR_LANES);
}

/// Brings a row of the block before to c, where it is not there yet, and repairs it.
KR_INLINE void split_end_row(split_side *w) {
    enum { NOT_FINITE = 0x01 | 0x80 | 0x08 | 0x10 }; // quiet and signalling NaN, infinities
    const tile_product *p = w->p;
    const float *made = w->sums ? w->sums : w->c;
    kr_vf v[2] = {kr_v_load(made), kr_v_load(made + KR_LANES)};
    if (!w->at.k && p->from) {
        const float *from = p->from + (w->done.row + w->row) * p->ldf + w->done.column;
        v[0] += (kr_vf)_mm512_maskz_loadu_ps(w->first, from);
        v[1] += (kr_vf)_mm512_maskz_loadu_ps(w->second, from + KR_LANES);
    }
    if (!w->at.k && p->bias) {
        v[0] += (kr_vf)_mm512_maskz_loadu_ps(w->first, p->bias + w->done.column);
        v[1] += (kr_vf)_mm512_maskz_loadu_ps(w->second, p->bias + w->done.column + KR_LANES);
    }
    const int bad = _mm512_fpclass_ps_mask((__m512)v[0], NOT_FINITE) | _mm512_fpclass_ps_mask((__m512)v[1], NOT_FINITE);
    if (bad) split_repair(w, v);
    if (bad || w->sums) {
        _mm512_mask_storeu_ps(w->c, w->first, (__m512)v[0]);
        _mm512_mask_storeu_ps(w->c + KR_LANES, w->second, (__m512)v[1]);
    }
    if (w->sums) w->sums += BF16_BLOCK;
    w->c += p->ldc;
    w->row++;
}

/// Ends the block before and makes `now` the next, whose sums are in c where `sums` is null.
KR_TILE void split_follow(split_side *w, const split_place *now, float *sums) {
    const tile_product *p = w->p;
    while (w->row < w->done.rows) split_end_row(w);
    if (p->finish && w->done.rows && w->at.k + w->at.depth == p->k)
        p->finish(p->c + w->done.row * p->ldc + w->done.column, w->done.rows, w->done.cols, p->ldc, p->how);
    w->done = *now;
    w->row = 0;
    w->sums = sums;
    w->c = p->c + now->row * p->ldc + now->column;
    w->first = (__mmask16)(now->cols < KR_LANES ? (1 << now->cols) - 1 : 0xffff);
    w->second = (__mmask16)(now->cols < KR_LANES ? 0 : (1 << (now->cols - KR_LANES)) - 1);
}

/// The room of one row that the present block writes. Compilers have no instruction for that at this level.
KR_INLINE void split_fetch_row(split_side *w) {
    if (w->soon_rows-- <= 0) return;
    if (w->soon_from) {
        __builtin_prefetch(w->soon_from, 0, 3);
        __builtin_prefetch(w->soon_from + KR_LANES, 0, 3);
        __builtin_prefetch(w->soon_from + BF16_BLOCK - 1, 0, 3);
        w->soon_from += w->p->ldf;
    }
    __asm__ volatile("prefetchw (%0)\n\tprefetchw 64(%0)\n\tprefetchw 124(%0)" : : "r"(w->soon));
    w->soon += w->p->ldc;
}

/// A turn beside four tile products.
KR_TILE __attribute__((noinline)) void split_beside(split_side *w) {
    for (w->store.due += w->store.portions; w->store.due >= w->store.turns; w->store.due -= w->store.turns) {
        split_fetch_row(w);
        if (w->row < w->done.rows) split_end_row(w);
    }
    for (w->pack.due += w->pack.portions; w->pack.due >= w->pack.turns; w->pack.due -= w->pack.turns)
        if (w->left) split_pack_portion(w);
}

#endif

#endif
