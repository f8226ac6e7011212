#include "tests/check.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

// Naive interpreter ---------------------------------------------------------------------------------------------------

static const kr_binding *find(const kr_binding *b, int count, const char *name) {
    for (int i = 0; i < count; i++)
        if (!strcmp(b[i].name, name)) return &b[i];
    return NULL;
}

static kr_arg packed_arg(const kr_graph *g, kr_value v, void *data) {
    kr_arg a = {.data = data, .dtype = kr_value_dtype(g, v), .shape = kr_value_shape(g, v)};
    int64_t step = 1;
    for (int k = a.shape.rank - 1; k >= 0; k--) {
        a.stride[k] = step;
        step *= a.shape.dim[k];
    }
    return a;
}

static kr_status run_node(const kr_graph *g, const kr_node *n, void **data, kr_isa isa, int parts,
                          const kr_binding *inputs, int input_count) {
    if (n->op->flags & KR_OP_SOURCE) {
        const kr_arg a = packed_arg(g, n->out[0], data[n->out[0].id]);
        const size_t bytes = kr_tensor_bytes(a.dtype, &a.shape);
        if (!n->name) { // const
            for (int64_t i = 0; i < kr_shape_count(&a.shape); i++) check_set(a.data, a.dtype, i, n->attrs.r[0]);
            return KR_OK;
        }
        const kr_binding *b = find(inputs, input_count, n->name);
        KR_FAIL_IF(!b && !strcmp(n->op->name, "input"), KR_BAD_ARGUMENT, "input \"%s\" is not bound", n->name);
        KR_FAIL_IF(b && b->bytes != bytes, KR_BAD_ARGUMENT, "\"%s\": %zu bytes are bound, want %zu", n->name, b->bytes,
                   bytes);
        if (b) memcpy(a.data, b->data, bytes);
        else memset(a.data, 0, bytes);
        return KR_OK;
    }
    kr_arg in[n->inputs + 1], out[n->outputs];
    for (int i = 0; i < n->inputs; i++) {
        in[i] = (kr_arg){.shape.rank = -1};
        if (n->in[i].id) in[i] = packed_arg(g, n->in[i], data[n->in[i].id]);
    }
    for (int k = 0; k < n->outputs; k++) out[k] = packed_arg(g, n->out[k], data[n->out[k].id]);
    return check_call(n->op, &n->attrs, in, n->inputs, out, isa, parts, false);
}

static kr_status read_outputs(kr_graph *g, void **data, const kr_binding *outputs, int output_count) {
    for (int i = 0; i < output_count; i++) {
        kr_value v = kr_graph_output_find(g, outputs[i].name);
        for (int k = 0; k < kr_graph_assigns(g) && !v.id; k++) {
            const kr_graph_assign *a = kr_graph_assign_at(g, k);
            if (!strcmp(kr_value_node(g, a->target)->name, outputs[i].name)) v = a->value;
        }
        KR_FAIL_IF(!v.id, KR_BAD_ARGUMENT, "there is no output \"%s\"", outputs[i].name);
        const kr_shape shape = kr_value_shape(g, v);
        const size_t bytes = kr_tensor_bytes(kr_value_dtype(g, v), &shape);
        KR_FAIL_IF(bytes != outputs[i].bytes, KR_BAD_ARGUMENT, "output \"%s\": room for %zu bytes, want %zu",
                   outputs[i].name, outputs[i].bytes, bytes);
        memcpy(outputs[i].data, data[v.id], bytes);
    }
    return KR_OK;
}

kr_status check_interpret(kr_graph *g, kr_isa isa, int parts, const kr_binding *inputs, int input_count,
                          const kr_binding *outputs, int output_count) {
    KR_TRY(kr_graph_sort(g));
    KR_TRY(kr_specialise(g, check_target(isa)));
    KR_TRY(kr_graph_verify(g));
    const uint32_t values = kr_graph_values(g);
    void **data = calloc(values + 1u, sizeof *data);
    kr_status status = data ? KR_OK : KR_NO_MEMORY;
    for (int i = 0; i < kr_graph_nodes(g) && !status; i++) {
        const kr_node *n = kr_graph_node(g, i);
        for (int k = 0; k < n->outputs && !status; k++) {
            const kr_shape shape = kr_value_shape(g, n->out[k]);
            const size_t bytes = kr_tensor_bytes(kr_value_dtype(g, n->out[k]), &shape);
            if (posix_memalign(&data[n->out[k].id], 64, bytes + 1)) status = KR_NO_MEMORY;
            else memset(data[n->out[k].id], 0xff, bytes);
        }
        if (!status) status = run_node(g, n, data, isa, parts, inputs, input_count);
        if (status) kr_status_prefix(status, "node %d, %s", i, n->op->name);
    }
    if (!status) status = read_outputs(g, data, outputs, output_count);
    for (uint32_t v = 0; data && v <= values; v++) free(data[v]);
    free(data);
    return status;
}

