/// The header of a safetensors file: an 8-byte length (little endian), then JSON of that many bytes,
///
///   {"__metadata__": {"key": "text", ...}, "name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...}
///
/// padded with spaces; then the data, which the tensors' ranges tile without gap or overlap.
///
/// Nothing here is to be trusted. Two readers look at the text: `scan` walks its bytes without allocating by its
/// content, and refuses what would make a general JSON library use much memory (nesting, long arrays) or drop
/// information silently (names that occur twice, zero bytes); it notes where every name stands, for messages. Then
/// json-c parses it strictly, and every value is checked for type, range and consistency.
#include "runtime/files/internal.h"

#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>

enum { DEEPEST = 3, LONGEST_ARRAY = 32, SHORTEST_ENTRY = 40 }; // header, tensor, shape

// Dtypes that the format has; those without a dtype of ours are refused by name.
static const struct {
    const char *name;
    int dtype;
} known[] = {
    {"F32", KR_F32},   {"F64", KR_F64}, {"BF16", KR_BF16}, {"I32", KR_I32}, {"I64", KR_I64}, {"U8", KR_U8},
    {"BOOL", KR_BOOL}, {"F16", -1},     {"I8", -1},        {"I16", -1},     {"U16", -1},     {"U32", -1},
    {"U64", -1},       {"F8_E4M3", -1}, {"F8_E5M2", -1},   {"F8_E8M0", -1},
};

const char *kr_tensors_dtype(kr_dtype dtype) {
    for (size_t k = 0; k < sizeof known / sizeof *known; k++)
        if (known[k].dtype == (int)dtype) return known[k].name;
    return NULL;
}

size_t kr_utf8_span(const char *text, size_t bytes) {
    const unsigned char *s = (const unsigned char *)text;
    size_t at = 0;
    while (at < bytes) {
        const unsigned c = s[at];
        const size_t more = c < 0x80                ? 0
                            : c >= 0xC2 && c < 0xE0 ? 1
                            : (c & 0xF0) == 0xE0    ? 2
                            : c >= 0xF0 && c < 0xF5 ? 3
                                                    : 9;
        if (more > bytes - at - 1) return at;
        for (size_t k = 1; k <= more; k++)
            if ((s[at + k] & 0xC0) != 0x80) return at;
        const unsigned next = more ? s[at + 1] : 0;
        const bool overlong = (c == 0xE0 && next < 0xA0) || (c == 0xF0 && next < 0x90);
        const bool beyond = (c == 0xED && next >= 0xA0) || (c == 0xF4 && next >= 0x90); // surrogates, above 10FFFF
        if (overlong || beyond) return at;
        at += more + 1;
    }
    return at;
}

const char *kr_printable(const char *name, char text[128]) {
    size_t length = strlen(name);
    const bool cut = length > 100;
    if (cut) length = kr_utf8_span(name, 100);
    for (size_t k = 0; k < length; k++) text[k] = (unsigned char)name[k] < 32 || name[k] == 127 ? '?' : name[k];
    memcpy(text + length, cut ? "..." : "", cut ? 4 : 1);
    return text;
}

/// One name of the outermost object, as `scan` found it.
typedef struct key {
    uint32_t offset;  // of its opening quote
    uint32_t members; // names inside its value, where that is an object
} key;

typedef struct scanned {
    key *keys;
    size_t count, room;
    size_t end; // of the outermost object
} scanned;

static kr_status add_key(scanned *s, size_t offset, const char *label) {
    if (s->count == s->room) {
        const size_t room = s->room ? 2 * s->room : 64;
        key *more = realloc(s->keys, room * sizeof *more);
        KR_FAIL_IF(!more, KR_NO_MEMORY, "%s: no memory for a header of %zu tensors", label, room);
        s->keys = more;
        s->room = room;
    }
    s->keys[s->count++] = (key){(uint32_t)offset, 0};
    return KR_OK;
}

