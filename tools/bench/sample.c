// Sample graphs of single ops, written in the text form of graphs: the sizes are those of a 1M-parameter Mamba-1 that
// is trained with 8 rows of 256 tokens.
#include "tools/bench/bench.h"

#include <stdlib.h>
#include <string.h>

/// Types of the inputs by name, "x=f32[2,3]" (of elementwise ops without names, in order), others are absent; "~lo,hi"
/// behind a type is the range of its random numbers (default -1,1;
/// integers are 0 to 255). name: of a further sample; null for the default one, which comes first.
typedef struct sample {
    const char *op, *inputs, *attributes, *name;
} sample;

// Mamba-2 and Mamba-3 of the same width: 10 heads of 32, 64 states. "large": the scans of the published 130M models
// over
// 2,048 tokens. "decode": what one token of those costs.
static const sample samples[] = {
    {"matmul", "a=f32[2048,160] b=f32[640,160]", "transpose_b=1", NULL},
    {"matmul", "a=f32[2048,768] b=f32[3072,768]", "transpose_b=1", "large"},
    {"matmul", "a=f32[1,768] b=f32[50280,768]", "transpose_b=1", "decode"},
    {"rms_norm", "x=f32[8,256,160] residual=f32[8,256,160] weight=f32[160]", "eps=1e-05", NULL},
    {"layer_norm", "x=f32[8,256,160] residual=f32[8,256,160] weight=f32[160] bias=f32[160]", "eps=1e-05", NULL},
    {"embedding", "weight=f32[256,160] ids=i32[8,256]", "", NULL},
    {"softmax", "x=f32[8,256,256]", "", NULL},
    {"cross_entropy", "logits=f32[8,256,256] targets=i32[8,256]", "", NULL},
    {"linear_cross_entropy", "x=f32[8,256,160] weight=f32[256,160] targets=i32[8,256]", "", NULL},
    {"causal_conv1d", "x=f32[8,256,320] weight=f32[320,4] bias=f32[320]", "silu=1", NULL},
    {"causal_conv1d", "x=f32[1,2048,1536] weight=f32[1536,4] bias=f32[1536]", "silu=1", "large"},
    {"linear_scan", "a=f32[8,256,320]~0.5,1 b=f32[8,256,320]", "", NULL},
    {"selective_scan",
     "u=f32[8,256,320] delta=f32[8,256,320] A=f32[320,16]~-4,-0.5 B=f32[8,256,16] C=f32[8,256,16] "
     "D=f32[320] z=f32[8,256,320] delta_bias=f32[320]~-5,-3",
     "delta_softplus=1", NULL},
    {"selective_scan",
     "u=f32[1,2048,1536] delta=f32[1,2048,1536] A=f32[1536,16]~-4,-0.5 B=f32[1,2048,16] C=f32[1,2048,16] "
     "D=f32[1536] z=f32[1,2048,1536] delta_bias=f32[1536]~-5,-3",
     "delta_softplus=1", "large"},
    {"ssd_scan",
     "x=f32[8,256,320] dt=f32[8,256,10] A=f32[10]~-4,-0.5 B=f32[8,256,64] C=f32[8,256,64] D=f32[10] "
     "dt_bias=f32[10]~-5,-3",
     "groups=1, chunk=0, dt_softplus=1", NULL},
    {"ssd_scan",
     "x=f32[1,2048,1536] dt=f32[1,2048,24] A=f32[24]~-4,-0.5 B=f32[1,2048,128] C=f32[1,2048,128] D=f32[24] "
     "dt_bias=f32[24]~-5,-3",
     "groups=1, chunk=0, dt_softplus=1", "large"},
    {"trapezoid_scan",
     "k=f32[8,256,64] q=f32[8,256,64] x=f32[8,256,320] adt=f32[8,256,10]~-0.5,-0.01 "
     "dt=f32[8,256,10]~0.01,0.5 trap=f32[8,256,10] D=f32[10] z=f32[8,256,320] k_bias=f32[10,1,64] "
     "q_bias=f32[10,1,64] ang=f32[8,256,16]",
     "rank=1, chunk=0, groups=1, half=0", NULL},
    {"trapezoid_scan",
     "k=f32[1,2048,128] q=f32[1,2048,128] x=f32[1,2048,1536] adt=f32[1,2048,24]~-0.5,-0.01 "
     "dt=f32[1,2048,24]~0.01,0.5 trap=f32[1,2048,24] D=f32[24] z=f32[1,2048,1536] k_bias=f32[24,1,128] "
     "q_bias=f32[24,1,128] ang=f32[1,2048,32]",
     "rank=1, chunk=0, groups=1, half=0", "large"},
    {"rope", "x=f32[8,256,160]", "heads=5, rotary_dim=32, base=10000", NULL},
    {"attention", "q=f32[8,256,160] k=f32[8,256,160] v=f32[8,256,160]", "heads=5, kv_heads=5", NULL},
    {"attention", "q=f32[1,2048,768] k=f32[1,2048,768] v=f32[1,2048,768]", "heads=12, kv_heads=12", "large"},
    {"cache_write", "cache=f32[8,256,160] x=f32[8,16,160] position=i32[1]~0,200", "", NULL},
    {"sq_norm", "f32[1048576]", "", NULL},
    {"adamw",
     "p=f32[1048576] g=f32[1048576] m=f32[1048576] v=f32[1048576]~0,1 learning_rate=f32[1]~0.001,0.002 "
     "step=i64[1]~1,1000 sq_norm=f32[1]~1,2",
     "beta1=0.9, beta2=0.95, eps=1e-08, weight_decay=0.1, max_norm=1", NULL},
    {"count_step", "step=i64[1] sq_norm=f32[1]~1,2", "", NULL},
    {"sum", "f32[2048,320]", "axis=0", NULL},
    {"mean", "f32[2048,320]", "axis=0", NULL},
    {"max", "f32[2048,320]", "axis=0", NULL},
    {"cumsum", "f32[8,256,320]", "axis=1", NULL},
    {"concat", "f32[2048,320] f32[2048,320]", "axis=1", NULL},
    {"pad", "f32[2048,320]", "axis=0, before=3, after=0", NULL},
    {"copy", "f32[2048,640]", "", NULL},
    {"clamp", "f32[2048,320]", "lo=-0.5, hi=0.5", NULL},
    {"fused", "f32[2048,320] f32[2048,320]", "t0 = silu(x0), t1 = mul(x1, t0), out t1", NULL},
    {"fused_sum", "f32[2048,320] f32[2048,320]", "t0 = mul(x0, x1), sum t0 axis=0 axes=1 shape=[320]", NULL},
    {"affine", "f32[2048,320]", "scale=2, shift=1", NULL},
    {"cast", "i32[2048,320]", "dtype=0", NULL},
};

