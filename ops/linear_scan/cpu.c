/// Linear recurrence along axis 1 on the CPU. A unit is one batch row and 64 channels: four vectors of state stay in
/// registers while time passes, and every row gives four whole cache lines.
#include "ops/cpu/lanes.h"
#include "ops/linear_scan/args.h"

enum { VECTORS = 4, WIDTH = VECTORS * KR_LANES };

/// Whatever of [B, L, C] a unit works on.
typedef struct unit {
    int64_t batch, channel, left; ///< left: channels from `channel` on
} unit;

static unit unit_at(int64_t index, int64_t channels) {
    const int64_t blocks = (channels + WIDTH - 1) / WIDTH, channel = index % blocks * WIDTH;
    return (unit){index / blocks, channel, channels - channel};
}

static int64_t units(const kr_shape *s) { return s->dim[0] * ((s->dim[2] + WIDTH - 1) / WIDTH); }

/// How many of the lanes of vector k exist.
KR_INLINE int64_t lanes_of(int64_t left, int k) { return left > k * KR_LANES ? left - k * KR_LANES : 0; }

/// A row of the unit; absent tensors read as zeros and swallow what is written.
static void load(kr_vf *v, const float *row, int64_t left) {
    for (int k = 0; k < VECTORS; k++) v[k] = row ? kr_v_load_n(row + k * KR_LANES, lanes_of(left, k)) : kr_v_set(0);
}

static void store(float *row, const kr_vf *v, int64_t left) {
    for (int k = 0; k < VECTORS && row; k++) kr_v_store_n(row + k * KR_LANES, v[k], lanes_of(left, k));
}

/// Row `row` of the unit's channels; null stays null.
static float *row_of(const kr_arg *x, int64_t row, const unit *u) {
    return x->data ? (float *)x->data + row * kr_arg_pitch(x) + u->channel : 0;
}

KR_KERNEL(linear_scan) {
    const kr_arg *a = &call->in[LINEAR_SCAN_A], *b = &call->in[LINEAR_SCAN_B], *h0 = &call->in[LINEAR_SCAN_H0],
                 *out = &call->out[LINEAR_SCAN_H], *last = &call->out[LINEAR_SCAN_LAST];
    const int32_t *reset = call->in[LINEAR_SCAN_RESET].data;
    const int64_t length = a->shape.dim[1], channels = a->shape.dim[2];
    int64_t begin, end;
    kr_share(units(&a->shape), part, parts, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        const unit u = unit_at(i, channels);
        kr_vf h[VECTORS], x[VECTORS], y[VECTORS];
        load(h, row_of(h0, u.batch, &u), u.left);
        for (int64_t row = u.batch * length; row < (u.batch + 1) * length; row++) {
            load(x, row_of(a, row, &u), u.left);
            load(y, row_of(b, row, &u), u.left);
            if (reset && reset[row] > 0) load(h, 0, u.left);
            for (int k = 0; k < VECTORS; k++) h[k] = x[k] * h[k] + y[k];
            store(row_of(out, row, &u), h, u.left);
        }
        store(row_of(last, u.batch, &u), h, u.left);
    }
}

/// With g the adjoint of h_t: db = g, da = g h_{t-1}, then g = a g.
KR_KERNEL(linear_scan_grad) {
    const kr_arg *dh = &call->in[LINEAR_SCAN_GRAD_DH], *dlast = &call->in[LINEAR_SCAN_GRAD_DLAST],
                 *a = &call->in[LINEAR_SCAN_GRAD_A], *h = &call->in[LINEAR_SCAN_GRAD_H],
                 *h0 = &call->in[LINEAR_SCAN_GRAD_H0];
    const int32_t *reset = call->in[LINEAR_SCAN_GRAD_RESET].data;
    const int64_t length = a->shape.dim[1], channels = a->shape.dim[2];
    int64_t begin, end;
    kr_share(units(&a->shape), part, parts, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        const unit u = unit_at(i, channels);
        const int64_t first = u.batch * length;
        kr_vf g[VECTORS], d[VECTORS], x[VECTORS], before[VECTORS];
        load(g, row_of(dlast, u.batch, &u), u.left);
        for (int64_t row = first + length - 1; row >= first; row--) {
            const int fresh = reset && reset[row] > 0;
            load(d, row_of(dh, row, &u), u.left);
            load(x, row_of(a, row, &u), u.left);
            load(before, fresh ? 0 : row > first ? row_of(h, row - 1, &u) : row_of(h0, u.batch, &u), u.left);
            for (int k = 0; k < VECTORS; k++) g[k] += d[k];
            store(row_of(&call->out[LINEAR_SCAN_GRAD_DB], row, &u), g, u.left);
            for (int k = 0; k < VECTORS; k++) before[k] *= g[k];
            store(row_of(&call->out[LINEAR_SCAN_GRAD_DA], row, &u), before, u.left);
            for (int k = 0; k < VECTORS; k++) g[k] = fresh ? kr_v_set(0) : x[k] * g[k];
        }
        store(row_of(&call->out[LINEAR_SCAN_GRAD_DH0], u.batch, &u), g, u.left);
    }
}
