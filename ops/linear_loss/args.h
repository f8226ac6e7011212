/// Operands and attributes of the fused loss by name.
#ifndef KRAIT_OPS_LINEAR_LOSS_ARGS_H
#define KRAIT_OPS_LINEAR_LOSS_ARGS_H

#include "runtime/kernel.h"

enum { LINEAR_LOSS_VALID_VOCAB, LINEAR_LOSS_PRECISION, LINEAR_LOSS_ROWS }; // attrs.i; rows of logits at a time
enum { LINEAR_LOSS_X, LINEAR_LOSS_WEIGHT, LINEAR_LOSS_TARGETS, LINEAR_LOSS_INPUTS };
enum {
    LINEAR_LOSS_LOSS,
    LINEAR_LOSS_PER_TOKEN,
    LINEAR_LOSS_LSE,
    LINEAR_LOSS_DX,
    LINEAR_LOSS_DWEIGHT,
    LINEAR_LOSS_OUTPUTS
};

#endif
