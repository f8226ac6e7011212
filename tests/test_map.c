/// The elementwise ops: every row of map.def against its own expression in double.
#include "tests/check.h"

#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#define NUM(c) ((double)(c))
#define EXP exp
#define LOG log
#define SQRT sqrt
#define ABS fabs
#define SIGMOID(x) (1 / (1 + exp(-(x))))
#define TANH tanh
#define SOFTPLUS(x) ((x) > 20 ? (x) : log1p(exp(x)))
#define SELECT(mask, yes, no) ((mask) ? (yes) : (no))

#define LOAD_1 const double x = in[0][i];
#define LOAD_2 LOAD_1 const double y = in[1][i];
#define LOAD_3 LOAD_2 const double z = in[2][i];
#define KEPT_X const double x = in[1][i];
#define KEPT_Y const double y = in[1][i];
#define ORACLE(name, load, value)                                                                            \
    static void oracle_##name(const kr_attrs *attrs, const kr_shape *in_shape, const double *const *in,      \
                              const kr_shape *out_shape, double *const *out) {                               \
        const double a = attrs->r[0], b = attrs->r[1];                                                       \
        (void)a, (void)b, (void)in_shape;                                                                    \
        for (int64_t i = 0; i < kr_shape_count(out_shape); i++) { load out[0][i] = (value); }                \
    }
