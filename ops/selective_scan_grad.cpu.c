/// Selective scan backwards on the CPU (MATH 5). The chunks go from last to first: from the state saved at a chunk's
/// start, h and the decays are computed again into a scratch that fits L1, then a reverse sweep runs through it. Blocks of
/// 4 states at a time: adjoints and sums of dA stay in registers, and the scratch of a block is 16 KiB.
///
/// What must be summed over channels (dB, dC) is kept per lane over the tiles of a unit and summed over lanes once per
/// chunk; units have partial sums of their own. What must be summed over the batch (dA, dD, ddelta_bias) is kept per
/// batch row. The second stage adds both up. All orders are fixed, whatever the number of threads.
#include "ops/selective_scan_tile.h"

#define LN2 0.693147181f
/// States of a block, and the streams that each block asks for.
enum { BACK_WIDTH = 4, BACK_FETCH = 2 };

/// One tile over one chunk, backwards: a forward sweep and what the reverse needs besides.
typedef struct back_sweep {
    sweep s;
    bool gated;                              ///< y is needed
    kr_vf u[CHUNK], dy[CHUNK];
    kr_vf gB[CHUNK], qA[CHUNK];              ///< sums over states: adjoint times B, adjoint times dh/d(dt A')
    kr_vf delta_slope[CHUNK], gate_slope[CHUNK]; ///< d dt / d delta; dout times d silu(z) / dz
    float *dB, *dC;                          ///< [CHUNK, N, 16] lane sums, or [N, 16] where constant
} back_sweep;

/// What is kept of a block of states for a chunk.
typedef struct trace {
    kr_vf before[CHUNK + 1][BACK_WIDTH]; ///< [t]: the state before token t
    kr_vf decay[CHUNK][BACK_WIDTH];      ///< [t]: what it is multiplied by; zero where it is reset
} trace;

/// Recomputes `width` states of the chunk.
KR_INLINE void recompute(const int width, const bool mixed, back_sweep *r, const float *A, const float *start,
                         int64_t first, trace *kept) {
    sweep *s = &r->s;
    const bool fixed_B = mixed && s->constant_B, fixed_C = mixed && s->constant_C;
    const float *B = s->B + (fixed_B ? first * LANES : first), *C = s->C + (fixed_C ? first * LANES : first);
    ahead next = s->next;
    kr_vf h[BACK_WIDTH];
    A += first * LANES;
    start += first * LANES;
    const int64_t share = first / BACK_WIDTH * BACK_FETCH;
    EACH4(i, BACK_FETCH, next.at[i] = next.at[share % STREAMS + i]; next.skip[i] = next.skip[share % STREAMS + i];)
    if (share >= STREAMS) ahead_start(&next, 0, 1, 0, 0);
    EACH4(n, width, kept->before[0][n] = h[n] = kr_v_load(start + n * LANES);)
    for (int t = 0; t < s->count;) {
        const int begin = t, end = run_end(s, t);
        if (s->fresh >> t & 1) {
            EACH4(n, width, h[n] = kr_v_set(0);)
        }
        for (; t < end; t++, B += fixed_B ? 0 : s->B_pitch, C += fixed_C ? 0 : s->C_pitch) {
            const kr_vf dt = s->dt[t], dtu = s->dtu[t];
            kr_vf even = s->y[t], odd = kr_v_set(0);
            fetch(&next, 0, BACK_FETCH);
            EACH4(n, width,
                const kr_vf a = kr_v_exp2(dt * kr_v_load(A + n * LANES));
                h[n] = a * h[n] + dtu * coefficient(B, fixed_B, n);
                kept->decay[t][n] = a;
                kept->before[t + 1][n] = h[n];
                if (n & 1) odd += coefficient(C, fixed_C, n) * h[n];
                else even += coefficient(C, fixed_C, n) * h[n];)
            s->y[t] = even + odd;
        }
        if (s->fresh >> begin & 1) {
            EACH4(n, width, kept->decay[begin][n] = kr_v_set(0);)
        }
    }
}

