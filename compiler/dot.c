// Graphviz source of a graph: a cluster for every scope, nested as the scopes' names are, a box for every node, an edge
// for every use with the type of what flows. Constants and absent inputs are left out: they hide the shape of a model.
#include "compiler/compiler.h"

#include <stdlib.h>
#include <string.h>

typedef struct drawing {
    const kr_graph *g;
    FILE *to;
    int *node_of;     ///< by value id: index of the node that makes it
    const int *order; ///< nodes sorted by scope, then by place
    int count, cluster;
} drawing;

/// The characters that end a label, or that Graphviz would take for an escape.
static void print_escaped(FILE *to, const char *text, size_t length) {
    for (size_t k = 0; k < length; k++) {
        if (text[k] == '"' || text[k] == '\\') putc('\\', to);
        putc((unsigned char)text[k] < 0x20 ? ' ' : text[k], to);
    }
}

static void print_type(const drawing *d, kr_value v) {
    const kr_shape shape = kr_value_shape(d->g, v);
    fprintf(d->to, "%s[", kr_dtype_name(kr_value_dtype(d->g, v)));
    for (int k = 0; k < shape.rank; k++) fprintf(d->to, "%s%lld", k ? "," : "", (long long)shape.dim[k]);
    putc(']', d->to);
}

static bool is_const(const kr_node *n) { return (n->op->flags & KR_OP_SOURCE) && !n->name; }
static const char *scope_of(const kr_node *n) { return n->scope ? n->scope : ""; }

static void draw_node(const drawing *d, int index) {
    const kr_node *n = kr_graph_node(d->g, index);
    fprintf(d->to, "n%d [label=\"%s", index, n->op->name);
    if (n->name) {
        fputs("\\n", d->to);
        print_escaped(d->to, n->name, strlen(n->name));
    }
    if (n->op->flags & KR_OP_PROGRAM) {
        kr_program p;
        kr_program_of(n, &p);
        for (int k = 0; k < p.length; k++) fprintf(d->to, "\\n%s", p.code[k].op->name);
    }
    if (n->outputs && (n->op->flags & KR_OP_SOURCE)) {
        fputs("\\n", d->to);
        print_type(d, n->out[0]);
    }
    const bool source = n->op->flags & KR_OP_SOURCE, view = n->op->flags & KR_OP_VIEW;
    fprintf(d->to, "\"%s];\n", source ? ", style=filled, fillcolor=\"#dde8f6\"" : view ? ", style=dashed" : "");
}

/// Length of the first piece of a scope path. It is never empty: a dot that nothing precedes belongs to its piece.
static size_t piece(const char *scope) { return (*scope == '.') + strcspn(scope + (*scope == '.'), "."); }

/// Draws the nodes from order[from] on whose scopes begin with the same `depth` characters: those that lie just there,
/// then a cluster for each next piece. Gives the first that it did not draw.
static int draw_scope(drawing *d, int from, size_t depth) {
    int at = from;
    const char *here = scope_of(kr_graph_node(d->g, d->order[from]));
    while (at < d->count) {
        const char *scope = scope_of(kr_graph_node(d->g, d->order[at]));
        if (strncmp(scope, here, depth) || (depth && scope[depth] && scope[depth] != '.')) break;
        const char *rest = scope + depth + (depth && scope[depth] == '.');
        if (!*rest) {
            draw_node(d, d->order[at++]);
            continue;
        }
        fprintf(d->to, "subgraph cluster_%d {\nlabel=\"", d->cluster++);
        print_escaped(d->to, rest, piece(rest));
        fputs("\";\n", d->to);
        at = draw_scope(d, at, (size_t)(rest - scope) + piece(rest));
        fputs("}\n", d->to);
    }
    return at;
}

static void draw_edges(const drawing *d, int index) {
    const kr_node *n = kr_graph_node(d->g, index);
    for (int k = 0; k < n->inputs; k++) {
        if (!n->in[k].id || is_const(kr_value_node(d->g, n->in[k]))) continue;
        fprintf(d->to, "n%d -> n%d [label=\"", d->node_of[n->in[k].id], index);
        print_type(d, n->in[k]);
        fputs("\"];\n", d->to);
    }
}

static void draw(drawing *d) {
    fputs("digraph krait {\nrankdir=TB;\nnode [shape=box, fontname=\"monospace\", fontsize=10];\n"
          "edge [fontname=\"monospace\", fontsize=8];\n",
          d->to);
    if (d->count) draw_scope(d, 0, 0);
    for (int k = 0; k < d->count; k++) draw_edges(d, d->order[k]);
    for (int k = 0; k < kr_graph_outputs(d->g); k++) {
        const kr_graph_output *o = kr_graph_output_at(d->g, k);
        fprintf(d->to, "out%d [label=\"output\\n", k);
        print_escaped(d->to, o->name, strlen(o->name));
        fprintf(d->to, "\", style=filled, fillcolor=\"#f6e8dd\"];\nn%d -> out%d [label=\"", d->node_of[o->value.id], k);
        print_type(d, o->value);
        fputs("\"];\n", d->to);
    }
    for (int k = 0; k < kr_graph_assigns(d->g); k++) {
        const kr_graph_assign *a = kr_graph_assign_at(d->g, k);
        fprintf(d->to, "n%d -> n%d [style=dotted, label=\"assign\", constraint=false];\n", d->node_of[a->value.id],
                d->node_of[a->target.id]);
    }
    fputs("}\n", d->to);
}

typedef struct place {
    const char *scope;
    int index;
} place;

/// By scope, with '.' before every other character so that a scope's inner scopes follow it directly.
static int by_scope(const void *a, const void *b) {
    const unsigned char *x = (const unsigned char *)((const place *)a)->scope;
    const unsigned char *y = (const unsigned char *)((const place *)b)->scope;
    while (*x && *x == *y) x++, y++;
    const int left = *x == '.' ? 1 : *x ? *x + 1 : 0, right = *y == '.' ? 1 : *y ? *y + 1 : 0;
    return left != right ? left - right : ((const place *)a)->index - ((const place *)b)->index;
}

kr_status kr_graph_print_dot(const kr_graph *g, FILE *to) {
    KR_TRY(kr_graph_status(g));
    const size_t nodes = (size_t)kr_graph_nodes(g), values = kr_graph_values(g);
    int *numbers = malloc((nodes + values + 2) * sizeof *numbers), *order = numbers;
    place *places = malloc((nodes + 1) * sizeof *places);
    if (!numbers || !places) {
        free(numbers);
        free(places);
        KR_FAIL(KR_NO_MEMORY, "dot: no memory for %zu nodes", nodes);
    }
    drawing d = {.g = g, .to = to, .node_of = numbers + nodes + 1, .order = order};
    for (int k = 0; k < (int)nodes; k++) {
        const kr_node *n = kr_graph_node(g, k);
        for (int o = 0; o < n->outputs; o++) d.node_of[n->out[o].id] = k;
        if (!n->dead && !is_const(n)) places[d.count++] = (place){scope_of(n), k};
    }
    qsort(places, (size_t)d.count, sizeof *places, by_scope);
    for (int k = 0; k < d.count; k++) order[k] = places[k].index;
    draw(&d);
    free(places);
    free(numbers);
    KR_FAIL_IF(fflush(to) || ferror(to), KR_IO, "dot: could not be written");
    return KR_OK;
}
