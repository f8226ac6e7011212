/// What op.c and cpu.c agree on: places of attributes and inputs, and the number of partial sums.
#ifndef KRAIT_OPS_NORM_ARGS_H
#define KRAIT_OPS_NORM_ARGS_H

#include "runtime/kernel.h"

enum { NORM_GROUP = 0, NORM_BEFORE_GATE = 1 }; // attrs.i of rms_norm
enum { NORM_EPS = 0 };                         // attrs.r of both
enum { RMS_X, RMS_RESIDUAL, RMS_Z, RMS_WEIGHT, RMS_BIAS };
enum { RMSG_DY, RMSG_DSTREAM, RMSG_R, RMSG_Z, RMSG_WEIGHT, RMSG_BIAS, RMSG_RHO, RMSG_DRHO, RMSG_INPUTS };
enum { LAYER_X, LAYER_RESIDUAL, LAYER_WEIGHT, LAYER_BIAS };
enum {
    LAYERG_DY,
    LAYERG_DSTREAM,
    LAYERG_R,
    LAYERG_WEIGHT,
    LAYERG_MEAN,
    LAYERG_RHO,
    LAYERG_DMEAN,
    LAYERG_DRHO,
    LAYERG_INPUTS
};

/// dweight and dbias are summed over this many runs of rows, then over the runs: fixed by the shape alone.
static inline int64_t norm_partials(int64_t rows) {
    const int64_t runs = (rows + 15) / 16;
    return runs < 32 ? runs : 32;
}

#endif
