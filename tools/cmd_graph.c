// krait graph: shows a model's graph at any stage of the compiler, as text that can be read back, as Graphviz source,
// or as the figures of its plan.
#include "tools/train.h"

#include <stdlib.h>
#include <string.h>

typedef struct settings {
    const char *model, *config, *after, *from;
    int mode; ///< kr_mode; -1: not given
    int precision; ///< kr_precision
    int emit; ///< index into "text|dot|stats"
    int64_t batch_size, seq_len;
    int64_t memory;
    bool json, memory_report;
    kr_text_list blocks;
} settings;

enum { EMIT_TEXT = 0, EMIT_DOT, EMIT_STATS };
#define FIELD(name) offsetof(settings, name)

static const kr_option options[] = {
    {"model", KR_OPTION_TEXT, FIELD(model), .value = "NAME", .help = "a model of krait.yaml"},
    {"from", KR_OPTION_TEXT, FIELD(from), .value = "FILE", .help = "a graph in text form instead of a model"},
    KR_BLOCK_OPTION(FIELD(blocks)),
    {"config", KR_OPTION_TEXT, FIELD(config), .value = "FILE", .help = "read FILE instead of ./krait.yaml"},
    {"mode", KR_OPTION_CHOICE, FIELD(mode), .choices = "train|eval|prefill|decode|logits",
     .help = "what the graph is for (default train; with --from: forward only unless it is train)"},
    {"batch-size", KR_OPTION_INTEGER, FIELD(batch_size), 1, 1 << 20, .value = "B",
     .help = "rows (default as in pretraining)"},
    {"seq-len", KR_OPTION_INTEGER, FIELD(seq_len), 1, 1 << 24, .value = "L",
     .help = "tokens per row (default as in pretraining)"},
    {"precision", KR_OPTION_CHOICE, FIELD(precision), .choices = KR_PRECISIONS,
     .help = "of matrix products, once it is compiled (default f32)"},
    {"after", KR_OPTION_TEXT, FIELD(after), .value = "PASS",
     .help = "the graph after this pass of the compiler (default build: before any)"},
    {"emit", KR_OPTION_CHOICE, FIELD(emit), .choices = "text|dot|stats", .help = "what to print (default text)"},
    {"memory", KR_OPTION_SIZE, FIELD(memory), 1, 9e15, .value = "SIZE",
     .help = "training: arenas of at most this, 2.9GB or 800MiB; values are made again in the backward part to fit"},
    {"memory-report", KR_OPTION_FLAG, FIELD(memory_report),
     .help = "stats: the curve of memory against estimated time, and the choice"},
    {"json", KR_OPTION_FLAG, FIELD(json), .help = "stats as one JSON object"},
    {0},
};

static const kr_usage usage = {
    .command = "graph",
    .synopsis = "--model NAME | --from FILE [--mode MODE] [--after PASS] [--emit text|dot|stats]",
    .text =
        "Prints a graph. Text can be read back with --from; dot is for Graphviz; stats compiles the graph and shows\n"
        "nodes, parameters, work, every arena, and the planner's peak against its lower bound.",
    .options = options,
};

/// "build" and the passes of the compiler.
static kr_status check_pass(const char *name) {
    const char *names[33] = {"build"};
    int count = 1;
    for (; count < 33 && kr_pass_name(count - 1); count++) names[count] = kr_pass_name(count - 1);
    char all[512] = "build";
    for (int k = 0; k < count; k++) {
        if (!strcmp(names[k], name)) return KR_OK;
        if (k && strlen(all) + strlen(names[k]) + 3 < sizeof all) strcat(strcat(all, ", "), names[k]);
    }
    const char *nearest = kr_nearest(name, names, count);
    KR_FAIL(KR_BAD_ARGUMENT, "--after is '%s', which is no pass%s%s%s (passes: %s)", name,
            nearest ? "; did you mean '" : "", nearest ? nearest : "", nearest ? "'?" : "", all);
}

static bool is_training(const settings *s) { return s->mode == KR_MODE_TRAIN || (s->mode < 0 && !s->from); }

