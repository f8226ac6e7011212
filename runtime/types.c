/// Element types, shapes, host memory and the clock.
#include "runtime/internal.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#if defined(__SANITIZE_ADDRESS__)
#define UNDER_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define UNDER_ASAN 1
#endif
#endif
#ifndef UNDER_ASAN
#define UNDER_ASAN 0
#endif

static const struct {
    const char *name;
    size_t bytes;
} dtypes[KR_DTYPE_COUNT] = {
    [KR_F32] = {"f32", 4}, [KR_F64] = {"f64", 8}, [KR_BF16] = {"bf16", 2}, [KR_I32] = {"i32", 4},
    [KR_I64] = {"i64", 8}, [KR_U8] = {"u8", 1},   [KR_BOOL] = {"bool", 1},
};

size_t kr_dtype_size(kr_dtype dtype) { return (unsigned)dtype < KR_DTYPE_COUNT ? dtypes[dtype].bytes : 0; }

const char *kr_dtype_name(kr_dtype dtype) {
    return (unsigned)dtype < KR_DTYPE_COUNT ? dtypes[dtype].name : "unknown dtype";
}

bool kr_dtype_parse(const char *name, kr_dtype *out) {
    for (int k = 0; name && k < KR_DTYPE_COUNT; k++) {
        if (strcmp(name, dtypes[k].name) != 0) continue;
        *out = (kr_dtype)k;
        return true;
    }
    return false;
}

bool kr_shape_equal(const kr_shape *a, const kr_shape *b) {
    if (a->rank != b->rank) return false;
    for (int k = 0; k < a->rank && k < KR_MAX_RANK; k++)
        if (a->dim[k] != b->dim[k]) return false;
    return true;
}

const char *kr_shape_text(const kr_shape *shape, char text[160]) {
    if (shape->rank < 0 || shape->rank > KR_MAX_RANK) {
        snprintf(text, 160, "[rank %d]", (int)shape->rank);
        return text;
    }
    size_t at = 0;
    text[at++] = '[';
    for (int k = 0; k < shape->rank; k++)
        at += (size_t)snprintf(text + at, 160 - at, k ? ", %lld" : "%lld", (long long)shape->dim[k]);
    memcpy(text + at, "]", 2);
    return text;
}

size_t kr_tensor_bytes(kr_dtype dtype, const kr_shape *shape) {
    if (shape->rank < 0 || shape->rank > KR_MAX_RANK || kr_dtype_size(dtype) == 0) return SIZE_MAX;
    // An axis of length 0 counts as 1 here: nobody may multiply the other axes in an order that overflows first.
    size_t all = kr_dtype_size(dtype);
    bool empty = false;
    for (int k = 0; k < shape->rank; k++) {
        const int64_t n = shape->dim[k];
        if (n < 0) return SIZE_MAX;
        empty |= n == 0;
        if (n > 0 && __builtin_mul_overflow(all, (uint64_t)n, &all)) return SIZE_MAX;
        if (all > KR_MOST_BYTES) return SIZE_MAX;
    }
    return empty ? 0 : all;
}

float kr_bf16_to_f32(uint16_t x) {
    const uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

uint16_t kr_f32_to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return (uint16_t)(bits >> 16 | 0x40u); // quiet: the payload may be cut off
    return (uint16_t)((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
}

double kr_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

// Large blocks come straight from the system: already zero, touched first by the threads that use them, and given
// back when freed. Where a whole huge page fits, the block starts on one. Small ones come from malloc, and all of
// them do under AddressSanitizer, which then watches their ends.
enum { ALIGN = 64, LARGE = 1 << 20, HUGE_PAGE = 2 << 20, PAGE = 4096 };

static size_t round_up(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }

static void *map_large(size_t bytes) {
    const size_t spare = bytes >= HUGE_PAGE ? HUGE_PAGE : 0;
    char *base = mmap(NULL, bytes + spare, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) return NULL;
    if (!spare) return base;
    char *start = (char *)round_up((size_t)base, HUGE_PAGE);
    if (start > base) munmap(base, (size_t)(start - base));
    if (base + spare > start) munmap(start + bytes, (size_t)(base + spare - start));
    madvise(start, bytes / HUGE_PAGE * HUGE_PAGE,
            MADV_HUGEPAGE); // only whole pages, so no memory beyond the block is used
    return start;
}

void *kr_host_alloc(size_t bytes) {
    void *block = NULL;
    if (bytes <= PTRDIFF_MAX - 2 * (size_t)HUGE_PAGE) {
        if (bytes >= LARGE && !UNDER_ASAN) {
            block = map_large(round_up(bytes, PAGE));
        } else if (!posix_memalign(&block, ALIGN, bytes ? bytes : 1)) {
            memset(block, 0, bytes ? bytes : 1);
        } else {
            block = NULL;
        }
    }
    if (!block)
        kr_status_record(KR_NO_MEMORY, __FILE__, __LINE__, "no memory for %zu bytes (%.1f MiB)", bytes,
                         (double)bytes / 1048576.0);
    return block;
}

void kr_host_free(void *block, size_t bytes) {
    if (!block) return;
    if (bytes >= LARGE && !UNDER_ASAN) {
        munmap(block, round_up(bytes, PAGE));
    } else {
        free(block);
    }
}

kr_status kr_splat(kr_dtype dtype, double value, void *out, int64_t n) {
    static const struct {
        double low, high;
    } range[KR_DTYPE_COUNT] = {[KR_I32] = {-0x1p31, 0x1p31 - 1},
                               [KR_I64] = {-0x1p63, 0x1.fffffffffffffp62},
                               [KR_U8] = {0, 255},
                               [KR_BOOL] = {0, 1}};
    const size_t size = kr_dtype_size(dtype);
    KR_FAIL_IF(size == 0, KR_BAD_ARGUMENT, "there is no dtype %d", (int)dtype);
    if (range[dtype].high > 0)
        KR_FAIL_IF(!(value >= range[dtype].low && value <= range[dtype].high), KR_BAD_ARGUMENT,
                   "%g is not a value of %s", value, kr_dtype_name(dtype));
    union {
        float f32;
        double f64;
        uint16_t bf16;
        int32_t i32;
        int64_t i64;
        uint8_t u8;
    } element;
    switch (dtype) {
    case KR_F64: element.f64 = value; break;
    case KR_BF16: element.bf16 = kr_f32_to_bf16((float)value); break;
    case KR_I32: element.i32 = (int32_t)value; break;
    case KR_I64: element.i64 = (int64_t)value; break;
    case KR_U8: element.u8 = (uint8_t)value; break;
    case KR_BOOL: element.u8 = value != 0; break;
    default: element.f32 = (float)value; break;
    }
    for (int64_t k = 0; k < n; k++) memcpy((char *)out + (size_t)k * size, &element, size);
    return KR_OK;
}
