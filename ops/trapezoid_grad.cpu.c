/// The gradient of Mamba-3's scan on the CPU (trapezoid_chunk.h says how the rule fits into chunks).
///
/// A unit takes the chunks from last to first, from the states and angles that the forward pass saved. Where keys turn,
/// what comes out for the turned ones is turned back at once: for dk of a head and w = Rot(-theta) dk, its part of dK and
/// of the bias's gradient is w, and its angle feels e_t = u0 w1 - u1 w0 with u = K + bias, which is the same number before
/// and after the rotation: k0 dk1 - k1 dk0. An angle acts on all later tokens, so what it feels of them is kept from
/// chunk to chunk as the adjoint of the state is. Sums over the heads of a unit are made in its scratch; a second stage
/// adds those of several units, and the sums over the batch, in one order.
#include "ops/ssd_chunk_backward.h"
#include "ops/trapezoid_chunk.h"

enum { DOUT, DH_LAST, DK_LAST, DV_LAST, DTHETA, FORWARD, K0 = FORWARD + ANG + 1, V0, RESET, SAVED, ANGLES };
enum { DK, DQ, DX, DADT, DDT, DTRAP, DMIMO_X, DSKIP, DZ, DK_BIAS, DQ_BIAS, DANG, DH0, DK0, DV0, DTHETA0 };

typedef struct backward {
    trapezoid s;
    source dout;
    const float *dh_last, *dk_last, *dv_last, *dtheta, *angles;
    float *saved;
    sink dkeys[2], dx, dadt, ddt, dtrap, dz, dang;
    float *dmimo, *dD, *dbias[2], *dh0, *dk0, *dv0, *dtheta0;
    bool zero_start;
    float *sums, *shares; ///< workspace (trapezoid.h)
} backward;

static backward backward_of(const kr_call *call) {
    const kr_arg *in = call->in, *out = call->out;
    backward d = {
        .s = trapezoid_of(call->attrs, in + FORWARD, &in[K0], &in[V0], &in[RESET]), .dout = source_of(&in[DOUT]),
        .dh_last = in[DH_LAST].data, .dk_last = in[DK_LAST].data, .dv_last = in[DV_LAST].data, .dtheta = in[DTHETA].data,
        .saved = in[SAVED].data, .angles = in[ANGLES].data, .dkeys = {sink_of(&out[DK]), sink_of(&out[DQ])},
        .dx = sink_of(&out[DX]), .dadt = sink_of(&out[DADT]), .ddt = sink_of(&out[DDT]), .dtrap = sink_of(&out[DTRAP]),
        .dmimo = out[DMIMO_X].data, .dD = out[DSKIP].data, .dbias = {out[DK_BIAS].data, out[DQ_BIAS].data},
        .dh0 = out[DH0].data, .dk0 = out[DK0].data, .dv0 = out[DV0].data, .dtheta0 = out[DTHETA0].data,
        .zero_start = call->attrs->i[ZERO_START] != 0};
    if (d.s.z.at) d.dz = sink_of(&out[DZ]);
    if (d.s.turn.turns) d.dang = sink_of(&out[DANG]);
    const kr_chunk_layout layout = kr_chunk_arrange(&d.s.size, true);
    const kr_turn_layout turns = kr_turn_arrange(&d.s.size, &d.s.turn, true);
    d.sums = (float *)call->work + kr_turn_sums_at(&d.s.size, &layout, &turns);
    d.shares = (float *)call->work + kr_turn_shares_at(&d.s.size, &d.s.turn, &layout, &turns);
    return d;
}

/// The sums over time of one head.
static float *sums_of(const backward *d, place at) {
    return d->sums + (at.b * d->s.size.heads + at.head) * kr_turn_sums(&d->s.size, &d->s.turn);
}

static void store_ranks(const chunk *c, float *to, int64_t pitch, int64_t step, matrix from, int64_t cols) {
    for (int64_t t = 0, i = 0; t < c->tokens; t++)
        for (int64_t r = 0; r < c->rank; r++, i++)
            for (int64_t j = 0; j < cols; j += KR_LANES)
                kr_v_store_n(to + t * pitch + r * step + j, kr_v_load(from.at + i * from.pitch + j), cols - j);
}

