/// What the files of the CPU's devices share: the executor, and the parts of processor and BLAS detection that tests
/// drive.
#ifndef KRAIT_RUNTIME_CPU_INTERNAL_H
#define KRAIT_RUNTIME_CPU_INTERNAL_H

#include "runtime/internal.h"

/// A device of the CPU begins with this.
typedef struct kr_cpu_device {
    kr_device device;
    int threads;                ///< team of the newest session, for work that is not a plan's (zeroing); 0: all
} kr_cpu_device;

/// Entries of their classes (runtime/cpu/bind.c). bind settles the path of products in bf16.
kr_status kr_cpu_team(kr_device *, int wanted, int *threads);
kr_status kr_cpu_bind(kr_device *, kr_bound *);
void kr_cpu_unbind(kr_device *, kr_bound *);
/// Settles what belongs to the processor, when a device opens: fails where KRAIT_ISA names no level that can be had.
kr_status kr_cpu_prepare(void);

/// bound->state: the kernels of every step, for one instruction set level.
typedef struct kr_cpu_choice {
    int isa;                    ///< -1 before the first choice
    kr_kernel *(*kernel)[KR_MAX_STAGES]; ///< by step
} kr_cpu_choice;
/// Takes the kernels of a level; nothing happens when they are those in place.
/// fails KR_UNSUPPORTED naming op, node and scope of a step without one
kr_status kr_cpu_choose(kr_bound *, kr_isa);

/// Runs a bound plan on a team of `threads`. Fails only with KR_RUN_CHECK, or when a kernel is missing.
kr_status kr_execute(kr_bound *, int threads, unsigned flags);
/// Index of the first element of `arg` that is NaN or infinite, in row-major order, or -1. Integers are finite.
int64_t kr_first_not_finite(const kr_arg *arg, double *value);
/// Zeroes memory of the host with a team, so that every page is touched near the threads that use it.
void kr_zero_parallel(void *, size_t bytes, int threads);

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

#endif
