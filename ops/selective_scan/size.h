/// What the rule of selective_scan and its kernels must agree on: how channels are cut into tiles and units, and where
/// everything lies in the workspace and in the saved states.
#ifndef KRAIT_OPS_SELECTIVE_SCAN_SIZE_H
#define KRAIT_OPS_SELECTIVE_SCAN_SIZE_H

#include "runtime/kernel.h"

#include <stdbool.h>

enum {
    KR_SCAN_LANES = 16, ///< channels in a tile: one vector
    KR_SCAN_CHUNK = 32, ///< tokens between two saved states
    KR_SCAN_UNITS = 16, ///< units of work that there shall be, as far as the next three limits allow
    KR_SCAN_RUN_LEAST = 8,
    KR_SCAN_RUN_MOST = 32, ///< tiles of a unit of the forward pass
    KR_SCAN_SPLIT = 8,     ///< units of a group of the backward pass, each with partial sums of dB and dC
    KR_SCAN_TRACK = 8 * KR_SCAN_CHUNK * KR_SCAN_LANES, ///< floats that the backward pass keeps of a tile in a chunk
    KR_SCAN_TRACE = (2 * KR_SCAN_CHUNK + 1) * 4 * KR_SCAN_LANES, ///< floats that it keeps of a block of 4 states
    KR_SCAN_APART = 512 +
                    32, ///< floats between the sums and the trace, so that loads of one do not look (in the low 12
                        ///< bits of the address) like stores to the other a few tokens ago
};

/// The sizes of one scan. Channels of one group of B and C are contiguous; a tile never crosses a group, so its last
/// lanes may be unused (they count as zeros).
typedef struct kr_scan_size {
    int64_t batch, length, channels, states, groups;
    bool constant_B, constant_C; ///< [E, N]: one per channel, the same at all times
    int64_t group_tiles;         ///< tiles of a group
    int64_t tiles;               ///< of all groups
    int64_t chunks;
    int64_t split;               ///< units of a group in the backward pass; each has partial sums of dB and dC
} kr_scan_size;

/// u [B, L, E], A [E, N], B and C in any of their forms; the shapes are consistent.
static inline kr_scan_size kr_scan_measure(const kr_shape *u, const kr_shape *A, const kr_shape *B, const kr_shape *C) {
    kr_scan_size s = {.batch = u->dim[0], .length = u->dim[1], .channels = u->dim[2], .states = A->dim[1], .groups = 1};
    s.constant_B = B->rank == 2;
    s.constant_C = C->rank == 2;
    if (B->rank == 4) s.groups = B->dim[2];
    if (C->rank == 4) s.groups = C->dim[2];
    s.group_tiles = (s.channels / s.groups + KR_SCAN_LANES - 1) / KR_SCAN_LANES;
    s.tiles = s.groups * s.group_tiles;
    s.chunks = (s.length + KR_SCAN_CHUNK - 1) / KR_SCAN_CHUNK;
    const int64_t rows = s.batch * s.groups > 0 ? s.batch * s.groups : 1;
    s.split = (KR_SCAN_UNITS + rows - 1) / rows;
    if (s.split > KR_SCAN_SPLIT) s.split = KR_SCAN_SPLIT;
    if (s.split > s.group_tiles) s.split = s.group_tiles > 0 ? s.group_tiles : 1;
    return s;
}

/// Tiles that one unit of the forward pass carries along together.
static inline int64_t kr_scan_run(const kr_scan_size *s) {
    const int64_t run = s->batch * s->tiles / KR_SCAN_UNITS;
    return run < KR_SCAN_RUN_LEAST ? KR_SCAN_RUN_LEAST : run > KR_SCAN_RUN_MOST ? KR_SCAN_RUN_MOST : run;
}

/// Floats of a plane: [N, LANES], one value per state and lane of a tile.
static inline int64_t kr_scan_plane(const kr_scan_size *s) { return s->states * KR_SCAN_LANES; }

// Workspace of the forward pass, for every batch row and tile: planes A and state, then B and C where constant.
enum { KR_SCAN_A, KR_SCAN_STATE, KR_SCAN_FIXED };
static inline int64_t kr_scan_forward_planes(const kr_scan_size *s) {
    return KR_SCAN_FIXED + s->constant_B + s->constant_C;
}
static inline int64_t kr_scan_forward_floats(const kr_scan_size *s) {
    return s->batch * s->tiles * kr_scan_forward_planes(s) * kr_scan_plane(s);
}

// Workspace of the backward pass, in this order:
//   for every batch row and tile: planes A, adjoint of the state and sum dA, then B and sum dB, C and sum dC where
//   constant, then one vector each of the sums dD and ddelta_bias;
//   for every unit: dB and dC of one chunk, summed over the unit's tiles but not to single lanes: [CHUNK, LANES] for
// every
//   block of states (at most N blocks), then the trace of a block and KR_SCAN_TRACK floats of a tile;
//   for every unit, when a group has several: its share of dB and dC, [L, N] each.
enum { KR_SCAN_ADJOINT = KR_SCAN_STATE, KR_SCAN_DA, KR_SCAN_FIXED_BACK };
static inline int64_t kr_scan_backward_planes(const kr_scan_size *s) {
    return KR_SCAN_FIXED_BACK + 2 * s->constant_B + 2 * s->constant_C;
}
static inline int64_t kr_scan_tile_floats(const kr_scan_size *s) {
    return kr_scan_backward_planes(s) * kr_scan_plane(s) + 2 * KR_SCAN_LANES;
}
static inline int64_t kr_scan_units(const kr_scan_size *s) { return s->batch * s->groups * s->split; }
static inline int64_t kr_scan_lane_sums_at(const kr_scan_size *s) {
    return s->batch * s->tiles * kr_scan_tile_floats(s);
}
static inline int64_t kr_scan_lane_sums(const kr_scan_size *s) { return 2 * KR_SCAN_CHUNK * kr_scan_plane(s); }
static inline int64_t kr_scan_unit_floats(const kr_scan_size *s) {
    return kr_scan_lane_sums(s) + KR_SCAN_APART + KR_SCAN_TRACE + KR_SCAN_TRACK;
}
static inline int64_t kr_scan_partials_at(const kr_scan_size *s) {
    return kr_scan_lane_sums_at(s) + kr_scan_units(s) * kr_scan_unit_floats(s);
}
static inline int64_t kr_scan_partials(const kr_scan_size *s) {
    return s->split > 1 ? 2 * s->length * s->states : 0;
}
static inline int64_t kr_scan_backward_floats(const kr_scan_size *s) {
    return kr_scan_partials_at(s) + kr_scan_units(s) * kr_scan_partials(s);
}

#endif
