/// Selective scan on the CPU.
///
/// Lanes are channels: a tile is 16 neighbouring channels of one token, so loads of u, delta and z are plain vectors, B
/// and C are broadcasts, and nothing is ever summed over lanes on the way forward. A block of up to 8 states of a tile
/// goes through a chunk of 32 tokens at once; any number of states is a row of blocks of 8, 4, 2 and 1.
/// The decay exp(dt * A) is 2^(dt * A') with A' = A * log2(e), the rate, made once.
///
/// Time runs chunk by chunk, and in each chunk over the tiles of a unit: rows of memory are used while they are near,
/// and B and C of a chunk stay in L1. The state at the start of every chunk is saved for the backward pass.
#include "ops/selective_scan/cpu_tile.h"

enum { ADVANCE_WIDTH = 8 }; ///< states of the largest block

/// h = exp(dt A) h + dt u B and y += C h for `width` states from `first`. Eight states, their rates and the constants
/// of the exponential are what the registers of AVX-512 hold; sixteen would have to go through L1 at every token.
KR_INLINE void advance(const int width, const bool mixed, sweep *s, const float *A, float *state, int64_t first) {
    const bool fixed_B = mixed && s->constant_B, fixed_C = mixed && s->constant_C;
    const float *B = s->B + (fixed_B ? first * LANES : first), *C = s->C + (fixed_C ? first * LANES : first);
    const kr_vf *step = s->dt, *input = s->dtu;
    const int64_t B_pitch = fixed_B ? 0 : s->B_pitch, C_pitch = fixed_C ? 0 : s->C_pitch;
    kr_vf *sum = s->y;
    ahead next = s->next;
    kr_vf h[ADVANCE_WIDTH], rate[ADVANCE_WIDTH];
    A += first * LANES;
    state += first * LANES;
    if (first) ahead_start(&next, 0, 1, 0, 0);
    EACH8(n, width,
        h[n] = kr_v_load(state + n * LANES);
        rate[n] = kr_v_load(A + n * LANES);)
    for (int t = 0; t < s->count;) {
        const int end = run_end(s, t);
        if (s->fresh >> t & 1) {
            EACH8(n, width, h[n] = kr_v_set(0);)
        }
        for (; t < end; t++, B += B_pitch, C += C_pitch) {
            const kr_vf dt = step[t], dtu = input[t];
            kr_vf even = sum[t], odd = kr_v_set(0);
            prefetch_ahead(&next, STREAMS);
            EACH8(n, width,
                h[n] = decay_of(dt, rate[n]) * h[n] + dtu * coefficient(B, fixed_B, n);
                if (n & 1) odd += coefficient(C, fixed_C, n) * h[n];
                else even += coefficient(C, fixed_C, n) * h[n];)
            sum[t] = even + odd;
        }
    }
    EACH8(n, width, kr_v_store(state + n * LANES, h[n]);)
}

static NOINLINE void advance_8(sweep *s, const float *A, float *h, int64_t n) { advance(8, false, s, A, h, n); }
static NOINLINE void advance_4(sweep *s, const float *A, float *h, int64_t n) { advance(4, false, s, A, h, n); }
static NOINLINE void advance_2(sweep *s, const float *A, float *h, int64_t n) { advance(2, false, s, A, h, n); }
static NOINLINE void advance_1(sweep *s, const float *A, float *h, int64_t n) { advance(1, true, s, A, h, n); }

/// The largest block of states that has code of its own. Constant B or C go one state at a time.
static int block_of(const kr_scan_size *s, int64_t left) {
    if (s->constant_B || s->constant_C) return 1;
    return left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
}

static void advance_all(sweep *s, const kr_scan_size *size, const float *A, float *state) {
    for (int64_t n = 0; n < size->states;) {
        const int width = block_of(size, size->states - n);
        switch (width) {
        case 8: advance_8(s, A, state, n); break;
        case 4: advance_4(s, A, state, n); break;
        case 2: advance_2(s, A, state, n); break;
        default: advance_1(s, A, state, n); break;
        }
        n += width;
    }
}

/// What a tile keeps of each token of a chunk: step size, times u; output before the gate, and the gate.
typedef struct rows {
    kr_vf dt[CHUNK], dtu[CHUNK], y[CHUNK], gate[CHUNK];
} rows;

/// Reads a tile's share of the chunk's tokens. A function of its own, so that its constants are in registers.
static NOINLINE void enter(const scan *s, tile at, span p, rows *r) {
    const kr_vf D = vector_of(s->D, at), bias = vector_of(s->delta_bias, at);
    for (int t = 0; t < p.count; t++) {
        const int64_t row = p.row + t;
        const kr_vf u = kr_v_load_n(s->u + row * s->u_pitch + at.channel, at.lanes);
        const kr_vf raw = kr_v_load_n(s->delta + row * s->delta_pitch + at.channel, at.lanes) + bias;
        const kr_vf dt = step_of(s->softplus, raw);
        r->dt[t] = dt;
        r->dtu[t] = dt * u;
        r->y[t] = D * u;
        if (s->z) { // here, so that the divisions run beside the logarithms
            const kr_vf z = kr_v_load_n(s->z + row * s->z_pitch + at.channel, at.lanes);
            r->gate[t] = z * gate_of(z);
        }
    }
}

