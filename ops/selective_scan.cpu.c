/// Selective scan on the CPU.
///
/// Lanes are channels: a tile is 16 neighbouring channels of one token, so loads of u, delta and z are plain vectors, B
/// and C are broadcasts, and nothing is ever summed over lanes on the way forward. A block of up to 16 states of a tile
/// goes through a chunk of 32 tokens at once; any number of states is a row of blocks of 16, 8, 4, 2 and 1.
/// The decay exp(dt * A) is 2^(dt * A') with A' = A * log2(e), made once.
///
/// Time runs chunk by chunk, and in each chunk over the tiles of a unit: rows of memory are used while they are near,
/// and B and C of a chunk stay in L1. The state at the start of every chunk is saved for the backward pass.
#include "ops/selective_scan_tile.h"

/// h = exp(dt A) h + dt u B and y += C h for `width` states from `first`. The states stay in memory, that is in L1: as
/// registers they would push out the constants of the exponential, and the store is forwarded long before the next token.
KR_INLINE void advance(const int width, const bool mixed, sweep *s, const float *A, float *state, int64_t first) {
    const bool fixed_B = mixed && s->constant_B, fixed_C = mixed && s->constant_C;
    const float *B = s->B + (fixed_B ? first * LANES : first), *C = s->C + (fixed_C ? first * LANES : first);
    const kr_vf *step = s->dt, *input = s->dtu;
    const int64_t B_pitch = fixed_B ? 0 : s->B_pitch, C_pitch = fixed_C ? 0 : s->C_pitch;
    kr_vf *sum = s->y;
    ahead next = s->next;
    A += first * LANES;
    state += first * LANES;
    if (first) ahead_start(&next, 0, 1, 0, 0);
    for (int t = 0; t < s->count;) {
        const int end = run_end(s, t);
        if (s->fresh >> t & 1) clear(state, width * LANES);
        for (; t < end; t++, B += B_pitch, C += C_pitch) {
            const kr_vf dt = step[t], dtu = input[t];
            kr_vf y[4] = {sum[t], kr_v_set(0), kr_v_set(0), kr_v_set(0)};
            fetch(&next, STREAMS);
            EACH16(n, width,
                const kr_vf h = kr_v_exp2(dt * kr_v_load(A + n * LANES)) * kr_v_load(state + n * LANES) +
                                dtu * coefficient(B, fixed_B, n);
                kr_v_store(state + n * LANES, h);
                y[n & 3] += coefficient(C, fixed_C, n) * h;)
            sum[t] = (y[0] + y[1]) + (y[2] + y[3]);
        }
    }
}

static NOINLINE void advance_16(sweep *s, const float *A, float *h, int64_t n) { advance(16, false, s, A, h, n); }
static NOINLINE void advance_8(sweep *s, const float *A, float *h, int64_t n) { advance(8, false, s, A, h, n); }
static NOINLINE void advance_4(sweep *s, const float *A, float *h, int64_t n) { advance(4, false, s, A, h, n); }
static NOINLINE void advance_2(sweep *s, const float *A, float *h, int64_t n) { advance(2, false, s, A, h, n); }
static NOINLINE void advance_1(sweep *s, const float *A, float *h, int64_t n) { advance(1, true, s, A, h, n); }

/// The largest block of states that has code of its own. Constant B or C go one state at a time.
static int block_of(const kr_scan_size *s, int64_t left) {
    if (s->constant_B || s->constant_C) return 1;
    return left >= 16 ? 16 : left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
}

static void advance_all(sweep *s, const kr_scan_size *size, const float *A, float *state) {
    for (int64_t n = 0; n < size->states;) {
        const int width = block_of(size, size->states - n);
        switch (width) {
        case 16: advance_16(s, A, state, n); break;
        case 8: advance_8(s, A, state, n); break;
        case 4: advance_4(s, A, state, n); break;
        case 2: advance_2(s, A, state, n); break;
        default: advance_1(s, A, state, n); break;
        }
        n += width;
    }
}

KR_INLINE kr_vf step_size(const scan *s, kr_vf raw) { return s->softplus ? kr_v_softplus(raw) : raw; }

