#include "tests/check.h"

#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

static void sq_norm(const kr_attrs *t, const kr_shape *shape, const double *const *in, const kr_shape *out_shape,
                    double *const *out) {
    (void)t, (void)out_shape;
    for (int k = 0; k < CHECK_MAX && in[k]; k++)
        for (int64_t i = 0; i < kr_shape_count(&shape[k]); i++) out[0][0] += in[k][i] * in[k][i];
}

/// MATH 13.1 and 13.3; in is p, g, m, v, hyper, sq_norm.
static void adamw(const kr_attrs *t, const kr_shape *shape, const double *const *in, const kr_shape *out_shape,
                  double *const *out) {
    (void)out_shape;
    const double b1 = t->r[0], b2 = t->r[1], eps = t->r[2], decay = t->r[3], most = t->r[4];
    const double lr = in[4][0], norm = in[5] ? sqrt(in[5][0]) : 0;
    const double factor = in[5] && most > 0 ? fmin(1, most / (norm + 1e-6)) : 1;
    for (int64_t i = 0; i < kr_shape_count(&shape[0]); i++) {
        const double g = in[1][i] * factor;
        out[1][i] = b1 * in[2][i] + (1 - b1) * g;
        out[2][i] = b2 * in[3][i] + (1 - b2) * g * g;
        out[0][i] = in[0][i] * (1 - lr * decay) - lr * (out[1][i] / in[4][1]) / (sqrt(out[2][i] / in[4][2]) + eps);
    }
}

Test(train, sq_norm_of_many_values) {
    const check_case c = {
        .op = "sq_norm",
        .inputs = 6,
        .shape = {KR_SHAPE(5, 3), KR_SHAPE(7), KR_SCALAR, KR_SHAPE(0, 4), KR_SHAPE(3, 16384), KR_SHAPE(20000)}};
    check_forward(&c, sq_norm);
    const check_case one = {.op = "sq_norm", .inputs = 1, .shape = {KR_SHAPE(33)}},
                     nothing = {.op = "sq_norm", .inputs = 1, .shape = {KR_SHAPE(0)}};
    check_forward(&one, sq_norm);
    check_forward(&nothing, sq_norm);
}

static check_case update(int64_t n, bool with_norm, double max_norm, double decay) {
    const kr_shape s = KR_SHAPE(n);
    return (check_case){.op = "adamw",
                        .attrs.r = {0.9, 0.95, 1e-8, decay, max_norm},
                        .inputs = 6,
                        .shape = {s, s, s, s, KR_SHAPE(3), with_norm ? KR_SHAPE(1) : CHECK_ABSENT},
                        .lo = {0, 0, 0, 0.01, 0.1, 4},
                        .hi = {0, 0, 0, 1, 0.5, 9}};
}

Test(train, adamw_forward) {
    static const int64_t sizes[] = {0, 1, 15, 16, 33, 5000};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int k = 0; k < 6; k++) {
            const check_case c = update(sizes[s], k > 0, k == 1 ? 0 : k == 2 ? 1 : 100, k % 2 ? 0.1 : 0);
            check_forward(&c, adamw);
        }
}

// One step of one element through the kernel.
typedef struct element {
    float p, g, m, v, hyper[3], square;
} element;

static void step(element *e, bool with_norm, const kr_attrs *t, kr_isa isa) {
    float *const data[] = {&e->p, &e->g, &e->m, &e->v, e->hyper, &e->square};
    kr_arg in[6], out[3];
    for (int k = 0; k < 6; k++) in[k] = (kr_arg){.data = data[k], .shape = KR_SHAPE(k == 4 ? 3 : 1), .stride = {1}};
    if (!with_norm) in[5] = (kr_arg){.shape = CHECK_ABSENT};
    out[0] = in[0], out[1] = in[2], out[2] = in[3];
    check_ok(check_call(kr_op_find("adamw"), t, in, 6, out, isa, 1, false), "adamw");
}

