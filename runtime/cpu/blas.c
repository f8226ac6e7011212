/// Makes OpenBLAS fit: single-threaded calls (the workers of a plan each call it for their own blocks), and the
/// kernels that this CPU deserves.
///
/// A DYNAMIC_ARCH OpenBLAS picks a table of kernels when it is loaded, by family and model number. A release that is
/// older than the CPU does not know the number and takes the oldest table that cannot fail ("Prescott", SSE3), which
/// is slower by a factor of ten or more. The features say what can really run, so the choice is corrected here: the
/// library chooses again with the name of a fitting table in its own variable OPENBLAS_CORETYPE, which is put back at
/// once. A core type that the user set in that variable is kept, and warned of when it is slow.
#include "runtime/cpu/internal.h"

#include <cblas.h>
#include <dlfcn.h>
#include <math.h>
#include <omp.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

// Weak: an OpenBLAS for one core type, or another provider of CBLAS, has none of these.
extern void gotoblas_dynamic_init(void) __attribute__((weak));
extern void gotoblas_dynamic_quit(void) __attribute__((weak));
extern char *openblas_get_corename(void) __attribute__((weak));
extern void openblas_set_num_threads(int) __attribute__((weak));

// clang-format off
static const struct {
    const char *name;
    kr_isa level;
} cores[] = {
    {"Katmai", KR_ISA_BASE},        {"Coppermine", KR_ISA_BASE},   {"Northwood", KR_ISA_BASE},
    {"Prescott", KR_ISA_BASE},      {"Banias", KR_ISA_BASE},       {"Core2", KR_ISA_BASE},
    {"Penryn", KR_ISA_BASE},        {"Dunnington", KR_ISA_BASE},   {"Nehalem", KR_ISA_BASE},
    {"Athlon", KR_ISA_BASE},        {"Opteron", KR_ISA_BASE},      {"Opteron_SSE3", KR_ISA_BASE},
    {"Barcelona", KR_ISA_BASE},     {"Nano", KR_ISA_BASE},         {"Atom", KR_ISA_BASE},
    {"Bobcat", KR_ISA_BASE},        {"Sandybridge", KR_ISA_BASE},  {"Bulldozer", KR_ISA_BASE},
    {"Piledriver", KR_ISA_BASE},    {"Steamroller", KR_ISA_BASE},  {"Excavator", KR_ISA_BASE},
    {"Haswell", KR_ISA_AVX2},       {"Zen", KR_ISA_AVX2},          {"SkylakeX", KR_ISA_AVX512},
    {"Cooperlake", KR_ISA_AVX512},  {"SapphireRapids", KR_ISA_AVX512},
};
// clang-format on

kr_isa kr_blas_level(const char *core) {
    for (size_t k = 0; k < sizeof cores / sizeof cores[0]; k++)
        if (strcasecmp(core, cores[k].name) == 0) return cores[k].level;
    return KR_ISA_COUNT;
}

static const char *core_name(void) {
    const char *name = openblas_get_corename ? openblas_get_corename() : NULL;
    return name ? name : "unknown";
}

bool kr_blas_select(const char *core) {
    if (!gotoblas_dynamic_init || !gotoblas_dynamic_quit) return false;
    if (strcasecmp(core_name(), core) == 0) return true;
    const char *set = getenv("OPENBLAS_CORETYPE");
    char *before = set ? strdup(set) : NULL;
    if ((set && !before) || setenv("OPENBLAS_CORETYPE", core, 1)) {
        free(before);
        return false;
    }
    gotoblas_dynamic_quit();
    gotoblas_dynamic_init();
    if (before) {
        setenv("OPENBLAS_CORETYPE", before, 1);
    } else {
        unsetenv("OPENBLAS_CORETYPE");
    }
    free(before);
    return strcasecmp(core_name(), core) == 0;
}

