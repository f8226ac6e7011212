// krait bench model: how fast a model's plan runs, and where the time goes. Speed is measured on plain runs; the table
// comes from runs with the profiler, which puts a barrier after each step and so costs a little.
#include "tools/bench.h"
#include "tools/train.h"

#include <stdlib.h>
#include <string.h>

static const char *const mode_names[] = {"train", "eval", "prefill", "decode", "logits"};

typedef struct trial {
    kr_train_settings train;
    kr_model_config model;
    kr_plan *plan;
    kr_plan_stats stats;
    kr_device *device;
    kr_session *session;
    int64_t batch, length;
    int32_t *ids;
    float hyper[3];
    kr_binding bindings[3];
    int binding_count;
    double *seconds;
} trial;

/// All steps of one op in a plan.
typedef struct row {
    const char *op;
    int calls;
    double seconds, flops, bytes, largest; ///< largest: bytes of one call, which decide the level of memory it lives in
} row;

static kr_status configure(const kr_bench_settings *s, trial *t) {
    kr_config *config;
    t->train = kr_train_defaults();
    KR_TRY(kr_config_load(s->config, &config));
    kr_status status = kr_config_section(config, "pretrain", kr_train_options, &t->train);
    if (!status) status = kr_config_model(config, s->model, &t->model);
    kr_config_free(config);
    t->batch = s->batch_size ? s->batch_size : t->train.batch_size;
    t->length = s->mode == KR_MODE_DECODE ? 1 : s->seq_len ? s->seq_len : t->train.seq_len;
    return status;
}

static kr_status compile(const kr_bench_settings *s, trial *t) {
    kr_graph *g;
    const kr_train_settings *d = &t->train;
    const kr_compile_options how = {
        .goal = s->mode == KR_MODE_TRAIN ? KR_GOAL_TRAIN : KR_GOAL_FORWARD,
        .precision = (kr_precision)s->precision,
        .optimizer = {d->beta1, d->beta2, d->epsilon, d->weight_decay, d->grad_clip},
    };
    KR_TRY(kr_model_build(&t->model, (kr_mode)s->mode, t->batch, t->length, &g));
    const kr_status status = kr_compile(g, &how, &t->plan, &t->stats);
    kr_graph_free(g);
    return status;
}

static kr_status feed(trial *t) {
    const int64_t tokens = t->batch * t->length;
    t->ids = malloc((size_t)(tokens + 1) * sizeof *t->ids);
    KR_FAIL_IF(!t->ids, KR_NO_MEMORY, "no memory for %lld tokens", (long long)tokens);
    for (int64_t k = 0; k <= tokens; k++)
        t->ids[k] = (int32_t)(kr_random_uniform(3, 0, (uint64_t)k) * (float)t->model.vocab_size);
    t->hyper[0] = 1e-6f; // the weights must not run away over thousands of steps on noise
    t->hyper[1] = t->hyper[2] = 1;
    const kr_binding all[] = {{"tokens", t->ids, (size_t)tokens * sizeof *t->ids},
                              {"targets", t->ids + 1, (size_t)tokens * sizeof *t->ids},
                              {"optimizer", t->hyper, sizeof t->hyper}};
    for (int k = 0; k < 3; k++)
        if (kr_plan_find(t->plan, all[k].name) >= 0) t->bindings[t->binding_count++] = all[k];
    return KR_OK;
}

static kr_status runs(trial *t, int64_t warm, int64_t count, unsigned flags) {
    for (int64_t k = -warm; k < count; k++) {
        const double start = kr_seconds();
        KR_TRY(kr_plan_run(t->session, t->plan, t->bindings, t->binding_count, flags));
        if (k >= 0) t->seconds[k] = kr_seconds() - start;
    }
    return KR_OK;
}

static int by_seconds(const void *a, const void *b) {
    const double x = ((const row *)a)->seconds, y = ((const row *)b)->seconds;
    return (x < y) - (x > y);
}

/// Sums the profile by op, seconds per run. Gives the number of rows.
static int collect(const kr_plan *plan, row *rows) {
    int count = 0;
    for (int k = 0; k < kr_plan_steps(plan); k++) {
        const kr_step *step = kr_plan_step(plan, k);
        int64_t times;
        const double seconds = kr_plan_profile(plan, k, &times) * 1e-9;
        int r = 0;
        while (r < count && strcmp(rows[r].op, step->op)) r++;
        if (r == count) rows[count++] = (row){.op = step->op};
        rows[r].calls++;
        rows[r].seconds += times ? seconds / (double)times : 0;
        rows[r].flops += step->flops;
        rows[r].bytes += step->bytes;
        if (step->bytes > rows[r].largest) rows[r].largest = step->bytes;
    }
    qsort(rows, (size_t)count, sizeof *rows, by_seconds);
    return count;
}

/// Share of the machine's limits that the steps of a row reach.
static double share_of_peak(const kr_bench_limits *l, const row *r) {
    if (!(r->seconds > 0)) return 0;
    const double bandwidth = kr_bench_bandwidth(l, r->largest), peak = l->flops[kr_isa_best()];
    const double traffic = r->bytes / r->seconds / bandwidth, arithmetic = r->flops / r->seconds / peak;
    return traffic > arithmetic ? traffic : arithmetic;
}

