/// Contracts of every block: forward = any split through carries = token by token; packed documents = separate ones,
/// outputs and gradients; the same bits for any number of threads; nothing in, nothing out.
#include "blocks.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

enum { INPUTS = 4 };

static void expect_equal(const variant *v, const char *what, int64_t which, const float *got, const float *want,
                         int64_t n, double tolerance) {
    const double off = blocks_worst(got, want, n);
    cr_assert(off < tolerance, "%s: %s %ld is off by %g", blocks_label(v), what, (long)which, off);
}

/// Copies tokens [at, at + count) of every row between rows of `length` tokens and rows of `count`.
static void cut(const variant *v, void *piece, void *whole, int64_t length, int64_t at, int64_t count, int64_t width,
                bool out) {
    const size_t bytes = (size_t)(count * width) * 4;
    for (int64_t b = 0; b < v->batch; b++) {
        char *p = (char *)piece + (size_t)b * bytes, *w = (char *)whole + (b * length + at) * width * 4;
        memcpy(out ? w : p, out ? p : w, bytes);
    }
}

/// Runs `length` tokens in pieces of the given lengths, which add up to it, through live carries; with `cuts` null in
/// one piece without carries. reset may be null.
static void run(const variant *v, float *x, int32_t *reset, float *y, int64_t length, const int64_t *cuts) {
    const unsigned flags = (cuts ? BLOCKS_CARRIES : 0) | (reset ? BLOCKS_RESET : 0);
    const int64_t whole[] = {length}, D = v->config.d_model;
    place p = blocks_open(v, 2);
    kr_plan *plans[128] = {0};
    const int64_t *list = cuts ? cuts : whole;
    for (int64_t at = 0, i = 0; at < length || !i; at += list[i++]) {
        cr_assert_leq(at + list[i], length);
        kr_plan **plan = &plans[list[i]];
        if (*plan) continue;
        *plan = blocks_plan(v, list[i], length, flags);
        check_ok(kr_session_add(p.session, *plan), "add");
    }
    check_ok(kr_session_init(p.session, 11), "init");
    float *in = malloc((size_t)blocks_size(v, length) * 4 + 4), *out = malloc((size_t)blocks_size(v, length) * 4 + 4);
    int32_t *starts = malloc((size_t)(v->batch * length) * 4 + 4);
    for (int64_t at = 0, i = 0; at < length || !i; at += list[i++]) {
        const int64_t count = list[i];
        const size_t bytes = (size_t)blocks_size(v, count) * 4;
        kr_binding io[INPUTS] = {{"x", in, bytes}, {"y", out, bytes}};
        int n = 2;
        if (v->goal) io[n++] = (kr_binding){"goal", p.goal, (size_t)(v->batch * D) * 4};
        if (reset) io[n++] = (kr_binding){"reset", starts, (size_t)(v->batch * count) * 4};
        cut(v, in, x, length, at, count, D, false);
        if (reset) cut(v, starts, reset, length, at, count, 1, false);
        check_ok(kr_plan_run(p.session, plans[count], io, n, 0), blocks_label(v));
        cut(v, out, y, length, at, count, D, true);
    }
    free(in), free(out), free(starts);
    blocks_close(p);
    for (size_t i = 0; i < sizeof plans / sizeof *plans; i++) kr_plan_free(plans[i]);
}

/// y and the gradients of loss = sum y * weight with regard to x and all parameters, one after another.
typedef struct result {
    float *y, *dx, *dw;
    int64_t weights;
} result;

