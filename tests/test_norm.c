#include "ops/norm/args.h"
#include "tests/check.h"

#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }

// The oracles follow the formulas of ops/norm/op.c line by line.
static void rms_norm(const kr_attrs *t, const kr_shape *shape, const double *const *in, const kr_shape *out_shape,
                     double *const *out) {
    (void)out_shape;
    const int64_t d = shape[RMS_X].dim[shape[RMS_X].rank - 1], group = t->i[NORM_GROUP] ? t->i[NORM_GROUP] : d;
    const int64_t rows = d ? kr_shape_count(&shape[RMS_X]) / d : 0;
    const bool before = t->i[NORM_BEFORE_GATE];
    for (int64_t row = 0; row < rows; row++)
        for (int64_t first = 0; first < d; first += group) {
            double squares = 0;
            for (int64_t i = row * d + first; i < row * d + first + group; i++) {
                const double r = in[RMS_X][i] + (in[RMS_RESIDUAL] ? in[RMS_RESIDUAL][i] : 0);
                const double v = in[RMS_Z] && !before ? r * in[RMS_Z][i] * sigmoid(in[RMS_Z][i]) : r;
                out[RMS_STREAM][i] = r;
                out[RMS_Y][i] = v;
                squares += v * v;
            }
            const double rho = 1 / sqrt(squares / (double)group + t->r[0]);
            out[RMS_RHO][row * (d / group) + first / group] = rho;
            for (int64_t i = row * d + first; i < row * d + first + group; i++) {
                out[RMS_Y][i] = out[RMS_Y][i] * rho * in[RMS_WEIGHT][i % d] + (in[RMS_BIAS] ? in[RMS_BIAS][i % d] : 0);
                if (in[RMS_Z] && before) out[RMS_Y][i] *= in[RMS_Z][i] * sigmoid(in[RMS_Z][i]);
            }
        }
}

/// in is x, residual, weight, bias.
static void layer_norm(const kr_attrs *t, const kr_shape *shape, const double *const *in, const kr_shape *out_shape,
                       double *const *out) {
    (void)out_shape;
    const int64_t d = shape[LAYER_X].dim[shape[LAYER_X].rank - 1], rows = d ? kr_shape_count(&shape[LAYER_X]) / d : 0;
    for (int64_t row = 0; row < rows; row++) {
        double mean = 0, squares = 0;
        for (int64_t i = row * d; i < (row + 1) * d; i++) {
            out[LAYER_STREAM][i] = in[LAYER_X][i] + (in[LAYER_RESIDUAL] ? in[LAYER_RESIDUAL][i] : 0);
            mean += out[LAYER_STREAM][i] / (double)d;
        }
        for (int64_t i = row * d; i < (row + 1) * d; i++)
            squares += (out[LAYER_STREAM][i] - mean) * (out[LAYER_STREAM][i] - mean);
        const double rho = 1 / sqrt(squares / (double)d + t->r[0]);
        out[LAYER_MEAN][row] = mean;
        out[LAYER_RHO][row] = rho;
        for (int64_t i = row * d; i < (row + 1) * d; i++)
            out[LAYER_Y][i] = (out[LAYER_STREAM][i] - mean) * rho * in[LAYER_WEIGHT][i % d] +
                              (in[LAYER_BIAS] ? in[LAYER_BIAS][i % d] : 0);
    }
}

static void rms_norm_grad(const kr_attrs *t, const kr_shape *shape, const double *const *in, const kr_shape *out_shape,
                          double *const *out) {
    (void)out_shape;
    const int64_t d = shape[RMS_GRAD_DY].dim[shape[RMS_GRAD_DY].rank - 1],
                  group = t->i[NORM_GROUP] ? t->i[NORM_GROUP] : d;
    const int64_t rows = d ? kr_shape_count(&shape[RMS_GRAD_DY]) / d : 0;
    const bool before = t->i[NORM_BEFORE_GATE];
    for (int64_t row = 0; row < rows; row++)
        for (int64_t first = 0; first < d; first += group) {
            const int64_t begin = row * d + first, number = row * (d / group) + first / group;
            const double rho = in[RMS_GRAD_RHO][number];
            double mean = 0;
            for (int pass = 0; pass < 2; pass++)
                for (int64_t i = begin; i < begin + group; i++) {
                    const int64_t c = i % d;
                    const double z = in[RMS_GRAD_Z] ? in[RMS_GRAD_Z][i] : 0, s = sigmoid(z),
                                 gate = in[RMS_GRAD_Z] ? z * s : 1;
                    const double slope = s * (1 + z * (1 - s)), r = in[RMS_GRAD_R][i],
                                 bias = in[RMS_GRAD_BIAS] ? in[RMS_GRAD_BIAS][c] : 0;
                    const double dy = before ? in[RMS_GRAD_DY][i] * gate : in[RMS_GRAD_DY][i],
                                 n = (before ? r : r * gate) * rho;
                    const double u = dy * in[RMS_GRAD_WEIGHT][c];
                    if (!pass) {
                        mean += u * n / (double)group;
                        out[RMS_GRAD_DWEIGHT][c] += dy * n;
                        out[RMS_GRAD_DBIAS][c] += dy;
                        continue;
                    }
                    const double dv =
                        rho *
                        (u - n * (mean + (in[RMS_GRAD_DRHO] ? in[RMS_GRAD_DRHO][number] * rho / (double)group : 0)));
                    out[RMS_GRAD_DX][i] = (before ? dv : dv * gate) +
                                          (in[RMS_GRAD_DSTREAM] ? in[RMS_GRAD_DSTREAM][i] : 0);
                    out[RMS_GRAD_DZ][i] = !in[RMS_GRAD_Z] ? 0
                                          : before ? in[RMS_GRAD_DY][i] * (n * in[RMS_GRAD_WEIGHT][c] + bias) * slope
                                                   : dv * r * slope;
                }
        }
}

