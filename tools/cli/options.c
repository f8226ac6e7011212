// Options as tables: one row says name, type, range and help; parsing, checking and the help text all read the rows,
// and so does krait.yaml (config/config.c), so that a flag and its key can never disagree.
#include "tools/cli/options.h"
#include "tools/cli/text.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/// '-' and '_' are the same: batch_size in YAML is --batch-size.
static bool same_name(const char *a, const char *b, size_t length) {
    for (size_t k = 0; k < length; k++) {
        const char x = a[k] == '_' ? '-' : a[k], y = b[k] == '_' ? '-' : b[k];
        if (x != y) return false;
        if (!x) return false;
    }
    return b[length] == 0;
}

bool kr_same_name(const char *a, const char *b) { return same_name(a, b, strlen(a)); }

static const kr_option *find(const kr_option *table, const char *name, size_t length) {
    for (const kr_option *o = table; o->name; o++)
        if (same_name(name, o->name, length)) return o;
    return NULL;
}

const kr_option *kr_option_find(const kr_option *table, const char *name) { return find(table, name, strlen(name)); }

/// In its spelling with dashes; null when nothing is near.
static const char *nearest_option(const kr_option *table, const char *name) {
    const char *names[128];
    int count = 0;
    for (const kr_option *o = table; o->name && count < 128; o++) names[count++] = o->name;
    return kr_nearest(name, names, count);
}

static kr_status out_of_range(const kr_option *o, const char *spelling, const char *text) {
    const char *or_auto = o->flags & KR_OPTION_AUTO ? ", or auto" : "";
    const bool below = strtod(text, NULL) < o->lo;
    if (below && (o->hi >= 9e15 || (o->hi >= INT32_MAX && o->type == KR_OPTION_INT)))
        KR_FAIL(KR_BAD_ARGUMENT, "%s is %s, want at least %.15g%s", spelling, text, o->lo, or_auto);
    KR_FAIL(KR_BAD_ARGUMENT, "%s is %s, want %.15g to %.15g%s", spelling, text, o->lo, o->hi, or_auto);
}

static kr_status set_integer(const kr_option *o, const char *spelling, const char *text, int64_t *to) {
    char *end;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    int64_t scale = 1;
    if (end != text && end[0] && !end[1])
        scale = *end == 'k' ? 1000 : *end == 'm' ? 1000000 : *end == 'g' ? 1000000000 : 0;
    if (end == text || (end[0] && end[1]) || !scale)
        KR_FAIL(KR_BAD_ARGUMENT, "%s wants a whole number, got '%s'", spelling, text);
    int64_t scaled;
    if (errno || __builtin_mul_overflow((int64_t)value, scale, &scaled))
        KR_FAIL(KR_BAD_ARGUMENT, "%s is %s, which is too large for a 64-bit number", spelling, text);
    if ((o->lo != 0 || o->hi != 0) && ((double)scaled < o->lo || (double)scaled > o->hi))
        return out_of_range(o, spelling, text);
    *to = scaled;
    return KR_OK;
}

static kr_status set_real(const kr_option *o, const char *spelling, const char *text, double *to) {
    char *end;
    const double value = strtod(text, &end);
    if (end == text || *end || !isfinite(value))
        KR_FAIL(KR_BAD_ARGUMENT, "%s wants a finite number, got '%s'", spelling, text);
    if ((o->lo != 0 || o->hi != 0) && (value < o->lo || value > o->hi)) return out_of_range(o, spelling, text);
    *to = value;
    return KR_OK;
}

/// "2.9GB"; a number alone is bytes. Letters large or small.
static kr_status set_size(const kr_option *o, const char *spelling, const char *text, int64_t *to) {
    static const struct { const char *name; double bytes; } units[] = {
        {"", 1}, {"B", 1}, {"k", 1e3}, {"kB", 1e3}, {"M", 1e6}, {"MB", 1e6}, {"G", 1e9}, {"GB", 1e9}, {"T", 1e12},
        {"TB", 1e12}, {"KiB", 0x1p10}, {"MiB", 0x1p20}, {"GiB", 0x1p30}, {"TiB", 0x1p40}};
    char *end;
    const double number = strtod(text, &end), *unit = NULL;
    const char *name = end + strspn(end, " ");
    for (size_t k = 0; k < sizeof units / sizeof *units; k++)
        if (!strcasecmp(name, units[k].name)) unit = &units[k].bytes;
    const bool decimal = end > text && isdigit((unsigned char)end[-1]) && !strpbrk(text, "xXpP");
    KR_FAIL_IF(!decimal || !unit || !isfinite(number), KR_BAD_ARGUMENT,
               "%s wants a size such as 2.9GB, 800MiB or 1500000000 (bytes), got '%s'", spelling, text);
    KR_FAIL_IF(number * *unit < o->lo || number * *unit > o->hi, KR_BAD_ARGUMENT, "%s is %s, want %.0f to %.0f bytes",
               spelling, text, o->lo, o->hi);
    *to = (int64_t)(number * *unit);
    return KR_OK;
}

