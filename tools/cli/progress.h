/// How a long job tells where it is: a line rewritten in place on a terminal, plain lines elsewhere.
#ifndef KRAIT_TOOLS_CLI_PROGRESS_H
#define KRAIT_TOOLS_CLI_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

typedef struct kr_progress {
    FILE *to;           ///< null: says nothing
    bool live;          ///< rewrite in place
    bool color;
    int64_t total, first;
    double start, shown;
    bool open;          ///< an unfinished line stands on the terminal
} kr_progress;
kr_progress kr_progress_start(FILE *to, int64_t first_step, int64_t total);
/// Whether step `done` is to be shown: `logged` ones always, others only now and then, to refresh a live line.
bool kr_progress_due(kr_progress *, bool logged);
/// Where the job is: on a terminal a bar, "done/total" and the text; elsewhere a line with the text alone.
void kr_progress_show(kr_progress *, int64_t done, const char *text);
/// Seconds that the rest will take at the speed so far.
double kr_progress_left(const kr_progress *, int64_t done);
/// A line of text that stays; a live line is moved out of its way.
__attribute__((format(printf, 2, 3))) void kr_progress_note(kr_progress *, const char *format, ...);
void kr_progress_end(kr_progress *);

#endif
