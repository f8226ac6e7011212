#include "tests/check.h"

#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }

// The oracles follow MATH 3 line by line; in is x, residual, z, weight, bias.
static void rms_norm(const kr_attrs *t, const kr_shape *shape, const double *const *in, const kr_shape *out_shape,
                     double *const *out) {
    (void)out_shape;
    const int64_t d = shape[0].dim[shape[0].rank - 1], group = t->i[0] ? t->i[0] : d;
    const int64_t rows = d ? kr_shape_count(&shape[0]) / d : 0;
    const bool before = t->i[1];
    for (int64_t row = 0; row < rows; row++)
        for (int64_t first = 0; first < d; first += group) {
            double squares = 0;
            for (int64_t i = row * d + first; i < row * d + first + group; i++) {
                const double r = in[0][i] + (in[1] ? in[1][i] : 0);
                const double v = in[2] && !before ? r * in[2][i] * sigmoid(in[2][i]) : r;
                out[1][i] = r;
                out[0][i] = v;
                squares += v * v;
            }
            const double rho = 1 / sqrt(squares / (double)group + t->r[0]);
            out[2][row * (d / group) + first / group] = rho;
            for (int64_t i = row * d + first; i < row * d + first + group; i++) {
                out[0][i] = out[0][i] * rho * in[3][i % d] + (in[4] ? in[4][i % d] : 0);
                if (in[2] && before) out[0][i] *= in[2][i] * sigmoid(in[2][i]);
            }
        }
}

/// in is x, residual, weight, bias.
static void layer_norm(const kr_attrs *t, const kr_shape *shape, const double *const *in, const kr_shape *out_shape,
                       double *const *out) {
    (void)out_shape;
    const int64_t d = shape[0].dim[shape[0].rank - 1], rows = d ? kr_shape_count(&shape[0]) / d : 0;
    for (int64_t row = 0; row < rows; row++) {
        double mean = 0, squares = 0;
        for (int64_t i = row * d; i < (row + 1) * d; i++) {
            out[1][i] = in[0][i] + (in[1] ? in[1][i] : 0);
            mean += out[1][i] / (double)d;
        }
        for (int64_t i = row * d; i < (row + 1) * d; i++) squares += (out[1][i] - mean) * (out[1][i] - mean);
        const double rho = 1 / sqrt(squares / (double)d + t->r[0]);
        out[2][row] = mean;
        out[3][row] = rho;
        for (int64_t i = row * d; i < (row + 1) * d; i++)
            out[0][i] = (out[1][i] - mean) * rho * in[2][i % d] + (in[3] ? in[3][i % d] : 0);
    }
}

/// in is dy, dstream, r, z, weight, bias, rho, drho; out is dx, dz, dweight, dbias.
static void rms_norm_grad(const kr_attrs *t, const kr_shape *shape, const double *const *in, const kr_shape *out_shape,
                          double *const *out) {
    (void)out_shape;
    const int64_t d = shape[0].dim[shape[0].rank - 1], group = t->i[0] ? t->i[0] : d;
    const int64_t rows = d ? kr_shape_count(&shape[0]) / d : 0;
    const bool before = t->i[1];
    for (int64_t row = 0; row < rows; row++)
        for (int64_t first = 0; first < d; first += group) {
            const int64_t begin = row * d + first, number = row * (d / group) + first / group;
            const double rho = in[6][number];
            double mean = 0;
            for (int pass = 0; pass < 2; pass++)
                for (int64_t i = begin; i < begin + group; i++) {
                    const int64_t c = i % d;
                    const double z = in[3] ? in[3][i] : 0, s = sigmoid(z), gate = in[3] ? z * s : 1;
                    const double slope = s * (1 + z * (1 - s)), r = in[2][i], bias = in[5] ? in[5][c] : 0;
                    const double dy = before ? in[0][i] * gate : in[0][i], n = (before ? r : r * gate) * rho;
                    const double u = dy * in[4][c];
                    if (!pass) {
                        mean += u * n / (double)group;
                        out[2][c] += dy * n;
                        out[3][c] += dy;
                        continue;
                    }
                    const double dv = rho * (u - n * (mean + (in[7] ? in[7][number] * rho / (double)group : 0)));
                    out[0][i] = (before ? dv : dv * gate) + (in[1] ? in[1][i] : 0);
                    out[1][i] = !in[3] ? 0 : before ? in[0][i] * (n * in[4][c] + bias) * slope : dv * r * slope;
                }
        }
}

