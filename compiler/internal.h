/// What the passes share.
#ifndef KRAIT_COMPILER_INTERNAL_H
#define KRAIT_COMPILER_INTERNAL_H

#include "compiler/compiler.h"

/// Where a value's elements are: a root buffer (named by the value that owns it) and a layout inside it.
typedef struct kr_home {
    uint32_t root;      ///< value id whose buffer holds it; 0: the value has no home (dead)
    kr_layout layout;   ///< offset and strides in elements of the value's dtype
} kr_home;

/// One compilation under way.
typedef struct kr_compilation {
    kr_graph *g;
    const kr_compile_options *options;
    int param_count;
    int forward_outputs, forward_assigns; ///< how many the graph had before differentiation
    kr_value *params, *grads;      ///< parameters in node order, and the final gradient of each (or empty)
    kr_home *homes;                ///< by value id, after the layout pass
    uint32_t home_count;
    struct kr_memory *memory;      ///< after the memory pass
    kr_plan *plan;
    kr_plan_stats stats;
} kr_compilation;

/// Gives every op that has an attribute "precision" this one (compiler/precision.c).
kr_status kr_precision_set(const kr_target *, kr_graph *, kr_precision);
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

/// The passes that follow rematerialise, on another graph: what a plan made in this way would need. c->plan is freed
/// by the caller.
kr_status kr_passes_after_rematerialise(kr_compilation *c);
void kr_compilation_free(kr_compilation *); ///< all but the plan and the graph
/// FLOPs and bytes of memory traffic of a node as its op states them, for these shapes of its inputs and outputs (rank
/// -1: an output that nobody reads); else every element once (compiler/cost.c).
void kr_node_cost(const kr_graph *, const kr_node *, const kr_shape *in, const kr_shape *out, double *flops,
                  double *bytes);
/// Estimated time of a node at the target's rates (compiler/cost.c).
double kr_node_ns(const kr_target *, const kr_graph *, const kr_node *);

/// Homes of all values of the graph as it stands, without changing it. Also used by the schedule and memory passes.
kr_status kr_homes(const kr_target *, const kr_graph *, kr_home *homes);
/// Bytes from the first to the last element of the value that owns a buffer: more than its elements where rows are
/// padded.
size_t kr_home_bytes(const kr_graph *, const kr_home *homes, uint32_t root);
/// How often outputs and assigns name each value, by id; the caller frees it. NULL: no memory.
int *kr_root_uses(const kr_graph *);
/// Bit i of a descriptor's mask of inputs or outputs; the last bit stands for all from 31 on.
bool kr_mask_has(uint32_t mask, int i);
bool kr_layout_contiguous(const kr_layout *);
/// One pitch for all leading axes and a contiguous last axis.
bool kr_layout_rows(const kr_layout *);
/// The packed layout of a shape.
kr_layout kr_layout_packed(const kr_shape *);
/// May input i of op be read in this layout?
bool kr_layout_accepted(const kr_target *, const kr_node *, int i, const kr_layout *);
/// What the target promises of a node's op; nothing for views, sources, and where it has no implementation: that is an
/// error in the lower pass (compiler/lower.c).
const kr_impl *kr_impl_of(const kr_target *, const kr_node *);

/// A buffer of the plan.
typedef struct kr_buffer {
    kr_slot_kind kind;
    int slot;                ///< of the plan; persistent and IO kinds have one each
    size_t bytes, offset;
    int first, last;         ///< nodes (by index in the graph) between which it is alive
} kr_buffer;

typedef struct kr_memory {
    kr_buffer *buffers;
    int count;
    int *of_value;           ///< buffer index by root value id; -1: none
    int *work;               ///< buffer index of each node's workspace; -1: none
    bool *copy_assign;       ///< per assign: a copy into the target's slot is needed after the last node
} kr_memory;
void kr_memory_free(kr_memory *);

/// Last node index that reads each value, through views too; outputs and assigned values: node count. -1: nobody.
kr_status kr_last_reads(const kr_graph *, int *last);

#endif