// Gradients -----------------------------------------------------------------------------------------------------------

typedef struct gradient {
    const check_case *c;
    check_oracle *oracle;
    const kr_op *op;
    kr_shape in_shape[CHECK_MAX], out_shape[CHECK_MAX];
    kr_dtype in_dtype[CHECK_MAX], out_dtype[CHECK_MAX];
    double *in[CHECK_MAX], *out[CHECK_MAX], *weight[CHECK_MAX];
    double *slope[CHECK_MAX]; ///< of input i: [sample][output], by central differences of the oracle
    uint32_t outputs;         ///< mask of the outputs in the loss
} gradient;

enum { SAMPLES = 160 }; // most elements of an input that are varied

static int64_t samples_of(const gradient *f, int i) {
    const int64_t n = kr_shape_count(&f->in_shape[i]);
    return n < SAMPLES ? n : SAMPLES;
}

static int64_t sample_at(const gradient *f, int i, int64_t s) {
    const int64_t n = kr_shape_count(&f->in_shape[i]);
    return n <= SAMPLES ? s : s * (n - 1) / (SAMPLES - 1);
}

/// loss[k] = <output k, its weights>, for the outputs in the loss.
static void losses_of(const gradient *f, double *loss) {
    for (int k = 0; k < kr_op_outputs(f->op, &f->c->attrs); k++)
        memset(f->out[k], 0, (size_t)kr_shape_count(&f->out_shape[k]) * sizeof(double));
    f->oracle(&f->c->attrs, f->in_shape, (const double *const *)f->in, f->out_shape, f->out);
    for (int k = 0; k < kr_op_outputs(f->op, &f->c->attrs); k++) {
        loss[k] = 0;
        if (f->outputs >> k & 1)
            for (int64_t i = 0; i < kr_shape_count(&f->out_shape[k]); i++) loss[k] += f->out[k][i] * f->weight[k][i];
    }
}

static bool wanted(const gradient *f, int i) {
    return f->in[i] && f->in_dtype[i] == KR_F32 && !(f->c->no_gradient >> i & 1);
}

/// The op on inputs "x0", "x1", ... of a new graph.
static kr_node *build(const gradient *f, kr_graph *g, kr_value *x) {
    for (int i = 0; i < f->c->inputs; i++) {
        char name[16];
        snprintf(name, sizeof name, "x%d", i);
        x[i] = f->in[i] ? kr_input(g, name, f->in_dtype[i], f->in_shape[i]) : KR_NONE;
    }
    const kr_value y = kr_append(g, f->op, &f->c->attrs, x, f->c->inputs);
    check_ok(kr_graph_status(g), f->c->op);
    return kr_value_node(g, y);
}

/// Every node that the rule appends may read of the op's own values only what the op says it keeps.
static void check_keeps(const gradient *f) {
    kr_graph *g = NULL;
    check_ok(kr_graph_new(&g), f->c->op);
    kr_value x[CHECK_MAX] = {{0}}, dout[CHECK_MAX] = {{0}}, din[CHECK_MAX] = {{0}};
    const kr_node *n = build(f, g, x);
    for (int k = 0; k < kr_op_outputs(f->op, &f->c->attrs); k++) {
        char name[16];
        snprintf(name, sizeof name, "d%d", k);
        if (f->outputs >> k & 1) dout[k] = kr_input(g, name, KR_F32, f->out_shape[k]);
    }
    const int before = kr_graph_nodes(g);
    cr_assert(f->op->grad, "%s: there is no gradient rule", f->c->op);
    f->op->grad(g, n, dout, din);
    check_ok(kr_graph_status(g), f->c->op);
    for (int j = before; j < kr_graph_nodes(g); j++) {
        const kr_node *m = kr_graph_node(g, j);
        for (int i = 0; i < m->inputs; i++) {
            for (int a = 0; a < n->inputs; a++)
                cr_assert(!m->in[i].id || m->in[i].id != n->in[a].id || (f->op->keeps_in >> (a < 31 ? a : 31) & 1),
                          "%s: the gradient's %s reads input %d, which keeps_in does not declare", f->c->op,
                          m->op->name, a);
            for (int a = 0; a < n->outputs; a++)
                cr_assert(m->in[i].id != n->out[a].id || (f->op->keeps_out >> a & 1),
                          "%s: the gradient's %s reads output %d, which keeps_out does not declare", f->c->op,
                          m->op->name, a);
        }
    }
    for (int i = 0; i < f->c->inputs; i++) {
        if (!din[i].id) continue;
        const kr_shape s = kr_value_shape(g, din[i]);
        cr_assert(x[i].id && kr_shape_equal(&s, &f->in_shape[i]), "%s: gradient %d has another shape", f->c->op, i);
    }
    kr_graph_free(g);
}

