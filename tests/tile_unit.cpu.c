/// ops/cpu/tile_split.h on a tile unit in software, as a kernel for test_split.c: so what AMX is told to do is tested
/// on every machine with AVX-512. The instructions are as Intel's manual has them (TDPBF16PS): the two halves of the
/// pairs are summed apart, each sum along the 16 pairs of a tile, and their sum is added to the tile; all rounded to
/// nearest. Denormals, which the unit takes as zero, do not occur in the tests.
#include "ops/cpu/tile_beside.h"

enum { TILES = 8, SIDE = 16 };

static _Thread_local union tile {
    uint32_t pair[SIDE][SIDE];
    float sum[SIDE][SIDE];
} unit[TILES];

static void unit_zero(int tile) { __builtin_memset(&unit[tile], 0, sizeof unit[tile]); }

static void unit_load(int tile, const void *from, int64_t pitch) {
    for (int i = 0; i < SIDE; i++)
        __builtin_memcpy(unit[tile].pair[i], (const char *)from + i * pitch, sizeof unit[tile].pair[i]);
}

static void unit_store(int tile, void *to, int64_t pitch) {
    for (int i = 0; i < SIDE; i++)
        __builtin_memcpy((char *)to + i * pitch, unit[tile].sum[i], sizeof unit[tile].sum[i]);
}

static void unit_multiply(int to, int a, int b) {
    for (int i = 0; i < SIDE; i++) {
        kr_vf first = kr_v_set(0), second = kr_v_set(0);
        for (int k = 0; k < SIDE; k++) {
            const kr_vi x = kr_v_seti((int32_t)unit[a].pair[i][k]), y = (kr_vi)kr_v_load(unit[b].sum[k]);
            first += bf16_first(x) * bf16_first(y);
            second += bf16_second(x) * bf16_second(y);
        }
        kr_v_store(unit[to].sum[i], kr_v_load(unit[to].sum[i]) + (first + second));
    }
}

#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_zero unit_zero
#define _tile_loadd unit_load
#define _tile_stored unit_store
#define _tile_dpbf16ps unit_multiply
#define bf16_matrix_begin() (void)0 // there is nothing to set up
#define bf16_matrix_end() (void)0
#include "ops/cpu/tile_split.h"

/// Called as matmul is, without a bias and an activation: c = op(a) op(b) + residual, a share of the rows in each part.
KR_KERNEL(split_on_a_unit) {
    const kr_arg *a = &call->in[0], *b = &call->in[1], *residual = &call->in[3], *c = &call->out[0];
    const int ta = call->attrs->i[0] != 0, tb = call->attrs->i[1] != 0;
    const int64_t rows = c->shape.dim[0], begin = rows * part / parts, end = rows * (part + 1) / parts;
    const float *from = (const float *)residual->data;
    if (begin == end) return;
    split_multiply(&(tile_product){.m = end - begin,
                                   .n = c->shape.dim[1],
                                   .k = a->shape.dim[!ta],
                                   .a = (const float *)a->data + begin * (ta ? 1 : a->stride[0]),
                                   .b = (const float *)b->data,
                                   .from = from ? from + begin * residual->stride[0] : 0,
                                   .c = (float *)c->data + begin * c->stride[0],
                                   .lda = a->stride[0],
                                   .ldb = b->stride[0],
                                   .ldf = from ? residual->stride[0] : 0,
                                   .ldc = c->stride[0],
                                   .ta = ta,
                                   .tb = tb});
}
