// TensorBoard's event file. A record is
//     u64 length | u32 masked CRC-32C of the length | data | u32 masked CRC-32C of the data      (little endian)
// with mask(c) = rotate_right(c, 15) + 0xa282ead8, and data a protocol buffer
//     Event   {1: double wall_time, 2: int64 step, 3: string file_version, 5: Summary}
//     Summary {1: Value}    Value {1: string tag, 2: float simple_value}
// which is short enough to be written by hand.
#include "tools/train/events.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

struct kr_events {
    char *path;
    FILE *file;
};

uint32_t kr_crc32c(const void *data, size_t bytes) {
    const uint8_t *p = data;
    uint32_t crc = ~0u;
    while (bytes--) {
        crc ^= *p++;
        for (int k = 0; k < 8; k++) crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0);
    }
    return ~crc;
}

static uint32_t masked(const void *data, size_t bytes) {
    const uint32_t crc = kr_crc32c(data, bytes);
    return (crc >> 15 | crc << 17) + 0xa282ead8u;
}

/// A message under construction; the events written here are far below its size.
typedef struct message {
    uint8_t at[256];
    size_t count;
} message;

static void put(message *m, const void *data, size_t bytes) {
    if (m->count + bytes > sizeof m->at) return;
    memcpy(m->at + m->count, data, bytes);
    m->count += bytes;
}

static void put_little(message *m, uint64_t value, int bytes) {
    for (int k = 0; k < bytes; k++) put(m, &(uint8_t){(uint8_t)(value >> 8 * k)}, 1);
}

static void put_varint(message *m, uint64_t value) {
    for (; value > 127; value >>= 7) put(m, &(uint8_t){(uint8_t)(value | 128)}, 1);
    put(m, &(uint8_t){(uint8_t)value}, 1);
}

/// Field with a length: strings and messages.
static void put_field(message *m, int field, const void *data, size_t bytes) {
    put_varint(m, (uint64_t)field << 3 | 2);
    put_varint(m, bytes);
    put(m, data, bytes);
}

static message new_event(int64_t step) {
    struct timeval now;
    gettimeofday(&now, NULL);
    const double seconds = (double)now.tv_sec + (double)now.tv_usec * 1e-6;
    uint64_t bits;
    memcpy(&bits, &seconds, 8);
    message m = {.count = 0};
    put_varint(&m, 1 << 3 | 1);
    put_little(&m, bits, 8);
    put_varint(&m, 2 << 3 | 0);
    put_varint(&m, (uint64_t)step);
    return m;
}

static kr_status write_record(kr_events *e, const message *data) {
    message frame = {.count = 0};
    put_little(&frame, data->count, 8);
    put_little(&frame, masked(frame.at, 8), 4);
    const size_t head = frame.count;
    message tail = {.count = 0};
    put_little(&tail, masked(data->at, data->count), 4);
    const bool good = fwrite(frame.at, 1, head, e->file) == head &&
                      fwrite(data->at, 1, data->count, e->file) == data->count &&
                      fwrite(tail.at, 1, 4, e->file) == 4 && fflush(e->file) == 0;
    KR_FAIL_IF(!good, KR_IO, "cannot write %s: %s", e->path, strerror(errno));
    return KR_OK;
}

kr_status kr_events_open(const char *directory, kr_events **out) {
    kr_events *e = calloc(1, sizeof *e);
    char host[65] = "localhost";
    gethostname(host, sizeof host - 1);
    struct timeval now;
    gettimeofday(&now, NULL);
    if (!e || asprintf(&e->path, "%s/events.out.tfevents.%lld.%s.%d", directory, (long long)now.tv_sec, host,
                       (int)getpid()) < 0) {
        free(e);
        KR_FAIL(KR_NO_MEMORY, "%s: no memory for events", directory);
    }
    e->file = fopen(e->path, "we");
    if (!e->file) {
        const kr_status status = kr_status_record(KR_IO, __FILE__, __LINE__, "cannot write %s: %s", e->path,
                                                  strerror(errno));
        kr_events_close(e);
        return status;
    }
    message version = new_event(0);
    put_field(&version, 3, "brain.Event:2", 13);
    const kr_status status = write_record(e, &version);
    if (status) return kr_events_close(e), status;
    return *out = e, KR_OK;
}

kr_status kr_events_scalar(kr_events *e, int64_t step, const char *tag, double value) {
    const float narrow = (float)value;
    uint32_t bits;
    memcpy(&bits, &narrow, 4);
    message inner = {.count = 0}, summary = {.count = 0}, event = new_event(step);
    put_field(&inner, 1, tag, strnlen(tag, 100));
    put_varint(&inner, 2 << 3 | 5);
    put_little(&inner, bits, 4);
    put_field(&summary, 1, inner.at, inner.count);
    put_field(&event, 5, summary.at, summary.count);
    return write_record(e, &event);
}

kr_status kr_events_close(kr_events *e) {
    if (!e) return KR_OK;
    kr_status status = KR_OK;
    if (e->file && fclose(e->file) != 0)
        status = kr_status_record(KR_IO, __FILE__, __LINE__, "cannot write %s: %s", e->path, strerror(errno));
    free(e->path);
    free(e);
    return status;
}
