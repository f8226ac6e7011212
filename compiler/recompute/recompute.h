/// Which values of the forward part may be recomputed for the backward part, what each is worth, and the rewriting.
/// The search over plans is in rematerialise.c.
#ifndef KRAIT_COMPILER_RECOMPUTE_RECOMPUTE_H
#define KRAIT_COMPILER_RECOMPUTE_RECOMPUTE_H

#include "compiler/pass.h"
#include "compiler/uses.h"

enum { KR_NO_SEGMENT = -1 };

/// What is known of a training graph before anything is recomputed. Nodes by index, values by id.
typedef struct kr_forward {
    const kr_graph *g;
    kr_uses uses;
    int nodes;
    bool *forward;        ///< by node: the loss, an output or a state carry of the model needs it
    int *segment;         ///< by node: its block ("backbone.layers.3"), numbered in the order of the graph; -1: none
    int segments;
    int *members_at, *members; ///< computing nodes of the forward part in block s, or in none (KR_NO_SEGMENT), are
                          ///< members[members_at[s + 1]] to members[members_at[s + 2] - 1], ascending
    double *ns;           ///< by node: estimated time
    double total_ns;
    int64_t *bytes;       ///< by value: of what must be stored to keep it; 0 for views and sources
    bool *wanted;         ///< by root of views: something after the forward part reads it
    bool *pinned;         ///< by root: it or a view of it is an output, or assigned: it is stored in any case
    int *first_reader, *last_reader; ///< by root: least and largest segment that reads it in the forward part
    bool *rests;          ///< by root: nothing reads it for a while around the turning point
} kr_forward;

/// A plan: the nodes whose results are dropped after the forward part (if the backward part wants them, they are
/// recomputed), and how blocks are joined: blocks 0 .. joined * span - 1 in groups of `span`. What crosses from one
/// group (or block) to another is stored if it is needed.
typedef struct kr_drops {
    bool *drop;           ///< by node
    int span, joined;
} kr_drops;

/// One step towards less memory: nodes to drop in one block that belong together.
typedef struct kr_rung {
    int segment, order;   ///< order: its place among those of its block
    int first, count;     ///< of kr_ladder.nodes
    double bytes, ns;     ///< stored less, computed more
} kr_rung;
typedef struct kr_ladder {
    kr_rung *rungs;       ///< most bytes for its time first
    int count;
    int *nodes;           ///< node indices
} kr_ladder;

/// Does it do anything at run time?
static inline bool kr_node_computes(const kr_node *n) { return !(n->op->flags & (KR_OP_VIEW | KR_OP_SOURCE)); }

kr_status kr_forward_find(const kr_compilation *, kr_forward *);
void kr_forward_free(kr_forward *);
/// Steps by bytes stored less for each ns of computing more, from single cheap values to whole blocks.
kr_status kr_ladder_build(const kr_forward *, kr_ladder *);
void kr_ladder_free(kr_ladder *);

/// What stays stored, and the time of what is recomputed.
typedef struct kr_recompute_cost {
    double bytes, ns;
} kr_recompute_cost;
/// Is v dropped, given the node that makes it?
bool kr_is_dropped(const kr_forward *, const kr_drops *, int node, uint32_t v);
/// Walks `count` nodes (ascending indices in `list`; null: all) backwards. need[v]: it must be there in the backward
/// part. Values made outside of the list that become needed count as stored here, because of this list.
/// recomputed (by node; may be null): is it, under this plan?
kr_recompute_cost kr_drops_walk(const kr_forward *, const kr_drops *, const int *list, int count, bool *need,
                                bool *recomputed);
/// The cost of a plan for the whole graph; `recomputed` as above.
kr_status kr_drops_cost(const kr_forward *, const kr_drops *, bool *recomputed, kr_recompute_cost *);
/// Rewrites `g`, which is the graph of `f` or a copy of it.
kr_status kr_drops_apply(const kr_forward *, const kr_drops *, kr_graph *g);

#endif
