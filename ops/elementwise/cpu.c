/// Elementwise kernels: one loop over memory for all of them, and per op a small function over packed runs.
///
/// The loop hands each op pointers to packed f32 runs of a multiple of 16 elements: straight into the tensors where
/// they are contiguous, otherwise into gathered copies that stay in L1. An element is always computed by the same
/// instructions, wherever it lies, so the cut into runs, blocks and parts does not show in the bits.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=off") // across statements gcc would: the bits of an op would depend on its neighbours
#endif
#include "ops/elementwise/cpu_run.h"
#include "ops/cpu/strided.h"

enum { BLOCK = 4096, TILE = 512, SHORT_ROW = 64 };

/// Operand `k` of the walk at [at, at + n) as packed f32.
static const float *operand(const kr_walk *w, int k, kr_dtype dtype, int64_t at, int64_t n, float *temp) {
    if (dtype == KR_F32) return (const float *)kr_walk_fetch(w, k, at, n, (char *)temp);
    uint8_t bytes[TILE];
    const uint8_t *p = (const uint8_t *)kr_walk_fetch(w, k, at, n, (char *)bytes);
    for (int64_t i = 0; i < n; i++) temp[i] = p[i];
    return temp;
}

/// Any n: the last few elements go through padded copies, so that the op's code exists once.
static void apply(run_function *f, const float *const *in, int inputs, float *out, int64_t n, float a, float b) {
    const int64_t whole = n - n % KR_LANES, rest = n - whole;
    if (whole) f(in, out, whole, a, b);
    if (!rest) return;
    float temp[KR_WALK_OPERANDS][KR_LANES] = {{0}};
    const float *temps[KR_WALK_OPERANDS];
    for (int k = 0; k < inputs; k++) {
        memcpy(temp[k], in[k] + whole, (size_t)rest * sizeof(float));
        temps[k] = temp[k];
    }
    f(temps, temp[inputs], KR_LANES, a, b);
    memcpy(out + whole, temp[inputs], (size_t)rest * sizeof(float));
}

static void map(const kr_call *call, int part, int parts, run_function *f) {
    const int inputs = call->inputs;
    const float a = (float)call->attrs->r[0], b = (float)call->attrs->r[1];
    const kr_arg *args[KR_WALK_OPERANDS] = {&call->out[0]};
    for (int k = 0; k < inputs; k++) args[1 + k] = &call->in[k];
    kr_walk w;
    kr_walk_make(&w, args, inputs + 1);

    int64_t begin, end;
    kr_share((w.total + BLOCK - 1) / BLOCK, part, parts, &begin, &end);
    begin *= BLOCK;
    end = end * BLOCK < w.total ? end * BLOCK : w.total;

    const int64_t row = kr_walk_inner(&w);
    int packed = row >= SHORT_ROW || w.rank == 1; // every operand lies packed inside a row
    for (int k = 0; k <= inputs; k++) packed &= kr_walk_step(&w, k) == 1 && args[k]->dtype == KR_F32;
    float temp[KR_WALK_OPERANDS][TILE] __attribute__((aligned(64)));
    for (int64_t at = begin, n; at < end; at += n) {
        n = end - at;
        if (!packed && n > TILE) n = TILE;
        if (row >= SHORT_ROW && n > row - at % row) n = row - at % row;
        const float *in[KR_WALK_OPERANDS];
        for (int k = 0; k < inputs; k++) in[k] = operand(&w, 1 + k, call->in[k].dtype, at, n, temp[k]);
        float *out = (float *)kr_walk_direct(&w, 0, at, n);
        apply(f, in, inputs, out ? out : temp[inputs], n, a, b);
        if (!out) kr_walk_scatter(&w, 0, at, n, (const char *)temp[inputs]);
    }
}

#define MAP(name, arity, reals, flags, value) KR_KERNEL(name) { map(call, part, parts, run_##name); }
#define MAP_G(name, arity, reals, value) KR_KERNEL(name) { map(call, part, parts, run_##name); }
#define MAP_F(name, kept, value, derivative)                          \
    KR_KERNEL(name) { map(call, part, parts, run_##name); }           \
    KR_KERNEL(name##_grad) { map(call, part, parts, run_##name##_grad); }
#include "ops/elementwise/map.def"

// Casts -----------------------------------------------------------------------------------------------------------

static float bf16_to_f32(uint16_t x) {
    const uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, sizeof y);
    return y;
}

/// To nearest even; NaN stays NaN.
static uint16_t f32_to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (x != x) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/// Toward zero, into [lo, hi]; NaN gives 0. The bounds are powers of two (or below 2^53), so they are exact.
static int64_t to_integer(double x, double lo, double hi, int64_t least, int64_t most) {
    return x != x ? 0 : x <= lo ? least : x >= hi ? most : (int64_t)x;
}

static void load_doubles(double *to, const char *from, kr_dtype dtype, int64_t n) {
#define EACH(type, value)                                    \
    for (int64_t i = 0; i < n; i++) {                        \
        const type x = ((const type *)(const void *)from)[i]; \
        to[i] = (double)(value);                             \
    }                                                        \
    break
    switch (dtype) {
    case KR_F32: EACH(float, x);
    case KR_F64: EACH(double, x);
    case KR_BF16: EACH(uint16_t, bf16_to_f32(x));
    case KR_I32: EACH(int32_t, x);
    case KR_I64: EACH(int64_t, x);
    default: EACH(uint8_t, x);
    }
#undef EACH
}

static void store_doubles(char *to, const double *from, kr_dtype dtype, int64_t n) {
#define EACH(type, value)                                                             \
    for (int64_t i = 0; i < n; i++) {                                                 \
        const double x = from[i];                                                     \
        ((type *)(void *)to)[i] = (type)(value);                                      \
    }                                                                                 \
    break
    switch (dtype) {
    case KR_F32: EACH(float, x);
    case KR_F64: EACH(double, x);
    case KR_BF16: EACH(uint16_t, f32_to_bf16((float)x));
    case KR_I32: EACH(int32_t, to_integer(x, -0x1p31, 0x1p31, INT32_MIN, INT32_MAX));
    case KR_I64: EACH(int64_t, to_integer(x, -0x1p63, 0x1p63, INT64_MIN, INT64_MAX));
    case KR_BOOL: EACH(uint8_t, x != 0);
    default: EACH(uint8_t, to_integer(x, 0, 255, 0, 255));
    }
#undef EACH
}

/// Through f64, which holds every value of every dtype but i64 beyond 2^53 exactly.
KR_KERNEL(cast) {
    const kr_arg *args[] = {&call->out[0], &call->in[0]};
    kr_walk w;
    kr_walk_make(&w, args, 2);
    const kr_dtype to = call->out[0].dtype, from = call->in[0].dtype;
    int64_t begin, end;
    kr_share((w.total + BLOCK - 1) / BLOCK, part, parts, &begin, &end);
    begin *= BLOCK;
    end = end * BLOCK < w.total ? end * BLOCK : w.total;
    double values[TILE];
    char temp_in[TILE * 8] __attribute__((aligned(64))), temp_out[TILE * 8] __attribute__((aligned(64)));
    for (int64_t at = begin, n; at < end; at += n) {
        n = end - at < TILE ? end - at : TILE;
        if (to == from) {
            kr_walk_copy(&w, 0, 1, at, n);
            continue;
        }
        load_doubles(values, kr_walk_fetch(&w, 1, at, n, temp_in), from, n);
        char *out = kr_walk_direct(&w, 0, at, n);
        store_doubles(out ? out : temp_out, values, to, n);
        if (!out) kr_walk_scatter(&w, 0, at, n, temp_out);
    }
}
