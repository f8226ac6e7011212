#include "tests/check.h"

#include "ops/train/args.h"
#include "ops/train/correction.h"

#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

static void sq_norm(const kr_attrs *t, const kr_shape *shape, const double *const *in, const kr_shape *out_shape,
                    double *const *out) {
    (void)t, (void)out_shape;
    for (int k = 0; k < CHECK_MAX && in[k]; k++)
        for (int64_t i = 0; i < kr_shape_count(&shape[k]); i++) out[0][0] += in[k][i] * in[k][i];
}

/// By the formula of ops/train/cpu.c.
static void adamw(const kr_attrs *t, const kr_shape *shape, const double *const *in, const kr_shape *out_shape,
                  double *const *out) {
    (void)out_shape;
    const double b1 = t->r[ADAMW_BETA1], b2 = t->r[ADAMW_BETA2], eps = t->r[ADAMW_EPS],
                 decay = t->r[ADAMW_WEIGHT_DECAY], most = t->r[ADAMW_MAX_NORM];
    const double lr = in[ADAMW_LEARNING_RATE][0], norm = in[ADAMW_SQ_NORM] ? sqrt(in[ADAMW_SQ_NORM][0]) : 0;
    const double fixed1 = 1 - pow(b1, in[ADAMW_STEP][0]), fixed2 = 1 - pow(b2, in[ADAMW_STEP][0]);
    const double factor = in[ADAMW_SQ_NORM] && most > 0 ? fmin(1, most / (norm + 1e-6)) : 1;
    for (int64_t i = 0; i < kr_shape_count(&shape[ADAMW_P]); i++) {
        const double g = in[ADAMW_G][i] * factor;
        out[ADAMW_NEW_M][i] = b1 * in[ADAMW_M][i] + (1 - b1) * g;
        out[ADAMW_NEW_V][i] = b2 * in[ADAMW_V][i] + (1 - b2) * g * g;
        out[ADAMW_NEW_P][i] = in[ADAMW_P][i] * (1 - lr * decay) -
                              lr * (out[ADAMW_NEW_M][i] / fixed1) / (sqrt(out[ADAMW_NEW_V][i] / fixed2) + eps);
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
                        .attrs.r = {[ADAMW_BETA1] = 0.9,
                                    [ADAMW_BETA2] = 0.95,
                                    [ADAMW_EPS] = 1e-8,
                                    [ADAMW_WEIGHT_DECAY] = decay,
                                    [ADAMW_MAX_NORM] = max_norm},
                        .inputs = ADAMW_INPUTS,
                        .shape = {[ADAMW_P] = s,
                                  [ADAMW_G] = s,
                                  [ADAMW_M] = s,
                                  [ADAMW_V] = s,
                                  [ADAMW_LEARNING_RATE] = KR_SHAPE(1),
                                  [ADAMW_STEP] = KR_SHAPE(1),
                                  [ADAMW_SQ_NORM] = with_norm ? KR_SHAPE(1) : CHECK_ABSENT},
                        .dtype = {[ADAMW_STEP] = KR_I64},
                        .lo = {[ADAMW_V] = 0.01, [ADAMW_LEARNING_RATE] = 0.1, [ADAMW_STEP] = 1, [ADAMW_SQ_NORM] = 4},
                        .hi = {[ADAMW_V] = 1, [ADAMW_LEARNING_RATE] = 0.5, [ADAMW_STEP] = 20, [ADAMW_SQ_NORM] = 9}};
}

Test(train, adamw_forward) {
    static const int64_t sizes[] = {0, 1, 15, 16, 33, 5000};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int k = 0; k < 6; k++) {
            check_case c = update(sizes[s], k > 0, k == 1 ? 0 : k == 2 ? 1 : 100, k % 2 ? 0.1 : 0);
            c.seed = (uint64_t)k; // another number of the step
            check_forward(&c, adamw);
        }
}

// One step of one element through the kernel.
typedef struct element {
    float p, g, m, v, learning_rate;
    int64_t step;
    float square;
} element;

static void step(element *e, bool with_norm, const kr_attrs *t, kr_isa isa) {
    void *const data[ADAMW_INPUTS] = {[ADAMW_P] = &e->p,
                                      [ADAMW_G] = &e->g,
                                      [ADAMW_M] = &e->m,
                                      [ADAMW_V] = &e->v,
                                      [ADAMW_LEARNING_RATE] = &e->learning_rate,
                                      [ADAMW_STEP] = &e->step,
                                      [ADAMW_SQ_NORM] = &e->square};
    kr_arg in[ADAMW_INPUTS], out[ADAMW_OUTPUTS];
    for (int k = 0; k < ADAMW_INPUTS; k++) in[k] = (kr_arg){.data = data[k], .shape = KR_SHAPE(1), .stride = {1}};
    in[ADAMW_STEP].dtype = KR_I64;
    if (!with_norm) in[ADAMW_SQ_NORM] = (kr_arg){.shape = CHECK_ABSENT};
    out[ADAMW_NEW_P] = in[ADAMW_P], out[ADAMW_NEW_M] = in[ADAMW_M], out[ADAMW_NEW_V] = in[ADAMW_V];
    check_ok(check_call(kr_op_find("adamw"), t, in, 7, out, isa, 1, false), "adamw");
}

