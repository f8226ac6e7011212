/// What the rules of attention and its kernels must agree on: sizes and the workspace of the gradient.
#ifndef KRAIT_OPS_ATTENTION_SIZE_H
#define KRAIT_OPS_ATTENTION_SIZE_H

#include "runtime/kernel.h"

enum {
    KR_ATTENTION_ROWS =
        96, ///< queries of a block; also keys of a block. A multiple of the lanes and of every tile's rows
    KR_ATTENTION_SEGMENT = 192, ///< keys that a single query takes at a time, of all heads
    KR_ATTENTION_UNITS =
        8, ///< the gradient cuts the keys of a head into segments until there are as many units of work
};

/// dim: coordinates of a head; group: query heads that share a key head; blocks: of keys.
typedef struct kr_attention_size {
    int64_t batch, queries, keys, heads, kv_heads, group, dim, blocks, segments;
} kr_attention_size;

/// From q [B, Lq, H*Dh] and k [B, Lk, Hkv*Dh].
static inline kr_attention_size kr_attention_measure(const kr_shape *q, const kr_shape *k, int64_t heads,
                                                     int64_t kv_heads) {
    kr_attention_size s;
    s.batch = q->dim[0], s.queries = q->dim[1], s.keys = k->dim[1], s.heads = heads, s.kv_heads = kv_heads;
    s.group = heads / kv_heads, s.dim = q->dim[2] / heads;
    s.blocks = (s.keys + KR_ATTENTION_ROWS - 1) / KR_ATTENTION_ROWS;
    s.segments = s.batch > 0 ? (KR_ATTENTION_UNITS + s.batch * kv_heads - 1) / (s.batch * kv_heads) : 1;
    if (s.segments > s.blocks) s.segments = s.blocks > 0 ? s.blocks : 1;
    return s;
}

// Workspace of the forward pass for a single query: of every segment, for every head, the largest score, the sum of
// powers above it, and the result so far, float [B, segments, H], the same, and [B, segments, H*Dh].
static inline int64_t kr_attention_pieces(const kr_attention_size *s) {
    return (s->keys + KR_ATTENTION_SEGMENT - 1) / KR_ATTENTION_SEGMENT;
}
static inline int64_t kr_attention_bytes(const kr_attention_size *s) {
    return s->queries == 1 ? 4 * s->batch * kr_attention_pieces(s) * s->heads * (s->dim + 2) : 0;
}

// Workspace of the gradient, in this order: <do, o> - dlse, float [B, H, Lq]; the first visible key and the one after
// the last, int32 [B, Lq] each; with more than one segment, dq of each, float [B, Lq, H*Dh].
static inline int64_t kr_attention_grad_bytes(const kr_attention_size *s) {
    const int64_t queries = s->batch * s->queries, columns = s->heads * s->dim;
    return 4 * queries * (s->heads + 2 + (s->segments > 1 ? s->segments * columns : 0));
}

#endif
