/// What another node can do on its way. Additions: y = product + x becomes a product with a residual, dx + dstream an
/// input of the norm's gradient, and norm(a + b) a norm with a residual, whose second output is the sum. Activations:
/// silu(product), in plans without gradients, where nobody else reads the product. The op says which input
/// or attribute does it (kr_op.added, kr_op.adds_first, kr_op.activations), the target whether it pays (kr_impl.fuses).
#include "compiler/fuse/fuse.h"
#include "compiler/impl.h"
#include "compiler/strides.h"

#include <string.h>

/// How a value lies in memory when nothing is placed inside a join: false when it has to be copied first.
static bool layout_of(const kr_graph *g, kr_value v, kr_layout *out) {
    const kr_node *n = kr_value_node(g, v);
    const kr_shape shape = kr_value_shape(g, v);
    kr_layout from;
    *out = kr_layout_packed(&shape);
    if (kr_node_source(n) == KR_SOURCE_CONST) memset(out->stride, 0, sizeof out->stride);
    if (!(n->op->flags & KR_OP_VIEW)) return true;
    return layout_of(g, n->in[0], &from) && n->op->view(&n->attrs, &from, &shape, out);
}

static bool readable(const kr_fusion *r, const kr_node *n, int at, kr_value v) {
    kr_layout l;
    return layout_of(r->g, v, &l) && kr_layout_accepted(r->target, n, at, &l);
}

/// Would the op's rule accept `v` as its input `at`, and its kernel read it where it lies?
static bool takes_input(const kr_fusion *r, const kr_node *n, int at, kr_value v, kr_value first) {
    kr_shape in_shape[32], out_shape[16];
    kr_dtype in_dtype[32], out_dtype[16];
    if (n->inputs > 32 || n->outputs > 16) return false;
    if (!readable(r, n, at, v) || (first.id && !readable(r, n, 0, first)))
        return false; // a copy costs more than it saves
    for (int k = 0; k < n->inputs; k++) {
        const kr_value in = k == at ? v : k == 0 && first.id ? first : n->in[k];
        in_shape[k] = kr_value_shape(r->g, in);
        in_dtype[k] = kr_value_dtype(r->g, in);
    }
    return kr_op_shapes(n->op, &n->attrs, in_shape, in_dtype, n->inputs, out_shape, out_dtype) == KR_OK;
}

/// n once more at the place of `where`, with other attributes and inputs.
static kr_node *remade(kr_graph *g, const kr_node *n, const kr_node *where, const kr_attrs *attrs, const kr_value *in) {
    kr_graph_set_rank(g, where->rank);
    kr_graph_set_scope(g, n->scope);
    const kr_value out = kr_append(g, n->op, attrs, in, n->inputs);
    return kr_value_node(g, out);
}

/// n once more at the place of `where`, with input `at` given and, unless empty, another first input.
static kr_node *remade_with(kr_graph *g, const kr_node *n, const kr_node *where, int at, kr_value v, kr_value first) {
    kr_value in[32];
    memcpy(in, n->in, (size_t)n->inputs * sizeof *in);
    in[at] = v;
    if (first.id) in[0] = first;
    return remade(g, n, where, &n->attrs, in);
}

static kr_group pair(int a, int b) { return (kr_group){.count = 2, .member = {a < b ? a : b, a < b ? b : a}}; }

/// sum = in[k] + other, where in[k] is output 0 of a node that can add `other` itself and that nobody else reads.
static bool into_producer(kr_fusion *r, kr_node *sum, int index, int k) {
    kr_graph *g = r->g;
    const kr_value other = sum->in[1 - k];
    kr_node *n = kr_value_node(g, sum->in[k]);
    const int at = n->op->added - 1;
    if (at < 0 || n->dead || n->in[at].id || !(kr_impl_of(r->target, n)->fuses & KR_FUSES_ADDEND)) return false;
    if (sum->in[k].id != n->out[0].id || sum->in[0].id == sum->in[1].id) return false;
    for (int j = 0; j < n->inputs; j++)
        if (n->in[j].id == other.id) return false; // its memory may be taken over while it is still read
    const kr_group s = pair(r->uses.node[n->out[0].id], index);
    if (kr_group_puts_out(r, &s, n->out[0]) || !kr_group_may_form(r, &s) || !takes_input(r, n, at, other, KR_NONE))
        return false;
    const kr_node *one = remade_with(g, n, sum, at, other, KR_NONE);
    if (!one) return false;
    kr_graph_replace(g, sum->out[0], one->out[0]);
    for (int j = 1; j < n->outputs; j++) kr_graph_replace(g, n->out[j], one->out[j]);
    n->dead = sum->dead = true;
    return true;
}

