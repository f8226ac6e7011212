#include "ops/graph/internal.h"

#include <stdlib.h>
#include <string.h>

/// Shapes and dtypes of a node's outputs by its op's rule, under these attributes.
static kr_status derive(const kr_graph *g, const kr_node *n, const kr_attrs *attrs, kr_shape *out_shape,
                        kr_dtype *out_dtype) {
    kr_shape *in_shape = malloc((size_t)(n->inputs + 1) * sizeof *in_shape);
    kr_dtype *in_dtype = malloc((size_t)(n->inputs + 1) * sizeof *in_dtype);
    kr_status status = KR_OK;
    if (!in_shape || !in_dtype) status = kr_status_record(KR_NO_MEMORY, __FILE__, __LINE__, "verify: no memory");
    for (int i = 0; i < n->inputs && !status; i++) {
        in_shape[i] = g->values[n->in[i].id].shape;
        in_dtype[i] = g->values[n->in[i].id].dtype;
    }
    memset(out_shape, 0, KR_MAX_OUTPUTS * sizeof *out_shape);
    memset(out_dtype, 0, KR_MAX_OUTPUTS * sizeof *out_dtype);
    if (!status) status = kr_op_shapes(n->op, attrs, in_shape, in_dtype, n->inputs, out_shape, out_dtype);
    free(in_shape);
    free(in_dtype);
    return status;
}

kr_status kr_graph_set_attrs(kr_graph *g, kr_node *n, const kr_attrs *attrs) {
    kr_shape out_shape[KR_MAX_OUTPUTS];
    kr_dtype out_dtype[KR_MAX_OUTPUTS];
    KR_TRY(derive(g, n, attrs, out_shape, out_dtype));
    n->attrs = *attrs;
    for (int k = 0; k < n->outputs; k++) {
        g->values[n->out[k].id].shape = out_shape[k];
        g->values[n->out[k].id].dtype = out_dtype[k];
    }
    return KR_OK;
}

/// What the rule derives again must be what the values say.
static kr_status verify_node(const kr_graph *g, const kr_node *n, const bool *made) {
    kr_shape out_shape[KR_MAX_OUTPUTS];
    kr_dtype out_dtype[KR_MAX_OUTPUTS];
    for (int i = 0; i < n->inputs; i++) {
        const kr_value v = n->in[i];
        KR_FAIL_IF(v.id >= g->value_count || (!v.id && !kr_op_may_miss(n->op, i)), KR_BAD_ARGUMENT,
                   "verify: input %d of %s is missing",
                   i, n->op->name);
        KR_FAIL_IF(v.id && !made[v.id], KR_BAD_ARGUMENT, "verify: input %d of %s (scope %s) is read before it is made",
                   i, n->op->name, n->scope ? n->scope : "");
    }
    KR_TRY(derive(g, n, &n->attrs, out_shape, out_dtype));
    for (int k = 0; k < n->outputs; k++) {
        const kr_value_info *v = &g->values[n->out[k].id];
        char is[160], want[160];
        KR_FAIL_IF(v->node != n || v->output != k, KR_BAD_ARGUMENT, "verify: output %d of %s has another producer", k,
                   n->op->name);
        KR_FAIL_IF(!kr_shape_equal(&v->shape, &out_shape[k]) || v->dtype != out_dtype[k], KR_BAD_SHAPE,
                   "verify: output %d of %s is %s %s, its rule gives %s %s", k, n->op->name, kr_dtype_name(v->dtype),
                   kr_shape_text(&v->shape, is), kr_dtype_name(out_dtype[k]), kr_shape_text(&out_shape[k], want));
    }
    return KR_OK;
}

kr_status kr_graph_verify(const kr_graph *g) {
    KR_TRY(kr_graph_status(g));
    bool *made = calloc(g->value_count + 1u, sizeof *made);
    KR_FAIL_IF(!made, KR_NO_MEMORY, "verify: no memory");
    kr_status status = KR_OK;
    for (int i = 0; i < g->node_count && !status; i++) {
        const kr_node *n = g->nodes[i];
        if (n->dead) continue;
        status = verify_node(g, n, made);
        for (int k = 0; k < n->outputs && !status; k++) {
            if (made[n->out[k].id])
                status = kr_status_record(KR_BAD_ARGUMENT, __FILE__, __LINE__, "verify: a value of %s is made twice",
                                          n->op->name);
            made[n->out[k].id] = true;
        }
    }
    for (int i = 0; i < g->output_count && !status; i++)
        if (!made[g->outputs[i].value.id])
            status = kr_status_record(KR_BAD_ARGUMENT, __FILE__, __LINE__,
                                      "verify: output \"%s\" is not made by any node", g->outputs[i].name);
    for (int i = 0; i < g->assign_count && !status; i++)
        if (!made[g->assigns[i].value.id] || !made[g->assigns[i].target.id])
            status = kr_status_record(KR_BAD_ARGUMENT, __FILE__, __LINE__,
                                      "verify: assign %d uses a value that is not made", i);
    free(made);
    return status;
}
