/// The CPU's implementation of reductions: what its kernels promise.
#include "ops/cpu/kernels.h"
#include "ops/graph/internal.h"
#include "ops/reduce/args.h"
#include "ops/reduce/cut.h"

KR_KERNEL_DECLARE(max_grad)
KR_KERNEL_DECLARE(cumsum)

static size_t reduce_work(const kr_attrs *attrs, const kr_shape *in, const kr_shape *out, int inputs) {
    (void)out, (void)inputs;
    return kr_reduce_work(in, (int)attrs->i[REDUCE_AXIS]);
}

#define REDUCTION(name)                                                                    \
    KR_KERNEL_DECLARE(name)                                                                \
    KR_KERNEL_DECLARE(name##_second)                                                       \
    static const kr_stage stages_##name[] = {KR_STAGE(name), KR_STAGE(name##_second)};     \
    KR_CPU(name, .rows_in = 1, .strided_in = 1, .work = reduce_work, KR_STAGES(stages_##name))
REDUCTION(sum)
REDUCTION(mean)
REDUCTION(max)

static const kr_stage stages_max_grad[] = {KR_STAGE(max_grad)};
static const kr_stage stages_cumsum[] = {KR_STAGE(cumsum)};

KR_CPU(max_grad, .inplace = {1 << MAX_GRAD_X}, KR_STAGES(stages_max_grad))
KR_CPU(cumsum, .rows_in = 1, .strided_in = 1, .inplace = {1}, KR_STAGES(stages_cumsum))
