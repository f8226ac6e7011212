/// Text to train on, plain or packed: rows, streams and windows stay inside of it whatever it holds. The first byte
/// says how long a row is, the second whether the rest is a .zst file.
#include "tools/train/data.h"

#include <stdlib.h>
#include <unistd.h>

enum { LONGEST = 32 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void read_rows(const kr_data *d, int64_t length, uint64_t seed) {
    int32_t tokens[LONGEST], targets[LONGEST], reset[LONGEST];
    for (int64_t k = 0; k < 4; k++) {
        kr_data_row(d, seed, k << (k * 11), tokens, targets, k & 1 ? reset : NULL);
        kr_data_stream(d, seed, 1 + k, k << (k * 7), tokens, targets, k & 2 ? reset : NULL);
        kr_data_window(d, k, tokens, targets, NULL);
        for (int64_t t = 0; t < length; t++)
            if (tokens[t] < 0 || tokens[t] > 255) abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    if (bytes < 2) return 0;
    const int64_t length = 1 + data[0] % LONGEST;
    kr_data *d = NULL;
    kr_status status;
    if (data[1] & 1) { // packed text is known by the name of its file
        char path[] = "/tmp/krait-fuzz-XXXXXX.zst";
        const int file = mkstemps(path, 4);
        if (file < 0 || write(file, data + 2, bytes - 2) != (ssize_t)(bytes - 2)) abort();
        close(file);
        status = kr_data_open(path, length, &d);
        (void)unlink(path);
    } else {
        status = kr_data_from(data + 2, bytes - 2, length, "fuzz", &d);
    }
    if (status) {
        if (d || !*kr_status_message()) abort();
        return 0;
    }
    read_rows(d, length, data[0]);
    if (data[1] & 2 && !kr_data_split(d, "\n")) read_rows(d, length, data[0]);
    kr_data_close(d);
    return 0;
}
