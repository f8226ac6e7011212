/// Selective scan on the CPU.
///
/// Lanes are channels: a tile is 16 neighbouring channels of one token, so loads of u, delta and z are plain vectors, B
/// and C are broadcasts, and nothing is ever summed over lanes on the way forward. A block of up to 16 states of a tile
/// stays in registers for a chunk of 32 tokens; any number of states is a row of blocks of 16, 8, 4, 2 and 1.
/// The decay exp(dt * A) is 2^(dt * A') with A' = A * log2(e), made once.
///
/// Time runs chunk by chunk, and in each chunk over the tiles of a unit: rows of memory are used while they are near,
/// and B and C of a chunk stay in L1. The state at the start of every chunk is saved for the backward pass, which takes
/// the chunks from last to first: it recomputes h and the decays of one chunk into a scratch that fits the caches,
/// then runs through it in reverse (MATH 5, docs/state-space). What must be summed over channels (dB, dC) is kept per
/// lane over the tiles of a unit and summed over lanes once per chunk; what must be summed over the batch (dA, dD,
/// ddelta_bias) is kept per batch row and added up by the second stage. Both orders are fixed.
#include "ops/selective_scan.h"
#include "ops/lanes.h"

enum { LANES = KR_SCAN_LANES, CHUNK = KR_SCAN_CHUNK };
_Static_assert(KR_SCAN_LANES == KR_LANES, "a tile is one vector");
_Static_assert(KR_SCAN_CHUNK <= 32, "one bit per token");

#define LOG2E 1.44269504f
#define LN2 0.693147181f
/// The statements for n = 0 .. width - 1, written out: loops that a compiler unrolls late leave arrays of states in
/// memory. width is a constant of at most 16.
#define EACH(n, width, ...)                                                                                          \
    EACH_(n, 0, width, __VA_ARGS__) EACH_(n, 1, width, __VA_ARGS__) EACH_(n, 2, width, __VA_ARGS__)                  \
    EACH_(n, 3, width, __VA_ARGS__) EACH_(n, 4, width, __VA_ARGS__) EACH_(n, 5, width, __VA_ARGS__)                  \
    EACH_(n, 6, width, __VA_ARGS__) EACH_(n, 7, width, __VA_ARGS__) EACH_(n, 8, width, __VA_ARGS__)                  \
    EACH_(n, 9, width, __VA_ARGS__) EACH_(n, 10, width, __VA_ARGS__) EACH_(n, 11, width, __VA_ARGS__)                \
    EACH_(n, 12, width, __VA_ARGS__) EACH_(n, 13, width, __VA_ARGS__) EACH_(n, 14, width, __VA_ARGS__)               \
    EACH_(n, 15, width, __VA_ARGS__)
#define EACH_(n, value, width, ...)                      \
    {                                                    \
        enum { n = value };                              \
        if (n < (width)) { __VA_ARGS__ }                 \
    }
#define NOINLINE __attribute__((noinline))

// Operands ------------------------------------------------------------------------------------------------------------

/// The operands that both directions share, by name. Absent ones are null.
typedef struct scan {
    kr_scan_size size;
    const float *u, *delta, *A, *B, *C, *D, *z, *delta_bias;
    const int32_t *reset;
    int64_t u_pitch, delta_pitch, B_pitch, C_pitch, z_pitch;
    bool softplus;
} scan;

/// in: u, delta, A, B, C, D, z, delta_bias.
static scan scan_of(const kr_attrs *attrs, const kr_arg *in, const kr_arg *reset) {
    scan s = {.size = kr_scan_measure(&in[0].shape, &in[2].shape, &in[3].shape, &in[4].shape),
              .u = in[0].data, .delta = in[1].data, .A = in[2].data, .B = in[3].data, .C = in[4].data,
              .D = in[5].data, .z = in[6].data, .delta_bias = in[7].data, .reset = reset->data,
              .u_pitch = kr_arg_pitch(&in[0]), .delta_pitch = kr_arg_pitch(&in[1]), .B_pitch = kr_arg_pitch(&in[3]),
              .C_pitch = kr_arg_pitch(&in[4]), .softplus = attrs->i[0] != 0};
    if (s.z) s.z_pitch = kr_arg_pitch(&in[6]);
    return s;
}

