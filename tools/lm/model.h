/// A language model that is open: its weights in a session, and plans for the lengths that were fed so far.
#ifndef KRAIT_TOOLS_LM_MODEL_H
#define KRAIT_TOOLS_LM_MODEL_H

#include "models/models.h"
#include "tools/lm/lm.h"
#include "tools/lm/sample.h"
#include "tools/train/graph_file.h"

enum { KR_LM_PIECE = 256 }; ///< tokens of a prompt that are read at once

struct kr_lm {
    kr_model_config model;
    kr_graph_file graph;              ///< a graph written by hand instead of the model; text is null otherwise
    const kr_target *target;
    kr_device *device;
    kr_session *session;
    kr_plan *plan[KR_LM_PIECE + 1];   ///< by length, made when it first comes; of a graph the only one is the first
    float *row_logits;                ///< of a graph [B, L, V]
    kr_candidate *scratch;            ///< for sampling [vocabulary]
    int slots;                        ///< of a model: parameters and carries; every plan has the same
    size_t state_bytes;               ///< of all carries
    kr_lm_sequence *present;          ///< whose state is in the session; null: nobody's
};

/// The plan that reads `length` tokens and gives the logits after the last, 1 <= length <= KR_LM_PIECE.
kr_status kr_lm_plan(kr_lm *, int64_t length, kr_plan **out);

#endif
