/// Mamba-3's scan on the CPU, on the chunk machinery of ssd_chunk.h: the keys and queries of a head are its own, and a
/// token has `rank` of each. A unit is a few heads of one batch row, which are taken along together only so that rows of
/// memory are used while they are near.
///
/// The trapezoid rule gives token s the weight gamma_s when it arrives and omega_{s+1} one token later, with the decay
/// that the state gets in between; so for everything after token s its coefficient is ghat_s = gamma_s + omega_{s+1},
/// and the state that goes from chunk to chunk already holds what is pending (MATH 7.5). After the last token nothing
/// is pending: the last state is the true one, and the caller gets the last keys and values to go on from.
#include "ops/ssd_chunk.h"

enum { RANK, CHUNK, ZERO_START };

typedef struct trapezoid {
    kr_chunk_size size;
    source k, q, x, adt, dt, trap;
    const float *mimo, *D, *k0, *v0; // k0 and v0: both or neither
    const int32_t *reset;
} trapezoid;

/// in: k, q, x, adt, dt, trap, mimo_x, D.
static trapezoid trapezoid_of(const kr_attrs *t, const kr_arg *in, const kr_arg *k0, const kr_arg *v0, const kr_arg *reset) {
    const int64_t heads = in[3].shape.dim[2], rank = t->i[RANK];
    trapezoid s = {.k = source_of(&in[0]), .q = source_of(&in[1]), .x = source_of(&in[2]), .adt = source_of(&in[3]),
                   .dt = source_of(&in[4]), .trap = source_of(&in[5]), .mimo = in[6].data, .D = in[7].data, .reset = reset->data};
    if (k0->data && v0->data) s.k0 = k0->data, s.v0 = v0->data;
    s.size = kr_chunk_measure(in[0].shape.dim[0], in[0].shape.dim[1], heads, 0, rank,
                              heads ? in[2].shape.dim[2] / heads : 0, heads ? in[0].shape.dim[2] / heads / rank : 0, t->i[CHUNK]);
    return s;
}

/// Batch row, the number of its first token, the first head of a unit and the head at hand.
typedef struct place {
    int64_t b, row, first_head, head;
} place;

/// The heads of a unit, one after the other: place `at` of each.
#define EACH_HEAD(s, unit, at)                                                                                       \
    for (place at = {(unit) / (s)->blocks, (unit) / (s)->blocks * (s)->length, (unit) % (s)->blocks * (s)->block,    \
                     (unit) % (s)->blocks * (s)->block};                                                             \
         at.head < at.first_head + (s)->block && at.head < (s)->heads; at.head++)

/// The state of a head: [states, width]; in the backward pass [width, states].
static matrix state_at(const kr_chunk_size *s, const chunk *c, place at, bool backward) {
    return state_of(c, s, at.head - at.first_head, backward);
}

/// Rows (token, rank) of `cols` each, where the ranks of a token lie `step` apart.
static void load_ranks(const chunk *c, matrix to, const float *from, int64_t pitch, int64_t step, int64_t cols) {
    for (int64_t t = 0, i = 0; t < c->tokens; t++)
        for (int64_t r = 0; r < c->rank; r++, i++)
            for (int64_t j = 0; j < cols; j += KR_LANES)
                kr_v_store(to.at + i * to.pitch + j, kr_v_load_n(from + t * pitch + r * step + j, cols - j));
    for (int64_t i = c->rows; i < kr_round_up(c->rows, KR_LANES); i++) clear(to.at + i * to.pitch, kr_round_up(cols, KR_LANES));
}

static void store_ranks(const chunk *c, float *to, int64_t pitch, int64_t step, matrix from, int64_t cols) {
    for (int64_t t = 0, i = 0; t < c->tokens; t++)
        for (int64_t r = 0; r < c->rank; r++, i++)
            for (int64_t j = 0; j < cols; j += KR_LANES)
                kr_v_store_n(to + t * pitch + r * step + j, kr_v_load(from.at + i * from.pitch + j), cols - j);
}

/// mimo_x of one head, rank and 16 channels; ones where absent.
KR_INLINE kr_vf mimo_of(const trapezoid *s, int64_t head, int64_t r, int64_t j) {
    const int64_t p = s->size.width;
    return s->mimo ? kr_v_load_n(s->mimo + (head * s->size.rank + r) * p + j, p - j) : kr_v_set(1);
}

