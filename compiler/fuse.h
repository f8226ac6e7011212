/// What the parts of the fuse pass share: who reads what, and when, in the order that the graph has.
#ifndef KRAIT_COMPILER_FUSE_H
#define KRAIT_COMPILER_FUSE_H

#include "compiler/internal.h"

/// One look at a sorted graph. Nodes are known by their index in it.
typedef struct kr_reads {
    kr_graph *g;
    const kr_target *target;
    int nodes;
    uint32_t values;
    int *index;       ///< by value: the node that makes it
    int *at, *list;   ///< by value v: its readers are list[at[v]] to list[at[v + 1]], views among them, ascending
    uint32_t *root;   ///< by value: what it is a view of, or itself
    int *last;        ///< by root: the last node that reads it; `nodes` when it is alive after the run or before it
    bool *kept;       ///< by value: an output, assigned, or a gradient: it must exist
    bool *fusable;    ///< by node: it may be an instruction of a tile program
    int *heavy;       ///< by node: how many nodes up to it do something at run time that is no elementwise op
    size_t slack;     ///< bytes that do not matter
} kr_reads;

kr_status kr_reads_make(const kr_compilation *, kr_reads *);
void kr_reads_free(kr_reads *);
/// Calls `each` with every node that reads v, itself or through views (`direct` false), until it gives false.
bool kr_reads_each(const kr_reads *, kr_value v, bool (*each)(void *, int reader, bool direct), void *);
size_t kr_value_bytes(const kr_graph *, kr_value);
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
bool kr_group_may_form(const kr_reads *, const kr_group *);
bool kr_group_has(const kr_group *, int node);
/// Is the value read by a node outside of the group, or kept?
bool kr_group_puts_out(const kr_reads *, const kr_group *, kr_value);

/// The three parts of the pass, each on a sorted graph.
kr_status kr_fuse_sums(kr_compilation *, kr_reads *);       ///< additions become inputs of products and norms
kr_status kr_fuse_recompute(kr_compilation *, kr_reads *); ///< cheap values are computed again where they are read late
kr_status kr_fuse_programs(kr_compilation *, kr_reads *);   ///< elementwise chains become tile programs

#endif
