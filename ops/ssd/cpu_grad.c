/// The gradient of Mamba-2's scan on the CPU: chunks from last to first, from the states that the forward pass saved.
/// The formulas are at the top of ops/trapezoid/cpu_engine.h.
///
/// A state [states, width] is used as it was saved, and its gradient H has the same form: dx wants C H, and dB and dC
/// come out as they lie, [states, chunk], from H x^T and S dy^T. So nothing of the size of a state is ever transposed,
/// only x and dy, once each; the dots of dB and dC with keys and queries (rho and what S gives to the decays) have
/// tokens in their lanes and need no sums over lanes. dB and dC of all heads add up before they are transposed, and
/// so do the weights of what tokens of a chunk give to each other, whose products are made once for all heads.
#include "ops/ssd/cpu_grad.h"

/// The gradients of the states after the unit's last chunk, of all heads of the group.
static void load_adjoints(const grad *g, const work *w, unit u) {
    const ssd *s = &g->s;
    const kr_chunk_size *z = &s->size;
    const int64_t n = z->states, p = z->width;
    for (int64_t h = 0; h < s->cut.in_group; h++) {
        const matrix state = state_of(w, h);
        clear_matrix(state, n, p);
        if (g->dlast)
            transpose(g->dlast + (u.b * z->heads + u.group * s->cut.in_group + h) * n * p, n, p, n, state, true);
        for (int64_t k = s->cut.segments - 1; k > u.segment; k--) {
            const int64_t at = heads_at(s, u, k) + h;
            const float *adds = g->work + g->at.state + at * w->state_floats;
            const kr_vf decay = kr_v_set(g->work[g->at.decay + at]);
            for (int64_t i = 0; i < w->state_floats; i += KR_LANES)
                kr_v_store(state.at + i, kr_v_load(state.at + i) * decay + kr_v_load(adds + i));
        }
    }
}

KR_INLINE void add_weights(const work *w, int64_t at, kr_vf k, kr_vf z, kr_vf weight, bool first_head) {
    float *sum = w->sum_weights.at + at;
    kr_v_store(w->weights.at + at, k * weight);
    kr_v_store(sum, first_head ? z * weight : kr_v_load(sum) + z * weight);
}

/// From Z, in `dots`, and K, in `scores`, of one head: weights = w K; sum_weights, over the heads so far, gets w Z;
/// and the sums over m F: below the diagonal by column and on it, which is dd without rho (returned in DIRECT); over
/// what is below row t and left of column t, by lanes. Gives the sum of the diagonal of Z by lanes.
static kr_vf weigh_back(const work *w, int64_t lane, bool first_head) {
    const kr_vi number = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const float *decay = w->rows[KR_SSD_DECAY] + lane;
    const kr_vf one = kr_v_set(1), zero = kr_v_set(0);
    const int64_t pitch = w->scores.pitch;
    kr_vf trace = zero;
    for (int64_t j = 0; j < w->tokens; j += KR_LANES) {
        const kr_vf d = kr_v_load(of_head(w, KR_SSD_DT, lane) + j);
        kr_vf m = zero, diagonal = zero, column = zero;
        int64_t at = j * pitch + j, t = j;
        for (; t < w->tokens && t < j + KR_LANES; t++, at += pitch) {
            const kr_vi own = number == kr_v_seti((int32_t)(t - j));
            const kr_vf z = kr_v_load(w->dots.at + at), k = kr_v_load(w->scores.at + at), f = z * k;
            const kr_vf before = m * kr_v_set(decay[t * KR_LANES]);
            m = kr_v_select(own, one, before);
            diagonal += kr_v_select(own, f, zero);
            trace += kr_v_select(own, z, zero);
            add_weights(w, at, k, z, m * d, first_head);
            kr_v_store(w->dots.at + at, f * kr_v_select(own, zero, before));
        }
        for (; t < w->tokens; t++, at += pitch) {
            const kr_vf z = kr_v_load(w->dots.at + at), k = kr_v_load(w->scores.at + at);
            m *= kr_v_set(decay[t * KR_LANES]);
            add_weights(w, at, k, z, m * d, first_head);
            kr_v_store(w->dots.at + at, z * k * m);
        }
        for (t = w->tokens - 1; t >= j + KR_LANES; t--) {
            float *lanes = w->lanes + t * KR_LANES;
            at -= pitch;
            column += kr_v_load(w->dots.at + at);
            kr_v_store(lanes, j ? kr_v_load(lanes) + column * d : column * d);
        }
        for (; t >= j; t--) {
            float *lanes = w->lanes + t * KR_LANES;
            at -= pitch;
            column += kr_v_load(w->dots.at + at);
            const kr_vf left = kr_v_select(number < kr_v_seti((int32_t)(t - j)), column, zero);
            kr_v_store(lanes, j ? kr_v_load(lanes) + left * d : left * d);
        }
        kr_v_store(of_head(w, KR_SSD_DIRECT, lane) + j, column + diagonal);
    }
    return trace;
}

