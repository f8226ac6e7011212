// Products of operands rounded to bf16, on every path of the machine; and training with them.
#include "runtime/cpu/bf16.h"
#include "tests/check.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { F32, BF16, EMULATED }; // attribute 3 of matmul

/// To nearest, ties to even, by arithmetic on doubles: a bf16 has 8 significant bits.
static double rounded(double x) {
    if (x == 0 || !isfinite(x)) return x;
    int exponent;
    const double fraction = frexp(x, &exponent); // [1/2, 1)
    return ldexp(nearbyint(ldexp(fraction, 8)), exponent - 8);
}

static double *all_rounded(const double *x, const kr_shape *shape) {
    const int64_t count = kr_shape_count(shape);
    double *y = malloc((size_t)(count + 1) * sizeof *y);
    for (int64_t k = 0; k < count; k++) y[k] = rounded(x[k]);
    return y;
}

static void matmul(const kr_attrs *t, const kr_shape *shape, const double *const *in, const kr_shape *out_shape,
                   double *const *out) {
    const bool ta = t->i[0], tb = t->i[1];
    const int64_t m = out_shape->dim[out_shape->rank - 2], n = out_shape->dim[out_shape->rank - 1];
    const int64_t k = shape[0].dim[shape[0].rank - (ta ? 2 : 1)];
    double *all_a = all_rounded(in[0], &shape[0]), *all_b = all_rounded(in[1], &shape[1]);
    int64_t batch = 1;
    for (int axis = 0; axis + 2 < out_shape->rank; axis++) batch *= out_shape->dim[axis];
    for (int64_t e = 0; e < batch; e++)
        for (int64_t i = 0; i < m; i++)
            for (int64_t j = 0; j < n; j++) {
                const double *a = all_a + e * m * k, *b = all_b + (shape[1].rank > 2 ? e * k * n : 0);
                double sum = in[2] ? in[2][j] : 0;
                for (int64_t q = 0; q < k; q++) sum += a[ta ? q * m + i : i * k + q] * b[tb ? j * k + q : q * n + j];
                const int64_t at = (e * m + i) * n + j;
                out[0][at] = (t->i[2] == KR_ACT_RELU && sum < 0 ? 0 : sum) + (in[3] ? in[3][at] : 0);
            }
    free(all_a);
    free(all_b);
}

static check_case product(int64_t lead, int64_t m, int64_t n, int64_t k, int transposes, int extras, int precision) {
    check_case c = {.op = "matmul", .attrs.i = {transposes & 1, transposes >> 1, KR_ACT_NONE, precision}, .inputs = 4};
    const int64_t am = transposes & 1 ? k : m, ak = transposes & 1 ? m : k;
    const int64_t bk = transposes >> 1 ? n : k, bn = transposes >> 1 ? k : n;
    c.shape[0] = lead ? KR_SHAPE(lead, am, ak) : KR_SHAPE(am, ak);
    c.shape[1] = lead ? KR_SHAPE(lead, bk, bn) : KR_SHAPE(bk, bn);
    c.shape[2] = extras & 1 ? KR_SHAPE(n) : CHECK_ABSENT;
    c.shape[3] = !(extras & 2) ? CHECK_ABSENT : lead ? KR_SHAPE(lead, m, n) : KR_SHAPE(m, n);
    c.tolerance = 1e-5 * (1 + sqrt((double)k) / 8);
    return c;
}

// check_forward runs each level and 1 to 5 parts, and wants the same bits of all parts.
Test(bf16, products_of_all_sizes_on_every_path) {
    static const int64_t sizes[][3] = {{1, 1, 1},    {3, 5, 2},    {16, 16, 32},  {17, 33, 31},
                                       {70, 40, 65}, {5, 200, 70}, {130, 10, 100}};
    for (int path = 0; path < KR_BF16_PATH_COUNT; path++) {
        if (!kr_bf16_has((kr_bf16_path)path)) continue;
        kr_bf16_limit((kr_bf16_path)path);
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
            for (int transposes = 0; transposes < 4; transposes++) {
                const int extras = (int)(s + (size_t)transposes) % 4;
                const check_case c = product(s % 3 == 1 ? 3 : 0, sizes[s][0], sizes[s][1], sizes[s][2], transposes,
                                             extras, BF16);
                check_forward(&c, matmul);
            }
    }
    kr_bf16_limit(KR_BF16_PATH_COUNT - 1);
}

/// y [M, N] = a [M, K] b [N, K]^T + bias [N].
static void multiply(const float *a, const float *b, const float *bias, float *y, int64_t m, int64_t n, int64_t k,
                     int threads) {
    kr_graph *g = NULL;
    check_ok(kr_graph_new(&g), "graph");
    const kr_attrs t = {.i = {0, 1, KR_ACT_NONE, BF16}};
    const kr_value in[4] = {kr_input(g, "a", KR_F32, KR_SHAPE(m, k)), kr_input(g, "b", KR_F32, KR_SHAPE(n, k)),
                            kr_input(g, "bias", KR_F32, KR_SHAPE(n))};
    kr_output(g, "y", kr_append(g, kr_op_find("matmul"), &t, in, 4));
    const kr_binding bind[] = {{"a", (void *)a, (size_t)(m * k) * 4},
                               {"b", (void *)b, (size_t)(n * k) * 4},
                               {"bias", (void *)bias, (size_t)n * 4}},
                     out = {"y", y, (size_t)(m * n) * 4};
    check_ok(check_interpret(g, kr_isa_best(), threads, bind, 3, &out, 1), "matmul");
    kr_graph_free(g);
}

