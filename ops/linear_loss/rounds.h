/// What the fused loss and its kernels must agree on: how many rows of logits there are at a time.
#ifndef KRAIT_OPS_LINEAR_LOSS_ROUNDS_H
#define KRAIT_OPS_LINEAR_LOSS_ROUNDS_H

#include <stdint.h>

enum {
    KR_LINEAR_LOSS_CACHED = 600000, ///< logits of a round that the caches of two workers hold
    KR_LINEAR_LOSS_ENOUGH = 252,    ///< rows that make good for reading the weights
    KR_LINEAR_LOSS_STEP = 12,       ///< rows of a round are multiples: those of one tile of a product
};

/// Begins the workspace; the losses of a round's rows and its logits follow.
typedef struct kr_linear_loss_head {
    double loss;     ///< sum over the rounds so far
    int64_t counted; ///< targets that are not ignored, of all rounds
    char rest[48];
} kr_linear_loss_head;

static inline int64_t kr_linear_loss_step(int64_t rows) {
    return (rows + KR_LINEAR_LOSS_STEP - 1) / KR_LINEAR_LOSS_STEP * KR_LINEAR_LOSS_STEP;
}

/// Rows of a round of `rows` in all, of at most `logits` in memory: as few rounds as the bounds allow, and all of about
/// the same size.
static inline int64_t kr_linear_loss_rows(int64_t rows, int64_t vocabulary, int64_t logits) {
    const int64_t width = vocabulary ? vocabulary : 1;
    int64_t most = KR_LINEAR_LOSS_CACHED / width;
    if (most < KR_LINEAR_LOSS_ENOUGH) most = KR_LINEAR_LOSS_ENOUGH;
    if (most > logits / width) most = logits / width;
    most = most < KR_LINEAR_LOSS_STEP ? KR_LINEAR_LOSS_STEP : most / KR_LINEAR_LOSS_STEP * KR_LINEAR_LOSS_STEP;
    const int64_t rounds = (rows + most - 1) / most;
    return rounds < 2 ? rows : kr_linear_loss_step((rows + rounds - 1) / rounds);
}

/// At least one, so that what has no rows has a loss too.
static inline int64_t kr_linear_loss_rounds(int64_t rows, int64_t each) {
    return each > 0 && rows > each ? (rows + each - 1) / each : 1;
}

/// Floats from one row of logits to the next.
static inline int64_t kr_linear_loss_pitch(int64_t vocabulary) { return (vocabulary + 15) / 16 * 16; }

#endif
