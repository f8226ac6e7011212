/// Views and joins: layouts, gradients, identities, and the sum of pads that becomes a concat.
#include "tests/check.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

static int64_t flat(const kr_shape *s, const int64_t *index) {
    int64_t at = 0;
    for (int k = 0; k < s->rank; k++) at = at * s->dim[k] + index[k];
    return at;
}

static void unflat(const kr_shape *s, int64_t at, int64_t *index) {
    for (int k = s->rank - 1; k >= 0; k--) {
        index[k] = at % s->dim[k];
        at /= s->dim[k];
    }
}

#define ORACLE(name)                                                                                            \
    static void oracle_##name(const kr_attrs *attrs, const kr_shape *in_shape, const double *const *in,         \
                              const kr_shape *out_shape, double *const *out)
#define EACH(i, shape) for (int64_t i = 0; i < kr_shape_count(shape); i++)

ORACLE(copy) {
    (void)attrs, (void)in_shape;
    EACH(i, out_shape) out[0][i] = in[0][i];
}

ORACLE(slice) {
    EACH(i, out_shape) {
        int64_t index[KR_MAX_RANK];
        unflat(out_shape, i, index);
        index[attrs->i[0]] += attrs->i[1];
        out[0][i] = in[0][flat(in_shape, index)];
    }
}

ORACLE(transpose) {
    EACH(i, out_shape) {
        int64_t index[KR_MAX_RANK];
        unflat(out_shape, i, index);
        const int64_t swap = index[attrs->i[0]];
        index[attrs->i[0]] = index[attrs->i[1]];
        index[attrs->i[1]] = swap;
        out[0][i] = in[0][flat(in_shape, index)];
    }
}

ORACLE(broadcast) {
    (void)attrs;
    EACH(i, out_shape) {
        int64_t index[KR_MAX_RANK], from[KR_MAX_RANK];
        unflat(out_shape, i, index);
        for (int k = 0; k < in_shape->rank; k++)
            from[k] = in_shape->dim[k] == 1 ? 0 : index[out_shape->rank - in_shape->rank + k];
        out[0][i] = in[0][flat(in_shape, from)];
    }
}

ORACLE(pad) {
    EACH(i, out_shape) {
        int64_t index[KR_MAX_RANK];
        unflat(out_shape, i, index);
        index[attrs->i[0]] -= attrs->i[1];
        const bool inside = index[attrs->i[0]] >= 0 && index[attrs->i[0]] < in_shape->dim[attrs->i[0]];
        out[0][i] = inside ? in[0][flat(in_shape, index)] : 0;
    }
}

ORACLE(concat) {
    EACH(i, out_shape) {
        int64_t index[KR_MAX_RANK];
        unflat(out_shape, i, index);
        int p = 0;
        while (index[attrs->i[0]] >= in_shape[p].dim[attrs->i[0]]) index[attrs->i[0]] -= in_shape[p++].dim[attrs->i[0]];
        out[0][i] = in[p][flat(&in_shape[p], index)];
    }
}

static void check(check_case c, check_oracle *oracle) {
    c.tolerance = 1e-30;
    c.seed = 21;
    check_forward(&c, oracle);
    if (c.dtype[0] == KR_F32) {
        c.tolerance = 0;
        check_gradient(&c, oracle);
    }
}

Test(view, reshape) {
    const kr_shape to[] = {KR_SHAPE(24), KR_SHAPE(6, 4), KR_SHAPE(2, 1, 12), KR_SHAPE(1, 4, 3, 2, 1)};
    for (int i = 0; i < 4; i++)
        check((check_case){.op = "reshape", .attrs.shape = to[i], .inputs = 1, .shape = {KR_SHAPE(2, 3, 4)}},
              oracle_copy);
    check((check_case){.op = "reshape", .attrs.shape = KR_SHAPE(1, 1), .inputs = 1, .shape = {KR_SCALAR}}, oracle_copy);
    check((check_case){.op = "reshape", .attrs.shape = KR_SHAPE(7, 0), .inputs = 1, .shape = {KR_SHAPE(0, 3)}},
          oracle_copy);
}

