#include "ops/graph/signature_form.h"

#include <stdarg.h>
#include <string.h>

__attribute__((format(printf, 2, 3))) static void say(kr_line *to, const char *format, ...) {
    va_list list;
    va_start(list, format);
    const int n = vsnprintf(to->text + to->at, sizeof to->text - to->at, format, list);
    va_end(list);
    if (n > 0) to->at += (size_t)n;
    if (to->at >= sizeof to->text) to->at = sizeof to->text - 1;
}

/// Each word once; numbers say themselves.
void kr_say_words(kr_letters *l, kr_line *to, const char *from, const char *end, int operand) {
    const char *seen[KR_LETTERS + KR_ATTR_INTEGERS];
    int count = 0, source = operand;
    for (const char *p = from; p < end; p++) {
        const int length = kr_word_length(p);
        if (!length) continue;
        bool again = kr_is_digit(*p);
        for (int k = 0; k < count; k++)
            again |= kr_word_length(seen[k]) == length && !strncmp(seen[k], p, (size_t)length);
        const kr_letter_entry *x = kr_is_lower(*p) ? NULL : &l->letter[kr_letter_place(l, p, length)];
        if (!again && count < KR_LETTERS && (!x || x->known)) {
            const int by = x && x->from >= 0 ? x->from : operand;
            if (by != source && source != operand)
                say(to, " (from %s)", kr_signature_rule(l->op->signature, source)->name);
            source = by;
            say(to, "%s%.*s = %lld", count ? ", " : " with ", length, p,
                (long long)(x ? x->value : kr_letter_attribute(l, p, length)));
            seen[count++] = p;
        }
        p += length - 1;
    }
    if (source != operand) say(to, " (from %s)", kr_signature_rule(l->op->signature, source)->name);
}

/// "[B L groups*N] = [2, 16, 32] with B = 2, L = 16 (from x), groups = 1, N = 32 (from C)"
void kr_say_wanted(kr_letters *l, kr_line *to, const char *text, int operand) {
    const char *side = kr_rule_side(l, text), *p = side, *end = side;
    int forms = 0;
    kr_form f;
    kr_shape lengths;
    char shape[160];
    for (;; forms++) {
        end = kr_form_read(l, p, &f);
        const char *last = end;
        while (last > p && last[-1] == ' ') last--;
        say(to, "%s[%.*s]", forms ? " or " : "", (int)(last - p), p);
        if (*end != '|') break;
        p = kr_skip_blanks(end + 1);
    }
    if (!forms && (f.axes || f.leading) && kr_form_lengths(l, &f, &lengths))
        say(to, " = %s", kr_shape_text(&lengths, shape));
    if (side != text) { // what chose this side stands first
        const int length = kr_word_length(text);
        say(to, " (%.*s = %lld)", length, text, (long long)kr_letter_attribute(l, text, length));
    }
    kr_say_words(l, to, side, end, operand);
}

kr_status kr_signature_refuse(kr_letters *l, int i, kr_dtype dtype) {
    const kr_operand_rule *r = kr_signature_rule(l->op->signature, i);
    const bool typed = dtype != r->dtype;
    char shape[160];
    for (int k = 0; k < l->count; k++) l->letter[k].known &= l->letter[k].from != i; // its own word does not count
    l->leading_known &= l->leading_from != i;
    kr_line to = {.at = 0};
    say(&to, "%s: %s is %s%s%s, want ", l->op->name, r->name, typed ? kr_dtype_name(dtype) : "", typed ? " " : "",
        kr_shape_text(&l->in[i], shape));
    if (typed) say(&to, "%s%s", kr_dtype_name(r->dtype), strcmp(r->shape, "any") ? " " : "");
    if (kr_rule_absent(kr_rule_side(l, r->shape))) say(&to, "none with %.*s = 0", kr_word_length(r->shape), r->shape);
    else if (strcmp(r->shape, "any")) kr_say_wanted(l, &to, r->shape, i);
    KR_FAIL(KR_BAD_SHAPE, "%s", to.text);
}
