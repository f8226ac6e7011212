#include "ops/graph/internal.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

kr_status kr_graph_new(kr_graph **out) {
    *out = NULL;
    kr_graph *g = calloc(1, sizeof *g);
    KR_FAIL_IF(!g, KR_NO_MEMORY, "graph: no memory");
    g->pool = kr_pool_new();
    g->value_room = 256;
    g->values = calloc(g->value_room, sizeof *g->values);
    if (!g->pool || !g->values) {
        kr_graph_free(g);
        KR_FAIL(KR_NO_MEMORY, "graph: no memory");
    }
    g->values[0].shape.rank = -1;
    g->value_count = 1;
    g->carries_live = true;
    g->rank_override = -1;
    *out = g;
    return KR_OK;
}

void kr_graph_free(kr_graph *g) {
    if (!g) return;
    kr_pool_free(g->pool);
    free(g->nodes);
    free(g->values);
    free(g->outputs);
    free(g->assigns);
    free(g->names.entries);
    free(g);
}

bool kr_grow(void *array_pointer, int *room, int count, size_t element) {
    if (count < *room) return true;
    void **array = array_pointer;
    const int wanted = *room ? *room * 2 : 64;
    void *grown = realloc(*array, (size_t)wanted * element);
    if (!grown) {
        kr_status_record(KR_NO_MEMORY, __FILE__, __LINE__, "graph: no memory for %d entries", wanted);
        return false;
    }
    *array = grown;
    *room = wanted;
    return true;
}

kr_graph *kr_graph_here(kr_graph *g, const char *file, int line) {
    g->file = file;
    g->line = line;
    return g;
}

void kr_graph_fail(kr_graph *g, kr_status code) {
    if (g->status) return;
    g->status = code;
    snprintf(g->message, sizeof g->message, "%s%s%s (at %s:%d)", kr_status_message(), g->scope[0] ? ", in scope " : "",
             g->scope, g->file ? g->file : "?", g->line);
}

void kr_graph_fail_with(kr_graph *g, kr_status code, const char *format, ...) {
    if (g->status) return;
    char text[768];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    kr_status_record(code, g->file ? g->file : "?", g->line, "%s", text);
    kr_graph_fail(g, code);
}

kr_status kr_graph_status(const kr_graph *g) {
    if (!g->status) return KR_OK;
    return kr_status_record(g->status, g->file ? g->file : "?", g->line, "%s", g->message);
}

// Scopes ----------------------------------------------------------------------------------------------------------

void kr_scope_push(kr_graph *g, const char *format, ...) {
    if (g->scope_depth == (int)(sizeof g->scope_marks / sizeof *g->scope_marks)) {
        kr_graph_fail_with(g, KR_BAD_ARGUMENT, "scope: more than %d levels are open", g->scope_depth);
        return;
    }
    const int length = (int)strlen(g->scope);
    g->scope_marks[g->scope_depth++] = length;
    int at = length;
    if (length && at + 1 < (int)sizeof g->scope) g->scope[at++] = '.';
    va_list list;
    va_start(list, format);
    const int wrote = vsnprintf(g->scope + at, sizeof g->scope - (size_t)at, format, list);
    va_end(list);
    if (wrote < 0 || at + wrote >= (int)sizeof g->scope)
        kr_graph_fail_with(g, KR_BAD_ARGUMENT, "scope: the path is longer than %zu characters", sizeof g->scope - 1);
}

void kr_scope_pop(kr_graph *g) {
    if (!g->scope_depth) {
        kr_graph_fail_with(g, KR_BAD_ARGUMENT, "scope: pop without a push");
        return;
    }
    g->scope[g->scope_marks[--g->scope_depth]] = 0;
}

const char *kr_scope_path(const kr_graph *g) { return g->scope; }

const char *kr_scoped_name(kr_graph *g, const char *name) {
    return g->scope[0] ? kr_pool_format(g->pool, "%s.%s", g->scope, name) : kr_pool_text(g->pool, name);
}

// Reading ---------------------------------------------------------------------------------------------------------

