/// The arrows between the folders, read from the #include lines: an include may only point down.
///
///     tools -> everything        models -> ops, runtime        compiler -> ops, runtime
///     ops -> runtime             runtime -> nothing            kernels -> runtime/kernel.h
///
/// Within tools the rooms have an order of their own (`rooms`). And what the libraries owe to the programs that use
/// them: they never end the process, and write to no stream that they were not given.
#include <criterion/criterion.h>

#include <dirent.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { PATH_LENGTH = 512, LINE_LENGTH = 4096 };

static const char *const folders[] = {"runtime", "ops", "compiler", "models", "tools"};
enum { OPS = 1, TOOLS = 4, FOLDERS = sizeof folders / sizeof *folders };

/// allowed[a][b]: files of folder a may include files of folder b.
static const bool allowed[FOLDERS][FOLDERS] = {
    /*             runtime ops    compiler models tools */
    /* runtime  */ {true, false, false, false, false},
    /* ops      */ {true, true, false, false, false},
    /* compiler */ {true, true, true, false, false},
    /* models   */ {true, true, false, true, false},
    /* tools    */ {true, true, true, true, true},
};

/// The rooms of tools/ from below: each knows those of a lower rank, and itself. Files in none are commands, above all.
static const struct {
    const char *folder;
    int rank;
} rooms[] = {
    {"tools/cli", 0},   {"tools/config", 1}, {"tools/train", 2},   {"tools/lm", 3},
    {"tools/bench", 4}, {"tools/golden", 4}, {"tools/inspect", 4}, {"tools/new_block", 4},
};
enum { ROOMS = sizeof rooms / sizeof *rooms, LIBRARY_ROOMS = 4, COMMANDS = 5 };

static bool lies_in(const char *path, const char *folder) {
    size_t n = strlen(folder);
    return !strncmp(path, folder, n) && path[n] == '/';
}

static int folder_of(const char *path) {
    for (int k = 0; k < FOLDERS; k++)
        if (lies_in(path, folders[k])) return k;
    return -1;
}

/// Index of the room of tools/, or ROOMS.
static int room_of(const char *path) {
    int k = 0;
    while (k < ROOMS && !lies_in(path, rooms[k].folder)) k++;
    return k;
}

static int rank_of(int room) { return room < ROOMS ? rooms[room].rank : COMMANDS; }

static bool ends_with(const char *text, const char *end) {
    size_t n = strlen(text), m = strlen(end);
    return n >= m && !strcmp(text + n - m, end);
}

/// Why the file at `path` may not include `target` (both from the root of the sources), or null.
static const char *refusal(const char *path, const char *target) {
    int from = folder_of(path), to = folder_of(target);
    if (!strcmp(target, "krait.h")) return from == TOOLS ? 0 : "the umbrella header is for programs outside";
    if (to < 0) return "it is in none of the folders";
    if (!allowed[from][to]) return "that arrow points up";
    if (from != TOOLS || to != TOOLS) return 0;
    int room = room_of(path), other = room_of(target);
    if (room != other && rank_of(other) >= rank_of(room)) return "that room is not below this one";
    return 0;
}

static const char *source_root(void) {
    const char *root = getenv("KRAIT_SOURCE");
    return root ? root : ".";
}

static bool exists(const char *path) {
    char full[4 * PATH_LENGTH];
    struct stat info;
    snprintf(full, sizeof full, "%s/%s", source_root(), path);
    return stat(full, &info) == 0;
}

