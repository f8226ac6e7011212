// Reads the text form of a graph (docs/graph-text.md): recursive descent over one statement a line. Nodes are made
// through kr_append, so every shape rule runs again and a text can never make a graph that building could not. What the
// text declares and what the rules derive must agree: a wrong hand-written shape is found where it stands.
#include "ops/graph/text.h"

#include <stdlib.h>
#include <string.h>

/// The name of a value as it stands in the text, without "%".
typedef struct word {
    const char *text;
    size_t length;
} word;
#define WORD(w) (int)((w).length < 64 ? (w).length : 64), (w).text

typedef struct binding {
    word name; ///< text null: a free entry
    kr_value value;
} binding;

typedef struct parser {
    kr_reader read;
    kr_graph *g;
    binding *names; ///< open addressing, a power of two of entries
    size_t name_count, name_room;
    kr_value *list; ///< inputs of the statement being read
    int list_room;
} parser;

// Values ----------------------------------------------------------------------------------------------------------

static bool same(word a, word b) { return a.length == b.length && !memcmp(a.text, b.text, a.length); }

static binding *find(const parser *p, word w) {
    size_t k = (size_t)kr_hash(w.text, w.length) & (p->name_room - 1);
    while (p->names[k].name.text && !same(p->names[k].name, w)) k = (k + 1) & (p->name_room - 1);
    return &p->names[k];
}

static bool defined(const parser *p, word w) { return p->name_room && find(p, w)->name.text; }

static kr_status define(parser *p, word w, kr_value v) {
    if (2 * (p->name_count + 1) > p->name_room) {
        parser wider = *p;
        wider.name_room = p->name_room ? 2 * p->name_room : 256;
        wider.names = calloc(wider.name_room, sizeof *wider.names);
        KR_FAIL_IF(!wider.names, KR_NO_MEMORY, "%s: no memory for %zu names", p->read.label, wider.name_room);
        for (size_t k = 0; k < p->name_room; k++)
            if (p->names[k].name.text) *find(&wider, p->names[k].name) = p->names[k];
        free(p->names);
        p->names = wider.names;
        p->name_room = wider.name_room;
    }
    *find(p, w) = (binding){w, v};
    p->name_count++;
    return KR_OK;
}

static kr_status read_name(kr_reader *r, word *out) {
    KR_TRY(kr_reader_expect(r, '%', "before the name of a value"));
    out->text = r->at;
    while (r->at < r->end && (kr_is_letter(*r->at) || kr_is_digit(*r->at))) r->at++;
    out->length = (size_t)(r->at - out->text);
    char text[40];
    KR_WRONG_IF(!out->length, r->at, "expected a name or number after '%%', found %s", kr_reader_found(r, text));
    return KR_OK;
}

/// A value that was made before, or the empty value for "_".
static kr_status read_value(parser *p, bool may_be_absent, kr_value *out) {
    kr_reader *r = &p->read;
    *out = KR_NONE;
    if (may_be_absent && kr_reader_take_word(r, "_")) return KR_OK;
    word w;
    KR_TRY(read_name(r, &w));
    KR_WRONG_IF(!defined(p, w), w.text - 1, "%%%.*s is not defined before this line", WORD(w));
    *out = find(p, w)->value;
    return KR_OK;
}

/// %1, %2 on the left of "=". None may be made already.
static kr_status read_made(parser *p, word *made, int *count) {
    kr_reader *r = &p->read;
    *count = 0;
    do {
        kr_reader_skip(r);
        const char *where = r->at;
        KR_WRONG_IF(*count == KR_MAX_OUTPUTS, where, "a node makes at most %d values", KR_MAX_OUTPUTS);
        word w;
        KR_TRY(read_name(r, &w));
        bool known = defined(p, w);
        for (int k = 0; k < *count && !known; k++) known = same(made[k], w);
        KR_WRONG_IF(known, where, "%%%.*s is defined already", WORD(w));
        made[(*count)++] = w;
    } while (kr_reader_take(r, ','));
    return kr_reader_expect(r, '=', "after the values that a node makes");
}