Test(view, slice) {
    for (int axis = 0; axis < 3; axis++)
        check((check_case){.op = "slice", .attrs.i = {axis, 1, 2}, .inputs = 1, .shape = {KR_SHAPE(4, 3, 5)}},
              oracle_slice);
    check((check_case){.op = "slice", .attrs.i = {1, 3, 0}, .inputs = 1, .shape = {KR_SHAPE(4, 3)}}, oracle_slice);
}

Test(view, transpose) {
    for (int a = 0; a < 3; a++)
        for (int b = a; b < 3; b++)
            check((check_case){.op = "transpose", .attrs.i = {a, b}, .inputs = 1, .shape = {KR_SHAPE(2, 3, 5)}},
                  oracle_transpose);
}

Test(view, broadcast) {
    const kr_shape from[] = {KR_SHAPE(3, 1),    KR_SHAPE(5),       KR_SCALAR,
                             KR_SHAPE(1, 1, 5), KR_SHAPE(2, 3, 5), KR_SHAPE(2, 1, 1)};
    for (int i = 0; i < 6; i++)
        check((check_case){.op = "broadcast", .attrs.shape = KR_SHAPE(2, 3, 5), .inputs = 1, .shape = {from[i]}},
              oracle_broadcast);
}

Test(view, pad) {
    for (int axis = 0; axis < 3; axis++)
        for (int k = 0; k < 4; k++)
            check((check_case){.op = "pad", .attrs.i = {axis, k & 1, k & 2}, .inputs = 1, .shape = {KR_SHAPE(4, 3, 5)}},
                  oracle_pad);
    check((check_case){.op = "pad", .attrs.i = {0, 2, 3}, .inputs = 1, .shape = {KR_SHAPE(0, 3)}}, oracle_pad);
}

Test(view, concat) {
    for (int axis = 0; axis < 3; axis++) {
        check_case c = {.op = "concat", .attrs.i = {axis}, .inputs = 4};
        for (int i = 0; i < 4; i++) {
            c.shape[i] = KR_SHAPE(2, 3, 4);
            c.shape[i].dim[axis] = i == 2 ? 0 : i + 1;
        }
        check(c, oracle_concat);
    }
    check((check_case){.op = "concat", .inputs = 1, .shape = {KR_SHAPE(5)}}, oracle_concat);
}

Test(view, copy) {
    check((check_case){.op = "copy", .inputs = 1, .shape = {KR_SHAPE(3, 5, 7)}}, oracle_copy);
    check((check_case){.op = "copy", .inputs = 1, .shape = {KR_SCALAR}}, oracle_copy);
}

/// Every dtype, and enough elements for several blocks.
Test(view, dtypes) {
    for (kr_dtype t = 0; t < KR_DTYPE_COUNT; t++) {
        const check_case copy = {.op = "copy", .inputs = 1, .shape = {KR_SHAPE(150, 131)}, .dtype = {t}, .hi = {1}};
        const check_case pad = {
            .op = "pad", .attrs.i = {0, 9, 0}, .inputs = 1, .shape = {KR_SHAPE(150, 131)}, .dtype = {t}, .hi = {1}};
        const check_case concat = {.op = "concat", .attrs.i = {1}, .inputs = 2, .dtype = {t, t}, .hi = {1, 1},
                                   .shape = {KR_SHAPE(150, 91), KR_SHAPE(150, 40)}};
        check_forward(&copy, oracle_copy);
        check_forward(&pad, oracle_pad);
        check_forward(&concat, oracle_concat);
    }
}