static kr_status set_seed(const char *spelling, const char *text, uint64_t *to) {
    char *end;
    errno = 0;
    const bool hex = text[0] == '0' && (text[1] == 'x' || text[1] == 'X');
    const unsigned long long value = strtoull(text, &end, hex ? 16 : 10);
    if (end == text || *end || errno || text[0] == '-')
        KR_FAIL(KR_BAD_ARGUMENT, "%s wants a whole number from 0 to 2^64-1, got '%s'", spelling, text);
    *to = value;
    return KR_OK;
}

static kr_status set_flag(const char *spelling, const char *text, bool *to) {
    static const char *const yes[] = {"true", "yes", "on", "1"}, *const no[] = {"false", "no", "off", "0"};
    for (int k = 0; k < 4; k++) {
        if (!strcasecmp(text, yes[k])) return *to = true, KR_OK;
        if (!strcasecmp(text, no[k])) return *to = false, KR_OK;
    }
    KR_FAIL(KR_BAD_ARGUMENT, "%s wants true or false, got '%s'", spelling, text);
}

static kr_status set_choice(const kr_option *o, const char *spelling, const char *text, int *to) {
    const size_t length = strlen(text);
    int index = 0;
    for (const char *word = o->choices;; index++) {
        const char *end = strchrnul(word, '|');
        if ((size_t)(end - word) == length && !memcmp(word, text, length)) return *to = index, KR_OK;
        if (!*end) break;
        word = end + 1;
    }
    char allowed[256];
    size_t n = 0;
    for (const char *c = o->choices; *c && n + 4 < sizeof allowed; c++) {
        if (*c != '|') allowed[n++] = *c;
        else allowed[n++] = ',', allowed[n++] = ' ';
    }
    allowed[n] = 0;
    KR_FAIL(KR_BAD_ARGUMENT, "%s is '%s', want one of: %s", spelling, text, allowed);
}

/// "low,high"
static kr_status set_range(const kr_option *o, const char *spelling, const char *text, double *to) {
    char *end;
    const double low = strtod(text, &end);
    const char *rest = *end == ',' ? end + 1 : "";
    const double high = strtod(rest + (*rest == '.' && rest[1] == 'i'), &end); // YAML writes .inf
    KR_FAIL_IF(!*rest || end == rest || *end || !isfinite(low) || !(high >= low), KR_BAD_ARGUMENT,
               "%s wants two numbers, the lower one first, got '%s'", spelling, text);
    KR_FAIL_IF(low < o->lo, KR_BAD_ARGUMENT, "%s is %s, want at least %.15g", spelling, text, o->lo);
    to[0] = low;
    to[1] = high;
    return KR_OK;
}

kr_status kr_option_set(const kr_option *o, const char *spelling, const char *text, void *to) {
    void *field = (char *)to + o->offset;
    if (o->flags & KR_OPTION_AUTO && !strcmp(text, "auto")) return KR_OK;
    switch (o->type) {
    case KR_OPTION_FLAG: return set_flag(spelling, text, field);
    case KR_OPTION_INTEGER: return set_integer(o, spelling, text, field);
    case KR_OPTION_SIZE: return set_size(o, spelling, text, field);
    case KR_OPTION_SEED: return set_seed(spelling, text, field);
    case KR_OPTION_REAL: return set_real(o, spelling, text, field);
    case KR_OPTION_CHOICE: return set_choice(o, spelling, text, field);
    case KR_OPTION_INT: {
        int64_t wide;
        kr_option row = *o;
        if (row.lo == 0 && row.hi == 0) row.lo = INT32_MIN, row.hi = INT32_MAX;
        KR_TRY(set_integer(&row, spelling, text, &wide));
        *(int *)field = (int)wide;
        return KR_OK;
    }
    case KR_OPTION_TEXT: *(const char **)field = text; return KR_OK;
    case KR_OPTION_RANGE: return set_range(o, spelling, text, field);
    case KR_OPTION_NAME:
    case KR_OPTION_WORDS: {
        const size_t length = strlen(text);
        KR_FAIL_IF(!length || (double)length >= o->hi, KR_BAD_ARGUMENT, "%s is '%s', want 1 to %d characters", spelling,
                   text, (int)o->hi - 1);
        memcpy(field, text, length + 1);
        return KR_OK;
    }
    case KR_OPTION_LIST: {
        kr_text_list *list = field;
        KR_FAIL_IF(list->count == 16, KR_BAD_ARGUMENT, "%s may be given 16 times at most", spelling);
        list->at[list->count++] = text;
        return KR_OK;
    }
    }
    KR_FAIL(KR_BAD_ARGUMENT, "%s has no value of its own", spelling);
}

