#include "ops/softmax/args.h"
#include "tests/check.h"

#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

static int64_t last(const kr_shape *s) { return s->dim[s->rank - 1]; }
static int64_t rows_of(const kr_shape *s) { return last(s) ? kr_shape_count(s) / last(s) : 0; }

/// log of the sum of e^x, by way of the largest.
static double log_sum(const double *x, int64_t n) {
    double most = x[0], sum = 0;
    for (int64_t i = 1; i < n; i++) most = fmax(most, x[i]);
    for (int64_t i = 0; i < n; i++) sum += exp(x[i] - most);
    return most + log(sum);
}

static void softmax(const kr_attrs *t, const kr_shape *shape, const double *const *in, const kr_shape *out_shape,
                    double *const *out) {
    (void)t, (void)out_shape;
    const int64_t n = last(&shape[SOFTMAX_X]);
    for (int64_t r = 0; r < rows_of(&shape[SOFTMAX_X]); r++) {
        const double lse = log_sum(in[SOFTMAX_X] + r * n, n);
        for (int64_t i = r * n; i < (r + 1) * n; i++) out[SOFTMAX_Y][i] = exp(in[SOFTMAX_X][i] - lse);
    }
}

static void softmax_grad(const kr_attrs *t, const kr_shape *shape, const double *const *in, const kr_shape *out_shape,
                         double *const *out) {
    (void)t, (void)out_shape;
    const int64_t n = last(&shape[SOFTMAX_GRAD_DY]);
    for (int64_t r = 0; r < rows_of(&shape[SOFTMAX_GRAD_DY]); r++) {
        double sum = 0;
        for (int64_t i = r * n; i < (r + 1) * n; i++) sum += in[SOFTMAX_GRAD_DY][i] * in[SOFTMAX_GRAD_Y][i];
        for (int64_t i = r * n; i < (r + 1) * n; i++)
            out[SOFTMAX_GRAD_DX][i] = in[SOFTMAX_GRAD_Y][i] * (in[SOFTMAX_GRAD_DY][i] - sum);
    }
}

static int64_t counted(const double *targets, int64_t rows) {
    int64_t count = 0;
    for (int64_t r = 0; r < rows; r++) count += targets[r] >= 0;
    return count;
}

static void cross_entropy(const kr_attrs *t, const kr_shape *shape, const double *const *in, const kr_shape *out_shape,
                          double *const *out) {
    (void)out_shape;
    const int64_t n = last(&shape[CROSS_ENTROPY_LOGITS]),
                  valid = t->i[CROSS_ENTROPY_VALID_VOCAB] ? t->i[CROSS_ENTROPY_VALID_VOCAB] : n,
                  rows = kr_shape_count(&shape[CROSS_ENTROPY_TARGETS]);
    const int64_t count = counted(in[CROSS_ENTROPY_TARGETS], rows);
    for (int64_t r = 0; r < rows; r++) {
        out[CROSS_ENTROPY_LSE][r] = log_sum(in[CROSS_ENTROPY_LOGITS] + r * n, valid);
        if (in[CROSS_ENTROPY_TARGETS][r] < 0) continue;
        out[CROSS_ENTROPY_PER_TOKEN][r] =
            in[CROSS_ENTROPY_TARGETS][r] < (double)valid
                ? out[CROSS_ENTROPY_LSE][r] - in[CROSS_ENTROPY_LOGITS][r * n + (int64_t)in[CROSS_ENTROPY_TARGETS][r]]
                : NAN;
        out[CROSS_ENTROPY_LOSS][0] += out[CROSS_ENTROPY_PER_TOKEN][r] / (double)count;
    }
}

static void cross_entropy_grad(const kr_attrs *t, const kr_shape *shape, const double *const *in,
                               const kr_shape *out_shape, double *const *out) {
    (void)out_shape;
    const int64_t n = last(&shape[CROSS_ENTROPY_GRAD_LOGITS]),
                  valid = t->i[CROSS_ENTROPY_VALID_VOCAB] ? t->i[CROSS_ENTROPY_VALID_VOCAB] : n,
                  rows = kr_shape_count(&shape[CROSS_ENTROPY_GRAD_TARGETS]);
    const int64_t count = counted(in[CROSS_ENTROPY_GRAD_TARGETS], rows);
    for (int64_t r = 0; r < rows; r++) {
        double hit = 0;
        if (in[CROSS_ENTROPY_GRAD_TARGETS][r] >= 0)
            hit = (in[CROSS_ENTROPY_GRAD_DLOSS] ? in[CROSS_ENTROPY_GRAD_DLOSS][0] / (double)count : 0) +
                  (in[CROSS_ENTROPY_GRAD_DPER_TOKEN] ? in[CROSS_ENTROPY_GRAD_DPER_TOKEN][r] : 0);
        for (int64_t i = 0; i < valid; i++)
            out[CROSS_ENTROPY_GRAD_DLOGITS][r * n + i] =
                exp(in[CROSS_ENTROPY_GRAD_LOGITS][r * n + i] - in[CROSS_ENTROPY_GRAD_LSE][r]) *
                    (hit + (in[CROSS_ENTROPY_GRAD_DLSE] ? in[CROSS_ENTROPY_GRAD_DLSE][r] : 0)) -
                (i == (int64_t)in[CROSS_ENTROPY_GRAD_TARGETS][r] ? hit : 0);
    }
}

