// Rows are independent, so they are shared out as they come; sums over rows go through fixed partial sums in `work`.
// Every vector of a row is read in full before anything is written over it, so all in-place forms are exact.
#include "ops/norm/args.h"
#include "ops/cpu/lanes.h"

/// Rows of an argument, or nothing.
typedef struct rows {
    float *data;
    int64_t pitch;
} rows;

static rows rows_of(const kr_arg *a) { return (rows){a->data, a->data ? kr_arg_pitch(a) : 0}; }
static float *at_row(rows r, int64_t row) { return r.data ? r.data + row * r.pitch : 0; }

/// Rows from one that is worked on to the one whose lines are prefetched: as many floats as a core can have under way.
static int64_t rows_ahead(int64_t d) { return d >= 768 ? 1 : 768 / d; }

/// Prefetches a line of a row, also of one beyond the end: rows are slices of wider ones, and the machine does not
/// guess
/// where the next begins.
KR_INLINE void prefetch(rows r, int64_t row, int64_t at) {
    if (r.data) kr_prefetch(r.data, row * r.pitch + at, KR_PREFETCH_NEAR);
}

KR_INLINE kr_vf load_or_zero(const float *p, int64_t at, int64_t left) {
    return p ? kr_v_load_n(p + at, left) : kr_v_set(0);
}

/// silu'(z) = s*(1 + z*(1 - s)), s = sigmoid(z)
KR_INLINE kr_vf silu_slope(kr_vf z, kr_vf s) { return s * (kr_v_set(1) + z * (kr_v_set(1) - s)); }

// Forward ---------------------------------------------------------------------------------------------------------

KR_KERNEL(rms_norm) {
    const kr_arg *in = call->in;
    const rows x = rows_of(&in[RMS_X]), residual = rows_of(&in[RMS_RESIDUAL]), z = rows_of(&in[RMS_Z]);
    const rows y = rows_of(&call->out[RMS_Y]), stream = rows_of(&call->out[RMS_STREAM]);
    const float *weight = in[RMS_WEIGHT].data, *bias = in[RMS_BIAS].data, eps = (float)call->attrs->r[NORM_EPS];
    float *rho = call->out[RMS_RHO].data;
    const int64_t d = kr_arg_cols(&in[RMS_X]), group = call->attrs->i[NORM_GROUP] ? call->attrs->i[NORM_GROUP] : d;
    const int before = call->attrs->i[NORM_BEFORE_GATE] != 0;
    if (!d) return;
    int64_t begin, end;
    kr_share(kr_arg_rows(&in[RMS_X]), part, parts, &begin, &end);
    for (int64_t row = begin; row < end; row++) {
        const float *xr = at_row(x, row), *rr = at_row(residual, row), *zr = at_row(z, row);
        float *yr = at_row(y, row), *sr = at_row(stream, row);
        const int64_t soon = row + rows_ahead(d);
        const int keep = rr || (zr && !before); // v differs from x: it waits in y for the second pass
        for (int64_t first = 0; first < d; first += group) {
            kr_vf squares = kr_v_set(0);
            for (int64_t i = 0; i < group; i += KR_LANES) {
                const int64_t at = first + i, left = group - i;
                prefetch(x, soon, at), prefetch(residual, soon, at), prefetch(z, soon, at), prefetch(y, soon, at),
                    prefetch(stream, soon, at);
                kr_vf v = kr_v_load_n(xr + at, left);
                if (rr) v += kr_v_load_n(rr + at, left);
                if (sr) kr_v_store_n(sr + at, v, left);
                if (zr && !before) v *= kr_v_silu(kr_v_load_n(zr + at, left));
                if (keep) kr_v_store_n(yr + at, v, left);
                squares += v * v;
            }
            const float inverse = 1.0f / __builtin_sqrtf(kr_v_sum(squares) / (float)group + eps);
            if (rho) rho[row * (d / group) + first / group] = inverse;
            const float *vr = keep ? yr : xr;
            for (int64_t i = 0; i < group; i += KR_LANES) {
                const int64_t at = first + i, left = group - i;
                kr_vf v = kr_v_load_n(vr + at, left) * kr_v_set(inverse) * kr_v_load_n(weight + at, left);
                if (bias) v += kr_v_load_n(bias + at, left);
                if (zr && before) v *= kr_v_silu(kr_v_load_n(zr + at, left));
                kr_v_store_n(yr + at, v, left);
            }
        }
    }
}

