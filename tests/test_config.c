/// krait.yaml: what is read, and that every fault names its line and the nearest known key.
#include "tools/config/config.h"
#include "tools/config/train_options.h"

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
    kr_machine t;
    kr_train_settings s = kr_train_defaults();
    cr_assert_eq(parse(good, &c), KR_OK, "%s", kr_status_message());
    cr_assert_str_eq(kr_config_model_name(c, 0), "mine");
    cr_assert_null(kr_config_model_name(c, 1));
    cr_assert_eq(kr_config_model(c, "mine", &m), KR_OK);
    cr_assert_str_eq(m.name, "mine");
    cr_assert_eq(m.d_model, 96);
    cr_assert_eq(m.n_layer, 3);
    cr_assert_not(m.tie_embeddings);
    cr_assert_eq(atof(kr_settings_get(&m.keys, "dt_min")), 2e-3);
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

/// `value` null: the key was not given.
static void expect_key(const kr_model_config *m, const char *name, const char *value) {
    const char *got = kr_settings_get(&m->keys, name);
    cr_expect(got && value ? !strcmp(got, value) : got == value, "%s is %s, want %s", name, got ? got : "not given",
              value ? value : "none");
}

/// All keys of a model, spelled and nested as they may be.
Test(config, models_have_every_key) {
    static const char text[] =
        "models:\n"
        "  listed:\n"
        "    layers: [mamba1, Mamba1, gated_mlp, tinymamba]\n"
        "    d_model: 48\n"
        "    vocab_size: 256\n"
        "    hidden: 100\n"
        "    base_decay: 0.25\n"
        "    context: 77\n"
        "  official:\n"
        "    layer: Mamba1\n"
        "    d_model: 48\n"
        "    n_layer: 2\n"
        "    vocab_size: 256\n"
        "    d_intermediate: 96\n"
        "    headdim: 8\n"
        "    ngroups: 2\n"
        "    d_ssm: 40\n"
        "    chunk_size: 16\n"
        "    is_mimo: yes\n"
        "    mimo_rank: 3\n"
        "    is_outproj_norm: true\n"
        "    rope_fraction: 1.0\n"
        "    A_floor: 1e-3\n"
        "    a_activation: softplus\n"
        "    rmsnorm: false\n"
        "    norm_before_gate: true\n"
        "    D_has_hdim: true\n"
        "    dt_limit: [0.5, .inf]\n"
        "    attention:\n"
        "      num_heads: 6\n"
        "      num_heads_kv: 3\n"
        "      head_dim: 10\n"
        "      mlp_dim: 256\n"
        "      d_conv: 4\n"
        "      rotary_emb_dim: 4\n"
        "      rotary_emb_base: 500\n"
        "      rotary_emb_interleaved: true\n"
        "      qkv_proj_bias: no\n"
        "      causal: no\n"
        "      softmax_scale: 0.5\n"
        "      window: 9\n";
    kr_config *c;
    kr_model_config m;
    cr_assert_eq(parse(text, &c), KR_OK, "%s", kr_status_message());
    cr_assert_eq(kr_config_model(c, "listed", &m), KR_OK);
    cr_expect_eq(m.n_layer, 4);
    cr_expect_str_eq(m.layers, "mamba1,Mamba1,gated_mlp,tinymamba");
    cr_expect_str_eq(kr_model_layer(&m, 3)->name, "tinymamba");
    expect_key(&m, "hidden", "100");
    expect_key(&m, "base_decay", "0.25");
    cr_expect_eq(m.context, 77);
    expect_key(&m, "rmsnorm", NULL);
    cr_assert_eq(kr_config_model(c, "official", &m), KR_OK);
    cr_expect_eq(m.d_intermediate, 96);
    static const char *const given[][2] = {
        {"headdim", "8"}, {"ngroups", "2"}, {"d_ssm", "40"}, {"chunk_size", "16"}, {"mimo_rank", "3"},
        {"is_mimo", "true"}, {"is_outproj_norm", "true"}, {"rmsnorm", "false"}, {"norm_before_gate", "true"},
        {"D_has_hdim", "true"}, {"rope_fraction", "1"}, {"A_floor", "0.001"}, {"a_activation", "softplus"},
        {"dt_limit", "0.5,inf"}, {"attention.num_heads", "6"}, {"attention.num_heads_kv", "3"},
        {"attention.head_dim", "10"}, {"attention.mlp_dim", "256"}, {"attention.d_conv", "4"},
        {"attention.rotary_emb_dim", "4"}, {"attention.rotary_emb_base", "500"},
        {"attention.rotary_emb_interleaved", "true"}, {"attention.qkv_proj_bias", "false"},
        {"attention.causal", "false"}, {"attention.softmax_scale", "0.5"}, {"attention.window", "9"}};
    enum { GIVEN = sizeof given / sizeof *given };
    for (int k = 0; k < GIVEN; k++) cr_expect_eq(atof(kr_settings_get(&m.keys, given[k][0])), atof(given[k][1]));
    for (int k = 0; k < GIVEN; k++)
        if (!atof(given[k][1])) expect_key(&m, given[k][0], given[k][1]);
    cr_expect_eq(m.keys.count, GIVEN);
    // What krait.yaml can say, a checkpoint remembers.
    char *json = kr_model_config_json(&m);
    kr_model_config again;
    cr_assert_eq(kr_model_config_parse(json, strlen(json), &again), KR_OK, "%s", kr_status_message());
    cr_expect_eq(again.keys.count, GIVEN);
    for (int k = 0; k < GIVEN; k++) expect_key(&again, given[k][0], kr_settings_get(&m.keys, given[k][0]));
    free(json);
    kr_config_free(c);
}

