/// Text as data: which rows a step gets, what is held out, and files that cannot be used. Also sampling and metrics.
#include "tools/cli/byte_stream.h"
#include "tools/lm/sample.h"
#include "tools/train/data.h"
#include "tools/train/events.h"
#include "tools/train/metrics.h"

#include <criterion/criterion.h>
#include <json-c/json.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zstd.h>

enum { BYTES = 5003, LENGTH = 16 };

/// Bytes whose value says where they stand.
static void fill(uint8_t *bytes, size_t n) {
    for (size_t k = 0; k < n; k++) bytes[k] = (uint8_t)(k * 7 + k / 256);
}

static const char *scratch_directory(void) {
    static char path[64];
    strcpy(path, "/tmp/krait-test-XXXXXX");
    cr_assert(mkdtemp(path));
    return path;
}

static void remove_directory(const char *path) {
    char command[128];
    snprintf(command, sizeof command, "rm -r '%s'", path);
    cr_expect_eq(system(command), 0);
}

Test(data, rows_depend_on_seed_and_number_alone) {
    uint8_t bytes[BYTES];
    int32_t a[LENGTH], b[LENGTH], c[LENGTH], d[LENGTH];
    kr_data *x, *y;
    fill(bytes, BYTES);
    cr_assert_eq(kr_data_from(bytes, BYTES, LENGTH, "text", &x), KR_OK, "%s", kr_status_message());
    cr_assert_eq(kr_data_from(bytes, BYTES, LENGTH, "text", &y), KR_OK);
    for (int64_t row = 0; row < 50; row++) kr_data_row(x, 1, row, a, b, NULL);
    for (int64_t row = 0; row < 500; row += 7) {
        kr_data_row(x, 1, row, a, b, NULL);
        kr_data_row(y, 1, row, c, d, NULL);
        cr_assert_arr_eq(a, c, sizeof a);
        cr_assert_arr_eq(b, d, sizeof b);
        cr_assert_arr_eq(a + 1, b, sizeof a - sizeof *a, "targets are the next bytes");
    }
    kr_data_row(x, 1, 0, a, b, NULL);
    kr_data_row(x, 2, 0, c, d, NULL);
    cr_assert(memcmp(a, c, sizeof a), "another seed gives another row");
    kr_data_close(x);
    kr_data_close(y);
}

Test(data, rows_reach_all_of_the_training_part_and_nothing_else) {
    uint8_t bytes[600];
    bool first = false, last = false;
    kr_data *x;
    memset(bytes, 1, sizeof bytes);
    cr_assert_eq(kr_data_from(bytes, sizeof bytes, LENGTH, "text", &x), KR_OK);
    const int64_t train = kr_data_train_bytes(x);
    cr_assert_eq(train, 540);
    cr_assert_eq(kr_data_held_out_bytes(x), 60);
    bytes[0] = 2;
    bytes[train - 1] = 3;
    memset(bytes + train, 9, 60);
    for (int64_t row = 0; row < 20000; row++) {
        int32_t a[LENGTH], b[LENGTH];
        kr_data_row(x, 5, row, a, b, NULL);
        first |= a[0] == 2;
        last |= b[LENGTH - 1] == 3;
        cr_assert_neq(b[LENGTH - 1], 9, "row %ld holds text that is held out", (long)row);
    }
    cr_assert(first && last);
    kr_data_close(x);
}

Test(data, windows_cover_the_held_out_part_once) {
    uint8_t bytes[BYTES];
    int32_t tokens[LENGTH], targets[LENGTH];
    kr_data *x;
    fill(bytes, BYTES);
    cr_assert_eq(kr_data_from(bytes, BYTES, LENGTH, "text", &x), KR_OK);
    const int64_t windows = kr_data_windows(x), train = kr_data_train_bytes(x);
    cr_assert_eq(windows, (500 - 1) / LENGTH);
    for (int64_t w = 0; w < windows; w++) {
        kr_data_window(x, w, tokens, targets, NULL);
        for (int k = 0; k < LENGTH; k++) {
            cr_assert_eq(tokens[k], bytes[train + w * LENGTH + k]);
            cr_assert_eq(targets[k], bytes[train + w * LENGTH + k + 1]);
        }
    }
    kr_data_window(x, windows, tokens, targets, NULL);
    for (int k = 0; k < LENGTH; k++) cr_assert_eq(targets[k], -100, "beyond the end everything is ignored");
    kr_data_close(x);
}