/// name: null for the default. Null where the op has none of that name.
static const sample *find(const char *op, size_t length, const char *name) {
    for (size_t k = 0; k < sizeof samples / sizeof *samples; k++) {
        const sample *s = &samples[k];
        if (strlen(s->op) != length || memcmp(s->op, op, length)) continue;
        if (name ? s->name && !strcmp(s->name, name) : !s->name) return s;
    }
    return NULL;
}

/// The sample whose graph has this op in it: its own, or for X_grad that of X. `name` as above.
static const sample *sample_of(const char *op, const char *name, bool *gradient) {
    const size_t length = strlen(op);
    const sample *s = find(op, length, name);
    *gradient = false;
    if (s || length < 6 || strcmp(op + length - 5, "_grad")) return s;
    const sample *forward = find(op, length - 5, name);
    *gradient = forward != NULL;
    return forward;
}

/// "8x256x160", "i32:8x256" or "_" to "f32[8,256,160]" and so on.
static kr_status type_of(const char *word, char out[128]) {
    if (!strcmp(word, "_")) return strcpy(out, word), KR_OK;
    const char *colon = strchr(word, ':'), *dims = colon ? colon + 1 : word;
    const size_t length = strlen(dims);
    const bool edges = length && dims[0] != 'x' && dims[length - 1] != 'x' && !strstr(dims, "xx");
    KR_FAIL_IF(!edges || length > 80 || (colon && colon - word > 8) || strspn(dims, "0123456789x") != length,
               KR_BAD_ARGUMENT,
               "'%s' is not a shape: want dimensions such as 8x256x160, i32:8x256, or _ for an absent input", word);
    int n = sprintf(out, "%.*s[", colon ? (int)(colon - word) : 3, colon ? word : "f32");
    for (const char *c = dims; *c; c++) out[n++] = *c == 'x' ? ',' : *c;
    strcpy(out + n, "]");
    return KR_OK;
}

/// A sample's types in the op's order, "_" for those that are absent.
static void sample_types(const kr_op *op, const sample *s, char out[1600]) {
    if (!strchr(s->inputs, '=')) strcpy(out, s->inputs);
    for (int k = 0; k < op->inputs && strchr(s->inputs, '='); k++) {
        const char *name = kr_op_input_name(op, k), *at = s->inputs;
        const size_t length = name ? strlen(name) : 0;
        while (at && (strncmp(at, name, length) || at[length] != '=')) at = (at = strchr(at, ' ')) ? at + 1 : NULL;
        strcat(out, k ? " " : "");
        if (at) strncat(out, at + length + 1, strcspn(at + length + 1, " "));
        else strcat(out, "_");
    }
}

