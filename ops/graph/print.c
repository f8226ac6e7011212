// Prints a graph as text. One statement a line, so that two graphs can be compared with diff; every number is written
// with the fewest digits that read back to the same bits, so that a parsed graph computes exactly what this one does.
// Values are numbered anew in node order: two graphs that differ only in what a pass threw away print alike.
#include "ops/graph/text.h"

#include <stdlib.h>

typedef struct printer {
    const kr_graph *g;
    FILE *to;
    uint32_t *number; ///< by value id; 0: not made by a live node so far
} printer;

static void print_type(const printer *p, kr_value v) {
    const kr_shape shape = kr_value_shape(p->g, v);
    fputs(kr_dtype_name(kr_value_dtype(p->g, v)), p->to);
    kr_text_dims(p->to, &shape);
}

/// "%7", or "_" for the empty value.
static kr_status print_value(const printer *p, kr_value v) {
    if (!v.id) {
        putc('_', p->to);
        return KR_OK;
    }
    KR_FAIL_IF(v.id > kr_graph_values(p->g) || !p->number[v.id], KR_BAD_ARGUMENT,
               "graph text: value %u is used before a live node makes it", v.id);
    fprintf(p->to, "%%%u", p->number[v.id]);
    return KR_OK;
}

static kr_status print_param(const printer *p, const kr_node *n) {
    const kr_init *init = &n->init;
    KR_FAIL_IF(init->kind < 0 || init->kind >= KR_INIT_COUNT, KR_BAD_ARGUMENT,
               "graph text: parameter %s has an unknown initialiser %d", n->name, (int)init->kind);
    KR_FAIL_IF(n->attrs.i[0] & ~(int64_t)KR_PARAM_DECAY, KR_BAD_ARGUMENT,
               "graph text: parameter %s has flags %lld without a word in the text form", n->name,
               (long long)n->attrs.i[0]);
    const double argument[] = {init->a, init->b, init->c};
    fprintf(p->to, " init=%s", kr_text_inits[init->kind].word);
    for (int k = 0; k < kr_text_inits[init->kind].arguments; k++) {
        fputs(k ? ", " : "(", p->to);
        kr_text_real(p->to, argument[k]);
    }
    if (kr_text_inits[init->kind].arguments) putc(')', p->to);
    if (n->attrs.i[0] & KR_PARAM_DECAY) fputs(" decay", p->to);
    return KR_OK;
}

static kr_status print_source(const printer *p, const kr_node *n) {
    if (n->name) {
        putc(' ', p->to);
        kr_text_string(p->to, n->name);
    }
    if (n->op == &kr_op_param) return print_param(p, n);
    if (n->op == &kr_op_const) {
        putc(' ', p->to);
        kr_text_real(p->to, n->attrs.r[0]);
    } else if (n->op == &kr_op_carry) {
        const int64_t kind = n->attrs.i[1];
        KR_FAIL_IF(kind < 0 || kind >= KR_TEXT_CARRIES, KR_BAD_ARGUMENT,
                   "graph text: carry %s has an unknown kind %lld", n->name, (long long)kind);
        fprintf(p->to, " %s", kr_text_carries[kind]);
    }
    return KR_OK;
}

/// {group_size=0, eps=1e-05, shape=[2,3]}: every attribute that the op names, in its order.
static kr_status print_attributes(const printer *p, const kr_node *n) {
    const kr_attr_names *names = &n->op->attr;
    int shown = 0, k = 0;
    for (; names->i[k]; k++) fprintf(p->to, "%s%s=%lld", shown++ ? ", " : " {", names->i[k], (long long)n->attrs.i[k]);
    for (; k < KR_ATTR_INTEGERS; k++)
        KR_FAIL_IF(n->attrs.i[k], KR_BAD_ARGUMENT, "graph text: %s uses integer attribute %d without naming it",
                   n->op->name, k);
    for (k = 0; names->r[k]; k++) {
        fprintf(p->to, "%s%s=", shown++ ? ", " : " {", names->r[k]);
        kr_text_real(p->to, n->attrs.r[k]);
    }
    for (; k < KR_ATTR_REALS; k++)
        KR_FAIL_IF(n->attrs.r[k] != 0, KR_BAD_ARGUMENT, "graph text: %s uses real attribute %d without naming it",
                   n->op->name, k);
    if (names->shape) {
        fprintf(p->to, "%s%s=", shown++ ? ", " : " {", names->shape);
        kr_text_dims(p->to, &n->attrs.shape);
    }
    KR_FAIL_IF(!names->shape && n->attrs.shape.rank, KR_BAD_ARGUMENT,
               "graph text: %s uses its shape attribute without naming it", n->op->name);
    if (shown) putc('}', p->to);
    return KR_OK;
}

static kr_status print_node(printer *p, const kr_node *n, uint32_t *last) {
    for (int k = 0; k < n->outputs; k++) {
        p->number[n->out[k].id] = ++*last;
        fprintf(p->to, "%s%%%u", k ? ", " : "", *last);
    }
    fprintf(p->to, " = %s", n->op->name);
    if (n->op->flags & KR_OP_SOURCE) {
        KR_TRY(print_source(p, n));
    } else {
        putc('(', p->to);
        for (int k = 0; k < n->inputs; k++) {
            if (k) fputs(", ", p->to);
            KR_TRY(print_value(p, n->in[k]));
        }
        putc(')', p->to);
        if (n->op->flags & KR_OP_PROGRAM) kr_text_program(p->to, n);
        else KR_TRY(print_attributes(p, n));
    }
    for (int k = 0; k < n->outputs; k++) {
        fputs(k ? ", " : " : ", p->to);
        print_type(p, n->out[k]);
    }
    if (n->scope && *n->scope) {
        fputs(" @ ", p->to);
        kr_text_string(p->to, n->scope);
    }
    putc('\n', p->to);
    return KR_OK;
}

static kr_status print_all(printer *p) {
    uint32_t last = 0;
    fputs(KR_TEXT_HEADER "\n", p->to);
    for (int k = 0; k < kr_graph_nodes(p->g); k++) {
        const kr_node *n = kr_graph_node(p->g, k);
        if (!n->dead) KR_TRY(print_node(p, n, &last));
    }
    for (int k = 0; k < kr_graph_assigns(p->g); k++) {
        const kr_graph_assign *a = kr_graph_assign_at(p->g, k);
        fputs("assign ", p->to);
        KR_TRY(print_value(p, a->target));
        fputs(" = ", p->to);
        KR_TRY(print_value(p, a->value));
        putc('\n', p->to);
    }
    for (int k = 0; k < kr_graph_outputs(p->g); k++) {
        const kr_graph_output *o = kr_graph_output_at(p->g, k);
        fputs("output ", p->to);
        kr_text_string(p->to, o->name);
        fputs(" = ", p->to);
        KR_TRY(print_value(p, o->value));
        putc('\n', p->to);
    }
    fputs("end\n", p->to);
    KR_FAIL_IF(fflush(p->to) || ferror(p->to), KR_IO, "graph text: could not be written");
    return KR_OK;
}

kr_status kr_graph_print(const kr_graph *g, FILE *to) {
    KR_TRY(kr_graph_status(g));
    printer p = {g, to, calloc((size_t)kr_graph_values(g) + 1, sizeof(uint32_t))};
    KR_FAIL_IF(!p.number, KR_NO_MEMORY, "graph text: no memory for %u value numbers", kr_graph_values(g));
    const kr_text_locale locale = kr_text_locale_enter();
    const kr_status status = print_all(&p);
    kr_text_locale_leave(locale);
    free(p.number);
    return status;
}
