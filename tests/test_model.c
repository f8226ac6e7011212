/// The language model: official names and sizes, its configuration, and step = forward. Blocks: tests/test_block.c.
#include "check.h"
#include "models/models.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static kr_plan *plan_of(kr_graph *g, kr_goal goal) {
    kr_plan *plan;
    check_ok(kr_compile(g, &(kr_compile_options){.goal = goal}, &plan, NULL), "compile");
    kr_graph_free(g);
    return plan;
}

static kr_session *open_session(kr_device **device, int threads) {
    kr_session *session;
    check_ok(kr_device_cpu(device), "device");
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
    c.block.dt_rank = 7;
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
               {"{\"n_layer\": 99999}", "n_layer"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        cr_assert_neq(kr_model_config_parse(bad[i].json, strlen(bad[i].json), &back), KR_OK, "%s is accepted",
                      bad[i].json);
        cr_assert(strstr(kr_status_message(), bad[i].says), "%s gives \"%s\"", bad[i].json, kr_status_message());
    }
    kr_graph *g;
    c.d_model = -1;
    cr_assert_eq(kr_model_build(&c, KR_MODE_TRAIN, 1, 8, &g), KR_BAD_ARGUMENT);
    cr_assert(strstr(kr_status_message(), "d_model"));
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
