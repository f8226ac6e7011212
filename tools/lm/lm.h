/// Running a language model: open a checkpoint, feed tokens to sequences that each have their own state, read logits,
/// choose the next token.
///
///     kr_lm *lm;
///     kr_lm_sequence *s;
///     KR_TRY(kr_lm_open("runs/mamba3-1m-1", NULL, &lm));
///     KR_TRY(kr_lm_sequence_new(lm, &s));
///     KR_TRY(kr_lm_feed(s, prompt, count));
///     int32_t next = kr_lm_sample(s, &(kr_lm_sampling){.temperature = 0.8, .top_p = 1}, 256);
#ifndef KRAIT_TOOLS_LM_LM_H
#define KRAIT_TOOLS_LM_LM_H

#include "runtime/runtime.h"

#ifdef __cplusplus
extern "C" {
#endif

/// A trained model in memory. One thread at a time may use it and its sequences.
typedef struct kr_lm kr_lm;
/// A text under way in a model: its state, how far it has come, and the logits after its last token.
typedef struct kr_lm_sequence kr_lm_sequence;

typedef struct kr_lm_options {
    const char *device; ///< null: "cpu"
    int threads;        ///< 0: as many as the process may use
    const char *graph;  ///< the graph written by hand that the checkpoint was trained from; null: it is a model's
} kr_lm_options;

/// Opens a checkpoint, or a run (its best, else its latest checkpoint). Null options: all zero.
/// fails KR_BAD_ARGUMENT: no checkpoint, a graph that is missing, not wanted or another; KR_UNSUPPORTED: a graph
/// without logits; KR_BAD_FILE, KR_IO, KR_NO_MEMORY
kr_status kr_lm_open(const char *path, const kr_lm_options *options, kr_lm **out);
/// To be called after its sequences are freed.
void kr_lm_close(kr_lm *);
/// Ids of its vocabulary: tokens are in [0, this), and so many logits count.
int64_t kr_lm_vocabulary(const kr_lm *);

/// An empty text: its state is zero. The model keeps the state of the sequence that was fed last where it computes;
/// feeding another one in between copies both states, which costs time in proportion to their size.
kr_status kr_lm_sequence_new(kr_lm *, kr_lm_sequence **out);
void kr_lm_sequence_free(kr_lm_sequence *);
/// Tokens that it was fed so far.
int64_t kr_lm_position(const kr_lm_sequence *);
/// The sequence goes on with these tokens. Many at once are quicker than one after another: they go in pieces of up to
/// 256, and each length of a piece is compiled when it first comes. How a text is cut changes the last bits at most.
/// fails KR_BAD_ARGUMENT: an id outside of the vocabulary
kr_status kr_lm_feed(kr_lm_sequence *, const int32_t *tokens, int64_t count);
/// Logits [kr_lm_vocabulary] of the token that comes next; null before anything was fed. Valid until the next call that
/// feeds this sequence.
const float *kr_lm_logits(const kr_lm_sequence *);

/// How a token is chosen, in the order of the official code: top-k, temperature, top-p.
typedef struct kr_lm_sampling {
    double temperature; ///< 0: the largest logit
    int64_t top_k;      ///< 0: all
    double top_p;       ///< 1: all
    uint64_t seed;
} kr_lm_sampling;
/// Chooses the next token among ids [0, ids) (0: the whole vocabulary) from the logits; to go on with it, feed it. The
/// n-th choice of a sequence depends on the logits, the seed and n alone. -1 before anything was fed.
int32_t kr_lm_sample(kr_lm_sequence *, const kr_lm_sampling *, int64_t ids);

#ifdef __cplusplus
}
#endif

#endif
