/// Safetensors files: mapped, looked up by name, converted. What a header may say is checked in tensors_header.c.
#include "runtime/files/internal.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

kr_status kr_tensors_parse(const void *data, size_t bytes, const char *label, kr_tensor_file **out) {
    *out = NULL;
    size_t header;
    KR_TRY(kr_tensors_prefix(data, bytes, label, &header));
    const char *text = (const char *)data + KR_HEADER_PREFIX;
    KR_TRY(kr_tensors_header(text, header, bytes - KR_HEADER_PREFIX - header, label, out));
    for (int k = 0; k < (*out)->count; k++) (*out)->entries[k].data = text + header + (*out)->offsets[k];
    return KR_OK;
}

kr_status kr_tensors_open_at(int directory, const char *name, const char *label, kr_tensor_file **out) {
    *out = NULL;
    kr_mapped mapped;
    KR_TRY(kr_map_open(directory, name, label, &mapped));
    const kr_status status = kr_tensors_parse(mapped.data, mapped.bytes, label, out);
    if (status) {
        kr_map_close(&mapped);
        return status;
    }
    (*out)->mapped = mapped;
    return KR_OK;
}

kr_status kr_tensors_open(const char *path, kr_tensor_file **out) {
    return kr_tensors_open_at(AT_FDCWD, path, path, out);
}

void kr_tensors_close(kr_tensor_file *f) {
    if (!f) return;
    kr_map_close(&f->mapped);
    kr_pool_free(f->pool);
    free(f);
}

int kr_tensors_count(const kr_tensor_file *f) { return f->count; }

const kr_tensor_entry *kr_tensors_at(const kr_tensor_file *f, int index) {
    return index >= 0 && index < f->count ? &f->entries[index] : NULL;
}

static int name_against(const void *name, const void *entry) {
    return strcmp(name, (*(const kr_tensor_entry *const *)entry)->name);
}

const kr_tensor_entry *kr_tensors_find(const kr_tensor_file *f, const char *name) {
    if (f->count == 0) return NULL;
    const kr_tensor_entry **found = bsearch(name, f->by_name, (size_t)f->count, sizeof *f->by_name, name_against);
    return found ? *found : NULL;
}

const char *kr_tensors_metadata(const kr_tensor_file *f, const char *key) {
    for (int k = 0; k < f->pairs; k++)
        if (strcmp(f->metadata[2 * k], key) == 0) return f->metadata[2 * k + 1];
    return NULL;
}

/// Data in a file lies at any address, so every element is copied out before it is looked at.
#define CONVERT(type, expression)                                            \
    for (int64_t i = 0; i < n; i++) {                                        \
        type x;                                                              \
        memcpy(&x, (const char *)e->data + i * (int64_t)sizeof x, sizeof x); \
        out[i] = (double)(expression);                                       \
    }                                                                        \
    break

kr_status kr_tensors_to_f64(const kr_tensor_entry *e, double *out, int64_t n) {
    char shape[160], name[128];
    KR_FAIL_IF(n != kr_shape_count(&e->shape), KR_BAD_SHAPE, "tensor '%s' is %s, want %lld elements",
               kr_printable(e->name, name), kr_shape_text(&e->shape, shape), (long long)n);
    switch (e->dtype) {
    case KR_F32: CONVERT(float, x);
    case KR_F64: CONVERT(double, x);
    case KR_BF16: CONVERT(uint16_t, kr_bf16_to_f32(x));
    case KR_I32: CONVERT(int32_t, x);
    case KR_I64: CONVERT(int64_t, x);
    case KR_U8: CONVERT(uint8_t, x);
    case KR_BOOL: CONVERT(uint8_t, x != 0);
    default: KR_FAIL(KR_UNSUPPORTED, "tensor '%s' has no dtype that can be converted", kr_printable(e->name, name));
    }
    return KR_OK;
}