Test(data, too_short_says_how_long_it_must_be) {
    uint8_t bytes[170] = {0};
    kr_data *x;
    cr_assert_eq(kr_data_from(bytes, 170, LENGTH, "text", &x), KR_OK);
    kr_data_close(x);
    for (size_t n = 0; n < 170; n++) {
        cr_assert_eq(kr_data_from(bytes, n, LENGTH, "short.txt", &x), KR_BAD_ARGUMENT);
        cr_assert(strstr(kr_status_message(), "short.txt") && strstr(kr_status_message(), "at least 170"), "%s",
                  kr_status_message());
    }
}

Test(data, files_plain_and_packed_are_the_same) {
    const char *directory = scratch_directory();
    uint8_t bytes[BYTES], packed[2 * BYTES];
    char plain[128], zst[128], two[128];
    int32_t a[LENGTH], b[LENGTH], c[LENGTH];
    fill(bytes, BYTES);
    const size_t n = ZSTD_compress(packed, sizeof packed, bytes, BYTES, 3);
    cr_assert_not(ZSTD_isError(n));
    snprintf(plain, sizeof plain, "%s/a.txt", directory);
    snprintf(zst, sizeof zst, "%s/a.zst", directory);
    snprintf(two, sizeof two, "%s/two.zst", directory);
    cr_assert_eq(kr_file_write(plain, bytes, BYTES), KR_OK);
    cr_assert_eq(kr_file_write(zst, packed, n), KR_OK);
    kr_data *x, *y;
    cr_assert_eq(kr_data_open(plain, LENGTH, &x), KR_OK, "%s", kr_status_message());
    cr_assert_eq(kr_data_open(zst, LENGTH, &y), KR_OK, "%s", kr_status_message());
    cr_assert_eq(kr_data_fingerprint(x), kr_data_fingerprint(y));
    kr_data_row(x, 3, 99, a, b, NULL);
    kr_data_row(y, 3, 99, c, b, NULL);
    cr_assert_arr_eq(a, c, sizeof a);
    kr_data_close(y);

    // Frames one after another are one text, as for zstd itself.
    uint8_t frames[2 * sizeof packed];
    const size_t first = ZSTD_compress(frames, sizeof packed, bytes, 2000, 3);
    const size_t second = ZSTD_compress(frames + first, sizeof packed, bytes + 2000, BYTES - 2000, 3);
    cr_assert_eq(kr_file_write(two, frames, first + second), KR_OK);
    cr_assert_eq(kr_data_open(two, LENGTH, &y), KR_OK, "%s", kr_status_message());
    cr_assert_eq(kr_data_fingerprint(x), kr_data_fingerprint(y));
    kr_data_close(x);
    kr_data_close(y);

    // Cut anywhere, it is refused.
    for (size_t cut = 0; cut < n; cut += cut < 20 || cut + 20 > n ? 1 : 37) {
        cr_assert_eq(kr_file_write(zst, packed, cut), KR_OK);
        cr_assert_eq(kr_data_open(zst, LENGTH, &y), KR_BAD_FILE, "%zu of %zu bytes were accepted", cut, n);
    }
    cr_assert_eq(kr_data_open("/no/such/file", LENGTH, &y), KR_IO);
    cr_assert_eq(kr_data_open(directory, LENGTH, &y), KR_IO);
    remove_directory(directory);
}

Test(data, fingerprints_see_changes) {
    uint8_t *bytes = calloc(1, 4 << 20);
    kr_data *x;
    uint64_t before;
    for (size_t size = 1000; size <= 4 << 20; size *= 16) {
        cr_assert_eq(kr_data_from(bytes, size, LENGTH, "t", &x), KR_OK);
        before = kr_data_fingerprint(x);
        bytes[size - 1] ^= 1;
        cr_assert_neq(kr_data_fingerprint(x), before);
        bytes[size - 1] ^= 1;
        cr_assert_eq(kr_data_fingerprint(x), before);
        kr_data_close(x);
    }
    cr_assert_eq(kr_data_from(bytes, 4 << 20, LENGTH, "t", &x), KR_OK);
    before = kr_data_fingerprint(x);
    bytes[5] = 1;
    cr_assert_neq(kr_data_fingerprint(x), before);
    kr_data_close(x);
    free(bytes);
}

// Documents ---------------------------------------------------------------------------------------------------

/// Where documents start, found naively: after each whole separator, none overlapping.
static void find_starts(const char *text, size_t n, const char *separator, bool *starts) {
    const size_t length = strlen(separator);
    memset(starts, 0, n + 1);
    for (size_t k = 0; k + length <= n;) {
        if (memcmp(text + k, separator, length)) k++;
        else starts[k += length] = true;
    }
}