/// in is dy, dstream, r, weight, mean, rho, dmean, drho; out is dx, dweight, dbias.
static void layer_norm_grad(const kr_attrs *t, const kr_shape *shape, const double *const *in,
                            const kr_shape *out_shape, double *const *out) {
    (void)t, (void)out_shape;
    const int64_t d = shape[0].dim[shape[0].rank - 1], rows = d ? kr_shape_count(&shape[0]) / d : 0;
    for (int64_t row = 0; row < rows; row++) {
        const double m = in[4][row], rho = in[5][row];
        double mean_u = 0, mean_un = in[7] ? in[7][row] * rho / (double)d : 0;
        for (int64_t i = row * d; i < (row + 1) * d; i++) {
            const double n = (in[2][i] - m) * rho, u = in[0][i] * in[3][i % d];
            mean_u += u / (double)d;
            mean_un += u * n / (double)d;
            out[1][i % d] += in[0][i] * n;
            out[2][i % d] += in[0][i];
        }
        for (int64_t i = row * d; i < (row + 1) * d; i++) {
            const double n = (in[2][i] - m) * rho, u = in[0][i] * in[3][i % d];
            out[0][i] = rho * (u - mean_u - n * mean_un) + (in[6] ? in[6][row] / (double)d : 0) +
                        (in[1] ? in[1][i] : 0);
        }
    }
}

enum { WITH_RESIDUAL = 1, WITH_Z = 2, WITH_BIAS = 4, BEFORE = 8 };

static check_case rms_case(int64_t b, int64_t l, int64_t d, int64_t group, int with) {
    const kr_shape rows = KR_SHAPE(b, l, d);
    check_case c = {.op = "rms_norm",
                    .attrs = {.i = {group, (with & BEFORE) != 0}, .r = {1e-5}},
                    .inputs = 5,
                    .shape = {rows, with & WITH_RESIDUAL ? rows : CHECK_ABSENT, with & WITH_Z ? rows : CHECK_ABSENT,
                              KR_SHAPE(d), with & WITH_BIAS ? KR_SHAPE(d) : CHECK_ABSENT}};
    c.lo[2] = -4, c.hi[2] = 4;
    return c;
}

static check_case rms_grad_case(int64_t b, int64_t l, int64_t d, int64_t group, int with, bool dstream, bool drho) {
    const kr_shape rows = KR_SHAPE(b, l, d), saved = KR_SHAPE(b, l, d ? d / (group ? group : d) : 0);
    check_case c = {.op = "rms_norm_grad",
                    .attrs = {.i = {group, (with & BEFORE) != 0}, .r = {1e-5}},
                    .inputs = 8,
                    .shape = {rows, dstream ? rows : CHECK_ABSENT, rows, with & WITH_Z ? rows : CHECK_ABSENT,
                              KR_SHAPE(d), with & WITH_BIAS ? KR_SHAPE(d) : CHECK_ABSENT, saved,
                              drho ? saved : CHECK_ABSENT}};
    c.lo[6] = 0.5, c.hi[6] = 2;
    return c;
}

static const int combinations[] = {0,
                                   WITH_RESIDUAL,
                                   WITH_RESIDUAL | WITH_BIAS,
                                   WITH_Z,
                                   WITH_Z | BEFORE,
                                   WITH_Z | WITH_BIAS,
                                   WITH_Z | WITH_BIAS | BEFORE};
enum { COMBINATIONS = sizeof combinations / sizeof *combinations };

Test(norm, rms_forward) {
    static const int64_t sizes[][3] = {{1, 1, 1},    {2, 3, 7}, {3, 16, 48}, {1, 5, 160},
                                       {2, 2, 1027}, {0, 3, 8}, {2, 3, 0}};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int k = 0; k < COMBINATIONS; k++) {
            const check_case c = rms_case(sizes[s][0], sizes[s][1], sizes[s][2], 0, combinations[k]);
            check_forward(&c, rms_norm);
        }
}

Test(norm, rms_forward_in_groups) {
    static const int64_t sizes[][2] = {{24, 8}, {21, 7}, {520, 260}, {6, 1}};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int k = 0; k < COMBINATIONS; k++) {
            const check_case c = rms_case(2, 3, sizes[s][0], sizes[s][1], combinations[k]);
            check_forward(&c, rms_norm);
        }
}

Test(norm, rms_tiny_inputs_are_ruled_by_eps) {
    check_case c = rms_case(2, 3, 16, 0, WITH_Z);
    c.lo[0] = -1e-3, c.hi[0] = 1e-3, c.lo[2] = -1e-3, c.hi[2] = 1e-3;
    check_forward(&c, rms_norm);
}

Test(norm, rms_gradient) {
    for (int k = 0; k < COMBINATIONS; k++) {
        const check_case whole = rms_case(2, 3, 7, 0, combinations[k]), groups = rms_case(2, 2, 12, 4, combinations[k]);
        check_gradient(&whole, rms_norm);
        check_gradient(&groups, rms_norm);
    }
}

Test(norm, rms_gradient_kernel) {
    static const int64_t sizes[][4] = {{1, 1, 1, 0},    {3, 40, 7, 0}, {2, 9, 48, 16}, {1, 3, 1027, 0},
                                       {2, 300, 16, 0}, {0, 3, 8, 0},  {2, 3, 0, 0}};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int k = 0; k < COMBINATIONS; k++)
            for (int extra = 0; extra < 2; extra++) {
                check_case c = rms_grad_case(sizes[s][0], sizes[s][1], sizes[s][2], sizes[s][3], combinations[k], extra,
                                             extra);
                c.tolerance = 2e-5;
                check_forward(&c, rms_norm_grad);
            }
}

