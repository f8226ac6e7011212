/// Measuring: the machine's limits, single ops against them, and whole models.
#ifndef KRAIT_TOOLS_BENCH_H
#define KRAIT_TOOLS_BENCH_H

#include "compiler/compiler.h"
#include "tools/tools.h"

typedef struct kr_bench_settings {
    const char *model, *config, *attributes; ///< model: of `bench model`, from its word
    int threads;                             ///< 0: all
    int isa;                                 ///< index into "auto|base|avx2|avx512"
    int mode;                                ///< kr_mode
    int precision;                           ///< kr_precision
    int64_t batch_size, seq_len, repeat;
    bool json;
    kr_text_list blocks;                     ///< shared objects to load before
} kr_bench_settings;

/// Percentiles of repeated measurements, seconds. Medians are what is reported; p10 and p90 show the noise.
typedef struct kr_bench_time {
    double median, p10, p90;
} kr_bench_time;
/// Sorts `seconds`.
kr_bench_time kr_bench_percentiles(double *seconds, int count);

// The machine (tools/bench_machine.c) ---------------------------------------------------------------------------

enum { KR_BENCH_LEVELS = 4 }; ///< L1, L2, L3, DRAM
extern const char *const kr_bench_level_names[KR_BENCH_LEVELS];

/// What `threads` threads of this machine can do, measured.
typedef struct kr_bench_limits {
    int threads;
    double flops[KR_ISA_COUNT];          ///< f32 multiply-adds, FLOP/s; 0 where the level cannot run
    double bandwidth[KR_BENCH_LEVELS];   ///< reads, bytes/s, all threads together
    size_t level_bytes[KR_BENCH_LEVELS]; ///< of one thread's share of the level; SIZE_MAX for DRAM
} kr_bench_limits;
/// Takes about `seconds` for each figure.
void kr_bench_measure(int threads, double seconds, kr_bench_limits *out);
/// Bandwidth of the level that holds `bytes` spread over the threads.
double kr_bench_bandwidth(const kr_bench_limits *, double bytes);
/// The share of what the machine could do that `flops` of arithmetic and `bytes` of traffic in `seconds` are: the
/// larger of arithmetic and traffic (the roof that is nearer; Williams et al. 2009).
double kr_bench_share(const kr_bench_limits *, kr_isa, double flops, double bytes, double seconds);

// Commands ------------------------------------------------------------------------------------------------------

kr_status kr_bench_machine(const kr_bench_settings *);
/// words: the op's name and the shapes of its inputs, "8x256x160", "i32:8x256", "_".
kr_status kr_bench_op(const kr_bench_settings *, const kr_text_list *words);
kr_status kr_bench_model(const kr_bench_settings *);

/// A graph of one op over inputs i0, i1, ... by the op's default sample, or by words as above; and random data for it.
kr_status kr_bench_sample(const char *op, const kr_text_list *words, const char *attributes, kr_graph **out);
/// Buffers for every input of a plan, filled with random numbers in the range that its sample wants. free() each.
kr_status kr_bench_fill(const char *op, const kr_plan *, kr_binding *bindings, int room, int *count);

#endif
