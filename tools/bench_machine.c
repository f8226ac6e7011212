// The machine's limits, measured and not looked up: f32 multiply-adds at each instruction set level, read bandwidth of
// each cache and of memory, exp, and matrix products as OpenBLAS does them here. They are what a kernel's speed is
// held against.
#include "tools/bench.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const char *const kr_bench_level_names[KR_BENCH_LEVELS] = {"L1", "L2", "L3", "DRAM"};

// Inner loops: the same source at every vector width. Twelve chains hide the latency of a multiply-add (4 cycles, two
// per cycle) with some room; what they hold is returned, so that no compiler can drop them.
enum { CHAINS = 12 };
#define LOOPS(name, width, attributes)                                                                            \
    typedef float vector_##name __attribute__((vector_size(width), may_alias));                                   \
    attributes __attribute__((noinline)) static float arithmetic_##name(int64_t rounds, float scale, float add) { \
        vector_##name x[CHAINS], a, b;                                                                            \
        for (unsigned k = 0; k < width / 4; k++) a[k] = scale, b[k] = add;                                        \
        for (int c = 0; c < CHAINS; c++) x[c] = b;                                                                \
        for (int64_t r = 0; r < rounds; r++)                                                                      \
            for (int c = 0; c < CHAINS; c++) x[c] = x[c] * a + b;                                                 \
        for (int c = 1; c < CHAINS; c++) x[0] += x[c];                                                            \
        return x[0][0];                                                                                           \
    }                                                                                                             \
    attributes __attribute__((noinline)) static float reading_##name(const float *p, int64_t count) {             \
        const vector_##name *v = (const vector_##name *)p;                                                        \
        vector_##name x[8];                                                                                       \
        for (int c = 0; c < 8; c++) x[c] = v[c];                                                                  \
        for (int64_t k = 8; k + 8 <= count * 4 / width; k += 8)                                                   \
            for (int c = 0; c < 8; c++) x[c] += v[k + c];                                                         \
        for (int c = 1; c < 8; c++) x[0] += x[c];                                                                 \
        return x[0][0];                                                                                           \
    }
LOOPS(base, 16, )
#ifdef __x86_64__
LOOPS(avx2, 32, __attribute__((target("avx2,fma"))))
LOOPS(avx512, 64, __attribute__((target("avx512f,fma"))))
#endif

typedef float arithmetic_loop(int64_t rounds, float scale, float add);
typedef float reading_loop(const float *, int64_t count);
static const struct loops {
    arithmetic_loop *arithmetic;
    reading_loop *reading;
    int lanes;
} loops[KR_ISA_COUNT] = {
    [KR_ISA_BASE] = {arithmetic_base, reading_base, 4},
#ifdef __x86_64__
    [KR_ISA_AVX2] = {arithmetic_avx2, reading_avx2, 8},
    [KR_ISA_AVX512] = {arithmetic_avx512, reading_avx512, 16},
#endif
};

static volatile float sink; // what the loops give goes here

// Other programs may take the processor away at any moment, so a limit is the best of many short slices, not a mean.

/// FLOP/s of all threads: each runs for `seconds` on its own.
static double measure_arithmetic(const struct loops *l, int threads, double seconds) {
    double total = 0;
#pragma omp parallel num_threads(threads) reduction(+ : total)
    {
        const int64_t rounds = 50000; // some 0.1 to 1 ms
        float kept = l->arithmetic(rounds, 0.5f, 1.0f);
        double best = 0, now = kr_seconds();
        const double start = now;
        while (now - start < seconds) {
            const double before = now;
            kept += l->arithmetic(rounds, 0.5f, 1.0f);
            now = kr_seconds();
            const double rate = 2.0 * CHAINS * l->lanes * (double)rounds / (now - before);
            if (rate > best) best = rate;
        }
        total += best;
        sink = kept;
    }
    return total;
}

/// Bytes/s of all threads, each reading `bytes` of its own again and again, a slice of at most 4 MiB at a time.
static double measure_reading(const struct loops *l, int threads, size_t bytes, double seconds) {
    double total = 0;
#pragma omp parallel num_threads(threads) reduction(+ : total)
    {
        float *data = kr_host_alloc(bytes);
        if (data) {
            const size_t slice = bytes < (size_t)4 << 20 ? bytes : (size_t)4 << 20, slices = bytes / slice;
            const int64_t count = (int64_t)(slice / sizeof *data);
            const int times = slice < (size_t)1 << 20 ? (int)(((size_t)4 << 20) / slice) : 1;
            for (size_t k = 0; k < bytes / sizeof *data; k++)
                data[k] = 1e-3f; // untouched pages may all be one page of zeros
            float kept = l->reading(data, count);
            double best = 0, now = kr_seconds();
            const double start = now;
            for (size_t at = 0; now - start < seconds; at = (at + 1) % slices) {
                const double before = now;
                for (int k = 0; k < times; k++) kept += l->reading(data + at * (slice / sizeof *data), count);
                now = kr_seconds();
                const double rate = (double)times * (double)slice / (now - before);
                if (rate > best) best = rate;
            }
            total += best;
            sink = kept;
            kr_host_free(data, bytes);
        }
    }
    return total;
}

