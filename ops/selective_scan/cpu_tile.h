/// What the forward and the backward kernels of selective_scan share: operands by name, tiles, chunks, and a tile's way
/// through a chunk. For kernel files only.
#ifndef KRAIT_OPS_SELECTIVE_SCAN_CPU_TILE_H
#define KRAIT_OPS_SELECTIVE_SCAN_CPU_TILE_H

#include "ops/selective_scan/args.h"
#include "ops/selective_scan/cpu_decay.h"
#include "ops/selective_scan/size.h"

enum { LANES = KR_SCAN_LANES, CHUNK = KR_SCAN_CHUNK };
_Static_assert(KR_SCAN_LANES == KR_LANES, "a tile is one vector");
_Static_assert(KR_SCAN_CHUNK <= 32, "one bit per token");

#define NOINLINE __attribute__((noinline))
/// The statements for n = 0 .. width - 1, written out, for a constant width of at most 4 or 16: loops that a compiler
/// unrolls late leave arrays of vectors in memory.
#define EACH_(n, value, width, ...)      \
    {                                    \
        const int n = value;             \
        if (n < (width)) { __VA_ARGS__ } \
    }
#define EACH4_(n, from, width, ...)                                                         \
    EACH_(n, from, width, __VA_ARGS__) EACH_(n, from + 1, width, __VA_ARGS__)               \
    EACH_(n, from + 2, width, __VA_ARGS__) EACH_(n, from + 3, width, __VA_ARGS__)
#define EACH4(n, width, ...) EACH4_(n, 0, width, __VA_ARGS__)
#define EACH8(n, width, ...) EACH4_(n, 0, width, __VA_ARGS__) EACH4_(n, 4, width, __VA_ARGS__)

// Operands ------------------------------------------------------------------------------------------------------------

/// The operands that both directions share, by name. Absent ones are null.
typedef struct scan {
    kr_scan_size size;
    const float *u, *delta, *A, *B, *C, *D, *z, *delta_bias;
    const int32_t *reset;
    int64_t u_pitch, delta_pitch, B_pitch, C_pitch, z_pitch;
    bool softplus;
} scan;

/// in: the forward inputs up to delta_bias.
KR_INLINE scan scan_of(const kr_attrs *attrs, const kr_arg *in, const kr_arg *reset) {
    scan s = {.size = kr_scan_measure(&in[SELECTIVE_U].shape, &in[SELECTIVE_A].shape, &in[SELECTIVE_B].shape,
                                      &in[SELECTIVE_C].shape),
              .u = in[SELECTIVE_U].data,
              .delta = in[SELECTIVE_DELTA].data,
              .A = in[SELECTIVE_A].data,
              .B = in[SELECTIVE_B].data,
              .C = in[SELECTIVE_C].data,
              .D = in[SELECTIVE_D].data,
              .z = in[SELECTIVE_Z].data,
              .delta_bias = in[SELECTIVE_DELTA_BIAS].data,
              .reset = reset->data,
              .u_pitch = kr_arg_pitch(&in[SELECTIVE_U]),
              .delta_pitch = kr_arg_pitch(&in[SELECTIVE_DELTA]),
              .B_pitch = kr_arg_pitch(&in[SELECTIVE_B]),
              .C_pitch = kr_arg_pitch(&in[SELECTIVE_C]),
              .softplus = attrs->i[SELECTIVE_DELTA_SOFTPLUS] != 0};
    if (s.z) s.z_pitch = kr_arg_pitch(&in[SELECTIVE_Z]);
    return s;
}

/// Up to 16 neighbouring channels of one group.
typedef struct tile {
    int64_t group, channel, lanes;
} tile;

