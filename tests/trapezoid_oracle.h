/// The Mamba-3 scan and its gradient in double, naive: state by state and token by token.
#ifndef KRAIT_TESTS_TRAPEZOID_ORACLE_H
#define KRAIT_TESTS_TRAPEZOID_ORACLE_H

#include "ops/ssd/chunk_size.h"
#include "ops/trapezoid/args.h"
#include "tests/check.h"

#include <math.h>
#include <stdlib.h>

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }

typedef struct sizes {
    int64_t batch, length, heads, rank, width, states, chunk, chunks, groups, pairs;
    bool rotates, half, own_angles;
} sizes;

static sizes sizes_of(const kr_attrs *a, const kr_shape *in) {
    const int64_t heads = in[TRAPEZOID_ADT].dim[2], rank = a->i[TRAPEZOID_RANK], groups = a->i[TRAPEZOID_GROUPS];
    sizes s = {.batch = in[TRAPEZOID_X].dim[0],
               .length = in[TRAPEZOID_X].dim[1],
               .heads = heads,
               .rank = rank,
               .groups = groups,
               .width = heads ? in[TRAPEZOID_X].dim[2] / heads : 0,
               .states = heads && !groups ? in[TRAPEZOID_K].dim[2] / heads / rank : 0,
               .rotates = groups > 0,
               .half = a->i[TRAPEZOID_HALF] != 0};
    if (s.rotates) {
        s.states = in[TRAPEZOID_K_BIAS].dim[2];
        s.pairs = in[TRAPEZOID_ANG].dim[in[TRAPEZOID_ANG].rank - 1];
        s.own_angles = in[TRAPEZOID_ANG].rank == 4;
    }
    const kr_chunk_size m = kr_chunk_measure(s.batch, s.length, heads, groups, rank, s.width, s.states,
                                             a->i[TRAPEZOID_CHUNK]);
    s.chunk = m.chunk;
    s.chunks = m.chunks;
    return s;
}

/// One head at one token.
typedef struct moment {
    int64_t row, step;                      ///< element numbers: of the token, of dt
    double lambda, dt, omega, gamma, alpha; ///< omega and alpha are zero where a document starts
    bool fresh;
} moment;

static moment moment_of(const sizes *s, const double *const *in, const double *reset, int64_t b, int64_t t, int64_t h) {
    moment m = {.row = b * s->length + t};
    m.step = m.row * s->heads + h;
    m.lambda = sigmoid(in[TRAPEZOID_TRAP][m.step]);
    m.dt = in[TRAPEZOID_DT][m.step];
    m.fresh = reset && reset[m.row] > 0;
    m.omega = m.fresh ? 0 : (1 - m.lambda) * m.dt;
    m.gamma = m.lambda * m.dt;
    m.alpha = m.fresh ? 0 : exp(in[TRAPEZOID_ADT][m.step]);
    return m;
}

static int64_t key_at(const sizes *s, int64_t row, int64_t h, int64_t r, int64_t n) {
    return ((row * s->heads + h) * s->rank + r) * s->states + n;
}
static int64_t out_at(const sizes *s, int64_t row, int64_t h, int64_t r, int64_t p) {
    return ((row * s->rank + r) * s->heads + h) * s->width + p;
}
static int64_t before_at(const sizes *s, int64_t b, int64_t h, int64_t r, int64_t n) { // of k0 [B, R, H, N]
    return ((b * s->rank + r) * s->heads + h) * s->states + n;
}
static int64_t saved_at(const sizes *s, int64_t b, int64_t c, int64_t h, int64_t p, int64_t n) {
    return (((b * s->chunks + c) * s->heads + h) * s->states + n) * s->width + p;
}
static double mimo_at(const sizes *s, const double *const *in, int64_t h, int64_t r, int64_t p) {
    return in[TRAPEZOID_MIMO_X] ? in[TRAPEZOID_MIMO_X][(h * s->rank + r) * s->width + p] : 1;
}