/// v = x mimo_x for `tokens` tokens of one head.
static void load_values(const trapezoid *s, matrix to, const float *x, int64_t pitch, int64_t tokens, int64_t head) {
    const int64_t p = s->size.width, rank = s->size.rank;
    for (int64_t j = 0; j < p; j += KR_LANES)
        for (int64_t r = 0; r < rank; r++) {
            const kr_vf mimo = mimo_of(s, head, r, j);
            for (int64_t t = 0; t < tokens; t++)
                kr_v_store(to.at + (t * rank + r) * to.pitch + j, mimo * kr_v_load_n(x + t * pitch + j, p - j));
        }
    for (int64_t i = tokens * rank; i < kr_round_up(tokens * rank, KR_LANES); i++)
        clear(to.at + i * to.pitch, kr_round_up(p, KR_LANES));
}

/// Asks for what a head reads of one chunk.
static void want_head(const trapezoid *s, const chunk *c, int64_t row, int64_t head) {
    const int64_t n = s->size.rank * s->size.states, p = s->size.width;
    want(c->ahead, s->x.at + row * s->x.pitch + head * p, s->x.pitch, c->tokens, p);
    want(c->ahead, s->q.at + row * s->q.pitch + head * n, s->q.pitch, c->tokens, n);
    want(c->ahead, s->k.at + row * s->k.pitch + head * n, s->k.pitch, c->tokens, n);
}

static void load_group(const trapezoid *s, const chunk *c, int64_t row, int64_t head) {
    const int64_t n = s->size.states, column = head * s->size.rank * n;
    load_ranks(c, c->k, s->k.at + row * s->k.pitch + column, s->k.pitch, n, n);
    load_ranks(c, c->q, s->q.at + row * s->q.pitch + column, s->q.pitch, n, n);
}

/// What of token `t` of the batch row waits for it to come: omega, or zero where it starts a document or is not there.
static float omega_of(const trapezoid *s, place at, int64_t t) {
    if (t >= s->size.length || (s->reset && s->reset[at.row + t] > 0)) return 0;
    const float lambda = kr_v_sigmoid(kr_v_set(s->trap.at[(at.row + t) * s->trap.pitch + at.head]))[0];
    return (1 - lambda) * s->dt.at[(at.row + t) * s->dt.pitch + at.head];
}

/// Sets decay, ghat and gamma of the chunk from token `first`; spare[0] gets dt and spare[1] lambda.
static void load_steps(const trapezoid *s, chunk *c, place at, int64_t first) {
    const int64_t n = c->tokens, row = at.row + first;
    float *dt = c->spare[0], *lambda = c->spare[1];
    for (int64_t t = 0; t < n; t++) {
        c->decay[t] = s->adt.at[(row + t) * s->adt.pitch + at.head];
        dt[t] = s->dt.at[(row + t) * s->dt.pitch + at.head];
        lambda[t] = s->trap.at[(row + t) * s->trap.pitch + at.head];
    }
    for (int64_t t = 0; t < n; t += KR_LANES) {
        kr_v_store(c->decay + t, kr_v_exp(kr_v_load(c->decay + t)));
        kr_v_store(lambda + t, kr_v_sigmoid(kr_v_load(lambda + t)));
    }
    float omega = omega_of(s, at, first + n);
    for (int64_t t = n - 1; t >= 0; t--) {
        const float gamma = lambda[t] * dt[t];
        for (int64_t r = 0; r < c->rank; r++) {
            c->gamma[t * c->rank + r] = gamma;
            c->ghat[t * c->rank + r] = gamma + omega;
        }
        const bool fresh = s->reset && s->reset[row + t] > 0;
        omega = fresh ? 0 : (1 - lambda[t]) * dt[t];
        if (fresh) c->decay[t] = 0;
    }
    chunk_resize(c, n);
}

/// Keys [rank, states] and values [rank, width] of the token before the first.
static void load_before(const trapezoid *s, place at, matrix keys, matrix values) {
    const kr_chunk_size *z = &s->size;
    load_matrix(keys, s->k0 + (at.b * z->rank * z->heads + at.head) * z->states, z->heads * z->states, z->rank, z->states);
    load_values(s, values, s->v0 + (at.b * z->heads + at.head) * z->width, 0, 1, at.head);
}

