/// What the rules of ssd_scan and trapezoid_scan and their kernels must agree on: chunks, units of work, and matrices
/// in
/// the workspace.
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
    if (s.chunk > KR_CHUNK_ROWS / rank) s.chunk = KR_CHUNK_ROWS / rank;
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

static inline int64_t kr_chunk_take(int64_t *at, int64_t rows, int64_t pitch) {
    const int64_t from = *at;
    *at += kr_round_up(rows, KR_CHUNK_LANES) * pitch;
    return from;
}

#endif
