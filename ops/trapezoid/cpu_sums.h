/// The second stage of the gradient of Mamba-3's scan: sums over the units that share keys, queries and angles, and
/// over the batch, each in one order.
#ifndef KRAIT_OPS_TRAPEZOID_CPU_SUMS_H
#define KRAIT_OPS_TRAPEZOID_CPU_SUMS_H

#include "ops/trapezoid/cpu_backward.h"

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
    const int64_t n = z->states, share = kr_trapezoid_share(z, &d->s.rotate), keys = kr_trapezoid_keys(z),
                  parts = d->s.rotate.parts;
    const int64_t blocks = parts / z->groups;
    const float *shares = d->shares + b * parts * share;
    for (int64_t t = first; t < first + count; t++) {
        const int64_t row = b * z->length + t;
        for (int k = 0; k < 2; k++)
            for (int64_t i = 0; i < z->rank * z->groups && d->dkeys[k].at; i++) { // rank, then group
                const float *from = shares + i % z->groups * blocks * share + k * keys +
                                    (t * z->rank + i / z->groups) * n;
                add_parts(d->dkeys[k].at + row * d->dkeys[k].pitch + i * n, from, blocks, share, n);
            }
        if (d->dang.at && !d->s.own_angles)
            add_parts(d->dang.at + row * d->dang.pitch, shares + 2 * keys + t * d->s.rotate.pairs, parts, share,
                      d->s.rotate.pairs);
    }
}

/// [cols] at `at` of the sums over time of a head, added over the batch.
static void add_batch(const backward *d, int64_t head, int64_t at, float *to, int64_t cols) {
    const kr_chunk_size *z = &d->s.size;
    const int64_t step = kr_trapezoid_sums(z, &d->s.rotate);
    add_parts(to, d->sums + head * step + at, z->batch, z->heads * step, cols);
}

static void add_head(const backward *d, int64_t head) {
    const kr_chunk_size *z = &d->s.size;
    const int64_t p = z->width, n = z->states, rank = z->rank;
    if (d->dD && d->s.D) add_batch(d, head, 0, d->dD + head, 1);
    for (int64_t r = 0; r < rank; r++) {
        if (d->dmimo && d->s.mimo) add_batch(d, head, kr_trapezoid_mimo_at(z, r), d->dmimo + (head * rank + r) * p, p);
        for (int k = 0; k < 2 && d->s.rotate.rotates; k++)
            if (d->dbias[k])
                add_batch(d, head, kr_trapezoid_bias_at(z) + (k * rank + r) * z->states_pitch,
                          d->dbias[k] + (head * rank + r) * n, n);
    }
}

#endif
