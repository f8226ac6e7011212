#include "compiler/internal.h"

#include <stdlib.h>
#include <string.h>

/// The passes, in order. The graph is verified after each.
static const struct pass {
    const char *name;
    kr_status (*run)(kr_compilation *);
} passes[] = {
    {"specialise", kr_pass_specialise}, {"autodiff", kr_pass_autodiff}, {"optimizer", kr_pass_optimizer}, {"simplify", kr_pass_simplify},
    {"rematerialise", kr_pass_rematerialise}, {"fuse", kr_pass_fuse},
    {"layout", kr_pass_layout},     {"schedule", kr_pass_schedule},   {"memory", kr_pass_memory},
    {"lower", kr_pass_lower},
};
enum { PASSES = sizeof passes / sizeof *passes };

const char *kr_pass_name(int index) { return index >= 0 && index < PASSES ? passes[index].name : NULL; }

static kr_status run_passes(kr_compilation *c) {
    const char *stop = c->options->stop_after;
    bool known = !stop;
    for (int i = 0; i < PASSES && !known; i++) known = !strcmp(stop, passes[i].name);
    KR_FAIL_IF(!known, KR_BAD_ARGUMENT, "compile: there is no pass \"%s\"; passes are specialise, autodiff, optimizer, simplify, "
               "rematerialise, fuse, layout, schedule, memory, lower", stop);
    KR_TRY(kr_graph_verify(c->g));
    KR_TRY(kr_precision_set(c->options->target, c->g, c->options->precision));
    for (int i = 0; i < PASSES; i++) {
        kr_status status = passes[i].run(c);
        if (!status) status = kr_graph_verify(c->g);
        if (status) return kr_status_prefix(status, "pass %s", passes[i].name);
        if (stop && !strcmp(stop, passes[i].name)) break;
    }
    return KR_OK;
}

kr_status kr_passes_after_rematerialise(kr_compilation *c) {
    int i = 0;
    while (passes[i].run != kr_pass_rematerialise) i++;
    for (i++; i < PASSES; i++) KR_TRY(passes[i].run(c));
    return KR_OK;
}

void kr_compilation_free(kr_compilation *c) {
    kr_memory_free(c->memory);
    free(c->params);
    free(c->grads);
    free(c->homes);
}

kr_status kr_compile(kr_graph *g, const kr_compile_options *options, kr_plan **plan, kr_plan_stats *stats) {
    if (plan) *plan = NULL;
    kr_compile_options settled = *options;
    if (!settled.target) settled.target = &kr_target_cpu;
    kr_compilation c = {.g = g, .options = &settled};
    kr_status status = run_passes(&c);
    if (stats) *stats = c.stats;
    kr_compilation_free(&c);
    if (status || !plan) kr_plan_free(c.plan);
    else *plan = c.plan;
    return status;
}
