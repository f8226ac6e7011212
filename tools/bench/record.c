// What a benchmark leaves behind: one JSON object with the machine, the settings and a row for every figure.
#include "tools/bench/bench.h"

#include <json-c/json.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

kr_bench_time kr_bench_percentiles(double *values, int count) {
    qsort(values, (size_t)count, sizeof *values, by_value);
    const double median = count % 2 ? values[count / 2] : (values[count / 2 - 1] + values[count / 2]) / 2;
    return (kr_bench_time){median, values[count / 10], values[count - 1 - count / 10]};
}

/// "model name" of /proc/cpuinfo. Gives back text.
static const char *cpu_name(char text[160]) {
    char line[320];
    strcpy(text, "unknown");
    FILE *file = fopen("/proc/cpuinfo", "re");
    if (!file) return text;
    while (fgets(line, sizeof line, file)) {
        if (sscanf(line, "model name : %159[^\n]", text) == 1) break;
    }
    fclose(file);
    return text;
}

void kr_bench_record_real(json_object *to, const char *key, double value) {
    char text[40];
    snprintf(text, sizeof text, "%.6g", value);
    // JSON has no word for infinity and NaN
    json_object_object_add(to, key, isfinite(value) ? json_object_new_double_s(value, text) : NULL);
}

void kr_bench_record_text(json_object *to, const char *key, const char *value) {
    json_object_object_add(to, key, value ? json_object_new_string(value) : NULL);
}

json_object *kr_bench_record(const kr_bench_settings *s, const char *command) {
    char cpu[160];
    json_object *record = json_object_new_object(), *rows = json_object_new_array();
    if (!record || !rows) {
        json_object_put(record);
        json_object_put(rows);
        return NULL;
    }
    json_object_object_add(record, "krait_bench", json_object_new_int(1));
    kr_bench_record_text(record, "command", command);
    kr_bench_record_text(record, "cpu", cpu_name(cpu));
    json_object_object_add(record, "cpus", json_object_new_int(kr_cpu_count()));
    kr_bench_record_text(record, "isa", kr_isa_name(kr_isa_best()));
    json_object_object_add(record, "threads", json_object_new_int(s->threads));
    kr_bench_record_text(record, "blas_core", kr_blas_prepare());
    kr_bench_record_text(record, "blas_warning", kr_blas_warning());
    json_object_object_add(record, "repeat", json_object_new_int64(s->repeat));
    json_object_object_add(record, "rows", rows);
    return record;
}

json_object *kr_bench_record_row(json_object *record, const char *name, const char *unit, kr_bench_time t) {
    json_object *row = json_object_new_object(), *rows;
    kr_bench_record_text(row, "name", name);
    kr_bench_record_text(row, "unit", unit);
    kr_bench_record_real(row, "median", t.median);
    kr_bench_record_real(row, "p10", t.p10);
    kr_bench_record_real(row, "p90", t.p90);
    if (json_object_object_get_ex(record, "rows", &rows)) json_object_array_add(rows, row);
    return row;
}
