/// The memory pass on random graphs, held against a machine that remembers who wrote every byte: a plan is right when
/// each node finds in memory what it wants to read, and when outputs and new values of params and carries are there in
/// the end. Buffers that overlap, results in the place of what is still read, and storage that is overwritten too early
/// all show as bytes of somebody else; the last test plants them.
#include "compiler/impl.h"
#include "compiler/memory/memory.h"
#include "passes.h"

enum { WORKSPACE = UINT32_MAX, ARENAS = 2 };

/// Who wrote each byte, by the id of the value. Spaces 0 and 1 are the arenas, the others buffers of their own.
typedef struct machine {
    const kr_compilation *c;
    const kr_graph *g;
    kr_uses uses;
    uint32_t **writer;
    size_t *bytes;
    int spaces;
    char fault[256]; ///< the first; empty: none
} machine;

__attribute__((format(printf, 2, 3))) static void report(machine *m, const char *format, ...) {
    if (m->fault[0]) return;
    va_list list;
    va_start(list, format);
    vsnprintf(m->fault, sizeof m->fault, format, list);
    va_end(list);
}

static int space_of(const kr_memory *memory, int buffer) {
    const kr_slot_kind kind = memory->buffers[buffer].kind;
    return kind == KR_SLOT_ACTIVATION ? 0 : kind == KR_SLOT_GRADIENT ? 1 : ARENAS + buffer;
}

static void power_on(machine *m, const kr_compilation *c) {
    const kr_memory *memory = c->memory;
    *m = (machine){.c = c, .g = c->g, .spaces = ARENAS + memory->count};
    check_ok(kr_uses_find(c->g, NULL, 0, &m->uses), "uses");
    m->writer = calloc((size_t)m->spaces, sizeof *m->writer);
    m->bytes = calloc((size_t)m->spaces, sizeof *m->bytes);
    m->bytes[0] = c->stats.peak;
    m->bytes[1] = c->stats.slot_bytes[KR_SLOT_GRADIENT];
    for (int b = 0; b < memory->count; b++)
        if (space_of(memory, b) >= ARENAS) m->bytes[ARENAS + b] = memory->buffers[b].bytes;
    for (int s = 0; s < m->spaces; s++) m->writer[s] = calloc(m->bytes[s] + 1, sizeof **m->writer);
}

static void power_off(machine *m) {
    for (int s = 0; s < m->spaces; s++) free(m->writer[s]);
    free(m->writer), free(m->bytes);
    kr_uses_free(&m->uses);
}

/// Where a value's elements are: space, and the byte at which each begins, in order. False: it has no buffer.
typedef struct region {
    int space;
    int64_t count;
    size_t *at, size;
} region;

static bool locate(machine *m, kr_value v, region *r) {
    const kr_placement *p = &m->c->placements[v.id];
    const int buffer = v.id ? m->c->memory->of_value[p->root] : -1;
    if (buffer < 0) return false;
    const kr_shape shape = kr_value_shape(m->g, v);
    *r = (region){.space = space_of(m->c->memory, buffer), .count = kr_shape_count(&shape),
                  .size = kr_dtype_size(kr_value_dtype(m->g, v))};
    r->at = malloc(((size_t)r->count + 1) * sizeof *r->at);
    for (int64_t i = 0; i < r->count; i++) {
        int64_t element = p->layout.offset, rest = i;
        for (int k = shape.rank - 1; k >= 0; k--) {
            element += rest % shape.dim[k] * p->layout.stride[k];
            rest /= shape.dim[k];
        }
        const size_t at = m->c->memory->buffers[buffer].offset + (size_t)element * r->size;
        if (at + r->size > m->bytes[r->space]) report(m, "value %u ends behind its space", v.id);
        r->at[i] = at + r->size > m->bytes[r->space] ? 0 : at;
    }
    return true;
}

/// A join's output has the same bytes as the pieces that were written in their places.
static bool stands_for(const machine *m, uint32_t writer, uint32_t wanted) {
    if (writer == wanted) return true;
    if (!writer || writer == WORKSPACE) return false;
    return (kr_value_node(m->g, (kr_value){writer})->op->flags & KR_OP_JOIN) &&
           m->c->placements[writer].root == m->c->placements[wanted].root;
}

static void expect(machine *m, const region *r, uint32_t wanted, int node, const char *what) {
    for (int64_t i = 0; i < r->count && !m->fault[0]; i++)
        for (size_t b = 0; b < r->size; b++)
            if (!stands_for(m, m->writer[r->space][r->at[i] + b], wanted))
                report(m, "node %d: %s %u is overwritten by %u", node, what, wanted,
                       m->writer[r->space][r->at[i] + b]);
}

