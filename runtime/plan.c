/// Plans: slots and steps as the compiler lists them, and the barriers between steps.
///
/// Threads walk the list of steps independently. A step needs a barrier before it when it touches bytes that a step
/// since the last barrier touched and one of the two writes: read after write, write after read, write after write.
/// Which bytes a tensor touches is described by an interval, and, where its axes fold to rows at one pitch, by that
/// pitch and the width of a row: interleaved slices (two halves of the columns of one matrix) have intervals that
/// overlap, but no byte in common. Everything else is taken as its whole interval, which can cost a barrier, never a
/// race. Steps of several stages carry barriers inside, after which everything before the step is finished.
#include "runtime/internal.h"

#include <stdlib.h>
#include <string.h>

const char *kr_slot_kind_name(kr_slot_kind kind) {
    static const char *const names[KR_SLOT_KIND_COUNT] = {
        [KR_SLOT_ACTIVATION] = "activation", [KR_SLOT_IO] = "input/output",     [KR_SLOT_CONST] = "constant",
        [KR_SLOT_PARAM] = "parameter",       [KR_SLOT_OPTIMIZER] = "optimizer", [KR_SLOT_CARRY] = "carry",
        [KR_SLOT_GRADIENT] = "gradient",
    };
    return (unsigned)kind < KR_SLOT_KIND_COUNT ? names[kind] : "unknown kind";
}

// Building --------------------------------------------------------------------------

kr_status kr_plan_new(const char *target, kr_plan **out) {
    static uint64_t serials = 0;
    *out = NULL;
    kr_plan *plan = calloc(1, sizeof *plan);
    KR_FAIL_IF(!plan, KR_NO_MEMORY, "no memory for a plan");
    plan->pool = kr_pool_new();
    plan->target = plan->pool ? kr_pool_text(plan->pool, target) : NULL;
    if (!plan->target) {
        kr_plan_free(plan);
        return KR_NO_MEMORY;
    }
    plan->serial = __atomic_add_fetch(&serials, 1, __ATOMIC_RELAXED);
    *out = plan;
    return KR_OK;
}

void kr_plan_free(kr_plan *plan) {
    if (!plan) return;
    kr_pool_free(plan->pool);
    free(plan->slots);
    free(plan->steps);
    free(plan->names);
    free(plan->profile);
    free(plan);
}

const char *kr_plan_target(const kr_plan *plan) { return plan->target; }

int kr_plan_slots(const kr_plan *plan) { return plan->slot_count; }

kr_slot *kr_plan_slot(const kr_plan *plan, int index) {
    return index >= 0 && index < plan->slot_count ? plan->slots[index] : NULL;
}

int kr_plan_steps(const kr_plan *plan) { return plan->step_count; }

const kr_step *kr_plan_step(const kr_plan *plan, int index) {
    return index >= 0 && index < plan->step_count ? plan->steps[index] : NULL;
}

/// The entry of a name: 1 + its slot, or a free one, 0. Names of inputs and outputs are apart from all others.
static int *name_entry(const kr_plan *plan, const char *name, bool outside) {
    size_t at = (size_t)kr_hash(name, strlen(name)) + outside;
    for (;; at++) {
        int *entry = &plan->names[at & (plan->name_room - 1)];
        if (!*entry) return entry;
        const kr_slot *slot = plan->slots[*entry - 1];
        if ((slot->kind == KR_SLOT_IO) == outside && !strcmp(slot->name, name)) return entry;
    }
}

/// The slot of that name, or -1.
static int find_name(const kr_plan *plan, const char *name, bool outside) {
    return plan->name_room ? *name_entry(plan, name, outside) - 1 : -1;
}

