/// The CPU's implementation of linear_loss: what its kernels promise.
#include "ops/cpu/kernels.h"
#include "ops/graph/internal.h"
#include "ops/linear_loss/args.h"
#include "ops/linear_loss/rounds.h"

KR_KERNEL_DECLARE(linear_cross_entropy_logits)
KR_KERNEL_DECLARE(linear_cross_entropy_rows)
KR_KERNEL_DECLARE(linear_cross_entropy_products)

static size_t linear_cross_entropy_work(const kr_attrs *attrs, const kr_shape *in, const kr_shape *out, int inputs) {
    (void)out, (void)inputs;
    const int64_t V = in[LINEAR_LOSS_WEIGHT].dim[0], each = attrs->i[LINEAR_LOSS_ROWS];
    const int64_t losses = (each + 15) / 16 * 16;
    return sizeof(kr_linear_loss_head) + (size_t)(losses + each * kr_linear_loss_pitch(V)) * sizeof(float);
}

static int64_t linear_cross_entropy_rounds(const kr_attrs *attrs, const kr_shape *in, const kr_shape *out, int inputs) {
    (void)out, (void)inputs;
    return kr_linear_loss_rounds(kr_shape_count(&in[LINEAR_LOSS_TARGETS]), attrs->i[LINEAR_LOSS_ROWS]);
}

static kr_status linear_cross_entropy_specialise(const kr_target *target, kr_attrs *attrs, const kr_shape *in,
                                                 int inputs) {
    (void)inputs;
    const int64_t rows = kr_shape_count(&in[LINEAR_LOSS_TARGETS]), most = (int64_t)(target->logits / sizeof(float));
    if (attrs->i[LINEAR_LOSS_ROWS] > rows) attrs->i[LINEAR_LOSS_ROWS] = rows;
    if (!attrs->i[LINEAR_LOSS_ROWS])
        attrs->i[LINEAR_LOSS_ROWS] = kr_linear_loss_rows(rows, in[LINEAR_LOSS_WEIGHT].dim[0], most);
    return KR_OK;
}

static const kr_stage stages[] = {KR_STAGE(linear_cross_entropy_logits), KR_STAGE(linear_cross_entropy_rows),
                                  KR_STAGE(linear_cross_entropy_products)};

KR_CPU(linear_cross_entropy, .rows_in = BIT(LINEAR_LOSS_X) | BIT(LINEAR_LOSS_WEIGHT), .rows_out = BIT(LINEAR_LOSS_DX),
       .skip_out = BIT(LINEAR_LOSS_PER_TOKEN) | BIT(LINEAR_LOSS_LSE) | BIT(LINEAR_LOSS_DX) | BIT(LINEAR_LOSS_DWEIGHT),
       .work = linear_cross_entropy_work, .rounds = linear_cross_entropy_rounds,
       .specialise = linear_cross_entropy_specialise, KR_STAGES(stages))
