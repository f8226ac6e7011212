// A text as a byte-level data set. No shuffle state exists: row r of a run starts at a place that Philox makes from
// (seed, r), and rows are numbered over the whole run, so resuming needs nothing but the step, and micro-batches draw
// the same rows as one larger batch.
#include "tools/train.h"

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
};

enum { ROW_STREAM = 0x726f77, PIECE = 4096, ENDS = 1 << 20, PIECES = 64 };

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
    kr_data *d;
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
        KR_FAIL(KR_IO, "cannot read %s: it is no file", d->path);
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
    kr_data *d;
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
    free(d->path);
    free(d);
}

const char *kr_data_path(const kr_data *d) { return d->path; }
int64_t kr_data_train_bytes(const kr_data *d) { return (int64_t)d->train; }
int64_t kr_data_held_out_bytes(const kr_data *d) { return (int64_t)(d->count - d->train); }
size_t kr_data_memory(const kr_data *d) { return d->count; }

uint64_t kr_data_fingerprint(const kr_data *d) {
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

static void copy_row(const uint8_t *from, int64_t length, int32_t *tokens, int32_t *targets) {
    for (int64_t k = 0; k < length; k++) tokens[k] = from[k];
    for (int64_t k = 0; k < length; k++) targets[k] = from[k + 1];
}

void kr_data_row(const kr_data *d, uint64_t seed, int64_t row, int32_t *tokens, int32_t *targets) {
    uint32_t words[4];
    kr_philox(seed, ROW_STREAM, (uint64_t)row, words);
    // The high half of a 128-bit product maps 64 random bits onto the places with no bias that could be seen.
    const uint64_t places = d->train - (uint64_t)d->length, random = (uint64_t)words[1] << 32 | words[0];
    const uint64_t start = (uint64_t)((unsigned __int128)random * places >> 64);
    copy_row(d->bytes + start, d->length, tokens, targets);
}

int64_t kr_data_windows(const kr_data *d) { return ((int64_t)(d->count - d->train) - 1) / d->length; }

void kr_data_window(const kr_data *d, int64_t index, int32_t *tokens, int32_t *targets) {
    if (index >= kr_data_windows(d)) {
        for (int64_t k = 0; k < d->length; k++) tokens[k] = 0, targets[k] = -100;
        return;
    }
    copy_row(d->bytes + d->train + index * d->length, d->length, tokens, targets);
}