/// Enters the name of the newest slot; the table is at most half full.
static bool enter_name(kr_plan *plan) {
    int from = plan->slot_count - 1;
    if (2 * (size_t)plan->slot_count > plan->name_room) {
        const size_t room = plan->name_room ? 2 * plan->name_room : 256;
        int *larger = calloc(room, sizeof *larger);
        if (!larger) {
            kr_status_record(KR_NO_MEMORY, __FILE__, __LINE__, "no memory for a plan");
            return false;
        }
        free(plan->names);
        plan->names = larger;
        plan->name_room = room;
        from = 0;
    }
    for (int k = from; k < plan->slot_count; k++) {
        const kr_slot *slot = plan->slots[k];
        if (slot->name && slot->kind != KR_SLOT_CONST) *name_entry(plan, slot->name, slot->kind == KR_SLOT_IO) = k + 1;
    }
    return true;
}

int kr_plan_find(const kr_plan *plan, const char *io_name) { return io_name ? find_name(plan, io_name, true) : -1; }

/// The array of pointers with room for one more, or null.
static void *grow(void *array, int count, int *capacity) {
    if (count < *capacity) return array;
    const int room = *capacity ? 2 * *capacity : 64;
    void *larger = realloc(array, (size_t)room * sizeof(void *));
    if (larger) {
        *capacity = room;
    } else {
        kr_status_record(KR_NO_MEMORY, __FILE__, __LINE__, "no memory for a plan");
    }
    return larger;
}

static kr_status check_slot(const kr_plan *plan, const kr_slot *slot) {
    const char *kind = kr_slot_kind_name(slot->kind);
    KR_FAIL_IF(plan->finished, KR_BAD_ARGUMENT, "plan: it is finished, no slot can be added");
    KR_FAIL_IF((unsigned)slot->kind >= KR_SLOT_KIND_COUNT, KR_BAD_ARGUMENT, "plan: there is no slot kind %d",
               (int)slot->kind);
    const bool arena = slot->kind == KR_SLOT_ACTIVATION || slot->kind == KR_SLOT_GRADIENT;
    KR_FAIL_IF(slot->kind == KR_SLOT_ACTIVATION && slot->name, KR_BAD_ARGUMENT,
               "plan: the activation arena has no name, got \"%s\"", slot->name);
    KR_FAIL_IF(!slot->name && !arena && slot->kind != KR_SLOT_CONST, KR_BAD_ARGUMENT,
               "plan: a slot of kind %s needs a name", kind);
    const char *name = slot->name ? slot->name : "(no name)";
    char shape[160];
    const size_t bytes = slot->name || !arena ? kr_tensor_bytes(slot->dtype, &slot->shape) : slot->bytes;
    KR_FAIL_IF(bytes == SIZE_MAX, KR_BAD_SHAPE, "plan: slot \"%s\": %s %s is not a tensor", name,
               kr_dtype_name(slot->dtype), kr_shape_text(&slot->shape, shape));
    KR_FAIL_IF(bytes != slot->bytes, KR_BAD_SHAPE, "plan: slot \"%s\": %s %s takes %zu bytes, the slot has %zu", name,
               kr_dtype_name(slot->dtype), kr_shape_text(&slot->shape, shape), bytes, slot->bytes);
    for (int k = 0; k < plan->slot_count && arena && !slot->name; k++)
        KR_FAIL_IF(plan->slots[k]->kind == slot->kind && !plan->slots[k]->name, KR_BAD_ARGUMENT,
                   "plan: it has a second %s arena", kind);
    if (!slot->name || slot->kind == KR_SLOT_CONST) return KR_OK;
    const int other = find_name(plan, slot->name, slot->kind == KR_SLOT_IO);
    KR_FAIL_IF(other >= 0, KR_BAD_ARGUMENT, "plan: two slots are named \"%s\": %s and %s", name,
               kr_slot_kind_name(plan->slots[other]->kind), kind);
    return KR_OK;
}

int kr_plan_add_slot(kr_plan *plan, const kr_slot *slot) {
    if (check_slot(plan, slot)) return -1;
    kr_slot **slots = grow(plan->slots, plan->slot_count, &plan->slot_capacity);
    if (!slots) return -1;
    plan->slots = slots;
    kr_slot *copy = kr_pool_take(plan->pool, sizeof *copy);
    if (!copy) return -1;
    *copy = *slot;
    if (slot->name && !(copy->name = kr_pool_text(plan->pool, slot->name))) return -1;
    plan->slots[plan->slot_count++] = copy;
    if (enter_name(plan)) return plan->slot_count - 1;
    plan->slot_count--;
    return -1;
}

