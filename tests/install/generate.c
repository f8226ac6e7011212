/// A program outside of Krait that trains a small language model, opens what was saved and lets it write, with nothing
/// but what `meson install` installs: libkrait_lm.
///     generate TEXT DIRECTORY
#include <krait/krait_lm.h>

#include <string.h>

enum { WRITTEN = 12 };

static kr_status train(const char *text, const char *directory) {
    kr_train_settings settings = kr_train_defaults();
    kr_model_config model = kr_model_defaults();
    kr_train_host host = {0}; // nobody is told
    settings.text_file = text;
    settings.output_dir = directory;
    settings.steps = 3;
    settings.warmup = 1;
    settings.batch_size = 2;
    settings.seq_len = 32;
    strcpy(model.name, "small");
    strcpy(model.layer, "mamba2");
    model.d_model = 32;
    model.n_layer = 2;
    model.vocab_size = 256;
    KR_TRY(kr_settings_set(&model.keys, "headdim", "16"));
    KR_TRY(kr_settings_set(&model.keys, "d_state", "16"));
    return kr_train(&settings, &model, &host);
}

static kr_status feed_text(kr_lm_sequence *s, const char *text) {
    for (; *text; text++) {
        int32_t token = (unsigned char)*text;
        KR_TRY(kr_lm_feed(s, &token, 1));
    }
    return KR_OK;
}

/// Two texts that take turns, each with its own state, become what each becomes alone.
static kr_status write_both(kr_lm *lm, kr_lm_sequence *s[3], int32_t ids[3][WRITTEN]) {
    kr_lm_sampling how = {0.8, 40, 0.95, 7};
    int k, i;
    for (k = 0; k < 3; k++) KR_TRY(kr_lm_sequence_new(lm, &s[k]));
    KR_TRY(feed_text(s[0], "one text"));
    KR_TRY(feed_text(s[1], "another text"));
    for (i = 0; i < WRITTEN; i++)
        for (k = 0; k < 2; k++) {
            ids[k][i] = kr_lm_sample(s[k], &how, 0);
            KR_TRY(kr_lm_feed(s[k], &ids[k][i], 1));
        }
    KR_TRY(feed_text(s[2], "one text"));
    for (i = 0; i < WRITTEN; i++) {
        ids[2][i] = kr_lm_sample(s[2], &how, 0);
        KR_TRY(kr_lm_feed(s[2], &ids[2][i], 1));
    }
    return KR_OK;
}

int main(int argc, char **argv) {
    kr_lm *lm = 0;
    kr_lm_sequence *s[3] = {0, 0, 0};
    int32_t ids[3][WRITTEN];
    int k, same = 0;
    if (argc != 3) return 2;
    kr_status status = train(argv[1], argv[2]);
    if (status == KR_OK) status = kr_lm_open(argv[2], 0, &lm);
    if (status == KR_OK) status = write_both(lm, s, ids);
    if (status != KR_OK)
        fprintf(stderr, "%s: %s (%s)\n", kr_status_name(status), kr_status_message(), kr_status_place());
    if (status == KR_OK) {
        same = !memcmp(ids[0], ids[2], sizeof ids[0]) && kr_lm_position(s[2]) == 8 + WRITTEN && kr_lm_logits(s[2]);
        printf("%d tokens written by each, position %d\n", WRITTEN, (int)kr_lm_position(s[2]));
    }
    for (k = 0; k < 3; k++) kr_lm_sequence_free(s[k]);
    kr_lm_close(lm);
    return same ? 0 : 1;
}
