/// Rotations on the CPU, 16 pairs at a time. Angles add up in double and are wrapped at every token, so that they stay good
/// over any length (in f32 without wrap the error is 0.1 rad after 65,000 tokens); sines and cosines are taken in f32 of
/// the wrapped angle.
///
/// rotary_mix cuts time into pieces (rotary.h). A first stage adds up every piece's turn; in the second each piece adds the
/// totals before it to theta0 and walks its tokens; the gradient of the angles needs a third, which does the same backwards.
#include "ops/pairs.h"
#include "ops/rotary.h"

typedef kr_vd vd;
typedef kr_vd_unaligned vd_unaligned;
enum { SPAN = 8 }; ///< tokens taken at once: few, as all heads of a span write in turn to the pages of its rows

// rotary_mix ------------------------------------------------------------------------------------------------------

typedef struct mix {
    kr_rotary_size s;
    const float *x[2], *bias[2];         ///< K and Q
    const float *ang, *dt, *theta0;
    const int32_t *reset;
    int64_t x_pitch[2], ang_pitch, dt_pitch, apart;
    int shared;                          ///< one ang for all heads
    double *totals, *running;
    int32_t *flags;
    float *rest;                         ///< the workspace from here on belongs to the backward pass
} mix;

/// in: K, Q, k_bias, q_bias, ang, dt, theta0, reset.
static mix mix_of(const kr_call *call, const kr_arg *in) {
    mix m = {.s = kr_rotary_measure(&in[0].shape, &in[2].shape, &in[4].shape, call->attrs->i[0]),
             .x = {in[0].data, in[1].data}, .bias = {in[2].data, in[3].data}, .ang = in[4].data, .dt = in[5].data,
             .theta0 = in[6].data, .reset = in[7].data, .x_pitch = {kr_arg_pitch(&in[0]), kr_arg_pitch(&in[1])},
             .ang_pitch = kr_arg_pitch(&in[4]), .dt_pitch = kr_arg_pitch(&in[5]), .shared = in[4].shape.rank == 3};
    m.apart = call->attrs->i[2] ? m.s.states / 2 : 0;
    m.totals = call->work;
    m.running = m.totals + kr_rotary_angles(&m.s);
    m.flags = (int32_t *)(m.running + kr_rotary_angles(&m.s));
    m.rest = (float *)(m.flags + kr_rotary_flags(&m.s));
    return m;
}

KR_INLINE int is_reset(const mix *m, int64_t row) { return m->reset && m->reset[row] > 0; }

/// Tokens of piece c: [*from, *to).
KR_INLINE void piece(const mix *m, int64_t c, int64_t *from, int64_t *to) {
    *from = c * m->s.chunk;
    *to = *from + m->s.chunk < m->s.length ? *from + m->s.chunk : m->s.length;
}

/// tanh(ang) of pairs s .. s + 15 at `tokens` tokens from row.
static void speeds(const mix *m, int64_t row, int64_t tokens, int64_t h, int64_t s, kr_vf *speed) {
    const int64_t rows = m->shared ? 1 : m->s.heads;
    for (int64_t t = 0; t < tokens; t++)
        speed[t] = kr_v_tanh(kr_v_load_n(m->ang + ((row + t) * rows + (m->shared ? 0 : h)) * m->ang_pitch + s, m->s.pairs - s));
}

KR_INLINE vd turn_of(const mix *m, int64_t row, int64_t h, kr_vf speed) {
    return __builtin_convertvector(speed, vd) * (KR_PI * (double)m->dt[row * m->dt_pitch + h]);
}

