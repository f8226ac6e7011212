/// Attention over heads, and the cache of keys and values that decoding appends to.
///
///   score_ts = scale <q_t, k_s>;   o_t = sum_s softmax_s(score_t) v_s;   lse_t = log sum_s e^score_ts
///
/// over the keys that query t may see: an interval, as causal order, a window, the end of a cache and the borders of
/// documents each cut at one side. Scores are never held: blocks of keys go by with a running maximum and sum (online
/// softmax), and only lse is kept. With it the gradient computes the same probabilities again, block by block:
///
///   p = e^(score - lse);   dv_s = sum_t p_ts do_t;   ds_ts = p_ts (<do_t, v_s> - <do_t, o_t> + dlse_t)
///   dq_t = scale sum_s ds_ts k_s;   dk_s = scale sum_t ds_ts q_t
///
/// A query that sees no key gets zeros, and lse = -infinity.
///
/// sources Vaswani et al. 2017, arXiv:1706.03762; online softmax: Milakov & Gimelshein 2018, arXiv:1805.02867; blocks
/// and gradient: Dao et al. 2022, arXiv:2205.14135; grouped queries: Ainslie et al. 2023, arXiv:2305.13245
#include "ops/attention/size.h"
#include "ops/graph/internal.h"
#include "ops/cpu/kernels.h"

KR_KERNEL_DECLARE(attention)
KR_KERNEL_DECLARE(attention_merge)
KR_KERNEL_DECLARE(attention_grad_rows)
KR_KERNEL_DECLARE(attention_grad)
KR_KERNEL_DECLARE(attention_grad_sum)
KR_KERNEL_DECLARE(cache_write)

#define BIT(k) (1u << (k))
enum { HEADS, KV_HEADS, WINDOW, NOT_CAUSAL };
enum { SCALE };
enum { Q, K, V, KEY_COUNT, RESET, INPUTS };
enum { O, LSE, OUTPUTS };
enum { DO, DLSE, FORWARD, GRAD_O = FORWARD + INPUTS, GRAD_LSE, GRAD_INPUTS }; // do, dlse, forward inputs, o, lse

static kr_status expect(const char *op, const char *name, const kr_shape *got, kr_dtype dtype, kr_shape want,
                        kr_dtype want_dtype) {
    char seen[160], wanted[160];
    KR_FAIL_IF(got->rank >= 0 && (dtype != want_dtype || !kr_shape_equal(got, &want)), KR_BAD_SHAPE,
               "%s: %s is %s %s, want %s %s", op, name, kr_dtype_name(dtype), kr_shape_text(got, seen),
               kr_dtype_name(want_dtype), kr_shape_text(&want, wanted));
    return KR_OK;
}

/// in: q, k, v, key_count, reset.
static kr_status check_inputs(const char *op, const kr_attrs *t, const kr_shape *in, const kr_dtype *dtype,
                              kr_attention_size *size) {
    char text[160];
    const kr_shape *q = &in[Q], *k = &in[K];
    const int64_t H = t->i[HEADS], Hkv = t->i[KV_HEADS];
    KR_FAIL_IF(q->rank != 3 || k->rank != 3, KR_BAD_SHAPE, "%s: %s is %s, want [batch, length, heads*coordinates]", op,
               q->rank != 3 ? "q" : "k", kr_shape_text(q->rank != 3 ? q : k, text));
    KR_FAIL_IF(H < 1 || Hkv < 1 || H % Hkv, KR_BAD_ARGUMENT,
               "%s: %lld heads and %lld key heads, want a multiple of the key heads", op, (long long)H, (long long)Hkv);
    KR_FAIL_IF(q->dim[2] % H, KR_BAD_SHAPE, "%s: q is %s, want columns for %lld heads", op, kr_shape_text(q, text),
               (long long)H);
    KR_FAIL_IF(t->i[WINDOW] < 0 || (t->i[WINDOW] > 0 && t->i[NOT_CAUSAL]), KR_BAD_ARGUMENT,
               "%s: a window of %lld keys%s, want 0 (none) or more, and causal order with a window", op,
               (long long)t->i[WINDOW], t->i[NOT_CAUSAL] ? " without causal order" : "");
    *size = kr_attention_measure(q, k, H, Hkv);
    const kr_shape keys = KR_SHAPE(size->batch, size->keys, Hkv * size->dim);
    KR_TRY(expect(op, "q", q, dtype[Q], *q, KR_F32));
    KR_TRY(expect(op, "k", k, dtype[K], keys, KR_F32));
    KR_TRY(expect(op, "v", &in[V], dtype[V], keys, KR_F32));
    KR_TRY(expect(op, "key_count", &in[KEY_COUNT], dtype[KEY_COUNT], KR_SHAPE(1), KR_I32));
    return expect(op, "reset", &in[RESET], dtype[RESET], KR_SHAPE(size->batch, size->keys), KR_I32);
}

