#include "ops/cpu/lanes.h"

#include "ops/softmax/args.h"
#include "ops/softmax/cpu_row.h"
#include "ops/softmax/softmax.h"

KR_KERNEL(softmax) {
    const kr_arg *in = &call->in[SOFTMAX_X], *out = &call->out[SOFTMAX_Y];
    const int64_t rows = kr_arg_rows(in), n = kr_arg_cols(in), from = kr_arg_pitch(in), to = kr_arg_pitch(out);
    int64_t begin, end;
    kr_share(rows, part, parts, &begin, &end);
    for (int64_t r = begin; r < end; r++) {
        const float *x = (const float *)in->data + r * from;
        float *y = (float *)out->data + r * to;
        const kr_vf scale = kr_v_set(1.0f / row_exp_sum(x, n, row_max(x, n), y));
        for (int64_t i = 0; i < n; i += KR_LANES) kr_v_store_n(y + i, kr_v_load_n(y + i, n - i) * scale, n - i);
    }
}

/// dx = y (dy - sum(dy y))
KR_KERNEL(softmax_grad) {
    const kr_arg *in = &call->in[SOFTMAX_GRAD_DY], *saved = &call->in[SOFTMAX_GRAD_Y],
                 *out = &call->out[SOFTMAX_GRAD_DX];
    const int64_t rows = kr_arg_rows(in), n = kr_arg_cols(in);
    const int64_t from = kr_arg_pitch(in), kept = kr_arg_pitch(saved), to = kr_arg_pitch(out);
    int64_t begin, end;
    kr_share(rows, part, parts, &begin, &end);
    for (int64_t r = begin; r < end; r++) {
        const float *dy = (const float *)in->data + r * from, *y = (const float *)saved->data + r * kept;
        float *dx = (float *)out->data + r * to;
        kr_vf sum = kr_v_set(0);
        for (int64_t i = 0; i < n; i += KR_LANES) sum += kr_v_load_n(dy + i, n - i) * kr_v_load_n(y + i, n - i);
        const kr_vf mean = kr_v_set(kr_v_sum(sum));
        for (int64_t i = 0; i < n; i += KR_LANES)
            kr_v_store_n(dx + i, kr_v_load_n(y + i, n - i) * (kr_v_load_n(dy + i, n - i) - mean), n - i);
    }
}

static int64_t vocabulary(const kr_call *call) {
    const int64_t valid = call->attrs->i[CROSS_ENTROPY_VALID_VOCAB];
    return valid > 0 ? valid : kr_arg_cols(&call->in[CROSS_ENTROPY_LOGITS]);
}

KR_KERNEL(cross_entropy) {
    const kr_arg *logits = &call->in[CROSS_ENTROPY_LOGITS];
    const int32_t *target = call->in[CROSS_ENTROPY_TARGETS].data;
    float *per_token = call->out[CROSS_ENTROPY_PER_TOKEN].data, *lse = call->out[CROSS_ENTROPY_LSE].data;
    kr_loss_partial *partial = call->work;
    const int64_t rows = kr_arg_rows(logits), pitch = kr_arg_pitch(logits), V = vocabulary(call);
    int64_t begin, end;
    kr_share(kr_loss_blocks(rows), part, parts, &begin, &end);
    for (int64_t b = begin; b < end; b++) {
        kr_loss_partial sum = {0, 0};
        const int64_t stop = (b + 1) * KR_LOSS_BLOCK < rows ? (b + 1) * KR_LOSS_BLOCK : rows;
        for (int64_t r = b * KR_LOSS_BLOCK; r < stop; r++) {
            const float *x = (const float *)logits->data + r * pitch;
            const int32_t id = target[r];
            float all = 0, loss = 0;
            if (id >= 0 || lse) {
                const float most = V ? row_max(x, V) : 0;
                const float total = row_exp_sum(x, V, most, 0);
                all = most + kr_v_log(kr_v_set(total))[0];
            }
            if (id >= 0) { // a target outside of the vocabulary makes the loss NaN, which the trainer reports
                loss = id < V ? all - x[id] : __builtin_nanf("");
                sum.loss += loss;
                sum.count += 1;
            }
            if (per_token) per_token[r] = loss;
            if (lse) lse[r] = all;
        }
        partial[b] = sum;
    }
}

KR_KERNEL(cross_entropy_combine) {
    (void)parts;
    if (part) return;
    const kr_loss_partial *partial = call->work;
    double loss = 0, count = 0;
    for (int64_t b = 0; b < kr_loss_blocks(kr_arg_rows(&call->in[CROSS_ENTROPY_LOGITS])); b++) {
        loss += partial[b].loss;
        count += partial[b].count;
    }
    *(float *)call->out[CROSS_ENTROPY_LOSS].data = count > 0 ? (float)(loss / count) : 0;
}

/// dlogits = (softmax - onehot) (dloss / counted + dper_token) + softmax dlse; may overwrite the logits. Each part
/// counts the targets for itself: they are few bytes, and a barrier costs more. A target outside of the vocabulary
/// makes its row NaN, as it does the loss: an update that heeds the gradient's norm then leaves the parameters alone.
KR_KERNEL(cross_entropy_grad) {
    const kr_arg *logits = &call->in[CROSS_ENTROPY_GRAD_LOGITS], *out = &call->out[CROSS_ENTROPY_GRAD_DLOGITS];
    const int32_t *target = call->in[CROSS_ENTROPY_GRAD_TARGETS].data;
    const float *lse = call->in[CROSS_ENTROPY_GRAD_LSE].data, *dloss = call->in[CROSS_ENTROPY_GRAD_DLOSS].data,
                *dper = call->in[CROSS_ENTROPY_GRAD_DPER_TOKEN].data, *dlse = call->in[CROSS_ENTROPY_GRAD_DLSE].data;
    const int64_t rows = kr_arg_rows(logits), cols = kr_arg_cols(logits), V = vocabulary(call);
    const int64_t from = kr_arg_pitch(logits), to = kr_arg_pitch(out);
    int64_t begin, end, counted = 0;
    for (int64_t r = 0; r < rows; r++) counted += target[r] >= 0;
    const float share = dloss && counted ? *dloss / (float)counted : 0;
    kr_share(rows, part, parts, &begin, &end);
    for (int64_t r = begin; r < end; r++) {
        const float *x = (const float *)logits->data + r * from;
        float *dx = (float *)out->data + r * to;
        const int32_t id = target[r];
        const float hit = id >= V ? __builtin_nanf("") : id >= 0 ? share + (dper ? dper[r] : 0) : 0;
        const float weight = hit + (dlse ? dlse[r] : 0);
        if (weight == 0 && hit == 0) {
            __builtin_memset(dx, 0, (size_t)cols * sizeof *dx);
            continue;
        }
        const kr_vf scale = kr_v_set(weight), shift = kr_v_set(lse[r]);
        for (int64_t i = 0; i < V; i += KR_LANES)
            kr_v_store_n(dx + i, kr_v_exp(kr_v_load_n(x + i, V - i) - shift) * scale, V - i);
        for (int64_t i = V; i < cols; i++) dx[i] = 0;
        if (id >= 0 && id < V) dx[id] -= hit;
    }
}
