/// Mamba-2's scan on the CPU, on the chunk machinery of ssd_chunk.h.
///
/// A unit is one batch row and a few heads of one group. It goes through time chunk by chunk: the scores C B^T of a chunk
/// are made once for its heads, whose states wait in the unit's scratch. The backward pass takes the chunks from last to
/// first, from the states that the forward pass saved, and adds up dB and dC over the heads before the last products.
/// What is summed over units or over the batch is kept apart and added by a second stage in one order.
#include "ops/ssd_chunk_backward.h"
#include "ops/ssd_chunk_forward.h"

enum { GROUPS, CHUNK, SOFTPLUS, ZERO_START };
enum { DT_MIN, DT_MAX };

typedef struct ssd {
    kr_chunk_size size;
    source x, dt, B, C, z;
    const float *A, *D, *dt_bias;
    const int32_t *reset;
    bool softplus, D_per_channel;
    float dt_min, dt_max; // 0: none
} ssd;

/// in: x, dt, A, B, C, D, z, dt_bias.
static ssd ssd_of(const kr_attrs *t, const kr_arg *in, const kr_arg *reset) {
    const int64_t heads = in[2].shape.dim[0], groups = t->i[GROUPS];
    ssd s = {.x = source_of(&in[0]), .dt = source_of(&in[1]), .B = source_of(&in[3]), .C = source_of(&in[4]), .z = source_of(&in[6]),
             .A = in[2].data, .D = in[5].data, .dt_bias = in[7].data, .reset = reset->data, .softplus = t->i[SOFTPLUS] != 0,
             .dt_min = (float)t->r[DT_MIN], .dt_max = (float)t->r[DT_MAX]};
    s.size = kr_chunk_measure(in[0].shape.dim[0], in[0].shape.dim[1], heads, groups, 1,
                              heads ? in[0].shape.dim[2] / heads : 0, in[3].shape.dim[2] / groups, t->i[CHUNK]);
    s.D_per_channel = s.D && in[5].shape.dim[0] != heads;
    return s;
}

/// Where a unit stands: batch row, group, its heads [head, head_end).
typedef struct place {
    int64_t b, group, head, head_end;
} place;

static place place_of(const kr_chunk_size *s, int64_t unit) {
    const int64_t in_group = s->heads / s->groups, block = unit % s->blocks;
    place p = {.group = unit / s->blocks % s->groups, .b = unit / s->blocks / s->groups};
    const int64_t end = (block + 1) * s->block;
    p.head = p.group * in_group + block * s->block;
    p.head_end = p.group * in_group + (end < in_group ? end : in_group);
    return p;
}

/// Sets decay, ghat and gamma of one head's chunk; slope (may be null) gets d dt / d raw.
static void load_steps(const ssd *s, chunk *c, int64_t row, int64_t head, float *slope) {
    const float bias = s->dt_bias ? s->dt_bias[head] : 0;
    const kr_vf A = kr_v_set(s->A[head]), zero = kr_v_set(0), one = kr_v_set(1);
    float *raw = c->ghat;
    for (int64_t t = 0; t < c->tokens; t++) raw[t] = s->dt.at[(row + t) * s->dt.pitch + head] + bias;
    for (int64_t t = 0; t < c->tokens; t += KR_LANES) {
        const kr_vf x = kr_v_load(raw + t);
        kr_vf d = s->softplus ? kr_v_softplus(x) : x, inside = s->softplus && slope ? kr_v_sigmoid(x) : one;
        if (s->dt_min > 0) {
            inside = kr_v_select(d < kr_v_set(s->dt_min), zero, inside);
            d = kr_v_max(d, kr_v_set(s->dt_min));
        }
        if (s->dt_max > 0) {
            inside = kr_v_select(d > kr_v_set(s->dt_max), zero, inside);
            d = kr_v_min(d, kr_v_set(s->dt_max));
        }
        if (slope) kr_v_store(slope + t, inside);
        kr_v_store(c->gamma + t, d);
        kr_v_store(c->decay + t, kr_v_exp(d * A));
    }
    for (int64_t t = 0; t < c->tokens; t++) {
        c->ghat[t] = c->gamma[t];
        if (s->reset && s->reset[row + t] > 0) c->decay[t] = 0;
    }
    chunk_resize(c, c->tokens);
}

