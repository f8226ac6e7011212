/// Targets that cannot be used, one each time that this is built: WRONG_hollow and so on.
#include "ops/ops.h"

__attribute__((unused)) static const kr_impl *impl(const kr_target *target, const char *op) {
    (void)target, (void)op;
    return NULL;
}

__attribute__((unused)) static kr_status multiplies_bf16(const kr_target *target) {
    (void)target;
    return KR_OK;
}

__attribute__((unused)) static kr_status open(const kr_target *target, const char *argument, kr_device **out) {
    (void)target, (void)argument, (void)out;
    return KR_UNSUPPORTED;
}

#define LIMITS {8, 4, 2, 2, 1 << 10, 1 << 10}
#define RATES .flops_per_ns = 1, .bytes_per_ns = 1, .ns_per_step = 1
#define FUNCTIONS .impl = impl, .multiplies_bf16 = multiplies_bf16, .open = open
#define SIZES .line = 64, .wide = 64, .logits = 1 << 12

#define TARGET(name_, ...)                   \
    extern const kr_target kr_target_##name_; \
    const kr_target kr_target_##name_ = {__VA_ARGS__};

#if defined WRONG_hollow
TARGET(hollow, .abi = KR_TARGET_ABI, .name = "hollow")
#elif defined WRONG_elder
TARGET(elder, .abi = KR_TARGET_ABI + 1, .name = "elder", FUNCTIONS, RATES, SIZES, .align = 64, .program = LIMITS)
#elif defined WRONG_renamed
TARGET(renamed, .abi = KR_TARGET_ABI, .name = "other", FUNCTIONS, RATES, SIZES, .align = 64, .program = LIMITS)
#elif defined WRONG_crooked
TARGET(crooked, .abi = KR_TARGET_ABI, .name = "crooked", FUNCTIONS, RATES, SIZES, .align = 96, .program = LIMITS)
#elif defined WRONG_endless
TARGET(endless, .abi = KR_TARGET_ABI, .name = "endless", FUNCTIONS, RATES, SIZES, .align = 64,
       .program = {KR_PROGRAM_LENGTH + 1, 4, 2, 2, 1, 1})
#elif defined WRONG_timeless
TARGET(timeless, .abi = KR_TARGET_ABI, .name = "timeless", FUNCTIONS, SIZES, .align = 64, .program = LIMITS)
#elif defined WRONG_nothing
extern const int kr_nothing;
const int kr_nothing = 0;
#endif
