/// Status messages, dtypes and shapes, bf16, host memory, pools, whole files.
#include "runtime/runtime.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

// Status -------------------------------------------------------------------------------------------------------------

static kr_status fail_with(kr_status code, const char *text) { KR_FAIL(code, "norm: got %s, want %d", text, 3); }

static kr_status pass_on(kr_status code) {
    KR_FAIL_IF(code == KR_OK, KR_BAD_ARGUMENT, "nothing to pass on");
    KR_TRY(fail_with(code, "[2]"));
    return KR_OK;
}

Test(status, message_place_and_code) {
    const int line = __LINE__;
    cr_assert_eq(pass_on(KR_BAD_SHAPE), KR_BAD_SHAPE);
    cr_assert_str_eq(kr_status_message(), "norm: got [2], want 3");
    int at = 0;
    cr_assert_eq(sscanf(kr_status_place(), "tests/test_status.c:%d", &at), 1, "place is %s", kr_status_place());
    cr_assert(at < line && at > line - 12);
    cr_assert_eq(pass_on(KR_OK), KR_BAD_ARGUMENT);
    cr_assert_str_eq(kr_status_message(), "nothing to pass on");
}

Test(status, prefix_keeps_the_place) {
    fail_with(KR_IO, "x");
    char place[256];
    strcpy(place, kr_status_place());
    cr_assert_eq(kr_status_prefix(KR_IO, "layer %d", 7), KR_IO);
    cr_assert_str_eq(kr_status_message(), "layer 7: norm: got x, want 3");
    cr_assert_str_eq(kr_status_place(), place);
}

Test(status, arguments_may_be_the_old_message) {
    fail_with(KR_IO, "x");
    kr_status_record(KR_BAD_FILE, "a.c", 1, "again %s", kr_status_message());
    cr_assert_str_eq(kr_status_message(), "again norm: got x, want 3");
    kr_status_prefix(KR_BAD_FILE, "%s", kr_status_message());
    cr_assert_str_eq(kr_status_message(), "again norm: got x, want 3: again norm: got x, want 3");
    cr_assert_str_eq(kr_status_place(), "a.c:1");
}

Test(status, long_messages_are_cut_at_a_character) {
    char text[8192];
    for (size_t shift = 0; shift < 3; shift++) {
        memset(text, 'a', shift);
        for (size_t k = shift; k + 3 < sizeof text; k += 3) memcpy(text + k, "\xE2\x82\xAC", 4); // the euro sign
        kr_status_record(KR_IO, "a.c", 1, "%s", text);
        const char *m = kr_status_message();
        const size_t length = strlen(m);
        cr_assert(length > 1000 && length < sizeof text);
        cr_assert_str_eq(m + length - 3, "...");
        cr_assert_eq((length - 3 - shift) % 3, 0, "cut inside a character");
        for (int k = 0; k < 5; k++) kr_status_prefix(KR_IO, "%.500s", text);
        cr_assert(strlen(kr_status_message()) < sizeof text);
    }
}

static void *other_thread(void *seen) {
    *(bool *)seen = *kr_status_message() != 0;
    fail_with(KR_IO, "elsewhere");
    return NULL;
}

Test(status, messages_belong_to_a_thread) {
    fail_with(KR_IO, "here");
    bool seen = true;
    pthread_t thread;
    cr_assert_eq(pthread_create(&thread, NULL, other_thread, &seen), 0);
    pthread_join(thread, NULL);
    cr_assert_not(seen);
    cr_assert_str_eq(kr_status_message(), "norm: got here, want 3");
}

Test(status, every_code_has_a_name) {
    for (int a = 0; a < KR_STATUS_COUNT; a++) {
        cr_assert_not_null(kr_status_name((kr_status)a));
        for (int b = 0; b < a; b++) cr_assert_str_neq(kr_status_name((kr_status)a), kr_status_name((kr_status)b));
    }
    cr_assert_str_eq(kr_status_name(KR_BAD_SHAPE), "bad shape");
    cr_assert_str_eq(kr_status_name((kr_status)-1), "unknown status");
    cr_assert_str_eq(kr_status_name(KR_STATUS_COUNT), "unknown status");
}

