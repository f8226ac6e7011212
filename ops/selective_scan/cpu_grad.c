/// Selective scan backwards on the CPU (docs/book/2-mamba.md). The chunks go from last to first: from the state saved
/// at a chunk's
/// start, h and the decays are computed again into a scratch that fits L1, then a reverse sweep runs through it. Blocks
/// of
/// 4 states at a time: adjoints and sums of dA stay in registers, and the scratch of a block is 16 KiB.
///
/// What must be summed over channels (dB, dC) is added up over the tiles of a unit; units have partial sums of their
/// own. Kept per lane, these sums would be 64 KiB at 16 states and pass through L1 with every tile. So the four states
/// of a block are folded into one vector, four lanes each, before they are added: 16 KiB, of which a block wants 4; the
/// last four lanes are summed once per chunk. What must be summed over the batch (dA, dD, ddelta_bias) is kept per
/// batch row. The second stage adds both up. All orders are fixed, whatever the number of threads.
#include "ops/selective_scan/cpu_grad.h"

/// States of a block, the streams that each block prefetches, and tensors that are streams.
enum { BACK_WIDTH = 4, BACK_FETCH = 2, BACK_STREAMS = 8 };

/// What one tile of a chunk keeps between its blocks of states.
typedef struct track {
    kr_vf dt[CHUNK], dtu[CHUNK], dy[CHUNK]; ///< step size, times u; gradient of the output before the gate
    kr_vf y[CHUNK], gB[CHUNK], qA[CHUNK]; ///< sums over states, from the first block on: C h, adjoint times B, adjoint
                                          ///< times dh/d(dt A')
    kr_vf delta_slope[CHUNK], gate_slope[CHUNK]; ///< d dt / d delta; dout times d silu(z) / dz
} track;
_Static_assert(sizeof(track) == KR_SCAN_TRACK * sizeof(float), "the workspace has room for it");

/// What is kept of a block of states for a chunk.
typedef struct trace {
    kr_vf before[CHUNK + 1][BACK_WIDTH]; ///< [t]: the state before token t
    kr_vf decay[CHUNK][BACK_WIDTH];      ///< [t]: what it is multiplied by; zero where it is reset
} trace;
_Static_assert(sizeof(trace) == KR_SCAN_TRACE * sizeof(float), "the workspace has room for it");

/// One block of states of a tile over one chunk, backwards.
typedef struct back_sweep {
    sweep s;
    track *k;
    trace *kept;
    const float *A, *start; ///< planes; start: the saved states before the chunk
    const float *soon;      ///< where those before the next chunk are; an address to prefetch, not to read
    float *adjoint, *dA;    ///< planes
    const float *dB_before, *dC_before; ///< sums over the tiles so far: [CHUNK, 16], folded, or [16] where constant,
    int64_t before_pitch;               ///< or zeros at pitch 0
    float *dB, *dC;                     ///< ... and with this tile
    const kr_vf *y_before, *gB_before, *qA_before; ///< the track's sums of the blocks so far, or zeros
    int64_t sums_pitch;                            ///< ... and whether they are one per token (1) or one for all (0)
} back_sweep;

/// The sums of `width` vectors over their halves (2) or quarters (4), side by side in one: lanes n * 16 / width .. are
/// those of v[n]. Sums that are kept over the tiles of a unit take so much less of L1.
KR_INLINE kr_vf fold(const int width, const kr_vf *v) {
    if (width == 1) return v[0];
    if (width == 2) return low_8(v[0], v[1]) + high_8(v[0], v[1]);
    const kr_vf even = low_8(v[0], v[2]) + high_8(v[0], v[2]), odd = low_8(v[1], v[3]) + high_8(v[1], v[3]);
    return low_4(even, odd) + high_4(even, odd);
}

