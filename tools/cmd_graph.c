// krait graph: shows a model's graph at any stage of the compiler, as text that can be read back, as Graphviz source,
// or as the figures of its plan.
#include "compiler/compiler.h"
#include "tools/command.h"
#include "tools/config/block_file.h"
#include "tools/inspect/graph.h"

typedef struct settings {
    kr_inspect_settings graph;
    kr_text_list blocks;
} settings;

#define FIELD(name) offsetof(settings, graph.name)

static const kr_option options[] = {
    {"model", KR_OPTION_TEXT, FIELD(model), .value = "NAME", .help = "a model of krait.yaml"},
    {"from", KR_OPTION_TEXT, FIELD(from), .value = "FILE", .help = "a graph in text form instead of a model"},
    KR_BLOCK_OPTION(offsetof(settings, blocks)),
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
     .help = "training: arenas of at most this, 2.9GB or 800MiB; values are recomputed in the backward part to fit"},
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

int kr_cmd_graph(int argc, char **argv) {
    settings s = {.graph = {.mode = -1}};
    bool help = false;
    kr_status status = kr_command_options(&usage, argc, argv, &s, NULL, &help);
    if (help) return KR_EXIT_OK;
    if (!status) status = kr_block_load_all(&s.blocks);
    if (!status) status = kr_inspect_graph(&s.graph, stdout);
    return kr_command_end("graph", status);
}
