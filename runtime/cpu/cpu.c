/// What the processor is, what this process may use of it, and which build of each kernel that means.
///
/// A level is usable when every feature that the compiler may emit for it (x86-64-v3, x86-64-v4 of the psABI) is
/// reported by CPUID and the system saves the registers it needs (XCR0). A feature list that is shorter than what
/// the compiler may emit ends in an illegal instruction on some machine, so the lists below are the whole levels.
#include "runtime/cpu/internal.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>

static const char *const isa_names[KR_ISA_COUNT] = {"base", "avx2", "avx512"};

const char *kr_isa_name(kr_isa isa) { return (unsigned)isa < KR_ISA_COUNT ? isa_names[isa] : "unknown level"; }

bool kr_isa_parse(const char *name, kr_isa *out) {
    for (int k = 0; name && k < KR_ISA_COUNT; k++) {
        if (strcmp(name, isa_names[k]) != 0) continue;
        *out = (kr_isa)k;
        return true;
    }
    return false;
}

#if defined(__x86_64__)
#include <cpuid.h>

enum { EAX, EBX, ECX, EDX };

static const struct {
    unsigned leaf, reg, bit;
    kr_isa level; // the first level that needs it
} features[] = {
    {1, ECX, 0, KR_ISA_AVX2},           // SSE3
    {1, ECX, 9, KR_ISA_AVX2},           // SSSE3
    {1, ECX, 12, KR_ISA_AVX2},          // FMA
    {1, ECX, 13, KR_ISA_AVX2},          // CMPXCHG16B
    {1, ECX, 19, KR_ISA_AVX2},          // SSE4.1
    {1, ECX, 20, KR_ISA_AVX2},          // SSE4.2
    {1, ECX, 22, KR_ISA_AVX2},          // MOVBE
    {1, ECX, 23, KR_ISA_AVX2},          // POPCNT
    {1, ECX, 27, KR_ISA_AVX2},          // OSXSAVE
    {1, ECX, 28, KR_ISA_AVX2},          // AVX
    {1, ECX, 29, KR_ISA_AVX2},          // F16C
    {7, EBX, 3, KR_ISA_AVX2},           // BMI1
    {7, EBX, 5, KR_ISA_AVX2},           // AVX2
    {7, EBX, 8, KR_ISA_AVX2},           // BMI2
    {0x80000001u, ECX, 0, KR_ISA_AVX2}, // LAHF
    {0x80000001u, ECX, 5, KR_ISA_AVX2}, // LZCNT
    {7, EBX, 16, KR_ISA_AVX512},        // AVX512F
    {7, EBX, 17, KR_ISA_AVX512},        // AVX512DQ
    {7, EBX, 28, KR_ISA_AVX512},        // AVX512CD
    {7, EBX, 30, KR_ISA_AVX512},        // AVX512BW
    {7, EBX, 31, KR_ISA_AVX512},        // AVX512VL
};

/// Register state that the system saves at a task switch: XMM and YMM; with AVX-512 also masks and both ZMM halves.
static const unsigned state_bits[KR_ISA_COUNT] = {0, 0x06, 0xE6};