/// U_t[p, n]; t = -1: from k0 and v0.
static double outer(const sizes *s, const double *const *in, const double *k0, const double *v0, int64_t b, int64_t t,
                    int64_t h, int64_t p, int64_t n) {
    double u = 0;
    if (t < 0 && !(k0 && v0)) return 0;
    for (int64_t r = 0; r < s->rank; r++) {
        const int64_t row = b * s->length + t;
        const double k = t < 0 ? k0[before_at(s, b, h, r, n)] : in[TRAPEZOID_K][key_at(s, row, h, r, n)];
        const double x = t < 0 ? v0[(b * s->heads + h) * s->width + p]
                               : in[TRAPEZOID_X][(row * s->heads + h) * s->width + p];
        u += k * x * mimo_at(s, in, h, r, p);
    }
    return u;
}

// Rotating -----------------------------------------------------------------------------------------------------------

/// The partner of coordinate n in its pair; pair -1 where it does not rotate.
typedef struct partner {
    int64_t pair, other;
    bool second;
} partner;

static partner partner_of(const sizes *s, int64_t n) {
    const int64_t offset = s->states / 2;
    partner p = {.second = s->half ? n >= offset : n % 2};
    p.pair = s->half ? n - (p.second ? offset : 0) : n / 2;
    p.other = s->half ? n + (p.second ? -offset : offset) : n + (p.second ? -1 : 1);
    if (p.pair >= s->pairs) p.pair = -1;
    return p;
}
static int64_t angle_at(const sizes *s, int64_t b, int64_t t, int64_t h, int64_t j) {
    return s->own_angles ? ((b * s->length + t) * s->heads + h) * s->pairs + j : (b * s->length + t) * s->pairs + j;
}
static int64_t raw_at(const sizes *s, int64_t row, int64_t h, int64_t r, int64_t n) { // of K and Q as they come
    return ((row * s->rank + r) * s->groups + h / (s->heads / s->groups)) * s->states + n;
}

/// Angles [B, L, H, S] after every token, from theta0 or anew from what was saved at the start of every chunk; theta
/// (may be null) [B, H, S] gets the last, kept (may be null) those before every chunk.
static double *angles_of(const sizes *s, const double *const *in, const double *reset, const double *theta0,
                         const double *saved, double *last, double *kept) {
    double *all = calloc((size_t)(s->batch * s->length * s->heads * s->pairs + 1), sizeof *all);
    for (int64_t i = 0; i < s->batch * s->heads * s->pairs; i++) {
        const int64_t j = i % s->pairs, h = i / s->pairs % s->heads, b = i / s->pairs / s->heads;
        double theta = theta0 ? theta0[i] : 0;
        for (int64_t t = 0; t < s->length; t++) {
            const int64_t row = b * s->length + t,
                          chunk = ((b * s->chunks + t / s->chunk) * s->heads + h) * s->pairs + j;
            if (saved && t % s->chunk == 0) theta = saved[chunk];
            if (kept && t % s->chunk == 0) kept[chunk] = theta - 2 * M_PI * nearbyint(theta / (2 * M_PI));
            if (reset && reset[row] > 0) theta = 0;
            theta += M_PI * tanh(in[TRAPEZOID_ANG][angle_at(s, b, t, h, j)]) * in[TRAPEZOID_DT][row * s->heads + h];
            all[(row * s->heads + h) * s->pairs + j] = theta;
        }
        if (last) last[i] = (theta / (2 * M_PI) - floor(theta / (2 * M_PI))) * 2 * M_PI;
    }
    return all;
}

/// k or q [B, L, H, R, N] as the heads want it. To be freed.
static double *rotated(const sizes *s, const double *x, const double *bias, const double *angles) {
    double *out = calloc((size_t)(s->batch * s->length * s->heads * s->rank * s->states + 1), sizeof *out);
    for (int64_t i = 0; i < s->batch * s->length * s->heads * s->rank * s->states; i++) {
        const int64_t n = i % s->states, r = i / s->states % s->rank, h = i / s->states / s->rank % s->heads;
        const int64_t row = i / s->states / s->rank / s->heads;
        const partner p = partner_of(s, n);
        const double *b = bias + (h * s->rank + r) * s->states;
        const double theta = p.pair < 0 ? 0 : angles[(row * s->heads + h) * s->pairs + p.pair];
        const double a = x[raw_at(s, row, h, r, n)] + b[n],
                     c = p.pair < 0 ? 0 : x[raw_at(s, row, h, r, p.other)] + b[p.other];
        out[i] = p.second ? c * sin(theta) + a * cos(theta) : a * cos(theta) - c * sin(theta);
    }
    return out;
}