/// Parameters of a Mamba-1 or Mamba-2 layer without biases, of the gated MLP and of attention: sums over the tables of
/// the papers' code, written out by hand.
static int64_t mamba1_layer(int64_t d) {
    const int64_t E = 2 * d, N = 16, W = 4, R = (d + 15) / 16;
    return 2 * d * E + E * W + E + E * (R + 2 * N) + E * R + E + E * N + E + E * d;
}
static int64_t mamba2_layer(int64_t d, int64_t N, int64_t P) {
    const int64_t E = 2 * d, H = E / P, W = 4;
    return d * (2 * E + 2 * N + H) + (E + 2 * N) * (W + 1) + 3 * H + E + E * d;
}
static int64_t mamba3_layer(int64_t d, int64_t N, int64_t P, int64_t R, bool mimo) {
    const int64_t E = 2 * d, H = E / P, S = N / 4;
    return d * (2 * E + 2 * N * R + 3 * H + S) + 2 * H + 2 * H * R * N + 2 * N + (mimo ? 3 * H * R * P : 0) + E * d;
}
static int64_t attention_layer(int64_t d, int64_t H, int64_t Dh, int64_t W) {
    return 3 * d * H * Dh + (W ? 3 * H * Dh * (W + 1) : 0) + H * Dh * d;
}

static int64_t count_parameters(const kr_model_config *m) {
    kr_graph *g;
    int64_t sum = 0;
    cr_assert_eq(kr_model_build(m, KR_MODE_EVAL, 1, 1, &g), KR_OK, "%s: %s", m->name, kr_status_message());
    for (int k = 0; k < kr_graph_nodes(g); k++) {
        const kr_node *n = kr_graph_node(g, k);
        if (kr_node_source(n) == KR_SOURCE_PARAM) sum += kr_value_count(g, n->out[0]);
    }
    kr_graph_free(g);
    return sum;
}

