/// Rotary position embedding on the CPU. Frequencies and angles are in double: position 10^6 keeps its phase. Every
/// angle gets its own sine and cosine, without recurrences, so any token comes out the same whatever run it is part of.
#include "ops/cpu/pairs.h"
#include "ops/rope/args.h"

enum { SPAN = 16 }; ///< tokens of a unit of work

/// Natural logarithm of 1 <= x < infinity: 2 atanh((m - 1) / (m + 1)) for the mantissa m in [sqrt(1/2), sqrt(2)).
static double log_of(double x) {
    union { double value; int64_t bits; } m = {x};
    const int64_t exponent = (m.bits - 0x3fe6a09e667f3bcd) >> 52;
    m.bits -= exponent << 52;
    const double s = (m.value - 1) / (m.value + 1);
    double sum = 0;
    for (int k = 25; k >= 1; k -= 2) sum = sum * s * s + 1.0 / k;
    return 2 * s * sum + (double)exponent * 0.69314718055994530942;
}

/// e^x for -700 < x <= 0.
static double exp_of(double x) {
    union { double value; int64_t bits; } power;
    const int64_t n = (int64_t)(x * 1.44269504088896340736 - 0.5);
    const double r = x - (double)n * 0.69314718055994530942;
    double sum = 1;
    for (int k = 16; k >= 1; k--) sum = 1 + sum * r / k;
    power.bits = (n + 1023) << 52;
    return sum * power.value;
}

typedef struct rope {
    int64_t batch, length, heads, dim, pairs, x_pitch, y_pitch, apart;
    const float *x;
    float *y;
    double position, log_base;
    int back;
} rope;

/// Pairs j .. j + 15 of all heads, for tokens first .. last - 1 of every batch row.
static void rotate_heads(const rope *v, int64_t first, int64_t last, int64_t j) {
    const int64_t left = v->pairs - j < KR_LANES ? v->pairs - j : KR_LANES;
    kr_vd frequency;
    for (int l = 0; l < KR_LANES; l++)
        frequency[l] = j + l < v->pairs ? exp_of(-v->log_base * (double)(j + l) / (double)v->pairs) : 0;
    for (int64_t t = first; t < last; t++) {
        kr_vf sine, cosine;
        kr_v_sincos(__builtin_convertvector(kr_v_wrap((v->position + (double)t) * frequency), kr_vf), &sine, &cosine);
        if (v->back) sine = -sine;
        for (int64_t b = 0; b < v->batch; b++)
            for (int64_t h = 0; h < v->heads; h++) {
                const int64_t row = b * v->length + t;
                const float *x = v->x + row * v->x_pitch + h * v->dim;
                kr_vf p, q;
                kr_pairs_load(x, v->apart, j, left, &p, &q);
                kr_pairs_store(v->y + row * v->y_pitch + h * v->dim, v->apart, j, left, p * cosine - q * sine,
                               p * sine + q * cosine);
            }
    }
}

KR_KERNEL(rope) {
    const kr_arg *x = &call->in[ROPE_X], *y = &call->out[ROPE_Y];
    const kr_attrs *a = call->attrs;
    const int32_t *position = call->in[ROPE_POSITION].data;
    const rope v = {.batch = x->shape.dim[0],
                    .length = x->shape.dim[1],
                    .heads = a->i[ROPE_HEADS],
                    .dim = x->shape.dim[2] / a->i[ROPE_HEADS],
                    .pairs = a->i[ROPE_ROTARY_DIM] / 2,
                    .x_pitch = kr_arg_pitch(x),
                    .y_pitch = kr_arg_pitch(y),
                    .apart = a->i[ROPE_INTERLEAVED] ? 0 : a->i[ROPE_ROTARY_DIM] / 2,
                    .x = x->data,
                    .y = y->data,
                    .position = position ? *position : 0,
                    .log_base = log_of(a->r[ROPE_BASE]),
                    .back = a->i[ROPE_BACK] != 0};
    int64_t begin, end;
    kr_share((v.length + SPAN - 1) / SPAN, part, parts, &begin, &end);
    for (int64_t unit = begin; unit < end; unit++) {
        const int64_t first = unit * SPAN, last = first + SPAN < v.length ? first + SPAN : v.length;
        for (int64_t j = 0; j < v.pairs; j += KR_LANES) rotate_heads(&v, first, last, j);
        if (v.x == v.y) continue;
        for (int64_t b = 0; b < v.batch; b++)
            for (int64_t t = b * v.length + first; t < b * v.length + last; t++)
                for (int64_t h = 0; h < v.heads; h++)
                    for (int64_t n = 2 * v.pairs; n < v.dim; n++)
                        v.y[t * v.y_pitch + h * v.dim + n] = v.x[t * v.x_pitch + h * v.dim + n];
    }
}
