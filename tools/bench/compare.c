// krait bench ... --compare FILE: this run against the record of an earlier one, row by row, with both spreads.
//
// Timings on a shared machine scatter, so that a difference of medians says nothing by itself. It counts when either
// median lies outside of the range (10th to 90th percentile) that the other run saw; anything less is within the
// spread.
#include "tools/bench/bench.h"

#include <json-c/json.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

const char *const kr_bench_verdict_names[] = {"within the spread", "faster", "slower"};

kr_bench_verdict kr_bench_judge(kr_bench_time before, kr_bench_time now, bool less_is_better) {
    const bool less = now.median < before.p10 && before.median > now.p90;
    const bool more = now.median > before.p90 && before.median < now.p10;
    if (!less && !more) return KR_BENCH_WITHIN;
    return less == less_is_better ? KR_BENCH_FASTER : KR_BENCH_SLOWER;
}

static const char *text_of(json_object *o, const char *key) {
    json_object *value;
    return json_object_object_get_ex(o, key, &value) && json_object_is_type(value, json_type_string)
               ? json_object_get_string(value)
               : NULL;
}

/// NaN where there is no number.
static double real_of(json_object *o, const char *key) {
    json_object *value;
    const bool is = json_object_object_get_ex(o, key, &value) &&
                    (json_object_is_type(value, json_type_double) || json_object_is_type(value, json_type_int));
    return is ? json_object_get_double(value) : NAN;
}

static json_object *rows_of(json_object *o) {
    json_object *rows;
    return json_object_object_get_ex(o, "rows", &rows) && json_object_is_type(rows, json_type_array) ? rows : NULL;
}

static kr_bench_time time_of(json_object *row) {
    return (kr_bench_time){real_of(row, "median"), real_of(row, "p10"), real_of(row, "p90")};
}

/// The row is an object with name, unit and three numbers.
static bool is_row(json_object *row) {
    if (!json_object_is_type(row, json_type_object) || !text_of(row, "name") || !text_of(row, "unit")) return false;
    const kr_bench_time t = time_of(row);
    return isfinite(t.median) && isfinite(t.p10) && isfinite(t.p90);
}

static kr_status check(json_object *record, const char *path, const char *command) {
    json_object *rows = rows_of(record);
    const char *its = text_of(record, "command");
    KR_FAIL_IF(!json_object_is_type(record, json_type_object) || isnan(real_of(record, "krait_bench")) || !its || !rows,
               KR_BAD_FILE, "%s: no record of krait bench; --compare wants what an earlier run printed with --json",
               path);
    KR_FAIL_IF(real_of(record, "krait_bench") != 1, KR_BAD_FILE,
               "%s: a record of another version of krait bench (%g, want 1)", path, real_of(record, "krait_bench"));
    KR_FAIL_IF(strcmp(its, command), KR_BAD_FILE, "%s: a record of krait bench %s, want one of krait bench %s", path,
               its, command);
    for (size_t k = 0; k < json_object_array_length(rows); k++)
        KR_FAIL_IF(!is_row(json_object_array_get_idx(rows, k)), KR_BAD_FILE,
                   "%s: row %zu has not the name, unit, median, p10 and p90 that krait bench writes", path, k);
    return KR_OK;
}

kr_status kr_bench_compare_read(const char *path, const char *command, json_object **out) {
    *out = NULL;
    if (!path) return KR_OK;
    char *text = NULL;
    size_t bytes;
    KR_TRY(kr_file_read(path, &text, &bytes));
    enum json_tokener_error error;
    json_object *record = json_tokener_parse_verbose(text, &error);
    free(text);
    KR_FAIL_IF(error != json_tokener_success, KR_BAD_FILE, "%s: no JSON: %s", path, json_tokener_error_desc(error));
    const kr_status status = check(record, path, command);
    if (status) json_object_put(record);
    else *out = record;
    return status;
}

static json_object *find_row(json_object *record, const char *name) {
    json_object *rows = rows_of(record);
    for (size_t k = 0; k < json_object_array_length(rows); k++) {
        json_object *row = json_object_array_get_idx(rows, k);
        if (!strcmp(text_of(row, "name"), name)) return row;
    }
    return NULL;
}

