/// Words and numbers for people.
#ifndef KRAIT_TOOLS_CLI_TEXT_H
#define KRAIT_TOOLS_CLI_TEXT_H

#include <stdbool.h>
#include <stdio.h>

/// The name among `count` that is closest to `word` (edits, transpositions count one; '-' and '_' are the same), or
/// null when none is near enough to be meant.
const char *kr_nearest(const char *word, const char *const *names, int count);
/// "93.2 MiB"; gives back text.
const char *kr_bytes_text(double bytes, char text[32]);
/// "1.04 M"; gives back text.
const char *kr_count_text(double count, char text[32]);
/// "1 h 02 min", "3 min 20 s", "12.3 s"; gives back text.
const char *kr_duration_text(double seconds, char text[32]);
/// Whether escapes may be written to this stream: a terminal, NO_COLOR unset or empty, TERM not "dumb".
bool kr_stream_color(FILE *);

#endif
