/// Elementwise ops: what map.def cannot say in one row. Builders broadcast operands with views, so that every operand
/// of a node has the output's shape, and gradients come back through the view's own gradient.
#include "ops/graph/internal.h"
#include "ops/view/view.h"

#include <string.h>

static kr_status map_shape(const kr_attrs *attrs, const kr_shape *in_shape, const kr_dtype *in_dtype, int inputs,
                           kr_shape *out_shape, kr_dtype *out_dtype) {
    (void)attrs;
    for (int i = 0; i < inputs; i++) {
        KR_FAIL_IF(!kr_shape_equal(&in_shape[i], &in_shape[0]), KR_BAD_SHAPE,
                   "elementwise: operands have different shapes, want one shape");
        KR_FAIL_IF(in_dtype[i] != KR_F32, KR_BAD_SHAPE, "elementwise: operand %d is %s, want f32", i,
                   kr_dtype_name(in_dtype[i]));
    }
    out_shape[0] = in_shape[0];
    out_dtype[0] = KR_F32;
    return KR_OK;
}

static kr_status where_shape(const kr_attrs *attrs, const kr_shape *in_shape, const kr_dtype *in_dtype, int inputs,
                             kr_shape *out_shape, kr_dtype *out_dtype) {
    KR_FAIL_IF(in_dtype[0] != KR_F32 && in_dtype[0] != KR_BOOL, KR_BAD_SHAPE,
               "where: the condition is %s, want f32 or bool", kr_dtype_name(in_dtype[0]));
    const kr_dtype as_f32[] = {KR_F32, in_dtype[1], in_dtype[2]};
    return map_shape(attrs, in_shape, as_f32, inputs, out_shape, out_dtype);
}

// Gradients -------------------------------------------------------------------------------------------------------

static void grad_add(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *din) {
    (void)g, (void)n;
    din[0] = din[1] = dout[0];
}

static void grad_sub(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *din) {
    (void)n;
    din[0] = dout[0];
    din[1] = kr_neg(g, dout[0]);
}

static void grad_mul(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *din) {
    din[0] = kr_mul(g, dout[0], n->in[1]);
    din[1] = kr_mul(g, dout[0], n->in[0]);
}

/// One node of op `name` on (dy, p, q), with n's attributes.
static kr_value companion(kr_graph *g, const kr_node *n, const char *name, kr_value dy, kr_value p, kr_value q) {
    const kr_value in[] = {dy, p, q};
    return kr_append(g, kr_op_find(name), &n->attrs, in, q.id ? 3 : 2);
}

static void grad_div(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *din) {
    din[0] = kr_div(g, dout[0], n->in[1]);
    din[1] = companion(g, n, "div_grad_y", dout[0], n->out[0], n->in[1]);
}

static void grad_maximum(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *din) {
    din[0] = companion(g, n, "maximum_grad_x", dout[0], n->in[0], n->in[1]);
    din[1] = companion(g, n, "maximum_grad_y", dout[0], n->in[0], n->in[1]);
}

static void grad_minimum(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *din) {
    din[0] = companion(g, n, "minimum_grad_x", dout[0], n->in[0], n->in[1]);
    din[1] = companion(g, n, "minimum_grad_y", dout[0], n->in[0], n->in[1]);
}

static void grad_neg(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *din) {
    (void)n;
    din[0] = kr_neg(g, dout[0]);
}

static void grad_affine(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *din) {
    din[0] = kr_affine(g, dout[0], n->attrs.r[0], 0);
}

static void grad_clamp(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *din) {
    din[0] = companion(g, n, "clamp_grad", dout[0], n->in[0], KR_NONE);
}

static void grad_where(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *din) {
    const kr_value zero = kr_const(g, 0, KR_F32, kr_value_shape(g, dout[0]));
    din[1] = kr_where(g, n->in[0], dout[0], zero);
    din[2] = kr_where(g, n->in[0], zero, dout[0]);
}

static void grad_cast(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *din) {
    if (dout[0].id) din[0] = kr_cast(g, dout[0], kr_value_dtype(g, n->in[0]));
}

// Identities. Adding zero may turn -0 into +0; that is the only bit that they change. ---------------------------------

static bool is_splat(const kr_graph *g, kr_value v, double wanted) {
    double splat;
    return kr_value_is_splat(g, v, &splat) && splat == wanted;
}

static kr_value simplify_add(kr_graph *g, const kr_node *n) {
    if (is_splat(g, n->in[1], 0)) return n->in[0];
    if (is_splat(g, n->in[0], 0)) return n->in[1];
    return kr_join_of_sum(g, n->in[0], n->in[1]);
}

