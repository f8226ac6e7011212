/// Contracts of every block and of the language model: step = forward = any split, packed = separate, the same bits for
/// any number of threads, official names and sizes.
#include "check.h"
#include "models/models.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct setting {
    int64_t batch, d_model, d_state, d_conv, expand, dt_rank;
    bool bias, conv_bias;
} setting;

static const setting settings[] = {
    {2, 16, 16, 4, 2, 0, false, true}, {1, 7, 3, 3, 2, 2, true, true}, {3, 33, 5, 2, 1, 0, false, false},
    {1, 24, 8, 1, 3, 1, false, true},
};

static kr_block_config config_of(const setting *s) {
    kr_block_config c = kr_block_defaults();
    c.d_model = s->d_model;
    c.d_state = s->d_state;
    c.d_conv = s->d_conv;
    c.expand = s->expand;
    c.dt_rank = s->dt_rank;
    c.bias = s->bias;
    c.conv_bias = s->conv_bias;
    return c;
}

/// One block as a graph: x [B, L, D] to y; optional reset input.
static kr_graph *block_graph(const kr_block_kind *kind, const setting *s, int64_t batch, int64_t length, bool carries,
                             bool with_reset) {
    kr_graph *g;
    check_ok(kr_graph_new(&g), "graph");
    kr_graph_carries(g, carries);
    kr_block_config c = config_of(s);
    const kr_value x = kr_input(g, "x", KR_F32, KR_SHAPE(batch, length, s->d_model));
    if (with_reset) c.reset = kr_input(g, "reset", KR_I32, KR_SHAPE(batch, length));
    const kr_value y = kind->build(g, &c, x);
    kr_output(g, "y", y);
    kr_output(g, "loss", kr_reshape(g, kr_sum(g, kr_reshape(g, kr_square(g, y), KR_SHAPE(-1)), 0, true), KR_SHAPE(1)));
    check_ok(kr_graph_status(g), kind->name);
    return g;
}

static kr_plan *plan_of(kr_graph *g, kr_goal goal) {
    kr_plan *plan;
    check_ok(kr_compile(g, &(kr_compile_options){.goal = goal}, &plan, NULL), "compile");
    kr_graph_free(g);
    return plan;
}

static void fill(float *x, int64_t n, uint64_t stream) {
    for (int64_t i = 0; i < n; i++) x[i] = kr_random_normal(5, stream, (uint64_t)i);
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

/// Runs `length` tokens cut at the given lengths through live carries.
static void run_split(const kr_block_kind *kind, const setting *s, const float *x, float *y, int64_t length,
                      const int64_t *cuts, int count) {
    kr_device *device;
    kr_session *session = open_session(&device, 2);
    kr_plan *plans[16];
    for (int i = 0; i < count; i++) {
        plans[i] = plan_of(block_graph(kind, s, s->batch, cuts[i], true, false), KR_GOAL_FORWARD);
        check_ok(kr_session_add(session, plans[i]), "add");
    }
    check_ok(kr_session_init(session, 11), "init");
    int64_t at = 0;
    const int64_t D = s->d_model;
    for (int i = 0; i < count; i++) {
        const size_t bytes = (size_t)(s->batch * cuts[i] * D) * 4;
        float *in = malloc(bytes + 4), *out = malloc(bytes + 4);
        for (int64_t b = 0; b < s->batch; b++) memcpy(in + b * cuts[i] * D, x + (b * length + at) * D, (size_t)(cuts[i] * D) * 4);
        check_ok(kr_plan_run(session, plans[i], (kr_binding[]){{"x", in, bytes}, {"y", out, bytes}}, 2, 0), "run");
        for (int64_t b = 0; b < s->batch; b++) memcpy(y + (b * length + at) * D, out + b * cuts[i] * D, (size_t)(cuts[i] * D) * 4);
        at += cuts[i];
        free(in);
        free(out);
    }
    cr_assert_eq(at, length);
    close_session(session, device);
    for (int i = 0; i < count; i++) kr_plan_free(plans[i]);
}

Test(block, step_equals_forward_equals_any_split) {
    static const struct { int count; int64_t cut[16]; } splits[] = {
        {1, {13}}, {13, {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}}, {2, {4, 9}}, {4, {2, 1, 7, 3}}, {3, {6, 0, 7}}, {2, {12, 1}}};
    for (int k = 0; k < kr_block_kind_count; k++)
        for (size_t s = 0; s < sizeof settings / sizeof *settings; s++) {
            const int64_t n = settings[s].batch * 13 * settings[s].d_model;
            float *x = malloc((size_t)n * 4), *whole = malloc((size_t)n * 4), *cut = malloc((size_t)n * 4);
            fill(x, n, s);
            run_split(kr_block_kinds[k], &settings[s], x, whole, 13, splits[0].cut, 1);
            for (size_t p = 1; p < sizeof splits / sizeof *splits; p++) {
                run_split(kr_block_kinds[k], &settings[s], x, cut, 13, splits[p].cut, splits[p].count);
                cr_assert(worst(cut, whole, n) < 2e-6, "%s, setting %zu, split %zu: off by %g", kr_block_kinds[k]->name, s, p,
                          worst(cut, whole, n));
            }
            free(x), free(whole), free(cut);
        }
}

Test(block, long_sequences_cross_chunk_borders_alike) {
    static const int64_t lengths[] = {31, 32, 33, 63, 64, 65, 97};
    for (int k = 0; k < kr_block_kind_count; k++)
        for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
            const setting *s = &settings[0];
            const int64_t L = lengths[i], n = s->batch * L * s->d_model;
            float *x = malloc((size_t)n * 4), *whole = malloc((size_t)n * 4), *cut = malloc((size_t)n * 4);
            fill(x, n, 100 + i);
            run_split(kr_block_kinds[k], s, x, whole, L, (int64_t[]){L}, 1);
            run_split(kr_block_kinds[k], s, x, cut, L, (int64_t[]){L - 17, 1, 16}, 3);
            cr_assert(worst(cut, whole, n) < 5e-6, "%s at length %ld: off by %g", kr_block_kinds[k]->name, (long)L, worst(cut, whole, n));
            free(x), free(whole), free(cut);
        }
}

