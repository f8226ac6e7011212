/// Causal depthwise convolution on the CPU. Rows of channels are walked as they lie in memory; the taps of a token are
/// the rows before it, which are still in L1. Weights come as [channels, taps], so a first stage transposes them into
/// rows.
///
/// `reach` is how many earlier inputs a token's taps may touch: taps - 1, less after a reset or at the start of a
/// sequence without state. Four taps at full reach, which is nearly everything in practice, have code of their own.
#include "ops/conv/args.h"
#include "ops/conv/work.h"
#include "ops/cpu/lanes.h"

enum { LANES = KR_CONV_LANES };

typedef struct conv {
    int64_t batch, length, channels, taps, width;
    const float *x, *weights, *bias, *state; ///< weights: rows, row k meets the input k tokens back
    const int32_t *reset;
    int64_t pitch;
    int silu;
} conv;

/// in: x, weight, bias, state, reset. The weights' rows start the workspace.
static conv conv_of(const kr_call *call, const kr_arg *in) {
    conv v = {.batch = in[CONV_X].shape.dim[0],
              .length = in[CONV_X].shape.dim[1],
              .channels = in[CONV_X].shape.dim[2],
              .taps = in[CONV_WEIGHT].shape.dim[1],
              .x = in[CONV_X].data,
              .weights = call->work,
              .bias = in[CONV_BIAS].data,
              .state = in[CONV_STATE].data,
              .reset = in[CONV_RESET].data,
              .pitch = kr_arg_pitch(&in[CONV_X]),
              .silu = call->attrs->i[CONV_SILU] != 0};
    v.width = kr_conv_width(v.channels);
    return v;
}

/// [channels, taps] to rows, for one share of the channels.
static void transpose_weights(const conv *v, const float *weight, float *rows, int part, int parts) {
    int64_t begin, end;
    kr_share(v->width / LANES, part, parts, &begin, &end);
    for (int64_t k = 0; k < v->taps; k++)
        for (int64_t c = begin * LANES; c < end * LANES; c++)
            rows[k * v->width + c] = c < v->channels ? weight[c * v->taps + v->taps - 1 - k] : 0;
}

KR_KERNEL(causal_conv1d_weights) {
    const conv v = conv_of(call, call->in);
    transpose_weights(&v, call->in[CONV_WEIGHT].data, call->work, part, parts);
}

KR_KERNEL(causal_conv1d_grad_weights) {
    const conv v = conv_of(call, call->in + CONV_GRAD_FORWARD);
    transpose_weights(&v, call->in[CONV_GRAD_FORWARD + CONV_WEIGHT].data, call->work, part, parts);
}

/// How far back the taps of token t may go. `start` is the last reset at or before t, or -1.
KR_INLINE int64_t reach_of(const conv *v, int64_t t, int64_t start) {
    const int64_t most = v->taps - 1, since = start >= 0 ? t - start : v->state ? most : t;
    return since < most ? since : most;
}

/// The last reset among the tokens 0 .. t of a batch row, no more than `back` tokens ago; or -1.
static int64_t last_reset(const conv *v, int64_t b, int64_t t, int64_t back) {
    if (v->reset)
        for (int64_t s = t; s >= 0 && s >= t - back; s--)
            if (v->reset[b * v->length + s] > 0) return s;
    return -1;
}

/// The input row at time t; before time 0 the state's, which exists wherever the reach goes that far.
KR_INLINE const float *input_row(const conv *v, int64_t b, int64_t t) {
    if (t >= 0) return v->x + (b * v->length + t) * v->pitch;
    return v->state + (b * (v->taps - 1) + v->taps - 1 + t) * v->channels;
}

/// The convolution at token t of batch row b for 16 channels from c; `left` of them exist.
static kr_vf convolve(const conv *v, int64_t b, int64_t t, int64_t reach, int64_t c, int64_t left) {
    kr_vf p = v->bias ? kr_v_load_n(v->bias + c, left) : kr_v_set(0);
    for (int64_t k = reach; k >= 0; k--)
        p += kr_v_load(v->weights + k * v->width + c) * kr_v_load_n(input_row(v, b, t - k) + c, left);
    return p;
}

