// A text as a byte-level data set. No shuffle state exists: row r of a run starts at a place that Philox makes from
// (seed, r), and rows are numbered over the whole run, so resuming needs nothing but the step, and micro-batches draw
// the same rows as one larger batch. Streams (training that carries its state on) number their rows the same way.
//
// A text may be documents one after another. Rows are cut from it as from any text, so they pack what happens to lie
// there; where a document starts inside of a row the model starts from a zero state, and the first byte of the
// document is
// nobody's target.
#include "tools/train/data.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zstd.h>

struct kr_data {
    char *path;
    const uint8_t *bytes;
    size_t count, train; ///< all bytes; those that are not held out
    int64_t length;
    void *mapping;       ///< plain files
    uint8_t *owned;      ///< unpacked files
    uint64_t separator;  ///< hash of the separator; 0: one text
    size_t *starts;      ///< where documents start after a separator, ascending
    size_t documents;    ///< number of `starts`
};

enum { ROW_STREAM = 0x726f77, PHASE_STREAM = 0x706861, PIECE = 4096, ENDS = 1 << 20, PIECES = 64 };

static kr_status check_length(const kr_data *d) {
    // One window must fit into the held-out tenth, and one row into the rest.
    const size_t row = (size_t)d->length + 1;
    size_t least = row * 10;
    if (d->count / 10 >= row && d->train >= row) return KR_OK;
    KR_FAIL(KR_BAD_ARGUMENT,
            "%s has %zu bytes; rows of %lld need at least %zu (the last tenth is held out): use a longer "
            "text or a smaller --seq-len",
            d->path, d->count, (long long)d->length, least);
}

static kr_status new_data(const char *path, int64_t length, kr_data **out) {
    kr_data *d = calloc(1, sizeof *d);
    char *copy = strdup(path);
    if (!d || !copy) {
        free(d);
        free(copy);
        KR_FAIL(KR_NO_MEMORY, "%s: no memory", path);
    }
    d->path = copy;
    d->length = length;
    return *out = d, KR_OK;
}

static kr_status finish(kr_data *d, kr_data **out) {
    d->train = d->count - d->count / 10;
    const kr_status status = check_length(d);
    if (status) return kr_data_close(d), status;
    return *out = d, KR_OK;
}

kr_status kr_data_from(const void *bytes, size_t count, int64_t length, const char *label, kr_data **out) {
    kr_data *d = NULL;
    KR_TRY(new_data(label, length, &d));
    d->bytes = bytes;
    d->count = count;
    return finish(d, out);
}

/// Unpacks all frames of a .zst file into memory.
static kr_status unpack(kr_data *d, const uint8_t *packed, size_t bytes) {
    ZSTD_DStream *stream = ZSTD_createDStream();
    size_t room = 0, state = 1;
    ZSTD_inBuffer in = {packed, bytes, 0};
    // Growing by the frame's stated size avoids copies; the size is a claim, so it is only a hint.
    const unsigned long long stated = ZSTD_getFrameContentSize(packed, bytes);
    size_t grow = stated < (UINT64_C(1) << 32) && stated > 0 ? (size_t)stated + 1 : (size_t)1 << 20;
    bool memory = stream;
    while (memory && (in.pos < in.size || state)) {
        if (d->count == room) {
            uint8_t *larger = room + grow > room ? realloc(d->owned, room + grow) : NULL;
            memory = larger;
            if (!larger) break;
            d->owned = larger;
            room += grow;
            grow = room;
        }
        ZSTD_outBuffer to = {d->owned, room, d->count};
        const size_t before = in.pos, had = d->count;
        state = ZSTD_decompressStream(stream, &to, &in);
        d->count = to.pos;
        if (ZSTD_isError(state)) {
            ZSTD_freeDStream(stream);
            KR_FAIL(KR_BAD_FILE, "%s: not a whole zstd file: %s", d->path, ZSTD_getErrorName(state));
        }
        if (in.pos == in.size && before == in.pos && had == to.pos && to.pos < to.size) break;
    }
    ZSTD_freeDStream(stream);
    KR_FAIL_IF(!memory, KR_NO_MEMORY, "%s: no memory to unpack it", d->path);
    KR_FAIL_IF(state, KR_BAD_FILE, "%s: not a whole zstd file: it ends early", d->path);
    d->bytes = d->owned;
    return KR_OK;
}

static kr_status map_file(kr_data *d) {
    const int fd = open(d->path, O_RDONLY | O_CLOEXEC);
    KR_FAIL_IF(fd < 0, KR_IO, "cannot open %s: %s", d->path, strerror(errno));
    struct stat info;
    if (fstat(fd, &info) || !S_ISREG(info.st_mode)) {
        close(fd);
        KR_FAIL(KR_IO, "cannot read %s: it is not a file", d->path);
    }
    d->count = (size_t)info.st_size;
    if (d->count) d->mapping = mmap(NULL, d->count, PROT_READ, MAP_PRIVATE, fd, 0);
    const int reason = errno;
    close(fd);
    if (d->mapping == MAP_FAILED) {
        d->mapping = NULL;
        KR_FAIL(KR_IO, "cannot map %s: %s", d->path, strerror(reason));
    }
    d->bytes = d->mapping;
    return KR_OK;
}

kr_status kr_data_open(const char *path, int64_t length, kr_data **out) {
    kr_data *d = NULL;
    KR_TRY(new_data(path, length, &d));
    kr_status status = map_file(d);
    const size_t name = strlen(path);
    if (!status && name > 4 && !strcmp(path + name - 4, ".zst")) {
        void *packed = d->mapping;
        const size_t bytes = d->count;
        d->mapping = NULL;
        d->count = 0;
        status = unpack(d, packed, bytes);
        if (packed) munmap(packed, bytes);
    }
    if (status) return kr_data_close(d), status;
    return finish(d, out);
}