static result run_gradients(const variant *v, int64_t length, float *x, int32_t *reset, float *weight, int threads) {
    place p = blocks_open(v, threads);
    kr_plan *plan = blocks_plan(v, length, 0, BLOCKS_LOSS | (reset ? BLOCKS_RESET : 0));
    check_ok(kr_session_add(p.session, plan), "add");
    check_ok(kr_session_init(p.session, 11), "init");
    const size_t bytes = (size_t)blocks_size(v, length) * 4;
    result r = {.y = malloc(bytes + 4), .dx = malloc(bytes + 4)};
    for (int i = 0; i < kr_session_slots(p.session); i++)
        r.weights += kr_shape_count(&kr_session_slot(p.session, i)->shape);
    r.dw = malloc((size_t)r.weights * 4 + 4);
    kr_binding io[64] = {{"x", x, bytes}, {"y", r.y, bytes}, {"grad.x", r.dx, bytes}, {"weight", weight, bytes}};
    int count = 4;
    if (reset) io[count++] = (kr_binding){"reset", reset, (size_t)(v->batch * length) * 4};
    if (v->goal) io[count++] = (kr_binding){"goal", p.goal, (size_t)(v->batch * v->config.d_model) * 4};
    char names[48][128];
    float *at = r.dw;
    for (int i = 0; i < kr_session_slots(p.session); i++) {
        const kr_slot *slot = kr_session_slot(p.session, i);
        snprintf(names[i], sizeof names[i], "grad.%s", slot->name);
        io[count++] = (kr_binding){names[i], at, slot->bytes};
        at += slot->bytes / 4;
    }
    check_ok(kr_plan_run(p.session, plan, io, count, 0), blocks_label(v));
    blocks_close(p);
    kr_plan_free(plan);
    return r;
}

static void free_result(result r) { free(r.y), free(r.dx), free(r.dw); }

// Contracts -------------------------------------------------------------------------------------------------------

Test(block, step_equals_forward_equals_any_split) {
    EACH_VARIANT(v) {
        const int64_t c = v.chunk, L = c > 16 ? c + 3 : 2 * c + 3, n = blocks_size(&v, L);
        float *x = blocks_random(n, 1), *whole = malloc((size_t)n * 4), *got = malloc((size_t)n * 4);
        int64_t ones[64];
        for (int i = 0; i < 64; i++) ones[i] = 1;
        const int64_t splits[][8] = {{L},       {c, L - c}, {c - 1, 1, L - c}, {c + 1, L - c - 1}, {2, 0, 1, L - 3},
                                     {L - 1, 1}};
        run(&v, x, NULL, whole, L, NULL);
        for (int k = -1; k < 6; k++) {
            run(&v, x, NULL, got, L, k < 0 ? ones : splits[k]);
            expect_equal(&v, "split", k, got, whole, n, 5e-6);
        }
        free(x), free(whole), free(got);
    }
}

Test(block, the_future_does_not_matter) {
    EACH_VARIANT(v) {
        v.batch = 1; // the first tokens of a longer sequence lie together
        const int64_t c = v.chunk, L = c + 4, n = blocks_size(&v, L), lengths[] = {0, 1, c - 1, c, c + 1};
        float *x = blocks_random(n, 2), *whole = malloc((size_t)n * 4), *got = malloc((size_t)n * 4);
        run(&v, x, NULL, whole, L, NULL);
        for (int k = 0; k < 5; k++) {
            run(&v, x, NULL, got, lengths[k], NULL);
            expect_equal(&v, "length", lengths[k], got, whole, blocks_size(&v, lengths[k]), 5e-6);
        }
        free(x), free(whole), free(got);
    }
}

/// Random documents: 1 where one starts.
static void draw_starts(const variant *v, int32_t *reset, int64_t length) {
    for (int64_t i = 0; i < v->batch * length; i++)
        reset[i] = kr_random_uniform(32, (uint64_t)v->number, (uint64_t)i) < 0.25f;
}