/// Four taps within x: the weights and biases of 16 channels.
typedef struct four {
    kr_vf w0, w1, w2, w3, bias; ///< wk meets the input k tokens back
} four;

KR_INLINE four four_of(const conv *v, int64_t c, int64_t left) {
    const float *w = v->weights + c;
    return (four){kr_v_load(w), kr_v_load(w + v->width), kr_v_load(w + 2 * v->width), kr_v_load(w + 3 * v->width),
                  v->bias ? kr_v_load_n(v->bias + c, left) : kr_v_set(0)};
}

KR_INLINE kr_vf convolve_four(const four *f, kr_vf x0, kr_vf x1, kr_vf x2, kr_vf x3) {
    return f->bias + f->w3 * x3 + f->w2 * x2 + f->w1 * x1 + f->w0 * x0;
}

KR_INLINE int is_four(const conv *v, int64_t t, int64_t reach) { return v->taps == 4 && reach == 3 && t >= 3; }

/// Four taps of 16 channels at x.
KR_INLINE kr_vf forward_vector(const conv *v, const float *x, int64_t c) {
    const float *w = v->weights + c;
    const int64_t pitch = v->pitch;
    kr_vf p = v->bias ? kr_v_load(v->bias + c) : kr_v_set(0);
    p += kr_v_load(w + 3 * v->width) * kr_v_load(x - 3 * pitch);
    p += kr_v_load(w + 2 * v->width) * kr_v_load(x - 2 * pitch);
    p += kr_v_load(w + v->width) * kr_v_load(x - pitch);
    return p + kr_v_load(w) * kr_v_load(x);
}

/// A token of four taps for the channels from .. to. x, y: its rows.
static void forward_four(const conv *v, const float *x, float *y, int64_t y_pitch, int64_t from, int64_t to) {
    enum { SOON = 2, GROUP = 4 }; // rows; whole vectors at a time, which need no test for the end of a row
    const int64_t pitch = v->pitch;
    int64_t c = from;
    for (; c + GROUP * LANES <= to; c += GROUP * LANES) {
        kr_vf p[GROUP];
        for (int i = 0; i < GROUP; i++) {
            kr_prefetch(x + c + i * LANES, SOON * pitch, KR_PREFETCH_FAR);
            kr_prefetch(y + c + i * LANES, SOON * y_pitch, KR_PREFETCH_WRITE);
            p[i] = forward_vector(v, x + c + i * LANES, c + i * LANES);
        }
        for (int i = 0; i < GROUP; i++) kr_v_store(y + c + i * LANES, v->silu ? kr_v_silu(p[i]) : p[i]);
    }
    for (; c < to; c += LANES) {
        const int64_t left = v->channels - c;
        const four f = four_of(v, c, left);
        const float *at = x + c;
        const kr_vf p = convolve_four(&f, kr_v_load_n(at, left), kr_v_load_n(at - pitch, left),
                                      kr_v_load_n(at - 2 * pitch, left), kr_v_load_n(at - 3 * pitch, left));
        kr_v_store_n(y + c, v->silu ? kr_v_silu(p) : p, left);
    }
}

/// next[k] is the input at time length - (taps - 1) + k; those before the last reset are zeros.
static void next_state(const conv *v, int64_t b, float *next, int64_t from, int64_t to) {
    const int64_t rows = v->taps - 1, start = last_reset(v, b, v->length - 1, v->length);
    for (int64_t k = 0; k < rows; k++) {
        const int64_t t = v->length - rows + k;
        const int some = start >= 0 ? t >= start : t >= 0 || v->state;
        const float *x = some ? input_row(v, b, t) : 0;
        for (int64_t c = from; c < to; c++) next[(b * rows + k) * v->channels + c] = x ? x[c] : 0;
    }
}

