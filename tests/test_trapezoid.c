#include "tests/trapezoid_oracle.h"

#include <criterion/criterion.h>
#include <string.h>

/// What a case has besides k, q, x, adt, dt and trap; mimo_x comes with a rank above 1.
enum { HAS_MIMO = 1, HAS_D = 2, HAS_H0 = 4, HAS_K0 = 8, HAS_V0 = 16, HAS_RESET = 32, HAS_Z = 64, EVERYTHING = 127 };

static check_case make(int64_t batch, int64_t length, int64_t heads, int64_t rank, int64_t width, int64_t states,
                       int64_t chunk, unsigned has) {
    const kr_shape none = CHECK_ABSENT, keys = KR_SHAPE(batch, length, heads * rank * states);
    const kr_shape steps = KR_SHAPE(batch, length, heads), values = KR_SHAPE(batch, length, heads * width);
    check_case c = {.op = "trapezoid_scan",
                    .attrs = {.i = {[TRAPEZOID_RANK] = rank, [TRAPEZOID_CHUNK] = chunk}},
                    .inputs = TRAPEZOID_INPUTS,
                    .shape = {[TRAPEZOID_K] = keys,
                              [TRAPEZOID_Q] = keys,
                              [TRAPEZOID_X] = values,
                              [TRAPEZOID_ADT] = steps,
                              [TRAPEZOID_DT] = steps,
                              [TRAPEZOID_TRAP] = steps,
                              [TRAPEZOID_MIMO_X] = has & HAS_MIMO || rank > 1 ? KR_SHAPE(heads, rank, width) : none,
                              [TRAPEZOID_D] = has & HAS_D ? KR_SHAPE(heads) : none,
                              [TRAPEZOID_Z] = has & HAS_Z && rank == 1 ? values : none,
                              [TRAPEZOID_K_BIAS] = none,
                              [TRAPEZOID_Q_BIAS] = none,
                              [TRAPEZOID_ANG] = none,
                              [TRAPEZOID_H0] = has & HAS_H0 ? KR_SHAPE(batch, heads, width, states) : none,
                              [TRAPEZOID_K0] = has & HAS_K0 ? KR_SHAPE(batch, rank, heads, states) : none,
                              [TRAPEZOID_V0] = has & HAS_V0 ? KR_SHAPE(batch, heads, width) : none,
                              [TRAPEZOID_THETA0] = none,
                              [TRAPEZOID_RESET] = has & HAS_RESET ? KR_SHAPE(batch, length) : none},
                    .dtype = {[TRAPEZOID_RESET] = KR_I32},
                    .lo = {[TRAPEZOID_ADT] = -2,
                           [TRAPEZOID_Z] = -2,
                           [TRAPEZOID_DT] = 0.01,
                           [TRAPEZOID_TRAP] = -3,
                           [TRAPEZOID_RESET] = -8}, // a reset above 0 in one of 10
                    .hi = {[TRAPEZOID_ADT] = -0.01,
                           [TRAPEZOID_Z] = 2,
                           [TRAPEZOID_DT] = 1,
                           [TRAPEZOID_TRAP] = 3,
                           [TRAPEZOID_RESET] = 1},
                    .no_loss = 1 << TRAPEZOID_SAVED | 1 << TRAPEZOID_ANGLES,
                    .seed = (uint64_t)(length * 1000 + heads * 100 + width * 10 + states + rank)};
    c.tolerance = 3e-6;
    c.grad_tolerance = 1e-5;
    return c;
}

