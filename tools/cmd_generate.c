// krait generate: a prompt goes through a prefill plan, then a decode plan of length 1 writes on. Both are compiled
// from the same block code and share parameters and carries in one session. A long prompt is read in pieces: the
// carries hand the state from one to the next. A graph written by hand has no decode form: it reads the last bytes that
// fit into a row again for each byte that it writes.
#include "tools/train/train.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PIECE = 256 };

typedef struct settings {
    const char *checkpoint, *graph, *prompt, *prompt_file;
    int64_t count, threads;
    kr_sampling sampling;
    uint64_t seed;
    bool no_prompt;
    kr_text_list blocks;
} settings;

#define FIELD(name) offsetof(settings, name)
static const kr_option options[] = {
    {"checkpoint", KR_OPTION_TEXT, FIELD(checkpoint), .value = "DIR",
     .help = "a checkpoint, or a run (then its best checkpoint)", .flags = KR_OPTION_REQUIRED},
    KR_BLOCK_OPTION(FIELD(blocks)),
    {"graph", KR_OPTION_TEXT, FIELD(graph), .value = "FILE", .help = "the graph that pretrain --graph trained"},
    {"prompt", KR_OPTION_TEXT, FIELD(prompt), .value = "TEXT", .help = "what to go on from (default: a new line)"},
    {"prompt-file", KR_OPTION_TEXT, FIELD(prompt_file), .value = "FILE", .help = "the same from a file"},
    {"max-new-tokens", KR_OPTION_INTEGER, FIELD(count), 0, 9e15, .value = "N", .help = "bytes to write (default 500)"},
    {"temperature", KR_OPTION_REAL, FIELD(sampling.temperature), 0, 1e6, .value = "T",
     .help = "0: always the likeliest (default 0.8)"},
    {"top-k", KR_OPTION_INTEGER, FIELD(sampling.top_k), 0, 1 << 30, .value = "K",
     .help = "choose among the K likeliest; 0: all (default)"},
    {"top-p", KR_OPTION_REAL, FIELD(sampling.top_p), 1e-9, 1, .value = "P",
     .help = "choose among the likeliest that hold P of the probability (default 1: all)"},
    {"seed", KR_OPTION_SEED, FIELD(seed), .value = "S", .help = "the same seed writes the same text (default 0)"},
    {"threads", KR_OPTION_INTEGER, FIELD(threads), 0, 4096, .value = "T", .help = "0: all (default 1, small models "
     "gain nothing from more)"},
    {"no-echo", KR_OPTION_FLAG, FIELD(no_prompt), .help = "do not write the prompt before the text"},
    {0},
};
static const kr_usage usage = {.command = "generate", .synopsis = "--checkpoint DIR [--prompt TEXT] [options]",
                               .options = options,
                               .text = "Writes text from a trained model to stdout, byte by byte."};

typedef struct writer {
    kr_model_config model;
    kr_device *device;
    kr_session *session;
    kr_plan *plan[3]; // decode, prefill of PIECE, prefill of what is left
    int64_t length[3];
    int count;
    int32_t ids[PIECE];
    float *logits;     // [padded vocabulary]; of a graph [B, L, V]
    kr_graph_file graph;
    int32_t *row;      // of a graph: its batch, of which the first row is read
    int64_t held;      // bytes in that row
    kr_candidate *scratch;
} writer;

static kr_status add_plan(writer *w, kr_mode mode, int64_t length) {
    kr_graph *g;
    kr_plan_stats stats;
    const kr_compile_options forward = {.goal = KR_GOAL_FORWARD};
    KR_TRY(kr_model_build(&w->model, mode, 1, length, &g));
    const kr_status status = kr_compile(g, &forward, &w->plan[w->count], &stats);
    kr_graph_free(g);
    KR_TRY(status);
    w->length[w->count] = length;
    return kr_session_add(w->session, w->plan[w->count++]);
}

/// A graph written by hand: the bytes join the row; the logits of the last one move to the front.
static kr_status run_row(writer *w, const int32_t *ids, size_t count) {
    const kr_graph_file *f = &w->graph;
    const size_t rows = (size_t)(f->batch * f->length), bytes = rows * sizeof *w->row;
    for (size_t k = 0; k < count; k++) {
        if (w->held == f->length) memmove(w->row, w->row + 1, (size_t)--w->held * sizeof *w->row);
        w->row[w->held++] = ids[k];
    }
    int32_t *targets = w->row + rows, *reset = targets + rows;
    const kr_binding bindings[] = {
        {"tokens", w->row, bytes}, {"targets", targets, bytes},
        {"logits", w->logits, rows * (size_t)f->vocabulary * sizeof *w->logits}, {"reset", reset, bytes}};
    KR_TRY(kr_plan_run(w->session, w->plan[0], bindings, f->reset ? 4 : 3, 0));
    memmove(w->logits, w->logits + (w->held - 1) * f->vocabulary, (size_t)f->vocabulary * sizeof *w->logits);
    return KR_OK;
}

