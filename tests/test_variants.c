/// Blocks of one's own: the shared objects of examples/blocks trained from the outside, what cannot be loaded, and
/// `krait new-block`. test_packing.c has the contracts that they must hold.
#include "models/models.h"
#include "program.h"

static void enter_with_models(void) {
    enter();
    FILE *file = fopen("krait.yaml", "w");
    for (int k = 0; k < 3; k++) {
        static const char *const names[] = {"mingru", "rglru", "retnet"};
        fprintf(file, "%s  %s: {layer: %s, d_model: 32, n_layer: 2, headdim: 16, vocab_size: 256}\n",
                k ? "" : "models:\n", names[k], names[k]);
    }
    fclose(file);
}

/// Three objects, since the file names all three blocks.
static const char *blocks(void) {
    static char text[1024];
    const char *at = getenv("KRAIT_VARIANTS");
    snprintf(text, sizeof text, "--block '%s/mingru.so' --block '%s/rglru.so' --block '%s/retnet.so'", at, at, at);
    return text;
}

static void check_training(const char *name) {
    static char first[OUTPUT];
    cr_assert_eq(krait("pretrain %s --model %s --text-file text --batch-size 2 --seq-len 48 --steps 30 --warmup 3 "
                       "--eval-batches 2 "
                       "--log-every 1 --learning-rate 0.01 --output-dir %s",
                       blocks(), name, name),
                 0, "%s", output);
    char command[256];
    snprintf(command, sizeof command,
             "sed -n 's/.*\"loss\": \\([0-9.]*\\), \"lr.*/\\1/p' %s/metrics.jsonl | sed -n '1p;30p'", name);
    FILE *pipe = popen(command, "r");
    double loss[2];
    cr_assert_eq(fscanf(pipe, "%lf %lf", &loss[0], &loss[1]), 2);
    pclose(pipe);
    cr_expect(loss[0] > 5 && loss[1] < 3, "%s: the loss goes from %g to %g", name, loss[0], loss[1]);
    cr_assert_eq(
        krait("generate %s --checkpoint %s --prompt 'line ' --max-new-tokens 40 --temperature 0", blocks(), name), 0,
        "%s", output);
    strcpy(first, output);
    cr_expect_eq(strlen(first), 45);
    // A longer prompt, the same text: prefill and single steps agree.
    FILE *file = fopen("prompt", "w");
    fwrite(first, 1, 30, file);
    fclose(file);
    cr_assert_eq(
        krait("generate %s --checkpoint %s --prompt-file prompt --max-new-tokens 15 --temperature 0", blocks(), name),
        0);
    cr_expect_str_eq(output, first, "%s", name);
    cr_assert_eq(krait("graph %s --model %s --mode decode --emit stats", blocks(), name), 0, "%s", output);
}

Test(variants, mingru, .init = enter_with_models, .fini = leave) { check_training("mingru"); }
Test(variants, rglru, .init = enter_with_models, .fini = leave) { check_training("rglru"); }
Test(variants, retnet, .init = enter_with_models, .fini = leave) { check_training("retnet"); }

Test(variants, the_sources_are_short) {
    static const char *const names[] = {"mingru", "rglru", "retnet"};
    for (int k = 0; k < 3; k++) {
        char path[512], *text;
        size_t bytes, lines = 0;
        snprintf(path, sizeof path, "%s/examples/blocks/%s.c", getenv("KRAIT_SOURCE"), names[k]);
        cr_assert_eq(kr_file_read(path, &text, &bytes), KR_OK);
        for (size_t i = 0; i < bytes; i++) lines += text[i] == '\n';
        cr_expect_lt(lines, 60, "%s", path);
        cr_expect(strstr(text, "arXiv:"), "%s names no paper", path);
        free(text);
    }
}

Test(variants, what_is_no_block_is_refused, .init = enter_with_models, .fini = leave) {
    const char *bad = getenv("KRAIT_BAD_BLOCKS");
    cr_expect_eq(krait("graph --block '%s/outdated.so' --model mamba1-tiny", bad), 1);
    expect_said("another version of Krait");
    expect_said("build it again");
    cr_expect_eq(krait("graph --block '%s/empty.so' --model mamba1-tiny", bad), 1);
    expect_said("KR_BLOCK_EXPORT");
    cr_expect_eq(krait("graph --block nowhere.so --model mamba1-tiny"), 1);
    expect_said("./nowhere.so");
    cr_expect_eq(krait("graph --block ./text --model mamba1-tiny"), 1);
    expect_said("text");
    cr_expect_eq(krait("graph --model mingru"), 2);
    expect_said("--block FILE.so");
}

