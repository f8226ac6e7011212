/// Tensors of one shape and any strides, visited in row-major order: for kernel files.
///
/// A walk drops axes of length 1 and merges neighbours that are one axis for every operand, so packed operands
/// become one long row, and a bias added to [B, L, C] becomes rows of C. Elements then have a flat index over the
/// whole shape; a range of it is read in place where it is contiguous and gathered into a small buffer where not.
#ifndef KRAIT_OPS_CPU_STRIDED_H
#define KRAIT_OPS_CPU_STRIDED_H

#include "runtime/kernel.h"

#include <string.h>

#define KR_LOCAL static inline __attribute__((unused))

/// Most operands of a walk; a file that walks more defines it first.
#ifndef KR_WALK_OPERANDS
#define KR_WALK_OPERANDS 4
#endif

typedef struct kr_walk {
    int rank;                                       ///< >= 1
    int64_t total, dim[KR_MAX_RANK];
    int64_t stride[KR_WALK_OPERANDS][KR_MAX_RANK];  ///< in elements
    char *data[KR_WALK_OPERANDS];
    int size[KR_WALK_OPERANDS];                     ///< bytes of one element
} kr_walk;

KR_LOCAL int kr_element_size(kr_dtype dtype) {
    switch (dtype) {
    case KR_F64: case KR_I64: return 8;
    case KR_F32: case KR_I32: return 4;
    case KR_BF16: return 2;
    default: return 1;
    }
}

/// All operands have the shape of operand 0 (or fewer elements than they say: only operand 0's shape is read).
KR_LOCAL void kr_walk_make(kr_walk *w, const kr_arg *const *operands, int count) {
    const kr_shape *shape = &operands[0]->shape;
    w->rank = 0;
    w->total = kr_shape_count(shape);
    for (int k = 0; k < shape->rank; k++) {
        if (shape->dim[k] == 1) continue;
        int merge = w->rank > 0;
        for (int i = 0; i < count && merge; i++)
            merge = w->stride[i][w->rank - 1] == operands[i]->stride[k] * shape->dim[k];
        if (merge) w->rank--;
        w->dim[w->rank] = shape->dim[k] * (merge ? w->dim[w->rank] : 1);
        for (int i = 0; i < count; i++) w->stride[i][w->rank] = operands[i]->stride[k];
        w->rank++;
    }
    if (!w->rank) {
        w->rank = 1;
        w->dim[0] = 1;
        for (int i = 0; i < count; i++) w->stride[i][0] = 1;
    }
    for (int i = 0; i < count; i++) {
        w->data[i] = (char *)operands[i]->data;
        w->size[i] = kr_element_size(operands[i]->dtype);
    }
}

KR_LOCAL int64_t kr_walk_inner(const kr_walk *w) { return w->dim[w->rank - 1]; }
KR_LOCAL int64_t kr_walk_step(const kr_walk *w, int operand) { return w->stride[operand][w->rank - 1]; }

/// Axis indices of flat index `at`, and the operand's address there.
KR_LOCAL char *kr_walk_at(const kr_walk *w, int operand, int64_t at, int64_t index[KR_MAX_RANK]) {
    int64_t offset = 0;
    for (int k = w->rank - 1; k > 0; k--) {
        index[k] = at % w->dim[k];
        at /= w->dim[k];
        offset += index[k] * w->stride[operand][k];
    }
    index[0] = at;
    return w->data[operand] + (offset + at * w->stride[operand][0]) * w->size[operand];
}

/// n elements from one step to another.
KR_LOCAL void kr_run_copy(char *to, int64_t to_step, const char *from, int64_t from_step, int64_t n, int size) {
    if (to_step == 1 && from_step == 1) {
        memcpy(to, from, (size_t)(n * size));
        return;
    }
    // Splats have a loop of their own, which compilers make wide.
#define KR_RUN(type)                                                                                       \
    if (to_step == 1 && from_step == 0) {                                                                  \
        type value;                                                                                        \
        memcpy(&value, from, sizeof value);                                                                \
        for (int64_t i = 0; i < n; i++) memcpy(to + i * (int64_t)sizeof value, &value, sizeof value);      \
    } else                                                                                                 \
        for (int64_t i = 0; i < n; i++)                                                                    \
            memcpy(to + i * to_step * (int64_t)sizeof(type), from + i * from_step * (int64_t)sizeof(type), \
                   sizeof(type));                                                                          \
    break
    switch (size) {
    case 1: KR_RUN(uint8_t);
    case 2: KR_RUN(uint16_t);
    case 4: KR_RUN(uint32_t);
    default: KR_RUN(uint64_t);
    }
#undef KR_RUN
}

