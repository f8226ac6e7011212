/// Files written from front to back with a running checksum, compressed on the way or not; and the reverse.
///
/// Memory does not grow with the file: zstd level 1 keeps about a megabyte, since the noise in the low bits of trained
/// weights leaves little for a higher level to find.
#include "runtime/files/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>
#include <zstd.h>

enum { LEVEL = 1, BUFFER = 1 << 17 };

struct kr_writer {
    int fd;
    char *label;
    ZSTD_CCtx *zstd; // null: not compressed
    XXH3_state_t *hash;
    uint64_t bytes;
    size_t used;
    char buffer[BUFFER];
};

static kr_status flush(kr_writer *w) {
    if (!kr_write_all(w->fd, w->buffer, w->used)) KR_FAIL_IO(w->label, "write");
    XXH3_64bits_update(w->hash, w->buffer, w->used);
    w->bytes += w->used;
    w->used = 0;
    return KR_OK;
}

static kr_status put_plain(kr_writer *w, const char *data, size_t bytes) {
    while (bytes > 0) {
        const size_t room = BUFFER - w->used, part = bytes < room ? bytes : room;
        memcpy(w->buffer + w->used, data, part);
        w->used += part;
        data += part;
        bytes -= part;
        if (w->used == BUFFER) KR_TRY(flush(w));
    }
    return KR_OK;
}

static kr_status put_compressed(kr_writer *w, const void *data, size_t bytes, ZSTD_EndDirective how) {
    ZSTD_inBuffer in = {data, bytes, 0};
    for (;;) {
        ZSTD_outBuffer out = {w->buffer, BUFFER, w->used};
        const size_t left = ZSTD_compressStream2(w->zstd, &out, &in, how);
        KR_FAIL_IF(ZSTD_isError(left), KR_IO, "%s: cannot compress: %s", w->label, ZSTD_getErrorName(left));
        w->used = out.pos;
        if (w->used == BUFFER) KR_TRY(flush(w));
        if (how == ZSTD_e_end ? left == 0 : in.pos == in.size) return KR_OK;
    }
}

kr_status kr_writer_put(kr_writer *w, const void *data, size_t bytes) {
    return w->zstd ? put_compressed(w, data, bytes, ZSTD_e_continue) : put_plain(w, data, bytes);
}

static void writer_free(kr_writer *w) {
    if (!w) return;
    if (w->fd >= 0) close(w->fd);
    ZSTD_freeCCtx(w->zstd);
    XXH3_freeState(w->hash);
    free(w->label);
    free(w);
}

kr_status kr_writer_open(int directory, const char *name, const char *label, bool compress, uint64_t total,
                         kr_writer **out) {
    *out = NULL;
    kr_writer *w = calloc(1, sizeof *w);
    KR_FAIL_IF(!w, KR_NO_MEMORY, "%s: no memory to write it", label);
    w->fd = -1;
    w->label = strdup(label);
    w->hash = XXH3_createState();
    w->zstd = compress ? ZSTD_createCCtx() : NULL;
    if (!w->label || !w->hash || (compress && !w->zstd)) {
        writer_free(w);
        KR_FAIL(KR_NO_MEMORY, "%s: no memory to write it", label);
    }
    XXH3_64bits_reset(w->hash);
    if (compress) {
        ZSTD_CCtx_setParameter(w->zstd, ZSTD_c_compressionLevel, LEVEL);
        ZSTD_CCtx_setPledgedSrcSize(w->zstd, total);
    }
    w->fd = openat(directory, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (w->fd < 0) {
        const int reason = errno;
        writer_free(w);
        errno = reason;
        KR_FAIL_IO(label, "create");
    }
    *out = w;
    return KR_OK;
}

static kr_status finish(kr_writer *w, kr_file_sum *sum) {
    if (w->zstd) KR_TRY(put_compressed(w, NULL, 0, ZSTD_e_end));
    KR_TRY(flush(w));
    if (!kr_sync(w->fd)) KR_FAIL_IO(w->label, "sync");
    const int closed = close(w->fd); // a file system over a network may report a failed write only here
    w->fd = -1;
    if (closed != 0) KR_FAIL_IO(w->label, "write");
    *sum = (kr_file_sum){w->bytes, XXH3_64bits_digest(w->hash)};
    return KR_OK;
}

kr_status kr_writer_close(kr_writer *w, kr_file_sum *sum) {
    const kr_status status = w && sum ? finish(w, sum) : KR_OK;
    writer_free(w);
    return status;
}

struct kr_unpacker {
    ZSTD_DCtx *zstd;
    ZSTD_inBuffer in;
    char *label;
};

void kr_unpacker_close(kr_unpacker *u) {
    if (!u) return;
    ZSTD_freeDCtx(u->zstd);
    free(u->label);
    free(u);
}

kr_status kr_unpacker_open(const kr_mapped *mapped, const char *label, kr_unpacker **out, uint64_t *total) {
    *out = NULL;
    const unsigned long long content = mapped->data ? ZSTD_getFrameContentSize(mapped->data, mapped->bytes)
                                                    : ZSTD_CONTENTSIZE_ERROR;
    KR_FAIL_IF(content == ZSTD_CONTENTSIZE_ERROR, KR_BAD_FILE, "%s: byte 0: not zstd data", label);
    KR_FAIL_IF(content == ZSTD_CONTENTSIZE_UNKNOWN, KR_BAD_FILE, "%s: byte 0: zstd data without its size", label);
    kr_unpacker *u = calloc(1, sizeof *u);
    if (u) u->zstd = ZSTD_createDCtx();
    if (u) u->label = strdup(label);
    if (!u || !u->zstd || !u->label) {
        kr_unpacker_close(u);
        KR_FAIL(KR_NO_MEMORY, "%s: no memory to unpack it", label);
    }
    u->in = (ZSTD_inBuffer){mapped->data, mapped->bytes, 0};
    *total = content;
    *out = u;
    return KR_OK;
}

kr_status kr_unpacker_take(kr_unpacker *u, void *to, size_t bytes) {
    ZSTD_outBuffer out = {to, bytes, 0};
    while (out.pos < bytes) {
        const size_t in_before = u->in.pos, out_before = out.pos;
        const size_t left = ZSTD_decompressStream(u->zstd, &out, &u->in);
        KR_FAIL_IF(ZSTD_isError(left), KR_BAD_FILE, "%s: byte %zu: %s", u->label, u->in.pos, ZSTD_getErrorName(left));
        KR_FAIL_IF(u->in.pos == in_before && out.pos == out_before, KR_BAD_FILE,
                   "%s: byte %zu: ends too early; is it cut?", u->label, u->in.pos);
    }
    return KR_OK;
}