/// Runs the adjoint of `width` states from the end of the chunk to its start.
KR_INLINE void reverse(const int width, const bool mixed, back_sweep *r, const float *A, float *adjoint, float *dA,
                       int64_t first, int64_t states, const trace *kept) {
    const sweep *s = &r->s;
    const bool fixed_B = mixed && s->constant_B, fixed_C = mixed && s->constant_C;
    const int64_t B_pitch = fixed_B ? 0 : s->B_pitch, C_pitch = fixed_C ? 0 : s->C_pitch, end = s->count - 1;
    const float *B = s->B + (fixed_B ? first * LANES : first) + end * B_pitch;
    const float *C = s->C + (fixed_C ? first * LANES : first) + end * C_pitch;
    const int64_t dB_pitch = fixed_B ? 0 : states * LANES, dC_pitch = fixed_C ? 0 : states * LANES;
    float *dB = r->dB + first * LANES + end * dB_pitch, *dC = r->dC + first * LANES + end * dC_pitch;
    kr_vf g[BACK_WIDTH], sum[BACK_WIDTH];
    A += first * LANES;
    adjoint += first * LANES;
    dA += first * LANES;
    EACH4(n, width,
        g[n] = kr_v_load(adjoint + n * LANES);
        sum[n] = kr_v_load(dA + n * LANES);)
    for (int64_t t = end; t >= 0; t--, B -= B_pitch, C -= C_pitch, dB -= dB_pitch, dC -= dC_pitch) {
        const kr_vf dt = s->dt[t], dtu = s->dtu[t], dy = r->dy[t];
        kr_vf gB = r->gB[t], qA = r->qA[t];
        EACH4(n, width,
            g[n] += dy * coefficient(C, fixed_C, n);
            kr_v_store(dC + n * LANES, kr_v_load(dC + n * LANES) + dy * kept->before[t + 1][n]);
            kr_v_store(dB + n * LANES, kr_v_load(dB + n * LANES) + g[n] * dtu);
            gB += g[n] * coefficient(B, fixed_B, n);
            g[n] *= kept->decay[t][n];
            const kr_vf q = g[n] * kept->before[t][n];
            qA += q * kr_v_load(A + n * LANES);
            sum[n] += q * dt;)
        r->gB[t] = gB;
        r->qA[t] = qA;
    }
    EACH4(n, width,
        kr_v_store(adjoint + n * LANES, g[n]);
        kr_v_store(dA + n * LANES, sum[n]);)
}

/// The planes of one tile.
typedef struct back_planes {
    const float *A, *start; ///< start: the saved state before the chunk
    float *adjoint, *dA;
    int64_t states;
} back_planes;

KR_INLINE void retrace(const int width, const bool mixed, back_sweep *r, const back_planes *p, int64_t first) {
    trace kept;
    recompute(width, mixed, r, p->A, p->start, first, &kept);
    reverse(width, mixed, r, p->A, p->adjoint, p->dA, first, p->states, &kept);
}

static NOINLINE void retrace_4(back_sweep *r, const back_planes *p, int64_t n) { retrace(4, false, r, p, n); }
static NOINLINE void retrace_2(back_sweep *r, const back_planes *p, int64_t n) { retrace(2, false, r, p, n); }
static NOINLINE void retrace_1(back_sweep *r, const back_planes *p, int64_t n) { retrace(1, true, r, p, n); }

static void retrace_all(back_sweep *r, const kr_scan_size *size, const back_planes *p) {
    for (int64_t n = 0; n < size->states;) {
        const int64_t left = size->constant_B || size->constant_C ? 1 : size->states - n;
        const int width = left >= 4 ? 4 : left >= 2 ? 2 : 1;
        switch (width) {
        case 4: retrace_4(r, p, n); break;
        case 2: retrace_2(r, p, n); break;
        default: retrace_1(r, p, n); break;
        }
        n += width;
    }
}

/// Step size and its slope from one exponential.
KR_INLINE kr_vf step_and_slope(const scan *s, kr_vf raw, kr_vf *slope) {
    const kr_vf one = kr_v_set(1), zero = kr_v_set(0);
    *slope = one;
    if (!s->softplus) return raw;
    const kr_vf e = kr_v_exp((kr_vf)((kr_vi)raw | kr_v_seti((int32_t)0x80000000))); // e^-|raw|
    *slope = kr_v_select(raw < zero, e, one) / (one + e);
    return kr_v_select(raw > zero, raw, zero) + kr_v_log1p_unit(e);
}