static void layer_norm_grad(const kr_attrs *t, const kr_shape *shape, const double *const *in,
                            const kr_shape *out_shape, double *const *out) {
    (void)t, (void)out_shape;
    const int64_t d = shape[LAYER_GRAD_DY].dim[shape[LAYER_GRAD_DY].rank - 1],
                  rows = d ? kr_shape_count(&shape[LAYER_GRAD_DY]) / d : 0;
    for (int64_t row = 0; row < rows; row++) {
        const double m = in[LAYER_GRAD_MEAN][row], rho = in[LAYER_GRAD_RHO][row];
        double mean_u = 0, mean_un = in[LAYER_GRAD_DRHO] ? in[LAYER_GRAD_DRHO][row] * rho / (double)d : 0;
        for (int64_t i = row * d; i < (row + 1) * d; i++) {
            const double n = (in[LAYER_GRAD_R][i] - m) * rho, u = in[LAYER_GRAD_DY][i] * in[LAYER_GRAD_WEIGHT][i % d];
            mean_u += u / (double)d;
            mean_un += u * n / (double)d;
            out[LAYER_GRAD_DWEIGHT][i % d] += in[LAYER_GRAD_DY][i] * n;
            out[LAYER_GRAD_DBIAS][i % d] += in[LAYER_GRAD_DY][i];
        }
        for (int64_t i = row * d; i < (row + 1) * d; i++) {
            const double n = (in[LAYER_GRAD_R][i] - m) * rho, u = in[LAYER_GRAD_DY][i] * in[LAYER_GRAD_WEIGHT][i % d];
            out[LAYER_GRAD_DX][i] = rho * (u - mean_u - n * mean_un) +
                                    (in[LAYER_GRAD_DMEAN] ? in[LAYER_GRAD_DMEAN][row] / (double)d : 0) +
                                    (in[LAYER_GRAD_DSTREAM] ? in[LAYER_GRAD_DSTREAM][i] : 0);
        }
    }
}

enum { WITH_RESIDUAL = 1, WITH_Z = 2, WITH_BIAS = 4, BEFORE = 8 };

static check_case rms_case(int64_t b, int64_t l, int64_t d, int64_t group, int with) {
    const kr_shape rows = KR_SHAPE(b, l, d);
    check_case c = {
        .op = "rms_norm",
        .attrs = {.i = {[NORM_GROUP] = group, [NORM_BEFORE_GATE] = (with & BEFORE) != 0}, .r = {[NORM_EPS] = 1e-5}},
        .inputs = RMS_INPUTS,
        .shape = {[RMS_X] = rows,
                  [RMS_RESIDUAL] = with & WITH_RESIDUAL ? rows : CHECK_ABSENT,
                  [RMS_Z] = with & WITH_Z ? rows : CHECK_ABSENT,
                  [RMS_WEIGHT] = KR_SHAPE(d),
                  [RMS_BIAS] = with & WITH_BIAS ? KR_SHAPE(d) : CHECK_ABSENT}};
    c.lo[RMS_Z] = -4, c.hi[RMS_Z] = 4;
    return c;
}