Test(config, presets_have_the_published_sizes) {
    const int64_t v8 = 50280, v16 = 50288;
    const struct {
        const char *name;
        int64_t parameters, low, high; // by hand; or a range
    } cases[] = {
        {"mamba-130m", v8 * 768 + 24 * (mamba1_layer(768) + 768) + 768, 129135360, 129135360},
        {"mamba-370m", v8 * 1024 + 48 * (mamba1_layer(1024) + 1024) + 1024, 0, 0},
        {"mamba-790m", v8 * 1536 + 48 * (mamba1_layer(1536) + 1536) + 1536, 0, 0},
        {"mamba-1.4b", v8 * 2048 + 48 * (mamba1_layer(2048) + 2048) + 2048, 0, 0},
        {"mamba-2.8b", v8 * 2560 + 64 * (mamba1_layer(2560) + 2560) + 2560, 0, 0},
        {"mamba2-130m", v16 * 768 + 24 * (mamba2_layer(768, 128, 64) + 768) + 768, 0, 0},
        {"mamba2-370m", v16 * 1024 + 48 * (mamba2_layer(1024, 128, 64) + 1024) + 1024, 0, 0},
        {"mamba2-780m", v16 * 1536 + 48 * (mamba2_layer(1536, 128, 64) + 1536) + 1536, 0, 0},
        {"mamba2-1.3b", v16 * 2048 + 48 * (mamba2_layer(2048, 128, 64) + 2048) + 2048, 0, 0},
        {"mamba2-2.7b", v16 * 2560 + 64 * (mamba2_layer(2560, 128, 64) + 2560) + 2560, 0, 0},
        {"mamba2attn-2.7b",
         v16 * 2560 + 58 * mamba2_layer(2560, 128, 64) + 6 * attention_layer(2560, 30, 128, 4) + 65 * 2560, 0, 0},
        {"transformerpp-2.7b", v16 * 2560 + 32 * (attention_layer(2560, 20, 128, 0) + 3 * 6912 * 2560) + 65 * 2560, 0,
         0},
        {"mamba1-1m", 256 * 160 + 5 * (mamba1_layer(160) + 160) + 160, 900000, 1100000},
        {"mamba2-1m", 256 * 160 + 5 * (mamba2_layer(160, 64, 32) + 160) + 160, 900000, 1100000},
        {"mamba3-1m", 256 * 160 + 5 * (mamba3_layer(160, 64, 32, 1, false) + 160) + 160, 900000, 1100000},
        {"mamba3-mimo-1m", 256 * 160 + 4 * (mamba3_layer(160, 64, 32, 4, true) + 160) + 160, 900000, 1100000},
        {"hybrid-1m",
         256 * 160 + 3 * mamba3_layer(160, 64, 32, 1, false) + attention_layer(160, 5, 32, 0) + 3 * 512 * 160 + 6 * 160,
         900000, 1100000},
        {"tinymamba-1m", 256 * 128 + 3 * (10 * 128 * 128 + 3 * 256 + 3 * 384 * 128 + 2 * 128) + 128, 900000, 1100000},
    };
    kr_config *c;
    cr_assert_eq(kr_config_parse(kr_builtin_yaml, strlen(kr_builtin_yaml), "built-in", &c), KR_OK, "%s",
                 kr_status_message());
    for (int k = 0; kr_config_model_name(c, k); k++) {
        const char *name = kr_config_model_name(c, k);
        kr_model_config m;
        cr_assert_eq(kr_config_model(c, name, &m), KR_OK, "%s", kr_status_message());
        const int64_t got = count_parameters(&m);
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            if (strcmp(cases[i].name, name)) continue;
            cr_expect_eq(got, cases[i].parameters, "%s has %ld parameters, want %ld", name, (long)got,
                         (long)cases[i].parameters);
            if (cases[i].high)
                cr_expect(got >= cases[i].low && got <= cases[i].high, "%s has %ld parameters", name, (long)got);
        }
    }
    kr_config_free(c);
}

static char *graph_text(const kr_graph *g) {
    char *text;
    size_t bytes;
    FILE *to = open_memstream(&text, &bytes);
    cr_assert_eq(kr_graph_print(g, to), KR_OK);
    fclose(to);
    return text;
}

