/// z = share x + (1 - share) y, for tests/adding.
#include "ops/graph/internal.h"
#include "ops/graph/signature.h"
#include "ops/mix/args.h"

static const kr_signature mix_signature = {
    .in = {[MIX_X] = {"x", "... D"}, [MIX_Y] = {"y", "... D"}},
    .out = {[MIX_Z] = {"z", "... D"}},
};

static void mix_derivative(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *din) {
    const double share = n->attrs.r[MIX_SHARE];
    din[MIX_X] = kr_affine(g, dout[MIX_Z], share, 0);
    din[MIX_Y] = kr_affine(g, dout[MIX_Z], 1 - share, 0);
}

extern const kr_op kr_op_mix;
const kr_op kr_op_mix = {
    .name = "mix",
    .inputs = MIX_INPUTS,
    .outputs = MIX_OUTPUTS,
    .attr = {.r = {[MIX_SHARE] = "share"}},
    .signature = &mix_signature,
    .grad = mix_derivative,
};

kr_value (kr_mix)(kr_graph *g, kr_value x, kr_value y, double share) {
    return kr_append(g, &kr_op_mix, &(kr_attrs){.r = {[MIX_SHARE] = share}}, (kr_value[]){x, y}, MIX_INPUTS);
}
