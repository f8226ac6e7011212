// What shows graphs: `krait graph`, the Graphviz source, the figures as text and JSON.
#include "compiler/compiler.h"
#include "models/models.h"
#include "program.h"

#include <json-c/json.h>

static char *succeed(const char *line) {
    int status;
    char *text = shell(&status, line);
    cr_assert_eq(status, 0, "%s:\n%s", line, text);
    return text;
}

static kr_graph *model(void) {
    kr_model_config c = kr_model_defaults();
    c.vocab_size = 37;
    c.d_model = 12;
    c.n_layer = 2;
    kr_graph *g;
    cr_assert_eq(kr_model_build(&c, KR_MODE_TRAIN, 2, 9, &g), KR_OK, "%s", kr_status_message());
    return g;
}

// Figures ---------------------------------------------------------------------------------------------------------

static double number(struct json_object *o, const char *key) {
    struct json_object *v;
    cr_assert(json_object_object_get_ex(o, key, &v), "no \"%s\"", key);
    return json_object_get_double(v);
}

static struct json_object *parse(const char *text) {
    struct json_object *o = json_tokener_parse(text);
    cr_assert_not_null(o, "no JSON: %s", text);
    return o;
}

Test(inspect, stats_are_json) {
    const kr_plan_stats s = {.nodes = 3,
                             .steps = 2,
                             .params = 1,
                             .param_elements = 7,
                             .flops = 1e20,
                             .bytes = 0.5,
                             .slot_bytes = {[KR_SLOT_ACTIVATION] = 128, [KR_SLOT_PARAM] = 28},
                             .peak = 128,
                             .bound = 100,
                             .sum = 400};
    char *text = NULL;
    size_t bytes;
    FILE *to = open_memstream(&text, &bytes);
    kr_stats_print(&s, to, true);
    fclose(to);
    struct json_object *o = parse(text), *arenas;
    cr_expect_eq(number(o, "nodes"), 3);
    cr_expect_eq(number(o, "flops"), 1e20);
    cr_expect_eq(number(o, "memory"), 156);
    cr_expect_eq(number(o, "ratio"), 1.28);
    cr_assert(json_object_object_get_ex(o, "arenas", &arenas));
    cr_expect_eq(number(arenas, kr_slot_kind_name(KR_SLOT_ACTIVATION)), 128);
    json_object_put(o);
    free(text);
}

Test(inspect, stats_of_nothing) {
    for (int json = 0; json < 2; json++) {
        const kr_plan_stats none = {0}, odd = {.peak = 64};
        char *text = NULL;
        size_t bytes;
        FILE *to = open_memstream(&text, &bytes);
        kr_stats_print(&none, to, json);
        if (json) kr_stats_print(&odd, to, json);
        fclose(to);
        cr_expect(strstr(text, json ? "\"ratio\": 1.0" : "ratio 1.0000"), "%s", text);
        if (json) cr_expect(strstr(text, "\"ratio\": null"), "%s", text);
        free(text);
    }
}

Test(inspect, stats_of_a_model) {
    char *text = succeed("krait graph --model mamba1-tiny --batch-size 2 --seq-len 16 --emit stats --json");
    struct json_object *o = parse(text);
    cr_expect_eq(number(o, "params"), 22);
    cr_expect(number(o, "bound") <= number(o, "peak") && number(o, "peak") <= 1.02 * number(o, "bound"));
    cr_expect(number(o, "flops") > 1e6 && number(o, "steps") > 20);
    json_object_put(o);
    free(text);
}

// Graphviz --------------------------------------------------------------------------------------------------------

