/// The gradient of Mamba-3's scan on the CPU (cpu_chunk.h says how the rule fits into chunks).
///
/// A unit takes the chunks from last to first, from the states and angles that the forward pass saved. Where keys
/// rotate,
/// what comes out for the rotated ones is rotated back at once (cpu_rotate_back.h). Sums over the heads of a unit are
/// made in its scratch; a second stage adds those of several units, and the sums over the batch, in one order.
///
/// A gate needs what it was applied to: with o = y silu(z), dz = do y silu'(z) = do o (1/z + 1 - sigmoid(z)), which
/// spares making y again as long as no z is so near 0 that o has lost it.
#include "ops/trapezoid/cpu_engine_backward.h"
#include "ops/trapezoid/cpu_chunk.h"
#include "ops/trapezoid/cpu_sums.h"
#include "ops/trapezoid/cpu_rotate_back.h"

static void store_ranks(const chunk *c, float *to, int64_t pitch, int64_t step, matrix from, int64_t cols) {
    for (int64_t t = 0, i = 0; t < c->tokens; t++)
        for (int64_t r = 0; r < c->rank; r++, i++)
            for (int64_t j = 0; j < cols; j += KR_LANES)
                kr_v_store_n(to + t * pitch + r * step + j, kr_v_load(from.at + i * from.pitch + j), cols - j);
}

/// 16 columns of dy = dout silu(z), of which `left` exist, and of dz (may be null). Gives the lanes with a z too near
/// 0.
KR_INLINE kr_vi gate_columns(source dout, source gate, source out, sink dz, matrix dy, int64_t tokens,
                             const int64_t left) {
    const kr_vf least = kr_v_set(1e-18f), lowest = kr_v_set(-80), one = kr_v_set(1); // silu is 0 in any sum below -80
    kr_vi small = kr_v_seti(0);
    for (int64_t t = 0; t < tokens; t++) {
        const kr_vf z = kr_v_load_n(gate.at + t * gate.pitch, left), from = kr_v_load_n(dout.at + t * dout.pitch, left);
        const kr_vi lost = kr_v_abs(z) < least;
        const kr_vf x = kr_v_max(kr_v_select(lost, least, z), lowest), over = one + kr_v_exp(-x);
        const kr_vf r = one / (x * over), open = x * r; // open is the sigmoid, over * r is 1 / x
        small |= lost;
        kr_v_store(dy.at + t * dy.pitch, from * open * z);
        if (!dz.at) continue;
        const kr_vf y = kr_v_load_n(out.at + t * out.pitch, left);
        kr_v_store_n(dz.at + t * dz.pitch, from * y * (over * r + (one - open)), left);
    }
    return small;
}

/// dy = dout silu(z), and dz from the output. False: a z is too near 0 for that, store_gate must come.
static bool load_dy(const backward *d, const chunk *c, place at, int64_t row) {
    const trapezoid *s = &d->s;
    const int64_t p = s->size.width;
    int32_t any = 0;
    for (int64_t i = c->rows; i < kr_round_up(c->rows, KR_LANES); i++) clear(c->dy.at + i * c->dy.pitch, p);
    if (!d->dout.at) clear_matrix(c->dy, c->rows, p);
    else if (!s->z.at)
        load_ranks(c, c->dy, d->dout.at + row * d->dout.pitch + at.head * p, d->dout.pitch, s->size.heads * p, p);
    for (int64_t j = 0; j < p && s->z.at && d->dout.at; j += KR_LANES) {
        const int64_t n = at.head * p + j;
        const source dout = {d->dout.at + row * d->dout.pitch + n, d->dout.pitch};
        const source z = {s->z.at + row * s->z.pitch + n, s->z.pitch},
                     out = {d->out.at + row * d->out.pitch + n, d->out.pitch};
        const sink dz = {d->dz.at ? d->dz.at + row * d->dz.pitch + n : 0, d->dz.pitch};
        const matrix dy = {c->dy.at + j, c->dy.pitch};
        prefetch_next(c->ahead);
        const kr_vi small = p - j >= KR_LANES ? gate_columns(dout, z, out, dz, dy, c->tokens, KR_LANES)
                                              : gate_columns(dout, z, out, dz, dy, c->tokens, p - j);
        for (int l = 0; l < KR_LANES && l < p - j; l++) any |= small[l];
    }
    return !any && d->dout.at;
}

