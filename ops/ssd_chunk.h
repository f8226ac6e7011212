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
#ifndef KRAIT_OPS_SSD_CHUNK_H
#define KRAIT_OPS_SSD_CHUNK_H

#include "ops/ssd.h"
#include "ops/ssd_product.h"

/// An argument in `rows` layout that is read, and one that is written. Null data: absent, or nobody reads it.
typedef struct source {
    const float *at;
    int64_t pitch;
} source;
static source source_of(const kr_arg *a) { return (source){a->data, a->data ? kr_arg_pitch(a) : 0}; }

typedef struct sink {
    float *at;
    int64_t pitch;
} sink;
static sink sink_of(const kr_arg *a) { return (sink){a->data, a->data ? kr_arg_pitch(a) : 0}; }

/// The units of slot after slot, in any order of slots.
#define EACH_UNIT(size, ...)                                                       \
    do {                                                                           \
        const int64_t slots = kr_chunk_slots(size), units = kr_chunk_units(size);  \
        int64_t from, to;                                                          \
        kr_share(slots, part, parts, &from, &to);                                  \
        for (int64_t slot = from; slot < to; slot++) {                             \
            int64_t begin, end;                                                    \
            kr_share(units, (int)slot, (int)slots, &begin, &end);                  \
            __VA_ARGS__                                                            \
        }                                                                          \
    } while (0)

/// The chunk at hand. Everything but `adjoint` and the sizes of a short last chunk stays in place for a whole slot.
typedef struct chunk {
    int64_t tokens, rank, rows, states, width; ///< rows = tokens * rank
    matrix q, k, dq, dk, kt, scores, dots, weights, values, sum_weights, v, scaled_v, y, dy, scaled_dy, dv, vt, start,
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
    prefetch *ahead;
} chunk;

static chunk chunk_of(const kr_chunk_size *s, const kr_chunk_layout *l, float *base) {
    chunk c = {.rank = s->rank, .states = s->states, .width = s->width};
    const int64_t r = s->rows_pitch, w = s->width_pitch, n = s->states_pitch;
    c.q = (matrix){base + l->q, n}, c.k = (matrix){base + l->k, n}, c.kt = (matrix){base + l->kt, r};
    c.dq = (matrix){base + l->dq, n}, c.dk = (matrix){base + l->dk, n};
    c.scores = (matrix){base + l->scores, r}, c.dots = (matrix){base + l->dots, r}, c.weights = (matrix){base + l->weights, r};
    c.values = (matrix){base + l->values, r}, c.sum_weights = (matrix){base + l->sum_weights, r};
    c.v = (matrix){base + l->v, w}, c.scaled_v = (matrix){base + l->scaled_v, w}, c.y = (matrix){base + l->y, w};
    c.dy = (matrix){base + l->dy, w}, c.scaled_dy = (matrix){base + l->scaled_dy, w}, c.dv = (matrix){base + l->dv, w};
    c.vt = (matrix){base + l->vt, r}, c.loaded = (matrix){base + l->start, w}, c.end = (matrix){base + l->end, w};
    c.start_t = (matrix){base + l->start_t, n};
    c.state = base + l->state;
    float *vector[KR_CHUNK_VECTORS];
    for (int i = 0; i < KR_CHUNK_VECTORS; i++) vector[i] = base + l->vectors + i * r;
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
static void chunk_resize(chunk *c, int64_t tokens) {
    c->tokens = tokens;
    c->rows = tokens * c->rank;
    for (int64_t i = c->rows; i < kr_round_up(c->rows, KR_LANES); i++) c->ghat[i] = c->gamma[i] = 0;
}

static void clear(float *x, int64_t floats) {
    for (int64_t i = 0; i < floats; i += KR_LANES) kr_v_store_n(x + i, kr_v_set(0), floats - i);
}

/// Clears [rows, cols] and the padding around it.
static void clear_matrix(matrix m, int64_t rows, int64_t cols) {
    for (int64_t i = 0; i < kr_round_up(rows, KR_LANES); i++) clear(m.at + i * m.pitch, kr_round_up(cols, KR_LANES));
}

/// The rows at `from`, [rows, cols], with zeros in the padding.
static void load_matrix(matrix to, const float *from, int64_t pitch, int64_t rows, int64_t cols) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j += KR_LANES)
            kr_v_store(to.at + i * to.pitch + j, kr_v_load_n(from + i * pitch + j, cols - j));
    for (int64_t i = rows; i < kr_round_up(rows, KR_LANES); i++) clear(to.at + i * to.pitch, kr_round_up(cols, KR_LANES));
}

