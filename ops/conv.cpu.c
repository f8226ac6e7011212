/// Lanes are neighbouring channels; a unit of work is one batch row by sixteen channels over all time, so the window of
/// taps stays in registers and a document border simply clears it.
#include "ops/lanes.h"

enum { MAX_TAPS = 256 };

typedef struct conv {
    const kr_arg *x, *weight, *bias, *state, *reset;
    int64_t B, L, C, W, pitch, groups;
    int silu;
} conv;

static conv describe(const kr_call *call) {
    conv c = {.x = &call->in[0], .weight = &call->in[1], .bias = &call->in[2], .state = &call->in[3], .reset = &call->in[4],
              .silu = call->attrs->i[0] != 0};
    c.B = c.x->shape.dim[0], c.L = c.x->shape.dim[1], c.C = c.x->shape.dim[2], c.W = c.weight->shape.dim[1];
    c.pitch = kr_arg_pitch(c.x);
    c.groups = (c.C + KR_LANES - 1) / KR_LANES;
    return c;
}

/// taps[j] holds tap j of the unit's channels.
KR_INLINE void load_taps(const conv *c, int64_t channel, int64_t n, kr_vf *taps, const int64_t W) {
    const float *w = (const float *)c->weight->data + channel * W;
    for (int64_t j = 0; j < W; j++) {
        taps[j] = kr_v_set(0);
        for (int64_t l = 0; l < n && l < KR_LANES; l++) taps[j][l] = w[l * W + j];
    }
}

KR_INLINE int is_reset(const conv *c, int64_t b, int64_t t) {
    return c->reset->data && ((const int32_t *)c->reset->data)[b * c->L + t];
}

/// The raw input at time t of the unit, t < 0 from the state.
KR_INLINE kr_vf input_at(const conv *c, int64_t b, int64_t t, int64_t channel, int64_t n, const int64_t W) {
    if (t >= 0) return kr_v_load_n((const float *)c->x->data + (b * c->L + t) * c->pitch + channel, n);
    if (!c->state->data) return kr_v_set(0);
    return kr_v_load_n((const float *)c->state->data + (b * (W - 1) + W - 1 + t) * c->C + channel, n);
}

KR_INLINE kr_vf bias_of(const conv *c, int64_t channel, int64_t n) {
    return c->bias->data ? kr_v_load_n((const float *)c->bias->data + channel, n) : kr_v_set(0);
}

KR_INLINE void forward_unit(const conv *c, const kr_arg *y, const kr_arg *next, int64_t b, int64_t channel, const int64_t W,
                            kr_vf *taps, kr_vf *window) {
    const int64_t n = c->C - channel, to = kr_arg_pitch(y);
    const kr_vf bias = bias_of(c, channel, n);
    load_taps(c, channel, n, taps, W);
    for (int64_t j = 0; j + 1 < W; j++) window[j] = input_at(c, b, j - W + 1, channel, n, W);
    for (int64_t t = 0; t < c->L; t++) {
        if (is_reset(c, b, t))
            for (int64_t j = 0; j + 1 < W; j++) window[j] = kr_v_set(0);
        window[W - 1] = input_at(c, b, t, channel, n, W);
        kr_vf p = bias;
        for (int64_t j = 0; j < W; j++) p += taps[j] * window[j];
        kr_v_store_n((float *)y->data + (b * c->L + t) * to + channel, c->silu ? kr_v_silu(p) : p, n);
        for (int64_t j = 0; j + 1 < W; j++) window[j] = window[j + 1];
    }
    for (int64_t j = 0; j + 1 < W && next->data; j++)
        kr_v_store_n((float *)next->data + (b * (W - 1) + j) * c->C + channel, window[j], n);
}

KR_KERNEL(causal_conv1d) {
    const conv c = describe(call);
    kr_vf taps[MAX_TAPS], window[MAX_TAPS];
    int64_t begin, end;
    kr_share(c.B * c.groups, part, parts, &begin, &end);
    for (int64_t u = begin; u < end; u++) {
        const int64_t b = u / c.groups, channel = u % c.groups * KR_LANES;
        if (c.W == 4) {
            kr_vf four_taps[4], four[4];
            forward_unit(&c, &call->out[0], &call->out[1], b, channel, 4, four_taps, four);
        } else forward_unit(&c, &call->out[0], &call->out[1], b, channel, c.W, taps, window);
    }
}

/// silu'(p) = sigma (1 + p (1 - sigma))
KR_INLINE kr_vf silu_slope(kr_vf p) {
    const kr_vf s = kr_v_sigmoid(p), one = kr_v_set(1.0f);
    return s * (one + p * (one - s));
}

