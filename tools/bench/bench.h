/// Measuring: the machine's limits, single ops against them, whole models, and one run against an earlier one.
#ifndef KRAIT_TOOLS_BENCH_H
#define KRAIT_TOOLS_BENCH_H

#include "compiler/compiler.h"
#include "models/models.h"
#include "tools/cli/options.h"
#include "tools/config/settings.h"

struct json_object; // json-c

typedef struct kr_bench_settings {
    const char *model, *config, *attributes; ///< model: the one that is measured now
    const char *device;                      ///< null: "cpu"
    const char *sample;                      ///< of `bench op`: which of an op's samples; null: the default
    const char *compare;                     ///< JSON of an earlier run; null: none
    const char *dump; ///< of `bench model`: where to write weights, batch and loss; null: nowhere
    int threads;                             ///< 0: all
    int isa;                                 ///< index into "auto|base|avx2|avx512"
    int mode;                                ///< kr_mode
    int precision;                           ///< kr_precision
    int64_t batch_size, seq_len;
    int64_t repeat;                          ///< measurements
    int64_t memory;                          ///< budget of the arenas; 0: none
    bool json;
    kr_text_list blocks;                     ///< shared objects to load before
} kr_bench_settings;

/// Percentiles of repeated measurements. Medians are what is reported; p10 and p90 show the noise.
typedef struct kr_bench_time {
    double median, p10, p90;
} kr_bench_time;
/// Sorts `values`. count is at least 1.
kr_bench_time kr_bench_percentiles(double *values, int count);

// The machine (tools/bench/limits.c) ----------------------------------------------------------------------------

enum { KR_BENCH_LEVELS = 4 }; ///< L1, L2, L3, DRAM
extern const char *const kr_bench_level_names[KR_BENCH_LEVELS];
typedef enum kr_bench_stream {
    KR_BENCH_READ = 0, ///< streams that are read
    KR_BENCH_TRIAD,    ///< a = b + s c: two streams read, one written (McCalpin 1995); all three are counted
    KR_BENCH_FILL,     ///< one stream written
    KR_BENCH_STREAMS
} kr_bench_stream;
extern const char *const kr_bench_stream_names[KR_BENCH_STREAMS];

/// What `threads` threads of this machine can do, measured.
typedef struct kr_bench_limits {
    int threads;
    double flops[KR_ISA_COUNT];          ///< f32 multiply-adds, FLOP/s; 0 where the level cannot run
    double bf16;                         ///< bf16 products summed in f32 by vdpbf16ps, FLOP/s; 0: the CPU has none
    double amx;                          ///< the same in tiles of AMX, by tdpbf16ps; 0: the CPU or system has none
    double bandwidth[KR_BENCH_STREAMS][KR_BENCH_LEVELS]; ///< bytes/s, all threads together
    size_t level_bytes[KR_BENCH_LEVELS]; ///< of one thread's share of the level; SIZE_MAX for DRAM
} kr_bench_limits;
/// Takes about `seconds` for each figure.
void kr_bench_measure(int threads, double seconds, kr_bench_limits *out);

// The roof (tools/bench/floor.c) --------------------------------------------------------------------------------

/// What has to be done, whoever does it.
typedef struct kr_bench_work {
    double flops;         ///< by the op's cost rule; a multiply-add is two
    double lane_ops;      ///< least number of f32 vector instructions times their lanes, where known; otherwise 0
    double read, written; ///< bytes of traffic
    double set;           ///< bytes of different memory that are touched: decides the level that it can sit in
    double tile_products; ///< products in bf16 tiles that one product of it takes: 6 in f32 (ops/cpu/tile_split.h), 1
                          ///< where operands are rounded; 0: not a matrix product
} kr_bench_work;
/// Of one step of a plan.
kr_bench_work kr_bench_step_work(const kr_step *);
/// The least seconds in which this machine could do it: the longest of arithmetic, instructions and traffic (the
/// roofline of Williams et al. 2009). Traffic goes at the speed that was measured for this mixture of reads and writes
/// in the nearest level that holds the data; data of about the size of a cache is partly served by the next one. Matrix
/// products go at the speed of multiply-adds or of bf16 tiles (AMX), whichever is the faster way. `of` (may be null)
/// gets which limit it is: "arithmetic", "instructions", "L1", "L2", "L3" or "DRAM".
double kr_bench_floor(const kr_bench_limits *, kr_isa, const kr_bench_work *, const char **of);

// Records and comparison (tools/bench/record.c, tools/bench/compare.c) --------------------------------------------

