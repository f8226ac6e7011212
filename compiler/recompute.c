/// Training stores what the forward part makes and the backward part reads: at the turning point all of it at once.
/// A value is cheaper to make again than to store when its node is quick and what that node reads is there anyway.
///
/// For every block of the model (nodes under a numbered scope, "layers.3") a greedy search forgets nodes one by one:
/// each time the move that gives most bytes for a nanosecond, where a move is a node, or a node with all that it needs
/// and that is not stored, or the whole block (Chen's segments). Costs are marginal: what is made again already is free
/// for the next. The moves of all blocks, merged by the same measure, are a ladder; its beginnings are the plans.
/// What one block hands to the next is never forgotten, so making a block again reaches no further back than its input.
///   source Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174;
///   greedy choice by density as in Kirisame et al. 2021, "Dynamic Tensor Rematerialization", arXiv:2006.09616
#include "compiler/recompute.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

enum {
    NO_SEGMENT = -1,
    SHORT_GAP = 8, ///< a value that is read again after fewer nodes than this is hardly worth forgetting
};

// What there is ----------------------------------------------------------------------------------------------------

/// Marks what the outputs and assigns that the graph had before differentiation need.
static void find_forward(const kr_compilation *c, kr_forward *f, bool *needed) {
    for (int i = 0; i < c->forward_outputs; i++) needed[kr_graph_output_at(f->g, i)->value.id] = true;
    for (int i = 0; i < c->forward_assigns; i++) needed[kr_graph_assign_at(f->g, i)->value.id] = true;
    for (int i = f->nodes - 1; i >= 0; i--) {
        const kr_node *n = kr_graph_node(f->g, i);
        for (int k = 0; k < n->outputs; k++) f->forward[i] |= needed[n->out[k].id];
        for (int k = 0; k < n->inputs && f->forward[i]; k++) needed[n->in[k].id] = true;
    }
    needed[0] = false;
}

/// Length of "backbone.layers.3" in "backbone.layers.3.mixer": up to the first part that is a number; 0: there is none.
static int block_scope(const char *scope) {
    for (const char *at = scope; at && *at;) {
        const char *end = strchrnul(at, '.');
        bool number = end > at;
        for (const char *c = at; c < end; c++) number &= isdigit((unsigned char)*c) != 0;
        if (number) return (int)(end - scope);
        at = *end ? end + 1 : end;
    }
    return 0;
}

static int find_segment(kr_forward *f, const char *scope) {
    const int length = block_scope(scope);
    if (!length) return NO_SEGMENT;
    for (int s = f->segments - 1; s >= 0; s--) // nodes of a block stand together
        if (f->scope_length[s] == length && !strncmp(f->scopes[s], scope, (size_t)length)) return s;
    f->scopes[f->segments] = scope;
    f->scope_length[f->segments] = length;
    return f->segments++;
}

static bool computes(const kr_node *n) { return !(n->op->flags & (KR_OP_VIEW | KR_OP_SOURCE)); }

/// Who reads what: per base value its readers in the forward part by block, and whether others want it. What is still
/// read at the turning point (where the loss is made), or again soon, is there when memory is scarcest in any case.
static void find_readers(kr_forward *f, int turn, int *last_forward) {
    const uint32_t values = kr_graph_values(f->g);
    for (uint32_t v = 0; v <= values; v++) f->first_reader[v] = INT32_MAX, f->last_reader[v] = INT32_MIN;
    for (int i = 0; i < f->nodes; i++) {
        const kr_node *n = kr_graph_node(f->g, i);
        if (n->op->flags & KR_OP_VIEW) continue;
        for (int k = 0; k < n->inputs; k++) {
            const uint32_t v = f->base[n->in[k].id];
            if (!f->forward[i]) {
                if (!f->wanted[v]) f->rests[v] = last_forward[v] < turn && i - last_forward[v] >= SHORT_GAP;
                f->wanted[v] = true;
                continue;
            }
            last_forward[v] = i;
            if (f->segment[i] < f->first_reader[v]) f->first_reader[v] = f->segment[i];
            if (f->segment[i] > f->last_reader[v]) f->last_reader[v] = f->segment[i];
        }
    }
    f->wanted[0] = false;
    for (int i = 0; i < kr_graph_outputs(f->g); i++) f->pinned[f->base[kr_graph_output_at(f->g, i)->value.id]] = true;
    for (int i = 0; i < kr_graph_assigns(f->g); i++) f->pinned[f->base[kr_graph_assign_at(f->g, i)->value.id]] = true;
}

