// krait pretrain: settings from the defaults, then krait.yaml, then the command line.
#include "tools/train.h"

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

static kr_status run(int argc, char **argv, kr_config **config) {
    bool help;
    kr_train_settings settings = kr_train_defaults();
    settings.batch_size = settings.seq_len = 0;
    KR_TRY(kr_options_parse(&usage, argc, argv, &settings, NULL, &help)); // for --config, and to fail early
    if (help) return KR_OK;
    KR_FAIL_IF(!settings.model == !settings.graph, KR_BAD_ARGUMENT,
               settings.model
                   ? "--model and --graph exclude each other"
                   : "--model NAME is missing: a model of krait.yaml (or --graph FILE, a graph in text form)");
    KR_FAIL_IF(settings.graph && (settings.batch_size || settings.seq_len), KR_BAD_ARGUMENT,
               "--batch-size and --seq-len are for --model: the shapes of %s stand in it", settings.graph);
    KR_TRY(kr_block_load_all(&settings.blocks));
    KR_TRY(kr_config_load(settings.config, config));
    settings = kr_train_defaults();
    KR_TRY(kr_config_section(*config, "pretrain", kr_train_options, &settings));
    const char *usual_text = settings.text_file;
    KR_TRY(kr_options_parse(&usage, argc, argv, &settings, NULL, &help));
    // The usual text belongs to the sources; elsewhere a dry run does without it, and training needs a text named.
    if (settings.text_file && settings.text_file == usual_text && access(usual_text, F_OK) != 0) {
        KR_FAIL_IF(!settings.dry_run, KR_BAD_ARGUMENT,
                   "no text to learn: %s names %s, which is not here; give --text-file "
                   "FILE",
                   kr_config_label(*config), usual_text);
        settings.text_file = NULL;
    }

    kr_model_config model;
    kr_machine target;
    if (settings.model) KR_TRY(kr_config_model(*config, settings.model, &model));
    KR_TRY(kr_config_target(*config, settings.target, &target));
    return kr_train(&settings, settings.model ? &model : NULL, &target, kr_config_label(*config));
}

int kr_cmd_pretrain(int argc, char **argv) {
    kr_config *config = NULL;
    setvbuf(stdout, NULL, _IOLBF, 0);
    const kr_status status = run(argc, argv, &config);
    const int code = status ? kr_tool_fail("pretrain", status) : KR_EXIT_OK;
    kr_config_free(config);
    return code;
}
