/// What a node costs, from its op's own figures, and what that is in time at the target's rates.
#include "compiler/cost.h"
#include "compiler/uses.h"

#include <stdlib.h>

void kr_node_cost(const kr_graph *g, const kr_node *n, const kr_shape *in, const kr_shape *out, double *flops,
                  double *bytes) {
    *flops = *bytes = 0;
    if (n->op->cost) {
        n->op->cost(&n->attrs, in, out, n->inputs, flops, bytes);
        return;
    }
    for (int i = 0; i < n->inputs; i++) *bytes += (double)kr_value_bytes(g, n->in[i]);
    for (int i = 0; i < n->outputs; i++) *bytes += (double)kr_value_bytes(g, n->out[i]);
    *flops = n->outputs ? (double)kr_value_count(g, n->out[0]) : 0;
}

double kr_node_ns(const kr_target *t, const kr_graph *g, const kr_node *n) {
    double flops, bytes;
    if (n->op->flags & (KR_OP_VIEW | KR_OP_SOURCE)) return 0;
    kr_shape *shapes = malloc((size_t)(n->inputs + n->outputs + 1) * sizeof *shapes);
    if (!shapes) return t->ns_per_step; // an estimate is only information
    for (int i = 0; i < n->inputs + n->outputs; i++)
        shapes[i] = kr_value_shape(g, i < n->inputs ? n->in[i] : n->out[i - n->inputs]);
    kr_node_cost(g, n, shapes, shapes + n->inputs, &flops, &bytes);
    free(shapes);
    const double arithmetic = flops / t->flops_per_ns, traffic = bytes / t->bytes_per_ns;
    return t->ns_per_step + (arithmetic > traffic ? arithmetic : traffic);
}
