/// What the files of the unifier share: a signature as it is read, and what its letters stand for so far.
#ifndef KRAIT_OPS_GRAPH_SIGNATURE_FORM_H
#define KRAIT_OPS_GRAPH_SIGNATURE_FORM_H

#include "ops/graph/signature.h"

#include <string.h>

enum { KR_LETTERS = 16, KR_FACTORS = 4, KR_NOBODY = -1 };

typedef struct kr_letter_entry {
    const char *name;
    int length, from; ///< the operand that said it, or KR_NOBODY
    bool known;
    int64_t value;
} kr_letter_entry;

struct kr_letters {
    const kr_op *op;
    const kr_attrs *attrs;
    const kr_shape *in;
    int inputs, count;
    kr_letter_entry letter[KR_LETTERS];
    bool leading_known;
    int leading_from;
    kr_shape leading;
};

/// One axis: letters, times `scale` (attributes and numbers), plus `more`.
typedef struct kr_axis {
    int letter[KR_FACTORS], letters;
    int64_t scale, more;
    bool overflow;
} kr_axis;
/// One alternative of a rule.
typedef struct kr_form {
    kr_axis axis[KR_MAX_RANK];
    int axes;
    bool leading, or_none;
} kr_form;

// signature_form.c: the language
const kr_operand_rule *kr_signature_rule(const kr_signature *, int input);
/// The side of "attribute ? yes : no" that holds, or all of the text.
const char *kr_rule_side(const kr_letters *, const char *text);
bool kr_rule_absent(const char *side);
/// Reads one alternative; gives its end.
const char *kr_form_read(kr_letters *, const char *text, kr_form *);
/// The lengths of a form; false when a letter is not known, or they are no shape.
bool kr_form_lengths(const kr_letters *, const kr_form *, kr_shape *out);
int kr_letter_place(kr_letters *, const char *word, int length);
int64_t kr_letter_attribute(const kr_letters *, const char *word, int length);
int kr_word_length(const char *);
static inline bool kr_word_is(const char *word, int length, const char *name) {
    return *word == *name && !strncmp(word, name, (size_t)length) && !name[length];
}
static inline bool kr_is_digit(char c) { return c >= '0' && c <= '9'; }
static inline bool kr_is_lower(char c) { return c >= 'a' && c <= 'z'; }
static inline const char *kr_skip_blanks(const char *p) {
    while (*p == ' ') p++; // graphs are verified often: no calls for a blank or a letter
    return p;
}

// signature_text.c: messages
typedef struct kr_line {
    char text[640];
    size_t at;
} kr_line;
/// Appends " with B = 2, L = 16 (from x)": what the words between text and end stand for; `operand` goes without
/// saying.
void kr_say_words(kr_letters *, kr_line *, const char *text, const char *end, int operand);
/// Appends what a rule wants.
void kr_say_wanted(kr_letters *, kr_line *, const char *rule, int operand);
/// The error of an input that does not fit.
kr_status kr_signature_refuse(kr_letters *, int input, kr_dtype);

#endif
