// krait generate: a prompt is fed to a sequence of the model, then a token is chosen, written and fed, again and again.
#include "tools/cli/byte_stream.h"
#include "tools/cli/device.h"
#include "tools/command.h"
#include "tools/config/block_file.h"
#include "tools/lm/lm.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct settings {
    const char *checkpoint, *graph, *prompt, *prompt_file, *device;
    int64_t count, threads;
    kr_lm_sampling sampling;
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
    {"seed", KR_OPTION_SEED, FIELD(sampling.seed), .value = "S",
     .help = "the same seed writes the same text (default 0)"},
    {"threads", KR_OPTION_INTEGER, FIELD(threads), 0, 4096, .value = "T", .help = "0: all (default 1, small models "
     "gain nothing from more)"},
    KR_DEVICE_OPTION(FIELD(device)),
    {"no-echo", KR_OPTION_FLAG, FIELD(no_prompt), .help = "do not write the prompt before the text"},
    {0},
};
static const kr_usage usage = {.command = "generate", .synopsis = "--checkpoint DIR [--prompt TEXT] [options]",
                               .options = options,
                               .text = "Writes text from a trained model to stdout, byte by byte."};

static kr_status feed_bytes(kr_lm_sequence *text, const char *bytes, size_t count) {
    int32_t *ids = malloc(count * sizeof *ids);
    KR_FAIL_IF(!ids, KR_NO_MEMORY, "no memory for the prompt");
    for (size_t k = 0; k < count; k++) ids[k] = (uint8_t)bytes[k];
    const kr_status status = kr_lm_feed(text, ids, (int64_t)count);
    free(ids);
    return status;
}

static kr_status write_text(const settings *s, kr_lm_sequence *text, const char *prompt, size_t bytes) {
    const double start = kr_seconds();
    kr_byte_stream out = {.to = stdout, .terminal = isatty(STDOUT_FILENO)};
    KR_TRY(feed_bytes(text, prompt, bytes));
    const double middle = kr_seconds();
    for (size_t k = 0; k < bytes && !s->no_prompt; k++) kr_stream_put(&out, (uint8_t)prompt[k]);
    int64_t k = 0;
    for (; k < s->count; k++) {
        // Only ids that are bytes: neither padded rows nor the rest of a larger vocabulary can be written.
        const int32_t id = kr_lm_sample(text, &s->sampling, 256);
        kr_stream_put(&out, (uint8_t)id);
        if (out.terminal || k % 64 == 63) fflush(stdout);
        if (ferror(stdout)) KR_FAIL(KR_IO, "cannot write to the standard output");
        if (k + 1 < s->count) KR_TRY(kr_lm_feed(text, &id, 1));
    }
    kr_stream_end(&out);
    const double end = kr_seconds();
    if (out.terminal) fprintf(stdout, "\n");
    if (isatty(STDERR_FILENO))
        fprintf(stderr, "(prompt %zu bytes, %.0f/s; text %lld bytes, %.0f/s)\n", bytes,
                (double)bytes / (middle - start), (long long)k, k ? (double)k / (end - middle) : 0.0);
    return KR_OK;
}

static kr_status run(const settings *s, const char *prompt, size_t bytes) {
    const kr_lm_options how = {.device = s->device, .threads = (int)s->threads, .graph = s->graph};
    kr_lm *lm;
    kr_lm_sequence *text = NULL;
    KR_TRY(kr_lm_open(s->checkpoint, &how, &lm));
    kr_status status = KR_OK;
    if (kr_lm_vocabulary(lm) < 256)
        status = kr_status_record(KR_UNSUPPORTED, __FILE__, __LINE__,
                                  "%s: a vocabulary of %lld cannot be read as bytes", s->checkpoint,
                                  (long long)kr_lm_vocabulary(lm));
    if (!status) status = kr_lm_sequence_new(lm, &text);
    if (!status) status = write_text(s, text, prompt, bytes);
    kr_lm_sequence_free(text);
    kr_lm_close(lm);
    return status;
}

static kr_status generate(const settings *s) {
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
    const kr_status status =
        bytes ? run(s, prompt, bytes)
              : kr_status_record(KR_BAD_ARGUMENT, __FILE__, __LINE__, "%s is empty", s->prompt_file);
    free(file);
    return status;
}

int kr_cmd_generate(int argc, char **argv) {
    settings s = {.count = 500, .threads = 1, .sampling = {.temperature = 0.8, .top_p = 1}};
    bool help;
    kr_status status = kr_command_options(&usage, argc, argv, &s, NULL, &help);
    if (!status && !help) status = kr_block_load_all(&s.blocks);
    if (!status && !help) status = generate(&s);
    return kr_command_end("generate", status);
}
