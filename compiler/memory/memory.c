/// Gives every value a buffer: in-place results take over the buffer of an input that dies there, new values of params
/// and carries are written straight into their storage when nobody still needs the old ones, gradients get an arena of
/// their own, and what is left shares the activation arena by life span.
#include "compiler/impl.h"
#include "compiler/memory/memory.h"
#include "compiler/memory/placement.h"
#include "compiler/pass.h"
#include "compiler/strides.h"

#include <stdlib.h>

static void memory_free(kr_memory *m) {
    if (!m) return;
    free(m->buffers);
    free(m->of_value);
    free(m->work);
    free(m);
}

void kr_compilation_free(kr_compilation *c) {
    memory_free(c->memory);
    free(c->params);
    free(c->grads);
    free(c->placements);
}

/// Working state of the pass.
typedef struct state {
    kr_compilation *c;
    kr_graph *g;
    uint32_t values;
    kr_uses uses;
    int *root_first, *root_last; ///< by root of a placement: nodes between which it is alive
    uint32_t *alias;       ///< root that a root was merged into; itself at first
    kr_slot_kind *kind;    ///< by root
    uint32_t *slot_of;     ///< persistent storage: the source whose slot a root is written to; 0: none
} state;

static uint32_t find(const state *s, uint32_t root) {
    while (s->alias[root] != root) root = s->alias[root];
    return root;
}

static bool whole(const state *s, kr_value v) {
    const kr_placement *p = &s->c->placements[v.id];
    return p->layout.offset == 0 && kr_layout_contiguous(&p->layout) &&
           kr_value_bytes(s->g, v) == kr_value_bytes(s->g, (kr_value){p->root});
}

static void spans_of_roots(state *s) {
    for (uint32_t v = 0; v <= s->values; v++) {
        s->root_first[v] = kr_graph_nodes(s->g);
        s->root_last[v] = -1;
        s->alias[v] = v;
    }
    for (int i = 0; i < kr_graph_nodes(s->g); i++) {
        const kr_node *n = kr_graph_node(s->g, i);
        for (int k = 0; k < n->outputs; k++) {
            const uint32_t v = n->out[k].id, root = s->c->placements[v].root;
            if (i < s->root_first[root]) s->root_first[root] = i;
            if (s->uses.last[v] > s->root_last[root]) s->root_last[root] = s->uses.last[v];
        }
    }
}

static void kinds_of_roots(state *s) {
    for (int i = 0; i < kr_graph_nodes(s->g); i++) {
        const kr_node *n = kr_graph_node(s->g, i);
        static const kr_slot_kind of_source[] = {KR_SLOT_ACTIVATION, KR_SLOT_IO, KR_SLOT_PARAM, KR_SLOT_CONST,
                                                 KR_SLOT_CARRY};
        for (int k = 0; k < n->outputs; k++) {
            const uint32_t v = n->out[k].id;
            s->kind[v] = of_source[kr_node_source(n)];
            if (kr_node_source(n) == KR_SOURCE_CARRY && n->attrs.i[1] == KR_CARRY_OPTIMIZER)
                s->kind[v] = KR_SLOT_OPTIMIZER;
            if (kr_node_source(n)) s->slot_of[v] = v;
        }
    }
    for (int i = 0; i < kr_graph_outputs(s->g); i++) s->kind[kr_graph_output_at(s->g, i)->value.id] = KR_SLOT_IO;
}

/// Which input of n output k may take over, or -1.
static int inplace_input(const state *s, const kr_node *n, int k, int index) {
    const uint32_t *masks = kr_impl_of(s->c->options->target, n)->inplace;
    const kr_value out = n->out[k];
    if (k >= KR_INPLACE_OUTPUTS || !masks[k] || s->c->placements[out.id].root != out.id || !whole(s, out)) return -1;
    for (int i = 0; i < n->inputs && i < 32; i++) {
        if (!(masks[k] >> i & 1) || !n->in[i].id) continue;
        const kr_value in = n->in[i];
        const uint32_t root = find(s, s->c->placements[in.id].root);
        if (!whole(s, in) || kr_value_bytes(s->g, in) != kr_value_bytes(s->g, out) ||
            kr_value_dtype(s->g, in) != kr_value_dtype(s->g, out) || s->root_last[root] > index) continue;
        bool alone = true;
        for (int j = 0; j < n->inputs; j++)
            if (j != i && n->in[j].id && find(s, s->c->placements[n->in[j].id].root) == root)
                alone &= (n->op->flags & KR_OP_ELEMENTWISE) && whole(s, n->in[j]);
        if (alone) return i;
    }
    return -1;
}