/// The same with keys and queries that the scan rotates: `pairs` of them, laid out in halves or side by side.
static check_case rotating(check_case c, int64_t groups, int64_t states, int64_t pairs, bool half, bool own_angles,
                          bool theta0) {
    const int64_t batch = c.shape[TRAPEZOID_X].dim[0], length = c.shape[TRAPEZOID_X].dim[1],
                  heads = c.shape[TRAPEZOID_ADT].dim[2], rank = c.attrs.i[TRAPEZOID_RANK];
    c.attrs.i[TRAPEZOID_GROUPS] = groups;
    c.attrs.i[TRAPEZOID_HALF] = half;
    c.shape[TRAPEZOID_K] = c.shape[TRAPEZOID_Q] = KR_SHAPE(batch, length, rank * groups * states);
    c.shape[TRAPEZOID_K_BIAS] = c.shape[TRAPEZOID_Q_BIAS] = KR_SHAPE(heads, rank, states);
    c.shape[TRAPEZOID_ANG] = own_angles ? KR_SHAPE(batch, length, heads, pairs) : KR_SHAPE(batch, length, pairs);
    if (theta0) c.shape[TRAPEZOID_THETA0] = KR_SHAPE(batch, heads, pairs);
    c.hi[TRAPEZOID_THETA0] = 6;
    c.seed += (uint64_t)(pairs * 7 + half + 2 * own_angles);
    return c;
}

/// The gradient op on the same operands, with states and angles that nobody computed: it must take them as they are.
static check_case make_backward(const check_case *f, unsigned upstream) {
    check_case c = {.op = "trapezoid_scan_grad",
                    .attrs = f->attrs,
                    .inputs = TRAPEZOID_GRAD_INPUTS,
                    .tolerance = 1e-5,
                    .seed = f->seed};
    kr_shape in[CHECK_MAX], out[CHECK_MAX];
    kr_dtype in_type[CHECK_MAX], out_type[CHECK_MAX];
    check_shapes(f, in, in_type, out, out_type);
    for (int k = 0; k < TRAPEZOID_GRAD_FORWARD; k++) c.shape[k] = upstream >> k & 1 ? out[k] : CHECK_ABSENT;
    for (int k = TRAPEZOID_K; k <= TRAPEZOID_RESET; k++) {
        if (k == TRAPEZOID_H0 || k == TRAPEZOID_THETA0) continue;
        const int to = k < TRAPEZOID_H0       ? TRAPEZOID_GRAD_FORWARD + k
                       : k < TRAPEZOID_THETA0 ? TRAPEZOID_GRAD_K0 + k - TRAPEZOID_K0
                                              : TRAPEZOID_GRAD_RESET;
        c.shape[to] = f->shape[k];
        c.dtype[to] = f->dtype[k];
        c.lo[to] = f->lo[k];
        c.hi[to] = f->hi[k];
    }
    c.shape[TRAPEZOID_GRAD_SAVED] = out[TRAPEZOID_SAVED];
    c.shape[TRAPEZOID_GRAD_ANGLES] = out[TRAPEZOID_ANGLES];
    c.shape[TRAPEZOID_GRAD_O] = f->shape[TRAPEZOID_Z].rank >= 0 ? out[TRAPEZOID_O] : CHECK_ABSENT;
    return c;
}

static void check_both(check_case c) {
    check_forward(&c, forward);
    check_gradient(&c, forward);
}

static void check_backward(check_case c) {
    static const unsigned upstream[] = {31, 1, 30};
    for (int k = 0; k < 3; k++) {
        const check_case g = make_backward(&c, upstream[k]);
        check_forward(&g, backward);
    }
}

