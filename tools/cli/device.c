// Devices by name.
#include "tools/cli/device.h"

#include <string.h>

kr_status kr_tool_device(const char *name, kr_device **out) {
    KR_FAIL_IF(name && strcmp(name, "cpu"), KR_BAD_ARGUMENT, "--device: unknown device '%s'; there is cpu", name);
    return kr_device_cpu(out);
}