// The first step moves by the learning rate, whatever the gradient's size: m and v are bias-corrected, and eps is added
// after the correction of the root.
Test(train, first_step_is_the_learning_rate) {
    const kr_attrs t = {.r = {[ADAMW_BETA1] = 0.9,
                              [ADAMW_BETA2] = 0.95,
                              [ADAMW_EPS] = 1e-8,
                              [ADAMW_WEIGHT_DECAY] = 0,
                              [ADAMW_MAX_NORM] = 0}};
    for (kr_isa isa = KR_ISA_BASE; isa <= kr_isa_best(); isa++)
        for (int k = -4; k <= 4; k++) {
            element e = {.p = 1, .g = powf(10, (float)k), .learning_rate = 1e-3f, .step = 1};
            step(&e, false, &t, isa);
            cr_assert_float_eq(e.p, 1 - 1e-3, 2e-7, "gradient 1e%d: p is %.9g", k, e.p);
        }
}

Test(train, decay_uses_the_weight_before_the_step) {
    const kr_attrs t = {.r = {[ADAMW_BETA1] = 0.9,
                              [ADAMW_BETA2] = 0.95,
                              [ADAMW_EPS] = 1e-8,
                              [ADAMW_WEIGHT_DECAY] = 0.1,
                              [ADAMW_MAX_NORM] = 0}};
    element e = {.p = 2, .g = 1, .learning_rate = 0.01f, .step = 1};
    step(&e, false, &t, KR_ISA_BASE);
    cr_assert_float_eq(e.p, 2 - 0.01 * 0.1 * 2 - 0.01, 1e-6);
}

Test(train, a_norm_that_is_not_finite_changes_nothing) {
    const kr_attrs clipped = {.r = {[ADAMW_BETA1] = 0.9,
                                    [ADAMW_BETA2] = 0.95,
                                    [ADAMW_EPS] = 1e-8,
                                    [ADAMW_WEIGHT_DECAY] = 0.1,
                                    [ADAMW_MAX_NORM] = 1}},
                   free_norm = {.r = {[ADAMW_BETA1] = 0.9,
                                      [ADAMW_BETA2] = 0.95,
                                      [ADAMW_EPS] = 1e-8,
                                      [ADAMW_WEIGHT_DECAY] = 0.1,
                                      [ADAMW_MAX_NORM] = 0}};
    const float bad[] = {NAN, INFINITY, -INFINITY};
    for (kr_isa isa = KR_ISA_BASE; isa <= kr_isa_best(); isa++)
        for (int k = 0; k < 6; k++) {
            element e = {.p = 2, .g = NAN, .m = 3, .v = 4, .learning_rate = 0.01f, .step = k / 3, .square = bad[k % 3]};
            step(&e, true, k < 3 ? &clipped : &free_norm, isa);
            cr_assert(e.p == 2 && e.m == 3 && e.v == 4, "p, m, v are %g, %g, %g", e.p, e.m, e.v);
        }
}

Test(train, clipping_reaches_the_norm_and_not_below) {
    const kr_attrs t = {
        .r = {
            [ADAMW_BETA1] = 0, [ADAMW_BETA2] = 0, [ADAMW_EPS] = 1e-8, [ADAMW_WEIGHT_DECAY] = 0, [ADAMW_MAX_NORM] = 1}};
    element e = {.g = 3, .step = 1, .square = 25}, small = {.g = 0.3f, .step = 1, .square = 0.25f};
    step(&e, true, &t, KR_ISA_BASE);
    step(&small, true, &t, KR_ISA_BASE);
    cr_assert_float_eq(e.m, 0.6, 1e-6);
    cr_assert_float_eq(small.m, 0.3, 1e-7);
}

// Bias corrections ---------------------------------------------------------------------------------------------------

Test(train, corrections_do_not_cancel) {
    static const double betas[] = {0, 1e-9, 0.1, 0.5, 0.9, 0.95, 0.999, 0.9999999, 1 - 0x1p-40};
    for (size_t b = 0; b < sizeof betas / sizeof *betas; b++)
        for (int64_t t = 1; t > 0 && t < INT64_MAX / 3; t += 1 + t / 7) {
            const long double want = betas[b] > 0 ? -expm1l((long double)t * logl((long double)betas[b])) : 1;
            const double got = kr_bias_correction(betas[b], t);
            cr_assert(fabsl((long double)got - want) <= 1e-14L * want, "1 - %g^%lld is %.17g, want %.17Lg", betas[b],
                      (long long)t, got, want);
        }
}