/// A gradient that is written row by row; data is null when nobody reads it.
typedef struct sink {
    float *data;
    int64_t pitch;
} sink;

static sink sink_of(const kr_arg *a) { return (sink){a->data, kr_arg_pitch(a)}; }

static void put(sink to, int64_t row, tile at, kr_vf v) {
    if (to.data) kr_v_store_n(to.data + row * to.pitch + at.channel, v, at.lanes);
}

typedef struct scan_grad {
    scan s;
    const float *dout, *dlast, *saved;
    int64_t dout_pitch;
    sink du, ddelta, dB, dC, dz;
} scan_grad;

/// in: dout, dlast, u, delta, A, B, C, D, z, delta_bias, reset, saved.
/// out: du, ddelta, dA, dB, dC, dD, dz, ddelta_bias, dh0.
static scan_grad scan_grad_of(const kr_call *call) {
    scan_grad d = {.s = scan_of(call->attrs, call->in + 2, &call->in[10]), .dout = call->in[0].data,
                   .dlast = call->in[1].data, .saved = call->in[11].data, .du = sink_of(&call->out[0]),
                   .ddelta = sink_of(&call->out[1]), .dB = sink_of(&call->out[3]), .dC = sink_of(&call->out[4]),
                   .dz = sink_of(&call->out[6])};
    if (d.dout) d.dout_pitch = kr_arg_pitch(&call->in[0]);
    if (!d.s.z) d.dz.data = 0;
    return d;
}

/// Reads what one tile needs of a chunk.
static NOINLINE void load_chunk(back_sweep *r, const scan_grad *d, tile at, span p) {
    const scan *s = &d->s;
    const kr_vf D = vector_of(s->D, at), bias = vector_of(s->delta_bias, at), one = kr_v_set(1);
    for (int t = 0; t < p.count; t++) {
        const int64_t row = p.row + t;
        const kr_vf u = kr_v_load_n(s->u + row * s->u_pitch + at.channel, at.lanes);
        const kr_vf raw = kr_v_load_n(s->delta + row * s->delta_pitch + at.channel, at.lanes) + bias;
        const kr_vf dout = d->dout ? kr_v_load_n(d->dout + row * d->dout_pitch + at.channel, at.lanes) : kr_v_set(0);
        const kr_vf dt = step_and_slope(s, raw, &r->delta_slope[t]);
        r->s.dt[t] = dt;
        r->s.dtu[t] = dt * u;
        r->s.y[t] = D * u;
        r->u[t] = u;
        r->gB[t] = r->qA[t] = kr_v_set(0);
        if (s->z) {
            const kr_vf z = kr_v_load_n(s->z + row * s->z_pitch + at.channel, at.lanes), gate = kr_v_sigmoid(z);
            r->dy[t] = dout * z * gate;
            r->gate_slope[t] = dout * gate * (one + z * (one - gate));
        } else r->dy[t] = dout;
    }
}

/// Writes the gradients of one tile for a chunk; sums: dD and ddelta_bias.
static NOINLINE void store_chunk(const back_sweep *r, const scan_grad *d, tile at, span p, float *sums) {
    const kr_vf D = vector_of(d->s.D, at);
    kr_vf dD = kr_v_load(sums), dbias = kr_v_load(sums + LANES);
    for (int t = 0; t < p.count; t++) {
        const kr_vf ddt = r->qA[t] * kr_v_set(LN2) + r->u[t] * r->gB[t], ddelta = ddt * r->delta_slope[t];
        dD += r->dy[t] * r->u[t];
        dbias += ddelta;
        put(d->du, p.row + t, at, D * r->dy[t] + r->s.dt[t] * r->gB[t]);
        put(d->ddelta, p.row + t, at, ddelta);
        if (r->gated) put(d->dz, p.row + t, at, r->gate_slope[t] * r->s.y[t]);
    }
    kr_v_store(sums, dD);
    kr_v_store(sums + LANES, dbias);
}

