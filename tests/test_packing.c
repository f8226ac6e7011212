/// Documents packed into rows, and rows that go on where the ones before ended: a language model must not be able to
/// tell a packed row from separate ones, nor a text read in pieces from the text in one piece.
#include "check.h"
#include "compiler/compiler.h"
#include "models/models.h"
#include "tools/config/block_file.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { VOCABULARY = 11, LONGEST = 64 };

static kr_model_config model_of(const kr_block_kind *kind) {
    kr_model_config m = kr_model_defaults();
    m.d_model = 12;
    m.n_layer = 2;
    m.vocab_size = VOCABULARY;
    check_ok(kr_settings_set(&m.keys, "d_state", "6"), "d_state");
    check_ok(kr_settings_set(&m.keys, "headdim", "8"), "headdim");
    check_ok(kr_settings_set(&m.keys, "rope_fraction", "1"), "rope_fraction");
    snprintf(m.layer, sizeof m.layer, "%s", kind->name);
    return m;
}

/// Every block that Krait brings, and the variants of examples/blocks, one after another; null at the end.
static const kr_block_kind *next_kind(void) {
    static const char *const variants[] = {"mingru", "rglru", "retnet"};
    static int index = -1;
    for (int k = 0; k < 3 && index < 0; k++) {
        char path[512];
        snprintf(path, sizeof path, "%s/%s.so", getenv("KRAIT_VARIANTS"), variants[k]);
        check_ok(kr_block_load(path), path);
    }
    const kr_block_kind *kind = kr_block_at(++index);
    if (!kind) index = -1;
    return kind;
}

/// One run of one plan: the loss, and with gradients those of all parameters one after another.
typedef struct result {
    float loss, *grads;
    int64_t count;
} result;

static result run(const kr_model_config *m, int64_t length, const int32_t *tokens, const int32_t *targets,
                  const int32_t *reset) {
    kr_graph *g;
    kr_plan *plan;
    kr_device *device;
    kr_session *session;
    check_ok(kr_model_build(m, KR_MODE_TRAIN, 1, length, &g), "build");
    check_ok(kr_compile(g, &(kr_compile_options){.goal = KR_GOAL_GRADIENTS, .target = check_device(NULL)}, &plan, NULL), "compile");
    kr_graph_free(g);
    check_device(&device);
    check_ok(kr_session_open(device, 2, &session), "session");
    check_ok(kr_session_add(session, plan), "add");
    check_ok(kr_session_init(session, 7), "init");
    const size_t bytes = (size_t)length * 4;
    result r = {0};
    kr_binding bindings[256] = {{"tokens", (void *)(uintptr_t)tokens, bytes},
                                {"targets", (void *)(uintptr_t)targets, bytes},
                                {"loss", &r.loss, 4}};
    int count = 3;
    if (reset && kr_plan_find(plan, "reset") >= 0)
        bindings[count++] = (kr_binding){"reset", (void *)(uintptr_t)reset, bytes};
    for (int pass = 0; pass < 2; pass++) {
        int64_t at = 0;
        for (int k = 0; k < kr_plan_slots(plan); k++) {
            const kr_slot *slot = kr_plan_slot(plan, k);
            if (slot->kind != KR_SLOT_IO || strncmp(slot->name, "grad.", 5)) continue;
            if (pass) bindings[count++] = (kr_binding){slot->name, r.grads + at, slot->bytes};
            at += (int64_t)(slot->bytes / 4);
        }
        if (!pass) r.grads = calloc((size_t)at, 4);
        r.count = at;
    }
    check_ok(kr_plan_run(session, plan, bindings, count, 0), "run");
    kr_session_close(session);
    kr_device_close(device);
    kr_plan_free(plan);
    return r;
}

static void fill(int32_t *tokens, int64_t n, uint64_t stream) {
    for (int64_t k = 0; k < n; k++) tokens[k] = (int32_t)(kr_random_uniform(3, stream, (uint64_t)k) * VOCABULARY);
}

Test(packing, a_row_of_two_documents_is_two_rows) {
    static const int64_t lengths[][2] = {{5, 9}, {1, 7}, {20, 1}, {17, 33}};
    for (const kr_block_kind *kind; (kind = next_kind());)
        for (size_t c = 0; c < sizeof lengths / sizeof *lengths; c++) {
            const int64_t a = lengths[c][0], b = lengths[c][1], L = a + b;
            kr_model_config m = model_of(kind);
            int32_t tokens[LONGEST], targets[LONGEST], reset[LONGEST] = {0};
            fill(tokens, L, 1);
            fill(targets, L, 2);
            targets[a - 1] = -100; // the first token of the second document is not predicted from the first one
            reset[a] = 1;
            const int64_t counted[2] = {a - 1, b};
            result alone[2];
            alone[0] = run(&m, a, tokens, targets, NULL);
            alone[1] = run(&m, b, tokens + a, targets + a, NULL);
            m.reset_input = true;
            result packed = run(&m, L, tokens, targets, reset);
            double loss = 0, worst = 0, most = 0;
            for (int d = 0; d < 2; d++) loss += alone[d].loss * (double)counted[d] / (double)(L - 1);
            cr_expect(fabs(packed.loss - loss) < 1e-6 * (1 + fabs(loss)), "%s: loss %g, want %g", kind->name,
                      packed.loss, loss);
            cr_assert_eq(packed.count, alone[0].count);
            for (int64_t k = 0; k < packed.count; k++) {
                double want = 0;
                for (int d = 0; d < 2; d++) want += alone[d].grads[k] * (double)counted[d] / (double)(L - 1);
                worst = fmax(worst, fabs(packed.grads[k] - want));
                most = fmax(most, fabs(want));
            }
            cr_expect(worst < 5e-5 * most, "%s, %ld + %ld: gradients differ by %g of %g", kind->name, (long)a, (long)b,
                      worst, most);
            free(packed.grads);
            for (int d = 0; d < 2; d++) free(alone[d].grads);
        }
}

