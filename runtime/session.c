/// Sessions: the memory that plans share.
///
/// Each addition of a plan makes at most one allocation per kind of slot. Persistent slots (parameters, optimiser
/// state, carries, accumulated gradients) are found by name and kept to the end. The activation and gradient arenas
/// are as large as the largest plan needs; when one grows it moves, and the plans bound to it follow. Everything is
/// zeroed, and so really touched, when it is added: what a session will use it has from the start.
#include "runtime/internal.h"

#include <stdlib.h>
#include <string.h>

enum { ALIGN = 64 };

// Room behind every slot: under AddressSanitizer, so that an overrun meets a fence and not the next slot.
#if defined(__SANITIZE_ADDRESS__)
enum { GAP = ALIGN };
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
enum { GAP = ALIGN };
#else
enum { GAP = 0 };
#endif
#else
enum { GAP = 0 };
#endif

static bool is_persistent(const kr_slot *slot) {
    return slot->kind == KR_SLOT_PARAM || slot->kind == KR_SLOT_OPTIMIZER || slot->kind == KR_SLOT_CARRY ||
           (slot->kind == KR_SLOT_GRADIENT && slot->name);
}

/// Index into the session's arenas, or -1.
static int arena_index(const kr_slot *slot) {
    if (slot->kind == KR_SLOT_ACTIVATION) return 0;
    return slot->kind == KR_SLOT_GRADIENT && !slot->name ? 1 : -1;
}

/// Bytes from the start of a slot to that of the next. An empty one takes some too: its address is not null.
static size_t room(const kr_session *s, const kr_slot *slot) {
    const size_t align = s->device->class->align ? s->device->class->align : ALIGN;
    return ((slot->bytes ? slot->bytes : 1) + GAP + align - 1) / align * align;
}

// Open, close --------------------------------------------------------------------------

kr_status kr_session_open(kr_device *device, int threads, kr_session **out) {
    *out = NULL;
    KR_TRY(kr_device_team(device, threads, &threads));
    kr_session *s = calloc(1, sizeof *s);
    KR_FAIL_IF(!s, KR_NO_MEMORY, "no memory for a session");
    s->pool = kr_pool_new();
    if (!s->pool) {
        free(s);
        return KR_NO_MEMORY;
    }
    s->device = device;
    s->threads = threads;
    *out = s;
    return KR_OK;
}

static void release(kr_session *s, kr_region *r) {
    kr_device_free(s->device, r->address, r->bytes);
    *r = (kr_region){0};
}

static void drop(kr_session *s, kr_added *a) {
    release(s, &a->io);
    release(s, &a->constants);
    kr_device_unbind(s->device, a->bound);
    kr_bound_free(a->bound);
    *a = s->added[--s->added_count];
}

void kr_session_close(kr_session *s) {
    if (!s) return;
    kr_device_wait(s->device);
    while (s->added_count) drop(s, &s->added[s->added_count - 1]);
    for (int k = 0; k < s->region_count; k++) release(s, &s->regions[k]);
    for (int k = 0; k < 2; k++) release(s, &s->arena[k]);
    free(s->added);
    free(s->regions);
    free(s->held);
    kr_pool_free(s->pool);
    free(s);
}

int kr_session_threads(const kr_session *s) { return s->threads; }

// Adding a plan --------------------------------------------------------------------------

/// An addition in progress: nothing of it is in the session until all of it is there.
typedef struct addition {
    size_t *offset;                      // of every slot in its region
    void **address;                      // of every slot
    int *held;                           // of every slot: index of the persistent slot it shares, or -1
    kr_region fresh[KR_SLOT_KIND_COUNT]; // new allocations
    kr_region grown[2];                  // larger arenas; no bytes where none is wanted
    kr_bound *bound;
    int added, regions; // persistent slots and their regions to append
} addition;

