// krait bench op: the kernels of one op, or of all, timed inside a plan by the executor itself, so that feeding inputs
// and starting threads do not count.
#include "tools/bench/bench.h"
#include "tools/cli/device.h"

#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>

typedef struct trial {
    const char *op;  ///< whose steps count; null: all steps, where the compiler put others in the place of the op
    kr_plan *plan;
    kr_device *device;
    kr_session *session;
    kr_binding bindings[32];
    int bindings_count;
    double flops, bytes, states, floor; ///< of the op's steps; floor: seconds
    const char *roof;
    double *seconds; ///< one per run
} trial;

static bool counts(const trial *t, const kr_step *step) { return !t->op || !strcmp(step->op, t->op); }

static double profiled(const trial *t) {
    double nanoseconds = 0;
    for (int k = 0; k < kr_plan_steps(t->plan); k++)
        if (counts(t, kr_plan_step(t->plan, k))) nanoseconds += kr_plan_profile(t->plan, k, NULL);
    return nanoseconds;
}

static kr_status measure(trial *t, int64_t repeat) {
    double before = 0;
    for (int64_t k = -2; k < repeat; k++) { // two runs to warm up
        KR_TRY(kr_plan_run(t->session, t->plan, t->bindings, t->bindings_count, KR_RUN_PROFILE));
        const double now = profiled(t);
        if (k >= 0) t->seconds[k] = (now - before) * 1e-9;
        before = now;
    }
    return KR_OK;
}

/// Which steps of the plan are the op, and what they have to do.
static kr_status tally(trial *t, const char *name, bool gradient, const kr_bench_limits *limits) {
    t->op = name;
    int steps = 0;
    for (int k = 0; k < kr_plan_steps(t->plan); k++) steps += counts(t, kr_plan_step(t->plan, k));
    if (!steps && !gradient) t->op = NULL; // fused, or simplified into something else
    KR_FAIL_IF(!steps && (gradient || !kr_plan_steps(t->plan)), KR_BAD_ARGUMENT,
               "the plan of the sample has no step of op %s left", name);
    for (int k = 0; k < kr_plan_steps(t->plan); k++) {
        const kr_step *step = kr_plan_step(t->plan, k);
        if (!counts(t, step)) continue;
        const kr_bench_work work = kr_bench_step_work(step);
        t->flops += step->flops;
        t->bytes += step->bytes;
        t->states += kr_bench_states(step);
        t->floor += kr_bench_floor(limits, kr_isa_best(), &work, &t->roof);
    }
    return KR_OK;
}

/// "f32[2048,160] f32[640,160] _ _" of the op's first step.
static void shapes_text(const trial *t, char *text, size_t room) {
    size_t n = 0;
    *text = 0;
    for (int k = 0; k < kr_plan_steps(t->plan); k++) {
        const kr_step *step = kr_plan_step(t->plan, k);
        if (!counts(t, step)) continue;
        for (int i = 0; i < step->inputs && n + 180 < room; i++) {
            char shape[160];
            n += (size_t)snprintf(text + n, room - n, "%s%s%s", i ? " " : "",
                                  step->in[i].slot < 0 ? "_" : kr_dtype_name(step->in[i].dtype),
                                  step->in[i].slot < 0 ? "" : kr_shape_text(&step->in[i].shape, shape));
        }
        return;
    }
}

/// What a row is called in every run: the op, and the sample or shapes that were asked for.
static void row_name(const kr_bench_settings *s, const kr_text_list *words, char text[1600]) {
    int n = snprintf(text, 200, "%s", words->at[0]);
    if (s->sample) n += snprintf(text + n, 100, " (%s)", s->sample);
    for (int k = 1; k < words->count; k++) n += snprintf(text + n, 90, " %s", words->at[k]);
}

static void report(const kr_bench_settings *s, const kr_text_list *words, const trial *t, bool table,
                   json_object *record) {
    const kr_bench_time time = kr_bench_percentiles(t->seconds, (int)s->repeat);
    const double share = time.median > 0 ? t->floor / time.median : 0;
    const double each = t->states > 0 ? time.median / t->states * 1e9 : 0;
    char shapes[2400], name[1600];
    shapes_text(t, shapes, sizeof shapes);
    row_name(s, words, name);
    json_object *row = kr_bench_record_row(record, name, "s", time);
    kr_bench_record_text(row, "op", words->at[0]);
    kr_bench_record_text(row, "inputs", shapes);
    kr_bench_record_real(row, "flops", t->flops);
    kr_bench_record_real(row, "bytes", t->bytes);
    kr_bench_record_real(row, "flops_per_second", t->flops / time.median);
    kr_bench_record_real(row, "bytes_per_second", t->bytes / time.median);
    if (t->states > 0) kr_bench_record_real(row, "ns_per_state", each);
    kr_bench_record_real(row, "floor_seconds", t->floor);
    kr_bench_record_real(row, "share_of_roof", share);
    kr_bench_record_text(row, "roof", t->roof);
    if (s->json) return;
    if (table) {
        printf("%-22s %10.4f (%.4f to %.4f) %9.2f %9.2f ", words->at[0], time.median * 1e3, time.p10 * 1e3,
               time.p90 * 1e3, t->flops / time.median / 1e9, t->bytes / time.median / 1e9);
        if (each > 0) printf("%8.4f", each);
        else printf("%8s", "");
        printf(" %6.1f %%  %s\n", 100 * share, t->roof);
        fflush(stdout);
        return;
    }
    printf("%s  %s\n", name, shapes);
    printf("  %s, %d thread%s: median %.4g ms (%.4g to %.4g) over %lld runs\n", kr_isa_name(kr_isa_best()), s->threads,
           s->threads == 1 ? "" : "s", time.median * 1e3, time.p10 * 1e3, time.p90 * 1e3, (long long)s->repeat);
    if (each > 0) printf("  %.4f ns per token, channel and state\n", each);
    printf("  %.4g GFLOP/s, %.4g GB/s; at best it would take %.4g ms here (%s): %.1f %% of the roof\n",
           t->flops / time.median / 1e9, t->bytes / time.median / 1e9, t->floor * 1e3, t->roof, 100 * share);
}

