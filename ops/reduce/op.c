/// Reductions over one axis: sum, mean, max; running sums; and the sum that undoes a broadcast. Their rules are code: a
/// signature cannot say that an attribute names the axis that goes.
#include "ops/reduce/args.h"

#include "ops/graph/internal.h"
#include "ops/view/view.h"

extern const kr_op kr_op_sum, kr_op_mean, kr_op_max, kr_op_max_grad, kr_op_cumsum;

static kr_status reduce_shape(const kr_attrs *attrs, const kr_shape *in_shape, const kr_dtype *in_dtype, int inputs,
                              kr_shape *out_shape, kr_dtype *out_dtype) {
    (void)inputs;
    const int64_t axis = attrs->i[REDUCE_AXIS];
    KR_TRY(kr_check_axis("reduction", axis, in_shape));
    KR_FAIL_IF(in_dtype[0] != KR_F32, KR_BAD_SHAPE, "reduction: the input is %s, want f32", kr_dtype_name(in_dtype[0]));
    out_shape[0] = in_shape[0];
    out_shape[0].dim[axis] = 1;
    if (!attrs->i[REDUCE_KEEP]) {
        out_shape[0].rank--;
        for (int k = (int)axis; k < out_shape[0].rank; k++) out_shape[0].dim[k] = in_shape->dim[k + 1];
        out_shape[0].dim[out_shape[0].rank] = 0;
    }
    out_dtype[0] = KR_F32;
    return KR_OK;
}

static kr_status max_shape(const kr_attrs *attrs, const kr_shape *in_shape, const kr_dtype *in_dtype, int inputs,
                           kr_shape *out_shape, kr_dtype *out_dtype) {
    KR_TRY(reduce_shape(attrs, in_shape, in_dtype, inputs, out_shape, out_dtype));
    KR_FAIL_IF(!in_shape->dim[attrs->i[REDUCE_AXIS]], KR_BAD_SHAPE, "max: the axis has no elements, want at least 1");
    return KR_OK;
}

static void reduce_cost(const kr_attrs *attrs, const kr_shape *in, const kr_shape *out, int inputs, double *flops,
                        double *bytes) {
    (void)attrs, (void)inputs;
    *flops = (double)kr_shape_count(in);
    *bytes = 4.0 * (double)(kr_shape_count(in) + kr_shape_count(out));
}

/// dy over the whole axis again.
static kr_value spread(kr_graph *g, const kr_node *n, kr_value dy) {
    kr_shape s = kr_value_shape(g, n->in[0]);
    const kr_shape whole = s;
    s.dim[n->attrs.i[REDUCE_AXIS]] = 1;
    return kr_broadcast(g, kr_reshape(g, dy, s), whole);
}

static void grad_sum(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *din) {
    din[0] = spread(g, n, dout[0]);
}

static void grad_mean(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *din) {
    const int64_t length = kr_value_shape(g, n->in[0]).dim[n->attrs.i[REDUCE_AXIS]];
    din[0] = spread(g, n, kr_affine(g, dout[0], length ? 1.0 / (double)length : 0, 0));
}

static void grad_max(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *din) {
    din[0] = kr_append(g, &kr_op_max_grad, &n->attrs, (kr_value[]){dout[0], n->in[0], n->out[0]}, MAX_GRAD_INPUTS);
}

/// The reduction over an axis of length 1 only drops the axis.
static kr_value simplify_reduction(kr_graph *g, const kr_node *n) {
    const kr_shape s = kr_value_shape(g, n->in[0]);
    return s.dim[n->attrs.i[REDUCE_AXIS]] == 1 ? (kr_reshape)(g, n->in[0], kr_value_shape(g, n->out[0])) : KR_NONE;
}

#define REDUCTION(op_name, ...)                                                                 \
    const kr_op kr_op_##op_name = {.name = #op_name,                                            \
                                   .inputs = 1,                                                 \
                                   .outputs = 1,                                                \
                                   .attr.i = {"axis", "keep"},                                  \
                                   .simplify = simplify_reduction,                              \
                                   .cost = reduce_cost,                                         \
                                   __VA_ARGS__};
REDUCTION(sum, .flags = KR_OP_SUMS, .shape = reduce_shape, .grad = grad_sum)
REDUCTION(mean, .shape = reduce_shape, .grad = grad_mean)
REDUCTION(max, .shape = max_shape, .grad = grad_max, .keeps_in = 1, .keeps_out = 1)

