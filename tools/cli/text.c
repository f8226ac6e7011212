// Words and numbers for people: nearest names, sizes, durations.
#include "tools/cli/text.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LONGEST = 48 };

static int folded(char c) {
    if (c == '_') return '-';
    return c >= 'A' && c <= 'Z' ? c + 32 : c;
}

/// Optimal string alignment: insertions, deletions, replacements and swaps of neighbours cost one each.
static int distance(const char *a, const char *b) {
    const int n = (int)strlen(a), m = (int)strlen(b);
    if (n > LONGEST || m > LONGEST) return 2 * LONGEST;
    int row[3][LONGEST + 1];
    for (int j = 0; j <= m; j++) row[0][j] = j;
    for (int i = 1; i <= n; i++) {
        int *now = row[i % 3], *up = row[(i + 2) % 3], *upper = row[(i + 1) % 3];
        now[0] = i;
        for (int j = 1; j <= m; j++) {
            const bool same = folded(a[i - 1]) == folded(b[j - 1]);
            int best = up[j - 1] + !same;
            if (up[j] + 1 < best) best = up[j] + 1;
            if (now[j - 1] + 1 < best) best = now[j - 1] + 1;
            if (i > 1 && j > 1 && folded(a[i - 1]) == folded(b[j - 2]) && folded(a[i - 2]) == folded(b[j - 1]) &&
                upper[j - 2] + 1 < best)
                best = upper[j - 2] + 1;
            now[j] = best;
        }
    }
    return row[n % 3][m];
}

static bool contains(const char *name, const char *word) {
    for (; *name; name++) {
        size_t same = 0;
        while (word[same] && folded(name[same]) == folded(word[same])) same++;
        if (!word[same]) return true;
    }
    return false;
}

const char *kr_nearest(const char *word, const char *const *names, int count) {
    const int length = (int)strlen(word);
    const char *nearest = NULL;
    int least = length < 3 ? 2 : 2 + length / 4;
    for (int k = 0; k < count; k++) {
        int d = distance(word, names[k]);
        // A part of a name ("--batch", "train") is meant though many letters are missing.
        if (length >= 3 && d > 1 && contains(names[k], word)) d = 1;
        if (d < least) least = d, nearest = names[k];
    }
    return nearest;
}

const char *kr_bytes_text(double bytes, char text[32]) {
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    int unit = 0;
    while (bytes >= 1023.95 && unit < 4) bytes /= 1024, unit++;
    snprintf(text, 32, unit ? "%.1f %s" : "%.0f %s", bytes, units[unit]);
    return text;
}

const char *kr_count_text(double count, char text[32]) {
    static const char *const units[] = {"", " k", " M", " G", " T"};
    int unit = 0;
    while (count >= 999.5 && unit < 4) count /= 1000, unit++;
    snprintf(text, 32, unit ? "%.3g%s" : "%.0f%s", count, units[unit]);
    return text;
}

const char *kr_duration_text(double seconds, char text[32]) {
    if (!(seconds >= 0)) seconds = 0;
    if (seconds < 59.95) {
        snprintf(text, 32, "%.1f s", seconds);
    } else if (seconds < 3599.5) {
        const int whole = (int)(seconds + 0.5);
        snprintf(text, 32, "%d min %02d s", whole / 60, whole % 60);
    } else {
        const long minutes = (long)(seconds / 60 + 0.5);
        snprintf(text, 32, "%ld h %02ld min", minutes / 60, minutes % 60);
    }
    return text;
}

bool kr_stream_color(FILE *stream) {
    const char *no_color = getenv("NO_COLOR"), *term = getenv("TERM");
    return isatty(fileno(stream)) && !(no_color && *no_color) && term && *term && strcmp(term, "dumb") != 0;
}
