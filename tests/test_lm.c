/// The library of language models: sequences with their own state, what is refused, and whom a training run tells.
#include "program.h"

#include "models/models.h"
#include "tools/lm/lm.h"
#include "tools/train/train.h"

TestSuite(lm, .init = enter, .fini = leave);

enum { VOCABULARY = 256 };

static kr_status train(const kr_train_host *host, int64_t steps, const char *directory_name) {
    kr_train_settings s = kr_train_defaults();
    kr_model_config m = kr_model_defaults();
    s.text_file = "text";
    s.output_dir = directory_name;
    s.steps = steps;
    s.warmup = 1;
    s.batch_size = 2;
    s.seq_len = 32;
    s.threads = 2;
    strcpy(m.name, "small");
    strcpy(m.layer, "mamba2");
    m.d_model = 32;
    m.n_layer = 2;
    m.vocab_size = VOCABULARY;
    KR_TRY(kr_settings_set(&m.keys, "headdim", "16"));
    KR_TRY(kr_settings_set(&m.keys, "d_state", "16"));
    return kr_train(&s, &m, host);
}

static kr_lm *open_trained(void) {
    kr_lm *lm;
    cr_assert_eq(train(&(kr_train_host){0}, 3, "run"), KR_OK, "%s", kr_status_message());
    cr_assert_eq(kr_lm_open("run", &(kr_lm_options){.threads = 2}, &lm), KR_OK, "%s", kr_status_message());
    return lm;
}

static void feed(kr_lm_sequence *s, const int32_t *ids, int64_t count) {
    cr_assert_eq(kr_lm_feed(s, ids, count), KR_OK, "%s", kr_status_message());
}

static kr_lm_sequence *new_sequence(kr_lm *lm) {
    kr_lm_sequence *s;
    cr_assert_eq(kr_lm_sequence_new(lm, &s), KR_OK, "%s", kr_status_message());
    return s;
}

Test(lm, sequences_that_take_turns_are_as_alone) {
    enum { SEQUENCES = 3, PIECES = 4, LENGTH = 7 };
    kr_lm *lm = open_trained();
    cr_expect_eq(kr_lm_vocabulary(lm), VOCABULARY);
    int32_t ids[SEQUENCES][PIECES][LENGTH];
    for (int k = 0; k < SEQUENCES * PIECES * LENGTH; k++)
        ids[k / LENGTH / PIECES][k / LENGTH % PIECES][k % LENGTH] = (k * k + k / LENGTH) % VOCABULARY;
    static float alone[SEQUENCES][PIECES][VOCABULARY];
    for (int s = 0; s < SEQUENCES; s++) {
        kr_lm_sequence *one = new_sequence(lm);
        cr_expect_null(kr_lm_logits(one));
        for (int p = 0; p < PIECES; p++) {
            feed(one, ids[s][p], LENGTH);
            memcpy(alone[s][p], kr_lm_logits(one), sizeof alone[s][p]);
        }
        kr_lm_sequence_free(one);
    }
    kr_lm_sequence *all[SEQUENCES];
    for (int s = 0; s < SEQUENCES; s++) all[s] = new_sequence(lm);
    for (int p = 0; p < PIECES; p++)
        for (int s = SEQUENCES - 1; s >= 0; s--) {
            feed(all[s], ids[s][p], LENGTH);
            cr_expect_arr_eq(kr_lm_logits(all[s]), alone[s][p], sizeof alone[s][p], "sequence %d, piece %d", s, p);
            cr_expect_eq(kr_lm_position(all[s]), (p + 1) * LENGTH);
        }
    for (int s = 0; s < SEQUENCES; s++) kr_lm_sequence_free(all[s]);
    kr_lm_close(lm);
}

Test(lm, a_choice_repeats_from_its_seed) {
    kr_lm *lm = open_trained();
    const int32_t prompt[] = {'l', 'i', 'n', 'e'};
    int32_t chosen[3][20];
    for (int k = 0; k < 3; k++) {
        const kr_lm_sampling how = {.temperature = 1.5, .top_p = 1, .seed = k < 2 ? 5 : 6};
        kr_lm_sequence *s = new_sequence(lm);
        cr_expect_eq(kr_lm_sample(s, &how, 0), -1);
        feed(s, prompt, 4);
        for (int i = 0; i < 20; i++) chosen[k][i] = kr_lm_sample(s, &how, 100);
        for (int i = 0; i < 20; i++) cr_expect(chosen[k][i] >= 0 && chosen[k][i] < 100);
        kr_lm_sequence_free(s);
    }
    cr_expect_arr_eq(chosen[0], chosen[1], sizeof chosen[0]);
    cr_expect_arr_neq(chosen[0], chosen[2], sizeof chosen[0]);
    kr_lm_close(lm);
}