/// dy = dout silu(z); with a gate scaled_v gets dout silu'(z), which is dz without its factor y.
static void load_dy(const backward *d, const chunk *c, place at, int64_t row) {
    const kr_chunk_size *z = &d->s.size;
    const source *gate = &d->s.z;
    const int64_t p = z->width;
    if (!d->dout.at) {
        clear_matrix(c->dy, c->rows, p);
        clear_matrix(c->scaled_v, c->rows, p);
        return;
    }
    load_ranks(c, c->dy, d->dout.at + row * d->dout.pitch + at.head * p, d->dout.pitch, z->heads * p, p);
    for (int64_t j = 0; j < p && gate->at; j += KR_LANES) {
        const float *from = gate->at + row * gate->pitch + at.head * p + j;
        const int64_t step = c->dy.pitch, slope_step = c->scaled_v.pitch, pitch = gate->pitch, tokens = c->tokens;
        float *to = c->dy.at + j, *slope = c->scaled_v.at + j;
        for (int64_t t = 0; t < tokens; t++, from += pitch, to += step, slope += slope_step) {
            const kr_vf x = kr_v_load_n(from, p - j), open = kr_v_sigmoid(x), dout = kr_v_load(to) * open;
            kr_v_store(to, dout * x);
            kr_v_store(slope, dout * (kr_v_set(1) + x * (kr_v_set(1) - open)));
        }
    }
}

/// dz from y without the part of D, and from what load_dy left.
static void store_gate(const backward *d, const chunk *c, place at, int64_t row) {
    const int64_t p = d->s.size.width;
    const kr_vf D = kr_v_set(d->s.D ? d->s.D[at.head] : 0);
    for (int64_t t = 0; t < c->tokens; t++)
        for (int64_t j = 0; j < p; j += KR_LANES) {
            const kr_vf o = kr_v_load(c->y.at + t * c->y.pitch + j) + D * kr_v_load(c->v.at + t * c->v.pitch + j);
            kr_v_store_n(d->dz.at + (row + t) * d->dz.pitch + at.head * p + j, o * kr_v_load(c->scaled_v.at + t * c->scaled_v.pitch + j),
                         p - j);
        }
}

/// dx, and the sums dD and dmimo_x: rows [width] of `sums`.
static void store_values(const backward *d, const chunk *c, place at, int64_t first, float *sums) {
    const trapezoid *s = &d->s;
    const int64_t p = s->size.width, row = at.row + first, rank = c->rank, tokens = c->tokens, pitch = s->x.pitch;
    const int64_t step = c->v.pitch; // the same for all of [rows, width]
    const kr_vf D = kr_v_set(s->D ? s->D[at.head] : 0);
    for (int64_t j = 0; j < p; j += KR_LANES) {
        const float *v = c->v.at + j, *dy = c->dy.at + j, *x = s->x.at + row * pitch + at.head * p + j;
        float *dv = c->dv.at + j;
        kr_vf dD = kr_v_load(sums + j);
        for (int64_t i = 0; i < tokens * rank; i++) {
            const kr_vf y = kr_v_load(dy + i * step);
            dD += y * kr_v_load(v + i * step);
            kr_v_store(dv + i * step, kr_v_load(dv + i * step) + D * y);
        }
        kr_v_store(sums + j, dD);
        for (int64_t r = 0; r < rank && s->mimo; r++) { // dx = sum_r mimo_x_r dv_r comes to lie in the row of r = 0
            const kr_vf mimo = mimo_of(s, at.head, r, j);
            float *dmimo = sums + (1 + r) * s->size.width_pitch + j;
            kr_vf sum = kr_v_load(dmimo);
            for (int64_t t = 0; t < tokens; t++) {
                float *dx = dv + t * rank * step;
                const kr_vf dvr = kr_v_load(dx + r * step);
                sum += kr_v_load_n(x + t * pitch, p - j) * dvr;
                kr_v_store(dx, r ? kr_v_load(dx) + mimo * dvr : mimo * dvr);
            }
            kr_v_store(dmimo, sum);
        }
        if (first + tokens == s->size.length && d->dv_last) {
            float *last = dv + (tokens - 1) * rank * step;
            kr_v_store(last, kr_v_load(last) + kr_v_load_n(d->dv_last + (at.b * s->size.heads + at.head) * p + j, p - j));
        }
        for (int64_t t = 0; t < tokens && d->dx.at; t++)
            kr_v_store_n(d->dx.at + (row + t) * d->dx.pitch + at.head * p + j, kr_v_load(dv + t * rank * step), p - j);
    }
}