/// Every piece's turn since its last reset; nobody needs that of a sequence in one piece.
static void add_turns(const mix *m, int part, int parts) {
    const int64_t angles = m->s.heads * m->s.width;
    int64_t begin, end;
    kr_share(m->s.chunks > 1 ? kr_rotary_units(&m->s) : 0, part, parts, &begin, &end);
    for (int64_t unit = begin; unit < end; unit++) {
        const int64_t base = unit / m->s.chunks * m->s.length;
        double *total = m->totals + unit * angles;
        int64_t from, to;
        piece(m, unit % m->s.chunks, &from, &to);
        m->flags[unit] = 0;
        for (int64_t t = from; t < to; t++) m->flags[unit] |= is_reset(m, base + t);
        for (int64_t i = 0; i < angles; i++) total[i] = 0;
        for (int64_t first = from; first < to; first += SPAN) {
            const int64_t tokens = to - first < SPAN ? to - first : SPAN;
            kr_vf speed[SPAN];
            for (int64_t s = 0; s < m->s.pairs; s += KR_LANES)
                for (int64_t h = 0; h < m->s.heads; h++) {
                    if (!h || !m->shared) speeds(m, base + first, tokens, h, s, speed);
                    vd_unaligned *at = (vd_unaligned *)(total + h * m->s.width + s);
                    vd sum = *at;
                    for (int64_t t = 0; t < tokens; t++) {
                        if (is_reset(m, base + first + t)) sum = (vd){0};
                        sum += turn_of(m, base + first + t, h, speed[t]);
                    }
                    *at = sum;
                }
        }
    }
}

KR_KERNEL(rotary_mix_turns) {
    const mix m = mix_of(call, call->in);
    add_turns(&m, part, parts);
}

/// The angles before a piece: theta0 and the turns of all pieces before it, back to the last reset.
static double *start_angles(const mix *m, int64_t unit) {
    const int64_t first = unit - unit % m->s.chunks, angles = m->s.heads * m->s.width;
    double *running = m->running + unit * angles;
    int64_t k = unit - 1;
    for (int64_t i = 0; i < angles; i++) running[i] = 0;
    for (; k >= first; k--) {
        for (int64_t i = 0; i < angles; i++) running[i] += m->totals[k * angles + i];
        if (m->flags[k]) return running;
    }
    for (int64_t h = 0; h < m->s.heads && m->theta0; h++)
        for (int64_t s = 0; s < m->s.pairs; s++)
            running[h * m->s.width + s] += m->theta0[(unit / m->s.chunks * m->s.heads + h) * m->s.pairs + s];
    return running;
}

/// Sines and cosines of 16 pairs at `tokens` tokens from row; the running angles go on.
static void turn(const mix *m, int64_t row, int64_t tokens, int64_t h, const kr_vf *speed, double *running, kr_vf *sine,
                 kr_vf *cosine) {
    vd theta = *(vd_unaligned *)running;
    for (int64_t t = 0; t < tokens; t++) {
        if (is_reset(m, row + t)) theta = (vd){0};
        theta = kr_v_wrap(theta + turn_of(m, row + t, h, speed[t]));
        kr_v_sincos(__builtin_convertvector(theta, kr_vf), &sine[t], &cosine[t]);
    }
    *(vd_unaligned *)running = theta;
}

/// Bias and rotation of 16 pairs of one head and rank: y = Rot(x + bias).
KR_INLINE void rotate(const float *x, int64_t x_pitch, const float *bias, float *y, int64_t y_pitch, int64_t apart, int64_t j,
                      int64_t left, int64_t tokens, const kr_vf *sine, const kr_vf *cosine) {
    kr_vf bias_a, bias_b;
    kr_pairs_load(bias, apart, j, left, &bias_a, &bias_b);
    for (int64_t t = 0; t < tokens; t++) {
        kr_vf a, b;
        kr_pairs_load(x + t * x_pitch, apart, j, left, &a, &b);
        a += bias_a, b += bias_b;
        kr_pairs_store(y + t * y_pitch, apart, j, left, a * cosine[t] - b * sine[t], a * sine[t] + b * cosine[t]);
    }
}

/// Bias alone, for 16 columns that do not turn, of which `left` exist.
KR_INLINE void shift(const float *x, int64_t x_pitch, const float *bias, float *y, int64_t y_pitch, int64_t tokens, int64_t left) {
    const kr_vf more = kr_v_load_n(bias, left);
    for (int64_t t = 0; t < tokens; t++) kr_v_store_n(y + t * y_pitch, kr_v_load_n(x + t * x_pitch, left) + more, left);
}

