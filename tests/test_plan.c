/// Plans: which barriers they get, and that their results do not depend on the number of threads.
#include "plans.h"

#include "runtime/runtime.h"

#include <criterion/criterion.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

// Kernels. Each part does every element of its share; `reverse` reads what other parts wrote.

static void dawdle(int part) { // makes a missing barrier show
    for (volatile int k = 0; part == 0 && k < 3000; k++) {}
}

static void combine(const kr_call *call, int part, int parts) {
    const float *a = call->in[0].data, *b = call->in[1].data;
    float *out = call->out[0].data;
    int64_t begin, end;
    kr_share(kr_shape_count(&call->out[0].shape), part, parts, &begin, &end);
    dawdle(part);
    for (int64_t k = begin; k < end; k++) out[k] = 0.75f * a[k] - 0.5f * b[k] + 1.0f;
}

static void reverse(const kr_call *call, int part, int parts) {
    const int64_t n = kr_shape_count(&call->out[0].shape);
    const float *a = call->in[0].data, *b = call->in[1].data;
    float *out = call->out[0].data;
    int64_t begin, end;
    kr_share(n, part, parts, &begin, &end);
    dawdle(part);
    for (int64_t k = begin; k < end; k++) out[k] = a[n - 1 - k] + 0.125f * b[k];
}

enum { PARTIALS = 8 };

static void sums(const kr_call *call, int part, int parts) { // fixed partial sums, whatever `parts`
    const int64_t n = kr_shape_count(&call->in[0].shape);
    const float *a = call->in[0].data;
    float *partial = call->work;
    int64_t begin, end;
    kr_share(PARTIALS, part, parts, &begin, &end);
    dawdle(part);
    for (int64_t p = begin; p < end; p++) {
        int64_t from, to;
        kr_share(n, (int)p, PARTIALS, &from, &to);
        float sum = 0;
        for (int64_t k = from; k < to; k++) sum += a[k];
        partial[p] = sum;
    }
}

static void spread(const kr_call *call, int part, int parts) {
    const float *b = call->in[1].data, *partial = call->work;
    float *out = call->out[0].data, sum = 0;
    int64_t begin, end;
    for (int p = 0; p < PARTIALS; p++) sum += partial[p];
    kr_share(kr_shape_count(&call->out[0].shape), part, parts, &begin, &end);
    for (int64_t k = begin; k < end; k++) out[k] = 0.01f * sum + 0.5f * b[k];
}

static const kr_stage stage_combine = {{combine}}, stage_reverse = {{reverse}};
static const kr_stage stages_sum[2] = {{{sums}}, {{spread}}};

// Barriers --------------------------------------------------------------------------

static bool barrier(const kr_plan *plan, int index) { return kr_plan_step(plan, index)->barrier; }

static kr_plan *plan_with(int *arena, int64_t floats) {
    kr_plan *plan;
    must(kr_plan_new("cpu", &plan));
    *arena = add_slot(plan, KR_SLOT_ACTIVATION, NULL, KR_U8, KR_SHAPE(4 * floats));
    return plan;
}

static void step(kr_plan *plan, kr_operand a, kr_operand b, kr_operand out) {
    must(add_step(plan, "combine", &stage_combine, 1, (kr_operand[]){a, b}, 2, out, absent));
}

Test(plan, independent_steps_have_no_barrier) {
    int s;
    kr_plan *plan = plan_with(&s, 400);
    step(plan, row(s, 0, 50), row(s, 200, 50), row(s, 400, 50));
    step(plan, row(s, 0, 50), row(s, 200, 50), row(s, 600, 50)); // reads the same
    step(plan, row(s, 100, 50), row(s, 0, 25), row(s, 800, 50));
    must(kr_plan_finish(plan));
    for (int k = 0; k < 3; k++) cr_expect_not(barrier(plan, k), "step %d", k);
    kr_plan_free(plan);
}

