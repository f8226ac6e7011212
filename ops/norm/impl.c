/// The CPU's implementation of norm: what its kernels promise.
#include "ops/cpu/kernels.h"
#include "ops/graph/internal.h"
#include "ops/norm/args.h"

KR_KERNEL_DECLARE(rms_norm)
KR_KERNEL_DECLARE(rms_norm_grad)
KR_KERNEL_DECLARE(layer_norm)
KR_KERNEL_DECLARE(layer_norm_grad)
KR_KERNEL_DECLARE(norm_grad_sum)

static size_t norm_grad_work(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs) {
    (void)t, (void)out, (void)inputs;
    const int64_t d = in[0].dim[in[0].rank - 1], rows = d ? kr_shape_count(&in[0]) / d : 0;
    return (size_t)(norm_partials(rows) * 2 * d) * sizeof(float);
}

static const kr_stage rms_norm_stages[] = {KR_STAGE(rms_norm)};
static const kr_stage layer_norm_stages[] = {KR_STAGE(layer_norm)};
static const kr_stage rms_norm_grad_stages[] = {KR_STAGE(rms_norm_grad), KR_STAGE(norm_grad_sum)};
static const kr_stage layer_norm_grad_stages[] = {KR_STAGE(layer_norm_grad), KR_STAGE(norm_grad_sum)};

KR_CPU(rms_norm, .rows_in = BIT(RMS_X) | BIT(RMS_RESIDUAL) | BIT(RMS_Z), .rows_out = BIT(RMS_Y) | BIT(RMS_STREAM),
       .skip_out = BIT(RMS_STREAM) | BIT(RMS_RHO),
       .inplace = {BIT(RMS_X) | BIT(RMS_RESIDUAL) | BIT(RMS_Z), BIT(RMS_X) | BIT(RMS_RESIDUAL)},
       .fuses = KR_FUSES_FIRST_ADDEND, KR_STAGES(rms_norm_stages))

enum { RMS_GRAD_ROWS = BIT(RMS_GRAD_DY) | BIT(RMS_GRAD_DSTREAM) | BIT(RMS_GRAD_R) | BIT(RMS_GRAD_Z) };
KR_CPU(rms_norm_grad, .rows_in = RMS_GRAD_ROWS, .rows_out = BIT(RMS_GRAD_DX) | BIT(RMS_GRAD_DZ),
       .skip_out = BIT(RMS_GRAD_OUTPUTS) - 1, .work = norm_grad_work, .inplace = {RMS_GRAD_ROWS, RMS_GRAD_ROWS},
       .fuses = KR_FUSES_ADDEND, KR_STAGES(rms_norm_grad_stages))

KR_CPU(layer_norm, .rows_in = BIT(LAYER_X) | BIT(LAYER_RESIDUAL), .rows_out = BIT(LAYER_Y) | BIT(LAYER_STREAM),
       .skip_out = BIT(LAYER_STREAM) | BIT(LAYER_MEAN) | BIT(LAYER_RHO),
       .inplace = {BIT(LAYER_X) | BIT(LAYER_RESIDUAL), BIT(LAYER_X) | BIT(LAYER_RESIDUAL)},
       .fuses = KR_FUSES_FIRST_ADDEND, KR_STAGES(layer_norm_stages))

enum { LAYER_GRAD_ROWS = BIT(LAYER_GRAD_DY) | BIT(LAYER_GRAD_DSTREAM) | BIT(LAYER_GRAD_R) };
KR_CPU(layer_norm_grad, .rows_in = LAYER_GRAD_ROWS, .rows_out = BIT(LAYER_GRAD_DX),
       .skip_out = BIT(LAYER_GRAD_OUTPUTS) - 1, .work = norm_grad_work, .inplace = {LAYER_GRAD_ROWS},
       .fuses = KR_FUSES_ADDEND, KR_STAGES(layer_norm_grad_stages))