static kr_status unknown(const kr_usage *usage, const char *arg, size_t length) {
    char name[128];
    snprintf(name, sizeof name, "%.*s", (int)length, arg);
    const char *bare = name;
    while (*bare == '-') bare++;
    const char *nearest = nearest_option(usage->options, strncmp(bare, "no-", 3) ? bare : bare + 3);
    if (nearest)
        KR_FAIL(KR_BAD_ARGUMENT, "unknown option %s; did you mean --%s%s? (krait help %s lists them)", name,
                strncmp(bare, "no-", 3) ? "" : "no-", nearest, usage->command);
    KR_FAIL(KR_BAD_ARGUMENT, "unknown option %s; krait help %s lists the options", name, usage->command);
}

/// One "--name", "--name=value" or "--name value"; *k moves past what was read.
static kr_status take(const kr_usage *usage, int argc, char **argv, int *k, void *to, uint64_t given[2]) {
    const char *arg = argv[*k];
    const char *name = arg + 2, *equals = strchr(name, '=');
    const size_t length = equals ? (size_t)(equals - name) : strlen(name);
    const kr_option *o = find(usage->options, name, length);
    bool negated = false;
    if (!o && length > 3 && !strncmp(name, "no-", 3) && !equals) {
        o = find(usage->options, name + 3, length - 3);
        negated = o && o->type == KR_OPTION_FLAG;
        if (!negated) o = NULL;
    }
    if (!o) return unknown(usage, arg, length + 2);

    const size_t index = (size_t)(o - usage->options);
    char spelling[80];
    snprintf(spelling, sizeof spelling, "--%s%s", negated ? "no-" : "", o->name);
    KR_FAIL_IF(o->type != KR_OPTION_LIST && given[index / 64] >> (index % 64) & 1, KR_BAD_ARGUMENT,
               "%s is given twice", spelling);
    given[index / 64] |= UINT64_C(1) << (index % 64);

    if (o->type == KR_OPTION_FLAG && !equals)
        return kr_option_set(o, spelling, negated ? "false" : "true", to);
    const char *value = equals ? equals + 1 : NULL;
    if (!value) {
        KR_FAIL_IF(*k + 1 >= argc || !strncmp(argv[*k + 1], "--", 2), KR_BAD_ARGUMENT, "%s wants a value (%s)",
                   spelling,
                   o->choices ? o->choices
                   : o->value ? o->value
                              : "VALUE");
        value = argv[++*k];
    }
    return kr_option_set(o, spelling, value, to);
}

kr_status kr_options_parse(const kr_usage *usage, int argc, char **argv, void *to, kr_text_list *words, bool *help) {
    uint64_t given[2] = {0, 0};
    bool separated = false;
    *help = false;
    if (words) words->count = 0;
    for (int k = 1; k < argc; k++) {
        const char *arg = argv[k];
        if (!strcmp(arg, "--help") || !strcmp(arg, "-h")) {
            *help = true;
            return KR_OK;
        }
        if (!strcmp(arg, "--")) {
            KR_FAIL_IF(separated, KR_BAD_ARGUMENT, "a second -- on the command line; one is enough");
            separated = true;
        } else if (arg[0] == '-' && arg[1] == '-') {
            KR_TRY(take(usage, argc, argv, &k, to, given));
        } else if (arg[0] == '-' && arg[1]) {
            return unknown(usage, arg, strlen(arg));
        } else {
            KR_FAIL_IF(!usage->positional || !words, KR_BAD_ARGUMENT,
                       "unexpected '%s': options start with --; krait help %s lists them", arg, usage->command);
            KR_FAIL_IF(words->count >= usage->positional_max || words->count == 16, KR_BAD_ARGUMENT,
                       "unexpected '%s': at most %d %s", arg, usage->positional_max, usage->positional);
            words->at[words->count++] = arg;
        }
    }
    for (const kr_option *o = usage->options; o->name; o++) {
        const size_t index = (size_t)(o - usage->options);
        KR_FAIL_IF(o->flags & KR_OPTION_REQUIRED && !(given[index / 64] >> (index % 64) & 1), KR_BAD_ARGUMENT,
                   "--%s %s is missing: %s", o->name, o->value ? o->value : "VALUE", o->help);
    }
    KR_FAIL_IF(words && words->count < usage->positional_min, KR_BAD_ARGUMENT, "%s is missing; usage: krait %s %s",
               usage->positional, usage->command, usage->synopsis);
    return KR_OK;
}

void kr_usage_print(const kr_usage *usage, FILE *to) {
    fprintf(to, "usage: krait %s %s\n", usage->command, usage->synopsis);
    if (usage->text) fprintf(to, "\n%s\n", usage->text);
    fprintf(to, "\n");
    for (const kr_option *o = usage->options; o->name; o++) {
        char left[128];
        const char *value = o->choices ? o->choices : o->type == KR_OPTION_FLAG ? "" : o->value ? o->value : "VALUE";
        snprintf(left, sizeof left, "--%s%s%s", o->name, *value ? " " : "", value);
        if (strlen(left) > 30) fprintf(to, "  %s\n  %-30s  %s\n", left, "", o->help);
        else fprintf(to, "  %-30s  %s\n", left, o->help);
    }
}