Test(plan, each_hazard_has_a_barrier) {
    int s;
    kr_plan *plan = plan_with(&s, 400);
    step(plan, row(s, 0, 50), row(s, 0, 50), row(s, 400, 50));
    step(plan, row(s, 596, 1), row(s, 0, 50), row(s, 800, 50));   // 0: last float of the output: read after write
    step(plan, row(s, 1000, 50), row(s, 0, 50), row(s, 200, 50)); // nothing
    step(plan, row(s, 1000, 50), row(s, 0, 50), row(s, 196, 2));  // write after read, of one float
    step(plan, row(s, 1000, 50), row(s, 0, 25), row(s, 600, 50)); // nothing
    step(plan, row(s, 1000, 50), row(s, 0, 25), row(s, 796, 1));  // write after write
    step(plan, row(s, 1000, 50), row(s, 0, 25), row(s, 400, 50)); // nothing since
    must(kr_plan_finish(plan));
    const bool want[] = {false, true, false, true, false, true, false};
    for (int k = 0; k < 7; k++) cr_expect_eq(barrier(plan, k), want[k], "step %d", k);
    kr_plan_free(plan);
}

Test(plan, slots_do_not_meet_and_empty_tensors_touch_nothing) {
    int s;
    kr_plan *plan = plan_with(&s, 100);
    const int w = add_slot(plan, KR_SLOT_PARAM, "w", KR_F32, KR_SHAPE(50));
    step(plan, row(s, 0, 50), row(s, 0, 50), row(w, 0, 50));
    step(plan, row(s, 0, 50), row(s, 0, 50), row(s, 200, 50));
    step(plan, row(w, 0, 0), row(s, 200, 0), row(s, 0, 0));
    step(plan, row(w, 200, 0), row(s, 400, 0), tensor(s, 0, KR_SHAPE(3, 0, 7)));
    step(plan, row(s, 200, 1), row(s, 0, 1), row(s, 0, 1));
    must(kr_plan_finish(plan));
    for (int k = 0; k < 4; k++) cr_expect_not(barrier(plan, k), "step %d", k);
    cr_expect(barrier(plan, 4));
    kr_plan_free(plan);
}

Test(plan, interleaved_columns_do_not_meet) {
    int s;
    kr_plan *plan = plan_with(&s, 400);
    kr_operand left = tensor(s, 0, KR_SHAPE(2, 4, 6)), right = tensor(s, 24, KR_SHAPE(8, 4)),
               wide = tensor(s, 20, KR_SHAPE(8, 2));
    left.stride[0] = 40, left.stride[1] = 10;
    right.stride[0] = wide.stride[0] = 10;
    kr_operand last = row(s, 20 + 7 * 40, 1), odd = right;
    odd.stride[0] = 9; // another pitch: only the interval counts
    odd.shape.dim[0] = 7;
    const kr_operand x = row(s, 400, 1);
    step(plan, x, x, left);  // columns 0 to 5 of 8 rows of 10
    step(plan, x, x, right); // columns 6 to 9: no byte in common
    step(plan, x, x, wide);  // columns 5 and 6: meets both
    step(plan, x, x, row(s, 420, 1));
    step(plan, x, x, last); // column 5 of the last row
    step(plan, x, x, right);
    step(plan, x, x, odd);
    must(kr_plan_finish(plan));
    const bool want[] = {false, false, true, false, true, false, true};
    for (int k = 0; k < 7; k++) cr_expect_eq(barrier(plan, k), want[k], "step %d", k);
    kr_plan_free(plan);
}

Test(plan, workspace_counts_and_stages_are_barriers) {
    int s;
    kr_plan *plan = plan_with(&s, 600);
    const kr_operand x = row(s, 0, 20), work = {.slot = s, .offset = 1024, .dtype = KR_U8, .shape = KR_SHAPE(64)};
    step(plan, x, x, row(s, 200, 20));
    must(add_step(plan, "sum", stages_sum, 2, (kr_operand[]){x, x}, 2, row(s, 400, 20), work)); // independent of 0
    step(plan, row(s, 200, 20), x, row(s, 600, 20)); // reads 0, which is finished: the stages wait for each other
    step(plan, x, x, row(s, 1084, 1));               // the workspace's last bytes
    must(kr_plan_finish(plan));
    const bool want[] = {false, false, false, true};
    for (int k = 0; k < 4; k++) cr_expect_eq(barrier(plan, k), want[k], "step %d", k);
    kr_plan_free(plan);
}

