/// Causal depthwise convolution on the CPU. Rows of channels are walked as they lie in memory; the taps of a token are
/// the rows before it, which are still in L1. Weights come as [channels, taps], so a first stage turns them into rows.
///
/// `reach` is how many earlier inputs a token's taps may touch: taps - 1, less after a reset or at the start of a
/// sequence without state. Only tokens with a shorter reach, and odd numbers of taps, take the general path.
#include "ops/conv.h"
#include "ops/lanes.h"

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
    conv v = {.batch = in[0].shape.dim[0], .length = in[0].shape.dim[1], .channels = in[0].shape.dim[2],
              .taps = in[1].shape.dim[1], .x = in[0].data, .weights = call->work, .bias = in[2].data,
              .state = in[3].data, .reset = in[4].data, .pitch = kr_arg_pitch(&in[0]), .silu = call->attrs->i[0] != 0};
    v.width = kr_conv_width(v.channels);
    return v;
}

/// [channels, taps] to rows, for one share of the channels.
static void turn_weights(const conv *v, const float *weight, float *rows, int part, int parts) {
    int64_t begin, end;
    kr_share(v->width / LANES, part, parts, &begin, &end);
    for (int64_t k = 0; k < v->taps; k++)
        for (int64_t c = begin * LANES; c < end * LANES; c++)
            rows[k * v->width + c] = c < v->channels ? weight[c * v->taps + v->taps - 1 - k] : 0;
}

KR_KERNEL(causal_conv1d_weights) {
    const conv v = conv_of(call, call->in);
    turn_weights(&v, call->in[1].data, call->work, part, parts);
}

KR_KERNEL(causal_conv1d_grad_weights) {
    const conv v = conv_of(call, call->in + 2);
    turn_weights(&v, call->in[3].data, call->work, part, parts);
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

/// The convolution at token t of batch row b for 16 channels from c; `left` of them exist. `fast`: reach 3, all in x.
KR_INLINE kr_vf convolve(const int fast, const conv *v, int64_t b, int64_t t, int64_t reach, int64_t c, int64_t left) {
    kr_vf p = v->bias ? kr_v_load_n(v->bias + c, left) : kr_v_set(0);
    if (fast) {
        const float *x = input_row(v, b, t) + c, *w = v->weights + c;
        for (int k = 3; k >= 0; k--) p += kr_v_load(w + k * v->width) * kr_v_load_n(x - k * v->pitch, left);
        return p;
    }
    for (int64_t k = reach; k >= 0; k--)
        p += kr_v_load(v->weights + k * v->width + c) * kr_v_load_n(input_row(v, b, t - k) + c, left);
    return p;
}

KR_INLINE int is_fast(const conv *v, int64_t t, int64_t reach) { return v->taps == 4 && reach == 3 && t >= 3; }

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
    enum { TOKENS = 64, BLOCK = 256 };
    const conv v = conv_of(call, call->in);
    float *y = call->out[0].data, *next = call->out[1].data;
    const int64_t y_pitch = kr_arg_pitch(&call->out[0]);
    const int64_t blocks = (v.channels + BLOCK - 1) / BLOCK, spans = (v.length + TOKENS - 1) / TOKENS + 1;
    int64_t begin, end;
    kr_share(v.batch * spans * blocks, part, parts, &begin, &end);
    for (int64_t unit = begin; unit < end; unit++) {
        const int64_t from = unit % blocks * BLOCK, to = from + BLOCK < v.channels ? from + BLOCK : v.channels;
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
            const int fast = is_fast(&v, t, reach);
            for (int64_t c = from; c < to; c += LANES) {
                const int64_t left = v.channels - c;
                const kr_vf p = fast ? convolve(1, &v, b, t, 3, c, left) : convolve(0, &v, b, t, reach, c, left);
                kr_v_store_n(y + row * y_pitch + c, v.silu ? kr_v_silu(p) : p, left);
            }
        }
    }
}

// Backward ------------------------------------------------------------------------------------------------------------

typedef struct conv_grad {
    conv v;
    const float *dy, *dnext;
    float *dx, *dstate;
    int64_t dy_pitch, dx_pitch;
} conv_grad;

/// in: dy, dnext, x, weight, bias, state, reset; out: dx, dweight, dbias, dstate.
static conv_grad conv_grad_of(const kr_call *call) {
    conv_grad d = {.v = conv_of(call, call->in + 2), .dy = call->in[0].data, .dnext = call->in[1].data,
                   .dx = call->out[0].data, .dx_pitch = kr_arg_pitch(&call->out[0]), .dstate = call->out[3].data};
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

/// One tap: adds to its weight's sum and to the gradient of the input it met.
KR_INLINE void back_tap(const float *w, const float *x, kr_vf dp, float *sum, float *dx, int64_t left) {
    kr_v_store(sum, kr_v_load(sum) + dp * kr_v_load_n(x, left));
    if (dx) kr_v_store_n(dx, kr_v_load_n(dx, left) + dp * kr_v_load(w), left);
}

/// One token of 16 channels. The gradient of the token's own input is set, those of earlier inputs are added to.
KR_INLINE void back_token(const int fast, const conv_grad *d, float *sums, int64_t b, int64_t t, int64_t reach,
                          int64_t start, int64_t c, int64_t left) {
    const conv *v = &d->v;
    kr_vf dp = d->dy ? kr_v_load_n(d->dy + (b * v->length + t) * d->dy_pitch + c, left) : kr_v_set(0);
    if (v->silu) {
        const kr_vf p = convolve(fast, v, b, t, reach, c, left), s = kr_v_sigmoid(p), one = kr_v_set(1);
        dp *= s * (one + p * (one - s));
    }
    float *own = gradient_row(d, b, t), *bias = sums + v->taps * v->width + c;
    if (own) kr_v_store_n(own + c, from_next(d, b, t, start, c, left), left);
    kr_v_store(bias, kr_v_load(bias) + dp);
    if (fast) {
        const float *x = input_row(v, b, t) + c;
        for (int k = 0; k <= 3; k++)
            back_tap(v->weights + k * v->width + c, x - k * v->pitch, dp, sums + k * v->width + c,
                     own ? own - k * d->dx_pitch + c : 0, left);
        return;
    }
    for (int64_t k = 0; k <= reach; k++) {
        float *dx = gradient_row(d, b, t - k);
        back_tap(v->weights + k * v->width + c, input_row(v, b, t - k) + c, dp, sums + k * v->width + c, dx ? dx + c : 0, left);
    }
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
    for (int64_t t = 0; t < v->length; t++) {
        if (v->reset && v->reset[b * v->length + t] > 0) start = t;
        const int64_t reach = reach_of(v, t, start);
        if (is_fast(v, t, reach))
            for (int64_t c = from; c < to; c += LANES) back_token(1, d, sums, b, t, 3, last, c, v->channels - c);
        else
            for (int64_t c = from; c < to; c += LANES) back_token(0, d, sums, b, t, reach, last, c, v->channels - c);
    }
}

KR_KERNEL(causal_conv1d_grad) {
    enum { BLOCK = 64 };
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
        for (int64_t b = v->batch * p / partials; b < v->batch * (p + 1) / partials; b++) back_row(&d, sums, b, from, to);
    }
}

KR_KERNEL(causal_conv1d_grad_sum) {
    const conv v = conv_of(call, call->in + 2);
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