static void mark(machine *m, const region *r, uint32_t by) {
    for (int64_t i = 0; i < r->count && m->bytes[r->space]; i++)
        for (size_t b = 0; b < r->size; b++) m->writer[r->space][r->at[i] + b] = by;
}

static bool intersect(const region *a, const region *b) {
    for (int64_t i = 0; i < a->count && a->space == b->space; i++)
        for (int64_t j = 0; j < b->count; j++)
            if (a->at[i] < b->at[j] + b->size && b->at[j] < a->at[i] + a->size) return true;
    return false;
}

static bool same_region(const region *a, const region *b) {
    return a->space == b->space && a->count == b->count && a->size == b->size &&
           !memcmp(a->at, b->at, (size_t)a->count * sizeof *a->at);
}

/// May output k of n be written over this input?
static bool may_take_over(const machine *m, const kr_node *n, int k, int input) {
    if (n->op->flags & KR_OP_JOIN) return true; // a piece in its place
    const uint32_t mask = k < KR_INPLACE_OUTPUTS ? kr_impl_of(m->c->options->target, n)->inplace[k] : 0;
    return input < 32 && (mask >> input & 1);
}

static void check_outputs(machine *m, const kr_node *n, int index, const region *in, const bool *has) {
    for (int k = 0; k < n->outputs; k++) {
        region out;
        if (!locate(m, n->out[k], &out)) continue;
        for (int i = 0; i < n->inputs; i++)
            if (has[i] && intersect(&out, &in[i]) &&
                !(may_take_over(m, n, k, i) && (n->op->flags & KR_OP_JOIN || same_region(&out, &in[i]))))
                report(m, "node %d: output %d lies over input %d", index, k, i);
        free(out.at);
    }
}

static void run_node(machine *m, int index) {
    const kr_node *n = kr_graph_node(m->g, index);
    const int buffer = m->c->memory->work[index];
    region *in = calloc((size_t)n->inputs + 1, sizeof *in), out;
    bool *has = calloc((size_t)n->inputs + 1, sizeof *has);
    for (int i = 0; i < n->inputs; i++) {
        has[i] = locate(m, n->in[i], &in[i]);
        if (has[i]) expect(m, &in[i], m->uses.root[n->in[i].id], index, "value");
        else if (n->in[i].id) report(m, "node %d: input %d has no buffer", index, i);
    }
    check_outputs(m, n, index, in, has);
    const kr_buffer *work = buffer >= 0 ? &m->c->memory->buffers[buffer] : &(kr_buffer){0};
    for (size_t at = work->offset; at < work->offset + work->bytes; at++) m->writer[0][at] = WORKSPACE;
    for (int i = 0; i < n->inputs; i++)
        if (has[i]) expect(m, &in[i], m->uses.root[n->in[i].id], index, "beside the workspace, value");
    for (int k = 0; k < n->outputs; k++) {
        if (!locate(m, n->out[k], &out)) continue;
        mark(m, &out, n->out[k].id);
        free(out.at);
    }
    for (size_t at = work->offset; at < work->offset + work->bytes; at++)
        if (m->writer[0][at] != WORKSPACE) report(m, "node %d: output %u lies in the workspace", index, m->writer[0][at]);
    for (int i = 0; i < n->inputs; i++) free(in[i].at);
    free(in), free(has);
}

/// What is in memory after the run: outputs, new values, and all other storage as it was.
static void check_end(machine *m) {
    const int nodes = kr_graph_nodes(m->g), outputs = kr_graph_outputs(m->g);
    for (int i = 0; i < outputs + kr_graph_assigns(m->g); i++) {
        const kr_graph_assign *a = i < outputs ? NULL : kr_graph_assign_at(m->g, i - outputs);
        const kr_value v = a ? a->value : kr_graph_output_at(m->g, i)->value;
        region r;
        if (!locate(m, a ? a->target : v, &r)) report(m, "value %u of the end has no buffer", v.id);
        else expect(m, &r, v.id, nodes, a ? "new value" : "output"), free(r.at);
    }
    for (int i = 0; i < nodes; i++) {
        const kr_node *n = kr_graph_node(m->g, i);
        region r;
        bool assigned = !(n->op->flags & KR_OP_SOURCE);
        for (int k = 0; k < kr_graph_assigns(m->g) && !assigned; k++)
            assigned = kr_graph_assign_at(m->g, k)->target.id == n->out[0].id;
        if (assigned || !locate(m, n->out[0], &r)) continue;
        expect(m, &r, n->out[0].id, nodes, "storage of");
        free(r.at);
    }
}

