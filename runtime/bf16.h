/// Products in bf16: which instructions this process may use for them.
#ifndef KRAIT_RUNTIME_BF16_H
#define KRAIT_RUNTIME_BF16_H

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

/// How operands rounded to bf16 are multiplied. All add in f32 and differ in the last bits only.
typedef enum kr_bf16_path {
    KR_BF16_EMULATED = 0, ///< widened again and multiplied in f32, at every instruction set level
    KR_BF16_VECTOR,       ///< AVX512_BF16: pairs of products in 16 lanes
    KR_BF16_MATRIX,       ///< AMX: tiles of 16 by 32 and 32 by 16
    KR_BF16_PATH_COUNT
} kr_bf16_path;

/// The best path of this machine, KR_BF16_EMULATED where it has none or where no AVX-512 was built or is allowed. The
/// first call asks the system for the tile registers of AMX, which it gives to the whole process or not at all.
kr_bf16_path kr_bf16_best(void);
/// Whether the machine has this path; every machine has the emulation.
bool kr_bf16_has(kr_bf16_path);
/// For tests and comparisons: nothing better than this one from now on.
void kr_bf16_limit(kr_bf16_path);
const char *kr_bf16_path_name(kr_bf16_path);

#ifdef __cplusplus
}
#endif
#endif