// Types --------------------------------------------------------------------------------------------------------------

Test(types, dtypes_by_name) {
    static const size_t sizes[KR_DTYPE_COUNT] = {4, 8, 2, 4, 8, 1, 1};
    for (int k = 0; k < KR_DTYPE_COUNT; k++) {
        kr_dtype back = KR_DTYPE_COUNT;
        cr_assert_eq(kr_dtype_size((kr_dtype)k), sizes[k]);
        cr_assert(kr_dtype_parse(kr_dtype_name((kr_dtype)k), &back));
        cr_assert_eq((int)back, k);
    }
    kr_dtype none = KR_I64;
    cr_assert_not(kr_dtype_parse("f16", &none));
    cr_assert_not(kr_dtype_parse("", &none));
    cr_assert_not(kr_dtype_parse(NULL, &none));
    cr_assert_eq(none, KR_I64);
    cr_assert_eq(kr_dtype_size(KR_DTYPE_COUNT), 0);
    cr_assert_eq(kr_dtype_size((kr_dtype)-1), 0);
}

Test(types, shapes) {
    char text[160];
    const kr_shape scalar = KR_SCALAR, a = KR_SHAPE(2, 3), b = KR_SHAPE(2, 3, 1), c = KR_SHAPE(2, 4);
    cr_assert_str_eq(kr_shape_text(&scalar, text), "[]");
    cr_assert_str_eq(kr_shape_text(&a, text), "[2, 3]");
    cr_assert(kr_shape_equal(&a, &a));
    cr_assert_not(kr_shape_equal(&a, &b));
    cr_assert_not(kr_shape_equal(&a, &c));
    cr_assert(kr_shape_equal(&scalar, &KR_SCALAR));
    const kr_shape longest = KR_SHAPE(INT64_MIN, INT64_MIN, INT64_MIN, INT64_MIN, INT64_MIN, INT64_MIN);
    cr_assert_eq(strlen(kr_shape_text(&longest, text)), 6 * 20 + 5 * 2 + 2);
    const kr_shape broken = {9, {0}};
    cr_assert_str_eq(kr_shape_text(&broken, text), "[rank 9]");
}

Test(types, tensor_bytes_never_overflow) {
    const int64_t big = INT64_C(1) << 47;
    cr_assert_eq(kr_tensor_bytes(KR_F32, &KR_SCALAR), 4);
    cr_assert_eq(kr_tensor_bytes(KR_BF16, &KR_SHAPE(3, 5, 7)), 210);
    cr_assert_eq(kr_tensor_bytes(KR_F64, &KR_SHAPE(3, 0, 7)), 0);
    cr_assert_eq(kr_tensor_bytes(KR_U8, &KR_SHAPE(big)), (size_t)big);
    cr_assert_eq(kr_tensor_bytes(KR_F32, &KR_SHAPE(big)), SIZE_MAX);
    cr_assert_eq(kr_tensor_bytes(KR_U8, &KR_SHAPE(big, 2)), SIZE_MAX);
    cr_assert_eq(kr_tensor_bytes(KR_U8, &KR_SHAPE(big + 1)), SIZE_MAX);
    cr_assert_eq(kr_tensor_bytes(KR_F32, &KR_SHAPE(INT64_C(1) << 62)), SIZE_MAX);
    cr_assert_eq(kr_tensor_bytes(KR_U8, &KR_SHAPE(big, big)), SIZE_MAX);
    cr_assert_eq(kr_tensor_bytes(KR_U8, &KR_SHAPE(big, big, 0)), SIZE_MAX);
    cr_assert_eq(kr_tensor_bytes(KR_U8, &KR_SHAPE(-1)), SIZE_MAX);
    cr_assert_eq(kr_tensor_bytes(KR_U8, &KR_SHAPE(0, -1)), SIZE_MAX);
    cr_assert_eq(kr_tensor_bytes(KR_DTYPE_COUNT, &KR_SCALAR), SIZE_MAX);
    cr_assert_eq(kr_tensor_bytes(KR_F32, &(kr_shape){7, {0}}), SIZE_MAX);
    cr_assert_eq(kr_tensor_bytes(KR_F32, &(kr_shape){-1, {0}}), SIZE_MAX);
}

