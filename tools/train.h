/// Training and generation: settings, data, schedules, run directories, metrics, reports and the loop itself.
#ifndef KRAIT_TOOLS_TRAIN_H
#define KRAIT_TOOLS_TRAIN_H

#include "compiler/compiler.h"
#include "models/models.h"
#include "tools/config.h"
#include "tools/tools.h"

// ---------------------------------------------------------------------------------------------------------------
// Learning-rate schedules (tools/schedule.c), MATH 13.4

typedef enum kr_schedule_kind { KR_SCHEDULE_COSINE = 0, KR_SCHEDULE_WSD, KR_SCHEDULE_CONSTANT } kr_schedule_kind;

/// Linear warm-up over `warmup` steps, then the kind. WSD is flat and falls over the last `decay` steps.
typedef struct kr_schedule {
    kr_schedule_kind kind;
    double lr_max, lr_min;
    int64_t warmup, total;
    int64_t decay;    ///< WSD: steps of the final fall
    bool square_root; ///< WSD: fall with 1 - sqrt(p) instead of linearly
} kr_schedule;
/// Learning rate of the update that follows `step` finished ones: 0, 1, ... Pure; steps past `total` keep the last value.
double kr_schedule_lr(const kr_schedule *, int64_t step);

// ---------------------------------------------------------------------------------------------------------------
// Settings (tools/settings.c)

/// Everything that `krait pretrain` can be told. kr_train_options fills it from flags and from `pretrain:`.
typedef struct kr_train_settings {
    const char *model, *graph, *target, *config; ///< command line only; either a model or a graph
    kr_text_list blocks;                 ///< shared objects to load before
    const char *text_file, *output_dir, *document_separator;
    int64_t steps, batch_size, seq_len;
    double learning_rate, min_learning_rate; ///< minimum below 0: a tenth of the maximum
    int64_t warmup, decay_steps;             ///< decay_steps below 0: a tenth of the steps (WSD)
    int schedule;                            ///< kr_schedule_kind
    int precision;                           ///< kr_precision
    double weight_decay, beta1, beta2, epsilon, grad_clip;
    int64_t grad_accumulation;
    int64_t eval_every, eval_batches, save_every, keep, log_every;
    int64_t stop_after;                      ///< leave after this step as if interrupted; 0: never
    uint64_t seed;
    int64_t threads;                         ///< 0: the target's
    int64_t memory;                          ///< bytes that the process may have resident; 0: as many as it needs
    bool carry_state, resume, dry_run, memory_report;
} kr_train_settings;
extern const kr_option kr_train_options[];
kr_train_settings kr_train_defaults(void);
/// What ranges of single values cannot say: a warm-up longer than the run, a minimum above the maximum.
kr_status kr_train_check(const kr_train_settings *);
/// What the learning rate of each step follows from, and what is compiled into the update.
kr_schedule kr_train_schedule(const kr_train_settings *);
kr_optimizer kr_train_optimizer(const kr_train_settings *);

// ---------------------------------------------------------------------------------------------------------------
// Data (tools/data.c)

/// A text as bytes; the last tenth is held out.
typedef struct kr_data kr_data;
/// Opens any file (mapped) or a .zst file (unpacked into memory). Rows have length + 1 bytes.
/// fails KR_IO; KR_BAD_FILE: broken .zst; KR_BAD_ARGUMENT: too short for this length (says how long it must be)
kr_status kr_data_open(const char *path, int64_t length, kr_data **out);
/// The same over memory that outlives the result.
kr_status kr_data_from(const void *bytes, size_t count, int64_t length, const char *label, kr_data **out);
void kr_data_close(kr_data *);
const char *kr_data_path(const kr_data *);
int64_t kr_data_train_bytes(const kr_data *);
int64_t kr_data_held_out_bytes(const kr_data *);
/// Bytes of memory that the data may take when all of it has been read.
size_t kr_data_memory(const kr_data *);
/// Identity of the content: length, a hash of it (of the ends and 64 pieces between them when it is large), and how it
/// is split into documents.
uint64_t kr_data_fingerprint(const kr_data *);
/// From now on the text is documents: each ends with `separator`. Reads all of it. To be called once.
/// fails KR_BAD_ARGUMENT: the separator stands nowhere in the text
kr_status kr_data_split(kr_data *, const char *separator);
/// Documents, pieces after the last separator included.
int64_t kr_data_documents(const kr_data *);

enum { KR_IGNORED = -100 }; ///< a target that does not count in the loss
/// Row `row` of the run (rows are counted from its start): length + 1 bytes at a random place of the training
/// part, as tokens [length] and targets [length], the same shifted by one. Depends on (seed, row) alone.
/// reset (may be null) gets 1 where a document starts, else 0; the first token of a document is nobody's target.
void kr_data_row(const kr_data *, uint64_t seed, int64_t row, int32_t *tokens, int32_t *targets, int32_t *reset);
/// The same for training that carries its state on: row r is the next piece of stream r % streams, which runs through
/// the training part from a place of its own, round and round; reset[0] is 1 where it starts over.
void kr_data_stream(const kr_data *, uint64_t seed, int64_t streams, int64_t row, int32_t *tokens, int32_t *targets,
                    int32_t *reset);
