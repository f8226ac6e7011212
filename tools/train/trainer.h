/// One training run in progress: what trainer.c sets up, loop.c works with and describe.c tells of.
#ifndef KRAIT_TOOLS_TRAINER_H
#define KRAIT_TOOLS_TRAINER_H

#include "tools/cli/progress.h"
#include "tools/train/data.h"
#include "tools/train/graph_file.h"
#include "tools/train/memory.h"
#include "tools/train/metrics.h"
#include "tools/train/run.h"
#include "tools/train/schedule.h"
#include "tools/train/state.h"
#include "tools/train/train.h"

enum { KR_TRAINER_PLANS = 3 };

typedef struct kr_trainer {
    const kr_train_settings *settings;
    const kr_train_host *host;
    const kr_model_config *model;    ///< reset_input and carry_state as the settings want them
    kr_graph_file graph;             ///< --graph: what is trained instead; text is null otherwise
    kr_schedule schedule;
    const kr_target *target;         ///< that plans are compiled for
    kr_device *device;
    kr_session *session;
    kr_plan *plan[KR_TRAINER_PLANS]; ///< for use by position: see the three below
    int plan_count;
    kr_plan *update;                 ///< last micro-batch: gradients, clipping, update
    kr_plan *accumulate;             ///< earlier micro-batches; null when there is one
    kr_plan *evaluate;               ///< forward only
    kr_plan_stats stats;             ///< of `update`
    kr_memory_need memory;
    kr_memory_curve curve;           ///< of `update`, where --memory or --memory-report wants it
    kr_data *data;                   ///< null in a dry run without text
    kr_train_state state;
    int32_t *tokens, *targets, *reset; ///< [batch_size, seq_len]; reset is null where nothing reads it
    unsigned char *carried;          ///< --carry-state: the carries before the present step
    size_t carried_bytes;
    char directory[KR_RUN_PATH];
    char machine[160];
    kr_metrics *metrics;
    kr_progress progress;
    bool interrupted;
    double eval_loss;                ///< newest; NaN: none yet
    double start, step_seconds;      ///< of this process; time spent in steps
    int64_t step_tokens;             ///< tokens of those steps
} kr_trainer;

/// Runs from state.step to the end, to --stop-after or to a signal; evaluates, logs and saves.
kr_status kr_trainer_loop(kr_trainer *);
/// Mean held-out loss.
kr_status kr_trainer_evaluate(kr_trainer *, double *loss);
/// Explains a loss or gradient that is not finite: runs the rows of this step (evaluation: the first that shows it)
/// again with every node checked. Always fails, with KR_NOT_FINITE and the name of the first bad node.
kr_status kr_trainer_explain(kr_trainer *, const char *what, double value);
/// Fills the batch with training rows from `row` on.
void kr_trainer_fill(kr_trainer *, int64_t row);
/// One micro-batch through a plan, with the rows and rate of the present step.
kr_status kr_trainer_run(kr_trainer *, kr_plan *, float *loss, float *grad_norm, unsigned flags);
/// A line of the report, printf's arguments.
__attribute__((format(printf, 2, 3))) void kr_trainer_say(const kr_trainer *, const char *format, ...);
/// What is about to be trained, and what it needs.
void kr_trainer_describe(const kr_trainer *);
/// The step in the progress line.
void kr_trainer_show_step(kr_trainer *, const kr_metric *, bool logged);
/// How the run ended; after a whole one report.md and loss.svg are written.
kr_status kr_trainer_finish(const kr_trainer *);
/// Saves a checkpoint of the present step, if everything in it is finite.
kr_status kr_trainer_save(kr_trainer *, bool best);

#endif