/// One tile over one chunk. `planes` are the tile's; lane_dB and lane_dC the unit's sums for this chunk.
static void backward_chunk(const scan_grad *d, tile at, span p, const float *start, float *planes, float *lane_dB,
                           float *lane_dC, int64_t order, int64_t run) {
    const scan *s = &d->s;
    const kr_scan_size *size = &s->size;
    const int64_t plane = kr_scan_plane(size);
    float *fixed_B = planes + KR_SCAN_FIXED_BACK * plane, *fixed_C = fixed_B + 2 * size->constant_B * plane;
    back_sweep r; // not an initialiser: that would clear its arrays
    prepare(&r.s, s, p, at, fixed_B, fixed_C);
    r.gated = d->dz.data != 0;
    r.dB = size->constant_B ? fixed_B + plane : lane_dB;
    r.dC = size->constant_C ? fixed_C + plane : lane_dC;
    ahead_start(&r.s.next, order, run, p.row - CHUNK, at.channel - order * LANES);
    ahead_follow(&r.s.next, 0, s->u, s->u_pitch);
    ahead_follow(&r.s.next, 1, s->delta, s->delta_pitch);
    ahead_follow(&r.s.next, 2, s->z, s->z_pitch);
    ahead_follow(&r.s.next, 3, d->dout, d->dout_pitch);
    ahead_follow(&r.s.next, 4, d->du.data, d->du.pitch);
    ahead_follow(&r.s.next, 5, d->ddelta.data, d->ddelta.pitch);
    ahead_follow(&r.s.next, 6, d->dz.data, d->dz.pitch);
    load_chunk(&r, d, at, p);
    const back_planes states = {planes + KR_SCAN_A * plane, start, planes + KR_SCAN_ADJOINT * plane,
                                planes + KR_SCAN_DA * plane, size->states};
    retrace_all(&r, size, &states);
    store_chunk(&r, d, at, p, planes + kr_scan_backward_planes(size) * plane);
}

/// Lane i of the result is the sum over the lanes of v[i], each in the same tree.
static kr_vf sum_each(const kr_vf *v) {
    kr_vf a[8], b[4], c[2];
    for (int i = 0; i < 8; i++) a[i] = low_8(v[i], v[i + 8]) + high_8(v[i], v[i + 8]);
    for (int i = 0; i < 4; i++) b[i] = low_4(a[i], a[i + 4]) + high_4(a[i], a[i + 4]);
    for (int i = 0; i < 2; i++) c[i] = low_2(b[i], b[i + 2]) + high_2(b[i], b[i + 2]);
    return low_1(c[0], c[1]) + high_1(c[0], c[1]);
}

/// [count, N, 16] lane sums to rows [N] at `pitch`, 16 sums at a time; clears them for the next chunk.
static NOINLINE void flush(float *lanes, int count, int64_t states, float *to, int64_t pitch) {
    const int64_t total = count * states;
    for (int64_t at = 0; at < total; at += LANES) {
        const int64_t left = at_most(total - at, LANES);
        float *from = lanes + at * LANES, sum[LANES];
        kr_vf v[LANES];
        for (int i = 0; i < LANES; i++) v[i] = i < left ? kr_v_load(from + i * LANES) : kr_v_set(0);
        clear(from, left * LANES);
        kr_v_store(sum, sum_each(v));
        for (int64_t i = 0; i < left && to;) { // the sums may belong to several tokens
            const int64_t t = (at + i) / states, n = (at + i) % states, some = at_most(left - i, states - n);
            for (int64_t k = 0; k < some; k++) to[t * pitch + n + k] = sum[i + k];
            i += some;
        }
    }
}

