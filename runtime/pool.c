/// A bump allocator: chunks that double in size, objects one after another, everything freed at once.
///
/// Under AddressSanitizer the unused rest of each chunk and a gap behind every object are poisoned, so an overrun of
/// one small object faults as it would with malloc.
#include "runtime/runtime.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#if defined(__SANITIZE_ADDRESS__)
#define UNDER_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define UNDER_ASAN 1
#endif
#endif

#ifdef UNDER_ASAN
#include <sanitizer/asan_interface.h>
enum { GAP = 16 };
#else
#define ASAN_POISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
enum { GAP = 0 };
#endif

enum { ALIGN = 16, FIRST_CHUNK = 4096, LARGEST_STEP = 1 << 20 };

typedef struct chunk {
    struct chunk *next;
    size_t size, used; // bytes behind this header
} chunk;

_Static_assert(sizeof(chunk) <= 32, "the header is padded to 32 bytes");
enum { HEADER = 32 };

struct kr_pool {
    chunk *newest;
    size_t step;
};

static chunk *chunk_new(size_t size) {
    void *block = NULL;
    if (size > PTRDIFF_MAX - HEADER || posix_memalign(&block, ALIGN, HEADER + size)) return NULL;
    chunk *c = block;
    *c = (chunk){NULL, size, 0};
    ASAN_POISON_MEMORY_REGION((char *)c + HEADER, size);
    return c;
}

kr_pool *kr_pool_new(void) {
    kr_pool *pool = calloc(1, sizeof *pool);
    if (!pool) {
        kr_status_record(KR_NO_MEMORY, __FILE__, __LINE__, "no memory for a pool");
        return NULL;
    }
    pool->step = FIRST_CHUNK;
    return pool;
}

void kr_pool_free(kr_pool *pool) {
    if (!pool) return;
    for (chunk *c = pool->newest, *next; c; c = next) {
        next = c->next;
        ASAN_UNPOISON_MEMORY_REGION((char *)c + HEADER, c->size);
        free(c);
    }
    free(pool);
}

/// Puts a new chunk in front; a large object gets one of its own size, behind the newest, whose rest stays in use.
static chunk *grow(kr_pool *pool, size_t room) {
    const bool own = room > pool->step / 2;
    chunk *c = chunk_new(own ? room : pool->step);
    if (!c) return NULL;
    if (own && pool->newest) {
        c->next = pool->newest->next;
        pool->newest->next = c;
        return c;
    }
    if (!own && pool->step < LARGEST_STEP) pool->step *= 2;
    c->next = pool->newest;
    pool->newest = c;
    return c;
}

void *kr_pool_take(kr_pool *pool, size_t bytes) {
    const size_t limit = PTRDIFF_MAX - HEADER - ALIGN - GAP;
    const size_t room = bytes > limit ? 0 : ((bytes ? bytes : 1) + ALIGN - 1) / ALIGN * ALIGN + GAP;
    chunk *c = pool->newest;
    if (room && (!c || c->size - c->used < room)) c = grow(pool, room);
    if (!room || !c) {
        kr_status_record(KR_NO_MEMORY, __FILE__, __LINE__, "no memory for %zu bytes in a pool", bytes);
        return NULL;
    }
    char *object = (char *)c + HEADER + c->used;
    c->used += room;
    ASAN_UNPOISON_MEMORY_REGION(object, bytes);
    memset(object, 0, bytes);
    return object;
}

char *kr_pool_text(kr_pool *pool, const char *text) {
    const size_t bytes = strlen(text) + 1;
    char *copy = kr_pool_take(pool, bytes);
    if (copy) memcpy(copy, text, bytes);
    return copy;
}

char *kr_pool_format(kr_pool *pool, const char *format, ...) {
    va_list list, again;
    va_start(list, format);
    va_copy(again, list);
    const int length = vsnprintf(NULL, 0, format, list);
    va_end(list);
    char *text = length < 0 ? NULL : kr_pool_take(pool, (size_t)length + 1);
    if (text) vsnprintf(text, (size_t)length + 1, format, again);
    va_end(again);
    if (length < 0) kr_status_record(KR_BAD_ARGUMENT, __FILE__, __LINE__, "text could not be formatted: %s", format);
    return text;
}
