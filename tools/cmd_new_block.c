// krait new-block: a working block to change. In the sources of Krait it is one file and two lines; anywhere else it is
// a folder with a Makefile and a test, built against the installed library.
#include "tools/command.h"
#include "tools/new_block/new_block.h"

typedef struct settings {
    const char *out;
} settings;

static const kr_option options[] = {
    {"out", KR_OPTION_TEXT, offsetof(settings, out), .value = "DIR",
     .help = "a folder of its own, outside of the sources of Krait (made when it is not there)"},
    {0},
};
static const kr_usage usage = {
    .command = "new-block",
    .synopsis = "NAME [--out DIR]",
    .text =
        "Writes a block that works: a gated memory, linear in its state, in some 40 lines to be changed. With --out\n"
        "it is a shared object of your own: `make` builds it, `make test` trains it for a moment and checks that\n"
        "steps equal the whole sequence, and --block FILE.so lets pretrain, generate and graph know it. Without\n"
        "--out it goes into models/blocks of the current directory, the sources of Krait, whose tests then check\n"
        "it with the others.",
    .options = options,
    .positional = "NAME",
    .positional_min = 1,
    .positional_max = 1,
};

int kr_cmd_new_block(int argc, char **argv) {
    settings s = {0};
    kr_text_list words;
    bool help = false;
    kr_status status = kr_command_options(&usage, argc, argv, &s, &words, &help);
    if (help) return KR_EXIT_OK;
    if (!status)
        status = s.out ? kr_new_block_apart(words.at[0], s.out, stdout) : kr_new_block_in_tree(words.at[0], stdout);
    return kr_command_end("new-block", status);
}
