/// Recomputation: whatever a plan drops and recomputes, the numbers are the same to the last bit, and the memory is
/// what the plan says.
#include "check.h"
#include "compiler/compiler.h"
#include "models/models.h"
#include "random_graph.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

enum { STEPS = 5 };
static const kr_optimizer adamw = {.beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1, .max_norm = 1};

/// A training run: what is trained, how it is compiled, and where it runs.
typedef struct setup {
    const char *label;
    kr_model_config model;
    const char *text;     ///< a graph in text form instead
    int accumulation, threads;
    bool guarded;
} setup;

static kr_model_config small(const char *layer) {
    kr_model_config m = kr_model_defaults();
    m.d_model = 12;
    m.n_layer = 4;
    m.vocab_size = VOCABULARY;
    check_ok(kr_settings_set(&m.keys, "d_state", "6"), "d_state");
    check_ok(kr_settings_set(&m.keys, "headdim", "8"), "headdim");
    check_ok(kr_settings_set(&m.keys, "rope_fraction", "1"), "rope_fraction");
    snprintf(m.layer, sizeof m.layer, "%s", layer);
    return m;
}

static kr_graph *build(const setup *s) {
    kr_graph *g;
    if (s->text) check_ok(kr_graph_parse(s->text, strlen(s->text), s->label, &g), s->label);
    else check_ok(kr_model_build(&s->model, KR_MODE_TRAIN, BATCH, LENGTH, &g), s->label);
    return g;
}

static kr_plan *compile(const setup *s, kr_goal goal, size_t memory, kr_memory_curve *curve, kr_plan_stats *stats) {
    kr_plan *plan;
    kr_graph *g = build(s);
    check_ok(kr_compile(g, &(kr_compile_options){.goal = goal, .optimizer = adamw, .accumulation = s->accumulation,
                                                 .memory = memory, .curve = curve}, &plan, stats), s->label);
    kr_graph_free(g);
    return plan;
}

/// Tokens, targets and starts of documents of a micro-batch; the learning rate.
static int feed(const kr_plan *plan, int micro_batch, int32_t ids[3][BATCH * LENGTH], float *learning_rate,
                kr_binding *to) {
    for (int k = 0; k < BATCH * LENGTH; k++) {
        ids[0][k] = (int32_t)(kr_random_uniform(3, (uint64_t)micro_batch, (uint64_t)k) * VOCABULARY);
        ids[1][k] = k % 7 == 3 ? -100 : (ids[0][k] * 5 + 3) % VOCABULARY;
        ids[2][k] = (k + micro_batch) % 9 == 0;
    }
    *learning_rate = 1e-2f;
    const kr_binding all[] = {{"tokens", ids[0], sizeof ids[0]}, {"targets", ids[1], sizeof ids[1]},
                              {"reset", ids[2], sizeof ids[2]}, {"learning_rate", learning_rate, 4}};
    int count = 0;
    for (int k = 0; k < 4; k++)
        if (kr_plan_find(plan, all[k].name) >= 0) to[count++] = all[k];
    return count;
}

/// Everything that a session holds after STEPS updates, and the losses. free() it. The session allocates exactly what
/// `stats` (with one plan) announces.
static unsigned char *train(const setup *s, size_t memory, kr_memory_curve *curve, kr_plan_stats *stats,
                            size_t *bytes) {
    kr_device *device;
    kr_session *session;
    check_ok(s->guarded ? kr_device_guarded(&device) : kr_device_cpu(&device), "device");
    check_ok(kr_session_open(device, s->threads, &session), "session");
    const bool split = s->accumulation > 1;
    kr_plan_stats other;
    kr_plan *update = compile(s, split ? KR_GOAL_TRAIN_LAST : KR_GOAL_TRAIN, memory, curve, stats),
            *first = split ? compile(s, KR_GOAL_ACCUMULATE, memory, NULL, &other) : NULL;
    check_ok(kr_session_add(session, update), "add");
    size_t held[KR_SLOT_KIND_COUNT];
    kr_session_memory(session, held);
    for (int k = 0; k < KR_SLOT_KIND_COUNT; k++) // small slots are rounded up to 64 bytes each
        cr_assert(held[k] >= stats->slot_bytes[k] &&
                      held[k] <= stats->slot_bytes[k] + 64 * (size_t)kr_plan_slots(update),
                  "%s: %zu bytes of %s, %zu announced", s->label, held[k], kr_slot_kind_name((kr_slot_kind)k),
                  stats->slot_bytes[k]);
    if (split) check_ok(kr_session_add(session, first), "add");
    check_ok(kr_session_init(session, 7), "init");

    float losses[STEPS][8] = {{0}}, learning_rate;
    int32_t ids[3][BATCH * LENGTH];
    for (int step = 0; step < STEPS; step++)
        for (int k = 0; k < (split ? s->accumulation : 1); k++) {
            kr_plan *plan = split && k < s->accumulation - 1 ? first : update;
            kr_binding io[8];
            int count = feed(plan, step * 8 + k, ids, &learning_rate, io);
            io[count++] = (kr_binding){"loss", &losses[step][k], 4};
            check_ok(kr_plan_run(session, plan, io, count, 0), s->label);
        }
    *bytes = sizeof losses;
    for (int k = 0; k < kr_session_slots(session); k++) *bytes += kr_session_slot(session, k)->bytes;
    unsigned char *all = malloc(*bytes), *at = all + sizeof losses;
    memcpy(all, losses, sizeof losses);
    for (int k = 0; k < kr_session_slots(session); k++) {
        check_ok(kr_session_read(session, k, at, kr_session_slot(session, k)->bytes), "read");
        at += kr_session_slot(session, k)->bytes;
    }
    kr_session_close(session);
    kr_device_close(device);
    kr_plan_free(update);
    kr_plan_free(first);
    return all;
}

