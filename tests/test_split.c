// Products in f32 that a matrix unit for bf16 makes of parts (ops/cpu/tile_split.h). What holds of them holds of
// multiply-adds too, so each test runs in every way that the machine has: matmul at each instruction set level, at the
// highest one with and without the matrix unit, and the products of parts on a unit in software (tile_unit.cpu.c).
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

static void release(operands *o) {
    free(o->a);
    free(o->b);
    free(o->r);
}

static kr_arg matrix(float *data, int64_t rows, int64_t cols, int64_t pitch) {
    return (kr_arg){data, KR_F32, KR_SHAPE(rows, cols), {pitch, 1}};
}

/// A way to make a product.
typedef struct way {
    const char *name;
    kr_isa isa;
    kr_bf16_path path;
    kr_kernel *kernel; ///< instead of matmul's
} way;

#ifdef KR_HAVE_AVX512
kr_kernel kr_kernel_split_on_a_unit_avx512;
#endif

/// Every way of this machine; how many.
static int ways(way list[KR_ISA_COUNT + 2]) {
    int count = 0;
    for (kr_isa isa = KR_ISA_BASE; isa <= kr_isa_best(); isa++)
        list[count++] = (way){kr_isa_name(isa), isa, KR_BF16_EMULATED, NULL};
    if (kr_bf16_best() == KR_BF16_MATRIX) list[count++] = (way){"AMX", kr_isa_best(), KR_BF16_MATRIX, NULL};
#ifdef KR_HAVE_AVX512
    if (kr_isa_best() == KR_ISA_AVX512)
        list[count++] = (way){"a unit in software", KR_ISA_AVX512, KR_BF16_EMULATED, kr_kernel_split_on_a_unit_avx512};
#endif
    return count;
}

static void multiply(const operands *o, const way *w, bool in_place, int parts, float *y) {
    const kr_attrs attrs = {.i = {o->ta, o->tb, KR_ACT_NONE, 0}};
    kr_arg in[4] = {matrix(o->a, o->ta ? K : M, o->ta ? M : K, columns(o->ta, M, K)),
                    matrix(o->b, o->tb ? N : K, o->tb ? K : N, columns(o->tb, K, N))};
    if (in_place) memcpy(y, o->r, M * N * sizeof *y);
    else memset(y, 0xff, M * N * sizeof *y);
    if (o->residual) in[3] = matrix(in_place ? y : o->r, M, N, N);
    const kr_arg out = matrix(y, M, N, N);
    if (w->kernel) {
        const kr_call call = {.in = in, .out = &out, .inputs = 4, .outputs = 1, .attrs = &attrs};
        for (int part = 0; part < parts; part++) w->kernel(&call, part, parts);
        return;
    }
    kr_bf16_limit(w->path);
    check_ok(check_call(kr_op_find("matmul"), &attrs, in, 4, &out, w->isa, parts, false), w->name);
    kr_bf16_limit(KR_BF16_PATH_COUNT - 1);
}

// What errors are allowed -----------------------------------------------------------------------------------------
//
// Let u = 2^-24. A product and sum of f32 is rounded once, by at most u times the sum so far (twice in the base build,
// the other time by u times the term); pieces along K, the residual and the parts of products add a few roundings more.
// So an element goes through n = K + EXTRA roundings at most, in whatever order its terms t are summed. The terms have
// random signs, so that the square of a sum of some of them is at most S = sum t^2 on the average; and a rounding
// error, even over [-us, us], has the variance u^2 s^2 / 3. Together: a variance of at most n u^2 S / 3. Six times its
// root are allowed, which less than one in 10^8 elements passes (the worst case without chance, n u sum |t|, is 50
// times as much). Elements are well below that, most sums being smaller than the last; how much is seen in all of them
// together, in squares: sums in pieces are no worse than a chain of K multiply-adds. To leave out a product of parts,
// 2^-18 of a term and more, would be ten times worse.

enum { EXTRA = 64 };

/// The sum in double precision, and the error that is allowed.
static double exactly(const operands *o, int i, int j, double *allowed) {
    double sum = o->r[i * N + j], squares = sum * sum;
    for (int k = 0; k < K; k++) {
        const double term = (double)*a_at(o, i, k) * *b_at(o, k, j);
        sum += term;
        squares += term * term;
    }
    *allowed = 6 * 0x1p-24 * sqrt((K + EXTRA) * squares / 3);
    return sum;
}

static float one_by_one(const operands *o, int i, int j) {
    float sum = o->r[i * N + j];
    for (int k = 0; k < K; k++) sum = fmaf(*a_at(o, i, k), *b_at(o, k, j), sum);
    return sum;
}

Test(split, sums_have_the_error_of_f32) {
    static float y[M * N];
    way list[KR_ISA_COUNT + 2];
    const int count = ways(list);
    for (int transposes = 0; transposes < 4; transposes++)
        for (int residual = 0; residual < 2; residual++) {
            operands o = make(transposes, residual);
            for (int w = 0; w < count; w++) {
                multiply(&o, &list[w], false, 1, y);
                double squares = 0, chain = 0;
                for (int i = 0; i < M; i++)
                    for (int j = i % 11; j < N; j += 11) {
                        double allowed;
                        const double want = exactly(&o, i, j, &allowed), error = y[i * N + j] - want;
                        const double other = one_by_one(&o, i, j) - want;
                        cr_assert_leq(fabs(error), allowed, "%s, %d, %d: %g, want %g", list[w].name, i, j, y[i * N + j],
                                      want);
                        squares += error * error / (allowed * allowed);
                        chain += other * other / (allowed * allowed);
                    }
                cr_expect_leq(squares, 1.3 * chain, "%s: %g times the error of a sum one by one", list[w].name,
                              sqrt(squares / chain));
            }
            release(&o);
        }
}

