/// Options as tables, and the words around them: every fault names what is wrong and what would be right.
#include "tools/cli/options.h"
#include "tools/cli/text.h"
#include "tools/config/train_options.h"
#include "tools/train/schedule.h"

#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

typedef struct things {
    bool flag;
    int64_t count;
    int small;
    double real;
    const char *text;
    int choice;
    uint64_t seed;
    char name[8];
    kr_text_list list;
    int64_t size;
} things;

#define FIELD(name) offsetof(things, name)
static const kr_option table[] = {
    {"dry-run", KR_OPTION_FLAG, FIELD(flag), .help = "a flag"},
    {"batch-size", KR_OPTION_INTEGER, FIELD(count), 1, 1000000, .value = "B", .help = "a count"},
    {"small", KR_OPTION_INT, FIELD(small), .value = "N", .help = "an int"},
    {"learning-rate", KR_OPTION_REAL, FIELD(real), 0, 1e30, .value = "X", .help = "a real"},
    {"text-file", KR_OPTION_TEXT, FIELD(text), .value = "FILE", .help = "a text"},
    {"schedule", KR_OPTION_CHOICE, FIELD(choice), .choices = "cosine|wsd|constant", .help = "a choice"},
    {"seed", KR_OPTION_SEED, FIELD(seed), .value = "S", .help = "a seed"},
    {"name", KR_OPTION_NAME, FIELD(name), .hi = 8, .value = "NAME", .help = "a name"},
    {"memory", KR_OPTION_SIZE, FIELD(size), 1, 9e15, .value = "SIZE", .help = "a size"},
    {"shape", KR_OPTION_LIST, FIELD(list), .value = "AxB", .help = "a list"},
    {0},
};
static const kr_usage usage = {.command = "try", .synopsis = "[options] [DIR]", .options = table, .positional = "DIR",
                               .positional_max = 2};

enum { WORDS = 32 };

/// Parses a line cut at blanks.
static kr_status parse(const char *line, things *out, kr_text_list *words) {
    static char copy[512];
    static char *argv[WORDS];
    static char command[] = "try";
    int argc = 0;
    snprintf(copy, sizeof copy, "%s", line);
    argv[argc++] = command;
    for (char *rest = copy, *word; (word = strsep(&rest, " "));)
        if (*word) argv[argc++] = word;
    bool help;
    *out = (things){0};
    return kr_options_parse(&usage, argc, argv, out, words, &help);
}

Test(options, every_type_both_spellings) {
    things t;
    kr_text_list words;
    cr_assert_eq(parse("--dry-run --batch-size 12 --small=-3 --learning-rate=3e-3 --text-file - --schedule wsd "
                       "--seed 0xff --name abc --shape 2x3 --shape=4x5 here",
                       &t, &words),
                 KR_OK, "%s", kr_status_message());
    cr_assert(t.flag);
    cr_assert_eq(t.count, 12);
    cr_assert_eq(t.small, -3);
    cr_assert_eq(t.real, 3e-3);
    cr_assert_str_eq(t.text, "-");
    cr_assert_eq(t.choice, 1);
    cr_assert_eq(t.seed, 255);
    cr_assert_str_eq(t.name, "abc");
    cr_assert_eq(t.list.count, 2);
    cr_assert_str_eq(t.list.at[1], "4x5");
    cr_assert_eq(words.count, 1);
    cr_assert_str_eq(words.at[0], "here");
}

Test(options, forms_that_mean_the_same) {
    things t;
    kr_text_list words;
    cr_assert_eq(parse("--batch_size 2k -- --no-dry-run", &t, &words), KR_OK, "%s", kr_status_message());
    cr_assert_eq(t.count, 2000);
    cr_assert_not(t.flag);
    cr_assert_eq(parse("--dry-run=yes --seed 18446744073709551615", &t, &words), KR_OK);
    cr_assert(t.flag);
    cr_assert_eq(t.seed, UINT64_MAX);
    cr_assert_eq(parse("--dry-run=off", &t, &words), KR_OK);
    cr_assert_not(t.flag);
}

