/// Joins: concat, pad and copy. They are the ops that move memory without computing; the planner makes concat free
/// where the producers of its inputs can write straight into their slice of its output.
///
/// The gradient of a value that was split into slices arrives as a sum of pads, one per slice. kr_join_of_sum turns
/// such a sum into one concat of the pieces, so that each piece is written once, in its place, and nothing is added.
#include "ops/graph/internal.h"
#include "ops/view/view.h"

extern const kr_op kr_op_slice, kr_op_concat, kr_op_pad, kr_op_copy;

/// Written once, read once.
static void copy_cost(const kr_attrs *attrs, const kr_shape *in, const kr_shape *out, int inputs, double *flops,
                      double *bytes) {
    (void)attrs;
    *flops = 0;
    *bytes = 4.0 * (double)kr_shape_count(out);
    for (int i = 0; i < inputs; i++) *bytes += 4.0 * (double)kr_shape_count(&in[i]);
}

// concat ----------------------------------------------------------------------------------------------------------

static kr_status concat_shape(const kr_attrs *attrs, const kr_shape *in_shape, const kr_dtype *in_dtype, int inputs,
                              kr_shape *out_shape, kr_dtype *out_dtype) {
    const int64_t axis = attrs->i[0];
    KR_TRY(kr_check_axis("concat", axis, in_shape));
    out_shape[0] = in_shape[0];
    out_dtype[0] = in_dtype[0];
    for (int i = 1; i < inputs; i++) {
        kr_shape s = in_shape[i];
        KR_FAIL_IF(s.rank != in_shape->rank, KR_BAD_SHAPE, "concat: input %d has rank %d, want %d", i, s.rank,
                   in_shape->rank);
        KR_FAIL_IF(in_dtype[i] != in_dtype[0], KR_BAD_SHAPE, "concat: input %d is %s, want %s", i,
                   kr_dtype_name(in_dtype[i]), kr_dtype_name(in_dtype[0]));
        out_shape[0].dim[axis] += s.dim[axis];
        s.dim[axis] = in_shape->dim[axis];
        KR_FAIL_IF(!kr_shape_equal(&s, in_shape), KR_BAD_SHAPE,
                   "concat: input %d differs from input 0 in another axis than %lld", i, (long long)axis);
    }
    return KR_OK;
}

static void grad_concat(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *din) {
    int64_t start = 0;
    for (int i = 0; i < n->inputs; i++) {
        const int64_t length = kr_value_shape(g, n->in[i]).dim[n->attrs.i[0]];
        din[i] = kr_slice(g, dout[0], (int)n->attrs.i[0], start, length);
        start += length;
    }
}

/// The value whose slices, in order and without a gap, the inputs are; or the empty value.
static kr_value put_together(const kr_graph *g, const kr_node *n) {
    const int64_t axis = n->attrs.i[0];
    const kr_node *first = kr_value_node(g, n->in[0]);
    int64_t at = 0;
    for (int i = 0; i < n->inputs; i++) {
        const kr_node *s = kr_value_node(g, n->in[i]);
        if (s->op != &kr_op_slice || s->in[0].id != first->in[0].id || s->attrs.i[0] != axis || s->attrs.i[1] != at)
            return KR_NONE;
        at += s->attrs.i[2];
    }
    return at == kr_value_shape(g, first->in[0]).dim[axis] ? first->in[0] : KR_NONE;
}

static kr_value simplify_concat(kr_graph *g, const kr_node *n) {
    return n->inputs == 1 ? n->in[0] : put_together(g, n);
}

const kr_op kr_op_concat = {
    .name = "concat", .inputs = 1, .outputs = 1, .flags = KR_OP_VARIADIC | KR_OP_CHEAP | KR_OP_JOIN,
    .attr.i = {"axis"}, .shape = concat_shape, .grad = grad_concat, .simplify = simplify_concat, .cost = copy_cost,
};

kr_value (kr_concat)(kr_graph *g, const kr_value *v, int count, int axis) {
    if (!g->status && count < 1) kr_graph_fail_with(g, KR_BAD_ARGUMENT, "concat: no inputs, want at least 1");
    if (g->status || !kr_take_axis(g, &kr_op_concat, v[0], &axis)) return KR_NONE;
    return kr_append(g, &kr_op_concat, &(kr_attrs){.i = {axis}}, v, count);
}

// pad -------------------------------------------------------------------------------------------------------------

static kr_status pad_shape(const kr_attrs *attrs, const kr_shape *in_shape, const kr_dtype *in_dtype, int inputs,
                           kr_shape *out_shape, kr_dtype *out_dtype) {
    (void)inputs;
    KR_TRY(kr_check_axis("pad", attrs->i[0], in_shape));
    KR_FAIL_IF(attrs->i[1] < 0 || attrs->i[2] < 0, KR_BAD_ARGUMENT,
               "pad: %lld before and %lld after, want none negative", (long long)attrs->i[1], (long long)attrs->i[2]);
    out_shape[0] = in_shape[0];
    out_shape[0].dim[attrs->i[0]] += attrs->i[1] + attrs->i[2];
    out_dtype[0] = in_dtype[0];
    return KR_OK;
}