static kr_value simplify_sub(kr_graph *g, const kr_node *n) {
    return is_splat(g, n->in[1], 0) ? n->in[0] : KR_NONE;
}

static kr_value simplify_mul(kr_graph *g, const kr_node *n) {
    return is_splat(g, n->in[1], 1) ? n->in[0] : is_splat(g, n->in[0], 1) ? n->in[1] : KR_NONE;
}

static kr_value simplify_div(kr_graph *g, const kr_node *n) {
    return is_splat(g, n->in[1], 1) ? n->in[0] : KR_NONE;
}

static kr_value simplify_neg(kr_graph *g, const kr_node *n) {
    const kr_node *inner = kr_value_node(g, n->in[0]);
    return inner->op == n->op ? inner->in[0] : KR_NONE;
}

static kr_value simplify_affine(kr_graph *g, const kr_node *n) {
    (void)g;
    return n->attrs.r[0] == 1 && n->attrs.r[1] == 0 ? n->in[0] : KR_NONE;
}

static kr_value simplify_cast(kr_graph *g, const kr_node *n) {
    return kr_value_dtype(g, n->in[0]) == (kr_dtype)n->attrs.i[0] ? n->in[0] : KR_NONE;
}

// Descriptors -----------------------------------------------------------------------------------------------------

#define ALL(arity) ((1u << (arity)) - 1)
#define NO_REALS .attr.r = {NULL}
#define SCALE_SHIFT .attr.r = {"scale", "shift"}
#define LO_HI .attr.r = {"lo", "hi"}
#define PLAIN 0
#define COMMUTES KR_OP_COMMUTES
#define ADDS KR_OP_ADDS
#define KEEPS_X .keeps_in = 1
#define KEEPS_Y .keeps_out = 1

#define TRAITS_add .shape = map_shape, .grad = grad_add, .simplify = simplify_add
#define TRAITS_sub .shape = map_shape, .grad = grad_sub, .simplify = simplify_sub
#define TRAITS_mul .shape = map_shape, .grad = grad_mul, .simplify = simplify_mul, .keeps_in = 3
#define TRAITS_div .shape = map_shape, .grad = grad_div, .simplify = simplify_div, .keeps_in = 2, .keeps_out = 1
#define TRAITS_maximum .shape = map_shape, .grad = grad_maximum, .keeps_in = 3
#define TRAITS_minimum .shape = map_shape, .grad = grad_minimum, .keeps_in = 3
#define TRAITS_neg .shape = map_shape, .grad = grad_neg, .simplify = simplify_neg
#define TRAITS_affine .shape = map_shape, .grad = grad_affine, .simplify = simplify_affine
#define TRAITS_clamp .shape = map_shape, .grad = grad_clamp, .keeps_in = 1
#define TRAITS_where .shape = where_shape, .grad = grad_where, .keeps_in = 1

// What every elementwise op has, by the designators that follow the name.
#define ELEMENTWISE(op_name, arity, op_flags, ...)                                                                 \
    extern const kr_op kr_op_##op_name;                                                                            \
    const kr_op kr_op_##op_name = {.name = #op_name, .inputs = arity, .outputs = 1,                                \
        .flags = KR_OP_ELEMENTWISE | KR_OP_CHEAP | (op_flags), __VA_ARGS__};

