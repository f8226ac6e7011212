/// Learning-rate schedules: their formulas at every step, and the recorded values.
#include "tools/train/schedule.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

Test(learning_rate, warm_up_then_cosine_to_the_minimum) {
    const kr_schedule s = {.kind = KR_SCHEDULE_COSINE, .lr_max = 1, .lr_min = 0.1, .warmup = 10, .total = 110};
    for (int64_t t = 0; t < 10; t++) cr_assert_float_eq(kr_schedule_lr(&s, t), (double)(t + 1) / 10, 1e-15);
    cr_assert_float_eq(kr_schedule_lr(&s, 10), 1, 1e-15);
    cr_assert_float_eq(kr_schedule_lr(&s, 60), 0.55, 1e-12);
    cr_assert_float_eq(kr_schedule_lr(&s, 110), 0.1, 1e-12);
    cr_assert_float_eq(kr_schedule_lr(&s, 100000), 0.1, 1e-12);
    for (int64_t t = 11; t < 110; t++) cr_assert_lt(kr_schedule_lr(&s, t), kr_schedule_lr(&s, t - 1));
}

Test(learning_rate, wsd_is_flat_then_falls) {
    kr_schedule s = {.kind = KR_SCHEDULE_WSD, .lr_max = 2, .lr_min = 0, .warmup = 5, .total = 100, .decay = 20};
    for (int64_t t = 5; t <= 80; t++) cr_assert_eq(kr_schedule_lr(&s, t), 2);
    cr_assert_float_eq(kr_schedule_lr(&s, 90), 1, 1e-12);
    cr_assert_float_eq(kr_schedule_lr(&s, 100), 0, 1e-12);
    s.square_root = true;
    cr_assert_float_eq(kr_schedule_lr(&s, 85), 2 * (1 - sqrt(0.25)), 1e-12);
    cr_assert_float_eq(kr_schedule_lr(&s, 200), 0, 1e-12);
}

Test(learning_rate, corners_stay_finite) {
    const int64_t lengths[] = {0, 1, 2, 7};
    for (int kind = 0; kind < 3; kind++)
        for (int w = 0; w < 4; w++)
            for (int n = 0; n < 4; n++) {
                const kr_schedule s = {.kind = (kr_schedule_kind)kind, .lr_max = 1, .lr_min = 0.5,
                                       .warmup = lengths[w], .total = lengths[n], .decay = lengths[w]};
                for (int64_t t = 0; t < 12; t++) {
                    const double lr = kr_schedule_lr(&s, t);
                    cr_assert(lr > 0 && lr <= 1, "kind %d, warm-up %d, total %d, step %d: %g", kind, (int)lengths[w],
                              (int)lengths[n], (int)t, lr);
                }
            }
    const kr_schedule constant = {.kind = KR_SCHEDULE_CONSTANT, .lr_max = 3, .lr_min = 1, .warmup = 2, .total = 9};
    cr_assert_eq(kr_schedule_lr(&constant, 0), 1.5);
    cr_assert_eq(kr_schedule_lr(&constant, 500), 3);
}

static double metadata(const kr_tensor_file *f, const char *key) {
    const char *text = kr_tensors_metadata(f, key);
    cr_assert(text, "the file lacks %s", key);
    return atof(text);
}

static void check_file(const char *name) {
    static const struct {
        const char *tensor;
        kr_schedule_kind kind;
        bool square_root;
    } curves[] = {{"out.cosine", KR_SCHEDULE_COSINE, false}, {"out.wsd_linear", KR_SCHEDULE_WSD, false},
                  {"out.wsd_sqrt", KR_SCHEDULE_WSD, true}};
    char path[4096];
    kr_tensor_file *f;
    snprintf(path, sizeof path, "%s/tests/golden/%s", getenv("KRAIT_SOURCE"), name);
    cr_assert_eq(kr_tensors_open(path, &f), KR_OK, "%s", kr_status_message());
    const kr_tensor_entry *steps = kr_tensors_find(f, "in.step");
    const int64_t n = kr_shape_count(&steps->shape);
    double *step = calloc((size_t)n, sizeof *step), *want = calloc((size_t)n, sizeof *want);
    cr_assert_eq(kr_tensors_to_f64(steps, step, n), KR_OK);
    for (int c = 0; c < 3; c++) {
        const kr_schedule s = {.kind = curves[c].kind, .lr_max = metadata(f, "lr_max"), .lr_min = metadata(f, "lr_min"),
                               .warmup = (int64_t)metadata(f, "warmup"), .total = (int64_t)metadata(f, "total"),
                               .decay = (int64_t)metadata(f, "decay"), .square_root = curves[c].square_root};
        cr_assert_eq(kr_tensors_to_f64(kr_tensors_find(f, curves[c].tensor), want, n), KR_OK);
        for (int64_t k = 0; k < n; k++)
            cr_assert_float_eq(kr_schedule_lr(&s, (int64_t)step[k]), want[k], 1e-16, "%s, %s, step %g", name,
                               curves[c].tensor, step[k]);
    }
    free(step);
    free(want);
    kr_tensors_close(f);
}

Test(learning_rate, recorded_values) {
    check_file("lr_schedule.case1.safetensors");
    check_file("lr_schedule.case2.safetensors");
}
