/// krait bench: what its records hold, how two are compared, and the roofs that speeds are held against. No test here
/// looks at how long anything takes.
#include "program.h"
#include "tools/bench/bench.h"

#include <json-c/json.h>
#include <math.h>

// Comparison ------------------------------------------------------------------------------------------------------

Test(bench, percentiles_of_few) {
    double one[] = {3}, three[] = {3, 1, 2}, ten[] = {9, 8, 7, 6, 5, 4, 3, 2, 1, 0};
    kr_bench_time t = kr_bench_percentiles(one, 1);
    cr_expect(t.median == 3 && t.p10 == 3 && t.p90 == 3);
    t = kr_bench_percentiles(three, 3);
    cr_expect(t.median == 2 && t.p10 == 1 && t.p90 == 3);
    t = kr_bench_percentiles(ten, 10);
    cr_expect(t.median == 4.5 && t.p10 == 1 && t.p90 == 8);
}

Test(bench, verdicts) {
    const kr_bench_time before = {10, 9, 11};
    static const struct {
        kr_bench_time now;
        kr_bench_verdict of_seconds;
    } cases[] = {
        {{10, 9, 11}, KR_BENCH_WITHIN},   {{8, 7, 9}, KR_BENCH_FASTER},    {{13, 12, 14}, KR_BENCH_SLOWER},
        {{8, 7, 10.5}, KR_BENCH_WITHIN},  // the median of before may be one of now's
        {{9.5, 9.4, 9.6}, KR_BENCH_WITHIN}, // and the other way round
        {{12, 9.5, 14}, KR_BENCH_WITHIN}, {{9, 8, 9.5}, KR_BENCH_WITHIN}, // on the edge is inside
    };
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        const kr_bench_verdict rate = cases[k].of_seconds == KR_BENCH_FASTER   ? KR_BENCH_SLOWER
                                      : cases[k].of_seconds == KR_BENCH_SLOWER ? KR_BENCH_FASTER
                                                                               : KR_BENCH_WITHIN;
        cr_expect_eq(kr_bench_judge(before, cases[k].now, true), cases[k].of_seconds, "case %zu in seconds", k);
        cr_expect_eq(kr_bench_judge(before, cases[k].now, false), rate, "case %zu as a rate", k);
    }
}

static const char *write_file(const char *text) {
    static char path[64];
    snprintf(path, sizeof path, "/tmp/krait-bench-%d.json", (int)getpid());
    FILE *to = fopen(path, "w");
    cr_assert(to && fputs(text, to) >= 0 && fclose(to) == 0);
    return path;
}

#define HEAD "{\"krait_bench\": 1, \"command\": \"op\", \"threads\": 1, \"rows\": ["

Test(bench, foreign_files_are_refused) {
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"", "no JSON"},
        {"{\"rows\": [", "no JSON"},
        {"[1, 2]", "no record of krait bench"},
        {"{\"command\": \"op\", \"rows\": []}", "no record of krait bench"},
        {"{\"krait_bench\": 1, \"rows\": []}", "no record of krait bench"},
        {"{\"krait_bench\": 1, \"command\": \"op\", \"rows\": 5}", "no record of krait bench"},
        {"{\"krait_bench\": 2, \"command\": \"op\", \"rows\": []}", "another version of krait bench (2, want 1)"},
        {"{\"krait_bench\": 1, \"command\": \"model\", \"rows\": []}", "krait bench model, want one of krait bench op"},
        {HEAD "7]}", "row 0"},
        {HEAD "{\"name\": \"a\", \"unit\": \"s\", \"median\": 1, \"p10\": 1, \"p90\": 1}, {\"name\": \"b\"}]}",
         "row 1"},
        {HEAD "{\"name\": \"a\", \"unit\": \"s\", \"median\": 1, \"p10\": null, \"p90\": 1}]}", "row 0"},
        {HEAD "{\"name\": \"a\", \"unit\": \"s\", \"median\": \"1\", \"p10\": 1, \"p90\": 1}]}", "row 0"},
    };
    struct json_object *o;
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        const char *path = write_file(cases[k].text);
        cr_expect_eq(kr_bench_compare_read(path, "op", &o), KR_BAD_FILE, "%s", cases[k].text);
        cr_expect_null(o);
        cr_expect(strstr(kr_status_message(), cases[k].message) && strstr(kr_status_message(), path), "%s: %s",
                  cases[k].text, kr_status_message());
        remove(path);
    }
    cr_expect_eq(kr_bench_compare_read("/nonexistent.json", "op", &o), KR_IO);
    cr_expect_eq(kr_bench_compare_read(NULL, "op", &o), KR_OK);
    cr_expect_null(o);
}

