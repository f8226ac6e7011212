// Opening a checkpoint to run it. Plans of several lengths are compiled from the same block code and share parameters
// and carries in one session.
#include "tools/lm/model.h"

#include "compiler/compiler.h"
#include "tools/cli/device.h"
#include "tools/train/run.h"
#include "tools/train/state.h"

#include <stdlib.h>
#include <string.h>

/// A block of somebody's own could want more for many tokens than for one; that would not be in the checkpoint, and
/// sequences have no room for it.
static kr_status add_plan(kr_lm *lm, int64_t length, kr_plan *plan) {
    KR_TRY(kr_session_add(lm->session, plan));
    const kr_slot *more = length > 1 ? kr_session_slot(lm->session, lm->slots) : NULL;
    KR_FAIL_IF(more, KR_UNSUPPORTED, "model %s has %s \"%s\" when it reads %lld tokens, and not when it reads one",
               lm->model.name, kr_slot_kind_name(more->kind), more->name, (long long)length);
    return KR_OK;
}

kr_status kr_lm_plan(kr_lm *lm, int64_t length, kr_plan **out) {
    kr_plan **plan = &lm->plan[length];
    *out = *plan;
    if (*plan) return KR_OK;
    kr_graph *g;
    kr_plan_stats stats;
    KR_TRY(kr_model_build(&lm->model, length == 1 ? KR_MODE_DECODE : KR_MODE_PREFILL, 1, length, &g));
    const kr_compile_options forward = {.goal = KR_GOAL_FORWARD, .target = lm->target};
    kr_status status = kr_compile(g, &forward, plan, &stats);
    kr_graph_free(g);
    KR_TRY(status);
    status = add_plan(lm, length, *plan);
    if (status) {
        kr_plan_free(*plan);
        *plan = NULL;
    }
    *out = *plan;
    return status;
}

static kr_status open_model(kr_lm *lm) {
    kr_plan *decode;
    KR_TRY(kr_lm_plan(lm, 1, &decode));
    lm->slots = kr_session_slots(lm->session);
    for (int k = 0; k < lm->slots; k++)
        if (kr_session_slot(lm->session, k)->kind == KR_SLOT_CARRY)
            lm->state_bytes += kr_session_slot(lm->session, k)->bytes;
    return KR_OK;
}

static kr_status open_graph(kr_lm *lm, const char *path) {
    kr_graph *g;
    KR_FAIL_IF(!lm->graph.vocabulary, KR_UNSUPPORTED, "%s has no output \"logits\" f32 [B, L, V], so it cannot write",
               path);
    KR_TRY(kr_graph_file_build(&lm->graph, false, false, &g));
    const kr_compile_options forward = {.goal = KR_GOAL_FORWARD, .target = lm->target};
    const kr_status status = kr_compile(g, &forward, &lm->plan[0], NULL);
    kr_graph_free(g);
    KR_TRY(status);
    lm->row_logits = calloc((size_t)(lm->graph.batch * lm->graph.length * lm->graph.vocabulary), sizeof(float));
    KR_FAIL_IF(!lm->row_logits, KR_NO_MEMORY, "no memory for logits");
    return kr_session_add(lm->session, lm->plan[0]);
}

/// The state.json of a checkpoint.
static kr_status read_state(const char *checkpoint, kr_train_state *out) {
    char label[KR_RUN_PATH + 16], *text;
    KR_TRY(kr_checkpoint_load(checkpoint, NULL, KR_LOAD_STATE, &text));
    snprintf(label, sizeof label, "%s/state.json", checkpoint);
    const kr_status status = kr_state_parse(text, strlen(text), label, out);
    free(text);
    return status;
}

static kr_status load(kr_lm *lm, const char *path, const kr_lm_options *options) {
    char checkpoint[KR_RUN_PATH];
    const char *graph = options->graph;
    kr_train_state state;
    KR_TRY(kr_run_checkpoint(path, checkpoint));
    KR_TRY(read_state(checkpoint, &state));
    lm->model = state.model;
    KR_FAIL_IF(state.graph_fingerprint && !graph, KR_BAD_ARGUMENT,
               "%s was trained from a graph written by hand: give it with --graph FILE", checkpoint);
    KR_FAIL_IF(graph && !state.graph_fingerprint, KR_BAD_ARGUMENT,
               "--graph: %s was trained from a model, not from a graph", checkpoint);
    if (graph) KR_TRY(kr_graph_file_open(graph, &lm->graph));
    KR_FAIL_IF(graph && lm->graph.fingerprint != state.graph_fingerprint, KR_BAD_ARGUMENT,
               "--graph: %s is not the graph that %s was trained from", graph, checkpoint);
    KR_TRY(kr_tool_target(options->device, &lm->target));
    KR_TRY(kr_tool_device(options->device, &lm->device));
    KR_TRY(kr_session_open(lm->device, options->threads, &lm->session));
    KR_TRY(graph ? open_graph(lm, graph) : open_model(lm));
    lm->scratch = calloc((size_t)kr_lm_vocabulary(lm), sizeof *lm->scratch);
    KR_FAIL_IF(!lm->scratch, KR_NO_MEMORY, "no memory for logits");
    return kr_checkpoint_load(checkpoint, lm->session, KR_LOAD_PARAMS, NULL);
}

kr_status kr_lm_open(const char *path, const kr_lm_options *options, kr_lm **out) {
    const kr_lm_options usual = {0};
    *out = NULL;
    kr_lm *lm = calloc(1, sizeof *lm);
    KR_FAIL_IF(!lm, KR_NO_MEMORY, "no memory for a language model");
    const kr_status status = load(lm, path, options ? options : &usual);
    if (status) kr_lm_close(lm);
    else *out = lm;
    return status;
}

void kr_lm_close(kr_lm *lm) {
    if (!lm) return;
    kr_session_close(lm->session);
    for (int k = 0; k <= KR_LM_PIECE; k++) kr_plan_free(lm->plan[k]);
    kr_device_close(lm->device);
    kr_graph_file_close(&lm->graph);
    free(lm->row_logits);
    free(lm->scratch);
    free(lm);
}

int64_t kr_lm_vocabulary(const kr_lm *lm) { return lm->graph.text ? lm->graph.vocabulary : lm->model.vocab_size; }
