/// Whole files and directories: read, map, write through a temporary name.
#include "runtime/files/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

char *kr_path_join(const char *folder, const char *name) {
    char *path = NULL;
    if (asprintf(&path, "%s/%s", folder, name) >= 0) return path;
    kr_status_record(KR_NO_MEMORY, __FILE__, __LINE__, "no memory for a path");
    return NULL;
}

bool kr_write_all(int fd, const void *data, size_t bytes) {
    for (const char *at = data; bytes > 0;) {
        const ssize_t done = write(fd, at, bytes < (1u << 30) ? bytes : 1u << 30);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0) return false;
        at += done;
        bytes -= (size_t)done;
    }
    return true;
}

bool kr_sync(int fd) {
    int result;
    do result = fsync(fd);
    while (result != 0 && errno == EINTR);
    return result == 0 || errno == EINVAL || errno == ENOTSUP; // some file systems cannot sync a directory
}

kr_status kr_map_open(int directory, const char *name, const char *label, kr_mapped *out) {
    *out = (kr_mapped){NULL, 0};
    const int fd = openat(directory, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK); // a pipe must not hold us up
    if (fd < 0) KR_FAIL_IO(label, "open");
    struct stat info;
    kr_status status = KR_OK;
    if (fstat(fd, &info) != 0) {
        status = kr_status_record(KR_IO, __FILE__, __LINE__, "%s: cannot read: %m", label);
    } else if (!S_ISREG(info.st_mode)) {
        status = kr_status_record(KR_IO, __FILE__, __LINE__, "%s: is %s, want a regular file", label,
                                  S_ISDIR(info.st_mode) ? "a directory" : "a device or pipe");
    } else if (info.st_size > 0) {
        void *data = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (data == MAP_FAILED) {
            status = kr_status_record(KR_IO, __FILE__, __LINE__, "%s: cannot map: %m", label);
        } else {
            *out = (kr_mapped){data, (size_t)info.st_size};
        }
    }
    close(fd);
    return status;
}

void kr_map_close(kr_mapped *m) {
    if (m->data) munmap((void *)m->data, m->bytes);
    *m = (kr_mapped){NULL, 0};
}

/// Reads to the end, whatever fstat says of the size: files of /proc and pipes have none.
static kr_status read_all(int fd, const char *path, char **data, size_t *bytes) {
    struct stat info;
    if (fstat(fd, &info) != 0) KR_FAIL_IO(path, "read");
    KR_FAIL_IF(S_ISDIR(info.st_mode), KR_IO, "%s: is a directory, want a file", path);
    size_t used = 0, room = S_ISREG(info.st_mode) && info.st_size > 0 ? (size_t)info.st_size + 2 : 65536;
    char *text = malloc(room);
    while (text) {
        const ssize_t got = read(fd, text + used, room - used - 1);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) {
            free(text);
            KR_FAIL_IO(path, "read");
        }
        if (got == 0) break;
        used += (size_t)got;
        if (room - used > 1) continue;
        char *more = realloc(text, room *= 2);
        if (!more) free(text);
        text = more;
    }
    KR_FAIL_IF(!text, KR_NO_MEMORY, "%s: no memory for a file of %zu bytes", path, used);
    text[used] = 0;
    *data = text;
    *bytes = used;
    return KR_OK;
}

kr_status kr_file_read(const char *path, char **data, size_t *bytes) {
    *data = NULL;
    *bytes = 0;
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) KR_FAIL_IO(path, "open");
    const kr_status status = read_all(fd, path, data, bytes);
    close(fd);
    return status;
}

/// Syncs the directory that holds `path`, so that a rename in it survives a power cut.
static bool sync_folder(const char *path) {
    const char *slash = strrchr(path, '/');
    char *folder = slash ? strndup(path, slash == path ? 1 : (size_t)(slash - path)) : strdup(".");
    const int fd = folder ? open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    free(folder);
    if (fd < 0) return errno == EACCES; // a folder may be writable and not readable
    const bool done = kr_sync(fd);
    close(fd);
    return done;
}

kr_status kr_file_write(const char *path, const void *data, size_t bytes) {
    // Process and count make the name ours alone; one left by a dead process with our number is replaced.
    static atomic_uint count;
    char *fresh = NULL;
    const unsigned mine = atomic_fetch_add(&count, 1);
    KR_FAIL_IF(asprintf(&fresh, "%s.%ld-%u.tmp", path, (long)getpid(), mine) < 0, KR_NO_MEMORY, "no memory for a path");
    kr_status status = KR_OK;
    unlink(fresh);
    const int fd = open(fresh, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0) {
        status = kr_status_record(KR_IO, __FILE__, __LINE__, "%s: cannot create: %m", path);
    } else {
        bool done = kr_write_all(fd, data, bytes) && kr_sync(fd);
        const int reason = errno;
        if (close(fd) != 0 && done) {
            done = false;
        } else {
            errno = reason;
        }
        if (!done || rename(fresh, path) != 0) {
            status = kr_status_record(KR_IO, __FILE__, __LINE__, "%s: cannot write: %m", path);
            unlink(fresh);
        } else if (!sync_folder(path)) {
            status = kr_status_record(KR_IO, __FILE__, __LINE__, "%s: cannot sync its directory: %m", path);
        }
    }
    free(fresh);
    return status;
}

kr_status kr_directory_make(const char *path) {
    KR_FAIL_IF(!*path, KR_BAD_ARGUMENT, "the path of a directory is empty");
    char *prefix = strdup(path);
    KR_FAIL_IF(!prefix, KR_NO_MEMORY, "no memory for a path");
    kr_status status = KR_OK;
    const size_t length = strlen(path);
    for (size_t k = 1; k <= length && !status; k++) {
        if (prefix[k] != '/' && prefix[k] != 0) continue;
        const char kept = prefix[k];
        prefix[k] = 0;
        if (mkdir(prefix, 0777) != 0) {
            // An existing directory can answer EROFS or EACCES before EEXIST.
            const int reason = errno;
            struct stat info;
            const bool there = stat(prefix, &info) == 0;
            errno = reason;
            if (there && !S_ISDIR(info.st_mode)) {
                status = kr_status_record(KR_IO, __FILE__, __LINE__, "%s: cannot create the directory: %s is a file",
                                          path, prefix);
            } else if (!there) {
                status = kr_status_record(KR_IO, __FILE__, __LINE__, "%s: cannot create the directory %s: %m", path,
                                          prefix);
            }
        }
        prefix[k] = kept;
    }
    free(prefix);
    return status;
}