/// From the gradient dy of rotated y to those of K or Q, of its bias, and to what the angles feel (e, [B, L, H, S]).
static void turn_back(const sizes *s, const double *y, const double *dy, const double *angles, double *dx,
                      double *dbias, double *e) {
    for (int64_t i = 0; i < s->batch * s->length * s->heads * s->rank * s->states; i++) {
        const int64_t n = i % s->states, r = i / s->states % s->rank, h = i / s->states / s->rank % s->heads;
        const int64_t row = i / s->states / s->rank / s->heads, at = (row * s->heads + h) * s->pairs;
        const partner p = partner_of(s, n);
        const int64_t other = i + p.other - n;
        const double theta = p.pair < 0 ? 0 : angles[at + p.pair], c = p.pair < 0 ? 0 : dy[other];
        const double back = p.second ? dy[i] * cos(theta) - c * sin(theta) : dy[i] * cos(theta) + c * sin(theta);
        dx[raw_at(s, row, h, r, n)] += back;
        dbias[(h * s->rank + r) * s->states + n] += back;
        if (p.pair >= 0) e[at + p.pair] += p.second ? y[other] * dy[i] : -y[other] * dy[i];
    }
}

/// dtheta_t = e_t + dtheta_{t+1}, and from it dang, ddt and dtheta0.
static void angles_back(const sizes *s, const double *const *in, const double *reset, const double *dtheta,
                        const double *e, double *dang, double *ddt, double *dtheta0) {
    for (int64_t i = 0; i < s->batch * s->heads * s->pairs; i++) {
        const int64_t j = i % s->pairs, h = i / s->pairs % s->heads, b = i / s->pairs / s->heads;
        double felt = dtheta ? dtheta[i] : 0;
        for (int64_t t = s->length - 1; t >= 0; t--) {
            const int64_t row = b * s->length + t, at = angle_at(s, b, t, h, j);
            const double speed = tanh(in[TRAPEZOID_ANG][at]);
            felt += e[(row * s->heads + h) * s->pairs + j];
            dang[at] += felt * M_PI * in[TRAPEZOID_DT][row * s->heads + h] * (1 - speed * speed);
            ddt[row * s->heads + h] += felt * M_PI * speed;
            if (reset && reset[row] > 0) felt = 0;
        }
        dtheta0[i] = felt;
    }
}

// The scan ----------------------------------------------------------------------------------------------------------

