/// What a consumer cannot read where it lives (placement.c) is copied first: this pass inserts those copies.
/// Outputs and assigned values get buffers of their own.
#include "compiler/memory/placement.h"
#include "compiler/pass.h"
#include "compiler/strides.h"

#include <stdlib.h>
#include <string.h>

static kr_value copy_before(kr_graph *g, const kr_node *reader, kr_value v) {
    kr_graph_set_rank(g, reader ? reader->rank : -1);
    kr_graph_set_scope(g, reader ? reader->scope : "copy");
    return kr_copy(g, v);
}

/// One sweep: copies what is read in a layout that the reader does not take. Copies change placements, so sweep until
/// none are needed.
static kr_status copy_unreadable(const kr_target *t, kr_graph *g, const kr_placement *placements, int *copies) {
    const int nodes = kr_graph_nodes(g);
    const uint32_t values = kr_graph_values(g);
    for (int i = 0; i < nodes; i++) {
        kr_node *n = kr_graph_node(g, i);
        for (int k = 0; k < n->inputs; k++) {
            const kr_value v = n->in[k];
            if (!v.id || v.id > values || !placements[v.id].root) continue; // its view is mended in this sweep first
            bool fine = kr_layout_accepted(t, n, k, &placements[v.id].layout);
            if (n->op->flags & KR_OP_VIEW) {
                const kr_shape shape = kr_value_shape(g, n->out[0]);
                kr_layout seen;
                fine = n->op->view(&n->attrs, &placements[v.id].layout, &shape, &seen);
            }
            if (fine) continue;
            n->in[k] = copy_before(g, n, v);
            KR_TRY(kr_graph_status(g));
            const kr_node *copy = kr_value_node(g, n->in[k]);
            KR_FAIL_IF(!kr_layout_accepted(t, copy, 0, &placements[v.id].layout), KR_UNSUPPORTED,
                       "target %s: %s has to take inputs with any strides, or nothing can be copied together", t->name,
                       copy->op->name);
            ++*copies;
        }
    }
    return kr_graph_status(g);
}

/// Outputs and assigned values need a buffer of their own: not a view, not a source, not shared with another root.
static kr_status own_roots(kr_graph *g, const kr_uses *uses) {
    int *named = malloc((uses->values + 1u) * sizeof *named);
    KR_FAIL_IF(!named, KR_NO_MEMORY, "layout: no memory for %u values", uses->values);
    memcpy(named, uses->named, (uses->values + 1u) * sizeof *named);
    const int outputs = kr_graph_outputs(g);
    for (int i = 0; i < outputs + kr_graph_assigns(g); i++) {
        kr_value *v = i < outputs ? &kr_graph_output_at(g, i)->value : &kr_graph_assign_at(g, i - outputs)->value;
        const kr_node *n = kr_value_node(g, *v);
        if (!(n->op->flags & (KR_OP_VIEW | KR_OP_SOURCE)) && named[v->id] == 1) continue;
        named[v->id]--;
        *v = copy_before(g, NULL, *v);
    }
    free(named);
    return kr_graph_status(g);
}

/// One sweep over the graph as it stands.
static kr_status sweep(const kr_target *t, kr_graph *g, const kr_uses *uses, int *copies) {
    kr_placement *placements = calloc(uses->values + 1u, sizeof *placements);
    KR_FAIL_IF(!placements, KR_NO_MEMORY, "layout: no memory for %u values", uses->values);
    kr_status status = kr_placements_find(t, uses, placements);
    if (!status) status = copy_unreadable(t, g, placements, copies);
    free(placements);
    return status;
}

kr_status kr_pass_layout(kr_compilation *c) {
    kr_graph *g = c->g;
    kr_uses uses;
    KR_TRY(kr_graph_sort(g));
    KR_TRY(kr_uses_find(g, NULL, 0, &uses));
    kr_status status = own_roots(g, &uses);
    kr_uses_free(&uses);
    KR_TRY(status);
    for (int copies = 1; copies;) {
        copies = 0;
        KR_TRY(kr_graph_sort(g));
        KR_TRY(kr_uses_find(g, NULL, 0, &uses));
        status = sweep(c->options->target, g, &uses, &copies);
        kr_uses_free(&uses);
        KR_TRY(status);
    }
    return kr_graph_sort(g);
}
