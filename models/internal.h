/// What the blocks share: initialisers as the official modules have them (PyTorch defaults), and keys of step sizes.
#ifndef KRAIT_MODELS_INTERNAL_H
#define KRAIT_MODELS_INTERNAL_H

#include "models/models.h"

#include <math.h>

/// U(-a, a) with a = 1 / sqrt(fan_in): PyTorch's default for linear and convolution weights and biases.
static inline double kr_fan_in(int64_t fan_in) { return fan_in > 0 ? 1.0 / sqrt((double)fan_in) : 0; }
static inline kr_init kr_uniform(double a) { return (kr_init){.kind = KR_INIT_UNIFORM, .a = a}; }
static const kr_init kr_ones __attribute__((unused)) = {.kind = KR_INIT_CONSTANT, .a = 1};

/// Initial step sizes of the Mamba family, a part of the blocks' structs, and its rows in their tables.
typedef struct kr_step_config {
    double dt_min, dt_max, dt_init_floor;
} kr_step_config;
// clang-format off
#define KR_STEP_KEYS(config, field)                                                                         \
    {"dt_min", KR_KEY_IS_REAL, offsetof(config, field.dt_min), 1e-3, 1e-12, 1e6, 0, "least initial step"},  \
    {"dt_max", KR_KEY_IS_REAL, offsetof(config, field.dt_max), 0.1, 1e-12, 1e6, 0, "largest initial step"}, \
    {"dt_init_floor", KR_KEY_IS_REAL, offsetof(config, field.dt_init_floor), 1e-4, 0, 1e6, 0,               \
     "floor of the initial step"}
// clang-format on
/// softplus^-1 of step sizes spread log-uniformly over [dt_min, dt_max]. The graph fails where dt_max is less.
kr_init kr_dt_bias(kr_graph *, const kr_step_config *);

#endif