static struct json_object *record(double rms, double matmul, double rate, int threads) {
    const kr_bench_settings s = {.threads = threads, .repeat = 20};
    struct json_object *o = kr_bench_record(&s, "op");
    cr_assert_not_null(o);
    kr_bench_record_row(o, "rms_norm", "s", (kr_bench_time){rms, rms * 0.9, rms * 1.1});
    kr_bench_record_row(o, "matmul", "s", (kr_bench_time){matmul, matmul * 0.9, matmul * 1.1});
    kr_bench_record_row(o, "read L1", "B/s", (kr_bench_time){rate, rate * 0.9, rate * 1.1});
    return o;
}

static struct json_object *child(struct json_object *o, const char *key) {
    struct json_object *v;
    cr_assert(json_object_object_get_ex(o, key, &v), "no \"%s\" in %s", key, json_object_to_json_string(o));
    return v;
}

static double number(struct json_object *o, const char *key) { return json_object_get_double(child(o, key)); }
static const char *text(struct json_object *o, const char *key) {
    const char *t = json_object_get_string(child(o, key));
    return t ? t : "";
}

Test(bench, compares_row_by_row) {
    struct json_object *before = record(1e-3, 2e-3, 1e9, 2), *now = record(0.5e-3, 2.05e-3, 2e9, 1);
    kr_bench_record_row(now, "new", "s", (kr_bench_time){1, 1, 1});
    cr_assert_eq(kr_bench_compare(before, now, true, NULL), KR_OK, "%s", kr_status_message());
    struct json_object *c = child(now, "comparison"), *rows = child(c, "rows"), *other = child(c, "different");
    cr_assert_eq(json_object_array_length(rows), 3, "a row that is new has nothing to be compared with");
    static const char *const verdicts[] = {"faster", "within the spread", "faster"};
    static const double speeds[] = {2, 2 / 2.05, 2};
    for (size_t k = 0; k < 3; k++) {
        struct json_object *row = json_object_array_get_idx(rows, k);
        cr_expect_str_eq(text(row, "verdict"), verdicts[k], "%s", text(row, "name"));
        cr_expect(fabs(number(row, "speed") - speeds[k]) < 1e-5, "%s", text(row, "name"));
    }
    cr_assert_eq(json_object_array_length(other), 1);
    cr_expect_str_eq(json_object_get_string(json_object_array_get_idx(other, 0)), "threads");

    char *printed = NULL;
    size_t bytes;
    FILE *to = open_memstream(&printed, &bytes);
    cr_assert_eq(kr_bench_compare(now, before, false, to), KR_OK);
    fclose(to);
    cr_expect(strstr(printed, "another threads: 1 then, 2 now") && strstr(printed, "slower") &&
              strstr(printed, "within the spread"), "%s", printed);
    free(printed);
    json_object_put(before);
    json_object_put(now);
}

Test(bench, numbers_that_json_lacks) {
    struct json_object *o = json_object_new_object();
    kr_bench_record_real(o, "x", NAN);
    kr_bench_record_real(o, "y", INFINITY);
    kr_bench_record_real(o, "z", 0.25);
    cr_expect_str_eq(json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN), "{\"x\":null,\"y\":null,\"z\":0.25}");
    json_object_put(o);
}

