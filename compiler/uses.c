#include "compiler/uses.h"

#include <stdlib.h>

/// Readers of every value in one array, by counting: at[v + 1] is where the next reader of v goes, so that in the end
/// it is where the readers of v + 1 begin.
static void list_readers(kr_uses *u) {
    for (int i = 0; i < u->nodes; i++) {
        const kr_node *n = kr_graph_node(u->g, i);
        for (int k = 0; k < n->inputs; k++) u->at[n->in[k].id + 2]++;
    }
    for (uint32_t v = 2; v < u->values + 3; v++) u->at[v] += u->at[v - 1];
    for (int i = 0; i < u->nodes; i++) {
        const kr_node *n = kr_graph_node(u->g, i);
        for (int k = 0; k < n->inputs; k++) u->list[u->at[n->in[k].id + 1]++] = i;
    }
}

static void find_roots(kr_uses *u) {
    for (uint32_t v = 0; v <= u->values; v++) u->root[v] = v, u->node[v] = -1;
    for (int i = 0; i < u->nodes; i++) {
        const kr_node *n = kr_graph_node(u->g, i);
        for (int k = 0; k < n->outputs; k++) {
            u->node[n->out[k].id] = i;
            if (n->op->flags & KR_OP_VIEW) u->root[n->out[k].id] = u->root[n->in[0].id];
        }
    }
}

static void name(kr_uses *u, kr_value v) {
    u->named[v.id]++;
    u->pinned[v.id] = true;
    u->last[v.id] = u->nodes;
}

/// From the last node to the first: what reads a view is known before the view itself is met.
static void find_last(kr_uses *u) {
    for (uint32_t v = 0; v <= u->values; v++) u->last[v] = u->node[v];
    for (int i = 0; i < kr_graph_outputs(u->g); i++) name(u, kr_graph_output_at(u->g, i)->value);
    for (int i = 0; i < kr_graph_assigns(u->g); i++) name(u, kr_graph_assign_at(u->g, i)->value);
    for (int i = u->nodes - 1; i >= 0; i--) {
        const kr_node *n = kr_graph_node(u->g, i);
        const bool view = n->op->flags & KR_OP_VIEW;
        if (view && kr_uses_unread(u, n->out[0])) continue;
        const int now = view ? u->last[n->out[0].id] : i;
        for (int k = 0; k < n->inputs; k++)
            if (n->in[k].id && now > u->last[n->in[k].id]) u->last[n->in[k].id] = now;
    }
}

kr_status kr_uses_find(const kr_graph *g, const kr_value *gradients, int count, kr_uses *u) {
    *u = (kr_uses){.g = g, .nodes = kr_graph_nodes(g), .values = kr_graph_values(g)};
    const size_t values = u->values + 4u;
    size_t reads = 0;
    for (int i = 0; i < u->nodes; i++) reads += (size_t)kr_graph_node(g, i)->inputs;
    u->node = calloc(values, sizeof *u->node);
    u->at = calloc(values, sizeof *u->at);
    u->list = calloc(reads + 1, sizeof *u->list);
    u->root = calloc(values, sizeof *u->root);
    u->last = calloc(values, sizeof *u->last);
    u->named = calloc(values, sizeof *u->named);
    u->pinned = calloc(values, sizeof *u->pinned);
    if (!u->node || !u->at || !u->list || !u->root || !u->last || !u->named || !u->pinned) {
        kr_uses_free(u);
        KR_FAIL(KR_NO_MEMORY, "no memory for the uses of %zu values", values);
    }
    list_readers(u);
    find_roots(u);
    find_last(u);
    for (int i = 0; i < count && gradients; i++) u->pinned[gradients[i].id] |= gradients[i].id != 0;
    return KR_OK;
}

void kr_uses_free(kr_uses *u) {
    free(u->node), free(u->at), free(u->list), free(u->root), free(u->last), free(u->named), free(u->pinned);
    *u = (kr_uses){0};
}

static bool each_reader(const kr_uses *u, kr_value v, bool direct, bool (*each)(void *, int, bool), void *context) {
    for (int k = u->at[v.id]; k < u->at[v.id + 1]; k++) {
        const kr_node *n = kr_graph_node(u->g, u->list[k]);
        if (!(n->op->flags & KR_OP_VIEW)) {
            if (!each(context, u->list[k], direct)) return false;
        } else if (!each_reader(u, n->out[0], false, each, context)) return false;
    }
    return true;
}

bool kr_uses_each(const kr_uses *u, kr_value v, bool (*each)(void *, int reader, bool direct), void *context) {
    return each_reader(u, v, true, each, context);
}

size_t kr_value_bytes(const kr_graph *g, kr_value v) {
    const kr_shape shape = kr_value_shape(g, v);
    return v.id ? kr_tensor_bytes(kr_value_dtype(g, v), &shape) : 0;
}
