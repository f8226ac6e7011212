// The words of the text form: blanks, names, numbers, strings and types, each with a message that says where it stands.
#include "ops/graph/text.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

enum { LONGEST_STRING = 1024, LONGEST_NUMBER = 48 };

// Places and messages ---------------------------------------------------------------------------------------------

static void place(const kr_reader *r, const char *where, int *line, int *column) {
    const char *start = r->begin;
    *line = 1;
    for (const char *c = r->begin; c < where; c++)
        if (*c == '\n') {
            ++*line;
            start = c + 1;
        }
    *column = (int)(where - start) + 1;
}

kr_status kr_reader_fail(const kr_reader *r, const char *where, kr_status code, const char *format, ...) {
    char text[900];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    int line, column;
    place(r, where, &line, &column);
    return kr_status_record(code, __FILE__, __LINE__, "%s:%d:%d: %s", r->label, line, column, text);
}

const char *kr_reader_found(const kr_reader *r, char text[40]) {
    if (r->at == r->end) return "the end of the text";
    if (*r->at == '\n') return "the end of the line";
    const unsigned char c = (unsigned char)*r->at;
    if (c < 0x20 || c >= 0x7f) {
        snprintf(text, 40, "the byte 0x%02x", c);
        return text;
    }
    int n = 0;
    while (r->at + n < r->end && n < 24 && r->at[n] > ' ' && r->at[n] < 0x7f && !strchr(",()[]{}=:", r->at[n])) n++;
    snprintf(text, 40, "'%.*s'", n ? n : 1, r->at);
    return text;
}

// Words -----------------------------------------------------------------------------------------------------------

void kr_reader_skip(kr_reader *r) {
    while (r->at < r->end && (*r->at == ' ' || *r->at == '\t' || *r->at == '\r')) r->at++;
    if (r->at < r->end && *r->at == '#')
        while (r->at < r->end && *r->at != '\n') r->at++;
}

bool kr_reader_take(kr_reader *r, char c) {
    kr_reader_skip(r);
    if (r->at == r->end || *r->at != c) return false;
    r->at++;
    return true;
}

kr_status kr_reader_expect(kr_reader *r, char c, const char *after) {
    char text[40];
    if (!kr_reader_take(r, c)) KR_WRONG(r->at, "expected '%c' %s, found %s", c, after, kr_reader_found(r, text));
    return KR_OK;
}

kr_status kr_reader_expect_line_end(kr_reader *r) {
    kr_reader_skip(r);
    char text[40];
    KR_WRONG_IF(r->at < r->end && *r->at != '\n', r->at, "expected the end of the line, found %s",
                kr_reader_found(r, text));
    return KR_OK;
}

kr_status kr_reader_word(kr_reader *r, const char *what, char out[64]) {
    kr_reader_skip(r);
    char text[40];
    const char *start = r->at;
    KR_WRONG_IF(r->at == r->end || !kr_is_letter(*r->at), r->at, "expected %s, found %s", what,
                kr_reader_found(r, text));
    while (r->at < r->end && (kr_is_letter(*r->at) || kr_is_digit(*r->at))) r->at++;
    KR_WRONG_IF(r->at - start > 63, start, "expected %s, found a word of %ld characters", what, (long)(r->at - start));
    memcpy(out, start, (size_t)(r->at - start));
    out[r->at - start] = 0;
    return KR_OK;
}

bool kr_reader_take_word(kr_reader *r, const char *wanted) {
    kr_reader_skip(r);
    const size_t n = strlen(wanted);
    if ((size_t)(r->end - r->at) < n || memcmp(r->at, wanted, n)) return false;
    if ((size_t)(r->end - r->at) > n && (kr_is_letter(r->at[n]) || kr_is_digit(r->at[n]))) return false;
    r->at += n;
    return true;
}

static kr_status read_number(kr_reader *r, const char *what, char out[LONGEST_NUMBER]) {
    kr_reader_skip(r);
    char text[40];
    const char *start = r->at;
    while (r->at < r->end &&
           (kr_is_letter(*r->at) || kr_is_digit(*r->at) || *r->at == '.' || *r->at == '+' || *r->at == '-'))
        r->at++;
    if (r->at == start || r->at - start >= LONGEST_NUMBER) {
        r->at = start;
        KR_WRONG(start, "expected %s, found %s", what, kr_reader_found(r, text));
    }
    memcpy(out, start, (size_t)(r->at - start));
    out[r->at - start] = 0;
    return KR_OK;
}