kr_status kr_forward_find(const kr_compilation *c, kr_forward *f) {
    const size_t nodes = (size_t)kr_graph_nodes(c->g) + 1, values = kr_graph_values(c->g) + 1u;
    *f = (kr_forward){.g = c->g, .nodes = kr_graph_nodes(c->g), .forward = calloc(nodes, sizeof *f->forward),
        .segment = calloc(nodes, sizeof *f->segment), .scopes = calloc(nodes, sizeof *f->scopes),
        .scope_length = calloc(nodes, sizeof *f->scope_length), .ns = calloc(nodes, sizeof *f->ns),
        .base = calloc(values, sizeof *f->base), .maker = calloc(values, sizeof *f->maker),
        .bytes = calloc(values, sizeof *f->bytes),
        .wanted = calloc(values, sizeof *f->wanted), .pinned = calloc(values, sizeof *f->pinned),
        .first_reader = calloc(values, sizeof *f->first_reader), .last_reader = calloc(values, sizeof *f->last_reader),
        .rests = calloc(values, sizeof *f->rests)};
    int *last_forward = calloc(values, sizeof *last_forward);
    bool *needed = calloc(values, sizeof *needed);
    kr_status status = KR_OK;
    if (!f->forward || !f->segment || !f->scopes || !f->scope_length || !f->ns || !f->base || !f->maker || !f->bytes ||
        !f->wanted || !f->pinned || !f->first_reader || !f->last_reader || !f->rests || !last_forward || !needed)
        status = kr_status_record(KR_NO_MEMORY, __FILE__, __LINE__, "no memory for a graph of %d nodes", f->nodes);
    if (!status) find_forward(c, f, needed);
    for (int i = 0; i < f->nodes && !status; i++) {
        const kr_node *n = kr_graph_node(f->g, i);
        f->segment[i] = f->forward[i] && !kr_node_source(n) ? find_segment(f, n->scope) : NO_SEGMENT;
        f->total_ns += f->ns[i] = computes(n) ? kr_node_ns(c->options->target, f->g, n) : 0;
        for (int k = 0; k < n->outputs; k++) {
            const kr_shape shape = kr_value_shape(f->g, n->out[k]);
            const uint32_t v = n->out[k].id;
            f->maker[v] = i;
            f->base[v] = n->op->flags & KR_OP_VIEW ? f->base[n->in[0].id] : v;
            if (computes(n) && f->forward[i])
                f->bytes[v] = (int64_t)kr_tensor_bytes(kr_value_dtype(f->g, n->out[k]), &shape);
            last_forward[v] = i;
        }
    }
    const char *name = c->options->loss ? c->options->loss : "loss";
    if (!status) find_readers(f, f->maker[f->base[kr_graph_output_find(c->g, name).id]], last_forward);
    free(last_forward);
    free(needed);
    return status;
}

void kr_forward_free(kr_forward *f) {
    free(f->forward), free(f->segment), free(f->scopes), free(f->scope_length), free(f->ns), free(f->base);
    free(f->maker), free(f->bytes), free(f->wanted), free(f->pinned), free(f->first_reader), free(f->last_reader);
    free(f->rests);
    *f = (kr_forward){0};
}

// What a plan costs ------------------------------------------------------------------------------------------------

/// Numbers that are equal for nodes of the same group. Groups of joined blocks count from below 0.
static int group_of(const kr_forgetting *p, int segment) {
    if (segment < 0 || segment >= p->joined * p->span) return segment;
    return -2 - segment / p->span;
}

/// Is v forgotten, given the node that makes it?
static bool is_forgotten(const kr_forward *f, const kr_forgetting *p, int node, uint32_t v) {
    if (!p->forget[node] || f->pinned[v]) return false;
    if (f->first_reader[v] > f->last_reader[v]) return true; // nothing in the forward part reads it
    const int group = group_of(p, f->segment[node]);
    return group_of(p, f->first_reader[v]) == group && group_of(p, f->last_reader[v]) == group;
}

typedef struct cost {
    double bytes, ns;
} cost;

/// Walks `count` nodes (ascending indices in `list`; null: all) backwards. need[v]: it must be there in the backward
/// part. Values made outside of the list that become needed count as stored here, because of this list.
static cost walk(const kr_forward *f, const kr_forgetting *p, const int *list, int count, bool *need, bool *again) {
    cost sum = {0};
    for (int at = 0; at < count; at++) {
        const kr_node *n = kr_graph_node(f->g, list ? list[at] : at);
        for (int k = 0; k < n->outputs; k++) need[n->out[k].id] = f->wanted[n->out[k].id];
        for (int k = 0; k < n->inputs; k++) need[f->base[n->in[k].id]] = f->wanted[f->base[n->in[k].id]];
    }
    for (int at = count - 1; at >= 0; at--) {
        const int i = list ? list[at] : at;
        const kr_node *n = kr_graph_node(f->g, i);
        if (!f->forward[i] || !computes(n)) continue;
        bool make = false;
        for (int k = 0; k < n->outputs; k++) {
            const uint32_t v = n->out[k].id;
            if (!need[v]) continue;
            if (is_forgotten(f, p, i, v)) make = true;
            else sum.bytes += (double)f->bytes[v];
        }
        if (again) again[i] = make;
        if (!make) continue;
        sum.ns += f->ns[i];
        for (int k = 0; k < n->inputs; k++) {
            const uint32_t v = f->base[n->in[k].id];
            if (list && !need[v] && f->segment[f->maker[v]] != f->segment[i]) sum.bytes += (double)f->bytes[v];
            need[v] = true;
        }
    }
    need[0] = false;
    return sum;
}