/// Gives the position behind the closing quote of the string that opens at `at`.
static kr_status scan_string(const char *text, size_t bytes, size_t *at, const char *label) {
    const size_t start = *at;
    for (size_t k = start + 1; k < bytes; k++) {
        KR_FAIL_IF((unsigned char)text[k] < 32, KR_BAD_FILE,
                   "%s: header byte %zu: control character 0x%02x in a string", label, k, (unsigned char)text[k]);
        if (text[k] == '"') {
            *at = k + 1;
            return KR_OK;
        }
        if (text[k] != '\\') continue;
        KR_FAIL_IF(bytes - k > 5 && memcmp(text + k, "\\u0000", 6) == 0, KR_BAD_FILE,
                   "%s: header byte %zu: zero character in a string", label, k);
        k++;
    }
    KR_FAIL(KR_BAD_FILE, "%s: header byte %zu: a string that does not end", label, start);
}

static kr_status scan(const char *text, size_t bytes, const char *label, scanned *s) {
    const size_t valid = kr_utf8_span(text, bytes);
    KR_FAIL_IF(valid < bytes, KR_BAD_FILE, "%s: header byte %zu: not UTF-8", label, valid);
    KR_FAIL_IF(bytes == 0 || text[0] != '{', KR_BAD_FILE, "%s: header byte 0: does not start with {", label);
    char open[DEEPEST];
    int depth = 0, commas[DEEPEST];
    size_t string = 0;
    for (size_t at = 0; at < bytes;) {
        const char c = text[at];
        const bool inside = depth > 0 || at == 0;
        KR_FAIL_IF(!inside && !strchr(" \t\r\n", c ? c : 'x'), KR_BAD_FILE,
                   "%s: header byte %zu: more text behind the end of the header's object", label, at);
        if (c == '"') {
            string = at;
            KR_TRY(scan_string(text, bytes, &at, label));
            continue;
        }
        if (c == '{' || c == '[') {
            KR_FAIL_IF(depth == DEEPEST, KR_BAD_FILE, "%s: header byte %zu: nested deeper than a tensor's shape", label,
                       at);
            commas[depth] = 0;
            open[depth++] = c;
        } else if (c == '}' || c == ']') {
            KR_FAIL_IF(open[depth - 1] != (c == '}' ? '{' : '['), KR_BAD_FILE, "%s: header byte %zu: %c closes %c",
                       label, at, c, open[depth - 1]);
            if (--depth == 0) s->end = at + 1;
        } else if (c == ':' && depth == 1) {
            KR_TRY(add_key(s, string, label));
        } else if (c == ':' && depth == 2 && s->count) {
            s->keys[s->count - 1].members++;
        } else if (c == ',' && open[depth - 1] == '[') {
            KR_FAIL_IF(++commas[depth - 1] == LONGEST_ARRAY, KR_BAD_FILE,
                       "%s: header byte %zu: an array of more than %d numbers", label, at, LONGEST_ARRAY);
        } else {
            const bool plain = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
            KR_FAIL_IF(!plain && (!c || !strchr(" \t\r\n:,+-.", c)), KR_BAD_FILE,
                       "%s: header byte %zu: unexpected byte 0x%02x", label, at, (unsigned char)c);
        }
        at++;
    }
    KR_FAIL_IF(depth != 0, KR_BAD_FILE, "%s: header byte %zu: the header ends inside its object", label, bytes);
    KR_FAIL_IF(s->count > bytes / SHORTEST_ENTRY + 16, KR_BAD_FILE,
               "%s: %zu names in %zu bytes of header cannot be right", label, s->count, bytes);
    return KR_OK;
}

/// A name as json-c reads it, its escapes resolved; null when there is no memory.
static json_object *decode_name(const char *text, const scanned *s, size_t index, const char *label) {
    const size_t begin = s->keys[index].offset;
    size_t end = begin;
    if (scan_string(text, s->end, &end, label)) return NULL;
    json_tokener *tok = json_tokener_new_ex(1);
    json_object *name = tok ? json_tokener_parse_ex(tok, text + begin, (int)(end - begin)) : NULL;
    if (tok) json_tokener_free(tok);
    return name;
}