/// B and C of the group.
static void load_group(const ssd *s, chunk *c, int64_t row, int64_t group) {
    const int64_t n = s->size.states;
    load_matrix(c->k, s->B.at + row * s->B.pitch + group * n, s->B.pitch, c->tokens, n);
    load_matrix(c->q, s->C.at + row * s->C.pitch + group * n, s->C.pitch, c->tokens, n);
}

KR_INLINE kr_vf skip_weight(const ssd *s, int64_t head, int64_t j) {
    const int64_t p = s->size.width;
    return !s->D ? kr_v_set(0) : s->D_per_channel ? kr_v_load_n(s->D + head * p + j, p - j) : kr_v_set(s->D[head]);
}

static void store_output(const ssd *s, const chunk *c, int64_t row, int64_t head, sink out) {
    const int64_t p = s->size.width;
    for (int64_t j = 0; j < p; j += KR_LANES) {
        const kr_vf D = skip_weight(s, head, j);
        for (int64_t t = 0; t < c->tokens; t++) {
            const int64_t column = head * p + j;
            kr_vf y = kr_v_load(c->y.at + t * c->y.pitch + j) + D * kr_v_load(c->v.at + t * c->v.pitch + j);
            if (s->z.at) y *= kr_v_silu(kr_v_load_n(s->z.at + (row + t) * s->z.pitch + column, p - j));
            kr_v_store_n(out.at + (row + t) * out.pitch + column, y, p - j);
        }
    }
}

/// Asks for what a head reads of one chunk, and for what the group reads of it where the chunk is new.
static void want_inputs(const ssd *s, const chunk *c, int64_t row, place at, int64_t head, bool group) {
    const int64_t n = s->size.states, p = s->size.width;
    want(c->ahead, s->z.at ? s->z.at + row * s->z.pitch + head * p : 0, s->z.pitch, c->tokens, p);
    want(c->ahead, s->x.at + row * s->x.pitch + head * p, s->x.pitch, c->tokens, p);
    if (!group) return;
    want(c->ahead, s->dt.at + row * s->dt.pitch + at.head, s->dt.pitch, c->tokens, at.head_end - at.head);
    want(c->ahead, s->C.at + row * s->C.pitch + at.group * n, s->C.pitch, c->tokens, n);
    want(c->ahead, s->B.at + row * s->B.pitch + at.group * n, s->B.pitch, c->tokens, n);
}

static void forward_unit(const ssd *s, chunk *c, place at, const float *h0, sink out, float *last, float *saved) {
    const kr_chunk_size *size = &s->size;
    const int64_t n = size->states, p = size->width, floats = n * p;
    for (int64_t h = at.head; h < at.head_end; h++) {
        const matrix state = state_of(c, size, h - at.head, false);
        if (h0) transpose(h0 + (at.b * size->heads + h) * floats, n, p, n, state, true);
        else if (saved || !size->chunks) clear_matrix(state, n, p);
    }
    for (int64_t i = 0; i < size->chunks; i++) {
        const int64_t first = i * size->chunk, row = at.b * size->length + first;
        const bool ends = i + 1 == size->chunks;
        chunk_resize(c, ends ? size->length - first : size->chunk);
        load_group(s, c, row, at.group);
        chunk_scores(c);
        for (int64_t h = at.head; h < at.head_end; h++) {
            const matrix state = state_of(c, size, h - at.head, false);
            const bool wraps = h + 1 == at.head_end;
            c->ahead->count = 0;
            if (!wraps || !ends) want_inputs(s, c, row + (wraps ? size->chunk : 0), at, wraps ? at.head : h + 1, wraps);
            want(c->ahead, out.at + row * out.pitch + h * p, out.pitch, c->tokens, p);
            if (saved && i + 1 + wraps < size->chunks)
                want(c->ahead, saved + ((at.b * size->chunks + i + 1 + wraps) * size->heads + (wraps ? at.head : h + 1)) * floats, 0, 1,
                     floats);
            load_steps(s, c, row, h, 0);
            load_matrix(c->v, s->x.at + row * s->x.pitch + h * p, s->x.pitch, c->tokens, p);
            float *save = saved ? saved + ((at.b * size->chunks + i) * size->heads + h) * floats : 0;
            chunk_forward(c, pass_state(c, state, save, size->heads * floats, !i, ends), !i && !h0, !ends || last);
            store_output(s, c, row, h, out);
        }
    }
    for (int64_t h = at.head; h < at.head_end && last; h++) {
        const matrix state = state_of(c, size, h - at.head, false);
        transpose(state.at, state.pitch, n, p, (matrix){last + (at.b * size->heads + h) * floats, n}, false);
    }
}

