/// The processor: levels, processors that may be used, and the core type of OpenBLAS.
#include "runtime/cpu/bf16.h"
#include "runtime/cpu/internal.h"

#include <cblas.h>
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/// A flag of /proc/cpuinfo, which the kernel shows only where it saves the state that goes with it.
static bool system_has(const char *flag) {
    bool found = false;
    char line[8192], word[64];
    snprintf(word, sizeof word, " %s ", flag);
    FILE *f = fopen("/proc/cpuinfo", "r");
    while (f && !found && fgets(line, sizeof line, f)) {
        char *end = strchr(line, '\n');
        if (end) *end = ' ';
        found = strncmp(line, "flags", 5) == 0 && strstr(line, word);
    }
    if (f) fclose(f);
    return found;
}

Test(cpu, level_agrees_with_the_system) {
    const bool avx2 = system_has("avx2") && system_has("fma") && system_has("bmi2") && system_has("f16c") &&
                      system_has("movbe");
    const bool avx512 = avx2 && system_has("avx512f") && system_has("avx512dq") && system_has("avx512cd") &&
                        system_has("avx512bw") && system_has("avx512vl");
    cr_expect_eq(kr_isa_hardware(), avx512 ? KR_ISA_AVX512 : avx2 ? KR_ISA_AVX2 : KR_ISA_BASE);
    cr_expect_leq(kr_isa_best(), kr_isa_hardware());
}

Test(cpu, names_of_levels) {
    for (int k = 0; k < KR_ISA_COUNT; k++) {
        kr_isa back = KR_ISA_COUNT;
        cr_expect(kr_isa_parse(kr_isa_name((kr_isa)k), &back));
        cr_expect_eq((int)back, k);
    }
    kr_isa isa;
    cr_expect_not(kr_isa_parse("sse2", &isa));
    cr_expect_not(kr_isa_parse(NULL, &isa));
}

Test(cpu, environment_lowers_the_level) {
    setenv("KRAIT_ISA", "base", 1);
    cr_expect_eq(kr_isa_best(), KR_ISA_BASE);
    cr_expect_eq(kr_isa_environment(), KR_OK);
    setenv("KRAIT_ISA", "avx1024", 1);
    cr_expect_eq(kr_isa_environment(), KR_BAD_ARGUMENT);
    cr_expect_str_eq(kr_status_message(), "KRAIT_ISA is \"avx1024\", want base, avx2 or avx512");
    kr_device *device;
    cr_expect_eq(kr_device_cpu(&device), KR_BAD_ARGUMENT, "a device says so, too");
    cr_expect_null(device);
    setenv("KRAIT_ISA", "", 1);
    cr_expect_eq(kr_isa_environment(), KR_OK);
}

Test(cpu, environment_takes_extensions_away) {
    static const kr_bf16_path paths[] = {KR_BF16_MATRIX, KR_BF16_VECTOR};
    static const char *const one[] = {"amx", "avx512_bf16"};
    unsetenv("KRAIT_WITHOUT");
    const bool has[] = {kr_bf16_has(paths[0]), kr_bf16_has(paths[1])};
    for (int k = 0; k < 2; k++) {
        setenv("KRAIT_WITHOUT", one[k], 1);
        cr_expect_eq(kr_bf16_environment(), KR_OK);
        cr_expect_not(kr_bf16_has(paths[k]));
        cr_expect_eq(kr_bf16_has(paths[1 - k]), has[1 - k]);
        cr_expect_neq(kr_bf16_best(), paths[k]);
    }
    setenv("KRAIT_WITHOUT", "avx512_bf16,amx", 1);
    cr_expect_eq(kr_bf16_environment(), KR_OK);
    cr_expect_eq(kr_bf16_best(), KR_BF16_EMULATED);
    cr_expect(kr_bf16_has(KR_BF16_EMULATED));
    setenv("KRAIT_WITHOUT", "amx,avx512_fp16", 1);
    kr_device *device;
    cr_expect_eq(kr_device_cpu(&device), KR_BAD_ARGUMENT);
    cr_expect_str_eq(kr_status_message(), "KRAIT_WITHOUT has \"avx512_fp16\", want names of extensions with commas "
                                          "between them: amx, avx512_bf16");
    setenv("KRAIT_WITHOUT", "", 1);
    cr_expect_eq(kr_bf16_environment(), KR_OK);
}

