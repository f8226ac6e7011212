/// From the gradients of rotated keys and queries to those of what they come from: K, Q, their biases, and the angles.
///
/// For dk of a head and w = Rot(-theta) dk, its part of dK and of the bias's gradient is w, and its angle feels
/// e_t = u0 w1 - u1 w0 with u = K + bias, which is the same number before and after the rotation: k0 dk1 - k1 dk0. An
/// angle acts on all later tokens, so what it feels of them is kept from chunk to chunk as the adjoint of the state is.
#ifndef KRAIT_OPS_TRAPEZOID_CPU_ROTATE_BACK_H
#define KRAIT_OPS_TRAPEZOID_CPU_ROTATE_BACK_H

#include "ops/trapezoid/cpu_backward.h"
#include "ops/trapezoid/cpu_rotate.h"

/// 16 pairs from the j-th, of which `left` exist, for rotated rows k and their gradients dk, `step` apart: adds what dk
/// rotates back to to dbias and to `sum`, which the first head sets, and what the angles feel to e, which keys set.
KR_INLINE void rotate_pairs_back(const float *sine, const float *cosine, float *e, int64_t angles, const float *k,
                                 const float *dk, int64_t step, float *sum, int64_t sum_step, float *dbias,
                                 int64_t tokens, int64_t j, bool sets_sum, bool sets_e, const int64_t apart,
                                 const int64_t left) {
    kr_vf bias_a, bias_b;
    kr_pairs_load(dbias, apart, j, left, &bias_a, &bias_b);
    for (int64_t t = 0; t < tokens;
         t++, k += step, dk += step, sum += sum_step, sine += angles, cosine += angles, e += angles) {
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

/// The same for 16 columns that do not rotate.
KR_INLINE void shift_columns_back(const float *dk, int64_t step, float *sum, int64_t sum_step, float *dbias,
                                  int64_t tokens, bool sets_sum, const int64_t left) {
    kr_vf bias = kr_v_load_n(dbias, left);
    for (int64_t t = 0; t < tokens; t++, dk += step, sum += sum_step) {
        const kr_vf x = kr_v_load_n(dk, left);
        bias += x;
        kr_v_store_n(sum, sets_sum ? x : x + kr_v_load_n(sum, left), left);
    }
    kr_v_store_n(dbias, bias, left);
}

/// Keys or queries of one rank. Whole vectors have code of their own.
KR_INLINE void rotate_back_rows(const trapezoid *s, const rotation *w, const float *k, const float *dk, int64_t step,
                                float *sum, int64_t sum_step, float *dbias, int64_t tokens, bool sets_sum, bool sets_e,
                                const int64_t apart) {
    const int64_t pairs = s->rotate.pairs, angles = w->pitch;
    for (int64_t j = 0; j < pairs; j += KR_LANES) {
        const float *sine = w->sine + j, *cosine = w->cosine + j;
        float *e = w->e + j;
        if (pairs - j >= KR_LANES)
            rotate_pairs_back(sine, cosine, e, angles, k, dk, step, sum, sum_step, dbias, tokens, j, sets_sum, sets_e,
                              apart, KR_LANES);
        else
            rotate_pairs_back(sine, cosine, e, angles, k, dk, step, sum, sum_step, dbias, tokens, j, sets_sum, sets_e,
                              apart, pairs - j);
    }
    for (int i = 0; i < 2; i++) {
        const columns range = not_rotated(s, i);
        for (int64_t n = range.from; n < range.to; n += KR_LANES) {
            if (range.to - n >= KR_LANES)
                shift_columns_back(dk + n, step, sum + n, sum_step, dbias + n, tokens, sets_sum, KR_LANES);
            else shift_columns_back(dk + n, step, sum + n, sum_step, dbias + n, tokens, sets_sum, range.to - n);
        }
    }
}

/// dk and dq of one head to the sums over its unit's heads, and e.
static void rotate_back(const backward *d, const chunk *c, const rotation *w, place at, float *sums) {
    const trapezoid *s = &d->s;
    const int64_t rank = c->rank;
    const bool first = at.head == at.first_head;
    for (int k = 0; k < 2; k++)
        for (int64_t r = 0; r < rank; r++) {
            const matrix x = k == TRAPEZOID_K ? c->k : c->q, dx = k == TRAPEZOID_K ? c->dk : c->dq, sum = w->sums[k];
            float *dbias = sums + kr_trapezoid_bias_at(&s->size) + (k * rank + r) * s->size.states_pitch;
            const float *from = x.at + r * x.pitch, *dfrom = dx.at + r * dx.pitch;
            float *to = sum.at + r * sum.pitch;
            const bool sets_e = k == TRAPEZOID_K && r == 0;
            if (s->apart)
                rotate_back_rows(s, w, from, dfrom, rank * x.pitch, to, rank * sum.pitch, dbias, c->tokens, first,
                                 sets_e, s->apart);
            else
                rotate_back_rows(s, w, from, dfrom, rank * x.pitch, to, rank * sum.pitch, dbias, c->tokens, first,
                                 sets_e, 0);
        }
}

/// dang, and what ddt gets through the angles: dtheta_t = e_t + dtheta_{t+1}, which a reset cuts.
static void angles_back(const backward *d, const chunk *c, const rotation *w, place at, int64_t row, float *felt,
                        float *ddt) {
    const int64_t pairs = d->s.rotate.pairs;
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

#endif
