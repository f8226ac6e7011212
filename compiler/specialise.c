/// What ops leave to the target (chunks, sizes of saved states, rows of a round) becomes numbers, first of all: from
/// here on the graph says what will run, and gradients take those numbers over. Numbers that a graph already has are
/// checked.
#include "compiler/impl.h"
#include "compiler/pass.h"

#include <stdlib.h>

static kr_status specialise(kr_graph *g, const kr_target *target, int index) {
    kr_node *n = kr_graph_node(g, index);
    const kr_impl *impl = kr_impl_of(target, n);
    if (!impl->specialise) return KR_OK;
    kr_shape *shapes = malloc(((size_t)n->inputs + 1) * sizeof *shapes);
    KR_FAIL_IF(!shapes, KR_NO_MEMORY, "no memory for %d shapes", n->inputs);
    for (int k = 0; k < n->inputs; k++) shapes[k] = kr_value_shape(g, n->in[k]);
    kr_attrs attrs = n->attrs;
    kr_status status = impl->specialise(target, &attrs, shapes, n->inputs);
    free(shapes);
    if (!status) status = kr_graph_set_attrs(g, n, &attrs);
    if (!status) return KR_OK;
    return kr_status_prefix(status, "node %d, scope %s", index, n->scope && n->scope[0] ? n->scope : "-");
}

kr_status kr_specialise(kr_graph *g, const kr_target *target) {
    for (int i = 0; i < kr_graph_nodes(g); i++) KR_TRY(specialise(g, target, i));
    return KR_OK;
}

kr_status kr_pass_specialise(kr_compilation *c) { return kr_specialise(c->g, c->options->target); }