Test(data, documents_start_after_their_separator) {
    static const char *const separators[] = {"|", "<>", "aa", "<|end|>"};
    char text[4001];
    bool starts[4001];
    for (size_t s = 0; s < sizeof separators / sizeof *separators; s++) {
        // Letters with separators strewn in, some side by side, and one that the border of the training part cuts.
        for (size_t k = 0; k < 4000; k++) text[k] = (char)('a' + kr_random_uniform(4, s, k) * 3);
        const size_t length = strlen(separators[s]);
        for (size_t k = 10; k + 2 * length < 3600; k += 1 + (size_t)(40 * kr_random_uniform(5, s, k)) + length)
            memcpy(text + k, separators[s], length);
        memcpy(text + 3600 - length / 2, separators[s], length);
        memcpy(text + 4000 - length, separators[s], length);
        find_starts(text, 4000, separators[s], starts);
        kr_data *x;
        int32_t tokens[LENGTH], targets[LENGTH], reset[LENGTH];
        cr_assert_eq(kr_data_from(text, 4000, LENGTH, "text", &x), KR_OK);
        const uint64_t whole = kr_data_fingerprint(x);
        cr_assert_eq(kr_data_split(x, separators[s]), KR_OK, "%s", kr_status_message());
        cr_expect_neq(kr_data_fingerprint(x), whole, "another split is other data");
        int64_t documents = 1;
        for (size_t k = 0; k <= 4000; k++) documents += starts[k];
        cr_expect_eq(kr_data_documents(x), documents);
        kr_data_stream(x, 1, 1, 0, tokens, targets, reset);
        int64_t first = 0; // where the only stream starts
        for (int same = 0; same < LENGTH; first += same < LENGTH)
            for (same = 0; same < LENGTH && tokens[same] == text[first * LENGTH + same];) same++;
        // All of the training part by the stream (3600 bytes hold 224 rows and a last target), then what is held out.
        for (int64_t w = 0; w < 224 + kr_data_windows(x); w++) {
            const size_t at = (size_t)(w < 224 ? w * LENGTH : 3600 + (w - 224) * LENGTH);
            if (w < 224) kr_data_stream(x, 1, 1, w - first + 224, tokens, targets, reset);
            else kr_data_window(x, w - 224, tokens, targets, reset);
            for (size_t k = 0; k < LENGTH; k++) {
                cr_expect_eq(tokens[k], text[at + k], "window %ld", (long)w);
                cr_expect_eq(reset[k], starts[at + k] || (!w && !k), "%s: token %zu", separators[s], at + k);
                cr_expect_eq(targets[k], starts[at + k + 1] ? KR_IGNORED : text[at + k + 1], "%s: target of token %zu",
                             separators[s], at + k);
            }
        }
        kr_data_close(x);
    }
    kr_data *x;
    cr_assert_eq(kr_data_from(text, 4000, LENGTH, "some.txt", &x), KR_OK);
    cr_assert_eq(kr_data_split(x, "nowhere"), KR_BAD_ARGUMENT);
    cr_expect(strstr(kr_status_message(), "'nowhere'") && strstr(kr_status_message(), "some.txt"), "%s",
              kr_status_message());
    cr_assert_eq(kr_data_split(x, ""), KR_BAD_ARGUMENT);
    kr_data_close(x);
}

Test(data, streams_go_on_where_they_stopped) {
    uint8_t bytes[BYTES];
    enum { STREAMS = 3 };
    int32_t last[STREAMS], tokens[LENGTH], targets[LENGTH], reset[LENGTH], starts = 0;
    kr_data *x;
    fill(bytes, BYTES);
    cr_assert_eq(kr_data_from(bytes, BYTES, LENGTH, "text", &x), KR_OK);
    const int64_t windows = (kr_data_train_bytes(x) - 1) / LENGTH;
    for (int64_t row = 0; row < STREAMS * (windows + 5); row++) {
        kr_data_stream(x, 9, STREAMS, row, tokens, targets, reset);
        for (int k = 1; k < LENGTH; k++) cr_assert_eq(reset[k], 0);
        if (row >= STREAMS && !reset[0]) cr_assert_eq(tokens[0], last[row % STREAMS]);
        cr_assert(!reset[0] || tokens[0] == bytes[0]);
        if (row < STREAMS * windows) starts += reset[0];
        last[row % STREAMS] = targets[LENGTH - 1];
    }
    cr_expect_eq(starts, STREAMS, "each stream comes by the start of the text once in a round");
    kr_data_close(x);
}

// Sampling ----------------------------------------------------------------------------------------------------