// With p = g = 0 nothing but the corrections is rounded in more than one way, so every build gives these bits.
Test(train, corrections_are_the_same_bits_at_every_level) {
    const kr_attrs t = {.r = {[ADAMW_BETA1] = 0.9,
                              [ADAMW_BETA2] = 0.95,
                              [ADAMW_EPS] = 0,
                              [ADAMW_WEIGHT_DECAY] = 0,
                              [ADAMW_MAX_NORM] = 0}};
    for (kr_isa isa = KR_ISA_BASE; isa <= kr_isa_best(); isa++)
        for (int64_t n = 1; n < INT64_MAX / 3; n += 1 + n / 500) {
            element e = {.m = 1, .v = 1, .learning_rate = 3e-3f, .step = n};
            const float c1 = (float)-expm1((double)n * log(0.9)), c2 = (float)-expm1((double)n * log(0.95));
            const float rate = (float)((double)e.learning_rate / (double)c1), root = (float)(1 / sqrt((double)c2));
            const float want = -(rate * 0.9f / (sqrtf(0.95f) * root));
            step(&e, false, &t, isa);
            cr_assert_eq(e.p, want, "%s, step %lld: %a, want %a", kr_isa_name(isa), (long long)n, e.p, want);
        }
}

static void count(const kr_attrs *t, const kr_shape *shape, const double *const *in, const kr_shape *out_shape,
                  double *const *out) {
    (void)t, (void)shape, (void)out_shape;
    out[COUNT_STEP_NEXT][0] = in[COUNT_STEP_STEP][0] + 1;
}

static int64_t counted(int64_t before, const float *square, kr_isa isa) {
    int64_t step = before;
    const kr_arg number = {.data = &step, .dtype = KR_I64, .shape = KR_SHAPE(1), .stride = {1}};
    kr_arg in[] = {number, {.data = (void *)square, .shape = KR_SHAPE(1), .stride = {1}}};
    if (!square) in[1] = (kr_arg){.shape = CHECK_ABSENT};
    check_ok(check_call(kr_op_find("count_step"), &(kr_attrs){0}, in, 2, &number, isa, 3, false), "count_step");
    return step;
}

Test(train, count_step_is_exact_and_leaves_out_what_is_not_finite) {
    check_case c = {.op = "count_step",
                    .inputs = COUNT_STEP_INPUTS,
                    .shape = {KR_SHAPE(1), KR_SHAPE(1)},
                    .dtype = {KR_I64},
                    .lo = {0, 0},
                    .hi = {1000, 9}};
    check_forward(&c, count);
    c.shape[COUNT_STEP_SQ_NORM] = CHECK_ABSENT;
    check_forward(&c, count);
    const int64_t large = (INT64_C(1) << 60) + 1;
    const float fine[] = {0, 0x1p-149f, 3.402823466e38f}, bad[] = {NAN, INFINITY, -INFINITY};
    for (kr_isa isa = KR_ISA_BASE; isa <= kr_isa_best(); isa++) {
        cr_assert_eq(counted(large, NULL, isa), large + 1);
        for (int k = 0; k < 3; k++) cr_assert_eq(counted(large, &fine[k], isa), large + 1, "%g", fine[k]);
        for (int k = 0; k < 3; k++) cr_assert_eq(counted(large, &bad[k], isa), large, "%g", bad[k]);
    }
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
    c.shape[ADAMW_M] = KR_SHAPE(5);
    fails(c, "m is [5], want [...] = [4]");
    c = update(4, true, 1, 0);
    c.shape[ADAMW_LEARNING_RATE] = KR_SHAPE(3);
    fails(c, "adamw: learning_rate is [3], want [1]");
    c = update(4, true, 1, 0);
    c.dtype[ADAMW_STEP] = KR_I32;
    fails(c, "adamw: step is i32 [1], want i64 [1]");
    c = update(4, true, 1, 0);
    c.shape[ADAMW_SQ_NORM] = KR_SHAPE(4);
    fails(c, "adamw: sq_norm is [4], want [1]");
    c = (check_case){.op = "count_step", .inputs = COUNT_STEP_INPUTS, .shape = {KR_SHAPE(1), CHECK_ABSENT}};
    fails(c, "count_step: step is f32 [1], want i64 [1]");
    c = (check_case){
        .op = "count_step", .inputs = COUNT_STEP_INPUTS, .shape = {KR_SHAPE(1), KR_SHAPE(2)}, .dtype = {KR_I64}};
    fails(c, "count_step: sq_norm is [2], want [1]");
    c = (check_case){.op = "sq_norm", .inputs = 2, .shape = {KR_SHAPE(3), KR_SHAPE(3)}, .dtype = {KR_F32, KR_I32}};
    fails(c, "every value is i32 [3], want f32");
}