static void forward(const kr_attrs *a, const kr_shape *shape, const double *const *given, const kr_shape *out_shape,
                    double *const *out) {
    const sizes s = sizes_of(a, shape);
    const double *in[TRAPEZOID_INPUTS];
    double *angles = NULL, *keys[2] = {NULL, NULL};
    for (int k = 0; k < TRAPEZOID_INPUTS; k++) in[k] = given[k];
    if (s.rotates) {
        angles = angles_of(&s, in, in[TRAPEZOID_RESET], in[TRAPEZOID_THETA0], NULL, out[TRAPEZOID_THETA_LAST],
                           out[TRAPEZOID_ANGLES]);
        for (int k = 0; k < 2; k++) in[k] = keys[k] = rotated(&s, given[k], in[TRAPEZOID_K_BIAS + k], angles);
    }
    for (int64_t b = 0; b < s.batch; b++)
        for (int64_t h = 0; h < s.heads; h++)
            for (int64_t p = 0; p < s.width; p++) {
                const int64_t head = b * s.heads + h;
                for (int64_t n = 0; n < s.states; n++) {
                    double S = in[TRAPEZOID_H0] ? in[TRAPEZOID_H0][(head * s.width + p) * s.states + n] : 0;
                    for (int64_t t = 0; t < s.length; t++) {
                        const moment m = moment_of(&s, in, in[TRAPEZOID_RESET], b, t, h);
                        const double before = S + m.omega * outer(&s, in, in[TRAPEZOID_K0], in[TRAPEZOID_V0], b, t - 1,
                                                                  h, p, n);
                        if (t % s.chunk == 0) out[TRAPEZOID_SAVED][saved_at(&s, b, t / s.chunk, h, p, n)] = before;
                        S = m.alpha * before + m.gamma * outer(&s, in, 0, 0, b, t, h, p, n);
                        for (int64_t r = 0; r < s.rank; r++)
                            out[TRAPEZOID_O][out_at(&s, m.row, h, r, p)] += S *
                                                                            in[TRAPEZOID_Q][key_at(&s, m.row, h, r, n)];
                    }
                    out[TRAPEZOID_H_LAST][(head * s.width + p) * s.states + n] = S;
                }
                for (int64_t t = 0; t < s.length && in[TRAPEZOID_D]; t++)
                    for (int64_t r = 0; r < s.rank; r++) {
                        const int64_t row = b * s.length + t;
                        out[TRAPEZOID_O][out_at(&s, row, h, r, p)] +=
                            in[TRAPEZOID_D][h] * mimo_at(&s, in, h, r, p) *
                            in[TRAPEZOID_X][(row * s.heads + h) * s.width + p];
                    }
                out[TRAPEZOID_V_LAST][head * s.width + p] =
                    s.length           ? in[TRAPEZOID_X][((b * s.length + s.length - 1) * s.heads + h) * s.width + p]
                    : in[TRAPEZOID_V0] ? in[TRAPEZOID_V0][head * s.width + p]
                                       : 0;
            }
    for (int64_t i = 0; i < kr_shape_count(&out_shape[TRAPEZOID_K_LAST]); i++) {
        const int64_t n = i % s.states, h = i / s.states % s.heads, r = i / s.states / s.heads % s.rank;
        const int64_t b = i / s.states / s.heads / s.rank;
        out[TRAPEZOID_K_LAST][i] = s.length ? in[TRAPEZOID_K][key_at(&s, b * s.length + s.length - 1, h, r, n)]
                                   : in[TRAPEZOID_K0] ? in[TRAPEZOID_K0][i]
                                                      : 0;
    }
    for (int64_t i = 0; i < kr_shape_count(&out_shape[TRAPEZOID_O]) && in[TRAPEZOID_Z]; i++)
        out[TRAPEZOID_O][i] *= in[TRAPEZOID_Z][i] * sigmoid(in[TRAPEZOID_Z][i]);
    for (int k = 0; k < 2; k++) free(keys[k]);
    free(angles);
}