/// The columns of a row that do not turn: two ranges.
KR_INLINE void still(const mix *m, int64_t from[2], int64_t to[2]) {
    from[0] = m->apart ? m->s.pairs : 2 * m->s.pairs;
    to[0] = m->apart ? m->apart : m->s.states;
    from[1] = m->apart + m->s.pairs;
    to[1] = m->apart ? m->s.states : from[1];
}

static void mix_span(const mix *m, double *running, int64_t row, int64_t tokens, float *const y[2], const int64_t *y_pitch) {
    const int64_t R = m->s.rank, N = m->s.states, share = m->s.heads / m->s.groups;
    kr_vf speed[SPAN], sine[SPAN], cosine[SPAN];
    for (int64_t s = 0; s < m->s.pairs; s += KR_LANES)
        for (int64_t h = 0; h < m->s.heads; h++) {
            if (!h || !m->shared) speeds(m, row, tokens, h, s, speed);
            turn(m, row, tokens, h, speed, running + h * m->s.width + s, sine, cosine);
            const int64_t left = m->s.pairs - s < KR_LANES ? m->s.pairs - s : KR_LANES;
            for (int64_t r = 0; r < 2 * R; r++) { // K, then Q
                const int w = r >= R;
                const int64_t rank = r % R, in = (rank * m->s.groups + h / share) * N, out = (h * R + rank) * N;
                if (!y[w]) continue;
                const float *x = m->x[w] + row * m->x_pitch[w] + in, *bias = m->bias[w] + out;
                float *to = y[w] + row * y_pitch[w] + out;
                if (m->apart) rotate(x, m->x_pitch[w], bias, to, y_pitch[w], m->apart, s, left, tokens, sine, cosine);
                else if (left < KR_LANES) rotate(x, m->x_pitch[w], bias, to, y_pitch[w], 0, s, left, tokens, sine, cosine);
                else rotate(x, m->x_pitch[w], bias, to, y_pitch[w], 0, s, KR_LANES, tokens, sine, cosine);
            }
        }
    int64_t from[2], until[2];
    still(m, from, until);
    for (int64_t h = 0; h < m->s.heads; h++)
        for (int64_t r = 0; r < 2 * R; r++) {
            const int w = r >= R;
            const int64_t rank = r % R, in = (rank * m->s.groups + h / share) * N, out = (h * R + rank) * N;
            const float *x = m->x[w] + row * m->x_pitch[w] + in, *bias = m->bias[w] + out;
            for (int k = 0; k < 2 && y[w]; k++)
                for (int64_t n = from[k]; n < until[k]; n += KR_LANES)
                    shift(x + n, m->x_pitch[w], bias + n, y[w] + row * y_pitch[w] + out + n, y_pitch[w], tokens, until[k] - n);
        }
}

/// theta [H, S] from 0 to 2 pi.
static void store_theta(const kr_rotary_size *size, const double *running, float *theta) {
    for (int64_t h = 0; h < size->heads; h++)
        for (int64_t s = 0; s < size->pairs; s += KR_LANES) {
            const vd angle = kr_v_wrap(*(const vd_unaligned *)(running + h * size->width + s));
            for (int64_t l = 0; l < KR_LANES && s + l < size->pairs; l++)
                theta[h * size->pairs + s + l] = (float)(angle[l] < 0 ? angle[l] + 2 * KR_PI : angle[l]);
        }
}

KR_KERNEL(rotary_mix) {
    const mix m = mix_of(call, call->in);
    float *const y[2] = {call->out[0].data, call->out[1].data}, *theta = call->out[2].data;
    const int64_t y_pitch[2] = {kr_arg_pitch(&call->out[0]), kr_arg_pitch(&call->out[1])};
    int64_t begin, end;
    kr_share(kr_rotary_units(&m.s), part, parts, &begin, &end);
    for (int64_t unit = begin; unit < end; unit++) {
        const int64_t b = unit / m.s.chunks, c = unit % m.s.chunks;
        double *running = start_angles(&m, unit);
        int64_t from, to;
        piece(&m, c, &from, &to);
        for (int64_t t = from; t < to; t += SPAN) mix_span(&m, running, b * m.s.length + t, to - t < SPAN ? to - t : SPAN, y, y_pitch);
        if (theta && c == m.s.chunks - 1) store_theta(&m.s, running, theta + b * m.s.heads * m.s.pairs);
    }
}