/// An f32 of so many significant bits, the first and the last of which are 1, or a power of two.
static float of_bits(int bits, int seed, int index) {
    const uint64_t low = (uint64_t)(kr_random_uniform((uint64_t)seed, 2, (uint64_t)index) * 0x1p22f) << 1 | 1;
    const uint64_t fraction = bits > 1 ? 1u << (bits - 1) | (low & ((1u << (bits - 1)) - 1)) : 1;
    return ldexpf((float)fraction, 1 - bits) * (value(seed, index) < 0 ? -1 : 1);
}

// Parts lose nothing. A row of a has one element that is not zero, so the result is one product. Where that has 24 bits
// or less, it must be exact: f32 is, and so are three parts with six products, each of which these numbers need. Of two
// numbers of 24 bits, the products left out amount to u |x y| at most, and the sum is rounded by as much.
Test(split, a_single_product_is_exact) {
    static const int bits[] = {24, 12, 1}; // three parts, two, one
    static float y[M * N];
    way list[KR_ISA_COUNT + 2];
    const int count = ways(list);
    for (int transposes = 0; transposes < 4; transposes++) {
        operands o = make(transposes, 0);
        for (int i = 0; i < M; i++)
            for (int k = 0; k < K; k++) *a_at(&o, i, k) = k == i * 37 % K ? of_bits(bits[i % 3], 1, i) : 0;
        for (int k = 0; k < K; k++)
            for (int j = 0; j < N; j++) *b_at(&o, k, j) = of_bits(bits[j / 3 % 3], 2, k * N + j);
        for (int w = 0; w < count; w++) {
            multiply(&o, &list[w], false, 1, y);
            for (int i = 0; i < M; i++)
                for (int j = 0; j < N; j++) {
                    const int k = i * 37 % K;
                    const double want = (double)*a_at(&o, i, k) * *b_at(&o, k, j);
                    const double allowed = (double)(float)want == want ? 0 : 2.1 * 0x1p-24 * fabs(want);
                    cr_assert_leq(fabs(y[i * N + j] - want), allowed, "%s: %a times %a gives %a, off by %g of it",
                                  list[w].name, *a_at(&o, i, k), *b_at(&o, k, j), y[i * N + j],
                                  (y[i * N + j] - want) / want);
                }
        }
        release(&o);
    }
}

// Values that are not finite stay in their rows and columns, and become what they become in f32.
Test(split, what_is_not_finite_is_as_in_f32) {
    static const float odd[] = {INFINITY, -INFINITY, NAN, 3.4028235e38f};
    static float y[M * N], again[M * N];
    static double want[M * N], allowed[M * N];
    way list[KR_ISA_COUNT + 2];
    const int count = ways(list);
    for (int transposes = 0; transposes < 4; transposes++)
        for (int kind = 0; kind < 12; kind++) {
            operands o = make(transposes, kind / 4 > 0);
            const bool in_place = kind / 4 == 2;
            *a_at(&o, ROW_OF_A, 401) = odd[kind % 4];
            *b_at(&o, 33, COLUMN_OF_B) = odd[(kind + 1) % 4];
            // All of the row and the column, and some of the rest.
            const int first = kind % 5;
            for (int i = 0; i < M; i++)
                for (int j = 0; j < N; j++)
                    if (i == ROW_OF_A || j == COLUMN_OF_B || (i + j) % 5 == first)
                        want[i * N + j] = exactly(&o, i, j, &allowed[i * N + j]);
            for (int w = 0; w < count; w++) {
                multiply(&o, &list[w], in_place, 1, y);
                for (int i = 0; i < M; i++)
                    for (int j = 0; j < N; j++) {
                        const int at = i * N + j;
                        if (i != ROW_OF_A && j != COLUMN_OF_B && (i + j) % 5 != first) continue;
                        const bool same = isfinite(want[at]) ? fabs(y[at] - want[at]) <= allowed[at]
                                          : isnan(want[at])  ? isnan(y[at])
                                                             : y[at] == want[at];
                        cr_assert(same, "%s, %d, %d: %g, want %g", list[w].name, i, j, y[at], want[at]);
                    }
                for (int parts = 2; parts < 5; parts++) {
                    multiply(&o, &list[w], in_place, parts, again);
                    cr_assert_eq(memcmp(y, again, sizeof y), 0, "%s: %d parts give other bits", list[w].name, parts);
                }
            }
            release(&o);
        }
}

// The same bits in place, in any number of parts.
Test(split, bits_do_not_depend_on_place_and_parts) {
    static float y[M * N], again[M * N];
    way list[KR_ISA_COUNT + 2];
    const int count = ways(list);
    for (int transposes = 0; transposes < 4; transposes++) {
        operands o = make(transposes, 1);
        for (int w = 0; w < count; w++) {
            multiply(&o, &list[w], false, 1, y);
            for (int parts = 1; parts < 6; parts++) {
                multiply(&o, &list[w], true, parts, again);
                cr_assert_eq(memcmp(y, again, sizeof y), 0, "%s, in place in %d parts: other bits", list[w].name,
                             parts);
            }
        }
        release(&o);
    }
}
