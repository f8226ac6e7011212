/// Gradient of attention on the CPU. A unit of work is a segment of the keys of one key head: for each of its blocks of
/// keys all blocks of queries go by, of all heads that share the keys, so that every product is made once. dk and dv of
/// a block belong to one unit; dq gets a part from every segment, and a last stage adds these in order.
#include "ops/attention/cpu_block.h"

typedef struct attention_grad {
    attention a;
    const float *dout, *dlse, *o, *lse;
    float *dq, *dk, *dv;
    int64_t do_pitch, o_pitch, dq_pitch, dk_pitch, dv_pitch;
    float *delta, *parts; ///< workspace, see size.h; parts null: dq has one segment and goes straight to its place
    int32_t *lo, *hi;
} attention_grad;

static attention_grad attention_grad_of(const kr_call *call) {
    const kr_arg *in = call->in, *out = call->out;
    attention_grad d = {.a = attention_of(call, in + ATTENTION_GRAD_FORWARD),
                        .dout = in[ATTENTION_GRAD_DO].data,
                        .dlse = in[ATTENTION_GRAD_DLSE].data,
                        .o = in[ATTENTION_GRAD_O].data,
                        .lse = in[ATTENTION_GRAD_LSE].data,
                        .dq = out[ATTENTION_GRAD_DQ].data,
                        .dk = out[ATTENTION_GRAD_DK].data,
                        .dv = out[ATTENTION_GRAD_DV].data,
                        .do_pitch = kr_arg_pitch(&in[ATTENTION_GRAD_DO]),
                        .o_pitch = kr_arg_pitch(&in[ATTENTION_GRAD_O]),
                        .dq_pitch = kr_arg_pitch(&out[ATTENTION_GRAD_DQ]),
                        .dk_pitch = kr_arg_pitch(&out[ATTENTION_GRAD_DK]),
                        .dv_pitch = kr_arg_pitch(&out[ATTENTION_GRAD_DV])};
    const int64_t queries = d.a.s.batch * d.a.s.queries;
    d.delta = call->work;
    d.lo = (int32_t *)(d.delta + queries * d.a.s.heads);
    d.hi = d.lo + queries;
    if (d.a.s.segments > 1) d.parts = (float *)(d.hi + queries);
    return d;
}

/// delta = <do, o> - dlse of every row, and the ranges of visible keys.
KR_KERNEL(attention_grad_rows) {
    const attention_grad d = attention_grad_of(call);
    const kr_attention_size *s = &d.a.s;
    const int64_t blocks = (s->queries + ROWS - 1) / ROWS;
    int64_t begin, end;
    kr_share(s->batch * blocks, part, parts, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        const int64_t b = i / blocks, first = i % blocks * ROWS,
                      rows = s->queries - first < ROWS ? s->queries - first : ROWS;
        const int64_t row = b * s->queries + first;
        ranges(&d.a, b, first, rows, d.lo + row, d.hi + row);
        for (int64_t t = 0; t < rows; t++)
            for (int64_t h = 0; h < s->heads; h++) {
                const float *x = d.dout + (row + t) * d.do_pitch + h * s->dim,
                            *y = d.o + (row + t) * d.o_pitch + h * s->dim;
                const int64_t to = (b * s->heads + h) * s->queries + first + t;
                kr_vf sum = kr_v_set(0);
                for (int64_t n = 0; n < s->dim; n += KR_LANES)
                    sum += kr_v_load_n(x + n, s->dim - n) * kr_v_load_n(y + n, s->dim - n);
                d.delta[to] = kr_v_sum(sum) - (d.dlse ? d.dlse[to] : 0);
            }
    }
}

/// scores to probabilities p, and dp to ds = scale p (dp - delta); zeros where not visible.
static void soften(const visible *v, float scale, const float *lse, const float *delta, float *scores, float *dp) {
    const kr_vf factor = kr_v_set(scale * LOG2E), zero = kr_v_set(0);
    for (int64_t r = 0; r < v->rows; r++) {
        const int64_t from = v->from[r], to = v->to[r];
        const kr_vf minus = kr_v_set(lse[r] * LOG2E), mean = kr_v_set(delta[r]);
        for (int64_t key = 0; key < v->keys; key += KR_LANES) {
            float *score = scores + r * ROWS + key, *slope = dp + r * ROWS + key;
            kr_vf p = zero, ds = zero;
            if (key < to && key + KR_LANES > from) {
                p = kr_v_exp2(kr_v_load(score) * factor - minus);
                ds = p * (kr_v_load(slope) - mean) * kr_v_set(scale);
                if (key < from || key + KR_LANES > to) {
                    const kr_vi mask = seen(key, from, to);
                    p = kr_v_select(mask, p, zero), ds = kr_v_select(mask, ds, zero);
                }
            }
            kr_v_store(score, p);
            kr_v_store(slope, ds);
        }
    }
}