// Backward --------------------------------------------------------------------------------------------------------

typedef struct mix_grad {
    mix m;
    const float *dy[2], *dtheta;
    int64_t dy_pitch[2], dx_pitch[2], dang_pitch, ddt_pitch;
    float *dx[2], *dbias[2], *dang, *ddt, *dtheta0;
    float *e_totals, *sums, *e;  ///< workspace; e null: nobody wants the gradients of the angles
} mix_grad;

/// in: dk, dq, dtheta, then the forward inputs; out: dK, dQ, dk_bias, dq_bias, dang, ddt, dtheta0.
static mix_grad mix_grad_of(const kr_call *call) {
    const kr_arg *in = call->in, *out = call->out;
    mix_grad d = {.m = mix_of(call, in + 3), .dy = {in[0].data, in[1].data}, .dtheta = in[2].data,
                  .dx = {out[0].data, out[1].data}, .dbias = {out[2].data, out[3].data}, .dang = out[4].data,
                  .ddt = out[5].data, .dtheta0 = out[6].data, .dx_pitch = {kr_arg_pitch(&out[0]), kr_arg_pitch(&out[1])},
                  .dang_pitch = kr_arg_pitch(&out[4]), .ddt_pitch = kr_arg_pitch(&out[5])};
    for (int w = 0; w < 2; w++) d.dy_pitch[w] = d.dy[w] ? kr_arg_pitch(&in[w]) : 0;
    d.e_totals = d.m.rest;
    d.sums = d.e_totals + kr_rotary_angles(&d.m.s);
    d.e = d.dang || d.ddt || d.dtheta0 ? d.sums + d.m.s.sums * kr_rotary_biases(&d.m.s) : 0;
    return d;
}

KR_KERNEL(rotary_mix_grad_turns) {
    const mix m = mix_of(call, call->in + 3);
    add_turns(&m, part, parts);
}

/// 16 pairs of one head and rank: w = Rot(-theta) dy is the gradient of x + bias. `first` of the heads that share x sets dx,
/// the others add; dbias gets the sum over the tokens and e what the rotation's angle feels.
KR_INLINE void rotate_back(const float *x, int64_t x_pitch, const float *bias, const float *dy, int64_t dy_pitch, float *dx,
                           int64_t dx_pitch, float *dbias, int64_t apart, int64_t j, int64_t left, int64_t tokens, int first,
                           const kr_vf *sine, const kr_vf *cosine, kr_vf *e) {
    kr_vf bias_a, bias_b, sum_a, sum_b;
    kr_pairs_load(bias, apart, j, left, &bias_a, &bias_b);
    kr_pairs_load(dbias, apart, j, left, &sum_a, &sum_b);
    for (int64_t t = 0; t < tokens; t++) {
        kr_vf p, q, a, b;
        kr_pairs_load(dy + t * dy_pitch, apart, j, left, &p, &q);
        kr_pairs_load(x + t * x_pitch, apart, j, left, &a, &b);
        kr_vf wa = p * cosine[t] + q * sine[t], wb = q * cosine[t] - p * sine[t];
        e[t] += (a + bias_a) * wb - (b + bias_b) * wa;
        sum_a += wa, sum_b += wb;
        if (!dx) continue;
        if (!first) {
            kr_pairs_load(dx + t * dx_pitch, apart, j, left, &a, &b);
            wa += a, wb += b;
        }
        kr_pairs_store(dx + t * dx_pitch, apart, j, left, wa, wb);
    }
    kr_pairs_store(dbias, apart, j, left, sum_a, sum_b);
}

/// 16 columns that do not turn, of which `left` exist.
KR_INLINE void shift_back(const float *dy, int64_t dy_pitch, float *dx, int64_t dx_pitch, float *dbias, int64_t tokens,
                          int64_t left, int first) {
    kr_vf sum = kr_v_load_n(dbias, left);
    for (int64_t t = 0; t < tokens; t++) {
        const kr_vf w = kr_v_load_n(dy + t * dy_pitch, left);
        sum += w;
        if (dx) kr_v_store_n(dx + t * dx_pitch, first ? w : w + kr_v_load_n(dx + t * dx_pitch, left), left);
    }
    kr_v_store_n(dbias, sum, left);
}