/// A piece that lies in its place already is left alone.
Test(view, concat_in_place) {
    float out[4 * 7], b[4 * 2];
    for (int i = 0; i < 28; i++) out[i] = (float)i;
    for (int i = 0; i < 8; i++) b[i] = -1;
    const kr_arg in[] = {{.data = out, .shape = KR_SHAPE(4, 5), .stride = {7, 1}},
                         {.data = b, .shape = KR_SHAPE(4, 2), .stride = {2, 1}}};
    const kr_arg to = {.data = out, .shape = KR_SHAPE(4, 7), .stride = {7, 1}};
    check_ok(check_call(kr_op_find("concat"), &(kr_attrs){.i = {1}}, in, 2, &to, kr_isa_best(), 2, false), "concat");
    for (int i = 0; i < 28; i++) cr_assert_eq(out[i], i % 7 < 5 ? (float)i : -1);
}

// Layouts -------------------------------------------------------------------------------------------------------------

static bool reshape_layout(kr_shape shape, const int64_t *stride, kr_shape to, kr_layout *seen) {
    kr_layout in = {.shape = shape, .offset = 5};
    for (int k = 0; k < shape.rank; k++) in.stride[k] = stride[k];
    return kr_op_find("reshape")->view(&(kr_attrs){.shape = to}, &in, &to, seen);
}

Test(view, reshape_of_strided) {
    kr_layout l;
    // a slice of columns: rows stay apart, axes before them merge and split
    cr_assert(reshape_layout(KR_SHAPE(2, 3, 4), (int64_t[]){30, 10, 1}, KR_SHAPE(6, 4), &l));
    cr_assert(l.stride[0] == 10 && l.stride[1] == 1 && l.offset == 5);
    cr_assert(reshape_layout(KR_SHAPE(2, 3, 4), (int64_t[]){30, 10, 1}, KR_SHAPE(2, 3, 2, 2), &l));
    cr_assert(l.stride[2] == 2 && l.stride[3] == 1);
    cr_assert(!reshape_layout(KR_SHAPE(2, 3, 4), (int64_t[]){30, 10, 1}, KR_SHAPE(2, 12), &l));
    cr_assert(!reshape_layout(KR_SHAPE(2, 3, 4), (int64_t[]){30, 10, 1}, KR_SHAPE(24), &l));
    // axes of length 1 have no say
    cr_assert(reshape_layout(KR_SHAPE(2, 1, 4), (int64_t[]){4, 77, 1}, KR_SHAPE(8), &l) && l.stride[0] == 1);
    // a broadcast axis splits, and merges only with another one
    cr_assert(reshape_layout(KR_SHAPE(6, 4), (int64_t[]){0, 1}, KR_SHAPE(2, 3, 4), &l) && l.stride[0] == 0 &&
              l.stride[1] == 0);
    cr_assert(reshape_layout(KR_SHAPE(2, 3, 4), (int64_t[]){0, 0, 1}, KR_SHAPE(6, 4), &l) && l.stride[0] == 0);
    cr_assert(!reshape_layout(KR_SHAPE(6, 4), (int64_t[]){0, 1}, KR_SHAPE(24), &l));
    // transposed
    cr_assert(!reshape_layout(KR_SHAPE(3, 4), (int64_t[]){1, 3}, KR_SHAPE(12), &l));
    cr_assert(reshape_layout(KR_SHAPE(0, 4), (int64_t[]){1, 9}, KR_SHAPE(2, 0), &l));
}

