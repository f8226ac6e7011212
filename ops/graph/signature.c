#include "ops/graph/signature_form.h"

typedef enum fit { FITS, FAILS, WAITS } fit;

// Unifying --------------------------------------------------------------------------------------------------------

/// Makes a*letters = length. With `settle`, a factor of nothing is nothing.
static fit solve(kr_letters *l, const kr_axis *a, int64_t length, int operand, bool settle) {
    int64_t known = a->scale;
    int unknown = KR_NOBODY, unknowns = 0;
    bool overflow = a->overflow, none = a->scale == 0;
    if (__builtin_sub_overflow(length, a->more, &length) || length < 0) return FAILS;
    for (int k = 0; k < a->letters; k++) {
        const kr_letter_entry *x = &l->letter[a->letter[k]];
        if (!x->known) unknown = a->letter[k], unknowns++;
        else none |= x->value == 0, overflow |= __builtin_mul_overflow(known, x->value, &known);
    }
    if (none) known = 0;
    else if (overflow || known < 0) return FAILS;
    if (!unknowns) return known == length ? FITS : FAILS;
    if (!known && length) return FAILS;
    if (unknowns > 1 || (!known && !settle)) return WAITS;
    if (known && length % known) return FAILS;
    l->letter[unknown].known = true;
    l->letter[unknown].value = known ? length / known : 0;
    l->letter[unknown].from = operand;
    return FITS;
}

static fit match_form(kr_letters *l, const kr_form *f, const kr_shape *s, int operand, bool settle) {
    const int leading = s->rank - f->axes;
    if (leading < 0 || s->rank > KR_MAX_RANK || (leading && !f->leading)) return FAILS;
    if (f->leading) {
        if (!l->leading_known && f->or_none) return WAITS;
        if (!l->leading_known) {
            l->leading_known = true;
            l->leading_from = operand;
            l->leading = *s;
            l->leading.rank = leading;
        } else if (leading || !f->or_none) {
            if (leading != l->leading.rank) return FAILS;
            for (int k = 0; k < leading; k++)
                if (s->dim[k] != l->leading.dim[k]) return FAILS;
        }
    }
    fit all = FITS;
    for (int k = 0; k < f->axes; k++) {
        const fit one = solve(l, &f->axis[k], s->dim[leading + k], operand, settle);
        if (one == FAILS) return FAILS;
        if (one == WAITS) all = WAITS;
    }
    return all;
}

static bool rank_fits(const kr_form *f, const kr_shape *s) {
    return f->leading ? s->rank >= f->axes : s->rank == f->axes;
}

/// An operand against its rule. Of alternatives those of its rank count: where there are several, the first that fits
/// when all else has been said (`settle`).
static fit match(kr_letters *l, int i, bool settle) {
    const char *side = kr_rule_side(l, kr_signature_rule(l->op->signature, i)->shape);
    const kr_shape *s = &l->in[i];
    kr_form f, only = {.axes = 0};
    int candidates = 0;
    if (!strcmp(side, "any")) return FITS;
    for (const char *p = side; *p;) {
        p = kr_form_read(l, p, &f);
        if (rank_fits(&f, s)) {
            only = f;
            candidates++;
        }
        if (*p != '|') break;
        p++;
    }
    if (candidates < 2) return candidates ? match_form(l, &only, s, i, settle) : FAILS;
    if (!settle) return WAITS;
    for (const char *p = side; *p;) {
        p = kr_form_read(l, p, &f);
        const kr_letters before = *l;
        const fit fits = rank_fits(&f, s) ? match_form(l, &f, s, i, settle) : FAILS;
        if (fits != FAILS) return fits;
        *l = before;
        if (*p != '|') break;
        p++;
    }
    return FAILS;
}

static int known_letters(const kr_letters *l) {
    int n = l->leading_known;
    for (int k = 0; k < l->count; k++) n += l->letter[k].known;
    return n;
}

/// Goes through the operands until all fit; whenever one has said something new, those that wait before it come first.
static kr_status unify(kr_letters *l, const kr_dtype *dtype) {
    enum { FEW = 32 };
    uint32_t done = 0;
    bool settle = false;
    for (int i = 0, waits = KR_NOBODY;;) {
        if (i == l->inputs) {
            if (waits < 0) return KR_OK;
            KR_FAIL_IF(settle, KR_BAD_ARGUMENT, "%s: the shape of %s does not say all of its letters", l->op->name,
                       kr_signature_rule(l->op->signature, waits)->name);
            settle = true;
            i = waits, waits = KR_NOBODY;
            continue;
        }
        if (l->in[i].rank < 0 || (i < FEW && done >> i & 1)) {
            i++;
            continue;
        }
        const int before = known_letters(l);
        const fit fits = match(l, i, settle);
        if (fits == FAILS) return kr_signature_refuse(l, i, dtype[i]);
        if (fits == FITS && i < FEW) done |= 1u << i;
        const bool news = known_letters(l) > before;
        if (fits == WAITS && waits < 0) waits = i;
        if (news && waits >= 0 && (waits < i || settle)) {
            i = waits, waits = KR_NOBODY;
            settle = false;
        } else i++;
    }
}