/// Exact bytes, the slow way: every pair that is not separated shares none that one of them writes, and every barrier
/// separates a pair that does.
static bool meet(const kr_step *a, const kr_step *b) {
    const kr_operand *list[2][4];
    int counts[2];
    const kr_step *both[2] = {a, b};
    for (int k = 0; k < 2; k++) {
        counts[k] = 0;
        list[k][counts[k]++] = &both[k]->out[0]; // written ones first
        if (both[k]->work.slot >= 0) list[k][counts[k]++] = &both[k]->work;
        list[k][counts[k]++] = &both[k]->in[0];
        list[k][counts[k]++] = &both[k]->in[1];
    }
    for (int i = 0; i < counts[0]; i++) {
        for (int j = 0; j < counts[1]; j++) {
            if (i >= counts[0] - 2 && j >= counts[1] - 2) continue;
            const kr_operand *x = list[0][i], *y = list[1][j];
            const size_t nx = kr_tensor_bytes(x->dtype, &x->shape), ny = kr_tensor_bytes(y->dtype, &y->shape);
            if (nx && ny && x->offset < y->offset + ny && y->offset < x->offset + nx) return true;
        }
    }
    return false;
}

static uint32_t draw(uint64_t *state, uint32_t below) {
    uint32_t words[4];
    kr_philox(17, 0, (*state)++, words);
    return words[0] % below;
}

enum { CELLS = 12, CELL = 96 }; // floats per cell; an output never covers its own inputs

static kr_plan *random_plan(uint64_t seed, int steps) {
    uint64_t state = seed << 20;
    kr_plan *plan;
    must(kr_plan_new("cpu", &plan));
    const int s = add_slot(plan, KR_SLOT_ACTIVATION, NULL, KR_U8, KR_SHAPE(4 * CELLS * CELL));
    const int in = add_slot(plan, KR_SLOT_IO, "x", KR_F32, KR_SHAPE(CELLS * CELL));
    const int out = add_output(plan, "y", KR_SHAPE(CELLS * CELL));
    const kr_operand z = row(in, 0, CELLS * CELL);
    must(add_step(plan, "reverse", &stage_reverse, 1, (kr_operand[]){z, z}, 2, row(s, 0, CELLS * CELL), absent));
    for (int k = 0; k < steps; k++) {
        int cell[4];
        for (int c = 0; c < 4; c++) {
        again:
            cell[c] = (int)draw(&state, CELLS);
            for (int d = 0; d < c; d++)
                if (cell[d] == cell[c]) goto again;
        }
        const int64_t n = 1 + draw(&state, CELL);
        kr_operand a[4];
        for (int c = 0; c < 4; c++)
            a[c] = row(s, 4 * ((size_t)cell[c] * CELL + (c < 3 ? draw(&state, (uint32_t)(CELL - n + 1)) : 0)), n);
        const kr_operand work = {.slot = s, .offset = a[3].offset, .dtype = KR_U8, .shape = KR_SHAPE(4 * PARTIALS)};
        switch (draw(&state, 3)) {
        case 0: must(add_step(plan, "combine", &stage_combine, 1, a, 2, a[2], absent)); break;
        case 1: must(add_step(plan, "reverse", &stage_reverse, 1, a, 2, a[2], absent)); break;
        default: must(add_step(plan, "sum", stages_sum, 2, a, 2, a[2], work));
        }
    }
    const kr_operand all = row(s, 0, CELLS * CELL);
    must(add_step(plan, "reverse", &stage_reverse, 1, (kr_operand[]){all, all}, 2, row(out, 0, CELLS * CELL), absent));
    must(kr_plan_finish(plan));
    return plan;
}