KR_KERNEL(layer_norm) {
    const kr_arg *in = call->in;
    const rows x = rows_of(&in[LAYER_X]), residual = rows_of(&in[LAYER_RESIDUAL]);
    const rows y = rows_of(&call->out[LAYER_Y]), stream = rows_of(&call->out[LAYER_STREAM]);
    const float *weight = in[LAYER_WEIGHT].data, *bias = in[LAYER_BIAS].data, eps = (float)call->attrs->r[NORM_EPS];
    float *means = call->out[LAYER_MEAN].data, *rho = call->out[LAYER_RHO].data;
    const int64_t d = kr_arg_cols(&in[LAYER_X]);
    if (!d) return;
    int64_t begin, end;
    kr_share(kr_arg_rows(&in[LAYER_X]), part, parts, &begin, &end);
    for (int64_t row = begin; row < end; row++) {
        const float *xr = at_row(x, row), *rr = at_row(residual, row);
        float *yr = at_row(y, row), *sr = at_row(stream, row);
        kr_vf sum = kr_v_set(0);
        for (int64_t i = 0; i < d; i += KR_LANES) {
            kr_vf v = kr_v_load_n(xr + i, d - i);
            if (rr) v += kr_v_load_n(rr + i, d - i);
            if (sr) kr_v_store_n(sr + i, v, d - i);
            if (rr) kr_v_store_n(yr + i, v, d - i);
            sum += v;
        }
        const float *vr = rr ? yr : xr, mean = kr_v_sum(sum) / (float)d;
        kr_vf squares = kr_v_set(0);
        int64_t i = 0;
        for (; i + KR_LANES <= d; i += KR_LANES) {
            const kr_vf v = kr_v_load(vr + i) - kr_v_set(mean);
            squares += v * v;
        }
        if (i < d) { // lanes past the end hold zeros, which are not the mean
            kr_vf v = kr_v_load_n(vr + i, d - i) - kr_v_set(mean);
            for (int64_t k = d - i; k < KR_LANES; k++) v[k] = 0;
            squares += v * v;
        }
        const float inverse = 1.0f / __builtin_sqrtf(kr_v_sum(squares) / (float)d + eps);
        if (means) means[row] = mean;
        if (rho) rho[row] = inverse;
        for (i = 0; i < d; i += KR_LANES) {
            kr_vf v = (kr_v_load_n(vr + i, d - i) - kr_v_set(mean)) * kr_v_set(inverse) *
                      kr_v_load_n(weight + i, d - i);
            if (bias) v += kr_v_load_n(bias + i, d - i);
            kr_v_store_n(yr + i, v, d - i);
        }
    }
}

// Backward --------------------------------------------------------------------------------------------------------

/// The partial sums of dweight and dbias of run `run` of the rows: [2][d] floats.
static float *partial_sums(const kr_call *call, int64_t run, int64_t d) { return (float *)call->work + run * 2 * d; }

typedef struct rms_backward {
    rows dy, dstream, r, z, dx, dz;
    const float *weight, *bias, *rho, *drho;
    int64_t d, group;
    int before, sums_weight, sums_bias;
} rms_backward;

/// What one vector of a row contributes: n = v*rho, u = gradient at n, and the factors of the gate.
typedef struct rms_parts {
    kr_vf dy, r, z, s, n, u;
} rms_parts;

KR_INLINE rms_parts rms_load(const rms_backward *p, const float *dy, const float *r, const float *z, int64_t at,
                             int64_t left, float rho, const float *sigmoid) {
    rms_parts v = {.dy = kr_v_load_n(dy + at, left), .r = kr_v_load_n(r + at, left)};
    v.n = v.r * kr_v_set(rho);
    if (z) {
        v.z = kr_v_load_n(z + at, left);
        v.s = sigmoid ? kr_v_load(sigmoid) : kr_v_sigmoid(v.z);
        if (!p->before) v.n *= v.z * v.s;
    }
    v.u = v.dy * kr_v_load_n(p->weight + at, left);
    if (z && p->before) v.u *= v.z * v.s;
    return v;
}

