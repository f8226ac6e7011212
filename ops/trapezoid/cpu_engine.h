/// One chunk of a scan whose state decays by one number per head and token, for kernels.
///
/// The recurrence S_t = a_t S_{t-1} + g_t sum_r v_{t,r} (outer) k_{t,r}, y_{t,r} = S_t q_{t,r} is, over a chunk of
/// tokens, the product with a lower-triangular matrix (Dao & Gu 2024, arXiv:2405.21060, section 6):
///
///   y_t  = e_t S q_t + sum_{s<=t} w_ts (q_t . k_s) v_s        w_ts = m_ts ghat_s for s < t, gamma_t for s = t
///   S'   = e_n S + sum_s m_ns ghat_s v_s (outer) k_s          m_ts = a_{s+1} ... a_t,  e_t = a_1 ... a_t
///
/// with S the state before the chunk. Mamba-2 has ghat = gamma = dt; Mamba-3's trapezoid rule puts the half of its step
/// that belongs to the token before into ghat of that token, and so leaves only the diagonal different.
///
/// m and e are running products, row t from row t - 1: no exponential per pair, no quotient of exponentials, and where
/// a document starts (a_t = 0) everything before is gone, in both directions, without a mask. Each factor is at most 1,
/// so small values go to zero, as they should; the relative error is that of some 64 roundings at most.
///
/// The gradient (Z_ts = <dy_t, v_s>, K_ts = q_t . k_s, F = Z K, G the gradient of S'):
///
///   dq_t = sum_s w_ts Z_ts k_s + e_t S^T dy_t              dk_s = sum_t w_ts Z_ts q_t + m_ns ghat_s G^T v_s
///   dv_s = sum_t w_ts K_ts dy_t + m_ns ghat_s G k_s        dgamma_t = F_tt,  rho_s = v_s^T G k_s
///   dghat_s = sum_{t>s} m_ts F_ts + m_ns rho_s             dS = e_n G + sum_t e_t dy_t (outer) q_t
///
/// and of log a_t: all that has a_t as a factor, that is, what flows over t, be it from a token before or from S, to a
/// token from t on or to S',
///   sum_{t'>=t, s<t} w_t's F_t's + sum_{t'>=t} e_t' dy_t'^T S q_t' + sum_{s<t} m_ns ghat_s rho_s + e_n <G, S>.
/// The textbook form, a running sum of row sums minus column sums, is the same number after cancellation; where decays
/// are strong, little is left of it in f32.
///
/// Token t has rows t * rank .. t * rank + rank - 1 in q, k, v and y. Only R = 1 is spelled out above.
#ifndef KRAIT_OPS_TRAPEZOID_CPU_ENGINE_H
#define KRAIT_OPS_TRAPEZOID_CPU_ENGINE_H

#include "ops/ssd/cpu_matrix.h"
#include "ops/trapezoid/work.h"

/// The units of a part, [begin, end), and whose scratch they use: that of the part's first slot, which so stays in its
/// caches.
#define EACH_UNIT(size, ...)                                                                    \
    do {                                                                                        \
        const int64_t slots = kr_chunk_slots(size), units = kr_chunk_units(size);               \
        int64_t slot, slot_end;                                                                 \
        kr_share(slots, part, parts, &slot, &slot_end);                                         \
        if (slot < slot_end) {                                                                  \
            const int64_t begin = units * slot / slots, end = units * slot_end / slots;         \
            __VA_ARGS__                                                                         \
        }                                                                                       \
    } while (0)

/// The chunk at hand. Everything but `adjoint` and the sizes of a short last chunk stays in place for a whole slot.
typedef struct chunk {
    int64_t tokens, rank, rows, states, width; ///< rows = tokens * rank
    matrix q, k, dq, dk, kt, scores, dots, weights, values, v, scaled_v, y, dy, scaled_dy, dv, vt, start,
        end, start_t, loaded;
    float *state;           ///< of the unit's heads, one after the other
    int64_t state_floats;   ///< of one head
    float *lanes[3];        ///< per token or row: sums still to be taken over lanes
    float *decay;           ///< per token: a
    float *ghat, *gamma;    ///< per row, zero in the padding
    float *from_start;      ///< per row: e
    float *to_end;          ///< per row: m_n
    float *scale;           ///< per row: m_n ghat
    float *token;           ///< per row: its token, as integers
    float *column, *diagonal, *flow, *rho, *inter; ///< per row or token: sums over F, v G k and dy S q
    float *dghat, *dgamma, *da;                ///< per token: gradients, da of log a
    float *spare[3];
    bool dq_set, dk_set;    ///< dq and dk hold a part already
    float skip, dskip;      ///< D, where y is to have D v in it; its gradient adds up
    prefetch *ahead;
} chunk;

