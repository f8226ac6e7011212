// The settings of a training run, their ranges and defaults. One table serves the command line and krait.yaml.
#include "compiler/compiler.h"
#include "tools/cli/device.h"
#include "tools/config/block_file.h"
#include "tools/config/train_options.h"

#define FIELD(name) offsetof(kr_train_command, settings.name)
#define COMMAND(name) offsetof(kr_train_command, name)
#define LIMIT 9e15 // beyond which doubles no longer hold every integer

const kr_option kr_train_options[] = {
    {"model", KR_OPTION_TEXT, COMMAND(model), .value = "NAME", .help = "a model of krait.yaml",
     .flags = KR_OPTION_COMMAND_LINE},
    {"graph", KR_OPTION_TEXT, FIELD(graph), .value = "FILE",
     .help = "a graph in text form instead of a model; it has the batch and the length in it",
     .flags = KR_OPTION_COMMAND_LINE},
    KR_BLOCK_OPTION(COMMAND(blocks)),
    {"target", KR_OPTION_TEXT, COMMAND(target), .value = "NAME", .help = "a target of krait.yaml (default local)",
     .flags = KR_OPTION_COMMAND_LINE},
    {"config", KR_OPTION_TEXT, COMMAND(config), .value = "FILE",
     .help = "read FILE instead of ./krait.yaml (which, when absent, is the built-in one)",
     .flags = KR_OPTION_COMMAND_LINE},
    KR_DEVICE_OPTION(COMMAND(device)),
    {"text-file", KR_OPTION_TEXT, FIELD(text_file), .value = "FILE",
     .help = "text to learn, as bytes; also .zst; the last tenth is held out"},
    {"output-dir", KR_OPTION_TEXT, FIELD(output_dir), .value = "DIR", .help = "the run (default runs/MODEL-N)"},
    {"document-separator", KR_OPTION_TEXT, FIELD(document_separator), .value = "TEXT",
     .help = "ends each document of the text (default: there are none); nothing leaks from one into the next"},
    {"carry-state", KR_OPTION_FLAG, FIELD(carry_state),
     .help = "rows go on where the row before ended, with its state: batch-size streams through the text"},
    {"steps", KR_OPTION_INTEGER, FIELD(steps), 1, LIMIT, .value = "N", .help = "updates in all"},
    {"batch-size", KR_OPTION_INTEGER, FIELD(batch_size), 1, 1 << 20, .value = "B", .help = "rows per micro-batch"},
    {"seq-len", KR_OPTION_INTEGER, FIELD(seq_len), 1, 1 << 24, .value = "L", .help = "bytes per row"},
    {"learning-rate", KR_OPTION_REAL, FIELD(learning_rate), 0, 1e30, .value = "X",
     .help = "the highest learning rate, at the end of the warm-up"},
    {"min-learning-rate", KR_OPTION_REAL, FIELD(min_learning_rate), 0, 1e30, .value = "X",
     .help = "the rate at the end (default a tenth of the highest)"},
    {"warmup", KR_OPTION_INTEGER, FIELD(warmup), 0, LIMIT, .value = "W", .help = "steps of linear warm-up"},
    {"schedule", KR_OPTION_CHOICE, FIELD(schedule), .choices = "cosine|wsd|constant",
     .help = "what follows the warm-up"},
    {"decay-steps", KR_OPTION_INTEGER, FIELD(decay_steps), 1, LIMIT, .value = "N",
     .help = "wsd: steps of the final fall (default a tenth of the steps)"},
    {"weight-decay", KR_OPTION_REAL, FIELD(weight_decay), 0, 1e6, .value = "X",
     .help = "AdamW's decay of matrices (not of norms, biases, embedding, A_log and D)"},
    {"beta1", KR_OPTION_REAL, FIELD(beta1), 0, 0.9999999, .value = "X", .help = "AdamW, mean of gradients"},
    {"beta2", KR_OPTION_REAL, FIELD(beta2), 0, 0.9999999, .value = "X", .help = "AdamW, mean of squares"},
    {"epsilon", KR_OPTION_REAL, FIELD(epsilon), 1e-30, 1, .value = "X", .help = "AdamW"},
    {"grad-clip", KR_OPTION_REAL, FIELD(grad_clip), 0, 1e30, .value = "X", .help = "largest global norm; 0: none"},
    {"grad-accumulation", KR_OPTION_INTEGER, FIELD(grad_accumulation), 1, 1 << 20, .value = "K",
     .help = "micro-batches per update"},
    {"precision", KR_OPTION_CHOICE, FIELD(precision), .choices = KR_PRECISIONS,
     .help = "of matrix products while training; bf16 needs AMX or AVX512_BF16. Weights, sums and loss stay f32"},
    {"eval-every", KR_OPTION_INTEGER, FIELD(eval_every), 0, LIMIT, .value = "N",
     .help = "held-out loss every N steps, and at the end; 0: only at the end"},
    {"eval-batches", KR_OPTION_INTEGER, FIELD(eval_batches), 0, LIMIT, .value = "N",
     .help = "batches of held-out text; 0: all of it"},
    {"save-every", KR_OPTION_INTEGER, FIELD(save_every), 0, LIMIT, .value = "N",
     .help = "checkpoint every N steps, and at the end; 0: only at the end"},
    {"keep", KR_OPTION_INTEGER, FIELD(keep), 0, LIMIT, .value = "N",
     .help = "numbered checkpoints to keep beside best and latest; 0: all"},
    {"log-every", KR_OPTION_INTEGER, FIELD(log_every), 1, LIMIT, .value = "N", .help = "metrics every N steps"},
    {"seed", KR_OPTION_SEED, FIELD(seed), .value = "S", .help = "of parameters and of the order of the data"},
    {"threads", KR_OPTION_INTEGER, FIELD(threads), 0, 4096, .value = "T",
     .help = "0: as the target says; the result does not depend on it", .flags = KR_OPTION_LOCAL},
    {"memory", KR_OPTION_SIZE, FIELD(memory), 1, LIMIT, .value = "SIZE",
     .help = "most that may be resident, 2.9GB or 800MiB: values are recomputed, not stored; same result, to the bit",
     .flags = KR_OPTION_LOCAL},
    {"stop-after", KR_OPTION_INTEGER, FIELD(stop_after), 0, LIMIT, .value = "N",
     .help = "save and leave after step N, to be resumed; the schedule still reaches to --steps",
     .flags = KR_OPTION_COMMAND_LINE},
    {"resume", KR_OPTION_FLAG, FIELD(resume), .help = "go on from the latest checkpoint of --output-dir",
     .flags = KR_OPTION_COMMAND_LINE},
    {"dry-run", KR_OPTION_FLAG, FIELD(dry_run), .help = "say what would be trained and what it needs, then stop",
     .flags = KR_OPTION_COMMAND_LINE},
    {"memory-report", KR_OPTION_FLAG, FIELD(memory_report),
     .help = "each arena and the curve of memory against estimated time at the start, what was used at the end",
     .flags = KR_OPTION_COMMAND_LINE},
    {0},
};

