/// Values of blocks' keys: from text to the field, and whether a table of keys is in order.
#ifndef KRAIT_MODELS_KEYS_H
#define KRAIT_MODELS_KEYS_H

#include "models/models.h"

/// Room for the value of any key.
typedef union kr_key_value {
    int64_t integer;
    double real, range[2];
    bool truth;
    int choice;
} kr_key_value;

/// Reads `text` into the field at `to`, or the default where text is null. `spelling` is how messages call the key.
/// fails KR_BAD_ARGUMENT: not a value of this type, out of range
kr_status kr_key_parse(const kr_key *, const char *spelling, const char *text, void *to);
/// What a key is called in kr_settings: with its section, if it stands in one. Gives back text.
const char *kr_key_name(const kr_block_kind *, const kr_key *, char text[64]);
/// The kind's key of that name (without section), or null.
const kr_key *kr_key_find(const kr_block_kind *, const char *name);
/// Is the kind's table in order? For kinds that a program registers.
kr_status kr_keys_check(const kr_block_kind *);
/// Does every setting belong to a known kind? The message lists the keys of `own` kinds.
kr_status kr_settings_check(const kr_settings *, const kr_block_kind *const *kinds, int own, int all);
/// "d_state, d_conv, expand"; cut where the text is full. Gives back text.
const char *kr_keys_list(const kr_block_kind *, char *text, size_t bytes);

#endif
