/// Fusion: what several nodes do in several passes over memory becomes one.
///
/// First additions go into the products and norms that can take them, then cheap values that are needed again much
/// later (in the backward pass) are computed again there when what they come from is alive anyway, and last elementwise
/// nodes are gathered into tile programs.
///
/// Nodes that become one run where the last of them stood. That is legal when nobody outside of the group reads one of
/// its values before that place, and then no number of groups can make a cycle: give every node the place of its
/// group's last member; along every edge between groups places grow.
///
/// Waiting for the last member keeps inputs of the earlier ones alive. A group is only formed when the buffers that
/// live longer for it, with other steps in between, weigh no more than the values that need no buffer any longer.
#include "compiler/fuse.h"

#include <stdlib.h>
#include <string.h>

enum { SLACK = 2000 }; ///< a group may cost this part of all bytes: buffers far smaller than the rest do not decide

size_t kr_value_bytes(const kr_graph *g, kr_value v) {
    const kr_shape shape = kr_value_shape(g, v);
    return kr_tensor_bytes(kr_value_dtype(g, v), &shape);
}

static bool may_be_instruction(const kr_graph *g, const kr_node *n) {
    if (!kr_program_takes(n->op, NULL)) return false;
    for (int k = 0; k < n->inputs; k++)
        if (kr_value_dtype(g, n->in[k]) != KR_F32) return false;
    return true;
}

/// Readers of every value, in one array (counting sort by value).
static void list_readers(kr_reads *r) {
    for (int i = 0; i < r->nodes; i++)
        for (int k = 0; k < kr_graph_node(r->g, i)->inputs; k++) r->at[kr_graph_node(r->g, i)->in[k].id + 2]++;
    for (uint32_t v = 2; v < r->values + 3; v++) r->at[v] += r->at[v - 1];
    for (int i = 0; i < r->nodes; i++)
        for (int k = 0; k < kr_graph_node(r->g, i)->inputs; k++)
            r->list[r->at[kr_graph_node(r->g, i)->in[k].id + 1]++] = i;
}

static void keep(kr_reads *r, kr_value v) {
    r->kept[v.id] = true;
    r->last[r->root[v.id]] = r->nodes;
}

static void look(const kr_compilation *c, kr_reads *r) {
    const kr_graph *g = r->g;
    int heavy = 0;
    size_t bytes = 0;
    for (int i = 0; i < r->nodes; i++) {
        const kr_node *n = kr_graph_node(g, i);
        const bool view = n->op->flags & KR_OP_VIEW, source = kr_node_source(n) != KR_NOT_SOURCE;
        for (int k = 0; k < n->outputs; k++) {
            const uint32_t v = n->out[k].id;
            r->index[v] = i;
            r->root[v] = view ? r->root[n->in[0].id] : v;
            if (!view) r->last[v] = source ? r->nodes : i;
            if (!view && !source) bytes += kr_value_bytes(g, n->out[k]);
        }
        for (int k = 0; k < n->inputs && !view; k++)
            if (n->in[k].id && r->last[r->root[n->in[k].id]] < i) r->last[r->root[n->in[k].id]] = i;
        r->fusable[i] = may_be_instruction(g, n);
        heavy += !view && !source && !r->fusable[i];
        r->heavy[i] = heavy;
    }
    r->slack = bytes / SLACK;
    for (int i = 0; i < kr_graph_outputs(g); i++) keep(r, kr_graph_output_at(g, i)->value);
    for (int i = 0; i < kr_graph_assigns(g); i++) keep(r, kr_graph_assign_at(g, i)->value);
    for (int i = 0; i < c->param_count; i++)
        if (c->grads && c->grads[i].id) r->kept[c->grads[i].id] = true;
}

kr_status kr_reads_make(const kr_compilation *c, kr_reads *r) {
    *r = (kr_reads){.g = c->g, .target = c->options->target, .nodes = kr_graph_nodes(c->g), .values = kr_graph_values(c->g)};
    const size_t values = r->values + 4u, nodes = (size_t)r->nodes + 1;
    size_t reads = 0;
    for (int i = 0; i < r->nodes; i++) reads += (size_t)kr_graph_node(r->g, i)->inputs;
    r->index = calloc(values, sizeof *r->index);
    r->at = calloc(values, sizeof *r->at);
    r->list = calloc(reads + 1, sizeof *r->list);
    r->root = calloc(values, sizeof *r->root);
    r->last = calloc(values, sizeof *r->last);
    r->kept = calloc(values, sizeof *r->kept);
    r->fusable = calloc(nodes, sizeof *r->fusable);
    r->heavy = calloc(nodes, sizeof *r->heavy);
    KR_FAIL_IF(!r->index || !r->at || !r->list || !r->root || !r->last || !r->kept || !r->fusable || !r->heavy,
               KR_NO_MEMORY, "fuse: no memory for %zu values", values);
    list_readers(r);
    look(c, r);
    return KR_OK;
}

void kr_reads_free(kr_reads *r) {
    free(r->index), free(r->at), free(r->list), free(r->root), free(r->last), free(r->kept), free(r->fusable);
    free(r->heavy);
    *r = (kr_reads){0};
}

