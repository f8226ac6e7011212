// A graph fed from a golden file, and its gradients, through compiler and session.
#include "tools/golden/golden.h"

#include <string.h>

enum { CHECKS = 48, BINDINGS = 96 };

kr_status kr_golden_begin(kr_golden *c, kr_golden_graph *b) {
    *b = (kr_golden_graph){.c = c};
    return kr_graph_new(&b->g);
}

void kr_golden_drop(kr_golden_graph *b) {
    kr_graph_free(b->g);
    b->g = NULL;
}

static void bind(kr_golden_graph *b, const char *name, void *data, size_t bytes) {
    if (b->status) return;
    if (b->binding_count == BINDINGS || !data)
        b->status = kr_status_record(KR_NO_MEMORY, __FILE__, __LINE__, "no room for tensor \"%s\"", name);
    else b->bindings[b->binding_count++] = (kr_binding){name, data, bytes};
}

void kr_golden_expect(kr_golden_graph *b, const char *name, const char *tensor, kr_golden_layout layout) {
    if (b->status || !kr_golden_has(b->c, tensor)) return;
    if (b->check_count == CHECKS) {
        b->status = kr_status_record(KR_BAD_FILE, __FILE__, __LINE__, "it has more than %d tensors to compare", CHECKS);
        return;
    }
    kr_golden_tensor want;
    if ((b->status = kr_golden_read(b->c, tensor, layout, &want))) return;
    float *got = kr_pool_take(b->c->pool, (size_t)(want.count + 1) * sizeof *got);
    bind(b, name, got, (size_t)want.count * sizeof *got);
    b->checks[b->check_count].name = name;
    b->checks[b->check_count].tensor = tensor;
    b->checks[b->check_count].want = want;
    b->checks[b->check_count++].got = got;
}

kr_value kr_golden_input_as(kr_golden_graph *b, const char *name, const char *as, kr_golden_layout layout) {
    const char *tensor = kr_pool_format(b->c->pool, "in.%s", name), *slope = kr_pool_format(b->c->pool, "grad.%s", as);
    if (b->status || !kr_golden_has(b->c, tensor)) return KR_NONE;
    kr_golden_tensor t;
    if ((b->status = kr_golden_read(b->c, tensor, layout, &t))) return KR_NONE;
    if (kr_tensors_find(b->c->file, tensor)->dtype == KR_I64) {
        bind(b, as, kr_golden_i32(b->c, &t), (size_t)t.count * sizeof(int32_t));
        return kr_input(b->g, as, KR_I32, t.shape);
    }
    bind(b, as, kr_golden_f32(b->c, &t), (size_t)t.count * sizeof(float));
    kr_golden_expect(b, slope, slope, layout);
    return kr_input(b->g, as, KR_F32, t.shape);
}

kr_value kr_golden_input(kr_golden_graph *b, const char *name, kr_golden_layout layout) {
    return kr_golden_input_as(b, name, name, layout);
}

void kr_golden_weigh(kr_golden_graph *b, kr_value value, kr_value weight) {
    if (weight.id) value = kr_mul(b->g, value, weight);
    const kr_value flat = kr_reshape(b->g, value, KR_SHAPE(kr_value_count(b->g, value)));
    const kr_value sum = kr_sum(b->g, flat, 0, true);
    b->loss = b->loss.id ? kr_add(b->g, b->loss, sum) : sum;
}

void kr_golden_output(kr_golden_graph *b, const char *name, kr_value value, kr_golden_layout layout) {
    const char *tensor = kr_pool_format(b->c->pool, "out.%s", name);
    const char *weight = kr_pool_format(b->c->pool, "dout.%s", name);
    kr_output(b->g, name, value);
    if (!kr_golden_has(b->c, tensor) && !b->status)
        b->status = kr_status_record(KR_BAD_FILE, __FILE__, __LINE__, "it has no tensor \"%s\"", tensor);
    kr_golden_expect(b, name, tensor, layout);
    if (b->status || !kr_golden_has(b->c, weight)) return;
    kr_golden_tensor t;
    if ((b->status = kr_golden_read(b->c, weight, layout, &t))) return;
    bind(b, weight, kr_golden_f32(b->c, &t), (size_t)t.count * sizeof(float));
    kr_golden_weigh(b, value, kr_stop_gradient(b->g, kr_input(b->g, weight, KR_F32, t.shape)));
}

