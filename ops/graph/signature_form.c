#include "ops/graph/signature_form.h"

#include <string.h>

const kr_operand_rule *kr_signature_rule(const kr_signature *s, int i) {
    for (int k = 0; k <= i; k++)
        if (!s->in[k].name) return &s->in[k ? k - 1 : 0]; // variadic ops: the last one stands for all behind it
    return &s->in[i];
}

int kr_word_length(const char *p) {
    int n = 0;
    while (kr_is_digit(p[n]) || kr_is_lower(p[n]) || (p[n] >= 'A' && p[n] <= 'Z') || p[n] == '_') n++;
    return n;
}

int64_t kr_letter_attribute(const kr_letters *l, const char *word, int length) {
    for (int k = 0; k < KR_ATTR_INTEGERS && l->op->attr.i[k]; k++)
        if (kr_word_is(word, length, l->op->attr.i[k])) return l->attrs->i[k];
    return 0; // a test over the table reads every signature: there is no word without its attribute
}

int kr_letter_place(kr_letters *l, const char *word, int length) {
    for (int k = 0; k < l->count; k++)
        if (*l->letter[k].name == *word && l->letter[k].length == length &&
            (length == 1 || !memcmp(l->letter[k].name, word, (size_t)length)))
            return k;
    if (l->count == KR_LETTERS) return KR_LETTERS - 1;
    l->letter[l->count] = (kr_letter_entry){.name = word, .length = length, .from = KR_NOBODY};
    return l->count++;
}

static int64_t number(const char **p) {
    int64_t n = 0;
    for (; kr_is_digit(**p); ++*p) n = n * 10 + (**p - '0');
    return n;
}

static const char *read_axis(kr_letters *l, const char *p, kr_axis *a) {
    a->letters = 0;
    a->scale = 1;
    a->more = 0;
    a->overflow = false;
    for (;; p++) {
        if (kr_is_digit(*p) || kr_is_lower(*p)) {
            const int length = kr_word_length(p);
            const int64_t factor = kr_is_digit(*p) ? number(&p) : kr_letter_attribute(l, p, length);
            if (kr_is_lower(*p)) p += length;
            a->overflow |= __builtin_mul_overflow(a->scale, factor, &a->scale);
        } else {
            const int length = kr_word_length(p);
            if (a->letters < KR_FACTORS) a->letter[a->letters++] = kr_letter_place(l, p, length);
            p += length;
        }
        if (*p != '*') break;
    }
    if (*p == '+' || *p == '-') {
        const bool less = *p++ == '-';
        a->more = number(&p);
        if (less) a->more = -a->more;
    }
    return p;
}

const char *kr_form_read(kr_letters *l, const char *p, kr_form *f) {
    f->axes = 0;
    f->leading = f->or_none = false;
    for (p = kr_skip_blanks(p); *p && *p != '|' && *p != ':'; p = kr_skip_blanks(p)) {
        if (*p == '.') {
            p += 3;
            f->leading = true;
            f->or_none = *p == '?';
            p += f->or_none;
        } else p = read_axis(l, p, &f->axis[f->axes < KR_MAX_RANK ? f->axes++ : KR_MAX_RANK - 1]);
    }
    return p;
}

const char *kr_rule_side(const kr_letters *l, const char *text) {
    if (!kr_is_lower(*text)) return text;
    const int length = kr_word_length(text);
    const char *p = kr_skip_blanks(text + length);
    if (*p != '?') return text;
    if (kr_letter_attribute(l, text, length)) return kr_skip_blanks(p + 1);
    return kr_skip_blanks(strchr(p, ':') + 1);
}
bool kr_rule_absent(const char *side) { return !strncmp(side, "absent", 6); }

bool kr_form_lengths(const kr_letters *l, const kr_form *f, kr_shape *out) {
    const int leading = f->leading ? l->leading.rank : 0;
    if ((f->leading && !l->leading_known) || leading + f->axes > KR_MAX_RANK) return false;
    *out = f->leading ? l->leading : (kr_shape){0, {0}};
    for (int k = 0; k < f->axes; k++) {
        const kr_axis *a = &f->axis[k];
        int64_t n = a->scale;
        bool overflow = a->overflow, none = n == 0;
        for (int j = 0; j < a->letters; j++) {
            const kr_letter_entry *x = &l->letter[a->letter[j]];
            if (!x->known) return false;
            none |= x->value == 0;
            overflow |= __builtin_mul_overflow(n, x->value, &n);
        }
        if (none) n = 0;
        if ((overflow && !none) || __builtin_add_overflow(n, a->more, &n) || n < 0) return false;
        out->dim[out->rank++] = n;
    }
    return true;
}
