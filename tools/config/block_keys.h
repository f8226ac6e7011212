/// Keys of blocks in krait.yaml.
#ifndef KRAIT_TOOLS_CONFIG_BLOCK_KEYS_H
#define KRAIT_TOOLS_CONFIG_BLOCK_KEYS_H

#include "models/models.h"
#include "tools/config/yaml.h"

/// Takes the keys of blocks out of a model's map: those of the blocks of its layers and, as ever, those of other known
/// blocks too. Members that are in `of_model` are left alone.
/// fails KR_BAD_ARGUMENT "label:line: ...": a key that no block has (names the nearest, and its block), a wrong value
kr_status kr_block_keys_apply(const kr_yaml *model, const char *label, const char *what, const kr_option *of_model,
                              kr_model_config *);

/// Lists a block's keys: `krait help BLOCK`.
void kr_block_keys_print(const kr_block_kind *, FILE *);

#endif