static void rms_backward_row(const rms_backward *p, int64_t row, float *dweight, float *dbias) {
    enum { KEPT = 2048 }; // sigmoids of the first pass wait for the second, which costs less than making them again
    float sigmoids[KEPT + KR_LANES];
    const float *dy = at_row(p->dy, row), *ds = at_row(p->dstream, row), *r = at_row(p->r, row), *z = at_row(p->z, row);
    float *dx = at_row(p->dx, row), *dz = at_row(p->dz, row);
    const int64_t soon = row + rows_ahead(p->d);
    for (int64_t first = 0; first < p->d; first += p->group) {
        const int64_t number = row * (p->d / p->group) + first / p->group;
        const float rho = p->rho[number];
        kr_vf products = kr_v_set(0);
        for (int64_t i = 0; i < p->group; i += KR_LANES) {
            const int64_t at = first + i, left = p->group - i;
            prefetch(p->dy, soon, at), prefetch(p->r, soon, at), prefetch(p->z, soon, at), prefetch(p->dx, soon, at),
                prefetch(p->dz, soon, at);
            prefetch(p->dstream, soon, at);
            const rms_parts v = rms_load(p, dy, r, z, at, left, rho, 0);
            if (z && i < KEPT) kr_v_store(sigmoids + i, v.s);
            products += v.u * v.n;
            const kr_vf passed = z && p->before ? v.dy * (v.z * v.s) : v.dy;
            if (p->sums_weight) kr_v_store_n(dweight + at, kr_v_load_n(dweight + at, left) + passed * v.n, left);
            if (p->sums_bias) kr_v_store_n(dbias + at, kr_v_load_n(dbias + at, left) + passed, left);
        }
        // d rho / d v = -rho^2 n / group, so a gradient at rho only adds to the mean
        const float mean = (kr_v_sum(products) + (p->drho ? p->drho[number] * rho : 0)) / (float)p->group;
        if (!dx && !dz) continue;
        for (int64_t i = 0; i < p->group; i += KR_LANES) {
            const int64_t at = first + i, left = p->group - i;
            const rms_parts v = rms_load(p, dy, r, z, at, left, rho, z && i < KEPT ? sigmoids + i : 0);
            kr_vf dv = kr_v_set(rho) * (v.u - v.n * kr_v_set(mean));
            kr_vf gate = kr_v_set(0);
            if (z && p->before) {
                gate = v.dy * (v.n * kr_v_load_n(p->weight + at, left) + load_or_zero(p->bias, at, left));
                gate *= silu_slope(v.z, v.s);
            } else if (z) {
                gate = dv * v.r * silu_slope(v.z, v.s);
                dv *= v.z * v.s;
            }
            dv += load_or_zero(ds, at, left);
            if (dx) kr_v_store_n(dx + at, dv, left);
            if (dz) kr_v_store_n(dz + at, gate, left);
        }
    }
}

KR_KERNEL(rms_norm_grad) {
    const kr_arg *in = call->in;
    const rms_backward p = {
        .dy = rows_of(&in[RMS_GRAD_DY]),
        .dstream = rows_of(&in[RMS_GRAD_DSTREAM]),
        .r = rows_of(&in[RMS_GRAD_R]),
        .z = rows_of(&in[RMS_GRAD_Z]),
        .dx = rows_of(&call->out[RMS_GRAD_DX]),
        .dz = rows_of(&call->out[RMS_GRAD_DZ]),
        .weight = in[RMS_GRAD_WEIGHT].data,
        .bias = in[RMS_GRAD_BIAS].data,
        .rho = in[RMS_GRAD_RHO].data,
        .drho = in[RMS_GRAD_DRHO].data,
        .d = kr_arg_cols(&in[RMS_GRAD_DY]),
        .group = call->attrs->i[NORM_GROUP] ? call->attrs->i[NORM_GROUP] : kr_arg_cols(&in[RMS_GRAD_DY]),
        .before = call->attrs->i[NORM_BEFORE_GATE] != 0,
        .sums_weight = call->out[RMS_GRAD_DWEIGHT].data != 0,
        .sums_bias = call->out[RMS_GRAD_DBIAS].data != 0,
    };
    if (!p.d) return;
    const int64_t total = kr_arg_rows(&in[RMS_GRAD_DY]), runs = norm_partials(total);
    int64_t begin, end;
    kr_share(runs, part, parts, &begin, &end);
    for (int64_t run = begin; run < end; run++) {
        float *sums = partial_sums(call, run, p.d);
        for (int64_t i = 0; i < 2 * p.d; i++) sums[i] = 0;
        int64_t first, last;
        kr_share(total, (int)run, (int)runs, &first, &last);
        for (int64_t row = first; row < last; row++) rms_backward_row(&p, row, sums, sums + p.d);
    }
}

typedef struct layer_backward {
    rows dy, dstream, r, dx;
    const float *weight, *mean, *rho, *dmean, *drho;
    int64_t d;
    int sums_weight, sums_bias;
} layer_backward;

