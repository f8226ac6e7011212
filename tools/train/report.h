/// report.md and loss.svg of a run.
#ifndef KRAIT_TOOLS_TRAIN_REPORT_H
#define KRAIT_TOOLS_TRAIN_REPORT_H

#include "compiler/compiler.h"
#include "tools/train/memory.h"
#include "tools/train/state.h"

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

#endif
