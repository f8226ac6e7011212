/// Attention forward on the CPU: a block of queries stays while blocks of keys and values go by. Per row it keeps the
/// largest score so far and the sum of the powers above it, and shrinks both sum and result when a larger one comes. Powers
/// are of 2, with log2(e) in the scale.
///
/// A single token (decoding) takes the heads that share a key head as its block of rows, so the cache is read once.
#include "ops/attention_block.h"

/// The rows of a unit and their running sums.
typedef struct unit {
    const float *q, *k, *v;
    float *o, *lse;
    int64_t rows, q_pitch, o_pitch;
    int32_t lo[ROWS], hi[ROWS];
    _Alignas(64) float top[ROWS], sum[ROWS]; ///< largest score in units of log 2; sum of the powers above it
} unit;

/// 16 rows of scores from row g become powers of 2, zeros where not visible; *shrink is what earlier results have to be
/// multiplied by.
static void soften_rows(unit *u, const visible *v, float scale, int64_t g, float *scores, float *shrink) {
    const kr_vf none = kr_v_set(-__builtin_inff()), factor = kr_v_set(scale * LOG2E);
    const int64_t rows = v->rows - g < KR_LANES ? v->rows - g : KR_LANES;
    kr_vf most[KR_LANES], sum[KR_LANES];
    for (int64_t i = 0; i < KR_LANES; i++) most[i] = none, sum[i] = kr_v_set(0);
    for (int64_t i = 0; i < rows; i++) {
        const int64_t from = v->from[g + i], to = v->to[g + i];
        for (int64_t key = from / KR_LANES * KR_LANES; key < to; key += KR_LANES) {
            const kr_vf x = kr_v_load(scores + (g + i) * ROWS + key) * factor;
            most[i] = kr_v_max(most[i], key >= from && key + KR_LANES <= to ? x : kr_v_select(seen(key, from, to), x, none));
        }
    }
    const kr_vf before = kr_v_load(u->top + g);
    const kr_vf top = kr_v_max(before, largest_of(most)), shift = kr_v_select(top > none, top, kr_v_set(0));
    const kr_vf change = kr_v_exp2(kr_v_select(before > none, before - shift, kr_v_set(-1000)));
    kr_v_store(u->top + g, top);
    kr_v_store(shrink + g, change);
    for (int64_t i = 0; i < rows; i++) {
        const int64_t from = v->from[g + i], to = v->to[g + i];
        const kr_vf minus = kr_v_set(shift[i]);
        float *row = scores + (g + i) * ROWS;
        for (int64_t key = 0; key < v->keys; key += KR_LANES) {
            kr_vf p = kr_v_set(0);
            if (key < to && key + KR_LANES > from) {
                p = kr_v_exp2(kr_v_load(row + key) * factor - minus);
                if (key < from || key + KR_LANES > to) p = kr_v_select(seen(key, from, to), p, kr_v_set(0));
            }
            sum[i] += p;
            kr_v_store(row + key, p);
        }
    }
    kr_v_store(u->sum + g, kr_v_load(u->sum + g) * change + sums_of(sum));
}

static void scale_rows(float *x, int64_t pitch, int64_t rows, int64_t dim, const float *factor) {
    for (int64_t r = 0; r < rows; r++) {
        const kr_vf f = kr_v_set(factor[r]);
        if (factor[r] == 1) continue;
        for (int64_t n = 0; n < dim; n += KR_LANES) kr_v_store_n(x + r * pitch + n, kr_v_load_n(x + r * pitch + n, dim - n) * f, dim - n);
    }
}

