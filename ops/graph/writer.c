// Words of a graph's text as they are written; reader.c reads them back.
#include "ops/graph/text.h"

#include <math.h>
#include <stdlib.h>

void kr_text_real(FILE *to, double x) {
    if (isnan(x)) { // its sign and payload are nobody's business
        fputs("nan", to);
        return;
    }
    char text[40];
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, x);
        if (strtod(text, NULL) == x) break;
    }
    fputs(text, to);
}

void kr_text_string(FILE *to, const char *text) {
    putc('"', to);
    for (const unsigned char *c = (const unsigned char *)text; *c; c++) {
        if (*c == '"' || *c == '\\') fprintf(to, "\\%c", *c);
        else if (*c < 0x20 || *c == 0x7f) fprintf(to, "\\x%02x", *c);
        else putc(*c, to);
    }
    putc('"', to);
}

void kr_text_dims(FILE *to, const kr_shape *s) {
    putc('[', to);
    for (int k = 0; k < s->rank; k++) fprintf(to, "%s%lld", k ? "," : "", (long long)s->dim[k]);
    putc(']', to);
}
