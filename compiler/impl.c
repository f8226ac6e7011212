#include "compiler/impl.h"

const kr_impl *kr_impl_of(const kr_target *target, const kr_node *n) {
    static const kr_impl nothing = {0};
    const kr_impl *impl = kr_op_impl(n->op, target);
    return impl ? impl : &nothing;
}