/// All plans of the curve train to the same bits, in the memory that they announce, and the curve only falls.
static void check_all_plans(const setup *s) {
    static kr_memory_curve curve, again;
    kr_plan_stats stats, small;
    size_t bytes, count;
    unsigned char *want = train(s, 0, &curve, &stats, &bytes);
    cr_assert_geq(curve.count, 1, "%s", s->label);
    cr_expect_eq(curve.chosen, 0);
    cr_expect_eq(curve.at[0].bytes, kr_plan_stats_bytes(&stats), "%s", s->label);
    cr_expect_eq(curve.at[0].recomputed, 0);
    for (int k = 1; k < curve.count; k++) {
        const kr_memory_point *p = &curve.at[k], *before = p - 1;
        cr_expect(p->bytes < before->bytes && p->seconds > before->seconds && p->extra > before->extra,
                  "%s: point %d of the curve: %zu bytes, %g s after %zu, %g", s->label, k, p->bytes, p->seconds,
                  before->bytes, before->seconds);
        cr_expect(p->recomputed > 0 && *p->what);
        for (int between = 0; between <= k % 2; between++) { // a budget between two points, too
            const size_t budget = between ? p->bytes + (before->bytes - p->bytes) / 2 : p->bytes;
            unsigned char *got = train(s, budget, between ? &again : NULL, &small, &count);
            cr_expect_leq(kr_plan_stats_bytes(&small), budget, "%s: point %d", s->label, k);
            cr_expect_gt(small.recomputed, 0);
            cr_expect_leq(small.extra, p->extra * (1 + 1e-12), "%s: point %d", s->label, k);
            if (between) cr_expect_eq(again.at[again.chosen].bytes, kr_plan_stats_bytes(&small));
            cr_assert_eq(count, bytes);
            cr_expect_arr_eq(got, want, bytes, "%s: other bits with %d nodes recomputed (%s)", s->label,
                             small.recomputed, p->what);
            free(got);
        }
    }
    free(want);
}

/// A plan that recomputes must exist, else the suite would show nothing.
static kr_memory_point least(const setup *s, kr_goal goal) {
    static kr_memory_curve curve;
    kr_plan_stats stats;
    kr_plan_free(compile(s, goal, 0, &curve, &stats));
    cr_assert_geq(curve.count, 3, "%s: nothing can be recomputed", s->label);
    return curve.at[curve.count - 1];
}

Test(rematerialise, every_block_keeps_its_bits) {
    for (int kind = 0; kind < kr_block_kind_count; kind++)
        for (int form = 0; form < 4; form++) { // plain; documents; carried state; micro-batches with three threads
            const char *name = kr_block_at(kind)->name;
            setup s = {.label = name, .model = small(name), .threads = form == 3 ? 3 : 1,
                       .accumulation = form == 3 ? 3 : 1};
            s.model.reset_input = form == 1 || form == 2;
            s.model.carry_state = form == 2;
            check_all_plans(&s);
        }
}

