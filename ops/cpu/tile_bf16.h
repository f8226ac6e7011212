/// Products in bf16 by one thread, for kernels: c = from + bias + round(op(a)) round(op(b)), summed in f32.
///
/// Operands stay f32 in memory and are rounded, to nearest with ties to even, while they are packed. Packed elements
/// are pairs along K in one 32-bit word, because the instructions for bf16 multiply pairs: a lies in tiles [16 rows][16
/// pairs], b in tiles [16 pairs][16 columns], K filled up with zeros to a multiple of 32. A block of 32 by 32 sums is
/// made at a time, by one of three kernels:
///   AMX           four tile products of 16 x 16 x 32 a step along K, 1024 products a cycle
///   AVX512_BF16   pairs of products in 16 lanes
///   neither       both halves widened again, in f32 and at every instruction set level
/// They differ in the order in which the two products of a pair are added and in how denormals are treated; on each,
/// an element is summed in one order, whatever block it is in, so its bits do not depend on the sharing out.
/// Unlike in f32, packing takes as long as multiplying: both operands come from memory once as f32.
#ifndef KRAIT_OPS_CPU_TILE_BF16_H
#define KRAIT_OPS_CPU_TILE_BF16_H

#include "ops/cpu/tile.h"

enum {
    BF16_SIDE = 16,            // rows or columns of a tile, and pairs
    BF16_STEP = 2 * BF16_SIDE, // elements of K in a tile
    BF16_TILE = BF16_SIDE * BF16_SIDE,
    BF16_BLOCK = 2 * BF16_SIDE, // rows and columns of a block
    BF16_DEEP = 1024,           // most of K in a piece
    BF16_STRIP = 64,            // rows of a that are packed at a time
    BF16_PACKED = 256 * 1024,   // most words of a piece of b: 1 MiB
};

// Packing ---------------------------------------------------------------------------------------------------------

/// The upper half of each lane is the bf16 nearest to it; the lower half is rubbish. NaN stays NaN.
KR_INLINE kr_vi bf16_round(kr_vf x) {
    const kr_vi bits = (kr_vi)x, odd = (bits >> 16) & kr_v_seti(1);
    const kr_vi nearest = bits + (kr_v_seti(0x7fff) + odd), quiet = bits | kr_v_seti(0x00400000);
    return (kr_vi)kr_v_select(x != x, (kr_vf)quiet, (kr_vf)nearest);
}

KR_INLINE kr_vf bf16_pairs(kr_vi low, kr_vi high) {
    const kr_vi upper = kr_v_seti((int32_t)0xffff0000);
    return (kr_vf)(((low >> 16) & ~upper) | (high & upper));
}

