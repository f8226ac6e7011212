/// The buffers of a plan.
#ifndef KRAIT_COMPILER_MEMORY_MEMORY_H
#define KRAIT_COMPILER_MEMORY_MEMORY_H

#include "runtime/runtime.h"

typedef struct kr_buffer {
    kr_slot_kind kind;
    int slot;                ///< of the plan; persistent and IO kinds have one each
    size_t bytes, offset;
    int first, last;         ///< nodes (by index in the graph) between which it is alive
} kr_buffer;

typedef struct kr_memory {
    kr_buffer *buffers;
    int count;
    int *of_value;           ///< buffer index by root value id; -1: none
    int *work;               ///< buffer index of each node's workspace; -1: none
} kr_memory;

#endif