static void grad_pad(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *din) {
    const int64_t axis = n->attrs.i[0];
    din[0] = kr_slice(g, dout[0], (int)axis, n->attrs.i[1], kr_value_shape(g, n->in[0]).dim[axis]);
}

static kr_value simplify_pad(kr_graph *g, const kr_node *n) {
    const kr_node *inner = kr_value_node(g, n->in[0]);
    if (!n->attrs.i[1] && !n->attrs.i[2]) return n->in[0];
    if (inner->op != n->op || inner->attrs.i[0] != n->attrs.i[0]) return KR_NONE;
    return (kr_pad)(g, inner->in[0], (int)n->attrs.i[0], n->attrs.i[1] + inner->attrs.i[1],
                    n->attrs.i[2] + inner->attrs.i[2]);
}

const kr_op kr_op_pad = {
    .name = "pad", .inputs = 1, .outputs = 1, .flags = KR_OP_CHEAP, .attr.i = {"axis", "before", "after"},
    .shape = pad_shape, .grad = grad_pad, .simplify = simplify_pad, .cost = copy_cost,
};

kr_value (kr_pad)(kr_graph *g, kr_value v, int axis, int64_t before, int64_t after) {
    if (!kr_take_axis(g, &kr_op_pad, v, &axis)) return KR_NONE;
    return kr_append(g, &kr_op_pad, &(kr_attrs){.i = {axis, before, after}}, &v, 1);
}

// copy ------------------------------------------------------------------------------------------------------------

static kr_status copy_shape(const kr_attrs *attrs, const kr_shape *in_shape, const kr_dtype *in_dtype, int inputs,
                            kr_shape *out_shape, kr_dtype *out_dtype) {
    (void)attrs, (void)inputs;
    out_shape[0] = in_shape[0];
    out_dtype[0] = in_dtype[0];
    return KR_OK;
}

static void grad_copy(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *din) {
    (void)g, (void)n;
    din[0] = dout[0];
}

static kr_value simplify_copy(kr_graph *g, const kr_node *n) {
    return kr_value_node(g, n->in[0])->op == n->op ? n->in[0] : KR_NONE;
}

const kr_op kr_op_copy = {
    .name = "copy", .inputs = 1, .outputs = 1, .flags = KR_OP_CHEAP, .shape = copy_shape, .grad = grad_copy,
    .simplify = simplify_copy, .cost = copy_cost,
};

kr_value (kr_copy)(kr_graph *g, kr_value v) { return kr_append(g, &kr_op_copy, &(kr_attrs){0}, &v, 1); }

// Sums of pads ----------------------------------------------------------------------------------------------------

typedef struct piece {
    kr_value value;
    int64_t start, length;
} piece;

static void add_piece(const kr_graph *g, piece *pieces, int *count, kr_value v, int64_t axis, int64_t start) {
    const int64_t length = kr_value_shape(g, v).dim[axis];
    double splat;
    if (!length || (kr_value_is_splat(g, v, &splat) && splat == 0)) return;
    int at = (*count)++;
    for (; at > 0 && pieces[at - 1].start > start; at--) pieces[at] = pieces[at - 1];
    pieces[at] = (piece){v, start, length};
}

static bool is_join(const kr_node *n) { return n->op == &kr_op_pad || n->op == &kr_op_concat; }

static void add_pieces(const kr_graph *g, const kr_node *n, piece *pieces, int *count) {
    int64_t start = n->op == &kr_op_pad ? n->attrs.i[1] : 0;
    for (int i = 0; i < n->inputs; i++) {
        add_piece(g, pieces, count, n->in[i], n->attrs.i[0], start);
        start += kr_value_shape(g, n->in[i]).dim[n->attrs.i[0]];
    }
}

kr_value kr_join_of_sum(kr_graph *g, kr_value x, kr_value y) {
    const kr_node *a = kr_value_node(g, x), *b = kr_value_node(g, y);
    if (!is_join(a) || !is_join(b) || a->attrs.i[0] != b->attrs.i[0]) return KR_NONE;
    const int64_t axis = a->attrs.i[0];
    const size_t most = (size_t)(a->inputs + b->inputs);
    piece *pieces = kr_pool_take(g->pool, most * sizeof *pieces);
    kr_value *parts = kr_pool_take(g->pool, (2 * most + 1) * sizeof *parts);
    if (!pieces || !parts) return KR_NONE; // an economy only
    int count = 0, parts_count = 0;
    add_pieces(g, a, pieces, &count);
    add_pieces(g, b, pieces, &count);
    for (int i = 1; i < count; i++)
        if (pieces[i].start < pieces[i - 1].start + pieces[i - 1].length) return KR_NONE;
    if (count < 2) return KR_NONE;
    kr_shape gap = kr_value_shape(g, x);
    const int64_t whole = gap.dim[axis];
    const kr_dtype dtype = kr_value_dtype(g, x);
    int64_t at = 0;
    for (int i = 0; i <= count; i++) {
        const int64_t next = i < count ? pieces[i].start : whole;
        gap.dim[axis] = next - at;
        if (next > at) parts[parts_count++] = (kr_const)(g, 0, dtype, gap);
        if (i == count) break;
        parts[parts_count++] = pieces[i].value;
        at = next + pieces[i].length;
    }
    return (kr_concat)(g, parts, parts_count, (int)axis);
}
