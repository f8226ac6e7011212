/// Devices by name, as --device gives them.
#ifndef KRAIT_TOOLS_CLI_DEVICE_H
#define KRAIT_TOOLS_CLI_DEVICE_H

#include "runtime/runtime.h"
#include "tools/cli/options.h"

/// Opens the device of that name; null means "cpu".
/// fails KR_BAD_ARGUMENT: no device has that name (the message says which there are)
kr_status kr_tool_device(const char *name, kr_device **out);
/// The row of an option table for the name.
#define KR_DEVICE_OPTION(offset)                                                                                \
    {                                                                                                           \
        "device", KR_OPTION_TEXT, offset, .value = "NAME", .help = "where to compute: cpu (default), the only " \
                                                                   "one so far",                                \
                                          .flags = KR_OPTION_COMMAND_LINE                                       \
    }

#endif