/// What is not given, what is auto and what is 0 are three things.
Test(config, zero_is_zero) {
    kr_config *c;
    kr_model_config m[3];
    kr_graph *g[3];
    char *text[3];
    cr_assert_eq(parse("models:\n"
                       "  a: {layer: mamba3, n_layer: 1, d_model: 16, vocab_size: 8, headdim: 8, d_state: 8}\n"
                       "  b: {layer: mamba3, n_layer: 1, d_model: 16, vocab_size: 8, headdim: 8, d_state: 8,\n"
                       "      chunk_size: auto, rope_fraction: 0.5}\n"
                       "  c: {layer: mamba3, n_layer: 1, d_model: 16, vocab_size: 8, headdim: 8, d_state: 8,\n"
                       "      rope_fraction: 0}\n", &c), KR_OK, "%s", kr_status_message());
    for (int k = 0; k < 3; k++) {
        cr_assert_eq(kr_config_model(c, (const char *[]){"a", "b", "c"}[k], &m[k]), KR_OK);
        // The same after a checkpoint
        char *json = kr_model_config_json(&m[k]);
        cr_assert_eq(kr_model_config_parse(json, strlen(json), &m[k]), KR_OK, "%s", kr_status_message());
        free(json);
        cr_assert_eq(kr_model_build(&m[k], KR_MODE_EVAL, 1, 3, &g[k]), KR_OK, "%s", kr_status_message());
        text[k] = graph_text(g[k]);
    }
    cr_expect_str_eq(text[0], text[1]);
    // in_proj has 2 * 32 + 2 * 8 + 3 * 4 rows, and one for each pair of states that rotates
    cr_expect_not_null(strstr(text[1], "f32[94,16]"));
    cr_expect_not_null(strstr(text[2], "f32[92,16]"));
    for (int k = 0; k < 3; k++) kr_graph_free(g[k]), free(text[k]);
    kr_config_free(c);
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
        {"models:\n  m: {}\n", {"k.yaml:2:", "no d_model"}},
        {"models:\n  m: {layers: mamba1, d_model: 8, vocab_size: 9}\n",
         {"k.yaml:2:", "layers in model m", "want a list"}},
        {"models:\n  m: {layers: [mamba1, [a]], d_model: 8, vocab_size: 9}\n",
         {"k.yaml:2:", "a list", "not a plain word"}},
        {"models:\n  m: {layers: [mamba1, mamab1], d_model: 8, vocab_size: 9}\n",
         {"k.yaml:2:", "'mamab1'", "'mamba1'"}},
        {"models:\n  m: {layers: [], d_model: 8, vocab_size: 9}\n", {"k.yaml:2:", "layers in model m is empty"}},
        {"models:\n  m: {layers: [mamba1], layer: mamba1, d_model: 8, vocab_size: 9}\n", {"k.yaml:2:", "leave layer"}},
        {"models:\n  m: {layers: [mamba1], n_layer: 2, d_model: 8, vocab_size: 9}\n",
         {"k.yaml:2:", "1 layers", "n_layer 2"}},
        {"models:\n  m: {layer: mamba1, n_layer: 2, d_model: 8, vocab_size: 9, attn_layer_idx: [2]}\n",
         {"k.yaml:2:", "attn_layer_idx", "want layers 0 to 1"}},
        {"models:\n  m: {layer: mamba1, d_model: 8, dt_limit: [1]}\n", {"k.yaml:2:", "two numbers"}},
        {"models:\n  m: {layer: mamba1, d_model: 8, dt_limit: [2, 1]}\n", {"k.yaml:2:", "the lower one first"}},
        {"models:\n  m: {layer: mamba1, d_model: 8, dt_limit: [-1, 1]}\n", {"k.yaml:2:", "at least 0"}},
        {"models:\n  m:\n    attention:\n      num_head: 3\n", {"k.yaml:4:", "attention of model m", "'num_heads'"}},
        {"models:\n  m:\n    attention: 3\n", {"k.yaml:3:", "a single value", "want a map"}},
        // keys of blocks: whose they are, and that 0 is 0
        {"models:\n  m: {layer: mamba3, rope_fractoin: 1}\n",
         {"k.yaml:2:", "unknown key 'rope_fractoin' in model m", "'rope_fraction' of mamba3"}},
        {"models:\n  m: {layers: [mamba3, tinymamba], base_dekay: 1}\n", {"'base_decay' of tinymamba"}},
        {"models:\n  m: {layer: mamba1, d_modl: 1}\n", {"did you mean 'd_model'?"}},
        {"models:\n  m: {layer: tinymamba, zzzzzz: 1}\n", {"unknown key 'zzzzzz'", "d_model", "expand, base_decay"}},
        {"models:\n  m: {layer: mamba1, atention: {}}\n", {"unknown key 'atention'"}},
        {"models:\n  m: {layer: mamba1, dt_rank: 0}\n", {"dt_rank in model m is 0, want 1 to 1048576, or auto"}},
        {"models:\n  m: {layer: mamba2, d_ssm: 0}\n", {"d_ssm in model m is 0, want 1 to 16777216, or auto"}},
        {"models:\n  m: {layer: mamba2, chunk_size: 0}\n", {"chunk_size in model m is 0, want 1 to 65536, or auto"}},
        {"models:\n  m: {layer: mamba2, headdim: 0}\n", {"headdim in model m is 0, want 1 to 65536"}},
        {"models:\n  m: {layer: mamba2, headdim: auto}\n", {"headdim in model m wants a whole number, got 'auto'"}},
        {"models:\n  m: {layer: mamba3, a_activation: tanh}\n", {"'tanh', want one of: heavy_tail, softplus"}},
        {"models:\n  m: {layer: attention, attention: {num_heads: 0}}\n",
         {"num_heads in attention of model m is 0, want 1 to 65536, or auto"}},
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
    kr_machine t;
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