Test(block, packed_documents_equal_separate_ones) {
    EACH_VARIANT(v) {
        v.batch = 1;
        const int64_t L = v.chunk + 9, D = v.config.d_model;
        int32_t *reset = malloc((size_t)L * 4);
        float *x = blocks_random(blocks_size(&v, L), 3), *weight = blocks_random(blocks_size(&v, L), 4);
        draw_starts(&v, reset, L); // the first token is a start or not: it makes no difference
        result packed = run_gradients(&v, L, x, reset, weight, 2);
        result apart = {.y = malloc((size_t)(L * D) * 4),
                        .dx = malloc((size_t)(L * D) * 4),
                        .dw = calloc((size_t)packed.weights + 1, 4)};
        for (int64_t at = 0, end; at < L; at = end) {
            for (end = at + 1; end < L && !reset[end]; end++) {}
            result one = run_gradients(&v, end - at, x + at * D, NULL, weight + at * D, 2);
            memcpy(apart.y + at * D, one.y, (size_t)((end - at) * D) * 4);
            memcpy(apart.dx + at * D, one.dx, (size_t)((end - at) * D) * 4);
            for (int64_t w = 0; w < packed.weights; w++) apart.dw[w] += one.dw[w];
            free_result(one);
        }
        expect_equal(&v, "packed row of", L, packed.y, apart.y, L * D, 5e-6);
        expect_equal(&v, "gradient of a packed row of", L, packed.dx, apart.dx, L * D, 1e-5);
        expect_equal(&v, "gradient of the parameters over", L, packed.dw, apart.dw, packed.weights, 2e-5);
        free_result(apart);
        free_result(packed);
        free(reset), free(x), free(weight);
    }
}

Test(block, packed_documents_through_carries) {
    EACH_VARIANT(v) {
        if (!strcmp(v.kind->name, "attention")) continue; // generating, all of the cache is one document
        const int64_t c = v.chunk, L = c + 9, n = blocks_size(&v, L), cuts[] = {3, c, 1, 0, 4, 1};
        int32_t *reset = malloc((size_t)(v.batch * L) * 4);
        float *x = blocks_random(n, 5), *whole = malloc((size_t)n * 4), *got = malloc((size_t)n * 4);
        draw_starts(&v, reset, L);
        run(&v, x, reset, whole, L, NULL);
        run(&v, x, reset, got, L, cuts);
        expect_equal(&v, "row of", L, got, whole, n, 5e-6);
        free(reset), free(x), free(whole), free(got);
    }
}

Test(block, same_bits_for_any_number_of_threads) {
    EACH_VARIANT(v) {
        const int64_t L = v.chunk + 9, n = blocks_size(&v, L);
        float *x = blocks_random(n, 6), *weight = blocks_random(n, 7);
        result one = run_gradients(&v, L, x, NULL, weight, 1);
        for (int threads = 2; threads <= 5; threads++) {
            result many = run_gradients(&v, L, x, NULL, weight, threads);
            cr_assert_arr_eq(one.y, many.y, (size_t)n * 4, "%s: y differs with %d threads", blocks_label(&v), threads);
            cr_assert_arr_eq(one.dx, many.dx, (size_t)n * 4, "%s: dx differs with %d threads", blocks_label(&v),
                             threads);
            cr_assert_arr_eq(one.dw, many.dw, (size_t)one.weights * 4, "%s: dw differs with %d threads",
                             blocks_label(&v), threads);
            free_result(many);
        }
        free_result(one);
        free(x), free(weight);
    }
}

Test(block, nothing_in_nothing_out) {
    EACH_VARIANT(v) {
        float none = 0;
        for (int k = 0; k < 3; k++) {
            v.batch = k == 1 ? 0 : 2;
            result r = run_gradients(&v, k == 1 ? 3 : 0, &none, k == 2 ? &(int32_t){0} : NULL, &none, 2);
            for (int64_t w = 0; w < r.weights; w++)
                cr_assert_eq(r.dw[w], 0, "%s: a gradient out of nothing", blocks_label(&v));
            free_result(r);
        }
    }
}

static void expect_refused(const char *block, const char *const keys[4], const char *says) {
    const kr_block_config c = {.d_model = 16, .n_layer = 1};
    kr_settings given = {0};
    kr_graph *g = NULL;
    for (int k = 0; k < 4 && keys[k]; k += 2) check_ok(kr_settings_set(&given, keys[k], "%s", keys[k + 1]), keys[k]);
    check_ok(kr_graph_new(&g), "graph");
    const kr_value x = kr_input(g, "x", KR_F32, KR_SHAPE(1, 5, c.d_model));
    cr_assert_not_null(kr_block_find(block));
    kr_block_build(g, kr_block_find(block), &given, &c, x);
    cr_assert_neq(kr_graph_status(g), KR_OK, "%s was built without '%s'", block, says);
    cr_expect_not_null(strstr(kr_status_message(), says), "%s: '%s' does not say '%s'", block, kr_status_message(),
                       says);
    kr_graph_free(g);
}

