/// Matrices in the scratch of a scan and rows of memory: loads, stores and scaling, with the padding that products
/// want.
#ifndef KRAIT_OPS_SSD_CPU_MATRIX_H
#define KRAIT_OPS_SSD_CPU_MATRIX_H

#include "ops/ssd/chunk_size.h"
#include "ops/cpu/small_product.h"

/// An argument in `rows` layout that is read, and one that is written. Null data: absent, or nobody reads it.
typedef struct source {
    const float *at;
    int64_t pitch;
} source;
static inline source source_of(const kr_arg *a) { return (source){a->data, a->data ? kr_arg_pitch(a) : 0}; }

typedef struct sink {
    float *at;
    int64_t pitch;
} sink;
static inline sink sink_of(const kr_arg *a) { return (sink){a->data, a->data ? kr_arg_pitch(a) : 0}; }

static inline void clear(float *x, int64_t floats) {
    for (int64_t i = 0; i < floats; i += KR_LANES) kr_v_store_n(x + i, kr_v_set(0), floats - i);
}

/// Clears [rows, cols] and the padding around it.
static inline void clear_matrix(matrix m, int64_t rows, int64_t cols) {
    for (int64_t i = 0; i < kr_round_up(rows, KR_LANES); i++) clear(m.at + i * m.pitch, kr_round_up(cols, KR_LANES));
}

/// The rows at `from`, [rows, cols], with zeros in the padding.
static inline void load_matrix(matrix to, const float *from, int64_t pitch, int64_t rows, int64_t cols) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j += KR_LANES)
            kr_v_store(to.at + i * to.pitch + j, kr_v_load_n(from + i * pitch + j, cols - j));
    for (int64_t i = rows; i < kr_round_up(rows, KR_LANES); i++)
        clear(to.at + i * to.pitch, kr_round_up(cols, KR_LANES));
}

static inline void store_matrix(float *to, int64_t pitch, matrix from, int64_t rows, int64_t cols) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j += KR_LANES)
            kr_v_store_n(to + i * pitch + j, kr_v_load(from.at + i * from.pitch + j), cols - j);
}

/// to[i] = scale[i] * from[i] by rows.
static inline void scale_rows(matrix to, matrix from, const float *scale, int64_t rows, int64_t cols) {
    for (int64_t i = 0; i < rows; i++) {
        const kr_vf x = kr_v_set(scale[i]);
        for (int64_t j = 0; j < cols; j += KR_LANES)
            kr_v_store(to.at + i * to.pitch + j, x * kr_v_load(from.at + i * from.pitch + j));
    }
}

#endif
