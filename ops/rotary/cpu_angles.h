/// The angles of rotary_mix, for its kernels. They add up in double and are wrapped at every token, so that they stay
/// good over any length (in f32 without wrap the error is 0.1 rad after 65,000 tokens); sines and cosines are taken in
/// f32 of the wrapped angle.
///
/// Time is cut into pieces (rotary.h). A first stage adds up every piece's turn; then each piece adds the totals before
/// it to theta0 and walks its tokens.
#ifndef KRAIT_OPS_ROTARY_CPU_ANGLES_H
#define KRAIT_OPS_ROTARY_CPU_ANGLES_H

#include "ops/cpu/pairs.h"
#include "ops/rotary/size.h"

typedef kr_vd vd;
typedef kr_vd_unaligned vd_unaligned;
enum { SPAN = 8 }; ///< tokens taken at once: few, as all heads of a span write in turn to the pages of its rows

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
        speed[t] = kr_v_tanh(
            kr_v_load_n(m->ang + ((row + t) * rows + (m->shared ? 0 : h)) * m->ang_pitch + s, m->s.pairs - s));
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

/// Asks for two lines `floats` behind x, whatever lies there: rows of heads are far apart, and the machine does not
/// guess that the next head's come next.
KR_INLINE void ask(const float *x, int64_t floats, const int to_write) {
    const uintptr_t at = (uintptr_t)x + (uintptr_t)floats * sizeof *x;
    if (to_write) __builtin_prefetch((const void *)at, 1, 3), __builtin_prefetch((const void *)(at + 64), 1, 3);
    else __builtin_prefetch((const void *)at, 0, 3), __builtin_prefetch((const void *)(at + 64), 0, 3);
}

/// The columns of a row that do not turn: two ranges.
KR_INLINE void still(const mix *m, int64_t from[2], int64_t to[2]) {
    from[0] = m->apart ? m->s.pairs : 2 * m->s.pairs;
    to[0] = m->apart ? m->apart : m->s.states;
    from[1] = m->apart + m->s.pairs;
    to[1] = m->apart ? m->s.states : from[1];
}

#endif
