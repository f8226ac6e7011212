/// Products in bf16: which instructions this process may use for them.
#ifndef KRAIT_RUNTIME_CPU_BF16_H
#define KRAIT_RUNTIME_CPU_BF16_H

#include "runtime/kernel.h"

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

/// The best path of this machine, KR_BF16_EMULATED where it has none or where no AVX-512 was built or is allowed. The
/// first call asks the system for the tile registers of AMX, which it gives to the whole process or not at all.
kr_bf16_path kr_bf16_best(void);
/// Whether the machine has this path and KRAIT_WITHOUT (a list such as "amx,avx512_bf16") leaves it; every machine has
/// the emulation.
bool kr_bf16_has(kr_bf16_path);
/// For tests and comparisons: nothing better than this one from now on.
void kr_bf16_limit(kr_bf16_path);
const char *kr_bf16_path_name(kr_bf16_path);

#ifdef __cplusplus
}
#endif
#endif
