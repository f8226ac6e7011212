/// The schedule pass on random graphs: the order is legal, results keep their bits, the peak never rises; and where the
/// order of building is wasteful it falls. The checks are held against planted faults.
#include "passes.h"

/// Nodes in some order, and what it is judged by: where values were before the pass, which adds none.
typedef struct order {
    const kr_graph *g;
    const kr_placement *placements;
    kr_node **nodes;
    int count;
} order;

static kr_node **nodes_of(const kr_graph *g) {
    kr_node **nodes = malloc(((size_t)kr_graph_nodes(g) + 1) * sizeof *nodes);
    for (int i = 0; i < kr_graph_nodes(g); i++) nodes[i] = kr_graph_node(g, i);
    return nodes;
}

static int place_of(const order *o, const kr_node *n) {
    for (int i = 0; i < o->count; i++)
        if (o->nodes[i] == n) return i;
    return -1;
}

/// Why this is no order of the nodes of `all`, or null.
static const char *order_fault(const order *o, kr_node *const *all) {
    for (int i = 0; i < o->count; i++) {
        if (place_of(o, all[i]) < 0) return "a node is missing";
        for (int k = 0; k < o->nodes[i]->inputs; k++)
            if (o->nodes[i]->in[k].id && place_of(o, kr_value_node(o->g, o->nodes[i]->in[k])) >= i)
                return "a value is read before it is made";
    }
    return NULL;
}

/// The most bytes alive during a node, by looking at all buffers for every node. Storage that is there anyway is free.
static size_t peak_of(const order *o) {
    const uint32_t values = kr_graph_values(o->g);
    int *first = malloc((values + 1u) * sizeof *first), *last = malloc((values + 1u) * sizeof *last);
    bool *storage = calloc(values + 1u, sizeof *storage);
    for (uint32_t v = 0; v <= values; v++) first[v] = o->count, last[v] = -1;
    for (int i = 0; i < o->count; i++) {
        const kr_node *n = o->nodes[i];
        for (int k = 0; k < n->outputs; k++) {
            const uint32_t root = o->placements[n->out[k].id].root;
            if (i < first[root]) first[root] = i;
            if (i > last[root]) last[root] = i;
            storage[root] |= (n->op->flags & KR_OP_SOURCE) != 0;
        }
        for (int k = 0; k < n->inputs; k++)
            if (n->in[k].id) last[o->placements[n->in[k].id].root] = i;
    }
    for (int i = 0; i < kr_graph_outputs(o->g); i++)
        last[o->placements[kr_graph_output_at(o->g, i)->value.id].root] = o->count;
    for (int i = 0; i < kr_graph_assigns(o->g); i++)
        last[o->placements[kr_graph_assign_at(o->g, i)->value.id].root] = o->count;
    size_t most = 0;
    for (int i = 0; i < o->count; i++) {
        size_t live = 0;
        for (uint32_t v = 1; v <= values; v++)
            if (first[v] <= i && i <= last[v] && !storage[v]) live += kr_placement_bytes(o->g, o->placements, v);
        most = live > most ? live : most;
    }
    free(first), free(last), free(storage);
    return most;
}

/// A compilation up to the pass.
typedef struct fixture {
    kr_compile_options options;
    kr_compilation c;
    kr_placement *placements;
    kr_node **built;
    int count;
} fixture;

static void open_fixture(fixture *f, kr_graph *g) {
    kr_uses uses;
    f->c = (kr_compilation){.g = g, .options = &f->options};
    compile_up_to(&f->c, false);
    check_ok(kr_uses_find(g, NULL, 0, &uses), "uses");
    f->placements = calloc(uses.values + 1u, sizeof *f->placements);
    check_ok(kr_placements_find(f->options.target, &uses, f->placements), "placements");
    kr_uses_free(&uses);
    f->built = nodes_of(g);
    f->count = kr_graph_nodes(g);
}

static void close_fixture(fixture *f) {
    free(f->built);
    free(f->placements);
    kr_compilation_free(&f->c);
    kr_graph_free(f->c.g);
}

static order as_built(const fixture *f) { return (order){f->c.g, f->placements, f->built, f->count}; }

/// Values of every output and assigned source after a run on random inputs, in one block. free() it.
static unsigned char *results(kr_graph *g, uint64_t seed, size_t *bytes) {
    kr_binding in[512], out[512];
    int ins = 0, outs = 0;
    for (int i = 0; i < kr_graph_nodes(g); i++) {
        const kr_node *n = kr_graph_node(g, i);
        if (!(n->op->flags & KR_OP_SOURCE) || !n->name) continue;
        const kr_dtype dtype = kr_value_dtype(g, n->out[0]);
        const kr_shape shape = kr_value_shape(g, n->out[0]);
        const int64_t elements = kr_shape_count(&shape);
        double *x = malloc(((size_t)elements + 1) * sizeof *x);
        in[ins] = (kr_binding){n->name, malloc(kr_tensor_bytes(dtype, &shape) + 1), kr_tensor_bytes(dtype, &shape)};
        check_random(x, elements, dtype, dtype == KR_F32 ? 0.1 : 1, dtype == KR_F32 ? 0.5 : VOCABULARY - 1, seed,
                     (uint64_t)ins);
        for (int64_t k = 0; k < elements; k++) check_set(in[ins].data, dtype, k, x[k]);
        free(x);
        cr_assert_lt(++ins, 512);
    }
    *bytes = 0;
    for (int i = 0; i < kr_graph_outputs(g) + kr_graph_assigns(g); i++) {
        const int a = i - kr_graph_outputs(g);
        const kr_value v = a < 0 ? kr_graph_output_at(g, i)->value : kr_graph_assign_at(g, a)->value;
        const char *name = a < 0 ? kr_graph_output_at(g, i)->name
                                 : kr_value_node(g, kr_graph_assign_at(g, a)->target)->name;
        const kr_shape shape = kr_value_shape(g, v);
        out[outs++] = (kr_binding){name, NULL, kr_tensor_bytes(kr_value_dtype(g, v), &shape)};
        *bytes += out[outs - 1].bytes;
        cr_assert_lt(outs, 512);
    }
    unsigned char *all = malloc(*bytes + 1), *at = all;
    for (int i = 0; i < outs; i++) out[i].data = at, at += out[i].bytes;
    check_ok(check_interpret(g, KR_ISA_BASE, 1, in, ins, out, outs), "interpret");
    for (int i = 0; i < ins; i++) free(in[i].data);
    return all;
}

