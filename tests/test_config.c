/// krait.yaml: what is read, and that every fault names its line and the nearest known key.
#include "tools/config.h"
#include "tools/train.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

static const char good[] =
    "models:\n"
    "  mine:\n"
    "    layer: mamba1\n"
    "    d_model: 96\n"
    "    n-layer: 3\n"
    "    vocab_size: 256\n"
    "    tie_embeddings: no\n"
    "    dt_min: 2e-3\n"
    "targets:\n"
    "  local: {device: cpu, threads: 2, isa: avx2}\n"
    "pretrain:\n"
    "  steps: 7\n"
    "  schedule: wsd\n"
    "  text_file: \"some where.txt\"\n"
    "  learning_rate: 1e-3\n";

static kr_status parse(const char *text, kr_config **out) {
    return kr_config_parse(text, strlen(text), "k.yaml", out);
}

Test(config, reads_everything) {
    kr_config *c;
    kr_model_config m;
    kr_target t;
    kr_train_settings s = kr_train_defaults();
    cr_assert_eq(parse(good, &c), KR_OK, "%s", kr_status_message());
    cr_assert_str_eq(kr_config_model_name(c, 0), "mine");
    cr_assert_null(kr_config_model_name(c, 1));
    cr_assert_eq(kr_config_model(c, "mine", &m), KR_OK);
    cr_assert_str_eq(m.name, "mine");
    cr_assert_eq(m.d_model, 96);
    cr_assert_eq(m.n_layer, 3);
    cr_assert_not(m.tie_embeddings);
    cr_assert_eq(m.block.dt_min, 2e-3);
    cr_assert_eq(kr_config_target(c, "local", &t), KR_OK);
    cr_assert_eq(t.threads, 2);
    cr_assert_eq(t.isa, 2);
    cr_assert_eq(kr_config_section(c, "pretrain", kr_train_options, &s), KR_OK);
    cr_assert_eq(s.steps, 7);
    cr_assert_eq(s.schedule, KR_SCHEDULE_WSD);
    cr_assert_str_eq(s.text_file, "some where.txt");
    cr_assert_eq(s.batch_size, 8, "what is not given keeps its default");
    kr_config_free(c);
}

Test(config, the_built_in_file_is_the_one_of_the_sources) {
    char path[4096], *text;
    size_t bytes;
    kr_config *c;
    kr_model_config m;
    snprintf(path, sizeof path, "%s/krait.yaml", getenv("KRAIT_SOURCE"));
    cr_assert_eq(kr_file_read(path, &text, &bytes), KR_OK, "%s", kr_status_message());
    cr_assert_str_eq(text, kr_builtin_yaml);
    cr_assert_eq(kr_config_parse(kr_builtin_yaml, strlen(kr_builtin_yaml), "built-in", &c), KR_OK, "%s",
                 kr_status_message());
    for (int k = 0; kr_config_model_name(c, k); k++)
        cr_expect_eq(kr_config_model(c, kr_config_model_name(c, k), &m), KR_OK, "%s", kr_status_message());
    cr_assert_eq(kr_config_model(c, "mamba1-1m", &m), KR_OK);
    cr_assert_eq(m.vocab_size, 256);
    // Presets stay within reach of files that only add models.
    kr_config *own;
    cr_assert_eq(parse(good, &own), KR_OK);
    cr_assert_eq(kr_config_model(own, "mamba1-tiny", &m), KR_OK, "%s", kr_status_message());
    cr_assert_str_eq(m.name, "mamba1-tiny");
    kr_config_free(own);
    kr_config_free(c);
    free(text);
}

#define MODEL "models:\n  m: {layer: mamba1, d_model: 8, n_layer: 1, vocab_size: 256}\n"