/// A product that is multiples of nothing, in all four transpositions, against a plain loop.
static bool multiplies(void) {
    enum { M = 37, N = 29, K = 41 };
    static float a[M * K], b[K * N], c[M * N];
    for (int k = 0; k < M * K; k++) a[k] = (float)(k * 7 % 23) * 0.125f - 1.0f;
    for (int k = 0; k < K * N; k++) b[k] = (float)(k * 5 % 19) * 0.125f - 1.0f;
    for (int t = 0; t < 4; t++) {
        const bool ta = t & 1, tb = t & 2;
        cblas_sgemm(CblasRowMajor, ta ? CblasTrans : CblasNoTrans, tb ? CblasTrans : CblasNoTrans, M, N, K, 1.0f, a,
                    ta ? M : K, b, tb ? K : N, 0.0f, c, N);
        for (int i = 0; i < M; i++) {
            for (int j = 0; j < N; j++) {
                float sum = 0;
                for (int k = 0; k < K; k++)
                    sum += (ta ? a[k * M + i] : a[i * K + k]) * (tb ? b[j * K + k] : b[k * N + j]);
                if (!(fabsf(c[i * N + j] - sum) <= 1e-3f)) return false;
            }
        }
    }
    return true;
}

static char warning_text[256];

const char *kr_blas_correct(const char *forced, kr_isa hardware) {
    const char *was = core_name();
    const kr_isa level = kr_blas_level(was);
    if (level >= hardware) return NULL;
    if (forced && *forced) {
        snprintf(warning_text, sizeof warning_text,
                 "OPENBLAS_CORETYPE=%s makes matrix products slow on this CPU (%s); unset it", forced,
                 kr_isa_name(hardware));
        return warning_text;
    }
    char old[32];
    snprintf(old, sizeof old, "%s", was);
    // Best first; an OpenBLAS built for fewer core types may lack one and then falls back by itself.
    static const struct {
        const char *name;
        kr_isa level;
    } best[] = {{"SkylakeX", KR_ISA_AVX512}, {"Haswell", KR_ISA_AVX2}};
    for (size_t k = 0; k < sizeof best / sizeof best[0]; k++) {
        if (best[k].level > hardware || best[k].level <= level) continue;
        if (kr_blas_select(best[k].name) && multiplies()) return NULL;
    }
    if (gotoblas_dynamic_init && gotoblas_dynamic_quit) kr_blas_select(old);
    snprintf(warning_text, sizeof warning_text,
             "OpenBLAS uses its %s kernels, which are slow on this CPU (%s), and has no better ones: install a newer "
             "OpenBLAS built with DYNAMIC_ARCH",
             old, kr_isa_name(hardware));
    return warning_text;
}

static pthread_once_t once = PTHREAD_ONCE_INIT;
static const char *warning;

// OpenBLAS over OpenMP is built by gcc and ignores its own setting: before each product it asks OpenMP how many
// threads the caller would get, and opens a region unless it is in one (a team of one does not count). So every worker
// says "one" in the OpenMP library that OpenBLAS is bound to. In a program with two of them (a program of gcc, this
// library by clang) that is not the one behind omp_set_num_threads here, but the first that has gcc's symbol version.
static int (*blas_get_threads)(void) = omp_get_max_threads;
static void (*blas_set_threads)(int) = omp_set_num_threads;

int kr_blas_alone(void) {
    const int before = blas_get_threads();
    if (before != 1) blas_set_threads(1);
    return before;
}

void kr_blas_restore(int before) {
    if (before != 1) blas_set_threads(before);
}

static void find_openmp(void) {
#ifdef __GLIBC__ // others have no symbol versions
    void *get = dlvsym(RTLD_DEFAULT, "omp_get_max_threads", "OMP_1.0");
    void *set = dlvsym(RTLD_DEFAULT, "omp_set_num_threads", "OMP_1.0");
    if (get && set) {
        memcpy(&blas_get_threads, &get, sizeof get); // ISO C has no conversion between these pointers
        memcpy(&blas_set_threads, &set, sizeof set);
    }
#endif
}

static void prepare(void) {
    find_openmp();
    const int threads = blas_get_threads(); // the next call changes that, too
    if (openblas_set_num_threads) openblas_set_num_threads(1);
    blas_set_threads(threads);
    warning = kr_blas_correct(getenv("OPENBLAS_CORETYPE"), kr_isa_hardware());
}

const char *kr_blas_prepare(void) {
    pthread_once(&once, prepare);
    return core_name();
}

const char *kr_blas_warning(void) {
    pthread_once(&once, prepare);
    return warning;
}