static void attend(const attention *a, unit *u) {
    _Alignas(64) float scores[ROWS * ROWS], factor[ROWS];
    for (int64_t r = 0; r < ROWS; r++) u->top[r] = -__builtin_inff(), u->sum[r] = 0;
    zero_rows(u->o, u->o_pitch, u->rows, a->s.dim);
    int64_t first = u->lo[u->rows - 1], last = u->hi[u->rows - 1];
    for (int64_t r = 0; r < u->rows; r++)
        if (u->lo[r] < u->hi[r] && u->lo[r] < first) first = u->lo[r];
    for (int64_t key = first; key < last; key += ROWS) {
        visible v;
        if (!look(&v, u->lo, u->hi, u->rows, key, last - key < ROWS ? last - key : ROWS)) continue;
        multiply_scores(u->q, u->q_pitch, u->k + key * a->k_pitch, a->k_pitch, a->s.dim, &v, scores);
        for (int64_t g = 0; g < u->rows; g += KR_LANES) soften_rows(u, &v, a->scale, g, scores, factor);
        scale_rows(u->o, u->o_pitch, u->rows, a->s.dim, factor);
        add_to_rows(scores, u->v + key * a->v_pitch, a->v_pitch, a->s.dim, &v, u->o, u->o_pitch);
    }
    for (int64_t r = 0; r < u->rows; r++) factor[r] = u->sum[r] > 0 ? 1 / u->sum[r] : u->sum[r];
    scale_rows(u->o, u->o_pitch, u->rows, a->s.dim, factor);
    for (int64_t g = 0; g < u->rows && u->lse; g += KR_LANES)
        kr_v_store_n(u->lse + g, kr_v_load(u->top + g) * kr_v_set(1 / LOG2E) + kr_v_log(kr_v_load(u->sum + g)), u->rows - g);
}

KR_KERNEL(attention) {
    const attention a = attention_of(call, call->in);
    const kr_attention_size *s = &a.s;
    const int64_t o_pitch = kr_arg_pitch(&call->out[0]), one = s->queries == 1;
    float *o = call->out[0].data, *lse = call->out[1].data;
    // Rows are tokens of one head or, for a single token, heads that share keys.
    const int64_t rows = one ? s->group : s->queries, sets = one ? s->kv_heads : s->heads, blocks = (rows + ROWS - 1) / ROWS;
    int64_t begin, end;
    kr_share(s->batch * sets * blocks, part, parts, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        const int64_t b = i / blocks / sets, set = i / blocks % sets, first = balanced(i % blocks, blocks) * ROWS;
        const int64_t token = b * s->queries + (one ? 0 : first), head = one ? set * s->group + first : set;
        const int64_t kv = one ? set : set / s->group;
        unit u = {.q = a.q + token * a.q_pitch + head * s->dim, .k = a.k + b * s->keys * a.k_pitch + kv * s->dim,
                  .v = a.v + b * s->keys * a.v_pitch + kv * s->dim, .o = o + token * o_pitch + head * s->dim,
                  .lse = lse ? lse + (b * s->heads + head) * s->queries + (one ? 0 : first) : 0,
                  .rows = rows - first < ROWS ? rows - first : ROWS, .q_pitch = one ? s->dim : a.q_pitch,
                  .o_pitch = one ? s->dim : o_pitch};
        ranges(&a, b, one ? 0 : first, one ? 1 : u.rows, u.lo, u.hi);
        for (int64_t r = 1; r < u.rows && one; r++) u.lo[r] = u.lo[0], u.hi[r] = u.hi[0];
        attend(&a, &u);
    }
}

/// Rows are copied, or already there: then only the new ones are written.
KR_KERNEL(cache_write) {
    const kr_arg *cache = &call->in[0], *x = &call->in[1], *out = &call->out[0];
    const int64_t capacity = cache->shape.dim[1], columns = cache->shape.dim[2], length = x->shape.dim[1];
    const int64_t position = *(const int32_t *)call->in[2].data, pitch = kr_arg_pitch(x);
    int64_t begin, end;
    kr_share(cache->shape.dim[0] * capacity, part, parts, &begin, &end);
    for (int64_t row = begin; row < end; row++) {
        const int64_t b = row / capacity, t = row % capacity - position;
        const float *from = (const float *)cache->data + row * columns;
        if (t >= 0 && t < length) from = (const float *)x->data + (b * length + t) * pitch;
        float *to = (float *)out->data + row * columns;
        if (from != to) __builtin_memcpy(to, from, (size_t)columns * sizeof *to);
    }
}
