/// Operands and attributes of the norms by name, and the number of partial sums.
#ifndef KRAIT_OPS_NORM_ARGS_H
#define KRAIT_OPS_NORM_ARGS_H

#include "runtime/kernel.h"

enum { NORM_GROUP = 0, NORM_BEFORE_GATE = 1 }; // attrs.i of rms_norm
enum { NORM_EPS = 0 };                         // attrs.r of both

enum { RMS_X, RMS_RESIDUAL, RMS_Z, RMS_WEIGHT, RMS_BIAS, RMS_INPUTS };
enum { RMS_Y, RMS_STREAM, RMS_RHO, RMS_OUTPUTS };
enum {
    RMS_GRAD_DY,
    RMS_GRAD_DSTREAM,
    RMS_GRAD_R,
    RMS_GRAD_Z,
    RMS_GRAD_WEIGHT,
    RMS_GRAD_BIAS,
    RMS_GRAD_RHO,
    RMS_GRAD_DRHO,
    RMS_GRAD_INPUTS
};
enum { RMS_GRAD_DX, RMS_GRAD_DZ, RMS_GRAD_DWEIGHT, RMS_GRAD_DBIAS, RMS_GRAD_OUTPUTS };

enum { LAYER_X, LAYER_RESIDUAL, LAYER_WEIGHT, LAYER_BIAS, LAYER_INPUTS };
enum { LAYER_Y, LAYER_STREAM, LAYER_MEAN, LAYER_RHO, LAYER_OUTPUTS };
enum {
    LAYER_GRAD_DY,
    LAYER_GRAD_DSTREAM,
    LAYER_GRAD_R,
    LAYER_GRAD_WEIGHT,
    LAYER_GRAD_MEAN,
    LAYER_GRAD_RHO,
    LAYER_GRAD_DMEAN,
    LAYER_GRAD_DRHO,
    LAYER_GRAD_INPUTS
};
enum { LAYER_GRAD_DX, LAYER_GRAD_DWEIGHT, LAYER_GRAD_DBIAS, LAYER_GRAD_OUTPUTS };

/// dweight and dbias are summed over this many runs of rows, then over the runs: fixed by the shape alone.
static inline int64_t norm_partials(int64_t rows) {
    const int64_t runs = (rows + 15) / 16;
    return runs < 32 ? runs : 32;
}

#endif
