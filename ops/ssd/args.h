/// Operands and attributes of ssd_scan by name.
#ifndef KRAIT_OPS_SSD_ARGS_H
#define KRAIT_OPS_SSD_ARGS_H

#include "runtime/kernel.h"

enum {
    SSD_GROUPS,
    SSD_CHUNK,
    SSD_DT_SOFTPLUS,
    SSD_SAVED_SIZE,
    SSD_ZERO_START
};                               // attrs.i; the last of the gradient op only
enum { SSD_DT_MIN, SSD_DT_MAX }; // attrs.r
enum { SSD_X, SSD_DT, SSD_A, SSD_B, SSD_C, SSD_D, SSD_Z, SSD_DT_BIAS, SSD_H0, SSD_RESET, SSD_INPUTS };
enum { SSD_Y, SSD_LAST, SSD_SAVED, SSD_OUTPUTS };
// The gradient op: upstream gradients, then the forward inputs without h0 (the saved states hold it).
enum {
    SSD_GRAD_DY,
    SSD_GRAD_DLAST,
    SSD_GRAD_FORWARD,
    SSD_GRAD_RESET = SSD_GRAD_FORWARD + SSD_H0,
    SSD_GRAD_SAVED,
    SSD_GRAD_INPUTS
};
enum {
    SSD_GRAD_DX,
    SSD_GRAD_DDT,
    SSD_GRAD_DA,
    SSD_GRAD_DB,
    SSD_GRAD_DC,
    SSD_GRAD_DD,
    SSD_GRAD_DZ,
    SSD_GRAD_DDT_BIAS,
    SSD_GRAD_DH0,
    SSD_GRAD_OUTPUTS
};

#endif