/// json-c keeps the last of equal names and says nothing. Its object lists first occurrences in order, so the first
/// name in the text that is not next in that list occurred before.
static kr_status fail_twice(const char *text, const scanned *s, json_object *root, const char *label) {
    char shown[128];
    size_t at = 0;
    const struct lh_entry *next = json_object_get_object(root)->head;
    json_object *name = NULL;
    for (bool same = true; same && at < s->count; at += same) {
        json_object_put(name);
        name = decode_name(text, s, at, label);
        same = name && next && strcmp(json_object_get_string(name), lh_entry_k(next)) == 0;
        if (same) next = next->next;
    }
    kr_printable(name ? json_object_get_string(name) : "", shown);
    json_object_put(name);
    KR_FAIL(KR_BAD_FILE, "%s: header byte %u: '%s' occurs twice", label, s->keys[at].offset, shown);
}

static kr_status parse(const char *text, const scanned *s, const char *label, json_object **root) {
    json_tokener *tok = json_tokener_new_ex(DEEPEST + 2);
    KR_FAIL_IF(!tok, KR_NO_MEMORY, "%s: no memory to read the header", label);
    json_tokener_set_flags(tok, JSON_TOKENER_STRICT | JSON_TOKENER_VALIDATE_UTF8);
    *root = json_tokener_parse_ex(tok, text, (int)s->end);
    const enum json_tokener_error error = json_tokener_get_error(tok);
    const size_t at = json_tokener_get_parse_end(tok);
    json_tokener_free(tok);
    if (*root && json_object_is_type(*root, json_type_object)) {
        if ((size_t)json_object_object_length(*root) == s->count) return KR_OK;
        return fail_twice(text, s, *root, label);
    }
    KR_FAIL(KR_BAD_FILE, "%s: header byte %zu: %s", label, at, json_tokener_error_desc(error));
}

static kr_status read_metadata(kr_tensor_file *f, json_object *object, const key *k, const char *label) {
    KR_FAIL_IF(!json_object_is_type(object, json_type_object), KR_BAD_FILE,
               "%s: header byte %u: __metadata__ is not an object", label, k->offset);
    const int pairs = json_object_object_length(object);
    KR_FAIL_IF((uint32_t)pairs != k->members, KR_BAD_FILE, "%s: header byte %u: a key of __metadata__ occurs twice",
               label, k->offset);
    f->metadata = kr_pool_take(f->pool, 2 * sizeof *f->metadata * (size_t)pairs);
    if (!f->metadata) return KR_NO_MEMORY;
    json_object_object_foreach(object, name, value) {
        char shown[128];
        KR_FAIL_IF(!json_object_is_type(value, json_type_string), KR_BAD_FILE,
                   "%s: header byte %u: __metadata__ '%s' is not a string", label, k->offset,
                   kr_printable(name, shown));
        f->metadata[2 * f->pairs] = kr_pool_text(f->pool, name);
        f->metadata[2 * f->pairs + 1] = kr_pool_text(f->pool, json_object_get_string(value));
        if (!f->metadata[2 * f->pairs] || !f->metadata[2 * f->pairs + 1]) return KR_NO_MEMORY;
        f->pairs++;
    }
    return KR_OK;
}

/// An array of integers from 0 to INT64_MAX - 1. False when it is anything else.
static bool read_integers(json_object *array, int64_t *out, size_t limit, size_t *count) {
    if (!json_object_is_type(array, json_type_array)) return false;
    *count = json_object_array_length(array);
    for (size_t k = 0; k < *count; k++) {
        json_object *item = json_object_array_get_idx(array, k);
        if (!json_object_is_type(item, json_type_int)) return false;
        const int64_t n = json_object_get_int64(item); // out of range comes clamped
        if (n < 0 || n == INT64_MAX) return false;
        if (k < limit) out[k] = n;
    }
    return true;
}

static kr_status read_dtype(json_object *value, const char *at, kr_dtype *out) {
    KR_FAIL_IF(!json_object_is_type(value, json_type_string), KR_BAD_FILE, "%s: dtype is missing or not a string", at);
    const char *text = json_object_get_string(value);
    char shown[128];
    for (size_t k = 0; k < sizeof known / sizeof *known; k++) {
        if (strcmp(text, known[k].name) != 0) continue;
        KR_FAIL_IF(known[k].dtype < 0, KR_UNSUPPORTED,
                   "%s: dtype %s cannot be read; convert the file to F32, F64, BF16, I32, I64, U8 or BOOL", at, text);
        *out = (kr_dtype)known[k].dtype;
        return KR_OK;
    }
    KR_FAIL(KR_BAD_FILE, "%s: there is no dtype '%s'", at, kr_printable(text, shown));
}

