/// The CPU's implementation of matmul: what its kernels promise.
#include "ops/cpu/kernels.h"
#include "ops/graph/internal.h"
#include "ops/matmul/args.h"

KR_KERNEL_DECLARE(matmul)

static const kr_stage matmul_stages[] = {KR_STAGE(matmul)};

KR_CPU(matmul, .rows_in = 1 << MATMUL_A | 1 << MATMUL_B | 1 << MATMUL_RESIDUAL, .rows_out = 1,
       .inplace = {1 << MATMUL_RESIDUAL}, .fuses = KR_FUSES_ADDEND | KR_FUSES_ACTIVATION, KR_STAGES(matmul_stages))