// Roofs -----------------------------------------------------------------------------------------------------------

/// A machine of round numbers: 100 GFLOP/s; 100, 50, 20 and 10 GB/s; writes at half the speed of reads.
static kr_bench_limits machine(int threads) {
    kr_bench_limits l = {.threads = threads, .level_bytes = {1000, 10000, 100000, SIZE_MAX}};
    l.flops[KR_ISA_BASE] = 100e9;
    static const double speed[] = {100e9, 50e9, 20e9, 10e9};
    for (int k = 0; k < KR_BENCH_LEVELS; k++) {
        l.bandwidth[KR_BENCH_READ][k] = speed[k];
        l.bandwidth[KR_BENCH_TRIAD][k] = speed[k] * 3 / 4; // 2 at 1 and 1 at 1/2
        l.bandwidth[KR_BENCH_FILL][k] = speed[k] / 2;
    }
    return l;
}

static void expect_floor(int threads, kr_bench_work work, double wanted, const char *roof) {
    const kr_bench_limits l = machine(threads);
    const char *of;
    const double got = kr_bench_floor(&l, KR_ISA_BASE, &work, &of);
    cr_expect(fabs(got - wanted) <= 1e-9 * wanted, "%s: want %g, got %g", roof, wanted, got);
    cr_expect_str_eq(of, roof);
}

Test(bench, floor_is_the_nearest_roof) {
    expect_floor(1, (kr_bench_work){.flops = 1e9, .read = 100, .set = 100}, 1e-2, "arithmetic");
    expect_floor(1, (kr_bench_work){.flops = 1e9, .lane_ops = 1e9, .read = 100, .set = 100}, 2e-2, "instructions");
    expect_floor(1, (kr_bench_work){.read = 1e9, .set = 1000}, 1e-2, "L1");
    expect_floor(1, (kr_bench_work){.read = 1e9, .set = 1e10}, 1e-1, "DRAM");
    expect_floor(1, (kr_bench_work){.written = 1e9, .set = 1000}, 2e-2, "L1");
    // between the measured mixtures: a write costs twice a read at every share
    expect_floor(1, (kr_bench_work){.read = 3e9, .written = 1e9, .set = 1000}, 5e-2, "L1");
    expect_floor(1, (kr_bench_work){.read = 1e9, .written = 1e9, .set = 1000}, 3e-2, "L1");
    expect_floor(2, (kr_bench_work){.read = 1e9, .set = 2000}, 1e-2, "L1"); // each thread has half of it in its own
    expect_floor(1, (kr_bench_work){0}, 0, "L1");
}

/// Products may go through bf16 tiles, six for one in f32, where the machine has them and that is faster.
Test(bench, products_have_the_roof_of_the_faster_way) {
    kr_bench_limits l = machine(1);
    l.flops[KR_ISA_AVX512] = 100e9;
    kr_bench_work w = {.flops = 3e9, .tile_products = 6};
    cr_expect_float_eq(kr_bench_floor(&l, KR_ISA_AVX512, &w, NULL), 3e-2, 1e-9);
    l.amx = 1800e9;
    cr_expect_float_eq(kr_bench_floor(&l, KR_ISA_AVX512, &w, NULL), 1e-2, 1e-9);
    cr_expect_float_eq(kr_bench_floor(&l, KR_ISA_BASE, &w, NULL), 3e-2, 1e-9);
    w.tile_products = 1;
    cr_expect_float_eq(kr_bench_floor(&l, KR_ISA_AVX512, &w, NULL), 3e9 / 1800e9, 1e-9);
    w.tile_products = 0;
    cr_expect_float_eq(kr_bench_floor(&l, KR_ISA_AVX512, &w, NULL), 3e-2, 1e-9);
    kr_operand out = {.slot = -1};
    kr_step step = {.op = "matmul", .outputs = 1, .out = &out};
    cr_expect_eq(kr_bench_step_work(&step).tile_products, 6);
    step.attrs.i[3] = KR_PRECISION_BF16;
    cr_expect_eq(kr_bench_step_work(&step).tile_products, 1);
    step.op = "rms_norm";
    cr_expect_eq(kr_bench_step_work(&step).tile_products, 0);
}

