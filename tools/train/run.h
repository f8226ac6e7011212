/// Run directories: numbered checkpoints and the links best and latest.
#ifndef KRAIT_TOOLS_TRAIN_RUN_H
#define KRAIT_TOOLS_TRAIN_RUN_H

#include "runtime/runtime.h"

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

#endif
