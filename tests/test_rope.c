/// rope and its gradient against a naive oracle in double.
#include "ops/rope/args.h"
#include "tests/check.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static void rope(const kr_attrs *a, const kr_shape *shape, const double *const *in, const kr_shape *out_shape,
                 double *const *out) {
    (void)out_shape;
    const int64_t B = shape[ROPE_X].dim[0], L = shape[ROPE_X].dim[1], H = a->i[ROPE_HEADS],
                  D = shape[ROPE_X].dim[2] / H, rotating = a->i[ROPE_ROTARY_DIM];
    for (int64_t row = 0; row < B * L; row++)
        for (int64_t h = 0; h < H; h++) {
            const double *x = in[ROPE_X] + (row * H + h) * D,
                         position = (in[ROPE_POSITION] ? in[ROPE_POSITION][0] : 0) + (double)(row % L);
            double *y = out[ROPE_Y] + (row * H + h) * D;
            for (int64_t n = 0; n < D; n++) y[n] = x[n];
            for (int64_t i = 0; i < rotating / 2; i++) {
                const int64_t p = a->i[ROPE_INTERLEAVED] ? 2 * i : i,
                              q = a->i[ROPE_INTERLEAVED] ? 2 * i + 1 : i + rotating / 2;
                const double angle = (a->i[ROPE_BACK] ? -1 : 1) * position *
                                     pow(a->r[ROPE_BASE], -2.0 * (double)i / (double)rotating);
                y[p] = x[p] * cos(angle) - x[q] * sin(angle);
                y[q] = x[p] * sin(angle) + x[q] * cos(angle);
            }
        }
}

static check_case make_rope(int64_t B, int64_t L, int64_t H, int64_t D, int64_t rotating, bool interleaved,
                            bool position) {
    const check_case c = {
        .op = "rope",
        .attrs = {.i = {[ROPE_HEADS] = H, [ROPE_ROTARY_DIM] = rotating, [ROPE_INTERLEAVED] = interleaved},
                  .r = {[ROPE_BASE] = 10000}},
        .inputs = ROPE_INPUTS,
        .shape = {[ROPE_X] = KR_SHAPE(B, L, H * D), [ROPE_POSITION] = position ? KR_SHAPE(1) : CHECK_ABSENT},
        .dtype = {[ROPE_POSITION] = KR_I32},
        .lo = {[ROPE_POSITION] = 100},
        .hi = {[ROPE_POSITION] = 100000},
        .tolerance = 1e-6,
        .grad_tolerance = 1e-6,
        .seed = (uint64_t)(L * 100 + D)};
    return c;
}

static void check_rope(check_case c) {
    for (c.attrs.i[ROPE_INTERLEAVED] = 0; c.attrs.i[ROPE_INTERLEAVED] < 2; c.attrs.i[ROPE_INTERLEAVED]++) {
        check_forward(&c, rope);
        check_gradient(&c, rope);
    }
}

Test(rope, each_combination) {
    check_rope(make_rope(2, 5, 3, 8, 8, false, false));
    check_rope(make_rope(2, 5, 3, 8, 8, false, true));
    check_rope(make_rope(2, 5, 3, 9, 6, false, true));
    check_rope(make_rope(1, 37, 2, 7, 0, false, true));
}
Test(rope, tails) {
    static const int64_t rotating[] = {2, 14, 16, 18, 32, 34, 66};
    for (int k = 0; k < 7; k++) check_rope(make_rope(1, 19, 2, 67, rotating[k], false, true));
}
Test(rope, bases) {
    check_case c = make_rope(1, 40, 1, 16, 16, false, true);
    static const double bases[] = {1, 2, 1000, 500000, 1e30};
    for (int k = 0; k < 5; k++) {
        c.attrs.r[ROPE_BASE] = bases[k];
        check_rope(c);
    }
}
Test(rope, back) {
    check_case c = make_rope(2, 5, 3, 8, 6, false, true);
    c.attrs.i[ROPE_BACK] = 1;
    check_rope(c);
}
Test(rope, nothing) {
    check_rope(make_rope(2, 0, 3, 8, 6, false, true));
    check_rope(make_rope(0, 4, 3, 8, 6, false, true));
    check_rope(make_rope(2, 4, 3, 0, 0, false, true));
}
Test(rope, bad_shapes) {
    const check_case c = make_rope(2, 5, 3, 8, 6, false, true);
    check_refused(&c, ROPE_X, KR_SHAPE(5, 24), "x is [5, 24], want [B L heads*D] with heads = 3");
    check_refused(&c, ROPE_X, KR_SHAPE(2, 5, 25), "x is [2, 5, 25], want [B L heads*D] with heads = 3");
    check_refused(&c, ROPE_X, KR_SHAPE(2, 5, 12), "rotary_dim is 6, want an even number up to the 4 coordinates of a head");
    check_refused(&c, ROPE_POSITION, KR_SHAPE(2), "position is [2], want [1]");
    check_case bad = c;
    bad.attrs.r[ROPE_BASE] = 0;
    check_refused(&bad, ROPE_POSITION, KR_SHAPE(1), "base is 0, want 1 to 1e+30");
}