Test(bench, floor_grows_with_the_data) {
    const kr_bench_limits l = machine(1);
    double before = 0;
    for (double set = 100; set < 1e8; set *= 1.07) {
        const kr_bench_work work = {.read = 1e9, .set = set};
        const double floor = kr_bench_floor(&l, KR_ISA_BASE, &work, NULL);
        cr_expect(floor >= before * (1 - 1e-12), "%g bytes: %g after %g", set, floor, before);
        cr_expect(floor >= 1e-2 * (1 - 1e-12) && floor <= 1e-1 * (1 + 1e-12), "%g bytes: %g", set, floor);
        before = floor;
    }
}

Test(bench, work_of_steps) {
    kr_operand in[12], out[3];
    for (int k = 0; k < 12; k++) in[k] = (kr_operand){.slot = -1};
    in[0] = (kr_operand){0, 0, KR_F32, KR_SHAPE(2, 5, 6), {0}}; // u
    in[2] = (kr_operand){0, 0, KR_F32, KR_SHAPE(6, 4), {0}};    // A
    out[0] = in[0];
    kr_step step = {.op = "selective_scan", .inputs = 12, .outputs = 1, .in = in, .out = out, .flops = 7, .bytes = 600};
    cr_expect_eq(kr_bench_states(&step), 2 * 5 * 6 * 4);
    kr_bench_work w = kr_bench_step_work(&step);
    cr_expect(w.flops == 7 && w.written == 240 && w.read == 360 && w.set == 576, "written %g, read %g, set %g",
              w.written, w.read, w.set);
    cr_expect(w.lane_ops > 0);
    step.op = "selective_scan_grad";
    in[4] = in[2], in[2] = in[0];
    cr_expect_eq(kr_bench_states(&step), 2 * 5 * 6 * 4);
    step.op = "ssd_scan"; // x [2, 5, 6], B [2, 5, 8] of two groups
    in[3] = (kr_operand){0, 0, KR_F32, KR_SHAPE(2, 5, 8), {0}};
    step.attrs.i[0] = 2;
    cr_expect_eq(kr_bench_states(&step), 2 * 5 * 6 * 4);
    step.op = "trapezoid_scan"; // k [2, 5, 3 * 2 * 4]: 3 heads, rank 2; x [2, 5, 6]
    in[0] = (kr_operand){0, 0, KR_F32, KR_SHAPE(2, 5, 24), {0}};
    in[3] = (kr_operand){0, 0, KR_F32, KR_SHAPE(2, 5, 3), {0}};
    cr_expect_eq(kr_bench_states(&step), 2 * 5 * 6 * 4);
    step.op = "rms_norm";
    cr_expect_eq(kr_bench_states(&step), 0);
    cr_expect_eq(kr_bench_step_work(&step).lane_ops, 0);
}

Test(bench, limits_are_there) {
    kr_bench_limits l;
    kr_bench_measure(1, 1e-4, &l);
    for (kr_isa isa = KR_ISA_BASE; isa <= kr_isa_best(); isa++) cr_expect(l.flops[isa] > 0, "%s", kr_isa_name(isa));
    for (int stream = 0; stream < KR_BENCH_STREAMS; stream++)
        for (int level = 0; level < KR_BENCH_LEVELS; level++)
            cr_expect(l.bandwidth[stream][level] > 0, "%s %s", kr_bench_stream_names[stream],
                      kr_bench_level_names[level]);
}

// Commands --------------------------------------------------------------------------------------------------------

