/// What the blocks share: initialisers as the official modules have them (PyTorch defaults), and named linear maps.
#ifndef KRAIT_MODELS_INTERNAL_H
#define KRAIT_MODELS_INTERNAL_H

#include "models/models.h"

#include <math.h>

extern const kr_block_kind kr_block_gated_mlp;

/// U(-a, a) with a = 1 / sqrt(fan_in): PyTorch's default for linear and convolution weights and biases.
static inline double kr_fan_in(int64_t fan_in) { return fan_in > 0 ? 1.0 / sqrt((double)fan_in) : 0; }
static inline kr_init kr_uniform(double a) { return (kr_init){.kind = KR_INIT_UNIFORM, .a = a}; }
/// softplus^-1 of step sizes spread log-uniformly over [dt_min, dt_max].
static inline kr_init kr_dt_bias(const kr_block_config *c) {
    return (kr_init){.kind = KR_INIT_DT_BIAS, .a = c->dt_min, .b = c->dt_max, .c = c->dt_init_floor};
}
static inline double kr_output_scale(const kr_block_config *c) { return kr_block_output_scale(c); }
/// A default for what is not set.
static inline int64_t kr_or(int64_t value, int64_t otherwise) { return value > 0 ? value : otherwise; }
static const kr_init kr_ones __attribute__((unused)) = {.kind = KR_INIT_CONSTANT, .a = 1};

#endif
