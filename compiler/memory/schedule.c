/// The order of steps. Any topological order gives the same numbers, but not the same memory: this pass compares the
/// order in which the graph was built with one that always takes the ready node that frees most (bytes that die there
/// less bytes that are born), and keeps the second only if its worst point is clearly lower: the order of building
/// follows the layers, which caches like.
#include "compiler/memory/placement.h"
#include "compiler/pass.h"

#include <stdlib.h>
#include <string.h>

enum { WINDOW = 64 }; ///< ready nodes that are compared: orders stay close to the one as built

// Ready nodes -----------------------------------------------------------------------------------------------------

enum { LEVELS = 6 }; ///< 64^6 nodes are more than an int counts

/// A set of nodes in ascending order: bits, above them a bit for each word that has any, and so on.
typedef struct ready {
    uint64_t *level[LEVELS], *words;
    size_t count[LEVELS];
} ready;

static bool ready_make(ready *r, int nodes) {
    size_t words = 0, n = (size_t)nodes;
    for (int l = 0; l < LEVELS; l++) words += r->count[l] = n = n / 64 + 1;
    r->words = calloc(words, sizeof *r->words);
    for (int l = 0; l < LEVELS; l++) r->level[l] = l ? r->level[l - 1] + r->count[l - 1] : r->words;
    return r->words;
}

static void ready_add(ready *r, int node) {
    size_t at = (size_t)node;
    for (int l = 0; l < LEVELS; l++, at /= 64) r->level[l][at / 64] |= (uint64_t)1 << at % 64;
}

static void ready_remove(ready *r, int node) {
    size_t at = (size_t)node;
    for (int l = 0; l < LEVELS; l++, at /= 64)
        if (r->level[l][at / 64] &= ~((uint64_t)1 << at % 64)) return;
}

/// The first member from `node` on, or -1.
static int ready_next(const ready *r, int node) {
    size_t at = (size_t)node;
    for (int l = 0; l < LEVELS; l++) {
        if (at / 64 >= r->count[l]) return -1;
        const uint64_t rest = r->level[l][at / 64] & (~(uint64_t)0 << at % 64);
        if (!rest) {
            at = at / 64 + 1;
            continue;
        }
        at = at / 64 * 64 + (size_t)__builtin_ctzll(rest);
        while (l--) at = at * 64 + (size_t)__builtin_ctzll(r->level[l][at]);
        return (int)at;
    }
    return -1;
}

// Orders ----------------------------------------------------------------------------------------------------------

typedef struct work {
    const kr_graph *g;
    kr_uses uses;
    kr_placement *placements;
    int nodes;
    int *reads_at;      ///< by node: it reads the roots reads[reads_at[i]] to reads[reads_at[i + 1] - 1], each once
    uint32_t *reads;
    int *waiting;       ///< by node: inputs not made yet
    int *readers;       ///< by root: reads still to come
    bool *born;         ///< by root
    int64_t *bytes;     ///< by root; 0 for storage that exists anyway
    int *order;         ///< node indices in the order found
    ready ready;
} work;

static uint32_t root_of(const work *w, kr_value v) { return w->placements[v.id].root; }

/// `newest` by root: the last node that was seen reading it.
static void list_reads(work *w, int *newest) {
    int count = 0;
    for (uint32_t v = 0; v <= w->uses.values; v++) newest[v] = -1;
    for (int i = 0; i < w->nodes; i++) {
        const kr_node *n = kr_graph_node(w->g, i);
        w->reads_at[i] = count;
        for (int k = 0; k < n->inputs; k++) {
            const uint32_t root = root_of(w, n->in[k]);
            if (!n->in[k].id || newest[root] == i) continue;
            newest[root] = i;
            w->reads[count++] = root;
        }
    }
    w->reads_at[w->nodes] = count;
}

static void start(work *w) {
    memset(w->readers, 0, (w->uses.values + 1u) * sizeof *w->readers);
    memset(w->born, 0, (w->uses.values + 1u) * sizeof *w->born);
    for (int r = 0; r < w->reads_at[w->nodes]; r++) w->readers[w->reads[r]]++;
    for (int i = 0; i < kr_graph_outputs(w->g); i++) w->readers[root_of(w, kr_graph_output_at(w->g, i)->value)]++;
    for (int i = 0; i < kr_graph_assigns(w->g); i++) w->readers[root_of(w, kr_graph_assign_at(w->g, i)->value)]++;
}

/// Live bytes after node i minus before, and (through *during) the most while it runs, relative to before.
static int64_t growth(const work *w, int i, int64_t *during) {
    const kr_node *n = kr_graph_node(w->g, i);
    int64_t up = 0, down = 0;
    for (int k = 0; k < n->outputs; k++) {
        const uint32_t root = root_of(w, n->out[k]);
        bool known = w->born[root];
        for (int j = 0; j < k; j++) known |= root_of(w, n->out[j]) == root;
        if (!known) up += w->bytes[root];
        if (!known && !w->readers[root]) down += w->bytes[root];
    }
    for (int r = w->reads_at[i]; r < w->reads_at[i + 1]; r++)
        if (w->readers[w->reads[r]] == 1) down += w->bytes[w->reads[r]];
    *during = up;
    return up - down;
}

