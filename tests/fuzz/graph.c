/// The reader of graph text: what it takes, it prints as text that it takes again and prints alike.
#include "ops/ops.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static char *print(const kr_graph *g, size_t *bytes) {
    char *text = NULL;
    FILE *f = open_memstream(&text, bytes);
    if (!f) abort();
    kr_graph_print(g, f);
    fclose(f);
    return text;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    kr_graph *g = NULL, *again = NULL;
    if (kr_graph_parse((const char *)data, bytes, "fuzz", &g)) {
        if (g || !*kr_status_message()) abort();
        return 0;
    }
    size_t first, second;
    char *text = print(g, &first);
    if (kr_graph_parse(text, first, "again", &again)) {
        fprintf(stderr, "what was printed is refused: %s\n", kr_status_message());
        abort();
    }
    char *other = print(again, &second);
    if (first != second || memcmp(text, other, first)) abort();
    free(text);
    free(other);
    kr_graph_free(g);
    kr_graph_free(again);
    return 0;
}
