/// Options: one declarative table per command fills one struct. The same tables check krait.yaml (config/config.h).
#ifndef KRAIT_TOOLS_CLI_OPTIONS_H
#define KRAIT_TOOLS_CLI_OPTIONS_H

#include "runtime/runtime.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

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
/// allowed anywhere and only separates. `--help` ends parsing and sets *help.
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
void kr_usage_print(const kr_usage *, FILE *);

#endif