static kr_status read_inputs(parser *p, int *count) {
    kr_reader *r = &p->read;
    *count = 0;
    KR_TRY(kr_reader_expect(r, '(', "after the name of an op"));
    if (kr_reader_take(r, ')')) return KR_OK;
    do {
        if (!kr_grow(&p->list, &p->list_room, *count, sizeof *p->list)) return KR_NO_MEMORY;
        KR_TRY(read_value(p, true, &p->list[*count]));
        ++*count;
    } while (kr_reader_take(r, ','));
    return kr_reader_expect(r, ')', "after the inputs");
}

// Attributes ------------------------------------------------------------------------------------------------------

/// The list of an op's attributes, for messages.
static const char *known_attributes(const kr_attr_names *names, char text[400]) {
    int n = snprintf(text, 400, "none");
    if (names->i[0] || names->r[0] || names->shape) n = 0;
    for (int k = 0; names->i[k] && n < 300; k++)
        n += snprintf(text + n, 400 - (size_t)n, "%s%s", n ? ", " : "", names->i[k]);
    for (int k = 0; names->r[k] && n < 300; k++)
        n += snprintf(text + n, 400 - (size_t)n, "%s%s", n ? ", " : "", names->r[k]);
    if (names->shape && n < 300) snprintf(text + n, 400 - (size_t)n, "%s%s", n ? ", " : "", names->shape);
    return text;
}

/// Reads the value of attribute `name`. `slot` tells which it was; -1: there is none of that name.
static kr_status read_attribute(kr_reader *r, const kr_attr_names *names, const char *name, kr_attrs *attrs,
                                int *slot) {
    for (int k = 0; names->i[k]; k++)
        if (!strcmp(names->i[k], name)) {
            *slot = k;
            return kr_reader_integer(r, "an integer", &attrs->i[k]);
        }
    for (int k = 0; names->r[k]; k++)
        if (!strcmp(names->r[k], name)) {
            *slot = KR_ATTR_INTEGERS + k;
            return kr_reader_real(r, "a number", &attrs->r[k]);
        }
    *slot = -1;
    if (!names->shape || strcmp(names->shape, name)) return KR_OK;
    *slot = KR_ATTR_INTEGERS + KR_ATTR_REALS;
    return kr_reader_dims(r, &attrs->shape, false);
}

/// {group_size=0, eps=1e-05}, in any order; what is left out is 0.
static kr_status read_attributes(kr_reader *r, const kr_op *op, kr_attrs *attrs) {
    if (!kr_reader_take(r, '{') || kr_reader_take(r, '}')) return KR_OK;
    unsigned given = 0;
    do {
        char name[64], known[400];
        int slot;
        kr_reader_skip(r);
        const char *where = r->at;
        KR_TRY(kr_reader_word(r, "the name of an attribute", name));
        KR_TRY(kr_reader_expect(r, '=', "after the name of an attribute"));
        KR_TRY(read_attribute(r, &op->attr, name, attrs, &slot));
        KR_WRONG_IF(slot < 0, where, "%s has no attribute '%s' (known: %s)", op->name, name,
                    known_attributes(&op->attr, known));
        KR_WRONG_IF(given >> slot & 1, where, "attribute '%s' is given twice", name);
        given |= 1u << slot;
    } while (kr_reader_take(r, ','));
    return kr_reader_expect(r, '}', "after the attributes");
}

static kr_status read_init(kr_reader *r, kr_init *init) {
    char name[64];
    kr_reader_skip(r);
    const char *where = r->at;
    KR_TRY(kr_reader_word(r, "an initialiser", name));
    int kind = 0;
    while (kind < KR_INIT_COUNT && strcmp(kr_text_inits[kind].word, name)) kind++;
    KR_WRONG_IF(kind == KR_INIT_COUNT, where,
                "unknown initialiser '%s' (zeros, constant, uniform, normal, log_arange, log_uniform, dt_bias)",
                name);
    init->kind = (kr_init_kind)kind;
    const int count = kr_text_inits[kind].arguments;
    double *const argument[] = {&init->a, &init->b, &init->c};
    for (int k = 0; k < count; k++) {
        KR_TRY(kr_reader_expect(r, k ? ',' : '(', "before a number of the initialiser"));
        KR_TRY(kr_reader_real(r, "a number", argument[k]));
    }
    return count ? kr_reader_expect(r, ')', "after the numbers of the initialiser") : KR_OK;
}