int kr_graph_nodes(const kr_graph *g) { return g->node_count; }
kr_node *kr_graph_node(const kr_graph *g, int index) { return g->nodes[index]; }
uint32_t kr_graph_values(const kr_graph *g) { return g->value_count - 1; }

static const kr_value_info *info(const kr_graph *g, kr_value v) { return &g->values[v.id < g->value_count ? v.id : 0]; }

kr_dtype kr_value_dtype(const kr_graph *g, kr_value v) { return info(g, v)->dtype; }
kr_shape kr_value_shape(const kr_graph *g, kr_value v) { return info(g, v)->shape; }
kr_node *kr_value_node(const kr_graph *g, kr_value v) { return info(g, v)->node; }
int kr_value_output(const kr_graph *g, kr_value v) { return info(g, v)->output; }

int64_t kr_value_count(const kr_graph *g, kr_value v) {
    const kr_shape s = info(g, v)->shape;
    return s.rank < 0 ? 0 : kr_shape_count(&s);
}

kr_value kr_sibling(const kr_graph *g, kr_value v, int k) {
    const kr_node *n = info(g, v)->node;
    return n && k < n->outputs ? n->out[k] : KR_NONE;
}

int kr_graph_outputs(const kr_graph *g) { return g->output_count; }
kr_graph_output *kr_graph_output_at(const kr_graph *g, int index) { return &g->outputs[index]; }
int kr_graph_assigns(const kr_graph *g) { return g->assign_count; }
kr_graph_assign *kr_graph_assign_at(const kr_graph *g, int index) { return &g->assigns[index]; }
void kr_graph_clear_outputs(kr_graph *g) { g->output_count = 0; }
void kr_graph_clear_assigns(kr_graph *g) {
    for (int i = 0; i < g->assign_count; i++) g->values[g->assigns[i].target.id].assigned = false;
    g->assign_count = 0;
}

// Building --------------------------------------------------------------------------------------------------------

/// "rms_norm([2, 3] f32, absent)": what an op saw, for messages.
static const char *seen(const kr_op *op, const kr_shape *shapes, const kr_dtype *dtypes, int inputs, char text[512]) {
    int at = snprintf(text, 512, "%s(", op->name);
    for (int i = 0; i < inputs && at < 460; i++) {
        char shape[160];
        if (shapes[i].rank < 0) at += snprintf(text + at, 512 - (size_t)at, "%sabsent", i ? ", " : "");
        else at += snprintf(text + at, 512 - (size_t)at, "%s%s %s", i ? ", " : "", kr_dtype_name(dtypes[i]),
                            kr_shape_text(&shapes[i], shape));
    }
    if (at > 500) at = 500;
    snprintf(text + at, 512 - (size_t)at, ")");
    return text;
}

static bool check_inputs(kr_graph *g, const kr_op *op, const kr_value *in, int inputs) {
    const bool variadic = op->flags & KR_OP_VARIADIC;
    if (variadic ? inputs < op->inputs : inputs != op->inputs) {
        kr_graph_fail_with(g, KR_BAD_ARGUMENT, "%s: %d inputs, want %s%d", op->name, inputs,
                           variadic ? "at least " : "", op->inputs);
        return false;
    }
    for (int i = 0; i < inputs; i++) {
        if (in[i].id >= g->value_count) {
            kr_graph_fail_with(g, KR_BAD_ARGUMENT, "%s: input %d is not a value of this graph", op->name, i);
            return false;
        }
        if (!in[i].id && !kr_op_may_miss(op, i)) {
            const char *name = kr_op_input_name(op, i);
            if (name) kr_graph_fail_with(g, KR_BAD_ARGUMENT, "%s: %s is missing", op->name, name);
            else kr_graph_fail_with(g, KR_BAD_ARGUMENT, "%s: input %d is missing", op->name, i);
            return false;
        }
    }
    return true;
}