/// Time runs backwards. later[k] is the gradient at the sum of token t + k, cleared where a document starts, so that
/// dx_t = sum_k w_{W-1-k} later[k]. The sums themselves are made again from x.
KR_INLINE void backward_unit(const conv *c, const kr_call *call, int64_t b, int64_t channel, const int64_t W, kr_vf *taps,
                             kr_vf *later, kr_vf *dtaps, kr_vf *xs) {
    const kr_arg *dy = &call->in[5], *dnext = &call->in[6], *dx = &call->out[0], *dstate = &call->out[3];
    const int64_t n = c->C - channel, from = kr_arg_pitch(dy), to = kr_arg_pitch(dx);
    const kr_vf bias = bias_of(c, channel, n);
    kr_vf dbias = kr_v_set(0);
    int same_document = 1; // no reset between t and the end: the next state still holds x_t
    load_taps(c, channel, n, taps, W);
    for (int64_t j = 0; j < W; j++) later[j] = dtaps[j] = kr_v_set(0);
    for (int64_t t = c->L - 1; t >= 1 - W; t--) {
        for (int64_t k = W - 1; k > 0; k--) later[k] = later[k - 1];
        later[0] = kr_v_set(0);
        if (t >= 0 && dy->data) {
            kr_vf p = bias, d = kr_v_load_n((const float *)dy->data + (b * c->L + t) * from + channel, n);
            int open = 1; // the tap's token belongs to this document
            for (int64_t j = W - 1; j >= 0; j--) {
                xs[j] = open ? input_at(c, b, t - W + 1 + j, channel, n, W) : kr_v_set(0);
                p += taps[j] * xs[j];
                if (t - W + 1 + j >= 0 && is_reset(c, b, t - W + 1 + j)) open = 0;
            }
            if (c->silu) d *= silu_slope(p);
            for (int64_t j = 0; j < W; j++) dtaps[j] += d * xs[j];
            dbias += d;
            later[0] = d;
        }
        kr_vf sum = kr_v_set(0);
        for (int64_t k = 0; k < W; k++) sum += taps[W - 1 - k] * later[k];
        if (dnext->data && same_document && t > c->L - W)
            sum += kr_v_load_n((const float *)dnext->data + (b * (W - 1) + t - (c->L - W + 1)) * c->C + channel, n);
        if (t >= 0 && dx->data) kr_v_store_n((float *)dx->data + (b * c->L + t) * to + channel, sum, n);
        if (t < 0 && dstate->data) kr_v_store_n((float *)dstate->data + (b * (W - 1) + W - 1 + t) * c->C + channel, sum, n);
        if (t >= 0 && is_reset(c, b, t)) {
            same_document = 0;
            for (int64_t k = 0; k < W; k++) later[k] = kr_v_set(0);
        }
    }
    float *partial = (float *)call->work + (b * c->C + channel) * (W + 1);
    for (int64_t l = 0; l < n && l < KR_LANES; l++) {
        for (int64_t j = 0; j < W; j++) partial[l * (W + 1) + j] = dtaps[j][l];
        partial[l * (W + 1) + W] = dbias[l];
    }
}

KR_KERNEL(causal_conv1d_grad) {
    const conv c = describe(call);
    kr_vf taps[MAX_TAPS], later[MAX_TAPS], dtaps[MAX_TAPS], xs[MAX_TAPS];
    int64_t begin, end;
    kr_share(c.B * c.groups, part, parts, &begin, &end);
    for (int64_t u = begin; u < end; u++) {
        const int64_t b = u / c.groups, channel = u % c.groups * KR_LANES;
        if (c.W == 4) {
            kr_vf a[4], d[4], e[4], f[4];
            backward_unit(&c, call, b, channel, 4, a, d, e, f);
        } else backward_unit(&c, call, b, channel, c.W, taps, later, dtaps, xs);
    }
}

/// Sums the batch rows in order.
KR_KERNEL(causal_conv1d_grad_combine) {
    const conv c = describe(call);
    const float *partial = call->work;
    float *dweight = call->out[1].data, *dbias = call->out[2].data;
    int64_t begin, end;
    kr_share(c.C, part, parts, &begin, &end);
    for (int64_t channel = begin; channel < end; channel++)
        for (int64_t j = 0; j <= c.W; j++) {
            float sum = 0;
            for (int64_t b = 0; b < c.B; b++) sum += partial[(b * c.C + channel) * (c.W + 1) + j];
            if (j < c.W && dweight) dweight[channel * c.W + j] = sum;
            if (j == c.W && dbias) dbias[channel] = sum;
        }
}