/// A block's own keys, from krait.yaml into the graph, the checkpoint and out of it again.
Test(variants, keys_of_ones_own, .init = enter_with_models, .fini = leave) {
    static const char *const files[] = {
        "four", "n_experts: 4, sharpness: 0", "three", "n_experts: 3, sharpness: 0", "even", "mixing: even",
        "many", "n_experts: 17", "none", "n_experts: 0", "wrong", "n_expert: 4"};
    for (int k = 0; k < 12; k += 2) {
        FILE *file = fopen(files[k], "w");
        fprintf(file, "models:\n  own: {layers: [experts, mingru], d_model: 8, vocab_size: 256, %s}\n", files[k + 1]);
        fclose(file);
    }
    char with[2048];
    snprintf(with, sizeof with, "--block '%s/experts.so' %s", getenv("KRAIT_BAD_BLOCKS"), blocks());
    cr_assert_eq(krait("graph %s --config four --model own --seq-len 3", with), 0, "%s", output);
    expect_said("param \"backbone.layers.0.mixer.experts.weight\"");
    expect_said("{shape=[8,3,4,8]}");
    expect_said("{scale=0, shift=0}");
    cr_assert_eq(krait("graph %s --config even --model own --seq-len 3", with), 0, "%s", output);
    expect_said("{shape=[8,3,2,8]}"); // two unless given
    cr_expect_null(strstr(output, "gate.weight"));
    cr_expect_eq(krait("graph %s --config many --model own", with), 2);
    expect_said("many:2: n_experts in model own is 17, want 1 to 16");
    cr_expect_eq(krait("graph %s --config none --model own", with), 2);
    expect_said("none:2: n_experts in model own is 0, want 1 to 16");
    cr_expect_eq(krait("graph %s --config wrong --model own", with), 2);
    expect_said("wrong:2: unknown key 'n_expert' in model own; did you mean 'n_experts' of experts?");
    cr_expect_eq(krait("graph %s --config four --model own", blocks()), 2);
    expect_said("'experts', an unknown block"); // and not an unknown key

    static const char run[] = "--text-file text --batch-size 2 --seq-len 16 --warmup 1 --eval-batches 1 "
                              "--output-dir run --config";
    cr_assert_eq(krait("pretrain %s --model own %s four --steps 2", with, run), 0, "%s", output);
    cr_assert_eq(system("grep -q '\"n_experts\": 4' run/latest/state.json"), 0);
    cr_assert_eq(system("grep -q '\"sharpness\": 0.0' run/latest/state.json"), 0);
    cr_assert_eq(krait("generate %s --checkpoint run --prompt a --max-new-tokens 4", with), 0, "%s", output);
    cr_assert_eq(krait("pretrain %s --model own %s four --steps 3 --resume", with, run), 0, "%s", output);
    cr_expect_neq(krait("pretrain %s --model own %s three --steps 4 --resume", with, run), 0);
    expect_said("n_experts is 4 in the checkpoint, 3 now");
    cr_expect_neq(krait("generate %s --checkpoint run --prompt a --max-new-tokens 4", blocks()), 0);
    expect_said("unknown block");
    expect_said("--block FILE.so");
}

static kr_value same(kr_graph *g, const kr_block_config *c, kr_value x) {
    (void)g, (void)c;
    return x;
}