static bool reserve_values(kr_graph *g, int more) {
    while (g->value_count + (uint32_t)more > g->value_room) {
        kr_value_info *grown = realloc(g->values, 2 * (size_t)g->value_room * sizeof *grown);
        if (!grown) return false;
        g->values = grown;
        g->value_room *= 2;
    }
    return kr_grow(&g->nodes, &g->node_room, g->node_count, sizeof *g->nodes);
}

int kr_op_outputs(const kr_op *op, const kr_attrs *attrs) {
    return op->count && attrs ? op->count(attrs) : op->outputs;
}

kr_value kr_append(kr_graph *g, const kr_op *op, const kr_attrs *attrs, const kr_value *in, int inputs) {
    if (g->status || !check_inputs(g, op, in, inputs)) return KR_NONE;
    kr_shape few_shapes[32], *in_shape = few_shapes, out_shape[KR_MAX_OUTPUTS];
    kr_dtype few_dtypes[32], *in_dtype = few_dtypes, out_dtype[KR_MAX_OUTPUTS];
    if (inputs > 32) {
        in_shape = kr_pool_take(g->pool, (size_t)inputs * sizeof *in_shape);
        in_dtype = kr_pool_take(g->pool, (size_t)inputs * sizeof *in_dtype);
    }
    const int outputs = kr_op_outputs(op, attrs);
    kr_node *n = kr_pool_take(g->pool, sizeof *n);
    kr_value *ends = kr_pool_take(g->pool, (size_t)(inputs + outputs + 1) * sizeof *ends);
    const char *scope = g->scope_override ? g->scope_override : kr_pool_text(g->pool, g->scope);
    if (!in_shape || !in_dtype || !n || !ends || !scope || !reserve_values(g, outputs)) {
        kr_graph_fail_with(g, KR_NO_MEMORY, "%s: no memory for the node", op->name);
        return KR_NONE;
    }
    for (int i = 0; i < inputs; i++) {
        in_shape[i] = g->values[in[i].id].shape;
        in_dtype[i] = g->values[in[i].id].dtype;
    }
    memset(out_shape, 0, sizeof out_shape);
    memset(out_dtype, 0, sizeof out_dtype);
    const kr_status fit = kr_op_shapes(op, attrs, in_shape, in_dtype, inputs, out_shape, out_dtype);
    if (fit) {
        char text[512], why[512];
        snprintf(why, sizeof why, "%s", kr_status_message());
        kr_graph_fail_with(g, fit, "%s; got %s", why, seen(op, in_shape, in_dtype, inputs, text));
        return KR_NONE;
    }
    *n = (kr_node){.op = op, .inputs = inputs, .outputs = outputs, .in = ends, .out = ends + inputs, .scope = scope};
    if (attrs) n->attrs = *attrs;
    n->rank = g->rank_override >= 0 ? g->rank_override : g->next_rank++;
    if (inputs) memcpy(n->in, in, (size_t)inputs * sizeof *in);
    for (int k = 0; k < outputs; k++) {
        const uint32_t id = g->value_count++;
        g->values[id] = (kr_value_info){.dtype = out_dtype[k], .shape = out_shape[k], .node = n, .output = k};
        n->out[k].id = id;
    }
    g->nodes[g->node_count++] = n;
    return outputs ? n->out[0] : KR_NONE;
}

void (kr_output)(kr_graph *g, const char *name, kr_value v) {
    if (g->status) return;
    if (!v.id || v.id >= g->value_count) {
        kr_graph_fail_with(g, KR_BAD_ARGUMENT, "output \"%s\": the value is empty", name);
        return;
    }
    if (kr_graph_output_find(g, name).id) {
        kr_graph_fail_with(g, KR_BAD_ARGUMENT, "output \"%s\": the name is taken", name);
        return;
    }
    const char *kept = kr_pool_text(g->pool, name);
    if (!kept || !kr_grow(&g->outputs, &g->output_room, g->output_count, sizeof *g->outputs)) {
        kr_graph_fail(g, KR_NO_MEMORY);
        return;
    }
    g->outputs[g->output_count++] = (kr_graph_output){.name = kept, .value = v};
    if (!kr_output_name(g, g->output_count - 1)) kr_graph_fail(g, KR_NO_MEMORY);
}
