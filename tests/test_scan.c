#include "ops/linear_scan/args.h"
#include "tests/check.h"

#include <criterion/criterion.h>
#include <string.h>

static void forward(const kr_attrs *t, const kr_shape *shape, const double *const *in, const kr_shape *out_shape,
                    double *const *out) {
    (void)t, (void)out_shape;
    const int64_t batch = shape[LINEAR_SCAN_A].dim[0], length = shape[LINEAR_SCAN_A].dim[1],
                  channels = shape[LINEAR_SCAN_A].dim[2];
    for (int64_t i = 0; i < batch * channels; i++) {
        double h = in[LINEAR_SCAN_H0] ? in[LINEAR_SCAN_H0][i] : 0;
        for (int64_t t1 = 0; t1 < length; t1++) {
            const int64_t row = i / channels * length + t1, at = row * channels + i % channels;
            if (in[LINEAR_SCAN_RESET] && in[LINEAR_SCAN_RESET][row] > 0) h = 0;
            out[LINEAR_SCAN_H][at] = h = in[LINEAR_SCAN_A][at] * h + in[LINEAR_SCAN_B][at];
        }
        out[LINEAR_SCAN_LAST][i] = h;
    }
}

static void backward(const kr_attrs *t, const kr_shape *shape, const double *const *in, const kr_shape *out_shape,
                     double *const *out) {
    (void)t, (void)out_shape;
    const double *dh = in[LINEAR_SCAN_GRAD_DH], *dlast = in[LINEAR_SCAN_GRAD_DLAST], *a = in[LINEAR_SCAN_GRAD_A],
                 *h = in[LINEAR_SCAN_GRAD_H], *h0 = in[LINEAR_SCAN_GRAD_H0], *reset = in[LINEAR_SCAN_GRAD_RESET];
    const int64_t batch = shape[LINEAR_SCAN_GRAD_A].dim[0], length = shape[LINEAR_SCAN_GRAD_A].dim[1],
                  channels = shape[LINEAR_SCAN_GRAD_A].dim[2];
    for (int64_t i = 0; i < batch * channels; i++) {
        double g = dlast ? dlast[i] : 0;
        for (int64_t t1 = length - 1; t1 >= 0; t1--) {
            const int64_t row = i / channels * length + t1, at = row * channels + i % channels;
            const bool fresh = reset && reset[row] > 0;
            const double before = fresh ? 0 : t1 ? h[at - channels] : h0 ? h0[i] : 0;
            g += dh ? dh[at] : 0;
            out[LINEAR_SCAN_GRAD_DB][at] = g;
            out[LINEAR_SCAN_GRAD_DA][at] = g * before;
            g = fresh ? 0 : g * a[at];
        }
        out[LINEAR_SCAN_GRAD_DH0][i] = g;
    }
}

static check_case make(int64_t batch, int64_t length, int64_t channels, bool h0, bool reset) {
    const kr_shape x = KR_SHAPE(batch, length, channels);
    check_case c = {.op = "linear_scan",
                    .inputs = LINEAR_SCAN_INPUTS,
                    .dtype = {[LINEAR_SCAN_RESET] = KR_I32},
                    .lo = {[LINEAR_SCAN_RESET] = -6},
                    .hi = {[LINEAR_SCAN_RESET] = 1},
                    .tolerance = 1e-6,
                    .grad_tolerance = 1e-6,
                    .seed = (uint64_t)(length * 100 + channels),
                    .shape = {[LINEAR_SCAN_A] = x,
                              [LINEAR_SCAN_B] = x,
                              [LINEAR_SCAN_H0] = h0 ? KR_SHAPE(batch, channels) : CHECK_ABSENT,
                              [LINEAR_SCAN_RESET] = reset ? KR_SHAPE(batch, length) : CHECK_ABSENT}};
    return c;
}

static void check_all(int64_t batch, int64_t length, int64_t channels) {
    const kr_shape x = KR_SHAPE(batch, length, channels), state = KR_SHAPE(batch, channels), none = CHECK_ABSENT;
    for (int k = 0; k < 4; k++) {
        const check_case c = make(batch, length, channels, k & 1, k & 2);
        check_forward(&c, forward);
        check_gradient(&c, forward);
    }
    for (int k = 1; k < 16; k++) {
        if (!(k & 3)) continue; // one of dh and dlast is there
        const check_case c = {.op = "linear_scan_grad",
                              .inputs = LINEAR_SCAN_GRAD_INPUTS,
                              .dtype = {[LINEAR_SCAN_GRAD_RESET] = KR_I32},
                              .lo = {[LINEAR_SCAN_GRAD_RESET] = -6},
                              .hi = {[LINEAR_SCAN_GRAD_RESET] = 1},
                              .tolerance = 1e-6,
                              .seed = (uint64_t)k,
                              .shape = {[LINEAR_SCAN_GRAD_DH] = k & 1 ? x : none,
                                        [LINEAR_SCAN_GRAD_DLAST] = k & 2 ? state : none,
                                        [LINEAR_SCAN_GRAD_A] = x,
                                        [LINEAR_SCAN_GRAD_H] = x,
                                        [LINEAR_SCAN_GRAD_H0] = k & 4 ? state : none,
                                        [LINEAR_SCAN_GRAD_RESET] = k & 8 ? KR_SHAPE(batch, length) : none}};
        check_forward(&c, backward);
    }
}

Test(linear_scan, plain) { check_all(2, 9, 5); }
Test(linear_scan, channel_tails) {
    check_all(1, 3, 64);
    check_all(2, 3, 65);
    check_all(1, 4, 150);
}
Test(linear_scan, one_token) { check_all(3, 1, 17); }
Test(linear_scan, nothing) {
    check_all(2, 0, 3);
    check_all(0, 2, 3);
    check_all(2, 3, 0);
}

static void refuse(check_case c, int input, kr_shape shape, const char *part) {
    cr_assert_eq(check_refused(&c, input, shape, part), KR_BAD_SHAPE);
}

Test(linear_scan, bad_shapes) {
    const check_case c = make(2, 3, 4, true, true);
    refuse(c, LINEAR_SCAN_A, KR_SHAPE(3, 4), "a is [3, 4], want [B L C]");
    refuse(c, LINEAR_SCAN_B, KR_SHAPE(2, 3, 5),
           "b is [2, 3, 5], want [B L C] = [2, 3, 4] with B = 2, L = 3, C = 4 (from a)");
    refuse(c, LINEAR_SCAN_H0, KR_SHAPE(2, 3), "h0 is [2, 3], want [B C] = [2, 4]");
    refuse(c, LINEAR_SCAN_RESET, KR_SHAPE(2, 4), "reset is [2, 4], want [B L] = [2, 3]");
}
