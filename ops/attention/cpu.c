/// Attention forward on the CPU: a block of queries stays while blocks of keys and values go by. Per row it keeps the
/// largest score so far and the sum of the powers above it, and shrinks both sum and result when a larger one comes.
/// Powers are of 2, with log2(e) in the scale.
///
/// A single query (decoding) takes its heads as rows, and all of them take the same segment of the cache before the
/// next: memory is read once and in order, and threads have a share of the keys each. A second stage merges the
/// segments.
#include "ops/attention/cpu_block.h"

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
            most[i] = kr_v_max(most[i],
                               key >= from && key + KR_LANES <= to ? x : kr_v_select(seen(key, from, to), x, none));
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
        for (int64_t n = 0; n < dim; n += KR_LANES)
            kr_v_store_n(x + r * pitch + n, kr_v_load_n(x + r * pitch + n, dim - n) * f, dim - n);
    }
}

static void start(unit *u) {
    for (int64_t r = 0; r < ROWS; r++) u->top[r] = -__builtin_inff(), u->sum[r] = 0;
}

/// A block of keys goes by.
static void attend(const attention *a, unit *u, int64_t key, int64_t keys) {
    _Alignas(64) float scores[ROWS * ROWS], shrink[ROWS];
    visible v;
    if (!look(&v, u->lo, u->hi, u->rows, key, keys)) return;
    multiply_scores(u->q, u->q_pitch, u->k + key * a->k_pitch, a->k_pitch, a->s.dim, &v, scores);
    for (int64_t g = 0; g < u->rows; g += KR_LANES) soften_rows(u, &v, a->scale, g, scores, shrink);
    scale_rows(u->o, u->o_pitch, u->rows, a->s.dim, shrink);
    add_to_rows(scores, u->v + key * a->v_pitch, a->v_pitch, a->s.dim, &v, u->o, u->o_pitch);
}

static void attend_tokens(const attention *a, unit *u) {
    _Alignas(64) float factor[ROWS];
    int64_t first = u->lo[u->rows - 1], last = u->hi[u->rows - 1];
    for (int64_t r = 0; r < u->rows; r++)
        if (u->lo[r] < u->hi[r] && u->lo[r] < first) first = u->lo[r];
    start(u);
    zero_rows(u->o, u->o_pitch, u->rows, a->s.dim);
    for (int64_t key = first; key < last; key += ROWS) attend(a, u, key, last - key < ROWS ? last - key : ROWS);
    for (int64_t r = 0; r < u->rows; r++) factor[r] = u->sum[r] != 0 ? 1 / u->sum[r] : 0;
    scale_rows(u->o, u->o_pitch, u->rows, a->s.dim, factor);
    for (int64_t g = 0; g < u->rows && u->lse; g += KR_LANES)
        kr_v_store_n(u->lse + g, kr_v_load(u->top + g) * kr_v_set(1 / LOG2E) + kr_v_log(kr_v_load(u->sum + g)),
                     u->rows - g);
}

// A single query --------------------------------------------------------------------------------------------------

/// The segments of keys that the query may see: the same for all batch rows.
typedef struct segments {
    int64_t first, last, all;
    float *top, *sum, *o;
} segments;

static segments segments_of(const attention *a, const kr_call *call) {
    const int64_t least = a->window && a->count > a->window ? a->count - a->window : 0,
                  all = kr_attention_pieces(&a->s);
    segments g = {.first = least / KR_ATTENTION_SEGMENT,
                  .last = (a->count + KR_ATTENTION_SEGMENT - 1) / KR_ATTENTION_SEGMENT, .all = all, .top = call->work};
    if (!g.top) return g; // long query blocks need no pieces
    g.sum = g.top + a->s.batch * all * a->s.heads;
    g.o = g.sum + a->s.batch * all * a->s.heads;
    return g;
}

/// Rows of a cache lie together for all heads, and so they are prefetched; then each head works on its part.
static void prefetch_rows(const float *x, int64_t pitch, int64_t rows, int64_t columns) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t n = 0; n < columns; n += 64 / (int64_t)sizeof *x) __builtin_prefetch(x + r * pitch + n, 0, 2);
}

/// All heads of one query against the keys from .. to - 1.
static void attend_segment(const attention *a, const kr_call *call, int64_t b, int64_t from, int64_t to, float *top,
                           float *sum, float *o) {
    enum { KEYS = 32 };
    const kr_attention_size *s = &a->s;
    for (int64_t h = 0; h < s->heads; h++) top[h] = -__builtin_inff(), sum[h] = 0;
    for (int64_t n = 0; n < s->heads * s->dim; n++) o[n] = 0;
    for (int64_t key = from; key < to; key += KEYS) {
        const int64_t keys = to - key < KEYS ? to - key : KEYS, row = b * s->keys + key;
        prefetch_rows(a->k + row * a->k_pitch, a->k_pitch, keys, s->kv_heads * s->dim);
        prefetch_rows(a->v + row * a->v_pitch, a->v_pitch, keys, s->kv_heads * s->dim);
        for (int64_t h = 0, rows; h < s->heads; h += rows) {
            const int64_t kv = h / s->group, left = (kv + 1) * s->group - h;
            rows = left < ROWS ? left : ROWS;
            unit u = {.q = a->q + b * kr_arg_pitch(&call->in[ATTENTION_Q]) + h * s->dim,
                      .k = a->k + b * s->keys * a->k_pitch + kv * s->dim,
                      .v = a->v + b * s->keys * a->v_pitch + kv * s->dim,
                      .o = o + h * s->dim,
                      .rows = rows,
                      .q_pitch = s->dim,
                      .o_pitch = s->dim};
            start(&u);
            for (int64_t r = 0; r < rows; r++)
                u.lo[r] = (int32_t)from, u.hi[r] = (int32_t)to, u.top[r] = top[h + r], u.sum[r] = sum[h + r];
            attend(a, &u, key, keys);
            for (int64_t r = 0; r < rows; r++) top[h + r] = u.top[r], sum[h + r] = u.sum[r];
        }
    }
}

