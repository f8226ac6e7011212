/// What printing and parsing the text form of a graph share: the words for initialisers, carry kinds and flags.
#ifndef KRAIT_OPS_GRAPH_TEXT_H
#define KRAIT_OPS_GRAPH_TEXT_H

#include "ops/graph/internal.h"

#include <locale.h>

/// First line of every text: bump it when an older reader would misunderstand what is written.
#define KR_TEXT_HEADER "krait graph 1"

/// An initialiser's word and how many of a, b, c it takes. Indexed by kr_init_kind.
typedef struct kr_text_init {
    const char *word;
    int arguments;
} kr_text_init;
static const kr_text_init kr_text_inits[KR_INIT_COUNT] = {
    [KR_INIT_ZEROS] = {"zeros", 0},           [KR_INIT_CONSTANT] = {"constant", 1},
    [KR_INIT_UNIFORM] = {"uniform", 1},       [KR_INIT_NORMAL] = {"normal", 1},
    [KR_INIT_LOG_ARANGE] = {"log_arange", 0}, [KR_INIT_LOG_UNIFORM] = {"log_uniform", 2},
    [KR_INIT_DT_BIAS] = {"dt_bias", 3},
};

/// Words for KR_CARRY_STATE, KR_CARRY_OPTIMIZER, KR_CARRY_GRADIENT.
enum { KR_TEXT_CARRIES = 3 };
static const char *const kr_text_carries[KR_TEXT_CARRIES] = {"state", "optimizer", "gradient"};

/// A number with the fewest digits that read back to the same bits.
void kr_text_real(FILE *, double);
/// In quotes, with whatever needs it escaped.
void kr_text_string(FILE *, const char *);
/// "[2,3]"
void kr_text_dims(FILE *, const kr_shape *);
/// The program of a node with KR_OP_PROGRAM, in braces.
void kr_text_program(FILE *, const kr_node *);

/// Decimal points must not depend on the program's locale: numbers are read and written between these two calls.
typedef struct kr_text_locale {
    locale_t c, before;
} kr_text_locale;
static inline kr_text_locale kr_text_locale_enter(void) {
    kr_text_locale l = {.c = newlocale(LC_NUMERIC_MASK, "C", (locale_t)0)};
    if (l.c) l.before = uselocale(l.c);
    return l;
}
static inline void kr_text_locale_leave(kr_text_locale l) {
    if (!l.c) return;
    uselocale(l.before);
    freelocale(l.c);
}

// Reading ---------------------------------------------------------------------------------------------------------

/// A place in a text, moving forward; strings that are read go to `pool`.
typedef struct kr_reader {
    const char *begin, *at, *end;
    const char *label;
    kr_pool *pool;
} kr_reader;

/// Records "label:line:column: ..." for the place `where` and gives back `code`.
__attribute__((format(printf, 4, 5), cold)) kr_status kr_reader_fail(const kr_reader *, const char *where,
                                                                     kr_status code, const char *format, ...);
#define KR_WRONG(where, ...) return kr_reader_fail(r, (where), KR_BAD_FILE, __VA_ARGS__)
#define KR_WRONG_IF(condition, where, ...)             \
    do {                                               \
        if (condition) KR_WRONG((where), __VA_ARGS__); \
    } while (0)
/// What stands at the reader, for messages: "'foo'", "the end of the line", "the end of the text".
const char *kr_reader_found(const kr_reader *, char text[40]);

static inline bool kr_is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
static inline bool kr_is_digit(char c) { return c >= '0' && c <= '9'; }

/// Skips blanks and a comment, but not the end of the line.
void kr_reader_skip(kr_reader *);
/// Skips blanks; true, and past it, when the next character is c.
bool kr_reader_take(kr_reader *, char c);
/// The same for a whole word.
bool kr_reader_take_word(kr_reader *, const char *wanted);
/// The character must be there: "expected '(' <after>, found ...".
kr_status kr_reader_expect(kr_reader *, char c, const char *after);
/// Nothing but blanks and a comment may stand before the end of the line or text.
kr_status kr_reader_expect_line_end(kr_reader *);
/// A word of letters, digits and '_'. `what` completes "expected ..." here and below.
kr_status kr_reader_word(kr_reader *, const char *what, char out[64]);
kr_status kr_reader_integer(kr_reader *, const char *what, int64_t *out);
kr_status kr_reader_real(kr_reader *, const char *what, double *out);
/// A string in quotes, with \" \\ and \x7f undone.
kr_status kr_reader_string(kr_reader *, const char *what, const char **out);
/// "[2,3]"; sizes: none may be negative.
kr_status kr_reader_dims(kr_reader *, kr_shape *out, bool sizes);
/// A program in braces, as the attributes that hold it.
kr_status kr_reader_program(kr_reader *, kr_attrs *);
/// "f32[2,3]".
kr_status kr_reader_type(kr_reader *, kr_dtype *, kr_shape *);

#endif
