/// Where values come from: inputs, parameters, constants and carries.
#include "ops/graph/internal.h"

static kr_status source_shape(const kr_attrs *attrs, const kr_shape *in_shape, const kr_dtype *in_dtype, int inputs,
                              kr_shape *out_shape, kr_dtype *out_dtype) {
    (void)in_shape, (void)in_dtype, (void)inputs;
    KR_FAIL_IF(attrs->shape.rank < 0 || attrs->shape.rank > KR_MAX_RANK, KR_BAD_SHAPE, "source: rank %d, want 0 to %d",
               attrs->shape.rank, KR_MAX_RANK);
    KR_FAIL_IF(attrs->i[0] < 0 || attrs->i[0] >= KR_DTYPE_COUNT, KR_BAD_ARGUMENT, "source: no dtype %ld",
               (long)attrs->i[0]);
    char text[160];
    KR_FAIL_IF(kr_tensor_bytes((kr_dtype)attrs->i[0], &attrs->shape) == SIZE_MAX, KR_BAD_SHAPE,
               "source: shape %s has a negative dimension or is too large", kr_shape_text(&attrs->shape, text));
    out_shape[0] = attrs->shape;
    out_dtype[0] = (kr_dtype)attrs->i[0];
    return KR_OK;
}

static kr_status param_shape(const kr_attrs *attrs, const kr_shape *in_shape, const kr_dtype *in_dtype, int inputs,
                             kr_shape *out_shape, kr_dtype *out_dtype) {
    kr_attrs as_source = *attrs;
    as_source.i[0] = KR_F32;
    return source_shape(&as_source, in_shape, in_dtype, inputs, out_shape, out_dtype);
}

static void free_of_cost(const kr_attrs *attrs, const kr_shape *in, const kr_shape *out, int inputs, double *flops,
                         double *bytes) {
    (void)attrs, (void)in, (void)out, (void)inputs;
    *flops = *bytes = 0;
}

const kr_op kr_op_input = {.name = "input", .outputs = 1, .flags = KR_OP_SOURCE | KR_OP_NO_GRADIENT,
    .attr = {.i = {"dtype"}, .shape = "shape"}, .shape = source_shape, .cost = free_of_cost};
const kr_op kr_op_param = {.name = "param", .outputs = 1, .flags = KR_OP_SOURCE | KR_OP_NO_GRADIENT,
    .attr = {.i = {"flags"}, .shape = "shape"}, .shape = param_shape, .cost = free_of_cost};
const kr_op kr_op_const = {.name = "const", .outputs = 1, .flags = KR_OP_SOURCE | KR_OP_NO_GRADIENT,
    .attr = {.i = {"dtype"}, .r = {"value"}, .shape = "shape"}, .shape = source_shape, .cost = free_of_cost};
const kr_op kr_op_carry = {.name = "carry", .outputs = 1, .flags = KR_OP_SOURCE | KR_OP_NO_GRADIENT,
    .attr = {.i = {"dtype", "kind"}, .shape = "shape"}, .shape = source_shape, .cost = free_of_cost};

kr_source kr_node_source(const kr_node *n) {
    return n->op == &kr_op_input ? KR_SOURCE_INPUT : n->op == &kr_op_param ? KR_SOURCE_PARAM
         : n->op == &kr_op_const ? KR_SOURCE_CONST : n->op == &kr_op_carry ? KR_SOURCE_CARRY : KR_NOT_SOURCE;
}

static kr_value named_source(kr_graph *g, const kr_op *op, const kr_attrs *attrs, const char *name) {
    const kr_value v = kr_append(g, op, attrs, NULL, 0);
    if (v.id && !kr_source_name(g, kr_value_node(g, v), name)) kr_graph_fail(g, KR_NO_MEMORY);
    return v;
}

kr_value (kr_input)(kr_graph *g, const char *name, kr_dtype dtype, kr_shape shape) {
    if (g->status) return KR_NONE;
    if (kr_source_find(g, &kr_op_input, name).id) {
        kr_graph_fail_with(g, KR_BAD_ARGUMENT, "input \"%s\": the name is taken", name);
        return KR_NONE;
    }
    return named_source(g, &kr_op_input, &(kr_attrs){.i = {dtype}, .shape = shape}, kr_pool_text(g->pool, name));
}

