/// Blocks with random sizes that are multiples of nothing, for the suites about contracts of blocks.
#ifndef KRAIT_TESTS_BLOCKS_H
#define KRAIT_TESTS_BLOCKS_H

#include "check.h"
#include "models/models.h"

enum { BLOCKS_VARIANTS = 16 };

/// A block with sizes of its own.
typedef struct variant {
    const kr_block_kind *kind;
    kr_settings keys;
    kr_block_config config;
    int64_t batch, chunk; ///< chunk: tokens after which the block's op may begin a new chunk
    bool goal;            ///< has the input "goal" [B, d_model]
    int number;
} variant;

/// Variant `number` of block kr_block_kinds[kind], always the same one. Sets the level of the kernels: the variants
/// use what this machine has, one after another.
variant blocks_draw(int kind, int number);
#define EACH_VARIANT(v)                                             \
    for (int kind_ = 0; kind_ < kr_block_kind_count; kind_++)       \
        for (int number_ = 0; number_ < BLOCKS_VARIANTS; number_++) \
            for (variant v = blocks_draw(kind_, number_), *once_ = &v; once_; once_ = NULL)

/// "mamba2, variant 3", until the next call.
const char *blocks_label(const variant *);
/// Elements of x [B, length, d_model].
int64_t blocks_size(const variant *, int64_t length);

enum { BLOCKS_CARRIES = 1, BLOCKS_RESET = 2, BLOCKS_LOSS = 4 };
/// Plan of x [B, L, d_model] to "y", with the inputs "goal" (when the variant has one) and "reset" (BLOCKS_RESET).
/// BLOCKS_CARRIES: state lives on, caches hold `capacity` tokens. BLOCKS_LOSS: gradients of "loss" = sum y * weight.
kr_plan *blocks_plan(const variant *, int64_t length, int64_t capacity, unsigned flags);

/// Where plans run, and the goal [B, d_model] that they are given.
typedef struct place {
    kr_device *device;
    kr_session *session;
    float *goal;
} place;
place blocks_open(const variant *, int threads);
void blocks_close(place);

/// n standard normal numbers of that stream; free() them.
float *blocks_random(int64_t n, uint64_t stream);
/// Largest difference as a share of the largest element of b; infinite when an element of a is not finite.
double blocks_worst(const float *a, const float *b, int64_t n);

#endif
