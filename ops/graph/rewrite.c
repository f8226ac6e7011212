/// How passes change a graph: append nodes anywhere, redirect uses, then sort once. Redirections are kept per value
/// and followed when nodes are settled, so a pass that redirects thousands of values stays linear.
#include "ops/graph/internal.h"

#include <stdlib.h>
#include <string.h>

void kr_graph_replace(kr_graph *g, kr_value from, kr_value to) {
    if (from.id && from.id != to.id) g->values[from.id].forward = to.id;
}

kr_value kr_graph_current(const kr_graph *g, kr_value v) {
    while (v.id && g->values[v.id].forward) v.id = g->values[v.id].forward;
    return v;
}

/// What v was replaced by; chains that were followed once are short from then on.
static kr_value settled(kr_graph *g, kr_value v) {
    const kr_value now = kr_graph_current(g, v);
    for (uint32_t at = v.id, next; at != now.id; at = next) {
        next = g->values[at].forward;
        g->values[at].forward = now.id;
    }
    return now;
}

void kr_graph_settle(kr_graph *g, kr_node *n) {
    for (int i = 0; i < n->inputs; i++) n->in[i] = settled(g, n->in[i]);
}

void kr_graph_set_rank(kr_graph *g, int64_t rank) { g->rank_override = rank; }
void kr_graph_set_scope(kr_graph *g, const char *scope) {
    g->scope_override = scope ? kr_pool_text(g->pool, scope) : NULL;
}

static void settle_roots(kr_graph *g) {
    for (int i = 0; i < g->output_count; i++) g->outputs[i].value = settled(g, g->outputs[i].value);
    for (int i = 0; i < g->assign_count; i++) g->assigns[i].value = settled(g, g->assigns[i].value);
}

static int by_rank(const void *a, const void *b) {
    const kr_node *x = *(kr_node *const *)a, *y = *(kr_node *const *)b;
    if (x->rank != y->rank) return x->rank < y->rank ? -1 : 1;
    const uint32_t p = x->out[0].id, q = y->out[0].id; // creation order
    return p < q ? -1 : p > q;
}

/// Nodes in an order in which producers come first, otherwise by rank: depth first over inputs, with a stack of our
/// own because a chain may be as long as the graph.
kr_status kr_graph_sort(kr_graph *g) {
    KR_TRY(kr_graph_status(g));
    settle_roots(g);
    int alive = 0;
    for (int i = 0; i < g->node_count; i++) {
        kr_graph_settle(g, g->nodes[i]);
        if (!g->nodes[i]->dead) g->nodes[alive++] = g->nodes[i];
    }
    g->node_count = alive;
    qsort(g->nodes, (size_t)alive, sizeof *g->nodes, by_rank);

    typedef struct frame { kr_node *node; int next; } frame;
    unsigned char *mark = calloc(g->value_count + 1u, 1); // by first output: 1 open, 2 emitted
    frame *stack = malloc((size_t)(alive + 1) * sizeof *stack);
    kr_node **order = malloc((size_t)(alive + 1) * sizeof *order);
    kr_status status = KR_OK;
    if (!mark || !stack || !order)
        status = kr_status_record(KR_NO_MEMORY, __FILE__, __LINE__, "graph: no memory to sort %d nodes", alive);
    int emitted = 0;
    for (int i = 0; i < alive && !status; i++) {
        int depth = 0;
        if (mark[g->nodes[i]->out[0].id]) continue;
        stack[depth++] = (frame){g->nodes[i], 0};
        mark[g->nodes[i]->out[0].id] = 1;
        while (depth && !status) {
            frame *top = &stack[depth - 1];
            if (top->next == top->node->inputs) {
                mark[top->node->out[0].id] = 2;
                order[emitted++] = top->node;
                depth--;
                continue;
            }
            const kr_value v = top->node->in[top->next++];
            if (!v.id) continue;
            kr_node *producer = g->values[v.id].node;
            const unsigned char seen = mark[producer->out[0].id];
            if (producer->dead)
                status = kr_status_record(KR_BAD_ARGUMENT, __FILE__, __LINE__, "graph: %s reads a removed %s",
                                          top->node->op->name, producer->op->name);
            else if (seen == 1)
                status = kr_status_record(KR_BAD_ARGUMENT, __FILE__, __LINE__, "graph: %s is part of a cycle",
                                          producer->op->name);
            else if (!seen) {
                mark[producer->out[0].id] = 1;
                stack[depth++] = (frame){producer, 0};
            }
        }
    }
    if (!status) {
        if (alive) memcpy(g->nodes, order, (size_t)alive * sizeof *order);
        for (int i = 0; i < alive; i++) g->nodes[i]->rank = i;
        g->next_rank = alive;
        g->rank_override = -1;
    }
    free(mark);
    free(stack);
    free(order);
    return status;
}

