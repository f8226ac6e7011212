/// krait.yaml: models, targets and training defaults.
#ifndef KRAIT_TOOLS_CONFIG_CONFIG_H
#define KRAIT_TOOLS_CONFIG_CONFIG_H

#include "models/models.h"
#include "tools/cli/options.h"

/// The krait.yaml of the root of the sources, as text: made by the build from tools/config/builtin.c.in.
extern const char kr_builtin_yaml[];

/// An entry of `targets:` in krait.yaml, by the name that `krait pretrain --target` takes: which machine a run is for.
/// It is not a kr_target, which plans are compiled for and `--device` names.
typedef struct kr_machine {
    int device;        ///< index into "cpu": there is one so far, and nobody reads this; others come by --device
    int64_t threads;   ///< 0: as many as the process may use
    int isa;           ///< index into "auto|base|avx2|avx512"
} kr_machine;

typedef struct kr_config kr_config;
/// Reads `path`; null: ./krait.yaml when it exists, else the file that was built into the program. Everything in it is
/// checked, whether it is used or not.
kr_status kr_config_load(const char *path, kr_config **out);
/// The same from text.
kr_status kr_config_parse(const char *text, size_t bytes, const char *label, kr_config **out);
void kr_config_free(kr_config *);
/// "krait.yaml", "built-in krait.yaml".
const char *kr_config_label(const kr_config *);
/// The model of that name. Names that the file does not have are looked up in the built-in file too.
/// fails KR_BAD_ARGUMENT: unknown name (the message lists the known ones and the nearest).
kr_status kr_config_model(const kr_config *, const char *name, kr_model_config *out);
/// The same for an entry of `targets:`; "local" is there in any case.
kr_status kr_config_target(const kr_config *, const char *name, kr_machine *out);
/// Applies a top-level section ("pretrain") through a table; a section that is not there changes nothing. Texts point
/// into the configuration.
kr_status kr_config_section(const kr_config *, const char *section, const kr_option *table, void *to);
/// Names of the models in the file, in order; null after the last.
const char *kr_config_model_name(const kr_config *, int index);

#endif
