/// The settings of a training run.
#ifndef KRAIT_TOOLS_CONFIG_SETTINGS_H
#define KRAIT_TOOLS_CONFIG_SETTINGS_H

#include "runtime/runtime.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum kr_schedule_kind { KR_SCHEDULE_COSINE = 0, KR_SCHEDULE_WSD, KR_SCHEDULE_CONSTANT } kr_schedule_kind;

/// What a run is told: `krait pretrain --help` explains each, under the same name. One table gives names and ranges for
/// the command line, krait.yaml and state.json (kr_train_options, tools/config/settings.c); `-` and `_` are the same.
typedef struct kr_train_settings {
    const char *graph;                       ///< a graph in text form to train instead of a model; null: a model
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
    int64_t threads;                         ///< 0: as the host says (kr_train_host, tools/train/train.h)
    int64_t memory;                          ///< bytes that the process may have resident; 0: as many as it needs
    bool carry_state, resume, dry_run, memory_report;
} kr_train_settings;
kr_train_settings kr_train_defaults(void);
/// What ranges of single values cannot say: a minimum above the maximum, a final fall longer than the run.
kr_status kr_train_check(const kr_train_settings *);

#ifdef __cplusplus
}
#endif

#endif