static size_t cache_bytes(int name, size_t otherwise) {
    const long bytes = sysconf(name);
    return bytes > 0 ? (size_t)bytes : otherwise;
}

void kr_bench_measure(int threads, double seconds, kr_bench_limits *out) {
    *out = (kr_bench_limits){.threads = threads};
    const kr_isa best = kr_isa_best();
    for (kr_isa isa = KR_ISA_BASE; isa <= best; isa++)
        if (loops[isa].arithmetic) out->flops[isa] = measure_arithmetic(&loops[isa], threads, seconds);
    const size_t l1 = cache_bytes(_SC_LEVEL1_DCACHE_SIZE, 32 << 10), l2 = cache_bytes(_SC_LEVEL2_CACHE_SIZE, 1 << 20);
    const size_t l3 = cache_bytes(_SC_LEVEL3_CACHE_SIZE, 32 << 20), shared = l3 / (size_t)threads;
    out->level_bytes[0] = l1;
    out->level_bytes[1] = l2;
    out->level_bytes[2] = shared > l2 ? shared : l2;
    out->level_bytes[3] = SIZE_MAX;
    // Half of a level, so that nothing else pushes it out; for memory, more than the last cache holds.
    size_t memory = 4 * l3;
    if (memory < (size_t)64 << 20) memory = (size_t)64 << 20;
    if (memory > (size_t)256 << 20) memory = (size_t)256 << 20;
    const size_t l3_part = out->level_bytes[2] / 2 < 8 * l2 ? out->level_bytes[2] / 2 : 8 * l2;
    const size_t bytes[KR_BENCH_LEVELS] = {l1 / 2, l2 / 2, l3_part, memory / (size_t)threads};
    const kr_isa widest = loops[best].reading ? best : KR_ISA_BASE;
    for (int k = 0; k < KR_BENCH_LEVELS; k++)
        out->bandwidth[k] = measure_reading(&loops[widest], threads, bytes[k] & ~(size_t)4095, seconds);
}

double kr_bench_bandwidth(const kr_bench_limits *l, double bytes) {
    int k = 0;
    while (k + 1 < KR_BENCH_LEVELS && bytes > (double)l->level_bytes[k] * l->threads) k++;
    return l->bandwidth[k];
}

double kr_bench_share(const kr_bench_limits *l, kr_isa isa, double flops, double bytes, double seconds) {
    const double bandwidth = kr_bench_bandwidth(l, bytes);
    const double arithmetic = l->flops[isa] > 0 ? flops / seconds / l->flops[isa] : 0;
    const double traffic = bandwidth > 0 ? bytes / seconds / bandwidth : 0;
    return arithmetic > traffic ? arithmetic : traffic;
}

// The command -----------------------------------------------------------------------------------------------------

/// Exponentials per second of one thread, by the elementwise kernel, over values that stay in L1.
static double measure_exp(kr_isa isa, double seconds) {
    const kr_op *op = kr_op_find("exp");
    if (!op || op->stage_count != 1) return 0;
    kr_kernel *kernel = kr_stage_kernel(op->stages, isa);
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
    sink = y[7];
    return best;
}

enum { PRODUCT = 512 }; // large enough for OpenBLAS to be at its best, short enough to be left in peace