Test(rematerialise, hybrids_and_deep_models_keep_their_bits) {
    setup s = {.label = "hybrid", .model = small("mamba3"), .threads = 1};
    strcpy(s.model.layers, "mamba3,mamba2,attention,gated_mlp,mamba1,tinymamba");
    s.model.n_layer = 6;
    s.model.d_intermediate = 20;
    s.model.tie_embeddings = false;
    check_all_plans(&s);
    s = (setup){.label = "deep", .model = small("mamba1"), .accumulation = 2, .threads = 2};
    s.model.n_layer = 9;
    s.model.rms_norm = false;
    check_all_plans(&s);
}

Test(rematerialise, the_guarded_device_runs_the_smallest_plan) {
    setup s = {.label = "guarded", .model = small("mamba2"), .threads = 2};
    s.model.reset_input = s.model.carry_state = true;
    const kr_memory_point p = least(&s, KR_GOAL_TRAIN);
    kr_plan_stats stats;
    size_t bytes, count;
    unsigned char *want = train(&s, 0, NULL, &stats, &bytes);
    s.guarded = true;
    unsigned char *got = train(&s, p.bytes, NULL, &stats, &count);
    cr_assert_eq(count, bytes);
    cr_assert_arr_eq(got, want, bytes);
    free(want);
    free(got);
}

Test(rematerialise, says_what_is_possible) {
    const setup s = {.label = "mamba1", .model = small("mamba1"), .threads = 1};
    const kr_memory_point p = least(&s, KR_GOAL_TRAIN);
    for (int enough = 0; enough < 2; enough++) {
        kr_graph *g = build(&s);
        kr_plan *plan;
        kr_memory_curve curve;
        const kr_status status = kr_compile(g, &(kr_compile_options){.goal = KR_GOAL_TRAIN, .optimizer = adamw,
            .memory = p.bytes - !enough, .curve = &curve}, &plan, NULL);
        char figure[32];
        snprintf(figure, sizeof figure, " %zu ", p.bytes);
        if (enough) check_ok(status, "the least");
        else {
            cr_assert_eq(status, KR_BAD_ARGUMENT);
            cr_expect(strstr(kr_status_message(), "rematerialise") && strstr(kr_status_message(), figure) &&
                      strstr(kr_status_message(), "smaller batch"), "%s", kr_status_message());
            cr_expect_null(plan);
            cr_expect_eq(curve.chosen, -1);
        }
        cr_expect_eq(curve.at[curve.count - 1].bytes, p.bytes);
        kr_plan_free(plan);
        kr_graph_free(g);
    }
}

/// Enough is enough, and a graph without a backward part has nothing to recompute.
Test(rematerialise, changes_nothing_where_there_is_room) {
    const setup s = {.label = "mamba1", .model = small("mamba1")};
    char *text[2];
    size_t bytes[2];
    for (int k = 0; k < 2; k++) {
        kr_graph *g = build(&s);
        check_ok(kr_compile(g, &(kr_compile_options){.goal = KR_GOAL_TRAIN, .optimizer = adamw,
                                                     .memory = k ? 1 << 30 : 0, .stop_after = "rematerialise"},
                            NULL, NULL), "compile");
        FILE *to = open_memstream(&text[k], &bytes[k]);
        check_ok(kr_graph_print(g, to), "print");
        fclose(to);
        kr_graph_free(g);
    }
    cr_assert_str_eq(text[0], text[1]);
    free(text[0]);
    free(text[1]);
    kr_plan_stats stats;
    kr_plan_free(compile(&s, KR_GOAL_FORWARD, 1, NULL, &stats));
    cr_expect_eq(stats.recomputed, 0);
}

// Random graphs ------------------------------------------------------------------------------------------------------

/// A random model as text.
static char *random_text(uint64_t seed) {
    kr_graph *g = random_model(seed);
    char *text;
    size_t bytes;
    FILE *to = open_memstream(&text, &bytes);
    check_ok(kr_graph_print(g, to), "print");
    fclose(to);
    kr_graph_free(g);
    return text;
}

Test(rematerialise, random_graphs_keep_their_bits) {
    int smaller = 0;
    for (uint64_t seed = 0; seed < 40; seed++) {
        char label[32], *text = random_text(seed);
        snprintf(label, sizeof label, "random graph %d", (int)seed);
        const setup s = {.label = label, .text = text, .threads = 1};
        check_all_plans(&s);
        static kr_memory_curve curve;
        kr_plan_stats stats;
        kr_plan_free(compile(&s, KR_GOAL_TRAIN, 0, &curve, &stats));
        smaller += curve.count > 1;
        free(text);
    }
    cr_assert_geq(smaller, 20, "only %d of the graphs have something to recompute", smaller);
}