Test(sample, greedy_takes_the_first_of_the_largest) {
    const float logits[5] = {1, 4, -2, 4, 3};
    kr_candidate scratch[5];
    cr_assert_eq(kr_sample(logits, 5, &(kr_lm_sampling){.temperature = 0, .top_p = 1}, 0, scratch), 1);
    cr_assert_eq(kr_sample(logits, 5, &(kr_lm_sampling){.temperature = 1, .top_k = 1, .top_p = 1}, 0, scratch), 1);
    const float odd[3] = {NAN, -INFINITY, -5};
    cr_assert_eq(kr_sample(odd, 3, &(kr_lm_sampling){.temperature = 0, .top_p = 1}, 0, scratch), 2);
    cr_assert_eq(kr_sample(odd, 3, &(kr_lm_sampling){.temperature = 1, .top_p = 1}, 0, scratch), 2);
}

/// Frequencies of 40,000 draws against probabilities.
static void check_frequencies(const float *logits, int n, kr_lm_sampling how, const double *want) {
    enum { DRAWS = 40000 };
    int count[16] = {0};
    kr_candidate scratch[16];
    how.seed = 7;
    for (uint64_t k = 0; k < DRAWS; k++) count[kr_sample(logits, n, &how, k, scratch)]++;
    for (int k = 0; k < n; k++) {
        const double got = (double)count[k] / DRAWS;
        cr_expect(fabs(got - want[k]) <= 4 * sqrt(want[k] * (1 - want[k]) / DRAWS), "id %d: %g of the draws, want %g",
                  k, got, want[k]);
    }
}

Test(sample, frequencies_follow_temperature_top_k_and_top_p) {
    const float logits[4] = {logf(0.1f), logf(0.4f), logf(0.2f), logf(0.3f)};
    check_frequencies(logits, 4, (kr_lm_sampling){.temperature = 1, .top_p = 1}, (double[]){0.1, 0.4, 0.2, 0.3});
    check_frequencies(logits, 4, (kr_lm_sampling){.temperature = 1, .top_p = 1, .top_k = 2},
                      (double[]){0, 4 / 7.0, 0, 3 / 7.0});
    check_frequencies(logits, 4, (kr_lm_sampling){.temperature = 0.5, .top_p = 1},
                      (double[]){1 / 30.0, 16 / 30.0, 4 / 30.0, 9 / 30.0});
    // 0.4 + 0.3 < 0.75, so a third one stays; 0.4 + 0.3 >= 0.65.
    check_frequencies(logits, 4, (kr_lm_sampling){.temperature = 1, .top_p = 0.75},
                      (double[]){0, 4 / 9.0, 2 / 9.0, 3 / 9.0});
    check_frequencies(logits, 4, (kr_lm_sampling){.temperature = 1, .top_p = 0.65}, (double[]){0, 4 / 7.0, 0, 3 / 7.0});
    check_frequencies(logits, 4, (kr_lm_sampling){.temperature = 1, .top_p = 1e-9}, (double[]){0, 1, 0, 0});
}

static char *streamed(const char *bytes, size_t n, bool terminal) {
    char *text = NULL;
    size_t length;
    kr_byte_stream s = {.to = open_memstream(&text, &length), .terminal = terminal};
    for (size_t k = 0; k < n; k++) kr_stream_put(&s, (uint8_t)bytes[k]);
    kr_stream_end(&s);
    fclose(s.to);
    return text;
}

Test(sample, terminals_get_whole_characters_only) {
    static const struct {
        const char *in, *out;
    } cases[] = {
        {"plain\n\ttext", "plain\n\ttext"},
        {"na\xc3\xafve \xe2\x82\xac \xf0\x9f\x90\x8d", "na\xc3\xafve \xe2\x82\xac \xf0\x9f\x90\x8d"},
        {"\xc3", "\xef\xbf\xbd"},
        {"\xc3(", "\xef\xbf\xbd("},
        {"\xe2\x82", "\xef\xbf\xbd"},
        {"\x80", "\xef\xbf\xbd"},
        {"\xc0\xaf", "\xef\xbf\xbd\xef\xbf\xbd"},
        {"\xed\xa0\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},
        {"\x1b[2J", "\xef\xbf\xbd[2J"},
        {"\xc2\x9b" "2J", "\xef\xbf\xbd\xef\xbf\xbd" "2J"},
        {"\xc3\xc3\xa9", "\xef\xbf\xbd\xc3\xa9"},
    };
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        char *text = streamed(cases[k].in, strlen(cases[k].in), true);
        cr_expect_str_eq(text, cases[k].out, "case %zu", k);
        free(text);
        text = streamed(cases[k].in, strlen(cases[k].in), false);
        cr_expect_str_eq(text, cases[k].in, "elsewhere bytes stay as they are");
        free(text);
    }
}