Test(config, faults_name_line_and_nearest_key) {
    static const struct {
        const char *text, *part[3];
    } cases[] = {
        // unknown keys
        {"model:\n  a: {}\n", {"k.yaml:1:", "'model'", "'models'"}},
        {"zzz: 1\n", {"k.yaml:1:", "models, targets and pretrain"}},
        {MODEL "pretrain:\n  batchsize: 8\n", {"k.yaml:4:", "'batchsize'", "'batch_size'"}},
        {MODEL "pretrain:\n  steps: 8\n  qqqqq: 8\n", {"k.yaml:5:", "it can have: text_file, output_dir"}},
        {MODEL "pretrain:\n  resume: true\n", {"k.yaml:4:", "command line", "--resume"}},
        {"models:\n  m:\n    layer: mamba1\n    d_modell: 8\n", {"k.yaml:4:", "model m", "'d_model'"}},
        {MODEL "targets:\n  local:\n    thread: 1\n", {"k.yaml:5:", "'threads'"}},
        // wrong types
        {MODEL "pretrain:\n  steps: many\n", {"k.yaml:4:", "whole number", "'many'"}},
        {MODEL "pretrain:\n  steps: 1.5\n", {"k.yaml:4:", "whole number"}},
        {MODEL "pretrain:\n  steps: \"8\"\n", {"k.yaml:4:", "without quotes"}},
        {MODEL "pretrain:\n  steps: [8]\n", {"k.yaml:4:", "a list", "single value"}},
        {MODEL "pretrain:\n  steps: {a: 8}\n", {"k.yaml:4:", "a map"}},
        {MODEL "pretrain:\n  steps:\n", {"k.yaml:4:", "no value"}},
        {MODEL "pretrain:\n  text_file: ~\n", {"k.yaml:4:", "no value"}},
        {MODEL "pretrain:\n  schedule: 3\n", {"k.yaml:4:", "cosine, wsd, constant"}},
        {MODEL "pretrain: 3\n", {"k.yaml:3:", "a single value", "want a map"}},
        {"models: [a, b]\n", {"k.yaml:1:", "map of names"}},
        {"models:\n", {"k.yaml:1:", "map of names"}},
        {"models:\n  m: 3\n", {"k.yaml:2:", "model m", "want a map"}},
        {"models:\n  m:\n    rms_norm: maybe\n", {"k.yaml:3:", "true or false"}},
        {"- a\n- b\n", {"k.yaml:1:", "want a map"}},
        // out of range
        {MODEL "pretrain:\n  batch_size: 0\n", {"k.yaml:4:", "is 0", "1 to"}},
        {MODEL "pretrain:\n  beta1: 1\n", {"k.yaml:4:", "0 to 0.9999999"}},
        {MODEL "pretrain:\n  learning_rate: .inf\n", {"k.yaml:4:", "finite"}},
        {"models:\n  m: {layer: mamba1, d_model: -8}\n", {"k.yaml:2:", "is -8"}},
        {"models:\n  m: {layer: mamba1, d_model: 8, n_layer: 99999}\n", {"k.yaml:2:", "1 to 4096"}},
        // missing or wrong values of models
        {"models:\n  m: {layer: mamba1, d_model: 8, n_layer: 1}\n", {"k.yaml:2:", "no vocab_size"}},
        {"models:\n  m: {layer: mamab1, d_model: 8, n_layer: 1, vocab_size: 9}\n",
         {"k.yaml:2:", "'mamab1'", "'mamba1'"}},
        {"models:\n  m: {}\n", {"k.yaml:2:", "no layer"}},
        // YAML itself
        {"", {"k.yaml", "empty"}},
        {"# only a comment\n", {"empty"}},
        {MODEL "pretrain:\n  steps: 8\n  seed: 1\n  steps: 9\n", {"k.yaml:6:", "'steps'", "line 4"}},
        {MODEL "pretrain:\n  batch_size: 8\n  batch-size: 9\n", {"k.yaml:5:", "line 4"}},
        {"models: {a: &x {layer: mamba1}}\n", {"k.yaml:1:", "anchors (&x)"}},
        {"models:\n  a: *x\n", {"k.yaml:2:", "aliases (*x)"}},
        {"models:\n  <<: *x\n", {"k.yaml:2:", "aliases"}},
        {"models: !!map {}\n", {"k.yaml:1:", "tags"}},
        {"models:\n  ? [a]\n  : 3\n", {"k.yaml:2:", "plain text"}},
        {"models:\n  a: {b: 1\n", {"k.yaml:"}},
        {"models:\n\ta: 1\n", {"k.yaml:2:"}},
        {"a: b: c\n", {"k.yaml:1:"}},
        {"a: 1\n---\nb: 2\n", {"k.yaml:2:", "second document"}},
        {"a: \"\\0\"\n", {"k.yaml:1:", "0 byte"}},
        {"a: \xff\xfe\xfd\n", {"k.yaml"}},
    };
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        kr_config *c;
        const kr_status status = parse(cases[k].text, &c);
        cr_expect_eq(status, KR_BAD_ARGUMENT, "accepted: %s", cases[k].text);
        if (!status) kr_config_free(c);
        for (int p = 0; p < 3 && cases[k].part[p]; p++)
            cr_expect(strstr(kr_status_message(), cases[k].part[p]), "%s gives '%s', which lacks '%s'", cases[k].text,
                      kr_status_message(), cases[k].part[p]);
    }
}