/// A token whose dgamma is known: its domega comes from the token before it, which may be in the chunk before.
/// angles: what ddt gets through the angles.
typedef struct pending {
    float lambda, dt, dgamma, angles;
    int64_t row;
    bool fresh;
} pending;

static void store_step(const backward *d, place at, pending t, float domega) {
    if (t.fresh) domega = 0;
    if (d->ddt.at) d->ddt.at[t.row * d->ddt.pitch + at.head] = t.lambda * t.dgamma + (1 - t.lambda) * domega + t.angles;
    if (d->dtrap.at) d->dtrap.at[t.row * d->dtrap.pitch + at.head] = t.dt * (t.dgamma - domega) * t.lambda * (1 - t.lambda);
}

/// Steps of the chunk; `next` is the token after it on the way in, and its first token on the way out.
static void store_steps(const backward *d, const chunk *c, place at, int64_t first, const float *angles, pending *next) {
    for (int64_t t = c->tokens - 1; t >= 0; t--) {
        const int64_t row = at.row + first + t;
        if (first + t + 1 < d->s.size.length) store_step(d, at, *next, c->dghat[t]);
        *next = (pending){c->spare[1][t], c->spare[0][t], c->dgamma[t] + c->dghat[t], angles[t], row, is_reset(&d->s, row)};
        if (d->dadt.at) d->dadt.at[row * d->dadt.pitch + at.head] = c->da[t];
    }
}

/// Where the chunks end: the gradients of h0, k0 and v0, and domega of the first token.
static void store_before(const backward *d, const chunk *c, place at, const pending *first, float *sums) {
    const trapezoid *s = &d->s;
    const kr_chunk_size *z = &s->size;
    const int64_t n = z->states, p = z->width, head = at.b * z->heads + at.head;
    const matrix adjoint = state_at(z, c, at, true);
    float domega = 0, omega = 0;
    const bool before = s->k0 && z->length, through = !z->length;
    if (d->dh0) store_matrix(d->dh0 + head * n * p, n, adjoint, p, n);
    if (before) { // dk0 = omega G^T v0 and dv = omega G k0, rank by rank
        omega = first->fresh ? 0 : (1 - first->lambda) * first->dt;
        load_before(s, at, c->k, c->scaled_v);
        transpose(adjoint.at, adjoint.pitch, p, n, c->end, true);
        multiply(&(product){FULL, 1, z->rank, n, p, c->scaled_v, adjoint, c->dk});
        multiply(&(product){FULL, 1, z->rank, p, n, c->k, c->end, c->dv});
        kr_vf dot = kr_v_set(0);
        for (int64_t r = 0; r < z->rank; r++)
            for (int64_t j = 0; j < n; j += KR_LANES)
                dot += kr_v_load(c->dk.at + r * c->dk.pitch + j) * kr_v_load(c->k.at + r * c->k.pitch + j);
        domega = kr_v_sum(dot);
    }
    if (z->length) store_step(d, at, *first, domega);
    const kr_vf scale = kr_v_set(omega);
    for (int64_t r = 0; r < z->rank && d->dk0; r++)
        for (int64_t j = 0; j < n; j += KR_LANES) {
            const int64_t to = ((at.b * z->rank + r) * z->heads + at.head) * n + j;
            kr_vf x = before ? scale * kr_v_load(c->dk.at + r * c->dk.pitch + j) : kr_v_set(0);
            if (through && d->dk_last) x = kr_v_load_n(d->dk_last + to, n - j);
            kr_v_store_n(d->dk0 + to, x, n - j);
        }
    for (int64_t j = 0; j < p; j += KR_LANES) {
        const kr_vf value = before ? kr_v_load_n(s->v0 + head * p + j, p - j) : kr_v_set(0);
        kr_vf x = through && d->dv_last ? kr_v_load_n(d->dv_last + head * p + j, p - j) : kr_v_set(0);
        for (int64_t r = 0; r < z->rank && before; r++) {
            const kr_vf dv = scale * kr_v_load(c->dv.at + r * c->dv.pitch + j);
            float *dmimo = sums + (1 + r) * z->width_pitch + j;
            kr_v_store(dmimo, kr_v_load(dmimo) + dv * value);
            x += dv * mimo_of(s, at.head, r, j);
        }
        if (d->dv0) kr_v_store_n(d->dv0 + head * p + j, x, p - j);
    }
}

