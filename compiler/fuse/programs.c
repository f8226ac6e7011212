/// Elementwise nodes become tile programs.
///
/// Nodes are taken in order. Each one joins the programs of its operands, and those that read one of its operands too,
/// as far as the limits of a program and the rule for groups allow; so chains, diamonds and the several uses of a saved
/// value end up in one pass over memory. A sum over what a program computes ends it, when it is large enough to be cut
/// into pieces for all threads.
#include "compiler/fuse/fuse.h"
#include "compiler/strides.h"

#include <stdlib.h>

enum {
    NEIGHBOURS = 16          ///< readers of an operand that are looked at
};

typedef struct programs {
    kr_compilation *c;
    kr_fusion *r;
    kr_group *groups; ///< by node: the program it belongs to; count 0: it belongs to another one
    int *of;          ///< by node: whose group it is in; -1: none
    int *sum;         ///< by group: the node that sums a result of it, or -1
} programs;

static bool same_shape(const kr_fusion *r, int a, int b) {
    const kr_shape x = kr_value_shape(r->g, kr_graph_node(r->g, a)->out[0]);
    const kr_shape y = kr_value_shape(r->g, kr_graph_node(r->g, b)->out[0]);
    return kr_shape_equal(&x, &y);
}

/// Inputs of the group, in the order of their first use; more than fit: false.
static bool inputs_of(const kr_fusion *r, const kr_group *s, kr_value *in, int *count) {
    *count = 0;
    for (int k = 0; k < s->count; k++) {
        const kr_node *n = kr_graph_node(r->g, s->member[k]);
        for (int j = 0; j < n->inputs; j++) {
            bool known = kr_group_has(s, r->uses.node[n->in[j].id]);
            for (int i = 0; i < *count && !known; i++) known = in[i].id == n->in[j].id;
            if (known) continue;
            if (*count == r->target->program.inputs) return false;
            in[(*count)++] = n->in[j];
        }
    }
    return true;
}

static bool within_limits(const kr_fusion *r, const kr_group *s) {
    const kr_program_limits *limits = &r->target->program;
    kr_value in[KR_PROGRAM_INPUTS];
    int inputs, reals = 0, outputs = 0;
    if (s->count > limits->length || !inputs_of(r, s, in, &inputs)) return false;
    for (int k = 0; k < s->count; k++) {
        const kr_node *n = kr_graph_node(r->g, s->member[k]);
        int has = 0;
        kr_program_takes(n->op, &has);
        reals += has;
        outputs += kr_group_puts_out(r, s, n->out[0]);
    }
    return reals <= limits->reals && outputs <= limits->outputs;
}

/// The members of both, ascending; false when there are too many.
static bool unite(const kr_group *a, const kr_group *b, kr_group *out) {
    if (a->count + b->count > KR_PROGRAM_LENGTH) return false;
    *out = (kr_group){0};
    for (int i = 0, j = 0; i < a->count || j < b->count;)
        out->member[out->count++] = j == b->count || (i < a->count && a->member[i] < b->member[j]) ? a->member[i++]
                                                                                                   : b->member[j++];
    return true;
}

/// Puts the group of node `other` into that of node n, if that is legal and pays.
static void join(programs *p, int n, int other) {
    const int from = p->of[other], to = p->of[n];
    kr_group both;
    if (from < 0 || from == to || !same_shape(p->r, n, other) || !unite(&p->groups[from], &p->groups[to], &both))
        return;
    if (!within_limits(p->r, &both) || !kr_group_may_form(p->r, &both)) return;
    p->groups[to] = both;
    p->groups[from].count = 0;
    for (int k = 0; k < both.count; k++) p->of[both.member[k]] = to;
}

/// Where in uses.list the readers of v that come before node i end.
static int readers_before(const kr_uses *u, kr_value v, int i) {
    int low = u->at[v.id], high = u->at[v.id + 1];
    while (low < high) {
        const int middle = low + (high - low) / 2;
        if (u->list[middle] < i) low = middle + 1;
        else high = middle;
    }
    return low;
}

