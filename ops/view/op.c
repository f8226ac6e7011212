/// Views. reshape, slice, transpose and broadcast move no memory: they are rules that turn the strides of their input
/// into the strides of their output. What strides cannot say (a reshape across a gap) the compiler copies first.
/// Gradients: of a slice a pad, of a broadcast a sum, of a reshape or transpose the way back.
#include "ops/graph/internal.h"
#include "ops/view/view.h"

extern const kr_op kr_op_reshape, kr_op_slice, kr_op_transpose, kr_op_broadcast, kr_op_stop_gradient, kr_op_concat,
    kr_op_pad;

bool kr_broadcast_shape(const kr_shape *a, const kr_shape *b, kr_shape *out) {
    *out = (kr_shape){.rank = a->rank > b->rank ? a->rank : b->rank};
    for (int k = 1; k <= out->rank; k++) {
        const int64_t p = k <= a->rank ? a->dim[a->rank - k] : 1, q = k <= b->rank ? b->dim[b->rank - k] : 1;
        if (p != q && p != 1 && q != 1) return false;
        out->dim[out->rank - k] = p == 1 ? q : p;
    }
    return true;
}

static void no_cost(const kr_attrs *attrs, const kr_shape *in, const kr_shape *out, int inputs, double *flops,
                    double *bytes) {
    (void)attrs, (void)in, (void)out, (void)inputs;
    *flops = *bytes = 0;
}

kr_status kr_check_axis(const char *op, int64_t axis, const kr_shape *s) {
    KR_FAIL_IF(axis < 0 || axis >= s->rank, KR_BAD_SHAPE, "%s: axis %lld, want 0 to %d", op, (long long)axis,
               s->rank - 1);
    return KR_OK;
}

bool kr_take_axis(kr_graph *g, const kr_op *op, kr_value v, int *axis) {
    if (g->status) return false;
    if (!v.id || v.id > kr_graph_values(g)) {
        kr_append(g, op, &(kr_attrs){0}, &v, 1); // fails, and says why
        return false;
    }
    const kr_shape s = kr_value_shape(g, v);
    char text[160];
    if (*axis < 0) *axis += s.rank;
    if (*axis >= 0 && *axis < s.rank) return true;
    kr_graph_fail_with(g, KR_BAD_SHAPE, "%s: there is no such axis in %s", op->name, kr_shape_text(&s, text));
    return false;
}

// reshape ---------------------------------------------------------------------------------------------------------

static kr_status reshape_shape(const kr_attrs *attrs, const kr_shape *in_shape, const kr_dtype *in_dtype, int inputs,
                               kr_shape *out_shape, kr_dtype *out_dtype) {
    (void)inputs;
    char text[160];
    KR_FAIL_IF(attrs->shape.rank < 0 || attrs->shape.rank > KR_MAX_RANK ||
                   kr_tensor_bytes(KR_U8, &attrs->shape) == SIZE_MAX ||
                   kr_shape_count(&attrs->shape) != kr_shape_count(in_shape),
               KR_BAD_SHAPE, "reshape: want %lld elements, not shape %s", (long long)kr_shape_count(in_shape),
               kr_shape_text(&attrs->shape, text));
    out_shape[0] = attrs->shape;
    out_dtype[0] = in_dtype[0];
    return KR_OK;
}

/// Old and new axes are matched in groups of equal product; inside a group the old axes must be one run.
static bool reshape_view(const kr_attrs *attrs, const kr_layout *in, const kr_shape *out_shape, kr_layout *out) {
    (void)attrs;
    int64_t dim[KR_MAX_RANK], stride[KR_MAX_RANK];
    int olds = 0;
    kr_layout seen = {.shape = *out_shape, .offset = in->offset};
    for (int k = 0; k < in->shape.rank; k++) {
        if (in->shape.dim[k] == 1) continue;
        dim[olds] = in->shape.dim[k];
        stride[olds++] = in->stride[k];
    }
    int64_t step = 1;
    for (int k = out_shape->rank - 1; k >= 0; k--) {
        seen.stride[k] = step;
        step *= out_shape->dim[k];
    }
    if (kr_shape_count(out_shape)) {
        for (int old = 0, new = 0; old < olds;) {
            int old_end = old + 1, new_end = new + 1;
            int64_t p = dim[old], q = out_shape->dim[new];
            while (p != q) {
                if (p < q) p *= dim[old_end++];
                else q *= out_shape->dim[new_end++];
            }
            for (int k = old; k + 1 < old_end; k++)
                if (stride[k] != stride[k + 1] * dim[k + 1]) return false;
            step = stride[old_end - 1];
            for (int k = new_end - 1; k >= new; k--) {
                seen.stride[k] = step;
                step *= out_shape->dim[k];
            }
            old = old_end;
            new = new_end;
        }
    }
    *out = seen;
    return true;
}