static void print_text(const kr_bench_settings *s, const trial *t, kr_bench_time time, const kr_bench_limits *l,
                       const row *rows, int count) {
    const double tokens = (double)(t->batch * t->length);
    double total = 0;
    for (int k = 0; k < count; k++) total += rows[k].seconds;
    printf("%s, %s, batch %lld x %lld tokens, %d thread%s, %s, OpenBLAS %s\n", s->model, mode_names[s->mode],
           (long long)t->batch, (long long)t->length, s->threads, s->threads == 1 ? "" : "s",
           kr_isa_name(kr_isa_best()), kr_blas_prepare());
    if (kr_blas_warning()) printf("%s\n", kr_blas_warning());
    printf("%.0f tokens/s; a run takes %.3f ms (%.3f to %.3f), %.1f GFLOP/s: %.1f %% of this machine's multiply-add "
           "peak\n",
           tokens / time.median, time.median * 1e3, time.p10 * 1e3, time.p90 * 1e3, t->stats.flops / time.median / 1e9,
           100 * t->stats.flops / time.median / l->flops[kr_isa_best()]);
    printf("\n%-24s %6s %10s %7s %9s %9s %9s\n", "op", "calls", "ms a run", "share", "GFLOP/s", "GB/s", "of peak");
    for (int k = 0; k < count; k++) {
        const row *r = &rows[k];
        const double seconds = r->seconds > 0 ? r->seconds : 1e-12;
        printf("%-24s %6d %10.4f %6.1f%% %9.2f %9.2f %8.1f%%\n", r->op, r->calls, r->seconds * 1e3,
               100 * r->seconds / total, r->flops / seconds / 1e9, r->bytes / seconds / 1e9, 100 * share_of_peak(l, r));
    }
    printf("%-24s %6d %10.4f\n", "all", kr_plan_steps(t->plan), total * 1e3);
}

static void print_json(const kr_bench_settings *s, const trial *t, kr_bench_time time, const kr_bench_limits *l,
                       const row *rows, int count) {
    printf("{\"model\": \"%s\", \"mode\": \"%s\", \"batch_size\": %lld, \"seq_len\": %lld, \"threads\": %d, \"isa\": "
           "\"%s\", "
           "\"blas_core\": \"%s\", \"repeat\": %lld, \"seconds\": %.6g, \"p10\": %.6g, \"p90\": %.6g, "
           "\"tokens_per_second\": %.6g, "
           "\"flops_per_second\": %.6g, \"peak_flops\": %.6g, \"ops\": [",
           t->model.name, mode_names[s->mode], (long long)t->batch, (long long)t->length, s->threads,
           kr_isa_name(kr_isa_best()), kr_blas_prepare(), (long long)s->repeat, time.median, time.p10, time.p90,
           (double)(t->batch * t->length) / time.median, t->stats.flops / time.median, l->flops[kr_isa_best()]);
    for (int k = 0; k < count; k++)
        printf("%s{\"op\": \"%s\", \"calls\": %d, \"seconds\": %.6g, \"flops\": %.6g, \"bytes\": %.6g, "
               "\"share_of_peak\": %.4f}",
               k ? ", " : "", rows[k].op, rows[k].calls, rows[k].seconds, rows[k].flops, rows[k].bytes,
               share_of_peak(l, &rows[k]));
    printf("]}\n");
}

static kr_status run(const kr_bench_settings *s, trial *t) {
    KR_TRY(configure(s, t));
    KR_TRY(compile(s, t));
    KR_TRY(kr_device_cpu(&t->device));
    KR_TRY(kr_session_open(t->device, s->threads, &t->session));
    KR_TRY(kr_session_add(t->session, t->plan));
    KR_TRY(kr_session_init(t->session, 0));
    KR_TRY(feed(t));
    t->seconds = malloc((size_t)s->repeat * sizeof *t->seconds);
    row *rows = calloc((size_t)kr_plan_steps(t->plan) + 1, sizeof *rows);
    kr_status status = KR_OK;
    if (!t->seconds || !rows)
        status = kr_status_record(KR_NO_MEMORY, __FILE__, __LINE__, "no memory for the measurements");
    if (!status) status = runs(t, 2, s->repeat, 0);
    if (!status) {
        const kr_bench_time time = kr_bench_percentiles(t->seconds, (int)s->repeat);
        status = runs(t, 0, s->repeat < 10 ? s->repeat : 10, KR_RUN_PROFILE);
        kr_bench_limits limits;
        if (!status) {
            kr_bench_measure(s->threads, 0.05, &limits);
            const int count = collect(t->plan, rows);
            (s->json ? print_json : print_text)(s, t, time, &limits, rows, count);
        }
    }
    free(rows);
    return status;
}

kr_status kr_bench_model(const kr_bench_settings *s) {
    trial t = {0};
    const kr_status status = run(s, &t);
    free(t.ids);
    free(t.seconds);
    kr_session_close(t.session);
    kr_plan_free(t.plan);
    if (t.device) kr_device_close(t.device);
    return status;
}
