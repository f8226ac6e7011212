/// Where every value lives: which buffer, and with what strides inside it. Views share the buffer of what they look at;
/// the inputs of a join (concat) are written by their producers straight into slices of its output where the producer
/// can write rows.
///
/// Rows that are read or written in slices begin on cache lines. In Mamba-2 the output of in_proj has 1,098 floats a
/// row: packed, every 64-byte access to any row but one in eight would straddle two lines and cost twice. Such a value
/// gets a pitch of whole lines, unless one of its readers could then not read it in place.
#include "compiler/internal.h"

#include <stdlib.h>
#include <string.h>

int *kr_root_uses(const kr_graph *g) {
    int *uses = calloc(kr_graph_values(g) + 1u, sizeof *uses);
    if (!uses) return NULL;
    for (int i = 0; i < kr_graph_outputs(g); i++) uses[kr_graph_output_at(g, i)->value.id]++;
    for (int i = 0; i < kr_graph_assigns(g); i++) uses[kr_graph_assign_at(g, i)->value.id]++;
    return uses;
}

static bool part_of(const kr_graph *g, const kr_node *view) {
    const kr_shape seen = kr_value_shape(g, view->out[0]), whole = kr_value_shape(g, view->in[0]);
    return kr_shape_count(&seen) < kr_shape_count(&whole);
}

/// Marks, by value id, what should have rows of whole lines: joined from pieces or read in parts, with wide rows that
/// are no whole lines by themselves, from an op that can write rows; no output or assigned value.
static void want_lines(const kr_target *t, const kr_graph *g, const int *uses, bool *lines) {
    for (int i = 0; i < kr_graph_nodes(g); i++) {
        const kr_node *n = kr_graph_node(g, i);
        if ((n->op->flags & KR_OP_VIEW) && part_of(g, n)) lines[n->in[0].id] = true;
        const bool of_rows = (n->op->flags & KR_OP_JOIN) && n->attrs.i[0] == kr_value_shape(g, n->out[0]).rank - 1;
        if (of_rows) lines[n->out[0].id] = true;
    }
    for (uint32_t v = 1; v <= kr_graph_values(g); v++) {
        if (!lines[v]) continue;
        const kr_value value = {v};
        const kr_node *n = kr_value_node(g, value);
        const kr_shape shape = kr_value_shape(g, value);
        const int64_t columns = shape.rank > 1 ? shape.dim[shape.rank - 1] : 0;
        const size_t row = (size_t)columns * kr_dtype_size(kr_value_dtype(g, value));
        lines[v] = row >= t->wide && row % t->line && !uses[v] && !(n->op->flags & (KR_OP_VIEW | KR_OP_SOURCE)) &&
                   kr_mask_has(kr_impl_of(t, n)->rows_out, kr_value_output(g, value));
    }
}

/// Takes the mark off values with a reader that cannot read them with such rows. Whether there was one.
static bool unmark_unreadable(const kr_target *t, const kr_graph *g, const kr_home *homes, bool *lines) {
    bool any = false;
    for (int i = 0; i < kr_graph_nodes(g); i++) {
        const kr_node *n = kr_graph_node(g, i);
        for (int k = 0; k < n->inputs; k++) {
            const uint32_t v = n->in[k].id, root = v ? homes[v].root : 0;
            if (!root || !lines[root]) continue;
            const bool fine = n->op->flags & KR_OP_VIEW ? homes[n->out[0].id].root != 0
                                                        : kr_layout_accepted(t, n, k, &homes[v].layout);
            if (fine) continue;
            lines[root] = false;
            any = true;
        }
    }
    return any;
}

static kr_home own_home(const kr_target *t, const kr_graph *g, kr_value v, const bool *lines) {
    const kr_shape shape = kr_value_shape(g, v);
    kr_home home = {.root = v.id, .layout = kr_layout_packed(&shape)};
    if (!lines[v.id]) return home;
    const int64_t line = (int64_t)t->line / (int64_t)kr_dtype_size(kr_value_dtype(g, v));
    int64_t step = (shape.dim[shape.rank - 1] + line - 1) / line * line;
    for (int k = shape.rank - 2; k >= 0; k--) {
        home.layout.stride[k] = step;
        step *= shape.dim[k];
    }
    return home;
}