Test(block, widths_that_do_not_divide_are_named) {
    static const struct { const char *block, *says, *keys[4]; } cases[] = {
        {"mamba2", "headdim is 7, which does not divide d_ssm, 32", {"headdim", "7"}},
        {"mamba3", "headdim is 7, which does not divide expand * d_model, 32", {"headdim", "7"}},
        {"mamba3", "headdim is 64, which does not divide expand * d_model, 32", {0}},
        {"mamba2", "3 groups, want a divisor of 4 heads", {"headdim", "8", "ngroups", "3"}},
        {"mamba3", "3 groups, want a divisor of 4 heads", {"headdim", "8", "ngroups", "3"}},
        {"attention", "3 heads and 2 key heads", {"attention.num_heads", "3", "attention.num_heads_kv", "2"}},
    };
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++)
        expect_refused(cases[k].block, cases[k].keys, cases[k].says);
}

Test(block, values_out_of_range_are_named) {
    static const struct { const char *block, *says, *keys[4]; } cases[] = {
        {"mamba1", "mamba1: d_state is 0, want 1 to 4096", {"d_state", "0"}},
        {"mamba1", "mamba1: dt_rank is 0, want 1 to 1048576, or auto", {"dt_rank", "0"}},
        {"mamba1", "mamba1: d_conv is 257, want 1 to 256", {"d_conv", "257"}},
        {"mamba1", "mamba1: d_conv is 4.5, want an integer", {"d_conv", "4.5"}},
        {"mamba1", "mamba1: expand is auto, want an integer", {"expand", "auto"}},
        {"mamba1", "mamba1: expand is 99999999999999999999, want 1 to 64", {"expand", "99999999999999999999"}},
        {"mamba1", "mamba1: bias is 1, want true or false", {"bias", "1"}},
        {"mamba1", "mamba1: dt_scale is nan, want 0 to 1000000", {"dt_scale", "nan"}},
        {"mamba1", "mamba1: dt_scale is  , want a number", {"dt_scale", " "}},
        {"mamba1", "dt_max is 0.001, want at least dt_min, 0.01", {"dt_min", "0.01", "dt_max", "0.001"}},
        {"mamba2", "mamba2: d_ssm is 0, want 1 to 16777216, or auto", {"d_ssm", "0"}},
        {"mamba2", "mamba2: dt_limit is [2,1], want 0 <= low <= high", {"dt_limit", "2,1"}},
        {"mamba2", "mamba2: dt_limit is [-1,1], want 0 <= low <= high", {"dt_limit", "-1,1"}},
        {"mamba2", "mamba2: dt_limit is [3], want 0 <= low <= high", {"dt_limit", "3"}},
        {"mamba3", "mamba3: headdim is -8, want 1 to 65536", {"headdim", "-8"}},
        {"mamba3", "mamba3: rope_fraction is 1.5, want 0 to 1", {"rope_fraction", "1.5"}},
        {"mamba3", "mamba3: a_activation is soft, want one of heavy_tail|softplus", {"a_activation", "soft"}},
        {"gated_mlp", "gated_mlp: hidden is 0, want 1 to 16777216, or auto", {"hidden", "0"}},
        {"tinymamba", "tinymamba: base_decay is 0, want 1e-12 to 1000000", {"base_decay", "0"}},
        {"attention", "attention: num_heads is 0, want 1 to 65536, or auto", {"attention.num_heads", "0"}},
        {"attention", "softmax_scale is 0, want 1e-12 to 1000000, or auto", {"attention.softmax_scale", "0"}},
    };
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++)
        expect_refused(cases[k].block, cases[k].keys, cases[k].says);
}