#define MAP(name, arity, reals, flags, value) ORACLE(name, LOAD_##arity, value)
#define MAP_G(name, arity, reals, value) ORACLE(name, LOAD_##arity, value)
#define MAP_F(name, kept, value, derivative) \
    ORACLE(name, LOAD_1, value)              \
    ORACLE(name##_grad, const double dy = in[0][i]; KEPT_##kept, dy * (derivative))
#include "ops/elementwise/map.def"

typedef struct row {
    const char *name;
    int arity;
    check_oracle *oracle;
    bool differentiable;
} row;
static const row rows[] = {
#define MAP(name, arity, reals, flags, value) {#name, arity, oracle_##name, true},
#define MAP_G(name, arity, reals, value) {#name, arity, oracle_##name, false},
#define MAP_F(name, kept, value, derivative) \
    {#name, 1, oracle_##name, true}, {#name "_grad", 2, oracle_##name##_grad, false},
#include "ops/elementwise/map.def"
};
enum { ROWS = sizeof rows / sizeof *rows };

static bool has(const char *text, const char *part) { return strstr(text, part) != NULL; }

static check_case case_of(const row *r, kr_shape shape) {
    check_case c = {.op = r->name, .inputs = r->arity, .attrs.r = {-0.7, 1.3}, .seed = 11};
    for (int i = 0; i < r->arity; i++) {
        c.shape[i] = shape;
        c.lo[i] = -4;
        c.hi[i] = 4;
        // domains: logarithms and roots of positive numbers, divisors away from 0
        const bool positive = has(r->name, "log") || has(r->name, "sqrt") || has(r->name, "reciprocal");
        const bool divisor = has(r->name, "div") && i == r->arity - 1;
        if (positive || divisor) {
            c.lo[i] = 0.2;
            c.hi[i] = 3;
        }
    }
    if (!strcmp(r->name, "where")) {
        c.dtype[0] = KR_BOOL;
        c.lo[0] = 0;
        c.hi[0] = 1;
        c.no_gradient = 1;
    }
    return c;
}

Test(map, forward) {
    const kr_shape shapes[] = {KR_SCALAR, KR_SHAPE(1), KR_SHAPE(35), KR_SHAPE(3, 1, 5, 33), KR_SHAPE(4, 70),
                               KR_SHAPE(0, 4), KR_SHAPE(3, 0), KR_SHAPE(2, 3, 2, 2, 3, 2)};
    for (int k = 0; k < ROWS; k++)
        for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
            const check_case c = case_of(&rows[k], shapes[s]);
            check_forward(&c, rows[k].oracle);
        }
}

Test(map, several_blocks) {
    static const char *const names[] = {"mul", "where", "silu", "affine"};
    for (int k = 0; k < ROWS; k++)
        for (size_t s = 0; s < sizeof names / sizeof *names; s++)
            if (!strcmp(rows[k].name, names[s])) {
                check_case c = case_of(&rows[k], KR_SHAPE(13, 1001));
                check_forward(&c, rows[k].oracle);
                c = case_of(&rows[k], KR_SHAPE(1900, 7));
                check_forward(&c, rows[k].oracle);
            }
}

Test(map, where_on_floats) {
    for (int k = 0; k < ROWS; k++) {
        if (strcmp(rows[k].name, "where")) continue;
        check_case c = case_of(&rows[k], KR_SHAPE(3, 19));
        c.dtype[0] = KR_F32;
        check_forward(&c, rows[k].oracle);
    }
}

Test(map, gradient) {
    for (int k = 0; k < ROWS; k++) {
        if (!rows[k].differentiable) continue;
        const check_case c = case_of(&rows[k], KR_SHAPE(3, 17));
        check_gradient(&c, rows[k].oracle);
    }
}

// Casts -------------------------------------------------------------------------------------------------------------

static void oracle_cast(const kr_attrs *attrs, const kr_shape *in_shape, const double *const *in,
                        const kr_shape *out_shape, double *const *out) {
    (void)in_shape;
    for (int64_t i = 0; i < kr_shape_count(out_shape); i++) {
        const kr_dtype to = (kr_dtype)attrs->i[0];
        double x = in[0][i];
        if (to == KR_I32 || to == KR_I64 || to == KR_U8) x = trunc(x);
        char room[8];
        check_set(room, to, 0, x);
        out[0][i] = check_get(room, to, 0);
    }
}

static void oracle_same(const kr_attrs *attrs, const kr_shape *in_shape, const double *const *in,
                        const kr_shape *out_shape, double *const *out) {
    (void)attrs, (void)in_shape;
    memcpy(out[0], in[0], (size_t)kr_shape_count(out_shape) * sizeof **out);
}

Test(map, cast_all_pairs) {
    for (kr_dtype from = 0; from < KR_DTYPE_COUNT; from++)
        for (kr_dtype to = 0; to < KR_DTYPE_COUNT; to++) {
            check_case c = {.op = "cast", .attrs.i = {to}, .inputs = 1, .shape = {KR_SHAPE(5, 131)}, .dtype = {from},
                            .lo = {to == KR_U8 ? 0 : -90}, .hi = {100}, .tolerance = 1e-12};
            if (from == KR_U8) c.lo[0] = 0;
            if (from == KR_BOOL) c.lo[0] = 0, c.hi[0] = 1;
            check_forward(&c, oracle_cast);
        }
    const check_case g = {.op = "cast", .attrs.i = {KR_F32}, .inputs = 1, .shape = {KR_SHAPE(4, 3)}};
    check_gradient(&g, oracle_same);
}

/// Runs a one-input graph op on the given f32 values and gives the packed result.
static void run(const char *op, const kr_attrs *attrs, const void *x, kr_dtype from, int n, void *y, kr_dtype to,
                kr_isa isa) {
    const kr_arg in = {.data = (void *)(uintptr_t)x, .dtype = from, .shape = KR_SHAPE(n), .stride = {1}};
    const kr_arg out = {.data = y, .dtype = to, .shape = KR_SHAPE(n), .stride = {1}};
    check_ok(check_call(kr_op_find(op), attrs, &in, 1, &out, isa, 1, false), op);
}

Test(map, cast_edges) {
    const float x[] = {NAN, INFINITY, -INFINITY, 3e9f, -3e9f, 1e20f, 255.5f, -0.5f, 0.5f, 2147483520.0f};
    int32_t i32[10];
    int64_t i64[10];
    uint8_t u8[10], b[10];
    for (kr_isa isa = 0; isa <= kr_isa_best(); isa++) {
        run("cast", &(kr_attrs){.i = {KR_I32}}, x, KR_F32, 10, i32, KR_I32, isa);
        run("cast", &(kr_attrs){.i = {KR_I64}}, x, KR_F32, 10, i64, KR_I64, isa);
        run("cast", &(kr_attrs){.i = {KR_U8}}, x, KR_F32, 10, u8, KR_U8, isa);
        run("cast", &(kr_attrs){.i = {KR_BOOL}}, x, KR_F32, 10, b, KR_BOOL, isa);
        const int32_t want32[] = {0, INT32_MAX, INT32_MIN, INT32_MAX, INT32_MIN, INT32_MAX, 255, 0, 0, 2147483520};
        const int64_t want64[] = {0, INT64_MAX, INT64_MIN, 3000000000, -3000000000, INT64_MAX, 255, 0, 0, 2147483520};
        const uint8_t want8[] = {0, 255, 0, 255, 0, 255, 255, 0, 0, 255}, want_b[] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
        cr_assert(!memcmp(i32, want32, sizeof i32));
        cr_assert(!memcmp(i64, want64, sizeof i64));
        cr_assert(!memcmp(u8, want8, sizeof u8));
        cr_assert(!memcmp(b, want_b, sizeof b));
    }
}

Test(map, nan_comes_through) {
    const char *const ops[] = {"relu", "clamp", "exp", "log", "sqrt", "sigmoid", "silu", "tanh", "gelu", "softplus",
                               "heavy_tail", "abs", "square", "rsqrt", "neg", "reciprocal", "affine"};
    const float x[] = {NAN};
    for (kr_isa isa = 0; isa <= kr_isa_best(); isa++)
        for (size_t k = 0; k < sizeof ops / sizeof *ops; k++) {
            float y[1] = {0};
            run(ops[k], &(kr_attrs){.r = {-1, 1}}, x, KR_F32, 1, y, KR_F32, isa);
            cr_assert(isnan(y[0]), "%s of NaN is %g", ops[k], y[0]);
        }
}

// Builders ------------------------------------------------------------------------------------------------------------

/// x [2, 1, 3] * y [4, 1]: gradients are summed over the broadcast axes.
Test(map, broadcast_gradient) {
    kr_graph *g;
    check_ok(kr_graph_new(&g), "graph");
    const kr_value x = kr_input(g, "x", KR_F32, KR_SHAPE(2, 1, 3)), y = kr_input(g, "y", KR_F32, KR_SHAPE(4, 1));
    const kr_value w = kr_input(g, "w", KR_F32, KR_SHAPE(2, 4, 3));
    const kr_value product = kr_mul(g, kr_mul(g, x, y), w),
                   loss = kr_sum(g, kr_reshape(g, product, KR_SHAPE(24)), 0, false);
    kr_value grads[2];
    check_ok(kr_autodiff(g, loss, (kr_value[]){x, y}, 2, grads), "autodiff");
    kr_output(g, "dx", grads[0]);
    kr_output(g, "dy", grads[1]);
    float vx[6], vy[4], vw[24], dx[6], dy[4];
    double want_x[6] = {0}, want_y[4] = {0};
    for (int i = 0; i < 6; i++) vx[i] = kr_random_uniform(1, 0, i);
    for (int i = 0; i < 4; i++) vy[i] = kr_random_uniform(1, 1, i);
    for (int i = 0; i < 24; i++) vw[i] = kr_random_uniform(1, 2, i);
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 4; j++)
            for (int k = 0; k < 3; k++) {
                want_x[i * 3 + k] += (double)vy[j] * vw[(i * 4 + j) * 3 + k];
                want_y[j] += (double)vx[i * 3 + k] * vw[(i * 4 + j) * 3 + k];
            }
    for (kr_isa isa = 0; isa <= kr_isa_best(); isa++) {
        const kr_binding in[] = {{"x", vx, sizeof vx}, {"y", vy, sizeof vy}, {"w", vw, sizeof vw}};
        const kr_binding out[] = {{"dx", dx, sizeof dx}, {"dy", dy, sizeof dy}};
        check_ok(check_interpret(g, isa, 2, in, 3, out, 2), "interpret");
        check_close(dx, KR_F32, want_x, 6, 1e-6, "dx");
        check_close(dy, KR_F32, want_y, 4, 1e-6, "dy");
    }
    kr_graph_free(g);
}

