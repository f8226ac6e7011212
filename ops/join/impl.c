/// The CPU's implementation of join: what its kernels promise.
#include "ops/cpu/kernels.h"
#include "ops/graph/internal.h"

KR_KERNEL_DECLARE(concat)
KR_KERNEL_DECLARE(pad)
KR_KERNEL_DECLARE(copy)

static const kr_stage stages_concat[] = {KR_STAGE(concat)};
static const kr_stage stages_pad[] = {KR_STAGE(pad)};
static const kr_stage stages_copy[] = {KR_STAGE(copy)};

KR_CPU(concat,
    .rows_in = UINT32_MAX, .strided_in = UINT32_MAX, .rows_out = 1, KR_STAGES(stages_concat))

KR_CPU(pad,
    .rows_in = 1, .strided_in = 1, .rows_out = 1, KR_STAGES(stages_pad))

KR_CPU(copy,
    .rows_in = 1, .strided_in = 1, .rows_out = 1, KR_STAGES(stages_copy))