/// Finds what is shared and sets the offsets and sizes of the rest.
static kr_status lay_out(const kr_session *s, const kr_plan *plan, addition *a) {
    for (int k = 0; k < plan->slot_count; k++) {
        const kr_slot *slot = plan->slots[k];
        a->held[k] = -1;
        const int arena = arena_index(slot);
        if (arena >= 0) {
            if (!s->arena[arena].address || slot->bytes > s->arena[arena].bytes)
                a->grown[arena] = (kr_region){slot->kind, NULL, slot->bytes ? slot->bytes : 1};
            continue;
        }
        if (is_persistent(slot)) {
            const int found = kr_session_find(s, slot->name);
            if (found >= 0) {
                const kr_slot *old = &s->held[found]->slot;
                char want[160], have[160];
                KR_FAIL_IF(
                    old->kind != slot->kind || old->dtype != slot->dtype || !kr_shape_equal(&old->shape, &slot->shape),
                    KR_BAD_SHAPE, "session: \"%s\" is %s %s %s, the new plan has %s %s %s", slot->name,
                    kr_slot_kind_name(old->kind), kr_dtype_name(old->dtype), kr_shape_text(&old->shape, have),
                    kr_slot_kind_name(slot->kind), kr_dtype_name(slot->dtype), kr_shape_text(&slot->shape, want));
                a->held[k] = found;
                continue;
            }
            a->added++;
        }
        kr_region *r = &a->fresh[slot->kind];
        r->kind = slot->kind;
        a->offset[k] = r->bytes;
        KR_FAIL_IF(slot->bytes > PTRDIFF_MAX / 2 - r->bytes, KR_NO_MEMORY,
                   "session: slot \"%s\" of %zu bytes is too large", slot->name ? slot->name : "constant", slot->bytes);
        r->bytes += room(s, slot);
    }
    return KR_OK;
}

/// Memory for a region, touched.
static kr_status obtain(kr_session *s, kr_region *r) {
    KR_TRY(kr_device_alloc(s->device, r->bytes, &r->address));
    return kr_device_zero(s->device, r->address, r->bytes);
}

static kr_status allocate(kr_session *s, const kr_plan *plan, addition *a) {
    for (int kind = 0; kind < KR_SLOT_KIND_COUNT; kind++) {
        if (!a->fresh[kind].bytes) continue;
        KR_TRY(obtain(s, &a->fresh[kind]));
        a->regions += kind != KR_SLOT_IO && kind != KR_SLOT_CONST;
    }
    for (int k = 0; k < 2; k++) // touched later, when the smaller one is gone
        if (a->grown[k].bytes) KR_TRY(kr_device_alloc(s->device, a->grown[k].bytes, &a->grown[k].address));
    for (int k = 0; k < plan->slot_count; k++) {
        const kr_slot *slot = plan->slots[k];
        const int arena = arena_index(slot);
        if (arena >= 0) {
            a->address[k] = a->grown[arena].address ? a->grown[arena].address : s->arena[arena].address;
        } else if (a->held[k] >= 0) {
            a->address[k] = s->held[a->held[k]]->address;
        } else {
            a->address[k] = (char *)a->fresh[slot->kind].address + a->offset[k];
            kr_device_fence(s->device, (char *)a->address[k] + slot->bytes, room(s, slot) - slot->bytes);
        }
    }
    return KR_OK;
}

/// Writes the one value of a constant, in blocks.
static kr_status splat(kr_session *s, const kr_slot *slot, char *to) {
    enum { BLOCK = 1 << 14 };
    const size_t size = kr_dtype_size(slot->dtype);
    char *block = malloc(BLOCK);
    KR_FAIL_IF(!block, KR_NO_MEMORY, "no memory for a constant");
    kr_status status = kr_splat(slot->dtype, slot->splat, block, BLOCK / (int64_t)size);
    for (size_t at = 0; !status && at < slot->bytes; at += BLOCK)
        status = kr_device_write(s->device, to + at, block, slot->bytes - at < BLOCK ? slot->bytes - at : BLOCK);
    if (!status) status = kr_device_wait(s->device); // the block goes now
    free(block);
    return status ? kr_status_prefix(status, "constant \"%s\"", slot->name ? slot->name : "") : KR_OK;
}

