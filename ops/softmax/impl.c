/// The CPU's implementation of softmax: what its kernels promise.
#include "ops/cpu/kernels.h"
#include "ops/graph/internal.h"
#include "ops/softmax/args.h"
#include "ops/softmax/softmax.h"

KR_KERNEL_DECLARE(softmax)
KR_KERNEL_DECLARE(softmax_grad)
KR_KERNEL_DECLARE(cross_entropy)
KR_KERNEL_DECLARE(cross_entropy_combine)
KR_KERNEL_DECLARE(cross_entropy_grad)

static size_t cross_entropy_work(const kr_attrs *attrs, const kr_shape *in, const kr_shape *out, int inputs) {
    (void)attrs, (void)out, (void)inputs;
    return (size_t)kr_loss_blocks(kr_shape_count(&in[CROSS_ENTROPY_TARGETS])) * sizeof(kr_loss_partial);
}

static const kr_stage softmax_stages[] = {KR_STAGE(softmax)};
static const kr_stage softmax_grad_stages[] = {KR_STAGE(softmax_grad)};
static const kr_stage cross_entropy_stages[] = {KR_STAGE(cross_entropy), KR_STAGE(cross_entropy_combine)};
static const kr_stage cross_entropy_grad_stages[] = {KR_STAGE(cross_entropy_grad)};

KR_CPU(softmax, .rows_in = BIT(SOFTMAX_X), .rows_out = BIT(SOFTMAX_Y), .inplace = {BIT(SOFTMAX_X)},
       KR_STAGES(softmax_stages))

KR_CPU(softmax_grad, .rows_in = BIT(SOFTMAX_GRAD_DY) | BIT(SOFTMAX_GRAD_Y), .rows_out = BIT(SOFTMAX_GRAD_DX),
       .inplace = {BIT(SOFTMAX_GRAD_DY) | BIT(SOFTMAX_GRAD_Y)}, KR_STAGES(softmax_grad_stages))

KR_CPU(cross_entropy, .rows_in = BIT(CROSS_ENTROPY_LOGITS),
       .skip_out = BIT(CROSS_ENTROPY_PER_TOKEN) | BIT(CROSS_ENTROPY_LSE), .work = cross_entropy_work,
       KR_STAGES(cross_entropy_stages))

KR_CPU(cross_entropy_grad, .rows_in = BIT(CROSS_ENTROPY_GRAD_LOGITS), .rows_out = BIT(CROSS_ENTROPY_GRAD_DLOGITS),
       .inplace = {BIT(CROSS_ENTROPY_GRAD_LOGITS)}, KR_STAGES(cross_entropy_grad_stages))
