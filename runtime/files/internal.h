/// What the readers and writers of files share inside runtime/.
#ifndef KRAIT_RUNTIME_FILES_INTERNAL_H
#define KRAIT_RUNTIME_FILES_INTERNAL_H

#include "runtime/runtime.h"

/// Fails with KR_IO and the system's reason: "runs/a/latest: cannot open: No such file or directory".
#define KR_FAIL_IO(label, verb) KR_FAIL(KR_IO, "%s: cannot %s: %m", label, verb)

enum { KR_HEADER_PREFIX = 8, KR_HEADER_LIMIT = 100000000, KR_TENSOR_ALIGN = 64 };

// file.c

/// The path of `name` inside `folder`, from malloc; null when there is no memory (status recorded).
char *kr_path_join(const char *folder, const char *name);
/// Writes all of it, whatever the system takes at a time. False: errno says why.
bool kr_write_all(int fd, const void *data, size_t bytes);
/// Makes what was written to a file or directory survive a power cut. False: errno says why.
bool kr_sync(int fd);

/// A file mapped read-only. An empty file has no mapping and data null.
typedef struct kr_mapped {
    const char *data;
    size_t bytes;
} kr_mapped;
/// Maps `name` under the open directory (AT_FDCWD: from here). `label` names it in messages.
kr_status kr_map_open(int directory, const char *name, const char *label, kr_mapped *out);
void kr_map_close(kr_mapped *);

// tensors.c

struct kr_tensor_file {
    kr_mapped mapped;         ///< nothing when the bytes are the caller's
    kr_pool *pool;            ///< owns everything below
    kr_tensor_entry *entries; ///< in the order of the header
    size_t *offsets;          ///< of each entry, from the start of the data
    const kr_tensor_entry **by_name;
    const char **metadata; ///< key, value, key, value, ...
    int count, pairs;
};
kr_status kr_tensors_open_at(int directory, const char *name, const char *label, kr_tensor_file **out);

// tensors_header.c

/// Checks the first 8 bytes of a file of `total` bytes, and gives the length of the header that follows.
kr_status kr_tensors_prefix(const unsigned char *prefix, uint64_t total, const char *label, size_t *header_bytes);
/// Reads the JSON text of a header and checks it against `data_bytes` bytes of data that lie elsewhere: the entries'
/// data stays null. The text is not needed afterwards.
kr_status kr_tensors_header(const char *text, size_t bytes, uint64_t data_bytes, const char *label,
                            kr_tensor_file **out);
/// The name by which files call a dtype: "F32" for KR_F32.
const char *kr_tensors_dtype(kr_dtype);
/// Length of the longest start of the text that is whole UTF-8.
size_t kr_utf8_span(const char *text, size_t bytes);
/// A name from a file, fit for a message: control characters replaced, cut to 100 bytes.
const char *kr_printable(const char *name, char text[128]);

// tensors_write.c

/// The bytes before the data (length prefix, JSON, padding), from malloc. order[k] is the entry whose data comes k-th.
/// The entries' data is not looked at.
kr_status kr_tensors_make_header(const kr_tensor_entry *entries, int count, const char *const *metadata, int pairs,
                                 char **header, size_t *header_bytes, int *order, uint64_t *data_bytes);

// stream.c

/// Size and XXH3 of a file as it lies on the disk.
typedef struct kr_file_sum {
    uint64_t bytes, hash;
} kr_file_sum;

/// A new file, written from front to back, compressed on the way (zstd) when asked.
typedef struct kr_writer kr_writer;
/// total: how many bytes will be put; recorded in a compressed file, so that a reader knows it.
kr_status kr_writer_open(int directory, const char *name, const char *label, bool compress, uint64_t total,
                         kr_writer **out);
kr_status kr_writer_put(kr_writer *, const void *data, size_t bytes);
/// Ends, syncs, closes and frees. With sum null: gives up (always KR_OK).
kr_status kr_writer_close(kr_writer *, kr_file_sum *sum);

/// Decompresses a mapped zstd file from front to back, with little memory.
typedef struct kr_unpacker kr_unpacker;
/// `mapped` must outlive it. *total: bytes that come out.
kr_status kr_unpacker_open(const kr_mapped *mapped, const char *label, kr_unpacker **out, uint64_t *total);
kr_status kr_unpacker_take(kr_unpacker *, void *to, size_t bytes);
void kr_unpacker_close(kr_unpacker *);

// manifest.c

enum { KR_MANIFEST_FILES = 8 };
/// The files of a checkpoint with their checksums; `name` points to one of kr_checkpoint_files.
typedef struct kr_manifest {
    int count;
    struct {
        const char *name;
        kr_file_sum sum;
    } file[KR_MANIFEST_FILES];
} kr_manifest;
/// Every file name that a checkpoint can hold besides MANIFEST; ends with null.
extern const char *const kr_checkpoint_files[];
/// Writes MANIFEST into the open directory and syncs it.
kr_status kr_manifest_write(int directory, const char *label, const kr_manifest *);
/// Reads MANIFEST, and checks it and that every file it names is there at its full length.
kr_status kr_manifest_read(int directory, const char *label, kr_manifest *out);
/// Index of the file of that name, or -1.
int kr_manifest_find(const kr_manifest *, const char *name);

// replace.c

/// The name of a checkpoint, held against every other process that saves or opens one in the same folder.
typedef struct kr_place {
    char *path;  ///< as in messages
    int parent;  ///< the folder it lies in, locked
    char *name;  ///< inside parent, as are the next two
    char *fresh; ///< where a new one is built
    char *old;   ///< where the one before goes for an instant, if names cannot be exchanged
} kr_place;
/// Locks, and completes or removes what an interrupted save left. create: makes the folder if need be, and refuses to
/// replace something that is no checkpoint. To be closed even after a failure.
kr_status kr_place_open(const char *path, bool create, kr_place *out);
void kr_place_close(kr_place *);
/// Puts the finished fresh directory in the place of the checkpoint, and removes what was there.
kr_status kr_place_install(const kr_place *);
/// Removes a directory of that name (fresh or old) if there is one: the files of a checkpoint are deleted, anything
/// else moves to the checkpoint itself, or stays and is named in the message.
kr_status kr_place_discard(const kr_place *, const char *name);

#endif
