/// What the files of runtime/ share and nobody else sees: the device interface, plans as they are stored, plans bound
/// to memory.
#ifndef KRAIT_RUNTIME_INTERNAL_H
#define KRAIT_RUNTIME_INTERNAL_H

#include "runtime/runtime.h"

// ---------------------------------------------------------------------------------------------------------------
// Plans

struct kr_plan {
    kr_pool *pool;              ///< owns names, slots, steps and operands
    const char *target;
    kr_slot **slots;
    kr_step **steps;
    int slot_count, slot_capacity;
    int step_count, step_capacity;
    int *names;                 ///< hash table of slots by name, name_room entries: 0, or a power of two
    size_t name_room;
    uint64_t serial;            ///< never given twice in a process: tells a plan from a freed one at the same address
    bool finished;
    double *profile;            ///< nanoseconds of each step; by kr_plan_finish
    int64_t profiled_runs;
};

/// A plan step with every operand resolved to an address of the device.
typedef struct kr_bound_step {
    kr_call call;
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
    uint64_t moves;             ///< counts kr_bound_move: what a device captured with the addresses before is stale
    void *state;                ///< the device's own: made by its bind, freed by its unbind
} kr_bound;

/// Resolves every operand of a finished plan against the addresses of its slots. `address` is copied.
kr_status kr_bound_new(kr_plan *, void *const *address, kr_bound **out);
void kr_bound_free(kr_bound *);
/// Follows a slot that moved. Needs nothing of the plan, which may be freed by now.
void kr_bound_move(kr_bound *, int slot, void *to);

// ---------------------------------------------------------------------------------------------------------------
// Devices

/// What a device does. Addresses are the device's own; the host only passes them on. alloc is given bytes > 0 and
/// returns memory aligned to `align`, whose content is undefined. Copies, zeroing and runs are in order, and may be
/// under
/// way when the call returns; `wait` returns when all of them are done. A call that fails leaves nothing under way: its
/// caller may free what was copied from or to. `free` is called for memory that nothing uses any more.
typedef struct kr_device_class {
    const char *name;
    const char *target;         ///< plans of this target can be bound
    size_t align;               ///< of slots in its memory: a power of 2, at least 64; 0: 64
    /// How many threads of the host a session that asks for `wanted` (0: what is best) gets; they are also the team for
    /// work that is not a plan's. fails KR_BAD_ARGUMENT
    kr_status (*team)(kr_device *, int wanted, int *threads);
    /// Chooses kernels for a plan that was bound to addresses, and makes bound->state. fails KR_UNSUPPORTED naming op,
    /// node, scope and target of a step that the device has no kernel for.
    kr_status (*bind)(kr_device *, kr_bound *);
    /// Frees bound->state, also after a bind that failed; the plan may be gone.
    void (*unbind)(kr_device *, kr_bound *);
    kr_status (*alloc)(kr_device *, size_t bytes, void **address);
    void (*free)(kr_device *, void *address, size_t bytes);
    kr_status (*write)(kr_device *, void *to, const void *from, size_t bytes);
    kr_status (*read)(kr_device *, void *to, const void *from, size_t bytes);
    kr_status (*zero)(kr_device *, void *to, size_t bytes);
    /// flags: KR_RUN_CHECK (the finder is the device's, the words are kr_report_not_finite's), KR_RUN_PROFILE.
    kr_status (*run)(kr_device *, kr_bound *, int threads, unsigned flags);
    kr_status (*wait)(kr_device *);
    void (*close)(kr_device *);
    /// May be null. Tells the device that nothing may touch these bytes until they are freed.
    void (*fence)(kr_device *, void *address, size_t bytes);
} kr_device_class;

/// Devices begin with this.
struct kr_device {
    const kr_device_class *class;
};

kr_status kr_device_team(kr_device *, int wanted, int *threads);
/// fails KR_BAD_ARGUMENT: a plan for another target; and as the class's bind does
kr_status kr_device_bind(kr_device *, kr_bound *);
void kr_device_unbind(kr_device *, kr_bound *);
kr_status kr_device_run(kr_device *, kr_bound *, int threads, unsigned flags);
void kr_device_fence(kr_device *, void *address, size_t bytes);

/// What KR_RUN_CHECK found: the first step with a result that is not finite, and an input that was not before it ran.
typedef struct kr_finding {
    const kr_bound_step *step;  ///< null: nothing
    int output, input;          ///< input: -1 when all were finite
    int64_t at, input_at;       ///< elements, in row-major order
    double value, input_value;
} kr_finding;
/// KR_NOT_FINITE in words, or KR_OK when nothing was found.
kr_status kr_report_not_finite(const kr_bound *, const kr_finding *);

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
// Initialisers

/// Elements first .. first + n - 1 of what kr_init_fill gives; first is a multiple of 4.
void kr_init_part(const kr_init *, uint64_t seed, const char *name, int64_t first, float *out, int64_t n, int64_t last);

#endif
