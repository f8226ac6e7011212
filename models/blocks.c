/// The table of blocks, and what they share.
#include "models/internal.h"

#include <string.h>
#include <strings.h>

#define BLOCKS(X) X(mamba1)

#define X(name) extern const kr_block_kind kr_block_##name;
BLOCKS(X)
#undef X
#define X(name) &kr_block_##name,
const kr_block_kind *const kr_block_kinds[] = {BLOCKS(X)};
#undef X
const int kr_block_kind_count = sizeof kr_block_kinds / sizeof *kr_block_kinds;

const kr_block_kind *kr_block_find(const char *name) {
    for (int i = 0; i < kr_block_kind_count; i++) {
        const kr_block_kind *k = kr_block_kinds[i];
        if (!strcmp(name, k->name) || (k->official && !strcmp(name, k->official))) return k;
    }
    return NULL;
}

kr_block_config kr_block_defaults(void) {
    return (kr_block_config){.d_state = 16, .d_conv = 4, .expand = 2, .conv_bias = true, .dt_min = 1e-3, .dt_max = 0.1,
                             .dt_init_floor = 1e-4, .dt_scale = 1};
}

kr_value kr_block_linear(kr_graph *g, const kr_block_config *c, const char *name, kr_value x, int64_t out, double scale) {
    const kr_shape shape = kr_value_shape(g, x);
    if (shape.rank < 1) return KR_NONE; // the graph has failed before
    const int64_t in = shape.dim[shape.rank - 1];
    char weight[96], bias[96];
    snprintf(weight, sizeof weight, "%s.weight", name);
    snprintf(bias, sizeof bias, "%s.bias", name);
    const kr_value w = kr_param(g, weight, KR_SHAPE(out, in), kr_uniform(scale * kr_fan_in(in)), KR_PARAM_DECAY);
    const kr_init start = c->zero_bias ? (kr_init){.kind = KR_INIT_ZEROS} : kr_uniform(kr_fan_in(in));
    return kr_linear(g, x, w, c->bias ? kr_param(g, bias, KR_SHAPE(out), start, 0) : KR_NONE);
}
