/// The rotating keys and queries of Mamba-3's scan: angles that add up over time, and rows rotated by them on the way
/// into the scratch.
#ifndef KRAIT_OPS_TRAPEZOID_CPU_ROTATE_H
#define KRAIT_OPS_TRAPEZOID_CPU_ROTATE_H

#include "ops/cpu/pairs.h"
#include "ops/trapezoid/cpu_args.h"

/// The scratch of the angles (work.h).
typedef struct rotation {
    int64_t pitch;
    double *running;
    float *speed, *sine, *cosine, *felt, *e, *dang;
    matrix sums[2]; ///< of dk and dq
} rotation;

static rotation rotation_of(const kr_chunk_size *s, const kr_rotate_size *w, const kr_rotate_layout *l, float *base) {
    return (rotation){w->pitch,
                      (double *)(base + l->running),
                      base + l->speed,
                      base + l->sine,
                      base + l->cosine,
                      base + l->felt,
                      base + l->e,
                      base + l->dang,
                      {{base + l->dk, s->states_pitch}, {base + l->dq, s->states_pitch}}};
}

/// Row of ang and its gradient for one token and head.
static int64_t angle_row(const trapezoid *s, int64_t row, int64_t head) {
    return s->own_angles ? row * s->size.heads + head : row;
}

/// tanh(ang) of a chunk's tokens, for the heads of a unit together or for each.
static void load_speeds(const trapezoid *s, const rotation *w, place at, int64_t row, int64_t tokens) {
    const int64_t pairs = s->rotate.pairs;
    if (!s->own_angles && at.head != at.first_head) return;
    for (int64_t t = 0; t < tokens; t++) {
        const float *ang = s->ang.at + angle_row(s, row + t, at.head) * s->ang.pitch;
        for (int64_t j = 0; j < pairs; j += KR_LANES)
            kr_v_store(w->speed + t * w->pitch + j, kr_v_tanh(kr_v_load_n(ang + j, pairs - j)));
    }
}

/// Sines and cosines of the chunk's angles theta_t = theta_{t-1} + pi tanh(ang_t) dt_t; `running`, [pairs], goes on.
/// Sums are in double, so that they stay good over any length (in f32 the error is 0.1 rad after 65,000 tokens).
static void load_angles(const trapezoid *s, const rotation *w, const float *dt, int64_t row, int64_t tokens,
                        double *running) {
    const int64_t pitch = w->pitch;
    const int32_t *reset = s->reset ? s->reset + row : 0;
    for (int64_t j = 0; j < s->rotate.pairs; j += KR_LANES) {
        kr_vd theta = *(kr_vd_unaligned *)(running + j);
        const float *speed = w->speed + j;
        float *sines = w->sine + j, *cosines = w->cosine + j;
        for (int64_t t = 0; t < tokens; t++) {
            kr_vf sine, cosine;
            if (reset && reset[t] > 0) theta = (kr_vd){0};
            theta += __builtin_convertvector(kr_v_load(speed + t * pitch), kr_vd) * (KR_PI * (double)dt[t]);
            kr_v_sincos_double(theta, &sine, &cosine);
            kr_v_store(sines + t * pitch, sine);
            kr_v_store(cosines + t * pitch, cosine);
        }
        *(kr_vd_unaligned *)(running + j) = kr_v_wrap(theta);
    }
}

/// The columns of a row of N that do not rotate: two ranges.
typedef struct columns {
    int64_t from, to;
} columns;
static columns not_rotated(const trapezoid *s, int which) {
    const int64_t states = s->size.states, pairs = s->rotate.pairs;
    if (!s->apart) return which ? (columns){states, states} : (columns){2 * pairs, states};
    return which ? (columns){s->apart + pairs, states} : (columns){pairs, s->apart};
}

/// 16 pairs from the j-th, of which `left` exist, of rows x to rows `to`.
KR_INLINE void rotate_pairs(const float *sine, const float *cosine, int64_t angles, const float *x, int64_t pitch,
                            const float *bias, float *to, int64_t step, int64_t tokens, int64_t j, const int64_t apart,
                            const int64_t left) {
    kr_vf bias_a, bias_b;
    kr_pairs_load(bias, apart, j, left, &bias_a, &bias_b);
    for (int64_t t = 0; t < tokens; t++, x += pitch, to += step, sine += angles, cosine += angles) {
        const kr_vf s = kr_v_load(sine), c = kr_v_load(cosine);
        kr_vf a, b;
        kr_pairs_load(x, apart, j, left, &a, &b);
        a += bias_a, b += bias_b;
        kr_pairs_store(to, apart, j, left, a * c - b * s, a * s + b * c);
    }
}

/// The same for 16 columns that do not rotate.
KR_INLINE void shift_columns(const float *x, int64_t pitch, const float *bias, float *to, int64_t step, int64_t tokens,
                             const int64_t left) {
    const kr_vf more = kr_v_load_n(bias, left);
    for (int64_t t = 0; t < tokens; t++, x += pitch, to += step) kr_v_store_n(to, kr_v_load_n(x, left) + more, left);
}

/// Keys or queries of one rank: to = Rot(theta_t) (x_t + bias) for every token. Whole vectors have code of their own.
KR_INLINE void rotate_rows(const trapezoid *s, const rotation *w, const float *x, int64_t pitch, const float *bias,
                           float *to, int64_t step, int64_t tokens, const int64_t apart) {
    const int64_t pairs = s->rotate.pairs, angles = w->pitch;
    for (int64_t j = 0; j < pairs; j += KR_LANES) {
        const float *sine = w->sine + j, *cosine = w->cosine + j;
        if (pairs - j >= KR_LANES)
            rotate_pairs(sine, cosine, angles, x, pitch, bias, to, step, tokens, j, apart, KR_LANES);
        else rotate_pairs(sine, cosine, angles, x, pitch, bias, to, step, tokens, j, apart, pairs - j);
    }
    for (int k = 0; k < 2; k++) {
        const columns range = not_rotated(s, k);
        for (int64_t n = range.from; n < range.to; n += KR_LANES) {
            if (range.to - n >= KR_LANES) shift_columns(x + n, pitch, bias + n, to + n, step, tokens, KR_LANES);
            else shift_columns(x + n, pitch, bias + n, to + n, step, tokens, range.to - n);
        }
    }
}

#endif
