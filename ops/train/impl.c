/// The CPU's implementation of train: what its kernels promise.
#include "ops/cpu/kernels.h"
#include "ops/graph/internal.h"
#include "ops/train/args.h"
#include "ops/train/blocks.h"

KR_KERNEL_DECLARE(sq_norm)
KR_KERNEL_DECLARE(sq_norm_combine)
KR_KERNEL_DECLARE(adamw)
KR_KERNEL_DECLARE(count_step)

/// One double per block of every input.
static size_t sq_norm_work(const kr_attrs *attrs, const kr_shape *in, const kr_shape *out, int inputs) {
    (void)attrs, (void)out;
    int64_t blocks = 0;
    for (int i = 0; i < inputs; i++) blocks += kr_norm_blocks(kr_shape_count(&in[i]));
    return (size_t)blocks * sizeof(double);
}

static const kr_stage sq_norm_stages[] = {KR_STAGE(sq_norm), KR_STAGE(sq_norm_combine)};
static const kr_stage adamw_stages[] = {KR_STAGE(adamw)};
static const kr_stage count_step_stages[] = {KR_STAGE(count_step)};

KR_CPU(sq_norm, .work = sq_norm_work, KR_STAGES(sq_norm_stages))

KR_CPU(adamw, .inplace = {1u << ADAMW_P, 1u << ADAMW_M, 1u << ADAMW_V}, KR_STAGES(adamw_stages))

KR_CPU(count_step, .inplace = {1u << COUNT_STEP_STEP}, KR_STAGES(count_step_stages))