static void store_matrix(float *to, int64_t pitch, matrix from, int64_t rows, int64_t cols) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j += KR_LANES)
            kr_v_store_n(to + i * pitch + j, kr_v_load(from.at + i * from.pitch + j), cols - j);
}

/// to[i] = scale[i] * from[i] by rows.
static void scale_rows(matrix to, matrix from, const float *scale, int64_t rows, int64_t cols) {
    for (int64_t i = 0; i < rows; i++) {
        const kr_vf x = kr_v_set(scale[i]);
        for (int64_t j = 0; j < cols; j += KR_LANES)
            kr_v_store(to.at + i * to.pitch + j, x * kr_v_load(from.at + i * from.pitch + j));
    }
}

/// q . k for all pairs that can meet.
static void chunk_scores(const chunk *c) {
    transpose(c->k.at, c->k.pitch, kr_round_up(c->rows, KR_LANES), c->states, c->kt, true);
    multiply(&(product){LOWER_RESULT, c->rank, c->rows, c->rows, c->states, c->q, c->kt, c->scores, .ahead = c->ahead});
}

static void chunk_decays(const chunk *c) {
    float e = 1;
    for (int64_t t = 0; t < c->tokens; t++) {
        e *= c->decay[t];
        for (int64_t r = 0; r < c->rank; r++) c->from_start[t * c->rank + r] = e;
    }
}

/// Row by row of m in 16 columns: `own` marks the columns of token t itself.
KR_INLINE kr_vf next_decay(const chunk *c, kr_vf m, int64_t t) { return m * kr_v_set(c->decay[t]); }

/// weights = scores w, and m_n.
KR_INLINE void weigh_columns(const chunk *c, const int64_t rank) {
    for (int64_t j = 0; j < c->rows; j += KR_LANES) {
        const int64_t first = j / rank, last = (j + KR_LANES - 1) / rank;
        const kr_vi token = (kr_vi)kr_v_load(c->token + j);
        const kr_vf ghat = kr_v_load(c->ghat + j), gamma = kr_v_load(c->gamma + j), one = kr_v_set(1);
        const float *scores = c->scores.at + first * rank * c->scores.pitch + j;
        float *weights = c->weights.at + first * rank * c->weights.pitch + j;
        kr_vf m = kr_v_set(0);
        int64_t t = first;
        for (; t <= last && t < c->tokens; t++) {
            const kr_vi own = token == kr_v_seti((int32_t)t);
            m = next_decay(c, m, t);
            const kr_vf w = kr_v_select(own, gamma, m * ghat);
            m = kr_v_select(own, one, m);
            for (int64_t r = 0; r < rank; r++, scores += c->scores.pitch, weights += c->weights.pitch)
                kr_v_store(weights, kr_v_load(scores) * w);
        }
        for (; t < c->tokens; t++) {
            m = next_decay(c, m, t);
            const kr_vf w = m * ghat;
            for (int64_t r = 0; r < rank; r++, scores += c->scores.pitch, weights += c->weights.pitch)
                kr_v_store(weights, kr_v_load(scores) * w);
        }
        kr_v_store(c->to_end + j, m);
        kr_v_store(c->scale + j, m * ghat);
    }
}

static void weigh(const chunk *c) {
    if (c->rank == 1) weigh_columns(c, 1);
    else weigh_columns(c, c->rank);
}

/// Whether a state [states, width] packed in memory can be used where it lies: it is as its products want it padded.
static bool in_place(const chunk *c) { return c->width % KR_LANES == 0 && c->states % 4 == 0; }