/// A reshape of a cut, transposed tensor sees the same elements in the same order, or says that strides cannot do it.
Test(view, random_reshapes) {
    for (uint64_t trial = 0; trial < 300; trial++) {
#define RANDOM(n) (int64_t)(kr_random_uniform(7, trial, draw++) * (float)(n))
        uint64_t draw = 0;
        const int64_t outer = 1 + RANDOM(3), rows = 1 + RANDOM(4);
        const kr_shape shape = KR_SHAPE(outer, rows, 2, 6);
        kr_layout l = {.shape = shape};
        for (int k = 3, step = 1; k >= 0; step *= (int)shape.dim[k--]) l.stride[k] = step;
        // swap two axes and cut one, then reshape: elements must come in the same order
        const int64_t a = RANDOM(4), b = RANDOM(4), axis = RANDOM(4);
        kr_shape s = l.shape;
        s.dim[a] = l.shape.dim[b];
        s.dim[b] = l.shape.dim[a];
        kr_layout swapped, cut, seen;
        cr_assert(kr_op_find("transpose")->view(&(kr_attrs){.i = {a, b}}, &l, &s, &swapped));
        kr_shape shorter = s;
        shorter.dim[axis] = 1 + RANDOM(s.dim[axis]);
        cr_assert(kr_op_find("slice")->view(&(kr_attrs){.i = {axis, s.dim[axis] - shorter.dim[axis], 0}}, &swapped,
                                            &shorter, &cut));
        const int64_t n = kr_shape_count(&shorter);
        const int64_t first = n % 3 == 0 ? 3 : n % 2 == 0 ? 2 : 1;
        const kr_shape to = KR_SHAPE(first, n / first);
        if (!kr_op_find("reshape")->view(&(kr_attrs){.shape = to}, &cut, &to, &seen)) continue;
        for (int64_t i = 0; i < n; i++) {
            int64_t p[KR_MAX_RANK], q[KR_MAX_RANK], want = cut.offset, got = seen.offset;
            unflat(&shorter, i, p);
            unflat(&to, i, q);
            for (int k = 0; k < 4; k++) want += p[k] * cut.stride[k];
            for (int k = 0; k < 2; k++) got += q[k] * seen.stride[k];
            cr_assert_eq(got, want);
        }
    }
}

// Builders and errors -------------------------------------------------------------------------------------------------

Test(view, builders) {
    kr_graph *g;
    check_ok(kr_graph_new(&g), "graph");
    const kr_value x = kr_input(g, "x", KR_F32, KR_SHAPE(2, 3, 4));
    kr_shape s = kr_value_shape(g, kr_reshape(g, x, KR_SHAPE(-1, 4)));
    cr_assert(s.rank == 2 && s.dim[0] == 6);
    cr_assert_eq(kr_reshape(g, x, KR_SHAPE(2, 3, 4)).id, x.id);
    cr_assert_eq(kr_broadcast(g, x, KR_SHAPE(2, 3, 4)).id, x.id);
    s = kr_value_shape(g, kr_slice(g, x, -1, 1, 2));
    cr_assert(s.dim[2] == 2);
    s = kr_value_shape(g, kr_transpose(g, x, -1, 0));
    cr_assert(s.dim[0] == 4 && s.dim[2] == 2);
    kr_value pieces[2];
    kr_split(g, x, 1, (int64_t[]){1, 2}, 2, pieces);
    s = kr_value_shape(g, pieces[1]);
    cr_assert(s.dim[1] == 2);
    s = kr_value_shape(g, kr_concat(g, (kr_value[]){x, x, pieces[0]}, 3, 1));
    cr_assert(s.dim[1] == 7);
    check_ok(kr_graph_status(g), "builders");
    kr_graph_free(g);
}

#define ERROR(name, part, ...)                                                                             \
    Test(view, name) {                                                                                     \
        kr_graph *g;                                                                                       \
        check_ok(kr_graph_new(&g), "graph");                                                               \
        const kr_value x = kr_input(g, "x", KR_F32, KR_SHAPE(2, 3));                                       \
        __VA_ARGS__;                                                                                       \
        (void)x;                                                                                           \
        cr_assert(kr_graph_status(g) != KR_OK, "no error");                                                \
        cr_assert(strstr(kr_status_message(), part), "\"%s\" does not say \"%s\"", kr_status_message(), part); \
        kr_graph_free(g);                                                                                  \
    }
