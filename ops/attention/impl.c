/// The CPU's implementation of attention: what its kernels promise.
#include "ops/attention/args.h"
#include "ops/attention/size.h"
#include "ops/cpu/kernels.h"
#include "ops/graph/internal.h"

KR_KERNEL_DECLARE(attention)
KR_KERNEL_DECLARE(attention_merge)
KR_KERNEL_DECLARE(attention_grad_rows)
KR_KERNEL_DECLARE(attention_grad)
KR_KERNEL_DECLARE(attention_grad_sum)
KR_KERNEL_DECLARE(cache_write)

static size_t attention_work(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs) {
    (void)out, (void)inputs;
    const kr_attention_size s = kr_attention_measure(&in[ATTENTION_Q], &in[ATTENTION_K], t->i[ATTENTION_HEADS],
                                                     t->i[ATTENTION_KV_HEADS]);
    return (size_t)kr_attention_bytes(&s);
}

static size_t attention_grad_work(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs) {
    (void)out, (void)inputs;
    const kr_attention_size s = kr_attention_measure(&in[ATTENTION_GRAD_FORWARD + ATTENTION_Q],
                                                     &in[ATTENTION_GRAD_FORWARD + ATTENTION_K], t->i[ATTENTION_HEADS],
                                                     t->i[ATTENTION_KV_HEADS]);
    return (size_t)kr_attention_grad_bytes(&s) + 64; // never 0, so that kernels always have a base to count from
}

static const kr_stage forward_stages[] = {KR_STAGE(attention), KR_STAGE(attention_merge)};
static const kr_stage backward_stages[] = {KR_STAGE(attention_grad_rows), KR_STAGE(attention_grad),
                                           KR_STAGE(attention_grad_sum)};
static const kr_stage cache_write_stages[] = {KR_STAGE(cache_write)};

KR_CPU(attention, .rows_in = BIT(ATTENTION_Q) | BIT(ATTENTION_K) | BIT(ATTENTION_V), .rows_out = BIT(ATTENTION_O),
       .skip_out = BIT(ATTENTION_LSE), .work = attention_work, KR_STAGES(forward_stages))

KR_CPU(attention_grad,
       .rows_in = BIT(ATTENTION_GRAD_DO) | BIT(ATTENTION_GRAD_FORWARD + ATTENTION_Q) |
                  BIT(ATTENTION_GRAD_FORWARD + ATTENTION_K) | BIT(ATTENTION_GRAD_FORWARD + ATTENTION_V) |
                  BIT(ATTENTION_GRAD_O),
       .rows_out = BIT(ATTENTION_GRAD_OUTPUTS) - 1, .skip_out = BIT(ATTENTION_GRAD_OUTPUTS) - 1,
       .work = attention_grad_work, KR_STAGES(backward_stages))

KR_CPU(cache_write, .rows_in = BIT(CACHE_WRITE_X), .inplace = {BIT(CACHE_WRITE_CACHE)}, KR_STAGES(cache_write_stages))
