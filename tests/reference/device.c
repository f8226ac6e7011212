/// A device that behaves as one with a memory and a command stream of its own does: it remembers every call of a plan
/// at
/// its first run, with the addresses of that moment (as a captured CUDA graph does), and captures anew only when the
/// plan has moved. Copies and zeroing are put off for as long as they may be: until a run or a wait. New memory is
/// full of
/// NaN. One thread, steps in order.
#include "tests/reference/device.h"
#include "runtime/cpu/internal.h"

#include <stdlib.h>
#include <string.h>

typedef struct captured {
    uint64_t moves;    ///< of the plan when it was captured
    bool done;
    kr_call *calls;    ///< by step
    kr_arg *args;      ///< of all calls
} captured;

/// A copy, or zeroing where `from` is null, that was asked for and not done yet.
typedef struct pending {
    void *to;
    const void *from;
    size_t bytes;
} pending;

typedef struct reference_device {
    kr_device device;
    pending *list;
    size_t count, room;
} reference_device;

static void catch_up(kr_device *device) {
    reference_device *d = (reference_device *)device;
    for (size_t k = 0; k < d->count; k++) {
        const pending *p = &d->list[k];
        if (p->from) memcpy(p->to, p->from, p->bytes);
        else memset(p->to, 0, p->bytes);
    }
    d->count = 0;
}

static kr_status put_off(kr_device *device, pending p) {
    reference_device *d = (reference_device *)device;
    if (d->count == d->room) {
        const size_t room = 2 * d->room + 64;
        pending *larger = realloc(d->list, room * sizeof *larger);
        if (!larger) catch_up(device); // a failure leaves nothing under way
        KR_FAIL_IF(!larger, KR_NO_MEMORY, "no memory for a copy");
        d->list = larger;
        d->room = room;
    }
    d->list[d->count++] = p;
    return KR_OK;
}

static kr_status reference_alloc(kr_device *device, size_t bytes, void **address) {
    (void)device;
    KR_FAIL_IF(bytes > PTRDIFF_MAX - REFERENCE_ALIGN, KR_NO_MEMORY, "no memory for an arena of %zu bytes", bytes);
    KR_FAIL_IF(posix_memalign(address, REFERENCE_ALIGN, bytes), KR_NO_MEMORY, "no memory for an arena of %zu bytes", bytes);
    memset(*address, 0xff, bytes);
    return KR_OK;
}

static void reference_free(kr_device *device, void *address, size_t bytes) {
    catch_up(device);
    memset(address, 0xff, bytes);
    free(address);
}

static kr_status reference_copy(kr_device *device, void *to, const void *from, size_t bytes) {
    return put_off(device, (pending){to, from, bytes});
}

static kr_status reference_zero(kr_device *device, void *to, size_t bytes) {
    return put_off(device, (pending){to, NULL, bytes});
}

static kr_status reference_wait(kr_device *device) {
    catch_up(device);
    return KR_OK;
}

static void reference_close(kr_device *device) {
    free(((reference_device *)device)->list);
    free(device);
}

static kr_status reference_team(kr_device *device, int wanted, int *threads) {
    (void)device;
    KR_FAIL_IF(wanted < 0, KR_BAD_ARGUMENT, "session: %d threads", wanted);
    *threads = 1;
    return KR_OK;
}

static kr_status reference_bind(kr_device *device, kr_bound *b) {
    (void)device;
    captured *c = b->state = calloc(1, sizeof *c);
    KR_FAIL_IF(!c, KR_NO_MEMORY, "no memory to bind a plan");
    c->calls = calloc((size_t)b->step_count + 1, sizeof *c->calls);
    c->args = calloc((size_t)b->arg_count + 1, sizeof *c->args);
    KR_FAIL_IF(!c->calls || !c->args, KR_NO_MEMORY, "no memory to bind a plan");
    for (int i = 0; i < b->step_count; i++) {
        const kr_step *s = b->steps[i].step;
        for (int k = 0; k < s->stages; k++)
            KR_FAIL_IF(!s->kernels || !((const kr_stage *)s->kernels)[k].build[KR_ISA_BASE], KR_UNSUPPORTED,
                       "%s (node %d, %s): reference has no kernel for stage %d", s->op, s->node, s->scope, k);
    }
    return KR_OK;
}

static void reference_unbind(kr_device *device, kr_bound *b) {
    (void)device;
    captured *c = b->state;
    if (c) free(c->calls), free(c->args);
    free(c);
    b->state = NULL;
}

static void capture(const kr_bound *b, captured *c) {
    memcpy(c->args, b->args, (size_t)b->arg_count * sizeof *c->args);
    for (int i = 0; i < b->step_count; i++) {
        c->calls[i] = b->steps[i].call;
        c->calls[i].in = c->args + (b->steps[i].call.in - b->args);
        c->calls[i].out = c->args + (b->steps[i].call.out - b->args);
    }
    c->moves = b->moves;
    c->done = true;
}

static bool look(const kr_bound_step *s, const kr_call *call, bool outputs, kr_finding *f) {
    if (!outputs) f->input = -1;
    for (int k = 0; k < (outputs ? call->outputs : call->inputs); k++) {
        double value;
        const int64_t at = kr_first_not_finite(outputs ? &call->out[k] : &call->in[k], &value);
        if (at < 0) continue;
        if (outputs) f->step = s, f->output = k, f->at = at, f->value = value;
        else f->input = k, f->input_at = at, f->input_value = value;
        return true;
    }
    return false;
}

static kr_status reference_run(kr_device *device, kr_bound *b, int threads, unsigned flags) {
    (void)threads;
    catch_up(device);
    captured *c = b->state;
    kr_finding found = {0};
    if (!c->done || c->moves != b->moves) capture(b, c);
    for (int i = 0; i < b->step_count; i++) {
        const kr_step *s = b->steps[i].step;
        const kr_stage *stages = s->kernels;
        if (flags & KR_RUN_CHECK) look(&b->steps[i], &c->calls[i], false, &found);
        const double start = kr_seconds();
        for (c->calls[i].round = 0; c->calls[i].round == 0 || c->calls[i].round < s->rounds; c->calls[i].round++)
            for (int k = 0; k < s->stages; k++) stages[k].build[KR_ISA_BASE](&c->calls[i], 0, 1);
        if (flags & KR_RUN_PROFILE) b->plan->profile[i] += 1e9 * (kr_seconds() - start);
        if ((flags & KR_RUN_CHECK) && look(&b->steps[i], &c->calls[i], true, &found)) break;
    }
    if (flags & KR_RUN_PROFILE) b->plan->profiled_runs++;
    return kr_report_not_finite(b, &found);
}

static const kr_device_class class = {
    .name = "reference",
    .target = "reference",
    .align = REFERENCE_ALIGN,
    .team = reference_team,
    .bind = reference_bind,
    .unbind = reference_unbind,
    .alloc = reference_alloc,
    .free = reference_free,
    .write = reference_copy,
    .read = reference_copy,
    .zero = reference_zero,
    .run = reference_run,
    .wait = reference_wait,
    .close = reference_close,
};

kr_status reference_open(kr_device **out) {
    reference_device *d = calloc(1, sizeof *d);
    *out = NULL;
    KR_FAIL_IF(!d, KR_NO_MEMORY, "no memory for a device");
    d->device.class = &class;
    *out = &d->device;
    return KR_OK;
}