kr_status kr_forgetting_cost(const kr_forward *f, const kr_forgetting *p, bool *again, double *ns, double *bytes) {
    bool *need = calloc(kr_graph_values(f->g) + 1u, sizeof *need);
    KR_FAIL_IF(!need, KR_NO_MEMORY, "no memory for %u values", kr_graph_values(f->g));
    const cost all = walk(f, p, NULL, f->nodes, need, again);
    free(need);
    *ns = all.ns;
    *bytes = all.bytes;
    return KR_OK;
}

// Moves --------------------------------------------------------------------------------------------------------------

/// The search in one block.
typedef struct search {
    const kr_forward *f;
    kr_forgetting plan;
    const int *list;      ///< its nodes
    int count;
    bool *need;
    int *added, *best;    ///< nodes that the move in hand, and the best so far, forget
    int added_count, best_count;
    cost now;
} search;

static void add(search *s, int node) {
    if (s->plan.forget[node]) return;
    s->plan.forget[node] = true;
    s->added[s->added_count++] = node;
}

/// Forgets what `node` reads and nobody else needs, and what those need: the alternative is to store it.
static void add_chain(search *s, int node) {
    add(s, node);
    walk(s->f, &s->plan, s->list, s->count, s->need, NULL);
    for (int at = s->count - 1; at >= 0; at--) {
        const int i = s->list[at];
        const kr_node *n = kr_graph_node(s->f->g, i);
        bool only_here = false, make = false;
        for (int k = 0; k < n->outputs; k++) only_here |= s->need[n->out[k].id] && !s->f->wanted[n->out[k].id];
        if (only_here) add(s, i);
        for (int k = 0; k < n->outputs; k++)
            make |= s->need[n->out[k].id] && is_forgotten(s->f, &s->plan, i, n->out[k].id);
        for (int k = 0; k < n->inputs && make; k++) s->need[s->f->base[n->in[k].id]] = true;
    }
}

/// Measures the move, keeps it if it is the best, and takes it back.
static void weigh(search *s, double *best_density, cost *best) {
    const cost then = walk(s->f, &s->plan, s->list, s->count, s->need, NULL);
    const cost gain = {.bytes = s->now.bytes - then.bytes, .ns = then.ns - s->now.ns};
    const double density = gain.bytes / (gain.ns > 1 ? gain.ns : 1);
    if (gain.bytes > 0 && density > *best_density) {
        *best_density = density;
        *best = gain;
        memcpy(s->best, s->added, (size_t)s->added_count * sizeof *s->best);
        s->best_count = s->added_count;
    }
    for (int k = 0; k < s->added_count; k++) s->plan.forget[s->added[k]] = false;
    s->added_count = 0;
}

static bool is_candidate(const kr_forward *f, const kr_forgetting *p, int i) {
    const kr_node *n = kr_graph_node(f->g, i);
    bool worth = false;
    for (int k = 0; k < n->outputs && computes(n) && !p->forget[i]; k++)
        worth |= f->wanted[n->out[k].id] && f->rests[n->out[k].id];
    return worth;
}

/// One step of the greedy search; false when nothing is gained any more.
static bool best_move(search *s, cost *gain) {
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
    for (int at = 0; at < s->count && s->f->segment[s->list[0]] != NO_SEGMENT; at++) add(s, s->list[at]);
    weigh(s, &density, gain);
    return s->best_count > 0;
}

static double density_of(const kr_rung *r) { return r->bytes / (r->ns > 1 ? r->ns : 1); }

