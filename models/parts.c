/// Parts of blocks: named linear maps, the convolution, and what depends on the depth of the model.
#include "models/internal.h"

double kr_block_output_scale(const kr_block_config *c) { return c->n_layer > 0 ? 1.0 / sqrt((double)c->n_layer) : 1; }

kr_init kr_dt_bias(kr_graph *g, const kr_step_config *s) {
    if (s->dt_max < s->dt_min) {
        kr_status_record(KR_BAD_ARGUMENT, __FILE__, __LINE__, "block: dt_max is %g, want at least dt_min, %g",
                         s->dt_max, s->dt_min);
        kr_graph_fail(g, KR_BAD_ARGUMENT);
    }
    return (kr_init){.kind = KR_INIT_DT_BIAS, .a = s->dt_min, .b = s->dt_max, .c = s->dt_init_floor};
}

kr_value kr_block_linear(kr_graph *g, const kr_block_config *c, const char *name, kr_value x, int64_t out, bool bias,
                         double scale) {
    const kr_shape shape = kr_value_shape(g, x);
    if (shape.rank < 1) return KR_NONE; // the graph has failed before
    const int64_t in = shape.dim[shape.rank - 1];
    char weight_name[96], bias_name[96];
    snprintf(weight_name, sizeof weight_name, "%s.weight", name);
    snprintf(bias_name, sizeof bias_name, "%s.bias", name);
    const kr_value w = kr_param(g, weight_name, KR_SHAPE(out, in), kr_uniform(scale * kr_fan_in(in)), KR_PARAM_DECAY);
    const kr_init start = c->zero_bias ? (kr_init){.kind = KR_INIT_ZEROS} : kr_uniform(kr_fan_in(in));
    return kr_linear(g, x, w, bias ? kr_param(g, bias_name, KR_SHAPE(out), start, 0) : KR_NONE);
}

int64_t kr_block_count(kr_graph *g, const char *whole_name, int64_t whole, const char *size_name, int64_t size) {
    if (size > 0 && whole >= size && whole % size == 0) return whole / size;
    kr_status_record(KR_BAD_ARGUMENT, __FILE__, __LINE__, "block: %s is %lld, which does not divide %s, %lld",
                     size_name, (long long)size, whole_name, (long long)whole);
    kr_graph_fail(g, KR_BAD_ARGUMENT);
    return 1;
}

kr_value kr_block_conv(kr_graph *g, const kr_block_config *c, kr_value x, int64_t taps, bool bias, bool silu,
                       kr_value state, kr_value *next) {
    const kr_shape shape = kr_value_shape(g, x);
    if (shape.rank != 3) return KR_NONE; // the graph has failed before
    const int64_t C = shape.dim[2];
    const kr_init start = kr_uniform(kr_fan_in(taps));
    const kr_value w = kr_param(g, "conv1d.weight", KR_SHAPE(C, 1, taps), start, KR_PARAM_DECAY);
    const kr_value b = bias ? kr_param(g, "conv1d.bias", KR_SHAPE(C), start, 0) : KR_NONE;
    return kr_causal_conv1d(g, x, kr_reshape(g, w, KR_SHAPE(C, taps)), b, state, c->reset, silu, next);
}
