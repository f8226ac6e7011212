// What every command does first and last: its options, and its exit status.
#include "tools/command.h"

#include <stdlib.h>

kr_status kr_command_options(const kr_usage *usage, int argc, char **argv, void *to, kr_text_list *words, bool *help) {
    KR_TRY(kr_options_parse(usage, argc, argv, to, words, help));
    if (*help) kr_usage_print(usage, stdout);
    return KR_OK;
}

int kr_command_end(const char *command, kr_status status) {
    if (!status) return KR_EXIT_OK;
    fflush(stdout);
    fprintf(stderr, "krait %s: %s\n", command, kr_status_message());
    if (getenv("KRAIT_TRACE")) fprintf(stderr, "    (%s, at %s)\n", kr_status_name(status), kr_status_place());
    return status == KR_BAD_ARGUMENT ? KR_EXIT_USAGE : KR_EXIT_FAILED;
}