static const int64_t sizes[][2] = {{1, 1}, {5, 7}, {3, 16}, {4, 33}, {2, 2051}, {200, 9}, {0, 5}};
enum { SIZES = sizeof sizes / sizeof *sizes };

Test(softmax, forward_and_gradient) {
    for (int s = 0; s < SIZES; s++)
        for (int wide = 0; wide < 2; wide++) {
            const kr_shape shape = KR_SHAPE(1, sizes[s][0], sizes[s][1]);
            const check_case c = {
                .op = "softmax", .inputs = 1, .shape = {shape}, .lo = {wide ? -90 : 0}, .hi = {wide ? 90 : 0}};
            const check_case grad = {.op = "softmax_grad", .inputs = 2, .shape = {shape, shape}};
            check_forward(&c, softmax);
            check_forward(&grad, softmax_grad);
        }
    const check_case c = {.op = "softmax", .inputs = 1, .shape = {KR_SHAPE(3, 2, 5)}},
                     vector = {.op = "softmax", .inputs = 1, .shape = {KR_SHAPE(4)}};
    check_gradient(&c, softmax);
    check_forward(&vector, softmax);
}

/// Some targets are ignored; all lie in the valid vocabulary.
static check_case loss_case(int64_t rows, int64_t n, int64_t valid) {
    return (check_case){
        .op = "cross_entropy",
        .attrs.i = {[CROSS_ENTROPY_VALID_VOCAB] = valid},
        .inputs = CROSS_ENTROPY_INPUTS,
        .shape = {[CROSS_ENTROPY_LOGITS] = KR_SHAPE(1, rows, n), [CROSS_ENTROPY_TARGETS] = KR_SHAPE(1, rows)},
        .dtype = {[CROSS_ENTROPY_TARGETS] = KR_I32},
        .lo = {[CROSS_ENTROPY_LOGITS] = -5, [CROSS_ENTROPY_TARGETS] = -2},
        .hi = {[CROSS_ENTROPY_LOGITS] = 5, [CROSS_ENTROPY_TARGETS] = (double)(valid ? valid : n) - 1}};
}

Test(softmax, cross_entropy_forward_and_gradient) {
    for (int s = 0; s < SIZES; s++)
        for (int padded = 0; padded < 2; padded++) {
            const check_case c = loss_case(sizes[s][0], sizes[s][1], padded ? (sizes[s][1] + 1) / 2 : 0);
            check_forward(&c, cross_entropy);
        }
    const check_case whole = loss_case(6, 7, 0), padded = loss_case(5, 9, 6);
    check_gradient(&whole, cross_entropy);
    check_gradient(&padded, cross_entropy);
}

Test(softmax, cross_entropy_of_large_logits) {
    check_case c = loss_case(6, 40, 0);
    c.lo[CROSS_ENTROPY_LOGITS] = -1e4, c.hi[CROSS_ENTROPY_LOGITS] = 1e4;
    check_forward(&c, cross_entropy);
}

Test(softmax, cross_entropy_gradient_kernel) {
    for (int s = 0; s < SIZES; s++)
        for (int padded = 0; padded < 2; padded++)
            for (int given = 0; given < 8; given++) {
                check_case c = loss_case(sizes[s][0], sizes[s][1], padded ? (sizes[s][1] + 1) / 2 : 0);
                const kr_shape rows = c.shape[CROSS_ENTROPY_GRAD_TARGETS], none = CHECK_ABSENT;
                c.op = "cross_entropy_grad";
                c.inputs = CROSS_ENTROPY_GRAD_INPUTS;
                c.lo[CROSS_ENTROPY_GRAD_LOGITS] = -2, c.hi[CROSS_ENTROPY_GRAD_LOGITS] = 2;
                c.shape[CROSS_ENTROPY_GRAD_LSE] = rows;
                c.lo[CROSS_ENTROPY_GRAD_LSE] = 2, c.hi[CROSS_ENTROPY_GRAD_LSE] = 3;
                c.shape[CROSS_ENTROPY_GRAD_DLOSS] = given & 1 ? KR_SHAPE(1) : none;
                c.shape[CROSS_ENTROPY_GRAD_DPER_TOKEN] = given & 2 ? rows : none;
                c.shape[CROSS_ENTROPY_GRAD_DLSE] = given & 4 ? rows : none;
                check_forward(&c, cross_entropy_grad);
            }
}

// Single cases ----------------------------------------------------------------------------------------------------