static kr_status run(const kr_bench_settings *s, const kr_text_list *words, const kr_bench_limits *limits, bool table,
                     json_object *record, kr_graph *g, trial *t) {
    const char *name = words->at[0];
    const bool gradient = kr_graph_output_find(g, "loss").id != 0;
    const kr_target *target;
    KR_TRY(kr_tool_target(s->device, &target));
    const kr_compile_options how = {.goal = gradient ? KR_GOAL_GRADIENTS : KR_GOAL_FORWARD, .target = target};
    KR_TRY(kr_compile(g, &how, &t->plan, NULL));
    KR_TRY(tally(t, name, gradient, limits));
    KR_TRY(kr_tool_device(s->device, &t->device));
    KR_TRY(kr_session_open(t->device, s->threads, &t->session));
    KR_TRY(kr_session_add(t->session, t->plan));
    KR_TRY(kr_bench_fill(name, t->session, t->plan, t->bindings, 32, &t->bindings_count));
    t->seconds = malloc((size_t)s->repeat * sizeof *t->seconds);
    KR_FAIL_IF(!t->seconds, KR_NO_MEMORY, "no memory for %lld measurements", (long long)s->repeat);
    KR_TRY(measure(t, s->repeat));
    report(s, words, t, table, record);
    return KR_OK;
}

static kr_status one(const kr_bench_settings *s, const kr_text_list *words, const kr_bench_limits *limits, bool table,
                     json_object *record) {
    kr_graph *g;
    trial t = {0};
    KR_TRY(kr_bench_sample(words->at[0], s->sample, words, s->attributes, &g));
    const kr_status status = run(s, words, limits, table, record, g, &t);
    kr_graph_free(g);
    for (int k = 0; k < t.bindings_count; k++) free(t.bindings[k].data);
    free(t.seconds);
    kr_session_close(t.session);
    kr_plan_free(t.plan);
    if (t.device) kr_device_close(t.device);
    return status;
}

/// Every op of the table that has a kernel, on its default sample.
static kr_status all(const kr_bench_settings *s, const kr_bench_limits *limits, json_object *record) {
    KR_FAIL_IF(s->sample || s->attributes, KR_BAD_ARGUMENT,
               "bench op all takes the default samples: no --sample, no --attributes");
    if (!s->json)
        printf("%s, %d thread%s, OpenBLAS %s\n%-22s %32s %9s %9s %8s %8s  %s\n", kr_isa_name(kr_isa_best()), s->threads,
               s->threads == 1 ? "" : "s", kr_blas_prepare(), "op", "ms, median (p10 to p90)", "GFLOP/s", "GB/s",
               "ns/state", "of roof", "roof");
    for (int k = 0; k < kr_op_count; k++) {
        const kr_op *op = kr_ops[k];
        if (op->flags & (KR_OP_SOURCE | KR_OP_VIEW)) continue;
        const kr_text_list words = {1, {op->name}};
        const kr_status status = one(s, &words, limits, true, record);
        if (status) return kr_status_prefix(status, "%s", op->name);
    }
    return KR_OK;
}

kr_status kr_bench_op(const kr_bench_settings *s, const kr_text_list *words) {
    const bool every = !strcmp(words->at[0], "all");
    KR_FAIL_IF(every && words->count > 1, KR_BAD_ARGUMENT, "bench op all takes the default samples: unexpected '%s'",
               words->at[1]);
    json_object *before;
    KR_TRY(kr_bench_compare_read(s->compare, "op", &before));
    json_object *record = kr_bench_record(s, "op");
    kr_bench_limits limits;
    kr_status status = KR_OK;
    if (record) {
        kr_bench_measure(s->threads, 0.03, &limits);
        status = every ? all(s, &limits, record) : one(s, words, &limits, false, record);
    }
    if (status) {
        json_object_put(record);
        json_object_put(before);
        return status;
    }
    return kr_bench_record_close(s, record, before);
}