/// The columns that do not turn, and zeros in dx where nothing flows back.
static void still_back(const mix_grad *d, float *sums, int64_t row, int64_t tokens, int w) {
    const mix *m = &d->m;
    const int64_t R = m->s.rank, N = m->s.states, share = m->s.heads / m->s.groups;
    int64_t from[2], to[2];
    still(m, from, to);
    float *dx = d->dx[w] ? d->dx[w] + row * d->dx_pitch[w] : 0;
    const float *dy = d->dy[w] ? d->dy[w] + row * d->dy_pitch[w] : 0;
    for (int64_t t = 0; t < tokens && dx && (!dy || !m->s.heads); t++)
        for (int64_t n = 0; n < R * m->s.groups * N; n++) dx[t * d->dx_pitch[w] + n] = 0;
    for (int64_t r = 0; r < m->s.heads * R && dy; r++) {
        const int64_t h = r / R, in = (r % R * m->s.groups + h / share) * N;
        for (int k = 0; k < 2; k++)
            for (int64_t n = from[k]; n < to[k]; n += KR_LANES)
                shift_back(dy + r * N + n, d->dy_pitch[w], dx ? dx + in + n : 0, d->dx_pitch[w], sums + r * N + n, tokens, to[k] - n,
                           h % share == 0);
    }
}

/// One span of tokens; `open`: those before the piece's first reset, whose e counts for the pieces before.
static void span_back(const mix_grad *d, double *running, float *e_total, float *sums, int64_t row, int64_t tokens, int64_t open) {
    const mix *m = &d->m;
    const int64_t H = m->s.heads, R = m->s.rank, N = m->s.states, S = m->s.pairs, share = H / m->s.groups;
    kr_vf speed[SPAN], sine[SPAN], cosine[SPAN], e[SPAN];
    for (int64_t s = 0; s < S; s += KR_LANES)
        for (int64_t h = 0; h < H; h++) {
            if (!h || !m->shared) speeds(m, row, tokens, h, s, speed);
            turn(m, row, tokens, h, speed, running + h * m->s.width + s, sine, cosine);
            const int64_t left = S - s < KR_LANES ? S - s : KR_LANES;
            for (int64_t t = 0; t < tokens; t++) e[t] = kr_v_set(0);
            for (int64_t r = 0; r < 2 * R; r++) { // dk, then dq
                const int w = r >= R;
                const int64_t rank = r % R, in = (rank * m->s.groups + h / share) * N, at = (h * R + rank) * N;
                if (!d->dy[w]) continue;
                rotate_back(m->x[w] + row * m->x_pitch[w] + in, m->x_pitch[w], m->bias[w] + at, d->dy[w] + row * d->dy_pitch[w] + at,
                            d->dy_pitch[w], d->dx[w] ? d->dx[w] + row * d->dx_pitch[w] + in : 0, d->dx_pitch[w],
                            sums + w * H * R * N + at, m->apart, s, left, tokens, h % share == 0, sine, cosine, e);
            }
            if (!d->e) continue;
            kr_vf total = kr_v_load(e_total + h * m->s.width + s);
            for (int64_t t = 0; t < tokens; t++) {
                kr_v_store_n(d->e + ((row + t) * H + h) * S + s, e[t], left);
                if (t < open) total += e[t];
            }
            kr_v_store(e_total + h * m->s.width + s, total);
        }
    for (int w = 0; w < 2; w++) still_back(d, sums + w * H * R * N, row, tokens, w);
}