Test(trapezoid_scan, all_operands) { check_both(make(2, 19, 2, 1, 5, 16, 8, EVERYTHING)); }
Test(trapezoid_scan, bare) { check_both(make(2, 5, 3, 1, 2, 3, 0, 0)); }
Test(trapezoid_scan, each_operand_alone) {
    for (unsigned has = 1; has <= HAS_Z; has *= 2) check_both(make(1, 7, 2, 1, 3, 4, 3, has));
    for (unsigned has = 1; has <= HAS_RESET; has *= 2) check_both(make(1, 7, 2, 2, 3, 4, 3, EVERYTHING & ~has));
}
Test(trapezoid_scan, ranks) {
    for (int64_t rank = 2; rank <= 5; rank++) check_both(make(2, 9, 2, rank, 3, 4, 4, EVERYTHING));
    check_both(make(1, 7, 1, 8, 2, 2, 5, EVERYTHING));
    check_both(make(1, 5, 1, 17, 2, 2, 3, EVERYTHING));
}
Test(trapezoid_scan, lengths_around_a_chunk) {
    static const int64_t lengths[] = {1, 7, 8, 9, 16, 29};
    for (int k = 0; k < 6; k++) check_both(make(1, lengths[k], 2, 1, 3, 5, 8, EVERYTHING));
    for (int k = 0; k < 5; k++) check_both(make(1, lengths[k], 1, 3, 2, 2, 8, EVERYTHING));
}
Test(trapezoid_scan, lengths_around_a_long_chunk) {
    static const int64_t lengths[] = {31, 32, 33, 67};
    for (int k = 0; k < 4; k++) check_both(make(1, lengths[k], 1, 1, 2, 2, 0, EVERYTHING & ~HAS_RESET));
    check_both(make(1, 67, 1, 1, 2, 2, 33, EVERYTHING));
    check_both(make(1, 33, 1, 4, 2, 2, 16, EVERYTHING));
}
Test(trapezoid_scan, head_widths) {
    static const int64_t widths[] = {1, 4, 15, 16, 17, 33};
    for (int k = 0; k < 6; k++) check_both(make(1, 6, 2, 2, widths[k], 3, 4, EVERYTHING));
}
Test(trapezoid_scan, state_sizes) {
    static const int64_t states[] = {1, 4, 15, 16, 31, 48};
    for (int k = 0; k < 6; k++) check_both(make(1, 6, 1, 2, 3, states[k], 4, EVERYTHING));
}
Test(trapezoid_scan, many_units) { check_both(make(23, 3, 3, 1, 2, 2, 2, EVERYTHING)); }
Test(trapezoid_scan, published_sizes) {
    check_case c = make(1, 130, 2, 1, 64, 128, 0, EVERYTHING & ~HAS_RESET);
    c.tolerance = 1e-5;
    check_forward(&c, forward);
    c = make(1, 40, 2, 4, 64, 128, 0, EVERYTHING);
    c.tolerance = 1e-5;
    check_forward(&c, forward);
}
Test(trapezoid_scan, one_token) {
    check_both(make(1, 1, 2, 1, 20, 18, 0, EVERYTHING));
    check_both(make(2, 1, 2, 3, 17, 5, 0, EVERYTHING & ~HAS_RESET));
    check_both(make(1, 1, 2, 18, 3, 5, 0, HAS_K0 | HAS_V0));
    check_both(make(1, 1, 2, 2, 3, 5, 0, 0));
}
Test(trapezoid_scan, nothing) {
    check_both(make(2, 0, 3, 2, 4, 5, 0, EVERYTHING));
    check_both(make(2, 0, 3, 1, 4, 5, 0, 0));
    check_both(make(0, 3, 3, 2, 4, 5, 0, EVERYTHING));
    check_both(make(2, 3, 0, 2, 0, 0, 0, EVERYTHING));
    check_both(make(2, 3, 2, 2, 0, 5, 0, EVERYTHING));
    check_both(make(2, 3, 2, 2, 4, 0, 0, EVERYTHING));
}
Test(trapezoid_scan, extreme_steps) {
    check_case c = make(1, 40, 2, 2, 4, 8, 8, HAS_H0 | HAS_K0 | HAS_V0);
    c.lo[TRAPEZOID_ADT] = -300;
    c.hi[TRAPEZOID_DT] = 20;
    c.lo[TRAPEZOID_TRAP] = -60;
    c.hi[TRAPEZOID_TRAP] = 60;
    check_forward(&c, forward);
}
Test(trapezoid_scan, every_token_starts_anew) {
    check_case c = make(2, 9, 2, 2, 3, 4, 4, EVERYTHING);
    c.lo[TRAPEZOID_RESET] = c.hi[TRAPEZOID_RESET] = 1;
    check_both(c);
}
Test(trapezoid_scan_grad, operands) {
    check_backward(make(2, 19, 2, 1, 5, 16, 8, EVERYTHING));
    check_backward(make(2, 40, 3, 1, 3, 4, 0, 0));
    check_backward(make(1, 9, 2, 3, 18, 17, 4, EVERYTHING));
}
Test(trapezoid_scan_grad, units) { check_backward(make(23, 5, 3, 2, 3, 4, 2, EVERYTHING)); }
Test(trapezoid_scan_grad, published_sizes) {
    check_backward(make(1, 70, 1, 1, 64, 128, 0, EVERYTHING & ~HAS_RESET));
    check_backward(make(1, 20, 1, 4, 64, 64, 0, EVERYTHING));
}
Test(trapezoid_scan_grad, nothing) {
    check_backward(make(2, 0, 3, 2, 4, 5, 0, EVERYTHING));
    check_backward(make(0, 3, 3, 2, 4, 5, 0, EVERYTHING));
    check_backward(make(2, 3, 0, 2, 0, 0, 0, EVERYTHING));
    check_backward(make(2, 3, 2, 2, 0, 5, 0, EVERYTHING));
    check_backward(make(2, 3, 2, 2, 4, 0, 0, EVERYTHING));
}