/// `at` starts every message: file, header byte and name.
static kr_status read_entry(json_object *object, uint64_t data_bytes, const char *at, kr_tensor_entry *e,
                            size_t *offset) {
    KR_FAIL_IF(!json_object_is_type(object, json_type_object), KR_BAD_FILE, "%s: is not an object", at);
    KR_TRY(read_dtype(json_object_object_get(object, "dtype"), at, &e->dtype));
    size_t rank, two;
    int64_t range[2];
    KR_FAIL_IF(!read_integers(json_object_object_get(object, "shape"), e->shape.dim, KR_MAX_RANK, &rank), KR_BAD_FILE,
               "%s: shape is missing or not an array of sizes", at);
    KR_FAIL_IF(rank > KR_MAX_RANK, KR_UNSUPPORTED, "%s: shape has %zu axes, at most %d can be read", at, rank,
               (int)KR_MAX_RANK);
    e->shape.rank = (int32_t)rank;
    KR_FAIL_IF(!read_integers(json_object_object_get(object, "data_offsets"), range, 2, &two) || two != 2, KR_BAD_FILE,
               "%s: data_offsets is missing or not an array of two offsets", at);
    KR_FAIL_IF(range[0] > range[1], KR_BAD_FILE, "%s: data_offsets run backwards, from %lld to %lld", at,
               (long long)range[0], (long long)range[1]);
    KR_FAIL_IF((uint64_t)range[1] > data_bytes, KR_BAD_FILE,
               "%s: data_offsets end at byte %lld, but there are only %llu bytes of data; is the file cut?", at,
               (long long)range[1], (unsigned long long)data_bytes);
    char shape[160];
    e->bytes = kr_tensor_bytes(e->dtype, &e->shape);
    KR_FAIL_IF(e->bytes == SIZE_MAX, KR_BAD_FILE, "%s: %s of shape %s is more than a process can address", at,
               kr_dtype_name(e->dtype), kr_shape_text(&e->shape, shape));
    KR_FAIL_IF(e->bytes != (uint64_t)(range[1] - range[0]), KR_BAD_FILE, "%s: %s of shape %s does not take %lld bytes",
               at, kr_dtype_name(e->dtype), kr_shape_text(&e->shape, shape), (long long)(range[1] - range[0]));
    *offset = (size_t)range[0];
    return KR_OK;
}

typedef struct range {
    size_t begin, end;
    const char *name;
} range;

static int by_begin(const void *a, const void *b) {
    const range *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return x->end < y->end ? -1 : x->end > y->end;
}

/// The ranges must tile the data: what lies between tensors could hide anything, and the format forbids it.
static kr_status check_tiling(const kr_tensor_file *f, uint64_t data_bytes, const char *label) {
    range *ranges = calloc((size_t)f->count + 1, sizeof *ranges);
    KR_FAIL_IF(!ranges, KR_NO_MEMORY, "%s: no memory for a header of %d tensors", label, f->count);
    for (int k = 0; k < f->count; k++)
        ranges[k] = (range){f->offsets[k], f->offsets[k] + f->entries[k].bytes, f->entries[k].name};
    ranges[f->count] = (range){(size_t)data_bytes, (size_t)data_bytes, "the end"};
    qsort(ranges, (size_t)f->count, sizeof *ranges, by_begin);
    kr_status status = KR_OK;
    char name[128], other[128];
    size_t end = 0;
    for (int k = 0; k <= f->count && !status; k++) {
        kr_printable(ranges[k].name, name);
        if (ranges[k].begin < end) {
            status = kr_status_record(KR_BAD_FILE, __FILE__, __LINE__, "%s: '%s' at data byte %zu overlaps '%s'", label,
                                      name, ranges[k].begin, kr_printable(ranges[k - 1].name, other));
        } else if (ranges[k].begin > end) {
            status = kr_status_record(KR_BAD_FILE, __FILE__, __LINE__,
                                      "%s: data bytes %zu to %zu, before '%s', belong to no tensor", label, end,
                                      ranges[k].begin, name);
        }
        end = ranges[k].end;
    }
    free(ranges);
    return status;
}