// Turning back ------------------------------------------------------------------------------------------------------

/// 16 pairs from the j-th, of which `left` exist, for turned rows k and their gradients dk, `step` apart: adds what dk turns
/// back to to dbias and to `sum`, which the first head sets, and what the angles feel to e, which keys set.
KR_INLINE void turn_pairs_back(const float *sine, const float *cosine, float *e, int64_t angles, const float *k, const float *dk,
                               int64_t step, float *sum, int64_t sum_step, float *dbias, int64_t tokens, int64_t j, bool sets_sum,
                               bool sets_e, const int64_t apart, const int64_t left) {
    kr_vf bias_a, bias_b;
    kr_pairs_load(dbias, apart, j, left, &bias_a, &bias_b);
    for (int64_t t = 0; t < tokens; t++, k += step, dk += step, sum += sum_step, sine += angles, cosine += angles, e += angles) {
        const kr_vf s = kr_v_load(sine), c = kr_v_load(cosine);
        kr_vf a, b, da, db;
        kr_pairs_load(k, apart, j, left, &a, &b);
        kr_pairs_load(dk, apart, j, left, &da, &db);
        const kr_vf felt = a * db - b * da;
        kr_v_store(e, sets_e ? felt : felt + kr_v_load(e));
        kr_vf wa = da * c + db * s, wb = db * c - da * s;
        bias_a += wa, bias_b += wb;
        if (!sets_sum) {
            kr_pairs_load(sum, apart, j, left, &a, &b);
            wa += a, wb += b;
        }
        kr_pairs_store(sum, apart, j, left, wa, wb);
    }
    kr_pairs_store(dbias, apart, j, left, bias_a, bias_b);
}

/// The same for 16 columns that do not turn.
KR_INLINE void shift_columns_back(const float *dk, int64_t step, float *sum, int64_t sum_step, float *dbias, int64_t tokens,
                                  bool sets_sum, const int64_t left) {
    kr_vf bias = kr_v_load_n(dbias, left);
    for (int64_t t = 0; t < tokens; t++, dk += step, sum += sum_step) {
        const kr_vf x = kr_v_load_n(dk, left);
        bias += x;
        kr_v_store_n(sum, sets_sum ? x : x + kr_v_load_n(sum, left), left);
    }
    kr_v_store_n(dbias, bias, left);
}

