// The kinds of golden cases by their names in the files, and all files of a directory one after another.
#include "tools/golden/golden.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

kr_status kr_golden_case(kr_golden *c) {
    static const struct kind {
        const char *op;
        kr_status (*run)(kr_golden *);
    } kinds[] = {
        {"causal_conv1d", kr_golden_causal_conv1d},
        {"selective_scan", kr_golden_selective_scan},
        {"ssd_chunk_scan", kr_golden_ssd},
        {"mamba3_siso_scan", kr_golden_mamba3_siso},
        {"mamba3_mimo_scan", kr_golden_mamba3_mimo},
        {"attention", kr_golden_attention},
        {"rmsnorm_gated", kr_golden_rmsnorm_gated},
        {"add_rmsnorm", kr_golden_add_rmsnorm},
        {"add_layernorm", kr_golden_add_layernorm},
        {"linear", kr_golden_linear},
        {"embedding", kr_golden_embedding},
        {"elementwise", kr_golden_elementwise},
        {"gated_mlp", kr_golden_gated_mlp},
        {"cross_entropy", kr_golden_cross_entropy},
        {"adamw", kr_golden_adamw},
        {"clip_grad_norm", kr_golden_clip_grad_norm},
        {"lr_schedule", kr_golden_lr_schedule},
        {"language_model", kr_golden_language_model},
    };
    const char *op;
    KR_TRY(kr_golden_text(c, "op", &op));
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++)
        if (!strcmp(op, kinds[k].op)) return kinds[k].run(c);
    const size_t length = strlen(op);
    if (length > 6 && !strcmp(op + length - 6, "_block")) return kr_golden_block(c);
    snprintf(c->skipped, sizeof c->skipped, "%.100s is not there yet", op);
    return KR_OK;
}

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

static void report(FILE *to, const char *name, const kr_golden *c, kr_status status, kr_golden_totals *t) {
    const bool compared = c->compared > 0;
    if (!status && *c->skipped) {
        t->skipped++;
        fprintf(to, "skipped %-36s %s\n", name, c->skipped);
    } else if (!status && compared && c->worst <= 1) {
        t->passed++;
        fprintf(to, "ok      %-36s %5.3f of the tolerance at %s: %.2g of %.2g\n", name, c->worst, c->worst_name,
                c->error, c->tolerance);
    } else {
        t->failed++;
        if (status) fprintf(to, "FAIL    %-36s %s\n", name, kr_status_message());
        else if (!compared) fprintf(to, "FAIL    %-36s it has nothing to compare\n", name);
        else
            fprintf(to, "FAIL    %-36s %.3g times the tolerance at %s: %.2g of %.2g\n", name, c->worst, c->worst_name,
                    c->error, c->tolerance);
    }
    fflush(to);
}

/// `c` says where to run.
static void run_file(const char *directory, const char *name, kr_golden c, FILE *to, kr_golden_totals *t) {
    char path[4096];
    c.pool = kr_pool_new();
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
    report(to, name, &c, status, t);
    kr_tensors_close(file);
    kr_pool_free(c.pool);
}

kr_status kr_golden_directory(const char *path, const kr_target *target, kr_device *device, int threads, FILE *to,
                              kr_golden_totals *totals) {
    const kr_golden where = {.target = target, .device = device, .threads = threads};
    char **names = NULL;
    int count = 0;
    *totals = (kr_golden_totals){0};
    KR_TRY(list(path, &names, &count));
    for (int k = 0; k < count; k++) run_file(path, names[k], where, to, totals);
    free_names(names, count);
    return KR_OK;
}
