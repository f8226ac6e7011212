// krait bench machine: the limits of this machine with one thread and with all, matrix products as OpenBLAS does them
// here, and exponentials by our own kernel. Each figure is measured in several rounds; its limit is the best of them.
#include "tools/bench/bench.h"
#include "tools/cli/device.h"

#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>

enum {
    ROUNDS = 7,
    PRODUCT = 512
}; // products large enough for OpenBLAS to be at its best, short enough to be left in peace

/// Exponentials per second of one thread, by the elementwise kernel, over values that stay in L1.
static double measure_exp(kr_isa isa, double seconds) {
    const kr_op *op = kr_op_find("exp");
    const kr_impl *impl = op ? kr_op_impl(op, &kr_target_cpu) : NULL;
    if (!impl || impl->stages != 1) return 0;
    kr_kernel *kernel = kr_stage_kernel(impl->kernels, isa);
    static float x[2048], y[2048];
    for (int k = 0; k < 2048; k++) x[k] = (float)k / 1024 - 1;
    const kr_arg in = {x, KR_F32, KR_SHAPE(2048), {1}}, out = {y, KR_F32, KR_SHAPE(2048), {1}};
    const kr_attrs attrs = {0};
    const kr_call call = {&in, &out, 1, 1, NULL, &attrs};
    kernel(&call, 0, 1);
    double best = 0, now = kr_seconds();
    const double start = now;
    while (now - start < seconds) {
        const double before = now;
        for (int k = 0; k < 64; k++) kernel(&call, 0, 1);
        now = kr_seconds();
        if (64 * 2048 / (now - before) > best) best = 64 * 2048 / (now - before);
    }
    return best;
}

/// FLOP/s of square f32 products through plan and session: the best of each round.
static kr_status measure_products(const char *device_name, int threads, int64_t n, double seconds,
                                  double best[ROUNDS]) {
    char shape[64];
    snprintf(shape, sizeof shape, "%lldx%lld", (long long)n, (long long)n);
    const kr_text_list words = {5, {"matmul", shape, shape, "_", "_"}};
    kr_graph *g;
    KR_TRY(kr_bench_sample("matmul", NULL, &words, NULL, &g));
    kr_plan *plan = NULL;
    kr_device *device = NULL;
    kr_session *session = NULL;
    kr_binding bindings[8] = {{0}};
    int count = 0;
    const kr_target *target = NULL;
    kr_status status = kr_tool_target(device_name, &target);
    if (!status) status = kr_compile(g, &(kr_compile_options){.goal = KR_GOAL_FORWARD, .target = target}, &plan, NULL);
    kr_graph_free(g);
    if (!status) status = kr_tool_device(device_name, &device);
    if (!status) status = kr_session_open(device, threads, &session);
    if (!status) status = kr_session_add(session, plan);
    if (!status) status = kr_bench_fill("matmul", session, plan, bindings, 8, &count);
    for (int round = 0; !status && round < ROUNDS; round++) {
        const double start = kr_seconds();
        best[round] = 0;
        for (int k = 0; !status && (k < 4 || kr_seconds() - start < seconds); k++) {
            const double before = kr_seconds();
            status = kr_plan_run(session, plan, bindings, count, 0);
            const double rate = 2.0 * (double)n * (double)n * (double)n / (kr_seconds() - before);
            if (rate > best[round]) best[round] = rate;
        }
    }
    for (int k = 0; k < count; k++) free(bindings[k].data);
    kr_session_close(session);
    kr_plan_free(plan);
    if (device) kr_device_close(device);
    return status;
}

/// Prints a figure and records it. Gives nothing for what the machine does not have (zero).
static void tell(const kr_bench_settings *s, json_object *record, const char *what, int threads, const char *unit,
                 double values[ROUNDS]) {
    char name[120];
    const kr_bench_time time = kr_bench_percentiles(values, ROUNDS); // sorts: the best is the last
    const double best = values[ROUNDS - 1];
    if (!(best > 0)) return;
    snprintf(name, sizeof name, "%s, %d thread%s", what, threads, threads == 1 ? "" : "s");
    json_object *row = kr_bench_record_row(record, name, unit, time);
    kr_bench_record_real(row, "best", best);
    json_object_object_add(row, "threads", json_object_new_int(threads));
    if (!s->json)
        printf("%-46s %10.1f G%-7s rounds: %.1f (%.1f to %.1f)\n", name, best / 1e9, unit, time.median / 1e9,
               time.p10 / 1e9, time.p90 / 1e9);
}

static kr_status measure(const kr_bench_settings *s, json_object *record, int threads) {
    const double seconds = 0.03;
    kr_bench_limits limits[ROUNDS];
    double values[ROUNDS];
    char what[80];
    for (int k = 0; k < ROUNDS; k++) kr_bench_measure(threads, seconds, &limits[k]);
#define TELL(unit, figure)                                          \
    do {                                                            \
        for (int k = 0; k < ROUNDS; k++) values[k] = limits[k].figure; \
        tell(s, record, what, threads, unit, values);               \
    } while (0)
    for (kr_isa isa = KR_ISA_BASE; isa < KR_ISA_COUNT; isa++) {
        snprintf(what, sizeof what, "f32 multiply-adds, %s", kr_isa_name(isa));
        TELL("FLOP/s", flops[isa]);
    }
    snprintf(what, sizeof what, "bf16 products, vdpbf16ps");
    TELL("FLOP/s", bf16);
    if (!(limits[0].bf16 > 0) && !s->json)
        printf("bf16 products in vectors: none, this CPU or level lacks AVX-512 BF16\n");
    snprintf(what, sizeof what, "bf16 products, AMX tiles");
    TELL("FLOP/s", amx);
    if (!(limits[0].amx > 0) && !s->json) printf("bf16 products in tiles: none, this CPU, level or system lacks AMX\n");
    for (int stream = 0; stream < KR_BENCH_STREAMS; stream++)
        for (int level = 0; level < KR_BENCH_LEVELS; level++) {
            snprintf(what, sizeof what, "%s %s", kr_bench_stream_names[stream], kr_bench_level_names[level]);
            TELL("B/s", bandwidth[stream][level]);
        }
#undef TELL
    KR_TRY(measure_products(s->device, threads, PRODUCT, seconds, values));
    snprintf(what, sizeof what, "products %d x %d x %d, f32", PRODUCT, PRODUCT, PRODUCT);
    tell(s, record, what, threads, "FLOP/s", values);
    for (kr_isa isa = KR_ISA_BASE; isa <= kr_isa_best() && threads == 1; isa++) {
        for (int k = 0; k < ROUNDS; k++) values[k] = measure_exp(isa, seconds);
        snprintf(what, sizeof what, "exp, %s", kr_isa_name(isa));
        tell(s, record, what, threads, "exp/s", values);
    }
    return KR_OK;
}

kr_status kr_bench_machine(const kr_bench_settings *s) {
    json_object *before;
    KR_TRY(kr_bench_compare_read(s->compare, "machine", &before));
    json_object *record = kr_bench_record(s, "machine");
    if (!s->json) {
        printf("OpenBLAS core %s; %d processors; best kernels %s\n", kr_blas_prepare(), kr_cpu_count(),
               kr_isa_name(kr_isa_best()));
        if (kr_blas_warning()) printf("%s\n", kr_blas_warning());
    }
    kr_status status = KR_OK;
    if (record) {
        status = measure(s, record, 1);
        if (!status && s->threads > 1) status = measure(s, record, s->threads);
    }
    if (status) {
        json_object_put(record);
        json_object_put(before);
        return status;
    }
    return kr_bench_record_close(s, record, before);
}
