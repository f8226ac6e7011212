/// Krait's runtime: status, types, devices, random numbers, files, plans and the sessions that run them.
/// It knows nothing of graphs: a plan is a flat list of kernel calls over slots of memory.
#ifndef KRAIT_RUNTIME_RUNTIME_H
#define KRAIT_RUNTIME_RUNTIME_H

#include "kernel.h"
#include "status.h"
#include "target.h"

#include <stdbool.h>
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

// ---------------------------------------------------------------------------------------------------------------
// Types and shapes

#ifndef __cplusplus
/// A shape from its dimensions: KR_SHAPE(B, L, D); KR_SCALAR for rank 0.
#define KR_SHAPE(...)                                                                         \
    ((kr_shape){(int32_t)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), {__VA_ARGS__}})
#define KR_SCALAR ((kr_shape){0, {0}})
#endif

/// Bytes of one element; 0 for a dtype that does not exist.
size_t kr_dtype_size(kr_dtype);
/// "f32", "bf16", ...
const char *kr_dtype_name(kr_dtype);
/// The dtype of that name; false when there is none.
bool kr_dtype_parse(const char *name, kr_dtype *out);
bool kr_shape_equal(const kr_shape *a, const kr_shape *b);
/// Writes "[2, 3]" and gives back `text`. 160 bytes are always enough.
const char *kr_shape_text(const kr_shape *, char text[160]);
/// The most that one tensor or workspace may have: as much as a process can address (2^47 bytes with 4-level page
/// tables), so that sizes can be added, and multiplied by the few rows of a kernel's scratch, without leaving 64 bits.
#define KR_MOST_BYTES ((size_t)1 << 47)
/// Bytes of a packed tensor; SIZE_MAX when they are more than KR_MOST_BYTES, or a dimension is negative.
size_t kr_tensor_bytes(kr_dtype, const kr_shape *);
float kr_bf16_to_f32(uint16_t);
/// Rounds to nearest even; NaN stays NaN.
uint16_t kr_f32_to_bf16(float);

// ---------------------------------------------------------------------------------------------------------------
// Memory of the host

/// Aligned, zeroed host memory. Freed with kr_host_free. Null when there is none (status recorded).
void *kr_host_alloc(size_t bytes);
void kr_host_free(void *, size_t bytes);

/// A bump allocator: small objects that die together (graphs, plans). Gaps and freed memory are poisoned under
/// AddressSanitizer.
typedef struct kr_pool kr_pool;
kr_pool *kr_pool_new(void);
void kr_pool_free(kr_pool *);
/// Zeroed memory, 16-byte aligned; never null: when memory ends, a shared fallback is impossible, so the pool
/// records KR_NO_MEMORY and returns null, which callers check.
void *kr_pool_take(kr_pool *, size_t bytes);
char *kr_pool_text(kr_pool *, const char *text);
__attribute__((format(printf, 2, 3))) char *kr_pool_format(kr_pool *, const char *format, ...);

// ---------------------------------------------------------------------------------------------------------------
// The processor

/// The best level that this machine and this build can run, lowered by kr_isa_limit (`--isa` of krait bench and golden,
/// `isa:` of a target in krait.yaml), else by KRAIT_ISA=base|avx2|avx512 in the environment. The CPU's devices take the
/// kernels of it when a plan is bound (runtime/cpu/bind.c).
kr_isa kr_isa_best(void);
/// Lowers (or restores) the level for this process. fails KR_UNSUPPORTED when the machine or build lacks it.
kr_status kr_isa_limit(kr_isa);
const char *kr_isa_name(kr_isa);
bool kr_isa_parse(const char *name, kr_isa *out);
/// The build of one stage for a level: the highest that exists and is not above it.
kr_kernel *kr_stage_kernel(const kr_stage *, kr_isa level);
/// Processors that this process may use (affinity and container quota respected).
int kr_cpu_count(void);
/// Makes OpenBLAS ready: one thread per caller, and a core type that fits this CPU (an older OpenBLAS does not know a
/// newer CPU). Called by the CPU device; idempotent. Gives the name of the core type in use ("SkylakeX").
const char *kr_blas_prepare(void);
/// A sentence that warns of a slow core type forced by the environment; null when all is well.
const char *kr_blas_warning(void);

// ---------------------------------------------------------------------------------------------------------------
// Random numbers: Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3")