/// The state before the first token, with what is pending from the token before it. Gives false where it is zero.
static bool load_state(const trapezoid *s, const chunk *c, place at, const float *h0, matrix state) {
    const kr_chunk_size *z = &s->size;
    const float *from = h0 ? h0 + (at.b * z->heads + at.head) * z->states * z->width : 0;
    if (from) transpose(from, z->states, z->width, z->states, state, true);
    else clear_matrix(state, z->states, z->width);
    if (!s->k0 || !z->length) return from != 0;
    const float omega = omega_of(s, at, 0);
    load_before(s, at, c->k, c->scaled_v);
    for (int64_t r = 0; r < z->rank; r++) c->scale[r] = omega;
    scale_rows(c->scaled_v, c->scaled_v, c->scale, z->rank, z->width);
    multiply(&(product){FULL, 1, z->states, z->width, z->rank, c->k, c->scaled_v, state, true, .from = state, .times = 1});
    return true;
}

static void store_output(const trapezoid *s, const chunk *c, place at, int64_t first, sink out) {
    const int64_t p = s->size.width;
    const kr_vf D = kr_v_set(s->D ? s->D[at.head] : 0);
    for (int64_t t = 0, i = 0; t < c->tokens; t++)
        for (int64_t r = 0; r < c->rank; r++, i++) {
            float *to = out.at + (at.row + first + t) * out.pitch + (r * s->size.heads + at.head) * p;
            for (int64_t j = 0; j < p; j += KR_LANES)
                kr_v_store_n(to + j, kr_v_load(c->y.at + i * c->y.pitch + j) + D * kr_v_load(c->v.at + i * c->v.pitch + j), p - j);
        }
}

static void copy_or_clear(float *to, const float *from, int64_t floats) {
    for (int64_t i = 0; i < floats; i += KR_LANES)
        kr_v_store_n(to + i, from ? kr_v_load_n(from + i, floats - i) : kr_v_set(0), floats - i);
}

/// The last key (of each rank) and the last x, or what came in where there is no token. Before anything is overwritten
/// in place, but after k0 and v0 were read.
static void store_last(const trapezoid *s, place at, const float *k0, const float *v0, float *k_last, float *v_last) {
    const kr_chunk_size *z = &s->size;
    const int64_t n = z->states, p = z->width, row = at.row + z->length - 1;
    for (int64_t r = 0; r < z->rank && k_last; r++) {
        const int64_t to = ((at.b * z->rank + r) * z->heads + at.head) * n;
        const float *key = z->length ? s->k.at + row * s->k.pitch + (at.head * z->rank + r) * n : k0 ? k0 + to : 0;
        copy_or_clear(k_last + to, key, n);
    }
    const int64_t to = (at.b * z->heads + at.head) * p;
    const float *value = z->length ? s->x.at + row * s->x.pitch + at.head * p : v0 ? v0 + to : 0;
    if (v_last) copy_or_clear(v_last + to, value, p);
}

