/// The one contract between plans and kernels. C and C++ (CUDA) clean: no compound literals, no restrict.
#ifndef KRAIT_RUNTIME_KERNEL_H
#define KRAIT_RUNTIME_KERNEL_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/// Element types. Kernels compute in f32 (bf16 inputs are widened); f64 is for oracles and files.
typedef enum kr_dtype { KR_F32 = 0, KR_F64, KR_BF16, KR_I32, KR_I64, KR_U8, KR_BOOL, KR_DTYPE_COUNT } kr_dtype;

enum { KR_MAX_RANK = 6, KR_ATTR_INTEGERS = 8, KR_ATTR_REALS = 6, KR_MAX_STAGES = 3 };

/// A static, row-major shape. rank 0 is a scalar with one element. Any dimension may be 0 (an empty tensor).
typedef struct kr_shape {
    int32_t rank;
    int64_t dim[KR_MAX_RANK];
} kr_shape;

/// What parameterises an op besides its inputs. Which entries mean what is named by the op (kr_op.attr, ops/ops.h).
typedef struct kr_attrs {
    int64_t i[KR_ATTR_INTEGERS];
    double r[KR_ATTR_REALS];
    kr_shape shape;
} kr_attrs;

/// One tensor as a kernel sees it. `stride` counts elements; 0 repeats (a broadcast). data is NULL for an absent
/// optional input and for an output that nobody reads (only where kr_impl.skip_out allows that).
/// Which strides can occur is what the op's implementation (kr_impl, runtime/target.h) promises to handle:
///   contiguous  packed row-major (the default);
///   rows        last axis contiguous, all leading axes collapse to rows at one pitch (see kr_arg_pitch);
///   strided     anything, zeros included.
typedef struct kr_arg {
    void *data;
    kr_dtype dtype;
    kr_shape shape;
    int64_t stride[KR_MAX_RANK];
} kr_arg;

/// How operands rounded to bf16 are multiplied. All add in f32 and differ in the last bits only.
typedef enum kr_bf16_path {
    KR_BF16_EMULATED = 0, ///< widened again and multiplied in f32, at every instruction set level
    KR_BF16_VECTOR,       ///< AVX512_BF16: pairs of products in 16 lanes
    KR_BF16_MATRIX,       ///< AMX: tiles of 16 by 32 and 32 by 16
    KR_BF16_PATH_COUNT
} kr_bf16_path;

/// One call: everything is decided before the run, nothing is allocated during it.
typedef struct kr_call {
    const kr_arg *in;
    const kr_arg *out;
    int inputs, outputs;
    void *work; ///< as many bytes as kr_impl.work said, 64-byte aligned, undefined content
    const kr_attrs *attrs;
    int64_t round;            ///< of a step that runs its stages several times: 0, 1, ...
    kr_bf16_path bf16;        ///< for products in bf16, and in f32 by parts in bf16: the best here
} kr_call;

/// Does part `part` of `parts` of one call. Kernels never allocate, never open parallel regions and hold no state.
/// Work is cut at boundaries that do not depend on `parts`, so results are the same bits for any thread count.
typedef void kr_kernel(const kr_call *call, int part, int parts);

/// Instruction set levels, ascending. The generic build is KR_ISA_BASE on every machine.
typedef enum kr_isa { KR_ISA_BASE = 0, KR_ISA_AVX2, KR_ISA_AVX512, KR_ISA_COUNT } kr_isa;

/// One stage of an op on the CPU, in all its builds. A null entry means: use the level below.
typedef struct kr_stage {
    kr_kernel *build[KR_ISA_COUNT];
} kr_stage;

/// Elements of a shape (1 for rank 0).
static inline int64_t kr_shape_count(const kr_shape *s) {
    int64_t n = 1;
    for (int k = 0; k < s->rank; k++) n *= s->dim[k];
    return n;
}

/// Length of the last axis (1 for rank 0).
static inline int64_t kr_arg_cols(const kr_arg *a) { return a->shape.rank ? a->shape.dim[a->shape.rank - 1] : 1; }

/// Product of all axes but the last.
static inline int64_t kr_arg_rows(const kr_arg *a) {
    int64_t n = 1;
    for (int k = 0; k + 1 < a->shape.rank; k++) n *= a->shape.dim[k];
    return n;
}

/// Elements from one row to the next, for arguments in `rows` layout.
static inline int64_t kr_arg_pitch(const kr_arg *a) {
    for (int k = a->shape.rank - 2; k >= 0; k--)
        if (a->shape.dim[k] > 1) return a->stride[k];
    return kr_arg_cols(a);
}

/// The share of `total` equal units that part `part` of `parts` does: [*begin, *end).
static inline void kr_share(int64_t total, int part, int parts, int64_t *begin, int64_t *end) {
    *begin = total * part / parts;
    *end = total * (part + 1) / parts;
}

#ifdef __cplusplus
}
#endif
#endif
