/// Hand-written plans for the tests of the runtime: slots and operands in one line each.
#ifndef KRAIT_TESTS_PLANS_H
#define KRAIT_TESTS_PLANS_H

#include "runtime/runtime.h"

#include <criterion/criterion.h>

#define must(call) cr_assert_eq((call), KR_OK, "%s: %s", #call, kr_status_message())

static inline int add_slot(kr_plan *plan, kr_slot_kind kind, const char *name, kr_dtype dtype, kr_shape shape) {
    const kr_slot slot = {
        .kind = kind, .name = name, .dtype = dtype, .shape = shape, .bytes = kr_tensor_bytes(dtype, &shape)};
    const int index = kr_plan_add_slot(plan, &slot);
    cr_assert_geq(index, 0, "%s", kr_status_message());
    return index;
}

static inline int add_output(kr_plan *plan, const char *name, kr_shape shape) {
    const kr_slot slot = {.kind = KR_SLOT_IO,
                          .name = name,
                          .dtype = KR_F32,
                          .shape = shape,
                          .is_output = true,
                          .bytes = kr_tensor_bytes(KR_F32, &shape)};
    const int index = kr_plan_add_slot(plan, &slot);
    cr_assert_geq(index, 0, "%s", kr_status_message());
    return index;
}

/// A packed f32 tensor at `offset` bytes of a slot.
static inline kr_operand tensor(int slot, size_t offset, kr_shape shape) {
    kr_operand a = {.slot = slot, .offset = offset, .dtype = KR_F32, .shape = shape};
    int64_t stride = 1;
    for (int k = shape.rank - 1; k >= 0; k--) {
        a.stride[k] = stride;
        stride *= shape.dim[k];
    }
    return a;
}

static inline kr_operand row(int slot, size_t offset, int64_t n) { return tensor(slot, offset, KR_SHAPE(n)); }

static const kr_operand absent = {.slot = -1};

/// A step of one output; `work` bytes start at work_offset of slot `work_slot` (-1: none).
static inline kr_status add_step(kr_plan *plan, const char *op, const kr_stage *stages, int stage_count,
                                 const kr_operand *in, int inputs, kr_operand out, kr_operand work) {
    const kr_step step = {.op = op,
                          .scope = "test",
                          .node = kr_plan_steps(plan),
                          .kernels = stages,
                          .stages = stage_count,
                          .inputs = inputs,
                          .outputs = 1,
                          .in = in,
                          .out = &out,
                          .work = work};
    return kr_plan_add_step(plan, &step);
}

// Kernels of two inputs and one output of the same shape, packed.

static inline void product(const kr_call *call, int part, int parts) {
    const float *a = call->in[0].data, *b = call->in[1].data;
    float *out = call->out[0].data;
    int64_t begin, end;
    kr_share(kr_shape_count(&call->out[0].shape), part, parts, &begin, &end);
    for (int64_t k = begin; k < end; k++) out[k] = a[k] * b[k];
}

static inline void sum(const kr_call *call, int part, int parts) {
    const float *a = call->in[0].data, *b = call->in[1].data;
    float *out = call->out[0].data;
    int64_t begin, end;
    kr_share(kr_shape_count(&call->out[0].shape), part, parts, &begin, &end);
    for (int64_t k = begin; k < end; k++) out[k] = a[k] + b[k];
}

#endif
