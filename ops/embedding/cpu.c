#include "ops/cpu/lanes.h"
#include "ops/embedding/args.h"

/// y[t] = weight[ids[t]]; ids outside of the table give zeros. Tokens are cut in blocks.
KR_KERNEL(embedding) {
    const kr_arg *weight = &call->in[EMBEDDING_WEIGHT], *ids = &call->in[EMBEDDING_IDS], *y = &call->out[EMBEDDING_Y];
    const int64_t tokens = kr_shape_count(&ids->shape), D = kr_arg_cols(weight), V = weight->shape.dim[0];
    const int64_t from = kr_arg_pitch(weight), to = kr_arg_pitch(y);
    const int32_t *id = ids->data;
    int64_t begin, end;
    kr_share(tokens, part, parts, &begin, &end);
    for (int64_t t = begin; t < end; t++) {
        float *row = (float *)y->data + t * to;
        if (id[t] >= 0 && id[t] < V)
            __builtin_memcpy(row, (const float *)weight->data + id[t] * from, (size_t)D * sizeof *row);
        else __builtin_memset(row, 0, (size_t)D * sizeof *row);
    }
}

/// Every part owns whole columns of the table and walks all tokens in order, so each element is summed in the order of
/// the tokens whatever the number of parts; repeated ids need no care, and frequent ones do not unbalance the parts.
KR_KERNEL(embedding_grad) {
    const kr_arg *ids = &call->in[EMBEDDING_GRAD_IDS], *dy = &call->in[EMBEDDING_GRAD_DY],
                 *base = &call->in[EMBEDDING_GRAD_ACCUMULATE], *out = &call->out[EMBEDDING_GRAD_DWEIGHT];
    const int64_t tokens = kr_shape_count(&ids->shape), V = out->shape.dim[0], D = out->shape.dim[1];
    const int64_t pitch = kr_arg_pitch(dy), groups = (D + KR_LANES - 1) / KR_LANES;
    const int32_t *id = ids->data;
    float *table = out->data;
    int64_t begin, end;
    kr_share(groups, part, parts, &begin, &end);
    begin *= KR_LANES;
    end = end * KR_LANES < D ? end * KR_LANES : D;
    if (begin >= end) return;
    const size_t bytes = (size_t)(end - begin) * sizeof *table;
    for (int64_t v = 0; v < V && base->data != out->data; v++) {
        if (base->data) __builtin_memcpy(table + v * D + begin, (const float *)base->data + v * D + begin, bytes);
        else __builtin_memset(table + v * D + begin, 0, bytes);
    }
    for (int64_t t = 0; t < tokens; t++) {
        if (id[t] < 0 || id[t] >= V) continue;
        float *to = table + id[t] * D;
        const float *from = (const float *)dy->data + t * pitch;
        int64_t j = begin;
        for (; j + KR_LANES <= end; j += KR_LANES) kr_v_store(to + j, kr_v_load(to + j) + kr_v_load(from + j));
        for (; j < end; j++) to[j] += from[j];
    }
}