/// <a, b>, both padded: rows to multiples of 4.
static float dot_matrices(matrix a, matrix b, int64_t rows, int64_t cols) {
    kr_vf sum[4] = {kr_v_set(0), kr_v_set(0), kr_v_set(0), kr_v_set(0)};
    for (int64_t i = 0; i < rows; i += 4)
        for (int64_t j = 0; j < cols; j += KR_LANES)
            UNROLL for (int r = 0; r < 4; r++)
                sum[r] += kr_v_load(a.at + (i + r) * a.pitch + j) * kr_v_load(b.at + (i + r) * b.pitch + j);
    return kr_v_sum((sum[0] + sum[2]) + (sum[1] + sum[3]));
}

/// What dB or dC [states, chunk] gets from the states around the chunk: scale (state from^T), added to other heads'.
/// Its dots with keys or queries go to `dots`.
static void multiply_state(const ssd *s, const work *w, matrix to, bool add, matrix state, matrix from,
                           const float *scale, matrix with, float *dots) {
    product p = {FULL,
                 1,
                 s->size.states,
                 w->tokens,
                 0,
                 .c = to,
                 .a0 = state,
                 .b0 = from,
                 .depth0 = s->size.width,
                 .col_scale = scale,
                 .with = with,
                 .col_dots = dots,
                 .ahead = w->ahead};
    if (add) p.from = to, p.times = 1;
    multiply(&p);
}

/// dz = dout y silu'(z), with y computed again from the state before the chunk; and for D by channel, dD.
static void store_gates(const grad *g, const work *w, int64_t row, int64_t head, int64_t lane, matrix before) {
    const ssd *s = &g->s;
    const int64_t p = s->size.width;
    multiply_output(&s->size, w, lane, before, 0, w->y);
    for (int64_t j = 0; j < p; j += KR_LANES) {
        const kr_vf D = skip_weight(s, head, j), one = kr_v_set(1);
        const int64_t column = head * p + j;
        for (int64_t t = 0; t < w->tokens; t++) {
            const kr_vf x = kr_v_load(w->v.at + t * w->v.pitch + j),
                        y = kr_v_load(w->y.at + t * w->y.pitch + j) + D * x;
            const kr_vf dout = g->dout.at ? kr_v_load_n(g->dout.at + (row + t) * g->dout.pitch + column, p - j)
                                          : kr_v_set(0);
            const kr_vf z = kr_v_load_n(s->z.at + (row + t) * s->z.pitch + column, p - j), gate = kr_v_sigmoid(z);
            kr_v_store_n(g->dz.at + (row + t) * g->dz.pitch + column, dout * y * gate * (one + z * (one - gate)),
                         p - j);
        }
    }
}

/// sums [width] += the column sums of dy x.
static void add_skip(const ssd *s, const work *w, float *sums) {
    for (int64_t j = 0; j < s->size.width; j += KR_LANES) {
        kr_vf sum = kr_v_load(sums + j);
        for (int64_t t = 0; t < w->tokens; t++)
            sum += kr_v_load(w->dy.at + t * w->dy.pitch + j) * kr_v_load(w->v.at + t * w->v.pitch + j);
        kr_v_store(sums + j, sum);
    }
}