/// Up to 16 neighbouring channels of one group.
typedef struct tile {
    int64_t group, channel, lanes;
} tile;

static tile tile_at(const kr_scan_size *s, int64_t index) {
    const int64_t width = s->channels / s->groups, within = index % s->group_tiles * LANES;
    tile t = {index / s->group_tiles, 0, width - within < LANES ? width - within : LANES};
    t.channel = t.group * width + within;
    return t;
}

/// Rows of a chunk: tokens first .. first + count of batch row b; row = b * L + first.
typedef struct span {
    int64_t row;
    int count;
    uint32_t fresh; ///< bit t: the state before token t counts as zero
} span;

static span span_at(const scan *s, int64_t batch, int64_t chunk) {
    const int64_t first = chunk * CHUNK, left = s->size.length - first;
    span p = {batch * s->size.length + first, (int)(left < CHUNK ? left : CHUNK), 0};
    if (s->reset)
        for (int t = 0; t < p.count; t++) p.fresh |= (uint32_t)(s->reset[p.row + t] > 0) << t;
    return p;
}

/// Rows of a tile, [lanes, N] at `pitch`, times `scale`, to a plane [N, 16]; unused lanes are zero.
static void pack(float *plane, const float *x, int64_t pitch, int64_t lanes, int64_t states, float scale) {
    for (int64_t n = 0; n < states; n++)
        for (int k = 0; k < LANES; k++) plane[n * LANES + k] = k < lanes ? x[k * pitch + n] * scale : 0;
}

static void unpack(float *x, int64_t pitch, const float *plane, int64_t lanes, int64_t states) {
    for (int64_t k = 0; k < lanes; k++)
        for (int64_t n = 0; n < states; n++) x[k * pitch + n] = plane[n * LANES + k];
}

static void copy(float *to, const float *from, int64_t floats) {
    for (int64_t k = 0; k < floats; k += LANES) kr_v_store(to + k, kr_v_load(from + k));
}

static void clear(float *x, int64_t floats) {
    for (int64_t k = 0; k < floats; k += LANES) kr_v_store(x + k, kr_v_set(0));
}

KR_INLINE kr_vf step_size(const scan *s, kr_vf raw) { return s->softplus ? kr_v_softplus(raw) : raw; }

/// The largest block of states that has a kernel of its own. Constant B or C go one state at a time.
static int block_of(const kr_scan_size *s, int64_t left) {
    if (s->constant_B || s->constant_C) return 1;
    return left >= 16 ? 16 : left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
}

// Forward -------------------------------------------------------------------------------------------------------------

/// A row that will be wanted soon, and how far the next one is. A tile takes one cache line of each row, so the
/// hardware sees no stream to follow: while a chunk is computed, every token asks for a few lines of the next chunk.
typedef struct stream {
    const char *at;
    int64_t step;
} stream;
enum { FORWARD_STREAMS = 4, BACK_STREAMS = 7, BLOCK_STREAMS = 2 };

static stream stream_of(const float *x, int64_t row, int64_t pitch, int64_t channel) {
    if (!x) return (stream){0, 0};
    return (stream){(const char *)x + (row * pitch + channel) * (int64_t)sizeof(float), pitch * (int64_t)sizeof(float)};
}

KR_INLINE void fetch(stream *s, int count) {
    EACH(i, count, __builtin_prefetch(s[i].at, 0, 2); s[i].at += s[i].step;)
}

/// One tile over one chunk.
typedef struct sweep {
    int count;
    uint32_t fresh;
    kr_vf dt[CHUNK], dtu[CHUNK], y[CHUNK]; ///< step size, step size times u, sum so far
    const float *B, *C;                    ///< token rows at a pitch, or one vector per state where constant
    int64_t B_pitch, C_pitch;
    bool constant_B, constant_C;
    stream ahead[BACK_STREAMS + BLOCK_STREAMS]; ///< what the next chunk will need
} sweep;

/// One state's B or C of a token: broadcast over the lanes, or a vector where constant.
KR_INLINE kr_vf coefficient(const float *row, bool constant, int n) {
    return constant ? kr_v_load(row + n * LANES) : kr_v_set(row[n]);
}

