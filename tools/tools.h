/// What the commands of `krait` share: the table of commands, options, and how errors are told.
#ifndef KRAIT_TOOLS_TOOLS_H
#define KRAIT_TOOLS_TOOLS_H

#include "runtime/runtime.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

// ---------------------------------------------------------------------------------------------------------------
// Commands

/// Each command has argv[0] = its own name ("pretrain") and gives the process's exit status.
typedef struct kr_command {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *summary; ///< one line for `krait help`
} kr_command;
extern const kr_command kr_commands[];
extern const int kr_command_count;

int kr_cmd_pretrain(int argc, char **argv);
int kr_cmd_generate(int argc, char **argv);
int kr_cmd_graph(int argc, char **argv);
int kr_cmd_golden(int argc, char **argv);
int kr_cmd_bench(int argc, char **argv);
int kr_cmd_new_block(int argc, char **argv);

/// Exit statuses: 0 done; 1 something failed; 2 the command line or configuration cannot be used.
enum { KR_EXIT_OK = 0, KR_EXIT_FAILED = 1, KR_EXIT_USAGE = 2 };

/// Prints "krait COMMAND: MESSAGE" with this thread's newest status message on stderr, and gives the exit status for
/// `code` (KR_EXIT_USAGE for KR_BAD_ARGUMENT). With KRAIT_TRACE set in the environment the place is printed too.
int kr_tool_fail(const char *command, kr_status code);

// ---------------------------------------------------------------------------------------------------------------
// Options: one declarative table per command fills one struct. The same tables check krait.yaml (config.h).

typedef enum kr_option_type {
    KR_OPTION_FLAG = 1, ///< bool: --name, --no-name, --name=true|false|yes|no|on|off
    KR_OPTION_INTEGER,  ///< int64_t in [lo, hi]; suffixes k, m, g of 10^3 allowed
    KR_OPTION_INT,      ///< int in [lo, hi]
    KR_OPTION_SIZE,     ///< int64_t bytes: "2.9GB", "800MiB", "1500000000"; kB, MB, GB, TB of 10^3, KiB .. TiB of 2^10
    KR_OPTION_SEED,     ///< uint64_t, decimal or 0x
    KR_OPTION_REAL,     ///< double in [lo, hi], finite
    KR_OPTION_TEXT,     ///< const char *; points into argv or into the configuration
    KR_OPTION_NAME,     ///< char[hi], copied; longer text is an error
    KR_OPTION_CHOICE,   ///< int: index into `choices`, "cosine|wsd|constant"
    KR_OPTION_LIST,     ///< kr_text_list: may be given several times
    KR_OPTION_WORDS,    ///< char[hi]: "a,b,c"; a list in krait.yaml
    KR_OPTION_RANGE,    ///< double[2], low <= high, high may be infinite: "0,inf"; a list of two in krait.yaml
} kr_option_type;

enum {
    KR_OPTION_COMMAND_LINE = 1, ///< not a key of krait.yaml
    KR_OPTION_REQUIRED = 2,     ///< the command line must have it
    KR_OPTION_LOCAL = 4,        ///< of this machine, not of the work: kept out of state.json
    KR_OPTION_AUTO = 8,         ///< the word auto is a value too, and leaves the field as it is
};

/// Words collected by a KR_OPTION_LIST or as positional arguments. They point into argv.
typedef struct kr_text_list {
    int count;
    const char *at[16];
} kr_text_list;

/// One row. lo == hi == 0 means: no range. A table ends with a null name.
typedef struct kr_option {
    const char *name;       ///< "batch-size"; krait.yaml spells it batch_size
    kr_option_type type;
    size_t offset;          ///< offsetof the field in the struct that is filled
    double lo, hi;
    const char *choices;    ///< KR_OPTION_CHOICE
    const char *value;      ///< what the value is called in the help text, "N"
    const char *help;
    unsigned flags;
} kr_option;

/// What a command says about itself; drives `krait help NAME`, `krait NAME --help` and every message.
typedef struct kr_usage {
    const char *command;    ///< "pretrain"
    const char *synopsis;   ///< "--model NAME --target NAME [-- options]"
    const char *text;       ///< a paragraph; may be null
    const kr_option *options;
    const char *positional; ///< what words without dashes are ("DIR"); null: there are none
    int positional_min, positional_max;
} kr_usage;

/// Parses argv[1..] into `to`. Words without dashes go to `words` (null when usage->positional is null). One `--` is
/// allowed anywhere and only separates. `--help` prints the usage on stdout and sets *help (the caller returns 0).
/// fails KR_BAD_ARGUMENT: an unknown option (the message names the nearest known one), a missing or wrong value (the
/// message says what is allowed), an option given twice, a required one left out.
kr_status kr_options_parse(const kr_usage *, int argc, char **argv, void *to, kr_text_list *words, bool *help);
/// Sets one option of the table from text, with the same checks. `spelling` is how messages call it ("--steps",
/// "krait.yaml:12: steps").
kr_status kr_option_set(const kr_option *, const char *spelling, const char *text, void *to);
/// The row of that name, '-' and '_' being the same; null when there is none.
const kr_option *kr_option_find(const kr_option *table, const char *name);
/// Are two names the same, '-' and '_' being the same?
bool kr_same_name(const char *a, const char *b);

// ---------------------------------------------------------------------------------------------------------------
// Blocks of one's own (tools/block_file.c)

/// Opens a shared object with a block in it (models.h, KR_BLOCK_EXPORT) and makes the block known. The object stays
/// open to the end of the process; opening it again changes nothing.
/// fails KR_BAD_FILE: no shared object, no block in it; KR_UNSUPPORTED: built for another version of Krait;
/// KR_BAD_ARGUMENT: its name is taken
kr_status kr_block_load(const char *path);
/// The same for each.
kr_status kr_block_load_all(const kr_text_list *paths);
/// The row of an option table that fills such a list.
#define KR_BLOCK_OPTION(offset)                                                                               \
    {                                                                                                         \
        "block", KR_OPTION_LIST, offset, .value = "FILE.so",                                                  \
                                         .help = "a block of your own (krait new-block); several: once each", \
                                         .flags = KR_OPTION_COMMAND_LINE                                      \
    }

// ---------------------------------------------------------------------------------------------------------------
// Small helpers

/// The name among `count` that is closest to `word` (edits, transpositions count one; '-' and '_' are the same), or
/// null when none is near enough to be meant.
const char *kr_nearest(const char *word, const char *const *names, int count);
/// "93.2 MiB"; gives back text.
const char *kr_bytes_text(double bytes, char text[32]);
/// "1.04 M"; gives back text.
const char *kr_count_text(double count, char text[32]);
/// "1 h 02 min", "3 min 20 s", "12.3 s"; gives back text.
const char *kr_duration_text(double seconds, char text[32]);
/// Whether escapes may be written to this stream: a terminal, NO_COLOR unset or empty, TERM not "dumb".
bool kr_stream_color(FILE *);

#endif
