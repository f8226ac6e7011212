#include "ops/embedding/args.h"
#include "tests/check.h"

#include <criterion/criterion.h>
#include <string.h>

static void embedding(const kr_attrs *t, const kr_shape *shape, const double *const *in, const kr_shape *out_shape,
                      double *const *out) {
    (void)t, (void)out_shape;
    const int64_t v = shape[EMBEDDING_WEIGHT].dim[0], d = shape[EMBEDDING_WEIGHT].dim[1];
    for (int64_t i = 0; i < kr_shape_count(&shape[EMBEDDING_IDS]); i++)
        for (int64_t j = 0; j < d; j++) {
            const int64_t id = (int64_t)in[EMBEDDING_IDS][i];
            out[EMBEDDING_Y][i * d + j] = id >= 0 && id < v ? in[EMBEDDING_WEIGHT][id * d + j] : 0;
        }
}

static void embedding_grad(const kr_attrs *t, const kr_shape *shape, const double *const *in, const kr_shape *out_shape,
                           double *const *out) {
    (void)t;
    const int64_t v = out_shape->dim[0], d = out_shape->dim[1];
    for (int64_t i = 0; i < v * d && in[EMBEDDING_GRAD_ACCUMULATE]; i++)
        out[EMBEDDING_GRAD_DWEIGHT][i] = in[EMBEDDING_GRAD_ACCUMULATE][i];
    for (int64_t i = 0; i < kr_shape_count(&shape[EMBEDDING_GRAD_IDS]); i++)
        for (int64_t j = 0; j < d; j++)
            if (in[EMBEDDING_GRAD_IDS][i] >= 0 && in[EMBEDDING_GRAD_IDS][i] < (double)v)
                out[EMBEDDING_GRAD_DWEIGHT][(int64_t)in[EMBEDDING_GRAD_IDS][i] * d + j] +=
                    in[EMBEDDING_GRAD_DY][i * d + j];
}

/// Ids reach over both ends of the table.
static check_case gather(int64_t v, int64_t d, kr_shape ids) {
    return (check_case){.op = "embedding",
                        .inputs = EMBEDDING_INPUTS,
                        .shape = {[EMBEDDING_WEIGHT] = KR_SHAPE(v, d), [EMBEDDING_IDS] = ids},
                        .dtype = {[EMBEDDING_IDS] = KR_I32},
                        .lo = {[EMBEDDING_IDS] = -2},
                        .hi = {[EMBEDDING_IDS] = (double)v + 1}};
}

static check_case scatter(int64_t v, int64_t d, int64_t tokens, bool accumulate) {
    return (check_case){.op = "embedding_grad",
                        .attrs.shape = KR_SHAPE(v, d),
                        .inputs = EMBEDDING_GRAD_INPUTS,
                        .shape = {[EMBEDDING_GRAD_IDS] = KR_SHAPE(tokens),
                                  [EMBEDDING_GRAD_DY] = KR_SHAPE(tokens, d),
                                  [EMBEDDING_GRAD_ACCUMULATE] = accumulate ? KR_SHAPE(v, d) : CHECK_ABSENT},
                        .dtype = {[EMBEDDING_GRAD_IDS] = KR_I32},
                        .lo = {[EMBEDDING_GRAD_IDS] = -2},
                        .hi = {[EMBEDDING_GRAD_IDS] = (double)v + 1}};
}

static const int64_t sizes[][3] = {{1, 1, 1},    {13, 8, 14}, {5, 7, 40}, {300, 33, 9},
                                   {3, 160, 50}, {0, 4, 5},   {4, 0, 5},  {4, 5, 0}};
enum { SIZES = sizeof sizes / sizeof *sizes };

Test(embedding, forward_and_gradient) {
    for (int s = 0; s < SIZES; s++) {
        const check_case c = gather(sizes[s][0], sizes[s][1], KR_SHAPE(1, sizes[s][2]));
        check_forward(&c, embedding);
    }
    const check_case scalar = gather(3, 4, KR_SCALAR), repeated = gather(6, 5, KR_SHAPE(3, 2, 4));
    check_forward(&scalar, embedding);
    check_gradient(&repeated, embedding);
}

Test(embedding, gradient_kernel_adds_repeated_rows) {
    for (int s = 0; s < SIZES; s++)
        for (int accumulate = 0; accumulate < 2; accumulate++) {
            const check_case c = scatter(sizes[s][0], sizes[s][1], sizes[s][2], accumulate);
            check_forward(&c, embedding_grad);
        }
}

static void fails(check_case c, const char *words) {
    kr_shape out[CHECK_MAX];
    kr_dtype dtype[CHECK_MAX];
    cr_assert_neq(kr_op_shapes(kr_op_find(c.op), &c.attrs, c.shape, c.dtype, c.inputs, out, dtype), KR_OK,
                  "no error, want \"%s\"", words);
    cr_assert(strstr(kr_status_message(), words), "\"%s\" lacks \"%s\"", kr_status_message(), words);
}

Test(embedding, bad_inputs_are_named) {
    check_case c = gather(5, 4, KR_SHAPE(3));
    c.dtype[EMBEDDING_IDS] = KR_F32;
    fails(c, "ids is f32 [3], want i32 [...]");
    c = gather(5, 4, KR_SHAPE(3));
    c.shape[EMBEDDING_WEIGHT] = KR_SHAPE(5);
    fails(c, "weight is [5], want [V D]");
    fails(gather(5, 4, KR_SHAPE(1, 1, 1, 1, 1, 1)),
          "y would be [... D] with D = 4 (from weight), which is no shape of at most 6 axes");
    c = scatter(5, 4, 3, true);
    c.shape[EMBEDDING_GRAD_ACCUMULATE] = KR_SHAPE(4, 5);
    fails(c, "accumulate is [4, 5], want [V D] with D = 4 (from dy)");
    c = scatter(5, 4, 3, false);
    c.shape[EMBEDDING_GRAD_DY] = KR_SHAPE(3, 5);
    fails(c, "dy is [3, 5], want [... D] = [3, 4] with D = 4");
}