/// dz from y, which has D v in it.
static void store_gate(const backward *d, const chunk *c, place at, int64_t row) {
    const int64_t p = d->s.size.width;
    for (int64_t t = 0; t < c->tokens; t++)
        for (int64_t j = 0; j < p; j += KR_LANES) {
            const int64_t column = at.head * p + j;
            const kr_vf x = kr_v_load_n(d->s.z.at + (row + t) * d->s.z.pitch + column, p - j), open = kr_v_sigmoid(x);
            const kr_vf dout = d->dout.at ? kr_v_load_n(d->dout.at + (row + t) * d->dout.pitch + column, p - j)
                                          : kr_v_set(0);
            kr_v_store_n(d->dz.at + (row + t) * d->dz.pitch + column,
                         dout * kr_v_load(c->y.at + t * c->y.pitch + j) * open *
                             (kr_v_set(1) + x * (kr_v_set(1) - open)),
                         p - j);
        }
}

/// dx, and the sums of dmimo_x.
static void store_values(const backward *d, const chunk *c, place at, int64_t first, float *sums) {
    const trapezoid *s = &d->s;
    const int64_t p = s->size.width, row = at.row + first, rank = c->rank, tokens = c->tokens, pitch = s->x.pitch;
    const int64_t step = c->dv.pitch;
    for (int64_t j = 0; j < p; j += KR_LANES) {
        const float *x = s->x.at + row * pitch + at.head * p + j;
        float *dv = c->dv.at + j;
        for (int64_t r = 0; r < rank && s->mimo; r++) { // dx = sum_r mimo_x_r dv_r comes to lie in the row of r = 0
            const kr_vf mimo = mimo_of(s, at.head, r, j);
            float *dmimo = sums + kr_trapezoid_mimo_at(&s->size, r) + j;
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
            kr_v_store(last,
                       kr_v_load(last) + kr_v_load_n(d->dv_last + (at.b * s->size.heads + at.head) * p + j, p - j));
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
    if (d->dtrap.at)
        d->dtrap.at[t.row * d->dtrap.pitch + at.head] = t.dt * (t.dgamma - domega) * t.lambda * (1 - t.lambda);
}

/// Element t of `from` to the row of token t, for tokens first .. count - 1.
static void scatter(sink to, place at, int64_t row, const float *from, int64_t first, int64_t count) {
    if (!to.at) return;
    float *put = to.at + (row + first) * to.pitch + at.head;
    for (int64_t t = first; t < count; t++, put += to.pitch) *put = from[t];
}

/// Steps of the chunk; `next` is the token after it on the way in, and its first token on the way out.
static void store_steps(const backward *d, const chunk *c, place at, int64_t first, const float *angles,
                        pending *next) {
    const int64_t row = at.row + first, tokens = c->tokens;
    const float *lambdas = c->spare[1], *dts = c->spare[0];
    float *domega = c->column, *ddt = c->diagonal, *dtrap = c->rho; // whose sums are taken
    if (first + tokens < d->s.size.length) store_step(d, at, *next, c->dghat[tokens - 1]);
    domega[0] = 0; // the token before knows
    for (int64_t t = 1; t < tokens; t++) domega[t] = is_reset(&d->s, row + t) ? 0 : c->dghat[t - 1];
    for (int64_t t = 0; t < tokens; t += KR_LANES) {
        const kr_vf lambda = kr_v_load(lambdas + t), rest = kr_v_set(1) - lambda, later = kr_v_load(domega + t);
        const kr_vf dgamma = kr_v_load(c->dgamma + t) + kr_v_load(c->dghat + t);
        kr_v_store(c->dgamma + t, dgamma);
        kr_v_store(ddt + t, lambda * dgamma + rest * later + kr_v_load(angles + t));
        kr_v_store(dtrap + t, kr_v_load(dts + t) * (dgamma - later) * (lambda * rest));
    }
    scatter(d->ddt, at, row, ddt, 1, tokens);
    scatter(d->dtrap, at, row, dtrap, 1, tokens);
    scatter(d->dadt, at, row, c->da, 0, tokens);
    *next = (pending){lambdas[0], dts[0], c->dgamma[0], angles[0], row, is_reset(&d->s, row)};
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
        load_before(s, c, at, c->k, c->scaled_v);
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
            float *dmimo = sums + kr_trapezoid_mimo_at(z, r) + j;
            kr_v_store(dmimo, kr_v_load(dmimo) + dv * value);
            x += dv * mimo_of(s, at.head, r, j);
        }
        if (d->dv0) kr_v_store_n(d->dv0 + head * p + j, x, p - j);
    }
}

/// Where a unit's sums over heads go: rank r of token t of dK and dQ is at[k] + t * pitch[k] + r * step[k].
typedef struct shared {
    float *at[2], *dang;
    int64_t pitch[2], step[2], dang_pitch;
} shared;