/// y and the gradients of all params and of x, by name.
typedef struct result {
    float *y, *dx, *dw;
} result;

static result run_gradients(const kr_block_kind *kind, const setting *s, int64_t batch, int64_t length, const float *x,
                            const int32_t *reset, int threads, int64_t *weights) {
    kr_device *device;
    kr_session *session = open_session(&device, threads);
    kr_plan *plan = plan_of(block_graph(kind, s, batch, length, false, reset != NULL), KR_GOAL_GRADIENTS);
    check_ok(kr_session_add(session, plan), "add");
    check_ok(kr_session_init(session, 11), "init");
    const size_t bytes = (size_t)(batch * length * s->d_model) * 4;
    result r = {malloc(bytes + 4), malloc(bytes + 4), NULL};
    *weights = 0;
    for (int i = 0; i < kr_session_slots(session); i++) *weights += kr_shape_count(&kr_session_slot(session, i)->shape);
    r.dw = malloc((size_t)*weights * 4);
    kr_binding io[64] = {{"x", (void *)x, bytes}, {"y", r.y, bytes}, {"grad.x", r.dx, bytes}};
    int count = 3;
    if (reset) io[count++] = (kr_binding){"reset", (void *)reset, (size_t)(batch * length) * 4};
    char names[64][128];
    float *at = r.dw;
    for (int i = 0; i < kr_session_slots(session); i++) {
        const kr_slot *slot = kr_session_slot(session, i);
        snprintf(names[i], sizeof names[i], "grad.%s", slot->name);
        io[count++] = (kr_binding){names[i], at, slot->bytes};
        at += slot->bytes / 4;
    }
    check_ok(kr_plan_run(session, plan, io, count, 0), "run");
    close_session(session, device);
    kr_plan_free(plan);
    return r;
}

static void free_result(result r) { free(r.y), free(r.dx), free(r.dw); }

