/// Mamba-3's scan on the CPU, forward (cpu_chunk.h says how the rule fits into chunks).
#include "ops/trapezoid/cpu_engine_forward.h"
#include "ops/trapezoid/cpu_chunk.h"

typedef struct forward {
    trapezoid s;
    const float *h0, *k0, *v0, *theta0;
    sink out;
    float *h_last, *k_last, *v_last, *theta_last, *saved, *angles;
} forward;

static forward forward_of(const kr_call *call) {
    const kr_arg *in = call->in, *out = call->out;
    return (forward){trapezoid_of(call->attrs, in, &in[TRAPEZOID_K0], &in[TRAPEZOID_V0], &in[TRAPEZOID_RESET]),
                     in[TRAPEZOID_H0].data,
                     in[TRAPEZOID_K0].data,
                     in[TRAPEZOID_V0].data,
                     in[TRAPEZOID_THETA0].data,
                     sink_of(&out[TRAPEZOID_O]),
                     out[TRAPEZOID_H_LAST].data,
                     out[TRAPEZOID_K_LAST].data,
                     out[TRAPEZOID_V_LAST].data,
                     out[TRAPEZOID_THETA_LAST].data,
                     out[TRAPEZOID_SAVED].data,
                     out[TRAPEZOID_ANGLES].data};
}

/// The state before the first token, with what is pending from the token before it. Gives false where it is zero.
static bool load_state(const trapezoid *s, const chunk *c, place at, const float *h0, matrix state) {
    const kr_chunk_size *z = &s->size;
    const float *from = h0 ? h0 + (at.b * z->heads + at.head) * z->states * z->width : 0;
    if (from) transpose(from, z->states, z->width, z->states, state, true);
    else clear_matrix(state, z->states, z->width);
    if (!s->k0 || !z->length) return from != 0;
    const float omega = omega_of(s, at, 0);
    load_before(s, c, at, c->k, c->scaled_v);
    for (int64_t r = 0; r < z->rank; r++) c->scale[r] = omega;
    scale_rows(c->scaled_v, c->scaled_v, c->scale, z->rank, z->width);
    multiply(
        &(product){FULL, 1, z->states, z->width, z->rank, c->k, c->scaled_v, state, true, .from = state, .times = 1});
    return true;
}

/// o = y silu(z), without z o = y, which has D v in it.
static void store_output(const trapezoid *s, const chunk *c, place at, int64_t first, sink out) {
    const int64_t p = s->size.width, heads = s->size.heads, row = at.row + first, step = c->y.pitch, rows = c->rows,
                  rank = c->rank;
    for (int64_t j = 0; j < p; j += KR_LANES) {
        const float *y = c->y.at + j;
        prefetch_next(c->ahead);
        float *to = out.at + row * out.pitch + at.head * p + j;
        const float *z = s->z.at ? s->z.at + row * s->z.pitch + at.head * p + j : 0;
        const int64_t pitch = s->z.pitch;
        if (z) { // one rank
            for (int64_t t = 0; t < rows; t++)
                kr_v_store_n(to + t * out.pitch, kr_v_load(y + t * step) * kr_v_silu(kr_v_load_n(z + t * pitch, p - j)),
                             p - j);
            continue;
        }
        for (int64_t i = 0; i < rows; i++)
            kr_v_store_n(to + i / rank * out.pitch + i % rank * heads * p, kr_v_load(y + i * step), p - j);
    }
}

static void copy_or_clear(float *to, const float *from, int64_t floats) {
    for (int64_t i = 0; i < floats; i += KR_LANES)
        kr_v_store_n(to + i, from ? kr_v_load_n(from + i, floats - i) : kr_v_set(0), floats - i);
}

