/// What the files of runtime/ share and nobody else sees: the device interface, plans as they are stored, plans bound
/// to memory, and the parts of processor and BLAS detection that tests drive.
#ifndef KRAIT_RUNTIME_INTERNAL_H
#define KRAIT_RUNTIME_INTERNAL_H

#include "runtime/runtime.h"

// ---------------------------------------------------------------------------------------------------------------
// Plans

struct kr_plan {
    kr_pool *pool;              ///< owns names, slots, steps and operands
    kr_slot **slots;
    kr_step **steps;
    int slot_count, slot_capacity;
    int step_count, step_capacity;
    uint64_t serial;            ///< never given twice in a process: tells a plan from a freed one at the same address
    bool finished;
    double *profile;            ///< nanoseconds of each step; by kr_plan_finish
    int64_t profiled_runs;
};

/// A plan step with every operand resolved to an address of the device.
typedef struct kr_bound_step {
    kr_call call;
    kr_kernel *kernel[KR_MAX_STAGES]; ///< chosen by the CPU devices for the level in force
    const kr_step *step;
} kr_bound_step;

/// A plan with the memory of one session: what a device runs. Built once per kr_session_add.
typedef struct kr_bound {
    kr_plan *plan;
    uint64_t serial;
    kr_bound_step *steps;
    kr_arg *args;               ///< of all steps, one array
    void **address;             ///< of every slot of the plan
    int *given;                 ///< for every slot: index of the binding of the run in progress, or -1
    int *slot;                  ///< of every argument, then of every step's workspace
    int arena[2];               ///< slots of the activation and gradient arenas, or -1
    int step_count, arg_count;
    int isa;                    ///< level of the chosen kernels, -1 before the first choice
} kr_bound;

/// Resolves every operand of a finished plan against the addresses of its slots. `address` is copied.
kr_status kr_bound_new(kr_plan *, void *const *address, kr_bound **out);
void kr_bound_free(kr_bound *);
/// Follows a slot that moved. Needs nothing of the plan, which may be freed by now.
void kr_bound_move(kr_bound *, int slot, void *to);
/// Sets the kernels of every step for a level. fails KR_UNSUPPORTED naming an op without a CPU kernel.
kr_status kr_bound_choose(kr_bound *, kr_isa);

// ---------------------------------------------------------------------------------------------------------------
// Devices

/// What a device does. Addresses are the device's own; the host only passes them on. alloc is given bytes > 0 and
/// returns memory aligned to 64 bytes at least, whose content is undefined. Copies and runs are in order; `wait`
/// returns when all of them are done.
typedef struct kr_device_class {
    const char *name;
    kr_status (*alloc)(kr_device *, size_t bytes, void **address);
    void (*free)(kr_device *, void *address, size_t bytes);
    kr_status (*write)(kr_device *, void *to, const void *from, size_t bytes);
    kr_status (*read)(kr_device *, void *to, const void *from, size_t bytes);
    kr_status (*zero)(kr_device *, void *to, size_t bytes);
    kr_status (*run)(kr_device *, kr_bound *, int threads, unsigned flags);
    kr_status (*wait)(kr_device *);
    void (*close)(kr_device *);
    /// May be null. Tells the device that nothing may touch these bytes until they are freed.
    void (*fence)(kr_device *, void *address, size_t bytes);
} kr_device_class;

/// Devices begin with this.
struct kr_device {
    const kr_device_class *class;
    int threads;                ///< team of the newest session, for work that is not a plan's (zeroing); 0: all
};

kr_status kr_device_run(kr_device *, kr_bound *, int threads, unsigned flags);
void kr_device_fence(kr_device *, void *address, size_t bytes);

/// The executor of the CPU devices: runs a bound plan on a team of `threads`. Fails only with KR_RUN_CHECK, or when
/// a kernel is missing.
kr_status kr_execute(kr_bound *, int threads, unsigned flags);
/// Index of the first element of `arg` that is NaN or infinite, in row-major order, or -1. Integers are finite.
int64_t kr_first_not_finite(const kr_arg *arg, double *value);

/// Zeroes memory of the host with a team, so that every page is touched near the threads that use it.
void kr_zero_parallel(void *, size_t bytes, int threads);

// ---------------------------------------------------------------------------------------------------------------
// Sessions

/// One allocation of the device, for slots of one kind.
typedef struct kr_region {
    kr_slot_kind kind;
    void *address;              ///< null: none
    size_t bytes;
} kr_region;

/// A persistent slot.
typedef struct kr_held {
    kr_slot slot;
    void *address;
} kr_held;

/// A plan that was added, and its own memory: inputs and outputs, and constants.
typedef struct kr_added {
    kr_bound *bound;
    kr_region io, constants;
} kr_added;

struct kr_session {
    kr_device *device;
    int threads;
    kr_pool *pool;              ///< owns what `held` points to, and names
    kr_held **held;
    kr_region *regions;         ///< of the persistent slots
    kr_added *added;
    int held_count, region_count, added_count;
    kr_region arena[2];         ///< activations and gradients, shared by all plans
};

/// What kr_session_add made of a plan, or null.
kr_bound *kr_session_bound(const kr_session *, const kr_plan *);
/// Sets n elements to `value`. fails KR_BAD_ARGUMENT when an integer dtype cannot hold it.
kr_status kr_splat(kr_dtype, double value, void *out, int64_t n);

// ---------------------------------------------------------------------------------------------------------------
// The processor

/// What the hardware and the system can run, whatever was built.
kr_isa kr_isa_hardware(void);
/// Whether KRAIT_ISA, if set, names a level that can be had.
kr_status kr_isa_environment(void);
/// Whether KRAIT_WITHOUT, if set, names extensions that are known.
kr_status kr_bf16_environment(void);
/// Processors that a cgroup's CPU quota allows, rounded up, or 0 when there is none. `mount` is "/sys/fs/cgroup";
/// `groups` is the text of /proc/self/cgroup. Versions 1 and 2.
int kr_cgroup_cpus(const char *mount, const char *groups);

/// Until kr_blas_restore, BLAS calls of this thread stay on this thread. Gives what to restore.
int kr_blas_alone(void);
void kr_blas_restore(int before);
/// The level of kernels behind one of OpenBLAS's core type names; KR_ISA_COUNT for a name from the future.
kr_isa kr_blas_level(const char *core);
/// Makes OpenBLAS use the tables of that core type. False when this OpenBLAS does not have it or cannot switch.
/// No BLAS call may be under way.
bool kr_blas_select(const char *core);
/// One pass of kr_blas_prepare, not remembered: `forced` is the user's OPENBLAS_CORETYPE or null. Gives a warning or
/// null.
const char *kr_blas_correct(const char *forced, kr_isa hardware);

// ---------------------------------------------------------------------------------------------------------------
// Initialisers

/// Elements first .. first + n - 1 of what kr_init_fill gives; first is a multiple of 4.
void kr_init_part(const kr_init *, uint64_t seed, const char *name, int64_t first, float *out, int64_t n, int64_t last);

#endif
