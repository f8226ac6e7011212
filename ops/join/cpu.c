/// Joins on the CPU: blocks of elements copied from any strides to any strides. A piece that its producer has already
/// written in place costs nothing.
#include "ops/cpu/kernels.h"
#include "ops/cpu/strided.h"

enum { BLOCK = 8192 };

/// The slice of `out` that holds `length` entries of `axis` from `start`.
static kr_arg slice_of(const kr_arg *out, int axis, int64_t start, int64_t length) {
    kr_arg a = *out;
    a.shape.dim[axis] = length;
    a.data = (char *)out->data + start * out->stride[axis] * kr_element_size(out->dtype);
    return a;
}

static int same_place(const kr_arg *a, const kr_arg *b) {
    if (a->data != b->data) return 0;
    for (int k = 0; k < a->shape.rank; k++)
        if (a->shape.dim[k] > 1 && a->stride[k] != b->stride[k]) return 0;
    return 1;
}

/// Copies this part's blocks of one piece. `first` is the number of its first block among those of the whole call.
static void copy_piece(const kr_arg *from, const kr_arg *to, int64_t first, int64_t begin, int64_t end) {
    if (same_place(from, to)) return;
    const kr_arg *args[] = {to, from};
    kr_walk w;
    kr_walk_make(&w, args, 2);
    const int64_t lo = begin > first ? (begin - first) * BLOCK : 0;
    const int64_t hi = (end - first) * BLOCK < w.total ? (end - first) * BLOCK : w.total;
    if (lo < hi) kr_walk_copy(&w, 0, 1, lo, hi - lo);
}

static int64_t blocks_of(const kr_arg *a) { return (kr_shape_count(&a->shape) + BLOCK - 1) / BLOCK; }

KR_KERNEL(concat) {
    const int axis = (int)call->attrs->i[0];
    int64_t blocks = 0, begin, end, first = 0, start = 0;
    for (int i = 0; i < call->inputs; i++) blocks += blocks_of(&call->in[i]);
    kr_share(blocks, part, parts, &begin, &end);
    for (int i = 0; i < call->inputs && first < end; i++) {
        const kr_arg *in = &call->in[i];
        const kr_arg to = slice_of(call->out, axis, start, in->shape.dim[axis]);
        const int64_t next = first + blocks_of(in);
        if (next > begin) copy_piece(in, &to, first, begin, end);
        first = next;
        start += in->shape.dim[axis];
    }
}

KR_KERNEL(pad) {
    const int axis = (int)call->attrs->i[0];
    const int64_t before = call->attrs->i[1], after = call->attrs->i[2], whole = call->in->shape.dim[axis];
    const uint64_t zero = 0;
    kr_arg from[3] = {*call->in, *call->in, *call->in}, to[3];
    from[0].shape.dim[axis] = before;
    from[2].shape.dim[axis] = after;
    for (int i = 0; i < 3; i += 2) { // nothing but zeros: one of them, with stride 0
        from[i].data = (void *)&zero;
        memset(from[i].stride, 0, sizeof from[i].stride);
    }
    to[0] = slice_of(call->out, axis, 0, before);
    to[1] = slice_of(call->out, axis, before, whole);
    to[2] = slice_of(call->out, axis, before + whole, after);
    int64_t begin, end, first = 0;
    kr_share(blocks_of(&from[0]) + blocks_of(&from[1]) + blocks_of(&from[2]), part, parts, &begin, &end);
    for (int i = 0; i < 3; i++) {
        copy_piece(&from[i], &to[i], first, begin, end);
        first += blocks_of(&from[i]);
    }
}

KR_KERNEL(copy) {
    int64_t begin, end;
    kr_share(blocks_of(call->in), part, parts, &begin, &end);
    copy_piece(call->in, call->out, 0, begin, end);
}