/// New values of params and carries that can be written straight into their storage; the others need a copy.
static kr_status direct_assigns(state *s, bool *all) {
    *all = true;
    for (int i = 0; i < kr_graph_assigns(s->g); i++) {
        kr_graph_assign *a = kr_graph_assign_at(s->g, i);
        const kr_node *n = kr_value_node(s->g, a->value);
        const int index = s->uses.node[a->value.id];
        const int k = kr_value_output(s->g, a->value);
        const uint32_t target = a->target.id;
        bool direct = s->c->placements[a->value.id].root == a->value.id && s->root_last[target] <= index;
        if (direct && s->root_last[target] == index) { // the producer itself reads the old value
            const int in = inplace_input(s, n, k, index);
            direct = in >= 0 && s->c->placements[n->in[in].id].root == target;
        }
        if (direct) {
            s->slot_of[a->value.id] = target;
            s->kind[a->value.id] = s->kind[target];
            continue;
        }
        kr_graph_set_rank(s->g, -1);
        kr_graph_set_scope(s->g, "copy");
        a->value = kr_copy(s->g, a->value);
        *all = false;
    }
    kr_graph_set_scope(s->g, NULL);
    return kr_graph_status(s->g);
}

static void merge_inplace(state *s) {
    for (int i = 0; i < kr_graph_nodes(s->g); i++) {
        const kr_node *n = kr_graph_node(s->g, i);
        if (n->op->flags & (KR_OP_VIEW | KR_OP_SOURCE)) continue;
        for (int k = 0; k < n->outputs && k < KR_INPLACE_OUTPUTS; k++) {
            const uint32_t out = n->out[k].id;
            if (s->kind[out] != KR_SLOT_ACTIVATION || kr_uses_unread(&s->uses, n->out[k])) continue;
            const int in = inplace_input(s, n, k, i);
            if (in < 0) continue;
            const uint32_t root = find(s, s->c->placements[n->in[in].id].root);
            if (s->kind[root] != KR_SLOT_ACTIVATION) continue;
            s->alias[out] = root;
            if (s->root_last[out] > s->root_last[root]) s->root_last[root] = s->root_last[out];
        }
    }
}

static kr_status number_buffers(state *s, kr_memory *m) {
    const int nodes = kr_graph_nodes(s->g);
    m->of_value = malloc((s->values + 1u) * sizeof *m->of_value);
    m->work = malloc(((size_t)nodes + 1) * sizeof *m->work);
    m->buffers = calloc((size_t)s->values + (size_t)nodes + 2, sizeof *m->buffers);
    KR_FAIL_IF(!m->of_value || !m->work || !m->buffers, KR_NO_MEMORY, "memory: no memory for the plan");
    for (uint32_t v = 0; v <= s->values; v++) m->of_value[v] = -1;
    for (int i = 0; i < nodes; i++) {
        const kr_node *n = kr_graph_node(s->g, i);
        const kr_impl *impl = kr_impl_of(s->c->options->target, n);
        m->work[i] = -1;
        for (int k = 0; k < n->outputs; k++) {
            const uint32_t v = n->out[k].id;
            if (s->c->placements[v].root != v || s->alias[v] != v) continue;
            if (kr_uses_unread(&s->uses, n->out[k]) && s->root_last[v] <= i && (impl->skip_out >> k & 1)) continue;
            m->of_value[v] = m->count;
            m->buffers[m->count++] = (kr_buffer){.kind = s->kind[v], .slot = -1,
                                                 .bytes = kr_placement_bytes(s->g, s->c->placements, v),
                                                 .first = s->root_first[v], .last = s->root_last[v]};
        }
        if (impl->work) {
            kr_shape few_in[32], out[16], *in = few_in;
            if (n->inputs > 32)
                KR_FAIL_IF(!(in = malloc((size_t)n->inputs * sizeof *in)), KR_NO_MEMORY, "memory: no memory");
            for (int k = 0; k < n->inputs; k++) in[k] = kr_value_shape(s->g, n->in[k]);
            for (int k = 0; k < n->outputs; k++) out[k] = kr_value_shape(s->g, n->out[k]);
            const size_t bytes = impl->work(&n->attrs, in, out, n->inputs);
            if (in != few_in) free(in);
            KR_FAIL_IF(bytes > KR_MOST_BYTES, KR_BAD_SHAPE,
                       "memory: %s (node %d, scope %s) needs more workspace than can be counted", n->op->name, i,
                       n->scope && n->scope[0] ? n->scope : "-");
            if (!bytes) continue;
            m->work[i] = m->count;
            m->buffers[m->count++] = (kr_buffer){
                .kind = KR_SLOT_ACTIVATION, .slot = -1, .bytes = bytes, .first = i, .last = i};
        }
    }
    for (uint32_t v = 1; v <= s->values; v++) // merged roots read their heir's buffer
        if (m->of_value[v] < 0 && s->c->placements[v].root == v) m->of_value[v] = m->of_value[find(s, v)];
    return KR_OK;
}

