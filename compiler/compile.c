#include "compiler/pass.h"

#include <string.h>

/// The passes, in order. The graph is verified after each.
static const kr_pass passes[] = {
    {"specialise", kr_pass_specialise},
    {"autodiff", kr_pass_autodiff},
    {"optimizer", kr_pass_optimizer},
    {"simplify", kr_pass_simplify},
    {"rematerialise", kr_pass_rematerialise},
    {"fuse", kr_pass_fuse},
    {"layout", kr_pass_layout},
    {"schedule", kr_pass_schedule},
    {"memory", kr_pass_memory},
    {"lower", kr_pass_lower},
    {NULL, NULL},
};
enum { PASSES = sizeof passes / sizeof *passes - 1 };

const char *kr_pass_name(int index) { return index >= 0 && index < PASSES ? passes[index].name : NULL; }

static kr_status check_name(const char *name) {
    char known[256] = "";
    for (const kr_pass *p = passes; p->name; p++) {
        if (!strcmp(name, p->name)) return KR_OK;
        const size_t at = strlen(known);
        snprintf(known + at, sizeof known - at, "%s%s", at ? ", " : "", p->name);
    }
    KR_FAIL(KR_BAD_ARGUMENT, "compile: unknown pass \"%s\"; the passes are %s", name, known);
}

static kr_status run_passes(kr_compilation *c) {
    const char *stop = c->options->stop_after;
    if (stop) KR_TRY(check_name(stop));
    KR_TRY(kr_graph_verify(c->g));
    KR_TRY(kr_precision_set(c->options->target, c->g, c->options->precision));
    for (const kr_pass *p = passes; p->name; p++) {
        c->following = p + 1;
        kr_status status = p->run(c);
        if (!status) status = kr_graph_verify(c->g);
        if (status) return kr_status_prefix(status, "pass %s", p->name);
        if (stop && !strcmp(stop, p->name)) break;
    }
    return KR_OK;
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