/// One line of 32 elements that are next to each other: 16 pairs.
KR_INLINE kr_vf bf16_line(const float *from, int64_t count) {
    const kr_vi x = bf16_round(kr_v_load_n(from, count < 0 ? 0 : count));
    const kr_vi y = bf16_round(kr_v_load_n(from + (count > 16 ? 16 : 0), count < 16 ? 0 : count - 16));
    const kr_vi even = __builtin_shufflevector(x, y, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const kr_vi odd = __builtin_shufflevector(x, y, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    return bf16_pairs(even, odd);
}

/// A tile of `lines` rows of op(a) or columns of op(b), and `depth` steps of K. along_k: a line's elements are next to
/// each other, and lines `pitch` apart; otherwise the lines are next to each other. by_pair: [pair][line] is wanted.
KR_INLINE void bf16_pack_tile(const float *from, int64_t pitch, const int along_k, int64_t lines, int64_t depth,
                              const int by_pair, uint32_t *to) {
    kr_vf v[BF16_SIDE];
    for (int i = 0; i < BF16_SIDE; i++) {
        if (along_k) {
            const float *line = from + (i < lines ? i : 0) * pitch;
            __builtin_prefetch(line + 4 * BF16_STEP, 0, 2);
            __builtin_prefetch(line + 4 * BF16_STEP + 16, 0, 2);
            v[i] = i < lines ? bf16_line(line, depth) : kr_v_set(0);
        } else {
            const int first = 2 * i < depth, second = 2 * i + 1 < depth;
            const kr_vf low = first ? kr_v_load_n(from + 2 * i * pitch, lines) : kr_v_set(0);
            const kr_vf high = second ? kr_v_load_n(from + (2 * i + 1) * pitch, lines) : kr_v_set(0);
            v[i] = bf16_pairs(bf16_round(low), bf16_round(high));
        }
    }
    if (along_k == by_pair) tile_turn(v);
    for (int i = 0; i < BF16_SIDE; i++) kr_v_store((float *)to + i * BF16_SIDE, v[i]);
}

/// Tiles of `lines` lines, each line's along K one after another. A last odd tile gets a partner of zeros.
KR_INLINE void bf16_pack(const float *from, int64_t pitch, const int along_k, int64_t lines, int64_t depth,
                         const int by_pair, uint32_t *to) {
    const int64_t steps = (depth + BF16_STEP - 1) / BF16_STEP, rows = (lines + BF16_BLOCK - 1) / BF16_BLOCK * 2;
    if (along_k) {
        for (int64_t i = 0; i < rows; i++)
            for (int64_t s = 0; s < steps; s++) {
                const int64_t left = lines - i * BF16_SIDE;
                bf16_pack_tile(left > 0 ? from + i * BF16_SIDE * pitch + s * BF16_STEP : from, pitch, 1, left,
                               depth - s * BF16_STEP, by_pair, to + (i * steps + s) * BF16_TILE);
            }
        return;
    }
    for (int64_t s = 0; s < steps; s++) // along the rows of memory
        for (int64_t i = 0; i < rows; i++) {
            const int64_t left = lines - i * BF16_SIDE;
            bf16_pack_tile(left > 0 ? from + s * BF16_STEP * pitch + i * BF16_SIDE : from, pitch, 0,
                           left > 0 ? left : 0, depth - s * BF16_STEP, by_pair, to + (i * steps + s) * BF16_TILE);
        }
}

KR_TILE void bf16_pack_a(const float *a, int64_t pitch, int transposed, int64_t rows, int64_t depth, uint32_t *to) {
    if (transposed) bf16_pack(a, pitch, 0, rows, depth, 0, to);
    else bf16_pack(a, pitch, 1, rows, depth, 0, to);
}

KR_TILE void bf16_pack_b(const float *b, int64_t pitch, int transposed, int64_t cols, int64_t depth, uint32_t *to) {
    if (transposed) bf16_pack(b, pitch, 1, cols, depth, 1, to);
    else bf16_pack(b, pitch, 0, cols, depth, 1, to);
}

// Blocks of 32 by 32 ----------------------------------------------------------------------------------------------

/// sums [32][32] = a b, where a and b are two rows of `steps` tiles each.
typedef void bf16_block(const uint32_t *a, const uint32_t *b, int64_t steps, float *sums);

/// The two halves of a pair as f32: the first in the lower half.
KR_INLINE kr_vf bf16_first(kr_vi pairs) { return (kr_vf)(pairs << 16); }
KR_INLINE kr_vf bf16_second(kr_vi pairs) { return (kr_vf)(pairs & kr_v_seti((int32_t)0xffff0000)); }

KR_TILE void bf16_block_emulated(const uint32_t *a, const uint32_t *b, int64_t steps, float *sums) {
    enum { ROWS = 4 };
    for (int r = 0; r < BF16_BLOCK; r += ROWS)
        for (int v = 0; v < 2; v++) {
            const uint32_t *x = a + r / BF16_SIDE * steps * BF16_TILE + r % BF16_SIDE * BF16_SIDE;
            const uint32_t *w = b + v * steps * BF16_TILE;
            kr_vf acc[ROWS];
            UNROLL for (int i = 0; i < ROWS; i++) acc[i] = kr_v_set(0);
            for (int64_t s = 0; s < steps; s++, x += BF16_TILE, w += BF16_TILE)
                for (int q = 0; q < BF16_SIDE; q++) {
                    const kr_vi pairs = (kr_vi)kr_v_load((const float *)w + q * BF16_SIDE);
                    const kr_vf first = bf16_first(pairs), second = bf16_second(pairs);
                    UNROLL for (int i = 0; i < ROWS; i++) {
                        const kr_vi y = kr_v_seti((int32_t)x[i * BF16_SIDE + q]);
                        acc[i] += bf16_first(y) * first;
                        acc[i] += bf16_second(y) * second;
                    }
                }
            for (int i = 0; i < ROWS; i++) kr_v_store(sums + (r + i) * BF16_BLOCK + v * KR_LANES, acc[i]);
        }
}

#if defined(__AVX512F__)
/// Pairs are multiplied and added to 16 sums at once. 8 rows by 2 vectors hide the instruction's latency.
KR_TILE __attribute__((target("avx512bf16"))) void bf16_block_vector(const uint32_t *a, const uint32_t *b,
                                                                     int64_t steps, float *sums) {
    enum { ROWS = 8 };
    for (int r = 0; r < BF16_BLOCK; r += ROWS) {
        const uint32_t *x = a + r / BF16_SIDE * steps * BF16_TILE + r % BF16_SIDE * BF16_SIDE;
        const uint32_t *w0 = b, *w1 = b + steps * BF16_TILE;
        __m512 acc[ROWS][2];
        UNROLL for (int i = 0; i < ROWS; i++) acc[i][0] = acc[i][1] = _mm512_setzero_ps();
        for (int64_t s = 0; s < steps; s++, x += BF16_TILE, w0 += BF16_TILE, w1 += BF16_TILE)
            for (int q = 0; q < BF16_SIDE; q++) {
                const __m512bh y0 = (__m512bh)_mm512_loadu_si512(w0 + q * BF16_SIDE);
                const __m512bh y1 = (__m512bh)_mm512_loadu_si512(w1 + q * BF16_SIDE);
                UNROLL for (int i = 0; i < ROWS; i++) {
                    const __m512bh pair = (__m512bh)_mm512_set1_epi32((int)x[i * BF16_SIDE + q]);
                    acc[i][0] = _mm512_dpbf16_ps(acc[i][0], pair, y0);
                    acc[i][1] = _mm512_dpbf16_ps(acc[i][1], pair, y1);
                }
            }
        UNROLL for (int i = 0; i < ROWS; i++) {
            _mm512_storeu_ps(sums + (r + i) * BF16_BLOCK, acc[i][0]);
            _mm512_storeu_ps(sums + (r + i) * BF16_BLOCK + KR_LANES, acc[i][1]);
        }
    }
}

#define AMX __attribute__((target("amx-tile,amx-bf16")))

/// All tiles: 16 rows of 64 bytes. The registers are the thread's own; they are given back after every product.
KR_TILE AMX void bf16_matrix_begin(void) {
    enum { BYTES = 4 * BF16_SIDE, ROWS = BF16_SIDE };
    // Constant: gcc's intrinsic owns up to reading 8 bytes only, and stores of a local one would vanish.
    static const struct {
        uint8_t palette, start, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config = {1, 0, {0}, {BYTES, BYTES, BYTES, BYTES, BYTES, BYTES, BYTES, BYTES},
                {ROWS, ROWS, ROWS, ROWS, ROWS, ROWS, ROWS, ROWS}};
    _tile_loadconfig(&config);
}

KR_TILE AMX void bf16_matrix_end(void) { _tile_release(); }

KR_TILE AMX void bf16_block_matrix(const uint32_t *a, const uint32_t *b, int64_t steps, float *sums) {
    enum { PITCH = 4 * BF16_SIDE, OUT = 4 * BF16_BLOCK }; // bytes
    const int64_t row = steps * BF16_TILE;
    __asm__ volatile("" : : "r"(a), "r"(b) : "memory"); // gcc's tile loads do not say that they read memory
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t s = 0; s < steps; s++, a += BF16_TILE, b += BF16_TILE) {
        _tile_loadd(4, a, PITCH);
        _tile_loadd(6, b, PITCH);
        _tile_loadd(7, b + row, PITCH);
        _tile_loadd(5, a + row, PITCH);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, sums, OUT);
    _tile_stored(1, sums + BF16_SIDE, OUT);
    _tile_stored(2, sums + BF16_SIDE * BF16_BLOCK, OUT);
    _tile_stored(3, sums + BF16_SIDE * BF16_BLOCK + BF16_SIDE, OUT);
}
#undef AMX
#endif

// Products --------------------------------------------------------------------------------------------------------

KR_TILE bf16_block *bf16_block_of(kr_bf16_path path) {
#if defined(__AVX512F__)
    if (path == KR_BF16_MATRIX) return bf16_block_matrix;
    if (path == KR_BF16_VECTOR) return bf16_block_vector;
#endif
    (void)path;
    return bf16_block_emulated;
}

/// c = from + bias + sums for one block, of which `rows` by `cols` are in c.
KR_TILE void bf16_store(const float *sums, float *c, int64_t ldc, const float *from, int64_t ldf, const float *bias,
                        int64_t rows, int64_t cols) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t j = 0; j < cols; j += KR_LANES) {
            kr_vf v = bias ? kr_v_load_n(bias + j, cols - j) : kr_v_set(0);
            if (from) v = kr_v_load_n(from + r * ldf + j, cols - j) + v;
            kr_v_store_n(c + r * ldc + j, v + kr_v_load(sums + r * BF16_BLOCK + j), cols - j);
        }
}