// Metrics ----------------------------------------------------------------------------------------------------

Test(metrics, lines_come_back_and_later_ones_are_dropped_on_resume) {
    const char *directory = scratch_directory();
    kr_metrics *m;
    kr_metric *list;
    int count;
    cr_assert_eq(kr_metrics_open(directory, 0, &m), KR_OK, "%s", kr_status_message());
    for (int64_t step = 10; step <= 50; step += 10)
        cr_assert_eq(kr_metrics_write(m, &(kr_metric){.step = step, .tokens = step * 100, .loss = 5.0 / (double)step,
            .lr = 1e-3, .grad_norm = 2, .tokens_per_second = 1234.5, .seconds = 1,
            .eval_loss = step == 20 ? 3.25 : NAN}), KR_OK);
    cr_assert_eq(kr_metrics_close(m), KR_OK);
    cr_assert_eq(kr_metrics_read(directory, &list, &count), KR_OK);
    cr_assert_eq(count, 5);
    cr_assert_eq(list[1].eval_loss, 3.25);
    cr_assert(isnan(list[0].eval_loss));
    cr_assert_float_eq(list[2].loss, 5.0 / 30, 1e-8);
    free(list);

    char path[128];
    snprintf(path, sizeof path, "%s/metrics.jsonl", directory);
    FILE *file = fopen(path, "a");
    fputs("{\"step\": 60, \"lo", file); // cut by a crash
    fclose(file);
    cr_assert_eq(kr_metrics_open(directory, 30, &m), KR_OK);
    cr_assert_eq(kr_metrics_write(m, &(kr_metric){.step = 40, .loss = NAN, .eval_loss = NAN}), KR_OK);
    cr_assert_eq(kr_metrics_close(m), KR_OK);
    cr_assert_eq(kr_metrics_read(directory, &list, &count), KR_OK);
    cr_assert_eq(count, 4);
    cr_assert_eq(list[2].step, 30);
    cr_assert_eq(list[3].step, 40);
    cr_assert(isnan(list[3].loss), "no NaN in JSON: null");
    free(list);
    remove_directory(directory);
}

Test(metrics, crc_is_castagnolis) {
    cr_assert_eq(kr_crc32c("123456789", 9), 0xe3069283u); // the check value of CRC-32C
    cr_assert_eq(kr_crc32c("", 0), 0);
}

/// Reads records as TensorBoard does.
Test(metrics, event_files_are_framed_right) {
    const char *directory = scratch_directory();
    kr_events *e;
    cr_assert_eq(kr_events_open(directory, &e), KR_OK);
    cr_assert_eq(kr_events_scalar(e, 300, "loss", 1.5), KR_OK);
    cr_assert_eq(kr_events_close(e), KR_OK);
    char command[160], path[160] = "";
    snprintf(command, sizeof command, "ls %s/events.out.tfevents.*", directory);
    FILE *list = popen(command, "r");
    cr_assert(fgets(path, sizeof path, list));
    pclose(list);
    path[strcspn(path, "\n")] = 0;
    char *text;
    size_t bytes;
    cr_assert_eq(kr_file_read(path, &text, &bytes), KR_OK);
    size_t at = 0;
    int records = 0;
    while (at < bytes) {
        uint64_t length;
        uint32_t sum;
        memcpy(&length, text + at, 8);
        cr_assert_leq(at + 16 + length, bytes);
        for (int part = 0; part < 2; part++) {
            const char *data = part ? text + at + 12 : text + at;
            const size_t n = part ? length : 8;
            const uint32_t crc = kr_crc32c(data, n);
            memcpy(&sum, data + n, 4);
            cr_assert_eq(sum, (crc >> 15 | crc << 17) + 0xa282ead8u);
        }
        // field 1, double: 9 bytes; field 2, varint
        cr_assert_eq(text[at + 12], 0x09);
        cr_assert_eq(text[at + 21], 0x10);
        if (records == 1) {
            static const uint8_t want[] = {0x10, 0xac, 0x02, 0x2a, 13,   0x0a, 11, 0x0a, 4,
                                           'l',  'o',  's',  's',  0x15, 0,    0,  0xc0, 0x3f};
            cr_assert_eq(length, 9 + sizeof want);
            cr_assert_arr_eq(text + at + 21, want, sizeof want);
        }
        at += 16 + length;
        records++;
    }
    cr_assert_eq(records, 2);
    free(text);
    remove_directory(directory);
}
