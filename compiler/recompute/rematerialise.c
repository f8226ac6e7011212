/// The least extra time that fits into a budget of memory. What to recompute is proposed by a ladder of moves
/// (ladder.c); how much memory that takes is not estimated but planned: each plan that is tried is written
/// into a copy of the graph and goes through the passes that follow, up to the arenas. Along the ladder memory falls
/// and time grows, so the cheapest plan that fits is found by trying tenths of the ladder, then bisection. Where the
/// whole ladder is not enough, blocks are joined in groups of 2, 3, ...: less is stored between them and more is alive
/// inside (for n blocks that cost alike, groups of about sqrt(n) need least).
///
/// What is recomputed is made by the same nodes from the same bits, so no result changes.
#include "compiler/recompute/recompute.h"

#include <stdlib.h>
#include <string.h>

enum { TRIALS = 96, GRID = 10 };
static const int spans[] = {2, 3, 4, 6, 8, 12};
enum { SPANS = sizeof spans / sizeof *spans };

/// A plan that was tried: the first `rungs` moves, and blocks joined.
typedef struct trial {
    int rungs, span, joined, recomputed;
    size_t bytes;
    double ns;           ///< more than without
    bool shown;          ///< part of the curve
} trial;

typedef struct search {
    kr_compilation *c;
    kr_forward f;
    kr_ladder ladder;
    kr_drops plan;
    bool *recomputed;
    trial seen[TRIALS];
    int count;
} search;

/// Makes the nodes of a trial the plan.
static void spell(search *s, const trial *t) {
    memset(s->plan.drop, 0, (size_t)s->f.nodes * sizeof *s->plan.drop);
    s->plan.span = t->span;
    s->plan.joined = t->joined;
    for (int r = 0; r < t->rungs; r++)
        for (int k = 0; k < s->ladder.rungs[r].count; k++)
            s->plan.drop[s->ladder.nodes[s->ladder.rungs[r].first + k]] = true;
    for (int i = 0; i < s->f.nodes; i++)
        if (s->f.segment[i] >= 0 && s->f.segment[i] < t->span * t->joined) s->plan.drop[i] = true;
}

/// What the passes that follow make of the plan.
static kr_status plan_memory(search *s, size_t *bytes) {
    const kr_compilation *c = s->c;
    const size_t room = ((size_t)kr_graph_nodes(c->g) + 1) * sizeof *c->grads;
    kr_graph *g;
    KR_TRY(kr_graph_clone(c->g, &g));
    kr_compilation t = *c;
    t.g = g;
    t.memory = NULL, t.placements = NULL, t.plan = NULL, t.stats = (kr_plan_stats){0};
    t.params = malloc(room), t.grads = malloc(room);
    kr_status status = KR_OK;
    if (!t.params || !t.grads) status = kr_status_record(KR_NO_MEMORY, __FILE__, __LINE__, "no memory for a trial");
    else {
        memcpy(t.params, c->params, (size_t)c->param_count * sizeof *t.params);
        memcpy(t.grads, c->grads, (size_t)c->param_count * sizeof *t.grads);
        status = kr_drops_apply(&s->f, &s->plan, g);
    }
    for (const kr_pass *p = c->following; p->name && !status; p++) status = p->run(&t);
    *bytes = kr_plan_stats_bytes(&t.stats);
    kr_plan_free(t.plan);
    kr_compilation_free(&t);
    kr_graph_free(g);
    return status;
}

/// Tries a plan; *bytes is what it needs.
static kr_status try_plan(search *s, int rungs, int span, int joined, bool shown, size_t *bytes) {
    for (int k = 0; k < s->count; k++) {
        trial *t = &s->seen[k];
        if (t->rungs != rungs || t->joined != joined || (joined && t->span != span)) continue;
        t->shown |= shown;
        *bytes = t->bytes;
        return KR_OK;
    }
    KR_FAIL_IF(s->count == TRIALS, KR_UNSUPPORTED, "more than %d plans were tried", TRIALS);
    trial t = {.rungs = rungs, .span = span, .joined = joined, .shown = shown};
    kr_recompute_cost cost;
    spell(s, &t);
    KR_TRY(kr_drops_cost(&s->f, &s->plan, s->recomputed, &cost));
    t.ns = cost.ns;
    for (int i = 0; i < s->f.nodes; i++) t.recomputed += s->recomputed[i];
    KR_TRY(plan_memory(s, &t.bytes));
    *bytes = t.bytes;
    s->seen[s->count++] = t;
    return KR_OK;
}

