/// The functions of ops/cpu/lanes.h and ops/selective_scan/cpu_decay.h as kernels over packed f32, for test_lanes.c.
/// Input and
/// output: [n], n a multiple of
/// 16.
#include "ops/cpu/lanes.h"
#include "ops/selective_scan/cpu_decay.h"

KR_INLINE kr_vf kr_v_decay(kr_vf A) { return decay_of(kr_v_set(1), rate_of(A)); }
KR_INLINE kr_vf kr_v_step(kr_vf x) { return step_of(true, x); }
KR_INLINE kr_vf kr_v_gate(kr_vf x) { return gate_of(x); }
KR_INLINE kr_vf kr_v_slope(kr_vf x) {
    kr_vf slope;
    step_and_slope(true, x, &slope);
    return slope;
}

#define KERNEL(name)                                                                        \
    KR_KERNEL(lanes_##name) {                                                               \
        const float *x = (const float *)call->in->data;                                     \
        float *y = (float *)call->out->data;                                                \
        (void)part, (void)parts;                                                            \
        for (int64_t i = 0; i < call->in->shape.dim[0]; i += KR_LANES)                      \
            kr_v_store(y + i, kr_v_##name(kr_v_load(x + i)));                               \
    }
KERNEL(exp)
KERNEL(exp2)
KERNEL(log)
KERNEL(log1p_unit)
KERNEL(sigmoid)
KERNEL(silu)
KERNEL(softplus)
KERNEL(tanh)
KERNEL(sqrt)
KERNEL(abs)
KERNEL(sin)
KERNEL(cos)
KERNEL(decay)
KERNEL(step)
KERNEL(gate)
KERNEL(slope)

/// Sums and largest lanes of groups of 16, and loads and stores of fewer than 16: out[g] = {sum, max, copies...}.
KR_KERNEL(lanes_groups) {
    const float *x = (const float *)call->in->data;
    float *y = (float *)call->out->data;
    (void)part, (void)parts;
    y[0] = kr_v_sum(kr_v_load(x));
    y[1] = kr_v_max_lane(kr_v_load(x));
    for (int n = 0; n <= KR_LANES; n++) kr_v_store_n(y + 2 + n * (n - 1) / 2, kr_v_load_n(x, n), n);
}