/// One share of one group of one batch row, over all time.
static void backward_unit(const scan_grad *d, float *work, int64_t unit, float *dh0) {
    const scan *s = &d->s;
    const kr_scan_size *size = &s->size;
    const int64_t states = size->states, plane = kr_scan_plane(size), stride = kr_scan_tile_floats(size);
    const int64_t share = unit % size->split, group = unit / size->split % size->groups;
    const int64_t b = unit / size->split / size->groups;
    const int64_t from = group * size->group_tiles + size->group_tiles * share / size->split;
    const int64_t to = group * size->group_tiles + size->group_tiles * (share + 1) / size->split;
    float *tiles = work + b * size->tiles * stride;
    float *lane_dB = work + kr_scan_lane_sums_at(size) + unit * kr_scan_lane_sums(size);
    float *lane_dC = lane_dB + kr_scan_lane_sums(size) / 2;
    float *partial = work + kr_scan_partials_at(size) + unit * kr_scan_partials(size);
    clear(lane_dB, kr_scan_lane_sums(size));
    for (int64_t i = from; i < to; i++) {
        const tile at = tile_at(size, i);
        float *w = tiles + i * stride, *fixed = w + KR_SCAN_FIXED_BACK * plane;
        clear(w, stride);
        pack(w + KR_SCAN_A * plane, s->A + at.channel * states, states, at.lanes, states, LOG2E);
        if (d->dlast)
            pack(w + KR_SCAN_ADJOINT * plane, d->dlast + (b * size->channels + at.channel) * states, states, at.lanes, states, 1);
        if (size->constant_B) pack(fixed, s->B + at.channel * s->B_pitch, s->B_pitch, at.lanes, states, 1);
        if (size->constant_C)
            pack(fixed + 2 * size->constant_B * plane, s->C + at.channel * s->C_pitch, s->C_pitch, at.lanes, states, 1);
    }
    for (int64_t c = size->chunks - 1; c >= 0; c--) {
        const span p = span_at(s, b, c);
        for (int64_t i = from; i < to; i++)
            backward_chunk(d, tile_at(size, i), p, d->saved + ((b * size->chunks + c) * size->tiles + i) * plane,
                           tiles + i * stride, lane_dB, lane_dC, i - from, to - from);
        const int64_t row = p.row * size->groups + group, within = c * CHUNK * states;
        const bool direct = size->split == 1;
        if (!size->constant_B)
            flush(lane_dB, p.count, states, !direct ? partial + within : d->dB.data ? d->dB.data + row * d->dB.pitch : 0,
                  direct ? d->dB.pitch * size->groups : states);
        if (!size->constant_C)
            flush(lane_dC, p.count, states,
                  !direct ? partial + size->length * states + within : d->dC.data ? d->dC.data + row * d->dC.pitch : 0,
                  direct ? d->dC.pitch * size->groups : states);
    }
    for (int64_t i = from; i < to && dh0; i++) {
        const tile at = tile_at(size, i);
        unpack(dh0 + (b * size->channels + at.channel) * states, states, tiles + i * stride + KR_SCAN_ADJOINT * plane,
               at.lanes, states);
    }
}

KR_KERNEL(selective_scan_grad) {
    const scan_grad d = scan_grad_of(call);
    int64_t begin, end;
    kr_share(kr_scan_units(&d.s.size), part, parts, &begin, &end);
    for (int64_t unit = begin; unit < end; unit++) backward_unit(&d, call->work, unit, call->out[8].data);
}

/// Adds the shares of a group for `count` tokens from `row`.
static void add_shares(const kr_scan_size *s, const float *partials, sink to, int64_t row, int64_t count) {
    for (int64_t r = row; to.data && r < row + count; r++)
        for (int64_t g = 0; g < s->groups; g++)
            for (int64_t n = 0; n < s->states; n += LANES) {
                const int64_t left = s->states - n < LANES ? s->states - n : LANES, b = r / s->length, t = r % s->length;
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
        for (int64_t b = 0; b < s->batch; b++) sum += kr_v_load(planes + b * s->tiles * kr_scan_tile_floats(s) + n * LANES);
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
        add_batch(s, w + KR_SCAN_DA * plane, (sink){call->out[2].data, states}, at, states);
        if (s->constant_B) add_batch(s, fixed + plane, d.dB, at, states);
        if (s->constant_C) add_batch(s, fixed + (2 * s->constant_B + 1) * plane, d.dC, at, states);
        if (d.s.D) add_batch(s, sums, (sink){call->out[5].data, 1}, at, 1);
        if (d.s.delta_bias) add_batch(s, sums + LANES, (sink){call->out[7].data, 1}, at, 1);
    }
}
