/// Reverse-mode differentiation on the graph. Each op's rule appends the nodes of its own derivative, so the backward
/// graph prints, fuses and plans like any other. For every value the gradients from all its readers are added in the
/// order in which the reverse walk meets them, which is fixed by the graph. For a parameter, a node that can add to
/// what it makes gets the sum so far as an input, so that the gradient of a tied embedding is one table and not three.
#include "compiler/pass.h"

#include <stdlib.h>
#include <string.h>

typedef struct walk {
    kr_graph *g;
    bool *depends;     ///< by value: it depends on one of `wrt` through f32 values
    kr_value *grad;    ///< by value: the gradient so far
    uint32_t values;   ///< at the start; values made by the walk have no gradient
} walk;

/// Marks every value that depends on a value already marked.
static void spread(walk *w, int nodes) {
    for (int i = 0; i < nodes; i++) {
        const kr_node *n = kr_graph_node(w->g, i);
        if (n->op->flags & KR_OP_SOURCE) continue;
        bool any = false;
        for (int k = 0; k < n->inputs; k++) any |= w->depends[n->in[k].id];
        for (int k = 0; k < n->outputs; k++)
            w->depends[n->out[k].id] |= any && kr_value_dtype(w->g, n->out[k]) == KR_F32;
    }
}

/// Lets the node that made d add the sum so far, if it can and nobody else reads d. Nodes from `first` on are those of
/// the rule that d came from.
static bool add_inside(walk *w, int first, kr_value d, kr_value sum) {
    kr_node *made_by = kr_value_node(w->g, d);
    if (!made_by->op->added || kr_value_output(w->g, d) || sum.id > d.id) return false; // sums made later come too late
    kr_value *in = &made_by->in[made_by->op->added - 1];
    bool own = false, read = false;
    for (int i = first; i < kr_graph_nodes(w->g); i++) {
        const kr_node *n = kr_graph_node(w->g, i);
        own |= n == made_by;
        for (int k = 0; k < n->inputs; k++) read |= n->in[k].id == d.id;
    }
    if (!own || read || in->id) return false;
    *in = sum;
    return true;
}

static kr_status add_to(walk *w, const kr_node *n, int input, kr_value d, int first) {
    const kr_value v = n->in[input];
    const kr_shape want = kr_value_shape(w->g, v), got = kr_value_shape(w->g, d);
    char text_want[160], text_got[160];
    KR_FAIL_IF(!kr_shape_equal(&want, &got), KR_BAD_SHAPE, "autodiff: the gradient of input %d of %s is %s, want %s",
               input, n->op->name, kr_shape_text(&got, text_got), kr_shape_text(&want, text_want));
    kr_value *sum = &w->grad[v.id];
    // Elsewhere the fuse pass does this, where it weighs what lives longer for it.
    const bool param = kr_node_source(kr_value_node(w->g, v)) == KR_SOURCE_PARAM;
    *sum = !sum->id || (param && add_inside(w, first, d, *sum)) ? d : kr_add(w->g, *sum, d);
    return kr_graph_status(w->g);
}

static kr_status reverse(walk *w, int index) {
    const kr_node *n = kr_graph_node(w->g, index);
    kr_value dout[32], few[32], *din = few;
    bool reached = false, wanted = false;
    for (int k = 0; k < n->outputs; k++) {
        dout[k] = w->grad[n->out[k].id];
        reached |= dout[k].id != 0;
    }
    for (int k = 0; k < n->inputs; k++) wanted |= w->depends[n->in[k].id];
    if (!reached || !wanted || (n->op->flags & KR_OP_SOURCE)) return KR_OK;
    KR_FAIL_IF(!n->op->grad, KR_UNSUPPORTED, "autodiff: %s (scope %s) has no gradient, and the loss depends on it",
               n->op->name, n->scope && n->scope[0] ? n->scope : "-");
    if (n->inputs > 32)
        KR_FAIL_IF(!(din = malloc((size_t)n->inputs * sizeof *din)), KR_NO_MEMORY, "autodiff: no memory");
    memset(din, 0, (size_t)n->inputs * sizeof *din);
    kr_graph_set_scope(w->g, n->scope);
    const int first = kr_graph_nodes(w->g);
    n->op->grad(w->g, n, dout, din);
    kr_status status = kr_graph_status(w->g);
    for (int k = 0; k < n->inputs && !status; k++) {
        if (!din[k].id || !w->depends[n->in[k].id]) continue;
        bool shared = false;
        for (int j = 0; j < n->inputs; j++) shared |= j != k && din[j].id == din[k].id;
        status = add_to(w, n, k, din[k], shared ? kr_graph_nodes(w->g) : first);
    }
    if (din != few) free(din);
    return status;
}