static kr_status check(const settings *s) {
    KR_FAIL_IF(!s->model == !s->from, KR_BAD_ARGUMENT,
               s->model ? "--model and --from exclude each other" : "say which graph: --model NAME or --from FILE");
    KR_FAIL_IF(s->from && (s->batch_size || s->seq_len), KR_BAD_ARGUMENT,
               "--batch-size and --seq-len are for --model: the shapes of %s stand in it", s->from);
    KR_FAIL_IF(s->json && s->emit != EMIT_STATS, KR_BAD_ARGUMENT, "--json is for --emit stats");
    KR_FAIL_IF(s->after && s->emit == EMIT_STATS, KR_BAD_ARGUMENT,
               "--emit stats is about the finished plan: leave --after out");
    KR_FAIL_IF(s->memory_report && s->emit != EMIT_STATS, KR_BAD_ARGUMENT, "--memory-report is for --emit stats");
    KR_FAIL_IF((s->memory || s->memory_report) && !is_training(s), KR_BAD_ARGUMENT,
               "--memory and --memory-report are about training: only there is something to make again");
    return s->after ? check_pass(s->after) : KR_OK;
}

/// The graph before any pass, and the training defaults of the configuration.
static kr_status build(const settings *s, kr_train_settings *train, kr_graph **out) {
    kr_config *config;
    kr_model_config model;
    KR_TRY(kr_config_load(s->config, &config));
    kr_status status = kr_config_section(config, "pretrain", kr_train_options, train);
    if (!status && s->model) status = kr_config_model(config, s->model, &model);
    kr_config_free(config); // texts of the section are not used here
    if (status) return status;
    if (s->from) {
        char *text;
        size_t bytes;
        KR_TRY(kr_file_read(s->from, &text, &bytes));
        status = kr_graph_parse(text, bytes, s->from, out);
        free(text);
        return status;
    }
    return kr_model_build(&model, s->mode < 0 ? KR_MODE_TRAIN : (kr_mode)s->mode,
                          s->batch_size ? s->batch_size : train->batch_size, s->seq_len ? s->seq_len : train->seq_len,
                          out);
}

static kr_status emit(const settings *s, const kr_train_settings *train, kr_graph *g) {
    kr_memory_curve curve = {0};
    const bool as_built = s->emit != EMIT_STATS && (!s->after || !strcmp(s->after, "build"));
    const kr_compile_options how = {
        .goal = is_training(s) ? KR_GOAL_TRAIN : KR_GOAL_FORWARD,
        .stop_after = s->after,
        .memory = (size_t)s->memory,
        .curve = s->memory || s->memory_report ? &curve : NULL,
        .precision = (kr_precision)s->precision,
        .optimizer = kr_train_optimizer(train),
    };
    kr_plan *plan = NULL;
    kr_plan_stats stats = {0};
    const kr_status status = as_built ? KR_OK : kr_compile(g, &how, s->emit == EMIT_STATS ? &plan : NULL, &stats);
    kr_plan_free(plan);
    if (status && curve.count && curve.chosen < 0) return kr_memory_refuse(&curve, s->memory, 0);
    KR_TRY(status);
    if (s->emit == EMIT_TEXT) return kr_graph_print(g, stdout);
    if (s->emit == EMIT_DOT) return kr_graph_print_dot(g, stdout);
    if (s->memory_report && s->json) {
        fputs("{\"curve\": ", stdout);
        kr_memory_curve_json(&curve, 0, stdout);
        fputs(", \"stats\": ", stdout);
    } else if (s->memory_report) {
        kr_memory_curve_print(&curve, 0, stdout);
    }
    kr_stats_print(&stats, stdout, s->json);
    if (s->memory_report && s->json) puts("}");
    KR_FAIL_IF(fflush(stdout) || ferror(stdout), KR_IO, "the standard output could not be written");
    return KR_OK;
}

int kr_cmd_graph(int argc, char **argv) {
    settings s = {.mode = -1};
    kr_train_settings train = kr_train_defaults();
    bool help = false;
    kr_graph *g = NULL;
    kr_status status = kr_options_parse(&usage, argc, argv, &s, NULL, &help);
    if (help) return KR_EXIT_OK;
    if (!status) status = check(&s);
    if (!status) status = kr_block_load_all(&s.blocks);
    if (!status) status = build(&s, &train, &g);
    if (!status) status = emit(&s, &train, g);
    kr_graph_free(g);
    return status ? kr_tool_fail("graph", status) : KR_EXIT_OK;
}