Test(variants, the_table_grows_and_keeps_names_apart) {
    static const kr_block_kind fine = {.name = "same", .official = "Same", .build = same},
                               twice = {.name = "same", .build = same},
                               official = {.name = "mine", .official = "Mamba1", .build = same},
                               unnamed = {.build = same}, empty = {.name = "none"},
                               comma = {.name = "a,b", .build = same};
    cr_assert_eq(kr_block_register(&fine), KR_OK, "%s", kr_status_message());
    cr_assert_eq(kr_block_register(&fine), KR_OK, "again is no harm");
    cr_expect_eq(kr_block_find("Same"), &fine);
    cr_expect_eq(kr_block_at(kr_block_kind_count), &fine);
    cr_expect_null(kr_block_at(kr_block_kind_count + 1));
    cr_expect_null(kr_block_at(-1));
    const kr_block_kind *const bad[] = {&twice, &official, &unnamed, &empty, &comma, NULL};
    for (int k = 0; k < 6; k++) cr_expect_eq(kr_block_register(bad[k]), KR_BAD_ARGUMENT);
    // Tables of keys that cannot be filled
    typedef struct config { int64_t n; double real[2]; } config;
    static const kr_key tables[][3] = {
        {KR_KEY_INT(config, n, 1, 1, 2, "help"), KR_KEY_INT(config, n, 1, 1, 2, "twice")},
        {KR_KEY_INT(config, n, 0, 1, 2, "default out of range")},
        {{"n", KR_KEY_IS_INT, sizeof(config), 1, 1, 2, 0, "beyond the struct"}},
        {{"n", KR_KEY_IS_INT, 0, 1, 1, 2, 0, NULL}},
        {{"n", (kr_key_type)9, 0, 1, 1, 2, 0, "unknown type"}},
        {{"d_model", KR_KEY_IS_INT, 0, 1, 1, 2, 0, "of the model"}},
        {{"n-heads", KR_KEY_IS_INT, 0, 1, 1, 2, 0, "no word"}},
        {{"n", KR_KEY_IS_CHOICE, 0, 0, 0, 0, 0, "no choices"}},
        {{"n", KR_KEY_IS_CHOICE, 0, 2, 0, 0, "a|b", "no third choice"}},
        {{"attention", KR_KEY_IS_INT, 0, 1, 1, 2, 0, "the name of a section"}},
        {{"n", KR_KEY_IS_BOOL, 0, KR_KEY_DERIVED, 0, 1, 0, "neither true nor false"}},
    };
    for (size_t k = 0; k < sizeof tables / sizeof *tables; k++) {
        static kr_block_kind kind;
        kind = (kr_block_kind){.name = "keys", .keys = tables[k], .config_bytes = sizeof(config), .build = same};
        cr_expect_eq(kr_block_register(&kind), KR_BAD_ARGUMENT, "table %zu is taken", k);
    }
    static const kr_block_kind section = {.name = "mine", .section = "attention", .build = same},
                               key = {.name = "mine", .section = "d_state", .build = same};
    cr_expect_eq(kr_block_register(&section), KR_BAD_ARGUMENT);
    cr_expect_eq(kr_block_register(&key), KR_BAD_ARGUMENT);
    // Krait's own tables are in order
    for (int k = 0; k < kr_block_kind_count; k++) {
        static kr_block_kind copies[8];
        static char copy_names[8][32];
        snprintf(copy_names[k], sizeof copy_names[k], "copy_%s", kr_block_kinds[k]->name);
        copies[k] = *kr_block_kinds[k];
        copies[k].name = copy_names[k], copies[k].official = copies[k].section = NULL;
        cr_expect_eq(kr_block_register(&copies[k]), KR_OK, "%s", kr_status_message());
    }
    static kr_block_kind many[80];
    static char names[80][8];
    kr_status status = KR_OK;
    for (int k = 0; k < 80 && !status; k++) {
        sprintf(names[k], "many%d", k);
        many[k] = (kr_block_kind){.name = names[k], .build = same};
        status = kr_block_register(&many[k]);
    }
    cr_expect_eq(status, KR_UNSUPPORTED);
}

Test(variants, help_lists_the_keys_of_a_block, .init = enter_with_models, .fini = leave) {
    cr_assert_eq(krait("help mamba3"), 0);
    expect_said("  rope_fraction           0.5         0 to 1               share of the state that rotates");
    expect_said("heavy_tail|softplus");
    expect_said("  chunk_size              auto        1 to 65536");
    cr_assert_eq(krait("help attention"), 0);
    expect_said("under 'attention:'");
    expect_said("  causal                  true ");
    cr_assert_eq(krait("help mamba2"), 0);
    expect_said("[0, .inf]");
    cr_assert_eq(krait("help mamba9"), 2);
}

Test(variants, new_block_writes_what_it_says, .init = enter_with_models, .fini = leave) {
    cr_assert_eq(krait("new-block mine --out work/mine"), 0, "%s", output);
    expect_said("wrote work/mine/mine.c");
    expect_said("make test");
    static const char *const files[] = {"mine.c", "test_mine.c", "Makefile", "krait.yaml"};
    for (int k = 0; k < 4; k++) {
        char path[64];
        snprintf(path, sizeof path, "work/mine/%s", files[k]);
        cr_expect_eq(access(path, R_OK), 0, "%s", path);
    }
    cr_expect_neq(system("grep -q '@[^.$<]*@' work/mine/mine.c work/mine/test_mine.c"), 0);
    cr_expect_eq(krait("new-block mine --out work/mine"), 2, "nothing is written over");
    expect_said("is there already");
    cr_expect_eq(krait("new-block other"), 2);
    expect_said("--out DIR");
    cr_expect_eq(krait("new-block mamba1 --out x"), 2);
    expect_said("already");
    cr_expect_eq(krait("new-block Mine --out x"), 2);
    cr_expect_eq(krait("new-block ../mine --out x"), 2);
    cr_expect_eq(krait("new-block int --out x"), 2);
    cr_expect_eq(krait("new-block"), 2);
    // In the sources of Krait.
    cr_assert_eq(system("mkdir -p models/blocks && touch models/blocks.c"), 0);
    cr_assert_eq(krait("new-block other"), 0, "%s", output);
    expect_said("X(other)");
    cr_expect_eq(system("grep -q 'kr_block_other = ' models/blocks/other.c"), 0);
}