static kr_status run_plan(writer *w, kr_plan *plan, int64_t length) {
    if (w->row) return run_row(w, w->ids, (size_t)length);
    const kr_binding bindings[] = {
        {"tokens", w->ids, (size_t)length * sizeof *w->ids},
        {"logits", w->logits, (size_t)kr_model_vocab(&w->model) * sizeof *w->logits}};
    return kr_plan_run(w->session, plan, bindings, 2, 0);
}

/// Reads the prompt in pieces of PIECE and a rest.
static kr_status read_prompt(writer *w, const char *text, size_t bytes) {
    const size_t rest = bytes % PIECE;
    kr_plan *whole = NULL, *last = NULL;
    const bool stateful = !w->row; // otherwise one plan is for all
    if (stateful && bytes >= PIECE) {
        KR_TRY(add_plan(w, KR_MODE_PREFILL, PIECE));
        whole = w->plan[w->count - 1];
    }
    if (stateful && rest > 1) {
        KR_TRY(add_plan(w, KR_MODE_PREFILL, (int64_t)rest));
        last = w->plan[w->count - 1];
    } else if (rest) {
        last = w->plan[0];
    }
    KR_TRY(kr_session_reset_carries(w->session));
    for (size_t at = 0; at < bytes;) {
        const size_t length = bytes - at >= PIECE ? PIECE : rest;
        for (size_t k = 0; k < length; k++) w->ids[k] = (uint8_t)text[at + k];
        KR_TRY(run_plan(w, length == PIECE ? whole : last, (int64_t)length));
        at += length;
    }
    return KR_OK;
}

static kr_status add_graph(writer *w, const char *path) {
    kr_graph *g;
    KR_FAIL_IF(!w->graph.vocabulary, KR_UNSUPPORTED, "%s has no output \"logits\" f32 [B, L, V], so it cannot write",
               path);
    KR_FAIL_IF(w->graph.vocabulary < 256, KR_UNSUPPORTED, "%s: logits of %lld ids cannot be read as bytes", path,
               (long long)w->graph.vocabulary);
    KR_TRY(kr_graph_file_build(&w->graph, false, false, &g));
    const kr_status status = kr_compile(g, &(kr_compile_options){.goal = KR_GOAL_FORWARD}, &w->plan[0], NULL);
    kr_graph_free(g);
    KR_TRY(status);
    w->count = 1;
    const size_t rows = (size_t)(w->graph.batch * w->graph.length);
    w->row = calloc(3 * rows, sizeof *w->row);
    w->logits = calloc(rows * (size_t)w->graph.vocabulary, sizeof *w->logits);
    w->scratch = calloc(256, sizeof *w->scratch);
    KR_FAIL_IF(!w->row || !w->logits || !w->scratch, KR_NO_MEMORY, "no memory for logits");
    return kr_session_add(w->session, w->plan[0]);
}

static kr_status open_model(writer *w, const char *checkpoint) {
    KR_FAIL_IF(w->model.vocab_size < 256, KR_UNSUPPORTED, "%s: a vocabulary of %lld cannot be read as bytes",
               checkpoint, (long long)w->model.vocab_size);
    KR_TRY(add_plan(w, KR_MODE_DECODE, 1));
    w->logits = calloc((size_t)kr_model_vocab(&w->model), sizeof *w->logits);
    w->scratch = calloc((size_t)kr_model_vocab(&w->model), sizeof *w->scratch);
    KR_FAIL_IF(!w->logits || !w->scratch, KR_NO_MEMORY, "no memory for logits");
    return KR_OK;
}