/// Losses of `pieces` steps of length L at rate 0 through carried state, against one row of them all.
static void check_stream(const kr_model_config *model, int64_t L, int pieces) {
    kr_model_config m = *model;
    kr_graph *g;
    kr_plan *plan[2];
    kr_device *device;
    kr_session *session;
    int32_t tokens[LONGEST], targets[LONGEST], reset[LONGEST] = {0};
    fill(tokens, LONGEST, 4);
    fill(targets, LONGEST, 5);
    const kr_compile_options train = {.goal = KR_GOAL_TRAIN, .optimizer = {0.9, 0.95, 1e-8, 0.1, 1},
                                      .target = check_device(NULL)};
    m.carry_state = m.reset_input = true;
    check_ok(kr_model_build(&m, KR_MODE_TRAIN, 1, L, &g), "build");
    check_ok(kr_compile(g, &train, &plan[0], NULL), "compile");
    kr_graph_free(g);
    check_ok(kr_model_build(model, KR_MODE_EVAL, 1, L * pieces, &g), "build");
    check_ok(kr_compile(g, &(kr_compile_options){.goal = KR_GOAL_FORWARD, .target = check_device(NULL)}, &plan[1], NULL), "compile");
    kr_graph_free(g);
    check_device(&device);
    check_ok(kr_session_open(device, 2, &session), "session");
    for (int k = 0; k < 2; k++) check_ok(kr_session_add(session, plan[k]), "add");
    check_ok(kr_session_init(session, 7), "init");
    float learning_rate = 0, loss, whole;
    double sum = 0;
    const size_t bytes = (size_t)L * 4;
    for (int k = 0; k < pieces; k++) {
        kr_binding bindings[5] = {{"tokens", tokens + k * L, bytes},
                                  {"targets", targets + k * L, bytes},
                                  {"loss", &loss, 4},
                                  {"learning_rate", &learning_rate, 4},
                                  {"reset", reset, bytes}};
        check_ok(kr_plan_run(session, plan[0], bindings, kr_plan_find(plan[0], "reset") >= 0 ? 5 : 4, 0), "step");
        sum += loss / pieces;
    }
    check_ok(kr_plan_run(session, plan[1], (kr_binding[]){{"tokens", tokens, bytes * (size_t)pieces},
        {"targets", targets, bytes * (size_t)pieces}, {"loss", &whole, 4}}, 3, 0), "whole");
    cr_expect(fabs(sum - whole) < 2e-6 * (1 + fabs(whole)), "%s in %d pieces of %ld: %.8g, in one %.8g", m.layer,
              pieces, (long)L, sum, whole);
    // A reset at the start of a row makes it the first one again.
    float first, again;
    kr_binding bindings[5] = {{"tokens", tokens, bytes}, {"targets", targets, bytes}, {"loss", &first, 4},
                              {"learning_rate", &learning_rate, 4}, {"reset", reset, bytes}};
    const int count = kr_plan_find(plan[0], "reset") >= 0 ? 5 : 4;
    check_ok(kr_session_reset_carries(session), "reset");
    check_ok(kr_plan_run(session, plan[0], bindings, count, 0), "step");
    bindings[2].data = &again;
    reset[0] = 1;
    check_ok(kr_plan_run(session, plan[0], bindings, count, 0), "step");
    cr_expect(fabsf(first - again) < 1e-6f * (1 + first), "%s: %.8g after a reset, %.8g at first", m.layer, again,
              first);
    kr_session_close(session);
    kr_device_close(device);
    for (int k = 0; k < 2; k++) kr_plan_free(plan[k]);
}

Test(packing, a_stream_in_pieces_is_one_row) {
    for (const kr_block_kind *kind; (kind = next_kind());) {
        const kr_model_config m = model_of(kind);
        if (!strcmp(kind->name, "attention")) continue; // sees its own row and no more
        check_stream(&m, 8, 8);
        check_stream(&m, 1, 5);
        check_stream(&m, 19, 3);
    }
}