/// Calls `visit` for every line of every C and CUDA source below `folder`; gives how many files there were.
typedef void line_visitor(const char *path, int number, const char *line);
static int each_line(const char *folder, line_visitor *visit) {
    char full[4 * PATH_LENGTH];
    snprintf(full, sizeof full, "%s/%s", source_root(), folder);
    DIR *directory = opendir(full);
    cr_assert(directory, "%s: no such folder (KRAIT_SOURCE names the root of the sources)", full);
    int files = 0;
    for (struct dirent *entry; (entry = readdir(directory));) {
        if (entry->d_name[0] == '.') continue;
        char path[PATH_LENGTH];
        struct stat info;
        cr_assert_lt(snprintf(path, sizeof path, "%s/%s", folder, entry->d_name), PATH_LENGTH);
        snprintf(full, sizeof full, "%s/%s", source_root(), path);
        cr_assert_eq(stat(full, &info), 0, "%s", full);
        if (S_ISDIR(info.st_mode)) files += each_line(path, visit);
        if (!ends_with(path, ".c") && !ends_with(path, ".h") && !ends_with(path, ".cu") && !ends_with(path, ".def"))
            continue;
        FILE *file = fopen(full, "r");
        cr_assert(file, "%s", full);
        char line[LINE_LENGTH];
        for (int number = 1; fgets(line, sizeof line, file); number++) visit(path, number, line);
        fclose(file);
        files++;
    }
    closedir(directory);
    return files;
}

/// The file that an include line means, as the compiler looks for it: beside the including file, then from the root.
/// False when the line includes nothing in quotes.
static bool included(const char *path, const char *line, char target[2 * PATH_LENGTH]) {
    char name[PATH_LENGTH];
    if (sscanf(line, " # include \"%511[^\"]\"", name) != 1) return false;
    snprintf(target, 2 * PATH_LENGTH, "%.*s/%s", (int)(strrchr(path, '/') - path), path, name);
    if (!exists(target)) snprintf(target, 2 * PATH_LENGTH, "%s", name);
    return true;
}

static void check_include(const char *path, int number, const char *line) {
    char target[2 * PATH_LENGTH];
    if (!included(path, line, target)) return;
    cr_expect(exists(target), "%s:%d: %s is neither beside the file nor below the root", path, number, target);
    cr_expect(!strstr(target, ".."), "%s:%d: %s: write the path from the root instead of ..", path, number, target);
    const char *why = refusal(path, target);
    cr_expect(!why, "%s:%d includes %s: %s", path, number, target, why);
}

Test(layers, includes_point_down) {
    for (int k = 0; k < FOLDERS; k++) {
        int files = each_line(folders[k], check_include);
        cr_expect_gt(files, 0, "%s holds no source", folders[k]);
    }
}

/// Kernels are built once per instruction set: a function of a wider header could end up in the program in its AVX-512
/// form and be called on every machine. So of the runtime they see runtime/kernel.h, and of ops/ what needs no more.
static const char *kernel;
static void check_kernel_line(const char *path, int number, const char *line);

static void check_kernel(const char *path) {
    char full[4 * PATH_LENGTH], line[LINE_LENGTH];
    snprintf(full, sizeof full, "%s/%s", source_root(), path);
    FILE *file = fopen(full, "r");
    cr_assert(file, "%s", full);
    for (int number = 1; fgets(line, sizeof line, file); number++) check_kernel_line(path, number, line);
    fclose(file);
}

static void check_kernel_line(const char *path, int number, const char *line) {
    char target[2 * PATH_LENGTH];
    if (!included(path, line, target)) return;
    if (!strcmp(target, "runtime/kernel.h") || !strcmp(target, "runtime/status.h") || !strcmp(target, "runtime/target.h"))
        return; // declarations alone: nothing in them has a body that an instruction set could change
    bool narrow = folder_of(target) == OPS && strcmp(target, "ops/ops.h");
    cr_expect(narrow,
              "%s:%d includes %s, and %s is built once per instruction set: kernels see runtime/kernel.h and what "
              "needs no more than that",
              path, number, target, kernel);
    if (narrow && strcmp(target, path)) check_kernel(target);
}

static void start_kernel(const char *path, int number, const char *line) {
    (void)line;
    const char *name = strrchr(path, '/') + 1;
    if (number != 1 || strncmp(name, "cpu", 3) || !ends_with(name, ".c")) return;
    kernel = path;
    check_kernel(path);
}

Test(layers, kernels_see_little) { each_line("ops", start_kernel); }