/// The definition: of the two neighbours on the bf16 grid the nearer one, and the even one in the middle.
static uint16_t bf16_reference(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    const uint16_t down = (uint16_t)(bits >> 16), up = (uint16_t)(down + 1);
    const double below = kr_bf16_to_f32(down), value = x;
    double above = kr_bf16_to_f32(up);
    if (isinf(below)) return down;
    if (isinf(above)) above = copysign(0x1p128, x); // where the grid would go on
    const double to_below = fabs(value - below), to_above = fabs(above - value);
    if (to_below != to_above) return to_below < to_above ? down : up;
    return down & 1 ? up : down;
}

Test(types, bf16_rounds_to_nearest_even) {
    // Every bf16 cell, with the low halves round which anything can change.
    static const uint32_t low[] = {0, 1, 2, 0x7FFE, 0x7FFF, 0x8000, 0x8001, 0x8002, 0xFFFE, 0xFFFF, 0x1234, 0xABCD};
    for (uint32_t high = 0; high < 65536; high++) {
        for (size_t k = 0; k < sizeof low / sizeof *low; k++) {
            const uint32_t bits = high << 16 | low[k];
            float x;
            memcpy(&x, &bits, 4);
            const uint16_t got = kr_f32_to_bf16(x);
            if (isnan(x)) {
                cr_assert(isnan(kr_bf16_to_f32(got)), "NaN 0x%08x becomes 0x%04x", bits, got);
            } else {
                cr_assert_eq(got, bf16_reference(x), "0x%08x becomes 0x%04x, want 0x%04x", bits, got,
                             bf16_reference(x));
            }
        }
        float x = kr_bf16_to_f32((uint16_t)high);
        if (!isnan(x)) cr_assert_eq(kr_f32_to_bf16(x), high);
    }
    // All low halves of some cells, both signs, subnormals and the last one before infinity.
    static const uint32_t cells[] = {0x0000, 0x0001, 0x007F, 0x0080, 0x3F80, 0x3F81, 0x7F7F, 0x8000, 0xBF80, 0xFF7F};
    for (size_t c = 0; c < sizeof cells / sizeof *cells; c++) {
        for (uint32_t l = 0; l < 65536; l++) {
            const uint32_t bits = cells[c] << 16 | l;
            float x;
            memcpy(&x, &bits, 4);
            cr_assert_eq(kr_f32_to_bf16(x), bf16_reference(x), "0x%08x", bits);
        }
    }
}

Test(types, the_clock_goes_on) {
    const double a = kr_seconds();
    usleep(2000);
    const double b = kr_seconds();
    cr_assert(b - a >= 0.002 && b - a < 10);
}

// Memory -------------------------------------------------------------------------------------------------------------

Test(memory, host_blocks_are_aligned_and_zero) {
    static const size_t sizes[] = {0,      1, 63, 64, 65, 4095, 1 << 20, (1 << 20) + 1, (2 << 20) - 1, (2 << 20) + 4097,
                                   9 << 20};
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
        for (int again = 0; again < 2; again++) {
            unsigned char *block = kr_host_alloc(sizes[k]);
            cr_assert_not_null(block);
            cr_assert_eq((uintptr_t)block % 64, 0);
            for (size_t i = 0; i < sizes[k]; i++) cr_assert_eq(block[i], 0);
            memset(block, 0xA5, sizes[k]);
            kr_host_free(block, sizes[k]);
        }
    }
    kr_host_free(NULL, 5);
}

Test(memory, too_much_is_refused) {
    cr_assert_null(kr_host_alloc(SIZE_MAX));
    cr_assert_not_null(strstr(kr_status_message(), "no memory for 18446744073709551615 bytes"));
    cr_assert_null(kr_host_alloc(SIZE_MAX / 2 - 100));
}

