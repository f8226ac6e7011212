/// The language model: official names and sizes, its configuration, and step = forward. Blocks: tests/test_block.c.
#include "check.h"
#include "models/models.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static kr_plan *plan_of(kr_graph *g, kr_goal goal) {
    kr_plan *plan;
    check_ok(kr_compile(g, &(kr_compile_options){.goal = goal, .target = check_device(NULL)}, &plan, NULL), "compile");
    kr_graph_free(g);
    return plan;
}

static kr_session *open_session(kr_device **device, int threads) {
    kr_session *session;
    check_device(device);
    check_ok(kr_session_open(*device, threads, &session), "session");
    return session;
}

static void close_session(kr_session *session, kr_device *device) {
    kr_session_close(session);
    kr_device_close(device);
}

static double worst(const float *a, const float *b, int64_t n) {
    double most = 0, scale = 1e-3;
    for (int64_t i = 0; i < n; i++) {
        most = fmax(most, fabs((double)a[i] - b[i]));
        scale = fmax(scale, fabs((double)b[i]));
    }
    return most / scale;
}

static int64_t parameters(const kr_model_config *c) {
    kr_graph *g;
    check_ok(kr_model_build(c, KR_MODE_TRAIN, 1, 8, &g), "model");
    int64_t n = 0;
    for (int i = 0; i < kr_graph_nodes(g); i++)
        if (kr_node_source(kr_graph_node(g, i)) == KR_SOURCE_PARAM) n += kr_value_count(g, kr_graph_node(g, i)->out[0]);
    kr_graph_free(g);
    return n;
}

Test(model, official_sizes) {
    static const struct { int64_t d_model; int n_layer; int64_t parameters;
    } sizes[] = {{768, 24, 129135360},
                 {1024, 48, 371516416},
                 {1536, 48, 793204224},
                 {2048, 48, 1372178432},
                 {2560, 64, 2768345600}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        kr_model_config c = kr_model_defaults();
        c.d_model = sizes[i].d_model;
        c.n_layer = sizes[i].n_layer;
        c.vocab_size = 50277;
        cr_assert_eq(parameters(&c), sizes[i].parameters, "d_model %ld: %ld parameters, want %ld", (long)c.d_model,
                     (long)parameters(&c), (long)sizes[i].parameters);
    }
}

Test(model, official_names_and_decay_groups) {
    static const struct { const char *name; bool decay; } want[] = {
        {"backbone.embedding.weight", false}, {"backbone.layers.0.norm.weight", false},
        {"backbone.layers.0.mixer.in_proj.weight", true}, {"backbone.layers.0.mixer.conv1d.weight", true},
        {"backbone.layers.0.mixer.conv1d.bias", false}, {"backbone.layers.0.mixer.x_proj.weight", true},
        {"backbone.layers.0.mixer.dt_proj.weight", true}, {"backbone.layers.0.mixer.dt_proj.bias", false},
        {"backbone.layers.0.mixer.A_log", false}, {"backbone.layers.0.mixer.D", false},
        {"backbone.layers.0.mixer.out_proj.weight", true}, {"backbone.norm_f.weight", false}};
    kr_model_config c = kr_model_defaults();
    c.n_layer = 1;
    kr_graph *g;
    check_ok(kr_model_build(&c, KR_MODE_TRAIN, 1, 8, &g), "model");
    size_t seen = 0;
    for (int i = 0; i < kr_graph_nodes(g); i++) {
        const kr_node *n = kr_graph_node(g, i);
        if (kr_node_source(n) != KR_SOURCE_PARAM) continue;
        cr_assert_lt(seen, sizeof want / sizeof *want);
        cr_assert_str_eq(n->name, want[seen].name);
        cr_assert_eq((bool)(n->attrs.i[0] & KR_PARAM_DECAY), want[seen].decay, "%s", n->name);
        seen++;
    }
    cr_assert_eq(seen, sizeof want / sizeof *want);
    kr_graph_free(g);
}