/// dx = dv + D dy, where the products of dv could not write it: from w->y.
static void store_values(const grad *g, const work *w, int64_t row, int64_t head) {
    const int64_t p = g->s.size.width;
    for (int64_t j = 0; j < p; j += KR_LANES) {
        const kr_vf D = skip_weight(&g->s, head, j);
        for (int64_t t = 0; t < w->tokens; t++)
            kr_v_store_n(g->dx.at + (row + t) * g->dx.pitch + head * p + j,
                         kr_v_load(w->y.at + t * w->y.pitch + j) + D * kr_v_load(w->dy.at + t * w->dy.pitch + j),
                         p - j);
    }
}

/// What is known of a chunk's ends, of all heads: the state before it is zero and its gradient is not wanted; the
/// state after it has no gradient.
typedef struct ends {
    bool fresh, ending;
} ends;

/// One head over one chunk: dx and dz; its parts of dB, dC and sum_weights; H of the chunk before; and its rows of
/// DIRECT, RHO, INTER and FLOW. Gives e_n <H, S>. skip: the head's sums for dD.
static float backward_head(const grad *g, const work *w, bundle at, int64_t lane, int64_t i, ends e, matrix adjoint,
                           float *skip, bool first_head) {
    const ssd *s = &g->s;
    const kr_chunk_size *z = &s->size;
    const int64_t n = z->states, p = z->width, head = at.head + lane, row = at.b * z->length + i * z->chunk;
    float *saved = g->saved + ((at.b * z->chunks + i) * z->heads + head) * n * p, through = 0;
    matrix before = in_place(z) ? (matrix){saved, p} : w->loaded;
    if (e.fresh) before.at = 0;
    else if (!in_place(z)) load_matrix(before, saved, p, n, p);
    const float *x = s->x.at + row * s->x.pitch + head * p;
    load_dy(g, w, row, head, lane);
    transpose(x, s->x.pitch, w->tokens, p, w->vt, true);
    transpose(w->dy.at, w->dy.pitch, w->tokens, p, w->dyt, true);
    multiply(&(product){LOWER_RESULT, 1, w->tokens, w->tokens, p, w->dy, w->vt, w->dots, .ahead = w->ahead});
    const kr_vf trace = weigh_back(w, lane, first_head);
    sum_lanes(w->lanes, w->tokens, of_head(w, KR_SSD_FLOW, lane));
    if (g->dz.at || s->D_per_channel) load_matrix(w->v, x, s->x.pitch, w->tokens, p);
    if (s->D_per_channel) add_skip(s, w, skip);
    else kr_v_store(skip, kr_v_load(skip) + trace);
    if (g->dz.at) store_gates(g, w, row, head, lane, before);

    float *inter = of_head(w, KR_SSD_INTER, lane), *rho = of_head(w, KR_SSD_RHO, lane);
    if (e.fresh || !n) clear(inter, w->tokens);
    else multiply_state(s, w, w->dqt, !first_head, before, w->dyt, of_head(w, KR_SSD_FROM_START, lane), w->qt, inter);
    if (e.ending || !n) clear(rho, w->tokens);
    else multiply_state(s, w, w->dkt, !first_head, adjoint, w->vt, of_head(w, KR_SSD_SCALE, lane), w->kt, rho);

    if (g->dx.at) {
        const bool direct = whole_tiles(z, w) && !s->D_per_channel;
        product dv = {LOWER_ACROSS, 1,
                      w->tokens,    p,
                      w->tokens,    w->weights,
                      w->dy,        direct ? (matrix){g->dx.at + row * g->dx.pitch + head * p, g->dx.pitch} : w->y,
                      true,         .ahead = w->ahead};
        if (!e.ending) dv.a0 = w->k, dv.b0 = adjoint, dv.depth0 = n, dv.scale = of_head(w, KR_SSD_SCALE, lane);
        if (direct && s->D) dv.from = w->dy, dv.times = s->D[head];
        multiply(&dv);
        if (!direct) store_values(g, w, row, head);
    }
    if (e.fresh) return 0;
    const float all = of_head(w, KR_SSD_FROM_START, lane)[w->tokens - 1];
    if (!e.ending) through = all * dot_matrices(adjoint, before, n, p);
    carry_adjoint(s, w, adjoint, e.ending ? 0 : all);
    return through;
}

