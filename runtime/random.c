/// Random numbers by counter: Philox4x32-10, and what is drawn from it.
///
/// Philox is a bijection of 128-bit counters, chosen by a 64-bit key: ten rounds of multiplying two of the four words
/// by odd constants, and mixing high halves, low halves and the key. There is no state, so element i of a stream is
/// the same whoever asks for it, in any order and on any number of threads. Here
///
///   key          = seed
///   counter high = stream (the hash of a parameter's name, the number of a training step, ...)
///   counter low  = index / 4; the four words of one counter serve four neighbouring elements.
///
/// Source: Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3.
#include "runtime/internal.h"

#include <math.h>
#include <string.h>
#include <xxhash.h>

void kr_philox(uint64_t key, uint64_t counter_high, uint64_t counter_low, uint32_t out[4]) {
    uint32_t x0 = (uint32_t)counter_low, x1 = (uint32_t)(counter_low >> 32);
    uint32_t x2 = (uint32_t)counter_high, x3 = (uint32_t)(counter_high >> 32);
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    for (int round = 0; round < 10; round++) {
        const uint64_t a = (uint64_t)0xD2511F53u * x0, b = (uint64_t)0xCD9E8D57u * x2;
        x0 = (uint32_t)(b >> 32) ^ x1 ^ k0;
        x2 = (uint32_t)(a >> 32) ^ x3 ^ k1;
        x1 = (uint32_t)b;
        x3 = (uint32_t)a;
        k0 += 0x9E3779B9u; // golden ratio
        k1 += 0xBB67AE85u; // sqrt(3) - 1
    }
    out[0] = x0, out[1] = x1, out[2] = x2, out[3] = x3;
}

static float uniform_of(uint32_t word) { return (float)(word >> 8) * 0x1p-24f; }

/// Box-Muller on words 2p and 2p+1, p = which/2: the cosine for even `which`, the sine for odd. The radius takes all
/// 32 bits and never the logarithm of 0; its largest value is 6.66.
static float normal_of(const uint32_t words[4], int which) {
    const uint32_t *pair = words + (which & 2);
    const double radius = sqrt(-2.0 * log(((double)pair[0] + 1.0) * 0x1p-32));
    const double angle = 2.0 * 3.14159265358979323846 * ((double)pair[1] * 0x1p-32);
    return (float)(radius * (which & 1 ? sin(angle) : cos(angle)));
}

float kr_random_uniform(uint64_t seed, uint64_t stream, uint64_t index) {
    uint32_t words[4];
    kr_philox(seed, stream, index >> 2, words);
    return uniform_of(words[index & 3]);
}

float kr_random_normal(uint64_t seed, uint64_t stream, uint64_t index) {
    uint32_t words[4];
    kr_philox(seed, stream, index >> 2, words);
    return normal_of(words, (int)(index & 3));
}

uint64_t kr_hash(const void *data, size_t bytes) { return XXH3_64bits(data, bytes); }

/// One element of an initialiser that draws; `words` are those of its counter.
static float drawn(const kr_init *init, const uint32_t words[4], int which) {
    if (init->kind == KR_INIT_NORMAL) return (float)(init->a * normal_of(words, which));
    const double u = uniform_of(words[which]);
    if (init->kind == KR_INIT_UNIFORM) return (float)(init->a * (2.0 * u - 1.0));
    if (init->kind == KR_INIT_LOG_UNIFORM) return (float)log(init->a + (init->b - init->a) * u);
    const double dt = fmax(exp(u * (log(init->b) - log(init->a)) + log(init->a)), init->c);
    return (float)(dt + log(-expm1(-dt))); // softplus^-1
}

void kr_init_fill_part(const kr_init *init, uint64_t seed, const char *name, float *out, int64_t first, int64_t n,
                       int64_t last) {
    switch (init->kind) {
    case KR_INIT_CONSTANT:
        for (int64_t i = 0; i < n; i++) out[i] = (float)init->a;
        return;
    case KR_INIT_LOG_ARANGE:
        for (int64_t i = 0; i < n; i++) out[i] = i < last ? (float)log((double)((first + i) % last + 1)) : out[i - last];
        return;
    case KR_INIT_UNIFORM:
    case KR_INIT_NORMAL:
    case KR_INIT_LOG_UNIFORM:
    case KR_INIT_DT_BIAS: break;
    default: // KR_INIT_ZEROS
        if (n > 0) memset(out, 0, (size_t)n * sizeof *out);
        return;
    }
    const uint64_t stream = kr_hash(name, strlen(name));
    for (int64_t i = 0; i < n; i += 4) {
        uint32_t words[4];
        kr_philox(seed, stream, (uint64_t)(first + i) >> 2, words);
        for (int k = 0; k < 4 && i + k < n; k++) out[i + k] = drawn(init, words, k);
    }
}

void kr_init_fill(const kr_init *init, uint64_t seed, const char *name, float *out, int64_t n, int64_t last) {
    kr_init_fill_part(init, seed, name, out, 0, n, last);
}