// The first step moves by the learning rate, whatever the gradient's size: m and v are bias-corrected, and eps is added
// after the correction of the root.
Test(train, first_step_is_the_learning_rate) {
    const kr_attrs t = {.r = {0.9, 0.95, 1e-8, 0, 0}};
    for (kr_isa isa = KR_ISA_BASE; isa <= kr_isa_best(); isa++)
        for (int k = -4; k <= 4; k++) {
            element e = {.p = 1, .g = powf(10, (float)k), .hyper = {1e-3f, 0.1f, 0.05f}};
            step(&e, false, &t, isa);
            cr_assert_float_eq(e.p, 1 - 1e-3, 2e-7, "gradient 1e%d: p is %.9g", k, e.p);
        }
}

Test(train, decay_uses_the_weight_before_the_step) {
    const kr_attrs t = {.r = {0.9, 0.95, 1e-8, 0.1, 0}};
    element e = {.p = 2, .g = 1, .hyper = {0.01f, 0.1f, 0.05f}};
    step(&e, false, &t, KR_ISA_BASE);
    cr_assert_float_eq(e.p, 2 - 0.01 * 0.1 * 2 - 0.01, 1e-6);
}

Test(train, a_norm_that_is_not_finite_changes_nothing) {
    const kr_attrs clipped = {.r = {0.9, 0.95, 1e-8, 0.1, 1}}, free_norm = {.r = {0.9, 0.95, 1e-8, 0.1, 0}};
    const float bad[] = {NAN, INFINITY, -INFINITY};
    for (kr_isa isa = KR_ISA_BASE; isa <= kr_isa_best(); isa++)
        for (int k = 0; k < 6; k++) {
            element e = {.p = 2, .g = NAN, .m = 3, .v = 4, .hyper = {0.01f, 0.1f, 0.05f}, .square = bad[k % 3]};
            step(&e, true, k < 3 ? &clipped : &free_norm, isa);
            cr_assert(e.p == 2 && e.m == 3 && e.v == 4, "p, m, v are %g, %g, %g", e.p, e.m, e.v);
        }
}

Test(train, clipping_reaches_the_norm_and_not_below) {
    const kr_attrs t = {.r = {0, 0, 1e-8, 0, 1}};
    element e = {.g = 3, .hyper = {0, 1, 1}, .square = 25}, small = {.g = 0.3f, .hyper = {0, 1, 1}, .square = 0.25f};
    step(&e, true, &t, KR_ISA_BASE);
    step(&small, true, &t, KR_ISA_BASE);
    cr_assert_float_eq(e.m, 0.6, 1e-6);
    cr_assert_float_eq(small.m, 0.3, 1e-7);
}

static void fails(check_case c, const char *words) {
    kr_shape out[CHECK_MAX];
    kr_dtype dtype[CHECK_MAX];
    cr_assert_neq(kr_op_shapes(kr_op_find(c.op), &c.attrs, c.shape, c.dtype, c.inputs, out, dtype), KR_OK,
                  "no error, want \"%s\"", words);
    cr_assert(strstr(kr_status_message(), words), "\"%s\" lacks \"%s\"", kr_status_message(), words);
}

Test(train, bad_inputs_are_named) {
    check_case c = update(4, true, 1, 0);
    c.shape[2] = KR_SHAPE(5);
    fails(c, "m is f32 [5], want f32 [4]");
    c = update(4, true, 1, 0);
    c.shape[4] = KR_SHAPE(2);
    fails(c, "hyper is [2], want f32 [3]");
    c = update(4, true, 1, 0);
    c.shape[5] = KR_SHAPE(4);
    fails(c, "sq_norm is [4], want f32 [1]");
    c = (check_case){.op = "sq_norm", .inputs = 2, .shape = {KR_SHAPE(3), KR_SHAPE(3)}, .dtype = {KR_F32, KR_I32}};
    fails(c, "input 1 is i32, want f32");
}