KR_INLINE tile tile_at(const kr_scan_size *s, int64_t index) {
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

KR_INLINE span span_at(const scan *s, int64_t batch, int64_t chunk) {
    const int64_t first = chunk * CHUNK, left = s->size.length - first;
    span p = {batch * s->size.length + first, (int)(left < CHUNK ? left : CHUNK), 0};
    if (s->reset)
        for (int t = 0; t < p.count; t++) p.fresh |= (uint32_t)(s->reset[p.row + t] > 0) << t;
    return p;
}

// Halves of two vectors that are exchanged at a distance of 8, 4, 2 or 1 lanes: low keeps a's lanes whose number has
// that bit clear and puts the same lanes of b between them; high does so with the bit set.
#define EXCHANGE(d, ...)                                                                                            \
    KR_INLINE kr_vf low_##d(kr_vf a, kr_vf b) { return __builtin_shufflevector(a, b, __VA_ARGS__); }
EXCHANGE(8, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23)
EXCHANGE(4, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27)
EXCHANGE(2, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29)
EXCHANGE(1, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30)
#undef EXCHANGE
#define EXCHANGE(d, ...)                                                                                            \
    KR_INLINE kr_vf high_##d(kr_vf a, kr_vf b) { return __builtin_shufflevector(a, b, __VA_ARGS__); }
EXCHANGE(8, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31)
EXCHANGE(4, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31)
EXCHANGE(2, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31)
EXCHANGE(1, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31)
#undef EXCHANGE

/// 16 by 16, in place.
static inline __attribute__((unused)) void transpose(kr_vf *v) {
#define ROUND(d)                                        \
    for (int i = 0; i < LANES; i++) {                   \
        if (i & d) continue;                            \
        const kr_vf a = v[i], b = v[i + d];             \
        v[i] = low_##d(a, b);                           \
        v[i + d] = high_##d(a, b);                      \
    }
    ROUND(8)
    ROUND(4)
    ROUND(2)
    ROUND(1)
#undef ROUND
}

KR_INLINE int64_t at_most(int64_t n, int64_t most) { return n < most ? n : most; }

/// Rows of a tile, [lanes, N] at `pitch`, times `scale`, to a plane [N, 16]; unused lanes are zero.
static inline __attribute__((unused)) void pack(float *plane, const float *x, int64_t pitch, int64_t lanes,
                                                int64_t states, float scale) {
    for (int64_t n = 0; n < states; n += LANES) {
        kr_vf v[LANES];
        const int64_t left = at_most(states - n, LANES);
        for (int k = 0; k < LANES; k++)
            v[k] = k < lanes ? kr_v_load_n(x + k * pitch + n, left) * kr_v_set(scale) : kr_v_set(0);
        transpose(v);
        for (int64_t k = 0; k < left; k++) kr_v_store(plane + (n + k) * LANES, v[k]);
    }
}

static inline __attribute__((unused)) void unpack(float *x, int64_t pitch, const float *plane, int64_t lanes,
                                                  int64_t states) {
    for (int64_t n = 0; n < states; n += LANES) {
        kr_vf v[LANES];
        const int64_t left = at_most(states - n, LANES);
        for (int k = 0; k < LANES; k++) v[k] = k < left ? kr_v_load(plane + (n + k) * LANES) : kr_v_set(0);
        transpose(v);
        for (int64_t k = 0; k < lanes; k++) kr_v_store_n(x + k * pitch + n, v[k], left);
    }
}

/// Rows of A to a plane of rates (rate_of).
static inline __attribute__((unused)) void pack_rates(float *plane, const float *A, int64_t lanes, int64_t states) {
    pack(plane, A, states, lanes, states, 1);
    for (int64_t n = 0; n < states; n++) kr_v_store(plane + n * LANES, rate_of(kr_v_load(plane + n * LANES)));
}

KR_INLINE void copy(float *to, const float *from, int64_t floats) {
    for (int64_t k = 0; k < floats; k += LANES) kr_v_store(to + k, kr_v_load(from + k));
}

/// Copies past the caches, where alignment allows: for what is not read again before it would be evicted anyway. Such a
/// store need not fetch the line that it replaces. stream_end orders them before whatever the thread signals next.
KR_INLINE void stream(float *to, const float *from, int64_t floats) {
#ifdef __SSE2__
    if (((uintptr_t)to & 63) == 0) {
#ifdef __AVX512F__
        for (int64_t k = 0; k < floats; k += LANES) _mm512_stream_ps(to + k, (__m512)kr_v_load(from + k));
#else
        for (int64_t k = 0; k < floats; k += 4) _mm_stream_ps(to + k, _mm_loadu_ps(from + k));
#endif
        return;
    }
#endif
    copy(to, from, floats);
}
KR_INLINE void stream_end(void) {
#ifdef __SSE2__
    _mm_sfence();
#endif
}

KR_INLINE void clear(float *x, int64_t floats) {
    for (int64_t k = 0; k < floats; k += LANES) kr_v_store(x + k, kr_v_set(0));
}

KR_INLINE kr_vf vector_of(const float *x, tile at) { return x ? kr_v_load_n(x + at.channel, at.lanes) : kr_v_set(0); }

// A tile in a chunk ---------------------------------------------------------------------------------------------------

/// Cache lines that will be wanted soon. A tile takes one line of each row, which looks like no stream to the hardware;
/// so while a chunk is computed, every token prefetches one line per tensor of the next chunk, in the order of memory:
/// all lines of the unit in one row, then the next row. Addresses are numbers, not pointers: they may lie outside of
/// the tensor, and nothing is read through them.
enum { STREAMS = 4, LINE = 64 }; ///< most tensors that one token prefetches
typedef struct ahead {
    uintptr_t row[STREAMS], pitch[STREAMS]; ///< where the unit's lines in the row start, and how far the next row is
    uintptr_t offset, width;                ///< of the next line in the row; of the unit in a row
    int64_t first, channel;                 ///< the row and the channel where the share starts
} ahead;

/// What tile `index` of the `run` tiles of a unit shall prefetch: its share of the lines of the chunk that starts at
/// `row`; `channel` is the unit's first. Streams that follow nothing stand still at something that is near anyway.
KR_INLINE void ahead_start(ahead *a, int64_t index, int64_t run, int64_t row, int64_t channel) {
    const int64_t line = index * CHUNK;
    a->offset = (uintptr_t)(line % run * LINE);
    a->width = (uintptr_t)(run * LINE);
    a->first = row + line / run;
    a->channel = channel;
    for (int i = 0; i < STREAMS; i++) {
        a->row[i] = (uintptr_t)a - a->offset;
        a->pitch[i] = 0;
    }
}

/// Stream i follows the rows of x, if there is one.
KR_INLINE void ahead_follow(ahead *a, int i, const float *x, int64_t pitch) {
    const int64_t size = sizeof(float);
    if (!x) return;
    a->row[i] = (uintptr_t)x + (uintptr_t)((a->first * pitch + a->channel) * size);
    a->pitch[i] = (uintptr_t)(pitch * size);
}

/// Prefetches the next line of the first `count` streams.
KR_INLINE void prefetch_ahead(ahead *a, const int count) {
    EACH4(i, count, __builtin_prefetch((const void *)(a->row[i] + a->offset), 0, 3);)
    a->offset += LINE;
    if (a->offset < a->width) return;
    __asm__ volatile(""); // a branch that is rarely taken, not vectors of addresses that are updated every time
    a->offset = 0;
    EACH4(i, count, a->row[i] += a->pitch[i];)
}

/// One tile over one chunk.
typedef struct sweep {
    int count;
    uint32_t fresh;
    kr_vf *dt, *dtu, *y;                   ///< of a token: step size, step size times u, sum so far
    const float *B, *C;                    ///< token rows at a pitch, or one vector per state where constant
    int64_t B_pitch, C_pitch;
    bool constant_B, constant_C;
    ahead next;
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

/// Everything but dt, dtu, y and `next`. fixed_B and fixed_C are the planes of constant B and C.
KR_INLINE void prepare(sweep *w, const scan *s, span p, tile at, const float *fixed_B, const float *fixed_C) {
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

#endif
