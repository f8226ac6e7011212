/// The compiler: every pass keeps the outputs, plans run as the naive interpreter does, memory is close to its bound.
#include "check.h"
#include "models/models.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/// Memory of one test, given back when it ends.
static void *owned[4096];
static int owned_count;

static void *take(size_t bytes) {
    cr_assert(owned_count < 4096);
    return owned[owned_count++] = calloc(1, bytes + 1);
}

static void give_back(void) {
    while (owned_count) free(owned[--owned_count]);
}

TestSuite(compile, .fini = give_back);

static const kr_optimizer adamw = {.beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1, .max_norm = 1};

static kr_value param(kr_graph *g, const char *name, kr_shape shape) {
    return kr_param(g, name, shape, (kr_init){.kind = KR_INIT_UNIFORM, .a = 0.5}, KR_PARAM_DECAY);
}

/// A graph with something of everything: splits, joins, transposes, broadcasts, norms, products, several uses.
static kr_graph *mixed(void) {
    kr_graph *g;
    check_ok(kr_graph_new(&g), "graph");
    const kr_value x = kr_input(g, "x", KR_F32, KR_SHAPE(3, 5, 12));
    const kr_value n = kr_rms_norm(g, x, param(g, "norm", KR_SHAPE(12)), 1e-5);
    kr_value part[3];
    kr_split(g, kr_linear(g, n, param(g, "in", KR_SHAPE(20, 12)), param(g, "bias", KR_SHAPE(20))), -1,
             (int64_t[]){8, 7, 5}, 3, part);
    const kr_value a = kr_mul(g, kr_silu(g, part[0]), param(g, "scale", KR_SHAPE(8)));
    const kr_value b = kr_linear(g, part[1], param(g, "b", KR_SHAPE(8, 7)), KR_NONE);
    const kr_value c = kr_softplus(g, kr_linear(g, part[2], param(g, "c", KR_SHAPE(8, 5)), KR_NONE));
    const kr_value s = kr_linear_scan(g, kr_sigmoid(g, b), c, KR_NONE, KR_NONE, NULL);
    const kr_value t = kr_transpose(g, kr_add(g, kr_add(g, a, s), kr_const(g, 0, KR_F32, KR_SHAPE(3, 5, 8))), 1, 2);
    const kr_value joined = kr_concat(g, (kr_value[]){kr_slice(g, t, 1, 0, 3), kr_exp(g, kr_slice(g, t, 1, 3, 5))}, 2,
                                      1);
    kr_output(g, "y", joined);
    kr_output(g, "loss",
              kr_reshape(g, kr_mean(g, kr_reshape(g, kr_square(g, joined), KR_SHAPE(-1)), 0, true), KR_SHAPE(1)));
    check_ok(kr_graph_status(g), "mixed graph");
    return g;
}

static float *random_floats(int64_t n, uint64_t stream) {
    float *out = take((size_t)n * sizeof *out);
    for (int64_t i = 0; i < n; i++) out[i] = 2 * kr_random_uniform(7, stream, (uint64_t)i) - 1;
    return out;
}

/// Inputs and params of g as bindings with fixed random content; ids for i32 inputs.
static int bind_all(kr_graph *g, kr_binding *b, int room) {
    int count = 0;
    for (int i = 0; i < kr_graph_nodes(g); i++) {
        const kr_node *n = kr_graph_node(g, i);
        const kr_source kind = kr_node_source(n);
        if (kind != KR_SOURCE_INPUT && kind != KR_SOURCE_PARAM) continue;
        const int64_t elements = kr_value_count(g, n->out[0]);
        cr_assert(count < room);
        float *data = random_floats(elements, kr_hash(n->name, strlen(n->name)));
        if (kr_value_dtype(g, n->out[0]) == KR_I32)
            for (int64_t k = 0; k < elements; k++) ((int32_t *)data)[k] = (int32_t)((k * 7 + 3) % 11);
        b[count++] = (kr_binding){n->name, data, (size_t)elements * 4};
    }
    return count;
}

static float *interpret(kr_graph *g, const char *output, int64_t *elements) {
    kr_binding in[128];
    const int count = bind_all(g, in, 128);
    *elements = kr_value_count(g, kr_graph_output_find(g, output));
    float *out = take((size_t)*elements * sizeof *out);
    const kr_binding want = {output, out, (size_t)*elements * 4};
    check_ok(check_interpret(g, kr_isa_best(), 1, in, count, &want, 1), "interpret");
    return out;
}