static chunk trapezoid_chunk_of(const kr_chunk_size *s, const kr_trapezoid_layout *l, float *base) {
    chunk c = {.rank = s->rank, .states = s->states, .width = s->width};
    const int64_t r = s->rows_pitch, w = s->width_pitch, n = s->states_pitch;
    c.q = (matrix){base + l->q, n}, c.k = (matrix){base + l->k, n}, c.kt = (matrix){base + l->kt, r};
    c.dq = (matrix){base + l->dq, n}, c.dk = (matrix){base + l->dk, n};
    c.scores = (matrix){base + l->scores, r}, c.dots = (matrix){base + l->dots, r},
    c.weights = (matrix){base + l->weights, r};
    c.values = (matrix){base + l->values, r};
    c.v = (matrix){base + l->v, w}, c.scaled_v = (matrix){base + l->scaled_v, w}, c.y = (matrix){base + l->y, w};
    c.dy = (matrix){base + l->dy, w}, c.scaled_dy = (matrix){base + l->scaled_dy, w}, c.dv = (matrix){base + l->dv, w};
    c.vt = (matrix){base + l->vt, r}, c.loaded = (matrix){base + l->start, w}, c.end = (matrix){base + l->end, w};
    c.start_t = (matrix){base + l->start_t, n};
    c.state = base + l->state;
    float *vector[KR_TRAPEZOID_VECTORS];
    for (int i = 0; i < KR_TRAPEZOID_VECTORS; i++) vector[i] = base + l->vectors + i * r;
    c.decay = vector[0], c.ghat = vector[1], c.gamma = vector[2], c.from_start = vector[3], c.to_end = vector[4];
    c.scale = vector[5], c.token = vector[6], c.column = vector[7], c.diagonal = vector[8], c.flow = vector[9];
    c.rho = vector[10], c.dghat = vector[11], c.dgamma = vector[12];
    c.inter = vector[13];
    for (int i = 0; i < 3; i++) c.spare[i] = vector[14 + i];
    c.da = c.flow; // element by element
    for (int i = 0; i < 3; i++) c.lanes[i] = base + l->lanes + i * kr_round_up(s->chunk * s->rank, KR_LANES) * KR_LANES;
    for (int64_t i = 0; i < r; i += KR_LANES) {
        kr_vi token = kr_v_seti(0);
        for (int j = 0; j < KR_LANES; j++) token[j] = (int32_t)((i + j) / s->rank);
        kr_v_store(c.token + i, (kr_vf)token);
    }
    return c;
}

/// The state of head i of the unit: [states, width]; in the backward pass [width, states].
static matrix state_of(const chunk *c, const kr_chunk_size *s, int64_t i, bool backward) {
    const int64_t floats = backward ? kr_round_up(s->width, KR_LANES) * s->states_pitch
                                    : kr_round_up(s->states, KR_LANES) * s->width_pitch;
    return (matrix){c->state + i * floats, backward ? s->states_pitch : s->width_pitch};
}

/// Sets the lengths of the chunk and clears what the padding of its vectors must hold.
static void trapezoid_resize(chunk *c, int64_t tokens) {
    c->tokens = tokens;
    c->rows = tokens * c->rank;
    for (int64_t i = c->rows; i < kr_round_up(c->rows, KR_LANES); i++) c->ghat[i] = c->gamma[i] = 0;
}

/// q . k for all pairs that can meet.
static void trapezoid_scores(const chunk *c) {
    transpose(c->k.at, c->k.pitch, kr_round_up(c->rows, KR_LANES), c->states, c->kt, true);
    multiply(&(product){LOWER_RESULT, c->rank, c->rows, c->rows, c->states, c->q, c->kt, c->scores, .ahead = c->ahead});
}

static void trapezoid_decays(const chunk *c) {
    float e = 1;
    for (int64_t t = 0; t < c->tokens; t++) {
        e *= c->decay[t];
        for (int64_t r = 0; r < c->rank; r++) c->from_start[t * c->rank + r] = e;
    }
}

/// Row by row of m in 16 columns: `own` marks the columns of token t itself.
KR_INLINE kr_vf next_decay(const chunk *c, kr_vf m, int64_t t) { return m * kr_v_set(c->decay[t]); }

/// Whether a state [states, width] packed in memory can be used where it lies: it is as its products want it padded.
static bool in_place(const chunk *c) { return c->width % KR_LANES == 0 && c->states % 4 == 0; }

/// y from D, q, weights, v and the state before the chunk [states, width], which is zero where `fresh`.
static void trapezoid_output(const chunk *c, matrix before, bool fresh) {
    product y = {LOWER_LEFT, c->rank, c->rows, c->width, c->rows, c->weights, c->v, c->y, .ahead = c->ahead};
    if (c->skip) y.from = c->v, y.times = c->skip;
    if (!fresh) y.a0 = c->q, y.b0 = before, y.depth0 = c->states, y.scale = c->from_start;
    multiply(&y);
}

/// The share of the scratch's matrices that must start as zeros: products read the padding of triangles.
static void trapezoid_start(const chunk *c, const kr_chunk_size *s, bool backward) {
    const int64_t rows = s->chunk * s->rank;
    clear_matrix(c->weights, rows, rows);
    if (!backward) return;
    clear_matrix(c->values, rows, rows);
}

#endif