/// The end of the run of tokens from t on in which no state is reset but that before t.
KR_INLINE int run_end(const sweep *s, int t) {
    const uint32_t later = t < 31 ? s->fresh >> (t + 1) : 0;
    const int end = later ? t + 1 + __builtin_ctz(later) : s->count;
    return end < s->count ? end : s->count;
}

/// h = exp(dt A) h + dt u B and y += C h for `width` states from `first`.
KR_INLINE void advance(const int width, const bool mixed, sweep *s, const float *A, float *state, int64_t first) {
    const bool fixed_B = mixed && s->constant_B, fixed_C = mixed && s->constant_C;
    const float *B = s->B + (fixed_B ? first * LANES : first), *C = s->C + (fixed_C ? first * LANES : first);
    stream ahead[FORWARD_STREAMS] = {{0, 0}};
    kr_vf h[16];
    A += first * LANES;
    state += first * LANES;
    EACH(i, FORWARD_STREAMS, if (!first) ahead[i] = s->ahead[i];)
    EACH(n, width, h[n] = kr_v_load(state + n * LANES);)
    for (int t = 0; t < s->count;) {
        const int end = run_end(s, t);
        if (s->fresh >> t & 1) {
            EACH(n, width, h[n] = kr_v_set(0);)
        }
        for (; t < end; t++, B += fixed_B ? 0 : s->B_pitch, C += fixed_C ? 0 : s->C_pitch) {
            const kr_vf dt = s->dt[t], dtu = s->dtu[t];
            kr_vf even = s->y[t], odd = kr_v_set(0);
            fetch(ahead, FORWARD_STREAMS);
            EACH(n, width,
                h[n] = kr_v_exp2(dt * kr_v_load(A + n * LANES)) * h[n] + dtu * coefficient(B, fixed_B, n);
                if (n & 1) odd += coefficient(C, fixed_C, n) * h[n];
                else even += coefficient(C, fixed_C, n) * h[n];)
            s->y[t] = even + odd;
        }
    }
    EACH(n, width, kr_v_store(state + n * LANES, h[n]);)
}

static NOINLINE void advance_16(sweep *s, const float *A, float *h, int64_t n) { advance(16, false, s, A, h, n); }
static NOINLINE void advance_8(sweep *s, const float *A, float *h, int64_t n) { advance(8, false, s, A, h, n); }
static NOINLINE void advance_4(sweep *s, const float *A, float *h, int64_t n) { advance(4, false, s, A, h, n); }
static NOINLINE void advance_2(sweep *s, const float *A, float *h, int64_t n) { advance(2, false, s, A, h, n); }
static NOINLINE void advance_1(sweep *s, const float *A, float *h, int64_t n) { advance(1, true, s, A, h, n); }

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

/// Everything but the arrays and `ahead`. fixed_B and fixed_C are the planes of constant B and C.
static void prepare(sweep *w, const scan *s, span p, tile at, const float *fixed_B, const float *fixed_C) {
    const kr_scan_size *size = &s->size;
    w->count = p.count;
    w->fresh = p.fresh;
    w->constant_B = size->constant_B;
    w->constant_C = size->constant_C;
    w->B_pitch = s->B_pitch * size->groups;
    w->C_pitch = s->C_pitch * size->groups;
    w->B = size->constant_B ? fixed_B : s->B + (p.row * size->groups + at.group) * s->B_pitch;
    w->C = size->constant_C ? fixed_C : s->C + (p.row * size->groups + at.group) * s->C_pitch;
}

static kr_vf vector_of(const float *x, tile at) { return x ? kr_v_load_n(x + at.channel, at.lanes) : kr_v_set(0); }

