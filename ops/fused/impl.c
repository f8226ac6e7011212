/// The CPU's implementation of fused: what its kernels promise.
#include "ops/cpu/kernels.h"
#include "ops/fused/fused.h"
#include "ops/graph/internal.h"
#include "ops/reduce/cut.h"

enum { ALL_INPUTS = (1 << KR_FUSED_INPUTS) - 1, ALL_OUTPUTS = (1 << KR_FUSED_OUTPUTS) - 1 };

KR_KERNEL_DECLARE(fused)
KR_KERNEL_DECLARE(fused_sum)
KR_KERNEL_DECLARE(fused_sum_second)

static size_t sum_work(const kr_attrs *attrs, const kr_shape *in, const kr_shape *out, int inputs) {
    kr_tile p;
    (void)out, (void)inputs;
    kr_fused_unpack(attrs, &p);
    const kr_reduce_cut c = kr_reduce_cut_axes(&in[0], p.axis, p.axes);
    return kr_reduce_cut_work(&c);
}

static const kr_stage fused_stages[] = {KR_STAGE(fused)};
static const kr_stage fused_sum_stages[] = {KR_STAGE(fused_sum), KR_STAGE(fused_sum_second)};

KR_CPU(fused,
    .strided_in = ALL_INPUTS, .rows_out = ALL_OUTPUTS, .skip_out = ALL_OUTPUTS,
    .inplace = {ALL_INPUTS, ALL_INPUTS, ALL_INPUTS}, KR_STAGES(fused_stages))

KR_CPU(fused_sum,
    .strided_in = ALL_INPUTS, .rows_out = ALL_OUTPUTS << 1, .skip_out = ALL_OUTPUTS << 1,
    .inplace = {0, ALL_INPUTS, ALL_INPUTS}, .work = sum_work, KR_STAGES(fused_sum_stages))
