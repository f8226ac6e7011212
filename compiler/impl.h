/// What the target of a compilation promises.
#ifndef KRAIT_COMPILER_IMPL_H
#define KRAIT_COMPILER_IMPL_H

#include "ops/ops.h"

/// What the target promises of a node's op; nothing for views, sources, and where it has no implementation: that is an
/// error in the lower pass (compiler/lower.c).
const kr_impl *kr_impl_of(const kr_target *, const kr_node *);

#endif
