/// Targets by name: what is no target is refused with the reason, and nothing of it is called.
#include "ops/ops.h"
#include "tools/cli/device.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void refused(const char *name, kr_status status, const char *part) {
    const kr_target *target = &kr_target_cpu;
    kr_device *device;
    cr_expect_eq(kr_target_find(name, &target), status, "%s: %s", name, kr_status_message());
    cr_expect_null(target);
    cr_expect(strstr(kr_status_message(), part), "%s gives '%s', which lacks '%s'", name, kr_status_message(), part);
    cr_expect_eq(kr_device_open(name, NULL, &device), status);
    cr_expect_null(device);
}

Test(target, those_that_cannot_be_used_are_refused) {
    refused("nothing", KR_UNSUPPORTED, "libkrait_nothing.so exports no kr_target_nothing");
    refused("elder", KR_UNSUPPORTED, "libkrait_elder.so was built for another Krait (interface 2, want 1)");
    refused("hollow", KR_UNSUPPORTED, "libkrait_hollow.so: its target has no function impl");
    refused("renamed", KR_UNSUPPORTED, "libkrait_renamed.so: its target calls itself \"other\"");
    refused("crooked", KR_UNSUPPORTED, "libkrait_crooked.so: the sizes (align, line, logits)");
    refused("endless", KR_UNSUPPORTED, "libkrait_endless.so: the limits of programs");
    refused("timeless", KR_UNSUPPORTED, "libkrait_timeless.so: the rates");
}

Test(target, names_that_are_none) {
    char longest[400];
    memset(longest, 'x', sizeof longest);
    longest[sizeof longest - 1] = 0;
    const char *const names[] = {"", "../x", "CPU", "c pu", "cpu ", ":", "%s%n", "-1", "a/b", longest, NULL};
    for (int k = 0; names[k]; k++) refused(names[k], KR_BAD_ARGUMENT, "is not the name of a device");
    kr_device *device;
    cr_expect_eq(kr_device_open("cpu:1", NULL, &device), KR_BAD_ARGUMENT);
    cr_expect(strstr(kr_status_message(), "takes nothing after its name"));
}

/// The reason is that of the file which was found, not that the places searched after it have none.
Test(target, a_broken_file_says_why) {
    char directory[] = "/tmp/krait-target-XXXXXX", path[200], search[400];
    cr_assert(mkdtemp(directory));
    snprintf(path, sizeof path, "%s/libkrait_garbage.so", directory);
    FILE *f = fopen(path, "w");
    cr_assert(f && fputs("no shared object", f) >= 0 && !fclose(f));
    snprintf(search, sizeof search, ":::/nowhere:%s:", directory);
    setenv("KRAIT_TARGET_PATH", search, 1);
    refused("garbage", KR_UNSUPPORTED, path);
    refused("absent", KR_UNSUPPORTED, "No such file");
    unlink(path);
    rmdir(directory);
}

/// What the environment says wrongly is not blamed on an option that nobody gave.
Test(target, only_what_was_given_is_blamed) {
    kr_device *device;
    setenv("KRAIT_ISA", "avx1024", 1);
    cr_expect_eq(kr_tool_device(NULL, &device), KR_BAD_ARGUMENT);
    cr_expect_eq(strncmp(kr_status_message(), "KRAIT_ISA", 9), 0, "%s", kr_status_message());
    unsetenv("KRAIT_ISA");
    cr_expect_eq(kr_tool_device("../x", &device), KR_BAD_ARGUMENT);
    cr_expect_eq(strncmp(kr_status_message(), "--device: ", 10), 0, "%s", kr_status_message());
}