static void grad_reshape(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *din) {
    din[0] = kr_reshape(g, dout[0], kr_value_shape(g, n->in[0]));
}

static kr_value simplify_reshape(kr_graph *g, const kr_node *n) {
    const kr_node *inner = kr_value_node(g, n->in[0]);
    const kr_shape s = kr_value_shape(g, n->in[0]);
    if (kr_shape_equal(&s, &n->attrs.shape)) return n->in[0];
    return inner->op == n->op ? (kr_reshape)(g, inner->in[0], n->attrs.shape) : KR_NONE;
}

const kr_op kr_op_reshape = {.name = "reshape", .inputs = 1, .outputs = 1,
    .flags = KR_OP_VIEW | KR_OP_CHEAP | KR_OP_SAME_ORDER, .attr.shape = "shape",
    .shape = reshape_shape, .grad = grad_reshape, .simplify = simplify_reshape, .view = reshape_view, .cost = no_cost};

kr_value (kr_reshape)(kr_graph *g, kr_value v, kr_shape shape) {
    if (g->status) return KR_NONE;
    const kr_shape s = kr_value_shape(g, v);
    int64_t known = 1;
    int open = -1;
    for (int k = 0; k < shape.rank && k < KR_MAX_RANK; k++) {
        if (shape.dim[k] == -1 && open < 0) open = k;
        else known *= shape.dim[k];
    }
    if (open >= 0 && known > 0 && s.rank >= 0 && kr_shape_count(&s) % known == 0)
        shape.dim[open] = kr_shape_count(&s) / known;
    if (v.id && kr_shape_equal(&s, &shape)) return v;
    return kr_append(g, &kr_op_reshape, &(kr_attrs){.shape = shape}, &v, 1);
}

// slice -----------------------------------------------------------------------------------------------------------

static kr_status slice_shape(const kr_attrs *attrs, const kr_shape *in_shape, const kr_dtype *in_dtype, int inputs,
                             kr_shape *out_shape, kr_dtype *out_dtype) {
    (void)inputs;
    const int64_t axis = attrs->i[0], start = attrs->i[1], length = attrs->i[2];
    KR_TRY(kr_check_axis("slice", axis, in_shape));
    KR_FAIL_IF(start < 0 || length < 0 || start > in_shape->dim[axis] || length > in_shape->dim[axis] - start,
               KR_BAD_SHAPE, "slice: want a range inside 0 to %lld, not %lld elements from %lld",
               (long long)in_shape->dim[axis], (long long)length, (long long)start);
    out_shape[0] = in_shape[0];
    out_shape[0].dim[axis] = length;
    out_dtype[0] = in_dtype[0];
    return KR_OK;
}

static bool slice_view(const kr_attrs *attrs, const kr_layout *in, const kr_shape *out_shape, kr_layout *out) {
    *out = *in;
    out->shape = *out_shape;
    out->offset += attrs->i[1] * in->stride[attrs->i[0]];
    return true;
}

static void grad_slice(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *din) {
    const int64_t axis = n->attrs.i[0], start = n->attrs.i[1], length = n->attrs.i[2];
    const kr_shape s = kr_value_shape(g, n->in[0]);
    din[0] = kr_pad(g, dout[0], (int)axis, start, s.dim[axis] - start - length);
}

/// The input of join `n` that lies exactly at [start, start + length), or the empty value.
static kr_value exact_piece(const kr_graph *g, const kr_node *n, int64_t start, int64_t length) {
    int64_t at = 0;
    for (int i = 0; i < n->inputs && at <= start; i++) {
        const int64_t piece = kr_value_shape(g, n->in[i]).dim[n->attrs.i[0]];
        if (at == start && piece == length) return n->in[i];
        at += piece;
    }
    return KR_NONE;
}