/// The rungs of one block, appended. A rung that is worth more than the one before it is joined to that one: nobody
/// would take the first without the second.
static void climb(search *s, kr_ladder *l, int *used) {
    const int first = l->count;
    s->now = walk(s->f, &s->plan, s->list, s->count, s->need, NULL);
    for (cost gain = {0}; best_move(s, &gain);) {
        kr_rung r = {.segment = s->f->segment[s->list[0]], .order = l->count, .first = *used, .count = s->best_count,
                     .bytes = gain.bytes, .ns = gain.ns};
        for (int k = 0; k < s->best_count; k++) s->plan.forget[l->nodes[(*used)++] = s->best[k]] = true;
        s->now = (cost){s->now.bytes - gain.bytes, s->now.ns + gain.ns};
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
    const size_t nodes = (size_t)f->nodes + 1, values = kr_graph_values(f->g) + 1u;
    int *list = calloc(nodes, sizeof *list), used = 0;
    search s = {.f = f, .plan = {.forget = calloc(nodes, sizeof *s.plan.forget), .span = 1}, .list = list,
                .need = calloc(values, sizeof *s.need), .added = calloc(nodes, sizeof *s.added),
                .best = calloc(nodes, sizeof *s.best)};
    *l = (kr_ladder){.rungs = calloc(nodes, sizeof *l->rungs), .nodes = calloc(nodes, sizeof *l->nodes)};
    kr_status status = KR_OK;
    if (!list || !s.plan.forget || !s.need || !s.added || !s.best || !l->rungs || !l->nodes)
        status = kr_status_record(KR_NO_MEMORY, __FILE__, __LINE__, "no memory for %d nodes", f->nodes);
    for (int segment = NO_SEGMENT; segment < f->segments && !status; segment++) {
        s.count = 0;
        for (int i = 0; i < f->nodes; i++)
            if (f->segment[i] == segment && f->forward[i] && computes(kr_graph_node(f->g, i))) list[s.count++] = i;
        if (s.count) climb(&s, l, &used);
    }
    qsort(l->rungs, (size_t)l->count, sizeof *l->rungs, by_density);
    free(list), free(s.plan.forget), free(s.need), free(s.added), free(s.best);
    return status;
}

void kr_ladder_free(kr_ladder *l) {
    free(l->rungs);
    free(l->nodes);
    *l = (kr_ladder){0};
}

// Rewriting ----------------------------------------------------------------------------------------------------------

/// Appends a copy of node n that reads what `now` says, and lets `now` lead readers of n's outputs to it. Copies rank
/// after everything, so that sorting emits them just before their first reader: as late as can be.
static kr_status make_again(kr_graph *g, const kr_node *n, kr_value *now) {
    char scope[560];
    snprintf(scope, sizeof scope, "%s%sagain", n->scope ? n->scope : "", n->scope && n->scope[0] ? "." : "");
    kr_value few[32], *in = few;
    if (n->inputs > 32) KR_FAIL_IF(!(in = malloc((size_t)n->inputs * sizeof *in)), KR_NO_MEMORY, "no memory");
    for (int k = 0; k < n->inputs; k++) in[k] = now[n->in[k].id];
    kr_graph_set_rank(g, -1);
    kr_graph_set_scope(g, scope);
    const kr_value copy = kr_append(g, n->op, &n->attrs, in, n->inputs);
    if (in != few) free(in);
    KR_TRY(kr_graph_status(g));
    for (int k = 0; k < n->outputs; k++) now[n->out[k].id] = kr_sibling(g, copy, k);
    return KR_OK;
}

kr_status kr_forget(const kr_forward *f, const kr_forgetting *p, kr_graph *g) {
    const uint32_t values = kr_graph_values(g);
    bool *again = calloc((size_t)f->nodes + 1, sizeof *again);
    kr_value *now = calloc(values + 1u, sizeof *now);
    kr_status status = KR_OK;
    double ns, bytes;
    if (!again || !now) status = kr_status_record(KR_NO_MEMORY, __FILE__, __LINE__, "no memory for %u values", values);
    else status = kr_forgetting_cost(f, p, again, &ns, &bytes);
    for (uint32_t v = 0; v <= values && !status; v++) now[v].id = v;
    for (int i = 0; i < f->nodes && !status; i++) {
        const kr_node *n = kr_graph_node(g, i);
        if (!f->forward[i]) continue;
        if (n->op->flags & KR_OP_VIEW ? now[n->in[0].id].id != n->in[0].id : again[i]) status = make_again(g, n, now);
        for (int k = 0; k < n->outputs && !status && again[i]; k++) // what is stored all the same is read where it is
            if (!is_forgotten(f, p, i, n->out[k].id)) now[n->out[k].id] = n->out[k];
    }
    for (int i = 0; i < f->nodes && !status; i++) {
        kr_node *n = kr_graph_node(g, i);
        for (int k = 0; k < n->inputs && !f->forward[i]; k++) n->in[k] = now[n->in[k].id];
    }
    kr_graph_set_scope(g, NULL);
    free(again);
    free(now);
    KR_TRY(status);
    KR_TRY(kr_graph_sort(g));
    kr_graph_prune(g);
    return KR_OK;
}