/// A copy in the plan's pool; an empty array gives a pointer that nobody follows.
static const void *keep(kr_plan *plan, const void *data, size_t bytes) {
    void *copy = kr_pool_take(plan->pool, bytes);
    if (copy && bytes) memcpy(copy, data, bytes);
    return copy;
}

kr_status kr_plan_add_step(kr_plan *plan, const kr_step *step) {
    const char *op = step->op ? step->op : "(no name)";
    KR_FAIL_IF(plan->finished, KR_BAD_ARGUMENT, "plan: it is finished, %s cannot be added", op);
    KR_FAIL_IF(step->stages < 1 || step->stages > KR_MAX_STAGES, KR_BAD_ARGUMENT,
               "plan: %s has %d stages, want 1 to %d", op, step->stages, KR_MAX_STAGES);
    KR_FAIL_IF(step->inputs < 0 || step->outputs < 0, KR_BAD_ARGUMENT, "plan: %s has %d inputs and %d outputs", op,
               step->inputs, step->outputs);
    kr_step **steps = grow(plan->steps, plan->step_count, &plan->step_capacity);
    if (!steps) return KR_NO_MEMORY;
    plan->steps = steps;
    kr_step *copy = kr_pool_take(plan->pool, sizeof *copy);
    if (!copy) return KR_NO_MEMORY;
    *copy = *step;
    copy->op = kr_pool_text(plan->pool, op);
    copy->scope = kr_pool_text(plan->pool, step->scope ? step->scope : "");
    copy->in = keep(plan, step->in, (size_t)step->inputs * sizeof *step->in);
    copy->out = keep(plan, step->out, (size_t)step->outputs * sizeof *step->out);
    copy->barrier = false;
    if (!copy->op || !copy->scope || !copy->in || !copy->out) return KR_NO_MEMORY;
    plan->steps[plan->step_count++] = copy;
    return KR_OK;
}

// Hazards --------------------------------------------------------------------------

/// Bytes of a slot that a step touches: [low, high), in rows of `width` bytes at `pitch` (0: the whole interval).
typedef struct access {
    int next; // earlier access of the same chain since the last barrier, or -1
    int slot;
    bool write;
    int64_t low, high, pitch, width;
} access;

/// Where the operand lies in its slot. An empty tensor gives low = high.
static kr_status span(const kr_operand *a, access *s) {
    const int64_t size = (int64_t)kr_dtype_size(a->dtype);
    KR_FAIL_IF(size == 0, KR_BAD_ARGUMENT, "has no dtype %d", (int)a->dtype);
    KR_FAIL_IF(a->shape.rank < 0 || a->shape.rank > KR_MAX_RANK, KR_BAD_SHAPE, "has rank %d", (int)a->shape.rank);
    KR_FAIL_IF(a->offset > PTRDIFF_MAX, KR_BAD_ARGUMENT, "starts at %zu", a->offset);
    *s = (access){-1, a->slot, false, (int64_t)a->offset, (int64_t)a->offset, 0, 0};
    for (int k = 0; k < a->shape.rank; k++) {
        KR_FAIL_IF(a->shape.dim[k] < 0, KR_BAD_SHAPE, "has dimension %lld", (long long)a->shape.dim[k]);
        if (a->shape.dim[k] == 0) return KR_OK;
    }
    s->high += size;
    for (int k = 0; k < a->shape.rank; k++) {
        int64_t reach;
        int64_t *end = a->stride[k] < 0 ? &s->low : &s->high;
        const bool far = __builtin_mul_overflow(a->shape.dim[k] - 1, a->stride[k], &reach) ||
                         __builtin_mul_overflow(reach, size, &reach) || __builtin_add_overflow(*end, reach, end);
        KR_FAIL_IF(far, KR_BAD_SHAPE, "has stride %lld over %lld elements", (long long)a->stride[k],
                   (long long)a->shape.dim[k]);
    }
    // Trailing axes that are packed make the row; the others must fold to one axis.
    int64_t packed = 1, pitch = 0, rows = 1;
    int k = a->shape.rank - 1;
    for (; k >= 0 && (a->shape.dim[k] == 1 || a->stride[k] == packed); k--) packed *= a->shape.dim[k];
    for (; k >= 0; k--) {
        if (a->shape.dim[k] == 1) continue;
        if (rows == 1) pitch = a->stride[k];
        if (pitch <= 0 || __builtin_mul_overflow(pitch, rows, &rows) || a->stride[k] != rows) return KR_OK;
        rows = rows / pitch * a->shape.dim[k];
    }
    s->pitch = pitch * size;
    s->width = packed * size;
    return KR_OK;
}

