/// Operands and attributes of the causal convolution by name.
#ifndef KRAIT_OPS_CONV_ARGS_H
#define KRAIT_OPS_CONV_ARGS_H

#include "runtime/kernel.h"

enum { CONV_SILU }; // attrs.i
enum { CONV_X, CONV_WEIGHT, CONV_BIAS, CONV_STATE, CONV_RESET, CONV_INPUTS };
enum { CONV_Y, CONV_NEXT, CONV_OUTPUTS };
// The gradient op: upstream gradients, then the forward inputs.
enum { CONV_GRAD_DY, CONV_GRAD_DNEXT, CONV_GRAD_FORWARD, CONV_GRAD_INPUTS = CONV_GRAD_FORWARD + CONV_INPUTS };
enum { CONV_GRAD_DX, CONV_GRAD_DWEIGHT, CONV_GRAD_DBIAS, CONV_GRAD_DSTATE, CONV_GRAD_OUTPUTS };

#endif