void kr_golden_angle(kr_golden_graph *b, const char *name, kr_value value) {
    const int before = b->check_count;
    kr_golden_output(b, name, value, KR_GOLDEN_PLAIN);
    if (b->check_count > before) b->checks[before].angle = true;
}

kr_status kr_golden_write_slot(kr_golden *c, kr_session *s, int index, const char *tensor) {
    const kr_slot *slot = kr_session_slot(s, index);
    kr_golden_tensor t;
    KR_TRY(kr_golden_read(c, tensor, KR_GOLDEN_PLAIN, &t));
    char is[160], want[160];
    KR_FAIL_IF(!kr_shape_equal(&t.shape, &slot->shape), KR_BAD_SHAPE, "tensor \"%s\" is %s, the parameter is %s",
               tensor, kr_shape_text(&t.shape, is), kr_shape_text(&slot->shape, want));
    const float *data = kr_golden_f32(c, &t);
    KR_FAIL_IF(!data, KR_NO_MEMORY, "no memory for tensor \"%s\"", tensor);
    return kr_session_write(s, index, data, (size_t)t.count * sizeof *data);
}

kr_status kr_golden_write_params(kr_golden *c, kr_session *s, const char *prefix) {
    for (int k = 0; k < kr_session_slots(s); k++) {
        const kr_slot *slot = kr_session_slot(s, k);
        if (slot->kind == KR_SLOT_PARAM)
            KR_TRY(kr_golden_write_slot(c, s, k, kr_pool_format(c->pool, "%s%s", prefix, slot->name)));
    }
    const size_t length = strlen(prefix);
    for (int k = 0; k < kr_tensors_count(c->file); k++) {
        const char *name = kr_tensors_at(c->file, k)->name;
        KR_FAIL_IF(!strncmp(name, prefix, length) && kr_session_find(s, name + length) < 0, KR_BAD_FILE,
                   "tensor \"%s\" is a parameter that the graph does not have", name);
    }
    return KR_OK;
}

static kr_status run(kr_golden_graph *b, kr_plan *plan, kr_session *s, const char *params) {
    KR_TRY(kr_session_add(s, plan));
    KR_TRY(kr_session_init(s, 0));
    if (params) KR_TRY(kr_golden_write_params(b->c, s, params));
    KR_TRY(kr_plan_run(s, plan, b->bindings, b->binding_count, 0));
    for (int k = 0; k < b->check_count; k++) {
        if (b->checks[k].angle) kr_golden_wrap(b->checks[k].got, &b->checks[k].want);
        KR_TRY(kr_golden_compare_usual(b->c, b->checks[k].tensor, b->checks[k].got, &b->checks[k].want));
    }
    return KR_OK;
}

kr_status kr_golden_run(kr_golden_graph *b, const char *params) {
    kr_plan *plan = NULL;
    kr_session *s = NULL;
    if (b->loss.id) kr_output(b->g, "loss of the case", b->loss);
    const kr_compile_options options = {.goal = b->loss.id ? KR_GOAL_GRADIENTS : KR_GOAL_FORWARD,
                                        .target = b->c->target, .loss = "loss of the case"};
    kr_status status = b->status;
    if (!status) status = kr_graph_status(b->g);
    if (!status) status = kr_compile(b->g, &options, &plan, NULL);
    if (!status) status = kr_session_open(b->c->device, b->c->threads, &s);
    if (!status) status = run(b, plan, s, params);
    kr_session_close(s);
    kr_plan_free(plan);
    kr_golden_drop(b);
    return status;
}
