#include "ops/matmul/args.h"
#include "tests/check.h"

#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

static double activate(double x, int64_t activation) {
    switch (activation) {
    case KR_ACT_SILU: return x / (1 + exp(-x));
    case KR_ACT_RELU: return x > 0 ? x : 0;
    case KR_ACT_GELU: return 0.5 * x * (1 + tanh(sqrt(2 / acos(-1)) * (x + 0.044715 * x * x * x)));
    case KR_ACT_SIGMOID: return 1 / (1 + exp(-x));
    case KR_ACT_SOFTPLUS: return x > 20 ? x : log1p(exp(x));
    default: return x;
    }
}

static void matmul(const kr_attrs *t, const kr_shape *shape, const double *const *in, const kr_shape *out_shape,
                   double *const *out) {
    const bool ta = t->i[MATMUL_TRANSPOSE_A], tb = t->i[MATMUL_TRANSPOSE_B];
    const int64_t m = out_shape->dim[out_shape->rank - 2], n = out_shape->dim[out_shape->rank - 1];
    const int64_t k = shape[MATMUL_A].dim[shape[MATMUL_A].rank - (ta ? 2 : 1)];
    int64_t batch = 1;
    for (int axis = 0; axis + 2 < out_shape->rank; axis++) batch *= out_shape->dim[axis];
    for (int64_t e = 0; e < batch; e++)
        for (int64_t i = 0; i < m; i++)
            for (int64_t j = 0; j < n; j++) {
                const double *a = in[MATMUL_A] + e * m * k,
                             *b = in[MATMUL_B] + (shape[MATMUL_B].rank > 2 ? e * k * n : 0);
                double sum = in[MATMUL_BIAS] ? in[MATMUL_BIAS][j] : 0;
                for (int64_t q = 0; q < k; q++) sum += a[ta ? q * m + i : i * k + q] * b[tb ? j * k + q : q * n + j];
                const int64_t at = (e * m + i) * n + j;
                out[MATMUL_Y][at] = activate(sum, t->i[MATMUL_ACTIVATION]) +
                                    (in[MATMUL_RESIDUAL] ? in[MATMUL_RESIDUAL][at] : 0);
            }
}

/// a [lead, m, k], b [lead or nothing, k, n]; lead 0: two axes only; extras: bit 0 bias, bit 1 residual.
static check_case product(int64_t lead, bool shared, int64_t m, int64_t n, int64_t k, int transposes, int extras,
                          int act) {
    check_case c = {
        .op = "matmul",
        .attrs.i =
            {[MATMUL_TRANSPOSE_A] = transposes & 1, [MATMUL_TRANSPOSE_B] = transposes >> 1, [MATMUL_ACTIVATION] = act},
        .inputs = MATMUL_INPUTS};
    const int64_t am = transposes & 1 ? k : m, ak = transposes & 1 ? m : k;
    const int64_t bk = transposes >> 1 ? n : k, bn = transposes >> 1 ? k : n;
    c.shape[MATMUL_A] = lead < 0 ? KR_SHAPE(am, ak) : KR_SHAPE(lead, am, ak);
    c.shape[MATMUL_B] = lead < 0 || shared ? KR_SHAPE(bk, bn) : KR_SHAPE(lead, bk, bn);
    c.shape[MATMUL_BIAS] = extras & 1 ? KR_SHAPE(n) : CHECK_ABSENT;
    c.shape[MATMUL_RESIDUAL] = !(extras & 2) ? CHECK_ABSENT : lead < 0 ? KR_SHAPE(m, n) : KR_SHAPE(lead, m, n);
    c.tolerance = 1e-5 * (1 + sqrt((double)k) / 8);
    return c;
}