#define MAP(name, arity, reals, flags, value) ELEMENTWISE(name, arity, flags, reals, TRAITS_##name)
#define MAP_G(name, arity, reals, value) ELEMENTWISE(name, arity, KR_OP_NO_GRADIENT, reals, .shape = map_shape)
#define MAP_F(name, kept, value, derivative)                                                                       \
    ELEMENTWISE(name##_grad, 2, KR_OP_NO_GRADIENT, NO_REALS, .shape = map_shape)                                   \
    static void grad_##name(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *din) {                  \
        din[0] = kr_append(g, &kr_op_##name##_grad, NULL, (kr_value[]){dout[0], KEPT_##kept}, 2);                  \
    }                                                                                                              \
    ELEMENTWISE(name, 1, PLAIN, NO_REALS, .shape = map_shape, .grad = grad_##name, KEEPS_##kept)
#define KEPT_X n->in[0]
#define KEPT_Y n->out[0]
#include "ops/elementwise/map.def"

static kr_status cast_shape(const kr_attrs *attrs, const kr_shape *in_shape, const kr_dtype *in_dtype, int inputs,
                            kr_shape *out_shape, kr_dtype *out_dtype) {
    (void)in_dtype, (void)inputs;
    KR_FAIL_IF(attrs->i[0] < 0 || attrs->i[0] >= KR_DTYPE_COUNT, KR_BAD_ARGUMENT, "cast: there is no dtype %lld",
               (long long)attrs->i[0]);
    out_shape[0] = in_shape[0];
    out_dtype[0] = (kr_dtype)attrs->i[0];
    return KR_OK;
}

extern const kr_op kr_op_cast;
const kr_op kr_op_cast = {
    .name = "cast", .inputs = 1, .outputs = 1, .flags = KR_OP_ELEMENTWISE | KR_OP_CHEAP, .attr.i = {"dtype"},
    .shape = cast_shape, .grad = grad_cast, .simplify = simplify_cast,
};

// Builders --------------------------------------------------------------------------------------------------------

static kr_value build(kr_graph *g, const kr_op *op, const kr_value *in, int count, double a, double b) {
    if (g->status) return KR_NONE;
    kr_value wide[3];
    kr_shape shape = KR_SCALAR;
    for (int i = 0; i < count; i++) {
        const kr_shape s = kr_value_shape(g, in[i]);
        kr_shape both;
        char want[160], got[160];
        if (!in[i].id || in[i].id > kr_graph_values(g)) // kr_append says what is wrong with it
            return kr_append(g, op, &(kr_attrs){.r = {a, b}}, in, count);
        if (!kr_broadcast_shape(&shape, &s, &both)) {
            kr_graph_fail_with(g, KR_BAD_SHAPE, "%s: operand %d is %s, which does not broadcast with %s", op->name, i,
                               kr_shape_text(&s, got), kr_shape_text(&shape, want));
            return KR_NONE;
        }
        shape = both;
    }
    for (int i = 0; i < count; i++) wide[i] = (kr_broadcast)(g, in[i], shape);
    return kr_append(g, op, &(kr_attrs){.r = {a, b}}, wide, count);
}

kr_value (kr_map)(kr_graph *g, const char *op_name, const kr_value *in, int count, double a, double b) {
    if (g->status) return KR_NONE;
    const kr_op *op = kr_op_find(op_name);
    if (!op || !(op->flags & KR_OP_ELEMENTWISE) || op == &kr_op_cast) {
        const char *near = kr_op_nearest(op_name);
        kr_graph_fail_with(g, KR_BAD_ARGUMENT, "map: \"%s\" is not an elementwise op%s%s%s", op_name,
                           near ? "; the nearest name is \"" : "", near ? near : "", near ? "\"" : "");
        return KR_NONE;
    }
    if (count != op->inputs) {
        kr_graph_fail_with(g, KR_BAD_ARGUMENT, "map: %d operands for %s, want %d", count, op_name, op->inputs);
        return KR_NONE;
    }
    return build(g, op, in, count, a, b);
}

#define UNARY(name) \
    kr_value (kr_##name)(kr_graph *g, kr_value x) { return build(g, &kr_op_##name, &x, 1, 0, 0); }
#define BINARY(name)                                             \
    kr_value (kr_##name)(kr_graph *g, kr_value x, kr_value y) {  \
        return build(g, &kr_op_##name, (kr_value[]){x, y}, 2, 0, 0); \
    }
BINARY(add) BINARY(sub) BINARY(mul) BINARY(div) BINARY(maximum) BINARY(minimum)
UNARY(neg)
#define MAP_F(name, kept, value, derivative) UNARY(name)
#include "ops/elementwise/map.def"

kr_value (kr_affine)(kr_graph *g, kr_value x, double scale, double shift) {
    return build(g, &kr_op_affine, &x, 1, scale, shift);
}

kr_value (kr_clamp)(kr_graph *g, kr_value x, double lo, double hi) {
    if (!(lo <= hi)) {
        kr_graph_fail_with(g, KR_BAD_ARGUMENT, "clamp: lo %g is above hi %g", lo, hi);
        return KR_NONE;
    }
    return build(g, &kr_op_clamp, &x, 1, lo, hi);
}

kr_value (kr_where)(kr_graph *g, kr_value condition, kr_value yes, kr_value no) {
    return build(g, &kr_op_where, (kr_value[]){condition, yes, no}, 3, 0, 0);
}

kr_value (kr_cast)(kr_graph *g, kr_value x, kr_dtype dtype) {
    return kr_append(g, &kr_op_cast, &(kr_attrs){.i = {dtype}}, &x, 1);
}