KR_KERNEL(rotary_mix_grad) {
    const mix_grad d = mix_grad_of(call);
    const mix *m = &d.m;
    const int64_t units = kr_rotary_units(&m->s), angles = m->s.heads * m->s.width, biases = kr_rotary_biases(&m->s);
    int64_t begin, end;
    kr_share(m->s.sums, part, parts, &begin, &end);
    for (int64_t p = begin; p < end; p++) {
        float *sums = d.sums + p * biases;
        for (int64_t i = 0; i < biases; i++) sums[i] = 0;
        for (int64_t unit = units * p / m->s.sums; unit < units * (p + 1) / m->s.sums; unit++) {
            const int64_t base = unit / m->s.chunks * m->s.length;
            double *running = start_angles(m, unit);
            float *e_total = d.e_totals + unit * angles;
            int64_t from, to, open;
            piece(m, unit % m->s.chunks, &from, &to);
            for (open = from; open < to && !is_reset(m, base + open); open++) {}
            for (int64_t i = 0; i < angles; i++) e_total[i] = 0;
            for (int64_t t = from; t < to; t += SPAN)
                span_back(&d, running, e_total, sums, base + t, to - t < SPAN ? to - t : SPAN, open - t);
        }
    }
}

/// What the angles after a piece feel: e of all pieces after it, up to the next reset, and at the end dtheta.
KR_INLINE kr_vf from_later(const mix_grad *d, int64_t unit, int64_t h, int64_t s) {
    const mix *m = &d->m;
    const int64_t b = unit / m->s.chunks, last = (b + 1) * m->s.chunks;
    kr_vf sum = kr_v_set(0);
    for (int64_t k = unit + 1; k < last; k++) {
        sum += kr_v_load(d->e_totals + (k * m->s.heads + h) * m->s.width + s);
        if (m->flags[k]) return sum;
    }
    return d->dtheta ? sum + kr_v_load_n(d->dtheta + (b * m->s.heads + h) * m->s.pairs + s, m->s.pairs - s) : sum;
}

static void angles_back(const mix_grad *d, int64_t unit) {
    const mix *m = &d->m;
    const int64_t H = m->s.heads, S = m->s.pairs, b = unit / m->s.chunks, c = unit % m->s.chunks, base = b * m->s.length;
    const int64_t ang_rows = m->shared ? 1 : H;
    int64_t from, to;
    piece(m, c, &from, &to);
    for (int64_t row = base + from; row < base + to; row++) {
        for (int64_t h = 0; h < ang_rows && d->dang; h++)
            for (int64_t s = 0; s < S; s++) d->dang[(row * ang_rows + h) * d->dang_pitch + s] = 0;
        for (int64_t h = 0; h < H && d->ddt; h++) d->ddt[row * d->ddt_pitch + h] = 0;
    }
    for (int64_t s = 0; s < S; s += KR_LANES)
        for (int64_t h = 0; h < H; h++) {
            kr_vf felt = from_later(d, unit, h, s);
            for (int64_t row = base + to - 1; row >= base + from; row--) {
                kr_vf speed;
                speeds(m, row, 1, h, s, &speed);
                felt += kr_v_load_n(d->e + (row * H + h) * S + s, S - s);
                const kr_vf turn = felt * kr_v_set((float)KR_PI);
                if (d->ddt) d->ddt[row * d->ddt_pitch + h] += kr_v_sum(turn * speed);
                if (d->dang) {
                    float *dang = d->dang + (row * ang_rows + (m->shared ? 0 : h)) * d->dang_pitch + s;
                    const kr_vf more = turn * kr_v_set(m->dt[row * m->dt_pitch + h]) * (kr_v_set(1) - speed * speed);
                    kr_v_store_n(dang, kr_v_load_n(dang, S - s) + more, S - s);
                }
                if (is_reset(m, row)) felt = kr_v_set(0);
            }
            if (c == 0 && d->dtheta0) kr_v_store_n(d->dtheta0 + (b * H + h) * S + s, felt, S - s);
        }
}

KR_KERNEL(rotary_mix_grad_angles) {
    const mix_grad d = mix_grad_of(call);
    const int64_t biases = kr_rotary_biases(&d.m.s), half = biases / 2;
    int64_t begin, end;
    kr_share(d.e ? kr_rotary_units(&d.m.s) : 0, part, parts, &begin, &end);
    for (int64_t unit = begin; unit < end; unit++) angles_back(&d, unit);
    kr_share(biases, part, parts, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        float sum = 0, *to = d.dbias[i >= half];
        for (int64_t p = 0; p < d.m.s.sums; p++) sum += d.sums[p * biases + i];
        if (to) to[i % half] = sum;
    }
}