/// What is not the same about the two runs, as lines or as a list of keys.
static void differences(json_object *before, json_object *now, json_object *list, FILE *to) {
    static const char *const keys[] = {"cpu", "cpus", "isa", "threads", "blas_core"};
    for (size_t k = 0; k < sizeof keys / sizeof *keys; k++) {
        json_object *a = NULL, *b = NULL;
        json_object_object_get_ex(before, keys[k], &a);
        json_object_object_get_ex(now, keys[k], &b);
        if (json_object_equal(a, b)) continue;
        if (list) json_object_array_add(list, json_object_new_string(keys[k]));
        else
            fprintf(to, "another %s: %s then, %s now\n", keys[k], a ? json_object_get_string(a) : "none",
                    b ? json_object_get_string(b) : "none");
    }
}

/// "1.234e-03 s" would be hard to read: seconds in ms, rates in G/s.
static void print_row(FILE *to, const char *name, bool seconds, kr_bench_time was, kr_bench_time is, double ratio,
                      kr_bench_verdict verdict) {
    const double scale = seconds ? 1e3 : 1e-9;
    fprintf(to, "%-44s %10.4g (%.4g to %.4g) %10.4g (%.4g to %.4g) %s %7.3f  %s\n", name, was.median * scale,
            was.p10 * scale, was.p90 * scale, is.median * scale, is.p10 * scale, is.p90 * scale, seconds ? "ms" : "G/s",
            ratio, kr_bench_verdict_names[verdict]);
}

kr_status kr_bench_compare(json_object *before, json_object *now, bool to_record, FILE *to) {
    json_object *list = NULL, *other = NULL, *rows = rows_of(now);
    KR_FAIL_IF(!rows, KR_BAD_ARGUMENT, "the record has no rows to compare");
    if (to_record) {
        json_object *comparison = json_object_new_object();
        list = json_object_new_array(), other = json_object_new_array();
        KR_FAIL_IF(!comparison || !list || !other, KR_NO_MEMORY, "no memory for the comparison");
        json_object_object_add(comparison, "different", other);
        json_object_object_add(comparison, "rows", list);
        json_object_object_add(now, "comparison", comparison);
    }
    differences(before, now, other, to);
    if (!to_record)
        fprintf(to, "%-44s %32s %32s %12s  %s\n", "", "then, median (p10 to p90)", "now", "speed", "");
    for (size_t k = 0; k < json_object_array_length(rows); k++) {
        json_object *row = json_object_array_get_idx(rows, k), *old = find_row(before, text_of(row, "name"));
        const char *name = text_of(row, "name"), *unit = text_of(row, "unit");
        if (!old || strcmp(text_of(old, "unit"), unit)) {
            if (!to_record) fprintf(to, "%-44s is not in the earlier run\n", name);
            continue;
        }
        const bool seconds = !strcmp(unit, "s");
        const kr_bench_time was = time_of(old), is = time_of(row);
        const double ratio = seconds ? was.median / is.median : is.median / was.median;
        const kr_bench_verdict verdict = kr_bench_judge(was, is, seconds);
        if (!to_record) {
            print_row(to, name, seconds, was, is, ratio, verdict);
            continue;
        }
        json_object *o = json_object_new_object();
        kr_bench_record_text(o, "name", name);
        kr_bench_record_real(o, "before", was.median);
        kr_bench_record_real(o, "now", is.median);
        kr_bench_record_real(o, "speed", ratio);
        kr_bench_record_text(o, "verdict", kr_bench_verdict_names[verdict]);
        json_object_array_add(list, o);
    }
    return KR_OK;
}

kr_status kr_bench_record_close(const kr_bench_settings *s, json_object *record, json_object *before) {
    kr_status status = KR_OK;
    if (record && before) {
        if (!s->json) printf("\ncompared with %s\n", s->compare);
        status = kr_bench_compare(before, record, s->json, stdout);
    }
    if (record && s->json && !status)
        printf("%s\n",
               json_object_to_json_string_ext(record, JSON_C_TO_STRING_SPACED | JSON_C_TO_STRING_NOSLASHESCAPE));
    json_object_put(before);
    KR_FAIL_IF(!record, KR_NO_MEMORY, "no memory for the record");
    json_object_put(record);
    return status;
}