Test(compile, every_pass_keeps_the_outputs) {
    kr_graph *original = mixed();
    int64_t n = 0, m = 0;
    float *want = interpret(original, "y", &n);
    for (int pass = 0; kr_pass_name(pass); pass++) {
        kr_graph *g = mixed();
        const kr_compile_options options = {.goal = KR_GOAL_GRADIENTS, .stop_after = kr_pass_name(pass)};
        check_ok(kr_compile(g, &options, NULL, NULL), kr_pass_name(pass));
        float *got = interpret(g, "y", &m);
        cr_assert_eq(n, m);
        cr_assert_arr_eq(got, want, (size_t)n * sizeof *got, "outputs differ after %s", kr_pass_name(pass));
        kr_graph_free(g);
    }
    kr_graph_free(original);
}

Test(compile, simplify_keeps_every_gradient) {
    kr_graph *plain = mixed(), *simple = mixed();
    check_ok(kr_compile(plain, &(kr_compile_options){.goal = KR_GOAL_GRADIENTS, .stop_after = "autodiff"}, NULL, NULL),
             "autodiff");
    check_ok(kr_compile(simple, &(kr_compile_options){.goal = KR_GOAL_GRADIENTS, .stop_after = "schedule"}, NULL, NULL),
             "schedule");
    for (int i = 0; i < kr_graph_outputs(plain); i++) {
        int64_t n, m;
        const char *name = kr_graph_output_at(plain, i)->name;
        float *want = interpret(plain, name, &n), *got = interpret(simple, name, &m);
        cr_assert_eq(n, m);
        for (int64_t k = 0; k < n; k++)
            cr_assert(fabsf(got[k] - want[k]) <= 1e-6f * (1 + fabsf(want[k])), "%s[%ld]: %g, want %g", name, (long)k,
                      got[k], want[k]);
    }
    kr_graph_free(plain);
    kr_graph_free(simple);
}

Test(compile, gradients_of_split_values_are_written_into_slices) {
    kr_graph *g = mixed();
    kr_plan *plan;
    check_ok(kr_compile(g, &(kr_compile_options){.goal = KR_GOAL_GRADIENTS}, &plan, NULL), "compile");
    // The three pieces of `in` have producers that can write rows: no step joins or pads them.
    for (int i = 0; i < kr_plan_steps(plan); i++) {
        const kr_step *s = kr_plan_step(plan, i);
        const bool joins = !strcmp(s->op, "concat") && s->outputs &&
                           s->out[0].shape.dim[s->out[0].shape.rank - 1] == 20;
        cr_assert(!joins && strcmp(s->op, "pad"), "step %d is a %s of %s", i, s->op, s->scope);
    }
    kr_plan_free(plan);
    kr_graph_free(g);
}

/// Runs one plan on a session whose params are the fixed random ones and reads an output.
static float *run_plan(kr_graph *g, kr_plan *plan, kr_device *device, int threads, const char *output, int64_t n) {
    kr_session *session;
    check_ok(kr_session_open(device, threads, &session), "session");
    check_ok(kr_session_add(session, plan), "add");
    kr_binding all[128], fed[128];
    int count = bind_all(g, all, 127), inputs = 0;
    for (int i = 0; i < count; i++) {
        const int slot = kr_session_find(session, all[i].name);
        if (slot >= 0) check_ok(kr_session_write(session, slot, all[i].data, all[i].bytes), all[i].name);
        else fed[inputs++] = all[i];
    }
    float *out = take((size_t)n * sizeof *out);
    fed[inputs++] = (kr_binding){output, out, (size_t)n * 4};
    check_ok(kr_plan_run(session, plan, fed, inputs, 0), "run");
    kr_session_close(session);
    return out;
}