/// Runs the plan; "" or what went wrong. The text lives until the next call.
static const char *run(const kr_compilation *c) {
    static char fault[256];
    machine m;
    power_on(&m, c);
    for (int i = 0; i < kr_graph_nodes(c->g); i++) { // storage has its old value from the start
        const kr_node *n = kr_graph_node(c->g, i);
        region r;
        if (!(n->op->flags & KR_OP_SOURCE) || !locate(&m, n->out[0], &r)) continue;
        mark(&m, &r, n->out[0].id);
        free(r.at);
    }
    for (int i = 0; i < kr_graph_nodes(c->g) && !m.fault[0]; i++)
        if (!(kr_graph_node(c->g, i)->op->flags & (KR_OP_SOURCE | KR_OP_VIEW))) run_node(&m, i);
    if (!m.fault[0]) check_end(&m);
    memcpy(fault, m.fault, sizeof fault);
    power_off(&m);
    return fault;
}

/// The figures of the activation arena, from its buffers.
static void check_figures(const kr_compilation *c, uint64_t seed) {
    const size_t align = c->options->target->align;
    size_t bound = 0, sum = 0;
    for (int t = 0; t <= kr_graph_nodes(c->g); t++) {
        size_t live = 0;
        for (int b = 0; b < c->memory->count; b++) {
            const kr_buffer *x = &c->memory->buffers[b];
            if (x->kind == KR_SLOT_ACTIVATION && x->first <= t && t <= x->last)
                live += (x->bytes + align - 1) / align * align;
        }
        bound = live > bound ? live : bound;
    }
    for (int b = 0; b < c->memory->count; b++)
        if (c->memory->buffers[b].kind == KR_SLOT_ACTIVATION)
            sum += (c->memory->buffers[b].bytes + align - 1) / align * align;
    cr_assert_eq(c->stats.bound, bound, "seed %d", (int)seed);
    cr_assert(bound <= c->stats.peak && c->stats.peak <= sum, "seed %d: peak %zu is not between %zu and %zu", (int)seed,
              c->stats.peak, bound, sum);
}

/// Of an assign, before the pass: is its target's old value dead when the new one is made?
typedef struct expected {
    kr_value target, value;
    bool direct, still_read;
} expected;

static int expect_assigns(const kr_compilation *c, expected *out) {
    kr_uses uses;
    check_ok(kr_uses_find(c->g, NULL, 0, &uses), "uses");
    for (int i = 0; i < kr_graph_assigns(c->g); i++) {
        const kr_graph_assign *a = kr_graph_assign_at(c->g, i);
        const int last = uses.last[a->target.id], made = uses.node[a->value.id];
        out[i] = (expected){a->target, a->value, last < made, last > made};
    }
    kr_uses_free(&uses);
    return kr_graph_assigns(c->g);
}

static void check_assigns(const kr_compilation *c, const expected *e, int count, uint64_t seed, int *kinds) {
    for (int i = 0; i < count; i++) {
        const kr_value value = kr_graph_assign_at(c->g, i)->value;
        const bool there = value.id == e[i].value.id;
        kinds[e[i].direct ? 0 : e[i].still_read ? 1 : 2]++;
        cr_assert(!e[i].direct || there, "seed %d: new value %u is copied without need", (int)seed, e[i].value.id);
        cr_assert(!e[i].still_read || !there, "seed %d: new value %u comes too early", (int)seed, e[i].value.id);
        cr_assert_eq(c->memory->of_value[value.id], c->memory->of_value[e[i].target.id],
                     "seed %d: value %u is not in storage", (int)seed, value.id);
    }
}

static void check_seed(uint64_t seed, int *kinds) {
    kr_compile_options options;
    expected assigns[512];
    kr_graph *g = graph_for(seed, &options);
    kr_compilation c = {.g = g, .options = &options};
    compile_up_to(&c, true);
    cr_assert_lt(kr_graph_assigns(g), 512);
    const int count = expect_assigns(&c, assigns);
    check_ok(kr_pass_memory(&c), "memory");
    const char *fault = run(&c);
    cr_assert(!fault[0], "seed %d: %s", (int)seed, fault);
    check_figures(&c, seed);
    check_assigns(&c, assigns, count, seed, kinds);
    kr_compilation_free(&c);
    kr_graph_free(g);
}

Test(memory, random_graphs) {
    int kinds[3] = {0};
    for (uint64_t seed = 0; seed < 60; seed++) check_seed(seed, kinds);
    cr_assert(kinds[0] > 10 && kinds[1] > 10 && kinds[2] > 10, "of %d, %d and %d new values little is shown", kinds[0],
              kinds[1], kinds[2]);
}

