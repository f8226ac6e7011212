// krait bench: what the machine can do, and how near the kernels come.
#include "tools/bench/bench.h"
#include "tools/cli/device.h"
#include "tools/cli/text.h"
#include "tools/command.h"
#include "tools/config/block_file.h"

#include <string.h>

#define FIELD(name) offsetof(kr_bench_settings, name)

static const kr_option options[] = {
    {"threads", KR_OPTION_INT, FIELD(threads), 0, 1024, .value = "T", .help = "0: all that the process may use"},
    {"isa", KR_OPTION_CHOICE, FIELD(isa), .choices = "auto|base|avx2|avx512",
     .help = "highest instruction set level to use"},
    {"repeat", KR_OPTION_INTEGER, FIELD(repeat), 3, 1000000, .value = "N",
     .help = "measurements (default 20; decode: 100 tokens)"},
    {"json", KR_OPTION_FLAG, FIELD(json), .help = "one JSON object instead of text"},
    {"compare", KR_OPTION_TEXT, FIELD(compare), .value = "FILE",
     .help =
         "what an earlier run of this command printed with --json: row by row, faster, slower or within the spread"},
    {"sample", KR_OPTION_TEXT, FIELD(sample), .value = "NAME",
     .help = "op: another of its samples, such as large (scans, matmul, attention) or decode (matmul)"},
    {"attributes", KR_OPTION_TEXT, FIELD(attributes), .value = "LIST",
     .help = "op: its attributes, as \"eps=1e-5, group_size=8\""},
    {"config", KR_OPTION_TEXT, FIELD(config), .value = "FILE",
     .help = "model, decode: read FILE instead of ./krait.yaml"},
    KR_BLOCK_OPTION(FIELD(blocks)),
    KR_DEVICE_OPTION(FIELD(device)),
    {"mode", KR_OPTION_CHOICE, FIELD(mode), .choices = "train|eval|prefill|decode|logits",
     .help = "model: what to run (default train)"},
    {"precision", KR_OPTION_CHOICE, FIELD(precision), .choices = KR_PRECISIONS,
     .help = "model: of matrix products (default f32)"},
    {"batch-size", KR_OPTION_INTEGER, FIELD(batch_size), 1, 1 << 20, .value = "B",
     .help = "model: rows (default as in pretraining); decode: streams (default 1)"},
    {"seq-len", KR_OPTION_INTEGER, FIELD(seq_len), 1, 1 << 24, .value = "L",
     .help = "model: tokens per row (default as in pretraining)"},
    {"memory", KR_OPTION_SIZE, FIELD(memory), 1, 9e15, .value = "SIZE",
     .help = "model, training: arenas of at most this (krait graph --memory)"},
    {"dump", KR_OPTION_TEXT, FIELD(dump), .value = "FILE.safetensors",
     .help = "model: write the weights as they start, the batch and its loss, for other programs to compute the same"},
    {0},
};

static const kr_usage usage = {
    .command = "bench",
    .synopsis = "machine | op NAME [SHAPE...] | op all | model NAME... | decode NAME...",
    .text =
        "machine  arithmetic, memory bandwidth, exp and matrix products of this machine, with one thread and with all\n"
        "op       one op on a sample, or on inputs of the shapes given: 8x256x160, i32:8x256, _ for absent; or all "
        "ops\n"
        "model    a training step (or another mode): speed, memory, and a table of where the time goes\n"
        "decode   token by token: speed, and the weights that stream by, against what memory can bring\n"
        "Times are medians; the range from the 10th to the 90th percentile stands beside them. The roof is the least "
        "time\n"
        "that this machine could take, from limits that are measured in the same run.",
    .options = options,
    .positional = "machine, op NAME, model NAME or decode NAME",
    .positional_min = 1,
    .positional_max = 16,
};

static kr_status run(kr_bench_settings *s, const kr_text_list *words) {
    static const char *const kinds[] = {"machine", "op", "model", "decode"};
    const char *kind = words->at[0];
    const bool decode = !strcmp(kind, "decode");
    kr_text_list list = {.count = words->count - 1};
    memcpy(list.at, words->at + 1, (size_t)list.count * sizeof *list.at);
    if (!s->repeat) s->repeat = decode ? 100 : 20;
    KR_TRY(kr_block_load_all(&s->blocks));
    if (s->isa) KR_TRY(kr_isa_limit((kr_isa)(s->isa - 1)));
    if (!strcmp(kind, "machine")) {
        KR_FAIL_IF(words->count > 1, KR_BAD_ARGUMENT, "unexpected '%s': bench machine takes no words", words->at[1]);
        return kr_bench_machine(s);
    }
    if (!strcmp(kind, "op")) {
        KR_FAIL_IF(words->count < 2, KR_BAD_ARGUMENT, "which op? krait bench op NAME [SHAPE...]");
        return kr_bench_op(s, &list);
    }
    if (decode || !strcmp(kind, "model")) {
        KR_FAIL_IF(!list.count, KR_BAD_ARGUMENT, "which model? krait bench %s NAME...", kind);
        KR_FAIL_IF(decode && (s->mode || s->seq_len), KR_BAD_ARGUMENT,
                   "bench decode runs one token at a time: --mode and --seq-len are for bench model");
        return decode ? kr_bench_decode(s, &list) : kr_bench_model(s, &list);
    }
    const char *nearest = kr_nearest(kind, kinds, 4);
    KR_FAIL(KR_BAD_ARGUMENT, "unknown '%s'%s%s%s; there are machine, op, model and decode", kind,
            nearest ? "; did you mean '" : "", nearest ? nearest : "", nearest ? "'?" : "");
}

int kr_cmd_bench(int argc, char **argv) {
    kr_bench_settings s = {0};
    kr_text_list words = {0};
    bool help = false;
    kr_status status = kr_command_options(&usage, argc, argv, &s, &words, &help);
    if (help) return KR_EXIT_OK;
    if (!s.threads) s.threads = kr_cpu_count();
    if (!status) status = run(&s, &words);
    return kr_command_end("bench", status);
}