Test(model, configuration_round_trip_and_errors) {
    kr_model_config c = kr_model_defaults(), back;
    check_ok(kr_settings_set(&c.keys, "dt_rank", "7"), "dt_rank");
    c.tie_embeddings = false;
    char *json = kr_model_config_json(&c);
    cr_assert(json != NULL);
    check_ok(kr_model_config_parse(json, strlen(json), &back), "parse");
    char *again = kr_model_config_json(&back);
    cr_assert_str_eq(json, again);
    free(json);
    free(again);
    static const struct { const char *json, *says;
    } bad[] = {{"", "config"},
               {"[1]", "object"},
               {"{\"d_modell\": 4}", "d_modell"},
               {"{\"d_model\": \"big\"}", "d_model"},
               {"{\"d_model\": 4", "byte"},
               {"{\"ssm_cfg\": {\"layer\": \"Mamba9\"}}", "Mamba9"},
               {"{\"attn_layer_idx\": [70]}", "attn_layer_idx"},
               {"{\"attn_layer_idx\": 3}", "attn_layer_idx"},
               {"{\"layers\": [\"mamba1\", 3]}", "layer 1"},
               {"{\"layers\": [\"mamba1\", \"mamba9\"]}", "mamba9"},
               {"{\"ssm_cfg\": {\"dt_limit\": [2, 1]}}", "dt_limit"},
               {"{\"ssm_cfg\": {\"dt_rank\": \"many\"}}", "dt_rank"},
               {"{\"ssm_cfg\": {\"dt_rank\": 1.5}}", "dt_rank"},
               {"{\"ssm_cfg\": {\"d_state\": 5000}}", "\"d_state\" is 5000, want 1 to 4096"},
               {"{\"ssm_cfg\": {\"d_state\": \"16\"}}", "\"d_state\" is \"16\", want an integer"},
               {"{\"ssm_cfg\": {\"expand\": 0}}", "\"expand\" is 0, want 1 to 64"},
               {"{\"ssm_cfg\": {\"bias\": 1}}", "bias"},
               {"{\"ssm_cfg\": {\"d_stat\": 3}}", "\"d_stat\" in ssm_cfg; keys of mamba1: d_state, d_conv"},
               {"{\"attn_cfg\": {\"num_head\": 3}}", "\"num_head\" in attn_cfg; keys of attention: num_heads"},
               {"{\"attn_cfg\": 3}", "attn_cfg is not an object"},
               {"{\"n_layer\": 99999}", "n_layer"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        cr_assert_neq(kr_model_config_parse(bad[i].json, strlen(bad[i].json), &back), KR_OK, "%s is accepted",
                      bad[i].json);
        cr_assert(strstr(kr_status_message(), bad[i].says), "%s gives \"%s\"", bad[i].json, kr_status_message());
    }
    kr_graph *g;
    check_ok(kr_settings_set(&c.keys, "d_stat", "7"), "set");
    cr_assert_eq(kr_model_build(&c, KR_MODE_TRAIN, 1, 8, &g), KR_BAD_ARGUMENT);
    cr_assert(strstr(kr_status_message(), "unknown key d_stat; keys of mamba1: d_state"), "%s", kr_status_message());
    c.d_model = -1;
    cr_assert_eq(kr_model_build(&c, KR_MODE_TRAIN, 1, 8, &g), KR_BAD_ARGUMENT);
    cr_assert(strstr(kr_status_message(), "d_model"));
}

static char *graph_of(const kr_model_config *c, const char *what) {
    kr_graph *g;
    char *text;
    size_t bytes;
    check_ok(kr_model_build(c, KR_MODE_PREFILL, 1, 3, &g), what);
    FILE *to = open_memstream(&text, &bytes);
    check_ok(kr_graph_print(g, to), what);
    fclose(to);
    kr_graph_free(g);
    return text;
}

/// "model" in state.json as Krait wrote it before blocks declared their keys, and the same with 0 where that meant the
/// default: the model is the one that these settings make today.
Test(model, configurations_of_before_mean_the_same) {
    static const struct { const char *json, *layers, *keys[12]; int64_t context; } cases[] = {
        {"{\"name\": \"z1\", \"d_model\": 32, \"n_layer\": 1, \"vocab_size\": 256, \"pad_vocab_size_multiple\": 8,"
         " \"rms_norm\": true, \"tie_embeddings\": true,"
         " \"ssm_cfg\": {\"layer\": \"Mamba1\", \"d_state\": 16, \"dt_rank\": \"auto\"}}",
         "mamba1", {0}, 4096},
        {"{\"d_model\": 32, \"n_layer\": 1, \"vocab_size\": 256, \"context\": 0,"
         " \"ssm_cfg\": {\"layer\": \"Mamba1\", \"d_state\": 0, \"dt_rank\": 0, \"headdim\": 0, \"hidden\": -1}}",
         "mamba1", {0}, 4096},
        {"{\"name\": \"z2\", \"d_model\": 32, \"n_layer\": 3, \"vocab_size\": 256, \"pad_vocab_size_multiple\": 8,"
         " \"rms_norm\": true, \"tie_embeddings\": true, \"layers\": [\"mamba2\", \"attention\", \"gated_mlp\"],"
         " \"ssm_cfg\": {\"layer\": \"Mamba2\", \"d_state\": 16, \"headdim\": 16, \"rmsnorm\": false,"
         " \"dt_rank\": \"auto\", \"dt_limit\": [0.01, 0.5]}, \"attn_cfg\": {\"num_heads\": 2}}",
         "mamba2,attention,gated_mlp",
         {"d_state", "16", "headdim", "16", "rmsnorm", "false", "dt_limit", "0.01,0.5", "attention.num_heads", "2"},
         4096},
        {"{\"d_model\": 32, \"n_layer\": 3, \"vocab_size\": 256, \"layers\": [\"mamba2\", \"attention\","
         " \"gated_mlp\"], \"ssm_cfg\": {\"layer\": \"Mamba2\", \"d_state\": 16, \"headdim\": 16, \"ngroups\": 0,"
         " \"d_ssm\": 0, \"chunk_size\": 0, \"hidden\": 0, \"rmsnorm\": false, \"dt_limit\": [0.01, 0.5]},"
         " \"attn_cfg\": {\"num_heads\": 2, \"num_heads_kv\": 0, \"head_dim\": 0, \"rotary_emb_base\": 0,"
         " \"softmax_scale\": 0, \"window\": 0, \"mlp_dim\": 0, \"d_conv\": 0, \"rotary_emb_dim\": 0}}",
         "mamba2,attention,gated_mlp",
         {"d_state", "16", "headdim", "16", "rmsnorm", "false", "dt_limit", "0.01,0.5", "attention.num_heads", "2"},
         4096},
        {"{\"name\": \"z3\", \"d_model\": 32, \"n_layer\": 2, \"vocab_size\": 256, \"pad_vocab_size_multiple\": 8,"
         " \"context\": 77, \"rms_norm\": true, \"tie_embeddings\": true, \"layers\": [\"mamba3\", \"tinymamba\"],"
         " \"ssm_cfg\": {\"layer\": \"Mamba3\", \"d_state\": 16, \"headdim\": 16, \"base_decay\": 0.5,"
         " \"dt_rank\": \"auto\", \"a_activation\": \"softplus\"}}",
         "mamba3,tinymamba",
         {"d_state", "16", "headdim", "16", "base_decay", "0.5", "a_activation", "softplus", "rope_fraction", "0.5"},
         77},
        {"{\"d_model\": 32, \"n_layer\": 2, \"vocab_size\": 256, \"context\": 77, \"layers\": [\"mamba3\","
         " \"tinymamba\"], \"ssm_cfg\": {\"layer\": \"Mamba3\", \"d_state\": 16, \"headdim\": 16, \"mimo_rank\": 0,"
         " \"A_floor\": 0, \"base_decay\": 0, \"a_activation\": \"softplus\"}}",
         "mamba3,tinymamba", {"d_state", "16", "headdim", "16", "a_activation", "softplus"}, 77},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        kr_model_config now = kr_model_defaults(), then;
        now.d_model = 32, now.context = cases[i].context;
        now.n_layer = 1;
        for (const char *c = cases[i].layers; *c; c++) now.n_layer += *c == ',';
        strcpy(now.layers, cases[i].layers);
        for (int k = 0; k < 12 && cases[i].keys[k]; k += 2)
            check_ok(kr_settings_set(&now.keys, cases[i].keys[k], "%s", cases[i].keys[k + 1]), cases[i].keys[k]);
        check_ok(kr_model_config_parse(cases[i].json, strlen(cases[i].json), &then), cases[i].json);
        char *want = graph_of(&now, cases[i].layers), *got = graph_of(&then, cases[i].json);
        cr_expect_str_eq(got, want, "%s", cases[i].json);
        free(want);
        free(got);
    }
}

/// The complete form tells defaults too, and nothing of blocks that the model does not have.
Test(model, every_key_of_its_blocks) {
    kr_model_config c = kr_model_defaults();
    strcpy(c.layers, "mamba3,mamba1,attention");
    c.n_layer = 3;
    check_ok(kr_settings_set(&c.keys, "rope_fraction", "0"), "set");
    char *json = kr_model_config_json_complete(&c);
    static const char *const has[] = {"\"rope_fraction\":0.0", "\"headdim\":64", "\"d_conv\":4",
        "\"a_activation\":\"heavy_tail\"", "\"num_heads\":\"auto\"", "\"causal\":true",
        "\"d_state\":null"}; // 16 in one, 128 in the other
    for (size_t k = 0; k < sizeof has / sizeof *has; k++)
        cr_expect_not_null(strstr(json, has[k]), "%s lacks %s", json, has[k]);
    cr_expect_null(strstr(json, "base_decay"));
    free(json);
}

Test(model, prefill_and_decode_equal_the_full_forward) {
    kr_model_config c = kr_model_defaults();
    c.d_model = 20;
    c.n_layer = 2;
    c.vocab_size = 30;
    enum { B = 2, L = 9, PROMPT = 4 };
    const int64_t V = kr_model_vocab(&c);
    int32_t tokens[B * L];
    for (int i = 0; i < B * L; i++) tokens[i] = (i * 17 + 3) % 30;
    kr_device *device;
    kr_session *session = open_session(&device, 2);
    kr_graph *g[3];
    check_ok(kr_model_build(&c, KR_MODE_LOGITS, B, L, &g[0]), "logits");
    check_ok(kr_model_build(&c, KR_MODE_PREFILL, B, PROMPT, &g[1]), "prefill");
    check_ok(kr_model_build(&c, KR_MODE_DECODE, B, 1, &g[2]), "decode");
    kr_plan *plan[3];
    for (int i = 0; i < 3; i++) {
        plan[i] = plan_of(g[i], KR_GOAL_FORWARD);
        check_ok(kr_session_add(session, plan[i]), "add");
    }
    check_ok(kr_session_init(session, 1), "init");
    float *all = malloc((size_t)(B * L * V) * 4), *last = malloc((size_t)(B * V) * 4);
    check_ok(kr_plan_run(session, plan[0], (kr_binding[]){{"tokens", tokens, sizeof tokens},
        {"logits", all, (size_t)(B * L * V) * 4}}, 2, 0), "forward");
    for (int t = PROMPT - 1; t < L; t++) {
        int32_t now[B * PROMPT];
        const bool prefill = t == PROMPT - 1;
        const int length = prefill ? PROMPT : 1;
        for (int b = 0; b < B; b++)
            for (int k = 0; k < length; k++) now[b * length + k] = tokens[b * L + t - length + 1 + k];
        check_ok(kr_plan_run(session, plan[prefill ? 1 : 2], (kr_binding[]){{"tokens", now, (size_t)(B * length) * 4},
            {"logits", last, (size_t)(B * V) * 4}}, 2, 0), "step");
        for (int b = 0; b < B; b++)
            cr_assert(worst(last + b * V, all + (b * L + t) * V, V) < 5e-6, "row %d at token %d", b, t);
    }
    free(all);
    free(last);
    close_session(session, device);
    for (int i = 0; i < 3; i++) kr_plan_free(plan[i]);
}
