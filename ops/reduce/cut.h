/// How a reduction over one axis is cut: shared by the implementation (workspace) and the kernels. Shapes alone decide.
///
/// The tensor is [outer, n, inner] around the reduced axis of n. Columns of `inner` are taken in blocks of WIDTH; n is
/// cut into segments when the other axes alone would leave threads idle. Each (outer, segment, column block) gives
/// partial results, which a second stage combines in order.
#ifndef KRAIT_OPS_REDUCE_CUT_H
#define KRAIT_OPS_REDUCE_CUT_H

#include "runtime/kernel.h"

enum { KR_REDUCE_WIDTH = 512, KR_REDUCE_ITEMS = 64, KR_REDUCE_SEGMENT = 16384 };

typedef struct kr_reduce_cut {
    int64_t outer, n, inner;
    int64_t columns;  ///< blocks of KR_REDUCE_WIDTH columns
    int64_t segments; ///< of the reduced axis, at least 1
} kr_reduce_cut;

static inline kr_reduce_cut kr_reduce_cut_make(int64_t outer, int64_t n, int64_t inner) {
    kr_reduce_cut c = {outer, n, inner, 0, 1};
    c.columns = (c.inner + KR_REDUCE_WIDTH - 1) / KR_REDUCE_WIDTH;
    const int64_t items = c.outer * c.columns, width = c.inner < KR_REDUCE_WIDTH ? c.inner : KR_REDUCE_WIDTH;
    const int64_t by_size = c.n * width / KR_REDUCE_SEGMENT; // segments worth the second stage
    if (items > 0 && items < KR_REDUCE_ITEMS) {
        c.segments = KR_REDUCE_ITEMS / items;
        if (c.segments > by_size) c.segments = by_size;
        if (c.segments < 1) c.segments = 1;
    }
    return c;
}

/// The reduction of axes [axis, axis + axes).
static inline kr_reduce_cut kr_reduce_cut_axes(const kr_shape *shape, int axis, int axes) {
    int64_t outer = 1, n = 1, inner = 1;
    for (int k = 0; k < shape->rank; k++) *(k < axis ? &outer : k < axis + axes ? &n : &inner) *= shape->dim[k];
    return kr_reduce_cut_make(outer, n, inner);
}
static inline kr_reduce_cut kr_reduce_cut_of(const kr_shape *shape, int axis) {
    return kr_reduce_cut_axes(shape, axis, 1);
}

/// Bytes of partial results: [outer, segments, inner] f32, none when there is one segment.
static inline size_t kr_reduce_cut_work(const kr_reduce_cut *c) {
    return c->segments > 1 ? (size_t)(c->outer * c->segments * c->inner) * sizeof(float) : 0;
}
static inline size_t kr_reduce_work(const kr_shape *shape, int axis) {
    const kr_reduce_cut c = kr_reduce_cut_of(shape, axis);
    return kr_reduce_cut_work(&c);
}

#endif
