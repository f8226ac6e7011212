/// Safetensors: what is written is read back; whatever else is in a file, it is refused with a message and no fault.
#include "runtime/runtime.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct blob {
    unsigned char *data;
    size_t bytes;
} blob;

/// A file image from a header text and so many bytes of data.
static blob image(size_t data_bytes, const char *header, size_t header_bytes) {
    blob b = {malloc(8 + header_bytes + data_bytes), 8 + header_bytes + data_bytes};
    for (int k = 0; k < 8; k++) b.data[k] = (unsigned char)(header_bytes >> 8 * k & 255);
    memcpy(b.data + 8, header, header_bytes);
    memset(b.data + 8 + header_bytes, 0x3C, data_bytes);
    return b;
}

/// Parses a copy that ends where its memory ends, so that AddressSanitizer sees any byte too far.
static kr_status parse(blob b, size_t bytes, kr_tensor_file **f) {
    static void *kept;
    free(kept);
    kept = malloc(bytes ? bytes : 1);
    memcpy(kept, b.data, bytes);
    return kr_tensors_parse(kept, bytes, "t.safetensors", f);
}

static void refuse(size_t data_bytes, const char *header, kr_status code, const char *part) {
    blob b = image(data_bytes, header, strlen(header));
    kr_tensor_file *f = NULL;
    const kr_status got = parse(b, b.bytes, &f);
    cr_assert_eq(got, code, "%.200s: got %s (%s), want %s", header, kr_status_name(got), kr_status_message(),
                 kr_status_name(code));
    cr_assert_null(f);
    const char *m = kr_status_message();
    cr_assert(strncmp(m, "t.safetensors: ", 15) == 0, "no file in: %s", m);
    cr_assert_not_null(strstr(m, part), "%.200s\n  says: %s\n  want: %s", header, m, part);
    free(b.data);
}

static void accept(size_t data_bytes, const char *header, int tensors) {
    blob b = image(data_bytes, header, strlen(header));
    kr_tensor_file *f = NULL;
    cr_assert_eq(parse(b, b.bytes, &f), KR_OK, "%.200s: %s", header, kr_status_message());
    cr_assert_eq(kr_tensors_count(f), tensors);
    kr_tensors_close(f);
    free(b.data);
}

// Round trip ---------------------------------------------------------------------------------------------------------

enum { SAMPLES = 9 };

static blob sample(void) {
    static const float f[6] = {0, -1.5f, 3e38f, 1e-40f, INFINITY, -0.0f};
    static const double d[2] = {3.141592653589793, -1e300};
    static const uint16_t h[3] = {0x3F80, 0xC000, 0x7F80};
    static const int32_t i[4] = {1, -2, INT32_MAX, INT32_MIN};
    static const int64_t l[1] = {-(INT64_C(1) << 40)};
    static const uint8_t u[3] = {0, 7, 255}, t[2] = {0, 1};
    static const kr_tensor_entry entries[SAMPLES] = {
        {"flags", KR_BOOL, {1, {2}}, t, 2},
        {"layers.0.weight", KR_F32, {2, {2, 3}}, f, 24},
        {"odd \"name\" \\ \n \xE2\x82\xAC", KR_U8, {3, {3, 1, 1}}, u, 3},
        {"scalar", KR_I64, {0, {0}}, l, 8},
        {"empty", KR_F32, {3, {4, 0, 2}}, NULL, 0},
        {"half", KR_BF16, {1, {3}}, h, 6},
        {"double", KR_F64, {1, {2}}, d, 16},
        {"ids", KR_I32, {2, {4, 1}}, i, 16},
        {"", KR_U8, {1, {1}}, u + 1, 1},
    };
    static const char *const metadata[] = {"format", "pt", "note", "a\tb \"c\""};
    blob b;
    char *data;
    FILE *to = open_memstream(&data, &b.bytes);
    cr_assert_eq(kr_tensors_write(to, entries, SAMPLES, metadata, 2), KR_OK, "%s", kr_status_message());
    fclose(to);
    b.data = (unsigned char *)data;
    return b;
}