Test(lm, what_is_refused) {
    kr_lm *lm = open_trained(), *none;
    kr_lm_sequence *s = new_sequence(lm);
    const int32_t wrong[] = {1, VOCABULARY};
    cr_expect_eq(kr_lm_feed(s, wrong, 2), KR_BAD_ARGUMENT);
    cr_expect(strstr(kr_status_message(), "token 1 is 256"), "%s", kr_status_message());
    cr_expect_eq(kr_lm_position(s), 0);
    kr_lm_sequence_free(s);
    kr_lm_close(lm);
    cr_expect_eq(kr_lm_open("nowhere", NULL, &none), KR_BAD_ARGUMENT);
    cr_expect_null(none);
    cr_expect_eq(kr_lm_open("run", &(kr_lm_options){.device = "abacus"}, &none), KR_UNSUPPORTED);
    cr_expect(strstr(kr_status_message(), "unknown device \"abacus\""), "%s", kr_status_message());
    cr_expect_eq(kr_lm_open("run", &(kr_lm_options){.graph = "text"}, &none), KR_BAD_ARGUMENT);
}

/// Passes x on, with a state that a single token does without.
static kr_value hoarder(kr_graph *g, const kr_block_config *c, kr_value x) {
    const kr_shape shape = kr_value_shape(g, x);
    const kr_value y = kr_block_linear(g, c, "only", x, c->d_model, false, 1);
    if (shape.dim[1] > 1 && c->capacity) {
        const kr_value past = kr_carry(g, "past", KR_F32, shape);
        kr_assign(g, past, y);
        return kr_add(g, y, past);
    }
    return y;
}

Test(lm, state_that_only_long_pieces_have_is_refused) {
    static const kr_block_kind kind = {.name = "hoarder", .build = hoarder};
    kr_train_settings s = kr_train_defaults();
    kr_model_config m = kr_model_defaults();
    s.text_file = "text";
    s.output_dir = "hoard";
    s.steps = 1;
    s.batch_size = s.threads = 1;
    s.seq_len = 32;
    strcpy(m.name, "hoard");
    strcpy(m.layer, "hoarder");
    m.d_model = 16;
    m.n_layer = 1;
    m.vocab_size = VOCABULARY;
    cr_assert_eq(kr_block_register(&kind), KR_OK, "%s", kr_status_message());
    cr_assert_eq(kr_train(&s, &m, &(kr_train_host){0}), KR_OK, "%s", kr_status_message());
    kr_lm *lm;
    cr_assert_eq(kr_lm_open("hoard", NULL, &lm), KR_OK, "%s", kr_status_message());
    kr_lm_sequence *one = new_sequence(lm), *two = new_sequence(lm);
    const int32_t ids[] = {1, 2, 3};
    for (int k = 0; k < 2; k++) {
        feed(one, ids, 1);
        cr_expect_eq(kr_lm_feed(one, ids, 3), KR_UNSUPPORTED, "%s", kr_status_message());
        cr_expect(strstr(kr_status_message(), "past\" when it reads 3 tokens"), "%s", kr_status_message());
        feed(two, ids, 1);
    }
    kr_lm_sequence_free(one);
    kr_lm_sequence_free(two);
    kr_lm_close(lm);
}

typedef struct watcher {
    int begun, ended, asked;
} watcher;

static void watch_steps(void *own, bool running) {
    watcher *w = own;
    if (running) w->begun++;
    else w->ended++;
}

static bool stop_after_two(void *own) { return ++((watcher *)own)->asked == 2; }

Test(lm, a_run_tells_its_host) {
    watcher w = {0};
    char *said = NULL;
    size_t bytes;
    FILE *report = open_memstream(&said, &bytes);
    const kr_train_host host = {.model_source = "a test", .report = report, .own = &w, .steps = watch_steps,
                                .stop = stop_after_two};
    cr_assert_eq(train(&host, 5, "part"), KR_OK, "%s", kr_status_message());
    fclose(report);
    cr_expect(w.begun == 1 && w.ended == 1 && w.asked == 2);
    cr_expect(strstr(said, "model    small (a test): 2 layers of mamba2"), "%s", said);
    cr_expect(strstr(said, "stopped  at step 2, saved"), "%s", said);
    free(said);
}

Test(lm, unknown_devices_on_the_command_line) {
    static const char *const lines[] = {
        "pretrain --model mamba1-1m --device abacus --text-file text --dry-run",
        "bench model mamba1-tiny --device abacus", "golden . --device abacus"};
    for (size_t k = 0; k < sizeof lines / sizeof *lines; k++) {
        cr_expect_eq(krait("%s", lines[k]), 1, "%s: %s", lines[k], output);
        expect_said("--device: unknown device \"abacus\": known is cpu");
    }
    cr_assert_eq(train(&(kr_train_host){0}, 1, "run"), KR_OK, "%s", kr_status_message());
    cr_expect_eq(krait("generate --checkpoint run --device abacus"), 1);
    expect_said("--device: unknown device \"abacus\": known is cpu");
    cr_expect_eq(krait("generate --checkpoint run --device ../cpu"), 2);
    cr_expect_eq(krait("generate --checkpoint run --device cpu --max-new-tokens 3"), 0, "%s", output);
}