/// Consecutive windows of `length` bytes of the held-out part, that can be predicted in full.
int64_t kr_data_windows(const kr_data *);
/// Held-out window `index`; past the last one all targets are ignored.
void kr_data_window(const kr_data *, int64_t index, int32_t *tokens, int32_t *targets, int32_t *reset);

// ---------------------------------------------------------------------------------------------------------------
// Graphs written by hand (tools/graph_file.c)

/// A graph in text form that can be trained: inputs "tokens", "targets" and perhaps "reset", i32 [B, L]; output "loss",
/// f32 and one element; to let it write also "logits" [B, L, V].
typedef struct kr_graph_file {
    const char *label;   ///< its path
    char *text;
    size_t bytes;
    int64_t batch, length;
    int64_t vocabulary;  ///< V; 0: it has no such output
    bool reset;          ///< it has that input
    bool state;          ///< it has state carries
    uint64_t fingerprint;
} kr_graph_file;
/// fails KR_IO; KR_BAD_FILE with line and column; KR_BAD_ARGUMENT: says what the graph lacks, or has too much of
kr_status kr_graph_file_open(const char *path, kr_graph_file *out);
/// Without carry_state, and for evaluation, state is zero in every run, as in the graphs of models.
kr_status kr_graph_file_build(const kr_graph_file *, bool training, bool carry_state, kr_graph **out);
void kr_graph_file_close(kr_graph_file *);

// ---------------------------------------------------------------------------------------------------------------
// Sampling (tools/sample.c)

typedef struct kr_sampling {
    double temperature; ///< 0: the largest logit
    int64_t top_k;      ///< 0: all
    double top_p;       ///< 1: all
} kr_sampling;
typedef struct kr_candidate {
    float logit;
    int32_t id;
} kr_candidate;
/// One id in [0, n) from logits [n]. Order as in the official code: top-k, temperature, top-p. The random number is
/// element `index` of the seed's stream, so text repeats from its seed. scratch has n entries. Ties: the lower id.
int32_t kr_sample(const float *logits, int32_t n, const kr_sampling *, uint64_t seed, uint64_t index,
                  kr_candidate *scratch);
/// Bytes as they come, for people: on a terminal characters are held back until they are whole, and what could
/// steer the terminal is replaced by U+FFFD; elsewhere bytes go out as they are.
typedef struct kr_byte_stream {
    FILE *to;
    bool terminal;
    uint8_t held[4];
    int count, want;
} kr_byte_stream;
void kr_stream_put(kr_byte_stream *, uint8_t byte);
void kr_stream_end(kr_byte_stream *);

// ---------------------------------------------------------------------------------------------------------------
// Metrics (tools/metrics.c, tools/events.c, tools/progress.c)

/// One logged step. `step` counts finished updates (1 is the first).
typedef struct kr_metric {
    int64_t step, tokens;
    double loss, lr, grad_norm, tokens_per_second, seconds;
    double eval_loss;  ///< NaN: not evaluated at this step
} kr_metric;
/// metrics.jsonl and a TensorBoard event file in a directory.
typedef struct kr_metrics kr_metrics;
/// Lines of metrics.jsonl for steps after `resumed` (logged by a run that was killed before it could save) are
/// dropped; what is kept stays as it was. 0: start afresh.
kr_status kr_metrics_open(const char *directory, int64_t resumed, kr_metrics **out);
kr_status kr_metrics_write(kr_metrics *, const kr_metric *);
kr_status kr_metrics_close(kr_metrics *);
/// Every line of metrics.jsonl. *out from malloc.
kr_status kr_metrics_read(const char *directory, kr_metric **out, int *count);

/// TensorBoard's event file: records of a protocol buffer, framed by lengths and CRC-32C sums.
typedef struct kr_events kr_events;
kr_status kr_events_open(const char *directory, kr_events **out);
kr_status kr_events_scalar(kr_events *, int64_t step, const char *tag, double value);
kr_status kr_events_close(kr_events *);
uint32_t kr_crc32c(const void *data, size_t bytes);

/// The progress line: rewritten in place on a terminal, a plain line per logged step elsewhere.
typedef struct kr_progress {
    FILE *to;
    bool live;          ///< rewrite in place
    bool color;
    int64_t total, first;
    double start, shown;
    bool open;          ///< an unfinished line stands on the terminal
} kr_progress;
kr_progress kr_progress_start(FILE *to, int64_t first_step, int64_t total);
/// `logged`: this step belongs to the log (always shown); other steps only refresh a live line now and then.
void kr_progress_step(kr_progress *, const kr_metric *, bool logged);
/// A line of text that stays; a live line is moved out of its way.
__attribute__((format(printf, 2, 3))) void kr_progress_note(kr_progress *, const char *format, ...);
void kr_progress_end(kr_progress *);

