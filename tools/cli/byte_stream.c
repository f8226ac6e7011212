// Bytes of a text as they come, written for people: a terminal gets whole characters only, none that could steer it.
#include "tools/cli/byte_stream.h"

static void put_unknown(kr_byte_stream *s) {
    fputs("\xef\xbf\xbd", s->to);
    s->count = s->want = 0;
}

/// Bytes that follow this first byte of a UTF-8 character; -1: none starts so.
static int followers(uint8_t byte) {
    if (byte < 0x80) return 0;
    if (byte >= 0xc2 && byte <= 0xdf) return 1;
    if (byte >= 0xe0 && byte <= 0xef) return 2;
    return byte >= 0xf0 && byte <= 0xf4 ? 3 : -1;
}

/// Whether a second byte is allowed after the first: no overlong forms, no surrogates, nothing above U+10FFFF, and of
/// the two-byte forms no C1 controls (some terminals obey them).
static bool second_fits(uint8_t first, uint8_t second) {
    if (first == 0xc2) return second >= 0xa0;
    if (first == 0xe0) return second >= 0xa0;
    if (first == 0xed) return second <= 0x9f;
    if (first == 0xf0) return second >= 0x90;
    return first != 0xf4 || second <= 0x8f;
}

void kr_stream_put(kr_byte_stream *s, uint8_t byte) {
    if (!s->terminal) {
        fputc(byte, s->to);
        return;
    }
    if (s->count) {
        const bool fits = (byte & 0xc0) == 0x80 && (s->count > 1 || second_fits(s->held[0], byte));
        if (fits) {
            s->held[s->count++] = byte;
            if (s->count > s->want) {
                fwrite(s->held, 1, (size_t)s->count, s->to);
                s->count = s->want = 0;
            }
            return;
        }
        put_unknown(s); // and the byte starts anew
    }
    const int more = followers(byte);
    if (more > 0) {
        s->held[0] = byte;
        s->count = 1;
        s->want = more;
    } else if (more < 0 || (byte < 0x20 && byte != '\n' && byte != '\t') || byte == 0x7f) {
        put_unknown(s);
    } else {
        fputc(byte, s->to);
    }
}

void kr_stream_end(kr_byte_stream *s) {
    if (s->count) put_unknown(s);
    fflush(s->to);
}
