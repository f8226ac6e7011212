// krait bench decode: one token after another, with the state carried from run to run.
//
// A single stream reads every weight once for a token and does two FLOP with it, so that memory decides: what counts
// beside tokens/s is how many bytes of weights go by in a second, held against the bandwidth of the level that they can
// sit in. With a batch the same bytes serve all its rows.
#include "tools/bench/bench.h"
#include "tools/cli/text.h"
#include "tools/train/memory.h"

#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>

/// Bytes of parameters that a run reads, and of state that it reads and writes. A table whose rows are picked
/// (embedding) is not read as a whole, unless the same weights are a factor of the head too.
static void streamed(const kr_plan *plan, double *weights, double *state) {
    *weights = *state = 0;
    for (int slot = 0; slot < kr_plan_slots(plan); slot++) {
        const kr_slot *it = kr_plan_slot(plan, slot);
        if (it->kind == KR_SLOT_CARRY) *state += 2 * (double)it->bytes;
        if (it->kind != KR_SLOT_PARAM) continue;
        bool whole = false;
        for (int k = 0; k < kr_plan_steps(plan) && !whole; k++) {
            const kr_step *step = kr_plan_step(plan, k);
            for (int i = 0; i < step->inputs; i++)
                if (step->in[i].slot == slot && strcmp(step->op, "embedding")) whole = true;
        }
        if (whole) *weights += (double)it->bytes;
    }
}

static void report(const kr_bench_settings *s, const kr_bench_trial *t, kr_bench_time time, size_t resident,
                   json_object *record) {
    double weights, state;
    char name[400], a[32], b[32], c[32], d[32];
    kr_bench_limits limits;
    kr_bench_measure(s->threads, 0.05, &limits);
    streamed(t->plan, &weights, &state);
    const kr_bench_work work = {.flops = t->stats.flops, .read = weights + state / 2, .written = state / 2,
                                .set = weights + state / 2};
    const char *roof;
    const double floor = kr_bench_floor(&limits, kr_isa_best(), &work, &roof), rate = (double)t->batch / time.median;
    const double memory = limits.bandwidth[KR_BENCH_READ][KR_BENCH_LEVELS - 1];
    snprintf(name, sizeof name, "%.300s decode, batch %lld", s->model, (long long)t->batch);
    json_object *row = kr_bench_record_row(record, name, "s", time);
    kr_bench_record_real(row, "tokens_per_second", rate);
    kr_bench_record_real(row, "weight_bytes", weights);
    kr_bench_record_real(row, "state_bytes", state);
    kr_bench_record_real(row, "weight_bytes_per_second", weights / time.median);
    kr_bench_record_real(row, "dram_bytes_per_second", memory);
    kr_bench_record_real(row, "share_of_dram", weights / time.median / memory);
    kr_bench_record_real(row, "floor_seconds", floor);
    kr_bench_record_real(row, "share_of_roof", floor / time.median);
    kr_bench_record_text(row, "roof", roof);
    json_object_object_add(row, "memory_planned", json_object_new_int64((int64_t)t->planned));
    json_object_object_add(row, "memory_resident", json_object_new_int64((int64_t)resident));
    if (s->json) return;
    printf("%s, %d thread%s, %s, OpenBLAS %s\n", name, s->threads, s->threads == 1 ? "" : "s",
           kr_isa_name(kr_isa_best()), kr_blas_prepare());
    if (kr_blas_warning()) printf("%s\n", kr_blas_warning());
    printf("%.4g tokens/s; a token takes %.4g ms (%.4g to %.4g)\n", rate, time.median * 1e3, time.p10 * 1e3,
           time.p90 * 1e3);
    printf("weights %s a run, state %s: %.2f GB/s of weights; memory reads at %.2f GB/s: %.1f %%\n",
           kr_bytes_text(weights, a), kr_bytes_text(state, b), weights / time.median / 1e9, memory / 1e9,
           100 * weights / time.median / memory);
    printf("at best it would take %.4g ms here (%s): %.1f %% of the roof\n", floor * 1e3, roof,
           100 * floor / time.median);
    printf("memory: %s planned, %s resident at most\n", kr_bytes_text((double)t->planned, c),
           kr_bytes_text((double)resident, d));
}

static kr_status run(const kr_bench_settings *s, kr_bench_trial *t, json_object *record) {
    KR_TRY(kr_bench_trial_open(s, t));
    KR_TRY(kr_bench_trial_run(t, 3, s->repeat, 0));
    report(s, t, kr_bench_percentiles(t->seconds, (int)s->repeat), kr_memory_highest(), record);
    return KR_OK;
}

kr_status kr_bench_decode(const kr_bench_settings *settings, const kr_text_list *names) {
    kr_bench_settings s = *settings;
    s.mode = KR_MODE_DECODE;
    if (!s.batch_size) s.batch_size = 1;
    json_object *before;
    KR_TRY(kr_bench_compare_read(s.compare, "decode", &before));
    json_object *record = kr_bench_record(&s, "decode");
    kr_status status = KR_OK;
    for (int k = 0; k < names->count && record && !status; k++) {
        if (k && !s.json) printf("\n");
        s.model = names->at[k];
        kr_bench_trial t = {0};
        status = run(&s, &t, record);
        kr_bench_trial_close(&t);
    }
    if (status) {
        json_object_put(record);
        json_object_put(before);
        return status;
    }
    return kr_bench_record_close(&s, record, before);
}