/// Recomputes `width` states of the chunk; y and dC come along, since they need nothing from later tokens.
KR_INLINE void recompute(const int width, const bool mixed, const back_sweep *r, int64_t first, trace *kept) {
    const sweep *s = &r->s;
    const bool fixed_B = mixed && s->constant_B, fixed_C = mixed && s->constant_C;
    const int64_t B_pitch = fixed_B ? 0 : s->B_pitch, C_pitch = fixed_C ? 0 : s->C_pitch;
    const int64_t dC_pitch = fixed_C ? 0 : LANES, before_pitch = fixed_C ? 0 : r->before_pitch;
    const float *B = s->B + (fixed_B ? first * LANES : first), *C = s->C + (fixed_C ? first * LANES : first);
    const float *A = r->A + first * LANES, *start = r->start + first * LANES, *dC_before = r->dC_before;
    float *dC = r->dC;
    track *k = r->k;
    ahead next = s->next;
    const kr_vf *y_before = r->y_before;
    kr_vf h[BACK_WIDTH], rate[BACK_WIDTH];
    EACH4(n, width,
        rate[n] = kr_v_load(A + n * LANES);
        kept->before[0][n] = h[n] = kr_v_load(start + n * LANES);
        __builtin_prefetch(r->soon + (first + n) * LANES, 0, 2);)
    for (int t = 0; t < s->count;) {
        const int begin = t, end = run_end(s, t);
        if (s->fresh >> t & 1) {
            EACH4(n, width, h[n] = kr_v_set(0);)
        }
        for (; t < end; t++, B += B_pitch, C += C_pitch, dC += dC_pitch, dC_before += before_pitch) {
            const kr_vf dt = k->dt[t], dtu = k->dtu[t], dy = k->dy[t];
            kr_vf even = y_before[t * r->sums_pitch], odd = kr_v_set(0), part[BACK_WIDTH];
            prefetch_ahead(&next, BACK_FETCH);
            EACH4(n, width,
                const kr_vf a = decay_of(dt, rate[n]);
                h[n] = a * h[n] + dtu * coefficient(B, fixed_B, n);
                kept->decay[t][n] = a;
                kept->before[t + 1][n] = h[n];
                part[n] = dy * h[n];
                if (n & 1) odd += coefficient(C, fixed_C, n) * h[n];
                else even += coefficient(C, fixed_C, n) * h[n];)
            k->y[t] = even + odd;
            kr_v_store(dC, kr_v_load(dC_before) + fold(width, part));
        }
        if (s->fresh >> begin & 1) {
            EACH4(n, width, kept->decay[begin][n] = kr_v_set(0);)
        }
    }
}

/// Runs the adjoint of `width` states from the end of the chunk to its start.
KR_INLINE void reverse(const int width, const bool mixed, const back_sweep *r, int64_t first, const trace *kept) {
    const sweep *s = &r->s;
    const bool fixed_B = mixed && s->constant_B, fixed_C = mixed && s->constant_C;
    const int64_t B_pitch = fixed_B ? 0 : s->B_pitch, C_pitch = fixed_C ? 0 : s->C_pitch, end = s->count - 1;
    const int64_t dB_pitch = fixed_B ? 0 : LANES, before_pitch = fixed_B ? 0 : r->before_pitch;
    const float *B = s->B + (fixed_B ? first * LANES : first) + end * B_pitch;
    const float *C = s->C + (fixed_C ? first * LANES : first) + end * C_pitch;
    const float *A = r->A + first * LANES, *dB_before = r->dB_before + end * before_pitch;
    float *dB = r->dB + end * dB_pitch, *adjoint = r->adjoint + first * LANES, *dA = r->dA + first * LANES;
    track *k = r->k;
    const kr_vf *gB_before = r->gB_before, *qA_before = r->qA_before;
    const int64_t sums_pitch = r->sums_pitch;
    kr_vf g[BACK_WIDTH], sum[BACK_WIDTH], rate[BACK_WIDTH];
    EACH4(n, width,
        rate[n] = kr_v_load(A + n * LANES);
        g[n] = kr_v_load(adjoint + n * LANES);
        sum[n] = kr_v_load(dA + n * LANES);)
    for (int64_t t = end; t >= 0; t--, B -= B_pitch, C -= C_pitch, dB -= dB_pitch, dB_before -= before_pitch) {
        const kr_vf dt = k->dt[t], dtu = k->dtu[t], dy = k->dy[t];
        kr_vf gB = gB_before[t * sums_pitch], qA = qA_before[t * sums_pitch], part[BACK_WIDTH];
        EACH4(n, width,
            g[n] += dy * coefficient(C, fixed_C, n);
            part[n] = g[n] * dtu;
            gB += g[n] * coefficient(B, fixed_B, n);
            g[n] *= kept->decay[t][n];
            const kr_vf q = g[n] * kept->before[t][n];
            qA += q * rate[n];
            sum[n] += q * dt;)
        kr_v_store(dB, kr_v_load(dB_before) + fold(width, part));
        k->gB[t] = gB;
        k->qA[t] = qA;
    }
    EACH4(n, width,
        kr_v_store(adjoint + n * LANES, g[n]);
        kr_v_store(dA + n * LANES, sum[n]);)
}

