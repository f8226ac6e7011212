/// Targets: what a compiler must know of a kind of machine, without having one.
///
/// An op says what is computed (ops/ops.h, kr_op). How a machine does it is an implementation, kr_impl: the promises
/// that its kernels make about memory, and the kernels. A target is a table of implementations with the machine's
/// rates and limits; a device (kr_device, runtime.h) is one such machine, which binds plans compiled for its target.
/// A target's description needs no device: graphs are compiled, printed and costed for machines that are not here.
#ifndef KRAIT_RUNTIME_TARGET_H
#define KRAIT_RUNTIME_TARGET_H

#include "kernel.h"
#include "status.h"

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct kr_device kr_device;
typedef struct kr_target kr_target;

enum { KR_INPLACE_OUTPUTS = 3 };

/// What fusion may hand to an implementation (kr_impl.fuses): operands and attributes that the op has, and that cost
/// less inside than as a step of their own.
enum {
    KR_FUSES_ADDEND = 1,       ///< the op's `added` input
    KR_FUSES_FIRST_ADDEND = 2, ///< the op's `adds_first` input
    KR_FUSES_ACTIVATION = 4    ///< the op's activation attribute, in plans without gradients
};

/// One op on one target. Masks have a bit per operand; bit 31 stands for operands 31 and up.
/// Shapes given to the functions: absent inputs and outputs that nobody reads have rank -1.
typedef struct kr_impl {
    uint32_t rows_in;     ///< inputs taken in `rows` layout (kernel.h)
    uint32_t strided_in;  ///< inputs taken with any strides
    uint32_t rows_out;    ///< outputs that may be written in `rows` layout
    uint32_t skip_out;    ///< outputs whose data may be NULL when nobody reads them
    uint32_t inplace[KR_INPLACE_OUTPUTS]; ///< of output k: inputs whose memory it may take over (same bytes and layout)
    uint32_t bf16_in;     ///< f32 inputs that may be stored in bf16, where the target stores any in it
    uint32_t bf16_out;    ///< f32 outputs that may be
    unsigned fuses;       ///< KR_FUSES_*
    /// Fills in what the op leaves to the target (an attribute of 0: chunk, sizes of saved states, rows a round), so
    /// that a compiled graph says all that will run. What is given already is checked: sizes of saved states belong
    /// to a pair of kernels. Null: nothing is left open.
    kr_status (*specialise)(const kr_target *, kr_attrs *, const kr_shape *in, int inputs);
    /// Bytes of workspace; null: none. SIZE_MAX: more than can be counted.
    size_t (*work)(const kr_attrs *, const kr_shape *in, const kr_shape *out, int inputs);
    /// How many times all stages run, for work that goes by blocks of which only one is in memory; the kernels find
    /// the number of the round in the call. Null: once.
    int64_t (*rounds)(const kr_attrs *, const kr_shape *in, const kr_shape *out, int inputs);
    int stages;           ///< that run one after another, everybody waiting in between
    const void *kernels;  ///< known to the target's devices alone (CPU: an array of kr_stage)
} kr_impl;

/// Limits of the tile programs that elementwise nodes are fused into, and sizes from which that pays.
typedef struct kr_program_limits {
    int length, inputs, outputs, reals; ///< at most KR_PROGRAM_* (ops/ops.h), which attributes have room for
    int64_t large;        ///< elements from which a sum over all rows, at the end of a program, keeps a device busy
    int64_t many;         ///< or results of such a sum
} kr_program_limits;

/// Rates are fixed, not measured: plans must not depend on the mood of a machine.
struct kr_target {
    unsigned abi;                 ///< KR_TARGET_ABI; first, so that whoever was built for another Krait can be told
    const char *name;             ///< "cpu"
    /// The implementation of an op by its name, or null when the target has none. Views need none. `copy` has to take
    /// inputs with any strides: the compiler puts it before readers that do not.
    const kr_impl *(*impl)(const kr_target *, const char *op);
    double flops_per_ns, bytes_per_ns, ns_per_step; ///< what a training step sustains; the last: starting, waiting
    size_t align;                 ///< of every buffer in an arena: a power of 2, at least 64
    size_t line;                  ///< bytes: rows that are read or written in slices begin on multiples of it
    size_t wide;                  ///< bytes: shorter rows are not padded to lines
    size_t logits;                ///< bytes of logits that the fused loss may hold at a time
    kr_program_limits program;
    bool stores_bf16;             ///< activations may be stored in bf16 (kr_impl.bf16_in, bf16_out)
    /// Whether products can round their operands to bf16 by the machine's own instructions; else why not (status).
    kr_status (*multiplies_bf16)(const kr_target *);
    /// Opens a device. `argument` is what follows the colon in "cuda:1", or null.
    kr_status (*open)(const kr_target *, const char *argument, kr_device **out);
};
enum { KR_TARGET_ABI = 1 };

#ifdef __cplusplus
}
#endif
#endif