static void forward_chunk(const scan *s, tile at, span p, float *planes, float *out, int64_t out_pitch) {
    const int64_t plane = kr_scan_plane(&s->size), next = p.row + CHUNK;
    const float *fixed = planes + KR_SCAN_FIXED * plane;
    const kr_vf D = vector_of(s->D, at), bias = vector_of(s->delta_bias, at);
    sweep w; // not an initialiser: that would clear its arrays
    prepare(&w, s, p, at, fixed, fixed + s->size.constant_B * plane);
    w.ahead[0] = stream_of(s->u, next, s->u_pitch, at.channel);
    w.ahead[1] = stream_of(s->delta, next, s->delta_pitch, at.channel);
    w.ahead[2] = stream_of(s->z, next, s->z_pitch, at.channel);
    w.ahead[3] = stream_of(out, next, out_pitch, at.channel);
    for (int t = 0; t < p.count; t++) {
        const kr_vf u = kr_v_load_n(s->u + (p.row + t) * s->u_pitch + at.channel, at.lanes);
        const kr_vf dt = step_size(s, kr_v_load_n(s->delta + (p.row + t) * s->delta_pitch + at.channel, at.lanes) + bias);
        w.dt[t] = dt;
        w.dtu[t] = dt * u;
        w.y[t] = D * u;
    }
    advance_all(&w, &s->size, planes + KR_SCAN_A * plane, planes + KR_SCAN_STATE * plane);
    for (int t = 0; t < p.count; t++) {
        const int64_t row = p.row + t;
        const kr_vf gate = s->z ? kr_v_silu(kr_v_load_n(s->z + row * s->z_pitch + at.channel, at.lanes)) : kr_v_set(1);
        kr_v_store_n(out + row * out_pitch + at.channel, w.y[t] * gate, at.lanes);
    }
}

KR_KERNEL(selective_scan) {
    const scan s = scan_of(call->attrs, call->in, &call->in[9]);
    const kr_scan_size *size = &s.size;
    const float *h0 = call->in[8].data;
    float *out = call->out[0].data, *last = call->out[1].data, *saved = call->out[2].data;
    const int64_t states = size->states, plane = kr_scan_plane(size), planes = kr_scan_forward_planes(size);
    const int64_t out_pitch = kr_arg_pitch(&call->out[0]);
    const int64_t runs = (size->tiles + KR_SCAN_RUN - 1) / KR_SCAN_RUN;
    int64_t begin, end;
    kr_share(size->batch * runs, part, parts, &begin, &end);
    for (int64_t unit = begin; unit < end; unit++) {
        const int64_t b = unit / runs, from = unit % runs * KR_SCAN_RUN;
        const int64_t to = from + KR_SCAN_RUN < size->tiles ? from + KR_SCAN_RUN : size->tiles;
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
                    copy(saved + ((b * size->chunks + c) * size->tiles + i) * plane, w + KR_SCAN_STATE * plane, plane);
                forward_chunk(&s, tile_at(size, i), p, w, out, out_pitch);
            }
        }
        for (int64_t i = from; i < to && last; i++) {
            const tile at = tile_at(size, i);
            unpack(last + (b * size->channels + at.channel) * states, states, work + (i * planes + KR_SCAN_STATE) * plane,
                   at.lanes, states);
        }
    }
}

// Backward ------------------------------------------------------------------------------------------------------------

