/// The safetensors reader: what it takes, it can give out; what it refuses has a message.
#include "runtime/runtime.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

/// Input without a sensible length prefix would all die on it, so half of the inputs get the right one for their text.
static uint8_t *with_prefix(const uint8_t *data, size_t bytes) {
    uint8_t *copy = malloc(bytes ? bytes : 1);
    if (!copy) return NULL;
    memcpy(copy, data, bytes);
    if (bytes > 8 && data[0] & 1) {
        const size_t header = (data[1] + 256u * data[2]) % (bytes - 8 + 1);
        for (int k = 0; k < 8; k++) copy[k] = (uint8_t)(header >> 8 * k & 255);
    }
    return copy;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    uint8_t *copy = with_prefix(data, bytes);
    if (!copy) return 0;
    kr_tensor_file *f = NULL;
    const kr_status status = kr_tensors_parse(copy, bytes, "fuzz", &f);
    if (status) {
        if (f || !*kr_status_message()) abort();
        free(copy);
        return 0;
    }
    for (int k = 0; k < kr_tensors_count(f); k++) {
        const kr_tensor_entry *e = kr_tensors_at(f, k);
        const int64_t n = kr_shape_count(&e->shape);
        double *out = malloc(((size_t)n + 1) * sizeof *out);
        if (kr_tensors_find(f, e->name) != e || !out || kr_tensors_to_f64(e, out, n)) abort();
        free(out);
    }
    kr_tensors_close(f);
    free(copy);
    return 0;
}
