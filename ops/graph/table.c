#include "ops/graph/internal.h"

#include <string.h>

#define OP(name) extern const kr_op kr_op_##name;
#define OP_WITHOUT_KERNELS OP
#include "ops/table.def"

#define OP(name) &kr_op_##name,
#define OP_WITHOUT_KERNELS OP
const kr_op *const kr_ops[] = {
#include "ops/table.def"
};
const int kr_op_count = sizeof kr_ops / sizeof *kr_ops;

const kr_op *kr_op_find(const char *name) {
    for (int i = 0; i < kr_op_count; i++)
        if (!strcmp(kr_ops[i]->name, name)) return kr_ops[i];
    return NULL;
}

/// Levenshtein distance, for names of up to 63 characters.
static int distance(const char *a, const char *b) {
    int row[64];
    const int n = (int)strlen(b);
    if (n > 63) return 64;
    for (int j = 0; j <= n; j++) row[j] = j;
    for (int i = 1; a[i - 1]; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= n; j++) {
            const int up = row[j], change = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = up;
            row[j] = up + 1 < row[j - 1] + 1 ? up + 1 : row[j - 1] + 1;
            if (change < row[j]) row[j] = change;
        }
    }
    return row[n];
}

const char *kr_op_nearest(const char *name) {
    const char *best = NULL;
    int least = 4;
    for (int i = 0; i < kr_op_count; i++) {
        const int d = distance(name, kr_ops[i]->name);
        if (d < least) {
            least = d;
            best = kr_ops[i]->name;
        }
    }
    return best;
}
