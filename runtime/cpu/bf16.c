/// CPUID says which instructions for bf16 there are. AMX also has 8 KiB of registers that Linux keeps for a process
/// only when asked (arch_prctl, since 5.16): an instruction on them without that permission ends the process.
#include "runtime/cpu/bf16.h"
#include "runtime/cpu/internal.h"

#include <stdlib.h>
#include <string.h>

static const char *const names[KR_BF16_PATH_COUNT] = {"emulated", "AVX512_BF16", "AMX"};

const char *kr_bf16_path_name(kr_bf16_path path) {
    return (unsigned)path < KR_BF16_PATH_COUNT ? names[path] : "unknown path";
}

#if defined(__x86_64__) && defined(KR_HAVE_AVX512)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 }; // ARCH_REQ_XCOMP_PERM and the number of that state

static unsigned detect(void) {
    unsigned paths = 1u << KR_BF16_EMULATED, a, b, c, d;
    if (kr_isa_hardware() < KR_ISA_AVX512) return paths;
    if (__get_cpuid_count(7, 1, &a, &b, &c, &d) && a >> 5 & 1) paths |= 1u << KR_BF16_VECTOR;
#if defined(__linux__) && defined(SYS_arch_prctl)
    const bool tiles = __get_cpuid_count(7, 0, &a, &b, &c, &d) && d >> 22 & 1 && d >> 24 & 1; // AMX-BF16, AMX-TILE
    if (tiles && syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0) paths |= 1u << KR_BF16_MATRIX;
#endif
    return paths;
}
#else
static unsigned detect(void) { return 1u << KR_BF16_EMULATED; }
#endif

static unsigned available(void) {
    static unsigned known; // every thread finds the same answer, so a race only repeats the work
    unsigned paths = __atomic_load_n(&known, __ATOMIC_RELAXED);
    if (!paths) {
        paths = detect();
        __atomic_store_n(&known, paths, __ATOMIC_RELAXED);
    }
    return paths;
}

static int limit = KR_BF16_PATH_COUNT - 1;

/// KRAIT_WITHOUT: names of extensions with commas between them. Gives the paths that they take away; what is no name of
/// one is at *unknown, its length in *length.
static unsigned taken_away(const char **unknown, int *length) {
    static const char *const extensions[KR_BF16_PATH_COUNT] = {[KR_BF16_VECTOR] = "avx512_bf16",
                                                               [KR_BF16_MATRIX] = "amx"};
    const char *at = getenv("KRAIT_WITHOUT");
    unsigned paths = 0;
    *unknown = NULL;
    while (at && *at) {
        const size_t bytes = strcspn(at, ",");
        bool known = false;
        for (int path = KR_BF16_VECTOR; path < KR_BF16_PATH_COUNT; path++)
            if (bytes == strlen(extensions[path]) && !memcmp(at, extensions[path], bytes)) {
                paths |= 1u << path;
                known = true;
            }
        if (!known && !*unknown) {
            *unknown = at;
            *length = (int)(bytes < 64 ? bytes : 64);
        }
        at += bytes + (at[bytes] == ',');
    }
    return paths;
}

kr_status kr_bf16_environment(void) {
    const char *unknown;
    int length = 0;
    taken_away(&unknown, &length);
    KR_FAIL_IF(unknown, KR_BAD_ARGUMENT,
               "KRAIT_WITHOUT has \"%.*s\", want names of extensions with commas between them: amx, avx512_bf16",
               length, unknown);
    return KR_OK;
}

bool kr_bf16_has(kr_bf16_path path) {
    const char *unknown;
    int length;
    return (unsigned)path < KR_BF16_PATH_COUNT && (available() & ~taken_away(&unknown, &length)) >> path & 1;
}

kr_bf16_path kr_bf16_best(void) {
    if (kr_isa_best() < KR_ISA_AVX512) return KR_BF16_EMULATED;
    int path = __atomic_load_n(&limit, __ATOMIC_RELAXED);
    while (path > KR_BF16_EMULATED && !kr_bf16_has((kr_bf16_path)path)) path--;
    return (kr_bf16_path)path;
}

void kr_bf16_limit(kr_bf16_path path) { __atomic_store_n(&limit, (int)path, __ATOMIC_RELAXED); }
