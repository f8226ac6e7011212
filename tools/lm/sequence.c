// A text under way. Of a model it has the state (all carries), which is in the session while this sequence is the one
// that was fed last. A long text is read in pieces: the carries hand the state from one to the next. A graph written by
// hand has no decode form: it reads the last tokens that fit into a row again for each token that comes.
#include "tools/lm/model.h"

#include <stdlib.h>
#include <string.h>

struct kr_lm_sequence {
    kr_lm *lm;
    int64_t position; ///< tokens fed
    uint64_t chosen;  ///< tokens that kr_lm_sample gave
    float *logits;    ///< after the last token; of a model with the padding of its vocabulary
    void *state;      ///< of a model: its carries while another sequence is present; null: zero
    int32_t *row;     ///< of a graph: its batch of tokens, targets and reset, of which the first row is read
    int64_t held;     ///< of a graph: tokens in that row
};

static size_t graph_rows(const kr_lm *lm) { return (size_t)(lm->graph.batch * lm->graph.length); }

kr_status kr_lm_sequence_new(kr_lm *lm, kr_lm_sequence **out) {
    *out = NULL;
    kr_lm_sequence *s = calloc(1, sizeof *s);
    KR_FAIL_IF(!s, KR_NO_MEMORY, "no memory for a sequence");
    s->lm = lm;
    const int64_t logits = lm->graph.text ? lm->graph.vocabulary : kr_model_vocab(&lm->model);
    s->logits = calloc((size_t)logits, sizeof *s->logits);
    if (lm->graph.text) s->row = calloc(3 * graph_rows(lm), sizeof *s->row);
    if (!s->logits || (lm->graph.text && !s->row)) {
        kr_lm_sequence_free(s);
        KR_FAIL(KR_NO_MEMORY, "no memory for a sequence");
    }
    *out = s;
    return KR_OK;
}

void kr_lm_sequence_free(kr_lm_sequence *s) {
    if (!s) return;
    if (s->lm->present == s) s->lm->present = NULL;
    free(s->logits);
    free(s->state);
    free(s->row);
    free(s);
}

int64_t kr_lm_position(const kr_lm_sequence *s) { return s->position; }

const float *kr_lm_logits(const kr_lm_sequence *s) { return s->position ? s->logits : NULL; }

/// Copies all carries between the session and `state`.
static kr_status move_state(kr_lm *lm, unsigned char *state, bool into_session) {
    for (int k = 0; k < lm->slots; k++) {
        const kr_slot *slot = kr_session_slot(lm->session, k);
        if (slot->kind != KR_SLOT_CARRY) continue;
        KR_TRY(into_session ? kr_session_write(lm->session, k, state, slot->bytes)
                            : kr_session_read(lm->session, k, state, slot->bytes));
        state += slot->bytes;
    }
    return KR_OK;
}

/// From now on the session has the state of this sequence.
static kr_status be_present(kr_lm_sequence *s) {
    kr_lm *lm = s->lm;
    kr_lm_sequence *other = lm->present;
    if (other == s) return KR_OK;
    if (other) {
        if (!other->state) other->state = malloc(lm->state_bytes + 1);
        KR_FAIL_IF(!other->state, KR_NO_MEMORY, "no memory for the state of a sequence");
        KR_TRY(move_state(lm, other->state, false));
    }
    lm->present = NULL;
    KR_TRY(s->state ? move_state(lm, s->state, true) : kr_session_reset_carries(lm->session));
    lm->present = s;
    return KR_OK;
}

/// The tokens join the row; the logits of the last one are kept.
static kr_status feed_row(kr_lm_sequence *s, const int32_t *tokens, int64_t count) {
    const kr_graph_file *f = &s->lm->graph;
    float *logits = s->lm->row_logits;
    const size_t rows = graph_rows(s->lm), bytes = rows * sizeof *s->row, wide = (size_t)f->vocabulary * sizeof *logits;
    for (int64_t k = 0; k < count; k++) {
        if (s->held == f->length) memmove(s->row, s->row + 1, (size_t)--s->held * sizeof *s->row);
        s->row[s->held++] = tokens[k];
    }
    int32_t *targets = s->row + rows, *reset = targets + rows;
    const kr_binding bindings[] = {{"tokens", s->row, bytes},
                                   {"targets", targets, bytes},
                                   {"logits", logits, rows * wide},
                                   {"reset", reset, bytes}};
    KR_TRY(kr_plan_run(s->lm->session, s->lm->plan[0], bindings, f->reset ? 4 : 3, 0));
    memcpy(s->logits, logits + (s->held - 1) * f->vocabulary, wide);
    s->position += count;
    return KR_OK;
}

kr_status kr_lm_feed(kr_lm_sequence *s, const int32_t *tokens, int64_t count) {
    kr_lm *lm = s->lm;
    const int64_t vocabulary = kr_lm_vocabulary(lm);
    for (int64_t k = 0; k < count; k++)
        KR_FAIL_IF(tokens[k] < 0 || tokens[k] >= vocabulary, KR_BAD_ARGUMENT,
                   "token %lld is %d, outside of the vocabulary of %lld", (long long)k, (int)tokens[k],
                   (long long)vocabulary);
    if (count < 1) return KR_OK;
    if (s->row) return feed_row(s, tokens, count);
    KR_TRY(be_present(s));
    for (int64_t at = 0; at < count;) {
        const int64_t length = count - at < KR_LM_PIECE ? count - at : KR_LM_PIECE;
        int32_t ids[KR_LM_PIECE];
        memcpy(ids, tokens + at, (size_t)length * sizeof *ids);
        kr_plan *plan;
        KR_TRY(kr_lm_plan(lm, length, &plan));
        const kr_binding bindings[] = {{"tokens", ids, (size_t)length * sizeof *ids},
                                       {"logits", s->logits, (size_t)kr_model_vocab(&lm->model) * sizeof *s->logits}};
        KR_TRY(kr_plan_run(lm->session, plan, bindings, 2, 0));
        at += length;
        s->position += length;
    }
    return KR_OK;
}

int32_t kr_lm_sample(kr_lm_sequence *s, const kr_lm_sampling *how, int64_t ids) {
    if (!s->position) return -1;
    const int64_t all = kr_lm_vocabulary(s->lm), n = ids > 0 && ids < all ? ids : all;
    return kr_sample(s->logits, (int32_t)n, how, s->chosen++, s->lm->scratch);
}