static kr_status attention_shape(const kr_attrs *t, const kr_shape *in, const kr_dtype *dtype, int inputs,
                                 kr_shape *out, kr_dtype *out_dtype) {
    (void)inputs;
    kr_attention_size s;
    KR_TRY(check_inputs("attention", t, in, dtype, &s));
    out[O] = in[Q];
    out[LSE] = KR_SHAPE(s.batch, s.heads, s.queries);
    out_dtype[O] = out_dtype[LSE] = KR_F32;
    return KR_OK;
}

static kr_status attention_grad_shape(const kr_attrs *t, const kr_shape *in, const kr_dtype *dtype, int inputs,
                                      kr_shape *out, kr_dtype *out_dtype) {
    (void)inputs;
    const char *op = "attention_grad";
    kr_attention_size s;
    KR_TRY(check_inputs(op, t, in + FORWARD, dtype + FORWARD, &s));
    const kr_shape rows = KR_SHAPE(s.batch, s.heads, s.queries);
    KR_TRY(expect(op, "do", &in[DO], dtype[DO], in[FORWARD + Q], KR_F32));
    KR_TRY(expect(op, "dlse", &in[DLSE], dtype[DLSE], rows, KR_F32));
    KR_TRY(expect(op, "o", &in[GRAD_O], dtype[GRAD_O], in[FORWARD + Q], KR_F32));
    KR_TRY(expect(op, "lse", &in[GRAD_LSE], dtype[GRAD_LSE], rows, KR_F32));
    for (int k = Q; k <= V; k++) {
        out[k] = in[FORWARD + k];
        out_dtype[k] = KR_F32;
    }
    return KR_OK;
}

/// Pairs of a query and a key that it sees, if all keys exist and are of one document.
static double visible_pairs(const kr_attrs *t, const kr_attention_size *s) {
    double pairs = 0;
    if (t->i[NOT_CAUSAL]) return (double)s->queries * (double)s->keys;
    for (int64_t q = 0; q < s->queries; q++) {
        const int64_t keys = q + s->keys - s->queries + 1;
        if (keys > 0) pairs += (double)(t->i[WINDOW] && t->i[WINDOW] < keys ? t->i[WINDOW] : keys);
    }
    return pairs;
}

/// Two products of Dh multiply-adds for each pair, and an exponential counted as 8.
static void attention_cost(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs, double *flops,
                           double *bytes) {
    (void)inputs, (void)out;
    const kr_attention_size s = kr_attention_measure(&in[Q], &in[K], t->i[HEADS], t->i[KV_HEADS]);
    *flops = (double)(s.batch * s.heads) * visible_pairs(t, &s) * (4 * (double)s.dim + 8);
    *bytes = 8 * ((double)kr_shape_count(&in[Q]) + (double)kr_shape_count(&in[K]));
}

/// Five products.
static void attention_grad_cost(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs, double *flops,
                                double *bytes) {
    (void)inputs, (void)out;
    const kr_shape *x = in + FORWARD;
    const kr_attention_size s = kr_attention_measure(&x[Q], &x[K], t->i[HEADS], t->i[KV_HEADS]);
    *flops = (double)(s.batch * s.heads) * visible_pairs(t, &s) * (10 * (double)s.dim + 12);
    *bytes = 16 * ((double)kr_shape_count(&x[Q]) + (double)kr_shape_count(&x[K])) +
             8 * (double)kr_shape_count(&in[GRAD_LSE]);
}

static size_t attention_work(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs) {
    (void)out, (void)inputs;
    const kr_attention_size s = kr_attention_measure(&in[Q], &in[K], t->i[HEADS], t->i[KV_HEADS]);
    return (size_t)kr_attention_bytes(&s);
}

static size_t attention_grad_work(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs) {
    (void)out, (void)inputs;
    const kr_attention_size s = kr_attention_measure(&in[FORWARD + Q], &in[FORWARD + K], t->i[HEADS], t->i[KV_HEADS]);
    return (size_t)kr_attention_grad_bytes(&s) + 64; // never 0, so that kernels always have a base to count from
}

extern const kr_op kr_op_attention_grad;

static void attention_derivative(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *din) {
    kr_value in[GRAD_INPUTS] = {[DO] = dout[O], [DLSE] = dout[LSE], [GRAD_O] = n->out[O], [GRAD_LSE] = n->out[LSE]};
    if (!dout[O].id) in[DO] = kr_const(g, 0, KR_F32, kr_value_shape(g, n->in[Q]));
    for (int k = Q; k < INPUTS; k++) in[FORWARD + k] = n->in[k];
    const kr_value first = kr_append(g, &kr_op_attention_grad, &n->attrs, in, GRAD_INPUTS);
    for (int k = Q; k <= V && first.id; k++) din[k] = kr_sibling(g, first, k);
}

