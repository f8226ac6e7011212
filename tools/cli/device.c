// Devices by name.
#include "tools/cli/device.h"

/// Only what was given can be wrong: without a name the fault is in the machine or the environment.
static kr_status known(const char *given, kr_status status) {
    return status && given ? kr_status_prefix(status, "--device") : status;
}

kr_status kr_tool_target(const char *name, const kr_target **out) {
    return known(name, kr_target_find(name ? name : kr_target_cpu.name, out));
}

kr_status kr_tool_device(const char *name, kr_device **out) {
    return known(name, kr_device_open(name ? name : kr_target_cpu.name, NULL, out));
}