Test(matmul, forward_of_all_sizes) {
    static const int64_t sizes[][3] = {{1, 1, 1},     {1, 70, 33},   {2, 64, 16},    {3, 130, 50},   {4, 9, 160},
                                       {5, 7, 3},     {13, 33, 17},  {26, 65, 10},   {12, 32, 256},  {31, 48, 600},
                                       {100, 5, 300}, {70, 100, 64}, {20, 200, 600}, {210, 20, 130}, {6, 67, 50},
                                       {8, 3, 17},    {8, 70, 40}};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int transposes = 0; transposes < 4; transposes++) {
            const int extras = (int)(s + (size_t)transposes) % 4;
            const check_case c = product(-1, false, sizes[s][0], sizes[s][1], sizes[s][2], transposes, extras, 0);
            check_forward(&c, matmul);
        }
}

Test(matmul, forward_of_batches) {
    for (int transposes = 0; transposes < 4; transposes++)
        for (int shared = 0; shared < 2; shared++) {
            const check_case few = product(3, shared, 2, 21, 19, transposes, 3, 0);
            const check_case more = product(2, shared, 9, 35, 20, transposes, 1, 0);
            check_forward(&few, matmul);
            check_forward(&more, matmul);
        }
    check_case deep = product(-1, false, 3, 5, 4, 2, 0, 0);
    deep.shape[MATMUL_A] = KR_SHAPE(2, 1, 3, 3, 4);
    deep.shape[MATMUL_B] = KR_SHAPE(2, 1, 3, 5, 4);
    check_forward(&deep, matmul);
}

Test(matmul, forward_with_activations) {
    for (int act = KR_ACT_SILU; act <= KR_ACT_SOFTPLUS; act++) {
        const check_case row = product(-1, false, 1, 40, 12, 2, 1, act);
        const check_case block = product(-1, false, 15, 40, 12, 2, 1, act);
        check_forward(&row, matmul);
        check_forward(&block, matmul);
    }
}

Test(matmul, forward_of_nothing) {
    for (int extras = 0; extras < 4; extras++)
        for (int zero = 1; zero < 8; zero++)
            for (int transposes = 0; transposes < 4; transposes++) {
                const int64_t m = zero & 1 ? 0 : 6, n = zero & 2 ? 0 : 5, k = zero & 4 ? 0 : 4;
                const check_case c = product(-1, false, m, n, k, transposes, extras, 0);
                check_forward(&c, matmul);
            }
    const check_case empty_batch = product(0, false, 3, 4, 5, 2, 1, 0);
    const check_case one_row = product(-1, false, 1, 40, 0, 2, 3, 0);
    check_forward(&empty_batch, matmul);
    check_forward(&one_row, matmul);
}

// Enough for several strips of rows and several pieces of b, along N and along K.
Test(matmul, forward_of_large_products) {
    const check_case blocks = product(-1, false, 300, 130, 90, 2, 1, KR_ACT_SILU);
    check_forward(&blocks, matmul);
    const check_case gradient = product(-1, false, 150, 100, 700, 1, 2, 0);
    check_forward(&gradient, matmul);
    for (int transposes = 0; transposes < 4; transposes++) {
        const check_case pieces = product(-1, false, 30, 420, 700, transposes, 3, 0);
        check_forward(&pieces, matmul);
    }
    for (int64_t m = 1; m <= 8; m += 7) { // so much of b that it is fetched ahead
        const check_case few = product(-1, false, m, 71, 200, 2, 3, 0);
        check_forward(&few, matmul);
    }
    const check_case shallow = product(-1, false, 1030, 520, 3, 1, 1, 0);
    check_forward(&shallow, matmul);
}

Test(matmul, gradient) {
    for (int transposes = 0; transposes < 4; transposes++) {
        const check_case flat = product(-1, false, 4, 5, 3, transposes, 3, 0);
        const check_case batch = product(2, false, 3, 4, 2, transposes, 1, 0);
        const check_case shared = product(3, true, 2, 4, 5, transposes, 3, 0);
        check_gradient(&flat, matmul);
        check_gradient(&batch, matmul);
        check_gradient(&shared, matmul);
    }
    for (int act = KR_ACT_SILU; act <= KR_ACT_SOFTPLUS; act++) {
        const check_case c = product(2, true, 3, 4, 5, 2, 1, act);
        check_gradient(&c, matmul);
    }
}