static void layer_backward_row(const layer_backward *p, int64_t row, float *dweight, float *dbias) {
    const float *dy = at_row(p->dy, row), *ds = at_row(p->dstream, row), *r = at_row(p->r, row);
    const float m = p->mean[row], rho = p->rho[row];
    float *dx = at_row(p->dx, row);
    kr_vf sum = kr_v_set(0), products = kr_v_set(0);
    for (int64_t i = 0; i < p->d; i += KR_LANES) { // dy is zero past the end, so what n is there does not matter
        const int64_t left = p->d - i;
        const kr_vf g = kr_v_load_n(dy + i, left), n = (kr_v_load_n(r + i, left) - kr_v_set(m)) * kr_v_set(rho);
        const kr_vf u = g * kr_v_load_n(p->weight + i, left);
        sum += u;
        products += u * n;
        if (p->sums_weight) kr_v_store_n(dweight + i, kr_v_load_n(dweight + i, left) + g * n, left);
        if (p->sums_bias) kr_v_store_n(dbias + i, kr_v_load_n(dbias + i, left) + g, left);
    }
    if (!dx) return;
    const float size = (float)p->d, mean_u = kr_v_sum(sum) / size;
    const float mean_un = (kr_v_sum(products) + (p->drho ? p->drho[row] * rho : 0)) / size;
    const float add = p->dmean ? p->dmean[row] / size : 0;
    for (int64_t i = 0; i < p->d; i += KR_LANES) {
        const int64_t left = p->d - i;
        const kr_vf n = (kr_v_load_n(r + i, left) - kr_v_set(m)) * kr_v_set(rho);
        const kr_vf u = kr_v_load_n(dy + i, left) * kr_v_load_n(p->weight + i, left);
        const kr_vf dr = kr_v_set(rho) * (u - kr_v_set(mean_u) - n * kr_v_set(mean_un)) + kr_v_set(add);
        kr_v_store_n(dx + i, dr + load_or_zero(ds, i, left), left);
    }
}

KR_KERNEL(layer_norm_grad) {
    const kr_arg *in = call->in;
    const layer_backward p = {
        .dy = rows_of(&in[LAYER_GRAD_DY]),
        .dstream = rows_of(&in[LAYER_GRAD_DSTREAM]),
        .r = rows_of(&in[LAYER_GRAD_R]),
        .dx = rows_of(&call->out[LAYER_GRAD_DX]),
        .weight = in[LAYER_GRAD_WEIGHT].data,
        .mean = in[LAYER_GRAD_MEAN].data,
        .rho = in[LAYER_GRAD_RHO].data,
        .dmean = in[LAYER_GRAD_DMEAN].data,
        .drho = in[LAYER_GRAD_DRHO].data,
        .d = kr_arg_cols(&in[LAYER_GRAD_DY]),
        .sums_weight = call->out[LAYER_GRAD_DWEIGHT].data != 0,
        .sums_bias = call->out[LAYER_GRAD_DBIAS].data != 0,
    };
    if (!p.d) return;
    const int64_t total = kr_arg_rows(&in[LAYER_GRAD_DY]), runs = norm_partials(total);
    int64_t begin, end;
    kr_share(runs, part, parts, &begin, &end);
    for (int64_t run = begin; run < end; run++) {
        float *sums = partial_sums(call, run, p.d);
        for (int64_t i = 0; i < 2 * p.d; i++) sums[i] = 0;
        int64_t first, last;
        kr_share(total, (int)run, (int)runs, &first, &last);
        for (int64_t row = first; row < last; row++) layer_backward_row(&p, row, sums, sums + p.d);
    }
}

/// Second stage of both: the last two outputs are dweight and dbias, the sums over all runs.
KR_KERNEL(norm_grad_sum) {
    enum { BLOCK = 64 };
    const int64_t d = kr_arg_cols(&call->in[0]), runs = norm_partials(kr_arg_rows(&call->in[0]));
    int64_t begin, end;
    kr_share((d + BLOCK - 1) / BLOCK, part, parts, &begin, &end);
    for (int which = 0; which < 2; which++) {
        float *out = call->out[call->outputs - 2 + which].data;
        if (!out) continue;
        for (int64_t i = begin * BLOCK; i < end * BLOCK && i < d; i += KR_LANES) {
            kr_vf sum = kr_v_set(0);
            for (int64_t run = 0; run < runs; run++)
                sum += kr_v_load_n(partial_sums(call, run, d) + which * d + i, d - i);
            kr_v_store_n(out + i, sum, d - i);
        }
    }
}
