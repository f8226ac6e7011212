/// The table of blocks, and what they share.
#include "models/internal.h"

#include <string.h>
#include <strings.h>

#define BLOCKS(X) X(mamba1) X(mamba2) X(mamba3) X(attention) X(gated_mlp) X(tinymamba)

#define X(name) extern const kr_block_kind kr_block_##name;
BLOCKS(X)
#undef X
#define X(name) &kr_block_##name,
const kr_block_kind *const kr_block_kinds[] = {BLOCKS(X)};
#undef X
const int kr_block_kind_count = sizeof kr_block_kinds / sizeof *kr_block_kinds;

static const kr_block_kind *registered[64];
static int registered_count;

const kr_block_kind *kr_block_at(int index) {
    if (index < 0 || index >= kr_block_kind_count + registered_count) return NULL;
    return index < kr_block_kind_count ? kr_block_kinds[index] : registered[index - kr_block_kind_count];
}

const kr_block_kind *kr_block_find(const char *name) {
    for (int i = 0; kr_block_at(i); i++) {
        const kr_block_kind *k = kr_block_at(i);
        if (!strcmp(name, k->name) || (k->official && !strcmp(name, k->official))) return k;
    }
    return NULL;
}

kr_status kr_block_register(const kr_block_kind *kind) {
    KR_FAIL_IF(!kind || !kind->build || !kind->name || !kind->name[0] || strlen(kind->name) > 31 ||
                   strchr(kind->name, ','),
               KR_BAD_ARGUMENT, "block: a kind has a builder and a name of 1 to 31 characters without commas");
    if (kr_block_find(kind->name) == kind) return KR_OK;
    KR_FAIL_IF(kr_block_find(kind->name) || (kind->official && kr_block_find(kind->official)), KR_BAD_ARGUMENT,
               "block: there is a block \"%s\" already", kr_block_find(kind->name) ? kind->name : kind->official);
    KR_FAIL_IF(registered_count == (int)(sizeof registered / sizeof *registered), KR_UNSUPPORTED,
               "block: \"%s\" is one too many, at most %zu can be registered", kind->name,
               sizeof registered / sizeof *registered);
    registered[registered_count++] = kind;
    return KR_OK;
}

double kr_block_output_scale(const kr_block_config *c) { return c->n_layer > 0 ? 1.0 / sqrt((double)c->n_layer) : 1; }

kr_block_config kr_block_defaults(void) {
    return (kr_block_config){.d_conv = 4, .expand = 2, .conv_bias = true, .dt_min = 1e-3, .dt_max = 0.1,
                             .dt_init_floor = 1e-4, .dt_scale = 1};
}

kr_value kr_block_linear(kr_graph *g, const kr_block_config *c, const char *name, kr_value x, int64_t out,
                         double scale) {
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