Test(options, sizes_have_units) {
    static const struct {
        const char *text;
        int64_t bytes;
    } cases[] = {{"1500000000", 1500000000}, {"2.9GB", 2900000000}, {"2.9gb", 2900000000}, {"800MiB", 838860800},
                 {"1.5KiB", 1536},           {"7", 7},              {"7B", 7},             {"3k", 3000},
                 {"0.5T", 500000000000},     {"4GiB", 4294967296},  {"2e3MB", 2000000000}, {"0.25TiB", 274877906944}};
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        things t;
        kr_text_list words;
        char line[64];
        snprintf(line, sizeof line, "--memory %s", cases[k].text);
        cr_assert_eq(parse(line, &t, &words), KR_OK, "%s", kr_status_message());
        cr_expect_eq(t.size, cases[k].bytes, "%s is %lld", cases[k].text, (long long)t.size);
    }
}

Test(options, faults_say_what_is_allowed) {
    static const struct {
        const char *line, *part[3];
    } cases[] = {
        {"--batchsize 3", {"--batchsize", "did you mean --batch-size"}},
        {"--bacth-size 3", {"did you mean --batch-size"}},
        {"--learning 3", {"did you mean --learning-rate"}},
        {"--lerning-rate=3", {"--lerning-rate;", "--learning-rate"}},
        {"--no-dryrun", {"did you mean --no-dry-run"}},
        {"--zzzzzzz", {"unknown option --zzzzzzz", "krait help try"}},
        {"-x", {"unknown option -x"}},
        {"--batch-size", {"--batch-size wants a value (B)"}},
        {"--batch-size --dry-run", {"--batch-size wants a value"}},
        {"--batch-size eight", {"whole number", "'eight'"}},
        {"--batch-size 8.5", {"whole number", "'8.5'"}},
        {"--batch-size=", {"whole number", "''"}},
        {"--batch-size 0", {"--batch-size is 0", "1 to 1000000"}},
        {"--batch-size 99999999999999999999", {"too large"}},
        {"--batch-size 9223372036854775807g", {"too large"}},
        {"--small 3000000000", {"--small is 3000000000"}},
        {"--learning-rate fast", {"finite number", "'fast'"}},
        {"--learning-rate nan", {"finite number"}},
        {"--learning-rate inf", {"finite number"}},
        {"--learning-rate -1", {"--learning-rate is -1", "at least 0"}},
        {"--learning-rate 1e31", {"--learning-rate is 1e31, want 0 to 1e+30"}},
        {"--schedule linear", {"--schedule is 'linear'", "cosine, wsd, constant"}},
        {"--schedule cos", {"cosine, wsd, constant"}},
        {"--schedule cosine|wsd", {"cosine, wsd, constant"}},
        {"--seed -1", {"0 to 2^64-1"}},
        {"--seed 18446744073709551616", {"0 to 2^64-1"}},
        {"--name abcdefgh", {"1 to 7 characters"}},
        {"--memory much", {"--memory wants a size such as 2.9GB", "'much'"}},
        {"--memory 3XB", {"'3XB'", "800MiB"}},
        {"--memory 3GBs", {"'3GBs'"}},
        {"--memory inf", {"'inf'"}},
        {"--memory nan", {"'nan'"}},
        {"--memory 0x10", {"'0x10'"}},
        {"--memory GB", {"'GB'"}},
        {"--memory=", {"''"}},
        {"--memory 0", {"--memory is 0, want 1 to"}},
        {"--memory=-1GB", {"--memory is -1GB, want 1 to"}},
        {"--memory 10000TB", {"10000TB, want 1 to 9000000000000000 bytes"}},
        {"--memory 1e400", {"'1e400'"}},
        {"--dry-run=maybe", {"true or false", "'maybe'"}},
        {"--dry-run --dry-run", {"--dry-run is given twice"}},
        {"--seed 1 --seed=2", {"--seed is given twice"}},
        {"-- -- --seed 1", {"second --"}},
        {"a b c", {"unexpected 'c'", "at most 2 DIR"}},
    };
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        things t;
        kr_text_list words;
        cr_expect_eq(parse(cases[k].line, &t, &words), KR_BAD_ARGUMENT, "%s was accepted", cases[k].line);
        for (int p = 0; p < 3 && cases[k].part[p]; p++)
            cr_expect(strstr(kr_status_message(), cases[k].part[p]), "%s gives '%s', which lacks '%s'", cases[k].line,
                      kr_status_message(), cases[k].part[p]);
    }
}

