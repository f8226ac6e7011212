/// What the op and its kernels must agree on.
#ifndef KRAIT_OPS_TRAIN_BLOCKS_H
#define KRAIT_OPS_TRAIN_BLOCKS_H

#include <stdint.h>

enum { KR_NORM_BLOCK = 16384 }; ///< elements whose squares are summed in f32 lanes before the sum goes on in double

static inline int64_t kr_norm_blocks(int64_t elements) { return (elements + KR_NORM_BLOCK - 1) / KR_NORM_BLOCK; }

#endif
