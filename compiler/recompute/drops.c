/// What dropping values costs and saves, and the rewriting.
#include "compiler/recompute/recompute.h"

#include <stdlib.h>

/// Numbers that are equal for nodes of the same group. Groups of joined blocks count from below 0.
static int group_of(const kr_drops *p, int segment) {
    if (segment < 0 || segment >= p->joined * p->span) return segment;
    return -2 - segment / p->span;
}

bool kr_is_dropped(const kr_forward *f, const kr_drops *p, int node, uint32_t v) {
    if (!p->drop[node] || f->pinned[v]) return false;
    if (f->first_reader[v] > f->last_reader[v]) return true; // nothing in the forward part reads it
    const int group = group_of(p, f->segment[node]);
    return group_of(p, f->first_reader[v]) == group && group_of(p, f->last_reader[v]) == group;
}

kr_recompute_cost kr_drops_walk(const kr_forward *f, const kr_drops *p, const int *list, int count, bool *need,
                                bool *recomputed) {
    kr_recompute_cost sum = {0};
    for (int at = 0; at < count; at++) {
        const kr_node *n = kr_graph_node(f->g, list ? list[at] : at);
        for (int k = 0; k < n->outputs; k++) need[n->out[k].id] = f->wanted[n->out[k].id];
        for (int k = 0; k < n->inputs; k++) need[f->uses.root[n->in[k].id]] = f->wanted[f->uses.root[n->in[k].id]];
    }
    for (int at = count - 1; at >= 0; at--) {
        const int i = list ? list[at] : at;
        const kr_node *n = kr_graph_node(f->g, i);
        if (!f->forward[i] || !kr_node_computes(n)) continue;
        bool make = false;
        for (int k = 0; k < n->outputs; k++) {
            const uint32_t v = n->out[k].id;
            if (!need[v]) continue;
            if (kr_is_dropped(f, p, i, v)) make = true;
            else sum.bytes += (double)f->bytes[v];
        }
        if (recomputed) recomputed[i] = make;
        if (!make) continue;
        sum.ns += f->ns[i];
        for (int k = 0; k < n->inputs; k++) {
            const uint32_t v = f->uses.root[n->in[k].id];
            if (list && v && !need[v] && f->segment[f->uses.node[v]] != f->segment[i]) sum.bytes += (double)f->bytes[v];
            need[v] = true;
        }
    }
    need[0] = false;
    return sum;
}

kr_status kr_drops_cost(const kr_forward *f, const kr_drops *p, bool *recomputed, kr_recompute_cost *cost) {
    bool *need = calloc(kr_graph_values(f->g) + 1u, sizeof *need);
    KR_FAIL_IF(!need, KR_NO_MEMORY, "no memory for %u values", kr_graph_values(f->g));
    *cost = kr_drops_walk(f, p, NULL, f->nodes, need, recomputed);
    free(need);
    return KR_OK;
}

// Rewriting ----------------------------------------------------------------------------------------------------------

/// Appends a copy of node n that reads what `now` says, and lets `now` lead readers of n's outputs to it. Copies rank
/// after everything, so that sorting emits them just before their first reader: as late as can be.
static kr_status recompute(kr_graph *g, const kr_node *n, kr_value *now) {
    char scope[560];
    snprintf(scope, sizeof scope, "%s%srecomputed", n->scope ? n->scope : "", n->scope && n->scope[0] ? "." : "");
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

kr_status kr_drops_apply(const kr_forward *f, const kr_drops *p, kr_graph *g) {
    const uint32_t values = kr_graph_values(g);
    bool *twice = calloc((size_t)f->nodes + 1, sizeof *twice);
    kr_value *now = calloc(values + 1u, sizeof *now);
    kr_status status = KR_OK;
    kr_recompute_cost cost;
    if (!twice || !now) status = kr_status_record(KR_NO_MEMORY, __FILE__, __LINE__, "no memory for %u values", values);
    else status = kr_drops_cost(f, p, twice, &cost);
    for (uint32_t v = 0; v <= values && !status; v++) now[v].id = v;
    for (int i = 0; i < f->nodes && !status; i++) {
        const kr_node *n = kr_graph_node(g, i);
        if (!f->forward[i]) continue;
        if (n->op->flags & KR_OP_VIEW ? now[n->in[0].id].id != n->in[0].id : twice[i]) status = recompute(g, n, now);
        for (int k = 0; k < n->outputs && !status && twice[i]; k++) // what is stored all the same is read where it is
            if (!kr_is_dropped(f, p, i, n->out[k].id)) now[n->out[k].id] = n->out[k];
    }
    for (int i = 0; i < f->nodes && !status; i++) {
        kr_node *n = kr_graph_node(g, i);
        for (int k = 0; k < n->inputs && !f->forward[i]; k++) n->in[k] = now[n->in[k].id];
    }
    kr_graph_set_scope(g, NULL);
    free(twice);
    free(now);
    KR_TRY(status);
    KR_TRY(kr_graph_sort(g));
    kr_graph_prune(g);
    return KR_OK;
}