/// What follows the word input, param, const or carry, type included.
static kr_status read_source(parser *p, const kr_op *op, kr_attrs *attrs, const char **name, kr_init *init) {
    kr_reader *r = &p->read;
    char text[40];
    kr_reader_skip(r);
    const char *where = r->at;
    if (op == &kr_op_const) {
        KR_TRY(kr_reader_real(r, "the constant", &attrs->r[0]));
    } else {
        KR_TRY(kr_reader_string(r, "before a name", name));
        KR_WRONG_IF(kr_source_find(p->g, op, *name).id, where, "the %s \"%s\" exists already", op->name, *name);
    }
    if (op == &kr_op_param && kr_reader_take_word(r, "init")) {
        KR_TRY(kr_reader_expect(r, '=', "after init"));
        KR_TRY(read_init(r, init));
    }
    if (op == &kr_op_param && kr_reader_take_word(r, "decay")) attrs->i[0] |= KR_PARAM_DECAY;
    if (op == &kr_op_carry) {
        int kind = 0;
        while (kind < KR_TEXT_CARRIES && !kr_reader_take_word(r, kr_text_carries[kind])) kind++;
        KR_WRONG_IF(kind == KR_TEXT_CARRIES, r->at, "expected state, optimizer or gradient, found %s",
                    kr_reader_found(r, text));
        attrs->i[1] = kind;
    }
    KR_TRY(kr_reader_expect(r, ':', "before the type"));
    kr_dtype dtype;
    kr_reader_skip(r);
    where = r->at;
    KR_TRY(kr_reader_type(r, &dtype, &attrs->shape));
    KR_WRONG_IF(op == &kr_op_param && dtype != KR_F32, where, "a param is f32, not %s", kr_dtype_name(dtype));
    if (op != &kr_op_param) attrs->i[0] = dtype;
    return KR_OK;
}

// Statements ------------------------------------------------------------------------------------------------------

/// The graph's own error, with the place in the text instead of the place in a C file.
static kr_status graph_failed(const parser *p, const char *where) {
    char text[sizeof p->g->message];
    memcpy(text, p->g->message, sizeof text);
    char *tail = strstr(text, " (at ");
    if (tail) *tail = 0;
    return kr_reader_fail(&p->read, where, p->g->status, "%s", text);
}

/// What the rules derived against what the line declares. ": types" may be left out.
static kr_status check_types(parser *p, const kr_node *n) {
    kr_reader *r = &p->read;
    if (!kr_reader_take(r, ':')) return KR_OK;
    for (int k = 0; k < n->outputs; k++) {
        if (k) KR_TRY(kr_reader_expect(r, ',', "before the type of the next output"));
        kr_reader_skip(r);
        const char *where = r->at;
        kr_dtype dtype;
        kr_shape shape;
        KR_TRY(kr_reader_type(r, &dtype, &shape));
        const kr_shape is = kr_value_shape(p->g, n->out[k]);
        const kr_dtype is_dtype = kr_value_dtype(p->g, n->out[k]);
        char a[160], b[160];
        if (dtype != is_dtype || !kr_shape_equal(&shape, &is))
            return kr_reader_fail(r, where, KR_BAD_SHAPE, "output %d of %s is declared %s %s, its rule gives %s %s", k,
                                  n->op->name, kr_dtype_name(dtype), kr_shape_text(&shape, a), kr_dtype_name(is_dtype),
                                  kr_shape_text(&is, b));
    }
    return KR_OK;
}

static kr_status check_count(const kr_reader *r, const kr_op *op, const char *start, int makes, int named) {
    KR_WRONG_IF(named != makes, start, "%s makes %d value%s, the line names %d", op->name, makes, makes == 1 ? "" : "s",
                named);
    return KR_OK;
}