/// ddt of a bundle's heads over one chunk, and what it adds to dA and ddt_bias.
static void store_steps(const grad *g, const work *w, int64_t row, bundle at, const float *through_of, float *dA_sums,
                        float *dbias_sums) {
    const kr_vf A = kr_v_load_n(g->s.A + at.head, at.count);
    kr_vf later = kr_v_set(0), dA = kr_v_load_n(dA_sums, at.count), dbias = kr_v_load_n(dbias_sums, at.count);
    kr_vf through = kr_v_load(through_of);
    for (int k = KR_SSD_DIRECT; k <= KR_SSD_FLOW; k++)
        transpose(w->cols[k].at, w->cols[k].pitch, KR_LANES, kr_round_up(w->tokens, KR_LANES),
                  (matrix){w->rows[k], KR_LANES}, true);
#define STEP(kind) kr_v_load(w->rows[KR_SSD_##kind] + t * KR_LANES)
    for (int64_t t = w->tokens - 1; t >= 0; t--) { // from S to this token and all later ones
        later += STEP(FROM_START) * STEP(INTER);
        kr_v_store(w->rows[KR_SSD_FLOW] + t * KR_LANES, STEP(FLOW) + later);
    }
    for (int64_t t = 0; t < w->tokens; t++) {
        const kr_vf da = STEP(FLOW) + through, rho = STEP(RHO);
        const kr_vf draw = (STEP(DIRECT) + STEP(TO_END) * rho + A * da) * STEP(SLOPE);
        through += STEP(SCALE) * rho;
        dA += da * STEP(DT);
        dbias += draw;
        if (g->ddt.at) kr_v_store_n(g->ddt.at + (row + t) * g->ddt.pitch + at.head, draw, at.count);
    }
#undef STEP
    kr_v_store_n(dA_sums, dA, at.count);
    kr_v_store_n(dbias_sums, dbias, at.count);
}

/// dkeys = across^T from the states, where any head had one, and what the chunk's tokens give to each other through
/// the other of keys and queries; then to memory.
static void store_keys(const ssd *s, const work *w, matrix transposed, bool set, bool across, matrix other, sink to,
                       int64_t row, int64_t group) {
    const int64_t n = s->size.states;
    if (!to.at) return;
    const bool direct = n % KR_LANES == 0 && w->tokens % 4 == 0;
    float *memory = to.at + row * to.pitch + group * n;
    product p = {across ? LOWER_ACROSS : LOWER_LEFT,
                 1,
                 w->tokens,
                 n,
                 w->tokens,
                 w->sum_weights,
                 other,
                 direct ? (matrix){memory, to.pitch} : w->dkeys,
                 across,
                 .ahead = w->ahead};
    if (set) {
        transpose(transposed.at, transposed.pitch, n, kr_round_up(w->tokens, KR_LANES), w->dkeys, true);
        p.from = w->dkeys, p.times = 1;
    }
    multiply(&p);
    if (!direct) store_matrix(memory, to.pitch, w->dkeys, w->tokens, n);
}

