// linear_cross_entropy: against an oracle, against the two ops that it stands for, and what it saves.
#include "models/models.h"
#include "ops/linear_loss/args.h"
#include "tests/check.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct sizes {
    int64_t rows, width, words, valid;
} sizes;

static sizes sizes_of(const kr_attrs *t, const kr_shape *shape) {
    const int64_t words = shape[LINEAR_LOSS_WEIGHT].dim[0];
    return (sizes){kr_shape_count(&shape[LINEAR_LOSS_TARGETS]), shape[LINEAR_LOSS_WEIGHT].dim[1], words,
                   t->i[LINEAR_LOSS_VALID_VOCAB] ? t->i[LINEAR_LOSS_VALID_VOCAB] : words};
}

/// The logits of one row, and the log of the sum of their exponentials.
static double logits_of(const sizes *s, const double *x, const double *weight, double *z) {
    double most = -INFINITY, sum = 0;
    for (int64_t v = 0; v < s->valid; v++) {
        z[v] = 0;
        for (int64_t d = 0; d < s->width; d++) z[v] += weight[v * s->width + d] * x[d];
        most = fmax(most, z[v]);
    }
    for (int64_t v = 0; v < s->valid; v++) sum += exp(z[v] - most);
    return s->valid ? most + log(sum) : -INFINITY;
}

/// in is x, weight, targets; out is loss, per_token, lse, dx, dweight.
static void oracle(const kr_attrs *t, const kr_shape *shape, const double *const *in, const kr_shape *out_shape,
                   double *const *out) {
    (void)out_shape;
    const sizes s = sizes_of(t, shape);
    double *z = malloc((size_t)(s.valid + 1) * sizeof *z), count = 0;
    for (int64_t r = 0; r < s.rows; r++) count += in[LINEAR_LOSS_TARGETS][r] >= 0;
    for (int64_t r = 0; r < s.rows; r++) {
        const double *x = in[LINEAR_LOSS_X] + r * s.width;
        double *dx = out[LINEAR_LOSS_DX] + r * s.width;
        const int64_t id = (int64_t)in[LINEAR_LOSS_TARGETS][r];
        out[LINEAR_LOSS_LSE][r] = logits_of(&s, x, in[LINEAR_LOSS_WEIGHT], z);
        if (id < 0) continue;
        out[LINEAR_LOSS_PER_TOKEN][r] = out[LINEAR_LOSS_LSE][r] - z[id];
        out[LINEAR_LOSS_LOSS][0] += out[LINEAR_LOSS_PER_TOKEN][r] / count;
        for (int64_t v = 0; v < s.valid; v++) {
            const double dz = (exp(z[v] - out[LINEAR_LOSS_LSE][r]) - (v == id)) / count;
            for (int64_t d = 0; d < s.width; d++) {
                dx[d] += dz * in[LINEAR_LOSS_WEIGHT][v * s.width + d];
                out[LINEAR_LOSS_DWEIGHT][v * s.width + d] += dz * x[d];
            }
        }
    }
    free(z);
}

/// Some targets are ignored; the others lie in the valid vocabulary.
static check_case loss_case(int64_t rows, int64_t width, int64_t words, int64_t valid) {
    return (check_case){.op = "linear_cross_entropy",
                        .attrs.i = {[LINEAR_LOSS_VALID_VOCAB] = valid},
                        .inputs = LINEAR_LOSS_INPUTS,
                        .shape = {KR_SHAPE(1, rows, width), KR_SHAPE(words, width), KR_SHAPE(1, rows)},
                        .dtype = {KR_F32, KR_F32, KR_I32},
                        .lo = {0, 0, -2},
                        .hi = {0, 0, (double)(valid ? valid : words) - 1},
                        .no_loss = 1u << LINEAR_LOSS_DX | 1u << LINEAR_LOSS_DWEIGHT};
}