static void check_seed(uint64_t seed) {
    fixture f;
    kr_graph *g = graph_for(seed, &f.options);
    open_fixture(&f, g);
    const order built = as_built(&f);
    kr_graph *before;
    check_ok(kr_graph_clone(g, &before), "clone");
    check_ok(kr_pass_schedule(&f.c), "schedule");
    cr_assert_eq(kr_graph_nodes(g), f.count, "seed %d: nodes came or went", (int)seed);
    order now = {g, f.placements, nodes_of(g), f.count};
    const char *fault = order_fault(&now, f.built);
    cr_assert_null(fault, "seed %d: %s", (int)seed, fault);
    const size_t was = peak_of(&built), is = peak_of(&now);
    const bool changed = memcmp(now.nodes, f.built, (size_t)f.count * sizeof *f.built) != 0;
    cr_assert(is <= was, "seed %d: the peak rises from %zu to %zu", (int)seed, was, is);
    cr_assert(!changed || (double)is < 0.98 * (double)was, "seed %d: another order for %zu instead of %zu bytes",
              (int)seed, is, was);
    size_t bytes, other;
    unsigned char *want = results(before, seed, &bytes), *got = results(g, seed, &other);
    cr_assert(bytes == other && !memcmp(want, got, bytes), "seed %d: other results", (int)seed);
    free(want), free(got), free(now.nodes);
    kr_graph_free(before);
    close_fixture(&f);
}

Test(schedule, random_graphs) {
    for (uint64_t seed = 0; seed < 60; seed++) check_seed(seed);
}

/// All large products first, then what is left of each: every one of them waits.
static kr_graph *wasteful(void) {
    enum { BRANCHES = 8 };
    kr_graph *g;
    kr_value large[BRANCHES], sum = KR_NONE;
    check_ok(kr_graph_new(&g), "graph");
    const kr_value x = kr_input(g, "x", KR_F32, KR_SHAPE(64, 4));
    for (int k = 0; k < BRANCHES; k++) {
        char name[8];
        snprintf(name, sizeof name, "w%d", k);
        large[k] = kr_matmul(g, x, kr_input(g, name, KR_F32, KR_SHAPE(4, 512)), false, false, KR_NONE, KR_NONE, 0);
    }
    for (int k = 0; k < BRANCHES; k++) {
        const kr_value left = kr_max(g, large[k], 1, false);
        sum = k ? kr_add(g, sum, left) : left;
    }
    kr_output(g, "sum", sum);
    return g;
}

Test(schedule, takes_the_order_that_needs_less) {
    fixture f = {.options = {.target = &kr_target_cpu}};
    open_fixture(&f, wasteful());
    const order built = as_built(&f);
    check_ok(kr_pass_schedule(&f.c), "schedule");
    order now = {f.c.g, f.placements, nodes_of(f.c.g), f.count};
    cr_assert_null(order_fault(&now, f.built));
    cr_assert_geq(peak_of(&built), 8 * 64 * 512 * 4u);
    cr_assert_leq(peak_of(&now), 2 * 64 * 512 * 4u);
    free(now.nodes);
    close_fixture(&f);
}

Test(schedule, the_checks_see_planted_faults) {
    fixture f = {.options = {.target = &kr_target_cpu}};
    open_fixture(&f, wasteful());
    const order built = as_built(&f);
    order planted = {f.c.g, f.placements, nodes_of(f.c.g), f.count};
    cr_assert_null(order_fault(&planted, f.built));
    planted.nodes[f.count - 1] = planted.nodes[0];
    cr_assert_str_eq(order_fault(&planted, f.built), "a node is missing");
    for (int i = 0; i < f.count; i++) planted.nodes[i] = f.built[f.count - 1 - i];
    cr_assert_str_eq(order_fault(&planted, f.built), "a value is read before it is made");
    // The order of the pass, turned back to the order of building, raises the peak.
    check_ok(kr_pass_schedule(&f.c), "schedule");
    for (int i = 0; i < f.count; i++) planted.nodes[i] = kr_graph_node(f.c.g, i);
    cr_assert_lt(peak_of(&planted), peak_of(&built));
    free(planted.nodes);
    close_fixture(&f);
}