// Keys and queries that the scan rotates ------------------------------------------------------------------------------

Test(trapezoid_rotates, pairs) {
    for (int half = 0; half < 2; half++) {
        check_both(rotating(make(2, 11, 4, 1, 3, 6, 8, EVERYTHING), 2, 6, 3, half, false, true));
        check_both(rotating(make(1, 6, 2, 1, 2, 18, 4, EVERYTHING & ~HAS_RESET), 1, 18, 5, half, false, false));
        check_both(rotating(make(1, 9, 2, 1, 3, 7, 4, HAS_RESET), 1, 7, 3, half, true, true));
        check_both(rotating(make(1, 6, 2, 1, 2, 4, 4, 0), 2, 4, 0, half, false, true));
        check_both(rotating(make(1, 3, 1, 1, 1, 36, 2, EVERYTHING), 1, 36, 17, half, false, true));
    }
}
Test(trapezoid_rotates, ranks) {
    for (int64_t rank = 2; rank <= 4; rank++)
        check_both(rotating(make(1, 6, 4, rank, 2, 5, 4, EVERYTHING), 2, 5, 2, rank % 2, rank == 3, true));
}
Test(trapezoid_rotates, units) {
    check_both(rotating(make(1, 7, 19, 1, 2, 4, 4, EVERYTHING), 1, 4, 2, false, false, true));
    check_both(rotating(make(17, 3, 2, 1, 2, 4, 2, EVERYTHING), 1, 4, 1, false, false, true));
}
Test(trapezoid_rotates, one_token) {
    check_both(rotating(make(2, 1, 2, 1, 20, 18, 0, EVERYTHING), 1, 18, 8, false, false, true));
    check_both(rotating(make(2, 1, 2, 3, 5, 6, 0, EVERYTHING), 2, 6, 3, true, true, false));
}
Test(trapezoid_rotates, nothing) {
    check_both(rotating(make(2, 0, 3, 2, 4, 6, 0, EVERYTHING), 1, 6, 2, false, false, true));
    check_both(rotating(make(0, 3, 3, 2, 4, 6, 0, EVERYTHING), 3, 6, 2, false, false, true));
    check_both(rotating(make(2, 3, 0, 2, 0, 6, 0, EVERYTHING), 1, 6, 2, false, false, true));
    check_both(rotating(make(2, 3, 0, 2, 0, 6, 0, EVERYTHING), 2, 6, 2, false, false, true));
    check_both(rotating(make(2, 3, 2, 2, 0, 6, 0, EVERYTHING), 1, 6, 2, false, false, true));
    check_both(rotating(make(2, 3, 2, 2, 4, 0, 0, EVERYTHING), 1, 0, 0, false, false, true));
}
/// An angle that has gone round a thousand times is as good as a fresh one. tanh and dt round every step by up to 2e-7
/// of at most pi: 1e-5 rad for 2000 random errors; the last key is the rotated bias.
Test(trapezoid_rotates, long_angles) {
    check_case c = rotating(make(1, 2000, 1, 1, 1, 2, 0, 0), 1, 2, 1, false, false, false);
    c.lo[TRAPEZOID_ANG] = 2, c.hi[TRAPEZOID_ANG] = 5, c.lo[TRAPEZOID_DT] = 0.9, c.hi[TRAPEZOID_DT] = 1.1;
    c.tolerance = 2e-5;
    check_forward(&c, forward);
}
/// Where a gate is 0 its output does not say what it was applied to.
Test(trapezoid_scan, shut_gates) {
    check_case c = make(1, 9, 2, 1, 3, 4, 4, EVERYTHING);
    c.lo[TRAPEZOID_Z] = c.hi[TRAPEZOID_Z] = 0;
    check_both(c);
    check_case g = make_backward(&c, 31);
    check_forward(&g, backward);
    g = make_backward(&c, 31);
    g.lo[TRAPEZOID_GRAD_FORWARD + TRAPEZOID_Z] = -200, g.hi[TRAPEZOID_GRAD_FORWARD + TRAPEZOID_Z] = 200;
    check_forward(&g, backward);
}
Test(trapezoid_rotates, published_sizes) {
    check_case c = rotating(make(1, 130, 2, 1, 64, 128, 0, EVERYTHING & ~HAS_RESET), 1, 128, 32, false, false, true);
    c.tolerance = 1e-5;
    check_forward(&c, forward);
    c = rotating(make(1, 70, 2, 4, 64, 128, 0, EVERYTHING), 1, 128, 32, true, false, true);
    c.tolerance = 1e-5;
    check_forward(&c, forward);
}
Test(trapezoid_rotates, gradient_op) {
    check_backward(rotating(make(2, 19, 4, 1, 5, 16, 8, EVERYTHING), 2, 16, 8, false, false, false));
    check_backward(rotating(make(1, 40, 19, 1, 3, 6, 0, EVERYTHING), 1, 6, 3, true, false, false));
    check_backward(rotating(make(17, 5, 2, 1, 16, 32, 0, EVERYTHING), 1, 32, 16, false, false, false));
    check_backward(rotating(make(2, 9, 4, 3, 4, 20, 4, EVERYTHING), 2, 20, 6, true, true, false));
    check_backward(rotating(make(1, 40, 2, 1, 16, 64, 0, EVERYTHING), 1, 64, 16, false, false, false));
    check_backward(rotating(make(1, 11, 1, 1, 2, 70, 4, EVERYTHING), 1, 70, 33, true, false, false));
}