/// The last key of each rank, as the head wants it, or what came in where there is no token.
static void store_key(const forward *f, const chunk *c, place at) {
    const kr_chunk_size *z = &f->s.size;
    const float *last = c->k.at + (c->rows - z->rank) * c->k.pitch;
    for (int64_t r = 0; r < z->rank && f->k_last; r++) {
        const int64_t to = ((at.b * z->rank + r) * z->heads + at.head) * z->states;
        copy_or_clear(f->k_last + to, z->length ? last + r * c->k.pitch : f->k0 ? f->k0 + to : 0, z->states);
    }
}

/// The last x, or what came in where there is no token.
static void store_value(const forward *f, place at) {
    const kr_chunk_size *z = &f->s.size;
    const source *x = &f->s.x;
    const int64_t p = z->width, to = (at.b * z->heads + at.head) * p;
    const float *value = z->length ? x->at + (at.row + z->length - 1) * x->pitch + at.head * p : f->v0 ? f->v0 + to : 0;
    if (f->v_last) copy_or_clear(f->v_last + to, value, p);
}

/// The angles of a head before the first token.
static void start_angles(const forward *f, place at, double *running) {
    const int64_t pairs = f->s.rotate.pairs;
    const float *theta = f->theta0 ? f->theta0 + (at.b * f->s.size.heads + at.head) * pairs : 0;
    for (int64_t j = 0; j < f->s.rotate.pitch; j += KR_LANES)
        *(kr_vd_unaligned *)(running + j) = kr_v_wrap(
            __builtin_convertvector(theta ? kr_v_load_n(theta + j, pairs - j) : kr_v_set(0), kr_vd));
}

/// The last angles, from 0 to 2 pi.
static void store_angles(const forward *f, place at, const double *running) {
    const int64_t pairs = f->s.rotate.pairs;
    for (int64_t j = 0; j < pairs && f->theta_last; j++) {
        const double theta = kr_v_wrap((kr_vd){running[j]})[0];
        f->theta_last[(at.b * f->s.size.heads + at.head) * pairs + j] = (float)(theta < 0 ? theta + 2 * KR_PI : theta);
    }
}

static double *running_of(const rotation *w, place at) { return w->running + (at.head - at.first_head) * w->pitch; }

/// One head over chunk i.
static void forward_chunk(const forward *f, chunk *c, const rotation *w, place at, int64_t i, bool fresh) {
    const trapezoid *s = &f->s;
    const kr_chunk_size *z = &s->size;
    const int64_t p = z->width, floats = z->states * p, first = i * z->chunk, row = at.row + first,
                  pairs = s->rotate.pairs;
    const int64_t chunk_head = (at.b * z->chunks + i) * z->heads;
    const bool wraps = last_of_unit(at), ends = i + 1 == z->chunks;
    const int64_t next = wraps ? at.first_head : at.head + 1;
    double *running = running_of(w, at);
    c->ahead->count = 0;
    if (f->saved && i + 1 + wraps < z->chunks)
        prefetch_rows(c->ahead, f->saved + (chunk_head + (1 + wraps) * z->heads + next) * floats, 0, 1, floats);
    for (int64_t r = 0; r < z->rank; r++)
        prefetch_rows(c->ahead, f->out.at + row * f->out.pitch + (r * z->heads + at.head) * p, f->out.pitch, c->tokens,
                      p);
    if (!wraps || !ends) prefetch_head(s, c, row + (wraps ? z->chunk : 0), at, next);
    for (int64_t j = 0; j < pairs && f->angles; j++) f->angles[(chunk_head + at.head) * pairs + j] = (float)running[j];
    load_steps(s, c, at, first);
    load_keys(s, c, w, at, first, running);
    trapezoid_scores(c);
    load_values(s, c, c->v, s->x.at + row * s->x.pitch + at.head * p, s->x.pitch, c->tokens, at.head);
    float *save = f->saved ? f->saved + (chunk_head + at.head) * floats : 0;
    trapezoid_forward(c, pass_state(c, state_at(z, c, at, false), save, z->heads * floats, !i, ends), !i && fresh,
                      !ends || f->h_last);
    store_output(s, c, at, first, f->out);
    if (ends) store_key(f, c, at);
}