/// in: k, q, x, adt, dt, trap, mimo_x, D, h0, k0, v0, reset; out: o, h_last, k_last, v_last, saved.
static void forward_unit(const trapezoid *s, const kr_call *call, chunk *c, int64_t unit) {
    const kr_chunk_size *z = &s->size;
    const int64_t n = z->states, p = z->width, floats = n * p;
    float *last = call->out[1].data, *saved = call->out[4].data;
    const sink out = sink_of(&call->out[0]);
    bool fresh = true;
    EACH_HEAD(z, unit, at) {
        fresh = !load_state(s, c, at, call->in[8].data, state_at(z, c, at, false));
        store_last(s, at, call->in[9].data, call->in[10].data, call->out[2].data, call->out[3].data);
    }
    for (int64_t i = 0; i < z->chunks; i++) {
        const int64_t first = i * z->chunk;
        const bool ends = i + 1 == z->chunks;
        chunk_resize(c, ends ? z->length - first : z->chunk);
        EACH_HEAD(z, unit, at) {
            const int64_t row = at.row + first;
            const matrix state = state_at(z, c, at, false);
            const bool wraps = at.head + 1 == at.first_head + z->block || at.head + 1 == z->heads;
            c->ahead->count = 0;
            if (!wraps || !ends) want_head(s, c, row + (wraps ? z->chunk : 0), wraps ? at.first_head : at.head + 1);
            if (saved && i + 1 + wraps < z->chunks)
                want(c->ahead, saved + ((at.b * z->chunks + i + 1 + wraps) * z->heads + (wraps ? at.first_head : at.head + 1)) * floats,
                     0, 1, floats);
            for (int64_t r = 0; r < z->rank; r++)
                want(c->ahead, out.at + row * out.pitch + (r * z->heads + at.head) * p, out.pitch, c->tokens, p);
            load_group(s, c, row, at.head);
            chunk_scores(c);
            load_steps(s, c, at, first);
            load_values(s, c->v, s->x.at + row * s->x.pitch + at.head * p, s->x.pitch, c->tokens, at.head);
            float *save = saved ? saved + ((at.b * z->chunks + i) * z->heads + at.head) * floats : 0;
            chunk_forward(c, pass_state(c, state, save, z->heads * floats, !i, ends), !i && fresh, !ends || last);
            store_output(s, c, at, first, out);
        }
    }
    EACH_HEAD(z, unit, at) {
        const matrix state = state_at(z, c, at, false);
        if (last) transpose(state.at, state.pitch, n, p, (matrix){last + (at.b * z->heads + at.head) * floats, n}, false);
    }
}

/// The same for a single token.
static void forward_token(const trapezoid *s, const kr_call *call, chunk *c, int64_t unit) {
    const kr_chunk_size *z = &s->size;
    const int64_t p = z->width, floats = z->states * p, rank = z->rank;
    const float *h0 = call->in[8].data;
    float *last = call->out[1].data;
    chunk_resize(c, 1);
    EACH_HEAD(z, unit, at) {
        const int64_t state = (at.b * z->heads + at.head) * floats;
        load_group(s, c, at.row, at.head);
        load_steps(s, c, at, 0);
        load_values(s, c->v, s->x.at + at.row * s->x.pitch + at.head * p, s->x.pitch, 1, at.head);
        scale_rows(c->scaled_v, c->v, c->gamma, rank, p);
        if (s->k0) {
            const matrix keys = {c->k.at + rank * c->k.pitch, c->k.pitch};
            const matrix values = {c->scaled_v.at + rank * c->scaled_v.pitch, c->scaled_v.pitch};
            load_before(s, at, keys, values);
            for (int64_t r = 0; r < rank; r++) c->scale[r] = c->decay[0] * omega_of(s, at, 0);
            scale_rows(values, values, c->scale, rank, p);
        }
        store_last(s, at, call->in[9].data, call->in[10].data, call->out[2].data, call->out[3].data);
        chunk_step(c, h0 ? h0 + state : 0, last ? last + state : 0, c->decay[0], s->k0 ? 2 * rank : rank);
        store_output(s, c, at, 0, sink_of(&call->out[0]));
    }
}

KR_KERNEL(trapezoid_scan) {
    const trapezoid s = trapezoid_of(call->attrs, call->in, &call->in[9], &call->in[10], &call->in[11]);
    const kr_chunk_layout layout = kr_chunk_arrange(&s.size, false);
    EACH_UNIT(&s.size, {
        chunk c = chunk_of(&s.size, &layout, (float *)call->work + slot * layout.floats);
        prefetch ahead = {.count = 0};
        c.ahead = &ahead;
        chunk_start(&c, &s.size, false);
        for (int64_t unit = begin; unit < end; unit++) {
            if (s.size.length == 1 && !call->out[4].data) forward_token(&s, call, &c, unit);
            else forward_unit(&s, call, &c, unit);
        }
    });
}

// Backward ----------------------------------------------------------------------------------------------------------

enum { DOUT, DH_LAST, DK_LAST, DV_LAST, K, Q, X, ADT, DT, TRAP, MIMO_X, SKIP, K0, V0, RESET, SAVED };
enum { DK, DQ, DX, DADT, DDT, DTRAP, DMIMO_X, DSKIP, DH0, DK0, DV0 };