/// The graph with loss and gradients: outputs "g0", "g1", ... where the loss depends on the input.
static kr_graph *build_loss(const gradient *f, bool *depends) {
    kr_graph *g = NULL;
    check_ok(kr_graph_new(&g), f->c->op);
    kr_value x[CHECK_MAX] = {{0}}, grads[CHECK_MAX] = {{0}}, wrt[CHECK_MAX], loss = KR_NONE;
    const kr_node *n = build(f, g, x);
    for (int k = 0; k < kr_op_outputs(f->op, &f->c->attrs); k++) {
        if (!(f->outputs >> k & 1)) continue;
        char name[16];
        snprintf(name, sizeof name, "w%d", k);
        const int64_t count = kr_shape_count(&f->out_shape[k]);
        const kr_value w = kr_input(g, name, KR_F32, f->out_shape[k]);
        const kr_value term = kr_sum(g, kr_reshape(g, kr_mul(g, n->out[k], w), KR_SHAPE(count)), 0, false);
        loss = loss.id ? kr_add(g, loss, term) : term;
    }
    int count = 0, index[CHECK_MAX];
    for (int i = 0; i < f->c->inputs; i++)
        if (wanted(f, i)) {
            index[count] = i;
            wrt[count++] = x[i];
        }
    check_ok(kr_graph_status(g), f->c->op);
    check_ok(kr_autodiff(g, loss, wrt, count, grads), f->c->op);
    for (int j = 0; j < count; j++) {
        char name[16];
        snprintf(name, sizeof name, "g%d", index[j]);
        depends[index[j]] = grads[j].id;
        if (grads[j].id) kr_output(g, name, grads[j]);
    }
    check_ok(kr_graph_status(g), f->c->op);
    return g;
}

static void *to_dtype(const double *x, const kr_shape *shape, kr_dtype dtype) {
    const int64_t n = kr_shape_count(shape);
    void *data = malloc((size_t)(n + 1) * kr_dtype_size(dtype));
    for (int64_t i = 0; i < n; i++) check_set(data, dtype, i, x[i]);
    return data;
}

/// Central differences for input i, of each output's loss apart: those of a sum of them are their sum.
static double *differences(const gradient *f, int i) {
    double *slope = malloc((size_t)(samples_of(f, i) * CHECK_MAX + 1) * sizeof *slope);
    for (int64_t s = 0; s < samples_of(f, i); s++) {
        double *x = &f->in[i][sample_at(f, i, s)], up[CHECK_MAX], down[CHECK_MAX];
        const double old = *x, h = 1e-5 * (fabs(old) > 1 ? fabs(old) : 1);
        *x = old + h;
        losses_of(f, up);
        *x = old - h;
        losses_of(f, down);
        *x = old;
        for (int k = 0; k < kr_op_outputs(f->op, &f->c->attrs); k++)
            slope[s * CHECK_MAX + k] = (up[k] - down[k]) / (2 * h);
    }
    return slope;
}

/// The slopes of the loss against got (packed f32, or null: zeros).
static void compare(const gradient *f, int i, const float *got, kr_isa isa) {
    const int64_t n = kr_shape_count(&f->in_shape[i]);
    double want[SAMPLES], scale = 1;
    for (int64_t s = 0; s < samples_of(f, i); s++) {
        want[s] = 0;
        for (int k = 0; k < kr_op_outputs(f->op, &f->c->attrs); k++)
            if (f->outputs >> k & 1) want[s] += f->slope[i][s * CHECK_MAX + k];
        if (1 + fabs(want[s]) > scale) scale = 1 + fabs(want[s]);
    }
    const double allowed = (f->c->grad_tolerance ? f->c->grad_tolerance : 1e-4) * scale;
    for (int64_t s = 0; s < samples_of(f, i); s++) {
        const int64_t at = sample_at(f, i, s);
        const double g = got ? got[at] : 0;
        cr_assert(fabs(g - want[s]) <= allowed,
                  "%s (%s, loss over outputs 0x%x): gradient of input %d, element %lld of %lld: got %.9g, want %.9g, "
                  "off by %.3g, allowed %.3g",
                  f->c->op, check_level_name(isa), f->outputs, i, (long long)at, (long long)n, g, want[s],
                  fabs(g - want[s]), allowed);
    }
}

