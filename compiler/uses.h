/// Who reads what, and until when: found once for a sorted graph, for every pass that asks.
#ifndef KRAIT_COMPILER_USES_H
#define KRAIT_COMPILER_USES_H

#include "ops/ops.h"

/// Nodes by their index in the graph, values by id. Holds until the graph changes.
typedef struct kr_uses {
    const kr_graph *g;
    int nodes;
    uint32_t values;
    int *node;        ///< by value: the node that makes it; -1: none that is alive
    int *at, *list;   ///< readers of v are list[at[v]] to list[at[v + 1] - 1], ascending, views among them; a node that
                      ///< reads v twice stands there twice
    uint32_t *root;   ///< by value: what it is a view of, through all views; itself if it is none
    int *last;        ///< by value: the last node that reads it or a view of it, views themselves not counted; its own
                      ///< node when nobody does; `nodes` when it or a view of it is alive after the run
    int *named;       ///< by value: how many outputs and assigns name it
    bool *pinned;     ///< by value: it must exist after the run: an output, assigned, or a final gradient
} kr_uses;

/// `gradients` (count of them, empty ones among them; may be null) are pinned besides outputs and assigned values.
kr_status kr_uses_find(const kr_graph *, const kr_value *gradients, int count, kr_uses *);
void kr_uses_free(kr_uses *);

/// Does no node read it, and no output or assign name it?
static inline bool kr_uses_unread(const kr_uses *u, kr_value v) { return u->last[v.id] == u->node[v.id]; }
/// Calls `each` with every node that reads v, itself or through views (`direct` false), until it gives false.
bool kr_uses_each(const kr_uses *, kr_value v, bool (*each)(void *, int reader, bool direct), void *);

/// Bytes of a value's elements, packed; the empty value has none.
size_t kr_value_bytes(const kr_graph *, kr_value);

#endif
