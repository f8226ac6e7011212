// Choosing the next token, and writing bytes for people. The random number of a token depends on (seed, its index)
// alone, so that a text repeats from its seed and does not change when the way it is computed does.
#include "tools/train/train.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { SAMPLE_STREAM = 0x73616d70 };

/// Larger logits first; equal ones by id, so that the order is total and sorting is deterministic.
static int by_logit(const void *a, const void *b) {
    const kr_candidate *x = a, *y = b;
    if (x->logit != y->logit) return x->logit < y->logit ? 1 : -1;
    return x->id < y->id ? -1 : 1;
}

static int32_t largest(const float *logits, int32_t n) {
    int32_t best = 0;
    for (int32_t k = 1; k < n; k++)
        if (logits[k] > logits[best] || isnan(logits[best])) best = k;
    return best;
}

int32_t kr_sample(const float *logits, int32_t n, const kr_sampling *how, uint64_t seed, uint64_t index,
                  kr_candidate *scratch) {
    if (how->temperature <= 0 || n < 2 || how->top_k == 1) return largest(logits, n);
    int32_t count = 0;
    for (int32_t k = 0; k < n; k++)
        if (!isnan(logits[k])) scratch[count++] = (kr_candidate){logits[k], k};
    if (!count) return 0;
    qsort(scratch, (size_t)count, sizeof *scratch, by_logit);
    if (how->top_k > 0 && how->top_k < count) count = (int32_t)how->top_k;

    // Probabilities relative to the first, summed in double; top-p keeps the smallest head that holds top_p of them,
    // that is, it drops the tail whose sum is at most 1 - p.
    const double scale = 1 / how->temperature, top = scratch[0].logit;
    double total = 0;
    for (int32_t k = 0; k < count; k++) total += exp((scratch[k].logit - top) * scale);
    if (how->top_p < 1) {
        double tail = 0;
        while (count > 1) {
            const double p = exp((scratch[count - 1].logit - top) * scale);
            if (tail + p > (1 - how->top_p) * total) break;
            tail += p;
            count--;
        }
        total -= tail;
    }
    uint32_t words[4];
    kr_philox(seed, SAMPLE_STREAM, index, words);
    double left = ((double)words[0] + (double)(words[1] >> 11) * 0x1p-21) * 0x1p-32 * total;
    for (int32_t k = 0; k + 1 < count; k++) {
        left -= exp((scratch[k].logit - top) * scale);
        if (left < 0) return scratch[k].id;
    }
    return scratch[count - 1].id;
}

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
