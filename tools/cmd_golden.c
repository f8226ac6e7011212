// krait golden DIR: runs every golden file of a directory and says how far each result is from the right one.
#include "tools/golden/golden.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

typedef struct settings {
    int threads;
    int isa;
} settings;

static const kr_option options[] = {
    {"isa", KR_OPTION_CHOICE, offsetof(settings, isa), 0, 0, "auto|base|avx2|avx512", "LEVEL",
     "kernels to use (default: the best of this machine)", KR_OPTION_COMMAND_LINE},
    {"threads", KR_OPTION_INT, offsetof(settings, threads), 0, 1024, NULL, "T", "threads (default 0: all)",
     KR_OPTION_COMMAND_LINE},
    {0},
};

static const kr_usage usage = {
    .command = "golden",
    .synopsis = "DIR [--isa LEVEL] [--threads T]",
    .text = "Runs every *.safetensors file in DIR through graph, gradients, memory plan and kernels, and compares the\n"
            "results with those in the file. A line per file shows the largest error as a share of its tolerance.\n"
            "The status is 1 when a file failed or none could be run.",
    .options = options,
    .positional = "DIR",
    .positional_min = 1,
    .positional_max = 1,
};

static int by_name(const void *a, const void *b) { return strverscmp(*(char *const *)a, *(char *const *)b); }

static void free_names(char **names, int count) {
    for (int k = 0; k < count; k++) free(names[k]);
    free(names);
}

/// Names that end in .safetensors, sorted with numbers in their order.
static kr_status list(const char *path, char ***out, int *count) {
    DIR *directory = opendir(path);
    KR_FAIL_IF(!directory, KR_IO, "%s: %s", path, strerror(errno));
    char **names = NULL;
    int n = 0, room = 0;
    bool enough = true;
    for (struct dirent *e; enough && (e = readdir(directory));) {
        static const char ending[] = ".safetensors";
        const size_t length = strlen(e->d_name), tail = sizeof ending - 1;
        if (length <= tail || strcmp(e->d_name + length - tail, ending)) continue;
        if (n == room) {
            room = room ? 2 * room : 64;
            char **grown = realloc(names, (size_t)room * sizeof *names);
            if (!grown) {
                enough = false;
                break;
            }
            names = grown;
        }
        enough = (names[n] = strdup(e->d_name)) != NULL;
        n += enough;
    }
    closedir(directory);
    if (!enough) {
        free_names(names, n);
        KR_FAIL(KR_NO_MEMORY, "%s: no memory for its names", path);
    }
    if (n) qsort(names, (size_t)n, sizeof *names, by_name);
    *out = names;
    *count = n;
    return KR_OK;
}

typedef struct totals {
    int passed, failed, skipped;
} totals;

static void report(const char *name, const kr_golden *c, kr_status status, totals *t) {
    const bool compared = c->compared > 0;
    if (!status && *c->skipped) {
        t->skipped++;
        printf("skipped %-36s %s\n", name, c->skipped);
    } else if (!status && compared && c->worst <= 1) {
        t->passed++;
        printf("ok      %-36s %5.3f of the tolerance at %s: %.2g of %.2g\n", name, c->worst, c->worst_name, c->error,
               c->tolerance);
    } else {
        t->failed++;
        if (status) printf("FAIL    %-36s %s\n", name, kr_status_message());
        else if (!compared) printf("FAIL    %-36s it has nothing to compare\n", name);
        else
            printf("FAIL    %-36s %.3g times the tolerance at %s: %.2g of %.2g\n", name, c->worst, c->worst_name,
                   c->error, c->tolerance);
    }
    fflush(stdout);
}

static void run_file(const char *directory, const char *name, kr_device *device, int threads, totals *t) {
    char path[4096];
    kr_golden c = {.device = device, .threads = threads, .pool = kr_pool_new()};
    kr_tensor_file *file = NULL;
    kr_status status = KR_OK;
    if (!c.pool) status = kr_status_record(KR_NO_MEMORY, __FILE__, __LINE__, "no memory for a case");
    if (!status && snprintf(path, sizeof path, "%s/%s", directory, name) >= (int)sizeof path)
        status = kr_status_record(KR_BAD_ARGUMENT, __FILE__, __LINE__, "the path is longer than %zu bytes",
                                  sizeof path - 1);
    if (!status) status = kr_tensors_open(path, &file);
    if (!status) {
        c.file = file;
        status = kr_golden_case(&c);
    }
    report(name, &c, status, t);
    kr_tensors_close(file);
    kr_pool_free(c.pool);
}

int kr_cmd_golden(int argc, char **argv) {
    settings s = {0};
    kr_text_list words = {0};
    bool help = false;
    kr_status status = kr_options_parse(&usage, argc, argv, &s, &words, &help);
    if (help) return KR_EXIT_OK;
    kr_device *device = NULL;
    char **names = NULL;
    int count = 0;
    if (!status && s.isa) status = kr_isa_limit((kr_isa)(s.isa - 1));
    if (!status) status = list(words.at[0], &names, &count);
    if (!status) status = kr_device_cpu(&device);
    if (status) {
        free_names(names, count);
        return kr_tool_fail("golden", status);
    }
    totals t = {0};
    for (int k = 0; k < count; k++) run_file(words.at[0], names[k], device, s.threads, &t);
    free_names(names, count);
    kr_device_close(device);
    printf("%d passed, %d failed, %d skipped\n", t.passed, t.failed, t.skipped);
    return t.failed || !t.passed ? KR_EXIT_FAILED : KR_EXIT_OK;
}
