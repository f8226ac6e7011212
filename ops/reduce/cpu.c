/// Reductions over one axis of [outer, n, inner]; cpu_walk.h goes through it. Inputs come through a walk, so that
/// any strides work and packed ones are free.
#include "ops/cpu/strided.h"
#include "ops/reduce/args.h"
#include "ops/reduce/cpu_walk.h"

/// n packed elements from flat index `at` of operand 0 of a walk.
static const float *fetch(void *walk, int64_t at, int64_t n, float *temp) {
    return (const float *)(const void *)kr_walk_fetch((const kr_walk *)walk, 0, at, n, (char *)temp);
}

KR_INLINE void first(reduction r, float scale, const kr_call *call, int part, int parts) {
    const kr_reduce_cut c = kr_reduce_cut_of(&call->in->shape, (int)call->attrs->i[REDUCE_AXIS]);
    const kr_arg *args[] = {call->in};
    kr_walk w;
    kr_walk_make(&w, args, 1);
    const source whole = {fetch, &w};
    first_stage(r, scale, &whole, &c, (float *)call->out->data, (float *)call->work, part, parts);
}

KR_INLINE void second(reduction r, float scale, const kr_call *call, int part, int parts) {
    const kr_reduce_cut c = kr_reduce_cut_of(&call->in->shape, (int)call->attrs->i[REDUCE_AXIS]);
    second_stage(r, scale, &c, (float *)call->out->data, (const float *)call->work, part, parts);
}

static float one_over_n(const kr_call *call) { return 1.0f / (float)call->in->shape.dim[call->attrs->i[REDUCE_AXIS]]; }

KR_KERNEL(sum) { first(SUM, 1, call, part, parts); }
KR_KERNEL(sum_second) { second(SUM, 1, call, part, parts); }
KR_KERNEL(mean) { first(SUM, one_over_n(call), call, part, parts); }
KR_KERNEL(mean_second) { second(SUM, one_over_n(call), call, part, parts); }
KR_KERNEL(max) { first(MAX, 1, call, part, parts); }
KR_KERNEL(max_second) { second(MAX, 1, call, part, parts); }

/// dx is dy at the first element of the axis that equals the maximum (or is NaN), 0 elsewhere. Inputs dy, x, y; dy and
/// y have the shape of the reduction.
KR_KERNEL(max_grad) {
    const kr_reduce_cut c = kr_reduce_cut_of(&call->in[MAX_GRAD_X].shape, (int)call->attrs->i[REDUCE_AXIS]);
    const float *dy = (const float *)call->in[MAX_GRAD_DY].data, *x = (const float *)call->in[MAX_GRAD_X].data;
    const float *y = (const float *)call->in[MAX_GRAD_Y].data;
    float *dx = (float *)call->out->data;
    int64_t begin, end;
    kr_share(c.outer * c.columns, part, parts, &begin, &end);
    for (int64_t item = begin; item < end; item++) {
        const int64_t o = item / c.columns, column = item % c.columns * WIDTH;
        const int64_t width = c.inner - column < WIDTH ? c.inner - column : WIDTH;
        float left[WIDTH]; // the gradient that still looks for its place
        const float *most = y + o * c.inner + column;
        memcpy(left, dy + o * c.inner + column, (size_t)width * sizeof *left);
        for (int64_t k = 0; k < c.n; k++) {
            const int64_t at = (o * c.n + k) * c.inner + column;
            for (int64_t i = 0; i < width; i++) {
                const float v = x[at + i];
                const int here = v == most[i] || v != v;
                dx[at + i] = here ? left[i] : 0;
                left[i] = here ? 0 : left[i];
            }
        }
    }
}

/// One compensated addition: *sum += x, what was rounded away goes to *lost.
///   source Kahan 1965, doi:10.1145/363707.363723
KR_INLINE float add_kahan(float x, float *sum, float *lost) {
    const float term = x - *lost, next = *sum + term;
    *lost = (next - *sum) - term;
    return *sum = next;
}

/// Running sums of n neighbours from flat index `at`.
static void cumsum_row(kr_walk *w, int64_t at, int64_t n, int reverse, float *out) {
    float temp[TILE], sum = 0, lost = 0;
    for (int64_t k = 0, run; k < n; k += run) {
        run = n - k < TILE ? n - k : TILE;
        const int64_t first = reverse ? n - k - run : k;
        const float *x = fetch(w, at + first, run, temp);
        for (int64_t i = 0; i < run; i++) {
            const int64_t j = reverse ? run - 1 - i : i;
            out[first + j] = add_kahan(x[j], &sum, &lost);
        }
    }
}

/// Running sums along the axis. They are compensated, so that the error of the last one does not grow with n.
KR_KERNEL(cumsum) {
    const kr_reduce_cut c = kr_reduce_cut_of(&call->in->shape, (int)call->attrs->i[CUMSUM_AXIS]);
    const int reverse = call->attrs->i[CUMSUM_REVERSE] != 0;
    const kr_arg *args[] = {call->in};
    kr_walk w;
    kr_walk_make(&w, args, 1);
    float *out = (float *)call->out->data, temp[WIDTH], sum[WIDTH], lost[WIDTH];
    int64_t begin, end;
    kr_share(c.outer * c.columns, part, parts, &begin, &end);
    for (int64_t item = begin; item < end; item++) {
        if (c.inner == 1) {
            cumsum_row(&w, item * c.n, c.n, reverse, out + item * c.n);
            continue;
        }
        const int64_t o = item / c.columns, column = item % c.columns * WIDTH;
        const int64_t width = c.inner - column < WIDTH ? c.inner - column : WIDTH;
        for (int64_t i = 0; i < width; i++) sum[i] = lost[i] = 0;
        for (int64_t k = 0; k < c.n; k++) {
            const int64_t at = (o * c.n + (reverse ? c.n - 1 - k : k)) * c.inner + column;
            const float *x = fetch(&w, at, width, temp);
            for (int64_t i = 0; i < width; i++) out[at + i] = add_kahan(x[i], &sum[i], &lost[i]);
        }
    }
}
