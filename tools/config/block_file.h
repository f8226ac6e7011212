/// Blocks of one's own: shared objects that export a kr_block_kind.
#ifndef KRAIT_TOOLS_CONFIG_BLOCK_FILE_H
#define KRAIT_TOOLS_CONFIG_BLOCK_FILE_H

#include "tools/cli/options.h"

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

#endif