/// Keys or queries of one rank. Whole vectors have code of their own.
KR_INLINE void turn_back_rows(const trapezoid *s, const turning *w, const float *k, const float *dk, int64_t step, float *sum,
                              int64_t sum_step, float *dbias, int64_t tokens, bool sets_sum, bool sets_e, const int64_t apart) {
    const int64_t pairs = s->turn.pairs, angles = w->pitch;
    for (int64_t j = 0; j < pairs; j += KR_LANES) {
        const float *sine = w->sine + j, *cosine = w->cosine + j;
        float *e = w->e + j;
        if (pairs - j >= KR_LANES)
            turn_pairs_back(sine, cosine, e, angles, k, dk, step, sum, sum_step, dbias, tokens, j, sets_sum, sets_e, apart, KR_LANES);
        else turn_pairs_back(sine, cosine, e, angles, k, dk, step, sum, sum_step, dbias, tokens, j, sets_sum, sets_e, apart, pairs - j);
    }
    for (int i = 0; i < 2; i++) {
        const columns range = still(s, i);
        for (int64_t n = range.from; n < range.to; n += KR_LANES) {
            if (range.to - n >= KR_LANES)
                shift_columns_back(dk + n, step, sum + n, sum_step, dbias + n, tokens, sets_sum, KR_LANES);
            else shift_columns_back(dk + n, step, sum + n, sum_step, dbias + n, tokens, sets_sum, range.to - n);
        }
    }
}

/// dk and dq of one head to the sums over its unit's heads, and e.
static void turn_back(const backward *d, const chunk *c, const turning *w, place at, float *sums) {
    const trapezoid *s = &d->s;
    const int64_t rank = c->rank;
    const bool first = at.head == at.first_head;
    for (int k = 0; k < 2; k++)
        for (int64_t r = 0; r < rank; r++) {
            const matrix x = k == K ? c->k : c->q, dx = k == K ? c->dk : c->dq, sum = w->sums[k];
            float *dbias = sums + kr_turn_bias_at(&s->size) + (k * rank + r) * s->size.states_pitch;
            const float *from = x.at + r * x.pitch, *dfrom = dx.at + r * dx.pitch;
            float *to = sum.at + r * sum.pitch;
            const bool sets_e = k == K && r == 0;
            if (s->apart)
                turn_back_rows(s, w, from, dfrom, rank * x.pitch, to, rank * sum.pitch, dbias, c->tokens, first, sets_e, s->apart);
            else turn_back_rows(s, w, from, dfrom, rank * x.pitch, to, rank * sum.pitch, dbias, c->tokens, first, sets_e, 0);
        }
}

/// dang, and what ddt gets through the angles: dtheta_t = e_t + dtheta_{t+1}, which a reset cuts.
static void angles_back(const backward *d, const chunk *c, const turning *w, place at, int64_t row, float *felt, float *ddt) {
    const int64_t pairs = d->s.turn.pairs;
    const float *dt = c->spare[0];
    for (int64_t j = 0; j < pairs; j += KR_LANES) {
        kr_vf later = kr_v_load(felt + j);
        for (int64_t t = c->tokens - 1; t >= 0; t--) {
            const int64_t i = t * w->pitch + j;
            later += kr_v_load(w->e + i);
            const kr_vf turn = later * kr_v_set((float)KR_PI), speed = kr_v_load(w->speed + i);
            const kr_vf dang = turn * kr_v_set(dt[t]) * (kr_v_set(1) - speed * speed);
            float *lanes = c->lanes[0] + t * KR_LANES;
            kr_v_store(lanes, j ? kr_v_load(lanes) + turn * speed : turn * speed);
            kr_v_store(w->dang + i, d->s.own_angles || at.head == at.first_head ? dang : dang + kr_v_load(w->dang + i));
            if (is_reset(&d->s, row + t)) later = kr_v_set(0);
        }
        kr_v_store(felt + j, later);
    }
    if (pairs) sum_lanes(c->lanes[0], c->tokens, ddt);
    if (d->s.own_angles && d->dang.at)
        store_matrix(d->dang.at + angle_row(&d->s, row, at.head) * d->dang.pitch, d->s.size.heads * d->dang.pitch,
                     (matrix){w->dang, w->pitch}, c->tokens, pairs);
}

/// Where a unit's sums over heads go: rank r of token t of dK and dQ is at[k] + t * pitch[k] + r * step[k].
typedef struct shared {
    float *at[2], *dang;
    int64_t pitch[2], step[2], dang_pitch;
} shared;