Test(linear_loss, forward) {
    static const int64_t odd[][3] = {{1, 1, 1}, {5, 3, 7}, {4, 16, 1}, {33, 17, 35}, {2, 9, 2051}, {300, 4, 9},
                                     {61, 70, 530}};
    for (size_t s = 0; s < sizeof odd / sizeof *odd; s++)
        for (int padded = 0; padded < 2; padded++) {
            const check_case c = loss_case(odd[s][0], odd[s][1], odd[s][2], padded ? (odd[s][2] + 1) / 2 : 0);
            check_forward(&c, oracle);
        }
}

Test(linear_loss, forward_of_nothing) {
    for (int zero = 1; zero < 8; zero++) {
        check_case c = loss_case(zero & 1 ? 0 : 5, zero & 2 ? 0 : 3, zero & 4 ? 0 : 6, 0);
        if (zero & 4) c.hi[LINEAR_LOSS_TARGETS] = -1;
        check_forward(&c, oracle);
    }
}

// 700 rows of 2,600 words are three rounds, the last shorter; in each, every product has several blocks.
Test(linear_loss, forward_in_rounds) {
    const check_case c = loss_case(700, 5, 2600, 2597);
    const kr_impl *impl = kr_op_impl(kr_op_find(c.op), &kr_target_cpu);
    kr_attrs attrs = c.attrs;
    check_ok(impl->specialise(&kr_target_cpu, &attrs, c.shape, 3), "specialise");
    cr_assert_eq(impl->rounds(&attrs, c.shape, NULL, 3), 3);
    check_forward(&c, oracle);
}

Test(linear_loss, gradient) {
    const check_case whole = loss_case(6, 4, 7, 0), padded = loss_case(5, 3, 9, 6);
    check_gradient(&whole, oracle);
    check_gradient(&padded, oracle);
}

// Single cases ----------------------------------------------------------------------------------------------------

enum { T = 3, D = 2, V = 4 };

typedef struct result {
    float loss, per_token[T], lse[T], dx[T * D], dweight[V * D];
} result;

static kr_arg packed(void *data, kr_dtype dtype, kr_shape shape) {
    kr_arg a = {.data = data, .dtype = dtype, .shape = shape};
    int64_t step = 1;
    for (int k = shape.rank - 1; k >= 0; k--) {
        a.stride[k] = step;
        step *= shape.dim[k];
    }
    return a;
}

static result run(float *x, float *weight, int32_t *targets, int64_t valid, int precision, kr_isa isa) {
    result r;
    memset(&r, 0xff, sizeof r);
    const kr_attrs t = {.i = {[LINEAR_LOSS_VALID_VOCAB] = valid, [LINEAR_LOSS_PRECISION] = precision, [LINEAR_LOSS_ROWS] = T}};
    const kr_arg in[] = {packed(x, KR_F32, KR_SHAPE(T, D)), packed(weight, KR_F32, KR_SHAPE(V, D)),
                         packed(targets, KR_I32, KR_SHAPE(T))};
    const kr_arg out[] = {packed(&r.loss, KR_F32, KR_SHAPE(1)), packed(r.per_token, KR_F32, KR_SHAPE(T)),
                          packed(r.lse, KR_F32, KR_SHAPE(T)), packed(r.dx, KR_F32, KR_SHAPE(T, D)),
                          packed(r.dweight, KR_F32, KR_SHAPE(V, D))};
    check_ok(check_call(kr_op_find("linear_cross_entropy"), &t, in, 3, out, isa, 2, false), "linear_cross_entropy");
    return r;
}

