// krait bench model: how fast a model's plan runs, and where the time goes. Speed is measured on plain runs; the table
// comes from runs with the profiler, which puts a barrier after each step and so costs a little.
#include "tools/bench/bench.h"
#include "tools/cli/device.h"
#include "tools/cli/text.h"
#include "tools/config/config.h"
#include "tools/config/train_options.h"
#include "tools/train/memory.h"

#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>

static const char *const mode_names[] = {"train", "eval", "prefill", "decode", "logits"};

/// All steps of one op in a plan.
typedef struct row {
    const char *op;
    int calls;
    double seconds, flops, bytes, floor; ///< of one run; floor: seconds at best on this machine
    kr_bench_time time;
} row;

static kr_status configure(const kr_bench_settings *s, kr_bench_trial *t) {
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

static kr_status compile(const kr_bench_settings *s, kr_bench_trial *t) {
    kr_graph *g;
    const kr_target *target;
    KR_TRY(kr_tool_target(s->device, &target));
    const kr_compile_options how = {
        .goal = s->mode == KR_MODE_TRAIN ? KR_GOAL_TRAIN : KR_GOAL_FORWARD, .memory = (size_t)s->memory,
        .target = target, .precision = (kr_precision)s->precision,
        .optimizer = kr_train_optimizer(&t->train),
    };
    KR_TRY(kr_model_build(&t->model, (kr_mode)s->mode, t->batch, t->length, &g));
    const kr_status status = kr_compile(g, &how, &t->plan, &t->stats);
    kr_graph_free(g);
    return status;
}

static kr_status feed(kr_bench_trial *t) {
    const int64_t tokens = t->batch * t->length;
    t->ids = malloc((size_t)(tokens + 1) * sizeof *t->ids);
    KR_FAIL_IF(!t->ids, KR_NO_MEMORY, "no memory for %lld tokens", (long long)tokens);
    for (int64_t k = 0; k <= tokens; k++)
        t->ids[k] = (int32_t)(kr_random_uniform(3, 0, (uint64_t)k) * (float)t->model.vocab_size);
    t->learning_rate = 1e-6f; // the weights must not run away over thousands of steps on noise
    const kr_binding all[] = {{"tokens", t->ids, (size_t)tokens * sizeof *t->ids},
                              {"targets", t->ids + 1, (size_t)tokens * sizeof *t->ids},
                              {"learning_rate", &t->learning_rate, sizeof t->learning_rate}};
    for (int k = 0; k < 3; k++)
        if (kr_plan_find(t->plan, all[k].name) >= 0) t->bindings[t->binding_count++] = all[k];
    return KR_OK;
}

kr_status kr_bench_trial_run(kr_bench_trial *t, int64_t warm, int64_t count, unsigned flags) {
    for (int64_t k = -warm; k < count; k++) {
        const double start = kr_seconds();
        KR_TRY(kr_plan_run(t->session, t->plan, t->bindings, t->binding_count, flags));
        if (k >= 0) t->seconds[k] = kr_seconds() - start;
    }
    return KR_OK;
}

kr_status kr_bench_trial_open(const kr_bench_settings *s, kr_bench_trial *t) {
    *t = (kr_bench_trial){0};
    KR_TRY(configure(s, t));
    KR_TRY(compile(s, t));
    kr_blas_prepare(); // or its memory would come on top of what the process is said to hold
    t->planned = kr_memory_estimate(&t->plan, 1, s->threads, 0).total;
    KR_TRY(kr_tool_device(s->device, &t->device));
    KR_TRY(kr_session_open(t->device, s->threads, &t->session));
    KR_TRY(kr_session_add(t->session, t->plan));
    KR_TRY(kr_session_init(t->session, 0));
    KR_TRY(feed(t));
    t->seconds = malloc((size_t)s->repeat * sizeof *t->seconds);
    KR_FAIL_IF(!t->seconds, KR_NO_MEMORY, "no memory for %lld measurements", (long long)s->repeat);
    return KR_OK;
}

void kr_bench_trial_close(kr_bench_trial *t) {
    free(t->ids);
    free(t->seconds);
    kr_session_close(t->session);
    kr_plan_free(t->plan);
    if (t->device) kr_device_close(t->device);
}

// The table -------------------------------------------------------------------------------------------------------

static int by_seconds(const void *a, const void *b) {
    const double x = ((const row *)a)->seconds, y = ((const row *)b)->seconds;
    return (x < y) - (x > y);
}

/// Steps of the plan by op. Gives the number of rows; row_of[k] is that of step k.
static int group(const kr_plan *plan, const kr_bench_limits *limits, row *rows, int *row_of) {
    int count = 0;
    for (int k = 0; k < kr_plan_steps(plan); k++) {
        const kr_step *step = kr_plan_step(plan, k);
        const kr_bench_work work = kr_bench_step_work(step);
        int r = 0;
        while (r < count && strcmp(rows[r].op, step->op)) r++;
        if (r == count) rows[count++] = (row){.op = step->op};
        rows[r].calls++;
        rows[r].flops += step->flops;
        rows[r].bytes += step->bytes;
        rows[r].floor += kr_bench_floor(limits, kr_isa_best(), &work, NULL);
        row_of[k] = r;
    }
    return count;
}

enum { PROFILES = 10 };

/// Runs with the profiler, some ten times; fills the rows' times and sorts them.
static kr_status profile(const kr_bench_settings *s, kr_bench_trial *t, row *rows, int count, const int *row_of) {
    const int runs = s->repeat < PROFILES ? (int)s->repeat : PROFILES, steps = kr_plan_steps(t->plan);
    double *seconds = calloc((size_t)count * PROFILES + 1, sizeof *seconds);
    KR_FAIL_IF(!seconds, KR_NO_MEMORY, "no memory for the profile");
    kr_status status = KR_OK;
    for (int run = 0; run < runs && !status; run++) {
        for (int k = 0; k < steps; k++) seconds[row_of[k] * PROFILES + run] -= kr_plan_profile(t->plan, k, NULL) * 1e-9;
        status = kr_plan_run(t->session, t->plan, t->bindings, t->binding_count, KR_RUN_PROFILE);
        for (int k = 0; k < steps; k++) seconds[row_of[k] * PROFILES + run] += kr_plan_profile(t->plan, k, NULL) * 1e-9;
    }
    for (int r = 0; r < count && !status; r++) {
        rows[r].time = kr_bench_percentiles(&seconds[r * PROFILES], runs);
        rows[r].seconds = rows[r].time.median;
    }
    free(seconds);
    qsort(rows, (size_t)count, sizeof *rows, by_seconds);
    return status;
}

static double share(double floor, double seconds) { return seconds > 0 ? floor / seconds : 0; }

static void print_text(const kr_bench_settings *s, const kr_bench_trial *t, kr_bench_time time,
                       const kr_bench_limits *l, size_t resident, const row *rows, int count) {
    const double tokens = (double)(t->batch * t->length);
    char a[32], b[32], c[32];
    double total = 0, floor = 0;
    for (int k = 0; k < count; k++) total += rows[k].seconds, floor += rows[k].floor;
    printf("%s, %s, batch %lld x %lld tokens, %d thread%s, %s, OpenBLAS %s\n", s->model, mode_names[s->mode],
           (long long)t->batch, (long long)t->length, s->threads, s->threads == 1 ? "" : "s",
           kr_isa_name(kr_isa_best()), kr_blas_prepare());
    if (kr_blas_warning()) printf("%s\n", kr_blas_warning());
    printf("%.0f tokens/s; a run takes %.3f ms (%.3f to %.3f), %.1f GFLOP/s: %.1f %% of this machine's multiply-add "
           "peak\n",
           tokens / time.median, time.median * 1e3, time.p10 * 1e3, time.p90 * 1e3, t->stats.flops / time.median / 1e9,
           100 * t->stats.flops / time.median / l->flops[kr_isa_best()]);
    printf("memory: %s planned, %s resident at most; activations %s\n", kr_bytes_text((double)t->planned, a),
           kr_bytes_text((double)resident, b), kr_bytes_text((double)t->stats.peak, c));
    printf("\n%-24s %6s %10s %7s %9s %9s %10s %9s\n", "op", "calls", "ms a run", "share", "GFLOP/s", "GB/s",
           "floor, ms", "of roof");
    for (int k = 0; k < count; k++) {
        const row *r = &rows[k];
        const double seconds = r->seconds > 0 ? r->seconds : 1e-12;
        printf("%-24s %6d %10.4f %6.1f%% %9.2f %9.2f %10.4f %8.1f%%\n", r->op, r->calls, r->seconds * 1e3,
               100 * r->seconds / total, r->flops / seconds / 1e9, r->bytes / seconds / 1e9, r->floor * 1e3,
               100 * share(r->floor, r->seconds));
    }
    printf("%-24s %6d %10.4f %7s %9s %9s %10.4f %8.1f%%\n", "all", kr_plan_steps(t->plan), total * 1e3, "", "", "",
           floor * 1e3, 100 * share(floor, total));
}

/// The rows go to the record; settings and totals, under names of their own, to `totals`.
static void record_rows(const kr_bench_settings *s, const kr_bench_trial *t, kr_bench_time time,
                        const kr_bench_limits *l, size_t resident, const row *rows, int count, json_object *record,
                        json_object *totals) {
    char name[400], of[500];
    double floor = 0;
    for (int k = 0; k < count; k++) floor += rows[k].floor;
    kr_bench_record_text(totals, "model", s->model);
    kr_bench_record_text(totals, "mode", mode_names[s->mode]);
    json_object_object_add(totals, "batch_size", json_object_new_int64(t->batch));
    json_object_object_add(totals, "seq_len", json_object_new_int64(t->length));
    json_object_object_add(totals, "params", json_object_new_int64(t->stats.param_elements));
    kr_bench_record_real(totals, "seconds", time.median);
    kr_bench_record_real(totals, "p10", time.p10);
    kr_bench_record_real(totals, "p90", time.p90);
    kr_bench_record_real(totals, "tokens_per_second", (double)(t->batch * t->length) / time.median);
    kr_bench_record_real(totals, "flops_per_second", t->stats.flops / time.median);
    kr_bench_record_real(totals, "peak_flops", l->flops[kr_isa_best()]);
    kr_bench_record_real(totals, "floor_seconds", floor);
    json_object_object_add(totals, "memory_planned", json_object_new_int64((int64_t)t->planned));
    json_object_object_add(totals, "memory_resident", json_object_new_int64((int64_t)resident));
    json_object_object_add(totals, "memory_activations", json_object_new_int64((int64_t)t->stats.peak));
    snprintf(name, sizeof name, "%.300s %s %lldx%lld", s->model, mode_names[s->mode], (long long)t->batch,
             (long long)t->length);
    kr_bench_record_row(record, name, "s", time);
    for (int k = 0; k < count; k++) {
        snprintf(of, sizeof of, "%s: %s", name, rows[k].op);
        json_object *row = kr_bench_record_row(record, of, "s", rows[k].time);
        kr_bench_record_text(row, "op", rows[k].op);
        json_object_object_add(row, "calls", json_object_new_int(rows[k].calls));
        kr_bench_record_real(row, "flops", rows[k].flops);
        kr_bench_record_real(row, "bytes", rows[k].bytes);
        kr_bench_record_real(row, "floor_seconds", rows[k].floor);
        kr_bench_record_real(row, "share_of_roof", share(rows[k].floor, rows[k].seconds));
    }
}

static kr_status run(const kr_bench_settings *s, kr_bench_trial *t, json_object *record, json_object *totals) {
    KR_TRY(kr_bench_trial_open(s, t));
    if (s->dump) KR_TRY(kr_bench_trial_dump(t, s->dump));
    KR_TRY(kr_bench_trial_run(t, 2, s->repeat, 0));
    const kr_bench_time time = kr_bench_percentiles(t->seconds, (int)s->repeat);
    const size_t resident = kr_memory_highest(); // before the limits are measured in memory of their own
    kr_bench_limits limits;
    kr_bench_measure(s->threads, 0.03, &limits);
    row *rows = calloc((size_t)kr_plan_steps(t->plan) + 1, sizeof *rows);
    int *row_of = calloc((size_t)kr_plan_steps(t->plan) + 1, sizeof *row_of);
    kr_status status = KR_OK;
    if (!rows || !row_of) status = kr_status_record(KR_NO_MEMORY, __FILE__, __LINE__, "no memory for the profile");
    if (!status) {
        const int count = group(t->plan, &limits, rows, row_of);
        status = profile(s, t, rows, count, row_of);
        if (!status) record_rows(s, t, time, &limits, resident, rows, count, record, totals);
        if (!status && !s->json) print_text(s, t, time, &limits, resident, rows, count);
    }
    free(rows);
    free(row_of);
    return status;
}

/// Of several models each has its totals in a list "models"; those of a single one are the record's own.
static kr_status one(const kr_bench_settings *s, bool alone, json_object *record) {
    json_object *list, *totals = record;
    if (!alone) {
        if (!json_object_object_get_ex(record, "models", &list))
            json_object_object_add(record, "models", list = json_object_new_array());
        json_object_array_add(list, totals = json_object_new_object());
    }
    kr_bench_trial t = {0};
    const kr_status status = run(s, &t, record, totals);
    kr_bench_trial_close(&t);
    return status;
}

kr_status kr_bench_model(const kr_bench_settings *settings, const kr_text_list *names) {
    kr_bench_settings s = *settings;
    json_object *before;
    KR_FAIL_IF(s.dump && names->count > 1, KR_BAD_ARGUMENT, "--dump writes one model: give one name");
    KR_TRY(kr_bench_compare_read(s.compare, "model", &before));
    json_object *record = kr_bench_record(&s, "model");
    kr_status status = KR_OK;
    for (int k = 0; k < names->count && record && !status; k++) {
        if (k && !s.json) printf("\n");
        s.model = names->at[k];
        status = one(&s, names->count == 1, record);
    }
    if (status) {
        json_object_put(record);
        json_object_put(before);
        return status;
    }
    return kr_bench_record_close(&s, record, before);
}
