#include "ops/reduce/args.h"
#include "tests/check.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct axes { int64_t outer, n, inner; } axes;
static axes around(const kr_shape *s, int64_t axis) {
    axes a = {1, s->dim[axis], 1};
    for (int k = 0; k < axis; k++) a.outer *= s->dim[k];
    for (int k = (int)axis + 1; k < s->rank; k++) a.inner *= s->dim[k];
    return a;
}

#define EACH_RESULT(a) for (int64_t o = 0; o < (a).outer; o++) for (int64_t c = 0; c < (a).inner; c++)
#define AT(a, k) (((o) * (a).n + (k)) * (a).inner + (c))

static void oracle_sum(const kr_attrs *attrs, const kr_shape *in_shape, const double *const *in,
                       const kr_shape *out_shape, double *const *out) {
    (void)out_shape;
    const axes a = around(in_shape, attrs->i[REDUCE_AXIS]);
    EACH_RESULT(a) {
        double sum = 0;
        for (int64_t k = 0; k < a.n; k++) sum += in[0][AT(a, k)];
        out[0][o * a.inner + c] = sum;
    }
}

static void oracle_mean(const kr_attrs *attrs, const kr_shape *in_shape, const double *const *in,
                        const kr_shape *out_shape, double *const *out) {
    oracle_sum(attrs, in_shape, in, out_shape, out);
    for (int64_t i = 0; i < kr_shape_count(out_shape); i++) out[0][i] /= (double)in_shape->dim[attrs->i[REDUCE_AXIS]];
}

static void oracle_max(const kr_attrs *attrs, const kr_shape *in_shape, const double *const *in,
                       const kr_shape *out_shape, double *const *out) {
    (void)out_shape;
    const axes a = around(in_shape, attrs->i[REDUCE_AXIS]);
    EACH_RESULT(a) {
        double most = -INFINITY;
        for (int64_t k = 0; k < a.n; k++) most = fmax(most, in[0][AT(a, k)]);
        out[0][o * a.inner + c] = most;
    }
}

static void oracle_max_grad(const kr_attrs *attrs, const kr_shape *in_shape, const double *const *in,
                            const kr_shape *out_shape, double *const *out) {
    (void)out_shape;
    const axes a = around(&in_shape[MAX_GRAD_X], attrs->i[REDUCE_AXIS]);
    EACH_RESULT(a) {
        bool found = false;
        for (int64_t k = 0; k < a.n; k++) {
            const bool here = !found && in[MAX_GRAD_X][AT(a, k)] == in[MAX_GRAD_Y][o * a.inner + c];
            out[0][AT(a, k)] = here ? in[MAX_GRAD_DY][o * a.inner + c] : 0;
            found |= here;
        }
    }
}

static void oracle_cumsum(const kr_attrs *attrs, const kr_shape *in_shape, const double *const *in,
                          const kr_shape *out_shape, double *const *out) {
    (void)out_shape;
    const axes a = around(in_shape, attrs->i[CUMSUM_AXIS]);
    EACH_RESULT(a) {
        double sum = 0;
        for (int64_t j = 0; j < a.n; j++) {
            const int64_t k = attrs->i[CUMSUM_REVERSE] ? a.n - 1 - j : j;
            out[0][AT(a, k)] = sum += in[0][AT(a, k)];
        }
    }
}

static const struct { const char *op; check_oracle *oracle; } reductions[] = {
    {"sum", oracle_sum}, {"mean", oracle_mean}, {"max", oracle_max}, {"cumsum", oracle_cumsum}};

static void each(kr_shape shape, bool gradients) {
    for (int r = 0; r < 4; r++)
        for (int axis = 0; axis < shape.rank; axis++)
            for (int flag = 0; flag < 2; flag++) {
                if (r && !strcmp(reductions[r].op, "max") && !shape.dim[axis]) continue;
                const check_case c = {.op = reductions[r].op, .attrs.i = {axis, flag}, .inputs = 1, .shape = {shape},
                                      .tolerance = 1e-6, .seed = 5};
                if (gradients) check_gradient(&c, reductions[r].oracle);
                else check_forward(&c, reductions[r].oracle);
            }
}

Test(reduce, forward) {
    each(KR_SHAPE(1), false);
    each(KR_SHAPE(37), false);
    each(KR_SHAPE(129), false);
    each(KR_SHAPE(3, 5, 7), false);
    each(KR_SHAPE(2, 9, 1, 18), false);
    each(KR_SHAPE(4, 80, 33), false);
    each(KR_SHAPE(0, 3), false);
    each(KR_SHAPE(2, 3, 2, 2, 3, 2), false);
}

Test(reduce, mean_of_nothing_is_nan) {
    float y[3];
    const kr_arg in = {.data = y, .shape = KR_SHAPE(0, 3), .stride = {3, 1}};
    const kr_arg out = {.data = y, .shape = KR_SHAPE(3), .stride = {1}};
    check_ok(check_call(kr_op_find("mean"), &(kr_attrs){0}, &in, 1, &out, kr_isa_best(), 1, false), "mean");
    cr_assert(isnan(y[0]) && isnan(y[2]));
}

/// Enough for several segments and column blocks.
Test(reduce, segments) {
    each(KR_SHAPE(33001), false);
    each(KR_SHAPE(700, 65), false);
    each(KR_SHAPE(65, 600), false);
}

Test(reduce, gradient) {
    each(KR_SHAPE(19), true);
    each(KR_SHAPE(3, 5, 7), true);
}