/// Operands rounded to bf16 have 8 bits: results are near the oracle's, and not those of f32.
Test(linear_loss, rounded_to_bf16) {
    static const int64_t sizes[][3] = {{1, 1, 1}, {33, 17, 35}, {130, 64, 530}, {700, 5, 2600}};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int precision = KR_PRECISION_BF16; precision <= KR_PRECISION_BF16_EMULATED; precision++) {
            check_case c = loss_case(sizes[s][0], sizes[s][1], sizes[s][2], 0);
            c.attrs.i[LINEAR_LOSS_PRECISION] = precision;
            c.tolerance = 2e-2;
            check_forward(&c, oracle);
        }
    check_case wrong = loss_case(2, 3, 4, 0);
    wrong.attrs.i[LINEAR_LOSS_PRECISION] = 3;
    kr_shape out[CHECK_MAX];
    kr_dtype type[CHECK_MAX];
    cr_assert_eq(kr_op_shapes(kr_op_find(wrong.op), &wrong.attrs, wrong.shape, wrong.dtype, 3, out, type),
                 KR_BAD_ARGUMENT);
    cr_assert(strstr(kr_status_message(), "precision is 3"), "%s", kr_status_message());
    float x[T * D] = {1.001f, 2.003f, 3.005f, 4.007f, 5.009f, 6.011f}, weight[V * D] = {1, -1, 2, -2};
    int32_t targets[T] = {0, 1, 2};
    const result exact = run(x, weight, targets, 0, 0, kr_isa_best());
    const result rounded = run(x, weight, targets, 0, KR_PRECISION_BF16_EMULATED, kr_isa_best());
    cr_assert_neq(exact.loss, rounded.loss);
}

Test(linear_loss, nothing_counted_gives_no_loss_and_no_gradient) {
    float x[T * D] = {1, 2, 3, 4, 5, 6}, weight[V * D] = {1, -1, 2, -2};
    int32_t targets[T] = {-100, -1, INT32_MIN};
    for (kr_isa isa = KR_ISA_BASE; isa <= kr_isa_best(); isa++) {
        const result r = run(x, weight, targets, 0, 0, isa);
        cr_assert_eq(r.loss, 0);
        for (int i = 0; i < T; i++) cr_assert(r.per_token[i] == 0 && isfinite(r.lse[i]));
        for (int i = 0; i < T * D; i++) cr_assert_eq(r.dx[i], 0);
        for (int i = 0; i < V * D; i++) cr_assert_eq(r.dweight[i], 0);
    }
}

// Targets that no row of the vocabulary answers to are never used as an index; they show as NaN.
Test(linear_loss, targets_outside_of_the_vocabulary_are_nan) {
    float x[T * D] = {1, 2, 3, 4, 5, 6}, weight[V * D] = {1, -1, 2, -2};
    static const int32_t wrong[] = {4, 3, INT32_MAX}; // 3 is a padded row
    for (kr_isa isa = KR_ISA_BASE; isa <= kr_isa_best(); isa++)
        for (int k = 0; k < 3; k++) {
            int32_t targets[T] = {0, wrong[k], 2};
            const result r = run(x, weight, targets, 3, 0, isa);
            cr_assert(isnan(r.loss) && isnan(r.per_token[1]) && isfinite(r.per_token[0]) && isfinite(r.per_token[2]));
            cr_assert(isnan(r.dx[D]) && isfinite(r.dx[0]) && isfinite(r.dx[2 * D]) && isnan(r.dweight[0]));
            for (int d = 0; d < D; d++) cr_assert_eq(r.dweight[3 * D + d], 0, "the padded row has a gradient");
        }
}

Test(linear_loss, values_that_are_not_finite_show_in_the_loss) {
    for (kr_isa isa = KR_ISA_BASE; isa <= kr_isa_best(); isa++)
        for (int at = 0; at < 2; at++) {
            float x[T * D] = {1, 2, 3, 4, 5, 6}, weight[V * D] = {1, -1, 2, -2};
            int32_t targets[T] = {0, 1, 2};
            x[at] = NAN;
            cr_assert(isnan(run(x, weight, targets, 0, 0, isa).loss));
            x[at] = INFINITY;
            cr_assert(!isfinite(run(x, weight, targets, 0, 0, isa).loss));
        }
}

