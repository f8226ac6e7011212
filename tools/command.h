/// The commands of `krait`: their table, their exit statuses, and what each does first and last.
#ifndef KRAIT_TOOLS_COMMAND_H
#define KRAIT_TOOLS_COMMAND_H

#include "tools/cli/options.h"

/// Each command has argv[0] = its own name ("pretrain") and gives the process's exit status.
typedef struct kr_command {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *summary; ///< one line for `krait help`
} kr_command;

int kr_cmd_pretrain(int argc, char **argv);
int kr_cmd_generate(int argc, char **argv);
int kr_cmd_graph(int argc, char **argv);
int kr_cmd_golden(int argc, char **argv);
int kr_cmd_bench(int argc, char **argv);
int kr_cmd_new_block(int argc, char **argv);

/// Exit statuses: 0 done; 1 something failed; 2 the command line or configuration cannot be used.
enum { KR_EXIT_OK = 0, KR_EXIT_FAILED = 1, KR_EXIT_USAGE = 2 };

/// kr_options_parse; prints the usage on stdout where --help was given.
kr_status kr_command_options(const kr_usage *, int argc, char **argv, void *to, kr_text_list *words, bool *help);
/// The exit status of a command that ended with `status`. After a failure prints "krait COMMAND: MESSAGE" with this
/// thread's newest status message on stderr; KR_BAD_ARGUMENT gives KR_EXIT_USAGE. With KRAIT_TRACE set in the
/// environment the place is printed too.
int kr_command_end(const char *command, kr_status status);

#endif