static kr_status load(writer *w, const char *path, const char *graph, int threads) {
    char checkpoint[KR_RUN_PATH], label[KR_RUN_PATH + 16], *text;
    kr_train_state state;
    KR_TRY(kr_run_checkpoint(path, checkpoint));
    KR_TRY(kr_checkpoint_load(checkpoint, NULL, KR_LOAD_STATE, &text));
    snprintf(label, sizeof label, "%s/state.json", checkpoint);
    const kr_status status = kr_state_parse(text, strlen(text), label, &state);
    free(text);
    KR_TRY(status);
    w->model = state.model;
    KR_FAIL_IF(state.graph_fingerprint && !graph, KR_BAD_ARGUMENT,
               "%s was trained from a graph written by hand: give it with --graph FILE", checkpoint);
    KR_FAIL_IF(graph && !state.graph_fingerprint, KR_BAD_ARGUMENT,
               "--graph: %s was trained from a model, not from a graph", checkpoint);
    if (graph) KR_TRY(kr_graph_file_open(graph, &w->graph));
    KR_FAIL_IF(graph && w->graph.fingerprint != state.graph_fingerprint, KR_BAD_ARGUMENT,
               "--graph: %s is not the graph that %s was trained from", graph, checkpoint);
    KR_TRY(kr_device_cpu(&w->device));
    KR_TRY(kr_session_open(w->device, threads, &w->session));
    KR_TRY(graph ? add_graph(w, graph) : open_model(w, checkpoint));
    return kr_checkpoint_load(checkpoint, w->session, KR_LOAD_PARAMS, NULL);
}

static kr_status write_text(writer *w, const settings *s, const char *prompt, size_t bytes) {
    const double start = kr_seconds();
    kr_byte_stream out = {.to = stdout, .terminal = isatty(STDOUT_FILENO)};
    KR_TRY(read_prompt(w, prompt, bytes));
    const double middle = kr_seconds();
    for (size_t k = 0; k < bytes && !s->no_prompt; k++) kr_stream_put(&out, (uint8_t)prompt[k]);
    int64_t k = 0;
    for (; k < s->count; k++) {
        // Only ids that are bytes: neither padded rows nor the rest of a larger vocabulary can be written.
        const int32_t id = kr_sample(w->logits, 256, &s->sampling, s->seed, (uint64_t)k, w->scratch);
        kr_stream_put(&out, (uint8_t)id);
        if (out.terminal || k % 64 == 63) fflush(stdout);
        if (ferror(stdout)) KR_FAIL(KR_IO, "cannot write to the standard output");
        if (k + 1 == s->count) continue;
        w->ids[0] = id;
        KR_TRY(run_plan(w, w->plan[0], 1));
    }
    kr_stream_end(&out);
    const double end = kr_seconds();
    if (out.terminal) fprintf(stdout, "\n");
    if (isatty(STDERR_FILENO))
        fprintf(stderr, "(prompt %zu bytes, %.0f/s; text %lld bytes, %.0f/s)\n", bytes,
                (double)bytes / (middle - start), (long long)k, k ? (double)k / (end - middle) : 0.0);
    return KR_OK;
}

static kr_status generate(const settings *s, writer *w) {
    char *file = NULL;
    size_t bytes;
    KR_FAIL_IF(s->prompt && s->prompt_file, KR_BAD_ARGUMENT, "--prompt and --prompt-file cannot be given together");
    const char *prompt = s->prompt;
    if (s->prompt_file) {
        KR_TRY(kr_file_read(s->prompt_file, &file, &bytes));
        prompt = file;
    } else {
        if (!prompt || !*prompt) prompt = "\n"; // the model needs something to start from
        bytes = strlen(prompt);
    }
    kr_status status = KR_OK;
    if (!bytes) status = kr_status_record(KR_BAD_ARGUMENT, __FILE__, __LINE__, "%s is empty", s->prompt_file);
    if (!status) status = load(w, s->checkpoint, s->graph, s->threads ? (int)s->threads : kr_cpu_count());
    if (!status) status = write_text(w, s, prompt, bytes);
    free(file);
    return status;
}

int kr_cmd_generate(int argc, char **argv) {
    settings s = {.count = 500, .threads = 1, .sampling = {.temperature = 0.8, .top_p = 1}};
    writer w = {.count = 0};
    bool help;
    kr_status status = kr_options_parse(&usage, argc, argv, &s, NULL, &help);
    if (!status && !help) status = kr_block_load_all(&s.blocks);
    if (!status && !help) status = generate(&s, &w);
    const int code = status ? kr_tool_fail("generate", status) : KR_EXIT_OK;
    kr_session_close(w.session);
    for (int k = 0; k < w.count; k++) kr_plan_free(w.plan[k]);
    kr_device_close(w.device);
    kr_graph_file_close(&w.graph);
    free(w.row);
    free(w.logits);
    free(w.scratch);
    return code;
}