static shared shared_of(const backward *d, int64_t unit, place at) {
    const kr_chunk_size *z = &d->s.size;
    const int64_t n = z->states, keys = kr_trapezoid_keys(z);
    if (d->s.rotate.parts > 1) {
        float *mine = d->shares + unit * kr_trapezoid_share(z, &d->s.rotate);
        return (shared){{mine, mine + keys}, mine + 2 * keys, {z->rank * n, z->rank * n}, {n, n}, d->s.rotate.pairs};
    }
    shared to = {.dang = d->dang.at ? d->dang.at + at.row * d->dang.pitch : 0, .dang_pitch = d->dang.pitch};
    for (int k = 0; k < 2; k++) {
        to.at[k] = d->dkeys[k].at ? d->dkeys[k].at + at.row * d->dkeys[k].pitch + at.group * n : 0;
        to.pitch[k] = d->dkeys[k].pitch;
        to.step[k] = z->groups * n;
    }
    return to;
}

static void store_shared(const backward *d, const chunk *c, const rotation *w, const shared *to, int64_t first) {
    for (int k = 0; k < 2; k++)
        if (to->at[k])
            store_ranks(c, to->at[k] + first * to->pitch[k], to->pitch[k], to->step[k], w->sums[k], d->s.size.states);
    if (to->dang && !d->s.own_angles)
        store_matrix(to->dang + first * to->dang_pitch, to->dang_pitch, (matrix){w->dang, w->pitch}, c->tokens,
                     d->s.rotate.pairs);
}

// Chunks ------------------------------------------------------------------------------------------------------------

/// Prefetches what this head writes of the chunk, and for what the next head reads.
static void prefetch_backward(const backward *d, const chunk *c, place at, int64_t i) {
    const trapezoid *s = &d->s;
    const kr_chunk_size *z = &s->size;
    const bool wraps = last_of_unit(at);
    const int64_t head = wraps ? at.first_head : at.head + 1, next = wraps ? i - 1 : i, p = z->width;
    const int64_t row = at.row + i * z->chunk, next_row = at.row + next * z->chunk;
    c->ahead->count = 0;
    if (next >= 0) {
        prefetch_rows(c->ahead, d->saved + ((at.b * z->chunks + next) * z->heads + head) * z->states * p, 0, 1,
                      z->states * p);
        if (d->dout.at)
            for (int64_t r = 0; r < z->rank; r++)
                prefetch_rows(c->ahead, d->dout.at + next_row * d->dout.pitch + (r * z->heads + head) * p,
                              d->dout.pitch, c->tokens, p);
        prefetch_head(s, c, next_row, at, head);
    }
    if (d->out.at && next >= 0)
        prefetch_rows(c->ahead, d->out.at + next_row * d->out.pitch + head * p, d->out.pitch, c->tokens, p);
    if (d->dz.at) prefetch_rows(c->ahead, d->dz.at + row * d->dz.pitch + at.head * p, d->dz.pitch, c->tokens, p);
    if (d->dx.at) prefetch_rows(c->ahead, d->dx.at + row * d->dx.pitch + at.head * p, d->dx.pitch, c->tokens, p);
    for (int k = 0; k < 2 && !s->rotate.rotates; k++)
        if (d->dkeys[k].at)
            prefetch_rows(c->ahead, d->dkeys[k].at + row * d->dkeys[k].pitch + key_column(s, at, 0), d->dkeys[k].pitch,
                          c->tokens, z->rank * z->states);
}

