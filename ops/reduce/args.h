/// Operands and attributes of the reductions by name.
#ifndef KRAIT_OPS_REDUCE_ARGS_H
#define KRAIT_OPS_REDUCE_ARGS_H

#include "runtime/kernel.h"

enum { REDUCE_AXIS, REDUCE_KEEP };    // attrs.i of sum, mean, max and max_grad
enum { CUMSUM_AXIS, CUMSUM_REVERSE }; // attrs.i
enum { MAX_GRAD_DY, MAX_GRAD_X, MAX_GRAD_Y, MAX_GRAD_INPUTS };

#endif
