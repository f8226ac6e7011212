/// Values that are cheap to compute and needed again much later, as silu(z) in the backward pass, need not be kept:
/// where their readers are elementwise and what they come from is alive at that time anyway, those readers recompute
/// them as part of the same tile program. The bits are the same, a buffer is not kept, and it is neither written nor
/// read.
#include "compiler/fuse/fuse.h"

#include <stdlib.h>

enum {
    DEEPEST = 4,   ///< instructions on the way to a value that is alive
    MOST_TIMES = 2 ///< how often a value is recomputed
};

/// A recomputed value, for readers with no heavy step between them.
typedef struct copy {
    uint32_t of;
    int era; ///< heavy steps before its readers
    kr_value value;
    int next;
} copy;

typedef struct recompute {
    kr_fusion *r;
    copy *copies;
    int count, room;
    int *newest; ///< by value: its newest copy, or -1
} recompute;

/// An elementwise node's era: how many heavy steps run before it.
static int era_of(const kr_fusion *r, int node) { return r->heavy[node]; }

/// Does a heavy step run between the node and its reader?
static bool far(const kr_fusion *r, int node, int reader) { return kr_work_between(r->heavy, node, reader); }

static copy *find(const recompute *c, kr_value v, int era) {
    for (int k = c->newest[v.id]; k >= 0; k = c->copies[k].next)
        if (c->copies[k].era == era) return &c->copies[k];
    return NULL;
}

/// Is v there at the place `at` without living longer for it?
static bool alive(const kr_fusion *r, kr_value v, int at) {
    const int last = r->last[r->uses.root[v.id]];
    return last >= at || !kr_work_between(r->heavy, last, at);
}

/// Can node i be recomputed at the place `at`?
static bool can(const recompute *c, int i, int at, int depth) {
    const kr_fusion *r = c->r;
    const kr_node *n = kr_graph_node(r->g, i);
    if (!r->fusable[i] || !(n->op->flags & KR_OP_CHEAP) || depth == DEEPEST) return false;
    for (int k = 0; k < n->inputs; k++) {
        const kr_value v = n->in[k];
        if (v.id > r->uses.values) return false; // n reads a copy itself, which belongs to its place
        if (!alive(r, v, at) && !find(c, v, era_of(r, at)) && !can(c, r->uses.node[v.id], at, depth + 1)) return false;
    }
    return true;
}

static kr_value make(recompute *c, int i, int at) {
    kr_fusion *r = c->r;
    const kr_node *n = kr_graph_node(r->g, i);
    const int era = era_of(r, at);
    copy *known = find(c, n->out[0], era);
    if (known) {
        kr_node *made = kr_value_node(r->g, known->value);
        if (made->rank > kr_graph_node(r->g, at)->rank) made->rank = kr_graph_node(r->g, at)->rank;
        return known->value;
    }
    kr_value in[3];
    for (int k = 0; k < n->inputs; k++)
        in[k] = alive(r, n->in[k], at) ? n->in[k] : make(c, r->uses.node[n->in[k].id], at);
    if (c->count == c->room) {
        copy *larger = realloc(c->copies, (size_t)(2 * c->room + 64) * sizeof *larger);
        if (!larger) return KR_NONE;
        c->copies = larger;
        c->room = 2 * c->room + 64;
    }
    kr_graph_set_rank(r->g, kr_graph_node(r->g, at)->rank);
    kr_graph_set_scope(r->g, kr_graph_node(r->g, at)->scope);
    const kr_value v = kr_append(r->g, n->op, &n->attrs, in, n->inputs);
    c->copies[c->count] = (copy){.of = n->out[0].id, .era = era, .value = v, .next = c->newest[n->out[0].id]};
    c->newest[n->out[0].id] = c->count++;
    return v;
}

typedef struct readers {
    const recompute *c;
    int node;
    int last_near;      ///< the last reader that is near
    int eras, era;      ///< of far readers: how many, and the newest
    bool possible;
} readers;

static bool note(void *context, int reader, bool direct) {
    readers *o = context;
    const kr_fusion *r = o->c->r;
    if (!far(r, o->node, reader)) {
        o->last_near = reader > o->last_near ? reader : o->last_near;
        return true;
    }
    const kr_shape a = kr_value_shape(r->g, kr_graph_node(r->g, o->node)->out[0]);
    const kr_shape b = kr_value_shape(r->g, kr_graph_node(r->g, reader)->out[0]);
    if (!o->eras || era_of(r, reader) != o->era) o->eras++;
    o->era = era_of(r, reader);
    o->possible &= o->eras <= MOST_TIMES && direct && r->fusable[reader] && kr_shape_equal(&a, &b) &&
                   can(o->c, o->node, reader, 0);
    return o->possible;
}

/// Node i, if it can, is recomputed for all of its far readers.
static kr_status consider(recompute *c, int i) {
    kr_fusion *r = c->r;
    const kr_value v = kr_graph_node(r->g, i)->out[0];
    readers o = {.c = c, .node = i, .last_near = i, .possible = true};
    kr_uses_each(&r->uses, v, note, &o);
    if (!o.eras || !o.possible || r->last[v.id] == r->uses.nodes) return KR_OK;
    for (int k = r->uses.at[v.id]; k < r->uses.at[v.id + 1]; k++) {
        const int reader = r->uses.list[k];
        kr_node *n = kr_graph_node(r->g, reader);
        if (!far(r, i, reader)) continue;
        const kr_value copy = make(c, i, reader);
        KR_FAIL_IF(!copy.id, KR_NO_MEMORY, "fuse: no memory");
        for (int j = 0; j < n->inputs; j++)
            if (n->in[j].id == v.id) n->in[j] = copy;
    }
    r->last[v.id] = o.last_near;
    return KR_OK;
}

kr_status kr_fuse_cheap(kr_compilation *compilation, kr_fusion *r) {
    (void)compilation;
    recompute c = {.r = r, .newest = malloc((r->uses.values + 1u) * sizeof *c.newest)};
    KR_FAIL_IF(!c.newest, KR_NO_MEMORY, "fuse: no memory for %u values", r->uses.values);
    for (uint32_t v = 0; v <= r->uses.values; v++) c.newest[v] = -1;
    kr_status status = KR_OK;
    for (int i = 0; i < r->uses.nodes && !status; i++)
        if (r->fusable[i]) status = consider(&c, i);
    free(c.newest);
    free(c.copies);
    return status;
}
