/// Gradient of rotary_mix on the CPU, in three stages: the turns of every piece, as in the forward pass; the gradients
/// of K, Q and the biases, with e, what every token's rotation feels; and the gradients of the angles, which are sums
/// of e over all later tokens: the totals of later pieces, and then backwards through the piece.
#include "ops/rotary/cpu_angles.h"

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
                  .ddt = out[5].data, .dtheta0 = out[6].data,
                  .dx_pitch = {kr_arg_pitch(&out[0]), kr_arg_pitch(&out[1])}, .dang_pitch = kr_arg_pitch(&out[4]),
                  .ddt_pitch = kr_arg_pitch(&out[5])};
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

/// 16 pairs of one head and rank: w = Rot(-theta) dy is the gradient of x + bias. `first` of the heads that share x
/// sets dx, the others add; dbias gets the sum over the tokens and e what the rotation's angle feels.
KR_INLINE void rotate_back(const float *x, int64_t x_pitch, const float *bias, const float *dy, int64_t dy_pitch,
                           float *dx, int64_t dx_pitch, float *dbias, int64_t apart, int64_t j, int64_t left,
                           int64_t tokens, int64_t next, int first, const kr_vf *sine, const kr_vf *cosine, kr_vf *e) {
    kr_vf bias_a, bias_b, sum_a, sum_b;
    kr_pairs_load(bias, apart, j, left, &bias_a, &bias_b);
    kr_pairs_load(dbias, apart, j, left, &sum_a, &sum_b);
    for (int64_t t = 0; t < tokens; t++) {
        kr_vf p, q, a, b;
        ask(dy + t * dy_pitch, next + (apart ? j : 2 * j), 0);
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
                          int64_t left, int64_t next, int first) {
    kr_vf sum = kr_v_load_n(dbias, left);
    for (int64_t t = 0; t < tokens; t++) {
        ask(dy + t * dy_pitch, next, 0);
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
                shift_back(dy + r * N + n, d->dy_pitch[w], dx ? dx + in + n : 0, d->dx_pitch[w], sums + r * N + n,
                           tokens, to[k] - n, N, h % share == 0);
    }
}

/// One span of tokens; `open`: those before the piece's first reset, whose e counts for the pieces before.
static void span_back(const mix_grad *d, double *running, float *e_total, float *sums, int64_t row, int64_t tokens,
                      int64_t open) {
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
                rotate_back(m->x[w] + row * m->x_pitch[w] + in, m->x_pitch[w], m->bias[w] + at,
                            d->dy[w] + row * d->dy_pitch[w] + at, d->dy_pitch[w],
                            d->dx[w] ? d->dx[w] + row * d->dx_pitch[w] + in : 0, d->dx_pitch[w],
                            sums + w * H * R * N + at, m->apart, s, left, tokens, N, h % share == 0, sine, cosine, e);
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
    const int64_t H = m->s.heads, S = m->s.pairs, b = unit / m->s.chunks, c = unit % m->s.chunks,
                  base = b * m->s.length;
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