Test(options, required_and_positional) {
    static const kr_option needed[] = {
        {"model", KR_OPTION_TEXT, FIELD(text), .value = "NAME", .help = "which", .flags = KR_OPTION_REQUIRED}, {0}};
    const kr_usage strict = {.command = "x", .synopsis = "DIR", .options = needed, .positional = "DIR",
                             .positional_min = 1, .positional_max = 1};
    char a[] = "x", b[] = "--model=m", *argv[] = {a, b, NULL};
    things t = {0};
    kr_text_list words;
    bool help;
    cr_assert_eq(kr_options_parse(&strict, 1, argv, &t, &words, &help), KR_BAD_ARGUMENT);
    cr_assert(strstr(kr_status_message(), "--model NAME is missing"), "%s", kr_status_message());
    cr_assert_eq(kr_options_parse(&strict, 2, argv, &t, &words, &help), KR_BAD_ARGUMENT);
    cr_assert(strstr(kr_status_message(), "DIR is missing"), "%s", kr_status_message());
}

Test(options, nearest_names) {
    static const char *const names[] = {"pretrain", "generate", "graph", "golden", "bench"};
    cr_assert_str_eq(kr_nearest("pretrian", names, 5), "pretrain");
    cr_assert_str_eq(kr_nearest("train", names, 5), "pretrain");
    cr_assert_str_eq(kr_nearest("gen", names, 5), "generate");
    cr_assert_str_eq(kr_nearest("GRAPH", names, 5), "graph");
    cr_assert_str_eq(kr_nearest("goldne", names, 5), "golden");
    cr_assert_null(kr_nearest("xyz", names, 5));
    cr_assert_null(kr_nearest("", names, 5));
}

Test(options, the_trainers_table_is_sound) {
    // Every default lies in its own range, and every name is found, with dashes or underscores.
    for (const kr_option *o = kr_train_options; o->name; o++) {
        char name[80];
        snprintf(name, sizeof name, "%s", o->name);
        for (char *c = name; *c; c++)
            if (*c == '-') *c = '_';
        cr_expect_eq(kr_option_find(kr_train_options, name), o, "%s", name);
        cr_expect(o->help && *o->help, "%s has no help", o->name);
        cr_expect(o->lo <= o->hi);
        // What krait.yaml and state.json may set lies in the settings, which stand first in the command.
        if (!(o->flags & KR_OPTION_COMMAND_LINE)) cr_expect_lt(o->offset, sizeof(kr_train_settings), "%s", name);
    }
    const kr_train_settings s = kr_train_defaults();
    cr_assert_eq(kr_train_check(&s), KR_OK);
    const kr_schedule schedule = kr_train_schedule(&s);
    cr_assert_float_eq(schedule.lr_min, s.learning_rate / 10, 1e-12);
}

Test(options, settings_that_do_not_fit_together) {
    kr_train_settings s = kr_train_defaults();
    s.min_learning_rate = 1;
    cr_assert_eq(kr_train_check(&s), KR_BAD_ARGUMENT);
    cr_assert(strstr(kr_status_message(), "above --learning-rate"));
    s = kr_train_defaults();
    s.steps = INT64_MAX / 4;
    cr_assert_eq(kr_train_check(&s), KR_BAD_ARGUMENT);
    s = kr_train_defaults();
    s.schedule = KR_SCHEDULE_WSD;
    s.decay_steps = s.steps + 1;
    cr_assert_eq(kr_train_check(&s), KR_BAD_ARGUMENT);
}

Test(options, numbers_for_people) {
    char t[32];
    cr_assert_str_eq(kr_bytes_text(0, t), "0 B");
    cr_assert_str_eq(kr_bytes_text(1024, t), "1.0 KiB");
    cr_assert_str_eq(kr_bytes_text(1024.0 * 1024 - 1, t), "1.0 MiB");
    cr_assert_str_eq(kr_bytes_text(1.5 * 1024 * 1024 * 1024, t), "1.5 GiB");
    cr_assert_str_eq(kr_count_text(999, t), "999");
    cr_assert_str_eq(kr_count_text(929920, t), "930 k");
    cr_assert_str_eq(kr_duration_text(12.34, t), "12.3 s");
    cr_assert_str_eq(kr_duration_text(59.99, t), "1 min 00 s");
    cr_assert_str_eq(kr_duration_text(3 * 3600 + 120, t), "3 h 02 min");
    cr_assert_str_eq(kr_duration_text(NAN, t), "0.0 s");
}