// Two pieces of b along K and two along N, three strips of a.
Test(bf16, products_in_several_pieces) {
    enum { M = 140, N = 970, K = 1030 };
    static float a[M * K], b[N * K], bias[N], y[M * N], again[M * N];
    for (int k = 0; k < M * K; k++) a[k] = kr_random_uniform(1, 0, (uint64_t)k) - 0.5f;
    for (int k = 0; k < N * K; k++) b[k] = kr_random_uniform(2, 0, (uint64_t)k) - 0.5f;
    for (int k = 0; k < N; k++) bias[k] = kr_random_uniform(3, 0, (uint64_t)k);
    for (int path = 0; path < KR_BF16_PATH_COUNT; path++) {
        if (!kr_bf16_has((kr_bf16_path)path)) continue;
        kr_bf16_limit((kr_bf16_path)path);
        multiply(a, b, bias, y, M, N, K, 1);
        for (int i = 0; i < M; i += 23) // rows of every strip, columns of every piece
            for (int j = i % 7; j < N; j += 7) {
                double sum = bias[j];
                for (int k = 0; k < K; k++) sum += rounded(a[i * K + k]) * rounded(b[j * K + k]);
                cr_assert_float_eq(y[i * N + j], sum, 5e-5, "%s at %d, %d: %g, want %g",
                                   kr_bf16_path_name((kr_bf16_path)path), i, j, y[i * N + j], sum);
            }
        multiply(a, b, bias, again, M, N, K, 3);
        cr_assert_eq(memcmp(y, again, sizeof y), 0, "three threads give other bits");
    }
    kr_bf16_limit(KR_BF16_PATH_COUNT - 1);
}

Test(bf16, activations_come_last) {
    for (int path = 0; path < KR_BF16_PATH_COUNT; path++) {
        if (!kr_bf16_has((kr_bf16_path)path)) continue;
        kr_bf16_limit((kr_bf16_path)path);
        check_case rows = product(0, 140, 35, 40, 1, 1, BF16);
        rows.attrs.i[2] = KR_ACT_RELU;
        check_forward(&rows, matmul);
    }
    kr_bf16_limit(KR_BF16_PATH_COUNT - 1);
}

Test(bf16, products_of_nothing_and_emulated) {
    for (int zero = 1; zero < 8; zero++) {
        const check_case c = product(0, zero & 1 ? 0 : 6, zero & 2 ? 0 : 5, zero & 4 ? 0 : 4, zero % 4, 3, BF16);
        check_forward(&c, matmul);
    }
    const check_case emulated = product(0, 33, 20, 50, 2, 1, EMULATED);
    check_forward(&emulated, matmul);
}

/// One product of 1 by 1: what a * b gives with both rounded.
static float once(float a, float b) {
    kr_graph *g = NULL;
    check_ok(kr_graph_new(&g), "graph");
    const kr_attrs t = {.i = {0, 0, KR_ACT_NONE, BF16}};
    const kr_value in[4] = {kr_input(g, "a", KR_F32, KR_SHAPE(1, 1)), kr_input(g, "b", KR_F32, KR_SHAPE(1, 1))};
    kr_output(g, "y", kr_append(g, kr_op_find("matmul"), &t, in, 4));
    float y = 0;
    const kr_binding bind[] = {{"a", &a, 4}, {"b", &b, 4}}, out = {"y", &y, 4};
    check_ok(check_interpret(g, kr_isa_best(), 1, bind, 2, &out, 1), "matmul");
    kr_graph_free(g);
    return y;
}

Test(bf16, rounding_is_to_nearest_even_and_keeps_nan) {
    cr_assert_eq(once(1 + 0x1p-8f, 1), 1);                          // a tie: the even neighbour is below
    cr_assert_eq(once(1 + 3 * 0x1p-8f, 1), 1 + 4 * 0x1p-8f);        // a tie: above
    cr_assert_eq(once(1 + 0x1p-8f + 0x1p-20f, 1), 1 + 2 * 0x1p-8f); // more than a tie
    cr_assert_eq(once(-(1 + 0x1p-8f), 0.5f), -0.5f);
    cr_assert(isinf(once(3.4028235e38f, 1)), "the largest f32 rounds to infinity");
    cr_assert(isnan(once(NAN, 1)));
    const uint32_t bits = 0x7f800001; // a NaN that loses all its payload with its lower half
    float quiet;
    memcpy(&quiet, &bits, sizeof quiet);
    cr_assert(isnan(once(quiet, 1)));
}

// Training ----------------------------------------------------------------------------------------------------------

enum { STEPS = 60, ROWS = 64, WIDTH = 24 };