KR_KERNEL(causal_conv1d) {
    enum { TOKENS = 64, WIDE = 1024 };
    const conv v = conv_of(call, call->in);
    float *y = call->out[0].data, *next = call->out[1].data;
    const int64_t y_pitch = kr_arg_pitch(&call->out[0]);
    const int64_t blocks = (v.channels + WIDE - 1) / WIDE, spans = (v.length + TOKENS - 1) / TOKENS + 1;
    int64_t begin, end;
    kr_share(v.batch * spans * blocks, part, parts, &begin, &end);
    for (int64_t unit = begin; unit < end; unit++) {
        const int64_t from = unit % blocks * WIDE, to = from + WIDE < v.channels ? from + WIDE : v.channels;
        const int64_t b = unit / blocks / spans, first = unit / blocks % spans * TOKENS;
        if (unit / blocks % spans == spans - 1) { // the last span of a row has no tokens
            if (next) next_state(&v, b, next, from, to);
            continue;
        }
        int64_t start = last_reset(&v, b, first - 1, v.taps);
        for (int64_t t = first; t < first + TOKENS && t < v.length; t++) {
            const int64_t row = b * v.length + t;
            if (v.reset && v.reset[row] > 0) start = t;
            const int64_t reach = reach_of(&v, t, start);
            if (is_four(&v, t, reach)) {
                forward_four(&v, input_row(&v, b, t), y + row * y_pitch, y_pitch, from, to);
                continue;
            }
            for (int64_t c = from; c < to; c += LANES) {
                const kr_vf p = convolve(&v, b, t, reach, c, v.channels - c);
                kr_v_store_n(y + row * y_pitch + c, v.silu ? kr_v_silu(p) : p, v.channels - c);
            }
        }
    }
}

// Backward ------------------------------------------------------------------------------------------------------------

enum { VECTORS = 4, BLOCK = VECTORS * LANES }; ///< of channels, in a unit

typedef struct conv_grad {
    conv v;
    const float *dy, *dnext;
    float *dx, *dstate;
    int64_t dy_pitch, dx_pitch;
} conv_grad;

/// in: dy, dnext, x, weight, bias, state, reset; out: dx, dweight, dbias, dstate.
static conv_grad conv_grad_of(const kr_call *call) {
    conv_grad d = {.v = conv_of(call, call->in + CONV_GRAD_FORWARD),
                   .dy = call->in[0].data,
                   .dnext = call->in[1].data,
                   .dx = call->out[0].data,
                   .dx_pitch = kr_arg_pitch(&call->out[0]),
                   .dstate = call->out[3].data};
    if (d.dy) d.dy_pitch = kr_arg_pitch(&call->in[0]);
    if (!d.v.state) d.dstate = 0;
    return d;
}

/// Where the gradient of the input at time t goes; null when nobody reads it.
KR_INLINE float *gradient_row(const conv_grad *d, int64_t b, int64_t t) {
    const int64_t rows = d->v.taps - 1;
    if (t >= 0) return d->dx ? d->dx + (b * d->v.length + t) * d->dx_pitch : 0;
    return d->dstate ? d->dstate + (b * rows + rows + t) * d->v.channels : 0;
}

/// What flows into the input at time t from the next state.
KR_INLINE kr_vf from_next(const conv_grad *d, int64_t b, int64_t t, int64_t start, int64_t c, int64_t left) {
    const int64_t rows = d->v.taps - 1, k = t - (d->v.length - rows);
    if (!d->dnext || k < 0 || k >= rows || (start >= 0 && t < start)) return kr_v_set(0);
    return kr_v_load_n(d->dnext + (b * rows + k) * d->v.channels + c, left);
}

/// dp for dy, where p is the convolution.
KR_INLINE kr_vf activation_grad(const conv *v, kr_vf p, kr_vf dy) {
    if (!v->silu) return dy;
    const kr_vf s = kr_v_sigmoid(p), one = kr_v_set(1);
    return dy * s * (one + p * (one - s));
}

KR_INLINE void add(float *to, kr_vf v, int64_t left) { kr_v_store_n(to, kr_v_load_n(to, left) + v, left); }

