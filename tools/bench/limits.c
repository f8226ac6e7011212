// The machine's limits, measured and not looked up: f32 multiply-adds at each instruction set level, bf16 products, and
// the bandwidth of each cache and of memory for reads, for writes, and for two reads to a write. They are what a
// kernel's speed is held against.
#include "tools/bench/bench.h"

#include <string.h>
#include <unistd.h>

#ifdef __x86_64__
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#endif

const char *const kr_bench_level_names[KR_BENCH_LEVELS] = {"L1", "L2", "L3", "DRAM"};
const char *const kr_bench_stream_names[KR_BENCH_STREAMS] = {"read", "triad", "fill"};

// Inner loops: the same source at every vector width. Twelve chains hide the latency of a multiply-add (4 cycles, two
// per cycle) with some room; what they hold is returned, so that no compiler can drop them. Reads go through four
// streams at once, as in most kernels: one alone does not keep enough of the farther levels' lines on their way.
enum { CHAINS = 12, UNROLL = 8, STREAMS = 4 };
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
    attributes __attribute__((noinline)) static float read_##name(float *p, int64_t count) {                      \
        const int64_t n = count * 4 / width / STREAMS / 2 * 2;                                                    \
        const vector_##name *v = (const vector_##name *)p;                                                        \
        vector_##name x[UNROLL];                                                                                  \
        for (int c = 0; c < UNROLL; c++) x[c] = v[c];                                                             \
        for (int64_t k = 0; k < n; k += 2)                                                                        \
            for (int c = 0; c < UNROLL; c++) x[c] += v[c / 2 * n + k + c % 2];                                    \
        for (int c = 1; c < UNROLL; c++) x[0] += x[c];                                                            \
        return x[0][0];                                                                                           \
    }                                                                                                             \
    attributes __attribute__((noinline)) static float triad_##name(float *p, int64_t count) {                     \
        const int64_t n = count * 4 / width / 3 / UNROLL * UNROLL;                                                \
        vector_##name *a = (vector_##name *)p, s;                                                                 \
        const vector_##name *b = a + n, *c = b + n;                                                               \
        for (unsigned k = 0; k < width / 4; k++) s[k] = 0.5f;                                                     \
        for (int64_t k = 0; k < n; k += UNROLL)                                                                   \
            for (int u = 0; u < UNROLL; u++) a[k + u] = b[k + u] + s * c[k + u];                                  \
        return p[0];                                                                                              \
    }                                                                                                             \
    attributes __attribute__((noinline)) static float fill_##name(float *p, int64_t count) {                      \
        vector_##name *a = (vector_##name *)p, s;                                                                 \
        for (unsigned k = 0; k < width / 4; k++) s[k] = 1e-3f;                                                    \
        for (int64_t k = 0; k + UNROLL <= count * 4 / width; k += UNROLL) {                                       \
            for (int u = 0; u < UNROLL; u++) a[k + u] = s;                                                        \
            __asm__ volatile("" ::: "memory"); /* or it would become memset */                                    \
        }                                                                                                         \
        return p[0];                                                                                              \
    }
LOOPS(base, 16, )
#ifdef __x86_64__
LOOPS(avx2, 32, __attribute__((target("avx2,fma"))))
LOOPS(avx512, 64, __attribute__((target("avx512f,fma"))))
#endif

typedef float arithmetic_loop(int64_t rounds, float scale, float add);
typedef float stream_loop(float *, int64_t count);
static const struct loops {
    arithmetic_loop *arithmetic;
    stream_loop *stream[KR_BENCH_STREAMS];
    int lanes;
} loops[KR_ISA_COUNT] = {
    [KR_ISA_BASE] = {arithmetic_base, {read_base, triad_base, fill_base}, 4},
#ifdef __x86_64__
    [KR_ISA_AVX2] = {arithmetic_avx2, {read_avx2, triad_avx2, fill_avx2}, 8},
    [KR_ISA_AVX512] = {arithmetic_avx512, {read_avx512, triad_avx512, fill_avx512}, 16},
#endif
};

// Products of bf16 pairs, summed in f32: 512-bit registers (AVX-512 BF16), and tiles of 16 rows of 64 bytes (AMX).
#ifdef __x86_64__
static bool has_bf16(void) {
    unsigned a = 0, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1);
}

/// AMX with bf16, and the system lets this process use the tiles' state (it must be asked for).
static bool has_amx(void) {
#ifdef __linux__
    enum { AMX_BF16 = 1 << 22, AMX_TILE = 1 << 24, REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    unsigned a, b, c, d = 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & AMX_BF16) && (d & AMX_TILE) &&
           syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#else
    return false;
#endif
}

__attribute__((noinline, target("avx512f,avx512bf16"))) static float bf16_loop(int64_t rounds, float scale, float add) {
    __m512 x[CHAINS];
    const __m512bh a = (__m512bh)_mm512_set1_ps(scale), b = (__m512bh)_mm512_set1_ps(add);
    for (int c = 0; c < CHAINS; c++) x[c] = _mm512_set1_ps(add);
    for (int64_t r = 0; r < rounds; r++)
        for (int c = 0; c < CHAINS; c++) x[c] = _mm512_dpbf16_ps(x[c], a, b);
    for (int c = 1; c < CHAINS; c++) x[0] = _mm512_add_ps(x[0], x[c]);
    return _mm512_cvtss_f32(x[0]);
}