/// The gradient op for one state of one channel, from whatever is in `saved`: what the state adds to each gradient.
/// all: the operands of the gradient op with dout before the gate, k and q rotated; o gets the scan without gate and D.
static void backward_state(const sizes *s, const double *const *all, double *const *out, double *o, int64_t b,
                           int64_t h, int64_t p, int64_t n) {
    const double *dout = all[TRAPEZOID_GRAD_DO],
                 *dh_last = all[TRAPEZOID_GRAD_DH_LAST], *const *in = all + TRAPEZOID_GRAD_FORWARD;
    const double *k0 = all[TRAPEZOID_GRAD_K0], *v0 = all[TRAPEZOID_GRAD_V0], *reset = all[TRAPEZOID_GRAD_RESET];
    const int64_t head = b * s->heads + h;
    double before[s->length + 1], after[s->length + 1]; // the state before a token with what is pending, and after it
    for (int64_t t = 0; t < s->length; t++) {
        const moment m = moment_of(s, in, reset, b, t, h);
        before[t] = t % s->chunk ? after[t - 1] + m.omega * outer(s, in, k0, v0, b, t - 1, h, p, n)
                                 : all[TRAPEZOID_GRAD_SAVED][saved_at(s, b, t / s->chunk, h, p, n)];
        after[t] = m.alpha * before[t] + m.gamma * outer(s, in, 0, 0, b, t, h, p, n);
        for (int64_t r = 0; r < s->rank; r++)
            o[out_at(s, m.row, h, r, p)] += after[t] * in[TRAPEZOID_Q][key_at(s, m.row, h, r, n)];
    }
    double G = dh_last ? dh_last[(head * s->width + p) * s->states + n] : 0, omega = 0; // of the token after
    for (int64_t t = s->length - 1; t >= -1; t--) {
        const int64_t row = b * s->length + t, x = (row * s->heads + h) * s->width + p;
        const moment m = t >= 0 ? moment_of(s, in, reset, b, t, h) : (moment){0};
        if (t < 0 && !(k0 && v0 && s->length)) break;
        double g = G, dU = omega * G;
        if (t + 1 < s->length) { // domega of the token after
            const moment next = moment_of(s, in, reset, b, t + 1, h);
            const double domega = next.fresh ? 0 : G * outer(s, in, k0, v0, b, t, h, p, n);
            out[TRAPEZOID_GRAD_DDT][next.step] += (1 - next.lambda) * domega;
            out[TRAPEZOID_GRAD_DTRAP][next.step] -= next.dt * domega * next.lambda * (1 - next.lambda);
        }
        if (t >= 0) {
            for (int64_t r = 0; r < s->rank && dout; r++) {
                g += dout[out_at(s, row, h, r, p)] * in[TRAPEZOID_Q][key_at(s, row, h, r, n)];
                out[TRAPEZOID_GRAD_DQ][key_at(s, row, h, r, n)] += dout[out_at(s, row, h, r, p)] * after[t];
            }
            const double dgamma = g * outer(s, in, 0, 0, b, t, h, p, n);
            out[TRAPEZOID_GRAD_DADT][m.step] += m.alpha * g * before[t];
            out[TRAPEZOID_GRAD_DDT][m.step] += m.lambda * dgamma;
            out[TRAPEZOID_GRAD_DTRAP][m.step] += m.dt * dgamma * m.lambda * (1 - m.lambda);
            dU += m.gamma * g;
        }
        for (int64_t r = 0; r < s->rank; r++) {
            const double mimo = mimo_at(s, in, h, r, p);
            const double k = t < 0 ? k0[before_at(s, b, h, r, n)] : in[TRAPEZOID_K][key_at(s, row, h, r, n)];
            const double v = t < 0 ? v0[head * s->width + p] : in[TRAPEZOID_X][x];
            *(t < 0 ? &out[TRAPEZOID_GRAD_DK0][before_at(s, b, h, r, n)]
                    : &out[TRAPEZOID_GRAD_DK][key_at(s, row, h, r, n)]) += dU * v * mimo;
            *(t < 0 ? &out[TRAPEZOID_GRAD_DV0][head * s->width + p] : &out[TRAPEZOID_GRAD_DX][x]) += dU * k * mimo;
            if (in[TRAPEZOID_MIMO_X]) out[TRAPEZOID_GRAD_DMIMO_X][(h * s->rank + r) * s->width + p] += dU * k * v;
        }
        if (t < 0) break;
        omega = m.omega;
        G = m.alpha * g;
    }
    out[TRAPEZOID_GRAD_DH0][(head * s->width + p) * s->states + n] = G;
}

/// The scan of rotated keys with dout before the gate: gradients as they are before anything is rotated back.
static void backward_scan(const sizes *s, const double *const *all, const kr_shape *out_shape, double *const *out,
                          double *o) {
    const double *dout = all[TRAPEZOID_GRAD_DO], *dk_last = all[TRAPEZOID_GRAD_DK_LAST],
                 *dv_last = all[TRAPEZOID_GRAD_DV_LAST], *const *in = all + TRAPEZOID_GRAD_FORWARD;
    for (int64_t b = 0; b < s->batch; b++)
        for (int64_t h = 0; h < s->heads; h++)
            for (int64_t p = 0; p < s->width; p++) {
                for (int64_t n = 0; n < s->states; n++) backward_state(s, all, out, o, b, h, p, n);
                for (int64_t t = 0; t < s->length && in[TRAPEZOID_D]; t++)
                    for (int64_t r = 0; r < s->rank; r++) {
                        const int64_t row = b * s->length + t, x = (row * s->heads + h) * s->width + p;
                        const double mimo = mimo_at(s, in, h, r, p), d = dout ? dout[out_at(s, row, h, r, p)] : 0;
                        o[out_at(s, row, h, r, p)] += in[TRAPEZOID_D][h] * mimo * in[TRAPEZOID_X][x];
                        out[TRAPEZOID_GRAD_DX][x] += in[TRAPEZOID_D][h] * d * mimo;
                        out[TRAPEZOID_GRAD_DD][h] += d * mimo * in[TRAPEZOID_X][x];
                        if (in[TRAPEZOID_MIMO_X])
                            out[TRAPEZOID_GRAD_DMIMO_X][(h * s->rank + r) * s->width + p] += in[TRAPEZOID_D][h] * d *
                                                                                             in[TRAPEZOID_X][x];
                    }
                const int64_t head = b * s->heads + h,
                              last = ((b * s->length + s->length - 1) * s->heads + h) * s->width + p;
                if (dv_last)
                    *(s->length ? &out[TRAPEZOID_GRAD_DX][last]
                                : &out[TRAPEZOID_GRAD_DV0][head * s->width + p]) += dv_last[head * s->width + p];
            }
    for (int64_t i = 0; i < kr_shape_count(&out_shape[TRAPEZOID_GRAD_DK0]) && dk_last; i++) {
        const int64_t n = i % s->states, h = i / s->states % s->heads, r = i / s->states / s->heads % s->rank;
        const int64_t b = i / s->states / s->heads / s->rank;
        *(s->length ? &out[TRAPEZOID_GRAD_DK][key_at(s, b * s->length + s->length - 1, h, r, n)]
                    : &out[TRAPEZOID_GRAD_DK0][i]) += dk_last[i];
    }
}