static void check_exit(const char *path, int number, const char *line) {
    static const char *const calls[] = {"exit", "_exit", "_Exit", "quick_exit", "abort"};
    for (size_t k = 0; k < sizeof calls / sizeof *calls; k++) {
        size_t n = strlen(calls[k]);
        for (const char *p = line; (p = strstr(p, calls[k])); p += n) {
            bool whole = p == line || !(strchr("_.>", p[-1]) || (p[-1] >= 'a' && p[-1] <= 'z'));
            const char *comment = strstr(line, "//");
            if (comment && comment < p) continue;
            cr_expect(!(whole && p[n] == '('), "%s:%d ends the process: the library reports a status instead", path,
                      number);
        }
    }
}

/// Calls `visit` for every line of the libraries: the folders below tools/, and the rooms that are a library.
static void each_library_line(line_visitor *visit) {
    for (int k = 0; k < TOOLS; k++) each_line(folders[k], visit);
    for (int k = 0; k < LIBRARY_ROOMS; k++) each_line(rooms[k].folder, visit);
}

Test(layers, the_libraries_never_end_the_process) { each_library_line(check_exit); }

static bool in_word(char c) {
    return c == '_' || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}

/// What of the C library writes to the standard streams, or is one of them; null when the line has none of it.
static const char *printing(const char *line) {
    static const char *const words[] = {"printf", "vprintf", "puts", "putchar", "perror", "stdout", "stderr"};
    const char *comment = strstr(line, "//");
    for (size_t k = 0; k < sizeof words / sizeof *words; k++) {
        size_t n = strlen(words[k]);
        for (const char *p = line; (p = strstr(p, words[k])); p += n) {
            if ((comment && comment < p) || (p > line && in_word(p[-1]))) continue;
            if (p[n] == '(' || (!strncmp(words[k], "std", 3) && !in_word(p[n]))) return words[k];
        }
    }
    return 0;
}

static void check_printing(const char *path, int number, const char *line) {
    const char *what = printing(line);
    cr_expect(!what, "%s:%d has %s: the libraries write only to a FILE that the caller gives", path, number, what);
}

Test(layers, the_libraries_print_nothing_by_themselves) {
    each_library_line(check_printing);
    cr_expect(printing("    printf(\"x\");"));
    cr_expect(printing("    fprintf(stderr, \"x\");"));
    cr_expect_not(printing("    fprintf(to, \"x\");"));
    cr_expect_not(printing("    snprintf(text, 4, \"x\"); // as printf"));
}

Test(layers, arrows_that_are_refused) {
    cr_expect(refusal("runtime/session.c", "ops/ops.h"));
    cr_expect(refusal("ops/norm/op.c", "compiler/compiler.h"));
    cr_expect(refusal("ops/norm/op.c", "models/models.h"));
    cr_expect(refusal("compiler/lower.c", "models/models.h"));
    cr_expect(refusal("models/blocks/mamba1.c", "compiler/compiler.h"));
    cr_expect(refusal("models/blocks/mamba1.c", "tools/tool.h"));
    cr_expect(refusal("models/model.c", "krait.h"));
    cr_expect(refusal("runtime/status.c", "tests/check.h"));
    cr_expect_not(refusal("ops/norm/op.c", "runtime/runtime.h"));
    cr_expect_not(refusal("models/blocks/mamba1.c", "models/models.h"));
    cr_expect_not(refusal("tools/main.c", "krait.h"));
    cr_expect(refusal("tools/cli/options.c", "tools/config/config.h"));
    cr_expect(refusal("tools/train/loop.c", "tools/lm/lm.h"));
    cr_expect(refusal("tools/bench/op.c", "tools/golden/golden.h"));
    cr_expect(refusal("tools/lm/model.c", "tools/command.h"));
    cr_expect_not(refusal("tools/lm/model.c", "tools/train/state.h"));
    cr_expect_not(refusal("tools/cmd_bench.c", "tools/bench/bench.h"));
    cr_expect_not(refusal("tools/cmd_bench.c", "tools/command.h"));
}