static void attend_one(const attention *a, const kr_call *call, int part, int parts) {
    const segments g = segments_of(a, call);
    const int64_t used = g.last > g.first ? g.last - g.first : 0;
    int64_t begin, end;
    kr_share(a->s.batch * used, part, parts, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        const int64_t b = i / used, segment = g.first + i % used, at = (b * g.all + segment) * a->s.heads;
        const int64_t first = segment * KR_ATTENTION_SEGMENT, last = first + KR_ATTENTION_SEGMENT;
        int32_t lo, hi;
        ranges(a, b, 0, 1, &lo, &hi);
        attend_segment(a, call, b, lo > first ? lo : first, hi < last ? hi : last, g.top + at, g.sum + at,
                       g.o + at * a->s.dim);
    }
}

/// o = sum of the segments' results, each in the units of the largest score of all.
KR_KERNEL(attention_merge) {
    const attention a = attention_of(call, call->in);
    const segments g = segments_of(&a, call);
    const int64_t dim = a.s.dim, o_pitch = kr_arg_pitch(&call->out[ATTENTION_O]);
    float *lse = call->out[ATTENTION_LSE].data;
    int64_t begin, end;
    kr_share(a.s.queries == 1 ? a.s.batch * a.s.heads : 0, part, parts, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        const int64_t b = i / a.s.heads, h = i % a.s.heads;
        float *o = (float *)call->out[ATTENTION_O].data + b * o_pitch + h * dim, top = -__builtin_inff(), sum = 0;
        for (int64_t n = 0; n < dim; n++) o[n] = 0;
        for (int64_t k = g.first; k < g.last; k++) {
            const float x = g.top[(b * g.all + k) * a.s.heads + h];
            top = top > x ? top : x;
        }
        for (int64_t k = g.first; k < g.last; k++) {
            const int64_t at = (b * g.all + k) * a.s.heads + h;
            const float share = g.sum[at] != 0 ? kr_v_exp2(kr_v_set(g.top[at] - top))[0] : 0;
            sum += share * g.sum[at];
            for (int64_t n = 0; n < dim; n++) o[n] += share * g.o[at * dim + n];
        }
        scale_rows(o, 0, 1, dim, &(float){sum != 0 ? 1 / sum : 0});
        if (lse) lse[i] = top / LOG2E + kr_v_log(kr_v_set(sum))[0];
    }
}

KR_KERNEL(attention) {
    const attention a = attention_of(call, call->in);
    const kr_attention_size *s = &a.s;
    const int64_t o_pitch = kr_arg_pitch(&call->out[ATTENTION_O]), blocks = (s->queries + ROWS - 1) / ROWS;
    float *o = call->out[ATTENTION_O].data, *lse = call->out[ATTENTION_LSE].data;
    int64_t begin, end;
    if (s->queries == 1) {
        attend_one(&a, call, part, parts);
        return;
    }
    kr_share(s->batch * s->heads * blocks, part, parts, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        const int64_t b = i / blocks / s->heads, h = i / blocks % s->heads, first = balanced(i % blocks, blocks) * ROWS;
        const int64_t token = b * s->queries + first, kv = h / s->group;
        unit u = {.q = a.q + token * a.q_pitch + h * s->dim, .k = a.k + b * s->keys * a.k_pitch + kv * s->dim,
                  .v = a.v + b * s->keys * a.v_pitch + kv * s->dim, .o = o + token * o_pitch + h * s->dim,
                  .lse = lse ? lse + (b * s->heads + h) * s->queries + first : 0,
                  .rows = s->queries - first < ROWS ? s->queries - first : ROWS, .q_pitch = a.q_pitch,
                  .o_pitch = o_pitch};
        ranges(&a, b, first, u.rows, u.lo, u.hi);
        attend_tokens(&a, &u);
    }
}

/// Rows are copied, or already there: then only the new ones are written.
KR_KERNEL(cache_write) {
    const kr_arg *cache = &call->in[CACHE_WRITE_CACHE], *x = &call->in[CACHE_WRITE_X], *out = &call->out[CACHE_WRITE_Y];
    const int64_t capacity = cache->shape.dim[1], columns = cache->shape.dim[2], length = x->shape.dim[1];
    const int64_t position = *(const int32_t *)call->in[CACHE_WRITE_POSITION].data, pitch = kr_arg_pitch(x);
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
