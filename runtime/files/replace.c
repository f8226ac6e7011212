/// Replaces one directory by another so that a crash at any instant leaves one of them whole.
///
/// The new checkpoint is built as NAME.saving, every file and the directory synced, and then exchanged with NAME in one
/// system call (renameat2 with RENAME_EXCHANGE); NAME.saving is then the one before, and is removed. Where the file
/// system cannot exchange, NAME first moves to NAME.replaced, and for an instant there is no NAME. What a crash leaves
/// tells how far it came:
///
///   NAME is there                       the rest is waste, of before or after the exchange
///   no NAME, a whole NAME.saving        finish: it becomes NAME
///   no NAME, a whole NAME.replaced      go back: it becomes NAME
///   no NAME, nothing whole              the waste of a first save or of a removal
///
/// Whole means that MANIFEST is there, valid, and all files have their sizes. MANIFEST is written last and deleted
/// first. Everyone holds a lock (flock) on the folder while looking or moving, so waste is never somebody's work; the
/// system drops the lock of a process that dies.
#include "runtime/files/internal.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { LOCK_TRIES = 3000 }; // of 10 ms: a save takes seconds at most

static bool is_there(int folder, const char *name) {
    struct stat info;
    return fstatat(folder, name, &info, AT_SYMLINK_NOFOLLOW) == 0;
}

static int open_folder(int folder, const char *name) {
    return openat(folder, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

static bool is_whole(const kr_place *p, const char *name) {
    const int fd = open_folder(p->parent, name);
    kr_manifest m;
    const bool whole = fd >= 0 && kr_manifest_read(fd, p->path, &m) == KR_OK;
    if (fd >= 0) close(fd);
    return whole;
}

static kr_status move(const kr_place *p, const char *from, const char *to) {
    if (renameat(p->parent, from, p->parent, to) != 0)
        KR_FAIL(KR_IO, "%s: cannot rename %s to %s: %m", p->path, from, to);
    if (!kr_sync(p->parent)) KR_FAIL(KR_IO, "%s: cannot sync the directory it is in: %m", p->path);
    return KR_OK;
}

static bool is_ours(const char *name) {
    for (const char *const *n = kr_checkpoint_files; *n; n++)
        if (strcmp(*n, name) == 0) return true;
    return strcmp(name, "MANIFEST") == 0;
}

/// Deletes our files; gives what else there is to `heir`, where that is a directory and has no file of that name.
/// stranger: the name of one that stays.
static void empty_folder(DIR *folder, int heir, char stranger[256]) {
    unlinkat(dirfd(folder), "MANIFEST", 0);
    for (const struct dirent *e; (e = readdir(folder));) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0) continue;
        if (is_ours(e->d_name) && (unlinkat(dirfd(folder), e->d_name, 0) == 0 || errno == ENOENT)) continue;
        const bool moved = heir >= 0 && !is_ours(e->d_name) && !is_there(heir, e->d_name) &&
                           renameat(dirfd(folder), e->d_name, heir, e->d_name) == 0;
        if (!moved) snprintf(stranger, 256, "%s", e->d_name);
    }
}

kr_status kr_place_discard(const kr_place *p, const char *name) {
    const int fd = open_folder(p->parent, name);
    if (fd < 0 && errno == ENOENT) return KR_OK;
    if (fd < 0) KR_FAIL(KR_IO, "%s: cannot open %s beside it: %m", p->path, name);
    DIR *folder = fdopendir(fd);
    if (!folder) {
        close(fd);
        KR_FAIL(KR_NO_MEMORY, "%s: no memory to list %s", p->path, name);
    }
    char stranger[256] = "";
    const int heir = open_folder(p->parent, p->name);
    empty_folder(folder, heir, stranger);
    if (heir >= 0) close(heir);
    closedir(folder);
    if (unlinkat(p->parent, name, AT_REMOVEDIR) == 0 || errno == ENOENT) return KR_OK;
    KR_FAIL_IF(*stranger, KR_IO, "%s: cannot remove %s beside it: '%s' is in the way; move it elsewhere", p->path, name,
               stranger);
    KR_FAIL(KR_IO, "%s: cannot remove %s beside it: %m", p->path, name);
}

static kr_status recover(const kr_place *p) {
    if (!is_there(p->parent, p->name)) {
        const bool ahead = is_whole(p, p->fresh);
        if (ahead || is_whole(p, p->old)) KR_TRY(move(p, ahead ? p->fresh : p->old, p->name));
    }
    KR_TRY(kr_place_discard(p, p->fresh));
    return kr_place_discard(p, p->old);
}

kr_status kr_place_install(const kr_place *p) {
    if (!is_there(p->parent, p->name)) return move(p, p->fresh, p->name);
    if (renameat2(p->parent, p->fresh, p->parent, p->name, RENAME_EXCHANGE) == 0) {
        if (!kr_sync(p->parent)) KR_FAIL(KR_IO, "%s: cannot sync the directory it is in: %m", p->path);
        return kr_place_discard(p, p->fresh);
    }
    if (errno != EINVAL && errno != ENOSYS && errno != ENOTSUP)
        KR_FAIL(KR_IO, "%s: cannot exchange it with %s: %m", p->path, p->fresh);
    KR_TRY(move(p, p->name, p->old));
    const kr_status status = move(p, p->fresh, p->name);
    if (status && !is_there(p->parent, p->name)) renameat(p->parent, p->old, p->parent, p->name);
    return status ? status : kr_place_discard(p, p->old);
}