/// Space-separated types: those of the words, of the sample, or plain matrices for elementwise ops.
static kr_status input_types(const kr_op *op, const sample *s, const kr_text_list *words, char out[1600]) {
    *out = 0;
    for (int k = 1; k < words->count; k++) {
        char type[128];
        KR_TRY(type_of(words->at[k], type));
        strcat(strcat(out, k > 1 ? " " : ""), type); // 15 words of at most 103 characters
    }
    if (*out) return KR_OK;
    if (s) return sample_types(op, s, out), KR_OK;
    KR_FAIL_IF(!(op->flags & KR_OP_ELEMENTWISE), KR_BAD_ARGUMENT,
               "op %s has no default sample: give the shapes of its %d input%s", op->name, op->inputs,
               op->inputs == 1 ? "" : "s");
    for (int k = 0; k < op->inputs; k++) strcat(strcat(out, k ? " " : ""), "f32[2048,320]~0.1,1");
    return KR_OK;
}

/// Outputs of a node; those of a program are its sum and what stands behind "out".
static int count_outputs(const kr_op *op, const char *attributes) {
    if (!(op->flags & KR_OP_PROGRAM)) return op->outputs;
    int count = strstr(attributes, "sum ") != NULL;
    for (const char *out = strstr(attributes, "out "); out && (out = strchr(out + 1, ' ')); count++) {}
    return count;
}

/// %i0 = param "i0" : TYPE ... %o0, %o1 = op(%i0, ...) {attributes}; output "o0" = %o0 ... end
/// Tensors of f32 are parameters, which stay where they are: inputs are copied in at each run by one thread, and what
/// the other threads would have had in their caches is gone.
static void write_text(FILE *to, const kr_op *op, char *types, const char *attributes) {
    char arguments[512] = "";
    int count = 0;
    fprintf(to, "krait graph 1\n");
    for (char *rest, *type = strtok_r(types, " ", &rest); type; type = strtok_r(NULL, " ", &rest), count++) {
        char name[16];
        if (*type == '_') strcpy(name, "_");
        else {
            sprintf(name, "%%i%d", count);
            fprintf(to, "%s = %s \"i%d\"%s : %.*s\n", name, strncmp(type, "f32", 3) ? "input" : "param", count,
                    strncmp(type, "f32", 3) ? "" : " init=constant(0)", (int)strcspn(type, "~"), type);
        }
        strcat(strcat(arguments, count ? ", " : ""), name);
    }
    const int outputs = count_outputs(op, attributes);
    for (int k = 0; k < outputs; k++) fprintf(to, "%s%%o%d", k ? ", " : "", k);
    fprintf(to, " = %s(%s) {%s}\n", op->name, arguments, attributes);
    for (int k = 0; k < outputs; k++) fprintf(to, "output \"o%d\" = %%o%d\n", k, k);
    fprintf(to, "end\n");
}

/// loss = sum over f32 outputs of <out, a random input of the same shape>: what a gradient op needs to come about.
static void add_loss(kr_graph *g) {
    kr_value loss = KR_NONE;
    const int outputs = kr_graph_outputs(g);
    for (int k = 0; k < outputs; k++) {
        const kr_value v = kr_graph_output_at(g, k)->value;
        char name[16];
        if (kr_value_dtype(g, v) != KR_F32 || k) continue; // the others are states and saved values
        snprintf(name, sizeof name, "w%d", k);
        const kr_value each = kr_mul(g, v,
                                     kr_stop_gradient(g, kr_param(g, name, kr_value_shape(g, v), (kr_init){0}, 0)));
        loss = kr_sum(g, kr_reshape(g, each, KR_SHAPE(kr_value_count(g, each))), 0, true);
    }
    kr_graph_clear_outputs(g);
    kr_output(g, "loss", loss);
}

