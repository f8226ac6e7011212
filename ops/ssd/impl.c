/// The CPU's implementation of ssd: what its kernels promise.
#include "ops/cpu/kernels.h"
#include "ops/graph/internal.h"
#include "ops/ssd/work.h"

KR_KERNEL_DECLARE(ssd_scan)
KR_KERNEL_DECLARE(ssd_scan_grad_carry)
KR_KERNEL_DECLARE(ssd_scan_grad)
KR_KERNEL_DECLARE(ssd_scan_grad_sum)

static size_t bytes_of(int64_t floats) { return (size_t)(floats + KR_CHUNK_LANES) * sizeof(float); }

static size_t ssd_scan_work(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs) {
    (void)out, (void)inputs;
    const kr_chunk_size s = kr_ssd_measure(t, in);
    return bytes_of(kr_ssd_floats(&s, false));
}

static size_t ssd_scan_grad_work(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs) {
    (void)out, (void)inputs;
    const kr_chunk_size s = kr_ssd_measure(t, in + SSD_GRAD_FORWARD);
    return bytes_of(kr_ssd_floats(&s, true));
}

/// The best chunk for the shapes; the states before each are saved: [B, chunks, H, N, P].
static kr_status specialise(const char *op, const kr_target *target, kr_attrs *t, const kr_shape *in) {
    const kr_chunk_size s = kr_ssd_measure(t, in);
    if (!t->i[SSD_CHUNK]) t->i[SSD_CHUNK] = s.chunk;
    return kr_specialise_saved(op, target, &t->i[SSD_SAVED_SIZE],
                               KR_SHAPE(s.batch, s.chunks, s.heads, s.states, s.width));
}

static kr_status ssd_scan_specialise(const kr_target *target, kr_attrs *t, const kr_shape *in, int inputs) {
    (void)inputs;
    return specialise("ssd_scan", target, t, in);
}

static kr_status ssd_scan_grad_specialise(const kr_target *target, kr_attrs *t, const kr_shape *in, int inputs) {
    (void)inputs;
    return specialise("ssd_scan_grad", target, t, in + SSD_GRAD_FORWARD);
}

static const kr_stage forward_stages[] = {KR_STAGE(ssd_scan)};
static const kr_stage backward_stages[] = {KR_STAGE(ssd_scan_grad_carry), KR_STAGE(ssd_scan_grad),
                                           KR_STAGE(ssd_scan_grad_sum)};

KR_CPU(ssd_scan, .rows_in = BIT(SSD_X) | BIT(SSD_DT) | BIT(SSD_B) | BIT(SSD_C) | BIT(SSD_Z), .rows_out = BIT(SSD_Y),
       .skip_out = BIT(SSD_LAST) | BIT(SSD_SAVED), .work = ssd_scan_work,
       .inplace = {BIT(SSD_X) | BIT(SSD_Z), BIT(SSD_H0)}, .specialise = ssd_scan_specialise, KR_STAGES(forward_stages))

KR_CPU(ssd_scan_grad,
       .rows_in = BIT(SSD_GRAD_DY) | BIT(SSD_GRAD_FORWARD + SSD_X) | BIT(SSD_GRAD_FORWARD + SSD_DT) |
                  BIT(SSD_GRAD_FORWARD + SSD_B) | BIT(SSD_GRAD_FORWARD + SSD_C) | BIT(SSD_GRAD_FORWARD + SSD_Z),
       .rows_out = BIT(SSD_GRAD_DX) | BIT(SSD_GRAD_DDT) | BIT(SSD_GRAD_DB) | BIT(SSD_GRAD_DC) | BIT(SSD_GRAD_DZ),
       .skip_out = BIT(SSD_GRAD_OUTPUTS) - 1, .work = ssd_scan_grad_work,
       .inplace = {BIT(SSD_GRAD_DY) | BIT(SSD_GRAD_FORWARD + SSD_X), BIT(SSD_GRAD_FORWARD + SSD_DT)},
       .specialise = ssd_scan_grad_specialise, KR_STAGES(backward_stages))
