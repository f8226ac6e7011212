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
#include "ops/attention/args.h"
#include "ops/attention/size.h"
#include "ops/graph/internal.h"
#include "ops/graph/signature.h"

#define FORWARD_INPUTS(from)                                                                           \
    [(from) + ATTENTION_Q] = {"q", "B Lq heads*D"}, [(from) + ATTENTION_K] = {"k", "B Lk kv_heads*D"}, \
              [(from) + ATTENTION_V] = {"v", "B Lk kv_heads*D"},                                       \
              [(from) + ATTENTION_KEY_COUNT] = {"key_count", "1", KR_OPTIONAL, KR_I32},                \
              [(from) + ATTENTION_RESET] = {"reset", "B Lk", KR_OPTIONAL, KR_I32}
#define ATTRIBUTES \
    { [ATTENTION_HEADS] = KR_AT_LEAST(1), [ATTENTION_KV_HEADS] = KR_AT_LEAST(1), [ATTENTION_WINDOW] = KR_AT_LEAST(0) }

static const kr_signature attention_signature = {
    .in = {FORWARD_INPUTS(0)},
    .out = {[ATTENTION_O] = {"o", "B Lq heads*D"}, [ATTENTION_LSE] = {"lse", "B heads Lq"}},
    .i = ATTRIBUTES,
};
static const kr_signature attention_grad_signature = {
    .in = {[ATTENTION_GRAD_DO] = {"do", "B Lq heads*D"},
           [ATTENTION_GRAD_DLSE] = {"dlse", "B heads Lq", KR_OPTIONAL},
           FORWARD_INPUTS(ATTENTION_GRAD_FORWARD),
           [ATTENTION_GRAD_O] = {"o", "B Lq heads*D"},
           [ATTENTION_GRAD_LSE] = {"lse", "B heads Lq"}},
    .out = {[ATTENTION_GRAD_DQ] = {"dq", "@q"}, [ATTENTION_GRAD_DK] = {"dk", "@k"}, [ATTENTION_GRAD_DV] = {"dv", "@v"}},
    .i = ATTRIBUTES,
};

static kr_status check_heads(const kr_op *op, const kr_attrs *t, const kr_shape *in, kr_letters *l) {
    (void)in, (void)l;
    KR_FAIL_IF(t->i[ATTENTION_HEADS] % t->i[ATTENTION_KV_HEADS], KR_BAD_ARGUMENT,
               "%s: %lld heads and %lld key heads, want a multiple of the key heads", op->name,
               (long long)t->i[ATTENTION_HEADS], (long long)t->i[ATTENTION_KV_HEADS]);
    KR_FAIL_IF(t->i[ATTENTION_WINDOW] && t->i[ATTENTION_NOT_CAUSAL], KR_BAD_ARGUMENT,
               "%s: a window of %lld keys without causal order, want causal order with a window", op->name,
               (long long)t->i[ATTENTION_WINDOW]);
    return KR_OK;
}

/// Pairs of a query and a key that it sees, if all keys exist and are of one document.
static double visible_pairs(const kr_attrs *t, const kr_attention_size *s) {
    double pairs = 0;
    if (t->i[ATTENTION_NOT_CAUSAL]) return (double)s->queries * (double)s->keys;
    for (int64_t q = 0; q < s->queries; q++) {
        const int64_t keys = q + s->keys - s->queries + 1;
        if (keys > 0)
            pairs += (double)(t->i[ATTENTION_WINDOW] && t->i[ATTENTION_WINDOW] < keys ? t->i[ATTENTION_WINDOW] : keys);
    }
    return pairs;
}

/// Two products of Dh multiply-adds for each pair, and an exponential counted as 8.
static void attention_cost(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs, double *flops,
                           double *bytes) {
    (void)inputs, (void)out;
    const kr_attention_size s = kr_attention_measure(&in[ATTENTION_Q], &in[ATTENTION_K], t->i[ATTENTION_HEADS],
                                                     t->i[ATTENTION_KV_HEADS]);
    *flops = (double)(s.batch * s.heads) * visible_pairs(t, &s) * (4 * (double)s.dim + 8);
    *bytes = 8 * ((double)kr_shape_count(&in[ATTENTION_Q]) + (double)kr_shape_count(&in[ATTENTION_K]));
}

/// Five products.
static void attention_grad_cost(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs, double *flops,
                                double *bytes) {
    (void)inputs, (void)out;
    const kr_shape *x = in + ATTENTION_GRAD_FORWARD;
    const kr_attention_size s = kr_attention_measure(&x[ATTENTION_Q], &x[ATTENTION_K], t->i[ATTENTION_HEADS],
                                                     t->i[ATTENTION_KV_HEADS]);
    *flops = (double)(s.batch * s.heads) * visible_pairs(t, &s) * (10 * (double)s.dim + 12);
    *bytes = 16 * ((double)kr_shape_count(&x[ATTENTION_Q]) + (double)kr_shape_count(&x[ATTENTION_K])) +
             8 * (double)kr_shape_count(&in[ATTENTION_GRAD_LSE]);
}