/// The same for a single token.
static void forward_token(const ssd *s, chunk *c, place at, const float *h0, sink out, float *last) {
    const kr_chunk_size *size = &s->size;
    const int64_t p = size->width, floats = size->states * p;
    chunk_resize(c, 1);
    load_group(s, c, at.b, at.group);
    for (int64_t h = at.head; h < at.head_end; h++) {
        const int64_t state = (at.b * size->heads + h) * floats;
        load_steps(s, c, at.b, h, 0);
        load_matrix(c->v, s->x.at + at.b * s->x.pitch + h * p, s->x.pitch, 1, p);
        scale_rows(c->scaled_v, c->v, c->gamma, 1, p);
        chunk_step(c, h0 ? h0 + state : 0, last ? last + state : 0, c->decay[0], 1);
        store_output(s, c, at.b, h, out);
    }
}

KR_KERNEL(ssd_scan) {
    const ssd s = ssd_of(call->attrs, call->in, &call->in[9]);
    const kr_chunk_layout layout = kr_chunk_arrange(&s.size, false);
    EACH_UNIT(&s.size, {
        chunk c = chunk_of(&s.size, &layout, (float *)call->work + slot * layout.floats);
        prefetch ahead = {.count = 0};
        c.ahead = &ahead;
        chunk_start(&c, &s.size, false);
        const sink out = sink_of(&call->out[0]);
        for (int64_t unit = begin; unit < end; unit++) {
            const place at = place_of(&s.size, unit);
            if (s.size.length == 1 && !call->out[2].data) forward_token(&s, &c, at, call->in[8].data, out, call->out[1].data);
            else forward_unit(&s, &c, at, call->in[8].data, out, call->out[1].data, call->out[2].data);
        }
    });
}

// Backward ----------------------------------------------------------------------------------------------------------

typedef struct ssd_grad {
    ssd s;
    source dout;
    const float *dlast;
    float *saved;
    sink dx, ddt, dz;
    float *dh0;
    bool zero_start;
} ssd_grad;

/// in: dout, dlast, x, dt, A, B, C, D, z, dt_bias, reset, saved.
/// out: dx, ddt, dA, dB, dC, dD, dz, ddt_bias, dh0.
static ssd_grad ssd_grad_of(const kr_call *call) {
    ssd_grad d = {.s = ssd_of(call->attrs, call->in + 2, &call->in[10]), .dout = source_of(&call->in[0]),
                  .dlast = call->in[1].data, .saved = call->in[11].data, .dx = sink_of(&call->out[0]),
                  .ddt = sink_of(&call->out[1]), .dz = sink_of(&call->out[6]), .dh0 = call->out[8].data,
                  .zero_start = call->attrs->i[ZERO_START] != 0};
    if (!d.s.z.at) d.dz.at = 0;
    return d;
}

static void load_dy(const ssd_grad *d, chunk *c, int64_t row, int64_t head) {
    const ssd *s = &d->s;
    const int64_t p = s->size.width, column = head * p;
    if (!d->dout.at) {
        clear_matrix(c->dy, c->rows, p);
        return;
    }
    load_matrix(c->dy, d->dout.at + row * d->dout.pitch + column, d->dout.pitch, c->tokens, p);
    for (int64_t t = 0; t < c->tokens && s->z.at; t++)
        for (int64_t j = 0; j < p; j += KR_LANES) {
            float *dy = c->dy.at + t * c->dy.pitch + j;
            kr_v_store(dy, kr_v_load(dy) * kr_v_silu(kr_v_load_n(s->z.at + (row + t) * s->z.pitch + column + j, p - j)));
        }
}