/// dx, and the sums dD and dmimo_x: rows [width] of `sums`.
static void store_values(const trapezoid *s, const kr_call *call, const chunk *c, place at, int64_t first, float *sums) {
    const kr_chunk_size *z = &s->size;
    const int64_t p = z->width, row = at.row + first, pitch = z->width_pitch;
    const kr_vf D = kr_v_set(s->D ? s->D[at.head] : 0);
    const sink dx = sink_of(&call->out[DX]);
    const float *dv_last = call->in[DV_LAST].data;
    for (int64_t j = 0; j < p; j += KR_LANES)
        for (int64_t t = 0; t < c->tokens; t++) {
            const kr_vf x = kr_v_load_n(s->x.at + (row + t) * s->x.pitch + at.head * p + j, p - j);
            kr_vf dxt = kr_v_set(0), dD = kr_v_load(sums + j);
            if (dv_last && first + t + 1 == z->length) dxt = kr_v_load_n(dv_last + (at.b * z->heads + at.head) * p + j, p - j);
            for (int64_t r = 0; r < c->rank; r++) {
                const int64_t i = t * c->rank + r;
                const kr_vf dy = kr_v_load(c->dy.at + i * c->dy.pitch + j);
                const kr_vf dv = kr_v_load(c->dv.at + i * c->dv.pitch + j) + D * dy;
                float *dmimo = sums + (1 + r) * pitch + j;
                dD += dy * kr_v_load(c->v.at + i * c->v.pitch + j);
                dxt += dv * mimo_of(s, at.head, r, j);
                kr_v_store(dmimo, kr_v_load(dmimo) + dv * x);
            }
            kr_v_store(sums + j, dD);
            if (dx.at) kr_v_store_n(dx.at + (row + t) * dx.pitch + at.head * p + j, dxt, p - j);
        }
}

/// A token whose dgamma is known: its domega comes from the token before it, which may be in the chunk before.
typedef struct pending {
    float lambda, dt, dgamma;
    int64_t row;
    bool fresh;
} pending;

static void store_step(const kr_call *call, place at, pending t, float domega) {
    const sink ddt = sink_of(&call->out[DDT]), dtrap = sink_of(&call->out[DTRAP]);
    if (t.fresh) domega = 0;
    if (ddt.at) ddt.at[t.row * ddt.pitch + at.head] = t.lambda * t.dgamma + (1 - t.lambda) * domega;
    if (dtrap.at) dtrap.at[t.row * dtrap.pitch + at.head] = t.dt * (t.dgamma - domega) * t.lambda * (1 - t.lambda);
}

/// Steps of the chunk; `next` is the token after it on the way in, and its first token on the way out.
static void store_steps(const trapezoid *s, const kr_call *call, const chunk *c, place at, int64_t first, pending *next) {
    const sink dadt = sink_of(&call->out[DADT]);
    for (int64_t t = c->tokens - 1; t >= 0; t--) {
        const int64_t row = at.row + first + t;
        if (first + t + 1 < s->size.length) store_step(call, at, *next, c->dghat[t]);
        *next = (pending){c->spare[1][t], c->spare[0][t], c->dgamma[t] + c->dghat[t], row, s->reset && s->reset[row] > 0};
        if (dadt.at) dadt.at[row * dadt.pitch + at.head] = c->da[t];
    }
}

/// Where the chunks end: the gradients of h0, k0 and v0, and domega of the first token.
static void store_before(const trapezoid *s, const kr_call *call, const chunk *c, place at, const pending *first, float *sums) {
    const kr_chunk_size *z = &s->size;
    const int64_t n = z->states, p = z->width, head = at.b * z->heads + at.head;
    const matrix adjoint = state_at(z, c, at, true);
    float *dh0 = call->out[DH0].data, *dk0 = call->out[DK0].data, *dv0 = call->out[DV0].data, domega = 0, omega = 0;
    const float *dk_last = call->in[DK_LAST].data, *dv_last = call->in[DV_LAST].data;
    const bool before = s->k0 && z->length, through = !z->length;
    if (dh0) store_matrix(dh0 + head * n * p, n, adjoint, p, n);
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
    if (z->length) store_step(call, at, *first, domega);
    const kr_vf scale = kr_v_set(omega);
    for (int64_t r = 0; r < z->rank && dk0; r++)
        for (int64_t j = 0; j < n; j += KR_LANES) {
            const int64_t to = ((at.b * z->rank + r) * z->heads + at.head) * n + j;
            kr_vf x = before ? scale * kr_v_load(c->dk.at + r * c->dk.pitch + j) : kr_v_set(0);
            if (through && dk_last) x = kr_v_load_n(dk_last + to, n - j);
            kr_v_store_n(dk0 + to, x, n - j);
        }
    for (int64_t j = 0; j < p; j += KR_LANES) {
        const kr_vf value = before ? kr_v_load_n(s->v0 + head * p + j, p - j) : kr_v_set(0);
        kr_vf x = through && dv_last ? kr_v_load_n(dv_last + head * p + j, p - j) : kr_v_set(0);
        for (int64_t r = 0; r < z->rank && before; r++) {
            const kr_vf dv = scale * kr_v_load(c->dv.at + r * c->dv.pitch + j);
            float *dmimo = sums + (1 + r) * z->width_pitch + j;
            kr_v_store(dmimo, kr_v_load(dmimo) + dv * value);
            x += dv * mimo_of(s, at.head, r, j);
        }
        if (dv0) kr_v_store_n(dv0 + head * p + j, x, p - j);
    }
}