/// Four tiles of sums, two of either factor: as many as the eight tiles allow.
__attribute__((noinline, target("amx-tile,amx-bf16"))) static float amx_loop(int64_t rounds, float scale, float add) {
    static const struct {
        uint8_t palette, start, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } shape = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
    float data[256];
    for (int k = 0; k < 256; k++) data[k] = scale * add;
    _tile_loadconfig(&shape);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_loadd(4, data, 64);
    _tile_loadd(5, data, 64);
    _tile_loadd(6, data, 64);
    _tile_loadd(7, data, 64);
    for (int64_t r = 0; r < rounds; r++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, data, 64);
    _tile_release();
    return data[0];
}
#endif

static volatile float sink; // what the loops give goes here

// Other programs may take the processor away at any moment, so a limit is the best of many short slices, not a mean.

/// FLOP/s of all threads together: each runs for `seconds` on its own. A round does `flops`.
static double measure_arithmetic(arithmetic_loop *loop, double flops, int threads, double seconds) {
    double total = 0;
#pragma omp parallel num_threads(threads) reduction(+ : total)
    {
        const int64_t rounds = 20000; // 0.05 to 0.5 ms
        float kept = loop(rounds, 0.5f, 1.0f);
        double best = 0, now = kr_seconds();
        const double start = now;
        while (now - start < seconds) {
            const double before = now;
            kept += loop(rounds, 0.5f, 1.0f);
            now = kr_seconds();
            const double rate = flops * (double)rounds / (now - before);
            if (rate > best) best = rate;
        }
        total += best;
        sink = kept;
    }
    return total;
}

enum { SLICE = 6 << 20 }; // a multiple of three streams in pages

/// Bytes/s of all threads, each going through `bytes` of its own again and again, a slice at a time.
static void measure_streams(const struct loops *l, int threads, size_t bytes, double seconds,
                            double rates[KR_BENCH_STREAMS]) {
    double read = 0, triad = 0, fill = 0;
#pragma omp parallel num_threads(threads) reduction(+ : read, triad, fill)
    {
        float *data = kr_host_alloc(bytes);
        double best[KR_BENCH_STREAMS] = {0};
        if (data) {
            const size_t slice = bytes < SLICE ? bytes : SLICE, slices = bytes / slice;
            const int64_t count = (int64_t)(slice / sizeof *data);
            const int times = slice < (size_t)1 << 20 ? (int)(((size_t)1 << 20) / slice) : 1;
            for (size_t k = 0; k < bytes / sizeof *data; k++)
                data[k] = 1e-3f; // untouched pages may all be one page of zeros
            float kept = 0;
            for (int stream = 0; stream < KR_BENCH_STREAMS; stream++) {
                double now = kr_seconds();
                const double start = now;
                for (size_t at = 0; now - start < seconds; at = (at + 1) % slices) {
                    const double before = now;
                    for (int k = 0; k < times; k++) kept += l->stream[stream](data + at * (size_t)count, count);
                    now = kr_seconds();
                    const double rate = (double)times * (double)slice / (now - before);
                    if (rate > best[stream]) best[stream] = rate;
                }
            }
            sink = kept;
            kr_host_free(data, bytes);
        }
        read += best[KR_BENCH_READ], triad += best[KR_BENCH_TRIAD], fill += best[KR_BENCH_FILL];
    }
    rates[KR_BENCH_READ] = read, rates[KR_BENCH_TRIAD] = triad, rates[KR_BENCH_FILL] = fill;
}

static size_t cache_bytes(int name, size_t otherwise) {
    const long bytes = sysconf(name);
    return bytes > 0 ? (size_t)bytes : otherwise;
}

void kr_bench_measure(int threads, double seconds, kr_bench_limits *out) {
    *out = (kr_bench_limits){.threads = threads};
    const kr_isa best = kr_isa_best(), widest = loops[best].lanes ? best : KR_ISA_BASE;
    for (kr_isa isa = KR_ISA_BASE; isa <= best; isa++)
        if (loops[isa].lanes)
            out->flops[isa] =
                measure_arithmetic(loops[isa].arithmetic, 2.0 * CHAINS * loops[isa].lanes, threads, seconds);
#ifdef __x86_64__
    if (best == KR_ISA_AVX512 && has_bf16())
        out->bf16 = measure_arithmetic(bf16_loop, 4.0 * CHAINS * 16, threads, seconds);
    if (best == KR_ISA_AVX512 && has_amx())
        out->amx = measure_arithmetic(amx_loop, 4 * 2.0 * 16 * 16 * 32, threads, seconds);
#endif
    const size_t l1 = cache_bytes(_SC_LEVEL1_DCACHE_SIZE, 32 << 10), l2 = cache_bytes(_SC_LEVEL2_CACHE_SIZE, 1 << 20);
    const size_t l3 = cache_bytes(_SC_LEVEL3_CACHE_SIZE, 32 << 20), shared = l3 / (size_t)threads;
    out->level_bytes[0] = l1;
    out->level_bytes[1] = l2;
    out->level_bytes[2] = shared > l2 ? shared : l2;
    out->level_bytes[3] = SIZE_MAX;
    // Half of a level, so that nothing else pushes it out; for memory, more than the last cache holds.
    size_t memory = 4 * l3;
    if (memory < (size_t)64 << 20) memory = (size_t)64 << 20;
    if (memory > (size_t)128 << 20) memory = (size_t)128 << 20;
    const size_t l3_part = out->level_bytes[2] / 2 < 8 * l2 ? out->level_bytes[2] / 2 : 8 * l2;
    const size_t bytes[KR_BENCH_LEVELS] = {l1 / 2, l2 / 2, l3_part, memory / (size_t)threads};
    for (int level = 0; level < KR_BENCH_LEVELS; level++) {
        double rates[KR_BENCH_STREAMS];
        measure_streams(&loops[widest], threads, bytes[level] & ~(size_t)4095, seconds, rates);
        for (int k = 0; k < KR_BENCH_STREAMS; k++) out->bandwidth[k][level] = rates[k];
    }
}