static check_case layer_case(int64_t b, int64_t l, int64_t d, int with) {
    const kr_shape rows = KR_SHAPE(b, l, d);
    return (check_case){.op = "layer_norm",
                        .attrs.r = {1e-5},
                        .inputs = 4,
                        .shape = {rows, with & WITH_RESIDUAL ? rows : CHECK_ABSENT, KR_SHAPE(d),
                                  with & WITH_BIAS ? KR_SHAPE(d) : CHECK_ABSENT},
                        .lo = {1},
                        .hi = {3}};
}

Test(norm, layer_forward_and_gradient) {
    static const int64_t sizes[][3] = {{1, 1, 1}, {2, 3, 7}, {3, 16, 48}, {2, 2, 1027}, {0, 3, 8}, {2, 3, 0}};
    static const int with[] = {0, WITH_RESIDUAL, WITH_BIAS, WITH_RESIDUAL | WITH_BIAS};
    for (int k = 0; k < 4; k++) {
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
            check_case c = layer_case(sizes[s][0], sizes[s][1], sizes[s][2], with[k]);
            if (sizes[s][2] == 1) c.attrs.r[0] = 0.1; // one element is its own mean: eps alone is left
            check_forward(&c, layer_norm);
        }
        const check_case c = layer_case(2, 3, 9, with[k]);
        check_gradient(&c, layer_norm);
    }
}

Test(norm, layer_gradient_kernel) {
    static const int64_t sizes[][3] = {{1, 1, 1}, {3, 40, 7}, {2, 9, 48}, {1, 3, 1027}, {0, 3, 8}, {2, 3, 0}};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int extra = 0; extra < 2; extra++) {
            const kr_shape rows = KR_SHAPE(sizes[s][0], sizes[s][1], sizes[s][2]), weight = KR_SHAPE(sizes[s][2]);
            const kr_shape saved = KR_SHAPE(sizes[s][0], sizes[s][1], sizes[s][2] ? 1 : 0), none = CHECK_ABSENT;
            check_case c = {.op = "layer_norm_grad",
                            .attrs.r = {1e-5},
                            .inputs = 8,
                            .tolerance = 2e-5,
                            .shape = {rows, extra ? rows : none, rows, weight, saved, saved, extra ? saved : none,
                                      extra ? saved : none}};
            c.lo[5] = 0.5, c.hi[5] = 2;
            check_forward(&c, layer_norm_grad);
        }
}

Test(norm, stream_is_x_itself_without_a_residual) {
    kr_graph *g = NULL;
    check_ok(kr_graph_new(&g), "graph");
    const kr_value x = kr_input(g, "x", KR_F32, KR_SHAPE(2, 4)), w = kr_input(g, "w", KR_F32, KR_SHAPE(4));
    kr_value stream = KR_NONE;
    kr_rms_norm_full(g, x, KR_NONE, KR_NONE, w, KR_NONE, 1e-5, 0, false, &stream);
    cr_assert_eq(stream.id, x.id);
    kr_layer_norm_full(g, x, x, w, KR_NONE, 1e-5, &stream);
    cr_assert_neq(stream.id, x.id);
    cr_assert_neq(stream.id, 0);
    check_ok(kr_graph_status(g), "norm");
    kr_graph_free(g);
}

static void fails(check_case c, const char *words) {
    kr_shape out[CHECK_MAX];
    kr_dtype dtype[CHECK_MAX];
    cr_assert_neq(kr_op_find(c.op)->shape(&c.attrs, c.shape, c.dtype, c.inputs, out, dtype), KR_OK,
                  "no error, want \"%s\"", words);
    cr_assert(strstr(kr_status_message(), words), "\"%s\" lacks \"%s\"", kr_status_message(), words);
}

Test(norm, bad_inputs_are_named) {
    check_case c = rms_case(2, 3, 8, 0, 0);
    c.shape[3] = KR_SHAPE(7);
    fails(c, "weight is [7], want [8]");
    c = rms_case(2, 3, 8, 0, WITH_RESIDUAL);
    c.shape[1] = KR_SHAPE(3, 8);
    fails(c, "residual is [3, 8], want [2, 3, 8]");
    fails(rms_case(2, 3, 8, 3, 0), "group_size 3 does not divide");
    fails(rms_case(2, 3, 8, 0, WITH_RESIDUAL | WITH_Z), "both a residual and a gate");
    c = rms_case(2, 3, 8, 0, 0);
    c.attrs.r[0] = -1;
    fails(c, "eps is -1");
    c = layer_case(2, 3, 8, 0);
    c.shape[0] = KR_SCALAR;
    fails(c, "scalar");
    c = layer_case(2, 3, 8, 0);
    c.dtype[2] = KR_F64;
    fails(c, "input 2 is f64, want f32");
}
