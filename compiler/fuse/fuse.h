/// What the parts of the fuse pass share: what may be fused, and where in the order of the graph time passes.
#ifndef KRAIT_COMPILER_FUSE_FUSE_H
#define KRAIT_COMPILER_FUSE_FUSE_H

#include "compiler/pass.h"
#include "compiler/uses.h"

/// One look at a sorted graph. Nodes are known by their index in it.
typedef struct kr_fusion {
    kr_graph *g;
    const kr_target *target;
    kr_uses uses;
    int *last;        ///< by root: as uses.last, and `nodes` for sources, which are there before the run and after it
    bool *fusable;    ///< by node: it may be an instruction of a tile program
    int *heavy;       ///< by node: how many nodes up to it do something at run time that is no elementwise op
    size_t slack;     ///< bytes that do not matter
} kr_fusion;

/// Does anything run in places after `from` and before `to`?
static inline bool kr_work_between(const int *count, int from, int to) {
    return to - from > 1 && count[to - 1] > count[from];
}

/// Nodes that are to become one, at the place of the last one.
typedef struct kr_group {
    int count;
    int member[KR_PROGRAM_LENGTH + 1]; ///< node indices, ascending
    int ending;                        ///< the member that may read through reshapes: a sum at the end; 0: none
} kr_group;

/// May these nodes run together where the last of them stands? No one else may read a value of the group before that,
/// and buffers that would have to live longer may not weigh more than the values that vanish.
bool kr_group_may_form(const kr_fusion *, const kr_group *);
bool kr_group_has(const kr_group *, int node);
/// Is the value read by a node outside of the group, or kept?
bool kr_group_puts_out(const kr_fusion *, const kr_group *, kr_value);

/// The three parts of the pass, each on a sorted graph.
kr_status kr_fuse_sums(kr_compilation *, kr_fusion *);       ///< additions become inputs of products and norms
kr_status kr_fuse_cheap(kr_compilation *, kr_fusion *);    ///< cheap values are recomputed where they are read late
kr_status kr_fuse_programs(kr_compilation *, kr_fusion *);   ///< elementwise chains become tile programs

#endif