static bool touch(const access *a, const access *b) {
    if (a->low >= b->high || b->low >= a->high) return false;
    const int64_t pitch = a->pitch ? a->pitch : b->pitch;
    if (pitch == 0 || (b->pitch && b->pitch != pitch)) return true;
    const int64_t a_width = a->pitch ? a->width : a->high - a->low; // an interval is one row
    const int64_t b_width = b->pitch ? b->width : b->high - b->low;
    int64_t shift = (b->low - a->low) % pitch;
    if (shift < 0) shift += pitch;
    return shift < a_width || shift + b_width > pitch;
}

/// The accesses since the last barrier, chained by slot, those that read apart from those that write: thousands of
/// steps without a barrier, as the updates of parameters are, read from one arena, and no two reads are in conflict.
typedef struct recent {
    access *list;
    int count, capacity;
    int *newest; // by chain, or -1
} recent;

static int chain_of(const access *a, bool write) { return 2 * a->slot + write; }

static void start_over(recent *r) {
    for (int k = 0; k < r->count; k++) r->newest[chain_of(&r->list[k], r->list[k].write)] = -1;
    r->count = 0;
}

static bool touches_any(const recent *r, const access *a, bool write) {
    for (int k = r->newest[chain_of(a, write)]; k >= 0; k = r->list[k].next)
        if (touch(a, &r->list[k])) return true;
    return false;
}

static bool conflicts(const recent *r, const access *a) {
    if (a->low == a->high) return false;
    return touches_any(r, a, true) || (a->write && touches_any(r, a, false));
}

static kr_status remember(recent *r, const access *a) {
    if (a->low == a->high) return KR_OK;
    if (r->count == r->capacity) {
        const int room = r->capacity ? 2 * r->capacity : 256;
        access *larger = realloc(r->list, (size_t)room * sizeof *larger);
        KR_FAIL_IF(!larger, KR_NO_MEMORY, "no memory for a plan");
        r->list = larger;
        r->capacity = room;
    }
    r->list[r->count] = *a;
    const int chain = chain_of(a, a->write);
    r->list[r->count].next = r->newest[chain];
    r->newest[chain] = r->count++;
    return KR_OK;
}