/// Between a number that does not fit and one that does, the least that does; of rungs, or of joined groups.
static kr_status bisect(search *s, size_t budget, int too_few, int enough, int span) {
    while (enough - too_few > 1) {
        const int middle = too_few + (enough - too_few) / 2;
        size_t bytes;
        KR_TRY(span ? try_plan(s, s->ladder.count, span, middle, false, &bytes)
                    : try_plan(s, middle, 1, 0, false, &bytes));
        *(bytes <= budget ? &enough : &too_few) = middle;
    }
    return KR_OK;
}

/// The beginning of the ladder that stores about k / GRID less of all that it could.
static int grid_rungs(const kr_ladder *l, int k) {
    double all = 0, sum = 0;
    for (int r = 0; r < l->count; r++) all += l->rungs[r].bytes;
    int rungs = 0;
    while (rungs < l->count && sum + 1e-6 * all < all * k / GRID) sum += l->rungs[rungs++].bytes;
    return rungs;
}

/// Tries plans until the cheapest that fits is among them; for the curve also those that show the whole range.
static kr_status explore(search *s, size_t budget, bool curve) {
    size_t bytes;
    KR_TRY(try_plan(s, 0, 1, 0, true, &bytes));
    const bool fits = bytes <= budget;
    if (fits && !curve) return KR_OK;
    int too_few = 0, enough = fits ? 0 : -1;
    for (int k = 1; k <= GRID && (curve || enough < 0); k++) {
        const int rungs = grid_rungs(&s->ladder, k);
        KR_TRY(try_plan(s, rungs, 1, 0, true, &bytes));
        if (enough < 0) *(bytes <= budget ? &enough : &too_few) = rungs;
    }
    if (enough > 0) KR_TRY(bisect(s, budget, too_few, enough, 0));
    for (int k = 0; k < SPANS && spans[k] <= s->f.segments && (curve || enough < 0); k++) {
        const int groups = (s->f.segments + spans[k] - 1) / spans[k];
        KR_TRY(try_plan(s, s->ladder.count, spans[k], groups, true, &bytes));
        if (bytes <= budget && enough < 0) KR_TRY(bisect(s, budget, 0, groups, spans[k]));
    }
    return KR_OK;
}

// The choice and the curve -------------------------------------------------------------------------------------------

/// The quickest of the plans tried that fits, or -1; *least gets the bytes of the smallest.
static int choose(const search *s, size_t budget, size_t *least) {
    int best = -1;
    *least = SIZE_MAX;
    for (int k = 0; k < s->count; k++) {
        const trial *t = &s->seen[k];
        if (t->bytes < *least) *least = t->bytes;
        if (t->bytes <= budget && (best < 0 || t->ns < s->seen[best].ns)) best = k;
    }
    return best;
}

static void add_text(char *text, size_t room, const char *format, int number, const char *name) {
    const size_t at = strlen(text);
    if (at + 1 < room) snprintf(text + at, room - at, format, number, name);
}

/// "24 causal_conv1d, 12 matmul", most first.
static void name_nodes(const search *s, const trial *t, char *text, size_t room) {
    const char *ops[32];
    int counts[32], kinds = 0;
    for (int i = 0; i < s->f.nodes; i++) {
        if (!s->recomputed[i]) continue;
        const char *op = kr_graph_node(s->f.g, i)->op->name;
        int k = 0;
        while (k < kinds && ops[k] != op) k++;
        if (k == kinds && kinds == 32) continue;
        if (k == kinds) ops[kinds] = op, counts[kinds++] = 0;
        counts[k]++;
    }
    text[0] = 0;
    for (int left = kinds; left; left--) {
        int most = 0;
        for (int k = 1; k < kinds; k++)
            if (counts[k] > counts[most]) most = k;
        if (strlen(text) + 64 > room) { // names are shorter; the note about groups must fit too
            add_text(text, room, " and %d other kinds%s", left, "");
            break;
        }
        add_text(text, room, left < kinds ? ", %d %s" : "%d %s", counts[most], ops[most]);
        counts[most] = 0;
    }
    if (t->joined) add_text(text, room, "; blocks in groups of %d%s", t->span, "");
}