/// Four independent 32-bit words for a counter under a key. Stateless: the same everywhere, in any order.
void kr_philox(uint64_t key, uint64_t counter_high, uint64_t counter_low, uint32_t out[4]);
/// Element `index` of stream `stream` of `seed`, uniform in [0, 1), 24 bits.
float kr_random_uniform(uint64_t seed, uint64_t stream, uint64_t index);
/// The same, standard normal (Box-Muller on two words).
float kr_random_normal(uint64_t seed, uint64_t stream, uint64_t index);
/// A stable 64-bit hash of a name (XXH3), to derive streams from parameter names.
uint64_t kr_hash(const void *data, size_t bytes);

/// How a parameter starts. a, b, c depend on the kind. Why so: "How it starts" in docs/book/2-mamba.md.
typedef enum kr_init_kind {
    KR_INIT_ZEROS = 0,
    KR_INIT_CONSTANT,     ///< a
    KR_INIT_UNIFORM,      ///< U(-a, a)
    KR_INIT_NORMAL,       ///< N(0, a^2)
    KR_INIT_LOG_ARANGE,   ///< log(1..N) along the last axis, every row (Mamba-1 A_log)
    KR_INIT_LOG_UNIFORM,  ///< log U(a, b) (Mamba-2 A_log)
    KR_INIT_DT_BIAS,      ///< softplus^-1(dt), dt = max(exp(U log(b/a) + log a), c) (dt_proj.bias, dt_bias)
    KR_INIT_COUNT
} kr_init_kind;
typedef struct kr_init {
    kr_init_kind kind;
    double a, b, c;
} kr_init;
/// Fills n f32 elements; last is the length of the last axis. The stream is derived from `name`.
void kr_init_fill(const kr_init *, uint64_t seed, const char *name, float *out, int64_t n, int64_t last);

// ---------------------------------------------------------------------------------------------------------------
// Devices

/// A place where arenas live and plans of its target run (kr_device, runtime/target.h; opened by name with
/// kr_device_open, ops/ops.h). The host never reads or writes device memory but through these calls.

/// CPU kernels over host memory. It settles what belongs to the processor: instruction set level, OpenBLAS's core type.
/// fails KR_BAD_ARGUMENT, KR_UNSUPPORTED when KRAIT_ISA names a level that does not exist or that cannot be had,
/// KR_BAD_ARGUMENT when KRAIT_WITHOUT names an extension that is not known
kr_status kr_device_cpu(kr_device **out);
/// The same kernels, but arenas are protected pages outside of runs and copies: any stray access of the host faults.
/// For tests.
kr_status kr_device_guarded(kr_device **out);
void kr_device_close(kr_device *);
const char *kr_device_name(const kr_device *);
kr_status kr_device_alloc(kr_device *, size_t bytes, void **address);
void kr_device_free(kr_device *, void *address, size_t bytes);
kr_status kr_device_write(kr_device *, void *to, const void *from, size_t bytes);
kr_status kr_device_read(kr_device *, void *to, const void *from, size_t bytes);
kr_status kr_device_zero(kr_device *, void *to, size_t bytes);
kr_status kr_device_wait(kr_device *);

// ---------------------------------------------------------------------------------------------------------------
// Plans: built by the compiler (or by hand in tests), run by a session

typedef enum kr_slot_kind {
    KR_SLOT_ACTIVATION = 0, ///< one per plan; shared by the plans of a session, undefined between runs
    KR_SLOT_IO,             ///< inputs and outputs of one run
    KR_SLOT_CONST,          ///< filled once with a splat
    KR_SLOT_PARAM,          ///< by name, shared by the plans of a session, as are the next three
    KR_SLOT_OPTIMIZER,
    KR_SLOT_CARRY,          ///< state that lives from run to run
    KR_SLOT_GRADIENT,       ///< one per plan unless it accumulates; shared like activations
    KR_SLOT_KIND_COUNT
} kr_slot_kind;
const char *kr_slot_kind_name(kr_slot_kind);

/// A piece of memory that a plan uses. Activation and gradient arenas are one slot each (name null).
typedef struct kr_slot {
    kr_slot_kind kind;
    const char *name;   ///< identity across plans, for every kind but activation and gradient arenas
    kr_dtype dtype;
    kr_shape shape;
    size_t bytes;
    kr_init init;       ///< parameters
    bool is_output;     ///< KR_SLOT_IO: written by the plan
    double splat;       ///< KR_SLOT_CONST
} kr_slot;

/// A tensor inside a slot.
typedef struct kr_operand {
    int slot;           ///< -1: absent
    size_t offset;      ///< bytes from the start of the slot
    kr_dtype dtype;
    kr_shape shape;
    int64_t stride[KR_MAX_RANK];
} kr_operand;

