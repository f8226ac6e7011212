/// What nodes cost, for plans that trade time against memory and for the figures of a plan.
#ifndef KRAIT_COMPILER_COST_H
#define KRAIT_COMPILER_COST_H

#include "ops/ops.h"

/// FLOPs and bytes of memory traffic of a node as its op states them, for these shapes of its inputs and outputs (rank
/// -1: an output that nobody reads); else every element once.
void kr_node_cost(const kr_graph *, const kr_node *, const kr_shape *in, const kr_shape *out, double *flops,
                  double *bytes);
/// Estimated time of a node at the target's rates.
double kr_node_ns(const kr_target *, const kr_graph *, const kr_node *);

#endif
