/// Bytes of a text as they come, written for people.
#ifndef KRAIT_TOOLS_CLI_BYTE_STREAM_H
#define KRAIT_TOOLS_CLI_BYTE_STREAM_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

/// Bytes as they come, for people: on a terminal characters are held back until they are whole, and what could
/// steer the terminal is replaced by U+FFFD; elsewhere bytes go out as they are.
typedef struct kr_byte_stream {
    FILE *to;
    bool terminal;
    uint8_t held[4];
    int count, want;
} kr_byte_stream;
void kr_stream_put(kr_byte_stream *, uint8_t byte);
void kr_stream_end(kr_byte_stream *);

#endif