Test(pool, objects_are_zero_aligned_and_apart) {
    kr_pool *pool = kr_pool_new();
    cr_assert_not_null(pool);
    enum { COUNT = 3000 };
    static unsigned char *object[COUNT];
    static size_t size[COUNT];
    for (int k = 0; k < COUNT; k++) {
        size[k] = k % 500 == 499 ? 100000 : (size_t)(k * 7 % 90);
        object[k] = kr_pool_take(pool, size[k]);
        cr_assert_not_null(object[k]);
        cr_assert_eq((uintptr_t)object[k] % 16, 0);
        for (size_t i = 0; i < size[k]; i++) cr_assert_eq(object[k][i], 0);
        memset(object[k], k & 255, size[k]);
    }
    for (int k = 0; k < COUNT; k++)
        for (size_t i = 0; i < size[k]; i++) cr_assert_eq(object[k][i], k & 255, "object %d was overwritten", k);
    cr_assert_neq(kr_pool_take(pool, 0), kr_pool_take(pool, 0));
    kr_pool_free(pool);
    kr_pool_free(NULL);
}

Test(pool, texts) {
    kr_pool *pool = kr_pool_new();
    char text[] = "layers.3";
    const char *copy = kr_pool_text(pool, text);
    text[0] = 'x';
    cr_assert_str_eq(copy, "layers.3");
    cr_assert_str_eq(kr_pool_text(pool, ""), "");
    cr_assert_str_eq(kr_pool_format(pool, "%s.%d", copy, 12), "layers.3.12");
    char wide[9000];
    memset(wide, 'w', sizeof wide);
    wide[sizeof wide - 1] = 0;
    cr_assert_eq(strlen(kr_pool_format(pool, "%s%s", wide, wide)), 2 * (sizeof wide - 1));
    cr_assert_null(kr_pool_take(pool, SIZE_MAX));
    cr_assert_null(kr_pool_take(pool, SIZE_MAX / 2));
    cr_assert_not_null(kr_pool_take(pool, 16));
    kr_pool_free(pool);
}

// Files --------------------------------------------------------------------------------------------------------------

Test(file, write_read_and_replace) {
    char folder[] = "/tmp/krait-file-XXXXXX", path[256];
    cr_assert_not_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/a/b//c/", folder);
    cr_assert_eq(kr_directory_make(path), KR_OK, "%s", kr_status_message());
    cr_assert_eq(kr_directory_make(path), KR_OK);
    snprintf(path, sizeof path, "%s/a/b/c/file", folder);
    char *data;
    size_t bytes;
    cr_assert_eq(kr_file_read(path, &data, &bytes), KR_IO);
    cr_assert_not_null(strstr(kr_status_message(), path));
    cr_assert_not_null(strstr(kr_status_message(), "No such file"));
    for (size_t n = 0; n < 200000; n = n * 3 + 1) {
        char *text = malloc(n + 1);
        for (size_t i = 0; i < n; i++) text[i] = (char)(i * 31 + n);
        cr_assert_eq(kr_file_write(path, text, n), KR_OK, "%s", kr_status_message());
        cr_assert_eq(kr_file_read(path, &data, &bytes), KR_OK);
        cr_assert(bytes == n && memcmp(data, text, n) == 0 && data[n] == 0);
        free(data);
        free(text);
    }
    char inside[300];
    snprintf(inside, sizeof inside, "%s/below", path);
    cr_assert_eq(kr_directory_make(inside), KR_IO);
    cr_assert_not_null(strstr(kr_status_message(), "is a file"), "%s", kr_status_message());
    cr_assert_eq(kr_file_write(inside, "x", 1), KR_IO);
    cr_assert_not_null(strstr(kr_status_message(), "Not a directory"), "%s", kr_status_message());
    cr_assert_eq(kr_file_read(folder, &data, &bytes), KR_IO);
    cr_assert_not_null(strstr(kr_status_message(), "is a directory"));
    cr_assert_eq(kr_file_write(folder, "x", 1), KR_IO);
    cr_assert_eq(kr_directory_make(""), KR_BAD_ARGUMENT);
    char command[512];
    snprintf(command, sizeof command, "test $(ls %s/a/b/c | wc -l) = 1 && rm -r %s", folder, folder);
    cr_assert_eq(system(command), 0, "temporary files were left");
}

Test(file, files_without_a_size_are_read) {
    char *data;
    size_t bytes;
    cr_assert_eq(kr_file_read("/proc/self/status", &data, &bytes), KR_OK);
    cr_assert(bytes > 100 && strlen(data) == bytes);
    free(data);
}
