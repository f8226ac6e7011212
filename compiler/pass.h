/// One compilation under way, and the passes over it. What a pass needs besides has a header of its own: who reads what
/// (compiler/uses.h), strides (compiler/strides.h), costs (compiler/cost.h), what the target promises
/// (compiler/impl.h),
/// and in the rooms what their files share.
#ifndef KRAIT_COMPILER_PASS_H
#define KRAIT_COMPILER_PASS_H

#include "compiler/compiler.h"

typedef struct kr_compilation kr_compilation;

/// An entry of the table in compiler/compile.c.
typedef struct kr_pass {
    const char *name;
    kr_status (*run)(kr_compilation *);
} kr_pass;

struct kr_compilation {
    kr_graph *g;
    const kr_compile_options *options; ///< with a target
    const kr_pass *following;      ///< the passes after the one that runs; a null name ends them
    int param_count;
    int forward_outputs, forward_assigns; ///< how many the graph had before differentiation
    kr_value *params, *grads;      ///< parameters in node order, and the final gradient of each (or empty)
    struct kr_placement *placements; ///< by value id, after the memory pass (compiler/memory/placement.h)
    struct kr_memory *memory;      ///< after the memory pass (compiler/memory/memory.h)
    kr_plan *plan;
    kr_plan_stats stats;
};

kr_status kr_pass_specialise(kr_compilation *);
kr_status kr_pass_autodiff(kr_compilation *);
kr_status kr_pass_optimizer(kr_compilation *);
kr_status kr_pass_simplify(kr_compilation *);
kr_status kr_pass_rematerialise(kr_compilation *);
kr_status kr_pass_fuse(kr_compilation *);
kr_status kr_pass_layout(kr_compilation *);
kr_status kr_pass_schedule(kr_compilation *);
kr_status kr_pass_memory(kr_compilation *);
kr_status kr_pass_lower(kr_compilation *);
/// Frees all but the plan and the graph (compiler/memory/memory.c).
void kr_compilation_free(kr_compilation *);

/// Gives every op that has an attribute "precision" this one (compiler/precision.c).
kr_status kr_precision_set(const kr_target *, kr_graph *, kr_precision);

#endif