kr_value (kr_param)(kr_graph *g, const char *name, kr_shape shape, kr_init init, unsigned flags) {
    if (g->status) return KR_NONE;
    const char *full = kr_scoped_name(g, name);
    const kr_value tied = kr_source_find(g, &kr_op_param, full);
    if (tied.id) {
        const kr_shape is = kr_value_shape(g, tied);
        char text_is[160], text_want[160];
        if (kr_shape_equal(&is, &shape)) return tied;
        kr_graph_fail_with(g, KR_BAD_SHAPE, "param \"%s\": it exists with shape %s, now wanted as %s", full,
                           kr_shape_text(&is, text_is), kr_shape_text(&shape, text_want));
        return KR_NONE;
    }
    const kr_value v = named_source(g, &kr_op_param, &(kr_attrs){.i = {flags}, .shape = shape}, full);
    if (v.id) kr_value_node(g, v)->init = init;
    return v;
}

kr_value (kr_const)(kr_graph *g, double value, kr_dtype dtype, kr_shape shape) {
    return kr_append(g, &kr_op_const, &(kr_attrs){.i = {dtype}, .r = {value}, .shape = shape}, NULL, 0);
}

void kr_graph_carries(kr_graph *g, bool live) { g->carries_live = live; }

kr_value kr_carry_kind(kr_graph *g, const char *full_name, kr_dtype dtype, kr_shape shape, int kind) {
    if (g->status) return KR_NONE;
    if (kr_source_find(g, &kr_op_carry, full_name).id) {
        kr_graph_fail_with(g, KR_BAD_ARGUMENT, "carry \"%s\": the name is taken", full_name);
        return KR_NONE;
    }
    return named_source(g, &kr_op_carry, &(kr_attrs){.i = {dtype, kind}, .shape = shape},
                        kr_pool_text(g->pool, full_name));
}

kr_value (kr_carry)(kr_graph *g, const char *name, kr_dtype dtype, kr_shape shape) {
    if (g->status) return KR_NONE;
    if (!g->carries_live) return (kr_const)(g, 0, dtype, shape);
    return kr_carry_kind(g, kr_scoped_name(g, name), dtype, shape, KR_CARRY_STATE);
}

void (kr_assign)(kr_graph *g, kr_value target, kr_value value) {
    if (g->status) return;
    const kr_node *n = kr_value_node(g, target);
    if (!n || !(n->op == &kr_op_param || n->op == &kr_op_carry)) {
        kr_graph_fail_with(g, KR_BAD_ARGUMENT, "assign: the target is not a param or carry");
        return;
    }
    const kr_shape a = kr_value_shape(g, target), b = kr_value_shape(g, value);
    char text_a[160], text_b[160];
    if (!value.id || !kr_shape_equal(&a, &b) || kr_value_dtype(g, target) != kr_value_dtype(g, value)) {
        kr_graph_fail_with(g, KR_BAD_SHAPE, "assign to \"%s\": the value is %s %s, want %s %s", n->name,
                           kr_dtype_name(kr_value_dtype(g, value)), b.rank < 0 ? "empty" : kr_shape_text(&b, text_b),
                           kr_dtype_name(kr_value_dtype(g, target)), kr_shape_text(&a, text_a));
        return;
    }
    if (g->values[target.id].assigned) {
        kr_graph_fail_with(g, KR_BAD_ARGUMENT, "assign to \"%s\": it is assigned twice", n->name);
        return;
    }
    if (!kr_grow(&g->assigns, &g->assign_room, g->assign_count, sizeof *g->assigns)) {
        kr_graph_fail(g, KR_NO_MEMORY);
        return;
    }
    g->assigns[g->assign_count++] = (kr_graph_assign){target, value};
    g->values[target.id].assigned = true;
}

void (kr_carry_set)(kr_graph *g, kr_value carry, kr_value next) {
    const kr_node *n = kr_value_node(g, carry);
    if (!g->carries_live && n && n->op == &kr_op_const) return;
    (kr_assign)(g, carry, next);
}

bool kr_value_is_splat(const kr_graph *g, kr_value v, double *splat) {
    const kr_node *n = kr_value_node(g, v);
    while (n && (n->op->flags & KR_OP_VIEW)) n = kr_value_node(g, n->in[0]); // a view of a splat is a splat
    if (!n || n->op != &kr_op_const) return false;
    *splat = n->attrs.r[0];
    return true;
}