Test(inspect, dot_is_balanced_and_complete) {
    kr_graph *g = model();
    char *text = NULL;
    size_t bytes;
    FILE *to = open_memstream(&text, &bytes);
    cr_assert_eq(kr_graph_print_dot(g, to), KR_OK, "%s", kr_status_message());
    fclose(to);
    int depth = 0, clusters = 0;
    char *lines = strdup(text), *rest;
    for (char *line = strtok_r(lines, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        const size_t n = strlen(line);
        depth += line[n - 1] == '{';
        depth -= !strcmp(line, "}");
        clusters += !strncmp(line, "subgraph", 8);
        cr_assert(depth >= 0);
        int from, target;
        char name[32];
        if (sscanf(line, "n%d -> n%d", &from, &target) != 2) continue;
        snprintf(name, sizeof name, "\nn%d [", from);
        cr_assert(strstr(text, name), "an edge leaves node %d, which is not drawn", from);
        snprintf(name, sizeof name, "\nn%d [", target);
        cr_assert(strstr(text, name), "an edge reaches node %d, which is not drawn", target);
    }
    cr_expect_eq(depth, 0);
    cr_expect(clusters >= 8, "backbone, layers, 0, 1 and the inner ones, but only %d clusters", clusters);
    free(lines);
    free(text);
    kr_graph_free(g);
}

Test(inspect, dot_of_odd_names) {
    kr_graph *g;
    cr_assert_eq(kr_graph_new(&g), KR_OK);
    static const char *const scopes[] = {"", ".", "..", "a", "a.", "ab", "a.b", "a..b", "\"}{\\", ".a"};
    for (int k = 0; k < 10; k++) {
        kr_graph_set_scope(g, scopes[k]);
        char name[32];
        snprintf(name, sizeof name, "in\"\\\n%d", k);
        kr_output(g, name, kr_neg(g, kr_input(g, name, KR_F32, KR_SHAPE(2))));
    }
    cr_assert_eq(kr_graph_status(g), KR_OK, "%s", kr_status_message());
    char *text = NULL;
    size_t bytes;
    FILE *to = open_memstream(&text, &bytes);
    cr_assert_eq(kr_graph_print_dot(g, to), KR_OK, "%s", kr_status_message());
    fclose(to);
    for (int k = 0; k < 20; k++) {
        char name[32];
        snprintf(name, sizeof name, "\nn%d [", k);
        char *first = strstr(text, name);
        cr_assert(first && !strstr(first + 1, name), "node %d is not drawn once", k);
    }
    free(text);
    kr_graph_free(g);
}

// Commands --------------------------------------------------------------------------------------------------------

Test(inspect, graph_reads_what_it_prints) {
    static const char *const stages[] = {
        "", "--mode prefill", "--mode decode", "--mode eval", "--mode logits", "--after autodiff", "--after memory"};
    for (int k = 0; k < 7; k++) {
        char command[256];
        snprintf(command, sizeof command,
                 "krait graph --model mamba1-tiny --batch-size 2 --seq-len 5 %s > krait-test-$$.kg && "
                 "krait graph --from krait-test-$$.kg | cmp - krait-test-$$.kg; e=$?; rm -f krait-test-$$.kg; exit $e",
                 stages[k]);
        free(succeed(command));
    }
}

Test(inspect, graph_refuses) {
    refuse(2, "krait graph", "say which graph: --model NAME or --from FILE");
    refuse(2, "krait graph --model mamba1-tiny --from x", "--model and --from exclude each other");
    refuse(2, "krait graph --model mamba1-tini", "did you mean 'mamba1-tiny'");
    refuse(2, "krait graph --model mamba1-tiny --after simplfy", "did you mean 'simplify'");
    refuse(2, "krait graph --model mamba1-tiny --emit svg", "--emit is 'svg'");
    refuse(2, "krait graph --model mamba1-tiny --json", "--json is for --emit stats");
    refuse(2, "krait graph --model mamba1-tiny --mode trian", "--mode is 'trian'");
    refuse(2, "krait graph --from x --seq-len 4", "--seq-len are for --model");
    refuse(1, "krait graph --from /nonexistent.kg", "/nonexistent.kg");
    refuse(1, "krait graph --from /dev/null", "/dev/null:1:1: the first line must be");
}
