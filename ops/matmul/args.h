/// Operands and attributes of matrix products by name.
#ifndef KRAIT_OPS_MATMUL_ARGS_H
#define KRAIT_OPS_MATMUL_ARGS_H

#include "runtime/kernel.h"

enum { MATMUL_TRANSPOSE_A, MATMUL_TRANSPOSE_B, MATMUL_ACTIVATION, MATMUL_PRECISION }; // attrs.i
enum { MATMUL_A, MATMUL_B, MATMUL_BIAS, MATMUL_RESIDUAL, MATMUL_INPUTS };
enum { MATMUL_Y, MATMUL_OUTPUTS };

#endif