Test(config, nothing_grows_by_expansion) {
    // "Billion laughs": each line would double what the one before stands for.
    kr_config *c;
    char text[4096] = "a: &a [x, x]\n";
    for (char k = 'b'; k < 'z'; k++) sprintf(text + strlen(text), "%c: &%c [*%c, *%c]\n", k, k, k - 1, k - 1);
    cr_assert_eq(parse(text, &c), KR_BAD_ARGUMENT);
    cr_assert(strstr(kr_status_message(), "k.yaml:1:"), "%s", kr_status_message());

    // Depth, number and size have ends too.
    char deep[400];
    memset(deep, '[', sizeof deep - 1);
    deep[sizeof deep - 1] = 0;
    cr_assert_eq(parse(deep, &c), KR_BAD_ARGUMENT);
    cr_assert(strstr(kr_status_message(), "deep"), "%s", kr_status_message());
    const size_t bytes = (1 << 20) + 1;
    char *large = calloc(1, bytes + 1);
    memset(large, ' ', bytes);
    cr_assert_eq(kr_config_parse(large, bytes, "k.yaml", &c), KR_BAD_ARGUMENT);
    strcpy(large, "a: [");
    for (size_t k = 4; k + 2 < 20000; k += 2) memcpy(large + k, "1,", 2);
    cr_assert_eq(kr_config_parse(large, 20000, "k.yaml", &c), KR_BAD_ARGUMENT);
    cr_assert(strstr(kr_status_message(), "more than"), "%s", kr_status_message());
    free(large);
}

Test(config, unknown_names_list_the_known_ones) {
    kr_config *c;
    kr_model_config m;
    kr_target t;
    cr_assert_eq(parse(good, &c), KR_OK);
    cr_assert_eq(kr_config_model(c, "mien", &m), KR_BAD_ARGUMENT);
    cr_assert(strstr(kr_status_message(), "'mien'") && strstr(kr_status_message(), "did you mean 'mine'"), "%s",
              kr_status_message());
    cr_assert_eq(kr_config_target(c, "cluster", &t), KR_BAD_ARGUMENT);
    cr_assert(strstr(kr_status_message(), "local"), "%s", kr_status_message());
    kr_config_free(c);
}

Test(config, any_cut_of_a_good_file_is_read_or_refused) {
    for (size_t n = 0; n < sizeof good; n++) {
        char *cut = malloc(n ? n : 1); // exactly n bytes, so that a read beyond them is seen
        kr_config *c;
        memcpy(cut, good, n);
        if (!kr_config_parse(cut, n, "k.yaml", &c)) kr_config_free(c);
        free(cut);
    }
}