static shared shared_of(const backward *d, int64_t unit, place at) {
    const kr_chunk_size *z = &d->s.size;
    const int64_t n = z->states, keys = kr_turn_keys(z);
    if (d->s.turn.parts > 1) {
        float *mine = d->shares + unit * kr_turn_share(z, &d->s.turn);
        return (shared){{mine, mine + keys}, mine + 2 * keys, {z->rank * n, z->rank * n}, {n, n}, d->s.turn.pairs};
    }
    shared to = {.dang = d->dang.at ? d->dang.at + at.row * d->dang.pitch : 0, .dang_pitch = d->dang.pitch};
    for (int k = 0; k < 2; k++) {
        to.at[k] = d->dkeys[k].at ? d->dkeys[k].at + at.row * d->dkeys[k].pitch + at.group * n : 0;
        to.pitch[k] = d->dkeys[k].pitch;
        to.step[k] = z->groups * n;
    }
    return to;
}

static void store_shared(const backward *d, const chunk *c, const turning *w, const shared *to, int64_t first) {
    for (int k = 0; k < 2; k++)
        if (to->at[k]) store_ranks(c, to->at[k] + first * to->pitch[k], to->pitch[k], to->step[k], w->sums[k], d->s.size.states);
    if (to->dang && !d->s.own_angles)
        store_matrix(to->dang + first * to->dang_pitch, to->dang_pitch, (matrix){w->dang, w->pitch}, c->tokens, d->s.turn.pairs);
}

// Chunks ------------------------------------------------------------------------------------------------------------

/// Asks for what this head writes of the chunk, and for what the next head reads.
static void want_backward(const backward *d, const chunk *c, place at, int64_t i) {
    const trapezoid *s = &d->s;
    const kr_chunk_size *z = &s->size;
    const bool wraps = last_of_unit(at);
    const int64_t head = wraps ? at.first_head : at.head + 1, next = wraps ? i - 1 : i, p = z->width;
    const int64_t row = at.row + i * z->chunk, next_row = at.row + next * z->chunk;
    c->ahead->count = 0;
    if (next >= 0) {
        want(c->ahead, d->saved + ((at.b * z->chunks + next) * z->heads + head) * z->states * p, 0, 1, z->states * p);
        if (d->dout.at)
            for (int64_t r = 0; r < z->rank; r++)
                want(c->ahead, d->dout.at + next_row * d->dout.pitch + (r * z->heads + head) * p, d->dout.pitch, c->tokens, p);
        want_head(s, c, next_row, at, head);
    }
    if (d->dz.at) want(c->ahead, d->dz.at + row * d->dz.pitch + at.head * p, d->dz.pitch, c->tokens, p);
    if (d->dx.at) want(c->ahead, d->dx.at + row * d->dx.pitch + at.head * p, d->dx.pitch, c->tokens, p);
    for (int k = 0; k < 2 && !s->turn.turns; k++)
        if (d->dkeys[k].at)
            want(c->ahead, d->dkeys[k].at + row * d->dkeys[k].pitch + key_column(s, at, 0), d->dkeys[k].pitch, c->tokens, z->rank * z->states);
}

