/// krait.yaml: models, targets and training defaults.
#ifndef KRAIT_TOOLS_CONFIG_H
#define KRAIT_TOOLS_CONFIG_H

#include "models/models.h"
#include "tools/tools.h"

// ---------------------------------------------------------------------------------------------------------------
// A YAML document as a tree (tools/yaml.c)

typedef enum kr_yaml_kind { KR_YAML_SCALAR = 0, KR_YAML_LIST, KR_YAML_MAP } kr_yaml_kind;

/// A node. Lines count from 1.
typedef struct kr_yaml {
    kr_yaml_kind kind;
    int line;
    bool quoted;           ///< scalars: 'x' or "x", so never null, true or a number
    const char *text;      ///< scalars
    const char *key;       ///< members of a map
    int key_line;
    struct kr_yaml *first; ///< members of a list or map, in the order of the file
    struct kr_yaml *next;  ///< the member after this one
} kr_yaml;

/// Parses one document into `pool`. `label` names it in messages ("krait.yaml:12: ...").
/// fails KR_BAD_FILE with the line: syntax, duplicate keys, anchors, aliases, tags, several documents, keys that are
/// not plain text, too deep, too large (so a file cannot grow by expansion)
kr_status kr_yaml_parse(const char *text, size_t bytes, const char *label, kr_pool *pool, kr_yaml **out);
/// Member of a map by key ('-' and '_' are the same), or null.
const kr_yaml *kr_yaml_find(const kr_yaml *map, const char *key);
/// fails KR_BAD_ARGUMENT when `node`, which messages call `what`, is no map.
kr_status kr_yaml_want_map(const kr_yaml *node, const char *label, const char *what);
/// Sets the field of `to` that the row says from one member of a map.
kr_status kr_yaml_set(const kr_yaml *member, const char *label, const char *what, const kr_option *row, void *to);
/// Sets the fields of `to` from a map through an option table.
/// fails KR_BAD_ARGUMENT "label:line: ...": unknown key (names the nearest), wrong type, out of range.
kr_status kr_yaml_apply(const kr_yaml *map, const char *label, const char *what, const kr_option *table, void *to);

// ---------------------------------------------------------------------------------------------------------------
// The configuration (tools/config.c)

/// The krait.yaml of the root of the sources, as text: made by the build from tools/builtin.c.in.
extern const char kr_builtin_yaml[];

/// Where a job runs.
typedef struct kr_machine {
    int device;        ///< index into "cpu"
    int64_t threads;   ///< 0: as many as the process may use
    int isa;           ///< index into "auto|base|avx2|avx512"
} kr_machine;

/// Takes the keys of blocks out of a model's map: those of the blocks of its layers and, as ever, those of other known
/// blocks too. Members that are in `of_model` are left alone. (tools/block_keys.c)
/// fails KR_BAD_ARGUMENT "label:line: ...": a key that no block has (names the nearest, and its block), a wrong value
kr_status kr_block_keys_apply(const kr_yaml *model, const char *label, const char *what, const kr_option *of_model,
                              kr_model_config *);

/// Lists a block's keys: `krait help BLOCK`.
void kr_block_keys_print(const kr_block_kind *, FILE *);

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
kr_status kr_config_target(const kr_config *, const char *name, kr_machine *out);
/// Applies a top-level section ("pretrain") through a table; a section that is not there changes nothing. Texts point
/// into the configuration.
kr_status kr_config_section(const kr_config *, const char *section, const kr_option *table, void *to);
/// Names of the models in the file, in order; null after the last.
const char *kr_config_model_name(const kr_config *, int index);

#endif
