/// The CPU as a target: its implementations by name, and its rates and limits.
#include "ops/graph/internal.h"
#include "runtime/cpu/bf16.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define OP(name) extern const kr_impl kr_cpu_##name;
#include "ops/table.def"

typedef struct row {
    const char *op;
    const kr_impl *impl;
} row;
#define OP(name) {#name, &kr_cpu_##name},
static row table[] = { ///< by name, once it was sorted
#include "ops/table.def"
};
enum { ROWS = sizeof table / sizeof *table };

static int by_name(const void *a, const void *b) { return strcmp(((const row *)a)->op, ((const row *)b)->op); }
static void sort_table(void) { qsort(table, ROWS, sizeof *table, by_name); }

static const kr_impl *cpu_impl(const kr_target *target, const char *op) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    (void)target;
    pthread_once(&once, sort_table);
    const row *found = bsearch(&(row){.op = op}, table, ROWS, sizeof *table, by_name);
    return found ? found->impl : NULL;
}

static kr_status cpu_multiplies_bf16(const kr_target *target) {
    (void)target;
    KR_FAIL_IF(kr_bf16_best() == KR_BF16_EMULATED, KR_UNSUPPORTED,
               "precision bf16 needs AMX or AVX512_BF16, and this process has neither (best instruction set level: "
               "%s): take f32, or bf16-emulated, which rounds alike but is slower than f32",
               kr_isa_name(kr_isa_best()));
    return KR_OK;
}

static kr_status cpu_open(const kr_target *target, const char *argument, kr_device **out) {
    (void)target;
    KR_FAIL_IF(argument, KR_BAD_ARGUMENT, "device cpu takes nothing after its name, got \":%s\"", argument);
    return kr_device_cpu(out);
}

/// Rates: about what two cores with AVX-512 sustain over a training step.
const kr_target kr_target_cpu = {
    .abi = KR_TARGET_ABI,
    .name = "cpu",
    .impl = cpu_impl,
    .flops_per_ns = 200,
    .bytes_per_ns = 25,
    .ns_per_step = 2000,
    .align = 64,
    .line = 64,
    .wide = 256, // padding shorter rows would grow them by more than a quarter
    .logits = (size_t)32 << 20,
    .program = {.length = KR_PROGRAM_LENGTH, .inputs = KR_PROGRAM_INPUTS, .outputs = KR_PROGRAM_OUTPUTS,
                .reals = KR_PROGRAM_REALS, .large = 1 << 18, .many = 64},
    .multiplies_bf16 = cpu_multiplies_bf16,
    .open = cpu_open,
};