static kr_value simplify_slice(kr_graph *g, const kr_node *n) {
    const kr_node *inner = kr_value_node(g, n->in[0]);
    const int64_t axis = n->attrs.i[0], start = n->attrs.i[1], length = n->attrs.i[2];
    const kr_shape s = kr_value_shape(g, n->in[0]);
    if (length == s.dim[axis]) return n->in[0];
    if (!inner->inputs || inner->attrs.i[0] != axis) return KR_NONE;
    if (inner->op == n->op) return (kr_slice)(g, inner->in[0], (int)axis, inner->attrs.i[1] + start, length);
    if (inner->op == &kr_op_concat) return exact_piece(g, inner, start, length);
    if (inner->op != &kr_op_pad) return KR_NONE;
    const int64_t before = inner->attrs.i[1], whole = kr_value_shape(g, inner->in[0]).dim[axis];
    const bool inside = start >= before && start + length <= before + whole;
    return inside ? (kr_slice)(g, inner->in[0], (int)axis, start - before, length) : KR_NONE;
}

const kr_op kr_op_slice = {.name = "slice", .inputs = 1, .outputs = 1, .flags = KR_OP_VIEW | KR_OP_CHEAP,
    .attr.i = {"axis", "start", "length"}, .shape = slice_shape, .grad = grad_slice,
    .simplify = simplify_slice, .view = slice_view, .cost = no_cost};

kr_value (kr_slice)(kr_graph *g, kr_value v, int axis, int64_t start, int64_t length) {
    if (!kr_take_axis(g, &kr_op_slice, v, &axis)) return KR_NONE;
    return kr_append(g, &kr_op_slice, &(kr_attrs){.i = {axis, start, length}}, &v, 1);
}

void (kr_split)(kr_graph *g, kr_value v, int axis, const int64_t *lengths, int count, kr_value *pieces) {
    for (int i = 0; i < count; i++) pieces[i] = KR_NONE;
    if (!kr_take_axis(g, &kr_op_slice, v, &axis)) return;
    const int64_t whole = kr_value_shape(g, v).dim[axis];
    int64_t sum = 0;
    for (int i = 0; i < count; i++) sum += lengths[i];
    if (sum != whole) {
        kr_graph_fail_with(g, KR_BAD_SHAPE, "split: the pieces have %lld elements together, want %lld", (long long)sum,
                           (long long)whole);
        return;
    }
    int64_t start = 0;
    for (int i = 0; i < count; i++) {
        pieces[i] = (kr_slice)(g, v, axis, start, lengths[i]);
        start += lengths[i];
    }
}

// transpose -------------------------------------------------------------------------------------------------------

static kr_status transpose_shape(const kr_attrs *attrs, const kr_shape *in_shape, const kr_dtype *in_dtype, int inputs,
                                 kr_shape *out_shape, kr_dtype *out_dtype) {
    (void)inputs;
    KR_TRY(kr_check_axis("transpose", attrs->i[0], in_shape));
    KR_TRY(kr_check_axis("transpose", attrs->i[1], in_shape));
    out_shape[0] = in_shape[0];
    out_shape[0].dim[attrs->i[0]] = in_shape->dim[attrs->i[1]];
    out_shape[0].dim[attrs->i[1]] = in_shape->dim[attrs->i[0]];
    out_dtype[0] = in_dtype[0];
    return KR_OK;
}

static bool transpose_view(const kr_attrs *attrs, const kr_layout *in, const kr_shape *out_shape, kr_layout *out) {
    const kr_layout from = *in;
    *out = from;
    out->shape = *out_shape;
    out->stride[attrs->i[0]] = from.stride[attrs->i[1]];
    out->stride[attrs->i[1]] = from.stride[attrs->i[0]];
    return true;
}

static void grad_transpose(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *din) {
    din[0] = kr_transpose(g, dout[0], (int)n->attrs.i[0], (int)n->attrs.i[1]);
}

static kr_value simplify_transpose(kr_graph *g, const kr_node *n) {
    const kr_node *inner = kr_value_node(g, n->in[0]);
    if (n->attrs.i[0] == n->attrs.i[1]) return n->in[0];
    const bool twice = inner->op == n->op && inner->attrs.i[0] == n->attrs.i[0] && inner->attrs.i[1] == n->attrs.i[1];
    return twice ? inner->in[0] : KR_NONE;
}

const kr_op kr_op_transpose = {.name = "transpose", .inputs = 1, .outputs = 1, .flags = KR_OP_VIEW | KR_OP_CHEAP,
    .attr.i = {"a", "b"}, .shape = transpose_shape, .grad = grad_transpose,
    .simplify = simplify_transpose, .view = transpose_view, .cost = no_cost};