Test(cpu, limit_lowers_and_restores) {
    unsetenv("KRAIT_ISA");
    const kr_isa best = kr_isa_best();
    for (int k = 0; k < KR_ISA_COUNT; k++) {
        if (k <= (int)best) {
            cr_expect_eq(kr_isa_limit((kr_isa)k), KR_OK);
            cr_expect_eq((int)kr_isa_best(), k);
        } else {
            cr_expect_eq(kr_isa_limit((kr_isa)k), KR_UNSUPPORTED);
        }
    }
    cr_expect_eq(kr_isa_limit(KR_ISA_COUNT), KR_BAD_ARGUMENT);
    cr_expect_eq(kr_isa_limit(best), KR_OK);
}

static void kernel_a(const kr_call *call, int part, int parts) { (void)call, (void)part, (void)parts; }
static void kernel_b(const kr_call *call, int part, int parts) { (void)call, (void)part, (void)parts; }

Test(cpu, missing_builds_fall_back) {
    const kr_stage both = {{kernel_a, NULL, kernel_b}}, none = {{NULL, NULL, kernel_b}};
    cr_expect(kr_stage_kernel(&both, KR_ISA_BASE) == kernel_a);
    cr_expect(kr_stage_kernel(&both, KR_ISA_AVX2) == kernel_a);
    cr_expect(kr_stage_kernel(&both, KR_ISA_AVX512) == kernel_b);
    cr_expect(kr_stage_kernel(&none, KR_ISA_AVX2) == NULL);
}

// Quotas --------------------------------------------------------------------------

static char root[] = "/tmp/krait-cgroup-XXXXXX";

/// Writes a file below the made-up mount point, directories included.
static void put(const char *path, const char *text) {
    char full[512];
    snprintf(full, sizeof full, "%s/%s", root, path);
    for (char *slash = strchr(full + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        mkdir(full, 0700);
        *slash = '/';
    }
    FILE *f = fopen(full, "w");
    cr_assert(f);
    fputs(text, f);
    fclose(f);
}

Test(cpu, quotas_of_control_groups) {
    cr_assert(mkdtemp(root));
    put("a/b/cpu.max", "max 100000\n");
    put("a/cpu.max", "150000 100000\n");
    put("free/cpu.max", "max 100000\n");
    put("cpu,cpuacct/pod/cpu.cfs_quota_us", "400000\n");
    put("cpu,cpuacct/pod/cpu.cfs_period_us", "100000\n");
    put("cpu,cpuacct/cpu.cfs_quota_us", "-1\n");
    put("cpu,cpuacct/cpu.cfs_period_us", "100000\n");
    put("cpu/inner/cpu.cfs_quota_us", "20000\n");
    put("cpu/inner/cpu.cfs_period_us", "100000\n");
    put("unified/mixed/cpu.max", "300000 100000\n");
    cr_expect_eq(kr_cgroup_cpus(root, "0::/a/b\n"), 2, "1.5 processors of the outer group, rounded up");
    cr_expect_eq(kr_cgroup_cpus(root, "0::/free\n"), 0);
    cr_expect_eq(kr_cgroup_cpus(root, "0::/\n"), 0);
    cr_expect_eq(kr_cgroup_cpus(root, "0::/not/there\n"), 0);
    cr_expect_eq(kr_cgroup_cpus(root, "5:memory:/x\n4:cpu,cpuacct:/pod/container\n0::/free\n"), 4);
    cr_expect_eq(kr_cgroup_cpus(root, "1:cpu:/inner"), 1, "a fifth of one is still one");
    cr_expect_eq(kr_cgroup_cpus(root, "2:cpuset:/inner\n"), 0, "cpuset is not cpu");
    cr_expect_eq(kr_cgroup_cpus(root, "1:cpu:/\n0::/mixed\n"), 3);
    cr_expect_eq(kr_cgroup_cpus(root, "garbage\n::\n0\n\n"), 0);
    char command[64];
    snprintf(command, sizeof command, "rm -r %s", root);
    cr_expect_eq(system(command), 0);
    cr_expect_geq(kr_cpu_count(), 1);
    cr_expect_leq(kr_cpu_count(), sysconf(_SC_NPROCESSORS_CONF));
}

// OpenBLAS --------------------------------------------------------------------------

static void check_product(void) {
    enum { M = 65, N = 33, K = 71 };
    static float a[M * K], b[N * K], c[M * N];
    for (int k = 0; k < M * K; k++) a[k] = kr_random_normal(1, 1, (uint64_t)k);
    for (int k = 0; k < N * K; k++) b[k] = kr_random_normal(1, 2, (uint64_t)k);
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, M, N, K, 1.0f, a, K, b, K, 0.0f, c, N);
    for (int i = 0; i < M; i++) {
        for (int j = 0; j < N; j++) {
            double sum = 0;
            for (int k = 0; k < K; k++) sum += (double)a[i * K + k] * b[j * K + k];
            cr_assert(fabs(c[i * N + j] - sum) < 1e-3, "%s: [%d, %d] is %g, want %g", openblas_get_corename(), i, j,
                      c[i * N + j], sum);
        }
    }
}