Test(compile, plans_give_what_the_interpreter_gives) {
    kr_graph *reference = mixed();
    check_ok(
        kr_compile(reference, &(kr_compile_options){.goal = KR_GOAL_GRADIENTS, .stop_after = "autodiff"}, NULL, NULL),
        "autodiff");
    for (int device_kind = 0; device_kind < 2; device_kind++) {
        kr_device *device;
        check_ok(device_kind ? kr_device_guarded(&device) : kr_device_cpu(&device), "device");
        for (int threads = 1; threads <= 3; threads++)
            for (int i = 0; i < kr_graph_outputs(reference); i++) {
                const char *name = kr_graph_output_at(reference, i)->name;
                kr_graph *g = mixed();
                kr_plan *plan;
                check_ok(kr_compile(g, &(kr_compile_options){.goal = KR_GOAL_GRADIENTS}, &plan, NULL), "compile");
                int64_t n;
                float *want = interpret(reference, name, &n), *got = run_plan(g, plan, device, threads, name, n);
                for (int64_t k = 0; k < n; k++)
                    cr_assert(fabsf(got[k] - want[k]) <= 1e-6f * (1 + fabsf(want[k])), "%s[%ld]: %g, want %g", name,
                              (long)k, got[k], want[k]);
                kr_plan_free(plan);
                kr_graph_free(g);
            }
        kr_device_close(device);
    }
    kr_graph_free(reference);
}

/// Rows of 150 floats read in slices; `flat`: a reader besides that takes no rows, only the packed tensor.
static kr_graph *wide(bool flat) {
    kr_graph *g;
    check_ok(kr_graph_new(&g), "graph");
    const kr_value x = kr_input(g, "x", KR_F32, KR_SHAPE(3, 5, 12));
    const kr_value y = kr_linear(g, x, param(g, "in", KR_SHAPE(150, 12)), KR_NONE);
    kr_value part[3];
    kr_split(g, y, -1, (int64_t[]){64, 64, 22}, 3, part);
    const kr_value heads = kr_rms_norm(g, kr_reshape(g, part[1], KR_SHAPE(3, 5, 1, 64)), param(g, "norm", KR_SHAPE(64)),
                                       1e-5);
    const kr_value gated = kr_mul(g, kr_silu(g, part[0]), kr_reshape(g, heads, KR_SHAPE(3, 5, 64)));
    const kr_value out = kr_linear(g, gated, param(g, "out", KR_SHAPE(7, 64)), KR_NONE);
    kr_output(g, "y", out);
    if (flat) kr_output(g, "flat", kr_exp(g, kr_reshape(g, y, KR_SHAPE(15 * 150))));
    const kr_value both = kr_concat(g, (kr_value[]){kr_square(g, out), kr_exp(g, part[2])}, 2, -1);
    kr_output(g, "loss", kr_reshape(g, kr_mean(g, kr_reshape(g, both, KR_SHAPE(-1)), 0, true), KR_SHAPE(1)));
    check_ok(kr_graph_status(g), "wide graph");
    return g;
}

Test(compile, rows_that_are_read_in_slices_begin_on_lines) {
    for (int flat = 0; flat < 2; flat++) {
        kr_graph *g = wide(flat);
        kr_plan *plan;
        check_ok(kr_compile(g, &(kr_compile_options){.goal = KR_GOAL_FORWARD}, &plan, NULL), "compile");
        int products = 0;
        for (int i = 0; i < kr_plan_steps(plan); i++) {
            const kr_step *s = kr_plan_step(plan, i);
            cr_assert(strcmp(s->op, "copy"), "step %d copies", i);
            if (strcmp(s->op, "matmul") || s->out[0].shape.dim[2] != 150) continue;
            products++;
            cr_assert_eq(s->out[0].stride[1], flat ? 150 : 160);
            cr_assert_eq(s->out[0].stride[0], 5 * s->out[0].stride[1]);
        }
        cr_assert_eq(products, 1);
        kr_plan_free(plan);
        kr_graph_free(g);
    }
}

Test(compile, gradients_of_reshaped_pieces_are_written_into_slices_too) {
    kr_graph *g = wide(false);
    kr_plan *plan;
    check_ok(kr_compile(g, &(kr_compile_options){.goal = KR_GOAL_GRADIENTS}, &plan, NULL), "compile");
    for (int i = 0; i < kr_plan_steps(plan); i++) {
        const kr_step *s = kr_plan_step(plan, i);
        cr_assert(strcmp(s->op, "concat") && strcmp(s->op, "pad") && strcmp(s->op, "copy"), "step %d is a %s of %s", i,
                  s->op, s->scope);
    }
    kr_plan_free(plan);
    kr_graph_free(g);
}