Test(tensors, round_trip) {
    blob b = sample();
    kr_tensor_file *f;
    cr_assert_eq(parse(b, b.bytes, &f), KR_OK, "%s", kr_status_message());
    cr_assert_eq(kr_tensors_count(f), SAMPLES);
    cr_assert_str_eq(kr_tensors_metadata(f, "format"), "pt");
    cr_assert_str_eq(kr_tensors_metadata(f, "note"), "a\tb \"c\"");
    cr_assert_null(kr_tensors_metadata(f, "none"));
    cr_assert_null(kr_tensors_find(f, "none"));
    cr_assert_null(kr_tensors_find(f, "__metadata__"));
    cr_assert_null(kr_tensors_at(f, -1));
    cr_assert_null(kr_tensors_at(f, SAMPLES));
    for (int k = 0; k < SAMPLES; k++) {
        const kr_tensor_entry *e = kr_tensors_at(f, k);
        cr_assert_eq(kr_tensors_find(f, e->name), e);
        cr_assert_eq(((const char *)e->data - (const char *)kr_tensors_at(f, 0)->data) % (long)kr_dtype_size(e->dtype),
                     0);
    }
    double v[6];
    cr_assert_eq(kr_tensors_to_f64(kr_tensors_find(f, "layers.0.weight"), v, 6), KR_OK);
    cr_assert(v[0] == 0 && v[1] == -1.5 && v[2] == 3e38f && v[3] == 1e-40f && isinf(v[4]) && signbit(v[5]));
    cr_assert_eq(kr_tensors_to_f64(kr_tensors_find(f, "double"), v, 2), KR_OK);
    cr_assert(v[0] == 3.141592653589793 && v[1] == -1e300);
    cr_assert_eq(kr_tensors_to_f64(kr_tensors_find(f, "half"), v, 3), KR_OK);
    cr_assert(v[0] == 1 && v[1] == -2 && isinf(v[2]));
    cr_assert_eq(kr_tensors_to_f64(kr_tensors_find(f, "ids"), v, 4), KR_OK);
    cr_assert(v[0] == 1 && v[1] == -2 && v[2] == INT32_MAX && v[3] == INT32_MIN);
    cr_assert_eq(kr_tensors_to_f64(kr_tensors_find(f, "scalar"), v, 1), KR_OK);
    cr_assert_eq(v[0], -0x1p40);
    cr_assert_eq(kr_tensors_to_f64(kr_tensors_find(f, "odd \"name\" \\ \n \xE2\x82\xAC"), v, 3), KR_OK);
    cr_assert(v[0] == 0 && v[1] == 7 && v[2] == 255);
    cr_assert_eq(kr_tensors_to_f64(kr_tensors_find(f, "flags"), v, 2), KR_OK);
    cr_assert(v[0] == 0 && v[1] == 1);
    cr_assert_eq(kr_tensors_to_f64(kr_tensors_find(f, ""), v, 1), KR_OK);
    cr_assert_eq(kr_tensors_to_f64(kr_tensors_find(f, "empty"), v, 0), KR_OK);
    cr_assert_eq(kr_tensors_to_f64(kr_tensors_find(f, "ids"), v, 5), KR_BAD_SHAPE);
    cr_assert_not_null(strstr(kr_status_message(), "'ids' is [4, 1], want 5"));
    kr_tensors_close(f);
    free(b.data);
}

Test(tensors, the_same_arguments_give_the_same_bytes) {
    blob a = sample(), b = sample();
    cr_assert(a.bytes == b.bytes && memcmp(a.data, b.data, a.bytes) == 0);
    const size_t header = a.data[0] + 256u * a.data[1];
    cr_assert_eq((8 + header) % 64, 0, "data starts at %zu", 8 + header);
    free(a.data);
    free(b.data);
}

Test(tensors, nothing_in_nothing_out) {
    char *data;
    blob b;
    FILE *to = open_memstream(&data, &b.bytes);
    cr_assert_eq(kr_tensors_write(to, NULL, 0, NULL, 0), KR_OK);
    fclose(to);
    b.data = (unsigned char *)data;
    kr_tensor_file *f;
    cr_assert_eq(parse(b, b.bytes, &f), KR_OK, "%s", kr_status_message());
    cr_assert_eq(kr_tensors_count(f), 0);
    cr_assert_null(kr_tensors_find(f, "a"));
    cr_assert_null(kr_tensors_metadata(f, "a"));
    kr_tensors_close(f);
    free(data);
}