static NOINLINE void leave(const scan *s, tile at, span p, const rows *r, float *out, int64_t pitch) {
    out += p.row * pitch + at.channel;
    for (int t = 0; t < p.count; t++, out += pitch)
        kr_v_store_n(out, s->z ? r->y[t] * r->gate[t] : r->y[t], at.lanes);
}

/// Neighbouring tiles of batch row b that go through time together: from .. to.
typedef struct unit {
    int64_t b, from, to;
} unit;

static void forward_chunk(const scan *s, unit k, int64_t index, span p, float *planes, float *out, int64_t out_pitch) {
    const int64_t plane = kr_scan_plane(&s->size);
    const tile at = tile_at(&s->size, index);
    const float *fixed = planes + KR_SCAN_FIXED * plane;
    rows r;
    sweep w = {.dt = r.dt, .dtu = r.dtu, .y = r.y};
    prepare(&w, s, p, at, fixed, fixed + s->size.constant_B * plane);
    ahead_start(&w.next, index - k.from, k.to - k.from, p.row + CHUNK, tile_at(&s->size, k.from).channel);
    ahead_follow(&w.next, 0, s->u, s->u_pitch);
    ahead_follow(&w.next, 1, s->delta, s->delta_pitch);
    ahead_follow(&w.next, 2, s->z, s->z_pitch);
    ahead_follow(&w.next, 3, out, out_pitch);
    enter(s, at, p, &r);
    advance_all(&w, &s->size, planes + KR_SCAN_A * plane, planes + KR_SCAN_STATE * plane);
    leave(s, at, p, &r, out, out_pitch);
}

/// Work is cut into runs of tiles. Those that fall to one thread take their chunks together, as far as two chunks of
/// rows fit L2: memory brings wide rows almost twice as fast as narrow ones. Tiles know nothing of each other, so the
/// bits are the same however they are put together.
KR_KERNEL(selective_scan) {
    enum { TOGETHER = 48 };
    const scan s = scan_of(call->attrs, call->in, &call->in[SELECTIVE_RESET]);
    const kr_scan_size *size = &s.size;
    const float *h0 = call->in[SELECTIVE_H0].data;
    float *out = call->out[SELECTIVE_OUT].data, *last = call->out[SELECTIVE_LAST].data,
          *saved = call->out[SELECTIVE_SAVED].data;
    const int64_t states = size->states, plane = kr_scan_plane(size), planes = kr_scan_forward_planes(size);
    const int64_t out_pitch = kr_arg_pitch(&call->out[SELECTIVE_OUT]);
    const int64_t runs = (size->tiles + kr_scan_run(size) - 1) / kr_scan_run(size);
    int64_t begin, end;
    kr_share(size->batch * runs, part, parts, &begin, &end);
    for (int64_t n = begin, next; n < end; n = next) {
        const int64_t b = n / runs, from = size->tiles * (n % runs) / runs;
        int64_t to = size->tiles * (n % runs + 1) / runs;
        for (next = n + 1; next < end && next / runs == b; next++) {
            const int64_t more = size->tiles * (next % runs + 1) / runs;
            if (more - from > TOGETHER) break;
            to = more;
        }
        float *work = (float *)call->work + b * size->tiles * planes * plane;
        for (int64_t i = from; i < to; i++) {
            const tile at = tile_at(size, i);
            float *w = work + i * planes * plane;
            pack_rates(w + KR_SCAN_A * plane, s.A + at.channel * states, at.lanes, states);
            if (h0)
                pack(w + KR_SCAN_STATE * plane, h0 + (b * size->channels + at.channel) * states, states, at.lanes,
                     states, 1);
            else clear(w + KR_SCAN_STATE * plane, plane);
            float *fixed = w + KR_SCAN_FIXED * plane;
            if (size->constant_B) pack(fixed, s.B + at.channel * s.B_pitch, s.B_pitch, at.lanes, states, 1);
            if (size->constant_C)
                pack(fixed + size->constant_B * plane, s.C + at.channel * s.C_pitch, s.C_pitch, at.lanes, states, 1);
        }
        for (int64_t c = 0; c < size->chunks; c++) {
            const span p = span_at(&s, b, c);
            for (int64_t i = from; i < to; i++) {
                float *w = work + i * planes * plane;
                if (saved)
                    stream(saved + ((b * size->chunks + c) * size->tiles + i) * plane, w + KR_SCAN_STATE * plane,
                           plane);
                forward_chunk(&s, (unit){b, from, to}, i, p, w, out, out_pitch);
            }
        }
        for (int64_t i = from; i < to && last; i++) {
            const tile at = tile_at(size, i);
            unpack(last + (b * size->channels + at.channel) * states, states,
                   work + (i * planes + KR_SCAN_STATE) * plane, at.lanes, states);
        }
    }
    stream_end();
}
