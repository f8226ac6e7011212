/// Graphs of thousands of layers. No pass, and nothing that builds, prints or reads graphs, may take time that grows
/// with
/// the square of the layers: this suite ends within its timeout, sanitizers included, or it does not.
#include "check.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

enum { LAYERS = 4000 };

/// Residual blocks with a carried state: three parameters and a carry each, which are looked up by name. Without scopes
/// the whole model is one block.
static kr_graph *deep_model(int layers, bool scopes) {
    kr_graph *g;
    check_ok(kr_graph_new(&g), "graph");
    kr_value x = kr_input(g, "x", KR_F32, KR_SHAPE(2, 4, 8));
    const kr_value gate = kr_sigmoid(g, kr_input(g, "gate", KR_F32, KR_SHAPE(2, 4, 8))); // every layer reads it
    for (int k = 0; k < layers; k++) {
        char name[4][32];
        for (int j = 0; j < 4; j++) snprintf(name[j], sizeof *name, "%c%d", "wnbs"[j], k);
        if (scopes) kr_scope_push(g, "layers.%d", k);
        const kr_init init = {.kind = KR_INIT_NORMAL, .a = 0.02};
        const kr_value w = kr_param(g, name[0], KR_SHAPE(8, 8), init, KR_PARAM_DECAY);
        const kr_value b = kr_param(g, name[2], KR_SHAPE(8), init, 0);
        const kr_value y = kr_rms_norm(g, x, kr_param(g, name[1], KR_SHAPE(8), init, 0), 1e-5);
        const kr_value h0 = kr_carry(g, name[3], KR_F32, KR_SHAPE(2, 8));
        kr_value last;
        const kr_value h = kr_linear_scan(g, gate, kr_linear(g, y, w, b), h0, KR_NONE, &last);
        kr_carry_set(g, h0, last);
        x = kr_add(g, x, kr_mul(g, kr_silu(g, h), gate));
        if (scopes) kr_scope_pop(g);
    }
    kr_output(g, "loss", kr_reshape(g, kr_mean(g, kr_reshape(g, x, KR_SHAPE(64)), 0, false), KR_SHAPE(1)));
    check_ok(kr_graph_status(g), "deep model");
    return g;
}

static void compile(kr_graph *g, kr_goal goal, kr_memory_curve *curve) {
    kr_plan *plan;
    kr_plan_stats stats;
    const kr_compile_options options = {
        .goal = goal, .curve = curve, .optimizer = {.beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .max_norm = 1}};
    check_ok(kr_compile(g, &options, &plan, &stats), "compile");
    cr_assert_geq(stats.steps, LAYERS / 20);
    kr_plan_free(plan);
    kr_graph_free(g);
}

Test(deep, training) { compile(deep_model(LAYERS, true), KR_GOAL_TRAIN, NULL); }

Test(deep, gradients_as_outputs) { compile(deep_model(LAYERS, true), KR_GOAL_GRADIENTS, NULL); }

Test(deep, inference) { compile(deep_model(LAYERS, true), KR_GOAL_FORWARD, NULL); }

/// The curve plans about thirty times, and in a graph without blocks the moves are sought in all of it.
Test(deep, budget_of_memory) {
    static kr_memory_curve curve;
    compile(deep_model(LAYERS / 10, true), KR_GOAL_TRAIN, &curve);
    cr_assert_geq(curve.count, 3);
    compile(deep_model(LAYERS / 20, false), KR_GOAL_TRAIN, &curve);
    cr_assert_geq(curve.count, 3);
}

Test(deep, text) {
    char *text;
    size_t bytes;
    kr_graph *g = deep_model(LAYERS, true), *read;
    FILE *to = open_memstream(&text, &bytes);
    check_ok(kr_graph_print(g, to), "print");
    fclose(to);
    check_ok(kr_graph_parse(text, bytes, "deep", &read), "parse");
    cr_assert_eq(kr_graph_nodes(read), kr_graph_nodes(g));
    free(text);
    kr_graph_free(g);
    kr_graph_free(read);
}