/// FLOP/s of square f32 products of that size, through plan and session.
static kr_status measure_products(int threads, int64_t n, double seconds, double *out) {
    char shape[64];
    snprintf(shape, sizeof shape, "%lldx%lld", (long long)n, (long long)n);
    const kr_text_list words = {5, {"matmul", shape, shape, "_", "_"}};
    kr_graph *g;
    KR_TRY(kr_bench_sample("matmul", &words, NULL, &g));
    kr_plan *plan = NULL;
    kr_device *device = NULL;
    kr_session *session = NULL;
    kr_binding bindings[8] = {{0}};
    int count = 0;
    double best = 0;
    kr_status status = kr_compile(g, &(kr_compile_options){.goal = KR_GOAL_FORWARD}, &plan, NULL);
    kr_graph_free(g);
    if (!status) status = kr_device_cpu(&device);
    if (!status) status = kr_session_open(device, threads, &session);
    if (!status) status = kr_session_add(session, plan);
    if (!status) status = kr_bench_fill("matmul", plan, bindings, 8, &count);
    const double start = kr_seconds();
    for (int k = 0; !status && (k < 8 || kr_seconds() - start < seconds); k++) {
        const double before = kr_seconds();
        status = kr_plan_run(session, plan, bindings, count, 0);
        const double rate = 2.0 * (double)n * (double)n * (double)n / (kr_seconds() - before);
        if (rate > best) best = rate;
    }
    *out = best;
    for (int k = 0; k < count; k++) free(bindings[k].data);
    kr_session_close(session);
    kr_plan_free(plan);
    if (device) kr_device_close(device);
    return status;
}

static void print_text(const kr_bench_limits *l, const double *products, const double *exps) {
    printf("%-30s %12s", "", "1 thread");
    if (l[1].threads > 1) printf(" %9d threads", l[1].threads);
    printf("\n");
    const int columns = l[1].threads > 1 ? 2 : 1;
    for (kr_isa isa = KR_ISA_BASE; isa < KR_ISA_COUNT; isa++) {
        if (!(l[0].flops[isa] > 0)) continue;
        printf("f32 multiply-adds, %-11s", kr_isa_name(isa));
        for (int k = 0; k < columns; k++) printf(" %12.1f GFLOP/s", l[k].flops[isa] / 1e9);
        printf("\n");
    }
    for (int level = 0; level < KR_BENCH_LEVELS; level++) {
        printf("reads from %-19s", kr_bench_level_names[level]);
        for (int k = 0; k < columns; k++) printf(" %12.1f GB/s   ", l[k].bandwidth[level] / 1e9);
        printf("\n");
    }
    printf("products %d x %d x %-10d", PRODUCT, PRODUCT, PRODUCT);
    for (int k = 0; k < columns; k++) printf(" %12.1f GFLOP/s", products[k] / 1e9);
    printf("\n");
    for (kr_isa isa = KR_ISA_BASE; isa < KR_ISA_COUNT; isa++)
        if (exps[isa] > 0) printf("exp, %-25s %12.2f G/s\n", kr_isa_name(isa), exps[isa] / 1e9);
}

static void print_json(const char *core, const kr_bench_limits *l, const double *products, const double *exps) {
    printf("{\"blas_core\": \"%s\", \"cpus\": %d, \"measured\": [", core, kr_cpu_count());
    for (int k = 0; k < (l[1].threads > 1 ? 2 : 1); k++) {
        printf("%s{\"threads\": %d, \"flops\": {", k ? ", " : "", l[k].threads);
        for (kr_isa isa = KR_ISA_BASE; isa < KR_ISA_COUNT; isa++)
            printf("%s\"%s\": %.6g", isa ? ", " : "", kr_isa_name(isa), l[k].flops[isa]);
        printf("}, \"read_bytes_per_second\": {");
        for (int level = 0; level < KR_BENCH_LEVELS; level++)
            printf("%s\"%s\": %.6g", level ? ", " : "", kr_bench_level_names[level], l[k].bandwidth[level]);
        printf("}, \"product_flops\": %.6g}", products[k]);
    }
    printf("], \"exp_per_second\": {");
    for (kr_isa isa = KR_ISA_BASE; isa < KR_ISA_COUNT; isa++)
        printf("%s\"%s\": %.6g", isa ? ", " : "", kr_isa_name(isa), exps[isa]);
    printf("}}\n");
}

kr_status kr_bench_machine(const kr_bench_settings *s) {
    const char *core = kr_blas_prepare(), *warning = kr_blas_warning();
    kr_bench_limits limits[2];
    double products[2] = {0}, exps[KR_ISA_COUNT] = {0};
    const double seconds = 0.2;
    const int threads[2] = {1, s->threads};
    for (int k = 0; k < 2; k++) {
        kr_bench_measure(threads[k], seconds, &limits[k]);
        KR_TRY(measure_products(threads[k], PRODUCT, seconds, &products[k]));
    }
    for (kr_isa isa = KR_ISA_BASE; isa <= kr_isa_best(); isa++) exps[isa] = measure_exp(isa, seconds);
    if (s->json) {
        print_json(core, limits, products, exps);
        return KR_OK;
    }
    printf("OpenBLAS core %s; %d processors; best kernels %s\n", core, kr_cpu_count(), kr_isa_name(kr_isa_best()));
    if (warning) printf("%s\n", warning);
    print_text(limits, products, exps);
    return KR_OK;
}