/// dx and dz, and the sums dD [width].
static void store_values(const ssd_grad *d, const chunk *c, int64_t row, int64_t head, float *dD) {
    const ssd *s = &d->s;
    const int64_t p = s->size.width;
    const kr_vf one = kr_v_set(1);
    for (int64_t j = 0; j < p; j += KR_LANES) {
        const kr_vf D = skip_weight(s, head, j);
        const int64_t column = head * p + j;
        kr_vf sum = kr_v_load(dD + j);
        for (int64_t t = 0; t < c->tokens; t++) {
            const kr_vf dy = kr_v_load(c->dy.at + t * c->dy.pitch + j), x = kr_v_load(c->v.at + t * c->v.pitch + j);
            sum += dy * x;
            if (d->dz.at) {
                const kr_vf dout = d->dout.at ? kr_v_load_n(d->dout.at + (row + t) * d->dout.pitch + column, p - j) : kr_v_set(0);
                const kr_vf z = kr_v_load_n(s->z.at + (row + t) * s->z.pitch + column, p - j), gate = kr_v_sigmoid(z);
                const kr_vf y = kr_v_load(c->y.at + t * c->y.pitch + j) + D * x;
                kr_v_store_n(d->dz.at + (row + t) * d->dz.pitch + column, dout * y * gate * (one + z * (one - gate)), p - j);
            }
            if (d->dx.at)
                kr_v_store_n(d->dx.at + (row + t) * d->dx.pitch + column, kr_v_load(c->dv.at + t * c->dv.pitch + j) + D * dy, p - j);
        }
        kr_v_store(dD + j, sum);
    }
}

/// ddt, and the sums dA and ddt_bias over the chunk: sums[0] and sums[1].
static void store_steps(const ssd_grad *d, const chunk *c, int64_t row, int64_t head, const float *slope, float *sums) {
    const float A = d->s.A[head];
    float dA = 0, dbias = 0;
    for (int64_t t = 0; t < c->tokens; t++) {
        const float draw = (c->dghat[t] + c->dgamma[t] + A * c->da[t]) * slope[t];
        dA += c->da[t] * c->gamma[t];
        dbias += draw;
        if (d->ddt.at) d->ddt.at[(row + t) * d->ddt.pitch + head] = draw;
    }
    sums[0] += dA;
    sums[1] += dbias;
}

/// dB and dC: where a unit writes them.
typedef struct group_sinks {
    sink dB, dC;
} group_sinks;

static group_sinks group_sinks_of(const ssd_grad *d, const kr_call *call, float *shares, int64_t unit, place at) {
    const kr_chunk_size *s = &d->s.size;
    if (s->blocks > 1) {
        float *mine = shares + 2 * unit * kr_chunk_share(s);
        return (group_sinks){{mine, s->states}, {mine + kr_chunk_share(s), s->states}};
    }
    group_sinks g = {sink_of(&call->out[3]), sink_of(&call->out[4])};
    if (g.dB.at) g.dB.at += at.b * s->length * g.dB.pitch + at.group * s->states;
    if (g.dC.at) g.dC.at += at.b * s->length * g.dC.pitch + at.group * s->states;
    return g;
}

/// Asks for what this head writes of the chunk, and for what the next head reads.
static void want_backward(const ssd_grad *d, const chunk *c, place at, int64_t i, int64_t head) {
    const kr_chunk_size *s = &d->s.size;
    const bool wraps = head + 1 == at.head_end;
    const int64_t next_head = wraps ? at.head : head + 1, next = wraps ? i - 1 : i, p = s->width;
    const int64_t row = at.b * s->length + i * s->chunk, next_row = at.b * s->length + next * s->chunk;
    c->ahead->count = 0;
    if (next >= 0) {
        want(c->ahead, d->saved + ((at.b * s->chunks + next) * s->heads + next_head) * s->states * p, 0, 1, s->states * p);
        want(c->ahead, d->dout.at ? d->dout.at + next_row * d->dout.pitch + next_head * p : 0, d->dout.pitch, c->tokens, p);
        want_inputs(&d->s, c, next_row, at, next_head, wraps);
    }
    want(c->ahead, d->dz.at ? d->dz.at + row * d->dz.pitch + head * p : 0, d->dz.pitch, c->tokens, p);
    want(c->ahead, d->dx.at ? d->dx.at + row * d->dx.pitch + head * p : 0, d->dx.pitch, c->tokens, p);
}