static void refuse_writing(kr_tensor_entry a, kr_tensor_entry b, kr_status code, const char *part) {
    FILE *to = tmpfile();
    const kr_tensor_entry entries[2] = {a, b};
    cr_assert_eq(kr_tensors_write(to, entries, 2, NULL, 0), code);
    cr_assert_not_null(strstr(kr_status_message(), part), "%s", kr_status_message());
    fclose(to);
}

Test(tensors, what_cannot_be_written) {
    float x[2] = {0};
    const kr_tensor_entry good = {"a", KR_F32, {1, {2}}, x, 8};
    kr_tensor_entry bad = good;
    refuse_writing(good, good, KR_BAD_ARGUMENT, "two tensors are called 'a'");
    bad.name = "__metadata__";
    refuse_writing(good, bad, KR_BAD_ARGUMENT, "__metadata__");
    bad.name = "\xC3(";
    refuse_writing(good, bad, KR_BAD_ARGUMENT, "not UTF-8");
    bad.name = NULL;
    refuse_writing(good, bad, KR_BAD_ARGUMENT, "null");
    bad = good;
    bad.bytes = 4;
    bad.name = "b";
    refuse_writing(good, bad, KR_BAD_SHAPE, "'b': f32 [2] does not take 4 bytes");
    bad.shape.dim[0] = -2;
    refuse_writing(good, bad, KR_BAD_SHAPE, "[-2]");
    FILE *full = fopen("/dev/full", "w");
    if (full) {
        cr_assert_eq(kr_tensors_write(full, &good, 1, NULL, 0), KR_IO);
        cr_assert_not_null(strstr(kr_status_message(), "No space left"), "%s", kr_status_message());
        fclose(full);
    }
}

// Damage -------------------------------------------------------------------------------------------------------------

Test(tensors, cut_at_every_length) {
    blob b = sample();
    for (size_t n = 0; n < b.bytes; n++) {
        kr_tensor_file *f = NULL;
        cr_assert_eq(parse(b, n, &f), KR_BAD_FILE, "%zu of %zu bytes", n, b.bytes);
        cr_assert_null(f);
        cr_assert(strncmp(kr_status_message(), "t.safetensors: ", 15) == 0, "%s", kr_status_message());
    }
    free(b.data);
}

Test(tensors, longer_than_it_says) {
    blob b = sample();
    b.data = realloc(b.data, b.bytes + 1);
    b.data[b.bytes] = 0;
    kr_tensor_file *f;
    cr_assert_eq(parse(b, b.bytes + 1, &f), KR_BAD_FILE);
    cr_assert_not_null(strstr(kr_status_message(), "belong to no tensor"), "%s", kr_status_message());
    free(b.data);
}

/// Every byte of prefix and header becomes every other byte. Some of it is still a good file (another name): then all
/// that it says of its tensors must be usable.
Test(tensors, every_header_byte_changed) {
    blob b = sample();
    const size_t header = b.data[0] + 256u * b.data[1];
    for (size_t at = 0; at < 8 + header; at++) {
        const unsigned char was = b.data[at];
        for (int to = 0; to < 256; to += at % 7 == 0 ? 1 : 9) {
            b.data[at] = (unsigned char)(to == was ? was ^ 0x80 : to);
            kr_tensor_file *f = NULL;
            const kr_status got = parse(b, b.bytes, &f);
            if (got) {
                cr_assert(got == KR_BAD_FILE || got == KR_UNSUPPORTED, "byte %zu: %s", at, kr_status_name(got));
                cr_assert_null(f);
                cr_assert(strncmp(kr_status_message(), "t.safetensors: ", 15) == 0, "%s", kr_status_message());
            } else {
                double v[8];
                for (int k = 0; k < kr_tensors_count(f); k++) {
                    const kr_tensor_entry *e = kr_tensors_at(f, k);
                    cr_assert_eq(kr_tensors_find(f, e->name), e);
                    cr_assert_eq(kr_tensors_to_f64(e, v, kr_shape_count(&e->shape)), KR_OK);
                }
                kr_tensors_close(f);
            }
        }
        b.data[at] = was;
    }
    free(b.data);
}