/// a = a + x where nothing reads a afterwards happens in a's own storage; the moments of an optimiser live from that.
Test(memory, an_update_happens_in_place) {
    kr_compile_options options = {.target = &kr_target_cpu};
    kr_graph *g;
    check_ok(kr_graph_new(&g), "graph");
    const kr_value a = kr_carry(g, "a", KR_F32, KR_SHAPE(100)), x = kr_input(g, "x", KR_F32, KR_SHAPE(100));
    const kr_value now = kr_add(g, a, x);
    kr_carry_set(g, a, now);
    kr_output(g, "y", kr_max(g, now, 0, false));
    kr_compilation c = {.g = g, .options = &options};
    compile_up_to(&c, true);
    const int nodes = kr_graph_nodes(g);
    check_ok(kr_pass_memory(&c), "memory");
    cr_assert_str_eq(run(&c), "");
    cr_assert_eq(kr_graph_nodes(g), nodes, "the new value is copied");
    cr_assert_eq(c.stats.peak, 0, "%zu bytes for nothing", c.stats.peak);
    kr_compilation_free(&c);
    kr_graph_free(g);
}

// Planted faults -----------------------------------------------------------------------------------------------------

typedef struct planted {
    int tried, seen;
} planted;

static void judge(const kr_compilation *c, planted *p) {
    p->tried++;
    p->seen += run(c)[0] != 0;
}

/// Two buffers that are alive at once in the same place.
static void plant_overlap(const kr_compilation *c, planted *p) {
    kr_buffer *list = c->memory->buffers;
    for (int a = 0; a < c->memory->count; a++)
        for (int b = a + 1, found = 0; b < c->memory->count && !found; b++) {
            if (list[a].kind != KR_SLOT_ACTIVATION || list[b].kind != KR_SLOT_ACTIVATION || !list[a].bytes ||
                !list[b].bytes || list[b].first <= list[a].first || list[b].first >= list[a].last ||
                list[a].offset + list[b].bytes > c->stats.peak) continue;
            const size_t offset = list[b].offset;
            list[b].offset = list[a].offset;
            judge(c, p);
            list[b].offset = offset;
            found = 1;
        }
}

/// A result in the place of an input that is read later.
static void plant_inplace(const kr_compilation *c, planted *p) {
    kr_uses uses;
    check_ok(kr_uses_find(c->g, NULL, 0, &uses), "uses");
    for (int i = 0; i < kr_graph_nodes(c->g); i++) {
        const kr_node *n = kr_graph_node(c->g, i);
        const uint32_t in = n->inputs ? n->in[0].id : 0, out = n->out[0].id;
        int *of = c->memory->of_value;
        if (!in || (n->op->flags & (KR_OP_VIEW | KR_OP_JOIN)) || c->placements[in].root != in ||
            c->placements[out].root != out || uses.last[in] <= i || of[in] < 0 || of[out] < 0 || of[in] == of[out] ||
            c->memory->buffers[of[in]].bytes != c->memory->buffers[of[out]].bytes || !c->memory->buffers[of[in]].bytes)
            continue;
        const int was = of[out];
        of[out] = of[in];
        judge(c, p);
        of[out] = was;
    }
    kr_uses_free(&uses);
}

/// A new value in storage whose old value is still read.
static void plant_early(const kr_compilation *c, const expected *e, int count, planted *p) {
    int *of = c->memory->of_value;
    for (int i = 0; i < count; i++) {
        if (!e[i].still_read || c->placements[e[i].value.id].root != e[i].value.id) continue;
        const int was = of[e[i].value.id];
        of[e[i].value.id] = of[e[i].target.id];
        judge(c, p);
        of[e[i].value.id] = was;
    }
}

Test(memory, planted_faults_are_seen) {
    planted overlap = {0}, inplace = {0}, early = {0};
    for (uint64_t seed = 0; seed < 10; seed++) {
        kr_compile_options options;
        expected assigns[512];
        kr_graph *g = graph_for(seed, &options);
        kr_compilation c = {.g = g, .options = &options};
        compile_up_to(&c, true);
        const int count = expect_assigns(&c, assigns);
        check_ok(kr_pass_memory(&c), "memory");
        cr_assert_str_eq(run(&c), "");
        plant_overlap(&c, &overlap);
        plant_inplace(&c, &inplace);
        plant_early(&c, assigns, count, &early);
        kr_compilation_free(&c);
        kr_graph_free(g);
    }
    // Pieces of a join may miss what a slice reads of the other buffer: then nothing was wrong.
    cr_assert(overlap.tried > 50 && overlap.seen * 10 >= overlap.tried * 9, "%d of %d", overlap.seen, overlap.tried);
    cr_assert(inplace.tried > 20 && inplace.seen == inplace.tried, "%d of %d", inplace.seen, inplace.tried);
    cr_assert(early.tried > 2 && early.seen == early.tried, "%d of %d", early.seen, early.tried);
}