/// One head over one chunk; `next` and `felt` wait for the chunk before.
static void backward_chunk(const backward *d, chunk *c, const turning *w, place at, int64_t i, pending *next, float *felt) {
    const trapezoid *s = &d->s;
    const kr_chunk_size *z = &s->size;
    const int64_t n = z->states, p = z->width, first = i * z->chunk, row = at.row + first, pairs = s->turn.pairs;
    const int64_t chunk_head = (at.b * z->chunks + i) * z->heads + at.head;
    const bool ends = i + 1 == z->chunks, fresh = !i && d->zero_start && !d->dh0 && !s->k0;
    float *sums = sums_of(d, at), *angles = c->spare[2];
    want_backward(d, c, at, i);
    load_steps(s, c, at, first);
    for (int64_t j = 0; j < w->pitch; j++) w->running[j] = j < pairs ? (double)d->angles[chunk_head * pairs + j] : 0;
    load_keys(s, c, w, at, first, w->running);
    chunk_scores(c);
    load_values(s, c->v, s->x.at + row * s->x.pitch + at.head * p, s->x.pitch, c->tokens, at.head);
    load_dy(d, c, at, row);
    if (!fresh) c->start = saved_state(c, d->saved + chunk_head * n * p);
    c->dq_set = c->dk_set = false;
    chunk_backward(c, state_at(z, c, at, true), fresh, ends && !d->dh_last, false);
    for (int64_t r = 0; r < z->rank && ends && d->dk_last; r++)
        for (int64_t j = 0; j < n; j += KR_LANES) {
            float *to = c->dk.at + (c->rows - z->rank + r) * c->dk.pitch + j;
            kr_v_store(to, kr_v_load(to) + kr_v_load_n(d->dk_last + ((at.b * z->rank + r) * z->heads + at.head) * n + j, n - j));
        }
    clear(angles, c->tokens);
    if (s->turn.turns) {
        turn_back(d, c, w, at, sums);
        angles_back(d, c, w, at, row, felt, angles);
    }
    for (int k = 0; k < 2 && !s->turn.turns; k++)
        if (d->dkeys[k].at)
            store_ranks(c, d->dkeys[k].at + row * d->dkeys[k].pitch + key_column(s, at, 0), d->dkeys[k].pitch, n, k == K ? c->dk : c->dq, n);
    if (d->dz.at) {
        chunk_output(c, c->start, fresh);
        store_gate(d, c, at, row);
    }
    store_values(d, c, at, first, sums);
    store_steps(d, c, at, first, angles, next);
}

static void backward_unit(const backward *d, chunk *c, const turning *w, int64_t unit) {
    const trapezoid *s = &d->s;
    const kr_chunk_size *z = &s->size;
    const int64_t n = z->states, p = z->width, pairs = s->turn.pairs;
    const place here = place_of(z, unit);
    const shared to = shared_of(d, unit, here);
    pending next[KR_CHUNK_BLOCK] = {{0}};
    EACH_HEAD(z, unit, at) {
        const int64_t head = at.b * z->heads + at.head;
        const matrix adjoint = state_at(z, c, at, true);
        float *felt = w->felt + (at.head - at.first_head) * w->pitch;
        clear(sums_of(d, at), kr_turn_sums(z, &s->turn));
        clear_matrix(adjoint, p, n);
        if (d->dh_last) load_matrix(adjoint, d->dh_last + head * n * p, n, p, n);
        for (int64_t j = 0; j < w->pitch; j++) felt[j] = d->dtheta && j < pairs ? d->dtheta[head * pairs + j] : 0;
    }
    for (int64_t i = z->chunks - 1; i >= 0; i--) {
        chunk_resize(c, i + 1 == z->chunks ? z->length - i * z->chunk : z->chunk);
        EACH_HEAD(z, unit, at)
            backward_chunk(d, c, w, at, i, &next[at.head - at.first_head], w->felt + (at.head - at.first_head) * w->pitch);
        if (s->turn.turns && here.first_head < here.head_end) store_shared(d, c, w, &to, i * z->chunk);
    }
    EACH_HEAD(z, unit, at) {
        const float *felt = w->felt + (at.head - at.first_head) * w->pitch;
        store_before(d, c, at, &next[at.head - at.first_head], sums_of(d, at));
        for (int64_t j = 0; j < pairs && d->dtheta0; j++) d->dtheta0[(at.b * z->heads + at.head) * pairs + j] = felt[j];
    }
}

KR_KERNEL(trapezoid_scan_grad) {
    const backward d = backward_of(call);
    const kr_chunk_size *z = &d.s.size;
    const kr_chunk_layout layout = kr_chunk_arrange(z, true);
    const kr_turn_layout turns = kr_turn_arrange(z, &d.s.turn, true);
    EACH_UNIT(z, {
        float *base = (float *)call->work + slot * kr_turn_slot(&layout, &turns);
        chunk c = chunk_of(z, &layout, base);
        const turning w = turning_of(z, &d.s.turn, &turns, base + layout.floats);
        prefetch ahead = {.count = 0};
        c.ahead = &ahead;
        start_slot(&d.s, &c, true);
        for (int64_t unit = begin; unit < end; unit++) backward_unit(&d, &c, &w, unit);
    });
}