/// Room in the session's arrays for what the addition brings, and copies of its persistent slots behind the present
/// ones (held_count still says what was there before).
static kr_status make_room(kr_session *s, const kr_plan *plan, const addition *a) {
    kr_held **held = realloc(s->held, (size_t)(s->held_count + a->added + 1) * sizeof *held);
    if (held) s->held = held;
    kr_region *regions = realloc(s->regions, (size_t)(s->region_count + a->regions + 1) * sizeof *regions);
    if (regions) s->regions = regions;
    kr_added *added = realloc(s->added, (size_t)(s->added_count + 1) * sizeof *added);
    if (added) s->added = added;
    KR_FAIL_IF(!held || !regions || !added, KR_NO_MEMORY, "no memory for a session");
    int next = s->held_count;
    for (int k = 0; k < plan->slot_count; k++) {
        if (!is_persistent(plan->slots[k]) || a->held[k] >= 0) continue;
        kr_held *h = kr_pool_take(s->pool, sizeof *h);
        if (!h) return KR_NO_MEMORY;
        *h = (kr_held){*plan->slots[k], a->address[k]};
        h->slot.name = kr_pool_text(s->pool, h->slot.name);
        if (!h->slot.name) return KR_NO_MEMORY;
        s->held[next++] = h;
    }
    return KR_OK;
}

/// What remains when nothing can be refused any more, but for touching the new arenas.
static kr_status commit(kr_session *s, addition *a) {
    s->held_count += a->added;
    for (int kind = 0; kind < KR_SLOT_KIND_COUNT; kind++)
        if (a->fresh[kind].address && kind != KR_SLOT_IO && kind != KR_SLOT_CONST)
            s->regions[s->region_count++] = a->fresh[kind];
    s->added[s->added_count++] = (kr_added){a->bound, a->fresh[KR_SLOT_IO], a->fresh[KR_SLOT_CONST]};
    kr_status status = KR_OK;
    for (int k = 0; k < 2; k++) {
        if (!a->grown[k].address) continue;
        release(s, &s->arena[k]);
        s->arena[k] = a->grown[k];
        for (int i = 0; i < s->added_count; i++) {
            kr_bound *b = s->added[i].bound;
            if (b->arena[k] >= 0) kr_bound_move(b, b->arena[k], s->arena[k].address);
        }
        const kr_status zeroed = kr_device_zero(s->device, s->arena[k].address, s->arena[k].bytes);
        if (!status) status = zeroed;
    }
    return status;
}

static kr_status prepare(kr_session *s, kr_plan *plan, addition *a) {
    KR_TRY(lay_out(s, plan, a));
    KR_TRY(allocate(s, plan, a));
    for (int k = 0; k < plan->slot_count; k++)
        if (plan->slots[k]->kind == KR_SLOT_CONST) KR_TRY(splat(s, plan->slots[k], a->address[k]));
    KR_TRY(kr_bound_new(plan, a->address, &a->bound));
    KR_TRY(kr_device_bind(s->device, a->bound));
    return make_room(s, plan, a);
}

kr_status kr_session_add(kr_session *s, kr_plan *plan) {
    KR_FAIL_IF(!plan->finished, KR_BAD_ARGUMENT, "session: the plan is not finished (kr_plan_finish)");
    for (int i = 0; i < s->added_count; i++) {
        if (s->added[i].bound->plan != plan) continue;
        if (s->added[i].bound->serial == plan->serial) return KR_OK;
        drop(s, &s->added[i]); // a plan that was freed; this one lives at its address
        break;
    }
    const size_t slots = (size_t)plan->slot_count + 1;
    addition a = {.offset = calloc(slots, sizeof *a.offset),
                  .address = calloc(slots, sizeof *a.address),
                  .held = calloc(slots, sizeof *a.held)};
    kr_status status = KR_OK;
    if (a.offset && a.address && a.held) {
        status = prepare(s, plan, &a);
    } else {
        status = kr_status_record(KR_NO_MEMORY, __FILE__, __LINE__, "no memory for a session");
    }
    if (!status) {
        status = commit(s, &a);
    } else {
        kr_device_unbind(s->device, a.bound);
        kr_bound_free(a.bound);
        for (int kind = 0; kind < KR_SLOT_KIND_COUNT; kind++) release(s, &a.fresh[kind]);
        for (int k = 0; k < 2; k++) release(s, &a.grown[k]);
    }
    free(a.offset);
    free(a.address);
    free(a.held);
    return status;
}