kr_status kr_reader_integer(kr_reader *r, const char *what, int64_t *out) {
    char text[LONGEST_NUMBER], *rest;
    KR_TRY(read_number(r, what, text));
    const char *start = r->at - strlen(text);
    int64_t magnitude = 0;
    const bool negative = text[0] == '-';
    for (rest = text + negative; kr_is_digit(*rest); rest++)
        if (__builtin_mul_overflow(magnitude, 10, &magnitude) ||
            __builtin_sub_overflow(magnitude, *rest - '0', &magnitude))
            KR_WRONG(start, "%s %s does not fit in 64 bits", what, text);
    KR_WRONG_IF(*rest || rest == text + negative, start, "expected %s, found '%s'", what, text);
    KR_WRONG_IF(!negative && magnitude == INT64_MIN, start, "%s %s does not fit in 64 bits", what, text);
    *out = negative ? magnitude : -magnitude; // counted downwards, where there is room for -2^63
    return KR_OK;
}

kr_status kr_reader_real(kr_reader *r, const char *what, double *out) {
    char text[LONGEST_NUMBER], *rest;
    KR_TRY(read_number(r, what, text));
    *out = strtod(text, &rest);
    KR_WRONG_IF(*rest || rest == text, r->at - strlen(text), "expected %s, found '%s'", what, text);
    return KR_OK;
}

static int hex_digit(char c) { return kr_is_digit(c) ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1; }

kr_status kr_reader_string(kr_reader *r, const char *what, const char **out) {
    KR_TRY(kr_reader_expect(r, '"', what));
    const char *start = r->at - 1;
    char text[LONGEST_STRING + 1];
    int n = 0;
    while (r->at < r->end && *r->at != '"' && *r->at != '\n') {
        unsigned char c = (unsigned char)*r->at++;
        KR_WRONG_IF(c < 0x20 || c == 0x7f, r->at - 1, "a string has the bare control byte 0x%02x: write \\x%02x", c, c);
        if (c == '\\') {
            const long left = r->end - r->at;
            if (left >= 1 && (*r->at == '"' || *r->at == '\\')) {
                c = (unsigned char)*r->at++;
            } else {
                const int value = left >= 3 && *r->at == 'x' && hex_digit(r->at[1]) >= 0 && hex_digit(r->at[2]) >= 0
                                      ? hex_digit(r->at[1]) * 16 + hex_digit(r->at[2])
                                      : 0;
                KR_WRONG_IF(!value, r->at - 1,
                            "a string has an unknown escape: \\\", \\\\ and \\x01 to \\xff are known");
                c = (unsigned char)value;
                r->at += 3;
            }
        }
        KR_WRONG_IF(n == LONGEST_STRING, start, "a string is longer than %d bytes", LONGEST_STRING);
        text[n++] = (char)c;
    }
    KR_WRONG_IF(r->at == r->end || *r->at != '"', start, "a string is not closed on its line");
    r->at++;
    text[n] = 0;
    *out = kr_pool_text(r->pool, text);
    if (!*out) KR_FAIL(KR_NO_MEMORY, "%s: no memory", r->label);
    return KR_OK;
}

kr_status kr_reader_dims(kr_reader *r, kr_shape *out, bool sizes) {
    *out = (kr_shape){0};
    KR_TRY(kr_reader_expect(r, '[', "before the dimensions of a shape"));
    if (kr_reader_take(r, ']')) return KR_OK;
    do {
        kr_reader_skip(r);
        const char *where = r->at;
        KR_WRONG_IF(out->rank == KR_MAX_RANK, where, "a shape has more than %d dimensions", KR_MAX_RANK);
        int64_t *d = &out->dim[out->rank++];
        KR_TRY(kr_reader_integer(r, "a dimension", d));
        KR_WRONG_IF(sizes && *d < 0, where, "dimension %lld is negative", (long long)*d);
    } while (kr_reader_take(r, ','));
    return kr_reader_expect(r, ']', "after the dimensions of a shape");
}

kr_status kr_reader_type(kr_reader *r, kr_dtype *dtype, kr_shape *shape) {
    char name[64];
    kr_reader_skip(r);
    const char *where = r->at;
    KR_TRY(kr_reader_word(r, "a type such as f32[2,3]", name));
    KR_WRONG_IF(!kr_dtype_parse(name, dtype), where, "unknown dtype '%s' (f32, f64, bf16, i32, i64, u8, bool)",
                name);
    return kr_reader_dims(r, shape, true);
}