static kr_status check_attributes(const kr_op *op, const kr_attrs *t) {
    const kr_signature *s = op->signature;
    for (int k = 0; k < KR_ATTR_INTEGERS + KR_ATTR_REALS; k++) {
        const bool real = k >= KR_ATTR_INTEGERS;
        const int at = real ? k - KR_ATTR_INTEGERS : k;
        const kr_attr_range *r = real ? &s->r[at] : &s->i[at];
        const double value = real ? t->r[at] : (double)t->i[at];
        if (!r->given || (value >= r->least && value <= r->most)) continue;
        const char *name = real ? op->attr.r[at] : op->attr.i[at];
        const int digits = real ? 6 : 17;
        if (r->most > 1e300)
            KR_FAIL(KR_BAD_ARGUMENT, "%s: %s is %.*g, want at least %g", op->name, name, digits, value, r->least);
        KR_FAIL(KR_BAD_ARGUMENT, "%s: %s is %.*g, want %g to %g", op->name, name, digits, value, r->least, r->most);
    }
    return KR_OK;
}

/// What can be said of each input alone: it is there or may be missing, and its dtype.
static kr_status check_presence(kr_letters *l, const kr_dtype *dtype) {
    for (int i = 0; i < l->inputs; i++) {
        const kr_operand_rule *r = kr_signature_rule(l->op->signature, i);
        const bool none = kr_rule_absent(kr_rule_side(l, r->shape));
        if (l->in[i].rank < 0) {
            if (none || r->flags & KR_OPTIONAL) continue;
            kr_line to = {.at = 0};
            kr_say_wanted(l, &to, r->shape, i);
            KR_FAIL(KR_BAD_ARGUMENT, "%s: %s is missing, want %s", l->op->name, r->name, to.text);
        }
        if (none || dtype[i] != r->dtype) return kr_signature_refuse(l, i, dtype[i]);
    }
    return KR_OK;
}

static kr_status derive(kr_letters *l, const kr_operand_rule *r, kr_shape *out) {
    if (*r->shape == '@') {
        for (int i = 0; i < l->inputs; i++)
            if (!strcmp(l->op->signature->in[i].name, r->shape + 1))
                *out = l->in[i].rank >= 0 ? l->in[i] : (kr_shape){1, {0}};
    } else {
        kr_form f;
        kr_line to = {.at = 0};
        const char *side = kr_rule_side(l, r->shape);
        kr_form_read(l, side, &f);
        if (!kr_form_lengths(l, &f, out)) {
            kr_say_words(l, &to, side, side + strlen(side), KR_NOBODY);
            KR_FAIL(KR_BAD_SHAPE, "%s: %s would be [%s]%s, which is no shape of at most %d axes and 2^47 bytes",
                    l->op->name, r->name, side, to.text, KR_MAX_RANK);
        }
    }
    char text[160];
    KR_FAIL_IF(kr_tensor_bytes(r->dtype, out) == SIZE_MAX, KR_BAD_SHAPE, "%s: %s would be %s, which is too large",
               l->op->name, r->name, kr_shape_text(out, text));
    return KR_OK;
}

// What the others see ---------------------------------------------------------------------------------------------

int64_t kr_letter(const kr_letters *l, const char *name) {
    for (int k = 0; k < l->count; k++)
        if (kr_word_is(l->letter[k].name, l->letter[k].length, name))
            return l->letter[k].known ? l->letter[k].value : -1;
    return -1;
}

kr_status kr_letter_let(kr_letters *l, const char *name, int64_t value) {
    kr_letter_entry *x = &l->letter[kr_letter_place(l, name, (int)strlen(name))];
    const bool differs = x->known && x->value != value;
    const int from = x->from;
    x->known = true;
    x->value = value;
    x->from = KR_NOBODY;
    return differs && from >= 0 ? kr_signature_refuse(l, from, kr_signature_rule(l->op->signature, from)->dtype)
                                : KR_OK;
}

const char *kr_op_input_name(const kr_op *op, int input) {
    return op->signature ? kr_signature_rule(op->signature, input)->name : NULL;
}

bool kr_op_may_miss(const kr_op *op, int input) {
    if (!op->signature) return false;
    const kr_operand_rule *r = kr_signature_rule(op->signature, input);
    return r->flags & KR_OPTIONAL || strstr(r->shape, "absent");
}

kr_status kr_op_shapes(const kr_op *op, const kr_attrs *attrs, const kr_shape *in, const kr_dtype *dtype, int inputs,
                       kr_shape *out, kr_dtype *out_dtype) {
    static const kr_attrs none;
    if (!attrs) attrs = &none;
    if (!op->signature) return op->shape(attrs, in, dtype, inputs, out, out_dtype);
    kr_letters l;
    l.op = op;
    l.attrs = attrs;
    l.in = in;
    l.inputs = inputs;
    l.count = 0;
    l.leading_known = false;
    KR_TRY(check_attributes(op, attrs));
    KR_TRY(check_presence(&l, dtype));
    KR_TRY(unify(&l, dtype));
    if (op->check) KR_TRY(op->check(op, attrs, in, &l));
    for (int k = 0; op->signature->out[k].name; k++) {
        KR_TRY(derive(&l, &op->signature->out[k], &out[k]));
        out_dtype[k] = op->signature->out[k].dtype;
    }
    return KR_OK;
}