/// One head over one chunk; `next` and `felt` wait for the chunk before.
static void backward_chunk(const backward *d, chunk *c, const rotation *w, place at, int64_t i, pending *next,
                           float *felt) {
    const trapezoid *s = &d->s;
    const kr_chunk_size *z = &s->size;
    const int64_t n = z->states, p = z->width, first = i * z->chunk, row = at.row + first, pairs = s->rotate.pairs;
    const int64_t chunk_head = (at.b * z->chunks + i) * z->heads + at.head;
    const bool ends = i + 1 == z->chunks, fresh = !i && d->zero_start && !d->dh0 && !s->k0;
    float *sums = sums_of(d, at), *angles = c->spare[2];
    prefetch_backward(d, c, at, i);
    load_steps(s, c, at, first);
    for (int64_t j = 0; j < w->pitch; j++) w->running[j] = j < pairs ? (double)d->angles[chunk_head * pairs + j] : 0;
    load_keys(s, c, w, at, first, w->running);
    trapezoid_scores(c);
    load_values(s, c, c->v, s->x.at + row * s->x.pitch + at.head * p, s->x.pitch, c->tokens, at.head);
    const bool gated = load_dy(d, c, at, row);
    if (!fresh) c->start = saved_state(c, d->saved + chunk_head * n * p);
    c->dq_set = c->dk_set = false;
    c->dskip = sums[0];
    trapezoid_backward(c, state_at(z, c, at, true), fresh, ends && !d->dh_last);
    for (int64_t r = 0; r < z->rank && ends && d->dk_last; r++)
        for (int64_t j = 0; j < n; j += KR_LANES) {
            float *to = c->dk.at + (c->rows - z->rank + r) * c->dk.pitch + j;
            kr_v_store(to, kr_v_load(to) +
                               kr_v_load_n(d->dk_last + ((at.b * z->rank + r) * z->heads + at.head) * n + j, n - j));
        }
    clear(angles, c->tokens);
    if (s->rotate.rotates) {
        rotate_back(d, c, w, at, sums);
        angles_back(d, c, w, at, row, felt, angles);
    }
    for (int k = 0; k < 2 && !s->rotate.rotates; k++)
        if (d->dkeys[k].at)
            store_ranks(c, d->dkeys[k].at + row * d->dkeys[k].pitch + key_column(s, at, 0), d->dkeys[k].pitch, n,
                        k == TRAPEZOID_K ? c->dk : c->dq, n);
    sums[0] = c->dskip;
    if (!gated && d->dz.at) {
        trapezoid_output(c, c->start, fresh);
        store_gate(d, c, at, row);
    }
    store_values(d, c, at, first, sums);
    store_steps(d, c, at, first, angles, next);
}

static void backward_unit(const backward *d, chunk *c, const rotation *w, int64_t unit) {
    const trapezoid *s = &d->s;
    const kr_chunk_size *z = &s->size;
    const int64_t n = z->states, p = z->width, pairs = s->rotate.pairs;
    const place here = place_of(z, unit);
    const shared to = shared_of(d, unit, here);
    pending next[KR_CHUNK_BLOCK] = {{0}};
    EACH_HEAD(z, unit, at) {
        const int64_t head = at.b * z->heads + at.head;
        const matrix adjoint = state_at(z, c, at, true);
        float *felt = w->felt + (at.head - at.first_head) * w->pitch;
        clear(sums_of(d, at), kr_trapezoid_sums(z, &s->rotate));
        clear_matrix(adjoint, p, n);
        if (d->dh_last) load_matrix(adjoint, d->dh_last + head * n * p, n, p, n);
        for (int64_t j = 0; j < w->pitch; j++) felt[j] = d->dtheta && j < pairs ? d->dtheta[head * pairs + j] : 0;
    }
    for (int64_t i = z->chunks - 1; i >= 0; i--) {
        trapezoid_resize(c, i + 1 == z->chunks ? z->length - i * z->chunk : z->chunk);
        EACH_HEAD(z, unit, at)
        backward_chunk(d, c, w, at, i, &next[at.head - at.first_head], w->felt + (at.head - at.first_head) * w->pitch);
        if (s->rotate.rotates && here.first_head < here.head_end) store_shared(d, c, w, &to, i * z->chunk);
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
    const kr_trapezoid_layout layout = kr_trapezoid_arrange(z, true);
    const kr_rotate_layout rotates = kr_rotate_arrange(z, &d.s.rotate, true);
    EACH_UNIT(z, {
        float *base = (float *)call->work + slot * kr_trapezoid_slot(&layout, &rotates);
        chunk c = trapezoid_chunk_of(z, &layout, base);
        const rotation w = rotation_of(z, &d.s.rotate, &rotates, base + layout.floats);
        prefetch ahead = {.count = 0};
        c.ahead = &ahead;
        start_slot(&d.s, &c, true);
        for (int64_t unit = begin; unit < end; unit++) backward_unit(&d, &c, &w, unit);
    });
}

enum { TOKENS = 16 }; // of a unit of the second stage

KR_KERNEL(trapezoid_scan_grad_sum) {
    const backward d = backward_of(call);
    const kr_chunk_size *z = &d.s.size;
    const int64_t pieces = (z->length + TOKENS - 1) / TOKENS,
                  rows = d.s.rotate.rotates && d.s.rotate.parts != 1 ? z->batch * pieces : 0;
    int64_t begin, end;
    kr_share(rows + z->heads, part, parts, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        const int64_t first = i < rows ? i % pieces * TOKENS : 0, left = z->length - first;
        if (i < rows) add_shares(&d, i / pieces, first, left < TOKENS ? left : TOKENS);
        else add_head(&d, i - rows);
    }
}
