/// Random graphs for tests of the compiler. The same seed gives the same graph.
#ifndef KRAIT_TESTS_RANDOM_GRAPH_H
#define KRAIT_TESTS_RANDOM_GRAPH_H

#include "check.h"

#define RANDOM_GRAPH_MAY __attribute__((unused)) static ///< not every suite needs all of this

enum { VOCABULARY = 11, BATCH = 2, LENGTH = 16 };

typedef struct dice {
    uint64_t stream, count;
} dice;

RANDOM_GRAPH_MAY int throw(dice *d, int sides) { return (int)(kr_random_uniform(11, d->stream, d->count++) * (float)sides); }

RANDOM_GRAPH_MAY kr_value weight(kr_graph *g, dice *d, kr_shape shape) {
    char name[32];
    snprintf(name, sizeof name, "w%d", (int)d->count++);
    return kr_param(g, name, shape, (kr_init){.kind = KR_INIT_UNIFORM, .a = 0.4}, KR_PARAM_DECAY);
}

/// One more value of [B, L, width] from earlier ones: elementwise ops, norms, products, scans, splits and joins.
RANDOM_GRAPH_MAY kr_value random_node(kr_graph *g, dice *d, const kr_value *pool, int count, int64_t width) {
    const kr_value a = pool[count - 1 - throw(d, count < 3 ? count : 3)], b = pool[throw(d, count)];
    kr_value half[2];
    switch (throw(d, 9)) {
    case 0: return kr_add(g, a, b);
    case 1: return kr_mul(g, a, kr_sigmoid(g, b));
    case 2: return kr_silu(g, a);
    case 3: return kr_rms_norm(g, a, weight(g, d, KR_SHAPE(width)), 1e-5);
    case 4: return kr_linear(g, a, weight(g, d, KR_SHAPE(width, width)), weight(g, d, KR_SHAPE(width)));
    case 5: return kr_linear_scan(g, kr_sigmoid(g, a), b, KR_NONE, KR_NONE, NULL);
    case 6: return kr_causal_conv1d(g, a, weight(g, d, KR_SHAPE(width, 3)), KR_NONE, KR_NONE, KR_NONE, true, NULL);
    case 7: return kr_tanh(g, kr_affine(g, a, 0.5, 0.1));
    default:
        kr_split(g, a, -1, (int64_t[]){width / 2, width - width / 2}, 2, half);
        return kr_concat(g, (kr_value[]){kr_exp(g, kr_tanh(g, half[1])), half[0]}, 2, 2);
    }
}

/// A language model of random nodes, with output "loss"; one in three has no blocks.
RANDOM_GRAPH_MAY kr_graph *random_model(uint64_t seed) {
    dice d = {.stream = seed};
    const int64_t width = 5 + throw(&d, 9);
    const int blocks = throw(&d, 3) ? 2 + throw(&d, 4) : 0, nodes = 12 + throw(&d, 20);
    kr_graph *g;
    kr_value pool[64];
    int count = 0;
    check_ok(kr_graph_new(&g), "graph");
    const kr_value table = weight(g, &d, KR_SHAPE(VOCABULARY, width));
    pool[count++] = kr_embedding(g, table, kr_input(g, "tokens", KR_I32, KR_SHAPE(BATCH, LENGTH)));
    for (int k = 0; k < nodes; k++) {
        if (blocks) kr_scope_push(g, "part.%d", k * blocks / nodes);
        pool[count] = random_node(g, &d, pool, count, width);
        count++;
        if (blocks) kr_scope_pop(g);
    }
    const kr_value logits = kr_linear(g, pool[count - 1], table, KR_NONE);
    const kr_value targets = kr_input(g, "targets", KR_I32, KR_SHAPE(BATCH, LENGTH));
    kr_output(g, "loss", kr_cross_entropy(g, logits, targets, 0, NULL, NULL));
    check_ok(kr_graph_status(g), "random model");
    return g;
}

/// Random nodes over an input and carries, which get new values of every kind: made early or late, from their own old
/// value or that of another carry, views, and values that are outputs too or go to several carries.
RANDOM_GRAPH_MAY kr_graph *random_recurrence(uint64_t seed) {
    enum { CARRIES = 4 };
    dice d = {.stream = seed + 1000};
    const int64_t width = 5 + throw(&d, 9);
    const int nodes = 8 + throw(&d, 24);
    kr_graph *g;
    kr_value pool[64], carry[CARRIES];
    int count = 0;
    check_ok(kr_graph_new(&g), "graph");
    pool[count++] = kr_input(g, "x", KR_F32, KR_SHAPE(BATCH, LENGTH, width));
    for (int k = 0; k < CARRIES; k++) {
        carry[k] = kr_carry(g, (char[]){'a' + (char)k, 0}, KR_F32, KR_SHAPE(BATCH, LENGTH, width));
        if (throw(&d, 3)) pool[count++] = carry[k];
    }
    for (int k = 0; k < nodes; k++) {
        pool[count] = random_node(g, &d, pool, count, width);
        count++;
    }
    for (int k = 0; k < CARRIES; k++) {
        const kr_value old = carry[throw(&d, CARRIES)], one = pool[throw(&d, count)];
        switch (throw(&d, 5)) {
        case 0: kr_carry_set(g, carry[k], one); break;
        case 1: kr_carry_set(g, carry[k], kr_add(g, carry[k], one)); break;
        case 2: kr_carry_set(g, carry[k], kr_mul(g, kr_sigmoid(g, old), one)); break;
        case 3: kr_carry_set(g, carry[k], pool[count - 1]); break;
        default: break; // it stays
        }
    }
    kr_output(g, "y", pool[count - 1]);
    kr_output(g, "early", pool[throw(&d, count)]);
    kr_output(g, "part", kr_slice(g, pool[throw(&d, count)], 2, 1, width - 2));
    check_ok(kr_graph_status(g), "random recurrence");
    return g;
}

#endif