/// n(in[0] = a + b): n adds by itself, and its output 1 is the sum.
static bool into_reader(kr_fusion *r, kr_node *n, int index) {
    kr_graph *g = r->g;
    const int at = n->op->adds_first - 1;
    if (at < 0 || n->in[at].id || !(kr_impl_of(r->target, n)->fuses & KR_FUSES_FIRST_ADDEND)) return false;
    kr_node *sum = kr_value_node(g, n->in[0]);
    if (sum->dead || !(sum->op->flags & KR_OP_ADDS) || sum->in[0].id == sum->in[1].id) return false;
    const kr_group s = pair(r->uses.node[sum->out[0].id], index);
    if (!kr_group_may_form(r, &s) || !takes_input(r, n, at, sum->in[1], sum->in[0])) return false;
    const kr_node *one = remade_with(g, n, n, at, sum->in[1], sum->in[0]);
    if (!one) return false;
    kr_graph_replace(g, sum->out[0], one->out[1]);
    for (int j = 0; j < n->outputs; j++) kr_graph_replace(g, n->out[j], one->out[j]);
    n->dead = sum->dead = true;
    return true;
}

/// act = f(in[0]), where in[0] is output 0 of a node that can apply f itself and that nobody else reads.
static bool into_activation(kr_fusion *r, kr_node *act, int index) {
    kr_graph *g = r->g;
    if (!(act->op->flags & KR_OP_ELEMENTWISE) || act->inputs != 1) return false;
    kr_node *n = kr_value_node(g, act->in[0]);
    if (!n->op->activations || n->dead || act->in[0].id != n->out[0].id || n->attrs.i[n->op->activation]) return false;
    if (!(kr_impl_of(r->target, n)->fuses & KR_FUSES_ACTIVATION)) return false;
    kr_attrs attrs = n->attrs;
    for (int k = 0; n->op->activations[k]; k++)
        if (!strcmp(act->op->name, n->op->activations[k])) attrs.i[n->op->activation] = k + 1;
    kr_shape in_shape[32], out_shape[16];
    kr_dtype in_dtype[32], out_dtype[16];
    if (!attrs.i[n->op->activation] || n->inputs > 32 || n->outputs > 16) return false;
    for (int k = 0; k < n->inputs; k++) {
        in_shape[k] = kr_value_shape(g, n->in[k]);
        in_dtype[k] = kr_value_dtype(g, n->in[k]);
    }
    const kr_group s = pair(r->uses.node[n->out[0].id], index);
    if (kr_group_puts_out(r, &s, n->out[0]) || !kr_group_may_form(r, &s) ||
        kr_op_shapes(n->op, &attrs, in_shape, in_dtype, n->inputs, out_shape, out_dtype) != KR_OK)
        return false;
    const kr_node *one = remade(g, n, act, &attrs, n->in);
    if (!one) return false;
    kr_graph_replace(g, act->out[0], one->out[0]);
    n->dead = act->dead = true;
    return true;
}

/// Everything is judged by the values that were there at the start: a node that became part of another one still stands
/// for it at its place, which is what the rule for groups asks about.
kr_status kr_fuse_sums(kr_compilation *c, kr_fusion *r) {
    // In training what is recomputed decides whether others read the product, and a compiler may round an activation
    // inside a product otherwise than apart: a budget of memory would then change bits.
    const bool activations = c->options->goal == KR_GOAL_FORWARD;
    for (int i = 0; i < r->uses.nodes; i++) {
        kr_node *n = kr_graph_node(r->g, i);
        if (n->dead || into_reader(r, n, i) || (activations && into_activation(r, n, i))) continue;
        if (!(n->op->flags & KR_OP_ADDS)) continue;
        // First the one whose partner is there already.
        const int later = r->uses.node[n->in[1].id] > r->uses.node[n->in[0].id];
        if (!into_producer(r, n, i, later)) into_producer(r, n, i, 1 - later);
    }
    return KR_OK;
}
