// krait COMMAND: finds the command in the table and runs it.
#include "tools/cli/text.h"
#include "tools/command.h"
#include "tools/config/block_keys.h"

#include <string.h>

static int cmd_version(int argc, char **argv);
static int cmd_help(int argc, char **argv);

static const kr_command commands[] = {
    {"pretrain", kr_cmd_pretrain, "train a language model on a text"},
    {"generate", kr_cmd_generate, "let a checkpoint write"},
    {"graph", kr_cmd_graph, "show a model's graph at any stage of the compiler, and its memory"},
    {"golden", kr_cmd_golden, "check this build against recorded results of the official code"},
    {"bench", kr_cmd_bench, "time ops and models"},
    {"new-block", kr_cmd_new_block, "write a block to start from, with a test"},
    {"version", cmd_version, "what this is, and what it can use here"},
    {"help", cmd_help, "this list, or what one command or block takes: krait help NAME"},
};
enum { COMMANDS = sizeof commands / sizeof *commands };

static const kr_command *find(const char *name) {
    for (int k = 0; k < COMMANDS; k++)
        if (!strcmp(commands[k].name, name)) return &commands[k];
    return NULL;
}

static void list(FILE *to) {
    fprintf(to, "usage: krait COMMAND [options]\n\n");
    for (int k = 0; k < COMMANDS; k++) fprintf(to, "  %-10s %s\n", commands[k].name, commands[k].summary);
    fprintf(to, "\nStart with: krait pretrain --model mamba3-1m --target local -- --text-file FILE\n");
}

static int unknown(const char *name) {
    const char *names[COMMANDS];
    for (int k = 0; k < COMMANDS; k++) names[k] = commands[k].name;
    const char *nearest = kr_nearest(name, names, COMMANDS);
    fprintf(stderr, "krait: unknown command '%s'%s%s%s; krait help lists the commands\n", name,
            nearest ? "; did you mean '" : "", nearest ? nearest : "", nearest ? "'?" : "");
    return KR_EXIT_USAGE;
}

static int cmd_version(int argc, char **argv) {
    (void)argc, (void)argv;
    printf("krait %s\n", KR_VERSION);
    printf("cpu      %s, %d processors\n", kr_isa_name(kr_isa_best()), kr_cpu_count());
    printf("openblas %s\n", kr_blas_prepare());
    if (kr_blas_warning()) printf("warning  %s\n", kr_blas_warning());
    return KR_EXIT_OK;
}

static int cmd_help(int argc, char **argv) {
    if (argc < 2) {
        list(stdout);
        return KR_EXIT_OK;
    }
    const kr_command *command = find(argv[1]);
    const kr_block_kind *kind = command ? NULL : kr_block_find(argv[1]);
    if (kind) {
        kr_block_keys_print(kind, stdout);
        return KR_EXIT_OK;
    }
    if (!command) return unknown(argv[1]);
    if (command->run == cmd_help || command->run == cmd_version) {
        printf("krait %s: %s\n", command->name, command->summary);
        return KR_EXIT_OK;
    }
    char flag[] = "--help", *words[] = {argv[1], flag, NULL};
    return command->run(2, words);
}

int main(int argc, char **argv) {
    if (argc < 2) {
        list(stderr);
        return KR_EXIT_USAGE;
    }
    const char *name = argv[1];
    if (!strcmp(name, "--help") || !strcmp(name, "-h")) name = "help";
    if (!strcmp(name, "--version") || !strcmp(name, "-V")) name = "version";
    const kr_command *command = find(name);
    if (!command) return unknown(name);
    return command->run(argc - 1, argv + 1);
}