Test(plan, barriers_of_random_plans_are_needed_and_enough) {
    for (uint64_t seed = 1; seed <= 30; seed++) {
        kr_plan *plan = random_plan(seed, 60);
        for (int j = 1, first = 0; j < kr_plan_steps(plan) - 1; j++) {
            bool needed = false;
            for (int i = first ? first : 1; i < j; i++) needed |= meet(kr_plan_step(plan, i), kr_plan_step(plan, j));
            if (j == 1 || first == 0) needed = true; // the copy from the input covers everything
            cr_assert_eq(barrier(plan, j), needed, "seed %d, step %d", (int)seed, j);
            if (needed || kr_plan_step(plan, j)->stages > 1) first = j;
        }
        kr_plan_free(plan);
    }
}

Test(plan, same_bits_for_any_number_of_threads) {
    static float x[CELLS * CELL], want[CELLS * CELL], got[CELLS * CELL];
    for (int k = 0; k < CELLS * CELL; k++) x[k] = kr_random_normal(3, 1, (uint64_t)k);
    kr_device *device;
    must(kr_device_cpu(&device));
    for (uint64_t seed = 1; seed <= 6; seed++) {
        kr_plan *plan = random_plan(seed, 60);
        static const int threads[] = {1, 2, 3, 5};
        for (int t = 0; t < 4; t++) {
            kr_session *session;
            must(kr_session_open(device, threads[t], &session));
            must(kr_session_add(session, plan));
            const kr_binding io[] = {{"x", x, sizeof x}, {"y", t ? got : want, sizeof got}};
            for (int again = 0; again < 3; again++) {
                must(kr_plan_run(session, plan, io, 2, again == 2 ? KR_RUN_PROFILE | KR_RUN_CHECK : 0));
                if (t) cr_assert_arr_eq(got, want, sizeof want, "seed %d, %d threads", (int)seed, threads[t]);
            }
            kr_session_close(session);
        }
        int64_t runs;
        cr_expect_gt(kr_plan_profile(plan, 3, &runs), 0.0);
        cr_expect_eq(runs, 4);
        kr_plan_free(plan);
    }
    kr_device_close(device);
}

Test(plan, runs_inside_a_region_of_the_caller) {
    static float x[CELLS * CELL], want[CELLS * CELL], got[4][CELLS * CELL];
    for (int k = 0; k < CELLS * CELL; k++) x[k] = kr_random_normal(4, 1, (uint64_t)k);
    kr_device *device;
    must(kr_device_cpu(&device));
    kr_plan *plan = random_plan(9, 40);
    kr_session *session[5];
    for (int k = 0; k < 5; k++) {
        must(kr_session_open(device, 2, &session[k]));
        must(kr_session_add(session[k], plan));
    }
    must(kr_plan_run(session[4], plan, (kr_binding[]){{"x", x, sizeof x}, {"y", want, sizeof want}}, 2, 0));
    omp_set_num_threads(3);
#pragma omp parallel for num_threads(4)
    for (int k = 0; k < 4; k++)
        kr_plan_run(session[k], plan, (kr_binding[]){{"x", x, sizeof x}, {"y", got[k], sizeof want}}, 2, 0);
    cr_expect_eq(omp_get_max_threads(), 3, "the caller's setting is kept");
    for (int k = 0; k < 4; k++) cr_expect_arr_eq(got[k], want, sizeof want);
    for (int k = 0; k < 5; k++) kr_session_close(session[k]);
    kr_plan_free(plan);
    kr_device_close(device);
}

// What plans refuse --------------------------------------------------------------------------

static void refuses(kr_operand in, kr_operand out, kr_operand work, const char *message) {
    int s;
    kr_plan *plan = plan_with(&s, 100);
    kr_slot constant = {.kind = KR_SLOT_CONST, .dtype = KR_F32, .shape = KR_SHAPE(4), .bytes = 16};
    cr_assert_eq(kr_plan_add_slot(plan, &constant), 1);
    must(add_step(plan, "combine", &stage_combine, 1, (kr_operand[]){in, row(s, 0, 4)}, 2, out, work));
    cr_expect_neq(kr_plan_finish(plan), KR_OK, "%s", message);
    cr_expect(strstr(kr_status_message(), message), "got \"%s\", want \"%s\"", kr_status_message(), message);
    kr_plan_free(plan);
}