Test(compile, rows_on_lines_change_no_value) {
    kr_graph *reference = wide(false);
    check_ok(
        kr_compile(reference, &(kr_compile_options){.goal = KR_GOAL_GRADIENTS, .stop_after = "autodiff"}, NULL, NULL),
        "autodiff");
    kr_device *device;
    check_ok(kr_device_guarded(&device), "device");
    for (int i = 0; i < kr_graph_outputs(reference); i++) {
        const char *name = kr_graph_output_at(reference, i)->name;
        kr_graph *g = wide(false);
        kr_plan *plan;
        check_ok(kr_compile(g, &(kr_compile_options){.goal = KR_GOAL_GRADIENTS}, &plan, NULL), "compile");
        int64_t n;
        float *want = interpret(reference, name, &n), *got = run_plan(g, plan, device, 2, name, n);
        for (int64_t k = 0; k < n; k++)
            cr_assert(fabsf(got[k] - want[k]) <= 1e-6f * (1 + fabsf(want[k])), "%s[%ld]: %g, want %g", name, (long)k,
                      got[k], want[k]);
        kr_plan_free(plan);
        kr_graph_free(g);
    }
    kr_device_close(device);
    kr_graph_free(reference);
}

static kr_model_config tiny(void) {
    kr_model_config c = kr_model_defaults();
    c.d_model = 24;
    c.n_layer = 3;
    c.vocab_size = 50;
    check_ok(kr_settings_set(&c.keys, "d_state", "5"), "d_state");
    return c;
}

Test(compile, planner_meets_its_bound_on_training_graphs) {
    for (int n_layer = 1; n_layer <= 6; n_layer += 5) {
        kr_model_config c = kr_model_defaults();
        c.n_layer = n_layer;
        kr_graph *g;
        kr_plan *plan;
        kr_plan_stats stats;
        check_ok(kr_model_build(&c, KR_MODE_TRAIN, 4, 64, &g), "model");
        check_ok(kr_compile(g, &(kr_compile_options){.goal = KR_GOAL_TRAIN, .optimizer = adamw}, &plan, &stats),
                 "compile");
        cr_assert_leq(stats.bound, stats.peak);
        cr_assert_leq(stats.peak, stats.sum);
        cr_assert_leq((double)stats.peak, 1.02 * (double)stats.bound, "%d layers: peak %zu, bound %zu", n_layer,
                      stats.peak, stats.bound);
        kr_plan_free(plan);
        kr_graph_free(g);
    }
}

Test(compile, parameters_are_updated_in_place) {
    const kr_model_config c = tiny();
    kr_graph *g;
    kr_plan *plan;
    check_ok(kr_model_build(&c, KR_MODE_TRAIN, 2, 9, &g), "model");
    check_ok(kr_compile(g, &(kr_compile_options){.goal = KR_GOAL_TRAIN, .optimizer = adamw}, &plan, NULL), "compile");
    for (int i = 0; i < kr_plan_steps(plan); i++) {
        const kr_step *s = kr_plan_step(plan, i);
        if (!strcmp(s->op, "count_step")) cr_assert_eq(s->out[0].slot, s->in[0].slot, "the step is not counted in place");
        if (strcmp(s->op, "adamw")) {
            cr_assert(strcmp(s->op, "copy") || strcmp(s->scope, "copy"), "step %d copies an assigned value", i);
            continue;
        }
        const kr_slot *to = kr_plan_slot(plan, s->out[0].slot);
        cr_assert_eq(to->kind, KR_SLOT_PARAM);
        cr_assert_eq(s->out[0].slot, s->in[0].slot, "%s is not updated in place", to->name);
        cr_assert_eq(kr_plan_slot(plan, s->out[1].slot)->kind, KR_SLOT_OPTIMIZER);
    }
    kr_plan_free(plan);
    kr_graph_free(g);
}

