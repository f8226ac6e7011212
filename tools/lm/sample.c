// Choosing the next token. The random number of a token depends on (seed, its index) alone, so that a text repeats from
// its seed and does not change when the way it is computed does.
#include "tools/lm/sample.h"

#include <math.h>
#include <stdlib.h>

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

int32_t kr_sample(const float *logits, int32_t n, const kr_lm_sampling *how, uint64_t index, kr_candidate *scratch) {
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
    kr_philox(how->seed, SAMPLE_STREAM, index, words);
    double left = ((double)words[0] + (double)(words[1] >> 11) * 0x1p-21) * 0x1p-32 * total;
    for (int32_t k = 0; k + 1 < count; k++) {
        left -= exp((scratch[k].logit - top) * scale);
        if (left < 0) return scratch[k].id;
    }
    return scratch[count - 1].id;
}
