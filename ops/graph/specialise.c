/// What the families' `specialise` (kr_impl) share: attributes that an op leaves to the target become numbers.
#include "ops/graph/internal.h"

kr_status kr_specialise_saved(const char *op, const kr_target *target, int64_t *attribute, kr_shape shape) {
    const size_t bytes = kr_tensor_bytes(KR_F32, &shape);
    char text[160];
    KR_FAIL_IF(bytes == SIZE_MAX, KR_BAD_SHAPE, "%s: states %s are too many to save", op, kr_shape_text(&shape, text));
    const int64_t elements = (int64_t)(bytes / sizeof(float));
    KR_FAIL_IF(*attribute && *attribute != elements, KR_BAD_SHAPE,
               "%s: the graph says that %lld elements are saved, target %s saves %lld: leave the attribute out", op,
               (long long)*attribute, target->name, (long long)elements);
    *attribute = elements;
    return KR_OK;
}