Test(compile, swapped_carries_and_odd_outputs) {
    kr_graph *g;
    check_ok(kr_graph_new(&g), "graph");
    const kr_value a = kr_carry(g, "a", KR_F32, KR_SHAPE(4)), b = kr_carry(g, "b", KR_F32, KR_SHAPE(4));
    const kr_value x = kr_input(g, "x", KR_F32, KR_SHAPE(4));
    kr_output(g, "input", x);                        // an output that is an input
    kr_output(g, "view", kr_slice(g, x, 0, 1, 2));   // one that is a view
    kr_output(g, "constant", kr_const(g, 3, KR_F32, KR_SHAPE(2, 2)));
    kr_carry_set(g, a, kr_add(g, b, x));             // a and b change places, each seeing the old value of the other
    kr_carry_set(g, b, a);
    kr_plan *plan;
    check_ok(kr_compile(g, &(kr_compile_options){0}, &plan, NULL), "compile");
    kr_device *device;
    kr_session *session;
    check_ok(kr_device_cpu(&device), "device");
    check_ok(kr_session_open(device, 2, &session), "session");
    check_ok(kr_session_add(session, plan), "add");
    const float a0[4] = {1, 2, 3, 4}, b0[4] = {10, 20, 30, 40};
    check_ok(kr_session_write(session, kr_session_find(session, "a"), a0, sizeof a0), "a");
    check_ok(kr_session_write(session, kr_session_find(session, "b"), b0, sizeof b0), "b");
    float in[4] = {5, 6, 7, 8}, same[4], view[2], constant[4], got[4];
    const kr_binding io[] = {{"x", in, sizeof in}, {"input", same, sizeof same}, {"view", view, sizeof view},
                             {"constant", constant, sizeof constant}};
    check_ok(kr_plan_run(session, plan, io, 4, 0), "run");
    cr_assert_arr_eq(same, in, sizeof in);
    cr_assert_arr_eq(view, in + 1, sizeof view);
    cr_assert_arr_eq(constant, ((float[]){3, 3, 3, 3}), sizeof constant);
    check_ok(kr_session_read(session, kr_session_find(session, "a"), got, sizeof got), "a");
    cr_assert_arr_eq(got, ((float[]){15, 26, 37, 48}), sizeof got);
    check_ok(kr_session_read(session, kr_session_find(session, "b"), got, sizeof got), "b");
    cr_assert_arr_eq(got, a0, sizeof got);
    kr_session_close(session);
    kr_device_close(device);
    kr_plan_free(plan);
    kr_graph_free(g);
}

Test(compile, accumulated_micro_batches_equal_one_batch) {
    const kr_model_config c = tiny();
    float *result[2];
    int64_t elements = 0;
    for (int split = 0; split < 2; split++) {
        kr_device *device;
        kr_session *session;
        check_ok(kr_device_cpu(&device), "device");
        check_ok(kr_session_open(device, 2, &session), "session");
        const int64_t batch = split ? 2 : 4, length = 8;
        kr_plan *plans[2] = {0};
        kr_graph *graphs[2] = {0};
        const kr_goal goals[2] = {split ? KR_GOAL_ACCUMULATE : KR_GOAL_TRAIN, KR_GOAL_TRAIN_LAST};
        for (int p = 0; p <= split; p++) {
            check_ok(kr_model_build(&c, KR_MODE_TRAIN, batch, length, &graphs[p]), "model");
            check_ok(kr_compile(graphs[p],
                                &(kr_compile_options){.goal = goals[p], .optimizer = adamw, .accumulation = 2},
                                &plans[p], NULL),
                     "compile");
            check_ok(kr_session_add(session, plans[p]), "add");
        }
        check_ok(kr_session_init(session, 3), "init");
        int32_t tokens[32], targets[32];
        float learning_rate = 1e-2f, loss, norm;
        for (int i = 0; i < 32; i++) {
            tokens[i] = (i * 13 + 5) % 50;
            targets[i] = (i * 29 + 1) % 50;
        }
        for (int step = 0; step < 2; step++)
            for (int p = 0; p <= split; p++) {
                const kr_binding io[] = {{"tokens", tokens + 16 * p, (size_t)(batch * length) * 4},
                    {"targets", targets + 16 * p, (size_t)(batch * length) * 4}, {"loss", &loss, 4},
                    {"learning_rate", &learning_rate, 4}, {"grad_norm", &norm, 4}};
                check_ok(kr_plan_run(session, plans[p], io, split && !p ? 3 : 5, 0), "run");
            }
        const int slot = kr_session_find(session, "backbone.layers.1.mixer.in_proj.weight");
        elements = kr_shape_count(&kr_session_slot(session, slot)->shape);
        result[split] = take((size_t)elements * 4);
        check_ok(kr_session_read(session, slot, result[split], (size_t)elements * 4), "read");
        kr_session_close(session);
        kr_device_close(device);
        for (int p = 0; p <= split; p++) {
            kr_plan_free(plans[p]);
            kr_graph_free(graphs[p]);
        }
    }
    for (int64_t i = 0; i < elements; i++)
        cr_assert(fabsf(result[0][i] - result[1][i]) < 2e-4f, "[%ld]: %g in one batch, %g in two", (long)i,
                  result[0][i], result[1][i]);
}

