/// Mamba-2's scan on the CPU. The recurrence, chunk by chunk in products, and its gradient are at the top of
/// ops/trapezoid/cpu_engine.h; keys are B, queries C, values x, ghat = gamma = d, and the rank is one.
///
/// A part goes through time with up to 16 heads of one group in one batch row: what does not depend on the head, the
/// scores C B^T of a chunk above all, is made once for them. Heads do not meet, so which ones go together changes no
/// bit.
#include "ops/ssd/cpu_inputs.h"
#include "ops/ssd/cpu_step.h"

/// weights = scores w for one head: m goes down the rows in 16 columns at a time, and starts with one at the diagonal.
static void weigh(const work *w, int64_t lane) {
    const kr_vi column = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (int64_t j = 0; j < w->tokens; j += KR_LANES) {
        const kr_vf d = kr_v_load(of_head(w, KR_SSD_DT, lane) + j), one = kr_v_set(1);
        const float *scores = w->scores.at + j * w->scores.pitch + j, *decay = w->rows[KR_SSD_DECAY] + lane;
        float *weights = w->weights.at + j * w->weights.pitch + j;
        kr_vf m = kr_v_set(0);
        int64_t t = j;
        for (; t < w->tokens && t < j + KR_LANES; t++, scores += w->scores.pitch, weights += w->weights.pitch) {
            m = kr_v_select(column == kr_v_seti((int32_t)(t - j)), one, m * kr_v_set(decay[t * KR_LANES]));
            kr_v_store(weights, kr_v_load(scores) * (m * d));
        }
        for (; t < w->tokens; t++, scores += w->scores.pitch, weights += w->weights.pitch) {
            m *= kr_v_set(decay[t * KR_LANES]);
            kr_v_store(weights, kr_v_load(scores) * (m * d));
        }
    }
}

/// v, and v times what it weighs in the state after the chunk.
static void load_values(const ssd *s, const work *w, int64_t row, int64_t head, int64_t lane) {
    const int64_t p = s->size.width;
    for (int64_t t = 0; t < w->tokens; t++) {
        const kr_vf scale = kr_v_set(w->rows[KR_SSD_SCALE][t * KR_LANES + lane]);
        for (int64_t j = 0; j < p; j += KR_LANES) {
            const kr_vf x = kr_v_load_n(s->x.at + (row + t) * s->x.pitch + head * p + j, p - j);
            kr_v_store(w->v.at + t * w->v.pitch + j, x);
            kr_v_store(w->scaled_v.at + t * w->scaled_v.pitch + j, x * scale);
        }
    }
}

/// out = (y + D x) silu(z), where the products of y could not write it.
static void store_output(const ssd *s, const work *w, int64_t row, int64_t head, sink out) {
    const int64_t p = s->size.width;
    for (int64_t j = 0; j < p; j += KR_LANES) {
        const kr_vf D = skip_weight(s, head, j);
        for (int64_t t = 0; t < w->tokens; t++) {
            const int64_t column = head * p + j;
            kr_vf y = kr_v_load(w->y.at + t * w->y.pitch + j) + D * kr_v_load(w->v.at + t * w->v.pitch + j);
            if (s->z.at) y *= kr_v_silu(kr_v_load_n(s->z.at + (row + t) * s->z.pitch + column, p - j));
            kr_v_store_n(out.at + (row + t) * out.pitch + column, y, p - j);
        }
    }
}

/// Prefetches what head h of the bundle writes of chunk i, and for what the next head reads.
static void prefetch_forward(const ssd *s, const work *w, bundle at, int64_t i, int64_t h, sink out,
                             const float *saved) {
    const kr_chunk_size *z = &s->size;
    const bool wraps = h + 1 == at.count;
    const int64_t next = wraps ? i + 1 : i, next_head = at.head + (wraps ? 0 : h + 1),
                  row = at.b * z->length + i * z->chunk;
    w->ahead->count = 0;
    if (next < z->chunks) prefetch_inputs(s, w, at.b * z->length + next * z->chunk, at, next_head, wraps);
    prefetch_rows(w->ahead, out.at + row * out.pitch + (at.head + h) * z->width, out.pitch, w->tokens, z->width);
    if (saved && next + 1 < z->chunks)
        prefetch_rows(w->ahead, saved + ((at.b * z->chunks + next + 1) * z->heads + next_head) * z->states * z->width,
                      0, 1, z->states * z->width);
}

