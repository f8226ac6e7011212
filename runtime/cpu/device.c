/// The CPU as a device: arenas are host memory, copies are memcpy, and nothing is ever under way when a call returns.
/// Bytes that a session fences off (between and behind slots) are poisoned under AddressSanitizer, so that a kernel
/// that reads or writes past its tensor is caught at the instruction.
#include "runtime/cpu/internal.h"

#include <stdlib.h>
#include <string.h>

#if defined(__SANITIZE_ADDRESS__)
#define UNDER_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define UNDER_ASAN 1
#endif
#endif
#ifdef UNDER_ASAN
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#endif

static kr_status cpu_alloc(kr_device *device, size_t bytes, void **address) {
    (void)device;
    *address = kr_host_alloc(bytes);
    return *address ? KR_OK : KR_NO_MEMORY;
}

static void cpu_free(kr_device *device, void *address, size_t bytes) {
    (void)device;
    ASAN_UNPOISON_MEMORY_REGION(address, bytes); // the addresses may come back as somebody else's memory
    kr_host_free(address, bytes);
}

static kr_status cpu_copy(kr_device *device, void *to, const void *from, size_t bytes) {
    (void)device;
    memcpy(to, from, bytes);
    return KR_OK;
}

static kr_status cpu_zero(kr_device *device, void *to, size_t bytes) {
    kr_zero_parallel(to, bytes, ((kr_cpu_device *)device)->threads);
    return KR_OK;
}

static kr_status cpu_run(kr_device *device, kr_bound *bound, int threads, unsigned flags) {
    (void)device;
    return kr_execute(bound, threads, flags);
}

static kr_status cpu_wait(kr_device *device) {
    (void)device;
    return KR_OK;
}

static void cpu_close(kr_device *device) { free(device); }

static void cpu_fence(kr_device *device, void *address, size_t bytes) {
    (void)device;
    ASAN_POISON_MEMORY_REGION(address, bytes);
}

static const kr_device_class cpu = {
    .name = "cpu",
    .target = "cpu",
    .team = kr_cpu_team,
    .bind = kr_cpu_bind,
    .unbind = kr_cpu_unbind,
    .alloc = cpu_alloc,
    .free = cpu_free,
    .write = cpu_copy,
    .read = cpu_copy,
    .zero = cpu_zero,
    .run = cpu_run,
    .wait = cpu_wait,
    .close = cpu_close,
    .fence = cpu_fence,
};

kr_status kr_device_cpu(kr_device **out) {
    *out = NULL;
    KR_TRY(kr_cpu_prepare());
    kr_cpu_device *d = calloc(1, sizeof *d);
    KR_FAIL_IF(!d, KR_NO_MEMORY, "no memory for a device");
    d->device.class = &cpu;
    *out = &d->device;
    return KR_OK;
}
