/// MANIFEST, the file that makes a directory a checkpoint. Text, one line a file, and a last line for itself:
///
///   krait checkpoint 1
///   model.safetensors 4193472 9f0c...(16 digits)
///   ...
///   MANIFEST 5b77...(16 digits)
///
/// with the size in bytes and the XXH3 of each file as it lies on the disk; the last is over the lines above it.
#include "runtime/files/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static const char first_line[] = "krait checkpoint 1\n";

const char *const kr_checkpoint_files[] = {"model.safetensors", "optimizer.safetensors.zst", "carry.safetensors.zst",
                                           "state.json", NULL};

enum { TEXT = 2048 }; // holds more than all names, with the longest numbers

static const char *known_name(const char *name) {
    for (const char *const *n = kr_checkpoint_files; *n; n++)
        if (strcmp(*n, name) == 0) return *n;
    return NULL;
}

/// The text of a manifest without its last line; gives the length.
static size_t render(const kr_manifest *m, char text[TEXT]) {
    int length = snprintf(text, TEXT, "%s", first_line);
    for (int k = 0; k < m->count; k++)
        length += snprintf(text + length, TEXT - (size_t)length, "%s %" PRIu64 " %016" PRIx64 "\n", m->file[k].name,
                           m->file[k].sum.bytes, m->file[k].sum.hash);
    const uint64_t own = kr_hash(text, (size_t)length);
    length += snprintf(text + length, TEXT - (size_t)length, "MANIFEST %016" PRIx64 "\n", own);
    return (size_t)length;
}

kr_status kr_manifest_write(int directory, const char *label, const kr_manifest *m) {
    char text[TEXT];
    const size_t bytes = render(m, text);
    char *path = kr_path_join(label, "MANIFEST");
    if (!path) return KR_NO_MEMORY;
    kr_writer *w = NULL;
    kr_file_sum sum;
    kr_status status = kr_writer_open(directory, "MANIFEST", path, false, bytes, &w);
    if (!status) status = kr_writer_put(w, text, bytes);
    const kr_status closed = kr_writer_close(w, status ? NULL : &sum);
    free(path);
    return status ? status : closed;
}

/// Takes what lines of files there are, generously; the caller compares with how they would be written.
static void read_lines(const char *text, kr_manifest *out) {
    for (const char *line = strchr(text, '\n'); line && out->count < KR_MANIFEST_FILES; line = strchr(line + 1, '\n')) {
        char name[64];
        uint64_t size, hash;
        if (sscanf(line + 1, "%60s %" SCNu64 " %16" SCNx64, name, &size, &hash) != 3) return;
        const char *known = known_name(name);
        if (!known || kr_manifest_find(out, known) >= 0) return;
        out->file[out->count].name = known;
        out->file[out->count++].sum = (kr_file_sum){size, hash};
    }
}

/// First byte where the two differ, or SIZE_MAX.
static size_t difference(const char *a, size_t a_bytes, const char *b, size_t b_bytes) {
    const size_t both = a_bytes < b_bytes ? a_bytes : b_bytes;
    for (size_t k = 0; k < both; k++)
        if (a[k] != b[k]) return k;
    return a_bytes == b_bytes ? SIZE_MAX : both;
}

static kr_status check_sizes(int directory, const char *label, const kr_manifest *m) {
    for (int k = 0; k < m->count; k++) {
        struct stat info;
        const char *name = m->file[k].name;
        const uint64_t want = m->file[k].sum.bytes;
        if (fstatat(directory, name, &info, 0) != 0) {
            KR_FAIL(errno == ENOENT ? KR_BAD_FILE : KR_IO, "%s/%s: in MANIFEST, but cannot be read: %m", label, name);
        }
        KR_FAIL_IF(!S_ISREG(info.st_mode) || (uint64_t)info.st_size != want, KR_BAD_FILE,
                   "%s/%s: is %lld bytes, MANIFEST says %" PRIu64 "; the checkpoint is damaged, use another", label,
                   name, (long long)info.st_size, want);
    }
    return KR_OK;
}

kr_status kr_manifest_read(int directory, const char *label, kr_manifest *out) {
    *out = (kr_manifest){0};
    char *path = kr_path_join(label, "MANIFEST");
    if (!path) return KR_NO_MEMORY;
    kr_mapped mapped;
    kr_status status = kr_map_open(directory, "MANIFEST", path, &mapped);
    if (!status) {
        char text[TEXT] = ""; // a copy: sscanf wants a 0 at the end
        const size_t bytes = mapped.bytes < TEXT - 1 ? mapped.bytes : TEXT - 1;
        if (bytes) memcpy(text, mapped.data, bytes);
        read_lines(text, out);
        char right[TEXT];
        const size_t wrong = difference(text, bytes, right, render(out, right));
        if (wrong != SIZE_MAX) {
            status = kr_status_record(KR_BAD_FILE, __FILE__, __LINE__,
                                      "%s: byte %zu: wrong or cut; the checkpoint is damaged, use another", path,
                                      wrong);
        } else {
            status = check_sizes(directory, label, out);
        }
    }
    kr_map_close(&mapped);
    free(path);
    return status;
}

int kr_manifest_find(const kr_manifest *m, const char *name) {
    for (int k = 0; k < m->count; k++)
        if (strcmp(m->file[k].name, name) == 0) return k;
    return -1;
}
