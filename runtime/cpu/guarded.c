/// A device for tests. It runs the CPU's kernels, but its memory stands for memory that the host cannot see: arenas
/// are pages without any access, opened for the time of a copy or a run and closed behind it. A host pointer into an
/// arena that somebody kept and used would pass every test on the CPU and fail on a GPU; here it faults at once.
#include "runtime/cpu/internal.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef struct arena {
    struct arena *next;
    char *address;
    size_t bytes; // whole pages; one more page behind is never opened
} arena;

typedef struct guarded {
    kr_cpu_device cpu;
    pthread_mutex_t lock; // one copy or run at a time: when a second one was open, the first could not close
    arena *arenas;
} guarded;

static size_t page_bytes(void) { return (size_t)sysconf(_SC_PAGESIZE); }

static kr_status guarded_alloc(kr_device *device, size_t bytes, void **address) {
    guarded *g = (guarded *)device;
    const size_t page = page_bytes();
    KR_FAIL_IF(bytes > PTRDIFF_MAX - 2 * page, KR_NO_MEMORY, "no memory for an arena of %zu bytes", bytes);
    arena *a = malloc(sizeof *a);
    KR_FAIL_IF(!a, KR_NO_MEMORY, "no memory for an arena");
    a->bytes = (bytes + page - 1) / page * page;
    a->address = mmap(NULL, a->bytes + page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (a->address == MAP_FAILED) {
        free(a);
        KR_FAIL(KR_NO_MEMORY, "no memory for an arena of %zu bytes: %s", bytes, strerror(errno));
    }
    pthread_mutex_lock(&g->lock);
    a->next = g->arenas;
    g->arenas = a;
    pthread_mutex_unlock(&g->lock);
    *address = a->address;
    return KR_OK;
}

static void guarded_free(kr_device *device, void *address, size_t bytes) {
    guarded *g = (guarded *)device;
    (void)bytes;
    pthread_mutex_lock(&g->lock);
    for (arena **at = &g->arenas; *at; at = &(*at)->next) {
        arena *a = *at;
        if (a->address != address) continue;
        *at = a->next;
        munmap(a->address, a->bytes + page_bytes());
        free(a);
        break;
    }
    pthread_mutex_unlock(&g->lock);
}

/// Opens or closes every arena.
static kr_status guarded_protect(guarded *g, int access) {
    for (const arena *a = g->arenas; a; a = a->next)
        KR_FAIL_IF(mprotect(a->address, a->bytes, access), KR_DEVICE_LOST, "guarded device: mprotect: %s",
                   strerror(errno));
    return KR_OK;
}

/// Whether the bytes lie in one arena of this device: a host address here would be an error on a GPU.
static kr_status guarded_own(const guarded *g, const void *address, size_t bytes) {
    const char *at = address;
    for (const arena *a = g->arenas; a; a = a->next)
        if (at >= a->address && at <= a->address + a->bytes && bytes <= (size_t)(a->address + a->bytes - at))
            return KR_OK;
    KR_FAIL(KR_BAD_ARGUMENT, "guarded device: %zu bytes at %p are not in its memory", bytes, address);
}

static kr_status guarded_copy(guarded *g, void *to, const void *from, size_t bytes, const void *own) {
    pthread_mutex_lock(&g->lock);
    kr_status status = guarded_own(g, own, bytes);
    if (!status) status = guarded_protect(g, PROT_READ | PROT_WRITE);
    if (!status && from) memcpy(to, from, bytes);
    if (!status && !from) kr_zero_parallel(to, bytes, g->cpu.threads);
    const kr_status closed = guarded_protect(g, PROT_NONE);
    pthread_mutex_unlock(&g->lock);
    return status ? status : closed;
}

static kr_status guarded_write(kr_device *device, void *to, const void *from, size_t bytes) {
    return guarded_copy((guarded *)device, to, from, bytes, to);
}

static kr_status guarded_read(kr_device *device, void *to, const void *from, size_t bytes) {
    return guarded_copy((guarded *)device, to, from, bytes, from);
}

static kr_status guarded_zero(kr_device *device, void *to, size_t bytes) {
    return guarded_copy((guarded *)device, to, NULL, bytes, to);
}

static kr_status guarded_run(kr_device *device, kr_bound *bound, int threads, unsigned flags) {
    guarded *g = (guarded *)device;
    pthread_mutex_lock(&g->lock);
    kr_status status = guarded_protect(g, PROT_READ | PROT_WRITE);
    if (!status) status = kr_execute(bound, threads, flags);
    const kr_status closed = guarded_protect(g, PROT_NONE);
    pthread_mutex_unlock(&g->lock);
    return status ? status : closed;
}

static kr_status guarded_wait(kr_device *device) {
    (void)device;
    return KR_OK;
}

static void guarded_close(kr_device *device) {
    guarded *g = (guarded *)device;
    while (g->arenas) guarded_free(device, g->arenas->address, g->arenas->bytes);
    pthread_mutex_destroy(&g->lock);
    free(g);
}

static const kr_device_class class = {
    .name = "guarded",
    .target = "cpu",
    .team = kr_cpu_team,
    .bind = kr_cpu_bind,
    .unbind = kr_cpu_unbind,
    .alloc = guarded_alloc,
    .free = guarded_free,
    .write = guarded_write,
    .read = guarded_read,
    .zero = guarded_zero,
    .run = guarded_run,
    .wait = guarded_wait,
    .close = guarded_close,
};

kr_status kr_device_guarded(kr_device **out) {
    *out = NULL;
    KR_TRY(kr_cpu_prepare());
    guarded *g = calloc(1, sizeof *g);
    KR_FAIL_IF(!g, KR_NO_MEMORY, "no memory for a device");
    g->cpu.device.class = &class;
    pthread_mutex_init(&g->lock, NULL);
    *out = &g->cpu.device;
    return KR_OK;
}
