/// A value that is not finite, in words: which step made it, and which of its inputs already had one.
#include "runtime/internal.h"

/// "[3, 17]" for the element of that row-major number.
static const char *index_text(const kr_shape *shape, int64_t at, char text[160]) {
    kr_shape index = {shape->rank, {0}};
    for (int k = shape->rank - 1; k >= 0; k--) {
        index.dim[k] = at % shape->dim[k];
        at /= shape->dim[k];
    }
    return kr_shape_text(&index, text);
}

static const char *value_text(double value) { return value != value ? "nan" : value < 0 ? "-inf" : "inf"; }

static const char *slot_name(const kr_bound *bound, const kr_operand *operand) {
    const kr_slot *slot = bound->plan->slots[operand->slot];
    return slot->name ? slot->name : "computed before";
}

kr_status kr_report_not_finite(const kr_bound *bound, const kr_finding *f) {
    if (!f->step) return KR_OK;
    char where[160], input_where[160], origin[320] = "";
    const kr_step *step = f->step->step;
    if (f->input >= 0)
        snprintf(origin, sizeof origin, "; its input %d (%s) already holds %s at %s", f->input,
                 slot_name(bound, &step->in[f->input]), value_text(f->input_value),
                 index_text(&step->in[f->input].shape, f->input_at, input_where));
    KR_FAIL(KR_NOT_FINITE, "the first non-finite value: %s at %s of output %d of %s (node %d, %s)%s",
            value_text(f->value), index_text(&step->out[f->output].shape, f->at, where), f->output, step->op,
            step->node, step->scope, origin);
}
