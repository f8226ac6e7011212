/// state.json: where a run is, and what it was told.
#ifndef KRAIT_TOOLS_TRAIN_STATE_H
#define KRAIT_TOOLS_TRAIN_STATE_H

#include "models/models.h"
#include "tools/config/settings.h"

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

#endif
