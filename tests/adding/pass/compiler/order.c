/// Operands that may be swapped stand in the order in which they were made, so that a graph reads the same however a
/// block wrote its sums. For tests/adding.
#include "compiler/pass.h"

kr_status kr_pass_order(kr_compilation *c) {
    for (int i = 0; i < kr_graph_nodes(c->g); i++) {
        kr_node *n = kr_graph_node(c->g, i);
        if (!(n->op->flags & KR_OP_COMMUTES) || n->in[0].id <= n->in[1].id) continue;
        const kr_value first = n->in[1];
        n->in[1] = n->in[0];
        n->in[0] = first;
    }
    return KR_OK;
}