#define ENTRY(name, dtype, shape, from, to) \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" from "," to "]}"
#define ONE(dtype, shape, from, to) "{" ENTRY("a.b", dtype, shape, from, to) "}"

Test(tensors, hostile_lengths) {
    static const uint64_t lengths[] = {
        UINT64_MAX, INT64_MAX, (uint64_t)INT64_MAX + 1, UINT64_MAX - 7, UINT32_MAX, 100000001, 1000000, 57, 58};
    for (size_t k = 0; k < sizeof lengths / sizeof *lengths; k++) {
        blob b = image(0, ONE("F32", "[]", "0", "4"), 56);
        for (int i = 0; i < 8; i++) b.data[i] = (unsigned char)(lengths[k] >> 8 * i & 255);
        kr_tensor_file *f;
        cr_assert_eq(parse(b, b.bytes, &f), KR_BAD_FILE);
        cr_assert_not_null(strstr(kr_status_message(), "byte 0: a header of"), "%s", kr_status_message());
        free(b.data);
    }
}

Test(tensors, hostile_numbers) {
    accept(4, ONE("F32", "[]", "0", "4"), 1);
    accept(0, ONE("U8", "[0,140737488355328]", "0", "0"), 1);
    refuse(0, ONE("U8", "[0,140737488355329]", "0", "0"), KR_BAD_FILE, "more than a process can address");
    refuse(4, ONE("F32", "[]", "0", "5"), KR_BAD_FILE, "header byte 1: 'a.b': data_offsets end at byte 5");
    refuse(4, ONE("F32", "[]", "4", "0"), KR_BAD_FILE, "backwards");
    refuse(4, ONE("F32", "[]", "-4", "0"), KR_BAD_FILE, "two offsets");
    refuse(4, ONE("F32", "[]", "0", "18446744073709551620"), KR_BAD_FILE, "'a.b'");
    refuse(4, ONE("F32", "[]", "0", "4.0"), KR_BAD_FILE, "two offsets");
    refuse(4, ONE("F32", "[]", "0", "4e0"), KR_BAD_FILE, "two offsets");
    refuse(4, ONE("F32", "[]", "0", "\"4\""), KR_BAD_FILE, "two offsets");
    refuse(4, ONE("F32", "[]", "0", "4,4"), KR_BAD_FILE, "two offsets");
    refuse(4, ONE("F32", "[]", "0", "NaN"), KR_BAD_FILE, "t.safetensors");
    refuse(4, ONE("F32", "[]", "0", "Infinity"), KR_BAD_FILE, "t.safetensors");
    refuse(4, ONE("F32", "[2]", "0", "4"), KR_BAD_FILE, "f32 of shape [2] does not take 4 bytes");
    refuse(4, ONE("F32", "[-1]", "0", "4"), KR_BAD_FILE, "array of sizes");
    refuse(4, ONE("F32", "[-1,-1]", "0", "4"), KR_BAD_FILE, "array of sizes");
    refuse(4, ONE("F32", "[4611686018427387905]", "0", "4"), KR_BAD_FILE, "more than a process can address");
    refuse(4, ONE("F32", "[4294967296,4294967296]", "0", "4"), KR_BAD_FILE, "more than a process can address");
    refuse(0, ONE("F32", "[4294967296,4294967296,0]", "0", "0"), KR_BAD_FILE, "more than a process can address");
    refuse(0, ONE("F32", "[4294967296,4294967296]", "0", "0"), KR_BAD_FILE, "more than a process can address");
    refuse(4, ONE("F32", "[9223372036854775807]", "0", "4"), KR_BAD_FILE, "array of sizes");
    refuse(4, ONE("F32", "[99999999999999999999999999]", "0", "4"), KR_BAD_FILE, "array of sizes");
    refuse(4, ONE("F32", "[1,1,1,1,1,1,1]", "0", "4"), KR_UNSUPPORTED, "7 axes");
    refuse(4, ONE("F32", "[[1]]", "0", "4"), KR_BAD_FILE, "nested");
    refuse(4, ONE("F32", "null", "0", "4"), KR_BAD_FILE, "shape is missing");
    refuse(4, ONE("F32", "{}", "0", "4"), KR_BAD_FILE, "shape is missing");
}