static int by_name(const void *a, const void *b) {
    const kr_tensor_entry *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

static kr_status read_all(kr_tensor_file *f, json_object *root, const scanned *s, uint64_t data_bytes,
                          const char *label) {
    f->entries = kr_pool_take(f->pool, s->count * sizeof *f->entries);
    f->offsets = kr_pool_take(f->pool, s->count * sizeof *f->offsets);
    f->by_name = kr_pool_take(f->pool, s->count * sizeof *f->by_name);
    if (!f->entries || !f->offsets || !f->by_name) return KR_NO_MEMORY;
    const key *k = s->keys;
    json_object_object_foreach(root, name, value) {
        if (strcmp(name, "__metadata__") == 0) {
            KR_TRY(read_metadata(f, value, k++, label));
            continue;
        }
        char shown[128], at[1024];
        snprintf(at, sizeof at, "%.800s: header byte %u: '%s'", label, k->offset, kr_printable(name, shown));
        kr_tensor_entry *e = &f->entries[f->count];
        KR_TRY(read_entry(value, data_bytes, at, e, &f->offsets[f->count]));
        KR_FAIL_IF((uint32_t)json_object_object_length(value) != k->members, KR_BAD_FILE, "%s: a key occurs twice", at);
        e->name = kr_pool_text(f->pool, name);
        if (!e->name) return KR_NO_MEMORY;
        f->by_name[f->count++] = e;
        k++;
    }
    if (f->count) qsort(f->by_name, (size_t)f->count, sizeof *f->by_name, by_name);
    return check_tiling(f, data_bytes, label);
}

kr_status kr_tensors_header(const char *text, size_t bytes, uint64_t data_bytes, const char *label,
                            kr_tensor_file **out) {
    *out = NULL;
    KR_FAIL_IF(bytes > KR_HEADER_LIMIT, KR_BAD_FILE, "%s: a header of %zu bytes, at most %d can be right", label, bytes,
               (int)KR_HEADER_LIMIT);
    scanned s = {0};
    json_object *root = NULL;
    kr_tensor_file *f = calloc(1, sizeof *f);
    kr_status status = KR_NO_MEMORY;
    if (!f || !(f->pool = kr_pool_new())) {
        kr_status_record(status, __FILE__, __LINE__, "%s: no memory to read the header", label);
    } else {
        status = scan(text, bytes, label, &s);
        if (!status) status = parse(text, &s, label, &root);
        if (!status) status = read_all(f, root, &s, data_bytes, label);
    }
    json_object_put(root);
    free(s.keys);
    if (status) {
        if (f) kr_pool_free(f->pool);
        free(f);
        return status;
    }
    *out = f;
    return KR_OK;
}

kr_status kr_tensors_prefix(const unsigned char *prefix, uint64_t total, const char *label, size_t *header_bytes) {
    KR_FAIL_IF(total < KR_HEADER_PREFIX, KR_BAD_FILE, "%s: %llu bytes, a safetensors file has at least 8; is it cut?",
               label, (unsigned long long)total);
    uint64_t length = 0;
    for (int k = 7; k >= 0; k--) length = length << 8 | prefix[k];
    KR_FAIL_IF(length > KR_HEADER_LIMIT, KR_BAD_FILE,
               "%s: byte 0: a header of %llu bytes, at most %d can be right; is it a safetensors file?", label,
               (unsigned long long)length, (int)KR_HEADER_LIMIT);
    KR_FAIL_IF(length > total - KR_HEADER_PREFIX, KR_BAD_FILE,
               "%s: byte 0: a header of %llu bytes, but only %llu follow; is the file cut?", label,
               (unsigned long long)length, (unsigned long long)(total - KR_HEADER_PREFIX));
    *header_bytes = (size_t)length;
    return KR_OK;
}