kr_status kr_autodiff(kr_graph *g, kr_value loss, const kr_value *wrt, int count, kr_value *grads) {
    KR_TRY(kr_graph_status(g));
    const kr_shape shape = kr_value_shape(g, loss);
    char text[160];
    KR_FAIL_IF(!loss.id || kr_shape_count(&shape) != 1 || kr_value_dtype(g, loss) != KR_F32, KR_BAD_SHAPE,
               "autodiff: the loss is %s, want one f32 element", loss.id ? kr_shape_text(&shape, text) : "empty");
    const int nodes = kr_graph_nodes(g);
    walk w = {.g = g, .values = kr_graph_values(g) + 1};
    w.depends = calloc(w.values, sizeof *w.depends);
    w.grad = calloc(w.values, sizeof *w.grad);
    kr_status status = KR_OK;
    if (!w.depends || !w.grad) status = kr_status_record(KR_NO_MEMORY, __FILE__, __LINE__, "autodiff: no memory");
    else {
        for (int i = 0; i < count; i++) w.depends[wrt[i].id] = wrt[i].id != 0;
        spread(&w, nodes);
        kr_graph_set_scope(g, "loss");
        w.grad[loss.id] = kr_const(g, 1.0, KR_F32, shape);
        for (int i = nodes - 1; i >= 0 && !status; i--) status = reverse(&w, i);
        for (int i = 0; i < count; i++) grads[i] = status ? KR_NONE : w.grad[wrt[i].id];
    }
    kr_graph_set_scope(g, NULL);
    free(w.depends);
    free(w.grad);
    return status ? status : kr_graph_status(g);
}

/// Adds the gradients that the goal asks for: of every parameter, and for KR_GOAL_GRADIENTS of every f32 input.
kr_status kr_pass_autodiff(kr_compilation *c) {
    kr_graph *g = c->g;
    const int nodes = kr_graph_nodes(g);
    c->forward_outputs = kr_graph_outputs(g);
    c->forward_assigns = kr_graph_assigns(g);
    c->params = calloc((size_t)nodes + 1, sizeof *c->params);
    c->grads = calloc((size_t)nodes + 1, sizeof *c->grads);
    KR_FAIL_IF(!c->params || !c->grads, KR_NO_MEMORY, "autodiff: no memory");
    const bool with_inputs = c->options->goal == KR_GOAL_GRADIENTS;
    int wanted = 0;
    for (int i = 0; i < nodes; i++) {
        const kr_node *n = kr_graph_node(g, i);
        if (kr_node_source(n) == KR_SOURCE_PARAM) c->params[wanted++] = n->out[0];
    }
    c->param_count = wanted;
    for (int i = 0; i < nodes && with_inputs; i++) {
        const kr_node *n = kr_graph_node(g, i);
        if (kr_node_source(n) == KR_SOURCE_INPUT && kr_value_dtype(g, n->out[0]) == KR_F32)
            c->params[wanted++] = n->out[0];
    }
    if (c->options->goal == KR_GOAL_FORWARD) return KR_OK;
    const char *name = c->options->loss ? c->options->loss : "loss";
    const kr_value loss = kr_graph_output_find(g, name);
    KR_FAIL_IF(!loss.id, KR_BAD_ARGUMENT, "autodiff: the graph has no output \"%s\" to differentiate", name);
    KR_TRY(kr_autodiff(g, loss, c->params, wanted, c->grads));
    for (int i = 0; i < wanted && with_inputs; i++) {
        char label[512];
        snprintf(label, sizeof label, "grad.%s", kr_value_node(g, c->params[i])->name);
        if (!c->grads[i].id) c->grads[i] = kr_const(g, 0, KR_F32, kr_value_shape(g, c->params[i]));
        kr_output(g, label, c->grads[i]);
    }
    return kr_graph_status(g);
}