KR_INLINE void retrace(const int width, const bool mixed, const back_sweep *r, int64_t first) {
    recompute(width, mixed, r, first, r->kept);
    reverse(width, mixed, r, first, r->kept);
}

static NOINLINE void retrace_4(const back_sweep *r, int64_t first) { retrace(4, false, r, first); }
static NOINLINE void retrace_2(const back_sweep *r, int64_t first) { retrace(2, false, r, first); }
static NOINLINE void retrace_1(const back_sweep *r, int64_t first) { retrace(1, true, r, first); }

/// The largest block of states that has code of its own. Constant B or C go one state at a time.
static int block_of(const kr_scan_size *s, int64_t left) {
    if (s->constant_B || s->constant_C) return 1;
    return left >= 4 ? 4 : left >= 2 ? 2 : 1;
}

/// Which of the blocks the one from state `first` is: those of 4 states come first.
static int64_t block_index(const kr_scan_size *s, int64_t first) {
    return s->constant_B || s->constant_C ? first : first / BACK_WIDTH + (first % BACK_WIDTH > 0);
}

static void put(sink to, int64_t row, tile at, kr_vf v) {
    if (to.data) kr_v_store_n(to.data + row * to.pitch + at.channel, v, at.lanes);
}

/// Reads what one tile needs of a chunk.
static NOINLINE void load_chunk(track *k, const scan_grad *d, tile at, span p) {
    const scan *s = &d->s;
    const kr_vf bias = vector_of(s->delta_bias, at), one = kr_v_set(1);
    for (int t = 0; t < p.count; t++) {
        const int64_t row = p.row + t;
        const kr_vf u = kr_v_load_n(s->u + row * s->u_pitch + at.channel, at.lanes);
        const kr_vf raw = kr_v_load_n(s->delta + row * s->delta_pitch + at.channel, at.lanes) + bias;
        const kr_vf dout = d->dout ? kr_v_load_n(d->dout + row * d->dout_pitch + at.channel, at.lanes) : kr_v_set(0);
        const kr_vf dt = step_and_slope(s->softplus, raw, &k->delta_slope[t]);
        k->dt[t] = dt;
        k->dtu[t] = dt * u;
        if (s->z) {
            const kr_vf z = kr_v_load_n(s->z + row * s->z_pitch + at.channel, at.lanes), gate = gate_of(z);
            k->dy[t] = dout * z * gate;
            k->gate_slope[t] = dout * gate * (one + z * (one - gate));
        } else k->dy[t] = dout;
    }
}

/// Writes the gradients of one tile for a chunk; sums: dD and ddelta_bias.
static NOINLINE void store_chunk(const track *k, const scan_grad *d, tile at, span p, float *sums) {
    const scan *s = &d->s;
    const kr_vf D = vector_of(s->D, at);
    kr_vf dD = kr_v_load(sums), dbias = kr_v_load(sums + LANES);
    for (int t = 0; t < p.count; t++) {
        // du may be written over u, but not before this
        const kr_vf u = kr_v_load_n(s->u + (p.row + t) * s->u_pitch + at.channel, at.lanes);
        const kr_vf ddt = k->qA[t] * kr_v_set(1 / RATE_OF_LOG) + u * k->gB[t], ddelta = ddt * k->delta_slope[t];
        dD += k->dy[t] * u;
        dbias += ddelta;
        put(d->du, p.row + t, at, D * k->dy[t] + k->dt[t] * k->gB[t]);
        put(d->ddelta, p.row + t, at, ddelta);
        if (d->dz.data) put(d->dz, p.row + t, at, k->gate_slope[t] * (k->y[t] + D * u));
    }
    kr_v_store(sums, dD);
    kr_v_store(sums + LANES, dbias);
}

