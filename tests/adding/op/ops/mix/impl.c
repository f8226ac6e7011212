/// The CPU's implementation of mix: what its kernel promises.
#include "ops/cpu/kernels.h"

KR_KERNEL_DECLARE(mix)
static const kr_stage mix_stages[] = {KR_STAGE(mix)};
KR_CPU(mix, KR_STAGES(mix_stages))