static void gather(programs *p, int i) {
    const kr_fusion *r = p->r;
    const kr_node *n = kr_graph_node(r->g, i);
    p->of[i] = i;
    p->groups[i] = (kr_group){.count = 1, .member = {i}};
    for (int k = 0; k < n->inputs; k++) join(p, i, r->uses.node[n->in[k].id]);
    for (int k = 0; k < n->inputs; k++) {
        const kr_value v = n->in[k];
        if (kr_node_source(kr_value_node(r->g, (kr_value){r->uses.root[v.id]})))
            continue; // parameters are small, and close to nobody
        const int begin = r->uses.at[v.id], end = readers_before(&r->uses, v, i);
        for (int at = end - 1; at >= begin && at >= end - NEIGHBOURS; at--) join(p, i, r->uses.list[at]);
    }
}

// Sums ------------------------------------------------------------------------------------------------------------

/// The value behind views that keep the order of elements (reshapes).
static kr_value behind_reshapes(const kr_graph *g, kr_value v) {
    for (const kr_node *n = kr_value_node(g, v); n->op->flags & KR_OP_VIEW; n = kr_value_node(g, v)) {
        const kr_shape in = kr_value_shape(g, n->in[0]), out = kr_value_shape(g, v);
        const kr_layout packed = kr_layout_packed(&in);
        kr_layout seen;
        if (kr_shape_count(&in) != kr_shape_count(&out) || !n->op->view(&n->attrs, &packed, &out, &seen) ||
            seen.offset || !kr_layout_contiguous(&seen))
            break;
        v = n->in[0];
    }
    return v;
}

/// The axes of `whole` that make up `axis` of its reshaped form `s`.
static bool find_axes(const kr_shape *whole, const kr_shape *s, int axis, int *first, int *axes) {
    int64_t outer = 1, n = 1;
    for (int k = 0; k < axis; k++) outer *= s->dim[k];
    int at = 0;
    for (; at < whole->rank && n < outer; at++) n *= whole->dim[at];
    if (n != outer) return false;
    *first = at;
    for (n = 1; at < whole->rank && n < s->dim[axis]; at++) n *= whole->dim[at];
    *axes = at - *first;
    return n == s->dim[axis] && *axes > 0;
}

static bool sum_of(const programs *p, int i, kr_value *summed, int *axis, int *axes) {
    const kr_graph *g = p->r->g;
    const kr_node *n = kr_graph_node(g, i);
    const int k = (int)n->attrs.i[0];
    *summed = behind_reshapes(g, n->in[0]);
    const kr_shape whole = kr_value_shape(g, *summed), s = kr_value_shape(g, n->in[0]);
    if (!kr_shape_count(&whole) || !find_axes(&whole, &s, k, axis, axes)) return false;
    int64_t outer = 1;
    for (int j = 0; j < k; j++) outer *= s.dim[j];
    return outer >= p->r->target->program.many || kr_shape_count(&whole) >= p->r->target->program.large;
}

/// Lets the sum at node i end the program that computes what it sums.
static void end_with(programs *p, int i) {
    const kr_fusion *r = p->r;
    kr_value summed;
    int axis, axes;
    if (!sum_of(p, i, &summed, &axis, &axes)) return;
    const int of = p->of[r->uses.node[summed.id]];
    if (of < 0 || p->sum[of] >= 0 || !within_limits(r, &p->groups[of])) return; // one node alone may be too much
    const kr_group own = {.count = 1, .member = {i}};
    kr_group both;
    if (!unite(&p->groups[of], &own, &both)) return;
    both.ending = i;
    if (kr_group_may_form(r, &both)) p->sum[of] = i;
}

// Making them -----------------------------------------------------------------------------------------------------

static int register_of(const kr_fusion *r, const kr_group *s, const kr_value *in, int inputs, kr_value v) {
    for (int i = 0; i < inputs; i++)
        if (in[i].id == v.id) return i;
    int k = 0;
    while (s->member[k] != r->uses.node[v.id]) k++;
    return KR_PROGRAM_INPUTS + k;
}

