/// What can be said of strides alone: packed, rows, and what an op reads in place.
#ifndef KRAIT_COMPILER_STRIDES_H
#define KRAIT_COMPILER_STRIDES_H

#include "ops/ops.h"

/// The packed layout of a shape.
kr_layout kr_layout_packed(const kr_shape *);
bool kr_layout_contiguous(const kr_layout *);
/// One pitch for all leading axes and a contiguous last axis.
bool kr_layout_rows(const kr_layout *);
/// Bit i of an implementation's mask of inputs or outputs; the last bit stands for all from 31 on.
bool kr_mask_has(uint32_t mask, int i);
/// Does the target read input i of a node in this layout?
bool kr_layout_accepted(const kr_target *, const kr_node *, int i, const kr_layout *);

#endif