/// sum_weights (+)= values, for heads that share q and k. The padding of the triangle stays zero.
static void collect(const chunk *c, bool first) {
    for (int64_t i = 0; i < c->rows; i++)
        for (int64_t j = 0; j < (i / c->rank + 1) * c->rank; j += KR_LANES) {
            float *to = c->sum_weights.at + i * c->sum_weights.pitch + j;
            const kr_vf x = kr_v_load(c->values.at + i * c->values.pitch + j);
            kr_v_store(to, first ? x : kr_v_load(to) + x);
        }
}

/// dq += values k, dk += values^T q, the parts of the chunk itself, where values is the sum over the heads.
static void finish_group(chunk *c, matrix values) {
    product dq = {LOWER_LEFT, c->rank, c->rows, c->states, c->rows, values, c->k, c->dq, .ahead = c->ahead};
    product dk = {LOWER_ACROSS, c->rank, c->rows, c->states, c->rows, values, c->q, c->dk, true, .ahead = c->ahead};
    if (c->dq_set) dq.from = c->dq, dq.times = 1;
    if (c->dk_set) dk.from = c->dk, dk.times = 1;
    multiply(&dq);
    multiply(&dk);
}

static void backward_unit(const ssd_grad *d, chunk *c, place at, group_sinks to, float *sums) {
    const ssd *s = &d->s;
    const kr_chunk_size *size = &s->size;
    const int64_t n = size->states, p = size->width, floats = n * p;
    for (int64_t h = at.head; h < at.head_end; h++) {
        const matrix adjoint = state_of(c, size, h - at.head, true);
        clear_matrix(adjoint, p, n);
        if (d->dlast) load_matrix(adjoint, d->dlast + (at.b * size->heads + h) * floats, n, p, n);
        clear(sums + (at.b * size->heads + h) * kr_chunk_sums(size), kr_chunk_sums(size));
    }
    for (int64_t i = size->chunks - 1; i >= 0; i--) {
        const int64_t first = i * size->chunk, row = at.b * size->length + first;
        const bool fresh = !i && d->zero_start && !d->dh0, ending = i + 1 == size->chunks && !d->dlast;
        const bool alone = at.head_end == at.head + 1;
        chunk_resize(c, i + 1 == size->chunks ? size->length - first : size->chunk);
        load_group(s, c, row, at.group);
        chunk_scores(c);
        c->dq_set = c->dk_set = false;
        for (int64_t h = at.head; h < at.head_end; h++) {
            float *sum = sums + (at.b * size->heads + h) * kr_chunk_sums(size), *slope = c->spare[0];
            want_backward(d, c, at, i, h);
            load_steps(s, c, row, h, slope);
            load_matrix(c->v, s->x.at + row * s->x.pitch + h * p, s->x.pitch, c->tokens, p);
            load_dy(d, c, row, h);
            if (!fresh) c->start = saved_state(c, d->saved + ((at.b * size->chunks + i) * size->heads + h) * floats);
            chunk_backward(c, state_of(c, size, h - at.head, true), fresh, ending, !alone);
            if (d->dz.at) chunk_output(c, c->start, fresh);
            store_values(d, c, row, h, sum + KR_LANES);
            store_steps(d, c, row, h, slope, sum);
            if (!alone) collect(c, h == at.head);
        }
        if (!alone) finish_group(c, c->sum_weights);
        if (to.dB.at) store_matrix(to.dB.at + first * to.dB.pitch, to.dB.pitch, c->dk, c->rows, n);
        if (to.dC.at) store_matrix(to.dC.at + first * to.dC.pitch, to.dC.pitch, c->dq, c->rows, n);
    }
    for (int64_t h = at.head; h < at.head_end && d->dh0; h++)
        store_matrix(d->dh0 + (at.b * size->heads + h) * floats, n, state_of(c, size, h - at.head, true), p, n);
}