/// One head over one chunk; `saved` (may be null) is where the states before this chunk go, the next chunk's further
/// on.
static void forward_head(const ssd *s, const work *w, bundle at, int64_t i, int64_t h, sink out, float *saved,
                         bool fresh, bool wanted) {
    const kr_chunk_size *z = &s->size;
    const int64_t n = z->states, p = z->width, head = at.head + h, row = at.b * z->length + i * z->chunk;
    matrix before = state_of(w, h), after = before;
    if (saved) {
        const int64_t step = z->heads * n * p;
        saved += (at.b * z->chunks * z->heads + head) * n * p + i * step;
        if (!i || !in_place(z)) store_matrix(saved, p, before, n, p);
        if (in_place(z)) {
            before = (matrix){saved, p};
            if (i + 1 < z->chunks) after = (matrix){saved + step, p};
        }
    }
    load_values(s, w, row, head, h);
    weigh(w, h);
    const bool direct = whole_tiles(z, w) && !s->z.at && !s->D_per_channel;
    multiply_output(z, w, h, fresh ? (matrix){0} : before, direct && s->D ? s->D[head] : 0,
                    direct ? (matrix){out.at + row * out.pitch + head * p, out.pitch} : w->y);
    if (!direct) store_output(s, w, row, head, out);
    if (!wanted) return;
    product next = {FULL, 1, n, p, w->tokens, w->k, w->scaled_v, after, true, .ahead = w->ahead};
    if (!fresh) next.from = before, next.times = of_head(w, KR_SSD_FROM_START, h)[w->tokens - 1];
    multiply(&next);
}

static void forward_bundle(const ssd *s, work *w, bundle at, const float *h0, sink out, float *last, float *saved) {
    const kr_chunk_size *z = &s->size;
    const int64_t n = z->states, p = z->width, first = (at.b * z->heads + at.head) * n * p;
    for (int64_t h = 0; h < at.count; h++) {
        if (h0) transpose(h0 + first + h * n * p, n, p, n, state_of(w, h), true);
        else if (saved || !z->chunks) clear_matrix(state_of(w, h), n, p);
    }
    for (int64_t i = 0; i < z->chunks; i++) {
        const bool ends = i + 1 == z->chunks;
        const int64_t row = at.b * z->length + i * z->chunk;
        w->tokens = ends ? z->length - i * z->chunk : z->chunk;
        load_group(s, w, row, at.group);
        load_steps(s, w, row, at, false);
        for (int64_t h = 0; h < at.count; h++) {
            prefetch_forward(s, w, at, i, h, out, saved);
            forward_head(s, w, at, i, h, out, saved, !i && !h0, !ends || last);
        }
    }
    for (int64_t h = 0; h < at.count && last; h++)
        transpose(state_of(w, h).at, z->width_pitch, n, p, (matrix){last + first + h * n * p, n}, false);
}

/// The same for a single token.
static void forward_token(const ssd *s, work *w, bundle at, const float *h0, sink out, float *last) {
    const kr_chunk_size *z = &s->size;
    const int64_t p = z->width, n = z->states, floats = n * p;
    const token_step step = {1, n, p, w->k, w->scaled_v, w->q, w->y, w->state};
    w->tokens = 1;
    load_matrix(w->k, s->B.at + at.b * s->B.pitch + at.group * n, s->B.pitch, 1, n);
    load_matrix(w->q, s->C.at + at.b * s->C.pitch + at.group * n, s->C.pitch, 1, n);
    load_steps(s, w, at.b, at, false);
    for (int64_t h = 0; h < at.count; h++) {
        const int64_t state = (at.b * z->heads + at.head + h) * floats;
        load_values(s, w, at.b, at.head + h, h);
        step_token(&step, h0 ? h0 + state : 0, last ? last + state : 0, w->rows[KR_SSD_DECAY][h], 1);
        store_output(s, w, at.b, at.head + h, out);
    }
}

KR_KERNEL(ssd_scan) {
    const ssd s = ssd_of(call->attrs, call->in, &call->in[SSD_RESET]);
    const kr_ssd_layout layout = kr_ssd_arrange(&s.size, false);
    const int64_t heads = s.size.heads, in_group = s.cut.in_group;
    const sink out = sink_of(&call->out[SSD_Y]);
    const float *h0 = call->in[SSD_H0].data;
    float *last = call->out[SSD_LAST].data, *saved = call->out[SSD_SAVED].data;
    EACH_UNIT_OF(s.size.batch * heads, {
        prefetch ahead = {.count = 0};
        work w = work_of(&s.size, &layout, (float *)call->work + slot * layout.floats, &ahead);
        clear_matrix(w.weights, s.size.chunk, s.size.chunk); // products read the padding of triangles
        while (begin < end) {
            bundle at = {.b = begin / heads, .head = begin % heads};
            at.group = at.head / in_group;
            const int64_t left = (at.group + 1) * in_group - at.head, here = left < end - begin ? left : end - begin;
            const int64_t bundles = (here + KR_SSD_BUNDLE - 1) / KR_SSD_BUNDLE;
            at.count = (here + bundles - 1) / bundles;
            begin += at.count;
            if (s.size.length == 1 && !saved) forward_token(&s, &w, at, h0, out, last);
            else forward_bundle(&s, &w, at, h0, out, last, saved);
        }
    });
}
