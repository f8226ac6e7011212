/// What is known of a training graph before anything is recomputed: which part of it is forward, in which block a node
/// stands, and who reads a value at what time.
#include "compiler/cost.h"
#include "compiler/recompute/recompute.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

enum {
    SHORT_GAP = 8,       ///< a value that is read again after fewer nodes than this is hardly worth dropping
    LONGEST_BLOCK = 256, ///< nodes; longer blocks are cut
    PIECE = 64,          ///< nodes of what they are cut into
};

/// Marks what the outputs and assigns that the graph had before differentiation need.
static void find_forward(const kr_compilation *c, kr_forward *f, bool *needed) {
    for (int i = 0; i < c->forward_outputs; i++) needed[kr_graph_output_at(f->g, i)->value.id] = true;
    for (int i = 0; i < c->forward_assigns; i++) needed[kr_graph_assign_at(f->g, i)->value.id] = true;
    for (int i = f->nodes - 1; i >= 0; i--) {
        const kr_node *n = kr_graph_node(f->g, i);
        for (int k = 0; k < n->outputs; k++) f->forward[i] |= needed[n->out[k].id];
        for (int k = 0; k < n->inputs && f->forward[i]; k++) needed[n->in[k].id] = true;
    }
    needed[0] = false;
}

/// Length of "backbone.layers.3" in "backbone.layers.3.mixer": up to the first part that is a number; 0: there is none.
static int block_scope(const char *scope) {
    for (const char *at = scope; at && *at;) {
        const char *end = strchrnul(at, '.');
        bool number = end > at;
        for (const char *c = at; c < end; c++) number &= isdigit((unsigned char)*c) != 0;
        if (number) return (int)(end - scope);
        at = *end ? end + 1 : end;
    }
    return 0;
}

/// The first node of each block by its scope: open addressing, 1 + node or 0, twice as many entries as nodes at least.
typedef struct segment_table {
    int *entry;
    size_t mask;
} segment_table;

/// The block of node i, a new one where its scope is.
static int find_segment(kr_forward *f, segment_table *t, int i) {
    const char *scope = kr_graph_node(f->g, i)->scope;
    const int length = block_scope(scope);
    if (!length) return KR_NO_SEGMENT;
    size_t at = (size_t)kr_hash(scope, (size_t)length) & t->mask;
    for (; t->entry[at]; at = (at + 1) & t->mask) {
        const char *other = kr_graph_node(f->g, t->entry[at] - 1)->scope;
        if (block_scope(other) == length && !memcmp(other, scope, (size_t)length)) return f->segment[t->entry[at] - 1];
    }
    t->entry[at] = i + 1;
    return f->segments++;
}

static bool in_forward(const kr_forward *f, int i) { return f->forward[i] && !kr_node_source(kr_graph_node(f->g, i)); }
static bool is_member(const kr_forward *f, int i) { return f->forward[i] && kr_node_computes(kr_graph_node(f->g, i)); }

static kr_status find_blocks(kr_forward *f) {
    segment_table t = {.mask = 64};
    while (t.mask < 2 * (size_t)f->nodes) t.mask *= 2;
    t.entry = calloc(t.mask--, sizeof *t.entry);
    KR_FAIL_IF(!t.entry, KR_NO_MEMORY, "no memory for a graph of %d nodes", f->nodes);
    for (int i = 0; i < f->nodes; i++) f->segment[i] = in_forward(f, i) ? find_segment(f, &t, i) : KR_NO_SEGMENT;
    free(t.entry);
    return KR_OK;
}

/// The search for moves takes the cube of a block's nodes. Blocks of models have some thirty; a graph without numbered
/// scopes is one block, and if that is long it is cut like any other.
static kr_status cut_long_blocks(kr_forward *f) {
    typedef struct block { int members, left, number; } block; // left: members until the next cut
    block *blocks = calloc((size_t)f->segments + 1, sizeof *blocks);
    KR_FAIL_IF(!blocks, KR_NO_MEMORY, "no memory for %d blocks", f->segments);
    for (int i = 0; i < f->nodes; i++) blocks[f->segment[i] + 1].members += is_member(f, i);
    int count = 0;
    for (int i = 0; i < f->nodes; i++) {
        block *b = &blocks[f->segment[i] + 1];
        const bool whole = b->members <= LONGEST_BLOCK;
        if (!in_forward(f, i) || (whole && f->segment[i] == KR_NO_SEGMENT)) continue;
        if (!b->number || (!whole && !b->left)) *b = (block){b->members, PIECE, ++count};
        b->left -= is_member(f, i);
        f->segment[i] = b->number - 1;
    }
    f->segments = count;
    free(blocks);
    return KR_OK;
}