/// One token of 16 channels. The gradient of the token's own input is set, those of earlier inputs are added to.
static void back_token(const conv_grad *d, float *sums, int64_t b, int64_t t, int64_t reach, int64_t last, int64_t c) {
    const conv *v = &d->v;
    const int64_t left = v->channels - c;
    const kr_vf dy = d->dy ? kr_v_load_n(d->dy + (b * v->length + t) * d->dy_pitch + c, left) : kr_v_set(0);
    const kr_vf dp = activation_grad(v, convolve(v, b, t, reach, c, left), dy);
    float *own = gradient_row(d, b, t);
    if (own) kr_v_store_n(own + c, from_next(d, b, t, last, c, left), left);
    add(sums + v->taps * v->width + c, dp, LANES);
    for (int64_t k = 0; k <= reach; k++) {
        float *dx = gradient_row(d, b, t - k);
        add(sums + k * v->width + c, dp * kr_v_load_n(input_row(v, b, t - k) + c, left), LANES);
        if (dx) add(dx + c, dp * kr_v_load(v->weights + k * v->width + c), left);
    }
}

/// Tokens first .. end of 16 channels, all with four taps at full reach and without a gradient from the next state.
/// The last three inputs, what their gradients have so far, and all sums stay in registers. The lines of the same
/// channels in the next run are prefetched.
static void back_four(const conv_grad *d, float *sums, int64_t b, int64_t first, int64_t end, int64_t c) {
    const conv *v = &d->v;
    const int64_t left = v->channels - c, dx_pitch = d->dx_pitch;
    const four f = four_of(v, c, left);
    const float *x = input_row(v, b, first) + c, *dy = d->dy + (b * v->length + first) * d->dy_pitch + c;
    const float *soon_x = x + (end - first) * v->pitch, *soon_dy = dy + (end - first) * d->dy_pitch;
    float *dx = gradient_row(d, b, first), *sum = sums + c;
    const float *soon_dx = dx ? dx + c + (end - first) * dx_pitch : soon_x;
    kr_vf x1 = kr_v_load_n(x - v->pitch, left), x2 = kr_v_load_n(x - 2 * v->pitch, left);
    kr_vf x3 = kr_v_load_n(x - 3 * v->pitch, left), d1 = kr_v_set(0), d2 = d1, d3 = d1;
    kr_vf s0 = kr_v_load(sum), s1 = kr_v_load(sum + v->width), s2 = kr_v_load(sum + 2 * v->width);
    kr_vf s3 = kr_v_load(sum + 3 * v->width), sb = kr_v_load(sum + 4 * v->width);
    if (dx) {
        dx += c;
        d1 = kr_v_load_n(dx - dx_pitch, left);
        d2 = kr_v_load_n(dx - 2 * dx_pitch, left);
        d3 = kr_v_load_n(dx - 3 * dx_pitch, left);
    }
    for (int64_t t = first; t < end; t++, x += v->pitch, dy += d->dy_pitch) {
        kr_prefetch(soon_x, 0, KR_PREFETCH_FAR), kr_prefetch(soon_dy, 0, KR_PREFETCH_FAR),
            kr_prefetch(soon_dx, 0, KR_PREFETCH_WRITE);
        soon_x += v->pitch, soon_dy += d->dy_pitch, soon_dx += dx_pitch;
        const kr_vf x0 = kr_v_load_n(x, left);
        const kr_vf dp = activation_grad(v, convolve_four(&f, x0, x1, x2, x3), kr_v_load_n(dy, left));
        s0 += dp * x0;
        s1 += dp * x1;
        s2 += dp * x2;
        s3 += dp * x3;
        sb += dp;
        if (dx) {
            kr_v_store_n(dx - 3 * dx_pitch, d3 + f.w3 * dp, left);
            dx += dx_pitch;
        }
        d3 = d2 + f.w2 * dp;
        d2 = d1 + f.w1 * dp;
        d1 = f.w0 * dp;
        x3 = x2;
        x2 = x1;
        x1 = x0;
    }
    if (dx) {
        kr_v_store_n(dx - dx_pitch, d1, left);
        kr_v_store_n(dx - 2 * dx_pitch, d2, left);
        kr_v_store_n(dx - 3 * dx_pitch, d3, left);
    }
    kr_v_store(sum, s0);
    kr_v_store(sum + v->width, s1);
    kr_v_store(sum + 2 * v->width, s2);
    kr_v_store(sum + 3 * v->width, s3);
    kr_v_store(sum + 4 * v->width, sb);
}