/// One unit of work: a share of one group of one batch row.
typedef struct back_unit {
    int64_t b, group, from, to;  ///< tiles from .. to
    float *tiles;                ///< planes of the batch row's tiles
    float *lane_dB, *lane_dC;    ///< sums of a chunk
    track *k;
    trace *kept;
    const float *stream[BACK_STREAMS]; ///< tensors whose next lines are prefetched
    int64_t pitch[BACK_STREAMS];
} back_unit;

/// A block of `width` states from `first` of tile `index` over a chunk.
static void retrace_block(const scan_grad *d, const back_unit *w, int64_t index, int64_t chunk, span p, track *k,
                          int64_t first, int width) {
    static const float zeros[LANES] __attribute__((aligned(64)));
    const kr_scan_size *size = &d->s.size;
    const int64_t plane = kr_scan_plane(size), sums = block_index(size, first) * CHUNK * LANES,
                  share = first / BACK_WIDTH * BACK_FETCH;
    float *planes = w->tiles + index * kr_scan_tile_floats(size);
    float *fixed_B = planes + KR_SCAN_FIXED_BACK * plane, *fixed_C = fixed_B + 2 * size->constant_B * plane;
    const tile at = tile_at(size, index);
    back_sweep r = {.k = k,
                    .kept = w->kept,
                    .A = planes + KR_SCAN_A * plane,
                    .adjoint = planes + KR_SCAN_ADJOINT * plane,
                    .dA = planes + KR_SCAN_DA * plane,
                    .start = d->saved + ((w->b * size->chunks + chunk) * size->tiles + index) * plane,
                    .dB = w->lane_dB + sums,
                    .dC = w->lane_dC + sums,
                    .before_pitch = LANES};
    r.soon = chunk ? r.start - size->tiles * plane : r.start;
    r.dB_before = r.dB;
    r.dC_before = r.dC;
    r.y_before = first ? k->y : (const kr_vf *)zeros;
    r.gB_before = first ? k->gB : (const kr_vf *)zeros;
    r.qA_before = first ? k->qA : (const kr_vf *)zeros;
    r.sums_pitch = first > 0;
    if (index == w->from) { // nothing to add to yet
        r.dB_before = r.dC_before = zeros;
        r.before_pitch = 0;
    }
    if (size->constant_B) r.dB_before = r.dB = fixed_B + plane + first * LANES;
    if (size->constant_C) r.dC_before = r.dC = fixed_C + plane + first * LANES;
    prepare(&r.s, &d->s, p, at, fixed_B, fixed_C);
    ahead_start(&r.s.next, index - w->from, w->to - w->from, p.row - CHUNK, tile_at(size, w->from).channel);
    for (int i = 0; i < BACK_FETCH && share < BACK_STREAMS; i++)
        ahead_follow(&r.s.next, i, w->stream[share + i], w->pitch[share + i]);
    (width == 4 ? retrace_4 : width == 2 ? retrace_2 : retrace_1)(&r, first);
}

/// All tiles of a unit over one chunk.
static void backward_chunk(const scan_grad *d, const back_unit *w, int64_t chunk, span p) {
    const kr_scan_size *size = &d->s.size;
    for (int64_t i = w->from; i < w->to; i++) {
        const tile at = tile_at(size, i);
        float *sums = w->tiles + i * kr_scan_tile_floats(size) + kr_scan_backward_planes(size) * kr_scan_plane(size);
        load_chunk(w->k, d, at, p);
        if (size->states == 0) clear((float *)w->k->y, 3 * CHUNK * LANES);
        for (int64_t n = 0; n < size->states;) {
            const int width = block_of(size, size->states - n);
            retrace_block(d, w, i, chunk, p, w->k, n, width);
            n += width;
        }
        store_chunk(w->k, d, at, p, sums);
    }
}

/// Folds sums of `width` states of 16 / width tokens on, to single lanes: lane n * 16 / width + t is state n of token
/// t.
static kr_vf fold_tokens(const int64_t width, kr_vf *v) {
    if (width == 1)
        for (int i = 0; i < 8; i++) v[i] = low_8(v[i], v[i + 8]) + high_8(v[i], v[i + 8]);
    if (width <= 2)
        for (int i = 0; i < 4; i++) v[i] = low_4(v[i], v[i + 4]) + high_4(v[i], v[i + 4]);
    for (int i = 0; i < 2; i++) v[i] = low_2(v[i], v[i + 2]) + high_2(v[i], v[i + 2]);
    return low_1(v[0], v[1]) + high_1(v[0], v[1]);
}

