/// The CPU's implementation of conv: what its kernels promise.
#include "ops/conv/args.h"
#include "ops/conv/work.h"
#include "ops/cpu/kernels.h"
#include "ops/graph/internal.h"

KR_KERNEL_DECLARE(causal_conv1d_weights)
KR_KERNEL_DECLARE(causal_conv1d)
KR_KERNEL_DECLARE(causal_conv1d_grad_weights)
KR_KERNEL_DECLARE(causal_conv1d_grad)
KR_KERNEL_DECLARE(causal_conv1d_grad_sum)

/// Never 0, so that kernels always have a base to count from.
static size_t floats(int64_t n) { return (size_t)(n + KR_CONV_LANES) * sizeof(float); }

static size_t causal_conv1d_work(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs) {
    (void)t, (void)out, (void)inputs;
    return floats(kr_conv_forward_floats(in[CONV_X].dim[2], in[CONV_WEIGHT].dim[1]));
}

static size_t causal_conv1d_grad_work(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs) {
    (void)t, (void)out, (void)inputs;
    const kr_shape *x = in + CONV_GRAD_FORWARD;
    return floats(kr_conv_backward_floats(x[CONV_X].dim[0], x[CONV_X].dim[2], x[CONV_WEIGHT].dim[1]));
}

static const kr_stage forward_stages[] = {KR_STAGE(causal_conv1d_weights), KR_STAGE(causal_conv1d)};
static const kr_stage backward_stages[] = {KR_STAGE(causal_conv1d_grad_weights), KR_STAGE(causal_conv1d_grad),
                                           KR_STAGE(causal_conv1d_grad_sum)};

KR_CPU(causal_conv1d, .rows_in = BIT(CONV_X), .rows_out = BIT(CONV_Y), .skip_out = BIT(CONV_NEXT),
       .work = causal_conv1d_work, KR_STAGES(forward_stages))

KR_CPU(causal_conv1d_grad, .rows_in = BIT(CONV_GRAD_DY) | BIT(CONV_GRAD_FORWARD + CONV_X),
       .rows_out = BIT(CONV_GRAD_DX), .skip_out = BIT(CONV_GRAD_OUTPUTS) - 1, .work = causal_conv1d_grad_work,
       .inplace = {BIT(CONV_GRAD_DY)}, KR_STAGES(backward_stages))
