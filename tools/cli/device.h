/// Devices by name, as --device gives them: "cpu", or "NAME" and "NAME:WHICH" for a target in a libkrait_NAME.so.
#ifndef KRAIT_TOOLS_CLI_DEVICE_H
#define KRAIT_TOOLS_CLI_DEVICE_H

#include "ops/ops.h"
#include "tools/cli/options.h"

/// What plans for the device of that name are compiled for; null means "cpu". The device itself need not be here.
/// fails KR_BAD_ARGUMENT, KR_UNSUPPORTED: no such target (the message says what is known)
kr_status kr_tool_target(const char *name, const kr_target **out);
/// Opens the device of that name.
/// fails as above, and as the target does
kr_status kr_tool_device(const char *name, kr_device **out);
/// The row of an option table for the name.
#define KR_DEVICE_OPTION(offset)                                                                             \
    {                                                                                                        \
        "device", KR_OPTION_TEXT, offset, .value = "NAME", .help = "where to compute: cpu (default), or one " \
                                                                   "of a libkrait_NAME.so",                  \
                                          .flags = KR_OPTION_COMMAND_LINE                                    \
    }

#endif