static void check_loss(const gradient *f) {
    check_keeps(f);
    for CHECK_LEVELS(isa) {
        bool depends[CHECK_MAX] = {false};
        kr_graph *g = build_loss(f, depends);
        kr_binding in[2 * CHECK_MAX], out[CHECK_MAX];
        char names[3 * CHECK_MAX][16];
        int ins = 0, outs = 0;
        for (int i = 0; i < f->c->inputs; i++) {
            if (!f->in[i]) continue;
            snprintf(names[i], sizeof names[i], "x%d", i);
            in[ins++] = (kr_binding){names[i], to_dtype(f->in[i], &f->in_shape[i], f->in_dtype[i]),
                                     kr_tensor_bytes(f->in_dtype[i], &f->in_shape[i])};
        }
        for (int k = 0; k < kr_op_outputs(f->op, &f->c->attrs); k++) {
            if (!(f->outputs >> k & 1)) continue;
            snprintf(names[CHECK_MAX + k], sizeof names[0], "w%d", k);
            in[ins++] = (kr_binding){names[CHECK_MAX + k], to_dtype(f->weight[k], &f->out_shape[k], KR_F32),
                                     kr_tensor_bytes(KR_F32, &f->out_shape[k])};
        }
        float *got[CHECK_MAX] = {NULL};
        for (int i = 0; i < f->c->inputs; i++) {
            if (!depends[i]) continue;
            const size_t bytes = kr_tensor_bytes(KR_F32, &f->in_shape[i]);
            got[i] = malloc(bytes + 1);
            snprintf(names[2 * CHECK_MAX + i], sizeof names[0], "g%d", i);
            out[outs++] = (kr_binding){names[2 * CHECK_MAX + i], got[i], bytes};
        }
        check_ok(check_interpret(g, isa, 2, in, ins, out, outs), f->c->op);
        for (int i = 0; i < f->c->inputs; i++)
            if (wanted(f, i)) compare(f, i, got[i], isa);
        for (int i = 0; i < ins; i++) free(in[i].data);
        for (int i = 0; i < CHECK_MAX; i++) free(got[i]);
        kr_graph_free(g);
    }
}

void check_gradient(const check_case *c, check_oracle *oracle) {
    gradient f = {.c = c, .oracle = oracle};
    f.op = check_shapes(c, f.in_shape, f.in_dtype, f.out_shape, f.out_dtype);
    for (int i = 0; i < c->inputs; i++) {
        if (c->shape[i].rank < 0) continue;
        const int64_t n = kr_shape_count(&c->shape[i]);
        const bool given = c->lo[i] != 0 || c->hi[i] != 0;
        f.in[i] = malloc((size_t)(n + 1) * sizeof(double));
        check_random(f.in[i], n, c->dtype[i], given ? c->lo[i] : -1, given ? c->hi[i] : 1, c->seed, (uint64_t)i);
    }
    uint32_t all = 0;
    for (int k = 0; k < kr_op_outputs(f.op, &c->attrs); k++) {
        const int64_t n = kr_shape_count(&f.out_shape[k]);
        f.out[k] = malloc((size_t)(n + 1) * sizeof(double));
        f.weight[k] = malloc((size_t)(n + 1) * sizeof(double));
        check_random(f.weight[k], n, KR_F32, -1, 1, c->seed, 100 + (uint64_t)k);
        if (f.out_dtype[k] == KR_F32 && !(c->no_loss >> k & 1)) all |= 1u << k;
    }
    f.outputs = all;
    for (int i = 0; i < c->inputs; i++)
        if (wanted(&f, i)) f.slope[i] = differences(&f, i);
    check_loss(&f);
    for (int k = 0; k < kr_op_outputs(f.op, &c->attrs); k++) {
        if (!(all >> k & 1) || all == 1u << k) continue;
        f.outputs = 1u << k;
        check_loss(&f);
    }
    for (int i = 0; i < CHECK_MAX; i++) {
        free(f.in[i]);
        free(f.out[i]);
        free(f.weight[i]);
        free(f.slope[i]);
    }
}
