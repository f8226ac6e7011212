/// The one door to device memory. What every device may rely on is settled here: no call with nothing to do, no null
/// address, no missing optional entry.
#include "runtime/internal.h"

#include <string.h>

void kr_device_close(kr_device *device) {
    if (device) device->class->close(device);
}

const char *kr_device_name(const kr_device *device) { return device->class->name; }

kr_status kr_device_alloc(kr_device *device, size_t bytes, void **address) {
    *address = NULL;
    return device->class->alloc(device, bytes ? bytes : 1, address);
}

void kr_device_free(kr_device *device, void *address, size_t bytes) {
    if (address) device->class->free(device, address, bytes ? bytes : 1);
}

kr_status kr_device_write(kr_device *device, void *to, const void *from, size_t bytes) {
    return bytes ? device->class->write(device, to, from, bytes) : KR_OK;
}

kr_status kr_device_read(kr_device *device, void *to, const void *from, size_t bytes) {
    return bytes ? device->class->read(device, to, from, bytes) : KR_OK;
}

kr_status kr_device_zero(kr_device *device, void *to, size_t bytes) {
    return bytes ? device->class->zero(device, to, bytes) : KR_OK;
}

kr_status kr_device_wait(kr_device *device) { return device->class->wait(device); }

kr_status kr_device_team(kr_device *device, int wanted, int *threads) {
    return device->class->team(device, wanted, threads);
}

kr_status kr_device_bind(kr_device *device, kr_bound *bound) {
    const char *target = bound->plan->target;
    KR_FAIL_IF(strcmp(target, device->class->target), KR_BAD_ARGUMENT,
               "device %s runs plans compiled for %s, this one was compiled for %s", device->class->name,
               device->class->target, target);
    const kr_status status = device->class->bind(device, bound);
    if (status) device->class->unbind(device, bound);
    return status;
}

void kr_device_unbind(kr_device *device, kr_bound *bound) {
    if (bound && bound->state) device->class->unbind(device, bound);
}

kr_status kr_device_run(kr_device *device, kr_bound *bound, int threads, unsigned flags) {
    return device->class->run(device, bound, threads, flags);
}

void kr_device_fence(kr_device *device, void *address, size_t bytes) {
    if (bytes && device->class->fence) device->class->fence(device, address, bytes);
}