/// A line of shell that must succeed and print one JSON object.
static struct json_object *run(const char *line) {
    int status;
    char *text = shell(&status, line);
    cr_assert_eq(status, 0, "%s:\n%s", line, text);
    struct json_object *o = json_tokener_parse(text);
    cr_assert(json_object_is_type(o, json_type_object), "%s: no JSON:\n%s", line, text);
    free(text);
    return o;
}

/// What every record promises; gives its rows.
static struct json_object *expect_record(struct json_object *o, const char *command) {
    cr_expect_eq(number(o, "krait_bench"), 1);
    cr_expect_str_eq(text(o, "command"), command);
    static const char *const texts[] = {"cpu", "isa", "blas_core"};
    for (int k = 0; k < 3; k++) cr_expect(*text(o, texts[k]), "\"%s\" is empty", texts[k]);
    cr_expect(number(o, "cpus") >= 1 && number(o, "threads") >= 1 && number(o, "repeat") >= 3);
    child(o, "blas_warning");
    struct json_object *rows = child(o, "rows");
    cr_assert(json_object_array_length(rows) >= 1);
    for (size_t k = 0; k < json_object_array_length(rows); k++) {
        struct json_object *row = json_object_array_get_idx(rows, k);
        cr_expect(number(row, "p10") <= number(row, "median") && number(row, "median") <= number(row, "p90"), "%s",
                  json_object_to_json_string(row));
        cr_expect(*text(row, "name") && *text(row, "unit"));
    }
    return rows;
}

static struct json_object *find(struct json_object *rows, const char *name) {
    for (size_t k = 0; k < json_object_array_length(rows); k++) {
        struct json_object *row = json_object_array_get_idx(rows, k);
        if (!strcmp(text(row, "name"), name)) return row;
    }
    cr_assert(false, "no row \"%s\" in %s", name, json_object_to_json_string(rows));
    return NULL;
}

Test(bench, machine_tells_its_limits) {
    struct json_object *o = run("krait bench machine --isa base --threads 1 --json");
    struct json_object *rows = expect_record(o, "machine");
    static const char *const names[] = {
        "f32 multiply-adds, base, 1 thread",       "read L1, 1 thread",  "triad L2, 1 thread", "fill DRAM, 1 thread",
        "products 512 x 512 x 512, f32, 1 thread", "exp, base, 1 thread"};
    for (size_t k = 0; k < sizeof names / sizeof *names; k++) cr_expect(number(find(rows, names[k]), "best") > 0);
    json_object_put(o);
}

Test(bench, op_tells_speed_and_roof) {
    static const char *const lines[] = {
        "krait bench op rms_norm 4x33 4x33 _ 33 _ --repeat 3 --json",
        "krait bench op rms_norm_grad --repeat 3 --json",
        "krait bench op silu 0x5 --repeat 3 --json --threads 1 --isa base",
        "krait bench op embedding 7x5 i32:3x4 --repeat 3 --json",
        "krait bench op selective_scan_grad --repeat 3 --json",
    };
    for (int k = 0; k < 5; k++) {
        struct json_object *o = run(lines[k]), *row = json_object_array_get_idx(expect_record(o, "op"), 0);
        static const char *const keys[] = {"flops", "bytes", "floor_seconds", "share_of_roof"};
        for (int i = 0; i < 4; i++) cr_expect(number(row, keys[i]) >= 0, "%s: %s", lines[k], keys[i]);
        cr_expect(*text(row, "op") && *text(row, "roof"));
        child(row, "inputs");
        if (k == 4) cr_expect(number(row, "ns_per_state") > 0);
        json_object_put(o);
    }
}

Test(bench, every_op_has_a_sample) {
    struct json_object *o = run("krait bench op all --repeat 3 --json"), *rows = expect_record(o, "op");
    for (int k = 0; k < kr_op_count; k++)
        if (!(kr_ops[k]->flags & (KR_OP_SOURCE | KR_OP_VIEW))) find(rows, kr_ops[k]->name);
    json_object_put(o);
}

