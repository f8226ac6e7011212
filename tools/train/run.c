// The directory of a run:
//     step-00000100/ ...        checkpoints, each written under another name and renamed when it is whole
//     latest, best              symbolic links to two of them, replaced by rename(2)
//     metrics.jsonl, events.*   report.md, loss.svg
// The order of saving makes every instant safe: the new checkpoint is complete before a link names it, and an old one
// is removed only when no link does.
#include "tools/train/run.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static bool is_checkpoint(const char *path) {
    char manifest[KR_RUN_PATH + 16];
    snprintf(manifest, sizeof manifest, "%s/MANIFEST", path);
    return access(manifest, R_OK) == 0;
}

kr_status kr_run_directory(const char *model, bool newest, char path[KR_RUN_PATH]) {
    long highest = 0;
    DIR *runs = opendir("runs");
    const size_t length = strlen(model);
    for (struct dirent *e; runs && (e = readdir(runs));) {
        if (strncmp(e->d_name, model, length) || e->d_name[length] != '-') continue;
        char *end;
        const long n = strtol(e->d_name + length + 1, &end, 10);
        if (end != e->d_name + length + 1 && !*end && n > highest) highest = n;
    }
    if (runs) closedir(runs);
    KR_FAIL_IF(newest && !highest, KR_BAD_ARGUMENT,
               "--resume: there is no runs/%s-N to go on with; name the run with --output-dir", model);
    const int n = snprintf(path, KR_RUN_PATH, "runs/%s-%ld", model, newest ? highest : highest + 1);
    KR_FAIL_IF(n >= KR_RUN_PATH, KR_BAD_ARGUMENT, "the path of the run is too long");
    return KR_OK;
}

/// The step of "step-00000100"; -1 for other names.
static int64_t step_of(const char *name) {
    if (strncmp(name, "step-", 5) || name[5] < '0' || name[5] > '9') return -1;
    char *end;
    const long long step = strtoll(name + 5, &end, 10);
    return *end ? -1 : step;
}

static int descending(const void *a, const void *b) {
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}

/// Steps of all whole checkpoints, newest first; from malloc.
static int64_t *list_steps(const char *directory, int *count) {
    int64_t *steps = NULL;
    int room = 0;
    *count = 0;
    DIR *d = opendir(directory);
    for (struct dirent *e; d && (e = readdir(d));) {
        const int64_t step = step_of(e->d_name);
        char path[KR_RUN_PATH + 300];
        snprintf(path, sizeof path, "%s/%s", directory, e->d_name);
        if (step < 0 || strlen(path) >= KR_RUN_PATH || !is_checkpoint(path)) continue;
        if (*count == room) {
            int64_t *larger = realloc(steps, sizeof *steps * (size_t)(room = 2 * room + 16));
            if (!larger) break;
            steps = larger;
        }
        steps[(*count)++] = step;
    }
    if (d) closedir(d);
    if (*count) qsort(steps, (size_t)*count, sizeof *steps, descending);
    return steps;
}

static void checkpoint_path(const char *directory, int64_t step, char path[KR_RUN_PATH]) {
    snprintf(path, KR_RUN_PATH, "%s/step-%08lld", directory, (long long)step);
}

/// What a link in the directory names: a step, or -1.
static int64_t linked_step(const char *directory, const char *link) {
    char path[KR_RUN_PATH], name[256];
    snprintf(path, sizeof path, "%s/%s", directory, link);
    const ssize_t n = readlink(path, name, sizeof name - 1);
    if (n <= 0) return -1;
    name[n] = 0;
    return step_of(name);
}

/// The checkpoint that a link names, when it is there.
static bool follow(const char *directory, const char *link, char path[KR_RUN_PATH]) {
    const int64_t step = linked_step(directory, link);
    if (step < 0) return false;
    checkpoint_path(directory, step, path);
    return is_checkpoint(path);
}

bool kr_run_latest(const char *directory, char path[KR_RUN_PATH]) {
    if (follow(directory, "latest", path)) return true;
    // A crash between the first checkpoint and its link leaves a whole checkpoint without a name.
    int count;
    int64_t *steps = list_steps(directory, &count);
    if (count) checkpoint_path(directory, steps[0], path);
    free(steps);
    return count > 0;
}

kr_status kr_run_checkpoint(const char *path, char out[KR_RUN_PATH]) {
    struct stat info;
    KR_FAIL_IF(stat(path, &info) != 0, KR_BAD_ARGUMENT, "no checkpoint at %s: %s", path, strerror(errno));
    if (is_checkpoint(path)) {
        KR_FAIL_IF(!realpath(path, out), KR_IO, "cannot follow %s: %s", path, strerror(errno));
        return KR_OK;
    }
    if (follow(path, "best", out) || kr_run_latest(path, out)) return KR_OK;
    KR_FAIL(KR_BAD_ARGUMENT, "%s is neither a checkpoint nor a run with one", path);
}

static kr_status point(const char *directory, const char *link, int64_t step) {
    char to[64], temporary[KR_RUN_PATH], final[KR_RUN_PATH];
    snprintf(to, sizeof to, "step-%08lld", (long long)step);
    snprintf(temporary, sizeof temporary, "%s/.%s.new", directory, link);
    snprintf(final, sizeof final, "%s/%s", directory, link);
    unlink(temporary);
    KR_FAIL_IF(symlink(to, temporary) || rename(temporary, final), KR_IO, "cannot make the link %s: %s", final,
               strerror(errno));
    return KR_OK;
}

/// Removes the oldest checkpoints beyond `keep`.
static kr_status prune(const char *directory, int64_t keep) {
    const int64_t latest = linked_step(directory, "latest"), best = linked_step(directory, "best");
    int count;
    int64_t *steps = list_steps(directory, &count);
    kr_status status = KR_OK;
    for (int k = 0; k < count && !status; k++) {
        char path[KR_RUN_PATH];
        if (k < keep || steps[k] == latest || steps[k] == best) continue;
        checkpoint_path(directory, steps[k], path);
        status = kr_checkpoint_remove(path);
    }
    free(steps);
    return status;
}

kr_status kr_run_save(const char *directory, kr_session *session, int64_t step, const char *state, bool carries,
                      bool best, int64_t keep) {
    char path[KR_RUN_PATH];
    KR_FAIL_IF(strlen(directory) + 64 > KR_RUN_PATH, KR_BAD_ARGUMENT, "the path of the run is too long");
    checkpoint_path(directory, step, path);
    KR_TRY(kr_checkpoint_save(path, session, state, carries));
    KR_TRY(point(directory, "latest", step));
    if (best) KR_TRY(point(directory, "best", step));
    const int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        fsync(fd); // the links; a file system that cannot do this still keeps their order
        close(fd);
    }
    return keep > 0 ? prune(directory, keep) : KR_OK;
}