// ---------------------------------------------------------------------------------------------------------------
// Memory (tools/memory.c)

/// What a set of plans will hold when they share a session, known before anything is allocated.
typedef struct kr_memory_need {
    size_t slot_bytes[KR_SLOT_KIND_COUNT];
    size_t arenas;     ///< their sum
    size_t data;       ///< text in memory
    size_t process;    ///< program, libraries and graphs: resident now
    size_t threads;    ///< stacks and the buffers that OpenBLAS keeps for each thread
    size_t saving;     ///< buffers while a checkpoint is written
    size_t total;      ///< expected resident memory of the process
} kr_memory_need;
kr_memory_need kr_memory_estimate(kr_plan *const *plans, int count, int threads, size_t data);
void kr_memory_print(const kr_memory_need *, const kr_plan_stats *, FILE *);
/// The curve of memory against time, as a table with a mark at the choice; `besides`: bytes beside the arenas that
/// count too.
void kr_memory_curve_print(const kr_memory_curve *, size_t besides, FILE *);
/// The same as a JSON array of objects.
void kr_memory_curve_json(const kr_memory_curve *, size_t besides, FILE *);
/// Where nothing fits: says what would. Gives KR_BAD_ARGUMENT.
kr_status kr_memory_refuse(const kr_memory_curve *, int64_t wanted, size_t besides);
/// Resident memory of this process now, and its highest so far; 0 where the system does not say.
size_t kr_memory_resident(void);
size_t kr_memory_highest(void);
/// Memory that the machine could still give; 0 where the system does not say.
size_t kr_memory_available(void);

// ---------------------------------------------------------------------------------------------------------------
// Run directories (tools/run.c) and state.json (tools/state.c)

/// Where a run is.
typedef struct kr_train_state {
    int64_t step;        ///< finished updates
    int64_t row;         ///< rows of data used so far: the next one is kr_data_row(..., row)
    int64_t tokens;
    double best_loss;    ///< NaN: never evaluated
    int64_t best_step;
    uint64_t data_fingerprint;
    bool uncounted;      ///< read from an older version's state.json: optimiser state has no KR_OPTIMIZER_STEP there
    uint64_t graph_fingerprint; ///< of a graph written by hand, of which `model` has the name alone; 0: none
    kr_model_config model;
    kr_train_settings settings; ///< texts of a parsed state are null
} kr_train_state;
/// The text of state.json; free() it.
kr_status kr_state_json(const kr_train_state *, const char *data_path, char **out);
kr_status kr_state_parse(const char *json, size_t bytes, const char *label, kr_train_state *out);
/// Whether a run with `now` can go on from `saved`. fails KR_BAD_ARGUMENT naming the first difference of model or data.
/// Other settings that changed are told in `note` (may stay empty).
kr_status kr_state_continues(const kr_train_state *saved, const kr_train_state *now, char *note, size_t note_bytes);

enum { KR_RUN_PATH = 4096 };
/// The next free runs/<model>-<n>, or with `newest` the existing one of the largest n.
kr_status kr_run_directory(const char *model, bool newest, char path[KR_RUN_PATH]);
/// DIR/latest resolved to its checkpoint; false when there is none.
bool kr_run_latest(const char *directory, char path[KR_RUN_PATH]);
/// Accepts a checkpoint or a run directory (its best, else its latest checkpoint).
kr_status kr_run_checkpoint(const char *path, char out[KR_RUN_PATH]);
/// Saves DIR/step-NNNNNNNN (with `carries`: and the state of the streams), then lets `latest` (and `best`) name it,
/// then removes the oldest numbered checkpoints beyond `keep` (0: none is removed) that neither names.
kr_status kr_run_save(const char *directory, kr_session *, int64_t step, const char *state, bool carries,
                      bool best, int64_t keep);

/// report.md and loss.svg, from metrics.jsonl.
typedef struct kr_report {
    const char *directory;
    const kr_train_settings *settings;
    const kr_model_config *model;
    const kr_plan_stats *stats;
    const kr_memory_need *memory;
    const kr_train_state *state;
    double eval_loss, seconds, tokens_per_second;
    size_t highest;       ///< most resident memory
    const char *machine;  ///< threads, ISA, BLAS
} kr_report;
kr_status kr_report_write(const kr_report *);
/// "5 layers of mamba3", "5 layers: 3 mamba3, 1 attention, 1 gated_mlp"; gives back text.
const char *kr_layers_text(const kr_model_config *, char text[160]);

// ---------------------------------------------------------------------------------------------------------------
// The loop (tools/trainer.c)

/// Trains the model, or settings->graph (then model is null), as the settings say.
kr_status kr_train(const kr_train_settings *, const kr_model_config *, const kr_machine *, const char *config_label);

#endif