extern const kr_op kr_op_attention_grad;

static void attention_derivative(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *din) {
    kr_value in[ATTENTION_GRAD_INPUTS] = {[ATTENTION_GRAD_DO] = dout[ATTENTION_O],
                                          [ATTENTION_GRAD_DLSE] = dout[ATTENTION_LSE],
                                          [ATTENTION_GRAD_O] = n->out[ATTENTION_O],
                                          [ATTENTION_GRAD_LSE] = n->out[ATTENTION_LSE]};
    if (!dout[ATTENTION_O].id) in[ATTENTION_GRAD_DO] = kr_const(g, 0, KR_F32, kr_value_shape(g, n->in[ATTENTION_Q]));
    for (int k = ATTENTION_Q; k < ATTENTION_INPUTS; k++) in[ATTENTION_GRAD_FORWARD + k] = n->in[k];
    const kr_value first = kr_append(g, &kr_op_attention_grad, &n->attrs, in, ATTENTION_GRAD_INPUTS);
    for (int k = ATTENTION_Q; k <= ATTENTION_V && first.id; k++) din[k] = kr_sibling(g, first, k);
}

/// lse [B, H, Lq] is the second output.
const kr_op kr_op_attention = {
    .name = "attention",
    .inputs = ATTENTION_INPUTS,
    .outputs = ATTENTION_OUTPUTS,
    .zero_absent = BIT(ATTENTION_RESET),
    .keeps_in = BIT(ATTENTION_INPUTS) - 1,
    .keeps_out = BIT(ATTENTION_O) | BIT(ATTENTION_LSE),
    .attr = {.i = {"heads", "kv_heads", "window", "not_causal"}, .r = {"scale"}},
    .signature = &attention_signature,
    .check = check_heads,
    .grad = attention_derivative,
    .cost = attention_cost,
};

/// Reads do [B, Lq, H*Dh], dlse [B, H, Lq]?, the forward inputs, o and lse; gives dq, dk and dv.
const kr_op kr_op_attention_grad = {
    .name = "attention_grad",
    .inputs = ATTENTION_GRAD_INPUTS,
    .outputs = ATTENTION_GRAD_OUTPUTS,
    .flags = KR_OP_NO_GRADIENT,
    .zero_absent = BIT(ATTENTION_GRAD_DLSE) | BIT(ATTENTION_GRAD_FORWARD + ATTENTION_RESET),
    .attr = {.i = {"heads", "kv_heads", "window", "not_causal"}, .r = {"scale"}},
    .signature = &attention_grad_signature,
    .check = check_heads,
    .cost = attention_grad_cost,
};

kr_value (kr_attention)(kr_graph *g, const kr_attention_args *a) {
    const kr_attrs t = {.i = {[ATTENTION_HEADS] = a->heads,
                              [ATTENTION_KV_HEADS] = a->kv_heads,
                              [ATTENTION_WINDOW] = a->window,
                              [ATTENTION_NOT_CAUSAL] = a->not_causal},
                        .r = {[ATTENTION_SCALE] = a->scale}};
    const kr_value in[ATTENTION_INPUTS] = {[ATTENTION_Q] = a->q,
                                           [ATTENTION_K] = a->k,
                                           [ATTENTION_V] = a->v,
                                           [ATTENTION_KEY_COUNT] = a->key_count,
                                           [ATTENTION_RESET] = a->reset};
    return kr_append(g, &kr_op_attention, &t, in, ATTENTION_INPUTS);
}

// cache_write -----------------------------------------------------------------------------------------------------

static const kr_signature cache_write_signature = {
    .in = {[CACHE_WRITE_CACHE] = {"cache", "B Lmax C"},
           [CACHE_WRITE_X] = {"x", "B L C"},
           [CACHE_WRITE_POSITION] = {"position", "1", .dtype = KR_I32}},
    .out = {[CACHE_WRITE_Y] = {"y", "B Lmax C"}},
};

/// In place only the new rows move.
static void cache_write_cost(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs, double *flops,
                             double *bytes) {
    (void)t, (void)out, (void)inputs;
    *flops = 0;
    *bytes = 8 * (double)kr_shape_count(&in[CACHE_WRITE_X]);
}

const kr_op kr_op_cache_write = {
    .name = "cache_write",
    .inputs = CACHE_WRITE_INPUTS,
    .outputs = CACHE_WRITE_OUTPUTS,
    .flags = KR_OP_NO_GRADIENT,
    .signature = &cache_write_signature,
    .cost = cache_write_cost,
};

kr_value (kr_cache_write)(kr_graph *g, kr_value cache, kr_value x, kr_value position) {
    return kr_append(g, &kr_op_cache_write, &(kr_attrs){0}, (kr_value[]){cache, x, position}, CACHE_WRITE_INPUTS);
}