kr_bound *kr_session_bound(const kr_session *s, const kr_plan *plan) {
    for (int i = 0; i < s->added_count; i++)
        if (s->added[i].bound->plan == plan && s->added[i].bound->serial == plan->serial) return s->added[i].bound;
    return NULL;
}

// Persistent slots --------------------------------------------------------------------------

int kr_session_slots(const kr_session *s) { return s->held_count; }

const kr_slot *kr_session_slot(const kr_session *s, int index) {
    return index >= 0 && index < s->held_count ? &s->held[index]->slot : NULL;
}

int kr_session_find(const kr_session *s, const char *name) {
    for (int k = 0; name && k < s->held_count; k++)
        if (strcmp(s->held[k]->slot.name, name) == 0) return k;
    return -1;
}

static kr_status check_access(const kr_session *s, int index, size_t bytes) {
    KR_FAIL_IF(index < 0 || index >= s->held_count, KR_BAD_ARGUMENT, "session: there is no persistent slot %d of %d",
               index, s->held_count);
    const kr_slot *slot = &s->held[index]->slot;
    char shape[160];
    KR_FAIL_IF(bytes != slot->bytes, KR_BAD_SHAPE, "session: \"%s\" %s %s has %zu bytes, got %zu", slot->name,
               kr_dtype_name(slot->dtype), kr_shape_text(&slot->shape, shape), slot->bytes, bytes);
    return KR_OK;
}

kr_status kr_session_read(kr_session *s, int index, void *to, size_t bytes) {
    KR_TRY(check_access(s, index, bytes));
    KR_TRY(kr_device_read(s->device, to, s->held[index]->address, bytes));
    return kr_device_wait(s->device);
}

kr_status kr_session_write(kr_session *s, int index, const void *from, size_t bytes) {
    KR_TRY(check_access(s, index, bytes));
    KR_TRY(kr_device_write(s->device, s->held[index]->address, from, bytes));
    return kr_device_wait(s->device); // the caller may free `from`
}

static kr_status check_piece(const kr_session *s, int index, size_t offset, size_t bytes) {
    KR_FAIL_IF(index < 0 || index >= s->held_count, KR_BAD_ARGUMENT, "session: there is no persistent slot %d of %d",
               index, s->held_count);
    const kr_slot *slot = &s->held[index]->slot;
    KR_FAIL_IF(offset > slot->bytes || bytes > slot->bytes - offset, KR_BAD_SHAPE,
               "session: \"%s\" has %zu bytes, there are no %zu from %zu on", slot->name, slot->bytes, bytes, offset);
    return KR_OK;
}

kr_status kr_session_read_at(kr_session *s, int index, size_t offset, void *to, size_t bytes) {
    KR_TRY(check_piece(s, index, offset, bytes));
    KR_TRY(kr_device_read(s->device, to, (const char *)s->held[index]->address + offset, bytes));
    return kr_device_wait(s->device);
}

kr_status kr_session_write_at(kr_session *s, int index, size_t offset, const void *from, size_t bytes) {
    KR_TRY(check_piece(s, index, offset, bytes));
    KR_TRY(kr_device_write(s->device, (char *)s->held[index]->address + offset, from, bytes));
    return kr_device_wait(s->device);
}

kr_status kr_session_reset_carries(kr_session *s) {
    for (int k = 0; k < s->held_count; k++)
        if (s->held[k]->slot.kind == KR_SLOT_CARRY)
            KR_TRY(kr_device_zero(s->device, s->held[k]->address, s->held[k]->slot.bytes));
    return KR_OK;
}

void kr_session_memory(const kr_session *s, size_t bytes[KR_SLOT_KIND_COUNT]) {
    for (int kind = 0; kind < KR_SLOT_KIND_COUNT; kind++) bytes[kind] = 0;
    for (int k = 0; k < s->region_count; k++) bytes[s->regions[k].kind] += s->regions[k].bytes;
    for (int k = 0; k < 2; k++) bytes[s->arena[k].kind] += s->arena[k].bytes;
    for (int i = 0; i < s->added_count; i++) {
        bytes[KR_SLOT_IO] += s->added[i].io.bytes;
        bytes[KR_SLOT_CONST] += s->added[i].constants.bytes;
    }
}