/// Every builder makes the op of its name.
Test(map, builders) {
    kr_graph *g;
    check_ok(kr_graph_new(&g), "graph");
    const kr_value x = kr_input(g, "x", KR_F32, KR_SHAPE(2, 3)), y = kr_input(g, "y", KR_F32, KR_SHAPE(3));
#define ONE(f) cr_assert_str_eq(kr_value_node(g, kr_##f(g, x))->op->name, #f);
#define TWO(f) cr_assert_str_eq(kr_value_node(g, kr_##f(g, x, y))->op->name, #f);
    ONE(neg) ONE(exp) ONE(log) ONE(sqrt) ONE(rsqrt) ONE(square) ONE(abs) ONE(reciprocal) ONE(sigmoid) ONE(silu)
    ONE(tanh) ONE(relu) ONE(gelu) ONE(softplus) ONE(heavy_tail)
    TWO(add) TWO(sub) TWO(mul) TWO(div) TWO(maximum) TWO(minimum)
    const kr_value m = kr_map(g, "clamp", &x, 1, -1, 2);
    cr_assert_str_eq(kr_value_node(g, m)->op->name, "clamp");
    cr_assert_eq(kr_value_node(g, m)->attrs.r[1], 2);
    cr_assert_str_eq(kr_value_node(g, kr_where(g, x, y, y))->op->name, "where");
    check_ok(kr_graph_status(g), "builders");
    kr_graph_free(g);
}

