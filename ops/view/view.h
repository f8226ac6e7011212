/// What the views and joins lend to each other and to the other families of ops/.
#ifndef KRAIT_OPS_VIEW_VIEW_H
#define KRAIT_OPS_VIEW_VIEW_H

#include "ops/ops.h"

/// For the sum x + y of two values that are zero outside of disjoint ranges of one axis (pads, or concats with zero
/// constants between): the concat of their pieces; else the empty value. -0 stays -0 where the sum would give +0.
kr_value kr_join_of_sum(kr_graph *, kr_value x, kr_value y);
/// The shape that a and b broadcast to by numpy rules; false when they do not.
bool kr_broadcast_shape(const kr_shape *a, const kr_shape *b, kr_shape *out);
/// For shape rules: fails KR_BAD_SHAPE unless 0 <= axis < rank.
kr_status kr_check_axis(const char *op, int64_t axis, const kr_shape *);
/// For builders: resolves an axis that counts from the end when negative. False after an error, which the graph holds.
bool kr_take_axis(kr_graph *, const kr_op *, kr_value, int *axis);

#endif
