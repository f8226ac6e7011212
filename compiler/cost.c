/// What a node costs, from its op's own figures, and what that is in time. The rates are fixed, so that plans do not
/// depend on the mood of the machine: about what two cores with AVX-512 sustain over a training step.
#include "compiler/internal.h"

#include <stdlib.h>

static const double flops_per_ns = 200, bytes_per_ns = 25, ns_per_step = 2000; ///< the last: waking threads, a barrier

/// FLOPs and bytes of memory traffic, as the op states them.
static void cost_of(const kr_graph *g, const kr_node *n, double *flops, double *bytes) {
    *flops = *bytes = 0;
    kr_shape *shapes = malloc((size_t)(n->inputs + n->outputs + 1) * sizeof *shapes);
    if (!shapes) return; // a cost is only information
    kr_shape *in = shapes, *out = shapes + n->inputs;
    for (int i = 0; i < n->inputs; i++) in[i] = kr_value_shape(g, n->in[i]);
    for (int i = 0; i < n->outputs; i++) out[i] = kr_value_shape(g, n->out[i]);
    if (n->op->cost) n->op->cost(&n->attrs, in, out, n->inputs, flops, bytes);
    else {
        for (int i = 0; i < n->inputs; i++)
            if (n->in[i].id) *bytes += (double)kr_tensor_bytes(kr_value_dtype(g, n->in[i]), &in[i]);
        for (int i = 0; i < n->outputs; i++) *bytes += (double)kr_tensor_bytes(kr_value_dtype(g, n->out[i]), &out[i]);
        *flops = n->outputs ? (double)kr_shape_count(&out[0]) : 0;
    }
    free(shapes);
}

double kr_node_ns(const kr_graph *g, const kr_node *n) {
    double flops, bytes;
    if (n->op->flags & (KR_OP_VIEW | KR_OP_SOURCE)) return 0;
    cost_of(g, n, &flops, &bytes);
    const double arithmetic = flops / flops_per_ns, traffic = bytes / bytes_per_ns;
    return ns_per_step + (arithmetic > traffic ? arithmetic : traffic);
}