/// Sums of a chunk to its rows [N].
static NOINLINE void flush(const kr_scan_size *s, const float *sums, int count, sink to) {
    for (int64_t first = 0; first < s->states && to.data;) {
        const int64_t width = block_of(s, s->states - first), tokens = LANES / width;
        const float *from = sums + block_index(s, first) * CHUNK * LANES;
        for (int64_t t = 0; t < count; t += tokens) {
            const int64_t left = at_most(count - t, tokens);
            float sum[LANES];
            kr_vf v[LANES];
            for (int64_t i = 0; i < tokens; i++) v[i] = i < left ? kr_v_load(from + (t + i) * LANES) : kr_v_set(0);
            kr_v_store(sum, fold_tokens(width, v));
            for (int64_t i = 0; i < left; i++)
                for (int64_t n = 0; n < width; n++) to.data[(t + i) * to.pitch + first + n] = sum[n * tokens + i];
        }
        first += width;
    }
}

/// Where a unit's sums of chunk c go, whose first row of `whole` is `row`: there if no other unit adds to it.
static sink share_of(const kr_scan_size *s, sink whole, float *partial, int64_t row, int64_t c) {
    if (s->split > 1) return (sink){partial + c * CHUNK * s->states, s->states};
    return (sink){whole.data ? whole.data + row * whole.pitch : 0, whole.pitch * s->groups};
}

/// Prefetches lines that will be written after the chunk.
static void prefetch_written(const float *x, int64_t floats) {
    for (int64_t k = 0; k < floats; k += LANES) __builtin_prefetch(x + k, 1, 2);
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
    float *lane_dB = work + kr_scan_lane_sums_at(size) + unit * kr_scan_unit_floats(size);
    float *lane_dC = lane_dB + kr_scan_lane_sums(size) / 2;
    float *partial = work + kr_scan_partials_at(size) + unit * kr_scan_partials(size);
    float *kept = lane_dB + kr_scan_lane_sums(size) + KR_SCAN_APART;
    const back_unit w = {
        b,
        group,
        from,
        to,
        tiles,
        lane_dB,
        lane_dC,
        (track *)(kept + KR_SCAN_TRACE),
        (trace *)kept,
        {s->u, s->delta, s->z, d->dout, d->du.data, d->ddelta.data, d->dz.data},
        {s->u_pitch, s->delta_pitch, s->z_pitch, d->dout_pitch, d->du.pitch, d->ddelta.pitch, d->dz.pitch}};
    if (from == to) clear(lane_dB, kr_scan_lane_sums(size));
    for (int64_t i = from; i < to; i++) {
        const tile at = tile_at(size, i);
        float *planes = tiles + i * stride, *fixed = planes + KR_SCAN_FIXED_BACK * plane;
        clear(planes, stride);
        pack_rates(planes + KR_SCAN_A * plane, s->A + at.channel * states, at.lanes, states);
        if (d->dlast)
            pack(planes + KR_SCAN_ADJOINT * plane, d->dlast + (b * size->channels + at.channel) * states, states,
                 at.lanes, states, 1);
        if (size->constant_B) pack(fixed, s->B + at.channel * s->B_pitch, s->B_pitch, at.lanes, states, 1);
        if (size->constant_C)
            pack(fixed + 2 * size->constant_B * plane, s->C + at.channel * s->C_pitch, s->C_pitch, at.lanes, states, 1);
    }
    for (int64_t c = size->chunks - 1; c >= 0; c--) {
        const span p = span_at(s, b, c);
        const sink dB = share_of(size, d->dB, partial, p.row * size->groups + group, c);
        const sink dC = share_of(size, d->dC, partial + size->length * states, p.row * size->groups + group, c);
        if (size->split > 1) {
            prefetch_written(dB.data, p.count * states);
            prefetch_written(dC.data, p.count * states);
        }
        backward_chunk(d, &w, c, p);
        if (!size->constant_B) flush(size, lane_dB, p.count, dB);
        if (!size->constant_C) flush(size, lane_dC, p.count, dC);
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
    for (int64_t unit = begin; unit < end; unit++)
        backward_unit(&d, call->work, unit, call->out[SELECTIVE_GRAD_DH0].data);
}