static const kr_stage forward_stages[] = {KR_STAGE(attention), KR_STAGE(attention_merge)};
static const kr_stage backward_stages[] = {KR_STAGE(attention_grad_rows), KR_STAGE(attention_grad),
                                           KR_STAGE(attention_grad_sum)};

/// lse [B, H, Lq] is the second output.
const kr_op kr_op_attention = {
    .name = "attention", .inputs = INPUTS, .outputs = OUTPUTS, .optional = BIT(KEY_COUNT) | BIT(RESET),
    .zero_absent = BIT(RESET), .keeps_in = BIT(INPUTS) - 1, .keeps_out = BIT(O) | BIT(LSE),
    .attr = {.i = {"heads", "kv_heads", "window", "not_causal"}, .r = {"scale"}}, .shape = attention_shape,
    .grad = attention_derivative, .cost = attention_cost,
};
KR_CPU(attention,
    .rows_in = BIT(Q) | BIT(K) | BIT(V), .rows_out = BIT(O), .skip_out = BIT(LSE), .work = attention_work,
    KR_STAGES(forward_stages))

/// Reads do [B, Lq, H*Dh], dlse [B, H, Lq]?, the forward inputs, o and lse; gives dq, dk and dv.
const kr_op kr_op_attention_grad = {
    .name = "attention_grad", .inputs = GRAD_INPUTS, .outputs = V + 1, .flags = KR_OP_NO_GRADIENT,
    .optional = BIT(DLSE) | BIT(FORWARD + KEY_COUNT) | BIT(FORWARD + RESET),
    .zero_absent = BIT(DLSE) | BIT(FORWARD + RESET),
    .attr = {.i = {"heads", "kv_heads", "window", "not_causal"}, .r = {"scale"}}, .shape = attention_grad_shape,
    .cost = attention_grad_cost,
};
KR_CPU(attention_grad,
    .rows_in = BIT(DO) | BIT(FORWARD + Q) | BIT(FORWARD + K) | BIT(FORWARD + V) | BIT(GRAD_O),
    .rows_out = BIT(Q) | BIT(K) | BIT(V), .skip_out = BIT(Q) | BIT(K) | BIT(V), .work = attention_grad_work,
    KR_STAGES(backward_stages))

kr_value (kr_attention)(kr_graph *g, const kr_attention_args *a) {
    const kr_attrs t = {
        .i = {[HEADS] = a->heads, [KV_HEADS] = a->kv_heads, [WINDOW] = a->window, [NOT_CAUSAL] = a->not_causal},
        .r = {[SCALE] = a->scale}};
    const kr_value in[INPUTS] = {a->q, a->k, a->v, a->key_count, a->reset};
    return kr_append(g, &kr_op_attention, &t, in, INPUTS);
}

// cache_write -----------------------------------------------------------------------------------------------------

static kr_status cache_write_shape(const kr_attrs *t, const kr_shape *in, const kr_dtype *dtype, int inputs,
                                   kr_shape *out, kr_dtype *out_dtype) {
    (void)t, (void)inputs;
    char text[160];
    for (int k = 0; k < 2; k++)
        KR_FAIL_IF(in[k].rank != 3, KR_BAD_SHAPE, "cache_write: %s is %s, want [batch, %s, columns]", k ? "x" : "cache",
                   kr_shape_text(&in[k], text), k ? "length" : "capacity");
    KR_TRY(expect("cache_write", "cache", &in[0], dtype[0], in[0], KR_F32));
    KR_TRY(expect("cache_write", "x", &in[1], dtype[1], KR_SHAPE(in[0].dim[0], in[1].dim[1], in[0].dim[2]), KR_F32));
    KR_TRY(expect("cache_write", "position", &in[2], dtype[2], KR_SHAPE(1), KR_I32));
    out[0] = in[0];
    out_dtype[0] = KR_F32;
    return KR_OK;
}

/// In place only the new rows move.
static void cache_write_cost(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs, double *flops,
                             double *bytes) {
    (void)t, (void)out, (void)inputs;
    *flops = 0;
    *bytes = 8 * (double)kr_shape_count(&in[1]);
}

static const kr_stage cache_write_stages[] = {KR_STAGE(cache_write)};
const kr_op kr_op_cache_write = {
    .name = "cache_write", .inputs = 3, .outputs = 1, .flags = KR_OP_NO_GRADIENT, .shape = cache_write_shape,
    .cost = cache_write_cost,
};
KR_CPU(cache_write,
    .rows_in = BIT(1), .inplace = {BIT(0)}, KR_STAGES(cache_write_stages))

kr_value (kr_cache_write)(kr_graph *g, kr_value cache, kr_value x, kr_value position) {
    return kr_append(g, &kr_op_cache_write, &(kr_attrs){0}, (kr_value[]){cache, x, position}, 3);
}
