/// The compiler: passes that turn a graph into a plan, and the printers that show any stage.
/// It never names an op: what an op means is in its kr_op (ops/ops.h), what the target promises in its kr_impl
/// (runtime/target.h).
#ifndef KRAIT_COMPILER_H
#define KRAIT_COMPILER_H

#include "ops/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

/// AdamW with decay groups, as part of the graph (kr_adamw, ops/ops.h). Weight decay applies to params
/// flagged KR_PARAM_DECAY. The moments of a param are carries "exp_avg.<param>" and "exp_avg_sq.<param>" of kind
/// KR_CARRY_OPTIMIZER, and so is the number of updates, from which the bias corrections follow.
typedef struct kr_optimizer {
    double beta1, beta2, eps, weight_decay;
    double max_norm;   ///< global-norm clipping; 0: none
} kr_optimizer;
#define KR_OPTIMIZER_STEP "optimizer.step" ///< the carry, i64 [1], that holds the number of updates so far

/// One plan on the curve of memory against time.
typedef struct kr_memory_point {
    size_t bytes;        ///< all arenas: kr_plan_stats_bytes of it
    double seconds;      ///< of one run, estimated from the ops' costs at the target's rates (compiler/cost.c)
    double extra;        ///< share of the time without recomputation that is added: 0.05 is 5 %
    int recomputed;      ///< nodes that run a second time
    char what[192];      ///< which: "24 causal_conv1d, 24 matmul"
} kr_memory_point;

/// Plans from the most memory to the least; each takes more time than the one before it.
typedef struct kr_memory_curve {
    int count, chosen;   ///< chosen: -1 when none fits
    kr_memory_point at[24];
} kr_memory_curve;

/// What to compile.
typedef enum kr_goal {
    KR_GOAL_FORWARD = 0, ///< just the graph's outputs and assigns
    KR_GOAL_GRADIENTS, ///< and d loss / d param as outputs "grad.<param>", and d loss / d input of f32 inputs "grad.<input>"
    KR_GOAL_TRAIN,      ///< forward, backward, clipping and update in one plan; adds input "learning_rate" f32 [1]
                        ///< and output "grad_norm" f32 [1]; if that is not finite, params and optimiser state stay
    KR_GOAL_ACCUMULATE, ///< forward, backward, and gradients added into carries "gradient.<param>"
    KR_GOAL_TRAIN_LAST, ///< as TRAIN, after adding the carried gradients, which become zero again
} kr_goal;

/// What the operands of matrix products are rounded to before they are multiplied. Everything else stays f32: sums,
/// parameters, states, norms and the loss.
typedef enum kr_precision {
    KR_PRECISION_F32 = 0,
    KR_PRECISION_BF16,          ///< by the instructions of AMX or AVX512_BF16
    KR_PRECISION_BF16_EMULATED, ///< rounded alike, multiplied in f32: any machine, and slow
} kr_precision;
#define KR_PRECISIONS "f32|bf16|bf16-emulated" ///< their names, in order, as options want them

typedef struct kr_compile_options {
    kr_goal goal;
    const char *loss;         ///< name of the scalar output to differentiate; null: "loss"
    kr_optimizer optimizer;
    int accumulation;         ///< micro-batches per update: gradients are divided by it; 0 means 1
    /// Goals with a backward part: values are recomputed there instead of being stored, until all arenas together need
    /// no more than this many bytes, in the way that takes least time. The result has the same bits. 0: all are stored.
    /// fails KR_BAD_ARGUMENT with the least that can be reached
    size_t memory;
    kr_memory_curve *curve;   ///< filled in when not null, also where nothing fits
    bool no_fuse;             ///< leave every op a node of its own
    const char *stop_after;   ///< leave the graph as it is after this pass and make no plan; null: all
    kr_precision precision;   ///< of all matrix products, those of gradients too
    const kr_target *target;  ///< what the plan is for; null: the CPU
} kr_compile_options;

/// What the planner found, in bytes; also FLOPs and traffic of one run.
typedef struct kr_plan_stats {
    int nodes, steps, params;
    int barriers;        ///< at which all threads wait for each other in one run, those between stages included
    int64_t param_elements;
    double flops, bytes;
    size_t slot_bytes[KR_SLOT_KIND_COUNT];
    size_t peak;         ///< activation arena
    size_t bound;        ///< largest sum of live bytes over the schedule: no plan of this order can do with less
    size_t sum;          ///< without any reuse
    int recomputed;      ///< nodes that run a second time to save memory
    double seconds, extra;    ///< estimated time of a run, and the share that those add (0 and 0 without a budget)
} kr_plan_stats;
/// All arenas together.
size_t kr_plan_stats_bytes(const kr_plan_stats *);

/// Runs the passes over `g` (which changes) and lowers it. `plan` may be null when options->stop_after is set.
/// fails KR_UNSUPPORTED: bf16 on a machine without instructions for it, or an op on the way to the loss has no gradient
kr_status kr_compile(kr_graph *g, const kr_compile_options *, kr_plan **plan, kr_plan_stats *stats);

/// What ops leave open (an attribute of 0: chunk, sizes of saved states) becomes what the target makes of it: the first
/// pass of kr_compile; alone for those who run a graph without compiling it.
kr_status kr_specialise(kr_graph *, const kr_target *);

/// Names of the passes in order; null after the last.
const char *kr_pass_name(int index);

/// The gradient of scalar `loss` with respect to each of `wrt`; empty where it does not depend on it.
/// fails KR_UNSUPPORTED naming op and value where an op on the path has no gradient.
kr_status kr_autodiff(kr_graph *g, kr_value loss, const kr_value *wrt, int count, kr_value *grads);

/// One buffer to place: alive in steps [first, last]; `offset` is filled in.
typedef struct kr_arena_item {
    int first, last;
    size_t size, offset;
} kr_arena_item;
/// Offsets such that items alive in the same step never overlap; *peak is the arena size. Tries several visiting
/// orders, each item into the tightest gap, and keeps the best; stops early at the bound. Deterministic.
///   source Pisarchyk & Lee 2020, arXiv:2001.03288 (greedy by size, best fit)
kr_status kr_arena_pack(kr_arena_item *, size_t count, size_t align, size_t *peak);
/// Largest sum of live bytes (sizes rounded up to `align`).
size_t kr_arena_bound(const kr_arena_item *, size_t count, size_t align);

/// Graphviz: a cluster per scope, one node per op.
kr_status kr_graph_print_dot(const kr_graph *, FILE *);
/// The statistics as lines of text, or as one JSON object.
void kr_stats_print(const kr_plan_stats *, FILE *, bool json);

#ifdef __cplusplus
}
#endif
#endif