Test(bench, model_tells_time_memory_and_parts) {
    static const char *const lines[] = {"krait bench model mamba1-tiny --batch-size 2 --seq-len 8 --repeat 3 --json",
                                        "krait bench model mamba1-tiny --mode eval --batch-size 1 --repeat 3 --json",
                                        "krait bench model mamba1-tiny --mode prefill --repeat 3 --seq-len 9 --json"};
    static const char *const modes[] = {"train", "eval", "prefill"};
    for (int k = 0; k < 3; k++) {
        struct json_object *o = run(lines[k]), *rows = expect_record(o, "model");
        cr_expect_str_eq(text(o, "mode"), modes[k]);
        static const char *const keys[] = {"batch_size",
                                           "seq_len",
                                           "params",
                                           "seconds",
                                           "p10",
                                           "p90",
                                           "tokens_per_second",
                                           "flops_per_second",
                                           "peak_flops",
                                           "floor_seconds",
                                           "memory_planned",
                                           "memory_resident",
                                           "memory_activations"};
        for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) cr_expect(number(o, keys[i]) > 0, "%s", keys[i]);
        struct json_object *part = json_object_array_get_idx(rows, 1); // after the whole run
        cr_expect(number(part, "calls") >= 1 && number(part, "floor_seconds") >= 0 && *text(part, "op"));
        json_object_put(o);
    }
}

Test(bench, several_models_in_one_record) {
    struct json_object *o = run(
        "krait bench model mamba1-tiny tinymamba-1m --batch-size 1 --seq-len 4 --repeat 3 --json");
    struct json_object *rows = expect_record(o, "model"), *models = child(o, "models");
    cr_assert_eq(json_object_array_length(models), 2);
    cr_expect_str_eq(text(json_object_array_get_idx(models, 1), "model"), "tinymamba-1m");
    cr_expect(number(json_object_array_get_idx(models, 0), "tokens_per_second") > 0);
    find(rows, "mamba1-tiny train 1x4");
    find(rows, "tinymamba-1m train 1x4");
    json_object_put(o);
}

Test(bench, decode_tells_the_weights_that_stream) {
    struct json_object *o = run("krait bench decode mamba1-tiny --repeat 3 --json");
    struct json_object *row = find(expect_record(o, "decode"), "mamba1-tiny decode, batch 1");
    cr_expect(number(row, "tokens_per_second") > 0 && number(row, "dram_bytes_per_second") > 0);
    // 2 layers of d_model 32: the embedding is the head too and streams as a whole, 256 x 32 floats and more
    cr_expect(number(row, "weight_bytes") >= 4 * 256 * 32 && number(row, "weight_bytes") < 4 * 40000, "%g",
              number(row, "weight_bytes"));
    cr_expect(number(row, "state_bytes") == 2 * 4 * 2 * (64 * 16 + 64 * 3), "%g", number(row, "state_bytes"));
    json_object_put(o);
    o = run("krait bench decode mamba1-tiny --batch-size 3 --repeat 3 --json");
    find(expect_record(o, "decode"), "mamba1-tiny decode, batch 3");
    json_object_put(o);
}

