/// Training a language model on a text: what `krait pretrain` does, for any program.
#ifndef KRAIT_TOOLS_TRAIN_TRAIN_H
#define KRAIT_TOOLS_TRAIN_TRAIN_H

#include "models/models.h"
#include "tools/config/settings.h"

#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

/// Where a run takes place, and who is told of it.
typedef struct kr_train_host {
    const char *device;       ///< null: "cpu"
    int threads;              ///< where the settings name none; 0: as many as the process may use
    const char *model_source; ///< where the model was found ("krait.yaml"), for the report; null: not said
    FILE *report;             ///< gets what is trained, what it needs and how it ended; null: nobody
    FILE *progress;           ///< gets the progress of the steps; null: nobody
    void *own;                ///< given to the two functions
    /// Called before the first step (running is true) and after the last (false); null: nobody wants to know.
    void (*steps)(void *own, bool running);
    /// Asked after every step; true: save, and leave as with stop_after. Null: never.
    bool (*stop)(void *own);
} kr_train_host;

/// Trains the model, or settings->graph (then model is null), as the settings say; writes checkpoints (best, latest),
/// metrics.jsonl, TensorBoard events, report.md and loss.svg into the run's directory. The library never ends the
/// process, changes no signal handlers, and writes to no stream but the host's.
/// fails KR_BAD_ARGUMENT: settings that cannot be; KR_NOT_FINITE: the loss or a gradient is not finite (the message
/// says from where, and what was saved); KR_IO, KR_BAD_FILE, KR_NO_MEMORY
kr_status kr_train(const kr_train_settings *, const kr_model_config *, const kr_train_host *);

#ifdef __cplusplus
}
#endif

#endif
