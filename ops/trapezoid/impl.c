/// The CPU's implementation of trapezoid: what its kernels promise.
#include "ops/cpu/kernels.h"
#include "ops/graph/internal.h"
#include "ops/trapezoid/work.h"

KR_KERNEL_DECLARE(trapezoid_scan)
KR_KERNEL_DECLARE(trapezoid_scan_grad)
KR_KERNEL_DECLARE(trapezoid_scan_grad_sum)

static size_t bytes_of(int64_t floats) { return (size_t)(floats + KR_CHUNK_LANES) * sizeof(float); }

static size_t trapezoid_scan_work(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs) {
    (void)out, (void)inputs;
    const kr_trapezoid_size s = kr_trapezoid_measure(t, in);
    return bytes_of(kr_trapezoid_floats(&s.scan, &s.rotate, false));
}

static size_t trapezoid_scan_grad_work(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs) {
    (void)out, (void)inputs;
    const kr_trapezoid_size s = kr_trapezoid_measure(t, in + TRAPEZOID_GRAD_FORWARD);
    return bytes_of(kr_trapezoid_floats(&s.scan, &s.rotate, true));
}

/// As ssd_scan: [B, chunks, H, N, P]; and the angles before each chunk, [B, chunks, H, S].
static kr_status specialise(const char *op, const kr_target *target, kr_attrs *t, const kr_shape *in) {
    const kr_trapezoid_size s = kr_trapezoid_measure(t, in);
    if (!t->i[TRAPEZOID_CHUNK]) t->i[TRAPEZOID_CHUNK] = s.scan.chunk;
    KR_TRY(kr_specialise_saved(op, target, &t->i[TRAPEZOID_SAVED_SIZE],
                           KR_SHAPE(s.scan.batch, s.scan.chunks, s.scan.heads, s.scan.states, s.scan.width)));
    return kr_specialise_saved(op, target, &t->i[TRAPEZOID_ANGLES_SIZE],
                           KR_SHAPE(s.scan.batch, s.scan.chunks, s.scan.heads, s.rotate.pairs));
}

static kr_status trapezoid_scan_specialise(const kr_target *target, kr_attrs *t, const kr_shape *in, int inputs) {
    (void)inputs;
    return specialise("trapezoid_scan", target, t, in);
}

static kr_status trapezoid_scan_grad_specialise(const kr_target *target, kr_attrs *t, const kr_shape *in, int inputs) {
    (void)inputs;
    return specialise("trapezoid_scan_grad", target, t, in + TRAPEZOID_GRAD_FORWARD);
}

static const kr_stage forward_stages[] = {KR_STAGE(trapezoid_scan)};
static const kr_stage backward_stages[] = {KR_STAGE(trapezoid_scan_grad), KR_STAGE(trapezoid_scan_grad_sum)};

KR_CPU(trapezoid_scan, .rows_in = TRAPEZOID_STEPS, .rows_out = BIT(TRAPEZOID_O),
       .skip_out = BIT(TRAPEZOID_OUTPUTS) - 1 - BIT(TRAPEZOID_O), .work = trapezoid_scan_work,
       .inplace = {BIT(TRAPEZOID_X) | BIT(TRAPEZOID_Z), BIT(TRAPEZOID_H0), BIT(TRAPEZOID_K0)},
       .specialise = trapezoid_scan_specialise, KR_STAGES(forward_stages))

KR_CPU(trapezoid_scan_grad,
       .rows_in = BIT(TRAPEZOID_GRAD_DO) | TRAPEZOID_STEPS << TRAPEZOID_GRAD_FORWARD | BIT(TRAPEZOID_GRAD_O),
       .rows_out = BIT(TRAPEZOID_GRAD_DK) | BIT(TRAPEZOID_GRAD_DQ) | BIT(TRAPEZOID_GRAD_DX) | BIT(TRAPEZOID_GRAD_DADT) |
                   BIT(TRAPEZOID_GRAD_DDT) | BIT(TRAPEZOID_GRAD_DTRAP) | BIT(TRAPEZOID_GRAD_DZ) |
                   BIT(TRAPEZOID_GRAD_DANG),
       .skip_out = BIT(TRAPEZOID_GRAD_OUTPUTS) - 1, .work = trapezoid_scan_grad_work,
       .inplace = {BIT(TRAPEZOID_GRAD_FORWARD + TRAPEZOID_K), BIT(TRAPEZOID_GRAD_FORWARD + TRAPEZOID_Q)},
       .specialise = trapezoid_scan_grad_specialise, KR_STAGES(backward_stages))