ERROR(reshape_count, "reshape: want 6 elements, not shape [4, 2]", kr_reshape(g, x, KR_SHAPE(4, 2)))
ERROR(reshape_open, "reshape: want 6 elements", kr_reshape(g, x, KR_SHAPE(-1, 4)))
ERROR(slice_range, "slice: want a range inside 0 to 3, not 2 elements from 2", kr_slice(g, x, 1, 2, 2))
ERROR(slice_axis, "slice: there is no such axis in [2, 3]", kr_slice(g, x, 2, 0, 1))
ERROR(split_sum, "split: the pieces have 2 elements together, want 3", kr_value p[2];
      kr_split(g, x, 1, (int64_t[]){1, 1}, 2, p))
ERROR(broadcast_shape, "broadcast: want axes equal to those of [4, 3]", kr_broadcast(g, x, KR_SHAPE(4, 3)))
ERROR(broadcast_rank, "broadcast: want axes equal to those of [3]", kr_broadcast(g, x, KR_SHAPE(3)))
ERROR(pad_negative, "pad: -1 before and 0 after, want none negative", kr_pad(g, x, 0, -1, 0))
ERROR(concat_none, "concat: no inputs, want at least 1", kr_concat(g, NULL, 0, 0))
ERROR(concat_shape, "concat: input 1 differs from input 0 in another axis than 0",
      kr_concat(g, (kr_value[]){x, kr_input(g, "y", KR_F32, KR_SHAPE(2, 4))}, 2, 0))
ERROR(concat_dtype, "concat: input 1 is i32, want f32",
      kr_concat(g, (kr_value[]){x, kr_input(g, "y", KR_I32, KR_SHAPE(2, 3))}, 2, 0))
ERROR(empty_value, "transpose: input 0 is missing", kr_transpose(g, KR_NONE, 0, 1))

Test(view, stop_gradient) {
    kr_graph *g;
    check_ok(kr_graph_new(&g), "graph");
    const kr_value x = kr_input(g, "x", KR_F32, KR_SHAPE(3));
    const kr_value loss = kr_sum(g, kr_mul(g, x, kr_stop_gradient(g, x)), 0, false);
    kr_value d;
    check_ok(kr_autodiff(g, loss, &x, 1, &d), "autodiff");
    kr_output(g, "d", d);
    float vx[] = {1, 2, -3}, vd[3];
    const kr_binding in = {"x", vx, sizeof vx}, out = {"d", vd, sizeof vd};
    check_ok(check_interpret(g, kr_isa_best(), 1, &in, 1, &out, 1), "interpret");
    cr_assert(!memcmp(vx, vd, sizeof vx));
    kr_graph_free(g);
}

// Identities ----------------------------------------------------------------------------------------------------------

static kr_value simplify(kr_graph *g, kr_value v) {
    const kr_node *n = kr_value_node(g, v);
    return n->op->simplify ? n->op->simplify(g, n) : KR_NONE;
}