Test(tensors, dtypes) {
    accept(1, ONE("BOOL", "[1]", "0", "1"), 1);
    refuse(2, ONE("F16", "[1]", "0", "2"), KR_UNSUPPORTED, "'a.b': dtype F16 cannot be read");
    refuse(8, ONE("U64", "[1]", "0", "8"), KR_UNSUPPORTED, "U64");
    refuse(1, ONE("F8_E4M3", "[1]", "0", "1"), KR_UNSUPPORTED, "F8_E4M3");
    refuse(4, ONE("f32", "[1]", "0", "4"), KR_BAD_FILE, "there is no dtype 'f32'");
    refuse(4, ONE("", "[1]", "0", "4"), KR_BAD_FILE, "there is no dtype ''");
    refuse(4, "{\"a\":{\"dtype\":3,\"shape\":[1],\"data_offsets\":[0,4]}}", KR_BAD_FILE,
           "dtype is missing or not a string");
    refuse(4, "{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", KR_BAD_FILE, "dtype is missing");
    refuse(4, "{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", KR_BAD_FILE, "shape is missing");
    refuse(4, "{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", KR_BAD_FILE, "data_offsets is missing");
}

Test(tensors, overlaps_and_gaps) {
    accept(8, "{" ENTRY("b", "F32", "[1]", "4", "8") "," ENTRY("a", "F32", "[1]", "0", "4") "}", 2);
    accept(4,
           "{" ENTRY("b", "F32", "[0]", "0", "0") "," ENTRY("a", "F32", "[]", "0", "4") "," ENTRY("c", "U8", "[0]", "4",
                                                                                                  "4") "}",
           3);
    refuse(4, "{" ENTRY("b", "F32", "[]", "0", "4") "," ENTRY("a", "F32", "[]", "0", "4") "}", KR_BAD_FILE, "overlaps");
    refuse(8, "{" ENTRY("b", "F32", "[]", "0", "4") "," ENTRY("a", "F32", "[]", "2", "6") "}", KR_BAD_FILE,
           "'a' at data byte 2 overlaps 'b'");
    refuse(8, "{" ENTRY("b", "F32", "[2]", "0", "8") "," ENTRY("a", "F32", "[0]", "4", "4") "}", KR_BAD_FILE,
           "overlaps");
    refuse(12, "{" ENTRY("b", "F32", "[]", "0", "4") "," ENTRY("a", "F32", "[]", "8", "12") "}", KR_BAD_FILE,
           "data bytes 4 to 8, before 'a', belong to no tensor");
    refuse(8, ONE("F32", "[]", "4", "8"), KR_BAD_FILE, "data bytes 0 to 4");
    refuse(8, ONE("F32", "[]", "0", "4"), KR_BAD_FILE, "data bytes 4 to 8, before 'the end'");
    refuse(1, "{}", KR_BAD_FILE, "belong to no tensor");
}

Test(tensors, names_that_occur_twice) {
    refuse(8, "{" ENTRY("a", "F32", "[]", "0", "4") "," ENTRY("a", "F32", "[]", "4", "8") "}", KR_BAD_FILE,
           "header byte 53: 'a' occurs twice");
    refuse(8, "{" ENTRY("a", "F32", "[]", "0", "4") "," ENTRY("\\u0061", "F32", "[]", "4", "8") "}", KR_BAD_FILE,
           "'a' occurs twice");
    refuse(8,
           "{" ENTRY("a", "F32", "[]", "0", "4") "," ENTRY("b", "F32", "[]", "4", "8") "," ENTRY("a", "F32", "[]", "4",
                                                                                                 "8") "}",
           KR_BAD_FILE, "'a' occurs twice");
    refuse(8, "{" ENTRY("\\ud800", "F32", "[]", "0", "4") "," ENTRY("\\ud801", "F32", "[]", "4", "8") "}", KR_BAD_FILE,
           "occurs twice");
    refuse(4, "{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", KR_BAD_FILE,
           "a key occurs twice");
    refuse(0, "{\"__metadata__\":{\"k\":\"1\",\"k\":\"2\"}}", KR_BAD_FILE, "__metadata__ occurs twice");
    refuse(0, "{\"__metadata__\":{},\"__metadata__\":{}}", KR_BAD_FILE, "occurs twice");
}

