/// Fusion: what several nodes do in several passes over memory becomes one.
///
/// First additions go into the products and norms that can take them, then cheap values that are needed again much
/// later (in the backward pass) are recomputed there when what they come from is alive anyway, and last elementwise
/// nodes are gathered into tile programs.
///
/// Nodes that become one run where the last of them stood. That is legal when nobody outside of the group reads one of
/// its values before that place, and then no number of groups can make a cycle: give every node the place of its
/// group's last member; along every edge between groups places grow.
///
/// Waiting for the last member keeps inputs of the earlier ones alive. A group is only formed when the buffers that
/// live longer for it, with other steps in between, weigh no more than the values that need no buffer any longer.
#include "compiler/fuse/fuse.h"

#include <stdlib.h>

enum { SLACK = 2000 }; ///< a group may cost this part of all bytes: buffers far smaller than the rest do not decide

static bool may_be_instruction(const kr_graph *g, const kr_node *n) {
    if (!kr_program_takes(n->op, NULL)) return false;
    for (int k = 0; k < n->inputs; k++)
        if (kr_value_dtype(g, n->in[k]) != KR_F32) return false;
    return true;
}

static void look(kr_fusion *r) {
    int heavy = 0;
    size_t bytes = 0;
    for (int i = 0; i < r->uses.nodes; i++) {
        const kr_node *n = kr_graph_node(r->g, i);
        const bool view = n->op->flags & KR_OP_VIEW, source = n->op->flags & KR_OP_SOURCE;
        for (int k = 0; k < n->outputs; k++) {
            const kr_value v = n->out[k];
            r->last[v.id] = source ? r->uses.nodes : r->uses.last[v.id];
            if (!view && !source) bytes += kr_value_bytes(r->g, v);
        }
        r->fusable[i] = may_be_instruction(r->g, n);
        heavy += !view && !source && !r->fusable[i];
        r->heavy[i] = heavy;
    }
    r->slack = bytes / SLACK;
}

static kr_status fusion_find(const kr_compilation *c, kr_fusion *r) {
    *r = (kr_fusion){.g = c->g, .target = c->options->target};
    KR_TRY(kr_uses_find(c->g, c->grads, c->param_count, &r->uses));
    const size_t values = r->uses.values + 1u, nodes = (size_t)r->uses.nodes + 1;
    r->last = calloc(values, sizeof *r->last);
    r->fusable = calloc(nodes, sizeof *r->fusable);
    r->heavy = calloc(nodes, sizeof *r->heavy);
    KR_FAIL_IF(!r->last || !r->fusable || !r->heavy, KR_NO_MEMORY, "fuse: no memory for %zu values", values);
    look(r);
    return KR_OK;
}

static void fusion_free(kr_fusion *r) {
    kr_uses_free(&r->uses);
    free(r->last), free(r->fusable), free(r->heavy);
}

// The pass --------------------------------------------------------------------------------------------------------

kr_status kr_pass_fuse(kr_compilation *c) {
    static kr_status (*const parts[])(kr_compilation *, kr_fusion *) = {kr_fuse_sums, kr_fuse_cheap, kr_fuse_programs};
    if (c->options->no_fuse) return KR_OK;
    for (int k = 0; k < 3; k++) {
        kr_fusion r;
        KR_TRY(kr_graph_sort(c->g));
        kr_status status = fusion_find(c, &r);
        if (!status) status = parts[k](c, &r);
        fusion_free(&r);
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