int kr_graph_prune(kr_graph *g) {
    settle_roots(g);
    bool *needed = calloc(g->value_count + 1u, sizeof *needed);
    if (!needed) return 0; // pruning is only an economy
    for (int i = 0; i < g->node_count; i++) kr_graph_settle(g, g->nodes[i]);
    for (int i = 0; i < g->output_count; i++) needed[g->outputs[i].value.id] = true;
    for (int i = 0; i < g->assign_count; i++) {
        needed[g->assigns[i].value.id] = true;
        needed[g->assigns[i].target.id] = true;
    }
    int removed = 0;
    for (int i = g->node_count - 1; i >= 0; i--) { // order is topological: uses come after
        kr_node *n = g->nodes[i];
        bool keep = n->op == &kr_op_input; // the interface of the graph does not depend on what is used of it
        for (int k = 0; k < n->outputs; k++) keep |= needed[n->out[k].id];
        if (keep)
            for (int k = 0; k < n->inputs; k++) needed[n->in[k].id] = true;
        else {
            n->dead = true;
            removed++;
        }
    }
    int alive = 0;
    for (int i = 0; i < g->node_count; i++)
        if (!g->nodes[i]->dead) g->nodes[alive++] = g->nodes[i];
    g->node_count = alive;
    free(needed);
    return removed;
}

static kr_node *copy_node(kr_graph *to, const kr_node *from) {
    kr_node *n = kr_pool_take(to->pool, sizeof *n);
    kr_value *ends = kr_pool_take(to->pool, (size_t)(from->inputs + from->outputs + 1) * sizeof *ends);
    if (!n || !ends) return NULL;
    *n = *from;
    n->in = ends;
    n->out = ends + from->inputs;
    if (from->inputs) memcpy(n->in, from->in, (size_t)from->inputs * sizeof *ends);
    if (from->outputs) memcpy(n->out, from->out, (size_t)from->outputs * sizeof *ends);
    n->scope = from->scope ? kr_pool_text(to->pool, from->scope) : NULL;
    n->name = from->name ? kr_pool_text(to->pool, from->name) : NULL;
    if ((from->scope && !n->scope) || (from->name && !n->name)) return NULL;
    if (n->name && !n->dead && !kr_source_name(to, n, n->name)) return NULL;
    for (int k = 0; k < n->outputs; k++) to->values[n->out[k].id].node = n;
    return n;
}

static bool copy_graph(const kr_graph *g, kr_graph *c) {
    c->nodes = malloc((size_t)(g->node_count + 1) * sizeof *c->nodes);
    c->outputs = malloc((size_t)(g->output_count + 1) * sizeof *c->outputs);
    c->assigns = malloc((size_t)(g->assign_count + 1) * sizeof *c->assigns);
    kr_value_info *values = realloc(c->values, (size_t)g->value_room * sizeof *values);
    if (values) c->values = values;
    if (!c->nodes || !c->outputs || !c->assigns || !values) return false;
    memcpy(c->values, g->values, g->value_count * sizeof *values);
    c->value_count = g->value_count;
    c->value_room = g->value_room;
    for (uint32_t v = 0; v < c->value_count; v++) c->values[v].node = NULL;
    c->node_room = g->node_count;
    c->output_room = g->output_count;
    c->assign_count = c->assign_room = g->assign_count;
    if (g->assign_count) memcpy(c->assigns, g->assigns, (size_t)g->assign_count * sizeof *c->assigns);
    c->carries_live = g->carries_live;
    c->next_rank = g->next_rank;
    for (int i = 0; i < g->node_count; i++)
        if (!(c->nodes[c->node_count++] = copy_node(c, g->nodes[i]))) return false;
    for (int i = 0; i < g->output_count; i++) {
        const char *name = kr_pool_text(c->pool, g->outputs[i].name);
        if (!name) return false;
        c->outputs[c->output_count++] = (kr_graph_output){name, g->outputs[i].value};
        if (!kr_output_name(c, i)) return false;
    }
    return true;
}

kr_status kr_graph_clone(const kr_graph *g, kr_graph **out) {
    KR_TRY(kr_graph_status(g));
    KR_TRY(kr_graph_new(out));
    if (copy_graph(g, *out)) return KR_OK;
    kr_graph_free(*out);
    *out = NULL;
    KR_FAIL(KR_NO_MEMORY, "graph: no memory for a copy");
}
