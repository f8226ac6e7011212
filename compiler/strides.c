#include "compiler/strides.h"

#include "compiler/impl.h"

kr_layout kr_layout_packed(const kr_shape *shape) {
    kr_layout l = {.shape = *shape};
    int64_t step = 1;
    for (int k = shape->rank - 1; k >= 0; k--) {
        l.stride[k] = step;
        step *= shape->dim[k];
    }
    return l;
}

bool kr_layout_contiguous(const kr_layout *l) {
    int64_t step = 1;
    if (kr_shape_count(&l->shape) == 0) return true;
    for (int k = l->shape.rank - 1; k >= 0; k--) {
        if (l->shape.dim[k] != 1 && l->stride[k] != step) return false;
        step *= l->shape.dim[k];
    }
    return true;
}

bool kr_layout_rows(const kr_layout *l) {
    const int last = l->shape.rank - 1;
    if (last < 0 || kr_layout_contiguous(l)) return true;
    if (l->shape.dim[last] != 1 && l->stride[last] != 1) return false;
    int64_t step = 0;
    for (int k = last - 1; k >= 0; k--) {
        if (l->shape.dim[k] == 1) continue;
        if (step && l->stride[k] != step) return false;
        if (l->stride[k] < l->shape.dim[last]) return false; // rows that overlap or repeat
        step = l->stride[k] * l->shape.dim[k];
    }
    return true;
}

bool kr_mask_has(uint32_t mask, int i) { return mask >> (i < 31 ? i : 31) & 1; }

bool kr_layout_accepted(const kr_target *t, const kr_node *n, int i, const kr_layout *l) {
    if (kr_layout_contiguous(l)) return true;
    const kr_impl *impl = kr_impl_of(t, n);
    return kr_mask_has(impl->strided_in, i) || (kr_mask_has(impl->rows_in, i) && kr_layout_rows(l));
}