/// How many tokens from t on back_four can take: until a reset, or to where the next state's gradient flows in.
static int64_t run_of_four(const conv_grad *d, int64_t b, int64_t t) {
    enum { MOST = 8 }; // lines of the next run are under way meanwhile: a core can have about 16
    const conv *v = &d->v;
    const int64_t limit = d->dnext ? v->length - 3 : v->length;
    int64_t n = 0;
    while (n < MOST && t + n < limit && !(v->reset && n && v->reset[b * v->length + t + n] > 0)) n++;
    return n;
}

/// One batch row of the channels from .. to.
static void back_row(const conv_grad *d, float *sums, int64_t b, int64_t from, int64_t to) {
    const conv *v = &d->v;
    const int64_t last = last_reset(v, b, v->length - 1, v->length);
    for (int64_t k = 0; k < v->taps - 1 && d->dstate; k++)
        for (int64_t c = from; c < to; c += LANES)
            kr_v_store_n(d->dstate + (b * (v->taps - 1) + k) * v->channels + c,
                         from_next(d, b, k - (v->taps - 1), last, c, v->channels - c), v->channels - c);
    int64_t start = -1;
    for (int64_t t = 0; t < v->length;) {
        if (v->reset && v->reset[b * v->length + t] > 0) start = t;
        const int64_t reach = reach_of(v, t, start);
        const int64_t run = d->dy && is_four(v, t, reach) ? run_of_four(d, b, t) : 0;
        for (int64_t c = from; c < to; c += LANES) {
            if (run) back_four(d, sums, b, t, t + run, c);
            else back_token(d, sums, b, t, reach, last, c);
        }
        t += run ? run : 1;
    }
}

KR_KERNEL(causal_conv1d_grad) {
    const conv_grad d = conv_grad_of(call);
    const conv *v = &d.v;
    const int64_t blocks = (v->channels + BLOCK - 1) / BLOCK, partials = kr_conv_sums(v->batch);
    int64_t begin, end;
    kr_share(partials * blocks, part, parts, &begin, &end);
    for (int64_t unit = begin; unit < end; unit++) {
        const int64_t from = unit % blocks * BLOCK, to = from + BLOCK < v->channels ? from + BLOCK : v->channels;
        const int64_t p = unit / blocks;
        float *sums = (float *)call->work + (v->taps + p * (v->taps + 1)) * v->width;
        for (int64_t k = 0; k <= v->taps; k++)
            for (int64_t c = from; c < to; c += LANES) kr_v_store(sums + k * v->width + c, kr_v_set(0));
        for (int64_t b = v->batch * p / partials; b < v->batch * (p + 1) / partials; b++)
            back_row(&d, sums, b, from, to);
    }
}

KR_KERNEL(causal_conv1d_grad_sum) {
    const conv v = conv_of(call, call->in + CONV_GRAD_FORWARD);
    float *dweight = call->out[1].data, *dbias = v.bias ? call->out[2].data : 0;
    const float *sums = (const float *)call->work + v.taps * v.width;
    const int64_t partials = kr_conv_sums(v.batch), block = (v.taps + 1) * v.width;
    int64_t begin, end;
    kr_share(v.width / LANES, part, parts, &begin, &end);
    for (int64_t c = begin * LANES; c < end * LANES; c += LANES)
        for (int64_t k = 0; k <= v.taps; k++) {
            kr_vf sum = kr_v_set(0);
            for (int64_t p = 0; p < partials; p++) sum += kr_v_load(sums + p * block + k * v.width + c);
            const int64_t left = v.channels - c < LANES ? v.channels - c : LANES;
            if (k == v.taps && dbias) kr_v_store_n(dbias + c, sum, left);
            for (int64_t i = 0; i < left && k < v.taps && dweight; i++)
                dweight[(c + i) * v.taps + v.taps - 1 - k] = sum[i];
        }
}
