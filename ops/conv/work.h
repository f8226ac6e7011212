/// What the rule of causal_conv1d and its kernels must agree on.
#ifndef KRAIT_OPS_CONV_WORK_H
#define KRAIT_OPS_CONV_WORK_H

#include "runtime/kernel.h"

enum {
    KR_CONV_LANES = 16,
    KR_CONV_SUMS = 16, ///< most partial sums of dweight and dbias; each covers a fixed range of batch rows
};

/// Channels rounded up to whole vectors: the row length of everything in the workspace.
static inline int64_t kr_conv_width(int64_t channels) {
    return (channels + KR_CONV_LANES - 1) / KR_CONV_LANES * KR_CONV_LANES;
}

static inline int64_t kr_conv_sums(int64_t batch) { return batch < KR_CONV_SUMS ? batch : KR_CONV_SUMS; }

// Workspace: the weights as rows, [taps, width], the last tap (which meets the token itself) in row 0; the backward
// pass has one such block of sums more per partial sum, with the bias as row `taps`.
static inline int64_t kr_conv_forward_floats(int64_t channels, int64_t taps) { return taps * kr_conv_width(channels); }
static inline int64_t kr_conv_backward_floats(int64_t batch, int64_t channels, int64_t taps) {
    return (taps + kr_conv_sums(batch) * (taps + 1)) * kr_conv_width(channels);
}

#endif