/// At most BF16_STRIP rows from r on, by one piece of b; all packed.
KR_TILE void bf16_multiply_strip(const tile_product *p, bf16_block *block, const uint32_t *a, const uint32_t *b,
                                 int64_t r, int64_t rows, const tile_piece *at) {
    _Alignas(64) float sums[BF16_BLOCK * BF16_BLOCK];
    const int64_t steps = (at->depth + BF16_STEP - 1) / BF16_STEP, ldf = at->k ? p->ldc : p->ldf;
    const float *add = at->k ? p->c : p->from, *bias = at->k || !p->bias ? 0 : p->bias + at->j;
    float *c = p->c + r * p->ldc + at->j;
    for (int64_t i = 0; i < rows; i += BF16_BLOCK)
        for (int64_t j = 0; j < at->cols; j += BF16_BLOCK) {
            const int64_t high = rows - i < BF16_BLOCK ? rows - i : BF16_BLOCK;
            const int64_t wide = at->cols - j < BF16_BLOCK ? at->cols - j : BF16_BLOCK;
            for (int64_t x = 0; x < high; x++)
                for (int64_t v = 0; v < wide; v += KR_LANES) __builtin_prefetch(c + (i + x) * p->ldc + j + v, 1, 3);
            block(a + i / BF16_SIDE * steps * BF16_TILE, b + j / BF16_SIDE * steps * BF16_TILE, steps, sums);
            bf16_store(sums, c + i * p->ldc + j, p->ldc, add ? add + (r + i) * ldf + at->j + j : 0, ldf,
                       bias ? bias + j : 0, high, wide);
        }
    if (p->finish && at->k + at->depth == p->k) p->finish(c, rows, at->cols, p->ldc, p->how);
}

