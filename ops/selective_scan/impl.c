/// The CPU's implementation of selective_scan: what its kernels promise.
#include "ops/cpu/kernels.h"
#include "ops/graph/internal.h"
#include "ops/selective_scan/args.h"
#include "ops/selective_scan/size.h"

KR_KERNEL_DECLARE(selective_scan)
KR_KERNEL_DECLARE(selective_scan_grad)
KR_KERNEL_DECLARE(selective_scan_grad_sum)

/// Never 0, so that kernels always have a base to count from.
static size_t floats(int64_t n) { return (size_t)(n + KR_SCAN_LANES) * sizeof(float); }

static size_t selective_scan_work(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs) {
    (void)t, (void)out, (void)inputs;
    const kr_scan_size s = kr_scan_measure(&in[SELECTIVE_U], &in[SELECTIVE_A], &in[SELECTIVE_B], &in[SELECTIVE_C]);
    return floats(kr_scan_forward_floats(&s));
}

static size_t selective_scan_grad_work(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs) {
    (void)t, (void)out, (void)inputs;
    const kr_shape *x = in + SELECTIVE_GRAD_FORWARD;
    const kr_scan_size s = kr_scan_measure(&x[SELECTIVE_U], &x[SELECTIVE_A], &x[SELECTIVE_B], &x[SELECTIVE_C]);
    return floats(kr_scan_backward_floats(&s));
}

/// A state per chunk of KR_SCAN_CHUNK tokens, in tiles of channels: [B, chunks, tiles, N, LANES].
static kr_status specialise(const char *op, const kr_target *target, kr_attrs *t, const kr_shape *x) {
    const kr_scan_size s = kr_scan_measure(&x[SELECTIVE_U], &x[SELECTIVE_A], &x[SELECTIVE_B], &x[SELECTIVE_C]);
    return kr_specialise_saved(op, target, &t->i[SELECTIVE_SAVED_SIZE],
                           KR_SHAPE(s.batch, s.chunks, s.tiles, s.states, KR_SCAN_LANES));
}

static kr_status selective_scan_specialise(const kr_target *target, kr_attrs *t, const kr_shape *in, int inputs) {
    (void)inputs;
    return specialise("selective_scan", target, t, in);
}

static kr_status selective_scan_grad_specialise(const kr_target *target, kr_attrs *t, const kr_shape *in, int inputs) {
    (void)inputs;
    return specialise("selective_scan_grad", target, t, in + SELECTIVE_GRAD_FORWARD);
}

static const kr_stage forward_stages[] = {KR_STAGE(selective_scan)};
static const kr_stage backward_stages[] = {KR_STAGE(selective_scan_grad), KR_STAGE(selective_scan_grad_sum)};

KR_CPU(selective_scan,
       .rows_in = BIT(SELECTIVE_U) | BIT(SELECTIVE_DELTA) | BIT(SELECTIVE_B) | BIT(SELECTIVE_C) | BIT(SELECTIVE_Z),
       .rows_out = BIT(SELECTIVE_OUT), .skip_out = BIT(SELECTIVE_LAST) | BIT(SELECTIVE_SAVED),
       .work = selective_scan_work, .inplace = {BIT(SELECTIVE_U) | BIT(SELECTIVE_DELTA) | BIT(SELECTIVE_Z)},
       .specialise = selective_scan_specialise, KR_STAGES(forward_stages))

KR_CPU(selective_scan_grad,
       .rows_in = BIT(SELECTIVE_GRAD_DOUT) | BIT(SELECTIVE_GRAD_FORWARD + SELECTIVE_U) |
                  BIT(SELECTIVE_GRAD_FORWARD + SELECTIVE_DELTA) | BIT(SELECTIVE_GRAD_FORWARD + SELECTIVE_B) |
                  BIT(SELECTIVE_GRAD_FORWARD + SELECTIVE_C) | BIT(SELECTIVE_GRAD_FORWARD + SELECTIVE_Z),
       .rows_out = BIT(SELECTIVE_GRAD_DU) | BIT(SELECTIVE_GRAD_DDELTA) | BIT(SELECTIVE_GRAD_DB) |
                   BIT(SELECTIVE_GRAD_DC) | BIT(SELECTIVE_GRAD_DZ),
       .skip_out = BIT(SELECTIVE_GRAD_OUTPUTS) - 1, .work = selective_scan_grad_work,
       .inplace = {BIT(SELECTIVE_GRAD_DOUT) | BIT(SELECTIVE_GRAD_FORWARD + SELECTIVE_U),
                   BIT(SELECTIVE_GRAD_FORWARD + SELECTIVE_DELTA)},
       .specialise = selective_scan_grad_specialise, KR_STAGES(backward_stages))