/// Another process may hold the folder for as long as a save takes. A file system without locks does without.
static kr_status lock(const kr_place *p) {
    for (int k = 0; k < LOCK_TRIES; k++) {
        if (flock(p->parent, LOCK_EX | LOCK_NB) == 0) return KR_OK;
        if (errno != EWOULDBLOCK && errno != EINTR) return KR_OK;
        nanosleep(&(struct timespec){0, 10000000}, NULL);
    }
    KR_FAIL(KR_IO, "%s: another process has been saving or opening checkpoints in this directory for too long",
            p->path);
}

/// Splits the path into folder and name. A symbolic link stands for what it points to.
static kr_status split(const char *path, kr_place *p, char **folder) {
    struct stat info;
    size_t length = strlen(path);
    while (length > 1 && path[length - 1] == '/') length--;
    p->path = strndup(path, length);
    KR_FAIL_IF(!p->path, KR_NO_MEMORY, "no memory for a path");
    if (lstat(p->path, &info) == 0 && S_ISLNK(info.st_mode)) {
        char *real = realpath(p->path, NULL);
        if (!real) KR_FAIL_IO(p->path, "follow the link");
        free(p->path);
        p->path = real;
    }
    const char *slash = strrchr(p->path, '/'), *name = slash ? slash + 1 : p->path;
    KR_FAIL_IF(!*name || strcmp(name, ".") == 0 || strcmp(name, "..") == 0, KR_BAD_ARGUMENT,
               "'%s' cannot be the name of a checkpoint", path);
    *folder = !slash ? strdup(".") : strndup(p->path, slash == p->path ? 1 : (size_t)(slash - p->path));
    p->name = strdup(name);
    const bool made = asprintf(&p->fresh, "%s.saving", name) >= 0 && asprintf(&p->old, "%s.replaced", name) >= 0;
    KR_FAIL_IF(!*folder || !p->name || !made, KR_NO_MEMORY, "no memory for a path");
    return KR_OK;
}

/// Only a checkpoint or an empty directory is ever replaced, so a slip in a path costs nobody their files.
static kr_status check_replaceable(const kr_place *p) {
    if (!is_there(p->parent, p->name)) return KR_OK;
    const int fd = open_folder(p->parent, p->name);
    if (fd < 0) KR_FAIL_IO(p->path, "replace with a checkpoint");
    DIR *folder = fdopendir(fd);
    if (!folder) close(fd);
    KR_FAIL_IF(!folder, KR_NO_MEMORY, "no memory to list %s", p->path);
    bool empty = true;
    for (const struct dirent *e; (e = readdir(folder));)
        empty &= strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0;
    const bool marked = is_there(dirfd(folder), "MANIFEST");
    closedir(folder);
    KR_FAIL_IF(!empty && !marked, KR_BAD_ARGUMENT,
               "%s: is a directory that is not a checkpoint (no MANIFEST); choose another name or move it away",
               p->path);
    return KR_OK;
}

kr_status kr_place_open(const char *path, bool create, kr_place *p) {
    *p = (kr_place){.parent = -1};
    char *folder = NULL;
    kr_status status = split(path, p, &folder);
    if (!status && create) status = kr_directory_make(folder);
    if (!status) {
        p->parent = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (p->parent < 0) status = kr_status_record(KR_IO, __FILE__, __LINE__, "%s: cannot open %s: %m", path, folder);
    }
    free(folder);
    if (!status) status = lock(p);
    if (!status) status = recover(p);
    // One may read a checkpoint where one may not clean up.
    if (status == KR_IO && !create && p->parent >= 0 && is_there(p->parent, p->name)) status = KR_OK;
    if (!status && create) status = check_replaceable(p);
    return status;
}

void kr_place_close(kr_place *p) {
    if (p->parent >= 0) close(p->parent);
    free(p->path);
    free(p->name);
    free(p->fresh);
    free(p->old);
    *p = (kr_place){.parent = -1};
}

kr_status kr_checkpoint_recover(const char *path) {
    kr_place p;
    const kr_status status = kr_place_open(path, false, &p);
    kr_place_close(&p);
    return status;
}

kr_status kr_checkpoint_remove(const char *path) {
    kr_place p;
    kr_status status = kr_place_open(path, false, &p);
    if (!status) status = check_replaceable(&p);
    if (!status && is_there(p.parent, p.name)) {
        // Moved first, so that no half checkpoint ever bears its name. Files of others end up under it again, alone.
        status = move(&p, p.name, p.old);
        if (!status) status = kr_place_discard(&p, p.old);
        if (status && !is_there(p.parent, p.name)) status = move(&p, p.old, p.name);
    }
    kr_place_close(&p);
    return status;
}
