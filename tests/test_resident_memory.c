/// Budgets of memory on the command line: what is announced, what is chosen, and that nothing but memory changes.
#include "program.h"
#include "tests/check.h"

#include <json-c/json.h>

TestSuite(resident_memory, .init = enter, .fini = leave);

static double number(struct json_object *o, const char *key) {
    struct json_object *v;
    cr_assert(json_object_object_get_ex(o, key, &v), "no \"%s\"", key);
    return json_object_get_double(v);
}

#define GRAPH "graph --model mamba1-1m --batch-size 2 --seq-len 64 --emit stats "

/// The curve as JSON: bytes of its points. Gives how many there are; *chosen is the one that is marked.
static int read_curve(double *bytes, int room, int *chosen) {
    struct json_object *o = json_tokener_parse(output), *curve, *stats, *mark;
    cr_assert_not_null(o, "no JSON: %s", output);
    cr_assert(json_object_object_get_ex(o, "curve", &curve) && json_object_object_get_ex(o, "stats", &stats));
    const int count = (int)json_object_array_length(curve);
    double seconds = 0;
    cr_assert_leq(count, room);
    *chosen = -1;
    for (int k = 0; k < count; k++) {
        struct json_object *p = json_object_array_get_idx(curve, (size_t)k);
        bytes[k] = number(p, "memory");
        cr_expect(number(p, "seconds") > seconds && (!k || bytes[k] < bytes[k - 1]), "point %d in %s", k, output);
        cr_expect_eq(number(p, "recomputed") > 0, k > 0);
        seconds = number(p, "seconds");
        cr_assert(json_object_object_get_ex(p, "chosen", &mark));
        if (!json_object_get_boolean(mark)) continue;
        *chosen = k;
        cr_expect_eq(number(stats, "memory"), bytes[k]);
        cr_expect_eq(number(stats, "recomputed"), number(p, "recomputed"));
    }
    json_object_put(o);
    return count;
}

Test(resident_memory, the_curve_and_the_choice) {
    double bytes[32], again[32];
    int chosen;
    cr_assert_eq(krait(GRAPH "--memory-report --json"), 0, "%s", output);
    const int count = read_curve(bytes, 32, &chosen);
    cr_expect_eq(chosen, 0);
    cr_assert_geq(count, 5);
    for (int k = 0; k < count; k += count - 1) {
        cr_assert_eq(krait(GRAPH "--memory-report --json --memory %.0f", bytes[k]), 0, "%s", output);
        read_curve(again, 32, &chosen);
        cr_expect_eq(again[chosen], bytes[k]);
    }
    cr_assert_eq(krait(GRAPH "--memory %.0f", bytes[count - 1]), 0, "%s", output);
    expect_said("recomputed");
    cr_assert_eq(krait(GRAPH "--memory-report --memory %.0f", bytes[1]), 0, "%s", output);
    expect_said("more time");
    expect_said("\n* ");
    cr_assert_eq(krait("graph --model mamba1-1m --batch-size 2 --seq-len 64 --after rematerialise --memory %.0f",
                       bytes[2]), 0, "%s", output);
    expect_said(".recomputed\"");

    cr_expect_eq(krait(GRAPH "--memory %.0f", bytes[count - 1] - 1), 2);
    expect_said("is too little: the smallest plan found needs");
    expect_said("--seq-len");
    cr_expect_eq(krait(GRAPH "--memory 3GBytes"), 2);
    expect_said("such as 2.9GB");
    cr_expect_eq(krait(GRAPH "--mode eval --memory 3GB"), 2);
    expect_said("about training");
    cr_expect_eq(krait("graph --model mamba1-1m --memory-report"), 2);
    expect_said("--emit stats");
    cr_expect_eq(krait("bench model mamba1-tiny --repeat 3 --batch-size 1 --seq-len 16 --memory 1000"), 2);
    expect_said("least found");
}

#define TRAIN "pretrain --model mamba1-1m --text-file text --batch-size 4 --seq-len 96 --steps 4 --warmup 1 " \
              "--eval-batches 1 "

/// The figure after `label` in the table of memory, in MiB.
static double announced(const char *label) {
    char unit[8] = "";
    double figure = 0;
    const char *at = strstr(output, label);
    cr_assert_not_null(at, "no '%s' in: %s", label, output);
    cr_assert_eq(sscanf(at + strlen(label), "%lf %7s", &figure, unit), 2);
    return figure * (!strcmp(unit, "GiB") ? 1024 : !strcmp(unit, "KiB") ? 1 / 1024.0 : 1);
}

static void expect_same_checkpoint(const char *a, const char *b) {
    static const char *const files[] = {"model.safetensors", "optimizer.safetensors.zst"};
    for (int k = 0; k < 2; k++) {
        char command[512];
        snprintf(command, sizeof command, "cmp '%s/latest/%s' '%s/latest/%s'", a, files[k], b, files[k]);
        cr_expect_eq(system(command), 0, "%s differs", files[k]);
    }
}

Test(resident_memory, training_in_less_gives_the_same_bits) {
    // What is announced counts the process as it stands, and the sanitizer's share differs from run to run by more than
    // can be saved here. test_rematerialise goes through the same plans in such builds.
    if (CHECK_SANITIZED) cr_skip_test("the sanitizer's own memory varies too much");
    cr_assert_eq(krait(TRAIN "--output-dir whole --memory-report"), 0, "%s", output);
    expect_said("resident at most");
    const double most = announced("expected resident"), arena = announced("  activation");
    // A fifth of what is stored at the turning point.
    cr_assert_eq(krait(TRAIN "--output-dir less --memory-report --memory %.2fMiB", most - arena / 5), 0, "%s", output);
    cr_expect_leq(announced("expected resident"), most - arena / 5 + 0.06);
    expect_said("are recomputed in the backward part");
    expect_same_checkpoint("whole", "less");
    // A run goes on with another budget, and nobody needs to be told.
    cr_assert_eq(krait(TRAIN "--output-dir parts --stop-after 2 --memory %.2fMiB", most - arena / 8), 0, "%s", output);
    cr_assert_eq(krait(TRAIN "--output-dir parts --resume"), 0, "%s", output);
    cr_expect_null(strstr(output, "settings changed"), "%s", output);
    expect_same_checkpoint("whole", "parts");
    // From krait.yaml, with micro-batches, which need another amount.
    cr_assert_eq(krait(TRAIN "--grad-accumulation 2 --dry-run --memory-report"), 0, "%s", output);
    const double budget = announced("expected resident") - announced("  activation") / 8;
    FILE *file = fopen("k.yaml", "w");
    fprintf(file, "pretrain:\n  memory: %.2fMiB\n", budget);
    fclose(file);
    cr_assert_eq(krait(TRAIN "--config k.yaml --grad-accumulation 2 --dry-run"), 0, "%s", output);
    expect_said("are recomputed in the backward part");
    cr_expect_leq(announced("expected resident"), budget + 0.06);
    cr_expect_eq(krait(TRAIN "--dry-run --memory 1MB"), 2);
    expect_said("--memory 1.0MB is too little: the smallest plan found needs");
    cr_expect_eq(krait(TRAIN "--dry-run --memory 1MQ"), 2);
    expect_said("--memory wants a size");
}
