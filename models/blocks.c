/// The table of blocks: Krait's own, and those that a program registers.
#include "models/keys.h"

#include <string.h>

#define BLOCKS(X) \
    X(mamba1) X(mamba2) X(mamba3) X(attention) X(gated_mlp) X(tinymamba)

#define X(name) extern const kr_block_kind kr_block_##name;
BLOCKS(X)
#undef X
#define X(name) &kr_block_##name,
const kr_block_kind *const kr_block_kinds[] = {BLOCKS(X)};
#undef X
const int kr_block_kind_count = sizeof kr_block_kinds / sizeof *kr_block_kinds;

static const kr_block_kind *registered[64];
static int registered_count;
_Static_assert(sizeof kr_block_kinds + sizeof registered <= KR_BLOCK_KINDS_MAX * sizeof *registered, "room for all");

const kr_block_kind *kr_block_at(int index) {
    if (index < 0 || index >= kr_block_kind_count + registered_count) return NULL;
    return index < kr_block_kind_count ? kr_block_kinds[index] : registered[index - kr_block_kind_count];
}

const kr_block_kind *kr_block_find(const char *name) {
    for (int i = 0; kr_block_at(i); i++) {
        const kr_block_kind *k = kr_block_at(i);
        if (!strcmp(name, k->name) || (k->official && !strcmp(name, k->official))) return k;
    }
    return NULL;
}

/// Has `b` a section or key with the name of the section of `a`?
static bool section_taken(const kr_block_kind *a, const kr_block_kind *b) {
    return a->section && (kr_key_find(b, a->section) || (b->section && !strcmp(a->section, b->section)));
}

kr_status kr_block_register(const kr_block_kind *kind) {
    KR_FAIL_IF(!kind || !kind->build || !kind->name || !kind->name[0] || strlen(kind->name) > 31 ||
                   strchr(kind->name, ','),
               KR_BAD_ARGUMENT, "block: a kind has a builder and a name of 1 to 31 characters without commas");
    if (kr_block_find(kind->name) == kind) return KR_OK;
    KR_FAIL_IF(kr_block_find(kind->name) || (kind->official && kr_block_find(kind->official)), KR_BAD_ARGUMENT,
               "block: there is a block \"%s\" already", kr_block_find(kind->name) ? kind->name : kind->official);
    KR_TRY(kr_keys_check(kind));
    for (int i = 0; kr_block_at(i); i++) { // in krait.yaml sections stand among the keys of all blocks
        const kr_block_kind *other = kr_block_at(i);
        KR_FAIL_IF(section_taken(kind, other) || section_taken(other, kind), KR_BAD_ARGUMENT,
                   "block: \"%s\" and \"%s\" have a section and a key, or two sections, of the same name", kind->name,
                   other->name);
    }
    KR_FAIL_IF(registered_count == (int)(sizeof registered / sizeof *registered), KR_UNSUPPORTED,
               "block: \"%s\" is one too many, at most %zu can be registered", kind->name,
               sizeof registered / sizeof *registered);
    registered[registered_count++] = kind;
    return KR_OK;
}