/// A JSON object that says what was measured, and on what: {"krait_bench": 1, "command", "cpu", "cpus", "isa",
/// "threads", "blas_core", "blas_warning", "repeat", "rows": []}. Null when memory ends.
struct json_object *kr_bench_record(const kr_bench_settings *, const char *command);
/// Appends {"name", "unit", "median", "p10", "p90"} to the record's rows and gives that row, so that more fields can be
/// added. unit "s": less is better; any other: more is better. Rows are known by their names across runs.
struct json_object *kr_bench_record_row(struct json_object *record, const char *name, const char *unit, kr_bench_time);
void kr_bench_record_real(struct json_object *to, const char *key, double);
void kr_bench_record_text(struct json_object *to, const char *key, const char *);
/// Prints the record when --json is given; compares with --compare's file (read before anything was measured). Frees
/// both. fails KR_NO_MEMORY where a record is null.
kr_status kr_bench_record_close(const kr_bench_settings *, struct json_object *record, struct json_object *before);

/// Reads the JSON that an earlier `krait bench COMMAND --json` wrote. A null path gives null.
/// fails KR_IO; KR_BAD_FILE "FILE: ..." where it is no JSON, no record of krait bench, or of another command
kr_status kr_bench_compare_read(const char *path, const char *command, struct json_object **out);
typedef enum kr_bench_verdict { KR_BENCH_WITHIN = 0, KR_BENCH_FASTER, KR_BENCH_SLOWER } kr_bench_verdict;
extern const char *const kr_bench_verdict_names[];
/// A difference counts when each median lies outside of the other run's range from p10 to p90.
kr_bench_verdict kr_bench_judge(kr_bench_time before, kr_bench_time now, bool less_is_better);
/// A line for every row of `now`: before, now, ratio of speeds, verdict; and what else differs between the two runs
/// (machine, threads, core type of OpenBLAS). With to_record they become "comparison" in `now`, else lines on `to`.
kr_status kr_bench_compare(struct json_object *before, struct json_object *now, bool to_record, FILE *to);

// Commands ------------------------------------------------------------------------------------------------------

kr_status kr_bench_machine(const kr_bench_settings *);
/// words: the op's name ("all" for every op that has a kernel) and the shapes of its inputs, "8x256x160", "i32:8x256",
/// "_".
kr_status kr_bench_op(const kr_bench_settings *, const kr_text_list *words);
/// One model after the other. With --json the totals of a single one stand in the record itself, those of several in a
/// list "models".
kr_status kr_bench_model(const kr_bench_settings *, const kr_text_list *names);
kr_status kr_bench_decode(const kr_bench_settings *, const kr_text_list *names);

/// A graph of one op over parameters (f32) and inputs i0, i1, ... by one of the op's samples (null: the default), or by
/// words as above.
kr_status kr_bench_sample(const char *op, const char *which, const kr_text_list *words, const char *attributes,
                          kr_graph **out);
/// Random numbers, in the range that the op's sample wants, for every parameter of the plan, and in buffers for every
/// input of it; free() each.
kr_status kr_bench_fill(const char *op, kr_session *, const kr_plan *, kr_binding *bindings, int room, int *count);
/// Scans only: tokens x channels x states of a step, the unit that their speed is told in; 0 for other ops.
double kr_bench_states(const kr_step *);

/// A model's plan in a session of its own, ready to run (tools/bench/model.c).
typedef struct kr_bench_trial {
    kr_train_settings train;
    kr_model_config model;
    kr_plan *plan;
    kr_plan_stats stats;
    kr_device *device;
    kr_session *session;
    int64_t batch, length;
    int32_t *ids;
    float learning_rate;
    kr_binding bindings[3];
    int binding_count;
    double *seconds; ///< of each run: settings->repeat of them
    size_t planned;  ///< resident memory expected, bytes
} kr_bench_trial;
/// Builds, compiles, initialises. The trial has to be closed, also after a failure.
kr_status kr_bench_trial_open(const kr_bench_settings *, kr_bench_trial *);
/// Runs `warm` times unmeasured, then `count` times into trial->seconds. flags: kr_plan_run's.
kr_status kr_bench_trial_run(kr_bench_trial *, int64_t warm, int64_t count, unsigned flags);
void kr_bench_trial_close(kr_bench_trial *);
/// Writes a safetensors file with the parameters as they are, "batch.tokens" and "batch.targets" i32 [B, L], and "loss"
/// f32 [1], that of the first run (tools/bench/dump.c).
/// fails KR_BAD_ARGUMENT: the mode has no loss; KR_IO, KR_NO_MEMORY
kr_status kr_bench_trial_dump(kr_bench_trial *, const char *path);

#endif