/// States of a block on the way back: adjoints and sums of dA fill the registers.
enum { BACK_WIDTH = 4 };

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
    stream ahead[BLOCK_STREAMS] = {{0, 0}};
    kr_vf h[BACK_WIDTH];
    A += first * LANES;
    start += first * LANES;
    const int64_t share = first / BACK_WIDTH * BLOCK_STREAMS;
    EACH(i, BLOCK_STREAMS, if (share < BACK_STREAMS) ahead[i] = s->ahead[share + i];)
    EACH(n, width, kept->before[0][n] = h[n] = kr_v_load(start + n * LANES);)
    for (int t = 0; t < s->count;) {
        const int begin = t, end = run_end(s, t);
        if (s->fresh >> t & 1) {
            EACH(n, width, h[n] = kr_v_set(0);)
        }
        for (; t < end; t++, B += fixed_B ? 0 : s->B_pitch, C += fixed_C ? 0 : s->C_pitch) {
            const kr_vf dt = s->dt[t], dtu = s->dtu[t];
            kr_vf even = s->y[t], odd = kr_v_set(0);
            fetch(ahead, BLOCK_STREAMS);
            EACH(n, width,
                const kr_vf a = kr_v_exp2(dt * kr_v_load(A + n * LANES));
                h[n] = a * h[n] + dtu * coefficient(B, fixed_B, n);
                kept->decay[t][n] = a;
                kept->before[t + 1][n] = h[n];
                if (n & 1) odd += coefficient(C, fixed_C, n) * h[n];
                else even += coefficient(C, fixed_C, n) * h[n];)
            s->y[t] = even + odd;
        }
        if (s->fresh >> begin & 1) {
            EACH(n, width, kept->decay[begin][n] = kr_v_set(0);)
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
    EACH(n, width,
        g[n] = kr_v_load(adjoint + n * LANES);
        sum[n] = kr_v_load(dA + n * LANES);)
    for (int64_t t = end; t >= 0; t--, B -= B_pitch, C -= C_pitch, dB -= dB_pitch, dC -= dC_pitch) {
        const kr_vf dt = s->dt[t], dtu = s->dtu[t], dy = r->dy[t];
        kr_vf gB = r->gB[t], qA = r->qA[t];
        EACH(n, width,
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
    EACH(n, width,
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
        int width = block_of(size, size->states - n);
        if (width > BACK_WIDTH) width = BACK_WIDTH;
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
                           float *lane_dC) {
    const scan *s = &d->s;
    const kr_scan_size *size = &s->size;
    const int64_t plane = kr_scan_plane(size), next = p.row - CHUNK;
    float *fixed_B = planes + KR_SCAN_FIXED_BACK * plane, *fixed_C = fixed_B + 2 * size->constant_B * plane;
    back_sweep r; // not an initialiser: that would clear its arrays
    prepare(&r.s, s, p, at, fixed_B, fixed_C);
    r.gated = d->dz.data != 0;
    r.dB = size->constant_B ? fixed_B + plane : lane_dB;
    r.dC = size->constant_C ? fixed_C + plane : lane_dC;
    r.s.ahead[0] = stream_of(s->u, next, s->u_pitch, at.channel);
    r.s.ahead[1] = stream_of(s->delta, next, s->delta_pitch, at.channel);
    r.s.ahead[2] = stream_of(s->z, next, s->z_pitch, at.channel);
    r.s.ahead[3] = stream_of(d->dout, next, d->dout_pitch, at.channel);
    r.s.ahead[4] = stream_of(d->du.data, next, d->du.pitch, at.channel);
    r.s.ahead[5] = stream_of(d->ddelta.data, next, d->ddelta.pitch, at.channel);
    r.s.ahead[6] = stream_of(d->dz.data, next, d->dz.pitch, at.channel);
    r.s.ahead[7] = (stream){0, 0};
    load_chunk(&r, d, at, p);
    const back_planes states = {planes + KR_SCAN_A * plane, start, planes + KR_SCAN_ADJOINT * plane,
                                planes + KR_SCAN_DA * plane, size->states};
    retrace_all(&r, size, &states);
    store_chunk(&r, d, at, p, planes + kr_scan_backward_planes(size) * plane);
}

/// Lane i of the result is the sum over the lanes of v[i], each in the same tree.
static kr_vf sum_each(const kr_vf *v) {
    kr_vf a[8], b[4], c[2];
    for (int i = 0; i < 8; i++)
        a[i] = __builtin_shufflevector(v[i], v[i + 8], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
               __builtin_shufflevector(v[i], v[i + 8], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    for (int i = 0; i < 4; i++)
        b[i] = __builtin_shufflevector(a[i], a[i + 4], 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
               __builtin_shufflevector(a[i], a[i + 4], 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
    for (int i = 0; i < 2; i++)
        c[i] = __builtin_shufflevector(b[i], b[i + 2], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
               __builtin_shufflevector(b[i], b[i + 2], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    return __builtin_shufflevector(c[0], c[1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
           __builtin_shufflevector(c[0], c[1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
}

/// [count, N, 16] lane sums to rows [N] at `pitch`; clears the sums for the next chunk.
static NOINLINE void flush(float *lanes, int count, int64_t states, float *to, int64_t pitch) {
    for (int t = 0; t < count; t++)
        for (int64_t n = 0; n < states; n += LANES) {
            const int64_t left = states - n < LANES ? states - n : LANES;
            float *from = lanes + (t * states + n) * LANES;
            kr_vf v[LANES];
            for (int i = 0; i < LANES; i++) v[i] = i < left ? kr_v_load(from + i * LANES) : kr_v_set(0);
            if (to) kr_v_store_n(to + t * pitch + n, sum_each(v), left);
            clear(from, left * LANES);
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
                           tiles + i * stride, lane_dB, lane_dC);
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
