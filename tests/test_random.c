/// Philox known answers, what is drawn from it, and initialisers.
#include "runtime/runtime.h"

#include "plans.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/// Philox4x32-10 in the authors' known-answer file (Random123 1.14, tests/kat_vectors).
Test(random, philox_known_answers) {
    static const struct {
        uint64_t key, high, low;
        uint32_t want[4];
    } cases[] = {
        {0, 0, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {UINT64_MAX, UINT64_MAX, UINT64_MAX, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {0x299f31d0a4093822, 0x0370734413198a2e, 0x85a308d3243f6a88, {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        uint32_t got[4];
        kr_philox(cases[k].key, cases[k].high, cases[k].low, got);
        for (int w = 0; w < 4; w++)
            cr_assert_eq(got[w], cases[k].want[w], "case %zu word %d: 0x%08x, want 0x%08x", k, w, got[w],
                         cases[k].want[w]);
    }
}

Test(random, elements_are_words_of_counters) {
    for (uint64_t index = 0; index < 4096; index++) {
        uint32_t words[4];
        kr_philox(7, 9, index / 4, words);
        const float u = kr_random_uniform(7, 9, index);
        cr_assert_eq(u, (float)(words[index % 4] >> 8) / 16777216.0f);
        cr_assert(u >= 0 && u < 1);
    }
    cr_assert_neq(kr_random_uniform(1, 2, 3), kr_random_uniform(1, 2, 4));
    cr_assert_neq(kr_random_uniform(1, 2, 3), kr_random_uniform(1, 3, 3));
    cr_assert_neq(kr_random_uniform(1, 2, 3), kr_random_uniform(2, 2, 3));
}

/// Moments within five standard errors, for a stream drawn once and for all.
Test(random, moments) {
    const int n = 200000;
    double uniform[3] = {0}, normal[5] = {0}, product = 0;
    for (int i = 0; i < n; i++) {
        const double u = kr_random_uniform(42, 1, (uint64_t)i), x = kr_random_normal(42, 2, (uint64_t)i);
        uniform[1] += u, uniform[2] += u * u;
        normal[1] += x, normal[2] += x * x, normal[3] += x * x * x, normal[4] += x * x * x * x;
        product += x * kr_random_normal(42, 2, (uint64_t)i + 1);
    }
    const double unit = 5 / sqrt(n);
    cr_assert(fabs(uniform[1] / n - 0.5) < unit * sqrt(1.0 / 12));
    cr_assert(fabs(uniform[2] / n - 1.0 / 3) < unit * sqrt(4.0 / 45));
    cr_assert(fabs(normal[1] / n) < unit);
    cr_assert(fabs(normal[2] / n - 1) < unit * sqrt(2));
    cr_assert(fabs(normal[3] / n) < unit * sqrt(15));
    cr_assert(fabs(normal[4] / n - 3) < unit * sqrt(96));
    cr_assert(fabs(product / n) < unit, "neighbours are correlated");
}

/// Kolmogorov-Smirnov distance from the normal distribution, at the 0.1 % level.
static int ascending(const void *a, const void *b) {
    return (*(const float *)a > *(const float *)b) - (*(const float *)a < *(const float *)b);
}

Test(random, normal_distribution) {
    enum { N = 20000 };
    static float x[N];
    for (int i = 0; i < N; i++) x[i] = kr_random_normal(3, 4, (uint64_t)i);
    qsort(x, N, sizeof *x, ascending);
    double distance = 0;
    for (int i = 0; i < N; i++) {
        const double want = 0.5 * erfc(-x[i] / sqrt(2));
        distance = fmax(distance, fmax(fabs(want - (double)i / N), fabs(want - (double)(i + 1) / N)));
    }
    cr_assert(distance < 1.95 / sqrt(N), "distance %g", distance);
}

/// XXH3 with seed 0 of nothing, from its documentation, and differences where there should be some.
Test(random, hash) {
    cr_assert_eq(kr_hash("", 0), UINT64_C(0x2d06800538d394c2));
    cr_assert_neq(kr_hash("a", 1), kr_hash("b", 1));
    cr_assert_eq(kr_hash("layers.0", 8), kr_hash("layers.0x", 8));
}

static void fill(kr_init_kind kind, double a, double b, double c, const char *name, float *out, int64_t n,
                 int64_t last) {
    const kr_init init = {kind, a, b, c};
    for (int64_t i = 0; i < n; i++) out[i] = NAN;
    out[n] = 777;
    kr_init_fill(&init, 11, name, out, n, last);
    cr_assert_eq(out[n], 777, "wrote behind the end");
    for (int64_t i = 0; i < n; i++) cr_assert(isfinite(out[i]));
}

Test(init, every_kind) {
    enum { N = 10007 };
    static float x[N + 1], y[N + 1];
    double mean = 0, square = 0;

    fill(KR_INIT_ZEROS, 0, 0, 0, "w", x, N, N);
    for (int i = 0; i < N; i++) cr_assert_eq(x[i], 0);
    fill(KR_INIT_CONSTANT, 0.25, 0, 0, "w", x, N, N);
    for (int i = 0; i < N; i++) cr_assert_eq(x[i], 0.25f);

    fill(KR_INIT_UNIFORM, 0.5, 0, 0, "w", x, N, N);
    for (int i = 0; i < N; i++) {
        cr_assert(x[i] >= -0.5f && x[i] < 0.5f);
        mean += x[i];
        square += (double)x[i] * x[i];
    }
    cr_assert(fabs(mean / N) < 0.015 && fabs(square / N - 0.25 / 3) < 0.004);
    fill(KR_INIT_UNIFORM, 0.5, 0, 0, "v", y, N, N);
    cr_assert(memcmp(x, y, sizeof x) != 0, "two names, one stream");
    fill(KR_INIT_UNIFORM, 0.5, 0, 0, "w", y, 101, 101);
    cr_assert(memcmp(x, y, 101 * sizeof *x) == 0, "the values depend on the size");

    fill(KR_INIT_NORMAL, 0.02, 0, 0, "w", x, N, N);
    mean = square = 0;
    for (int i = 0; i < N; i++) mean += x[i], square += (double)x[i] * x[i];
    cr_assert(fabs(mean / N) < 0.001 && fabs(square / N / 4e-4 - 1) < 0.07);

    fill(KR_INIT_LOG_UNIFORM, 1, 16, 0, "A_log", x, N, N);
    mean = 0;
    for (int i = 0; i < N; i++) {
        cr_assert(x[i] >= 0 && x[i] <= logf(16));
        mean += exp(x[i]);
    }
    cr_assert(fabs(mean / N - 8.5) < 0.25);
}

Test(init, log_arange_along_the_last_axis) {
    float x[5 * 16 + 1];
    fill(KR_INIT_LOG_ARANGE, 0, 0, 0, "A_log", x, 5 * 16, 16);
    for (int i = 0; i < 5 * 16; i++) cr_assert_eq(x[i], (float)log(i % 16 + 1));
}

Test(init, dt_bias_is_the_inverse_softplus_of_a_step) {
    enum { N = 5000 };
    static float x[N + 1];
    double lowest = 1, highest = 0, mean = 0;
    fill(KR_INIT_DT_BIAS, 1e-3, 0.1, 1e-4, "dt_proj.bias", x, N, N);
    for (int i = 0; i < N; i++) {
        const double dt = log1p(exp(x[i]));
        lowest = fmin(lowest, dt);
        highest = fmax(highest, dt);
        mean += log(dt);
    }
    cr_assert(lowest > 0.999e-3 && lowest < 1.1e-3);
    cr_assert(highest < 0.1001 && highest > 0.09);
    cr_assert(fabs(mean / N - (log(1e-3) + log(0.1)) / 2) < 0.1);
    fill(KR_INIT_DT_BIAS, 1e-3, 0.1, 0.05, "dt_proj.bias", x, N, N);
    for (int i = 0; i < N; i++) cr_assert(log1p(exp(x[i])) > 0.04999);
}

Test(init, nothing_to_fill) {
    for (int kind = 0; kind < KR_INIT_COUNT; kind++) {
        const kr_init init = {(kr_init_kind)kind, 1, 2, 3};
        kr_init_fill(&init, 1, "w", NULL, 0, 0);
    }
}

// A session makes large parameters block by block; that must not show.
Test(init, of_a_session_is_the_whole_at_once) {
    enum { ROWS = 1500, COLS = 101, N = ROWS * COLS };
    static const kr_init inits[] = {{KR_INIT_NORMAL, 0.02, 0, 0}, {KR_INIT_LOG_ARANGE, 0, 0, 0},
                                    {KR_INIT_DT_BIAS, 0.001, 0.1, 1e-4}, {KR_INIT_UNIFORM, 0.5, 0, 0}};
    static float want[N], got[N];
    static uint16_t narrow[N];
    kr_device *device;
    kr_session *s;
    kr_plan *plan;
    must(kr_device_cpu(&device));
    must(kr_session_open(device, 2, &s));
    must(kr_plan_new("cpu", &plan));
    for (int k = 0; k < 4; k++) {
        char name[2] = {(char)('a' + k), 0};
        const kr_slot slot = {.kind = KR_SLOT_PARAM, .name = name, .dtype = k == 3 ? KR_BF16 : KR_F32, .init = inits[k],
                              .shape = KR_SHAPE(ROWS, COLS), .bytes = k == 3 ? sizeof narrow : sizeof got};
        cr_assert_geq(kr_plan_add_slot(plan, &slot), 0);
    }
    must(kr_plan_finish(plan));
    must(kr_session_add(s, plan));
    must(kr_session_init(s, 3));
    for (int k = 0; k < 4; k++) {
        const char name[2] = {(char)('a' + k), 0};
        kr_init_fill(&inits[k], 3, name, want, N, COLS);
        if (k < 3) must(kr_session_read(s, kr_session_find(s, name), got, sizeof got));
        else must(kr_session_read(s, kr_session_find(s, name), narrow, sizeof narrow));
        for (int i = 0; i < N && k == 3; i++) {
            got[i] = kr_bf16_to_f32(narrow[i]);
            want[i] = kr_bf16_to_f32(kr_f32_to_bf16(want[i]));
        }
        for (int i = 0; i < N; i++)
            cr_assert(got[i] == want[i], "%s, element %d: %g, want %g", name, i, got[i], want[i]);
    }
    kr_session_close(s);
    kr_plan_free(plan);
    kr_device_close(device);
}