static unsigned saved_state(void) {
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static kr_isa detect(void) {
    kr_isa level = KR_ISA_AVX512;
    bool saves = false;
    for (size_t k = 0; k < sizeof features / sizeof features[0]; k++) {
        unsigned r[4] = {0};
        const bool known = __get_cpuid_count(features[k].leaf, 0, &r[EAX], &r[EBX], &r[ECX], &r[EDX]);
        if ((!known || !(r[features[k].reg] >> features[k].bit & 1)) && level >= features[k].level)
            level = (kr_isa)(features[k].level - 1);
        if (features[k].leaf == 1) saves = r[ECX] >> 27 & 1; // without OSXSAVE, XGETBV itself is illegal
    }
    const unsigned state = saves ? saved_state() : 0;
    while (level > KR_ISA_BASE && (state & state_bits[level]) != state_bits[level]) level = (kr_isa)(level - 1);
    return level;
}
#else
static kr_isa detect(void) { return KR_ISA_BASE; }
#endif

kr_isa kr_isa_hardware(void) {
    static int known = -1; // every thread finds the same answer, so a race only repeats the work
    int level = __atomic_load_n(&known, __ATOMIC_RELAXED);
    if (level < 0) {
        level = (int)detect();
        __atomic_store_n(&known, level, __ATOMIC_RELAXED);
    }
    return (kr_isa)level;
}

/// The best level that both the machine and this build have.
static kr_isa available(void) {
#if defined(KR_HAVE_AVX512)
    const kr_isa built = KR_ISA_AVX512;
#elif defined(KR_HAVE_AVX2)
    const kr_isa built = KR_ISA_AVX2;
#else
    const kr_isa built = KR_ISA_BASE;
#endif
    const kr_isa hardware = kr_isa_hardware();
    return hardware < built ? hardware : built;
}

static int limit = -1; // set by kr_isa_limit; -1: follow KRAIT_ISA

kr_isa kr_isa_best(void) {
    const int set = __atomic_load_n(&limit, __ATOMIC_RELAXED);
    if (set >= 0) return (kr_isa)set;
    const kr_isa best = available();
    kr_isa wanted;
    return kr_isa_parse(getenv("KRAIT_ISA"), &wanted) && wanted < best ? wanted : best;
}

kr_status kr_isa_limit(kr_isa isa) {
    KR_FAIL_IF((unsigned)isa >= KR_ISA_COUNT, KR_BAD_ARGUMENT, "isa: there is no level %d", (int)isa);
    KR_FAIL_IF(isa > available(), KR_UNSUPPORTED, "isa: %s is not available: %s has %s at best", kr_isa_name(isa),
               kr_isa_hardware() > available() ? "this build" : "this machine", kr_isa_name(available()));
    __atomic_store_n(&limit, (int)isa, __ATOMIC_RELAXED);
    return KR_OK;
}

kr_status kr_isa_environment(void) {
    const char *text = getenv("KRAIT_ISA");
    if (!text || !*text || __atomic_load_n(&limit, __ATOMIC_RELAXED) >= 0) return KR_OK;
    kr_isa wanted;
    KR_FAIL_IF(!kr_isa_parse(text, &wanted), KR_BAD_ARGUMENT, "KRAIT_ISA is \"%s\", want base, avx2 or avx512", text);
    KR_FAIL_IF(wanted > available(), KR_UNSUPPORTED, "KRAIT_ISA is %s, but %s has %s at best", text,
               kr_isa_hardware() > available() ? "this build" : "this machine", kr_isa_name(available()));
    return KR_OK;
}

kr_kernel *kr_stage_kernel(const kr_stage *stage, kr_isa level) {
    for (int k = level < KR_ISA_COUNT ? (int)level : KR_ISA_COUNT - 1; k >= 0; k--)
        if (stage->build[k]) return stage->build[k];
    return NULL;
}

// Processors of this process --------------------------------------------------------------------------

static int affinity_count(void) {
    for (int room = 1024; room <= 1 << 20; room *= 2) { // the call fails while the set is too small for the machine
        cpu_set_t *set = CPU_ALLOC((size_t)room);
        if (!set) break;
        const size_t bytes = CPU_ALLOC_SIZE((size_t)room);
        const int count = sched_getaffinity(0, bytes, set) == 0 ? CPU_COUNT_S(bytes, set) : 0;
        CPU_FREE(set);
        if (count > 0) return count;
    }
    return 1;
}

/// Reads a small file of /sys; false when there is none.
static bool read_small(char text[128], const char *path) {
    FILE *f = fopen(path, "re");
    if (!f) return false;
    const size_t n = fread(text, 1, 127, f);
    fclose(f);
    text[n] = 0;
    return n > 0;
}

/// The quota of one group directory, in processors, rounded up; 0 when it has none.
static int64_t group_quota(const char *directory, bool unified) {
    char path[1024], text[128], period_text[128];
    long long quota = -1, period = 0;
    if (unified) {
        if ((size_t)snprintf(path, sizeof path, "%s/cpu.max", directory) >= sizeof path) return 0;
        if (!read_small(text, path) || sscanf(text, "%lld %lld", &quota, &period) != 2) return 0; // "max 100000"
    } else {
        if ((size_t)snprintf(path, sizeof path, "%s/cpu.cfs_quota_us", directory) >= sizeof path) return 0;
        if (!read_small(text, path) || sscanf(text, "%lld", &quota) != 1) return 0;
        snprintf(path, sizeof path, "%s/cpu.cfs_period_us", directory);
        if (!read_small(period_text, path) || sscanf(period_text, "%lld", &period) != 1) return 0;
    }
    if (quota <= 0 || period <= 0) return 0;
    return quota / period + (quota % period != 0);
}

/// The least quota on the way from a group up to the root of its hierarchy: an outer limit binds as well.
static int64_t hierarchy_quota(const char *root, const char *group, bool unified) {
    char directory[896];
    if ((size_t)snprintf(directory, sizeof directory, "%s%s", root, group) >= sizeof directory) return 0;
    const size_t end = strlen(root);
    int64_t least = 0;
    for (;;) {
        const int64_t quota = group_quota(directory, unified);
        if (quota > 0 && (least == 0 || quota < least)) least = quota;
        char *slash = strrchr(directory, '/');
        if (!slash || (size_t)(slash - directory) < end) return least;
        *slash = 0;
    }
}

/// Whether "cpu" is in a list such as "cpu,cpuacct".
static bool lists_cpu(const char *list) {
    for (const char *at = list; at; at = strchr(at, ','), at = at ? at + 1 : NULL)
        if (strncmp(at, "cpu", 3) == 0 && (at[3] == 0 || at[3] == ',')) return true;
    return false;
}

int kr_cgroup_cpus(const char *mount, const char *groups) {
    int64_t least = 0;
    for (const char *line = groups; line && *line;) {
        // Each line is "number:controllers:path"; version 2 has number 0 and no controllers.
        const size_t length = strcspn(line, "\n");
        char text[512] = "";
        if (length < sizeof text) memcpy(text, line, length);
        line += length + (line[length] == '\n');
        char *controllers = strchr(text, ':');
        char *group = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!group) continue;
        *controllers++ = 0;
        *group++ = 0;
        if (strcmp(group, "/") == 0) *group = 0;
        const bool unified = *controllers == 0;
        if (!unified && !lists_cpu(controllers)) continue;
        // Where the hierarchy is mounted: version 2 alone, version 2 beside version 1, or a controller of version 1.
        const char *const roots[2] = {unified ? "" : controllers, unified ? "unified" : "cpu"};
        for (int k = 0; k < 2; k++) {
            char root[384];
            const int n = snprintf(root, sizeof root, "%s%s%s", mount, *roots[k] ? "/" : "", roots[k]);
            if (n < 0 || (size_t)n >= sizeof root) continue;
            const int64_t quota = hierarchy_quota(root, group, unified);
            if (quota > 0 && (least == 0 || quota < least)) least = quota;
        }
    }
    return least > INT32_MAX ? INT32_MAX : (int)least;
}

int kr_cpu_count(void) {
    static int known = 0;
    int count = __atomic_load_n(&known, __ATOMIC_RELAXED);
    if (count > 0) return count;
    count = affinity_count();
    FILE *f = fopen("/proc/self/cgroup", "re");
    if (f) {
        char groups[4096];
        const size_t n = fread(groups, 1, sizeof groups - 1, f);
        fclose(f);
        groups[n] = 0;
        const int quota = kr_cgroup_cpus("/sys/fs/cgroup", groups);
        if (quota > 0 && quota < count) count = quota;
    }
    __atomic_store_n(&known, count, __ATOMIC_RELAXED);
    return count;
}
