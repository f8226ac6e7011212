/// The second target, for tests: a machine that promises as little as it may and chooses otherwise than the CPU, so
/// that
/// what the compiler takes for granted of the CPU shows. It takes packed operands only (but for copies, which have to),
/// takes over no memory, skips no output, fuses nothing into an op, has other chunks, lines, alignments and limits of
/// programs, and other rates.
///
/// Its kernels are the CPU's baseline builds, called in one part each: what is tested is the seam, not arithmetic.
#include "tests/reference/device.h"

#include <string.h>

enum { MOST_OPS = 128, CHUNK = 16, ROWS = 5 };

/// Chunks and rounds of its own, then what follows from them, which the CPU's rule knows.
static kr_status specialise(const kr_target *target, const char *op, kr_attrs *attrs, const kr_shape *in, int inputs) {
    const kr_op *o = kr_op_find(op);
    for (int k = 0; k < KR_ATTR_INTEGERS && o->attr.i[k]; k++) {
        if (!strcmp(o->attr.i[k], "chunk") && !attrs->i[k]) attrs->i[k] = CHUNK;
        if (!strcmp(o->attr.i[k], "rows") && !attrs->i[k]) attrs->i[k] = ROWS;
    }
    const kr_impl *cpu = kr_op_impl(o, &kr_target_cpu);
    return cpu->specialise(target, attrs, in, inputs);
}

#define SPECIALISE(op)                                                                                            \
    static kr_status specialise_##op(const kr_target *t, kr_attrs *attrs, const kr_shape *in, int inputs) {       \
        return specialise(t, #op, attrs, in, inputs);                                                             \
    }
#define OPEN_OPS(X) \
    X(selective_scan) X(selective_scan_grad) X(ssd_scan) X(ssd_scan_grad) X(trapezoid_scan) X(trapezoid_scan_grad) \
    X(linear_cross_entropy)
OPEN_OPS(SPECIALISE)

static const kr_impl *impl(const kr_target *target, const char *op) {
    static kr_impl made[MOST_OPS];
    static bool known[MOST_OPS];
    (void)target;
    for (int k = 0; k < kr_op_count && k < MOST_OPS; k++) {
        if (strcmp(kr_ops[k]->name, op)) continue;
        const kr_impl *cpu = kr_op_impl(kr_ops[k], &kr_target_cpu);
        if (!cpu) return NULL;
        if (known[k]) return &made[k];
        made[k] = (kr_impl){.work = cpu->work, .rounds = cpu->rounds, .stages = cpu->stages, .kernels = cpu->kernels};
        if (!strcmp(op, "copy")) made[k].strided_in = 1;
#define USE(name) \
    if (!strcmp(op, #name)) made[k].specialise = specialise_##name;
        OPEN_OPS(USE)
        known[k] = true;
        return &made[k];
    }
    return NULL;
}

static kr_status multiplies_bf16(const kr_target *target) {
    (void)target;
    KR_FAIL(KR_UNSUPPORTED, "precision bf16: the reference target has no instructions for it: take bf16-emulated");
}

static kr_status open(const kr_target *target, const char *argument, kr_device **out) {
    (void)target;
    KR_FAIL_IF(argument && strcmp(argument, "0"), KR_BAD_ARGUMENT, "device reference:%s: there is only reference:0",
               argument);
    return reference_open(out);
}

extern const kr_target kr_target_reference;
const kr_target kr_target_reference = {
    .abi = KR_TARGET_ABI,
    .name = "reference",
    .impl = impl,
    .flops_per_ns = 1,
    .bytes_per_ns = 10,
    .ns_per_step = 100,
    .align = REFERENCE_ALIGN,
    .line = 128,
    .wide = 512,
    .logits = 1 << 12,
    .program = {.length = 3, .inputs = 3, .outputs = 1, .reals = 2, .large = 64, .many = 4},
    .multiplies_bf16 = multiplies_bf16,
    .open = open,
};
