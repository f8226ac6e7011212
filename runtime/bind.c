/// Binding: a plan's operands as addresses, once, so that a run resolves nothing and allocates nothing.
#include "runtime/internal.h"

#include <stdlib.h>
#include <string.h>

static kr_arg resolve(const kr_operand *operand, void *const *address) {
    kr_arg arg = {NULL, operand->dtype, operand->shape, {0}};
    memcpy(arg.stride, operand->stride, sizeof arg.stride);
    if (operand->slot >= 0) arg.data = (char *)address[operand->slot] + operand->offset;
    return arg;
}

kr_status kr_bound_new(kr_plan *plan, void *const *address, kr_bound **out) {
    *out = NULL;
    kr_bound *b = calloc(1, sizeof *b);
    KR_FAIL_IF(!b, KR_NO_MEMORY, "no memory to bind a plan");
    b->plan = plan;
    b->serial = plan->serial;
    b->step_count = plan->step_count;
    for (int i = 0; i < plan->step_count; i++) b->arg_count += plan->steps[i]->inputs + plan->steps[i]->outputs;
    b->steps = calloc((size_t)b->step_count + 1, sizeof *b->steps);
    b->args = calloc((size_t)b->arg_count + 1, sizeof *b->args);
    b->address = calloc((size_t)plan->slot_count + 1, sizeof *b->address);
    b->given = calloc((size_t)plan->slot_count + 1, sizeof *b->given);
    b->slot = calloc((size_t)(b->arg_count + b->step_count) + 1, sizeof *b->slot);
    if (!b->steps || !b->args || !b->address || !b->given || !b->slot) {
        kr_bound_free(b);
        KR_FAIL(KR_NO_MEMORY, "no memory to bind a plan of %d steps", plan->step_count);
    }
    b->arena[0] = b->arena[1] = -1;
    for (int k = 0; k < plan->slot_count; k++) {
        b->address[k] = address[k];
        if (plan->slots[k]->kind == KR_SLOT_ACTIVATION) b->arena[0] = k;
        if (plan->slots[k]->kind == KR_SLOT_GRADIENT && !plan->slots[k]->name) b->arena[1] = k;
    }
    kr_arg *next = b->args;
    int *slot = b->slot;
    for (int i = 0; i < plan->step_count; i++) {
        const kr_step *step = plan->steps[i];
        kr_bound_step *s = &b->steps[i];
        s->step = step;
        s->call = (kr_call){next, next + step->inputs, step->inputs, step->outputs, NULL, &step->attrs, 0,
                            KR_BF16_EMULATED};
        for (int k = 0; k < step->inputs + step->outputs; k++) {
            const kr_operand *operand = k < step->inputs ? &step->in[k] : &step->out[k - step->inputs];
            *next++ = resolve(operand, address);
            *slot++ = operand->slot;
        }
        s->call.work = resolve(&step->work, address).data;
        b->slot[b->arg_count + i] = step->work.slot;
    }
    *out = b;
    return KR_OK;
}

void kr_bound_free(kr_bound *b) {
    if (!b) return;
    free(b->steps);
    free(b->args);
    free(b->address);
    free(b->given);
    free(b->slot);
    free(b);
}

void kr_bound_move(kr_bound *b, int slot, void *to) {
    const char *from = b->address[slot];
    for (int k = 0; k < b->arg_count; k++)
        if (b->slot[k] == slot) b->args[k].data = (char *)to + ((char *)b->args[k].data - from);
    for (int i = 0; i < b->step_count; i++)
        if (b->slot[b->arg_count + i] == slot)
            b->steps[i].call.work = (char *)to + ((char *)b->steps[i].call.work - from);
    b->address[slot] = to;
    b->moves++;
}
