/// How ops are tested: one case (op, attributes, shapes, ranges) and one oracle (the op in double, naive) give a test
/// of every kernel build, memory layout, thread count and in-place use that the op's implementation promises, and a
/// test
/// of the gradient rule against finite differences. Failures are Criterion assertions that say op, level and element.
#ifndef KRAIT_TESTS_CHECK_H
#define KRAIT_TESTS_CHECK_H

#include "compiler/compiler.h"

enum { CHECK_MAX = 24 };

/// Where suites about contracts run plans: the CPU, or what KRAIT_TEST_DEVICE names (their second run in meson). Gives
/// the
/// target, for kr_compile; `device` may be null.
const kr_target *check_device(kr_device **device);

/// In place of an instruction set level: the second target (tests/reference), which promises less and chooses
/// otherwise.
#define CHECK_REFERENCE KR_ISA_COUNT
/// "avx2", "reference".
const char *check_level_name(kr_isa);
/// The target behind a level.
const kr_target *check_target(kr_isa);
/// The levels that every case runs at: those of this machine, and the second target. For loops over levels.
static inline kr_isa check_next_level(kr_isa level) {
    if (level == CHECK_REFERENCE) return (kr_isa)(CHECK_REFERENCE + 1);
    return level < kr_isa_best() ? (kr_isa)(level + 1) : CHECK_REFERENCE;
}
#define CHECK_LEVELS(level) (kr_isa level = KR_ISA_BASE; (int)level <= (int)CHECK_REFERENCE; level = check_next_level(level))

/// Whether the build is sanitized: then each case of an op runs its layouts at one level in turn and with fewer thread
/// counts. All levels and counts still come up in a suite, and builds without sanitizers run them all together.
#if defined(__SANITIZE_ADDRESS__)
#define CHECK_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CHECK_SANITIZED 1
#endif
#endif
#ifndef CHECK_SANITIZED
#define CHECK_SANITIZED 0
#endif

/// The op in double precision. Tensors are packed row-major; absent inputs are NULL. Integers come as doubles.
typedef void check_oracle(const kr_attrs *, const kr_shape *in_shape, const double *const *in,
                          const kr_shape *out_shape, double *const *out);

typedef struct check_case {
    const char *op;
    kr_attrs attrs;
    int inputs;
    kr_shape shape[CHECK_MAX];   ///< rank -1: absent (CHECK_ABSENT)
    kr_dtype dtype[CHECK_MAX];   ///< integer dtypes get integers lo .. hi, both included
    double lo[CHECK_MAX], hi[CHECK_MAX]; ///< uniform range; both 0: -1..1
    double tolerance;            ///< |got - want| <= tolerance * (1 + max |want|); 0: 1e-5
    double grad_tolerance;       ///< 0: 1e-4
    uint32_t no_gradient;        ///< mask of inputs whose gradient is not checked (integers never are)
    uint32_t no_loss;            ///< mask of outputs without a gradient: what only the gradient op reads
    uint64_t seed;
} check_case;

#define CHECK_ABSENT ((kr_shape){-1, {0}})

/// Runs the op's kernels (or, for views, its layout rule) at every ISA level of this machine against the oracle:
/// guard bands around outputs and workspace; inputs unchanged; parts 1, 2, 3 and 5 give the same bits; `rows` and
/// strided inputs, broadcast (stride 0) inputs, `rows` outputs, skipped outputs and in-place use wherever the
/// op declares them.
void check_forward(const check_case *, check_oracle *);

/// loss = sum over f32 outputs of <out, random>, over all outputs together and over each alone: kr_autodiff, naive
/// interpretation at every ISA level, against central differences of the oracle. Also: the rule reads only what
/// keeps_in and keeps_out declare. Large inputs are sampled.
void check_gradient(const check_case *, check_oracle *);

/// Naive interpreter: every value in a packed buffer of its own, nodes in order. Reference for compiler tests too.
/// Inputs, params and carries are looked up by name in `inputs` (params and carries that are missing are zeros);
/// `outputs` may name outputs of the graph and assigned params and carries (their value after the run).
kr_status check_interpret(kr_graph *, kr_isa, int parts, const kr_binding *inputs, int input_count,
                          const kr_binding *outputs, int output_count);

// Helpers ---------------------------------------------------------------------------------------------------------

/// Element `index` of a packed buffer, as a double, and the reverse (rounded to the dtype).
double check_get(const void *data, kr_dtype, int64_t index);
void check_set(void *data, kr_dtype, int64_t index, double value);
/// n uniform values in [lo, hi], exactly representable in `dtype`; integers lo .. hi for integer dtypes.
void check_random(double *out, int64_t n, kr_dtype, double lo, double hi, uint64_t seed, uint64_t stream);
/// |got - want| <= tolerance * (1 + max |want|) for all elements; NaN and infinities must agree. `what` starts the
/// message.
void check_close(const void *got, kr_dtype, const double *want, int64_t n, double tolerance, const char *what);
/// Asserts KR_OK, with the message and place of the failure.
void check_ok(kr_status, const char *what);
/// Outputs' shapes and dtypes of a case, by the op's rule, with what it leaves open as the CPU makes it.
const kr_op *check_shapes(const check_case *, kr_shape *in_shape, kr_dtype *in_dtype, kr_shape *out_shape,
                          kr_dtype *out_dtype);
/// The op's rule refuses the case with that shape of one input, and the message has `part` in it. Gives the status.
kr_status check_refused(const check_case *, int input, kr_shape, const char *part);
/// One call: all stages, all parts, with workspace. `reverse` runs the parts of each stage last to first.
/// Views are packed by a generic strided copy.
kr_status check_call(const kr_op *, const kr_attrs *, const kr_arg *in, int inputs, const kr_arg *out, kr_isa,
                     int parts, bool reverse);

#endif
