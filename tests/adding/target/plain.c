/// The least that a target needs: the CPU's promises and baseline kernels, run by one thread in order. For tests/adding.
#include "ops/ops.h"
#include "runtime/internal.h"

#include <stdlib.h>
#include <string.h>

enum { ALIGN = 64 };

static kr_status plain_alloc(kr_device *device, size_t bytes, void **address) {
    (void)device;
    KR_FAIL_IF(bytes > PTRDIFF_MAX - ALIGN || posix_memalign(address, ALIGN, bytes), KR_NO_MEMORY,
               "no memory for an arena of %zu bytes", bytes);
    return KR_OK;
}

static void plain_free(kr_device *device, void *address, size_t bytes) {
    (void)device, (void)bytes;
    free(address);
}

static kr_status plain_copy(kr_device *device, void *to, const void *from, size_t bytes) {
    (void)device;
    memcpy(to, from, bytes);
    return KR_OK;
}

static kr_status plain_zero(kr_device *device, void *to, size_t bytes) {
    (void)device;
    memset(to, 0, bytes);
    return KR_OK;
}

static kr_status plain_team(kr_device *device, int wanted, int *threads) {
    (void)device, (void)wanted;
    *threads = 1;
    return KR_OK;
}

static kr_status plain_bind(kr_device *device, kr_bound *b) {
    (void)device, (void)b;
    return KR_OK;
}

static void plain_unbind(kr_device *device, kr_bound *b) { (void)device, (void)b; }

static kr_status plain_wait(kr_device *device) {
    (void)device;
    return KR_OK;
}

static void plain_close(kr_device *device) { free(device); }

static kr_status plain_run(kr_device *device, kr_bound *b, int threads, unsigned flags) {
    (void)device, (void)threads;
    KR_FAIL_IF(flags & (KR_RUN_CHECK | KR_RUN_PROFILE), KR_UNSUPPORTED, "device plain neither checks nor measures");
    for (int i = 0; i < b->step_count; i++) {
        const kr_step *s = b->steps[i].step;
        kr_call call = b->steps[i].call;
        const kr_stage *stages = s->kernels;
        for (call.round = 0; call.round == 0 || call.round < s->rounds; call.round++)
            for (int k = 0; k < s->stages; k++) stages[k].build[KR_ISA_BASE](&call, 0, 1);
    }
    return KR_OK;
}

static const kr_device_class class = {
    .name = "plain", .target = "plain", .align = ALIGN, .team = plain_team, .bind = plain_bind,
    .unbind = plain_unbind, .alloc = plain_alloc, .free = plain_free, .write = plain_copy, .read = plain_copy,
    .zero = plain_zero, .run = plain_run, .wait = plain_wait, .close = plain_close,
};

static kr_status plain_open(const kr_target *target, const char *argument, kr_device **out) {
    (void)target;
    KR_FAIL_IF(argument, KR_BAD_ARGUMENT, "device plain takes nothing after its name, got \":%s\"", argument);
    *out = calloc(1, sizeof **out);
    KR_FAIL_IF(!*out, KR_NO_MEMORY, "no memory for a device");
    (*out)->class = &class;
    return KR_OK;
}

static const kr_impl *plain_impl(const kr_target *target, const char *op) {
    (void)target;
    return kr_target_cpu.impl(&kr_target_cpu, op);
}

static kr_status plain_multiplies_bf16(const kr_target *target) {
    (void)target;
    KR_FAIL(KR_UNSUPPORTED, "precision bf16: the target plain has no instructions for it");
}

extern const kr_target kr_target_plain;
const kr_target kr_target_plain = {
    .abi = KR_TARGET_ABI, .name = "plain", .impl = plain_impl, .flops_per_ns = 1, .bytes_per_ns = 10, .ns_per_step = 100,
    .align = ALIGN, .line = 64, .wide = 512, .logits = 1 << 20,
    .program = {.length = 8, .inputs = 4, .outputs = 2, .reals = 2, .large = 1 << 20, .many = 1 << 20},
    .multiplies_bf16 = plain_multiplies_bf16, .open = plain_open,
};
