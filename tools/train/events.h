/// TensorBoard's event file.
#ifndef KRAIT_TOOLS_TRAIN_EVENTS_H
#define KRAIT_TOOLS_TRAIN_EVENTS_H

#include "runtime/runtime.h"

/// TensorBoard's event file: records of a protocol buffer, framed by lengths and CRC-32C sums.
typedef struct kr_events kr_events;
kr_status kr_events_open(const char *directory, kr_events **out);
kr_status kr_events_scalar(kr_events *, int64_t step, const char *tag, double value);
kr_status kr_events_close(kr_events *);
uint32_t kr_crc32c(const void *data, size_t bytes);

#endif