static void expect_error(void (*build)(kr_graph *), const char *part) {
    kr_graph *g;
    check_ok(kr_graph_new(&g), "graph");
    build(g);
    cr_assert(kr_graph_status(g) != KR_OK, "no error, want \"%s\"", part);
    cr_assert(has(kr_status_message(), part), "\"%s\" does not say \"%s\"", kr_status_message(), part);
    kr_graph_free(g);
}
static kr_value input(kr_graph *g, const char *name, kr_shape s) { return kr_input(g, name, KR_F32, s); }
static void bad_shapes(kr_graph *g) { kr_add(g, input(g, "x", KR_SHAPE(2, 3)), input(g, "y", KR_SHAPE(2))); }
static void bad_clamp(kr_graph *g) { kr_clamp(g, input(g, "x", KR_SHAPE(2)), 2, 1); }
static void bad_name(kr_graph *g) { kr_map(g, "slu", (kr_value[]){input(g, "x", KR_SHAPE(2))}, 1, 0, 0); }
static void bad_count(kr_graph *g) { kr_map(g, "add", (kr_value[]){input(g, "x", KR_SHAPE(2))}, 1, 0, 0); }
static void bad_dtype(kr_graph *g) { kr_exp(g, kr_input(g, "x", KR_I32, KR_SHAPE(2))); }
static void bad_value(kr_graph *g) { kr_exp(g, KR_NONE); }
static void bad_condition(kr_graph *g) {
    const kr_value x = input(g, "x", KR_SHAPE(2));
    kr_where(g, kr_input(g, "c", KR_I32, KR_SHAPE(2)), x, x);
}

Test(map, errors) {
    expect_error(bad_shapes, "add: operand 1 is [2], which does not broadcast with [2, 3]");
    expect_error(bad_clamp, "clamp: lo 2 is above hi 1");
    expect_error(bad_name, "\"slu\" is not an elementwise op");
    expect_error(bad_count, "1 operands for add, want 2");
    expect_error(bad_dtype, "operand 0 is i32, want f32");
    expect_error(bad_value, "exp: input 0 is missing");
    expect_error(bad_condition, "the condition is i32, want f32 or bool");
}

// Identities --------------------------------------------------------------------------------------------------------

static kr_value simplify(kr_graph *g, kr_value v) {
    const kr_node *n = kr_value_node(g, v);
    return n->op->simplify ? n->op->simplify(g, n) : KR_NONE;
}

Test(map, identities) {
    kr_graph *g;
    check_ok(kr_graph_new(&g), "graph");
    const kr_value x = input(g, "x", KR_SHAPE(2, 3)), y = input(g, "y", KR_SHAPE(2, 3));
    const kr_value zero = kr_const(g, 0, KR_F32, KR_SCALAR), one = kr_const(g, 1, KR_F32, KR_SHAPE(3));
    cr_assert_eq(simplify(g, kr_add(g, x, zero)).id, x.id);
    cr_assert_eq(simplify(g, kr_add(g, zero, x)).id, x.id);
    cr_assert_eq(simplify(g, kr_sub(g, x, zero)).id, x.id);
    cr_assert_eq(simplify(g, kr_sub(g, zero, x)).id, 0);
    cr_assert_eq(simplify(g, kr_mul(g, x, one)).id, x.id);
    cr_assert_eq(simplify(g, kr_mul(g, one, x)).id, x.id);
    cr_assert_eq(simplify(g, kr_mul(g, x, zero)).id, 0);
    cr_assert_eq(simplify(g, kr_div(g, x, one)).id, x.id);
    cr_assert_eq(simplify(g, kr_affine(g, x, 1, 0)).id, x.id);
    cr_assert_eq(simplify(g, kr_affine(g, x, 2, 0)).id, 0);
    cr_assert_eq(simplify(g, kr_neg(g, kr_neg(g, x))).id, x.id);
    cr_assert_eq(simplify(g, kr_cast(g, x, KR_F32)).id, x.id);
    cr_assert_eq(simplify(g, kr_cast(g, x, KR_F64)).id, 0);
    cr_assert_eq(simplify(g, kr_add(g, x, y)).id, 0);
    kr_graph_free(g);
}
