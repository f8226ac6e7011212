// How a long job tells where it is: a line rewritten in place on a terminal, plain lines elsewhere.
#include "tools/cli/progress.h"

#include "runtime/runtime.h"
#include "tools/cli/text.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { BAR = 10 };

kr_progress kr_progress_start(FILE *to, int64_t first_step, int64_t total) {
    const char *term = getenv("TERM");
    return (kr_progress){.to = to, .live = to && isatty(fileno(to)) && term && *term && strcmp(term, "dumb") != 0,
                         .color = to && kr_stream_color(to), .total = total, .first = first_step,
                         .start = kr_seconds(), .shown = -1e9};
}

/// Columns of the terminal; lines that wrap cannot be rewritten.
static int columns(FILE *to) {
    struct winsize size;
    return ioctl(fileno(to), TIOCGWINSZ, &size) == 0 && size.ws_col > 20 ? size.ws_col : 80;
}

static void bar(const kr_progress *p, int64_t done, char text[BAR + 1]) {
    const int full = p->total > 0 ? (int)(BAR * done / p->total) : BAR;
    for (int k = 0; k < BAR; k++) text[k] = k < full ? '#' : '.';
    text[BAR] = 0;
}

double kr_progress_left(const kr_progress *p, int64_t step) {
    const int64_t done = step - p->first;
    return done > 0 ? (kr_seconds() - p->start) / (double)done * (double)(p->total - step) : 0;
}

bool kr_progress_due(kr_progress *p, bool logged) {
    const double now = kr_seconds();
    if (!p->to || (!logged && (!p->live || now - p->shown < 0.1))) return false;
    p->shown = now;
    return true;
}

void kr_progress_show(kr_progress *p, int64_t done, const char *text) {
    if (!p->to) return;
    if (!p->live) {
        fprintf(p->to, "%s\n", text);
        fflush(p->to);
        return;
    }
    char line[256], picture[BAR + 1];
    bar(p, done, picture);
    int n = snprintf(line, sizeof line, "%s %lld/%lld  %s", picture, (long long)done, (long long)p->total, text);
    const int width = columns(p->to) - 1;
    if (n >= (int)sizeof line) n = sizeof line - 1;
    if (n > width) n = width;
    // "Carriage return, erase to the end of the line" is no colour, but NO_COLOR users get plain returns and blanks.
    const int bright = n < BAR ? n : BAR;
    if (p->color) fprintf(p->to, "\r\033[K\033[1m%.*s\033[0m%.*s", bright, line, n - bright, line + bright);
    else fprintf(p->to, "\r%-*.*s", width, n, line);
    fflush(p->to);
    p->open = true;
}

static void clear_line(kr_progress *p) {
    if (!p->open) return;
    if (p->color) fputs("\r\033[K", p->to);
    else fprintf(p->to, "\r%*s\r", columns(p->to) - 1, "");
    p->open = false;
}

void kr_progress_note(kr_progress *p, const char *format, ...) {
    if (!p->to) return;
    clear_line(p);
    va_list args;
    va_start(args, format);
    vfprintf(p->to, format, args);
    va_end(args);
    fputc('\n', p->to);
    fflush(p->to);
}

void kr_progress_end(kr_progress *p) {
    if (!p->to) return;
    if (p->open) fputc('\n', p->to);
    p->open = false;
    fflush(p->to);
}
