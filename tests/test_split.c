// Products in f32 that a matrix unit for bf16 makes of parts (ops/cpu/tile_split.h). What holds of them holds of
// multiply-adds too, so these tests run on every machine.
#include "runtime/cpu/bf16.h"
#include "tests/check.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { M = 130, N = 115, K = 790, APART = 5 }; // several pieces along K, and blocks that are not whole
enum { ROW_OF_A = 7, COLUMN_OF_B = 101 };      // with values that are not finite

/// A product with rows APART floats apart, and a residual, which may be where the result is.
typedef struct operands {
    int ta, tb, residual;
    float *a, *b, *r;
} operands;

static int64_t columns(int transposed, int64_t rows, int64_t cols) { return (transposed ? rows : cols) + APART; }
static float *a_at(const operands *o, int i, int k) {
    return o->a + (o->ta ? k : i) * columns(o->ta, M, K) + (o->ta ? i : k);
}
static float *b_at(const operands *o, int k, int j) {
    return o->b + (o->tb ? j : k) * columns(o->tb, K, N) + (o->tb ? k : j);
}

/// Between 2^-12 and 1, of either sign.
static float value(int seed, int index) {
    const float sign = kr_random_uniform((uint64_t)seed, 1, (uint64_t)index) < 0.5f ? -1 : 1;
    return sign * exp2f(-12 * kr_random_uniform((uint64_t)seed, 0, (uint64_t)index));
}

static operands make(int transposes, int residual) {
    operands o = {.ta = transposes & 1, .tb = transposes >> 1, .residual = residual};
    o.a = calloc((K + APART) * (M + APART) + (K + M) * APART, sizeof *o.a);
    o.b = calloc((K + APART) * (N + APART) + (K + N) * APART, sizeof *o.b);
    o.r = calloc(M * N, sizeof *o.r);
    for (int i = 0; i < M; i++)
        for (int k = 0; k < K; k++) *a_at(&o, i, k) = value(1, i * K + k);
    for (int k = 0; k < K; k++)
        for (int j = 0; j < N; j++) *b_at(&o, k, j) = value(2, k * N + j);
    for (int i = 0; i < M * N; i++) o.r[i] = residual ? value(3, i) : 0;
    return o;
}

static void forget(operands *o) {
    free(o->a);
    free(o->b);
    free(o->r);
}

static kr_arg matrix(float *data, int64_t rows, int64_t cols, int64_t pitch) {
    return (kr_arg){data, KR_F32, KR_SHAPE(rows, cols), {pitch, 1}};
}

static void multiply(const operands *o, bool in_place, int parts, float *y) {
    const kr_attrs attrs = {.i = {o->ta, o->tb, KR_ACT_NONE, 0}};
    kr_arg in[4] = {matrix(o->a, o->ta ? K : M, o->ta ? M : K, columns(o->ta, M, K)),
                    matrix(o->b, o->tb ? N : K, o->tb ? K : N, columns(o->tb, K, N))};
    if (in_place) memcpy(y, o->r, M * N * sizeof *y);
    else memset(y, 0xff, M * N * sizeof *y);
    if (o->residual) in[3] = matrix(in_place ? y : o->r, M, N, N);
    const kr_arg out = matrix(y, M, N, N);
    check_ok(check_call(kr_op_find("matmul"), &attrs, in, 4, &out, kr_isa_best(), parts, false), "matmul");
}

/// The sum, and the sum of what its terms amount to.
static double exactly(const operands *o, int i, int j, double *amount) {
    double sum = o->r[i * N + j];
    *amount = fabs(sum);
    for (int k = 0; k < K; k++) {
        const double term = (double)*a_at(o, i, k) * *b_at(o, k, j);
        sum += term;
        *amount += fabs(term);
    }
    return sum;
}

static float one_by_one(const operands *o, int i, int j) {
    float sum = o->r[i * N + j];
    for (int k = 0; k < K; k++) sum = fmaf(*a_at(o, i, k), *b_at(o, k, j), sum);
    return sum;
}

// Operands of bf16 would give 2^-9, sums of two parts 2^-17.
Test(split, sums_have_the_error_of_f32) {
    static float y[M * N];
    for (int transposes = 0; transposes < 4; transposes++)
        for (int residual = 0; residual < 2; residual++) {
            operands o = make(transposes, residual);
            multiply(&o, false, 1, y);
            double worst = 0, squares = 0, chain = 0;
            for (int i = 0; i < M; i++)
                for (int j = i % 3; j < N; j += 3) {
                    double amount;
                    const double want = exactly(&o, i, j, &amount), error = (y[i * N + j] - want) / amount;
                    const double other = (one_by_one(&o, i, j) - want) / amount;
                    if (fabs(error) > worst) worst = fabs(error);
                    squares += error * error;
                    chain += other * other;
                }
            cr_expect_leq(worst, 0x1p-22, "an error of %g of the terms", worst);
            cr_expect_leq(squares, 1.2 * chain, "%g times the error of a sum one by one", sqrt(squares / chain));
            forget(&o);
        }
}

// Values that are not finite stay in their rows and columns, and become what they become in f32.
Test(split, what_is_not_finite_is_as_in_f32) {
    static const float odd[] = {INFINITY, -INFINITY, NAN, 3.4028235e38f};
    static float y[M * N], again[M * N];
    for (int transposes = 0; transposes < 4; transposes++)
        for (int kind = 0; kind < 12; kind++) {
            operands o = make(transposes, kind / 4 > 0);
            const bool in_place = kind / 4 == 2;
            *a_at(&o, ROW_OF_A, 401) = odd[kind % 4];
            *b_at(&o, 33, COLUMN_OF_B) = odd[(kind + 1) % 4];
            multiply(&o, in_place, 1, y);
            for (int i = 0; i < M; i++)
                for (int j = 0; j < N; j++) {
                    double amount;
                    const double want = exactly(&o, i, j, &amount), got = y[i * N + j];
                    if (isfinite(want))
                        cr_assert(fabs(got - want) <= 1e-6 * amount, "%d, %d: %g, want %g", i, j, got, want);
                    else cr_assert(isnan(want) ? isnan(got) : got == want, "%d, %d: %g, want %g", i, j, got, want);
                }
            for (int parts = 2; parts < 5; parts++) {
                multiply(&o, in_place, parts, again);
                cr_assert_eq(memcmp(y, again, sizeof y), 0, "%d parts give other bits", parts);
            }
            forget(&o);
        }
}

// The same bits in place, in any number of parts; with and without a matrix unit they are close.
Test(split, bits_do_not_depend_on_place_and_parts) {
    static float y[M * N], again[M * N];
    for (int transposes = 0; transposes < 4; transposes++) {
        operands o = make(transposes, 1);
        multiply(&o, false, 1, y);
        for (int parts = 1; parts < 6; parts++) {
            multiply(&o, true, parts, again);
            cr_assert_eq(memcmp(y, again, sizeof y), 0, "in place in %d parts: other bits", parts);
        }
        kr_bf16_limit(KR_BF16_EMULATED);
        multiply(&o, false, 2, again);
        kr_bf16_limit(KR_BF16_PATH_COUNT - 1);
        for (int i = 0; i < M * N; i++) cr_assert_float_eq(y[i], again[i], 1e-4, "%g and %g", y[i], again[i]);
        forget(&o);
    }
}