Test(plan, operands_must_lie_in_their_slots) {
    refuses(row(0, 4, 100), row(0, 0, 4), absent,
            "plan: input 0 of combine (node 0, test): covers bytes 4 to 404 of slot \"activation\" with 400");
    refuses(row(0, 0, 4), row(7, 0, 4), absent, "output 0 of combine (node 0, test): is in slot 7 of 2");
    refuses(row(0, 0, 4), row(1, 0, 4), absent, "is in constant slot");
    refuses(row(0, 2, 4), row(0, 0, 4), absent, "f32 at offset 2 of slot \"activation\" is not aligned");
    kr_operand far = row(0, 0, 4);
    far.stride[0] = INT64_MAX / 2;
    refuses(far, row(0, 0, 4), absent, "has stride");
    far.stride[0] = -1;
    refuses(far, row(0, 0, 4), absent, "covers bytes -12 to 4");
    far.shape.dim[0] = -3;
    refuses(far, row(0, 0, 4), absent, "has dimension -3");
    far.shape.rank = 9;
    refuses(far, row(0, 0, 4), absent, "has rank 9");
    refuses(row(0, 0, 4), row(0, 0, 4), (kr_operand){.slot = 0, .offset = 390, .dtype = KR_U8, .shape = KR_SHAPE(64)},
            "workspace 0 of combine");
    refuses(row(0, 0, 4), row(0, 0, 4), (kr_operand){.slot = 0, .offset = 32, .dtype = KR_U8, .shape = KR_SHAPE(64)},
            "at offset 32");
}

Test(plan, slots_must_make_sense) {
    kr_plan *plan;
    must(kr_plan_new("cpu", &plan));
    add_slot(plan, KR_SLOT_PARAM, "w", KR_F32, KR_SHAPE(2, 3));
    add_slot(plan, KR_SLOT_IO, "w", KR_F32, KR_SHAPE(2, 3)); // other names live elsewhere
    add_slot(plan, KR_SLOT_ACTIVATION, NULL, KR_U8, KR_SHAPE(0));
    static const struct {
        kr_slot slot;
        const char *message;
    } cases[] = {
        {{.kind = KR_SLOT_CARRY, .name = "w", .shape = {1, {2}}, .bytes = 8},
         "two slots are named \"w\": parameter and carry"},
        {{.kind = KR_SLOT_IO, .name = "w", .shape = {1, {2}}, .bytes = 8}, "two slots are named"},
        {{.kind = KR_SLOT_IO, .shape = {1, {2}}, .bytes = 8}, "needs a name"},
        {{.kind = KR_SLOT_PARAM, .name = "v", .shape = {1, {2}}, .bytes = 9}, "f32 [2] takes 8 bytes, the slot has 9"},
        {{.kind = KR_SLOT_PARAM, .name = "v", .shape = {1, {-2}}, .bytes = 8}, "is not a tensor"},
        {{.kind = KR_SLOT_ACTIVATION, .bytes = 8}, "a second activation arena"},
        {{.kind = 99}, "no slot kind 99"},
    };
    for (size_t k = 0; k < sizeof cases / sizeof cases[0]; k++) {
        cr_expect_eq(kr_plan_add_slot(plan, &cases[k].slot), -1);
        cr_expect(strstr(kr_status_message(), cases[k].message), "%s", kr_status_message());
    }
    must(kr_plan_finish(plan));
    cr_expect_eq(kr_plan_finish(plan), KR_BAD_ARGUMENT);
    cr_expect_eq(kr_plan_slots(plan), 3);
    cr_expect_eq(kr_plan_find(plan, "w"), 1);
    cr_expect_eq(kr_plan_find(plan, "v"), -1);
    cr_expect_null(kr_plan_slot(plan, 3));
    cr_expect_null(kr_plan_step(plan, 0));
    kr_plan_free(plan);
}
