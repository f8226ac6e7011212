/// A working block to start from, written as files.
#ifndef KRAIT_TOOLS_NEW_BLOCK_NEW_BLOCK_H
#define KRAIT_TOOLS_NEW_BLOCK_NEW_BLOCK_H

#include "runtime/runtime.h"

#include <stdio.h>

/// Writes models/blocks/NAME.c into the sources of Krait, the current directory. What was written, and what comes next,
/// is told on `to`.
/// fails KR_BAD_ARGUMENT: a name that cannot be, a file that is there already, not the sources of Krait
kr_status kr_new_block_in_tree(const char *name, FILE *to);
/// Writes a folder of its own, with a Makefile and a test, to be built against the installed library.
kr_status kr_new_block_apart(const char *name, const char *directory, FILE *to);

// The texts (tools/new_block/template.c): @ stands for the name, @@ for one @.
extern const char kr_template_block[];
extern const char kr_template_tree_head[];
extern const char kr_template_tree_foot[];
extern const char kr_template_own_head[];
extern const char kr_template_own_foot[];
extern const char kr_template_make[];
extern const char kr_template_config[];
extern const char kr_template_test[];

#endif
