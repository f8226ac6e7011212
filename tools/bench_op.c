// krait bench op: the kernels of one op, timed inside a plan by the executor itself, so that feeding inputs and
// starting threads do not count.
#include "tools/bench.h"

#include <stdlib.h>
#include <string.h>

typedef struct trial {
    kr_plan *plan;
    kr_device *device;
    kr_session *session;
    kr_binding bindings[32];
    int bindings_count;
    double flops, bytes; ///< of the op's steps, by its cost rule
    double *seconds;     ///< one per run
} trial;

static double profiled(const kr_plan *plan, const char *op) {
    double nanoseconds = 0;
    for (int k = 0; k < kr_plan_steps(plan); k++)
        if (!strcmp(kr_plan_step(plan, k)->op, op)) nanoseconds += kr_plan_profile(plan, k, NULL);
    return nanoseconds;
}

static kr_status measure(trial *t, const char *name, int64_t repeat) {
    int steps = 0;
    for (int k = 0; k < kr_plan_steps(t->plan); k++) {
        const kr_step *step = kr_plan_step(t->plan, k);
        if (strcmp(step->op, name)) continue;
        t->flops += step->flops;
        t->bytes += step->bytes;
        steps++;
    }
    KR_FAIL_IF(!steps, KR_BAD_ARGUMENT, "the plan of the sample has no step of op %s left", name);
    double before = 0;
    for (int64_t k = -2; k < repeat; k++) { // two runs to warm up
        KR_TRY(kr_plan_run(t->session, t->plan, t->bindings, t->bindings_count, KR_RUN_PROFILE));
        const double now = profiled(t->plan, name);
        if (k >= 0) t->seconds[k] = (now - before) * 1e-9;
        before = now;
    }
    return KR_OK;
}

/// "f32[2048,160] f32[640,160] _ _" of the op's first step.
static void shapes_text(const kr_plan *plan, const char *name, char *text, size_t room) {
    size_t n = 0;
    *text = 0;
    for (int k = 0; k < kr_plan_steps(plan); k++) {
        const kr_step *step = kr_plan_step(plan, k);
        if (strcmp(step->op, name)) continue;
        for (int i = 0; i < step->inputs && n + 180 < room; i++) {
            char shape[160];
            n += (size_t)snprintf(text + n, room - n, "%s%s%s", i ? " " : "",
                                  step->in[i].slot < 0 ? "_" : kr_dtype_name(step->in[i].dtype),
                                  step->in[i].slot < 0 ? "" : kr_shape_text(&step->in[i].shape, shape));
        }
        return;
    }
}

static void print(const kr_bench_settings *s, const char *name, const trial *t, const kr_bench_limits *l) {
    const kr_bench_time time = kr_bench_percentiles(t->seconds, (int)s->repeat);
    const kr_isa isa = kr_isa_best();
    const double share = kr_bench_share(l, isa, t->flops, t->bytes, time.median);
    char shapes[2400];
    shapes_text(t->plan, name, shapes, sizeof shapes);
    if (s->json) {
        printf("{\"op\": \"%s\", \"inputs\": \"%s\", \"isa\": \"%s\", \"threads\": %d, \"repeat\": %lld, \"seconds\": "
               "%.6g, "
               "\"p10\": %.6g, \"p90\": %.6g, \"flops\": %.6g, \"bytes\": %.6g, \"flops_per_second\": %.6g, "
               "\"bytes_per_second\": %.6g, \"share_of_peak\": %.4f}\n",
               name, shapes, kr_isa_name(isa), s->threads, (long long)s->repeat, time.median, time.p10, time.p90,
               t->flops, t->bytes, t->flops / time.median, t->bytes / time.median, share);
        return;
    }
    printf("%s  %s\n", name, shapes);
    printf("  %s, %d thread%s: median %.4g ms (%.4g to %.4g) over %lld runs\n", kr_isa_name(isa), s->threads,
           s->threads == 1 ? "" : "s", time.median * 1e3, time.p10 * 1e3, time.p90 * 1e3, (long long)s->repeat);
    printf("  %.4g GFLOP/s, %.4g GB/s: %.1f %% of what this machine can do\n", t->flops / time.median / 1e9,
           t->bytes / time.median / 1e9, 100 * share);
}

static kr_status run(const kr_bench_settings *s, const char *name, kr_graph *g, trial *t) {
    const bool gradient = kr_graph_output_find(g, "loss").id != 0;
    KR_TRY(
        kr_compile(g, &(kr_compile_options){.goal = gradient ? KR_GOAL_GRADIENTS : KR_GOAL_FORWARD}, &t->plan, NULL));
    KR_TRY(kr_device_cpu(&t->device));
    KR_TRY(kr_session_open(t->device, s->threads, &t->session));
    KR_TRY(kr_session_add(t->session, t->plan));
    KR_TRY(kr_bench_fill(name, t->plan, t->bindings, 32, &t->bindings_count));
    t->seconds = malloc((size_t)s->repeat * sizeof *t->seconds);
    KR_FAIL_IF(!t->seconds, KR_NO_MEMORY, "no memory for %lld measurements", (long long)s->repeat);
    KR_TRY(measure(t, name, s->repeat));
    kr_bench_limits limits;
    kr_bench_measure(s->threads, 0.05, &limits);
    print(s, name, t, &limits);
    return KR_OK;
}

kr_status kr_bench_op(const kr_bench_settings *s, const kr_text_list *words) {
    kr_graph *g;
    trial t = {0};
    KR_TRY(kr_bench_sample(words->at[0], words, s->attributes, &g));
    const kr_status status = run(s, words->at[0], g, &t);
    kr_graph_free(g);
    for (int k = 0; k < t.bindings_count; k++) free(t.bindings[k].data);
    free(t.seconds);
    kr_session_close(t.session);
    kr_plan_free(t.plan);
    if (t.device) kr_device_close(t.device);
    return status;
}
