/// What a session does with the memory it holds: first values, and runs.
#include "runtime/internal.h"

#include <stdlib.h>
#include <string.h>

// First values --------------------------------------------------------------------------

enum { PIECE = 1 << 20 }; ///< elements that are made at a time: the host keeps no copy of a whole parameter

/// One parameter's first value, in its own dtype, through `f32` of PIECE elements.
static kr_status init_param(kr_session *s, const kr_held *h, uint64_t seed, float *f32) {
    const kr_slot *slot = &h->slot;
    const int64_t n = kr_shape_count(&slot->shape), last = slot->shape.rank ? slot->shape.dim[slot->shape.rank - 1] : 1;
    const size_t size = kr_dtype_size(slot->dtype);
    KR_FAIL_IF(slot->dtype != KR_F32 && slot->dtype != KR_BF16, KR_UNSUPPORTED,
               "session: parameter \"%s\" is %s, only f32 and bf16 can be initialised", slot->name,
               kr_dtype_name(slot->dtype));
    for (int64_t first = 0; first < n; first += PIECE) {
        const int64_t count = n - first < PIECE ? n - first : PIECE;
        kr_init_part(&slot->init, seed, slot->name, first, f32, count, last);
        for (int64_t k = 0; slot->dtype == KR_BF16 && k < count; k++) { // in place: read before it is overwritten
            const uint16_t half = kr_f32_to_bf16(f32[k]);
            memcpy((char *)f32 + 2 * k, &half, sizeof half);
        }
        KR_TRY(kr_device_write(s->device, (char *)h->address + (size_t)first * size, f32, (size_t)count * size));
        KR_TRY(kr_device_wait(s->device)); // the buffer is used again
    }
    return KR_OK;
}

kr_status kr_session_init(kr_session *s, uint64_t seed) {
    float *buffer = kr_host_alloc(PIECE * sizeof *buffer);
    if (!buffer) return KR_NO_MEMORY;
    kr_status status = KR_OK;
    for (int k = 0; k < s->held_count && !status; k++) {
        const kr_held *h = s->held[k];
        status = h->slot.kind == KR_SLOT_PARAM ? init_param(s, h, seed, buffer)
                                               : kr_device_zero(s->device, h->address, h->slot.bytes);
    }
    kr_host_free(buffer, PIECE * sizeof *buffer);
    return status;
}

// Runs --------------------------------------------------------------------------

/// "inputs tokens, targets; outputs loss", cut where it gets long.
static const char *io_names(const kr_plan *plan, char text[512]) {
    size_t at = 0;
    for (int outputs = 0; outputs < 2; outputs++) {
        int count = 0;
        for (int k = 0; k < plan->slot_count && at < 480; k++) {
            const kr_slot *slot = plan->slots[k];
            if (slot->kind != KR_SLOT_IO || slot->is_output != (bool)outputs) continue;
            const char *lead = count++ ? ", " : outputs ? (at ? "; outputs " : "outputs ") : "inputs ";
            const int n = snprintf(text + at, 512 - at, "%s%s", lead, slot->name);
            at = n < 0 || (size_t)n >= 512 - at ? 511 : at + (size_t)n;
        }
    }
    if (at >= 480) snprintf(text + 505, 7, " ...");
    if (at == 0) snprintf(text, 512, "no inputs or outputs");
    return text;
}

/// Matches bindings with slots: bound->given.
static kr_status match(const kr_plan *plan, const kr_binding *bindings, int count, int *given) {
    char names[512], shape[160];
    for (int k = 0; k < plan->slot_count; k++) given[k] = -1;
    for (int i = 0; i < count; i++) {
        const int k = kr_plan_find(plan, bindings[i].name);
        KR_FAIL_IF(k < 0, KR_BAD_ARGUMENT, "run: nothing is named \"%s\": the plan has %s",
                   bindings[i].name ? bindings[i].name : "(null)", io_names(plan, names));
        const kr_slot *slot = plan->slots[k];
        const char *side = slot->is_output ? "output" : "input";
        KR_FAIL_IF(given[k] >= 0, KR_BAD_ARGUMENT, "run: %s \"%s\" is bound twice", side, slot->name);
        KR_FAIL_IF(bindings[i].bytes != slot->bytes, KR_BAD_SHAPE, "run: %s \"%s\" is %s %s with %zu bytes, got %zu",
                   side, slot->name, kr_dtype_name(slot->dtype), kr_shape_text(&slot->shape, shape), slot->bytes,
                   bindings[i].bytes);
        KR_FAIL_IF(!bindings[i].data && slot->bytes, KR_BAD_ARGUMENT, "run: %s \"%s\" is bound to null", side,
                   slot->name);
        given[k] = i;
    }
    for (int k = 0; k < plan->slot_count; k++) {
        const kr_slot *slot = plan->slots[k];
        KR_FAIL_IF(slot->kind == KR_SLOT_IO && !slot->is_output && given[k] < 0, KR_BAD_ARGUMENT,
                   "run: input \"%s\" is not bound: the plan has %s", slot->name, io_names(plan, names));
    }
    return KR_OK;
}

/// Copies every bound input in, or every bound output out.
static kr_status transfer(kr_session *s, const kr_bound *b, const kr_binding *bindings, bool outputs) {
    for (int k = 0; k < b->plan->slot_count; k++) {
        const kr_slot *slot = b->plan->slots[k];
        if (slot->kind != KR_SLOT_IO || slot->is_output != outputs || b->given[k] < 0) continue;
        const kr_binding *x = &bindings[b->given[k]];
        KR_TRY(outputs ? kr_device_read(s->device, x->data, b->address[k], x->bytes)
                       : kr_device_write(s->device, b->address[k], x->data, x->bytes));
    }
    return KR_OK;
}

kr_status kr_plan_run(kr_session *s, kr_plan *plan, const kr_binding *bindings, int count, unsigned flags) {
    kr_bound *b = kr_session_bound(s, plan);
    KR_FAIL_IF(!b, KR_BAD_ARGUMENT, "run: the plan was not added to this session (kr_session_add)");
    KR_TRY(match(plan, bindings, count, b->given));
    KR_TRY(transfer(s, b, bindings, false));
    KR_TRY(kr_device_run(s->device, b, s->threads, flags));
    KR_TRY(transfer(s, b, bindings, true));
    return kr_device_wait(s->device);
}