/// Asks for what this head writes of the chunk, and for what the next head reads.
static void want_backward(const trapezoid *s, const kr_call *call, const chunk *c, place at, int64_t i) {
    const kr_chunk_size *z = &s->size;
    const bool wraps = at.head + 1 == at.first_head + z->block || at.head + 1 == z->heads;
    const int64_t head = wraps ? at.first_head : at.head + 1, next = wraps ? i - 1 : i, n = z->rank * z->states, p = z->width;
    const int64_t row = at.row + i * z->chunk, next_row = at.row + next * z->chunk;
    const source dout = source_of(&call->in[DOUT]);
    const sink dk = sink_of(&call->out[DK]), dq = sink_of(&call->out[DQ]), dx = sink_of(&call->out[DX]);
    c->ahead->count = 0;
    if (next >= 0) {
        want(c->ahead, (const float *)call->in[SAVED].data + ((at.b * z->chunks + next) * z->heads + head) * z->states * p, 0, 1,
             z->states * p);
        if (dout.at)
            for (int64_t r = 0; r < z->rank; r++)
                want(c->ahead, dout.at + next_row * dout.pitch + (r * z->heads + head) * p, dout.pitch, c->tokens, p);
        want_head(s, c, next_row, head);
    }
    if (dx.at) want(c->ahead, dx.at + row * dx.pitch + at.head * p, dx.pitch, c->tokens, p);
    if (dq.at) want(c->ahead, dq.at + row * dq.pitch + at.head * n, dq.pitch, c->tokens, n);
    if (dk.at) want(c->ahead, dk.at + row * dk.pitch + at.head * n, dk.pitch, c->tokens, n);
}

/// One head over one chunk; `sums` are the head's.
static void backward_chunk(const trapezoid *s, const kr_call *call, chunk *c, place at, int64_t i, pending *next, float *sums) {
    const kr_chunk_size *z = &s->size;
    const int64_t n = z->states, p = z->width, first = i * z->chunk, row = at.row + first, column = at.head * z->rank * n;
    const source dout = source_of(&call->in[DOUT]);
    const float *dk_last = call->in[DK_LAST].data;
    float *saved = call->in[SAVED].data;
    const sink dk = sink_of(&call->out[DK]), dq = sink_of(&call->out[DQ]);
    const bool ends = i + 1 == z->chunks;
    const bool fresh = !i && call->attrs->i[ZERO_START] && !call->out[DH0].data && !s->k0;
    want_backward(s, call, c, at, i);
    load_group(s, c, row, at.head);
    chunk_scores(c);
    load_steps(s, c, at, first);
    load_values(s, c->v, s->x.at + row * s->x.pitch + at.head * p, s->x.pitch, c->tokens, at.head);
    if (dout.at) load_ranks(c, c->dy, dout.at + row * dout.pitch + at.head * p, dout.pitch, z->heads * p, p);
    else clear_matrix(c->dy, c->rows, p);
    if (!fresh) c->start = saved_state(c, saved + ((at.b * z->chunks + i) * z->heads + at.head) * n * p);
    c->dq_set = c->dk_set = false;
    chunk_backward(c, state_at(z, c, at, true), fresh, ends && !call->in[DH_LAST].data, false);
    for (int64_t r = 0; r < z->rank && ends && dk_last; r++)
        for (int64_t j = 0; j < n; j += KR_LANES) {
            float *to = c->dk.at + (c->rows - z->rank + r) * c->dk.pitch + j;
            kr_v_store(to, kr_v_load(to) + kr_v_load_n(dk_last + ((at.b * z->rank + r) * z->heads + at.head) * n + j, n - j));
        }
    if (dk.at) store_ranks(c, dk.at + row * dk.pitch + column, dk.pitch, n, c->dk, n);
    if (dq.at) store_ranks(c, dq.at + row * dq.pitch + column, dq.pitch, n, c->dq, n);
    store_values(s, call, c, at, first, sums + KR_LANES);
    store_steps(s, call, c, at, first, next);
}