// The softmax of logits far above what an exponential holds.
Test(linear_loss, large_logits) {
    check_case c = loss_case(6, 3, 40, 0);
    c.lo[LINEAR_LOSS_X] = -1e3, c.hi[LINEAR_LOSS_X] = 1e3;
    c.lo[LINEAR_LOSS_WEIGHT] = -8, c.hi[LINEAR_LOSS_WEIGHT] = 8;
    c.no_loss = 0;
    check_forward(&c, oracle);
}

static void fails(check_case c, const char *words) {
    kr_shape out[CHECK_MAX];
    kr_dtype dtype[CHECK_MAX];
    cr_assert_neq(kr_op_shapes(kr_op_find(c.op), &c.attrs, c.shape, c.dtype, c.inputs, out, dtype), KR_OK,
                  "no error, want \"%s\"", words);
    cr_assert(strstr(kr_status_message(), words), "\"%s\" lacks \"%s\"", kr_status_message(), words);
}

Test(linear_loss, bad_inputs_are_named) {
    check_case c = loss_case(3, 2, 4, 0);
    c.shape[LINEAR_LOSS_WEIGHT] = KR_SHAPE(4, 5);
    fails(c, "weight is [4, 5], want [V D] with D = 2 (from x)");
    c = loss_case(3, 2, 4, 0);
    c.shape[LINEAR_LOSS_WEIGHT] = KR_SHAPE(4);
    fails(c, "weight is [4], want [V D]");
    c = loss_case(3, 2, 4, 0);
    c.shape[LINEAR_LOSS_TARGETS] = KR_SHAPE(3);
    fails(c, "targets is [3], want [...] = [1, 3]");
    c = loss_case(3, 2, 4, 0);
    c.dtype[LINEAR_LOSS_TARGETS] = KR_I64;
    fails(c, "targets is i64 [1, 3], want i32 [...]");
    fails(loss_case(3, 2, 4, 5), "valid_vocab is 5, want 0 to 4");
}

// In a graph ------------------------------------------------------------------------------------------------------

/// The value and gradients of scale * loss + the mean of per_token, by the fused op or by the two that it stands for.
static void losses(bool fused, float scale, float *out, size_t bytes) {
    enum { ROWS = 9, WIDTH = 6, WORDS = 21 };
    kr_graph *g = NULL;
    check_ok(kr_graph_new(&g), "graph");
    const kr_value x = kr_input(g, "x", KR_F32, KR_SHAPE(ROWS, WIDTH)),
                   w = kr_input(g, "w", KR_F32, KR_SHAPE(WORDS, WIDTH)),
                   targets = kr_input(g, "targets", KR_I32, KR_SHAPE(ROWS));
    kr_value each, grads[2];
    const kr_value loss = fused ? kr_linear_cross_entropy(g, x, w, targets, 0, &each, NULL)
                                : kr_cross_entropy(g, kr_linear(g, x, w, KR_NONE), targets, 0, &each, NULL);
    const kr_value total = kr_add(g, kr_affine(g, loss, scale, 0), kr_mean(g, each, 0, true));
    check_ok(kr_autodiff(g, total, (kr_value[]){x, w}, 2, grads), "autodiff");
    const kr_value parts[] = {total, kr_reshape(g, grads[0], KR_SHAPE(-1)), kr_reshape(g, grads[1], KR_SHAPE(-1))};
    kr_output(g, "all", kr_concat(g, parts, 3, 0));
    float xs[ROWS * WIDTH], ws[WORDS * WIDTH];
    int32_t ids[ROWS];
    double values[WORDS * WIDTH];
    check_random(values, ROWS * WIDTH, KR_F32, -1, 1, 1, 0);
    for (int i = 0; i < ROWS * WIDTH; i++) xs[i] = (float)values[i];
    check_random(values, WORDS * WIDTH, KR_F32, -1, 1, 1, 1);
    for (int i = 0; i < WORDS * WIDTH; i++) ws[i] = (float)values[i];
    for (int i = 0; i < ROWS; i++) ids[i] = i == 4 ? -100 : 2 * i;
    const kr_binding in[] = {{"x", xs, sizeof xs}, {"w", ws, sizeof ws}, {"targets", ids, sizeof ids}};
    check_ok(check_interpret(g, kr_isa_best(), 2, in, 3, &(kr_binding){"all", out, bytes}, 1), "run");
    kr_graph_free(g);
}