static void forward_unit(const forward *f, chunk *c, const rotation *w, int64_t unit) {
    const kr_chunk_size *z = &f->s.size;
    const int64_t n = z->states, p = z->width;
    bool fresh = true;
    trapezoid_resize(c, 0);
    EACH_HEAD(z, unit, at) {
        fresh = !load_state(&f->s, c, at, f->h0, state_at(z, c, at, false));
        if (!z->length) store_key(f, c, at);
        store_value(f, at);
        start_angles(f, at, running_of(w, at));
    }
    for (int64_t i = 0; i < z->chunks; i++) {
        trapezoid_resize(c, i + 1 == z->chunks ? z->length - i * z->chunk : z->chunk);
        EACH_HEAD(z, unit, at) forward_chunk(f, c, w, at, i, fresh);
    }
    EACH_HEAD(z, unit, at) {
        const matrix state = state_at(z, c, at, false);
        if (f->h_last)
            transpose(state.at, state.pitch, n, p, (matrix){f->h_last + (at.b * z->heads + at.head) * n * p, n}, false);
        store_angles(f, at, running_of(w, at));
    }
}

/// The same for a single token.
static void forward_token(const forward *f, chunk *c, const rotation *w, int64_t unit) {
    const trapezoid *s = &f->s;
    const kr_chunk_size *z = &s->size;
    const int64_t p = z->width, floats = z->states * p, rank = z->rank;
    trapezoid_resize(c, 1);
    EACH_HEAD(z, unit, at) {
        const int64_t state = (at.b * z->heads + at.head) * floats;
        start_angles(f, at, w->running);
        load_steps(s, c, at, 0);
        load_keys(s, c, w, at, 0, w->running);
        load_values(s, c, c->v, s->x.at + at.row * s->x.pitch + at.head * p, s->x.pitch, 1, at.head);
        scale_rows(c->scaled_v, c->v, c->gamma, rank, p);
        if (s->k0) {
            const matrix keys = {c->k.at + rank * c->k.pitch, c->k.pitch};
            const matrix values = {c->scaled_v.at + rank * c->scaled_v.pitch, c->scaled_v.pitch};
            load_before(s, c, at, keys, values);
            for (int64_t r = 0; r < rank; r++) c->scale[r] = c->decay[0] * omega_of(s, at, 0);
            scale_rows(values, values, c->scale, rank, p);
        }
        store_key(f, c, at);
        store_value(f, at);
        store_angles(f, at, w->running);
        trapezoid_step(c, f->h0 ? f->h0 + state : 0, f->h_last ? f->h_last + state : 0, c->decay[0],
                       s->k0 ? 2 * rank : rank);
        for (int64_t r = 0; r < rank; r++)
            for (int64_t j = 0; j < p; j += KR_LANES) {
                float *y = c->y.at + r * c->y.pitch + j;
                kr_v_store(y, kr_v_load(y) + kr_v_set(c->skip) * kr_v_load(c->v.at + r * c->v.pitch + j));
            }
        store_output(s, c, at, 0, f->out);
    }
}

KR_KERNEL(trapezoid_scan) {
    const forward f = forward_of(call);
    const kr_chunk_size *z = &f.s.size;
    const kr_trapezoid_layout layout = kr_trapezoid_arrange(z, false);
    const kr_rotate_layout rotates = kr_rotate_arrange(z, &f.s.rotate, false);
    EACH_UNIT(z, {
        float *base = (float *)call->work + slot * kr_trapezoid_slot(&layout, &rotates);
        chunk c = trapezoid_chunk_of(z, &layout, base);
        const rotation w = rotation_of(z, &f.s.rotate, &rotates, base + layout.floats);
        prefetch ahead = {.count = 0};
        c.ahead = &ahead;
        start_slot(&f.s, &c, false);
        for (int64_t unit = begin; unit < end; unit++) {
            if (z->length == 1 && !f.saved && !f.angles) forward_token(&f, &c, &w, unit);
            else forward_unit(&f, &c, &w, unit);
        }
    });
}