/// %1, %2 = op(%3, _) {attributes} : types @ "scope"
static kr_status read_node(parser *p) {
    kr_reader *r = &p->read;
    const char *start = r->at;
    word made[KR_MAX_OUTPUTS];
    int count, inputs = 0;
    KR_TRY(read_made(p, made, &count));
    kr_reader_skip(r);
    const char *where = r->at;
    char name[64];
    KR_TRY(kr_reader_word(r, "the name of an op", name));
    const kr_op *op = kr_op_find(name);
    const char *near = op ? NULL : kr_op_nearest(name);
    KR_WRONG_IF(!op && near, where, "unknown op '%s'; did you mean '%s'?", name, near);
    KR_WRONG_IF(!op, where, "unknown op '%s'", name);
    if (!op->count) KR_TRY(check_count(r, op, start, op->outputs, count));
    kr_attrs attrs = {0};
    kr_init init = {0};
    const char *source = NULL;
    if (op->flags & KR_OP_SOURCE) {
        KR_TRY(read_source(p, op, &attrs, &source, &init));
    } else {
        KR_TRY(read_inputs(p, &inputs));
        if (op->flags & KR_OP_PROGRAM) KR_TRY(kr_reader_program(r, &attrs));
        else KR_TRY(read_attributes(r, op, &attrs));
    }
    if (op->count) KR_TRY(check_count(r, op, start, op->count(&attrs), count));
    kr_append(p->g, op, &attrs, p->list, inputs);
    if (p->g->status) return graph_failed(p, where);
    kr_node *n = p->g->nodes[p->g->node_count - 1];
    if (source && !kr_source_name(p->g, n, source)) return KR_NO_MEMORY;
    n->init = init;
    if (!(op->flags & KR_OP_SOURCE)) KR_TRY(check_types(p, n));
    if (kr_reader_take(r, '@')) KR_TRY(kr_reader_string(r, "before a scope", &n->scope));
    KR_TRY(kr_reader_expect_line_end(r));
    for (int k = 0; k < count; k++) KR_TRY(define(p, made[k], n->out[k]));
    return KR_OK;
}

static kr_status read_assign(parser *p, const char *where) {
    kr_value target, value;
    KR_TRY(read_value(p, false, &target));
    KR_TRY(kr_reader_expect(&p->read, '=', "after what is assigned to"));
    KR_TRY(read_value(p, false, &value));
    KR_TRY(kr_reader_expect_line_end(&p->read));
    (kr_assign)(p->g, target, value);
    return p->g->status ? graph_failed(p, where) : KR_OK;
}

static kr_status read_output(parser *p, const char *where) {
    const char *name;
    kr_value value;
    KR_TRY(kr_reader_string(&p->read, "before the name of an output", &name));
    KR_TRY(kr_reader_expect(&p->read, '=', "after the name of an output"));
    KR_TRY(read_value(p, false, &value));
    KR_TRY(kr_reader_expect_line_end(&p->read));
    (kr_output)(p->g, name, value);
    return p->g->status ? graph_failed(p, where) : KR_OK;
}

static kr_status read_header(kr_reader *r) {
    static const char header[] = KR_TEXT_HEADER;
    kr_reader_skip(r);
    const size_t n = sizeof header - 1, left = (size_t)(r->end - r->at);
    KR_WRONG_IF(left < n || memcmp(r->at, header, n) || (left > n && kr_is_digit(r->at[n])), r->at,
                "the first line must be '%s': this is not a graph, or one of another version", header);
    r->at += n;
    return kr_reader_expect_line_end(r);
}

static kr_status read_all(parser *p) {
    kr_reader *r = &p->read;
    KR_TRY(read_header(r));
    for (;;) {
        char text[40];
        kr_reader_skip(r);
        const char *where = r->at;
        KR_WRONG_IF(r->at == r->end, where, "the text ends before the line 'end'");
        if (*r->at == '\n') r->at++;
        else if (*r->at == '%') KR_TRY(read_node(p));
        else if (kr_reader_take_word(r, "assign")) KR_TRY(read_assign(p, where));
        else if (kr_reader_take_word(r, "output")) KR_TRY(read_output(p, where));
        else if (kr_reader_take_word(r, "end")) break;
        else KR_WRONG(where, "expected a value such as %%1, assign, output or end, found %s", kr_reader_found(r, text));
    }
    for (;;) { // only blank lines and comments may follow
        KR_TRY(kr_reader_expect_line_end(r));
        if (r->at == r->end) return KR_OK;
        r->at++;
    }
}

kr_status kr_graph_parse(const char *text, size_t bytes, const char *label, kr_graph **out) {
    *out = NULL;
    parser p = {.read = {.begin = text, .at = text, .end = text + bytes, .label = label ? label : "graph"}};
    KR_TRY(kr_graph_new(&p.g));
    p.read.pool = p.g->pool;
    const kr_text_locale locale = kr_text_locale_enter();
    const kr_status status = read_all(&p);
    kr_text_locale_leave(locale);
    free(p.names);
    free(p.list);
    if (status) kr_graph_free(p.g);
    else *out = p.g;
    return status;
}
