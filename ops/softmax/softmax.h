/// What the loss and its kernels must agree on.
#ifndef KRAIT_OPS_SOFTMAX_SOFTMAX_H
#define KRAIT_OPS_SOFTMAX_SOFTMAX_H

#include <stdint.h>

enum { KR_LOSS_BLOCK = 64 }; ///< rows whose losses make one partial sum

/// Loss of a block of rows, and how many of its targets count.
typedef struct kr_loss_partial {
    double loss, count;
} kr_loss_partial;

static inline int64_t kr_loss_blocks(int64_t rows) { return (rows + KR_LOSS_BLOCK - 1) / KR_LOSS_BLOCK; }

#endif
