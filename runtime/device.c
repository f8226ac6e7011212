/// The one door to device memory. What every device may rely on is settled here: no call with nothing to do, no null
/// address, no missing optional entry.
#include "runtime/internal.h"

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

kr_status kr_device_run(kr_device *device, kr_bound *bound, int threads, unsigned flags) {
    return device->class->run(device, bound, threads, flags);
}

void kr_device_fence(kr_device *device, void *address, size_t bytes) {
    if (bytes && device->class->fence) device->class->fence(device, address, bytes);
}