/// One kernel call.
typedef struct kr_step {
    const char *op;     ///< "rms_norm"
    const char *scope;  ///< "backbone.layers.3.norm"
    int node;           ///< number of the graph node, for messages
    const void *kernels;///< kr_impl.kernels of the plan's target; must outlive the plan
    int stages;         ///< that run one after another; everybody is through with a stage before the next begins
    int64_t rounds;     ///< times that all stages run, one round after another; 0 means 1
    int inputs, outputs;
    const kr_operand *in;
    const kr_operand *out;
    kr_operand work;    ///< slot -1 when none; otherwise shape is [bytes], dtype u8
    kr_attrs attrs;
    bool barrier;       ///< all earlier steps must be finished on every thread
    double flops, bytes; ///< what the op declares as its cost
} kr_step;

typedef struct kr_plan kr_plan;
/// An empty plan, for devices of one target ("cpu").
kr_status kr_plan_new(const char *target, kr_plan **out);
const char *kr_plan_target(const kr_plan *);
void kr_plan_free(kr_plan *);
/// Copies `slot` into the plan and gives its index, or -1 (status recorded).
int kr_plan_add_slot(kr_plan *, const kr_slot *);
/// Copies the step and its operands.
kr_status kr_plan_add_step(kr_plan *, const kr_step *);
/// Sets `barrier` of every step from the byte ranges that the steps read and write, and checks that every operand
/// lies inside its slot. To be called once, after the last step.
kr_status kr_plan_finish(kr_plan *);
int kr_plan_slots(const kr_plan *);
kr_slot *kr_plan_slot(const kr_plan *, int index);
int kr_plan_steps(const kr_plan *);
const kr_step *kr_plan_step(const kr_plan *, int index);
/// Slot index of an input or output by name, or -1.
int kr_plan_find(const kr_plan *, const char *io_name);

/// Data for one input, or room for one output, of a run: packed, `bytes` exactly as the slot's.
typedef struct kr_binding {
    const char *name;
    void *data;
    size_t bytes;
} kr_binding;

enum {
    KR_RUN_CHECK =
        1, ///< run step by step and stop with KR_NOT_FINITE, naming the first node whose result is not finite
    KR_RUN_PROFILE = 2, ///< add the wall time of every step to the plan's profile
};

// ---------------------------------------------------------------------------------------------------------------
// Sessions: the memory that several plans share, and the threads that run them

typedef struct kr_session kr_session;
/// threads: of the host, for devices that work with them; 0: as many as the device thinks best (CPU: kr_cpu_count()).
/// The device must outlive the session. One thread at a time may use a session.
/// fails KR_BAD_ARGUMENT
kr_status kr_session_open(kr_device *, int threads, kr_session **out);
void kr_session_close(kr_session *);
int kr_session_threads(const kr_session *);
/// Makes room for everything the plan needs; parameters, optimiser state and carries are shared by name with the
/// plans added before (shapes and dtypes must agree). New memory is zero. Allocates; runs never do.
/// fails KR_BAD_ARGUMENT: the plan was compiled for another target; KR_UNSUPPORTED: the device lacks a kernel (the
/// message names op, node, scope and target). The plan may be freed before the session; its inputs, outputs and
/// constants keep their room until the session ends.
kr_status kr_session_add(kr_session *, kr_plan *);
/// Sets every parameter from its initialiser, every other persistent slot to zero.
kr_status kr_session_init(kr_session *, uint64_t seed);
/// Runs a plan that was added: copies inputs in, runs, copies outputs out. A binding is for an input or an output by
/// the name's slot. Every input of the plan must be bound; outputs may be left out.
kr_status kr_plan_run(kr_session *, kr_plan *, const kr_binding *bindings, int count, unsigned flags);
/// Nanoseconds that step `index` took in all runs with KR_RUN_PROFILE, and how many those were.
double kr_plan_profile(const kr_plan *, int index, int64_t *runs);

