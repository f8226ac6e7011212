/// Identities, common subexpressions and dead code, repeated until nothing changes. The identities themselves belong
/// to the ops (kr_op.simplify); this pass only walks.
#include "compiler/pass.h"

#include <stdlib.h>
#include <string.h>

static uint64_t node_hash(const kr_node *n) {
    uint64_t h = (uint64_t)(uintptr_t)n->op * 0x9e3779b97f4a7c15u;
#define MIX(x) h = (h ^ (uint64_t)(x)) * 0xff51afd7ed558ccdu, h ^= h >> 29
    for (int i = 0; i < n->inputs; i++) MIX(n->in[i].id + 1);
    for (int i = 0; i < KR_ATTR_INTEGERS; i++) MIX(n->attrs.i[i]);
    for (int i = 0; i < KR_ATTR_REALS; i++) {
        uint64_t bits;
        memcpy(&bits, &n->attrs.r[i], sizeof bits);
        MIX(bits);
    }
    for (int i = 0; i < n->attrs.shape.rank; i++) MIX(n->attrs.shape.dim[i]);
#undef MIX
    return h;
}

static bool same_node(const kr_node *a, const kr_node *b) {
    return a->op == b->op && a->inputs == b->inputs && !memcmp(a->in, b->in, (size_t)a->inputs * sizeof *a->in) &&
           !memcmp(a->attrs.i, b->attrs.i, sizeof a->attrs.i) && !memcmp(a->attrs.r, b->attrs.r, sizeof a->attrs.r) &&
           kr_shape_equal(&a->attrs.shape, &b->attrs.shape);
}

/// Sources have identities of their own; constants are the exception.
static bool may_share(const kr_node *n) { return !n->name; }

static int share(kr_graph *g, kr_node **table, size_t mask, kr_node *n) {
    if (!may_share(n)) return 0;
    for (size_t at = node_hash(n) & mask;; at = (at + 1) & mask) {
        if (!table[at]) {
            table[at] = n;
            return 0;
        }
        if (same_node(table[at], n)) {
            for (int k = 0; k < n->outputs; k++) kr_graph_replace(g, n->out[k], table[at]->out[k]);
            n->dead = true;
            return 1;
        }
    }
}

/// A zero constant where absent means the same becomes absent.
static int drop_zeros(kr_graph *g, kr_node *n) {
    int changes = 0;
    for (int i = 0; i < n->inputs && i < 32; i++) {
        double splat;
        if ((n->op->zero_absent >> i & 1) && n->in[i].id && kr_value_is_splat(g, n->in[i], &splat) && splat == 0) {
            n->in[i] = KR_NONE;
            changes++;
        }
    }
    return changes;
}

static kr_status one_round(kr_graph *g, int *changes) {
    const int nodes = kr_graph_nodes(g);
    size_t room = 64;
    while (room < (size_t)nodes * 4) room *= 2;
    kr_node **table = calloc(room, sizeof *table);
    KR_FAIL_IF(!table, KR_NO_MEMORY, "simplify: no memory");
    *changes = 0;
    for (int i = 0; i < nodes; i++) {
        kr_node *n = kr_graph_node(g, i);
        kr_graph_settle(g, n);
        *changes += drop_zeros(g, n);
        if (n->op->simplify) {
            kr_graph_set_rank(g, n->rank);
            kr_graph_set_scope(g, n->scope);
            const kr_value better = n->op->simplify(g, n);
            if (better.id && better.id != n->out[0].id) {
                kr_graph_replace(g, n->out[0], better);
                ++*changes;
                if (n->outputs == 1) n->dead = true;
                continue;
            }
        }
        *changes += share(g, table, room - 1, n);
    }
    free(table);
    kr_graph_set_scope(g, NULL);
    KR_TRY(kr_graph_status(g));
    KR_TRY(kr_graph_sort(g));
    *changes += kr_graph_prune(g);
    return KR_OK;
}

kr_status kr_pass_simplify(kr_compilation *c) {
    // Every round removes nodes or moves an identity towards its end, so a bound is only a guard against our own bugs.
    for (int round = 0, changes = 1; changes && round < 50; round++) KR_TRY(one_round(c->g, &changes));
    for (int i = 0; i < c->param_count; i++)
        if (c->grads && c->grads[i].id) c->grads[i] = kr_graph_current(c->g, c->grads[i]);
    return KR_OK;
}