static kr_arg packed(void *data, kr_dtype dtype, kr_shape shape) {
    kr_arg a = {.data = data, .dtype = dtype, .shape = shape};
    int64_t step = 1;
    for (int k = shape.rank - 1; k >= 0; k--) {
        a.stride[k] = step;
        step *= shape.dim[k];
    }
    return a;
}

typedef struct loss_result {
    float loss, per_token[3], lse[3], dlogits[12];
} loss_result;

/// Loss and gradient of [3, 4] logits, of which the first `valid` columns count.
static loss_result run_loss(float *logits, int32_t *targets, int64_t valid, kr_isa isa) {
    loss_result r;
    memset(&r, 0xff, sizeof r);
    float one = 1;
    const kr_attrs t = {.i = {valid}};
    const kr_arg x = packed(logits, KR_F32, KR_SHAPE(3, 4)), ids = packed(targets, KR_I32, KR_SHAPE(3));
    const kr_arg in[] = {x, ids},
                 out[] = {packed(&r.loss, KR_F32, KR_SHAPE(1)), packed(r.per_token, KR_F32, KR_SHAPE(3)),
                          packed(r.lse, KR_F32, KR_SHAPE(3))};
    check_ok(check_call(kr_op_find("cross_entropy"), &t, in, 2, out, isa, 2, false), "cross_entropy");
    const kr_arg none = {.shape = CHECK_ABSENT}, dx = packed(r.dlogits, KR_F32, KR_SHAPE(3, 4));
    const kr_arg grad_in[] = {x, ids, out[2], packed(&one, KR_F32, KR_SHAPE(1)), none, none};
    check_ok(check_call(kr_op_find("cross_entropy_grad"), &t, grad_in, 6, &dx, isa, 2, false), "cross_entropy_grad");
    return r;
}

Test(softmax, nothing_counted_gives_no_loss_and_no_gradient) {
    float logits[12] = {1, 2, 3, 4};
    int32_t targets[3] = {-100, -100, -1};
    for (kr_isa isa = KR_ISA_BASE; isa <= kr_isa_best(); isa++) {
        const loss_result r = run_loss(logits, targets, 0, isa);
        cr_assert_eq(r.loss, 0);
        for (int i = 0; i < 12; i++) cr_assert_eq(r.dlogits[i], 0);
        for (int i = 0; i < 3; i++) cr_assert_eq(r.per_token[i], 0);
    }
}

// Targets that no row of the vocabulary answers to are never used as an index; they show as NaN.
Test(softmax, targets_outside_of_the_vocabulary_are_nan) {
    float logits[12] = {1, 2, 3, 4};
    static const int32_t wrong[] = {4, 3, INT32_MAX}; // 3 is a padded row
    for (kr_isa isa = KR_ISA_BASE; isa <= kr_isa_best(); isa++)
        for (int k = 0; k < 3; k++) {
            int32_t targets[3] = {0, wrong[k], 2};
            const loss_result r = run_loss(logits, targets, 3, isa);
            cr_assert(isnan(r.loss) && isnan(r.per_token[1]) && isfinite(r.per_token[0]) && isfinite(r.per_token[2]));
            cr_assert(isnan(r.dlogits[4]) && isfinite(r.dlogits[0]) && isfinite(r.dlogits[8]));
            for (int row = 0; row < 3; row++)
                cr_assert_eq(r.dlogits[4 * row + 3], 0, "the padded column of row %d", row);
        }
}

Test(softmax, logits_that_are_not_finite_show_in_the_loss) {
    for (kr_isa isa = KR_ISA_BASE; isa <= kr_isa_best(); isa++)
        for (int at = 0; at < 4; at++) {
            float logits[12] = {0};
            int32_t targets[3] = {0, 1, 2};
            logits[at] = NAN;
            cr_assert(isnan(run_loss(logits, targets, 0, isa).loss));
            logits[at] = INFINITY;
            cr_assert(!isfinite(run_loss(logits, targets, 0, isa).loss));
        }
}

static void fails(check_case c, const char *words) {
    kr_shape out[CHECK_MAX];
    kr_dtype dtype[CHECK_MAX];
    cr_assert_neq(kr_op_shapes(kr_op_find(c.op), &c.attrs, c.shape, c.dtype, c.inputs, out, dtype), KR_OK,
                  "no error, want \"%s\"", words);
    cr_assert(strstr(kr_status_message(), words), "\"%s\" lacks \"%s\"", kr_status_message(), words);
}

Test(softmax, bad_inputs_are_named) {
    fails((check_case){.op = "softmax", .inputs = 1, .shape = {KR_SCALAR}}, "x is [], want [... V]");
    check_case c = loss_case(3, 4, 0);
    c.shape[CROSS_ENTROPY_TARGETS] = KR_SHAPE(3);
    fails(c, "targets is [3], want [...] = [1, 3]");
    c = loss_case(3, 4, 0);
    c.dtype[CROSS_ENTROPY_TARGETS] = KR_I64;
    fails(c, "targets is i64 [1, 3], want i32 [...]");
    fails(loss_case(3, 4, 5), "valid_vocab is 5, want 0 to 4");
}
