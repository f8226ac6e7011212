/// The CPU's implementation of embedding: what its kernels promise.
#include "ops/cpu/kernels.h"
#include "ops/graph/internal.h"

KR_KERNEL_DECLARE(embedding)
KR_KERNEL_DECLARE(embedding_grad)

static const kr_stage embedding_stages[] = {KR_STAGE(embedding)};
static const kr_stage embedding_grad_stages[] = {KR_STAGE(embedding_grad)};

KR_CPU(embedding, .rows_in = 1u << 0, .rows_out = 1, KR_STAGES(embedding_stages))

KR_CPU(embedding_grad, .rows_in = 1u << 1, .inplace = {1u << 2}, .fuses = KR_FUSES_ADDEND,
       KR_STAGES(embedding_grad_stages))