/// Where a chunk finds the state before it and leaves that after it. `saved` (may be null) is where the state before this
/// chunk is kept for the backward pass, the next chunk's is `step` further; `state` is the head's scratch.
typedef struct passage {
    matrix before, after;
} passage;

static passage pass_state(const chunk *c, matrix state, float *saved, int64_t step, bool begins, bool ends) {
    if (!saved) return (passage){state, state};
    if (begins || !in_place(c)) store_matrix(saved, c->width, state, c->states, c->width);
    if (!in_place(c)) return (passage){state, state};
    return (passage){{saved, c->width}, ends ? state : (matrix){saved + step, c->width}};
}

/// y from q, scores, v, decay, ghat and gamma; then the state [states, width] after the chunk, unless nobody wants it.
/// fresh: the state before is zero, whatever lies there.
static void chunk_forward(const chunk *c, passage state, bool fresh, bool wanted) {
    chunk_decays(c);
    weigh(c);
    product y = {LOWER_LEFT, c->rank, c->rows, c->width, c->rows, c->weights, c->v, c->y, .ahead = c->ahead};
    if (!fresh) y.a0 = c->q, y.b0 = state.before, y.depth0 = c->states, y.scale = c->from_start;
    multiply(&y);
    if (!wanted) return;
    scale_rows(c->scaled_v, c->v, c->scale, c->rows, c->width);
    product after = {FULL, c->rank, c->states, c->width, c->rows, c->k, c->scaled_v, state.after, true, .ahead = c->ahead};
    if (!fresh) after.from = state.before, after.times = c->from_start[c->rows - 1];
    multiply(&after);
}

/// Rows of a state [width, states] after one token, S' = decay S + sum_i v_i (outer) k_i: `rows` of them from the p-th.
KR_INLINE void step_rows(const chunk *c, const float *from, float *to, float decay, const int64_t count, int64_t p, int64_t rows) {
    const int64_t n = c->states;
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < n; j += KR_LANES) {
            kr_vf s = from ? kr_v_set(decay) * kr_v_load_n(from + i * n + j, n - j) : kr_v_set(0);
            for (int64_t k = 0; k < count; k++)
                s += kr_v_set(c->scaled_v.at[k * c->scaled_v.pitch + p + i]) * kr_v_load(c->k.at + k * c->k.pitch + j);
            kr_v_store_n(to + i * n + j, s, n - j);
        }
}

/// One token alone, as in decoding, where the way through chunks would touch the state five times: S' with `count` keys
/// k and values scaled_v, and y = S' q. from (null: zero) and to (null: not wanted) are [width, states] in memory and may
/// be the same.
static void chunk_step(const chunk *c, const float *from, float *to, float decay, int64_t count) {
    const int64_t n = c->states;
    _Alignas(64) float lanes[16 * KR_LANES];
    for (int64_t p = 0; p < c->width; p += 16) {
        const int64_t rows = c->width - p < 16 ? c->width - p : 16;
        const float *before = from ? from + p * n : 0;
        float *after = to ? to + p * n : c->state;
        if (count == 1) step_rows(c, before, after, decay, 1, p, rows);
        else if (count == 2) step_rows(c, before, after, decay, 2, p, rows);
        else step_rows(c, before, after, decay, count, p, rows);
        for (int64_t r = 0; r < c->rank; r++) {
            const float *q = c->q.at + r * c->q.pitch;
            for (int64_t i = 0; i < 16; i++) {
                kr_vf sum = kr_v_set(0);
                for (int64_t j = 0; i < rows && j < n; j += KR_LANES) sum += kr_v_load_n(after + i * n + j, n - j) * kr_v_load(q + j);
                kr_v_store(lanes + i * KR_LANES, sum);
            }
            sum_lanes(lanes, 16, c->y.at + r * c->y.pitch + p);
        }
    }
}

// Backward ----------------------------------------------------------------------------------------------------------