/// Two layers that learn a fixed map from noise; gives the loss of every step.
static void train(kr_precision precision, int threads, float *loss) {
    kr_graph *g = NULL;
    check_ok(kr_graph_new(&g), "graph");
    const kr_value x = kr_input(g, "x", KR_F32, KR_SHAPE(ROWS, WIDTH)),
                   y = kr_input(g, "y", KR_F32, KR_SHAPE(ROWS, WIDTH));
    const kr_init normal = {.kind = KR_INIT_NORMAL, .a = 0.2};
    const kr_value w1 = kr_param(g, "w1", KR_SHAPE(2 * WIDTH, WIDTH), normal, KR_PARAM_DECAY);
    const kr_value w2 = kr_param(g, "w2", KR_SHAPE(WIDTH, 2 * WIDTH), normal, KR_PARAM_DECAY);
    const kr_value hidden = kr_silu(g, kr_linear(g, x, w1, KR_NONE));
    const kr_value error = kr_sub(g, kr_linear(g, hidden, w2, KR_NONE), y), square = kr_mul(g, error, error);
    kr_output(g, "loss", kr_mean(g, kr_mean(g, square, 0, false), 0, false));
    kr_plan *plan;
    const kr_compile_options options = {
        .goal = KR_GOAL_TRAIN, .precision = precision, .optimizer = {0.9, 0.95, 1e-8, 0, 1}};
    check_ok(kr_compile(g, &options, &plan, NULL), "compile");
    kr_graph_free(g);
    kr_device *device;
    kr_session *session;
    check_ok(kr_device_cpu(&device), "device");
    check_ok(kr_session_open(device, threads, &session), "session");
    check_ok(kr_session_add(session, plan), "plan");
    check_ok(kr_session_init(session, 5), "parameters");
    float in[ROWS * WIDTH], want[ROWS * WIDTH];
    for (int step = 0; step < STEPS; step++) {
        for (int k = 0; k < ROWS * WIDTH; k++) {
            in[k] = kr_random_uniform(9, 0, (uint64_t)(step * ROWS * WIDTH + k)) * 2 - 1;
            want[k] = k % WIDTH ? in[k] * in[k - 1] : in[k];
        }
        float learning_rate = 0.01f, norm;
        const kr_binding bind[] = {{"x", in, sizeof in},
                                   {"y", want, sizeof want},
                                   {"learning_rate", &learning_rate, 4},
                                   {"loss", &loss[step], 4},
                                   {"grad_norm", &norm, 4}};
        check_ok(kr_plan_run(session, plan, bind, 5, 0), "step");
    }
    kr_session_close(session);
    kr_plan_free(plan);
    kr_device_close(device);
}

Test(bf16, training_goes_as_in_f32) {
    float exact[STEPS], loss[STEPS], again[STEPS];
    train(KR_PRECISION_F32, 1, exact);
    cr_assert_lt(exact[STEPS - 1], 0.6 * exact[0], "nothing is learnt: %g to %g", exact[0], exact[STEPS - 1]);
    const kr_precision precisions[] = {KR_PRECISION_BF16_EMULATED, KR_PRECISION_BF16};
    for (int p = 0; p < (kr_bf16_best() ? 2 : 1); p++) {
        train(precisions[p], 1, loss);
        bool differs = false;
        for (int step = 0; step < STEPS; step++) {
            differs |= loss[step] != exact[step];
            cr_assert_float_eq(loss[step], exact[step], 0.02 * exact[step], "step %d: %g, in f32 %g", step, loss[step],
                               exact[step]);
        }
        cr_assert(differs, "products were not rounded");
        train(precisions[p], 3, again);
        cr_assert_eq(memcmp(loss, again, sizeof loss), 0, "three threads give other bits");
    }
}

Test(bf16, a_machine_without_it_is_told) {
    kr_graph *g = NULL;
    check_ok(kr_graph_new(&g), "graph");
    const kr_value x = kr_input(g, "x", KR_F32, KR_SHAPE(2, 2));
    kr_output(g, "y", kr_linear(g, x, x, KR_NONE));
    kr_bf16_limit(KR_BF16_EMULATED);
    kr_compile_options options = {.goal = KR_GOAL_FORWARD, .precision = KR_PRECISION_BF16};
    kr_plan *plan = NULL;
    cr_assert_eq(kr_compile(g, &options, &plan, NULL), KR_UNSUPPORTED);
    cr_assert(strstr(kr_status_message(), "needs AMX or AVX512_BF16"), "%s", kr_status_message());
    cr_assert(strstr(kr_status_message(), "bf16-emulated"), "%s", kr_status_message());
    options.precision = KR_PRECISION_BF16_EMULATED;
    check_ok(kr_compile(g, &options, &plan, NULL), "emulated");
    kr_plan_free(plan);
    options.precision = (kr_precision)7;
    cr_assert_eq(kr_compile(g, &options, &plan, NULL), KR_BAD_ARGUMENT);
    kr_bf16_limit(KR_BF16_PATH_COUNT - 1);
    kr_graph_free(g);
}