static kr_status max_grad_shape(const kr_attrs *attrs, const kr_shape *in_shape, const kr_dtype *in_dtype, int inputs,
                                kr_shape *out_shape, kr_dtype *out_dtype) {
    (void)inputs;
    KR_TRY(max_shape(attrs, &in_shape[MAX_GRAD_X], &in_dtype[MAX_GRAD_X], 1, out_shape, out_dtype));
    KR_FAIL_IF(!kr_shape_equal(&in_shape[MAX_GRAD_DY], out_shape) ||
                   !kr_shape_equal(&in_shape[MAX_GRAD_Y], out_shape) || in_dtype[MAX_GRAD_DY] != KR_F32 ||
                   in_dtype[MAX_GRAD_Y] != KR_F32,
               KR_BAD_SHAPE, "max_grad: want f32 dy and y of the maximum's shape");
    out_shape[0] = in_shape[MAX_GRAD_X];
    return KR_OK;
}

const kr_op kr_op_max_grad = {
    .name = "max_grad",
    .inputs = MAX_GRAD_INPUTS,
    .outputs = 1,
    .flags = KR_OP_NO_GRADIENT,
    .attr.i = {"axis", "keep"},
    .shape = max_grad_shape,
};

static kr_status cumsum_shape(const kr_attrs *attrs, const kr_shape *in_shape, const kr_dtype *in_dtype, int inputs,
                              kr_shape *out_shape, kr_dtype *out_dtype) {
    (void)inputs;
    KR_TRY(kr_check_axis("cumsum", attrs->i[CUMSUM_AXIS], in_shape));
    KR_FAIL_IF(in_dtype[0] != KR_F32, KR_BAD_SHAPE, "cumsum: the input is %s, want f32", kr_dtype_name(in_dtype[0]));
    out_shape[0] = in_shape[0];
    out_dtype[0] = KR_F32;
    return KR_OK;
}

static void grad_cumsum(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *din) {
    din[0] = kr_cumsum(g, dout[0], (int)n->attrs.i[CUMSUM_AXIS], !n->attrs.i[CUMSUM_REVERSE]);
}

const kr_op kr_op_cumsum = {
    .name = "cumsum",
    .inputs = 1,
    .outputs = 1,
    .attr.i = {"axis", "reverse"},
    .shape = cumsum_shape,
    .grad = grad_cumsum,
};

// Builders --------------------------------------------------------------------------------------------------------

static kr_value reduce(kr_graph *g, const kr_op *op, kr_value v, int axis, bool flag) {
    if (!kr_take_axis(g, op, v, &axis)) return KR_NONE;
    return kr_append(g, op, &(kr_attrs){.i = {axis, flag}}, &v, 1);
}

kr_value (kr_sum)(kr_graph *g, kr_value v, int axis, bool keep) { return reduce(g, &kr_op_sum, v, axis, keep); }
kr_value (kr_mean)(kr_graph *g, kr_value v, int axis, bool keep) { return reduce(g, &kr_op_mean, v, axis, keep); }
kr_value (kr_max)(kr_graph *g, kr_value v, int axis, bool keep) { return reduce(g, &kr_op_max, v, axis, keep); }
kr_value (kr_cumsum)(kr_graph *g, kr_value v, int axis, bool reverse) {
    return reduce(g, &kr_op_cumsum, v, axis, reverse);
}

/// Neighbouring axes that are all summed, or all kept, become one axis; then one sum per summed axis, last first.
kr_value (kr_sum_to)(kr_graph *g, kr_value v, kr_shape shape) {
    if (g->status) return KR_NONE;
    const kr_shape s = kr_value_shape(g, v);
    kr_shape both;
    char text_s[160], text_shape[160];
    if (!v.id) return reduce(g, &kr_op_sum, v, 0, false); // fails, and says why
    if (kr_shape_equal(&s, &shape)) return v;
    if (shape.rank < 0 || shape.rank > KR_MAX_RANK || !kr_broadcast_shape(&shape, &s, &both) ||
        !kr_shape_equal(&both, &s)) {
        kr_graph_fail_with(g, KR_BAD_SHAPE, "sum_to: %s does not broadcast to %s", kr_shape_text(&shape, text_shape),
                           kr_shape_text(&s, text_s));
        return KR_NONE;
    }
    kr_shape merged = KR_SCALAR;
    bool summed[KR_MAX_RANK];
    for (int k = 0; k < s.rank; k++) {
        const int j = k - (s.rank - shape.rank);
        const bool sums = s.dim[k] != 1 && (j < 0 || shape.dim[j] != s.dim[k]);
        if (s.dim[k] == 1) continue;
        if (merged.rank && summed[merged.rank - 1] == sums) merged.dim[merged.rank - 1] *= s.dim[k];
        else {
            summed[merged.rank] = sums;
            merged.dim[merged.rank++] = s.dim[k];
        }
    }
    v = (kr_reshape)(g, v, merged);
    for (int k = merged.rank - 1; k >= 0; k--)
        if (summed[k]) v = (kr_sum)(g, v, k, false);
    return (kr_reshape)(g, v, shape);
}