Test(tensors, metadata) {
    accept(0, "{\"__metadata__\":{}}", 0);
    accept(0, "{\"__metadata__\":{\"a:b\":\"{[,\\\"\"}}", 0);
    refuse(0, "{\"__metadata__\":[]}", KR_BAD_FILE, "not an object");
    refuse(0, "{\"__metadata__\":null}", KR_BAD_FILE, "not an object");
    refuse(0, "{\"__metadata__\":{\"k\":1}}", KR_BAD_FILE, "'k' is not a string");
    refuse(0, "{\"__metadata__\":{\"k\":{}}}", KR_BAD_FILE, "'k' is not a string");
}

Test(tensors, hostile_text) {
    accept(0, "{}", 0);
    accept(0, "{} \n\t \r ", 0);
    static const char *const bad[] = {
        "",
        " ",
        "[]",
        "null",
        "\"a\"",
        "3",
        "{",
        "}",
        "{}}",
        "{}{}",
        "{} x",
        "{},",
        " {}",
        "{]",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\":1}",
        "{\"a\":null}",
        "{\"a\":[]}",
        "{\"a\":\"b\"}",
        "{\"a\":{}}",
        "{\"a\":{},}",
        "{'a':{}}",
        "{a:{}}",
        "{:}",
        "{,}",
        "{\"a\" \"b\"}",
        "{\"a\":{}",
        "{\"a\":{}}}",
        "{\"a",
        "{\"a\\",
        "{\"a\\\"",
        "{\"a\\u",
        "{\"a\\u12",
        "{\"\\q\":{}}",
        "{/**/}",
        "{}//",
        "{\"a\":[}]}",
        "{\"a\":tru}",
        "{\"a\":--1}",
        "{\"a\":01}",
        "{\"a\":1e999999}",
        "{\"\\u0000\":{}}",
        "{\"a\":{\"\\u0000\":1}}",
        "{\"a\nb\":{}}",
        "{\"\x01\":{}}",
        "{\x01}",
        "{\"a\":\x7F}",
        "\xEF\xBB\xBF{}",
        "{::::}",
        "{\"\xFF\":{}}",
        "{\"\xC0\xAF\":{}}",
        "{\"\xED\xA0\x80\":{}}",
        "{\"\xF4\x90\x80\x80\":{}}",
        "{\"\xE2\x82\":{}}",
        "{\"\xE2",
        "{\"\x80\":{}}",
        "{\"\xF8\x88\x80\x80\x80\":{}}",
        "{\"a\":{\"b\":{\"c\":{\"d\":1}}}}",
    };
    for (size_t k = 0; k < sizeof bad / sizeof *bad; k++) refuse(0, bad[k], KR_BAD_FILE, "t.safetensors");
    refuse(0, "{\"\xFF\":{}}", KR_BAD_FILE, "header byte 2: not UTF-8");
    blob b = image(0, "{}\0", 3);
    kr_tensor_file *f;
    cr_assert_eq(parse(b, b.bytes, &f), KR_BAD_FILE);
    free(b.data);
    b = image(0, "{\"a\0\":{}}", 9);
    cr_assert_eq(parse(b, b.bytes, &f), KR_BAD_FILE);
    free(b.data);
}