Test(cpu, blas_fits_this_cpu) {
    unsetenv("OPENBLAS_CORETYPE");
    const char *core = kr_blas_prepare();
    cr_expect(kr_blas_level(core) >= kr_isa_hardware() || kr_blas_warning(), "%s", core);
    cr_expect_null(getenv("OPENBLAS_CORETYPE"));
    cr_expect_eq(kr_blas_prepare(), core);
    check_product();
}

Test(cpu, blas_core_types_are_corrected) {
    if (!kr_blas_select("Nehalem")) cr_skip("this OpenBLAS is made for one core type");
    static const char *const slow[] = {"Prescott", "Nehalem", "Sandybridge", "Haswell", "Zen"};
    for (int level = KR_ISA_AVX2; level <= (int)kr_isa_hardware(); level++) {
        for (size_t k = 0; k < sizeof slow / sizeof slow[0]; k++) {
            cr_assert(kr_blas_select(slow[k]));
            cr_expect_str_eq(openblas_get_corename(), slow[k]);
            check_product();
            const char *warning = kr_blas_correct(NULL, (kr_isa)level);
            cr_expect_null(warning, "%s", warning);
            cr_expect_geq((int)kr_blas_level(openblas_get_corename()), level, "%s to %s", slow[k],
                          openblas_get_corename());
            check_product();
        }
    }
    cr_expect_null(getenv("OPENBLAS_CORETYPE"), "the variable is put back");
}

Test(cpu, blas_core_type_of_the_user_is_kept) {
    if (kr_isa_hardware() < KR_ISA_AVX2 || !kr_blas_select("Nehalem")) cr_skip("nothing to be slower than");
    setenv("OPENBLAS_CORETYPE", "Nehalem", 1);
    cr_expect_str_eq(kr_blas_prepare(), "Nehalem");
    cr_assert_not_null(kr_blas_warning());
    cr_expect(strstr(kr_blas_warning(), "OPENBLAS_CORETYPE=Nehalem"), "%s", kr_blas_warning());
    cr_expect_str_eq(getenv("OPENBLAS_CORETYPE"), "Nehalem");
}

Test(cpu, blas_core_types_that_do_not_exist) {
    const char *was = openblas_get_corename();
    kr_blas_select("Pentathlon");
    cr_expect_eq(kr_blas_level("Pentathlon"), KR_ISA_COUNT);
    cr_expect(kr_blas_select(was));
    cr_expect_null(kr_blas_correct(NULL, KR_ISA_BASE));
    check_product();
}