// Second stage ------------------------------------------------------------------------------------------------------

/// to [cols] of one token = the sum over the parts of what lies `apart` in `from`.
static void add_parts(float *to, const float *from, int64_t parts, int64_t apart, int64_t cols) {
    for (int64_t j = 0; j < cols; j += KR_LANES) {
        kr_vf sum = kr_v_set(0);
        for (int64_t i = 0; i < parts; i++) sum += kr_v_load_n(from + i * apart + j, cols - j);
        kr_v_store_n(to + j, sum, cols - j);
    }
}

/// dK, dQ and dang of `count` tokens: sums over the units of the batch row.
static void add_shares(const backward *d, int64_t b, int64_t first, int64_t count) {
    const kr_chunk_size *z = &d->s.size;
    const int64_t n = z->states, share = kr_turn_share(z, &d->s.turn), keys = kr_turn_keys(z), parts = d->s.turn.parts;
    const int64_t blocks = parts / z->groups;
    const float *shares = d->shares + b * parts * share;
    for (int64_t t = first; t < first + count; t++) {
        const int64_t row = b * z->length + t;
        for (int k = 0; k < 2; k++)
            for (int64_t i = 0; i < z->rank * z->groups && d->dkeys[k].at; i++) { // rank, then group
                const float *from = shares + i % z->groups * blocks * share + k * keys + (t * z->rank + i / z->groups) * n;
                add_parts(d->dkeys[k].at + row * d->dkeys[k].pitch + i * n, from, blocks, share, n);
            }
        if (d->dang.at && !d->s.own_angles)
            add_parts(d->dang.at + row * d->dang.pitch, shares + 2 * keys + t * d->s.turn.pairs, parts, share, d->s.turn.pairs);
    }
}

/// [cols] at `at` of the sums over time of a head, added over the batch.
static void add_batch(const backward *d, int64_t head, int64_t at, float *to, int64_t cols) {
    const kr_chunk_size *z = &d->s.size;
    const int64_t step = kr_turn_sums(z, &d->s.turn);
    add_parts(to, d->sums + head * step + at, z->batch, z->heads * step, cols);
}

static void add_head(const backward *d, int64_t head) {
    const kr_chunk_size *z = &d->s.size;
    const int64_t p = z->width, n = z->states, rank = z->rank;
    float total = 0;
    for (int64_t j = 0; j < p; j += KR_LANES) {
        float sum[KR_LANES] = {0};
        add_batch(d, head, j, sum, p - j < KR_LANES ? p - j : KR_LANES);
        total += kr_v_sum(kr_v_load(sum));
    }
    if (d->dD && d->s.D) d->dD[head] = total;
    for (int64_t r = 0; r < rank; r++) {
        if (d->dmimo && d->s.mimo) add_batch(d, head, (1 + r) * z->width_pitch, d->dmimo + (head * rank + r) * p, p);
        for (int k = 0; k < 2 && d->s.turn.turns; k++)
            if (d->dbias[k])
                add_batch(d, head, kr_turn_bias_at(z) + (k * rank + r) * z->states_pitch, d->dbias[k] + (head * rank + r) * n, n);
    }
}

enum { TOKENS = 16 }; // of a unit of the second stage

KR_KERNEL(trapezoid_scan_grad_sum) {
    const backward d = backward_of(call);
    const kr_chunk_size *z = &d.s.size;
    const int64_t pieces = (z->length + TOKENS - 1) / TOKENS, rows = d.s.turn.turns && d.s.turn.parts != 1 ? z->batch * pieces : 0;
    int64_t begin, end;
    kr_share(rows + z->heads, part, parts, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        const int64_t first = i < rows ? i % pieces * TOKENS : 0, left = z->length - first;
        if (i < rows) add_shares(&d, i / pieces, first, left < TOKENS ? left : TOKENS);
        else add_head(&d, i - rows);
    }
}