KR_KERNEL(ssd_scan_grad) {
    const ssd_grad d = ssd_grad_of(call);
    const kr_chunk_size *size = &d.s.size;
    const kr_chunk_layout layout = kr_chunk_arrange(size, true);
    float *work = call->work, *sums = work + kr_chunk_sums_at(size, &layout), *shares = work + kr_chunk_shares_at(size, &layout);
    EACH_UNIT(size, {
        chunk c = chunk_of(size, &layout, work + slot * layout.floats);
        prefetch ahead = {.count = 0};
        c.ahead = &ahead;
        chunk_start(&c, size, true);
        for (int64_t unit = begin; unit < end; unit++) {
            const place at = place_of(size, unit);
            backward_unit(&d, &c, at, group_sinks_of(&d, call, shares, unit, at), sums);
        }
    });
}

/// to[row] = the sum of the shares of a group's units, for `count` tokens.
static void add_shares(const kr_chunk_size *s, const float *shares, sink to, int64_t b, int64_t group, int64_t first,
                       int64_t count) {
    if (!to.at) return;
    const int64_t n = s->states, step = 2 * kr_chunk_share(s);
    shares += (b * s->groups + group) * s->blocks * step;
    for (int64_t t = first; t < first + count; t++)
        for (int64_t j = 0; j < n; j += KR_LANES) {
            kr_vf sum = kr_v_load_n(shares + t * n + j, n - j);
            for (int64_t i = 1; i < s->blocks; i++) sum += kr_v_load_n(shares + i * step + t * n + j, n - j);
            kr_v_store_n(to.at + (b * s->length + t) * to.pitch + group * n + j, sum, n - j);
        }
}

/// dA, dD and ddt_bias of one head: sums over the batch.
static void add_batch(const ssd_grad *d, const kr_call *call, const float *sums, int64_t head) {
    const kr_chunk_size *s = &d->s.size;
    const int64_t step = s->heads * kr_chunk_sums(s), p = s->width;
    float *dA = call->out[2].data, *dD = call->out[5].data, *dbias = call->out[7].data;
    float a = 0, bias = 0, skip = 0;
    sums += head * kr_chunk_sums(s);
    for (int64_t b = 0; b < s->batch; b++) a += sums[b * step], bias += sums[b * step + 1];
    if (dA) dA[head] = a;
    if (dbias && d->s.dt_bias) dbias[head] = bias;
    if (!dD || !d->s.D) return;
    for (int64_t j = 0; j < p; j += KR_LANES) {
        kr_vf sum = kr_v_set(0);
        for (int64_t b = 0; b < s->batch; b++) sum += kr_v_load(sums + b * step + KR_LANES + j);
        if (d->s.D_per_channel) kr_v_store_n(dD + head * p + j, sum, p - j);
        else skip += kr_v_sum(sum);
    }
    if (!d->s.D_per_channel) dD[head] = skip;
}

enum { TOKENS = 16 }; // of a unit of the second stage

KR_KERNEL(ssd_scan_grad_sum) {
    const ssd_grad d = ssd_grad_of(call);
    const kr_chunk_size *s = &d.s.size;
    const kr_chunk_layout layout = kr_chunk_arrange(s, true);
    const float *work = call->work, *sums = work + kr_chunk_sums_at(s, &layout), *shares = work + kr_chunk_shares_at(s, &layout);
    const int64_t pieces = (s->length + TOKENS - 1) / TOKENS, rows = s->blocks > 1 ? s->batch * s->groups * pieces : 0;
    int64_t begin, end;
    kr_share(rows + s->heads, part, parts, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        if (i >= rows) {
            add_batch(&d, call, sums, i - rows);
            continue;
        }
        const int64_t first = i % pieces * TOKENS, left = s->length - first, count = left < TOKENS ? left : TOKENS;
        const int64_t group = i / pieces % s->groups, b = i / pieces / s->groups;
        add_shares(s, shares, sink_of(&call->out[3]), b, group, first, count);
        add_shares(s, shares + kr_chunk_share(s), sink_of(&call->out[4]), b, group, first, count);
    }
}