/// To the next row when the last axis has run out.
KR_LOCAL void kr_walk_carry(const kr_walk *w, int64_t index[KR_MAX_RANK]) {
    for (int k = w->rank - 1; k > 0 && index[k] == w->dim[k]; k--) {
        index[k] = 0;
        index[k - 1]++;
    }
}

KR_LOCAL char *kr_walk_address(const kr_walk *w, int operand, const int64_t index[KR_MAX_RANK]) {
    int64_t offset = 0;
    for (int k = 0; k < w->rank; k++) offset += index[k] * w->stride[operand][k];
    return w->data[operand] + offset * w->size[operand];
}

/// The n elements from flat index `at`: where they lie, or null when they are not contiguous.
KR_LOCAL char *kr_walk_direct(const kr_walk *w, int operand, int64_t at, int64_t n) {
    int64_t index[KR_MAX_RANK];
    char *p = kr_walk_at(w, operand, at, index);
    return (kr_walk_step(w, operand) == 1 || n == 1) && index[w->rank - 1] + n <= kr_walk_inner(w) ? p : 0;
}

/// Gathers the n elements from flat index `at` into `temp`.
KR_LOCAL void kr_walk_gather(const kr_walk *w, int operand, int64_t at, int64_t n, char *temp) {
    int64_t index[KR_MAX_RANK];
    const int last = w->rank - 1, size = w->size[operand];
    kr_walk_at(w, operand, at, index);
    while (n > 0) {
        const int64_t room = w->dim[last] - index[last], run = n < room ? n : room;
        kr_run_copy(temp, 1, kr_walk_address(w, operand, index), w->stride[operand][last], run, size);
        temp += run * size;
        n -= run;
        index[last] += run;
        kr_walk_carry(w, index);
    }
}

/// The n elements from flat index `at`, in place or gathered into `temp` (room for n).
KR_LOCAL const char *kr_walk_fetch(const kr_walk *w, int operand, int64_t at, int64_t n, char *temp) {
    const char *p = kr_walk_direct(w, operand, at, n);
    if (p) return p;
    kr_walk_gather(w, operand, at, n, temp);
    return temp;
}

/// Copies elements [at, at + n) of operand `from` to operand `to`.
KR_LOCAL void kr_walk_copy(const kr_walk *w, int to, int from, int64_t at, int64_t n) {
    int64_t index[KR_MAX_RANK];
    const int last = w->rank - 1;
    kr_walk_at(w, from, at, index);
    while (n > 0) {
        const int64_t room = w->dim[last] - index[last], run = n < room ? n : room;
        kr_run_copy(kr_walk_address(w, to, index), w->stride[to][last], kr_walk_address(w, from, index),
                    w->stride[from][last], run, w->size[from]);
        n -= run;
        index[last] += run;
        kr_walk_carry(w, index);
    }
}

/// Writes n packed elements from `temp` to operand `to` at flat index `at`.
KR_LOCAL void kr_walk_scatter(const kr_walk *w, int to, int64_t at, int64_t n, const char *temp) {
    int64_t index[KR_MAX_RANK];
    const int last = w->rank - 1, size = w->size[to];
    kr_walk_at(w, to, at, index);
    while (n > 0) {
        const int64_t room = w->dim[last] - index[last], run = n < room ? n : room;
        kr_run_copy(kr_walk_address(w, to, index), w->stride[to][last], temp, 1, run, size);
        temp += run * size;
        n -= run;
        index[last] += run;
        kr_walk_carry(w, index);
    }
}

#endif
