/// Where every value's elements are.
#ifndef KRAIT_COMPILER_MEMORY_PLACEMENT_H
#define KRAIT_COMPILER_MEMORY_PLACEMENT_H

#include "compiler/uses.h"

/// A root buffer, named by the value that owns it, and a layout inside it.
typedef struct kr_placement {
    uint32_t root;      ///< value id whose buffer holds it; 0: the value is placed nowhere (dead)
    kr_layout layout;   ///< offset and strides in elements of the value's dtype
} kr_placement;

/// Placements of all values, by id.
kr_status kr_placements_find(const kr_target *, const kr_uses *, kr_placement *);
/// Bytes from the first to the last element of the value that owns a buffer: more than its elements where rows are
/// padded.
size_t kr_placement_bytes(const kr_graph *, const kr_placement *, uint32_t root);

#endif
