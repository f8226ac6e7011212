/// check GRAPH.kg: what was added computes, by the graph in text form and by the builders, and an error names the line.
#include "krait.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int fail(const char *what) {
    fprintf(stderr, "%s: %s\n", what, kr_status_message());
    return 1;
}

static int near(const char *what, const float *got, double want) {
    for (int i = 0; i < 4; i++)
        if (!(fabs(got[i] - want) < 1e-5)) return fprintf(stderr, "%s is %g, want %g\n", what, got[i], want), 1;
    return 0;
}

/// y = mix(a^3, b) + b at a = 2, b = 4 and share 1/4, summed: y = 9, dloss/da = 3 a^2 / 4 = 3, dloss/db = 3/4 + 1.
static int run(kr_graph *g) {
    float a[4] = {2, 2, 2, 2}, b[4] = {4, 4, 4, 4}, y[4], da[4], db[4], loss;
    const kr_compile_options options = {.goal = KR_GOAL_GRADIENTS};
    kr_plan *plan = NULL;
    kr_plan_stats stats;
    kr_device *device = NULL;
    kr_session *session = NULL;
    kr_status status = kr_compile(g, &options, &plan, &stats);
    if (!status) status = kr_device_cpu(&device);
    if (!status) status = kr_session_open(device, 2, &session);
    if (!status) status = kr_session_add(session, plan);
    const kr_binding bindings[] = {{"a", a, sizeof a}, {"b", b, sizeof b}, {"y", y, sizeof y}, {"loss", &loss, sizeof loss},
                                   {"grad.a", da, sizeof da}, {"grad.b", db, sizeof db}};
    if (!status) status = kr_plan_run(session, plan, bindings, 6, 0);
    if (status) return fail("run");
    kr_session_close(session);
    kr_device_close(device);
    kr_plan_free(plan);
    kr_graph_free(g);
    return near("y", y, 9) | near("grad.a", da, 3) | near("grad.b", db, 1.75);
}

int main(int argc, char **argv) {
    char text[4096];
    FILE *f = argc == 2 ? fopen(argv[1], "r") : NULL;
    if (!f) return fputs("usage: check GRAPH.kg\n", stderr), 2;
    const size_t bytes = fread(text, 1, sizeof text, f);
    fclose(f);
    kr_graph *g = NULL;
    if (kr_graph_parse(text, bytes, argv[1], &g)) return fail("parse");
    if (run(g)) return 1;

    if (kr_graph_new(&g)) return fail("graph");
    const kr_value a = kr_input(g, "a", KR_F32, KR_SHAPE(4)), b = kr_input(g, "b", KR_F32, KR_SHAPE(4));
    const kr_value y = kr_add(g, kr_mix(g, kr_cube(g, a), b, 0.25), b);
    kr_output(g, "y", y);
    kr_output(g, "loss", kr_sum(g, y, 0, true));
    if (run(g)) return 1;

    if (kr_graph_new(&g)) return fail("graph");
    const kr_value other = kr_input(g, "other", KR_F32, KR_SHAPE(5));
    kr_mix(g, kr_input(g, "x", KR_F32, KR_SHAPE(4)), other, 0.5);
    char place[32];
    snprintf(place, sizeof place, "check.c:%d", __LINE__ - 2);
    if (!kr_graph_status(g)) return fputs("operands of two shapes were taken\n", stderr), 1;
    if (!strstr(kr_status_message(), place)) return fprintf(stderr, "no %s in: %s\n", place, kr_status_message()), 1;
    kr_graph_free(g);
    return 0;
}
