/// The CPU's implementation of elementwise ops: what its kernels promise.
#include "ops/cpu/kernels.h"

#define ALL(arity) ((1u << (arity)) - 1)
#define ELEMENTWISE(name, arity)                                  \
    KR_KERNEL_DECLARE(name)                                       \
    static const kr_stage stages_##name[] = {KR_STAGE(name)};     \
    KR_CPU(name, .strided_in = ALL(arity), .rows_out = 1, .inplace = {ALL(arity)}, KR_STAGES(stages_##name))

#define MAP(name, arity, reals, flags, value) ELEMENTWISE(name, arity)
#define MAP_G(name, arity, reals, value) ELEMENTWISE(name, arity)
#define MAP_F(name, kept, value, derivative) ELEMENTWISE(name, 1) ELEMENTWISE(name##_grad, 2)
#include "ops/elementwise/map.def"

// Another element type has other bytes: nothing in place.
KR_KERNEL_DECLARE(cast)
static const kr_stage stages_cast[] = {KR_STAGE(cast)};
KR_CPU(cast, .strided_in = 1, .rows_out = 1, KR_STAGES(stages_cast))