static bool each_reader(const kr_reads *r, kr_value v, bool direct, bool (*each)(void *, int, bool), void *context) {
    for (int k = r->at[v.id]; k < r->at[v.id + 1]; k++) {
        const kr_node *n = kr_graph_node(r->g, r->list[k]);
        if (!(n->op->flags & KR_OP_VIEW)) {
            if (!each(context, r->list[k], direct)) return false;
        } else if (!each_reader(r, n->out[0], false, each, context)) return false;
    }
    return true;
}

bool kr_reads_each(const kr_reads *r, kr_value v, bool (*each)(void *, int, bool), void *context) {
    return each_reader(r, v, true, each, context);
}

// Groups ----------------------------------------------------------------------------------------------------------

bool kr_group_has(const kr_group *s, int node) {
    for (int k = 0; k < s->count; k++)
        if (s->member[k] == node) return true;
    return false;
}

typedef struct outside {
    const kr_group *group;
    int first, last; ///< readers: the first one outside, and the last of all
    bool through_view;  ///< a member reads it through a view, which a program cannot
} outside;

static bool note_reader(void *context, int reader, bool direct) {
    outside *o = context;
    if (reader > o->last) o->last = reader;
    if (!kr_group_has(o->group, reader)) o->first = reader < o->first ? reader : o->first;
    else o->through_view |= !direct && reader != o->group->ending;
    return true;
}

/// Is a view of it kept? A view that is kept needs what it looks at.
static bool kept(const kr_reads *r, kr_value v) {
    if (r->kept[v.id]) return true;
    for (int k = r->at[v.id]; k < r->at[v.id + 1]; k++) {
        const kr_node *n = kr_graph_node(r->g, r->list[k]);
        if ((n->op->flags & KR_OP_VIEW) && kept(r, n->out[0])) return true;
    }
    return false;
}

bool kr_group_puts_out(const kr_reads *r, const kr_group *s, kr_value v) {
    outside o = {.group = s, .first = r->nodes, .last = -1};
    kr_reads_each(r, v, note_reader, &o);
    return o.first < r->nodes || kept(r, v);
}

/// Do heavy nodes run between the two places that are no members? Elementwise ones may yet join, and their values
/// vanish.
static bool others_between(const kr_reads *r, const kr_group *s, int from, int to) {
    if (!kr_work_between(r->heavy, from, to)) return false;
    int others = r->heavy[to - 1] - r->heavy[from];
    for (int k = 0; k < s->count; k++) others -= !r->fusable[s->member[k]] && s->member[k] > from && s->member[k] < to;
    return others > 0;
}

bool kr_group_may_form(const kr_reads *r, const kr_group *s) {
    const int place = s->member[s->count - 1];
    size_t longer = 0, gone = 0;
    uint32_t counted[4 * (KR_PROGRAM_LENGTH + 1)];
    int roots = 0;
    for (int k = 0; k < s->count; k++) {
        const kr_node *n = kr_graph_node(r->g, s->member[k]);
        for (int j = 0; j < n->outputs; j++) {
            outside o = {.group = s, .first = r->nodes, .last = -1};
            kr_reads_each(r, n->out[j], note_reader, &o);
            if (o.through_view || o.first < place) return false;
            if (o.first == r->nodes && !kept(r, n->out[j]) && others_between(r, s, s->member[k], o.last))
                gone += kr_value_bytes(r->g, n->out[j]);
        }
        for (int j = 0; j < n->inputs; j++) {
            const uint32_t root = r->root[n->in[j].id];
            if (!n->in[j].id || r->last[root] >= place || kr_group_has(s, r->index[root])) continue;
            bool again = false;
            for (int i = 0; i < roots && !again; i++) again = counted[i] == root;
            if (again || !others_between(r, s, r->last[root], place)) continue;
            if (roots < (int)(sizeof counted / sizeof *counted)) counted[roots++] = root;
            longer += kr_value_bytes(r->g, (kr_value){root});
        }
    }
    return longer <= gone + r->slack;
}

// The pass --------------------------------------------------------------------------------------------------------

kr_status kr_pass_fuse(kr_compilation *c) {
    static kr_status (*const parts[])(kr_compilation *, kr_reads *) = {kr_fuse_sums, kr_fuse_recompute,
                                                                       kr_fuse_programs};
    if (c->options->no_fuse) return KR_OK;
    for (int k = 0; k < 3; k++) {
        kr_reads r;
        KR_TRY(kr_graph_sort(c->g));
        kr_status status = kr_reads_make(c, &r);
        if (!status) status = parts[k](c, &r);
        kr_reads_free(&r);
        kr_graph_set_scope(c->g, NULL);
        KR_TRY(status);
        KR_TRY(kr_graph_status(c->g));
        KR_TRY(kr_graph_sort(c->g));
        kr_graph_prune(c->g);
        for (int i = 0; i < c->param_count; i++)
            if (c->grads && c->grads[i].id) c->grads[i] = kr_graph_current(c->g, c->grads[i]);
    }
    return KR_OK;
}