/// Prefetches what head number h of the group writes of chunk i, and for what the next head reads.
static void prefetch_backward(const grad *g, const work *w, unit u, int64_t i, int64_t h) {
    const ssd *s = &g->s;
    const kr_chunk_size *z = &s->size;
    const bool wraps = h + 1 == s->cut.in_group;
    const int64_t next = wraps ? i - 1 : i, head = u.group * s->cut.in_group + h,
                  next_head = wraps ? head - h : head + 1, p = z->width;
    const int64_t row = u.b * z->length + i * z->chunk, next_row = u.b * z->length + next * z->chunk;
    w->ahead->count = 0;
    if (next >= u.begin) {
        prefetch_rows(w->ahead, g->saved + ((u.b * z->chunks + next) * z->heads + next_head) * z->states * p, 0, 1,
                      z->states * p);
        prefetch_rows(w->ahead, g->dout.at ? g->dout.at + next_row * g->dout.pitch + next_head * p : 0, g->dout.pitch,
                      w->tokens, p);
        prefetch_inputs(s, w, next_row, bundle_at(s, u, 0), next_head, wraps);
    }
    prefetch_rows(w->ahead, g->dz.at ? g->dz.at + row * g->dz.pitch + head * p : 0, g->dz.pitch, w->tokens, p);
    prefetch_rows(w->ahead, g->dx.at ? g->dx.at + row * g->dx.pitch + head * p : 0, g->dx.pitch, w->tokens, p);
}

static void backward_unit(const grad *g, work *w, unit u) {
    const ssd *s = &g->s;
    const kr_chunk_size *z = &s->size;
    const int64_t n = z->states, p = z->width, in_group = s->cut.in_group, first = heads_at(s, u, u.segment);
    const int64_t skips = z->width_pitch ? z->width_pitch : KR_LANES;
    float *skip = g->work + g->at.skip + first * skips, *dA = g->work + g->at.dA + first,
          *dbias = g->work + g->at.dbias + first;
    _Alignas(64) float through[KR_SSD_BUNDLE] = {0};
    clear(skip, in_group * skips);
    clear(dA, in_group);
    clear(dbias, in_group);
    load_adjoints(g, w, u);
    for (int64_t i = u.end - 1; i >= u.begin; i--) {
        const int64_t row = u.b * z->length + i * z->chunk;
        const ends e = {!i && g->zero_start && !g->dh0, i + 1 == z->chunks && !g->dlast};
        w->tokens = chunk_tokens(z, i);
        load_group(s, w, row, u.group);
        transpose(w->q.at, w->q.pitch, kr_round_up(w->tokens, KR_LANES), n, w->qt, true);
        for (int64_t h = 0; h < in_group; h += KR_SSD_BUNDLE) {
            const bundle at = bundle_at(s, u, h);
            load_steps(s, w, row, at, true);
            for (int64_t lane = 0; lane < at.count; lane++) {
                prefetch_backward(g, w, u, i, h + lane);
                through[lane] = backward_head(g, w, at, lane, i, e, state_of(w, h + lane), skip + (h + lane) * skips,
                                              !(h + lane));
            }
            store_steps(g, w, row, at, through, dA + h, dbias + h);
        }
        store_keys(s, w, w->dqt, in_group && !e.fresh, false, w->k, g->dC, row, u.group);
        store_keys(s, w, w->dkt, in_group && !e.ending, true, w->q, g->dB, row, u.group);
    }
    for (int64_t h = 0; h < in_group && g->dh0 && !u.segment; h++)
        transpose(state_of(w, h).at, w->state_pitch, n, p,
                  (matrix){g->dh0 + (u.b * z->heads + u.group * in_group + h) * n * p, n}, false);
}

KR_KERNEL(ssd_scan_grad) {
    const grad g = grad_of(call);
    EACH_UNIT_OF(g.s.cut.units, {
        prefetch ahead = {.count = 0};
        work w = work_of(&g.s.size, &g.layout, g.work + slot * g.layout.floats, &ahead);
        clear_matrix(w.weights, g.s.size.chunk, g.s.size.chunk); // products read the padding of triangles
        clear_matrix(w.sum_weights, g.s.size.chunk, g.s.size.chunk);
        for (int64_t i = begin; i < end; i++) backward_unit(&g, &w, unit_of(&g.s, i));
    });
}
