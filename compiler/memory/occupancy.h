/// Which addresses of an arena are taken during which steps.
#ifndef KRAIT_COMPILER_MEMORY_OCCUPANCY_H
#define KRAIT_COMPILER_MEMORY_OCCUPANCY_H

#include <stdbool.h>
#include <stddef.h>

/// Addresses [low, high); in a list they are apart from each other and ascend.
typedef struct kr_extent {
    size_t low, high;
} kr_extent;
typedef struct kr_extents {
    kr_extent *list;
    int count, room;
} kr_extents;

/// A binary tree over the steps: node k has the children 2k and 2k + 1, and the leaves are the steps themselves.
typedef struct kr_occupancy {
    int leaves;       ///< a power of two
    kr_extents *whole; ///< by node: taken during all of its steps, where its parent's are not all taken by the same
    kr_extents *some;  ///< by node: taken during any of its steps, those in `whole` of its ancestors left out
} kr_occupancy;

/// Nothing is taken in steps 0 to `steps` - 1. False: no memory, here and below.
bool kr_occupancy_make(kr_occupancy *, int steps);
void kr_occupancy_free(kr_occupancy *);
/// Takes [low, high) during the steps from `first` to `last`.
bool kr_occupancy_take(kr_occupancy *, int first, int last, kr_extent);
/// What is taken in any step from `first` to `last`; `out` is reused, and free(out->list) is the caller's.
bool kr_occupancy_find(const kr_occupancy *, int first, int last, kr_extents *out);

#endif
