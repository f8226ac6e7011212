/// The second stage of selective_scan's gradient: adds up what the first kept apart, in a fixed order: the shares of a
/// group's units in dB and dC, and over the batch dA, dD, ddelta_bias and the gradients of constant B and C.
#include "ops/selective_scan/cpu_grad.h"

/// Adds the shares of a group for `count` tokens from `row`.
static void add_shares(const kr_scan_size *s, const float *partials, sink to, int64_t row, int64_t count) {
    for (int64_t r = row; to.data && r < row + count; r++)
        for (int64_t g = 0; g < s->groups; g++)
            for (int64_t n = 0; n < s->states; n += LANES) {
                const int64_t left = s->states - n < LANES ? s->states - n : LANES, b = r / s->length,
                              t = r % s->length;
                const float *from = partials + (b * s->groups + g) * s->split * kr_scan_partials(s) + t * s->states + n;
                kr_vf sum = kr_v_load_n(from, left);
                for (int64_t k = 1; k < s->split; k++) sum += kr_v_load_n(from + k * kr_scan_partials(s), left);
                kr_v_store_n(to.data + (r * s->groups + g) * to.pitch + n, sum, left);
            }
}

/// Adds one plane (or vector) of a tile over the batch and writes it as rows [lanes, N].
static void add_batch(const kr_scan_size *s, const float *planes, sink to, tile at, int64_t states) {
    if (!to.data) return;
    for (int64_t n = 0; n < states; n++) {
        kr_vf sum = kr_v_set(0);
        for (int64_t b = 0; b < s->batch; b++)
            sum += kr_v_load(planes + b * s->tiles * kr_scan_tile_floats(s) + n * LANES);
        for (int64_t k = 0; k < at.lanes; k++) to.data[(at.channel + k) * to.pitch + n] = sum[k];
    }
}

KR_KERNEL(selective_scan_grad_sum) {
    enum { ROWS = 64 };
    const scan_grad d = scan_grad_of(call);
    const kr_scan_size *s = &d.s.size;
    const float *work = call->work, *partials = work + kr_scan_partials_at(s);
    const int64_t rows = s->split > 1 ? s->batch * s->length : 0, blocks = (rows + ROWS - 1) / ROWS;
    const int64_t plane = kr_scan_plane(s), states = s->states;
    int64_t begin, end;
    kr_share(blocks + s->tiles, part, parts, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        if (i < blocks) {
            const int64_t row = i * ROWS, count = rows - row < ROWS ? rows - row : ROWS;
            if (!s->constant_B) add_shares(s, partials, d.dB, row, count);
            if (!s->constant_C) add_shares(s, partials + s->length * states, d.dC, row, count);
            continue;
        }
        const tile at = tile_at(s, i - blocks);
        const float *w = work + (i - blocks) * kr_scan_tile_floats(s), *fixed = w + KR_SCAN_FIXED_BACK * plane;
        const float *sums = w + kr_scan_backward_planes(s) * plane;
        add_batch(s, w + KR_SCAN_DA * plane, (sink){call->out[SELECTIVE_GRAD_DA].data, states}, at, states);
        if (s->constant_B) add_batch(s, fixed + plane, d.dB, at, states);
        if (s->constant_C) add_batch(s, fixed + (2 * s->constant_B + 1) * plane, d.dC, at, states);
        if (d.s.D) add_batch(s, sums, (sink){call->out[SELECTIVE_GRAD_DD].data, 1}, at, 1);
        if (d.s.delta_bias) add_batch(s, sums + LANES, (sink){call->out[SELECTIVE_GRAD_DDELTA_BIAS].data, 1}, at, 1);
    }
}
