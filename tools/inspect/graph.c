// A graph at any stage of the compiler: as text that can be read back, as Graphviz source, or as figures of its plan.
#include "tools/inspect/graph.h"

#include "compiler/compiler.h"
#include "models/models.h"
#include "tools/cli/text.h"
#include "tools/config/config.h"
#include "tools/config/train_options.h"
#include "tools/train/memory.h"

#include <stdlib.h>
#include <string.h>

/// "build" and the passes of the compiler.
static kr_status check_pass(const char *name) {
    const char *names[33] = {"build"};
    int count = 1;
    for (; count < 33 && kr_pass_name(count - 1); count++) names[count] = kr_pass_name(count - 1);
    char all[512] = "build";
    for (int k = 0; k < count; k++) {
        if (!strcmp(names[k], name)) return KR_OK;
        if (k && strlen(all) + strlen(names[k]) + 3 < sizeof all) strcat(strcat(all, ", "), names[k]);
    }
    const char *nearest = kr_nearest(name, names, count);
    KR_FAIL(KR_BAD_ARGUMENT, "--after: unknown pass '%s'%s%s%s (passes: %s)", name,
            nearest ? "; did you mean '" : "", nearest ? nearest : "", nearest ? "'?" : "", all);
}

static bool is_training(const kr_inspect_settings *s) { return s->mode == KR_MODE_TRAIN || (s->mode < 0 && !s->from); }

static kr_status check(const kr_inspect_settings *s) {
    KR_FAIL_IF(!s->model == !s->from, KR_BAD_ARGUMENT,
               s->model ? "--model and --from exclude each other" : "say which graph: --model NAME or --from FILE");
    KR_FAIL_IF(s->from && (s->batch_size || s->seq_len), KR_BAD_ARGUMENT,
               "--batch-size and --seq-len are for --model: the shapes of %s stand in it", s->from);
    KR_FAIL_IF(s->json && s->emit != KR_EMIT_STATS, KR_BAD_ARGUMENT, "--json is for --emit stats");
    KR_FAIL_IF(s->after && s->emit == KR_EMIT_STATS, KR_BAD_ARGUMENT,
               "--emit stats is about the finished plan: leave --after out");
    KR_FAIL_IF(s->memory_report && s->emit != KR_EMIT_STATS, KR_BAD_ARGUMENT, "--memory-report is for --emit stats");
    KR_FAIL_IF((s->memory || s->memory_report) && !is_training(s), KR_BAD_ARGUMENT,
               "--memory and --memory-report are about training: no other plan recomputes values");
    return s->after ? check_pass(s->after) : KR_OK;
}

/// The graph before any pass, and the training defaults of the configuration.
static kr_status build(const kr_inspect_settings *s, kr_train_settings *train, kr_graph **out) {
    kr_config *config;
    kr_model_config model;
    KR_TRY(kr_config_load(s->config, &config));
    kr_status status = kr_config_section(config, "pretrain", kr_train_options, train);
    if (!status && s->model) status = kr_config_model(config, s->model, &model);
    kr_config_free(config); // texts of the section are not used here
    if (status) return status;
    if (s->from) {
        char *text;
        size_t bytes;
        KR_TRY(kr_file_read(s->from, &text, &bytes));
        status = kr_graph_parse(text, bytes, s->from, out);
        free(text);
        return status;
    }
    return kr_model_build(&model, s->mode < 0 ? KR_MODE_TRAIN : (kr_mode)s->mode,
                          s->batch_size ? s->batch_size : train->batch_size, s->seq_len ? s->seq_len : train->seq_len,
                          out);
}

static kr_status emit(const kr_inspect_settings *s, const kr_train_settings *train, kr_graph *g, FILE *to) {
    kr_memory_curve curve = {0};
    const bool as_built = s->emit != KR_EMIT_STATS && (!s->after || !strcmp(s->after, "build"));
    const kr_compile_options how = {
        .goal = is_training(s) ? KR_GOAL_TRAIN : KR_GOAL_FORWARD,
        .stop_after = s->after,
        .memory = (size_t)s->memory,
        .curve = s->memory || s->memory_report ? &curve : NULL,
        .precision = (kr_precision)s->precision,
        .optimizer = kr_train_optimizer(train),
    };
    kr_plan *plan = NULL;
    kr_plan_stats stats = {0};
    const kr_status status = as_built ? KR_OK : kr_compile(g, &how, s->emit == KR_EMIT_STATS ? &plan : NULL, &stats);
    kr_plan_free(plan);
    if (status && curve.count && curve.chosen < 0) return kr_memory_refuse(&curve, s->memory, 0);
    KR_TRY(status);
    if (s->emit == KR_EMIT_TEXT) return kr_graph_print(g, to);
    if (s->emit == KR_EMIT_DOT) return kr_graph_print_dot(g, to);
    if (s->memory_report && s->json) {
        fputs("{\"curve\": ", to);
        kr_memory_curve_json(&curve, 0, to);
        fputs(", \"stats\": ", to);
    } else if (s->memory_report) {
        kr_memory_curve_print(&curve, 0, to);
    }
    kr_stats_print(&stats, to, s->json);
    if (s->memory_report && s->json) fputs("}\n", to);
    KR_FAIL_IF(fflush(to) || ferror(to), KR_IO, "the standard output could not be written");
    return KR_OK;
}

kr_status kr_inspect_graph(const kr_inspect_settings *s, FILE *to) {
    kr_train_settings train = kr_train_defaults();
    kr_graph *g = NULL;
    KR_TRY(check(s));
    KR_TRY(build(s, &train, &g));
    const kr_status status = emit(s, &train, g, to);
    kr_graph_free(g);
    return status;
}