/// One operand: inside its slot? `which` and `index` name it in messages.
static kr_status locate(const kr_plan *plan, const kr_step *step, const kr_operand *operand, const char *which,
                        int index, bool write, access *a) {
    kr_status status = KR_OK;
    if (operand->slot < 0 || operand->slot >= plan->slot_count) {
        status = kr_status_record(KR_BAD_ARGUMENT, __FILE__, __LINE__, "is in slot %d of %d", operand->slot,
                                  plan->slot_count);
    } else {
        status = span(operand, a);
        const kr_slot *slot = plan->slots[operand->slot];
        const char *name = slot->name ? slot->name : kr_slot_kind_name(slot->kind);
        a->write = write;
        if (!status && (a->low < 0 || (uint64_t)a->high > slot->bytes))
            status = kr_status_record(KR_BAD_SHAPE, __FILE__, __LINE__,
                                      "covers bytes %lld to %lld of slot \"%s\" with %zu", (long long)a->low,
                                      (long long)a->high, name, slot->bytes);
        if (!status && operand->offset % kr_dtype_size(operand->dtype))
            status = kr_status_record(KR_BAD_ARGUMENT, __FILE__, __LINE__,
                                      "%s at offset %zu of slot \"%s\" is not aligned", kr_dtype_name(operand->dtype),
                                      operand->offset, name);
        if (!status && write && slot->kind == KR_SLOT_CONST)
            status = kr_status_record(KR_BAD_ARGUMENT, __FILE__, __LINE__, "is in constant slot \"%s\"", name);
    }
    return status ? kr_status_prefix(status, "plan: %s %d of %s (node %d, %s)", which, index, step->op, step->node,
                                     step->scope)
                  : KR_OK;
}

/// Every operand of a step, in `all`; gives how many.
static kr_status accesses(const kr_plan *plan, const kr_step *step, access *all, int *count) {
    *count = 0;
    for (int k = 0; k < step->inputs; k++)
        if (step->in[k].slot != -1) KR_TRY(locate(plan, step, &step->in[k], "input", k, false, &all[(*count)++]));
    for (int k = 0; k < step->outputs; k++)
        if (step->out[k].slot != -1) KR_TRY(locate(plan, step, &step->out[k], "output", k, true, &all[(*count)++]));
    if (step->work.slot != -1) {
        kr_operand work = step->work;
        work.stride[0] = 1; // it is bytes in a row, whatever the caller left in there
        KR_TRY(locate(plan, step, &work, "workspace", 0, true, &all[(*count)++]));
        KR_FAIL_IF(work.offset % 64, KR_BAD_ARGUMENT, "plan: workspace of %s (node %d, %s) is at offset %zu, want 64k",
                   step->op, step->node, step->scope, work.offset);
    }
    return KR_OK;
}

static kr_status set_barriers(kr_plan *plan, recent *r, access *all) {
    for (int i = 0; i < plan->step_count; i++) {
        kr_step *step = plan->steps[i];
        int count;
        KR_TRY(accesses(plan, step, all, &count));
        for (int k = 0; k < count && !step->barrier; k++) step->barrier = conflicts(r, &all[k]);
        if (step->barrier || step->stages > 1) start_over(r);
        for (int k = 0; k < count; k++) KR_TRY(remember(r, &all[k]));
    }
    return KR_OK;
}

kr_status kr_plan_finish(kr_plan *plan) {
    KR_FAIL_IF(plan->finished, KR_BAD_ARGUMENT, "plan: it is finished already");
    int most = 1;
    for (int i = 0; i < plan->step_count; i++) {
        const int operands = plan->steps[i]->inputs + plan->steps[i]->outputs + 1;
        if (operands > most) most = operands;
    }
    recent r = {NULL, 0, 0, malloc((2 * (size_t)plan->slot_count + 1) * sizeof *r.newest)};
    access *all = malloc((size_t)most * sizeof *all);
    plan->profile = calloc((size_t)plan->step_count + 1, sizeof *plan->profile);
    kr_status status = KR_OK;
    if (r.newest && all && plan->profile) {
        for (int k = 0; k < 2 * plan->slot_count; k++) r.newest[k] = -1;
        status = set_barriers(plan, &r, all);
    } else {
        status = kr_status_record(KR_NO_MEMORY, __FILE__, __LINE__, "no memory for a plan");
    }
    free(r.list);
    free(r.newest);
    free(all);
    plan->finished = status == KR_OK;
    if (status) {
        free(plan->profile);
        plan->profile = NULL;
    }
    return status;
}

double kr_plan_profile(const kr_plan *plan, int index, int64_t *runs) {
    if (runs) *runs = plan->profiled_runs;
    return plan->profile && index >= 0 && index < plan->step_count ? plan->profile[index] : 0;
}