kr_value (kr_transpose)(kr_graph *g, kr_value v, int axis_a, int axis_b) {
    if (!kr_take_axis(g, &kr_op_transpose, v, &axis_a) || !kr_take_axis(g, &kr_op_transpose, v, &axis_b))
        return KR_NONE;
    const int a = axis_a < axis_b ? axis_a : axis_b, b = axis_a < axis_b ? axis_b : axis_a;
    return kr_append(g, &kr_op_transpose, &(kr_attrs){.i = {a, b}}, &v, 1);
}

// broadcast -------------------------------------------------------------------------------------------------------

static kr_status broadcast_shape(const kr_attrs *attrs, const kr_shape *in_shape, const kr_dtype *in_dtype, int inputs,
                                 kr_shape *out_shape, kr_dtype *out_dtype) {
    (void)inputs;
    char text[160];
    kr_shape both;
    const bool fits = attrs->shape.rank >= 0 && attrs->shape.rank <= KR_MAX_RANK &&
                      kr_tensor_bytes(KR_F64, &attrs->shape) != SIZE_MAX &&
                      kr_broadcast_shape(in_shape, &attrs->shape, &both) && kr_shape_equal(&both, &attrs->shape);
    KR_FAIL_IF(!fits, KR_BAD_SHAPE, "broadcast: want axes equal to those of %s, or 1, counted from the last",
               kr_shape_text(&attrs->shape, text));
    out_shape[0] = attrs->shape;
    out_dtype[0] = in_dtype[0];
    return KR_OK;
}

static bool broadcast_view(const kr_attrs *attrs, const kr_layout *in, const kr_shape *out_shape, kr_layout *out) {
    (void)attrs;
    const kr_layout from = *in;
    *out = (kr_layout){.shape = *out_shape, .offset = from.offset};
    for (int k = out_shape->rank - 1, j = from.shape.rank - 1; k >= 0 && j >= 0; k--, j--)
        out->stride[k] = from.shape.dim[j] == 1 && out_shape->dim[k] != 1 ? 0 : from.stride[j];
    return true;
}

static void grad_broadcast(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *din) {
    din[0] = kr_sum_to(g, dout[0], kr_value_shape(g, n->in[0]));
}

static kr_value simplify_broadcast(kr_graph *g, const kr_node *n) {
    const kr_node *inner = kr_value_node(g, n->in[0]);
    const kr_shape s = kr_value_shape(g, n->in[0]);
    if (kr_shape_equal(&s, &n->attrs.shape)) return n->in[0];
    return inner->op == n->op ? (kr_broadcast)(g, inner->in[0], n->attrs.shape) : KR_NONE;
}

const kr_op kr_op_broadcast = {.name = "broadcast", .inputs = 1, .outputs = 1, .flags = KR_OP_VIEW | KR_OP_CHEAP,
    .attr.shape = "shape", .shape = broadcast_shape, .grad = grad_broadcast,
    .simplify = simplify_broadcast, .view = broadcast_view, .cost = no_cost};

kr_value (kr_broadcast)(kr_graph *g, kr_value v, kr_shape shape) {
    const kr_shape s = kr_value_shape(g, v);
    if (!g->status && v.id && kr_shape_equal(&s, &shape)) return v;
    return kr_append(g, &kr_op_broadcast, &(kr_attrs){.shape = shape}, &v, 1);
}

// stop_gradient ---------------------------------------------------------------------------------------------------

static kr_status same_shape(const kr_attrs *attrs, const kr_shape *in_shape, const kr_dtype *in_dtype, int inputs,
                            kr_shape *out_shape, kr_dtype *out_dtype) {
    (void)attrs, (void)inputs;
    out_shape[0] = in_shape[0];
    out_dtype[0] = in_dtype[0];
    return KR_OK;
}

static bool same_view(const kr_attrs *attrs, const kr_layout *in, const kr_shape *out_shape, kr_layout *out) {
    (void)attrs, (void)out_shape;
    *out = *in;
    return true;
}

/// A rule that leaves every gradient empty.
static void grad_nothing(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *din) {
    (void)g, (void)n, (void)dout, (void)din;
}

const kr_op kr_op_stop_gradient = {.name = "stop_gradient", .inputs = 1, .outputs = 1,
    .flags = KR_OP_VIEW | KR_OP_CHEAP, .shape = same_shape, .grad = grad_nothing,
    .view = same_view, .cost = no_cost};

kr_value (kr_stop_gradient)(kr_graph *g, kr_value v) {
    return kr_append(g, &kr_op_stop_gradient, &(kr_attrs){0}, &v, 1);
}