/// Adam by hand on one parameter whose gradient is fed, with micro-batches or without.
static void check_updates(bool split) {
    kr_plan *plans[2];
    kr_device *device;
    kr_session *session;
    check_ok(kr_device_cpu(&device), "device");
    check_ok(kr_session_open(device, 2, &session), "session");
    for (int k = 0; k < 2; k++) {
        kr_graph *g;
        check_ok(kr_graph_new(&g), "graph");
        kr_output(g, "loss", kr_mul(g, kr_input(g, "slope", KR_F32, KR_SHAPE(1)), param(g, "p", KR_SHAPE(1))));
        const kr_compile_options options = {.goal = !split ? KR_GOAL_TRAIN : k ? KR_GOAL_ACCUMULATE : KR_GOAL_TRAIN_LAST,
                                            .optimizer = {.beta1 = 0.8, .beta2 = 0.9}, .accumulation = split ? 2 : 1};
        check_ok(kr_compile(g, &options, &plans[k], NULL), "compile");
        check_ok(kr_session_add(session, plans[k]), "add");
        kr_graph_free(g);
    }
    check_ok(kr_session_init(session, 1), "init");
    float slope[] = {0.5f, -2, NAN, INFINITY, 3, 0.25f}, learning_rate = 0.1f, norm, got, start;
    const int p = kr_session_find(session, "p"), count = kr_session_find(session, KR_OPTIMIZER_STEP);
    cr_assert_geq(count, 0);
    cr_assert_eq(kr_session_slot(session, count)->kind, KR_SLOT_OPTIMIZER);
    check_ok(kr_session_read(session, p, &start, sizeof start), "p");
    double want = (double)start, m = 0, v = 0;
    int64_t updates = 0, steps;
    for (int k = 0; k < 6; k++) {
        const kr_binding io[] = {{"slope", &slope[k], 4}, {"learning_rate", &learning_rate, 4}, {"grad_norm", &norm, 4}};
        const float none = 0;
        // The sums of a bad micro-batch end with its update, which puts zeros there.
        if (split)
            check_ok(kr_plan_run(session, plans[1], (kr_binding[]){{"slope", (void *)&none, 4}}, 1, 0), "micro-batch");
        check_ok(kr_session_read(session, count, &steps, sizeof steps), "step");
        cr_assert_eq(steps, updates, "a micro-batch that does not update counts");
        check_ok(kr_plan_run(session, plans[0], io, 3, 0), "update");
        const double g = (double)slope[k] / (split ? 2 : 1);
        if (isfinite(g)) {
            updates++;
            m = 0.8 * m + 0.2 * g, v = 0.9 * v + 0.1 * g * g;
            want -= 0.1 * m / (1 - pow(0.8, (double)updates)) / sqrt(v / (1 - pow(0.9, (double)updates)));
        }
        check_ok(kr_session_read(session, p, &got, sizeof got), "p");
        check_ok(kr_session_read(session, count, &steps, sizeof steps), "step");
        cr_assert_eq(steps, updates, "after run %d: %ld updates are counted, want %ld", k, (long)steps, (long)updates);
        cr_assert_float_eq((double)got, want, 1e-6, "after run %d: p is %.9g, want %.9g", k, (double)got, want);
    }
    cr_assert_eq(updates, 4);
    kr_session_close(session);
    kr_device_close(device);
    for (int k = 0; k < 2; k++) kr_plan_free(plans[k]);
}

Test(compile, updates_are_counted_where_they_take_place) {
    check_updates(false);
    check_updates(true);
}

Test(compile, says_what_it_cannot_do) {
    kr_graph *g;
    kr_plan *plan;
    check_ok(kr_graph_new(&g), "graph");
    kr_output(g, "y", kr_input(g, "x", KR_F32, KR_SHAPE(2)));
    cr_assert_eq(kr_compile(g, &(kr_compile_options){.goal = KR_GOAL_TRAIN}, &plan, NULL), KR_BAD_ARGUMENT);
    cr_assert(strstr(kr_status_message(), "\"loss\""), "%s", kr_status_message());
    cr_assert_eq(kr_compile(g, &(kr_compile_options){.stop_after = "fusion"}, &plan, NULL), KR_BAD_ARGUMENT);
    cr_assert(strstr(kr_status_message(), "fusion"), "%s", kr_status_message());
    kr_graph_free(g);
}