kr_status kr_bench_sample(const char *name, const char *which, const kr_text_list *words, const char *attributes,
                          kr_graph **out) {
    bool gradient;
    const sample *s = sample_of(name, which, &gradient);
    const kr_op *op = kr_op_find(gradient ? s->op : name);
    if (!op || !kr_op_find(name)) {
        const char *nearest = kr_op_nearest(name);
        KR_FAIL(KR_BAD_ARGUMENT, "unknown op '%s'%s%s%s", name, nearest ? "; did you mean '" : "",
                nearest ? nearest : "", nearest ? "'?" : "");
    }
    KR_FAIL_IF(op->flags & (KR_OP_SOURCE | KR_OP_VIEW), KR_BAD_ARGUMENT,
               "op %s runs no kernel: there is nothing to measure", name);
    KR_FAIL_IF(which && !s, KR_BAD_ARGUMENT, "op %s has no sample '%s'; leave --sample out, or give shapes", name,
               which);
    char types[1600], *text = NULL;
    size_t bytes = 0;
    KR_TRY(input_types(op, s, words, types));
    FILE *to = open_memstream(&text, &bytes);
    KR_FAIL_IF(!to, KR_NO_MEMORY, "no memory for the sample");
    write_text(to, op, types, attributes ? attributes : s ? s->attributes : "");
    kr_status status = fclose(to) ? kr_status_record(KR_NO_MEMORY, __FILE__, __LINE__, "no memory for the sample")
                                  : kr_graph_parse(text, bytes, "sample", out);
    free(text);
    if (!status && gradient) {
        add_loss(*out);
        status = kr_graph_status(*out);
        if (status) kr_graph_free(*out);
    }
    return status == KR_BAD_FILE || status == KR_BAD_SHAPE ? KR_BAD_ARGUMENT : status;
}

/// Range of input `index` in a sample's list of types, where it says one.
static void range_of(const sample *s, int index, bool positive, double *lo, double *hi) {
    if (positive) *lo = 0.1, *hi = 1; // inside the domain of log, sqrt and the rest
    char types[1600] = "";
    if (s) sample_types(kr_op_find(s->op), s, types);
    const char *type = types;
    for (; index > 0 && *type; index--) type += strcspn(type, " ") + (type[strcspn(type, " ")] == ' ');
    const size_t length = strcspn(type, " ");
    const char *range = memchr(type, '~', length);
    if (range) sscanf(range, "~%lf,%lf", lo, hi);
}

/// Random numbers in [lo, hi); of whole ones the part before the point.
static void fill(kr_dtype dtype, void *data, int64_t n, uint64_t stream, double lo, double hi) {
    enum { PERIOD = 10007 }; // random numbers take longer than most kernels: they are repeated
    for (int64_t i = 0; i < n; i++) {
        const double x = i < PERIOD ? lo + (hi - lo) * kr_random_uniform(1, stream, (uint64_t)i) : 0;
        if (dtype == KR_F32) ((float *)data)[i] = i < PERIOD ? (float)x : ((float *)data)[i - PERIOD];
        else if (dtype == KR_I32) ((int32_t *)data)[i] = i < PERIOD ? (int32_t)x : ((int32_t *)data)[i - PERIOD];
        else if (dtype == KR_I64) ((int64_t *)data)[i] = i < PERIOD ? (int64_t)x : ((int64_t *)data)[i - PERIOD];
    }
}

kr_status kr_bench_fill(const char *name, kr_session *session, const kr_plan *plan, kr_binding *bindings, int room,
                        int *count) {
    bool gradient;
    const sample *s = sample_of(name, NULL, &gradient); // ranges are the same for all samples of an op
    const kr_op *op = kr_op_find(name);
    *count = 0;
    for (int k = 0; k < kr_plan_slots(plan); k++) {
        const kr_slot *slot = kr_plan_slot(plan, k);
        const bool input = slot->kind == KR_SLOT_IO && !slot->is_output;
        if (!input && slot->kind != KR_SLOT_PARAM) continue;
        KR_FAIL_IF(*count == room, KR_BAD_ARGUMENT, "the plan has more than %d inputs", room);
        void *data = calloc(1, slot->bytes + 1);
        KR_FAIL_IF(!data, KR_NO_MEMORY, "no memory for %zu bytes of input", slot->bytes);
        double lo = slot->dtype == KR_F32 ? -1 : 0, hi = slot->dtype == KR_F32 ? 1 : 256;
        if (slot->name[0] == 'i')
            range_of(s, atoi(slot->name + 1), !s && op && op->flags & KR_OP_ELEMENTWISE, &lo, &hi);
        fill(slot->dtype, data, kr_shape_count(&slot->shape), (uint64_t)k, lo, hi);
        if (input) {
            bindings[(*count)++] = (kr_binding){slot->name, data, slot->bytes};
            continue;
        }
        const kr_status status = kr_session_write(session, kr_session_find(session, slot->name), data, slot->bytes);
        free(data);
        KR_TRY(status);
    }
    return KR_OK;
}