Test(bench, dump_is_weights_batch_and_loss) {
    char path[64], line[256];
    snprintf(path, sizeof path, "/tmp/krait-bench-%d.safetensors", (int)getpid());
    snprintf(line, sizeof line, "krait bench model mamba1-tiny --batch-size 3 --seq-len 7 --repeat 3 --json --dump %s",
             path);
    json_object_put(run(line));
    kr_tensor_file *file;
    cr_assert_eq(kr_tensors_open(path, &file), KR_OK, "%s", kr_status_message());
    const kr_tensor_entry *tokens = kr_tensors_find(file, "batch.tokens"),
                          *targets = kr_tensors_find(file, "batch.targets");
    const kr_tensor_entry *loss = kr_tensors_find(file, "loss"),
                          *norm = kr_tensors_find(file, "backbone.norm_f.weight");
    cr_assert(tokens && targets && loss && norm);
    double ids[21], next[21], value, ones[32];
    cr_assert_eq(kr_tensors_to_f64(tokens, ids, 21), KR_OK);
    cr_assert_eq(kr_tensors_to_f64(targets, next, 21), KR_OK);
    for (int k = 0; k < 20; k++) cr_expect_eq(next[k], ids[k + 1]);
    cr_assert_eq(kr_tensors_to_f64(loss, &value, 1), KR_OK);
    cr_expect(fabs(value - log(256)) < 0.5, "a model that knows nothing has a loss near log 256, not %g", value);
    cr_assert_eq(kr_tensors_to_f64(norm, ones, 32), KR_OK);
    for (int k = 0; k < 32; k++) cr_expect_eq(ones[k], 1, "the weights are those before the first step");
    kr_tensors_close(file);
    remove(path);
    refuse(2, "krait bench model mamba1-tiny --mode logits --repeat 3 --dump /tmp/krait-never", "has no loss");
}

Test(bench, compares_with_an_earlier_run) {
    struct json_object *o = run("f=krait-bench-test-$$.json; krait bench op add 3x5 3x5 --repeat 3 --json > $f && "
                                "krait bench op add 3x5 3x5 --repeat 3 --json --compare $f; e=$?; rm -f $f; exit $e");
    struct json_object *row = find(child(child(o, "comparison"), "rows"), "add 3x5 3x5");
    cr_expect(number(row, "speed") > 0 && number(row, "before") > 0 && number(row, "now") > 0);
    const char *verdict = text(row, "verdict");
    cr_expect(!strcmp(verdict, "faster") || !strcmp(verdict, "slower") || !strcmp(verdict, "within the spread"), "%s",
              verdict);
    json_object_put(o);
    refuse(0, "f=krait-bench-test-$$.json; krait bench op add 3x5 3x5 --repeat 3 --json > $f && "
              "krait bench op mul 3x5 3x5 --repeat 3 --compare $f; e=$?; rm -f $f; exit $e",
           "is not in the earlier run");
}

Test(bench, refuses) {
    refuse(2, "krait bench", "machine, op NAME, model NAME or decode NAME is missing");
    refuse(2, "krait bench modle", "did you mean 'model'");
    refuse(2, "krait bench op", "which op?");
    refuse(2, "krait bench op rmsnorm", "did you mean 'rms_norm'");
    refuse(2, "krait bench op slice", "runs no kernel");
    refuse(2, "krait bench op rms_norm 4x", "'4x' is not a shape");
    refuse(2, "krait bench op rms_norm 4y5", "'4y5' is not a shape");
    refuse(2, "krait bench op rms_norm 4x33 4x33 _ 34 _", "weight is [34], want [D] = [33]");
    refuse(2, "krait bench op rms_norm --attributes epsilon=1", "has no attribute 'epsilon'");
    refuse(2, "krait bench op rms_norm --sample large", "has no sample 'large'");
    refuse(2, "krait bench op all --sample large", "default samples");
    refuse(2, "krait bench op all 4x5", "unexpected '4x5'");
    refuse(2, "krait bench op adamw --repeat 1", "--repeat");
    refuse(2, "krait bench model none", "unknown model 'none'");
    refuse(2, "krait bench decode", "which model?");
    refuse(2, "krait bench model mamba1-tiny mamba2-1m --dump /tmp/krait-never", "give one name");
    refuse(2, "krait bench decode mamba1-tiny --seq-len 4", "one token at a time");
    refuse(1, "krait bench op add --compare /dev/null", "/dev/null: no JSON");
    refuse(1, "krait bench model mamba1-tiny --compare /nonexistent.json", "/nonexistent.json");
}
