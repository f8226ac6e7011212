/// The order of steps. Any topological order gives the same numbers, but not the same memory: this pass compares the
/// order in which the graph was built with one that always takes the ready node that frees most (bytes that die there
/// less bytes that are born), and keeps the second only if its worst point is clearly lower: the order of building
/// follows the layers, which caches like.
#include "compiler/internal.h"

#include <stdlib.h>
#include <string.h>

typedef struct work {
    const kr_graph *g;
    kr_home *homes;
    int nodes;
    int *waiting;       ///< by node: inputs not made yet
    int *readers;       ///< by root: reads still to come
    int64_t *bytes;     ///< by root; 0 for storage that exists anyway
    int *order;         ///< node indices in the order found
    int *readers_at;    ///< by value: where its readers start in reader_list
    int *reader_list;   ///< node indices, once per input that reads the value
} work;

/// Roots that node n reads, each once: the caller gets them one by one.
static bool first_mention(const work *w, const kr_node *n, int i) {
    const uint32_t root = w->homes[n->in[i].id].root;
    for (int j = 0; j < i; j++)
        if (n->in[j].id && w->homes[n->in[j].id].root == root) return false;
    return n->in[i].id != 0;
}

static void count_readers(work *w) {
    memset(w->readers, 0, (kr_graph_values(w->g) + 1u) * sizeof *w->readers);
    for (int i = 0; i < w->nodes; i++) {
        const kr_node *n = kr_graph_node(w->g, i);
        for (int k = 0; k < n->inputs; k++)
            if (first_mention(w, n, k)) w->readers[w->homes[n->in[k].id].root]++;
    }
    for (int i = 0; i < kr_graph_outputs(w->g); i++) w->readers[w->homes[kr_graph_output_at(w->g, i)->value.id].root]++;
    for (int i = 0; i < kr_graph_assigns(w->g); i++) w->readers[w->homes[kr_graph_assign_at(w->g, i)->value.id].root]++;
}

/// Live bytes after n minus before, and (through *during) the most while it runs, relative to before. Changes nothing.
static int64_t growth(const work *w, const kr_node *n, const bool *born, int64_t *during) {
    int64_t up = 0, down = 0;
    for (int k = 0; k < n->outputs; k++) {
        const uint32_t root = w->homes[n->out[k].id].root;
        bool again = born[root];
        for (int j = 0; j < k; j++) again |= w->homes[n->out[j].id].root == root;
        if (!again) up += w->bytes[root];
        if (!again && !w->readers[root]) down += w->bytes[root];
    }
    for (int k = 0; k < n->inputs; k++)
        if (first_mention(w, n, k) && w->readers[w->homes[n->in[k].id].root] == 1)
            down += w->bytes[w->homes[n->in[k].id].root];
    *during = up;
    return up - down;
}

static void take(work *w, const kr_node *n, bool *born) {
    for (int k = 0; k < n->outputs; k++) born[w->homes[n->out[k].id].root] = true;
    for (int k = 0; k < n->inputs; k++)
        if (first_mention(w, n, k)) w->readers[w->homes[n->in[k].id].root]--;
}

/// The worst sum of live bytes of the order that the graph has.
static int64_t peak_as_built(work *w, bool *born) {
    int64_t live = 0, most = 0, during;
    count_readers(w);
    for (int i = 0; i < w->nodes; i++) {
        const kr_node *n = kr_graph_node(w->g, i);
        const int64_t change = growth(w, n, born, &during);
        most = live + during > most ? live + during : most;
        live += change;
        take(w, n, born);
    }
    return most;
}

static int64_t peak_greedy(work *w, bool *born, bool *done) {
    int64_t live = 0, most = 0;
    count_readers(w);
    for (int i = 0; i < w->nodes; i++) {
        const kr_node *n = kr_graph_node(w->g, i);
        w->waiting[i] = 0;
        for (int k = 0; k < n->inputs; k++) w->waiting[i] += n->in[k].id != 0;
    }
    // Nodes behind an already taken node become ready; a plain scan from the first open node is quick enough because
    // orders stay close to the one as built.
    int first_open = 0;
    for (int taken = 0; taken < w->nodes; taken++) {
        while (done[first_open]) first_open++;
        int best = -1;
        int64_t best_growth = 0, best_during = 0;
        for (int i = first_open, seen = 0; i < w->nodes && seen < 64; i++) {
            if (done[i] || w->waiting[i]) continue;
            seen++;
            int64_t during;
            const int64_t now = growth(w, kr_graph_node(w->g, i), born, &during);
            if (best < 0 || now < best_growth) {
                best = i;
                best_growth = now;
                best_during = during;
            }
        }
        const kr_node *n = kr_graph_node(w->g, best);
        most = live + best_during > most ? live + best_during : most;
        live += best_growth;
        take(w, n, born);
        done[best] = true;
        w->order[taken] = best;
        for (int k = 0; k < n->outputs; k++)
            for (int r = w->readers_at[n->out[k].id]; r < w->readers_at[n->out[k].id + 1]; r++)
                w->waiting[w->reader_list[r]]--;
    }
    return most;
}

