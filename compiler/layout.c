/// What a consumer cannot read where it lives (compiler/homes.c) is copied first: this pass inserts those copies.
/// Outputs and assigned values get buffers of their own.
#include "compiler/internal.h"

#include <stdlib.h>
#include <string.h>

kr_layout kr_layout_packed(const kr_shape *shape) {
    kr_layout l = {.shape = *shape};
    int64_t step = 1;
    for (int k = shape->rank - 1; k >= 0; k--) {
        l.stride[k] = step;
        step *= shape->dim[k];
    }
    return l;
}

bool kr_layout_contiguous(const kr_layout *l) {
    int64_t step = 1;
    if (kr_shape_count(&l->shape) == 0) return true;
    for (int k = l->shape.rank - 1; k >= 0; k--) {
        if (l->shape.dim[k] != 1 && l->stride[k] != step) return false;
        step *= l->shape.dim[k];
    }
    return true;
}

bool kr_layout_rows(const kr_layout *l) {
    const int last = l->shape.rank - 1;
    if (last < 0 || kr_layout_contiguous(l)) return true;
    if (l->shape.dim[last] != 1 && l->stride[last] != 1) return false;
    int64_t step = 0;
    for (int k = last - 1; k >= 0; k--) {
        if (l->shape.dim[k] == 1) continue;
        if (step && l->stride[k] != step) return false;
        if (l->stride[k] < l->shape.dim[last]) return false; // rows that overlap or repeat
        step = l->stride[k] * l->shape.dim[k];
    }
    return true;
}

bool kr_mask_has(uint32_t mask, int i) { return mask >> (i < 31 ? i : 31) & 1; }

bool kr_layout_accepted(const kr_target *t, const kr_node *n, int i, const kr_layout *l) {
    if (kr_layout_contiguous(l)) return true;
    const kr_impl *impl = kr_impl_of(t, n);
    return kr_mask_has(impl->strided_in, i) || (kr_mask_has(impl->rows_in, i) && kr_layout_rows(l));
}

static kr_value copy_before(kr_graph *g, const kr_node *reader, kr_value v) {
    kr_graph_set_rank(g, reader ? reader->rank : -1);
    kr_graph_set_scope(g, reader ? reader->scope : "copy");
    return kr_copy(g, v);
}

/// One sweep: copies what is read in a layout that the reader does not take. Copies change homes, so sweep until none.
static kr_status copy_unreadable(const kr_target *t, kr_graph *g, const kr_home *homes, int *copies) {
    const int nodes = kr_graph_nodes(g);
    const uint32_t values = kr_graph_values(g);
    for (int i = 0; i < nodes; i++) {
        kr_node *n = kr_graph_node(g, i);
        for (int k = 0; k < n->inputs; k++) {
            const kr_value v = n->in[k];
            if (!v.id || v.id > values || !homes[v.id].root) continue; // its view is mended in this sweep first
            bool fine = kr_layout_accepted(t, n, k, &homes[v.id].layout);
            if (n->op->flags & KR_OP_VIEW) {
                const kr_shape shape = kr_value_shape(g, n->out[0]);
                kr_layout seen;
                fine = n->op->view(&n->attrs, &homes[v.id].layout, &shape, &seen);
            }
            if (fine) continue;
            n->in[k] = copy_before(g, n, v);
            KR_TRY(kr_graph_status(g));
            const kr_node *copy = kr_value_node(g, n->in[k]);
            KR_FAIL_IF(!kr_layout_accepted(t, copy, 0, &homes[v.id].layout), KR_UNSUPPORTED,
                       "target %s: %s has to take inputs with any strides, or nothing can be copied together", t->name,
                       copy->op->name);
            ++*copies;
        }
    }
    return kr_graph_status(g);
}

/// Outputs and assigned values need a buffer of their own: not a view, not a source, not shared with another root.
static kr_status own_roots(kr_graph *g) {
    int *uses = kr_root_uses(g);
    KR_FAIL_IF(!uses, KR_NO_MEMORY, "layout: no memory");
    const int outputs = kr_graph_outputs(g);
    for (int i = 0; i < outputs + kr_graph_assigns(g); i++) {
        kr_value *v = i < outputs ? &kr_graph_output_at(g, i)->value : &kr_graph_assign_at(g, i - outputs)->value;
        const kr_node *n = kr_value_node(g, *v);
        if (!(n->op->flags & KR_OP_VIEW) && !kr_node_source(n) && uses[v->id] == 1) continue;
        uses[v->id]--;
        *v = copy_before(g, NULL, *v);
    }
    free(uses);
    return kr_graph_status(g);
}

kr_status kr_pass_layout(kr_compilation *c) {
    kr_graph *g = c->g;
    KR_TRY(own_roots(g));
    KR_TRY(kr_graph_sort(g));
    for (int copies = 1; copies;) {
        copies = 0;
        kr_home *homes = calloc(kr_graph_values(g) + 1u, sizeof *homes);
        KR_FAIL_IF(!homes, KR_NO_MEMORY, "layout: no memory");
        kr_status status = kr_homes(c->options->target, g, homes);
        if (!status) status = copy_unreadable(c->options->target, g, homes, &copies);
        free(homes);
        KR_TRY(status);
        KR_TRY(kr_graph_sort(g));
    }
    return KR_OK;
}