static int by_time(const void *a, const void *b) {
    const trial *x = *(const trial *const *)a, *y = *(const trial *const *)b;
    if (x->ns != y->ns) return x->ns < y->ns ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

/// Plans worth having, from the quickest on: each needs less memory than all that are quicker.
static kr_status draw(search *s, int chosen, kr_memory_curve *curve) {
    const trial *order[TRIALS];
    const int room = sizeof curve->at / sizeof *curve->at;
    int count = 0;
    for (int k = 0; k < s->count; k++)
        if (s->seen[k].shown || k == chosen) order[count++] = &s->seen[k];
    qsort(order, (size_t)count, sizeof *order, by_time);
    *curve = (kr_memory_curve){.chosen = -1};
    for (int k = 0; k < count && curve->count < room; k++) {
        const trial *t = order[k];
        if (curve->count && t->bytes >= curve->at[curve->count - 1].bytes) continue;
        if (chosen >= 0 && t == &s->seen[chosen]) curve->chosen = curve->count;
        kr_memory_point *p = &curve->at[curve->count++];
        *p = (kr_memory_point){.bytes = t->bytes, .seconds = (s->f.total_ns + t->ns) * 1e-9,
                               .extra = t->ns / s->f.total_ns, .recomputed = t->recomputed};
        kr_recompute_cost cost;
        spell(s, t);
        KR_TRY(kr_drops_cost(&s->f, &s->plan, s->recomputed, &cost));
        name_nodes(s, t, p->what, sizeof p->what);
    }
    return KR_OK;
}

static kr_status search_plan(search *s) {
    kr_compilation *c = s->c;
    const size_t budget = c->options->memory ? c->options->memory : SIZE_MAX;
    size_t least;
    KR_TRY(kr_graph_sort(c->g));
    kr_graph_prune(c->g);
    KR_TRY(kr_forward_find(c, &s->f));
    KR_TRY(kr_ladder_build(&s->f, &s->ladder));
    s->plan = (kr_drops){.drop = calloc((size_t)s->f.nodes + 1, sizeof *s->plan.drop), .span = 1};
    s->recomputed = calloc((size_t)s->f.nodes + 1, sizeof *s->recomputed);
    KR_FAIL_IF(!s->plan.drop || !s->recomputed, KR_NO_MEMORY, "no memory for %d nodes", s->f.nodes);
    KR_TRY(explore(s, budget, c->options->curve != NULL));
    const int chosen = choose(s, budget, &least);
    if (c->options->curve) KR_TRY(draw(s, chosen, c->options->curve));
    KR_FAIL_IF(chosen < 0, KR_BAD_ARGUMENT, "the arenas cannot be made to fit into %zu bytes: %zu are the least found; "
               "a smaller batch or shorter rows need less", budget, least);
    const trial *t = &s->seen[chosen];
    c->stats.recomputed = t->recomputed;
    c->stats.seconds = (s->f.total_ns + t->ns) * 1e-9;
    c->stats.extra = t->ns / s->f.total_ns;
    if (!t->recomputed) return KR_OK;
    spell(s, t);
    return kr_drops_apply(&s->f, &s->plan, c->g);
}

kr_status kr_pass_rematerialise(kr_compilation *c) {
    if (c->options->goal == KR_GOAL_FORWARD || (!c->options->memory && !c->options->curve)) return KR_OK;
    search s = {.c = c};
    const kr_status status = search_plan(&s);
    kr_forward_free(&s.f);
    kr_ladder_free(&s.ladder);
    free(s.plan.drop);
    free(s.recomputed);
    return status;
}