kr_train_settings kr_train_defaults(void) {
    return (kr_train_settings){
        .steps = 500, .batch_size = 8, .seq_len = 256, .learning_rate = 3e-3,
        .min_learning_rate = -1, .warmup = 50, .decay_steps = -1, .schedule = KR_SCHEDULE_COSINE,
        .weight_decay = 0.1, .beta1 = 0.9, .beta2 = 0.95, .epsilon = 1e-8, .grad_clip = 1, .grad_accumulation = 1,
        .eval_every = 100, .eval_batches = 16, .save_every = 100, .keep = 2, .log_every = 10,
    };
}

kr_optimizer kr_train_optimizer(const kr_train_settings *s) {
    return (kr_optimizer){.beta1 = s->beta1, .beta2 = s->beta2, .eps = s->epsilon, .weight_decay = s->weight_decay,
                          .max_norm = s->grad_clip};
}

kr_status kr_train_check(const kr_train_settings *s) {
    KR_FAIL_IF(s->min_learning_rate > s->learning_rate, KR_BAD_ARGUMENT,
               "--min-learning-rate %g is above --learning-rate %g", s->min_learning_rate, s->learning_rate);
    KR_FAIL_IF(s->schedule == KR_SCHEDULE_WSD && s->decay_steps > s->steps, KR_BAD_ARGUMENT,
               "--decay-steps %lld is more than --steps %lld", (long long)s->decay_steps, (long long)s->steps);
    // Rows are numbered in 64 bits over the whole run.
    int64_t rows, tokens;
    KR_FAIL_IF(__builtin_mul_overflow(s->batch_size, s->grad_accumulation, &rows) ||
                   __builtin_mul_overflow(rows, s->steps, &rows) || __builtin_mul_overflow(rows, s->seq_len, &tokens),
               KR_BAD_ARGUMENT, "--steps %lld of --batch-size %lld x --grad-accumulation %lld x --seq-len %lld tokens "
               "are more than 2^63", (long long)s->steps, (long long)s->batch_size, (long long)s->grad_accumulation,
               (long long)s->seq_len);
    return KR_OK;
}