/// The persistent slots (parameters, optimiser state, carries), in the order in which they were first added.
int kr_session_slots(const kr_session *);
const kr_slot *kr_session_slot(const kr_session *, int index);
/// Index of the slot of that name, or -1.
int kr_session_find(const kr_session *, const char *name);
kr_status kr_session_read(kr_session *, int index, void *to, size_t bytes);
kr_status kr_session_write(kr_session *, int index, const void *from, size_t bytes);
/// A piece of a slot, `bytes` from `offset` on: large ones need not be held twice.
kr_status kr_session_read_at(kr_session *, int index, size_t offset, void *to, size_t bytes);
kr_status kr_session_write_at(kr_session *, int index, size_t offset, const void *from, size_t bytes);
/// Zeroes all carries: a fresh sequence.
kr_status kr_session_reset_carries(kr_session *);
/// Bytes of device memory held, by kind of slot.
void kr_session_memory(const kr_session *, size_t bytes[KR_SLOT_KIND_COUNT]);

// ---------------------------------------------------------------------------------------------------------------
// Files

/// A safetensors file, mapped read-only. Every offset, size and name was checked when it was opened.
typedef struct kr_tensor_file kr_tensor_file;
typedef struct kr_tensor_entry {
    const char *name;
    kr_dtype dtype;
    kr_shape shape;
    const void *data;  ///< inside the mapping; aligned to 1 byte only
    size_t bytes;
} kr_tensor_entry;
/// fails KR_IO, KR_BAD_FILE (with the offset or key that is wrong), KR_UNSUPPORTED (a dtype Krait does not have)
kr_status kr_tensors_open(const char *path, kr_tensor_file **out);
/// The same over bytes in memory, which must outlive the result. `label` names them in messages.
kr_status kr_tensors_parse(const void *data, size_t bytes, const char *label, kr_tensor_file **out);
void kr_tensors_close(kr_tensor_file *);
int kr_tensors_count(const kr_tensor_file *);
const kr_tensor_entry *kr_tensors_at(const kr_tensor_file *, int index);
/// Null when there is none of that name.
const kr_tensor_entry *kr_tensors_find(const kr_tensor_file *, const char *name);
/// Value of a `__metadata__` key, or null.
const char *kr_tensors_metadata(const kr_tensor_file *, const char *key);
/// Converts any entry to f64 / i64 elements (host). fails KR_BAD_SHAPE when `n` is not its element count.
kr_status kr_tensors_to_f64(const kr_tensor_entry *, double *out, int64_t n);

/// Writes a safetensors file. metadata: `pairs` key, value strings in turn. Data is aligned to 64 bytes. The bytes
/// depend on nothing but the arguments. Not atomic by itself; see kr_checkpoint.
kr_status kr_tensors_write(FILE *to, const kr_tensor_entry *entries, int count, const char *const *metadata, int pairs);

/// Reads a whole file into memory from malloc, with a 0 byte after it.
kr_status kr_file_read(const char *path, char **data, size_t *bytes);
/// Writes a file through a temporary name, fsync and rename: the old or the new content, never a mixture.
kr_status kr_file_write(const char *path, const void *data, size_t bytes);
/// Creates a directory and its parents; an existing one is fine.
kr_status kr_directory_make(const char *path);

/// A checkpoint is a directory: model.safetensors, optimizer.safetensors.zst (when there is optimiser state),
/// carry.safetensors.zst (when asked for), state.json and MANIFEST (size and XXH3 of each).
/// It is written under a temporary name beside `path`, every file synced, then renamed over `path` (an older
/// checkpoint of that name is replaced); a crash at any instant leaves the previous or the new one whole.
/// `state` is the text of state.json. Carries are included when there are any and `carries`. A path where something
/// else than a checkpoint stands is refused. After a failure the checkpoint before is still there.
kr_status kr_checkpoint_save(const char *path, kr_session *, const char *state, bool carries);
enum { KR_LOAD_PARAMS = 1, KR_LOAD_OPTIMIZER = 2, KR_LOAD_CARRIES = 4, KR_LOAD_STATE = 8,
       KR_LOAD_FEWER = 16 ///< optimiser state that the file lacks keeps its values: an older version did not save it
};
/// Checks MANIFEST, then loads. Every persistent slot of a kind that is asked for must be in the file with the same
/// shape, and the other way round; messages name file and tensor, and nothing was changed then. *state (may be null) is
/// from malloc, null unless KR_LOAD_STATE; session may be null when nothing else is asked for.
kr_status kr_checkpoint_load(const char *path, kr_session *, unsigned what, char **state);
/// Completes or removes what an interrupted save left beside `path`. Called by save and load themselves.
kr_status kr_checkpoint_recover(const char *path);
/// Removes a checkpoint directory (only files that Krait writes).
kr_status kr_checkpoint_remove(const char *path);

/// Seconds on a clock that never goes back.
double kr_seconds(void);

#ifdef __cplusplus
}
#endif
#endif