/// values = w Z and weights = w K, where dots is Z and scores is K; dots becomes m F off the diagonal. From that, with
/// the rows taken from last to first, the sums over what is below row t: by column, and over the columns left of t.
KR_INLINE void weigh_back_columns(const chunk *c, const int64_t rank) {
    for (int64_t j = 0; j < c->rows; j += KR_LANES) {
        const int64_t first = j / rank, last = (j + KR_LANES - 1) / rank;
        const kr_vi token = (kr_vi)kr_v_load(c->token + j);
        const kr_vf ghat = kr_v_load(c->ghat + j), gamma = kr_v_load(c->gamma + j), one = kr_v_set(1), zero = kr_v_set(0);
        const float *scores = c->scores.at + first * rank * c->scores.pitch + j;
        float *dots = c->dots.at + first * rank * c->dots.pitch + j;
        float *values = c->values.at + first * rank * c->values.pitch + j;
        float *weights = c->weights.at + first * rank * c->weights.pitch + j;
        kr_vf m = zero, diagonal = zero, column = zero;
        for (int64_t t = first; t < c->tokens; t++) {
            m = next_decay(c, m, t);
            kr_vf off = m, w = m * ghat;
            kr_vi own = kr_v_seti(0);
            if (t <= last) {
                own = token == kr_v_seti((int32_t)t);
                w = kr_v_select(own, gamma, w);
                m = kr_v_select(own, one, m);
            }
            for (int64_t r = 0; r < rank; r++) {
                const kr_vf z = kr_v_load(dots), k = kr_v_load(scores), f = z * k;
                kr_v_store(values, z * w);
                kr_v_store(weights, k * w);
                kr_v_store(dots, f * off);
                if (t <= last) diagonal += kr_v_select(own, f, zero);
                scores += c->scores.pitch, dots += c->dots.pitch, values += c->values.pitch, weights += c->weights.pitch;
            }
        }
        for (int64_t t = c->tokens - 1; t >= first; t--) {
            float *lanes = c->lanes[0] + t * KR_LANES;
            for (int64_t r = 0; r < rank; r++) {
                dots -= c->dots.pitch;
                column += kr_v_load(dots);
            }
            const kr_vf left = t <= last ? kr_v_select(token < kr_v_seti((int32_t)t), column, zero) : column;
            kr_v_store(lanes, j ? kr_v_load(lanes) + left * ghat : left * ghat);
        }
        kr_v_store(c->to_end + j, m);
        kr_v_store(c->scale + j, m * ghat);
        kr_v_store(c->column + j, column);
        kr_v_store(c->diagonal + j, diagonal);
    }
}

static void weigh_back(const chunk *c) {
    if (c->rank == 1) weigh_back_columns(c, 1);
    else weigh_back_columns(c, c->rank);
}

static float dot_matrices(matrix a, matrix b, int64_t rows, int64_t cols) {
    kr_vf even = kr_v_set(0), odd = kr_v_set(0);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j += KR_LANES) {
            const kr_vf x = kr_v_load(a.at + i * a.pitch + j) * kr_v_load(b.at + i * b.pitch + j);
            if (i & 1) odd += x;
            else even += x;
        }
    return kr_v_sum(even + odd);
}

/// A saved state, in place or in the scratch.
static matrix saved_state(const chunk *c, float *saved) {
    if (in_place(c)) return (matrix){saved, c->width};
    load_matrix(c->loaded, saved, c->width, c->states, c->width);
    return c->loaded;
}

/// The gradients of decays and coefficients from the sums; `through` is e_n <G, S>.
static void chunk_coefficients(const chunk *c, float through, bool fresh, bool ending) {
    const int64_t rank = c->rank, n = c->tokens;
    sum_lanes(c->lanes[0], n, c->flow);
    if (ending || !c->width) clear(c->rho, c->rows);
    else sum_lanes(c->lanes[1], c->rows, c->rho);
    if (fresh || !c->states) clear(c->inter, c->rows);
    else sum_lanes(c->lanes[2], c->rows, c->inter);
    float later = 0; // from S to this token and all later ones
    for (int64_t t = n - 1; t >= 0; t--) {
        for (int64_t r = 0; r < rank; r++) later += c->from_start[t * rank + r] * c->inter[t * rank + r];
        c->da[t] = c->flow[t] + later;
    }
    for (int64_t t = 0; t < n; t++) {
        float column = 0, diagonal = 0, rho = 0;
        for (int64_t i = t * rank; i < (t + 1) * rank; i++) column += c->column[i], diagonal += c->diagonal[i], rho += c->rho[i];
        c->dghat[t] = column + c->to_end[t * rank] * rho;
        c->dgamma[t] = diagonal;
        c->da[t] += through;
        through += c->scale[t * rank] * rho;
    }
}