Test(view, identities) {
    kr_graph *g;
    check_ok(kr_graph_new(&g), "graph");
    const kr_value x = kr_input(g, "x", KR_F32, KR_SHAPE(2, 3, 4)), y = kr_input(g, "y", KR_F32, KR_SHAPE(2, 3, 2));
    kr_value v = simplify(g, kr_reshape(g, kr_reshape(g, x, KR_SHAPE(24)), KR_SHAPE(6, 4)));
    cr_assert_eq(kr_value_node(g, v)->in[0].id, x.id);
    cr_assert_eq(simplify(g, kr_reshape(g, kr_reshape(g, x, KR_SHAPE(24)), KR_SHAPE(2, 3, 4))).id, x.id);
    cr_assert_eq(simplify(g, kr_slice(g, x, 2, 0, 4)).id, x.id);
    v = simplify(g, kr_slice(g, kr_slice(g, x, 2, 1, 3), 2, 1, 1));
    cr_assert(kr_value_node(g, v)->in[0].id == x.id && kr_value_node(g, v)->attrs.i[1] == 2);
    cr_assert_eq(simplify(g, kr_slice(g, kr_slice(g, x, 2, 1, 3), 1, 1, 1)).id, 0);
    cr_assert_eq(simplify(g, kr_slice(g, kr_concat(g, (kr_value[]){x, y}, 2, 2), 2, 4, 2)).id, y.id);
    cr_assert_eq(simplify(g, kr_slice(g, kr_concat(g, (kr_value[]){x, y}, 2, 2), 2, 3, 2)).id, 0);
    cr_assert_eq(simplify(g, kr_slice(g, kr_pad(g, y, 2, 1, 1), 2, 1, 2)).id, kr_slice(g, y, 2, 0, 2).id - 1);
    cr_assert_eq(simplify(g, kr_transpose(g, kr_transpose(g, x, 0, 2), 2, 0)).id, x.id);
    cr_assert_eq(simplify(g, kr_transpose(g, kr_transpose(g, x, 0, 2), 1, 0)).id, 0);
    v = simplify(g, kr_broadcast(g, kr_broadcast(g, x, KR_SHAPE(5, 2, 3, 4)), KR_SHAPE(7, 5, 2, 3, 4)));
    cr_assert_eq(kr_value_node(g, v)->in[0].id, x.id);
    cr_assert_eq(simplify(g, kr_pad(g, x, 1, 0, 0)).id, x.id);
    v = simplify(g, kr_pad(g, kr_pad(g, x, 1, 1, 2), 1, 3, 4));
    cr_assert(kr_value_node(g, v)->in[0].id == x.id && kr_value_node(g, v)->attrs.i[1] == 4);
    cr_assert_eq(simplify(g, kr_concat(g, &x, 1, 0)).id, x.id);
    kr_value pieces[2];
    kr_split(g, x, 2, (int64_t[]){1, 3}, 2, pieces);
    cr_assert_eq(simplify(g, kr_concat(g, pieces, 2, 2)).id, x.id);
    cr_assert_eq(simplify(g, kr_concat(g, (kr_value[]){pieces[1], pieces[0]}, 2, 2)).id, 0);
    cr_assert_eq(simplify(g, kr_concat(g, pieces, 1, 2)).id, pieces[0].id);
    check_ok(kr_graph_status(g), "identities");
    kr_graph_free(g);
}

/// The gradient of a value split in three: sums of pads become one concat of the three pieces, in order.
Test(view, sum_of_pads) {
    kr_graph *g;
    check_ok(kr_graph_new(&g), "graph");
    const kr_value a = kr_input(g, "a", KR_F32, KR_SHAPE(2, 1)), b = kr_input(g, "b", KR_F32, KR_SHAPE(2, 2)),
                   c = kr_input(g, "c", KR_F32, KR_SHAPE(2, 3));
    const kr_value pa = kr_pad(g, a, 1, 0, 5), pb = kr_pad(g, b, 1, 1, 3), pc = kr_pad(g, c, 1, 3, 0);
    // with a gap: a zero constant between
    const kr_value two = simplify(g, kr_add(g, pc, pa));
    const kr_node *n = kr_value_node(g, two);
    double splat = 1;
    cr_assert(two.id && n->inputs == 3 && n->in[0].id == a.id && n->in[2].id == c.id);
    cr_assert(kr_value_is_splat(g, n->in[1], &splat) && splat == 0);
    // the gap is filled later
    n = kr_value_node(g, simplify(g, kr_add(g, two, pb)));
    cr_assert(n && n->inputs == 3 && n->in[0].id == a.id && n->in[1].id == b.id && n->in[2].id == c.id);
    // ranges that overlap, or other axes, stay sums
    cr_assert_eq(simplify(g, kr_add(g, pb, kr_pad(g, b, 1, 2, 2))).id, 0);
    cr_assert_eq(simplify(g, kr_add(g, two, pa)).id, 0);
    const kr_value square = kr_input(g, "square", KR_F32, KR_SHAPE(1, 6));
    cr_assert_eq(simplify(g, kr_add(g, pa, kr_pad(g, square, 0, 1, 0))).id, 0);
    check_ok(kr_graph_status(g), "sum of pads");
    kr_graph_free(g);
}