/// Removes views from v on that only dead nodes read.
static void drop_views(const kr_fusion *r, kr_value v) {
    for (kr_node *n = kr_value_node(r->g, v); n->op->flags & KR_OP_VIEW; n = kr_value_node(r->g, n->in[0])) {
        for (int k = r->uses.at[n->out[0].id]; k < r->uses.at[n->out[0].id + 1]; k++)
            if (!kr_graph_node(r->g, r->uses.list[k])->dead) return;
        if (r->uses.pinned[n->out[0].id]) return;
        n->dead = true;
    }
}

static void emit(programs *p, int of) {
    kr_fusion *r = p->r;
    kr_graph *g = r->g;
    const kr_group *s = &p->groups[of];
    const int sum = p->sum[of];
    if (s->count < 2 && sum < 0) return;
    kr_group all = *s;
    if (sum >= 0) unite(s, &(kr_group){.count = 1, .member = {sum}}, &all);
    kr_value in[KR_PROGRAM_INPUTS], out[KR_PROGRAM_OUTPUTS];
    kr_program program = {.length = s->count};
    int inputs;
    inputs_of(r, s, in, &inputs);
    for (int k = 0; k < s->count; k++) {
        const kr_node *n = kr_graph_node(g, s->member[k]);
        kr_instruction *c = &program.code[k];
        *c = (kr_instruction){.op = n->op, .a = n->attrs.r[0], .b = n->attrs.r[1]};
        for (int j = 0; j < n->inputs; j++) c->in[j] = register_of(r, s, in, inputs, n->in[j]);
        if (!kr_group_puts_out(r, &all, n->out[0])) continue;
        out[program.outputs] = n->out[0];
        program.out[program.outputs++] = KR_PROGRAM_INPUTS + k;
    }
    if (sum >= 0) {
        kr_value summed;
        program.sums = sum_of(p, sum, &summed, &program.axis, &program.axes);
        program.summed = register_of(r, s, in, inputs, summed);
        program.sum_shape = kr_value_shape(g, kr_graph_node(g, sum)->out[0]);
    }
    const kr_node *last = kr_graph_node(g, all.member[all.count - 1]);
    kr_graph_set_rank(g, last->rank);
    kr_graph_set_scope(g, last->scope);
    const kr_value made = kr_fused(g, &program, in, inputs);
    if (!made.id) return;
    if (sum >= 0) kr_graph_replace(g, kr_graph_node(g, sum)->out[0], made);
    for (int k = 0; k < program.outputs; k++) kr_graph_replace(g, out[k], kr_sibling(g, made, k + program.sums));
    for (int k = 0; k < all.count; k++) kr_graph_node(g, all.member[k])->dead = true;
    if (sum >= 0) drop_views(r, kr_graph_node(g, sum)->in[0]);
}

kr_status kr_fuse_programs(kr_compilation *c, kr_fusion *r) {
    const size_t nodes = (size_t)r->uses.nodes + 1;
    programs p = {.c = c, .r = r, .groups = calloc(nodes, sizeof *p.groups), .of = malloc(nodes * sizeof *p.of),
                  .sum = malloc(nodes * sizeof *p.sum)};
    kr_status status = KR_OK;
    if (!p.groups || !p.of || !p.sum)
        status = kr_status_record(KR_NO_MEMORY, __FILE__, __LINE__, "fuse: no memory for %d nodes", r->uses.nodes);
    for (int i = 0; i < r->uses.nodes && !status; i++) p.of[i] = p.sum[i] = -1;
    for (int i = 0; i < r->uses.nodes && !status; i++)
        if (r->fusable[i]) gather(&p, i);
    for (int i = 0; i < r->uses.nodes && !status; i++)
        if (kr_graph_node(r->g, i)->op->flags & KR_OP_SUMS) end_with(&p, i);
    for (int i = 0; i < r->uses.nodes && !status; i++)
        if (p.groups[i].count) emit(&p, i);
    free(p.groups);
    free(p.of);
    free(p.sum);
    return status ? status : kr_graph_status(r->g);
}
