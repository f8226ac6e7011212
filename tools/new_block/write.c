// Writing a block to start from: its name is checked, and no file that is there already is touched.
#include "tools/new_block/new_block.h"

#include "models/models.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static kr_status check_name(const char *name) {
    const size_t length = strlen(name);
    bool plain = name[0] >= 'a' && name[0] <= 'z' && length <= 31;
    for (const char *c = name; *c; c++) plain &= (*c >= 'a' && *c <= 'z') || (*c >= '0' && *c <= '9') || *c == '_';
    KR_FAIL_IF(!plain, KR_BAD_ARGUMENT,
               "'%s' cannot name a block: want a letter, then letters, digits and _ (lower case, 31 at "
               "most), since a C function and a key of krait.yaml have that name too",
               name);
    KR_FAIL_IF(kr_block_find(name), KR_BAD_ARGUMENT, "there is a block %s already; choose another name", name);
    static const char *const words[] = {
        "auto",    "break",    "case",     "char",   "const",    "continue", "default", "do",     "double", "else",
        "enum",    "extern",   "float",    "for",    "goto",     "if",       "inline",  "int",    "keys",   "kind",
        "long",    "main",     "register", "restrict", "return", "short",   "signed",  "sizeof", "static", "struct",
        "switch",  "typedef", "union",    "unsigned", "void",   "volatile", "while",    "asm",     "typeof"};
    for (size_t k = 0; k < sizeof words / sizeof *words; k++)
        KR_FAIL_IF(!strcmp(words[k], name), KR_BAD_ARGUMENT, "'%s' is a word of C; choose another name", name);
    return KR_OK;
}

/// Texts one after another, with the name in place of @ (@@ is one @).
static kr_status write_file(const char *directory, const char *format, const char *name, const char *const *texts,
                            FILE *said) {
    char file[256], path[4352], *content = NULL;
    size_t bytes = 0;
    snprintf(file, sizeof file, format, name);
    KR_FAIL_IF((size_t)snprintf(path, sizeof path, "%s/%s", directory, file) >= sizeof path, KR_BAD_ARGUMENT,
               "--out: the path is too long");
    KR_FAIL_IF(access(path, F_OK) == 0, KR_BAD_ARGUMENT, "%s is there already; it was left alone", path);
    FILE *to = open_memstream(&content, &bytes);
    KR_FAIL_IF(!to, KR_NO_MEMORY, "no memory for %s", path);
    for (; *texts; texts++)
        for (const char *c = *texts; *c; c++) {
            if (*c != '@') fputc(*c, to);
            else if (c[1] == '@') fputc(*c++, to);
            else fputs(name, to);
        }
    const bool whole = fclose(to) == 0;
    const kr_status status = whole ? kr_file_write(path, content, bytes)
                                   : kr_status_record(KR_NO_MEMORY, __FILE__, __LINE__, "no memory for %s", path);
    free(content);
    if (!status) fprintf(said, "wrote %s\n", path);
    return status;
}

kr_status kr_new_block_in_tree(const char *name, FILE *to) {
    KR_TRY(check_name(name));
    KR_FAIL_IF(
        access("models/blocks.c", F_OK), KR_BAD_ARGUMENT,
        "this is not the top of Krait's sources (there is no models/blocks.c): give --out DIR for a block of your own");
    const char *const texts[] = {kr_template_tree_head, kr_template_block, kr_template_tree_foot, NULL};
    KR_TRY(write_file("models/blocks", "%s.c", name, texts, to));
    fprintf(to, "two lines make it known: in models/blocks.c    #define BLOCKS(X) ... X(%s)\n"
                "                         in models/meson.build models_sources = files(..., 'blocks/%s.c')\n"
                "the tests of all blocks check it then: meson test -C build block packing\n", name, name);
    return KR_OK;
}

kr_status kr_new_block_apart(const char *name, const char *out, FILE *to) {
    KR_TRY(check_name(name));
    KR_TRY(kr_directory_make(out));
    const char *const texts[] = {kr_template_own_head, kr_template_block, kr_template_own_foot, NULL};
    KR_TRY(write_file(out, "%s.c", name, texts, to));
    KR_TRY(write_file(out, "test_%s.c", name, (const char *const[]){kr_template_test, NULL}, to));
    KR_TRY(write_file(out, "Makefile", name, (const char *const[]){kr_template_make, NULL}, to));
    KR_TRY(write_file(out, "krait.yaml", name, (const char *const[]){kr_template_config, NULL}, to));
    fprintf(to, "next: cd %s && make && make test\n"
                "      krait pretrain --block ./%s.so --model %s-1m -- --text-file FILE\n", out, name, name);
    return KR_OK;
}
