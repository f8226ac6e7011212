/// What the rules of ssd_scan and trapezoid_scan and their kernels must agree on: chunks, units of work, and where
/// everything lies in the workspace.
#ifndef KRAIT_OPS_SSD_CHUNK_SIZE_H
#define KRAIT_OPS_SSD_CHUNK_SIZE_H

#include "runtime/kernel.h"

#include <stdbool.h>

enum {
    KR_CHUNK_LANES = 16,
    KR_CHUNK_ROWS = 128,  ///< most rows (tokens times rank) of a chunk
    KR_CHUNK_BLOCK = 8,   ///< most heads that one unit carries along together
    KR_CHUNK_UNITS = 16,  ///< units wanted before heads are put together
    KR_CHUNK_SLOTS = 64,  ///< most units that can be under way at once
};

/// The sizes of one scan. A chunk of T tokens has T * rank rows: row t * rank + r is key, query or value r of token t.
/// Heads of one group share keys and queries, unless every head has its own; a unit is one batch row and up to `block`
/// heads of one group.
typedef struct kr_chunk_size {
    int64_t batch, length, heads, groups, rank;
    int64_t width;               ///< of a head: P
    int64_t states;              ///< N
    int64_t chunk, chunks;       ///< tokens in a chunk, and how many chunks there are
    int64_t block, blocks;       ///< heads in a unit, and units in a group
    int64_t rows_pitch, width_pitch, states_pitch; ///< of matrices in the workspace
} kr_chunk_size;

static inline int64_t kr_round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

/// Whole vectors, and no multiple of 64: rows a power of two apart would meet in few sets of the first cache.
static inline int64_t kr_chunk_pitch(int64_t n) {
    const int64_t whole = kr_round_up(n, KR_CHUNK_LANES);
    return whole && whole % 64 == 0 ? whole + KR_CHUNK_LANES : whole;
}

/// groups 0: every head has its own keys and queries. chunk 0: the best for the shapes. What a token costs inside a
/// chunk grows with the chunk, what the state costs it shrinks; products of fewer than 32 rows waste the registers.
static inline kr_chunk_size kr_chunk_measure(int64_t batch, int64_t length, int64_t heads, int64_t groups, int64_t rank,
                                             int64_t width, int64_t states, int64_t chunk) {
    kr_chunk_size s = {.batch = batch,
                       .length = length,
                       .heads = heads,
                       .groups = groups > 0 ? groups : 1,
                       .rank = rank,
                       .width = width,
                       .states = states};
    const int64_t rows = width * states >= 4096 ? 64 : 32, in_group = heads / s.groups;
    s.chunk = chunk > 0 ? chunk : rows / rank;
    if (s.chunk * rank > KR_CHUNK_ROWS) s.chunk = KR_CHUNK_ROWS / rank;
    if (s.chunk > length) s.chunk = length;
    if (s.chunk < 1) s.chunk = 1;
    s.chunks = (length + s.chunk - 1) / s.chunk;
    const int64_t rows_of_units = batch * s.groups > 0 ? batch * s.groups : 1;
    s.blocks = (KR_CHUNK_UNITS + rows_of_units - 1) / rows_of_units;
    if (s.blocks * KR_CHUNK_BLOCK < in_group) s.blocks = (in_group + KR_CHUNK_BLOCK - 1) / KR_CHUNK_BLOCK;
    if (s.blocks > in_group) s.blocks = in_group;
    if (s.blocks < 1) s.blocks = 1;
    s.block = (in_group + s.blocks - 1) / s.blocks;
    if (s.block > 0) s.blocks = (in_group + s.block - 1) / s.block;
    s.rows_pitch = kr_chunk_pitch(s.chunk * rank);
    s.width_pitch = kr_chunk_pitch(width);
    s.states_pitch = kr_chunk_pitch(states);
    return s;
}

static inline int64_t kr_chunk_units(const kr_chunk_size *s) { return s->batch * s->groups * s->blocks; }
static inline int64_t kr_chunk_slots(const kr_chunk_size *s) {
    return kr_chunk_units(s) < KR_CHUNK_SLOTS ? kr_chunk_units(s) : KR_CHUNK_SLOTS;
}

/// The scratch of one slot, as offsets in floats. Matrices have their rows padded to 16.
typedef struct kr_chunk_layout {
    int64_t q, k, dq, dk;                          ///< [rows, states]
    int64_t kt;                                    ///< [states, rows]
    int64_t scores, weights, dots, values; ///< [rows, rows]
    int64_t v, scaled_v, y, dy, scaled_dy, dv;     ///< [rows, width]
    int64_t vt;                                    ///< [width, rows]
    int64_t start, end;                            ///< [states, width]
    int64_t start_t;                               ///< [width, states]
    int64_t state;                                 ///< for every head of the unit, [states, width] or its transpose
    int64_t lanes, vectors;                        ///< three [rows, 16]; KR_CHUNK_VECTORS of [rows]
    int64_t floats;
} kr_chunk_layout;
enum { KR_CHUNK_VECTORS = 17 };

static inline int64_t kr_chunk_take(int64_t *at, int64_t rows, int64_t pitch) {
    const int64_t from = *at;
    *at += kr_round_up(rows, KR_CHUNK_LANES) * pitch;
    return from;
}

static inline kr_chunk_layout kr_chunk_arrange(const kr_chunk_size *s, bool backward) {
    const int64_t rows = s->chunk * s->rank, back = backward ? rows : 0;
    const int64_t deep_states = backward ? s->states : 0, wide = backward ? s->width : 0;
    int64_t at = 0;
    kr_chunk_layout l = {0};
    l.q = kr_chunk_take(&at, rows, s->states_pitch);
    const int64_t alone = rows + kr_round_up(s->rank, KR_CHUNK_LANES); // a single token takes those before it along
    l.k = kr_chunk_take(&at, alone, s->states_pitch);
    l.kt = kr_chunk_take(&at, s->states, s->rows_pitch);
    l.scores = kr_chunk_take(&at, rows, s->rows_pitch);
    l.weights = kr_chunk_take(&at, rows, s->rows_pitch);
    l.v = kr_chunk_take(&at, rows, s->width_pitch);
    l.scaled_v = kr_chunk_take(&at, alone, s->width_pitch);
    l.y = kr_chunk_take(&at, rows, s->width_pitch);
    l.vectors = kr_chunk_take(&at, KR_CHUNK_VECTORS, s->rows_pitch);
    l.dq = kr_chunk_take(&at, back, s->states_pitch);
    l.dk = kr_chunk_take(&at, back, s->states_pitch);
    l.dots = kr_chunk_take(&at, back, s->rows_pitch);
    l.values = kr_chunk_take(&at, back, s->rows_pitch);
    l.dy = kr_chunk_take(&at, back, s->width_pitch);
    l.scaled_dy = kr_chunk_take(&at, back, s->width_pitch);
    l.dv = kr_chunk_take(&at, back, s->width_pitch);
    l.vt = kr_chunk_take(&at, wide, s->rows_pitch);
    l.start = kr_chunk_take(&at, deep_states, s->width_pitch);
    l.end = kr_chunk_take(&at, deep_states, s->width_pitch);
    l.start_t = kr_chunk_take(&at, wide, s->states_pitch);
    l.lanes = kr_chunk_take(&at, back, 3 * KR_CHUNK_LANES);
    l.state = at;
    at += s->block * (backward ? kr_round_up(s->width, KR_CHUNK_LANES) * s->states_pitch
                               : kr_round_up(s->states, KR_CHUNK_LANES) * s->width_pitch);
    l.floats = at;
    return l;
}

#endif