/// The tiles of a unit: from .. to, of batch row b.
typedef struct unit {
    int64_t b, from, to;
} unit;

static void forward_chunk(const scan *s, unit k, int64_t index, span p, float *planes, float *out, int64_t out_pitch) {
    const int64_t plane = kr_scan_plane(&s->size);
    const tile at = tile_at(&s->size, index);
    const float *fixed = planes + KR_SCAN_FIXED * plane;
    const kr_vf D = vector_of(s->D, at), bias = vector_of(s->delta_bias, at);
    kr_vf dt[CHUNK], dtu[CHUNK], y[CHUNK];
    sweep w = {.dt = dt, .dtu = dtu, .y = y};
    prepare(&w, s, p, at, fixed, fixed + s->size.constant_B * plane);
    ahead_start(&w.next, index - k.from, k.to - k.from, p.row + CHUNK, tile_at(&s->size, k.from).channel);
    ahead_follow(&w.next, 0, s->u, s->u_pitch);
    ahead_follow(&w.next, 1, s->delta, s->delta_pitch);
    ahead_follow(&w.next, 2, s->z, s->z_pitch);
    ahead_follow(&w.next, 3, out, out_pitch);
    for (int t = 0; t < p.count; t++) {
        const kr_vf u = kr_v_load_n(s->u + (p.row + t) * s->u_pitch + at.channel, at.lanes);
        const kr_vf step = step_size(s, kr_v_load_n(s->delta + (p.row + t) * s->delta_pitch + at.channel, at.lanes) + bias);
        dt[t] = step;
        dtu[t] = step * u;
        y[t] = D * u;
    }
    advance_all(&w, &s->size, planes + KR_SCAN_A * plane, planes + KR_SCAN_STATE * plane);
    for (int t = 0; t < p.count; t++) {
        const int64_t row = p.row + t;
        const kr_vf gate = s->z ? kr_v_silu(kr_v_load_n(s->z + row * s->z_pitch + at.channel, at.lanes)) : kr_v_set(1);
        kr_v_store_n(out + row * out_pitch + at.channel, y[t] * gate, at.lanes);
    }
}

KR_KERNEL(selective_scan) {
    const scan s = scan_of(call->attrs, call->in, &call->in[9]);
    const kr_scan_size *size = &s.size;
    const float *h0 = call->in[8].data;
    float *out = call->out[0].data, *last = call->out[1].data, *saved = call->out[2].data;
    const int64_t states = size->states, plane = kr_scan_plane(size), planes = kr_scan_forward_planes(size);
    const int64_t out_pitch = kr_arg_pitch(&call->out[0]);
    const int64_t runs = (size->tiles + kr_scan_run(size) - 1) / kr_scan_run(size);
    int64_t begin, end;
    kr_share(size->batch * runs, part, parts, &begin, &end);
    for (int64_t n = begin; n < end; n++) {
        const int64_t b = n / runs, from = size->tiles * (n % runs) / runs, to = size->tiles * (n % runs + 1) / runs;
        float *work = (float *)call->work + b * size->tiles * planes * plane;
        for (int64_t i = from; i < to; i++) {
            const tile at = tile_at(size, i);
            float *w = work + i * planes * plane;
            pack(w + KR_SCAN_A * plane, s.A + at.channel * states, states, at.lanes, states, LOG2E);
            if (h0) pack(w + KR_SCAN_STATE * plane, h0 + (b * size->channels + at.channel) * states, states, at.lanes, states, 1);
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
                    stream(saved + ((b * size->chunks + c) * size->tiles + i) * plane, w + KR_SCAN_STATE * plane, plane);
                forward_chunk(&s, (unit){b, from, to}, i, p, w, out, out_pitch);
            }
        }
        for (int64_t i = from; i < to && last; i++) {
            const tile at = tile_at(size, i);
            unpack(last + (b * size->channels + at.channel) * states, states, work + (i * planes + KR_SCAN_STATE) * plane,
                   at.lanes, states);
        }
    }
    stream_end();
}