Test(block, packed_documents_equal_separate_ones) {
    // One row of three documents with resets, against three runs of their own.
    static const int64_t lengths[] = {5, 1, 9};
    for (int k = 0; k < kr_block_kind_count; k++)
        for (size_t i = 0; i < sizeof settings / sizeof *settings; i++) {
            setting s = settings[i];
            const int64_t D = s.d_model, L = 15;
            float *x = malloc((size_t)(L * D) * 4);
            int32_t reset[15] = {0};
            fill(x, L * D, 40 + i);
            reset[5] = reset[6] = 1; // whether the row's own start is marked makes no difference
            reset[0] = i % 2;
            int64_t weights, same;
            result packed = run_gradients(kr_block_kinds[k], &s, 1, L, x, reset, 2, &weights);
            float *sum = calloc((size_t)weights, 4);
            int64_t at = 0;
            for (int d = 0; d < 3; d++) {
                result alone = run_gradients(kr_block_kinds[k], &s, 1, lengths[d], x + at * D, NULL, 2, &same);
                cr_assert(worst(packed.y + at * D, alone.y, lengths[d] * D) < 3e-6, "%s: document %d differs by %g",
                          kr_block_kinds[k]->name, d, worst(packed.y + at * D, alone.y, lengths[d] * D));
                cr_assert(worst(packed.dx + at * D, alone.dx, lengths[d] * D) < 1e-5, "%s: gradient of document %d differs by %g",
                          kr_block_kinds[k]->name, d, worst(packed.dx + at * D, alone.dx, lengths[d] * D));
                for (int64_t w = 0; w < weights; w++) sum[w] += alone.dw[w];
                at += lengths[d];
                free_result(alone);
            }
            cr_assert(worst(packed.dw, sum, weights) < 1e-5, "%s: gradients of parameters differ by %g", kr_block_kinds[k]->name,
                      worst(packed.dw, sum, weights));
            free_result(packed);
            free(sum), free(x);
        }
}

Test(block, same_bits_for_any_number_of_threads) {
    for (int k = 0; k < kr_block_kind_count; k++)
        for (size_t i = 0; i < sizeof settings / sizeof *settings; i++) {
            const setting *s = &settings[i];
            const int64_t n = s->batch * 41 * s->d_model;
            float *x = malloc((size_t)n * 4);
            int64_t weights;
            fill(x, n, 70 + i);
            result one = run_gradients(kr_block_kinds[k], s, s->batch, 41, x, NULL, 1, &weights);
            for (int threads = 2; threads <= 5; threads++) {
                result many = run_gradients(kr_block_kinds[k], s, s->batch, 41, x, NULL, threads, &weights);
                cr_assert_arr_eq(one.y, many.y, (size_t)n * 4, "%s: y differs with %d threads", kr_block_kinds[k]->name, threads);
                cr_assert_arr_eq(one.dx, many.dx, (size_t)n * 4, "%s: dx differs with %d threads", kr_block_kinds[k]->name, threads);
                cr_assert_arr_eq(one.dw, many.dw, (size_t)weights * 4, "%s: dw differs with %d threads", kr_block_kinds[k]->name, threads);
                free_result(many);
            }
            free_result(one);
            free(x);
        }
}

Test(block, nothing_in_nothing_out) {
    for (int k = 0; k < kr_block_kind_count; k++) {
        int64_t weights;
        float none = 0;
        result r = run_gradients(kr_block_kinds[k], &settings[0], 2, 0, &none, NULL, 2, &weights);
        for (int64_t w = 0; w < weights; w++) cr_assert_eq(r.dw[w], 0, "a gradient out of nothing");
        free_result(r);
    }
}

// The language model ----------------------------------------------------------------------------------------------

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
    static const struct { int64_t d_model; int n_layer; int64_t parameters; } sizes[] = {
        {768, 24, 129135360}, {1024, 48, 371516416}, {1536, 48, 793204224}, {2048, 48, 1372178432}, {2560, 64, 2768345600}};
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
    static const struct { const char *json, *says; } bad[] = {
        {"", "config"}, {"[1]", "object"}, {"{\"d_modell\": 4}", "d_modell"}, {"{\"d_model\": \"big\"}", "d_model"},
        {"{\"d_model\": 4", "byte"}, {"{\"ssm_cfg\": {\"layer\": \"Mamba9\"}}", "Mamba9"}, {"{\"attn_layer_idx\": [70]}", "attn_layer_idx"},
        {"{\"attn_layer_idx\": 3}", "attn_layer_idx"}, {"{\"layers\": [\"mamba1\", 3]}", "layer 1"},
        {"{\"layers\": [\"mamba1\", \"mamba9\"]}", "mamba9"}, {"{\"ssm_cfg\": {\"dt_limit\": [2, 1]}}", "dt_limit"}, {"{\"ssm_cfg\": {\"dt_rank\": \"many\"}}", "dt_rank"},
        {"{\"n_layer\": 99999}", "n_layer"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        cr_assert_neq(kr_model_config_parse(bad[i].json, strlen(bad[i].json), &back), KR_OK, "%s is accepted", bad[i].json);
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
