/// The error bounds that ops/cpu/lanes.h and ops/selective_scan/cpu_decay.h state, over a dense sweep of all f32: every
/// exponent, denormals, infinities, NaN.
#include "ops/cpu/kernels.h"
#include "tests/check.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define FUNCTIONS(X)                                                                                           \
    X(exp)                                                                                                     \
    X(exp2) X(log) X(log1p_unit) X(sigmoid) X(silu) X(softplus) X(tanh) X(sqrt) X(abs) X(sin) X(cos) X(groups) \
        X(decay) X(step) X(gate) X(slope)
#define X(name) KR_KERNEL_DECLARE(lanes_##name) static const kr_stage stage_##name = KR_STAGE(lanes_##name);
FUNCTIONS(X)
#undef X

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }
static double silu(double x) { return x == -INFINITY ? NAN : x * sigmoid(x); } // -inf * 0
static double softplus(double x) { return x > 20 ? x : log1p(exp(x)); }

enum { STRIDE = 797, CHUNK = 1 << 16 }; // a prime, so that mantissas are sampled evenly

typedef struct bound {
    const char *name;
    const kr_stage *stage;
    double (*exact)(double);
    double relative;
    double lo, hi;        ///< inputs outside are left out (but NaN is always in)
    double flush_below;   ///< inputs below may give 0 (or -inf for the logarithm)
    bool flush_magnitude; ///< ... where |x| is below
    double absolute;      ///< error allowed besides
} bound;

static void call(const kr_stage *stage, kr_isa isa, const float *x, float *y, int64_t n) {
    const kr_arg in = {.data = (void *)(uintptr_t)x, .shape = KR_SHAPE(n), .stride = {1}};
    const kr_arg out = {.data = y, .shape = KR_SHAPE(n), .stride = {1}};
    kr_stage_kernel(stage, isa)(&(kr_call){.in = &in, .out = &out, .inputs = 1, .outputs = 1}, 0, 1);
}

static void check_chunk(const bound *b, const float *x, int64_t n) {
    static float y[CHUNK];
    for (kr_isa isa = 0; isa <= kr_isa_best(); isa++) {
        call(b->stage, isa, x, y, n);
        for (int64_t i = 0; i < n; i++) {
            const double in = x[i], want = b->exact(in);
            const bool tiny = b->flush_magnitude ? fabs(in) < b->flush_below : in < b->flush_below;
            bool good;
            if (isnan(want)) good = isnan(y[i]);
            else if (tiny)
                good = fabs(y[i]) < 1.2e-38 || y[i] == -INFINITY || fabs(y[i] - want) <= b->relative * fabs(want);
            else if (fabs(want) > 3.4028235e38) good = y[i] == (float)want;
            else if (fabs(want) < 1.2e-38) good = fabs(y[i]) < 1.2e-38 + b->absolute;
            else good = fabs(y[i] - want) <= b->relative * fabs(want) + b->absolute;
            cr_assert(good, "%s(%.9g) (%s): got %.9g, want %.9g, relative error %.3g, allowed %.3g and %.3g absolute",
                      b->name, in, kr_isa_name(isa), y[i], want, fabs(y[i] - want) / fabs(want), b->relative,
                      b->absolute);
        }
    }
}

static void sweep(const bound *b) {
    static float x[CHUNK];
    int64_t n = 0;
    for (uint64_t bits = 0; bits < 1ull << 32; bits += STRIDE) {
        const uint32_t word = (uint32_t)bits;
        float v;
        memcpy(&v, &word, sizeof v);
        if (v < b->lo || v > b->hi) continue;
        x[n++] = v;
        if (n == CHUNK) {
            check_chunk(b, x, n);
            n = 0;
        }
    }
    const float edges[] = {0, -0.0f, 1, -1, INFINITY, -INFINITY, NAN, 88.72283f, 88.72284f, -87.33654f, -87.33655f, 20,
                           1e-45f, 1.17549435e-38f, 3.4028235e38f, -3.4028235e38f, 0.625f, 0.70710678f, 1.41421356f};
    for (size_t k = 0; k < sizeof edges / sizeof *edges; k++)
        if (!(edges[k] < b->lo || edges[k] > b->hi)) x[n++] = edges[k];
    while (n % 16) x[n++] = 0.5f;
    check_chunk(b, x, n);
}

