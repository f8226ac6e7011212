/// Where every value lives: which buffer, and with what strides inside it. Views share the buffer of what they look at;
/// the inputs of a join (concat) are written by their producers straight into slices of its output where the producer
/// can write rows.
///
/// Rows that are read or written in slices begin on cache lines. In Mamba-2 the output of in_proj has 1,098 floats a
/// row: packed, every 64-byte access to any row but one in eight would straddle two lines and cost twice. Such a value
/// gets a pitch of whole lines, unless one of its readers could then not read it in place.
#include "compiler/memory/placement.h"

#include "compiler/impl.h"
#include "compiler/strides.h"

#include <stdlib.h>
#include <string.h>

static bool part_of(const kr_graph *g, const kr_node *view) {
    const kr_shape seen = kr_value_shape(g, view->out[0]), whole = kr_value_shape(g, view->in[0]);
    return kr_shape_count(&seen) < kr_shape_count(&whole);
}

/// Marks, by value id, what should have rows of whole lines: joined from pieces or read in parts, with wide rows that
/// are no whole lines by themselves, from an op that can write rows; no output or assigned value.
static void want_lines(const kr_target *t, const kr_uses *uses, bool *lines) {
    const kr_graph *g = uses->g;
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
        const bool own = !uses->named[v] && !(n->op->flags & (KR_OP_VIEW | KR_OP_SOURCE));
        lines[v] = own && row >= t->wide && row % t->line &&
                   kr_mask_has(kr_impl_of(t, n)->rows_out, kr_value_output(g, value));
    }
}

/// Takes the mark off values with a reader that cannot read them with such rows. Whether there was one.
static bool unmark_unreadable(const kr_target *t, const kr_graph *g, const kr_placement *placements, bool *lines) {
    bool any = false;
    for (int i = 0; i < kr_graph_nodes(g); i++) {
        const kr_node *n = kr_graph_node(g, i);
        for (int k = 0; k < n->inputs; k++) {
            const uint32_t v = n->in[k].id, root = v ? placements[v].root : 0;
            if (!root || !lines[root]) continue;
            const bool fine = n->op->flags & KR_OP_VIEW ? placements[n->out[0].id].root != 0
                                                        : kr_layout_accepted(t, n, k, &placements[v].layout);
            if (fine) continue;
            lines[root] = false;
            any = true;
        }
    }
    return any;
}

static kr_placement own_placement(const kr_target *t, const kr_graph *g, kr_value v, const bool *lines) {
    const kr_shape shape = kr_value_shape(g, v);
    kr_placement placement = {.root = v.id, .layout = kr_layout_packed(&shape)};
    if (!lines[v.id]) return placement;
    const int64_t line = (int64_t)t->line / (int64_t)kr_dtype_size(kr_value_dtype(g, v));
    int64_t step = (shape.dim[shape.rank - 1] + line - 1) / line * line;
    for (int k = shape.rank - 2; k >= 0; k--) {
        placement.layout.stride[k] = step;
        step *= shape.dim[k];
    }
    return placement;
}

/// Gives the inputs of join node j their places inside its output, where their producers can write there. A piece that
/// is another's value reshaped gives that value the place.
static void place_pieces(const kr_target *t, const kr_uses *uses, const kr_node *j, kr_placement *placements) {
    const kr_graph *g = uses->g;
    const kr_placement whole = placements[j->out[0].id];
    const int axis = (int)j->attrs.i[0];
    int64_t at = 0;
    for (int i = 0; i < j->inputs; i++) {
        kr_value v = j->in[i];
        const kr_node *producer = kr_value_node(g, v);
        kr_placement piece = whole;
        piece.layout.shape = kr_value_shape(g, v);
        piece.layout.offset += at * whole.layout.stride[axis];
        at += piece.layout.shape.dim[axis];
        bool placeable = !uses->named[v.id];
        while (placeable && (producer->op->flags & KR_OP_SAME_ORDER)) {
            const kr_shape before = kr_value_shape(g, producer->in[0]);
            const kr_layout seen = piece.layout;
            placeable = producer->op->view(&producer->attrs, &seen, &before, &piece.layout);
            v = producer->in[0];
            producer = kr_value_node(g, v);
            placeable &= !uses->named[v.id];
        }
        if (!placeable || placements[v.id].root || (producer->op->flags & (KR_OP_VIEW | KR_OP_SOURCE))) continue;
        const bool packed = kr_layout_contiguous(&piece.layout), rows = kr_layout_rows(&piece.layout);
        if (packed || (rows && kr_mask_has(kr_impl_of(t, producer)->rows_out, kr_value_output(g, v))))
            placements[v.id] = piece;
    }
}

static void place_all(const kr_target *t, const kr_uses *uses, const bool *lines, kr_placement *placements) {
    const kr_graph *g = uses->g;
    memset(placements, 0, (kr_graph_values(g) + 1u) * sizeof *placements);
    // Joins from last to first, so that a join inside a join finds its own place before its pieces look for theirs.
    for (int i = kr_graph_nodes(g) - 1; i >= 0; i--) {
        const kr_node *n = kr_graph_node(g, i);
        if (!(n->op->flags & KR_OP_JOIN)) continue;
        kr_placement *own = &placements[n->out[0].id];
        if (!own->root) *own = own_placement(t, g, n->out[0], lines);
        place_pieces(t, uses, n, placements);
    }
    for (int i = 0; i < kr_graph_nodes(g); i++) {
        const kr_node *n = kr_graph_node(g, i);
        for (int k = 0; k < n->outputs; k++) {
            const kr_value v = n->out[k];
            kr_placement *own = &placements[v.id];
            if (n->op->flags & KR_OP_VIEW) {
                const kr_shape shape = kr_value_shape(g, v);
                const kr_placement from = placements[n->in[0].id];
                kr_layout seen = from.layout;
                if (!n->op->view(&n->attrs, &from.layout, &shape, &seen)) continue; // nowhere: the layout pass copies
                *own = (kr_placement){.root = from.root, .layout = seen};
            } else if (!own->root) {
                *own = own_placement(t, g, v, lines);
                if (kr_node_source(n) == KR_SOURCE_CONST) memset(own->layout.stride, 0, sizeof own->layout.stride);
            }
        }
    }
}

kr_status kr_placements_find(const kr_target *t, const kr_uses *uses, kr_placement *placements) {
    const kr_graph *g = uses->g;
    bool *lines = calloc(uses->values + 1u, sizeof *lines);
    KR_FAIL_IF(!lines, KR_NO_MEMORY, "layout: no memory for %u values", uses->values);
    want_lines(t, uses, lines);
    do place_all(t, uses, lines, placements);
    while (unmark_unreadable(t, g, placements, lines));
    free(lines);
    return KR_OK;
}

size_t kr_placement_bytes(const kr_graph *g, const kr_placement *placements, uint32_t root) {
    const kr_layout *l = &placements[root].layout;
    int64_t last = 0;
    if (!kr_shape_count(&l->shape)) return 0;
    for (int k = 0; k < l->shape.rank; k++) last += (l->shape.dim[k] - 1) * l->stride[k];
    return (size_t)(last + 1) * kr_dtype_size(kr_value_dtype(g, (kr_value){root}));
}