/// c = from + bias + op(a) op(b) with rounded operands. m, n and k may be anything from 1 up.
KR_TILE void bf16_multiply(const tile_product *p, kr_bf16_path path) {
    _Alignas(64) uint32_t panels[BF16_PACKED], strip[BF16_STRIP * BF16_DEEP / 2];
    const int64_t pieces = (p->k + BF16_DEEP - 1) / BF16_DEEP;
    const int64_t most = ((p->k + pieces - 1) / pieces + BF16_STEP - 1) / BF16_STEP * BF16_STEP;
    const int64_t fits = BF16_PACKED / (most / 2) / BF16_BLOCK * BF16_BLOCK, parts = (p->n + fits - 1) / fits;
    const tile_cut cut = {((p->n + parts - 1) / parts + BF16_BLOCK - 1) / BF16_BLOCK * BF16_BLOCK, most};
    bf16_block *const block = bf16_block_of(path);
#if defined(__AVX512F__)
    if (path == KR_BF16_MATRIX) bf16_matrix_begin();
#endif
    tile_piece next;
    for (tile_piece at = tile_piece_at(p, &cut, 0, 0); at.cols; at = next) {
        next = tile_piece_after(p, &cut, &at);
        const float *b = p->b + (p->tb ? at.j * p->ldb + at.k : at.k * p->ldb + at.j);
        bf16_pack_b(b, p->ldb, p->tb, at.cols, at.depth, panels);
        for (int64_t r = 0; r < p->m; r += BF16_STRIP) {
            const int64_t rows = p->m - r < BF16_STRIP ? p->m - r : BF16_STRIP;
            const float *a = p->a + (p->ta ? at.k * p->lda + r : r * p->lda + at.k);
            bf16_pack_a(a, p->lda, p->ta, rows, at.depth, strip);
            bf16_multiply_strip(p, block, strip, panels, r, rows, &at);
        }
    }
#if defined(__AVX512F__)
    if (path == KR_BF16_MATRIX) bf16_matrix_end();
#endif
}

#endif
