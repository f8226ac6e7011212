/// Devices: the one whose memory the host cannot look into, and checks of values, which read it from inside.
#include "plans.h"

#include "runtime/cpu/internal.h"

#include <criterion/criterion.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>

/// Any strides, and one bad value where attrs says so.
static void spoil(const kr_call *call, int part, int parts) {
    (void)parts;
    const kr_arg *out = &call->out[0];
    if (part != 0) return;
    for (int64_t i = 0; i < out->shape.dim[0]; i++)
        for (int64_t j = 0; j < out->shape.dim[1]; j++)
            ((float *)out->data)[i * out->stride[0] + j * out->stride[1]] =
                i == call->attrs->i[0] && j == call->attrs->i[1] ? (float)call->attrs->r[0] : 1.0f;
}

static const kr_stage stage_product = {{product}}, stage_sum = {{sum}}, stage_spoil = {{spoil}};

// Checks of values --------------------------------------------------------------------------

static void checking(kr_status open(kr_device **), int threads) {
    kr_device *device;
    kr_session *s;
    kr_plan *plan;
    must(open(&device));
    must(kr_session_open(device, threads, &s));
    must(kr_plan_new("cpu", &plan));
    const int a = add_slot(plan, KR_SLOT_ACTIVATION, NULL, KR_U8, KR_SHAPE(4000));
    const int p = add_slot(plan, KR_SLOT_PARAM, "scale", KR_F32, KR_SHAPE(5, 20));
    const int in = add_slot(plan, KR_SLOT_IO, "row", KR_F32, KR_SHAPE(2)), out = add_output(plan, "z", KR_SHAPE(5, 20));
    const int good = add_slot(plan, KR_SLOT_PARAM, "good", KR_F32, KR_SHAPE(5, 20));
    (void)in;
    kr_operand columns = tensor(a, 40, KR_SHAPE(5, 20)); // inside rows of 30, the rest never written
    columns.stride[0] = 30;
    const kr_operand y1 = tensor(a, 800, KR_SHAPE(5, 20));
    must(add_step(plan, "product", &stage_product, 1,
                  (kr_operand[]){tensor(good, 0, KR_SHAPE(5, 20)), tensor(good, 0, KR_SHAPE(5, 20))}, 2, y1, absent));
    kr_step spoiled = {.op = "selective_scan",
                       .scope = "backbone.layers.3.mixer",
                       .node = 41,
                       .kernels = &stage_spoil,
                       .stages = 1,
                       .outputs = 1,
                       .out = &columns,
                       .work = absent};
    spoiled.attrs.i[0] = 3, spoiled.attrs.i[1] = 17, spoiled.attrs.r[0] = -INFINITY;
    must(kr_plan_add_step(plan, &spoiled));
    spoiled.attrs.r[0] = NAN, spoiled.node = 42;
    must(kr_plan_add_step(plan, &spoiled));
    must(add_step(plan, "product", &stage_product, 1, (kr_operand[]){y1, tensor(p, 0, KR_SHAPE(5, 20))}, 2,
                  tensor(out, 0, KR_SHAPE(5, 20)), absent));
    must(kr_plan_finish(plan));
    must(kr_session_add(s, plan));
    float scale[100] = {0}, z[100], pair[2] = {NAN, INFINITY}; // nobody reads the pair
    const kr_binding io[] = {{"row", pair, sizeof pair}, {"z", z, sizeof z}};
    must(kr_session_write(s, kr_session_find(s, "good"), scale, sizeof scale));
    cr_expect_eq(kr_plan_run(s, plan, io, 2, KR_RUN_CHECK), KR_NOT_FINITE);
    cr_expect_str_eq(kr_status_message(), "the first non-finite value: -inf at [3, 17] of output 0 of selective_scan "
                                          "(node 41, backbone.layers.3.mixer)");
    must(kr_plan_run(s, plan, io, 2, 0)); // nobody asked
    kr_plan_free(plan);

    must(kr_plan_new("cpu", &plan));
    const int q = add_slot(plan, KR_SLOT_PARAM, "scale", KR_F32, KR_SHAPE(5, 20));
    const kr_operand whole = tensor(q, 0, KR_SHAPE(5, 20)),
                     other = tensor(add_output(plan, "z", KR_SHAPE(5, 20)), 0, KR_SHAPE(5, 20));
    must(add_step(plan, "sum", &stage_sum, 1, (kr_operand[]){other, whole}, 2, whole, absent)); // in place
    must(kr_plan_finish(plan));
    must(kr_session_add(s, plan));
    scale[2 * 20 + 5] = NAN;
    must(kr_session_write(s, kr_session_find(s, "scale"), scale, sizeof scale));
    cr_expect_eq(kr_plan_run(s, plan, NULL, 0, KR_RUN_CHECK), KR_NOT_FINITE);
    cr_expect_str_eq(kr_status_message(),
                     "the first non-finite value: nan at [2, 5] of output 0 of sum (node 0, test); "
                     "its input 1 (scale) already holds nan at [2, 5]");
    kr_plan_free(plan);
    kr_session_close(s);
    kr_device_close(device);
}