#define BOUND(name, ...) \
    Test(lanes, name) { sweep(&(bound){#name, &stage_##name, __VA_ARGS__}); }
BOUND(exp, exp, 1e-7, -INFINITY, INFINITY, -87.3365)
BOUND(exp2, exp2, 1.9e-7, -INFINITY, INFINITY, -126)
BOUND(log, log, 1e-7, -INFINITY, INFINITY, 1.17549435e-38, true)
BOUND(log1p_unit, log1p, 2e-7, 0, 1, 0)
BOUND(sigmoid, sigmoid, 2e-7, -INFINITY, INFINITY, -87.3365)
BOUND(silu, silu, 2.5e-7, -INFINITY, INFINITY, -87.3365)
BOUND(softplus, softplus, 2.5e-7, -INFINITY, INFINITY, -87.3365)
BOUND(tanh, tanh, 2e-7, -INFINITY, INFINITY, -INFINITY)
BOUND(sqrt, sqrt, 6e-8, -INFINITY, INFINITY, -INFINITY)
BOUND(abs, fabs, 0, -INFINITY, INFINITY, -INFINITY)
BOUND(sin, sin, 0, -8192, 8192, -INFINITY, false, 1e-7)
BOUND(cos, cos, 0, -8192, 8192, -INFINITY, false, 1e-7)

/// What selective_scan has of its own (ops/selective_scan/cpu_decay.h). Rounding A / log(2) costs up to 6e-8 |A|
/// besides,
/// and the decay as much again.
Test(lanes, decay) {
    sweep(&(bound){"decay", &stage_decay, exp, 5e-7, -2.5, 2.5, -INFINITY});
    sweep(&(bound){"decay", &stage_decay, exp, 2e-5, -INFINITY, 88.6, -87.3365});
    sweep(&(bound){"decay", &stage_decay, exp, 5e-7, 88.73, INFINITY, -INFINITY}); // between the two it may be infinite
}
BOUND(step, softplus, 5e-7, -INFINITY, INFINITY, -87.3365)
BOUND(gate, sigmoid, 5e-7, -INFINITY, INFINITY, -87.3365)
BOUND(slope, sigmoid, 5e-7, -INFINITY, INFINITY, -87.3365)

Test(lanes, groups) {
    float x[16], y[2 + 17 * 16 / 2], first[2] = {0};
    double sum = 0;
    for (int i = 0; i < 16; i++) {
        x[i] = kr_random_uniform(1, 0, (uint64_t)i) - 0.5f;
        sum += x[i];
    }
    for (kr_isa isa = 0; isa <= kr_isa_best(); isa++) {
        memset(y, 0, sizeof y);
        const kr_arg in = {.data = x, .shape = KR_SHAPE(16), .stride = {1}}, out = {.data = y};
        kr_stage_kernel(&stage_groups, isa)(&(kr_call){.in = &in, .out = &out, .inputs = 1, .outputs = 1}, 0, 1);
        cr_assert_float_eq(y[0], sum, 1e-6);
        float most = x[0];
        for (int i = 1; i < 16; i++) most = fmaxf(most, x[i]);
        cr_assert_eq(y[1], most);
        if (!isa) memcpy(first, y, sizeof first);
        cr_assert_eq(y[0], first[0], "the order of the sum differs between levels");
        for (int n = 0; n <= 16; n++)
            cr_assert(!memcmp(y + 2 + n * (n - 1) / 2, x, (size_t)n * sizeof *x), "a load or store of %d lanes", n);
    }
}