static void backward_unit(const trapezoid *s, const kr_call *call, chunk *c, int64_t unit, float *sums) {
    const kr_chunk_size *z = &s->size;
    const int64_t n = z->states, p = z->width;
    const float *dh_last = call->in[DH_LAST].data;
    pending next[KR_CHUNK_BLOCK] = {{0}};
    EACH_HEAD(z, unit, at) {
        const int64_t head = at.b * z->heads + at.head;
        const matrix adjoint = state_at(z, c, at, true);
        clear(sums + head * kr_chunk_sums(z), kr_chunk_sums(z));
        clear_matrix(adjoint, p, n);
        if (dh_last) load_matrix(adjoint, dh_last + head * n * p, n, p, n);
    }
    for (int64_t i = z->chunks - 1; i >= 0; i--) {
        chunk_resize(c, i + 1 == z->chunks ? z->length - i * z->chunk : z->chunk);
        EACH_HEAD(z, unit, at)
            backward_chunk(s, call, c, at, i, &next[at.head - at.first_head], sums + (at.b * z->heads + at.head) * kr_chunk_sums(z));
    }
    EACH_HEAD(z, unit, at)
        store_before(s, call, c, at, &next[at.head - at.first_head], sums + (at.b * z->heads + at.head) * kr_chunk_sums(z) + KR_LANES);
}

KR_KERNEL(trapezoid_scan_grad) {
    const trapezoid s = trapezoid_of(call->attrs, call->in + K, &call->in[K0], &call->in[V0], &call->in[RESET]);
    const kr_chunk_layout layout = kr_chunk_arrange(&s.size, true);
    float *work = call->work, *sums = work + kr_chunk_sums_at(&s.size, &layout);
    EACH_UNIT(&s.size, {
        chunk c = chunk_of(&s.size, &layout, work + slot * layout.floats);
        prefetch ahead = {.count = 0};
        c.ahead = &ahead;
        chunk_start(&c, &s.size, true);
        for (int64_t unit = begin; unit < end; unit++) backward_unit(&s, call, &c, unit, sums);
    });
}

/// dD and dmimo_x: sums over the batch.
KR_KERNEL(trapezoid_scan_grad_sum) {
    const trapezoid s = trapezoid_of(call->attrs, call->in + K, &call->in[K0], &call->in[V0], &call->in[RESET]);
    const kr_chunk_size *z = &s.size;
    const kr_chunk_layout layout = kr_chunk_arrange(z, true);
    const float *sums = (const float *)call->work + kr_chunk_sums_at(z, &layout) + KR_LANES;
    const int64_t step = kr_chunk_sums(z), p = z->width;
    float *dD = call->out[DSKIP].data, *dmimo = call->out[DMIMO_X].data;
    int64_t begin, end;
    kr_share(z->heads, part, parts, &begin, &end);
    for (int64_t head = begin; head < end; head++)
        for (int64_t r = 0; r <= z->rank; r++) {
            float total = 0;
            for (int64_t j = 0; j < p; j += KR_LANES) {
                kr_vf sum = kr_v_set(0);
                for (int64_t b = 0; b < z->batch; b++)
                    sum += kr_v_load(sums + (b * z->heads + head) * step + r * z->width_pitch + j);
                if (!r) total += kr_v_sum(sum);
                else if (dmimo && s.mimo) kr_v_store_n(dmimo + (head * z->rank + r - 1) * p + j, sum, p - j);
            }
            if (!r && dD && s.D) dD[head] = total;
        }
}
