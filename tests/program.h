/// The `krait` program from the outside, for suites that run it: in a directory of one's own, or as a line of shell.
#ifndef KRAIT_TESTS_PROGRAM_H
#define KRAIT_TESTS_PROGRAM_H

#include <criterion/criterion.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define PROGRAM_MAY __attribute__((unused)) static ///< not every suite needs all of this

enum { OUTPUT = 1 << 16 };
__attribute__((unused)) static char directory[64], output[OUTPUT];

static const char *program_binary(void) {
    const char *binary = getenv("KRAIT_BINARY");
    cr_assert_not_null(binary, "run this suite through meson: KRAIT_BINARY is not set");
    return binary;
}

/// A fresh directory as the current one, with a text of 20,000 bytes in it.
PROGRAM_MAY void enter(void) {
    strcpy(directory, "/tmp/krait-test-XXXXXX");
    cr_assert(mkdtemp(directory));
    cr_assert_eq(chdir(directory), 0);
    FILE *file = fopen("text", "w");
    for (int k = 0; k < 1000; k++) fprintf(file, "line %3d of a text.\n", k % 37);
    fclose(file);
}

PROGRAM_MAY void leave(void) {
    char command[128];
    cr_assert_eq(chdir("/"), 0);
    snprintf(command, sizeof command, "rm -r '%s'", directory);
    cr_expect_eq(system(command), 0);
}

/// Runs the program with printf-style arguments; `output` gets both streams. Gives the exit status, 128 and the
/// signal's number where one ended it.
__attribute__((unused, format(printf, 1, 2))) static int krait(const char *format, ...) {
    char arguments[2048], command[4096];
    va_list args;
    va_start(args, format);
    vsnprintf(arguments, sizeof arguments, format, args);
    va_end(args);
    snprintf(command, sizeof command, "'%s' %s 2>&1 </dev/null", program_binary(), arguments);
    FILE *pipe = popen(command, "r");
    cr_assert_not_null(pipe);
    const size_t n = fread(output, 1, OUTPUT - 1, pipe);
    output[n] = 0;
    const int status = pclose(pipe);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

PROGRAM_MAY void expect_said(const char *part) {
    cr_expect(strstr(output, part), "want '%s' in: %s", part, output);
}

/// Runs a line of shell in which `krait` is the program under test; both streams. free() it.
PROGRAM_MAY char *shell(int *status, const char *line) {
    char command[4096], *text = NULL;
    size_t bytes = 0;
    snprintf(command, sizeof command, "cd /tmp; krait() { '%s' \"$@\"; }; { %s; } 2>&1", program_binary(), line);
    FILE *from = popen(command, "r"), *to = open_memstream(&text, &bytes);
    cr_assert(from && to);
    for (int c; (c = getc(from)) != EOF;) putc(c, to);
    const int raw = pclose(from);
    fclose(to);
    cr_assert(WIFEXITED(raw), "killed: %s\n%s", line, text);
    *status = WEXITSTATUS(raw);
    return text;
}

/// A line of shell that must be refused with this status and message.
PROGRAM_MAY void refuse(int wanted, const char *line, const char *message) {
    int status;
    char *text = shell(&status, line);
    cr_expect_eq(status, wanted, "%s gives %d:\n%s", line, status, text);
    cr_expect(strstr(text, message), "%s: want \"%s\", got:\n%s", line, message, text);
    free(text);
}

#endif