static void take(work *w, int i) {
    const kr_node *n = kr_graph_node(w->g, i);
    for (int k = 0; k < n->outputs; k++) w->born[root_of(w, n->out[k])] = true;
    for (int r = w->reads_at[i]; r < w->reads_at[i + 1]; r++) w->readers[w->reads[r]]--;
}

/// The worst sum of live bytes of the order that the graph has.
static int64_t peak_as_built(work *w) {
    int64_t live = 0, most = 0, during;
    start(w);
    for (int i = 0; i < w->nodes; i++) {
        const int64_t change = growth(w, i, &during);
        most = live + during > most ? live + during : most;
        live += change;
        take(w, i);
    }
    return most;
}

/// Of the first ready nodes the one after which least is alive.
static int best_ready(const work *w, int64_t *change, int64_t *during) {
    int best = -1, seen = 0;
    for (int i = ready_next(&w->ready, 0); i >= 0 && seen < WINDOW; i = ready_next(&w->ready, i + 1), seen++) {
        int64_t most;
        const int64_t now = growth(w, i, &most);
        if (best >= 0 && now >= *change) continue;
        best = i;
        *change = now;
        *during = most;
    }
    return best;
}

static int64_t peak_greedy(work *w) {
    int64_t live = 0, most = 0, change = 0, during = 0;
    start(w);
    for (int i = 0; i < w->nodes; i++) {
        const kr_node *n = kr_graph_node(w->g, i);
        for (int k = 0; k < n->inputs; k++) w->waiting[i] += n->in[k].id != 0;
        if (!w->waiting[i]) ready_add(&w->ready, i);
    }
    for (int taken = 0; taken < w->nodes; taken++) {
        const int best = best_ready(w, &change, &during);
        const kr_node *n = kr_graph_node(w->g, best);
        most = live + during > most ? live + during : most;
        live += change;
        take(w, best);
        ready_remove(&w->ready, best);
        w->order[taken] = best;
        for (int k = 0; k < n->outputs; k++)
            for (int r = w->uses.at[n->out[k].id]; r < w->uses.at[n->out[k].id + 1]; r++)
                if (!--w->waiting[w->uses.list[r]]) ready_add(&w->ready, w->uses.list[r]);
    }
    return most;
}

static kr_status schedule(const kr_target *t, work *w) {
    const size_t values = w->uses.values + 1u, nodes = (size_t)w->nodes + 1;
    const size_t reads = (size_t)w->uses.at[w->uses.values + 1]; // as many as there are inputs
    w->placements = calloc(values, sizeof *w->placements);
    w->reads_at = calloc(nodes, sizeof *w->reads_at);
    w->reads = calloc(reads + 1, sizeof *w->reads);
    w->waiting = calloc(nodes, sizeof *w->waiting);
    w->readers = calloc(values, sizeof *w->readers);
    w->born = calloc(values, sizeof *w->born);
    w->bytes = calloc(values, sizeof *w->bytes);
    w->order = calloc(nodes, sizeof *w->order);
    KR_FAIL_IF(!w->placements || !w->reads_at || !w->reads || !w->waiting || !w->readers || !w->born || !w->bytes ||
               !w->order || !ready_make(&w->ready, w->nodes), KR_NO_MEMORY, "schedule: no memory for %zu values",
               values);
    KR_TRY(kr_placements_find(t, &w->uses, w->placements));
    list_reads(w, w->readers);
    for (uint32_t v = 1; v < values; v++) {
        const int node = w->uses.node[v];
        if (node >= 0 && w->placements[v].root == v && !(kr_graph_node(w->g, node)->op->flags & KR_OP_SOURCE))
            w->bytes[v] = (int64_t)kr_placement_bytes(w->g, w->placements, v);
    }
    const int64_t built = peak_as_built(w), greedy = peak_greedy(w);
    if ((double)greedy < 0.98 * (double)built)
        for (int i = 0; i < w->nodes; i++) kr_graph_node(w->g, w->order[i])->rank = i;
    return KR_OK;
}

kr_status kr_pass_schedule(kr_compilation *c) {
    work w = {.g = c->g};
    KR_TRY(kr_graph_sort(c->g));
    w.nodes = kr_graph_nodes(c->g);
    KR_TRY(kr_uses_find(c->g, NULL, 0, &w.uses));
    const kr_status status = schedule(c->options->target, &w);
    kr_uses_free(&w.uses);
    free(w.placements), free(w.reads_at), free(w.reads), free(w.waiting), free(w.readers), free(w.born);
    free(w.bytes), free(w.order), free(w.ready.words);
    return status ? status : kr_graph_sort(c->g);
}
