// krait pretrain: settings from the defaults, then krait.yaml, then the command line.
#include "tools/command.h"
#include "tools/config/block_file.h"
#include "tools/config/config.h"
#include "tools/config/train_options.h"
#include "tools/train/train.h"

#include <signal.h>
#include <unistd.h>

static const kr_usage usage = {
    .command = "pretrain",
    .synopsis = "--model NAME | --graph FILE [--target NAME] [--config FILE] [-- OVERRIDES]",
    .text =
        "Trains a language model from nothing on the bytes of a text. Model, target and defaults come from krait.yaml\n"
        "(section pretrain); options win over it. Writes checkpoints (best, latest), metrics.jsonl, TensorBoard\n"
        "events, report.md and loss.svg into the run's directory. SIGINT and SIGTERM save and leave; --resume goes\n"
        "on with the same bits as if nothing had happened.",
    .options = kr_train_options,
};

// A first signal asks the run to stop after its step; the handler then steps aside, so a second one ends the process.
static volatile sig_atomic_t asked_to_stop;

static void on_signal(int number) {
    static const char note[] = "\nfinishing this step, then saving; once more leaves at once\n";
    asked_to_stop = number;
    const ssize_t written = write(STDERR_FILENO, note, sizeof note - 1); // one of the few calls allowed here
    (void)written;
}

static void watch_signals(void *own, bool on) {
    (void)own;
    const struct sigaction action = {.sa_handler = on ? on_signal : SIG_DFL, .sa_flags = on ? (int)SA_RESETHAND : 0};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

static bool stop(void *own) {
    (void)own;
    return asked_to_stop != 0;
}

/// The usual text belongs to the sources; elsewhere a dry run does without it, and training needs a text named.
static kr_status check_text(kr_train_settings *s, const char *usual, const kr_config *config) {
    if (!s->text_file || s->text_file != usual || access(usual, F_OK) == 0) return KR_OK;
    KR_FAIL_IF(!s->dry_run, KR_BAD_ARGUMENT, "no text to learn: %s names %s, which is not here; give --text-file FILE",
               kr_config_label(config), usual);
    s->text_file = NULL;
    return KR_OK;
}

static kr_status run(int argc, char **argv, kr_config **config) {
    bool help;
    kr_train_command c = {.settings = kr_train_defaults(), .target = "local"};
    c.settings.batch_size = c.settings.seq_len = 0;
    KR_TRY(kr_command_options(&usage, argc, argv, &c, NULL, &help)); // for --config, and to fail early
    if (help) return KR_OK;
    KR_FAIL_IF(!c.model == !c.settings.graph, KR_BAD_ARGUMENT,
               c.model ? "--model and --graph exclude each other"
                       : "--model NAME is missing: a model of krait.yaml (or --graph FILE, a graph in text form)");
    KR_FAIL_IF(c.settings.graph && (c.settings.batch_size || c.settings.seq_len), KR_BAD_ARGUMENT,
               "--batch-size and --seq-len are for --model: the shapes of %s stand in it", c.settings.graph);
    KR_TRY(kr_block_load_all(&c.blocks));
    KR_TRY(kr_config_load(c.config, config));
    c = (kr_train_command){.settings = kr_train_defaults(), .target = "local"};
    KR_TRY(kr_config_section(*config, "pretrain", kr_train_options, &c.settings));
    const char *usual_text = c.settings.text_file;
    KR_TRY(kr_options_parse(&usage, argc, argv, &c, NULL, &help));
    KR_TRY(check_text(&c.settings, usual_text, *config));

    kr_model_config model;
    kr_machine machine;
    if (c.model) KR_TRY(kr_config_model(*config, c.model, &model));
    KR_TRY(kr_config_target(*config, c.target, &machine));
    if (machine.isa) KR_TRY(kr_isa_limit((kr_isa)(machine.isa - 1)));
    const kr_train_host host = {.device = c.device, .threads = (int)machine.threads,
                                .model_source = kr_config_label(*config), .report = stdout, .progress = stderr,
                                .steps = watch_signals, .stop = stop};
    return kr_train(&c.settings, c.model ? &model : NULL, &host);
}

int kr_cmd_pretrain(int argc, char **argv) {
    kr_config *config = NULL;
    setvbuf(stdout, NULL, _IOLBF, 0);
    const int code = kr_command_end("pretrain", run(argc, argv, &config));
    kr_config_free(config);
    return code;
}
