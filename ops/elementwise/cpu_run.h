/// The functions that compute elementwise ops over packed runs, one per row of map.def: for kernel files. Whoever
/// includes this has the same instructions for an op, so that a fused op has the bits of the separate ones.
#ifndef KRAIT_OPS_ELEMENTWISE_CPU_RUN_H
#define KRAIT_OPS_ELEMENTWISE_CPU_RUN_H

#include "ops/cpu/lanes.h"

/// out[i] from in[0][i], in[1][i] ... for i < n, a multiple of 16. `out` may be any of the inputs.
typedef void run_function(const float *const *in, float *out, int64_t n, float a, float b);

#define NUM(c) kr_v_set((float)(c))
#define EXP kr_v_exp
#define LOG kr_v_log
#define SQRT kr_v_sqrt
#define ABS kr_v_abs
#define SIGMOID kr_v_sigmoid
#define TANH kr_v_tanh
#define SOFTPLUS kr_v_softplus
#define SELECT kr_v_select

#define LOAD_1 const kr_vf x = kr_v_load(in[0] + i);
#define LOAD_2 LOAD_1 const kr_vf y = kr_v_load(in[1] + i);
#define LOAD_3 LOAD_2 const kr_vf z = kr_v_load(in[2] + i);
// The kept operand of a gradient under the name that the derivative uses.
#define KEPT_X const kr_vf x = kr_v_load(in[1] + i);
#define KEPT_Y const kr_vf y = kr_v_load(in[1] + i);

#define RUN(name, load, value)                                                                                   \
    static void run_##name(const float *const *in, float *out, int64_t n, float real_a, float real_b) {          \
        const kr_vf a = kr_v_set(real_a), b = kr_v_set(real_b);                                                  \
        (void)a, (void)b;                                                                                        \
        for (int64_t i = 0; i < n; i += KR_LANES) { load kr_v_store(out + i, value); }                           \
    }
#define MAP(name, arity, reals, flags, value) RUN(name, LOAD_##arity, value)
#define MAP_G(name, arity, reals, value) RUN(name, LOAD_##arity, value)
#define MAP_F(name, kept, value, derivative)                                                                     \
    RUN(name, LOAD_1, value)                                                                                     \
    RUN(name##_grad, const kr_vf dy = kr_v_load(in[0] + i); KEPT_##kept, dy * (derivative))
#include "ops/elementwise/map.def"

#endif
