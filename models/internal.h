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
/// Output projections start smaller by sqrt(n_layer) (GPT-2's rule as the official language model applies it).
static inline double kr_output_scale(const kr_block_config *c) { return c->n_layer > 0 ? 1.0 / sqrt((double)c->n_layer) : 1; }
/// A default for what is not set.
static inline int64_t kr_or(int64_t value, int64_t otherwise) { return value > 0 ? value : otherwise; }
static const kr_init kr_ones __attribute__((unused)) = {.kind = KR_INIT_CONSTANT, .a = 1};
/// Fails the graph, naming both keys, unless `divisor` divides `whole`.
bool kr_block_divides(kr_graph *, const char *divisor_name, int64_t divisor, const char *whole_name, int64_t whole);
/// Depthwise causal convolution with "conv1d.weight" [C, 1, taps] and, if asked for, "conv1d.bias" [C]; x [B, L, C].
kr_value kr_block_conv(kr_graph *, const kr_block_config *, kr_value x, int64_t taps, bool bias, bool silu, kr_value state,
                       kr_value *next);
/// "<name>.weight" [out, in] and, when the configuration has biases, "<name>.bias" [out]. x [..., in] to [..., out].
/// The weight starts uniform by fan-in, times `scale`.
kr_value kr_block_linear(kr_graph *, const kr_block_config *, const char *name, kr_value x, int64_t out, double scale);

#endif