static check_case rms_grad_case(int64_t b, int64_t l, int64_t d, int64_t group, int with, bool dstream, bool drho) {
    const kr_shape rows = KR_SHAPE(b, l, d), saved = KR_SHAPE(b, l, d ? d / (group ? group : d) : 0);
    check_case c = {
        .op = "rms_norm_grad",
        .attrs = {.i = {[NORM_GROUP] = group, [NORM_BEFORE_GATE] = (with & BEFORE) != 0}, .r = {[NORM_EPS] = 1e-5}},
        .inputs = RMS_GRAD_INPUTS,
        .shape = {[RMS_GRAD_DY] = rows,
                  [RMS_GRAD_DSTREAM] = dstream ? rows : CHECK_ABSENT,
                  [RMS_GRAD_R] = rows,
                  [RMS_GRAD_Z] = with & WITH_Z ? rows : CHECK_ABSENT,
                  [RMS_GRAD_WEIGHT] = KR_SHAPE(d),
                  [RMS_GRAD_BIAS] = with & WITH_BIAS ? KR_SHAPE(d) : CHECK_ABSENT,
                  [RMS_GRAD_RHO] = saved,
                  [RMS_GRAD_DRHO] = drho ? saved : CHECK_ABSENT}};
    c.lo[RMS_GRAD_RHO] = 0.5, c.hi[RMS_GRAD_RHO] = 2;
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
    c.lo[RMS_X] = -1e-3, c.hi[RMS_X] = 1e-3, c.lo[RMS_Z] = -1e-3, c.hi[RMS_Z] = 1e-3;
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
                        .attrs.r = {[NORM_EPS] = 1e-5},
                        .inputs = LAYER_INPUTS,
                        .shape = {[LAYER_X] = rows,
                                  [LAYER_RESIDUAL] = with & WITH_RESIDUAL ? rows : CHECK_ABSENT,
                                  [LAYER_WEIGHT] = KR_SHAPE(d),
                                  [LAYER_BIAS] = with & WITH_BIAS ? KR_SHAPE(d) : CHECK_ABSENT},
                        .lo = {[LAYER_X] = 1},
                        .hi = {[LAYER_X] = 3}};
}

Test(norm, layer_forward_and_gradient) {
    static const int64_t sizes[][3] = {{1, 1, 1}, {2, 3, 7}, {3, 16, 48}, {2, 2, 1027}, {0, 3, 8}, {2, 3, 0}};
    static const int with[] = {0, WITH_RESIDUAL, WITH_BIAS, WITH_RESIDUAL | WITH_BIAS};
    for (int k = 0; k < 4; k++) {
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
            check_case c = layer_case(sizes[s][0], sizes[s][1], sizes[s][2], with[k]);
            if (sizes[s][2] == 1) c.attrs.r[NORM_EPS] = 0.1; // one element is its own mean: eps alone is left
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
                            .attrs.r = {[NORM_EPS] = 1e-5},
                            .inputs = LAYER_GRAD_INPUTS,
                            .tolerance = 2e-5,
                            .shape = {[LAYER_GRAD_DY] = rows,
                                      [LAYER_GRAD_DSTREAM] = extra ? rows : none,
                                      [LAYER_GRAD_R] = rows,
                                      [LAYER_GRAD_WEIGHT] = weight,
                                      [LAYER_GRAD_MEAN] = saved,
                                      [LAYER_GRAD_RHO] = saved,
                                      [LAYER_GRAD_DMEAN] = extra ? saved : none,
                                      [LAYER_GRAD_DRHO] = extra ? saved : none}};
            c.lo[LAYER_GRAD_RHO] = 0.5, c.hi[LAYER_GRAD_RHO] = 2;
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
    cr_assert_neq(kr_op_shapes(kr_op_find(c.op), &c.attrs, c.shape, c.dtype, c.inputs, out, dtype), KR_OK,
                  "no error, want \"%s\"", words);
    cr_assert(strstr(kr_status_message(), words), "\"%s\" lacks \"%s\"", kr_status_message(), words);
}

Test(norm, bad_inputs_are_named) {
    check_case c = rms_case(2, 3, 8, 0, 0);
    c.shape[RMS_WEIGHT] = KR_SHAPE(7);
    fails(c, "weight is [7], want [D] = [8] with D = 8 (from x)");
    c = rms_case(2, 3, 8, 0, WITH_RESIDUAL);
    c.shape[RMS_RESIDUAL] = KR_SHAPE(3, 8);
    fails(c, "residual is [3, 8], want [... D] = [2, 3, 8] with D = 8 (from x)");
    fails(rms_case(2, 3, 8, 3, 0), "group_size is 3, want a divisor of D = 8");
    fails(rms_case(2, 3, 8, -1, 0), "group_size is -1, want at least 0");
    fails(rms_case(2, 3, 8, 0, WITH_RESIDUAL | WITH_Z), "both a residual and a gate");
    c = rms_case(2, 3, 8, 0, 0);
    c.attrs.r[NORM_EPS] = -1;
    fails(c, "eps is -1, want at least 0");
    c = rms_grad_case(2, 3, 8, 4, 0, false, false);
    c.shape[RMS_GRAD_RHO] = KR_SHAPE(2, 3, 3);
    fails(c, "rho is [2, 3, 3], want [... G] = [2, 3, 2] with G = 2");
    c = layer_case(2, 3, 8, 0);
    c.shape[LAYER_X] = KR_SCALAR;
    fails(c, "x is [], want [... D]");
    c = layer_case(2, 3, 8, 0);
    c.dtype[LAYER_WEIGHT] = KR_F64;
    fails(c, "weight is f64 [8], want f32 [D]");
}