Test(matmul, linear_takes_a_vector_and_any_leading_axes) {
    kr_graph *g = NULL;
    check_ok(kr_graph_new(&g), "graph");
    const kr_value w = kr_input(g, "w", KR_F32, KR_SHAPE(4, 3)), b = kr_input(g, "b", KR_F32, KR_SHAPE(4));
    const kr_value y1 = kr_linear(g, kr_input(g, "x1", KR_F32, KR_SHAPE(3)), w, b);
    const kr_value y4 = kr_linear(g, kr_input(g, "x4", KR_F32, KR_SHAPE(2, 5, 1, 3)), w, KR_NONE);
    check_ok(kr_graph_status(g), "linear");
    const kr_shape s1 = kr_value_shape(g, y1), s4 = kr_value_shape(g, y4);
    cr_assert(kr_shape_equal(&s1, &KR_SHAPE(4)));
    cr_assert(kr_shape_equal(&s4, &KR_SHAPE(2, 5, 1, 4)));
    kr_graph_free(g);
}

Test(matmul, residual_comes_after_the_activation) {
    kr_graph *g = NULL;
    check_ok(kr_graph_new(&g), "graph");
    const kr_value a = kr_input(g, "a", KR_F32, KR_SHAPE(1, 1)), r = kr_input(g, "r", KR_F32, KR_SHAPE(1, 1));
    kr_output(g, "y", kr_matmul(g, a, a, false, false, KR_NONE, r, KR_ACT_RELU));
    float x = 2, residual = -10, y = 0;
    const kr_binding in[] = {{"a", &x, 4}, {"r", &residual, 4}}, out = {"y", &y, 4};
    check_ok(check_interpret(g, KR_ISA_BASE, 1, in, 2, &out, 1), "matmul");
    cr_assert_float_eq(y, 4 - 10, 1e-6);
    kr_graph_free(g);
}

static void fails(check_case c, const char *words) {
    kr_shape out[CHECK_MAX];
    kr_dtype dtype[CHECK_MAX];
    const kr_op *op = kr_op_find("matmul");
    cr_assert_neq(kr_op_shapes(op, &c.attrs, c.shape, c.dtype, c.inputs, out, dtype), KR_OK, "no error, want \"%s\"",
                  words);
    cr_assert(strstr(kr_status_message(), words), "\"%s\" lacks \"%s\"", kr_status_message(), words);
}

Test(matmul, bad_inputs_are_named) {
    check_case c = product(2, false, 3, 4, 5, 0, 3, 0);
    c.shape[MATMUL_B].dim[1] = 6;
    fails(c, "b is [2, 6, 4], want [...? K N] (transpose_b = 0) with K = 5 (from a)");
    c = product(2, false, 3, 4, 5, 0, 3, 0);
    c.shape[MATMUL_B].dim[0] = 3;
    fails(c, "b is [3, 5, 4], want [...? K N]");
    c = product(2, false, 3, 4, 5, 0, 3, 0);
    c.shape[MATMUL_BIAS] = KR_SHAPE(3);
    fails(c, "bias is [3], want [N] = [4] with N = 4 (from b)");
    c = product(2, false, 3, 4, 5, 0, 3, 0);
    c.shape[MATMUL_RESIDUAL] = KR_SHAPE(3, 4);
    fails(c, "residual is [3, 4], want [... M N] = [2, 3, 4]");
    c = product(-1, false, 3, 4, 5, 0, 0, 0);
    c.shape[MATMUL_A] = KR_SHAPE(5);
    fails(c, "a is [5], want [... M K] (transpose_a = 0)");
    c = product(-1, false, 3, 4, 5, 0, 0, 0);
    c.dtype[MATMUL_B] = KR_I32;
    fails(c, "b is i32 [5, 4], want f32");
    fails(product(-1, false, 3, 4, 5, 0, 2, KR_ACT_SILU), "not both");
    fails(product(-1, false, 3, 4, 5, 0, 0, 17), "activation is 17, want 0 to 5");
}