/// Packs all buffers of one kind into one arena.
static kr_status pack_kind(kr_memory *m, kr_slot_kind kind, size_t align, size_t *peak, size_t *bound, size_t *sum) {
    kr_arena_item *items = calloc((size_t)m->count + 1, sizeof *items);
    int *which = calloc((size_t)m->count + 1, sizeof *which);
    KR_FAIL_IF(!items || !which, KR_NO_MEMORY, "memory: no memory to pack buffers");
    size_t count = 0;
    *sum = 0;
    for (int i = 0; i < m->count; i++) {
        if (m->buffers[i].kind != kind) continue;
        which[count] = i;
        *sum += (m->buffers[i].bytes + align - 1) / align * align;
        items[count++] = (kr_arena_item){
            .first = m->buffers[i].first, .last = m->buffers[i].last, .size = m->buffers[i].bytes};
    }
    const kr_status status = kr_arena_pack(items, count, align, peak);
    *bound = kr_arena_bound(items, count, align);
    for (size_t i = 0; i < count; i++) m->buffers[which[i]].offset = items[i].offset;
    free(items);
    free(which);
    return status;
}

static kr_status analyse(state *s, bool *settled) {
    kr_compilation *c = s->c;
    free(c->placements);
    kr_uses_free(&s->uses);
    KR_TRY(kr_uses_find(s->g, NULL, 0, &s->uses));
    c->placements = calloc(s->uses.values + 1u, sizeof *c->placements);
    KR_FAIL_IF(!c->placements, KR_NO_MEMORY, "memory: no memory");
    KR_TRY(kr_placements_find(c->options->target, &s->uses, c->placements));
    s->values = s->uses.values;
    const size_t n = s->values + 1u;
    free(s->root_first), free(s->root_last), free(s->alias), free(s->kind), free(s->slot_of);
    s->root_first = malloc(n * sizeof *s->root_first);
    s->root_last = malloc(n * sizeof *s->root_last);
    s->alias = malloc(n * sizeof *s->alias);
    s->kind = calloc(n, sizeof *s->kind);
    s->slot_of = calloc(n, sizeof *s->slot_of);
    KR_FAIL_IF(!s->root_first || !s->root_last || !s->alias || !s->kind || !s->slot_of, KR_NO_MEMORY,
               "memory: no memory for %zu values", n);
    spans_of_roots(s);
    kinds_of_roots(s);
    return direct_assigns(s, settled);
}

static kr_status plan_memory(state *s) {
    kr_compilation *c = s->c;
    bool settled = false;
    for (int round = 0; !settled; round++) {
        KR_FAIL_IF(round > 3, KR_UNSUPPORTED, "memory: assigned values do not settle");
        KR_TRY(analyse(s, &settled));
        if (!settled) KR_TRY(kr_graph_sort(s->g));
    }
    merge_inplace(s);
    const bool training = c->options->goal >= KR_GOAL_TRAIN;
    for (int i = 0; i < c->param_count && training && c->grads; i++) {
        if (!c->grads[i].id) continue;
        const uint32_t root = find(s, c->placements[c->grads[i].id].root);
        if (s->kind[root] == KR_SLOT_ACTIVATION) s->kind[root] = KR_SLOT_GRADIENT;
    }
    kr_memory *m = c->memory = calloc(1, sizeof *m);
    KR_FAIL_IF(!m, KR_NO_MEMORY, "memory: no memory");
    KR_TRY(number_buffers(s, m));
    for (uint32_t v = 1; v <= s->values; v++) // storage of sources: buffers of new values point at it
        if (s->slot_of[v] && s->slot_of[v] != v && m->of_value[v] >= 0) {
            m->buffers[m->of_value[v]].bytes = 0;
            m->of_value[v] = m->of_value[s->slot_of[v]];
        }
    const size_t align = c->options->target->align;
    size_t unused;
    KR_TRY(pack_kind(m, KR_SLOT_ACTIVATION, align, &c->stats.peak, &c->stats.bound, &c->stats.sum));
    c->stats.slot_bytes[KR_SLOT_ACTIVATION] = c->stats.peak;
    return pack_kind(m, KR_SLOT_GRADIENT, align, &c->stats.slot_bytes[KR_SLOT_GRADIENT], &unused, &unused);
}

kr_status kr_pass_memory(kr_compilation *c) {
    state s = {.c = c, .g = c->g};
    const kr_status status = plan_memory(&s);
    kr_uses_free(&s.uses);
    free(s.root_first), free(s.root_last), free(s.alias), free(s.kind), free(s.slot_of);
    return status;
}
