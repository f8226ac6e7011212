/// rotary_mix on the CPU: bias and rotation of 16 pairs at a time. A first stage adds up the turns of every piece of
/// the sequence, then the pieces go on their own.
#include "ops/rotary/cpu_angles.h"

KR_KERNEL(rotary_mix_turns) {
    const mix m = mix_of(call, call->in);
    add_turns(&m, part, parts);
}

/// Bias and rotation of 16 pairs of one head and rank: y = Rot(x + bias).
KR_INLINE void rotate(const float *x, int64_t x_pitch, const float *bias, float *y, int64_t y_pitch, int64_t apart,
                      int64_t j, int64_t left, int64_t tokens, int64_t next, const kr_vf *sine, const kr_vf *cosine) {
    kr_vf bias_a, bias_b;
    kr_pairs_load(bias, apart, j, left, &bias_a, &bias_b);
    for (int64_t t = 0; t < tokens; t++) {
        kr_vf a, b;
        ask(y + t * y_pitch, next + (apart ? j : 2 * j), 1);
        kr_pairs_load(x + t * x_pitch, apart, j, left, &a, &b);
        a += bias_a, b += bias_b;
        kr_pairs_store(y + t * y_pitch, apart, j, left, a * cosine[t] - b * sine[t], a * sine[t] + b * cosine[t]);
    }
}

/// Bias alone, for 16 columns that do not turn, of which `left` exist.
KR_INLINE void shift(const float *x, int64_t x_pitch, const float *bias, float *y, int64_t y_pitch, int64_t tokens,
                     int64_t left, int64_t next) {
    const kr_vf more = kr_v_load_n(bias, left);
    for (int64_t t = 0; t < tokens; t++) {
        ask(y + t * y_pitch, next, 1);
        kr_v_store_n(y + t * y_pitch, kr_v_load_n(x + t * x_pitch, left) + more, left);
    }
}

static void mix_span(const mix *m, double *running, int64_t row, int64_t tokens, float *const y[2],
                     const int64_t *y_pitch) {
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
                rotate(x, m->x_pitch[w], bias, to, y_pitch[w], m->apart, s, left, tokens, N, sine, cosine);
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
                    shift(x + n, m->x_pitch[w], bias + n, y[w] + row * y_pitch[w] + out + n, y_pitch[w], tokens,
                          until[k] - n, N);
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
        for (int64_t t = from; t < to; t += SPAN)
            mix_span(&m, running, b * m.s.length + t, to - t < SPAN ? to - t : SPAN, y, y_pitch);
        if (theta && c == m.s.chunks - 1) store_theta(&m.s, running, theta + b * m.s.heads * m.s.pairs);
    }
}
