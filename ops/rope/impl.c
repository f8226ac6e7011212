/// The CPU's implementation of rope: what its kernels promise.
#include "ops/cpu/kernels.h"
#include "ops/graph/internal.h"

KR_KERNEL_DECLARE(rope)

static const kr_stage rope_stages[] = {KR_STAGE(rope)};

KR_CPU(rope, .rows_in = BIT(0), .rows_out = BIT(0), .inplace = {BIT(0)}, KR_STAGES(rope_stages))
