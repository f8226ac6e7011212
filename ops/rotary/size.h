/// What the rules of rotary_mix and its kernels must agree on: sizes and the workspace.
#ifndef KRAIT_OPS_ROTARY_SIZE_H
#define KRAIT_OPS_ROTARY_SIZE_H

#include "runtime/kernel.h"

enum {
    KR_ROTARY_TOKENS = 64,  ///< a piece is a multiple of so many tokens
    KR_ROTARY_CHUNKS = 256, ///< most pieces that a sequence is cut into; every piece reads the totals of all others
    KR_ROTARY_SUMS = 64,    ///< most partial sums of the biases' gradients; each covers a fixed range of pieces
};

/// pairs: those that turn; width: pairs rounded up to whole vectors; chunk: tokens of a piece.
typedef struct kr_rotary_size {
    int64_t batch, length, heads, groups, rank, states, pairs, width, chunk, chunks, sums;
} kr_rotary_size;

/// From K [B, L, R*G*N], k_bias [H, R, N] and ang [B, L, S] or [B, L, H, S].
static inline kr_rotary_size kr_rotary_measure(const kr_shape *K, const kr_shape *k_bias, const kr_shape *ang,
                                               int64_t groups) {
    kr_rotary_size s;
    s.batch = K->dim[0], s.length = K->dim[1], s.groups = groups;
    s.heads = k_bias->dim[0], s.rank = k_bias->dim[1], s.states = k_bias->dim[2];
    s.pairs = ang->dim[ang->rank - 1];
    s.width = (s.pairs + 15) / 16 * 16;
    s.chunk = (s.length / KR_ROTARY_CHUNKS + KR_ROTARY_TOKENS) / KR_ROTARY_TOKENS * KR_ROTARY_TOKENS;
    s.chunks = s.length > 0 ? (s.length + s.chunk - 1) / s.chunk : 1; // the piece of an empty sequence passes theta on
    s.sums = s.batch * s.chunks < KR_ROTARY_SUMS ? s.batch * s.chunks : KR_ROTARY_SUMS;
    return s;
}

// Workspace, in this order: for each piece its total turn and its running angle, double [H, width] each; a flag "holds
// a reset", padded to whole vectors; backward, for each piece its total of e, float [H, width]; the partial sums of the
// biases' gradients, float [2, H, R, N] each; and e, float [B, L, H, S].
static inline int64_t kr_rotary_units(const kr_rotary_size *s) { return s->batch * s->chunks; }
static inline int64_t kr_rotary_angles(const kr_rotary_size *s) { return kr_rotary_units(s) * s->heads * s->width; }
static inline int64_t kr_rotary_flags(const kr_rotary_size *s) { return (kr_rotary_units(s) + 15) / 16 * 16; }
static inline int64_t kr_rotary_biases(const kr_rotary_size *s) { return 2 * s->heads * s->rank * s->states; }
static inline int64_t kr_rotary_forward_bytes(const kr_rotary_size *s) {
    return 16 * kr_rotary_angles(s) + 4 * kr_rotary_flags(s);
}
static inline int64_t kr_rotary_backward_bytes(const kr_rotary_size *s) {
    return kr_rotary_forward_bytes(s) + 4 * (kr_rotary_angles(s) + s->sums * kr_rotary_biases(s) +
                                             s->batch * s->length * s->heads * s->pairs);
}

#endif
