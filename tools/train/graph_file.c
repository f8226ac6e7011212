// A graph written by hand as something to train: what it must have, and its forms for training and for evaluation.
#include "tools/train/graph_file.h"

#include <stdlib.h>
#include <string.h>

static kr_value find_input(const kr_graph *g, const char *name) {
    for (int k = 0; k < kr_graph_nodes(g); k++) {
        const kr_node *n = kr_graph_node(g, k);
        if (kr_node_source(n) == KR_SOURCE_INPUT && !strcmp(n->name, name)) return n->out[0];
    }
    return KR_NONE;
}

static bool is_state(const kr_node *n) {
    return kr_node_source(n) == KR_SOURCE_CARRY && n->attrs.i[1] == KR_CARRY_STATE;
}

/// Input `name` as i32 of the shape of "tokens".
static kr_status want_input(const kr_graph *g, const char *label, const char *name) {
    const kr_value tokens = find_input(g, "tokens"), v = find_input(g, name);
    char text[160], other[160];
    KR_FAIL_IF(!v.id, KR_BAD_ARGUMENT,
               "%s has no input \"%s\": to be trained a graph takes \"tokens\" and \"targets\", both "
               "i32 [B, L], and gives \"loss\"",
               label, name);
    const kr_shape shape = kr_value_shape(g, v), want = kr_value_shape(g, tokens);
    KR_FAIL_IF(kr_value_dtype(g, v) != KR_I32 || shape.rank != 2 || shape.dim[0] < 1 || shape.dim[1] < 1,
               KR_BAD_ARGUMENT, "%s: input \"%s\" is %s %s, want i32 [B, L]", label, name,
               kr_dtype_name(kr_value_dtype(g, v)), kr_shape_text(&shape, text));
    KR_FAIL_IF(!kr_shape_equal(&shape, &want), KR_BAD_ARGUMENT, "%s: input \"%s\" is %s, want %s as \"tokens\" is",
               label, name, kr_shape_text(&shape, text), kr_shape_text(&want, other));
    return KR_OK;
}

static kr_status check(const kr_graph *g, kr_graph_file *f) {
    static const char *const fed[] = {"tokens", "targets", "reset"};
    char text[160];
    KR_TRY(want_input(g, f->label, "tokens"));
    KR_TRY(want_input(g, f->label, "targets"));
    f->reset = find_input(g, "reset").id;
    if (f->reset) KR_TRY(want_input(g, f->label, "reset"));
    for (int k = 0; k < kr_graph_nodes(g); k++) {
        const kr_node *n = kr_graph_node(g, k);
        f->state |= is_state(n);
        bool known = kr_node_source(n) != KR_SOURCE_INPUT;
        for (int i = 0; i < 3 && !known; i++) known = !strcmp(n->name, fed[i]);
        KR_FAIL_IF(!known, KR_BAD_ARGUMENT,
                   "%s has an input \"%s\", which nobody would feed: only \"tokens\", \"targets\" and "
                   "\"reset\" are",
                   f->label, n->name);
    }
    const kr_value loss = kr_graph_output_find(g, "loss"), logits = kr_graph_output_find(g, "logits");
    KR_FAIL_IF(!loss.id, KR_BAD_ARGUMENT, "%s has no output \"loss\" (f32, one element) to be made smaller", f->label);
    kr_shape shape = kr_value_shape(g, loss);
    KR_FAIL_IF(kr_value_dtype(g, loss) != KR_F32 || kr_shape_count(&shape) != 1, KR_BAD_ARGUMENT,
               "%s: output \"loss\" is %s %s, want f32 and one element", f->label,
               kr_dtype_name(kr_value_dtype(g, loss)), kr_shape_text(&shape, text));
    const kr_shape tokens = kr_value_shape(g, find_input(g, "tokens"));
    f->batch = tokens.dim[0];
    f->length = tokens.dim[1];
    if (!logits.id) return KR_OK;
    shape = kr_value_shape(g, logits);
    const bool fits = kr_value_dtype(g, logits) == KR_F32 && shape.rank == 3 && shape.dim[0] == f->batch &&
                      shape.dim[1] == f->length;
    f->vocabulary = fits ? shape.dim[2] : 0;
    return KR_OK;
}

/// The same graph gives the same number, however its values are called and laid out in the file.
static kr_status fingerprint(const kr_graph *g, uint64_t *out) {
    char *text = NULL;
    size_t bytes = 0;
    FILE *to = open_memstream(&text, &bytes);
    KR_FAIL_IF(!to, KR_NO_MEMORY, "no memory to print a graph");
    kr_status status = kr_graph_print(g, to);
    if (fclose(to) && !status)
        status = kr_status_record(KR_NO_MEMORY, __FILE__, __LINE__, "no memory to print a graph");
    if (!status) *out = kr_hash(text, bytes);
    free(text);
    return status;
}

kr_status kr_graph_file_open(const char *path, kr_graph_file *out) {
    kr_graph *g;
    *out = (kr_graph_file){.label = path};
    KR_TRY(kr_file_read(path, &out->text, &out->bytes));
    kr_status status = kr_graph_parse(out->text, out->bytes, path, &g);
    if (!status) {
        status = check(g, out);
        if (!status) status = fingerprint(g, &out->fingerprint);
        kr_graph_free(g);
    }
    if (status) kr_graph_file_close(out);
    return status;
}

void kr_graph_file_close(kr_graph_file *f) {
    free(f->text);
    f->text = NULL;
}

/// Every state is zero, and nothing is assigned to it; with `all`, nothing is assigned to anything.
static kr_status zero_state(kr_graph *g, bool all) {
    const int nodes = kr_graph_nodes(g), count = kr_graph_assigns(g);
    kr_graph_assign *kept = calloc((size_t)count + 1, sizeof *kept);
    KR_FAIL_IF(!kept, KR_NO_MEMORY, "no memory for a graph");
    int n = 0;
    for (int k = 0; k < count && !all; k++)
        if (!is_state(kr_value_node(g, kr_graph_assign_at(g, k)->target))) kept[n++] = *kr_graph_assign_at(g, k);
    kr_graph_clear_assigns(g);
    for (int k = 0; k < n; k++) kr_assign(g, kept[k].target, kept[k].value);
    free(kept);
    for (int k = 0; k < nodes; k++) {
        const kr_node *node = kr_graph_node(g, k);
        if (!is_state(node)) continue;
        const kr_value carry = node->out[0];
        kr_graph_replace(g, carry, kr_const(g, 0, kr_value_dtype(g, carry), kr_value_shape(g, carry)));
    }
    KR_TRY(kr_graph_status(g));
    KR_TRY(kr_graph_sort(g));
    kr_graph_prune(g);
    return KR_OK;
}

kr_status kr_graph_file_build(const kr_graph_file *f, bool training, bool carry_state, kr_graph **out) {
    KR_TRY(kr_graph_parse(f->text, f->bytes, f->label, out));
    const kr_status status = training && carry_state ? KR_OK : zero_state(*out, !training);
    if (status) {
        kr_graph_free(*out);
        *out = NULL;
    }
    return status;
}
