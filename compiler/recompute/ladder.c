/// Training stores what the forward part makes and the backward part reads: at the turning point all of it at once.
/// A value is cheaper to recompute than to store when its node is quick and what that node reads is there anyway.
///
/// For every block of the model (nodes under a numbered scope, "layers.3") a greedy search drops nodes one by one:
/// each time the move that gives most bytes for a nanosecond, where a move is a node, or a node with all that it needs
/// and that is not stored, or the whole block (Chen's segments). Costs are marginal: what is recomputed already is
/// free for the next. The moves of all blocks, merged by the same measure, are a ladder; its beginnings are the plans.
/// What one block hands to the next is never dropped, so recomputing a block reaches no further back than its input.
///   source Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174;
///   greedy choice by density as in Kirisame et al. 2021, "Dynamic Tensor Rematerialization", arXiv:2006.09616
#include "compiler/recompute/recompute.h"

#include <stdlib.h>
#include <string.h>

/// The search in one block.
typedef struct search {
    const kr_forward *f;
    kr_drops plan;
    const int *list;      ///< its nodes
    int count;
    bool *need;
    int *added, *best;    ///< nodes that the move in hand, and the best so far, drop
    int added_count, best_count;
    kr_recompute_cost now;
} search;

static void add(search *s, int node) {
    if (s->plan.drop[node]) return;
    s->plan.drop[node] = true;
    s->added[s->added_count++] = node;
}

/// Drops what `node` reads and nobody else needs, and what those need: the alternative is to store it.
static void add_chain(search *s, int node) {
    add(s, node);
    kr_drops_walk(s->f, &s->plan, s->list, s->count, s->need, NULL);
    for (int at = s->count - 1; at >= 0; at--) {
        const int i = s->list[at];
        const kr_node *n = kr_graph_node(s->f->g, i);
        bool only_here = false, make = false;
        for (int k = 0; k < n->outputs; k++) only_here |= s->need[n->out[k].id] && !s->f->wanted[n->out[k].id];
        if (only_here) add(s, i);
        for (int k = 0; k < n->outputs; k++)
            make |= s->need[n->out[k].id] && kr_is_dropped(s->f, &s->plan, i, n->out[k].id);
        for (int k = 0; k < n->inputs && make; k++) s->need[s->f->uses.root[n->in[k].id]] = true;
    }
}

/// Measures the move, keeps it if it is the best, and takes it back.
static void weigh(search *s, double *best_density, kr_recompute_cost *best) {
    const kr_recompute_cost then = kr_drops_walk(s->f, &s->plan, s->list, s->count, s->need, NULL);
    const kr_recompute_cost gain = {.bytes = s->now.bytes - then.bytes, .ns = then.ns - s->now.ns};
    const double density = gain.bytes / (gain.ns > 1 ? gain.ns : 1);
    if (gain.bytes > 0 && density > *best_density) {
        *best_density = density;
        *best = gain;
        memcpy(s->best, s->added, (size_t)s->added_count * sizeof *s->best);
        s->best_count = s->added_count;
    }
    for (int k = 0; k < s->added_count; k++) s->plan.drop[s->added[k]] = false;
    s->added_count = 0;
}

static bool is_candidate(const kr_forward *f, const kr_drops *p, int i) {
    const kr_node *n = kr_graph_node(f->g, i);
    bool worth = false;
    for (int k = 0; k < n->outputs && kr_node_computes(n) && !p->drop[i]; k++)
        worth |= f->wanted[n->out[k].id] && f->rests[n->out[k].id];
    return worth;
}

/// One step of the greedy search; false when nothing is gained any more.
static bool best_move(search *s, kr_recompute_cost *gain) {
    double density = 0;
    s->best_count = 0;
    for (int at = 0; at < s->count; at++) {
        const int i = s->list[at];
        if (!is_candidate(s->f, &s->plan, i)) continue;
        add(s, i);
        weigh(s, &density, gain);
        add_chain(s, i);
        weigh(s, &density, gain);
    }
    for (int at = 0; at < s->count && s->f->segment[s->list[0]] != KR_NO_SEGMENT; at++) add(s, s->list[at]);
    weigh(s, &density, gain);
    return s->best_count > 0;
}

static double density_of(const kr_rung *r) { return r->bytes / (r->ns > 1 ? r->ns : 1); }

/// The rungs of one block, appended. A rung that is worth more than the one before it is joined to that one: nobody
/// would take the first without the second.
static void climb(search *s, kr_ladder *l, int *used) {
    const int first = l->count;
    s->now = kr_drops_walk(s->f, &s->plan, s->list, s->count, s->need, NULL);
    for (kr_recompute_cost gain = {0}; best_move(s, &gain);) {
        kr_rung r = {.segment = s->f->segment[s->list[0]], .order = l->count, .first = *used, .count = s->best_count,
                     .bytes = gain.bytes, .ns = gain.ns};
        for (int k = 0; k < s->best_count; k++) s->plan.drop[l->nodes[(*used)++] = s->best[k]] = true;
        s->now = (kr_recompute_cost){s->now.bytes - gain.bytes, s->now.ns + gain.ns};
        while (l->count > first && density_of(&l->rungs[l->count - 1]) <= density_of(&r)) {
            const kr_rung before = l->rungs[--l->count];
            r = (kr_rung){.segment = r.segment, .order = before.order, .first = before.first,
                          .count = before.count + r.count, .bytes = before.bytes + r.bytes, .ns = before.ns + r.ns};
        }
        l->rungs[l->count++] = r;
    }
}

/// Best first; among equals the block that comes first: what it stores would be stored longest.
static int by_density(const void *a, const void *b) {
    const kr_rung *x = a, *y = b;
    const double p = density_of(x), q = density_of(y);
    if (p != q) return p > q ? -1 : 1;
    return x->segment != y->segment ? (x->segment > y->segment) - (x->segment < y->segment) : x->order - y->order;
}

kr_status kr_ladder_build(const kr_forward *f, kr_ladder *l) {
    const size_t nodes = (size_t)f->nodes + 1, values = f->uses.values + 1u;
    int used = 0;
    search s = {.f = f, .plan = {.drop = calloc(nodes, sizeof *s.plan.drop), .span = 1},
                .need = calloc(values, sizeof *s.need), .added = calloc(nodes, sizeof *s.added),
                .best = calloc(nodes, sizeof *s.best)};
    *l = (kr_ladder){.rungs = calloc(nodes, sizeof *l->rungs), .nodes = calloc(nodes, sizeof *l->nodes)};
    kr_status status = KR_OK;
    if (!s.plan.drop || !s.need || !s.added || !s.best || !l->rungs || !l->nodes)
        status = kr_status_record(KR_NO_MEMORY, __FILE__, __LINE__, "no memory for %d nodes", f->nodes);
    for (int segment = KR_NO_SEGMENT; segment < f->segments && !status; segment++) {
        s.list = f->members + f->members_at[segment + 1];
        s.count = f->members_at[segment + 2] - f->members_at[segment + 1];
        if (s.count) climb(&s, l, &used);
    }
    qsort(l->rungs, (size_t)l->count, sizeof *l->rungs, by_density);
    free(s.plan.drop), free(s.need), free(s.added), free(s.best);
    return status;
}

void kr_ladder_free(kr_ladder *l) {
    free(l->rungs);
    free(l->nodes);
    *l = (kr_ladder){0};
}