static void backward(const kr_attrs *a, const kr_shape *shape, const double *const *given, const kr_shape *out_shape,
                     double *const *out) {
    const sizes s = sizes_of(a, shape + TRAPEZOID_GRAD_FORWARD);
    const double *all[TRAPEZOID_GRAD_INPUTS], *const *in = given + TRAPEZOID_GRAD_FORWARD;
    double *inner[TRAPEZOID_GRAD_OUTPUTS], *angles = NULL, *keys[2] = {NULL, NULL};
    const size_t key_count = (size_t)(s.batch * s.length * s.heads * s.rank * s.states + 1);
    const int64_t values = s.batch * s.length * s.rank * s.heads * s.width;
    double *o = calloc((size_t)values + 1, sizeof *o), *dout = calloc((size_t)values + 1, sizeof *o);
    for (int k = 0; k < TRAPEZOID_GRAD_INPUTS; k++) all[k] = given[k];
    for (int k = 0; k < TRAPEZOID_GRAD_OUTPUTS; k++) inner[k] = out[k];
    for (int64_t i = 0; i < values && given[TRAPEZOID_GRAD_DO]; i++)
        dout[i] = given[TRAPEZOID_GRAD_DO][i] *
                  (in[TRAPEZOID_Z] ? in[TRAPEZOID_Z][i] * sigmoid(in[TRAPEZOID_Z][i]) : 1);
    if (given[TRAPEZOID_GRAD_DO]) all[TRAPEZOID_GRAD_DO] = dout;
    if (s.rotates) {
        angles = angles_of(&s, in, given[TRAPEZOID_GRAD_RESET], NULL, given[TRAPEZOID_GRAD_ANGLES], NULL, NULL);
        for (int k = 0; k < 2; k++) {
            all[TRAPEZOID_GRAD_FORWARD + k] = keys[k] = rotated(&s, in[k], in[TRAPEZOID_K_BIAS + k], angles);
            inner[k] = calloc(key_count, sizeof *o);
        }
    }
    backward_scan(&s, all, out_shape, inner, o);
    for (int64_t i = 0; i < values && in[TRAPEZOID_Z]; i++) {
        const double z = in[TRAPEZOID_Z][i], open = sigmoid(z);
        const double slope = fabs(z) < 1e-18 ? o[i] * open * (1 + z * (1 - open))
                                             : given[TRAPEZOID_GRAD_O][i] *
                                                   (1 / fmax(z, -80) + 1 - open); // an output below -80 is 0
        out[TRAPEZOID_GRAD_DZ][i] = given[TRAPEZOID_GRAD_DO] ? given[TRAPEZOID_GRAD_DO][i] * slope : 0;
    }
    if (s.rotates) {
        double *e = calloc((size_t)(s.batch * s.length * s.heads * s.pairs + 1), sizeof *e);
        for (int k = 0; k < 2; k++) {
            turn_back(&s, keys[k], inner[k], angles, out[k], out[TRAPEZOID_GRAD_DK_BIAS + k], e);
            free(inner[k]);
            free(keys[k]);
        }
        angles_back(&s, in, given[TRAPEZOID_GRAD_RESET], given[TRAPEZOID_GRAD_DTHETA_LAST], e, out[TRAPEZOID_GRAD_DANG],
                    out[TRAPEZOID_GRAD_DDT], out[TRAPEZOID_GRAD_DTHETA0]);
        free(e);
    }
    free(angles);
    free(dout);
    free(o);
}

#endif
