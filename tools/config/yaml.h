/// A YAML document as a tree.
#ifndef KRAIT_TOOLS_CONFIG_YAML_H
#define KRAIT_TOOLS_CONFIG_YAML_H

#include "tools/cli/options.h"

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

#endif