/// Numbers the blocks and lists their nodes: counting sort by block.
static kr_status find_segments(kr_forward *f) {
    KR_TRY(find_blocks(f));
    KR_TRY(cut_long_blocks(f));
    for (int i = 0; i < f->nodes; i++)
        if (is_member(f, i)) f->members_at[f->segment[i] + 3]++;
    for (int s = 3; s < f->segments + 3; s++) f->members_at[s] += f->members_at[s - 1];
    for (int i = 0; i < f->nodes; i++)
        if (is_member(f, i)) f->members[f->members_at[f->segment[i] + 2]++] = i;
    return KR_OK;
}

/// Who reads what: per root its readers in the forward part by block, and whether others want it. What is still
/// read at the turning point (where the loss is made), or again soon, is there when memory is scarcest in any case.
static void find_readers(kr_forward *f, int turn, int *last_forward) {
    const uint32_t values = kr_graph_values(f->g);
    for (uint32_t v = 0; v <= values; v++) f->first_reader[v] = INT32_MAX, f->last_reader[v] = INT32_MIN;
    for (int i = 0; i < f->nodes; i++) {
        const kr_node *n = kr_graph_node(f->g, i);
        if (n->op->flags & KR_OP_VIEW) continue;
        for (int k = 0; k < n->inputs; k++) {
            const uint32_t v = f->uses.root[n->in[k].id];
            if (!f->forward[i]) {
                if (!f->wanted[v]) f->rests[v] = last_forward[v] < turn && i - last_forward[v] >= SHORT_GAP;
                f->wanted[v] = true;
                continue;
            }
            last_forward[v] = i;
            if (f->segment[i] < f->first_reader[v]) f->first_reader[v] = f->segment[i];
            if (f->segment[i] > f->last_reader[v]) f->last_reader[v] = f->segment[i];
        }
    }
    f->wanted[0] = false;
    for (uint32_t v = 1; v <= values; v++)
        if (f->uses.named[v]) f->pinned[f->uses.root[v]] = true;
}

/// What nodes and values weigh.
static void weigh(const kr_target *target, kr_forward *f, int *last_forward) {
    for (int i = 0; i < f->nodes; i++) {
        const kr_node *n = kr_graph_node(f->g, i);
        f->total_ns += f->ns[i] = kr_node_computes(n) ? kr_node_ns(target, f->g, n) : 0;
        for (int k = 0; k < n->outputs; k++) {
            const uint32_t v = n->out[k].id;
            if (kr_node_computes(n) && f->forward[i]) f->bytes[v] = (int64_t)kr_value_bytes(f->g, n->out[k]);
            last_forward[v] = i;
        }
    }
}

static kr_status find_all(const kr_compilation *c, kr_forward *f, bool *needed, int *last_forward) {
    const char *name = c->options->loss ? c->options->loss : "loss";
    find_forward(c, f, needed);
    KR_TRY(find_segments(f));
    weigh(c->options->target, f, last_forward);
    find_readers(f, f->uses.node[f->uses.root[kr_graph_output_find(c->g, name).id]], last_forward);
    return KR_OK;
}

kr_status kr_forward_find(const kr_compilation *c, kr_forward *f) {
    *f = (kr_forward){.g = c->g, .nodes = kr_graph_nodes(c->g)};
    KR_TRY(kr_uses_find(c->g, NULL, 0, &f->uses));
    const size_t nodes = (size_t)f->nodes + 1, values = f->uses.values + 1u;
    f->forward = calloc(nodes, sizeof *f->forward);
    f->segment = calloc(nodes, sizeof *f->segment);
    f->members_at = calloc(nodes + 3, sizeof *f->members_at);
    f->members = calloc(nodes, sizeof *f->members);
    f->ns = calloc(nodes, sizeof *f->ns);
    f->bytes = calloc(values, sizeof *f->bytes);
    f->wanted = calloc(values, sizeof *f->wanted);
    f->pinned = calloc(values, sizeof *f->pinned);
    f->first_reader = calloc(values, sizeof *f->first_reader);
    f->last_reader = calloc(values, sizeof *f->last_reader);
    f->rests = calloc(values, sizeof *f->rests);
    int *last_forward = calloc(values, sizeof *last_forward);
    bool *needed = calloc(values, sizeof *needed);
    const bool room = f->forward && f->segment && f->members_at && f->members &&
                      f->ns && f->bytes && f->wanted && f->pinned && f->first_reader && f->last_reader && f->rests &&
                      last_forward && needed;
    const kr_status status = room ? find_all(c, f, needed, last_forward)
                                  : kr_status_record(KR_NO_MEMORY, __FILE__, __LINE__,
                                                     "no memory for a graph of %d nodes", f->nodes);
    free(last_forward);
    free(needed);
    return status;
}

void kr_forward_free(kr_forward *f) {
    kr_uses_free(&f->uses);
    free(f->forward), free(f->segment), free(f->members_at), free(f->members);
    free(f->ns), free(f->bytes), free(f->wanted), free(f->pinned), free(f->first_reader), free(f->last_reader);
    free(f->rests);
    *f = (kr_forward){0};
}