/// Text that would cost a careless reader its stack or its memory. Each is refused in a moment: a
/// reader that takes time or memory with the square of the bytes would need hours.
Test(tensors, bombs) {
    enum { SIZE = 4 << 20 };
    static const char *const unit[] = {"[", "{\"a\":", "{\"a\":[", "[1,", "[],", "{},", "\"a\":1,", "\"a\":{},",
                                       "1", "\\",      "\"",       ":",   ",",   " ",   "\\u0041"};
    static const char *const start[] = {"",    "{\"a\":",  "{\"a\":[", "{", "{\"a\":{", "{\"a\":{\"shape\":[",
                                        "{\"", "{\"a\":\""};
    char *text = malloc(SIZE + 64);
    for (size_t s = 0; s < sizeof start / sizeof *start; s++) {
        for (size_t k = 0; k < sizeof unit / sizeof *unit; k++) {
            size_t n = (size_t)sprintf(text, "%s", start[s]);
            for (const size_t u = strlen(unit[k]); n + u < SIZE; n += u) memcpy(text + n, unit[k], u);
            blob b = image(0, text, n);
            kr_tensor_file *f;
            const clock_t begin = clock(); // of this process, however busy the machine is
            cr_assert_eq(kr_tensors_parse(b.data, b.bytes, "t.safetensors", &f), KR_BAD_FILE);
            const double seconds = (double)(clock() - begin) / CLOCKS_PER_SEC;
            cr_assert(seconds < 20, "%s and %s: %.1f s", start[s], unit[k], seconds);
            cr_assert(strlen(kr_status_message()) < 1000);
            free(b.data);
        }
    }
    free(text);
}

Test(tensors, messages_stay_short_and_printable) {
    char header[2000];
    memset(header, 'n', sizeof header);
    memcpy(header, "{\"\\u001b[31m\\n", 14);
    strcpy(header + 1500, "\":{}}");
    refuse(0, header, KR_BAD_FILE, "...'");
    cr_assert_null(strchr(kr_status_message(), 27));
    cr_assert_null(strchr(kr_status_message(), '\n'));
    cr_assert(strlen(kr_status_message()) < 300);
}

/// Random changes of several bytes at once, header and data.
Test(tensors, random_damage) {
    blob b = sample();
    blob c = {malloc(b.bytes), b.bytes};
    static const char spice[] = "{}[]\",:0123456789-.eE\\u \n\x00\xFF";
    for (uint64_t round = 0; round < 20000; round++) {
        memcpy(c.data, b.data, b.bytes);
        const int changes = 1 + (int)(kr_random_uniform(1, round, 0) * 6);
        for (int k = 0; k < changes; k++) {
            const size_t at = (size_t)(kr_random_uniform(2, round, (uint64_t)k) * (float)b.bytes) % b.bytes;
            const size_t from = (size_t)(kr_random_uniform(3, round, (uint64_t)k) * (float)(sizeof spice - 1));
            c.data[at] = (unsigned char)spice[from];
        }
        kr_tensor_file *f = NULL;
        const kr_status got = parse(c, c.bytes, &f);
        cr_assert(got == KR_OK || got == KR_BAD_FILE || got == KR_UNSUPPORTED);
        kr_tensors_close(f);
    }
    free(b.data);
    free(c.data);
}

// Files --------------------------------------------------------------------------------------------------------------

Test(tensors, files) {
    char path[] = "/tmp/krait-tensors-XXXXXX";
    const int fd = mkstemp(path);
    blob b = sample();
    cr_assert_eq(write(fd, b.data, b.bytes), (ssize_t)b.bytes);
    kr_tensor_file *f;
    cr_assert_eq(kr_tensors_open(path, &f), KR_OK, "%s", kr_status_message());
    unlink(path); // the mapping stays
    cr_assert_eq(((const uint8_t *)kr_tensors_find(f, "flags")->data)[1], 1);
    kr_tensors_close(f);
    kr_tensors_close(NULL);
    close(fd);
    free(b.data);

    cr_assert_eq(kr_tensors_open(path, &f), KR_IO);
    cr_assert_null(f);
    cr_assert_not_null(strstr(kr_status_message(), path));
    cr_assert_eq(kr_tensors_open("/tmp", &f), KR_IO);
    cr_assert_not_null(strstr(kr_status_message(), "is a directory"));
    cr_assert_eq(kr_tensors_open("/dev/zero", &f), KR_IO);
    cr_assert_not_null(strstr(kr_status_message(), "regular file"));
    cr_assert_eq(mkfifo(path, 0600), 0);
    cr_assert_eq(kr_tensors_open(path, &f), KR_IO);
    unlink(path);
    FILE *empty = fopen(path, "w");
    fclose(empty);
    cr_assert_eq(kr_tensors_open(path, &f), KR_BAD_FILE);
    cr_assert_not_null(strstr(kr_status_message(), "0 bytes"));
    unlink(path);
}