/// Gives the inputs of join node j their places inside its output, where their producers can write there. A piece that
/// is another's value reshaped gives that value the place.
static void place_pieces(const kr_target *t, const kr_graph *g, const kr_node *j, const int *uses, kr_home *homes) {
    const kr_home whole = homes[j->out[0].id];
    const int axis = (int)j->attrs.i[0];
    int64_t at = 0;
    for (int i = 0; i < j->inputs; i++) {
        kr_value v = j->in[i];
        const kr_node *producer = kr_value_node(g, v);
        kr_home home = whole;
        home.layout.shape = kr_value_shape(g, v);
        home.layout.offset += at * whole.layout.stride[axis];
        at += home.layout.shape.dim[axis];
        bool placeable = !uses[v.id];
        while (placeable && (producer->op->flags & KR_OP_SAME_ORDER)) {
            const kr_shape before = kr_value_shape(g, producer->in[0]);
            const kr_layout seen = home.layout;
            placeable = producer->op->view(&producer->attrs, &seen, &before, &home.layout);
            v = producer->in[0];
            producer = kr_value_node(g, v);
            placeable &= !uses[v.id];
        }
        if (!placeable || homes[v.id].root || kr_node_source(producer) || (producer->op->flags & KR_OP_VIEW)) continue;
        const bool packed = kr_layout_contiguous(&home.layout), rows = kr_layout_rows(&home.layout);
        if (packed || (rows && kr_mask_has(kr_impl_of(t, producer)->rows_out, kr_value_output(g, v)))) homes[v.id] = home;
    }
}

static void place_all(const kr_target *t, const kr_graph *g, const int *uses, const bool *lines, kr_home *homes) {
    memset(homes, 0, (kr_graph_values(g) + 1u) * sizeof *homes);
    // Joins from last to first, so that a join inside a join finds its own place before its pieces look for theirs.
    for (int i = kr_graph_nodes(g) - 1; i >= 0; i--) {
        const kr_node *n = kr_graph_node(g, i);
        if (!(n->op->flags & KR_OP_JOIN)) continue;
        kr_home *home = &homes[n->out[0].id];
        if (!home->root) *home = own_home(t, g, n->out[0], lines);
        place_pieces(t, g, n, uses, homes);
    }
    for (int i = 0; i < kr_graph_nodes(g); i++) {
        const kr_node *n = kr_graph_node(g, i);
        for (int k = 0; k < n->outputs; k++) {
            const kr_value v = n->out[k];
            kr_home *home = &homes[v.id];
            if (n->op->flags & KR_OP_VIEW) {
                const kr_shape shape = kr_value_shape(g, v);
                const kr_home from = homes[n->in[0].id];
                kr_layout seen = from.layout;
                if (!n->op->view(&n->attrs, &from.layout, &shape, &seen)) continue; // no home: the layout pass copies
                *home = (kr_home){.root = from.root, .layout = seen};
            } else if (!home->root) {
                *home = own_home(t, g, v, lines);
                if (kr_node_source(n) == KR_SOURCE_CONST) memset(home->layout.stride, 0, sizeof home->layout.stride);
            }
        }
    }
}

kr_status kr_homes(const kr_target *t, const kr_graph *g, kr_home *homes) {
    int *uses = kr_root_uses(g);
    bool *lines = calloc(kr_graph_values(g) + 1u, sizeof *lines);
    if (uses && lines) {
        want_lines(t, g, uses, lines);
        do place_all(t, g, uses, lines, homes);
        while (unmark_unreadable(t, g, homes, lines));
    }
    const bool done = uses && lines;
    free(uses);
    free(lines);
    KR_FAIL_IF(!done, KR_NO_MEMORY, "layout: no memory for %u values", kr_graph_values(g));
    return KR_OK;
}

size_t kr_home_bytes(const kr_graph *g, const kr_home *homes, uint32_t root) {
    const kr_layout *l = &homes[root].layout;
    int64_t last = 0;
    if (!kr_shape_count(&l->shape)) return 0;
    for (int k = 0; k < l->shape.rank; k++) last += (l->shape.dim[k] - 1) * l->stride[k];
    return (size_t)(last + 1) * kr_dtype_size(kr_value_dtype(g, (kr_value){root}));
}