/// Adds to dq and dk what comes from the states around the chunk and, unless heads share q and k, all the rest;
/// otherwise that is left in `values`. Gives dv, dghat, dgamma and da; and makes of `adjoint`
/// [width, states], the gradient of the state after the chunk, that of the state before it. Reads q, k, scores, v, dy,
/// start, decay, ghat and gamma.
/// fresh: the state before is zero and its gradient is not wanted; ending: the state after has no gradient.
static void chunk_backward(chunk *c, matrix adjoint, bool fresh, bool ending, bool shared) {
    float through = 0;
    chunk_decays(c);
    transpose(c->v.at, c->v.pitch, kr_round_up(c->rows, KR_LANES), c->width, c->vt, true);
    multiply(&(product){LOWER_RESULT, c->rank, c->rows, c->rows, c->width, c->dy, c->vt, c->dots, .ahead = c->ahead});
    weigh_back(c);
    product dq = {.rank = c->rank, .rows = c->rows, .cols = c->states, .c = c->dq, .ahead = c->ahead}, dk = dq, dv = dq;
    dk.c = c->dk, dv.c = c->dv, dv.cols = c->width;
    if (c->dq_set) dq.from = c->dq, dq.times = 1;
    if (c->dk_set) dk.from = c->dk, dk.times = 1;
    if (!shared) {
        dq.extent = LOWER_LEFT, dq.a = c->values, dq.b = c->k, dq.depth = c->rows;
        dk.extent = LOWER_ACROSS, dk.a = c->values, dk.b = c->q, dk.depth = c->rows, dk.across = true;
    }
    dv.extent = LOWER_ACROSS, dv.a = c->weights, dv.b = c->dy, dv.depth = c->rows, dv.across = true;
    if (!fresh) {
        transpose(c->start.at, c->start.pitch, c->states, c->width, c->start_t, true);
        dq.a0 = c->dy, dq.b0 = c->start_t, dq.depth0 = c->width, dq.scale = c->from_start;
        dq.with = c->q, dq.lanes = c->lanes[2];
    }
    if (!ending) {
        transpose(adjoint.at, adjoint.pitch, c->width, c->states, c->end, true);
        dk.a0 = c->v, dk.b0 = adjoint, dk.depth0 = c->width, dk.scale = c->scale;
        dv.a0 = c->k, dv.b0 = c->end, dv.depth0 = c->states, dv.scale = c->scale;
        dv.with = c->v, dv.lanes = c->lanes[1];
    }
    if (!fresh || !shared) multiply(&dq), c->dq_set = true;
    if (!ending || !shared) multiply(&dk), c->dk_set = true;
    multiply(&dv);
    if (!fresh) {
        const float e = c->from_start[c->rows - 1];
        if (!ending) through = e * dot_matrices(adjoint, c->start_t, c->width, c->states);
        scale_rows(c->scaled_dy, c->dy, c->from_start, c->rows, c->width);
        product before = {FULL, c->rank, c->width, c->states, c->rows, c->scaled_dy, c->q, adjoint, true, .ahead = c->ahead};
        if (!ending) before.from = adjoint, before.times = e;
        multiply(&before);
    }
    chunk_coefficients(c, through, fresh, ending);
}

/// The share of the scratch's matrices that must start as zeros: products read the padding of triangles.
static void chunk_start(const chunk *c, const kr_chunk_size *s, bool backward) {
    const int64_t rows = s->chunk * s->rank;
    clear_matrix(c->weights, rows, rows);
    if (!backward) return;
    clear_matrix(c->values, rows, rows);
    clear_matrix(c->sum_weights, rows, rows);
}

#endif