Test(reduce, max_grad) {
    for (int axis = 0; axis < 3; axis++) { // integers of a small range: many ties
        check_case c = {.op = "max_grad",
                        .attrs.i = {[REDUCE_AXIS] = axis, [REDUCE_KEEP] = 1},
                        .inputs = MAX_GRAD_INPUTS,
                        .seed = 9,
                        .shape = {KR_SHAPE(4, 6, 5), KR_SHAPE(4, 6, 5), KR_SHAPE(4, 6, 5)}};
        c.shape[MAX_GRAD_DY].dim[axis] = c.shape[MAX_GRAD_Y].dim[axis] = 1;
        check_forward(&c, oracle_max_grad);
    }
    const float x[] = {1, 3, 3, 2}, y[] = {3}, dy[] = {5};
    float dx[4];
    const kr_arg in[] = {{.data = (void *)(uintptr_t)dy, .shape = KR_SHAPE(1), .stride = {1}},
                         {.data = (void *)(uintptr_t)x, .shape = KR_SHAPE(4), .stride = {1}},
                         {.data = (void *)(uintptr_t)y, .shape = KR_SHAPE(1), .stride = {1}}};
    const kr_arg out = {.data = dx, .shape = KR_SHAPE(4), .stride = {1}};
    for (kr_isa isa = 0; isa <= kr_isa_best(); isa++) {
        check_ok(check_call(kr_op_find("max_grad"), &(kr_attrs){.i = {[REDUCE_KEEP] = 1}}, in, 3, &out, isa, 1, false),
                 "max_grad");
        cr_assert(dx[0] == 0 && dx[1] == 5 && dx[2] == 0 && dx[3] == 0);
    }
}

Test(reduce, cumsum_keeps_small_terms) {
    enum { N = 1 << 20 };
    float *x = malloc(N * sizeof *x), *y = malloc(N * sizeof *y);
    for (int i = 0; i < N; i++) x[i] = 0.1f;
    const kr_arg in = {.data = x, .shape = KR_SHAPE(N), .stride = {1}},
                 out = {.data = y, .shape = KR_SHAPE(N), .stride = {1}};
    for (kr_isa isa = 0; isa <= kr_isa_best(); isa++) {
        check_ok(check_call(kr_op_find("cumsum"), &(kr_attrs){0}, &in, 1, &out, isa, 1, false), "cumsum");
        cr_assert(fabs(y[N - 1] - N * (double)0.1f) <= 1e-7 * N * 0.1, "got %.9g, want %.9g", y[N - 1],
                  N * (double)0.1f);
    }
    free(x);
    free(y);
}

/// kr_sum_to against a naive sum, for every target that broadcasts to [2, 3, 1, 4].
Test(reduce, sum_to) {
    const kr_shape from = KR_SHAPE(2, 3, 1, 4);
    float x[24], y[24];
    for (int i = 0; i < 24; i++) x[i] = kr_random_uniform(3, 0, i);
    for (int rank = 0; rank <= 4; rank++)
        for (int mask = 0; mask < 1 << rank; mask++) {
            kr_shape to = {.rank = rank};
            for (int k = 0; k < rank; k++) to.dim[k] = mask >> k & 1 ? from.dim[4 - rank + k] : 1;
            kr_graph *g;
            check_ok(kr_graph_new(&g), "graph");
            kr_output(g, "y", kr_sum_to(g, kr_input(g, "x", KR_F32, from), to));
            const int64_t n = kr_shape_count(&to);
            double want[24] = {0};
            for (int i = 0; i < 24; i++) {
                int64_t at = 0, rest = i, step = 1;
                for (int k = 3; k >= 0; k--) {
                    const int j = k - (4 - rank);
                    const int64_t index = rest % from.dim[k];
                    rest /= from.dim[k];
                    if (j >= 0 && to.dim[j] != 1) at += index * step;
                    if (j >= 0) step *= to.dim[j];
                }
                want[at] += x[i];
            }
            const kr_binding in = {"x", x, sizeof x}, out = {"y", y, (size_t)n * sizeof *y};
            check_ok(check_interpret(g, kr_isa_best(), 3, &in, 1, &out, 1), "sum_to");
            check_close(y, KR_F32, want, n, 1e-6, "sum_to");
            kr_graph_free(g);
        }
}

Test(reduce, errors) {
    kr_graph *g;
    check_ok(kr_graph_new(&g), "graph");
    kr_sum(g, kr_input(g, "x", KR_F32, KR_SHAPE(2, 3)), 2, false);
    cr_assert(kr_graph_status(g) == KR_BAD_SHAPE &&
              strstr(kr_status_message(), "sum: there is no such axis in [2, 3]"));
    kr_graph_free(g);
    check_ok(kr_graph_new(&g), "graph");
    kr_max(g, kr_input(g, "x", KR_F32, KR_SHAPE(2, 0)), -1, false);
    cr_assert(kr_graph_status(g) == KR_BAD_SHAPE && strstr(kr_status_message(), "max: the axis has no elements"));
    kr_graph_free(g);
    check_ok(kr_graph_new(&g), "graph");
    kr_sum_to(g, kr_input(g, "x", KR_F32, KR_SHAPE(2, 3)), KR_SHAPE(2));
    cr_assert(kr_graph_status(g) == KR_BAD_SHAPE && strstr(kr_status_message(), "[2] does not broadcast to [2, 3]"));
    kr_graph_free(g);
}
