// Devices by name.
#include "tools/cli/device.h"

#include <string.h>

static kr_status known(kr_status status) { return status ? kr_status_prefix(status, "--device") : KR_OK; }

kr_status kr_tool_target(const char *name, const kr_target **out) {
    char head[64];
    if (!name) name = kr_target_cpu.name;
    const size_t length = strcspn(name, ":");
    snprintf(head, sizeof head, "%.*s", (int)(length < sizeof head ? length : sizeof head - 1), name);
    return known(kr_target_find(head, out));
}

kr_status kr_tool_device(const char *name, kr_device **out) {
    return known(kr_device_open(name ? name : kr_target_cpu.name, NULL, out));
}