/// One block of keys from `key` of key head kv against all queries that see any of them.
static void keys_back(const attention_grad *d, int64_t b, int64_t kv, int64_t key, int64_t keys, float *dq,
                      int64_t dq_pitch) {
    _Alignas(64) float scores[ROWS * ROWS], dp[ROWS * ROWS];
    const attention *a = &d->a;
    const int64_t dim = a->s.dim, row = b * a->s.keys + key;
    const float *k = a->k + row * a->k_pitch + kv * dim, *val = a->v + row * a->v_pitch + kv * dim;
    float *dk = d->dk ? d->dk + row * d->dk_pitch + kv * dim : 0,
          *dv = d->dv ? d->dv + row * d->dv_pitch + kv * dim : 0;
    if (dk) zero_rows(dk, d->dk_pitch, keys, dim);
    if (dv) zero_rows(dv, d->dv_pitch, keys, dim);
    for (int64_t h = kv * a->s.group; h < (kv + 1) * a->s.group; h++)
        for (int64_t first = 0; first < a->s.queries; first += ROWS) {
            const int64_t rows = a->s.queries - first < ROWS ? a->s.queries - first : ROWS,
                          token = b * a->s.queries + first;
            const int64_t at = (b * a->s.heads + h) * a->s.queries + first;
            const float *q = a->q + token * a->q_pitch + h * dim, *dout = d->dout + token * d->do_pitch + h * dim;
            visible v;
            if (!look(&v, d->lo + token, d->hi + token, rows, key, keys)) continue;
            multiply_scores(q, a->q_pitch, k, a->k_pitch, dim, &v, scores);
            multiply_scores(dout, d->do_pitch, val, a->v_pitch, dim, &v, dp);
            soften(&v, a->scale, d->lse + at, d->delta + at, scores, dp);
            if (dv) add_to_keys(scores, dout, d->do_pitch, dim, &v, dv, d->dv_pitch);
            if (dk) add_to_keys(dp, q, a->q_pitch, dim, &v, dk, d->dk_pitch);
            if (dq) add_to_rows(dp, k, a->k_pitch, dim, &v, dq + first * dq_pitch + h * dim, dq_pitch);
        }
}

KR_KERNEL(attention_grad) {
    const attention_grad d = attention_grad_of(call);
    const kr_attention_size *s = &d.a.s;
    const int64_t columns = s->heads * s->dim;
    int64_t begin, end;
    kr_share(s->batch * s->kv_heads * s->segments, part, parts, &begin, &end);
    for (int64_t unit = begin; unit < end; unit++) {
        const int64_t segment = balanced(unit % s->segments, s->segments), kv = unit / s->segments % s->kv_heads;
        const int64_t b = unit / s->segments / s->kv_heads, pitch = d.parts ? columns : d.dq_pitch;
        float *dq = d.parts ? d.parts + (segment * s->batch + b) * s->queries * columns
                    : d.dq  ? d.dq + b * s->queries * pitch
                            : 0;
        if (!d.dq) dq = 0;
        if (dq) zero_rows(dq + kv * s->group * s->dim, pitch, s->queries, s->group * s->dim);
        for (int64_t block = segment; block < s->blocks; block += s->segments) {
            const int64_t key = block * ROWS;
            keys_back(&d, b, kv, key, s->keys - key < ROWS ? s->keys - key : ROWS, dq, pitch);
        }
    }
}

KR_KERNEL(attention_grad_sum) {
    const attention_grad d = attention_grad_of(call);
    const kr_attention_size *s = &d.a.s;
    const int64_t columns = s->heads * s->dim, rows = s->batch * s->queries;
    int64_t begin, end;
    kr_share(d.parts && d.dq ? rows : 0, part, parts, &begin, &end);
    for (int64_t row = begin; row < end; row++)
        for (int64_t n = 0; n < columns; n += KR_LANES) {
            kr_vf sum = kr_v_set(0);
            for (int64_t k = 0; k < s->segments; k++)
                sum += kr_v_load_n(d.parts + (k * rows + row) * columns + n, columns - n);
            kr_v_store_n(d.dq + row * d.dq_pitch + n, sum, columns - n);
        }
}