Test(check, names_the_first_node) { checking(kr_device_cpu, 3); }
Test(check, names_the_first_node_on_the_guarded_device) { checking(kr_device_guarded, 1); }

Test(check, not_finite_in_every_dtype) {
    double value;
    double f64[] = {1, 2, INFINITY};
    uint16_t bf16[] = {0x7F7F, 0x3F80, 0xFFC0};
    int32_t i32[] = {-1, -1, -1};
    cr_expect_eq(kr_first_not_finite(&(kr_arg){f64, KR_F64, KR_SHAPE(3), {1}}, &value), 2);
    cr_expect(isinf(value));
    cr_expect_eq(kr_first_not_finite(&(kr_arg){bf16, KR_BF16, KR_SHAPE(3), {1}}, &value), 2);
    cr_expect(isnan(value));
    cr_expect_eq(kr_first_not_finite(&(kr_arg){i32, KR_I32, KR_SHAPE(3), {1}}, &value), -1);
    cr_expect_eq(kr_first_not_finite(&(kr_arg){f64 + 2, KR_F64, KR_SCALAR, {0}}, &value), 0);
    cr_expect_eq(kr_first_not_finite(&(kr_arg){f64, KR_F64, KR_SHAPE(3, 0), {0, 1}}, &value), -1);
    cr_expect_eq(kr_first_not_finite(&(kr_arg){f64, KR_F64, KR_SHAPE(2, 2), {0, 2}}, &value), 1);
    cr_expect_eq(kr_first_not_finite(&(kr_arg){NULL, KR_F32, KR_SHAPE(3), {1}}, &value), -1);
}

// The guarded device --------------------------------------------------------------------------

Test(guarded, the_host_cannot_read, .signal = SIGSEGV) {
    signal(SIGSEGV, SIG_DFL); // a sanitizer would make a report of it
    kr_device *device;
    void *address;
    must(kr_device_guarded(&device));
    must(kr_device_alloc(device, 100, &address));
    must(kr_device_zero(device, address, 100));
    volatile char *p = address;
    cr_log_error("read %d", *p);
}

static float *kept;

static void keep_pointer(const kr_call *call, int part, int parts) {
    (void)parts;
    if (part == 0) kept = call->out[0].data;
    if (part == 0) kept[0] = 1;
}

Test(guarded, the_host_cannot_write_after_a_run, .signal = SIGSEGV) {
    signal(SIGSEGV, SIG_DFL);
    static const kr_stage stage = {{keep_pointer}};
    kr_device *device;
    kr_session *s;
    kr_plan *plan;
    must(kr_device_guarded(&device));
    must(kr_session_open(device, 2, &s));
    must(kr_plan_new("cpu", &plan));
    const int a = add_slot(plan, KR_SLOT_PARAM, "w", KR_F32, KR_SHAPE(10));
    must(add_step(plan, "keep", &stage, 1, NULL, 0, row(a, 0, 10), absent));
    must(kr_plan_finish(plan));
    must(kr_session_add(s, plan));
    must(kr_plan_run(s, plan, NULL, 0, 0));
    if (!kept) return; // no signal: the test fails
    *(volatile float *)kept = 2;
}

Test(guarded, copies_stay_inside) {
    kr_device *device;
    void *address;
    char host[64] = "of the host", back[64];
    must(kr_device_guarded(&device));
    must(kr_device_alloc(device, 64, &address));
    must(kr_device_write(device, address, host, sizeof host));
    must(kr_device_read(device, back, address, sizeof back));
    cr_expect_arr_eq(host, back, sizeof host);
    cr_expect_eq(kr_device_write(device, host, back, sizeof host), KR_BAD_ARGUMENT, "not device memory");
    cr_expect_eq(kr_device_zero(device, host, sizeof host), KR_BAD_ARGUMENT);
    cr_expect_eq(kr_device_read(device, host, back, sizeof host), KR_BAD_ARGUMENT);
    cr_expect_str_eq(kr_device_name(device), "guarded");
    must(kr_device_wait(device));
    kr_device_free(device, address, 64);
    kr_device_close(device);
}