/// Bad shapes are refused with a message that says what was seen and what is wanted.
Test(trapezoid_scan, no_chunk_is_too_long) {
    static const int64_t chunks[] = {33, 1 << 20, INT64_C(1) << 62, (INT64_C(1) << 62) + 1, INT64_MAX};
    for (size_t k = 0; k < sizeof chunks / sizeof *chunks; k++) // times rank, the third is 2^64
        cr_expect_eq(kr_chunk_measure(2, 256, 2, 0, 4, 8, 16, chunks[k]).chunk, 32);
    cr_expect_eq(kr_chunk_measure(2, 256, 2, 0, 4, 8, 16, 31).chunk, 31);
    cr_expect_eq(kr_chunk_measure(2, 256, 2, 0, 200, 8, 16, 31).chunk, 1);
}

Test(trapezoid_scan, bad_shapes) {
    check_case c = make(2, 5, 3, 2, 4, 6, 0, EVERYTHING);
    check_refused(&c, TRAPEZOID_X, KR_SHAPE(5, 12), "x is [5, 12], want [B L H*P]");
    check_refused(&c, TRAPEZOID_X, KR_SHAPE(2, 5, 13),
           "x is [2, 5, 13], want [B L H*P] with B = 2, L = 5 (from k), H = 3 (from adt)");
    check_refused(&c, TRAPEZOID_K, KR_SHAPE(2, 5, 35),
           "k is [2, 5, 35], want [B L H*rank*N] (groups = 0) with H = 3 (from adt), rank = 2");
    check_refused(&c, TRAPEZOID_Q, KR_SHAPE(2, 5, 35), "q is [2, 5, 35], want [B L H*rank*N] = [2, 5, 36]");
    check_refused(&c, TRAPEZOID_DT, KR_SHAPE(2, 5, 7), "dt is [2, 5, 7], want [B L H] = [2, 5, 3]");
    check_refused(&c, TRAPEZOID_MIMO_X, KR_SHAPE(3, 4, 2), "mimo_x is [3, 4, 2], want [H rank P] = [3, 2, 4]");
    check_refused(&c, TRAPEZOID_MIMO_X, CHECK_ABSENT, "rank 2 without mimo_x");
    check_refused(&c, TRAPEZOID_D, KR_SHAPE(5), "D is [5], want [H] = [3]");
    check_refused(&c, TRAPEZOID_H0, KR_SHAPE(2, 3, 6, 4), "h0 is [2, 3, 6, 4], want [B H P N] = [2, 3, 4, 6]");
    check_refused(&c, TRAPEZOID_K0, KR_SHAPE(2, 3, 2, 6), "k0 is [2, 3, 2, 6], want [B rank H N] = [2, 2, 3, 6]");
    check_refused(&c, TRAPEZOID_V0, KR_SHAPE(2, 3, 6), "v0 is [2, 3, 6], want [B H P] = [2, 3, 4]");
    check_refused(&c, TRAPEZOID_Z, KR_SHAPE(2, 5, 12), "rank 2 with a gate z");
    check_refused(&c, TRAPEZOID_ANG, KR_SHAPE(2, 5, 1), "ang is [2, 5, 1], want none with groups = 0");
    check_refused(&c, TRAPEZOID_RESET, KR_SHAPE(2, 6), "reset is [2, 6], want [B L] = [2, 5]");
    c.attrs.i[TRAPEZOID_RANK] = 0;
    check_refused(&c, TRAPEZOID_X, c.shape[TRAPEZOID_X], "rank is 0, want 1 to 65536");
    c.attrs.i[TRAPEZOID_RANK] = INT64_C(1) << 40; // the products of its chunks' rows would leave 64 bits
    check_refused(&c, TRAPEZOID_X, c.shape[TRAPEZOID_X], "rank is 1099511627776, want 1 to 65536");
    c = rotating(make(2, 5, 4, 2, 4, 6, 0, EVERYTHING), 2, 6, 3, false, false, true);
    check_case wide = c;
    wide.shape[TRAPEZOID_THETA0] = CHECK_ABSENT;
    check_refused(&wide, TRAPEZOID_ANG, KR_SHAPE(2, 5, 4), "ang has 4 pairs, want at most 3, half of N");
    check_refused(&c, TRAPEZOID_K_BIAS, KR_SHAPE(4, 2, 5), "k_bias is [4, 2, 5], want [H rank N] = [4, 2, 6] (groups = 2)");
    check_refused(&c, TRAPEZOID_Q_BIAS, KR_SHAPE(4, 1, 6), "q_bias is [4, 1, 6], want [H rank N] = [4, 2, 6]");
    check_refused(&c, TRAPEZOID_THETA0, KR_SHAPE(2, 4, 2), "theta0 is [2, 4, 2], want [B H S] = [2, 4, 3]");
    c = rotating(make(2, 5, 4, 2, 4, 6, 0, EVERYTHING), 3, 6, 3, false, false, true);
    check_refused(&c, TRAPEZOID_X, c.shape[TRAPEZOID_X], "3 groups, want a divisor of 4 heads");
}