/// Readers of every value, in one array (counting sort by value).
static kr_status list_readers(work *w) {
    const size_t values = kr_graph_values(w->g) + 1u;
    size_t reads = 0;
    for (int i = 0; i < w->nodes; i++) reads += (size_t)kr_graph_node(w->g, i)->inputs;
    w->readers_at = calloc(values + 2, sizeof *w->readers_at);
    w->reader_list = calloc(reads + 1, sizeof *w->reader_list);
    KR_FAIL_IF(!w->readers_at || !w->reader_list, KR_NO_MEMORY, "schedule: no memory for %zu reads", reads);
    for (int i = 0; i < w->nodes; i++)
        for (int k = 0; k < kr_graph_node(w->g, i)->inputs; k++) w->readers_at[kr_graph_node(w->g, i)->in[k].id + 2]++;
    for (size_t v = 2; v < values + 2; v++) w->readers_at[v] += w->readers_at[v - 1];
    for (int i = 0; i < w->nodes; i++)
        for (int k = 0; k < kr_graph_node(w->g, i)->inputs; k++)
            w->reader_list[w->readers_at[kr_graph_node(w->g, i)->in[k].id + 1]++] = i;
    return KR_OK;
}

static kr_status schedule(work *w) {
    KR_TRY(list_readers(w));
    const size_t values = kr_graph_values(w->g) + 1u, nodes = (size_t)w->nodes + 1;
    bool *born = calloc(values, sizeof *born), *done = calloc(nodes, sizeof *done);
    kr_status status = KR_OK;
    if (!born || !done) status = kr_status_record(KR_NO_MEMORY, __FILE__, __LINE__, "schedule: no memory");
    else {
        const int64_t built = peak_as_built(w, born);
        memset(born, 0, values * sizeof *born);
        const int64_t greedy = peak_greedy(w, born, done);
        if ((double)greedy < 0.98 * (double)built)
            for (int i = 0; i < w->nodes; i++) kr_graph_node(w->g, w->order[i])->rank = i;
    }
    free(born);
    free(done);
    return status;
}

kr_status kr_pass_schedule(kr_compilation *c) {
    KR_TRY(kr_graph_sort(c->g));
    const size_t values = kr_graph_values(c->g) + 1u, nodes = (size_t)kr_graph_nodes(c->g) + 1;
    work w = {.g = c->g, .nodes = kr_graph_nodes(c->g), .homes = calloc(values, sizeof *w.homes),
              .waiting = calloc(nodes, sizeof *w.waiting), .order = calloc(nodes, sizeof *w.order),
              .readers = calloc(values, sizeof *w.readers), .bytes = calloc(values, sizeof *w.bytes)};
    kr_status status = KR_OK;
    if (!w.homes || !w.waiting || !w.order || !w.readers || !w.bytes)
        status = kr_status_record(KR_NO_MEMORY, __FILE__, __LINE__, "schedule: no memory for %zu values", values);
    if (!status) status = kr_homes(c->options->target, c->g, w.homes);
    if (!status) {
        for (uint32_t v = 1; v < values; v++) {
            const kr_node *n = kr_value_node(c->g, (kr_value){v});
            if (n && !n->dead && w.homes[v].root == v && !kr_node_source(n))
                w.bytes[v] = (int64_t)kr_home_bytes(c->g, w.homes, v);
        }
        status = schedule(&w);
    }
    free(w.homes), free(w.waiting), free(w.order), free(w.readers), free(w.bytes);
    free(w.readers_at), free(w.reader_list);
    return status ? status : kr_graph_sort(c->g);
}