void kr_data_close(kr_data *d) {
    if (!d) return;
    if (d->mapping) munmap(d->mapping, d->count);
    free(d->owned);
    free(d->starts);
    free(d->path);
    free(d);
}

const char *kr_data_path(const kr_data *d) { return d->path; }
int64_t kr_data_train_bytes(const kr_data *d) { return (int64_t)d->train; }
int64_t kr_data_held_out_bytes(const kr_data *d) { return (int64_t)(d->count - d->train); }
size_t kr_data_memory(const kr_data *d) { return d->count + d->documents * sizeof *d->starts; }
int64_t kr_data_documents(const kr_data *d) { return (int64_t)d->documents + 1; }

kr_status kr_data_split(kr_data *d, const char *separator) {
    const size_t length = strlen(separator);
    KR_FAIL_IF(!length, KR_BAD_ARGUMENT, "the separator of documents is empty");
    size_t room = 0;
    for (const uint8_t *at = d->bytes, *end = d->bytes + d->count;;) {
        at = memmem(at, (size_t)(end - at), separator, length);
        if (!at) break;
        at += length;
        if (d->documents == room) {
            room = room ? 2 * room : 1024;
            size_t *larger = realloc(d->starts, room * sizeof *larger);
            KR_FAIL_IF(!larger, KR_NO_MEMORY, "%s: no memory for the starts of its documents", d->path);
            d->starts = larger;
        }
        d->starts[d->documents++] = (size_t)(at - d->bytes);
    }
    KR_FAIL_IF(!d->documents, KR_BAD_ARGUMENT, "'%s' stands nowhere in %s", separator, d->path);
    d->separator = kr_hash(separator, length);
    return KR_OK;
}

static uint64_t content(const kr_data *d) {
    uint64_t sums[PIECES + 3] = {d->count};
    if (d->count <= 2 * ENDS + PIECES * PIECE) {
        sums[1] = kr_hash(d->bytes, d->count);
        return kr_hash(sums, sizeof sums);
    }
    sums[1] = kr_hash(d->bytes, ENDS);
    sums[2] = kr_hash(d->bytes + d->count - ENDS, ENDS);
    const size_t stride = (d->count - 2 * ENDS) / PIECES;
    for (size_t k = 0; k < PIECES; k++) sums[3 + k] = kr_hash(d->bytes + ENDS + k * stride, PIECE);
    return kr_hash(sums, sizeof sums);
}

uint64_t kr_data_fingerprint(const kr_data *d) {
    const uint64_t sums[2] = {content(d), d->separator};
    return d->separator ? kr_hash(sums, sizeof sums) : sums[0];
}

/// The first document that starts after byte `at`, as an index into starts.
static size_t next_document(const kr_data *d, size_t at) {
    size_t low = 0, high = d->documents;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        if (d->starts[middle] > at) high = middle;
        else low = middle + 1;
    }
    return low;
}

static void copy_row(const kr_data *d, size_t at, int32_t *tokens, int32_t *targets, int32_t *reset) {
    const uint8_t *from = d->bytes + at;
    const size_t length = (size_t)d->length;
    for (size_t k = 0; k < length; k++) tokens[k] = from[k];
    for (size_t k = 0; k < length; k++) targets[k] = from[k + 1];
    if (reset) memset(reset, 0, length * sizeof *reset);
    size_t next = next_document(d, at);
    if (reset && next && d->starts[next - 1] == at) reset[0] = 1;
    for (; next < d->documents && d->starts[next] - at <= length; next++) {
        const size_t first = d->starts[next] - at;
        targets[first - 1] = KR_IGNORED;
        if (reset && first < length) reset[first] = 1;
    }
}

/// A number below `n` from 64 random bits: the high half of a 128-bit product has no bias that could be seen.
static uint64_t choose(uint64_t seed, uint64_t stream, uint64_t index, uint64_t n) {
    uint32_t words[4];
    kr_philox(seed, stream, index, words);
    const uint64_t random = (uint64_t)words[1] << 32 | words[0];
    return (uint64_t)((unsigned __int128)random * n >> 64);
}

void kr_data_row(const kr_data *d, uint64_t seed, int64_t row, int32_t *tokens, int32_t *targets, int32_t *reset) {
    copy_row(d, choose(seed, ROW_STREAM, (uint64_t)row, d->train - (uint64_t)d->length), tokens, targets, reset);
}

void kr_data_stream(const kr_data *d, uint64_t seed, int64_t streams, int64_t row, int32_t *tokens, int32_t *targets,
                    int32_t *reset) {
    const uint64_t windows = ((uint64_t)d->train - 1) / (uint64_t)d->length, stream = (uint64_t)(row % streams);
    const uint64_t apart = (uint64_t)((unsigned __int128)windows * stream / (uint64_t)streams);
    const uint64_t window = (choose(seed, PHASE_STREAM, 0, windows) + apart + (uint64_t)(row / streams)) % windows;
    copy_row(d, window * (uint64_t)d->length, tokens, targets, reset);
    if (!window && reset) reset[0] = 1; // from the end of the text to its start
}

int64_t kr_data_windows(const kr_data *d) { return ((int64_t)(d->count - d->train) - 1) / d->length; }

void kr_data_window(const kr_data *d, int64_t index, int32_t *tokens, int32_t *targets, int32_t *reset) {
    if (index < kr_data_windows(d)) {
        copy_row(d, d->train + (size_t)(index * d->length), tokens, targets, reset);
        return;
    }
    for (int64_t k = 0; k < d->length; k++) tokens[k] = 0, targets[k] = KR_IGNORED;
    if (reset) memset(reset, 0, (size_t)d->length * sizeof *reset);
}
