// `krait golden`: every file of tests/golden at every level and thread count, and what it says about files and
// directories that are not as they should be.
#include "tests/check.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *environment(const char *name) {
    const char *value = getenv(name);
    cr_assert_not_null(value, "run this suite through meson: %s is not set", name);
    return value;
}

/// Runs `krait golden ARGUMENTS`; what it prints, both streams. free() it.
static char *golden(int *status, const char *arguments) {
    char command[4096], *text = NULL;
    size_t bytes = 0;
    snprintf(command, sizeof command, "'%s' golden %s 2>&1", environment("KRAIT_BINARY"), arguments);
    FILE *from = popen(command, "r"), *to = open_memstream(&text, &bytes);
    cr_assert(from && to);
    for (int c; (c = getc(from)) != EOF;) putc(c, to);
    const int raw = pclose(from);
    fclose(to);
    cr_assert(WIFEXITED(raw), "krait golden was killed:\n%s", text);
    *status = WEXITSTATUS(raw);
    return text;
}

static const char *last_line(char *text) {
    size_t n = strlen(text);
    cr_assert(n && text[n - 1] == '\n', "the output does not end with a line: %s", text);
    text[--n] = 0;
    while (n && text[n - 1] != '\n') n--;
    return text + n;
}

/// lm_hybrid.case2 asks for more than f32 gives: after AdamW, which turns a gradient of 1e-9 into a full step,
/// correctly
/// rounded ops come to 0.4 to 1.6 times its tolerance, as they round. Release builds are held to it. Kernels under
/// sanitizers are built with other optimisations and round otherwise (1.97 times was seen); there it may miss, alone.
static bool missed_alone(const char *text) {
    const char *miss = strstr(text, "FAIL    ");
    return CHECK_SANITIZED && miss && !strncmp(miss, "FAIL    lm_hybrid.case2.safetensors ", 36) &&
           !strstr(miss + 1, "FAIL    ");
}

static void all_pass(const char *how) {
    char arguments[4096];
    int status, passed = 0, failed = -1, skipped = -1;
    snprintf(arguments, sizeof arguments, "'%s/tests/golden' %s", environment("KRAIT_SOURCE"), how);
    char *text = golden(&status, arguments);
    const bool excused = missed_alone(text);
    cr_expect_eq(status, excused ? 1 : 0, "%s:\n%s", how, text);
    const char *last = last_line(text);
    cr_expect_eq(sscanf(last, "%d passed, %d failed, %d skipped", &passed, &failed, &skipped), 3, "last line: %s",
                 last);
    cr_expect(passed > 100 && failed == (excused ? 1 : 0) && skipped == 0, "%s: %s", how, last);
    free(text);
}

Test(golden, every_level_and_thread_count) {
    for (kr_isa isa = KR_ISA_BASE; isa <= kr_isa_best(); isa++)
        for (int threads = 1; threads <= 3; threads += 2) {
            char how[64];
            snprintf(how, sizeof how, "--isa %s --threads %d", kr_isa_name(isa), threads);
            all_pass(how);
        }
}

Test(golden, the_second_target) { all_pass("--device reference"); }

// Directories that are not as they should be ----------------------------------------------------------------------

static char directory[] = "/tmp/krait-golden-XXXXXX";

static void make_directory(void) { cr_assert_not_null(mkdtemp(directory)); }
static void remove_directory(void) {
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", directory);
    cr_assert_eq(system(command), 0);
}

/// Runs over the directory; the output must hold `wanted`, its last line and its status are compared.
static void expect(int wanted_status, const char *wanted_last, const char *wanted) {
    int status;
    char *text = golden(&status, directory);
    cr_expect(strstr(text, wanted), "no \"%s\" in:\n%s", wanted, text);
    cr_expect_eq(status, wanted_status, "%s", text);
    cr_expect_str_eq(last_line(text), wanted_last);
    free(text);
}

static void put(const char *name, const void *data, size_t bytes) {
    char path[256];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    cr_assert_eq(kr_file_write(path, data, bytes), KR_OK, "%s", kr_status_message());
}

static char *sample(size_t *bytes) {
    char path[4096], *data;
    snprintf(path, sizeof path, "%s/tests/golden/linear.case1.safetensors", environment("KRAIT_SOURCE"));
    cr_assert_eq(kr_file_read(path, &data, bytes), KR_OK, "%s", kr_status_message());
    return data;
}

TestSuite(golden_faults, .init = make_directory, .fini = remove_directory);

Test(golden_faults, an_empty_directory_fails) { expect(1, "0 passed, 0 failed, 0 skipped", ""); }

Test(golden_faults, other_files_are_passed_over) {
    size_t bytes;
    char *data = sample(&bytes);
    put("linear.safetensors", data, bytes);
    put("README.md", "hello", 5);
    expect(0, "1 passed, 0 failed, 0 skipped", "ok      linear.safetensors");
    free(data);
}

Test(golden_faults, a_wrong_number_fails) {
    size_t bytes;
    char *data = sample(&bytes);
    uint64_t header;
    memcpy(&header, data, sizeof header);
    memset(data + 8 + header, 0x3f, 16); // two doubles of the first result
    put("linear.safetensors", data, bytes);
    expect(1, "0 passed, 1 failed, 0 skipped", "FAIL    linear.safetensors");
    memset(data + 8 + header, 0xff, 8); // a NaN
    put("linear.safetensors", data, bytes);
    expect(1, "0 passed, 1 failed, 0 skipped", "FAIL    linear.safetensors");
    free(data);
}

Test(golden_faults, broken_files_fail_and_the_rest_runs) {
    size_t bytes;
    char *data = sample(&bytes);
    put("b.safetensors", data, bytes);
    put("a.safetensors", data, bytes / 2);
    put("c.safetensors", "", 0);
    put("d.safetensors", "no safetensors file at all, only words", 38);
    expect(1, "1 passed, 3 failed, 0 skipped", "FAIL    a.safetensors");
    free(data);
}

Test(golden_faults, unknown_kinds) {
    const float one = 1;
    const kr_tensor_entry entry = {
        .name = "in.x", .dtype = KR_F32, .shape = KR_SHAPE(1), .data = &one, .bytes = sizeof one};
    static const char *const kinds[][2] = {
        {"op", "ssd_scan"}, {"op", "mamba9_block"}, {"op", "linear"}, {"about", "nothing"}};
    for (int k = 0; k < 4; k++) {
        char *text = NULL, name[32];
        size_t bytes;
        FILE *to = open_memstream(&text, &bytes);
        cr_assert_eq(kr_tensors_write(to, &entry, 1, kinds[k], 1), KR_OK, "%s", kr_status_message());
        fclose(to);
        snprintf(name, sizeof name, "%d.safetensors", k);
        put(name, text, bytes);
        free(text);
    }
    expect(1, "0 passed, 2 failed, 2 skipped",
           "skipped 0.safetensors                        ssd_scan is not there yet");
}

Test(golden_faults, a_missing_directory_is_named) {
    int status;
    char *text = golden(&status, "/nonexistent/golden");
    cr_expect_eq(status, 1);
    cr_expect(strstr(text, "/nonexistent/golden: No such file"), "%s", text);
    free(text);
    text = golden(&status, "");
    cr_expect_eq(status, 2);
    free(text);
    text = golden(&status, "tests/golden --isa avx3");
    cr_expect_eq(status, 2);
    cr_expect(strstr(text, "avx3"), "%s", text);
    free(text);
}
