/// The settings of a training run as options: one table serves the command line, krait.yaml and state.json.
#ifndef KRAIT_TOOLS_CONFIG_TRAIN_OPTIONS_H
#define KRAIT_TOOLS_CONFIG_TRAIN_OPTIONS_H

#include "compiler/compiler.h"
#include "tools/cli/options.h"
#include "tools/config/settings.h"

/// Everything that `krait pretrain` can be told. The settings stand first: options that are no KR_OPTION_COMMAND_LINE
/// fill a kr_train_settings alone just as well.
typedef struct kr_train_command {
    kr_train_settings settings;
    const char *model, *config;
    const char *target; ///< an entry of `targets:` in krait.yaml (kr_machine)
    const char *device; ///< what to compile for and run on (kr_tool_target, kr_tool_device); null: "cpu"
    kr_text_list blocks; ///< shared objects to load before
} kr_train_command;
/// From flags a kr_train_command is filled, from `pretrain:` in krait.yaml and from state.json its settings.
extern const kr_option kr_train_options[];
/// What of the settings is compiled into the update.
kr_optimizer kr_train_optimizer(const kr_train_settings *);

#endif