Test(linear_loss, is_the_loss_of_the_product) {
    enum { COUNT = 1 + 9 * 6 + 21 * 6 };
    static const float scales[] = {1, 0, -2.5f};
    for (int k = 0; k < 3; k++) {
        float got[COUNT], want[COUNT];
        losses(true, scales[k], got, sizeof got);
        losses(false, scales[k], want, sizeof want);
        for (int i = 0; i < COUNT; i++)
            cr_assert_float_eq(got[i], want[i], 2e-6, "element %d: %.9g, want %.9g", i, got[i], want[i]);
    }
}

static kr_plan_stats plan_of(int64_t vocabulary, kr_goal goal) {
    kr_model_config c = kr_model_defaults();
    c.vocab_size = vocabulary;
    c.d_model = 64;
    c.n_layer = 2;
    kr_graph *g;
    kr_plan_stats stats;
    check_ok(kr_model_build(&c, goal == KR_GOAL_TRAIN ? KR_MODE_TRAIN : KR_MODE_EVAL, 2, 1024, &g), "model");
    check_ok(kr_compile(g, &(kr_compile_options){.goal = goal, .optimizer = {0.9, 0.95, 1e-8, 0.1, 1}}, NULL, &stats),
             "compile");
    kr_graph_free(g);
    return stats;
}

/// Bytes of workspace of the loss of these models.
static size_t block(int64_t vocabulary) {
    const kr_shape in[] = {KR_SHAPE(2, 1024, 64), KR_SHAPE(vocabulary, 64), KR_SHAPE(2, 1024)};
    const kr_impl *impl = kr_op_impl(kr_op_find("linear_cross_entropy"), &kr_target_cpu);
    kr_attrs attrs = {0};
    check_ok(impl->specialise(&kr_target_cpu, &attrs, in, 3), "specialise");
    return impl->work(&attrs, in, NULL, 3);
}

// All logits are 412 MB, and every table of the embedding's size besides the one of the gradient would be 13 MB.
Test(linear_loss, a_large_vocabulary_costs_its_weights_and_one_block) {
    const kr_plan_stats small = plan_of(256, KR_GOAL_TRAIN), large = plan_of(50280, KR_GOAL_TRAIN);
    const size_t weights = (50280 - 256) * 64 * sizeof(float), more = block(50280) - block(256);
    cr_expect_leq(block(50280), 32 << 20);
    cr_expect_eq(large.slot_bytes[KR_SLOT_PARAM], small.slot_bytes[KR_SLOT_PARAM] + weights);
    cr_expect_eq(large.slot_bytes[KR_SLOT_GRADIENT], small.slot_bytes[KR_SLOT_GRADIENT] + weights);
    cr_expect_leq(large.sum, small.sum + more + 4096, "%zu and %zu bytes of all activations", small.sum, large.sum);
    cr_expect_leq(large.peak, small.peak + more, "%zu and %zu bytes", small.peak, large.peak);
}

Test(linear_loss, an_evaluation_makes_no_gradients) {
    const kr_plan_stats small = plan_of(256, KR_GOAL_FORWARD), large = plan_of(50280, KR_GOAL_FORWARD);
    cr_expect_leq(large.sum, small.sum + block(50280) - block(256), "%zu and %zu bytes", small.sum, large.sum);
    cr_expect_float_eq((large.flops - small.flops) / (2.0 * 1024 * (50280 - 256)), 2 * 64 + 12, 1e-9);
}
