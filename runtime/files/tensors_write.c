/// Writes safetensors files: header first, then the data of every tensor without gaps. Wider elements come first, so
/// that each tensor lies at a multiple of its element size; otherwise the order is the caller's. The header is padded
/// with spaces until the data starts at a multiple of 64 bytes.
#include "runtime/files/internal.h"

#include <stdlib.h>
#include <string.h>

static kr_status check_text(const char *text, const char *what) {
    char shown[128];
    KR_FAIL_IF(!text, KR_BAD_ARGUMENT, "%s is null", what);
    KR_FAIL_IF(kr_utf8_span(text, strlen(text)) != strlen(text), KR_BAD_ARGUMENT, "%s '%s' is not UTF-8", what,
               kr_printable(text, shown));
    return KR_OK;
}

static int by_text(const void *a, const void *b) { return strcmp(*(const char *const *)a, *(const char *const *)b); }

static kr_status check_unique(const char **texts, size_t count, const char *what) {
    char shown[128];
    if (count) qsort(texts, count, sizeof *texts, by_text);
    for (size_t k = 1; k < count; k++)
        KR_FAIL_IF(strcmp(texts[k - 1], texts[k]) == 0, KR_BAD_ARGUMENT, "two %s are called '%s'", what,
                   kr_printable(texts[k], shown));
    return KR_OK;
}

static kr_status check(const kr_tensor_entry *entries, int count, const char *const *metadata, int pairs) {
    const size_t most = (size_t)(count > pairs ? count : pairs);
    for (int k = 0; k < 2 * pairs; k++) KR_TRY(check_text(metadata[k], "metadata of a tensor file"));
    for (int k = 0; k < count; k++) {
        const kr_tensor_entry *e = &entries[k];
        char shown[128], shape[160];
        KR_TRY(check_text(e->name, "tensor name"));
        KR_FAIL_IF(strcmp(e->name, "__metadata__") == 0, KR_BAD_ARGUMENT, "a tensor cannot be called __metadata__");
        const size_t bytes = kr_tensor_bytes(e->dtype, &e->shape);
        KR_FAIL_IF(bytes == SIZE_MAX || bytes != e->bytes, KR_BAD_SHAPE, "tensor '%s': %s %s does not take %zu bytes",
                   kr_printable(e->name, shown), kr_dtype_name(e->dtype), kr_shape_text(&e->shape, shape), e->bytes);
    }
    const char **texts = calloc(most + 1, sizeof *texts);
    KR_FAIL_IF(!texts, KR_NO_MEMORY, "no memory for a header of %d tensors", count);
    for (int k = 0; k < pairs; k++) texts[k] = metadata[2 * k];
    kr_status status = check_unique(texts, (size_t)pairs, "keys of metadata");
    for (int k = 0; k < count; k++) texts[k] = entries[k].name;
    if (!status) status = check_unique(texts, (size_t)count, "tensors");
    free(texts);
    return status;
}

static void put_string(FILE *to, const char *text) {
    fputc('"', to);
    for (const unsigned char *c = (const unsigned char *)text; *c; c++) {
        if (*c == '"' || *c == '\\') {
            fprintf(to, "\\%c", *c);
        } else if (*c < 32) {
            fprintf(to, "\\u%04x", *c);
        } else {
            fputc(*c, to);
        }
    }
    fputc('"', to);
}

static uint64_t put_json(FILE *to, const kr_tensor_entry *entries, int count, const char *const *metadata, int pairs,
                         const int *order) {
    const char *comma = "";
    fputc('{', to);
    if (pairs) {
        fputs("\"__metadata__\":{", to);
        for (int k = 0; k < pairs; k++) {
            if (k) fputc(',', to);
            put_string(to, metadata[2 * k]);
            fputc(':', to);
            put_string(to, metadata[2 * k + 1]);
        }
        fputc('}', to);
        comma = ",";
    }
    uint64_t offset = 0;
    for (int k = 0; k < count; k++, comma = ",") {
        const kr_tensor_entry *e = &entries[order[k]];
        fputs(comma, to);
        put_string(to, e->name);
        fprintf(to, ":{\"dtype\":\"%s\",\"shape\":[", kr_tensors_dtype(e->dtype));
        for (int d = 0; d < e->shape.rank; d++) fprintf(to, d ? ",%lld" : "%lld", (long long)e->shape.dim[d]);
        fprintf(to, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)offset,
                (unsigned long long)(offset + e->bytes));
        offset += e->bytes;
    }
    fputc('}', to);
    return offset;
}

kr_status kr_tensors_make_header(const kr_tensor_entry *entries, int count, const char *const *metadata, int pairs,
                                 char **header, size_t *header_bytes, int *order, uint64_t *data_bytes) {
    *header = NULL;
    KR_TRY(check(entries, count, metadata, pairs));
    int placed = 0;
    for (size_t size = 8; size; size /= 2)
        for (int k = 0; k < count; k++)
            if (kr_dtype_size(entries[k].dtype) == size) order[placed++] = k;
    FILE *to = open_memstream(header, header_bytes);
    KR_FAIL_IF(!to, KR_NO_MEMORY, "no memory for a header of %d tensors", count);
    for (int k = 0; k < KR_HEADER_PREFIX; k++) fputc(0, to);
    *data_bytes = put_json(to, entries, count, metadata, pairs, order);
    while (ftell(to) % KR_TENSOR_ALIGN) fputc(' ', to);
    const bool failed = ferror(to);
    if (fclose(to) != 0 || failed || *header_bytes > KR_HEADER_LIMIT) {
        free(*header);
        *header = NULL;
        KR_FAIL_IF(*header_bytes > KR_HEADER_LIMIT, KR_BAD_ARGUMENT,
                   "the names of %d tensors take %zu bytes, at most %d fit", count, *header_bytes,
                   (int)KR_HEADER_LIMIT);
        KR_FAIL(KR_NO_MEMORY, "no memory for a header of %d tensors", count);
    }
    const uint64_t length = *header_bytes - KR_HEADER_PREFIX;
    for (int k = 0; k < KR_HEADER_PREFIX; k++) (*header)[k] = (char)(length >> 8 * k & 0xFF);
    return KR_OK;
}

kr_status kr_tensors_write(FILE *to, const kr_tensor_entry *entries, int count, const char *const *metadata,
                           int pairs) {
    char *header = NULL;
    size_t header_bytes = 0;
    uint64_t data_bytes;
    int *order = calloc((size_t)count + 1, sizeof *order);
    KR_FAIL_IF(!order, KR_NO_MEMORY, "no memory for a header of %d tensors", count);
    kr_status status = kr_tensors_make_header(entries, count, metadata, pairs, &header, &header_bytes, order,
                                              &data_bytes);
    if (!status) {
        bool done = fwrite(header, 1, header_bytes, to) == header_bytes;
        for (int k = 0; k < count && done; k++) {
            const kr_tensor_entry *e = &entries[order[k]];
            done = e->bytes == 0 || fwrite(e->data, 1, e->bytes, to) == e->bytes;
        }
        if (!done || fflush(to) != 0) status = kr_status_record(KR_IO, __FILE__, __LINE__, "cannot write tensors: %m");
    }
    free(header);
    free(order);
    return status;
}
