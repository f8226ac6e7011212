/// Checkpoints: bit-exact round trips; another model's, damaged or hostile ones are refused by name and change nothing.
#include "tests/checkpoints.h"

TestSuite(checkpoint, .init = make_folder, .fini = remove_folder);

// Round trips --------------------------------------------------------------------------------------------------------

static void round_trip(kr_device *on) {
    small a = open_with(slots, SLOTS, on), b = open_with(slots, SLOTS, on);
    save_seed(a, 1);
    for (int k = 0; k < FILES; k++) cr_assert(there(in_latest(files[k])), "%s", files[k]);
    cr_assert_eq(entries_of(latest), FILES);
    cr_assert_eq(entries_of(folder), 1);
    cr_assert_eq(seed_of(b, 1), 1, "%s", kr_status_message());
    save_seed(a, 2);
    cr_assert_eq(seed_of(b, 2), 2);
    cr_assert_eq(entries_of(latest), FILES);
    cr_assert_eq(entries_of(folder), 1);

    // In parts, without a session, and without carries.
    char *state = (char *)"x";
    fill(b, 5);
    cr_assert_eq(kr_checkpoint_load(latest, b.session, KR_LOAD_OPTIMIZER, &state), KR_OK);
    cr_assert_null(state);
    cr_assert(has(b, 2, OPTIMIZER) && has(b, 5, PARAMS) && has(b, 5, CARRIES));
    cr_assert_eq(kr_checkpoint_load(latest, b.session, KR_LOAD_PARAMS, NULL), KR_OK);
    cr_assert(has(b, 2, OPTIMIZER) && has(b, 2, PARAMS) && has(b, 5, CARRIES));
    cr_assert_eq(kr_checkpoint_load(latest, NULL, KR_LOAD_STATE, &state), KR_OK);
    cr_assert_str_eq(state, "{\"step\": 2}\n");
    free(state);
    cr_assert_eq(kr_checkpoint_load(latest, NULL, KR_LOAD_PARAMS, NULL), KR_BAD_ARGUMENT);
    cr_assert_eq(kr_checkpoint_save(latest, a.session, NULL, false), KR_OK);
    cr_assert_not(there(in_latest("carry.safetensors.zst")));
    cr_assert_eq(kr_checkpoint_load(latest, b.session, KR_LOAD_STATE | KR_LOAD_PARAMS, &state), KR_OK);
    cr_assert_str_eq(state, "{}\n");
    free(state);
    fill(b, 6);
    cr_assert_eq(kr_checkpoint_load(latest, b.session, KR_LOAD_PARAMS | KR_LOAD_CARRIES, NULL), KR_BAD_FILE);
    cr_assert_not_null(strstr(kr_status_message(), "saved without carried state"), "%s", kr_status_message());
    cr_assert(has(b, 6, PARAMS));
    close_small(a);
    close_small(b);
}

Test(checkpoint, round_trip) { round_trip(device); }

Test(checkpoint, round_trip_where_the_host_cannot_look) {
    kr_device *guarded;
    cr_assert_eq(kr_device_guarded(&guarded), KR_OK);
    round_trip(guarded);
    kr_device_close(guarded);
}

Test(checkpoint, the_same_state_gives_the_same_bytes) {
    small a = open_small(), b = open_small();
    char other[128];
    snprintf(other, sizeof other, "%s/other", folder);
    save_seed(a, 3);
    fill(b, 3);
    cr_assert_eq(kr_checkpoint_save(other, b.session, "{\"step\": 3}\n", true), KR_OK);
    for (int k = 0; k < FILES; k++) {
        char path[256], *x, *y;
        size_t n, m;
        snprintf(path, sizeof path, "%s/%s", other, files[k]);
        cr_assert_eq(kr_file_read(path, &x, &n), KR_OK);
        cr_assert_eq(kr_file_read(in_latest(files[k]), &y, &m), KR_OK);
        cr_assert(n == m && memcmp(x, y, n) == 0, "%s differs", files[k]);
        free(x);
        free(y);
    }
    close_small(a);
    close_small(b);
}

Test(checkpoint, the_model_is_plain_safetensors) {
    small a = open_small();
    save_seed(a, 1);
    kr_tensor_file *f;
    cr_assert_eq(kr_tensors_open(in_latest("model.safetensors"), &f), KR_OK, "%s", kr_status_message());
    cr_assert_eq(kr_tensors_count(f), 3);
    cr_assert_str_eq(kr_tensors_metadata(f, "format"), "pt");
    cr_assert_not_null(kr_tensors_metadata(f, "krait"));
    unsigned char want[340];
    content("embedding.weight", 1, want, sizeof want);
    cr_assert_eq(memcmp(kr_tensors_find(f, "embedding.weight")->data, want, sizeof want), 0);
    kr_tensors_close(f);
    close_small(a);
}

/// More than any buffer, compressible and not.
Test(checkpoint, large_tensors) {
    const kr_slot big[] = {
        {.kind = KR_SLOT_PARAM, .name = "p", .dtype = KR_F32, .shape = {1, {1300001}}},
        {.kind = KR_SLOT_OPTIMIZER, .name = "m", .dtype = KR_F32, .shape = {1, {2100007}}},
        {.kind = KR_SLOT_OPTIMIZER, .name = "z", .dtype = KR_F32, .shape = {1, {2100007}}},
    };
    small a = open_with(big, 3, device), b = open_with(big, 3, device);
    float *x = malloc(2100007 * sizeof *x), *y = malloc(2100007 * sizeof *y);
    for (int k = 0; k < 2100007; k++) x[k] = kr_random_normal(1, 2, (uint64_t)k);
    cr_assert_eq(kr_session_write(a.session, 0, x, 1300001 * 4), KR_OK);
    cr_assert_eq(kr_session_write(a.session, 1, x, 2100007 * 4), KR_OK);
    cr_assert_eq(kr_checkpoint_save(latest, a.session, "{}", false), KR_OK, "%s", kr_status_message());
    cr_assert_eq(kr_checkpoint_load(latest, b.session, KR_LOAD_PARAMS | KR_LOAD_OPTIMIZER, NULL), KR_OK, "%s",
                 kr_status_message());
    cr_assert_eq(kr_session_read(b.session, 0, y, 1300001 * 4), KR_OK);
    cr_assert_eq(memcmp(x, y, 1300001 * 4), 0);
    cr_assert_eq(kr_session_read(b.session, 1, y, 2100007 * 4), KR_OK);
    cr_assert_eq(memcmp(x, y, 2100007 * 4), 0);
    struct stat info;
    cr_assert_eq(stat(in_latest("optimizer.safetensors.zst"), &info), 0);
    cr_assert(info.st_size < 8600000, "zeros were not compressed");
    free(x);
    free(y);
    close_small(a);
    close_small(b);
}

// What does not fit --------------------------------------------------------------------------------------------------

static void refuse_load(small s, unsigned what, kr_status code, const char *part, const char *other) {
    const kr_status got = kr_checkpoint_load(latest, s.session, what, NULL);
    cr_assert_eq(got, code, "%s: %s", kr_status_name(got), kr_status_message());
    cr_assert(strstr(kr_status_message(), part) && strstr(kr_status_message(), other), "%s", kr_status_message());
}

Test(checkpoint, another_model) {
    small a = open_small();
    save_seed(a, 1);
    kr_slot list[SLOTS + 1];
    memcpy(list, slots, sizeof slots);

    small fewer = open_with(list, 1, device);
    refuse_load(fewer, KR_LOAD_PARAMS, KR_BAD_FILE, "latest/model.safetensors",
                "has 'layers.0.none', which the model does not");
    refuse_load(fewer, KR_LOAD_OPTIMIZER, KR_BAD_FILE, "latest/optimizer", "which the model does not have");

    list[SLOTS] = list[0];
    list[SLOTS].name = "layers.1.new";
    small more = open_with(list, SLOTS + 1, device);
    fill(more, 8);
    refuse_load(more, LOAD_ALL, KR_BAD_FILE, "latest/model.safetensors", "has no 'layers.1.new', which the model has");
    cr_assert(has(more, 8, PARAMS | OPTIMIZER | CARRIES));

    list[0].shape = KR_SHAPE(5, 17);
    small turned = open_with(list, SLOTS, device);
    refuse_load(turned, KR_LOAD_PARAMS, KR_BAD_SHAPE, "'embedding.weight' is f32 [17, 5]",
                "the model's is f32 [5, 17]");
    list[0] = slots[0];
    list[6].dtype = KR_I32;
    small typed = open_with(list, SLOTS, device);
    fill(typed, 8);
    refuse_load(typed, LOAD_ALL, KR_BAD_SHAPE, "'embedding.weight.v' is f32", "the model's is i32");
    cr_assert(has(typed, 8, PARAMS | OPTIMIZER | CARRIES), "parameters changed before the optimiser was checked");

    close_small(a);
    close_small(fewer);
    close_small(more);
    close_small(turned);
    close_small(typed);
}

Test(checkpoint, optimiser_state_of_an_older_version) {
    kr_slot old[SLOTS]; // without "step"
    memcpy(old, slots, 3 * sizeof *slots);
    memcpy(old + 3, slots + 4, (SLOTS - 4) * sizeof *slots);
    small a = open_with(old, SLOTS - 1, device), b = open_small();
    save_seed(a, 1);
    fill(b, 2);
    refuse_load(b, LOAD_ALL, KR_BAD_FILE, "optimizer.safetensors.zst", "has no 'step', which the model has");
    cr_assert(has(b, 2, PARAMS | OPTIMIZER | CARRIES));
    cr_assert_eq(kr_checkpoint_load(latest, b.session, LOAD_ALL | KR_LOAD_FEWER, NULL), KR_OK, "%s",
                 kr_status_message());
    cr_assert(has(b, 1, PARAMS | CARRIES));
    unsigned char step[8], want[8], moment[17 * 5 * 4], kept[17 * 5 * 4];
    content("step", 2, want, sizeof want);
    cr_assert_eq(kr_session_read(b.session, kr_session_find(b.session, "step"), step, sizeof step), KR_OK);
    cr_assert_arr_eq(step, want, sizeof want, "what the file lacks was changed");
    content("embedding.weight.v", 1, kept, sizeof kept);
    cr_assert_eq(kr_session_read(b.session, kr_session_find(b.session, "embedding.weight.v"), moment, sizeof moment),
                 KR_OK);
    cr_assert_arr_eq(moment, kept, sizeof kept);
    close_small(a);

    memcpy(old, slots + 1, (SLOTS - 1) * sizeof *slots); // parameters must all be there
    a = open_with(old, SLOTS - 1, device);
    save_seed(a, 1);
    refuse_load(b, LOAD_ALL | KR_LOAD_FEWER, KR_BAD_FILE, "model.safetensors", "has no 'embedding.weight'");
    close_small(a);
    close_small(b);
}

Test(checkpoint, no_optimiser_and_no_tensors) {
    small bare = open_with(slots, 1, device), empty = open_with(NULL, 0, device), full = open_small();
    cr_assert_eq(kr_checkpoint_save(latest, bare.session, "{}", true), KR_OK);
    cr_assert_eq(entries_of(latest), 3);
    cr_assert_eq(kr_checkpoint_load(latest, bare.session, LOAD_ALL, NULL), KR_OK, "%s", kr_status_message());
    refuse_load(full, KR_LOAD_OPTIMIZER, KR_BAD_FILE, "optimizer.safetensors.zst", "saved without optimiser state");
    cr_assert_eq(kr_checkpoint_save(latest, empty.session, "{}", true), KR_OK);
    cr_assert_eq(kr_checkpoint_load(latest, empty.session, LOAD_ALL, NULL), KR_OK, "%s", kr_status_message());
    close_small(bare);
    close_small(empty);
    close_small(full);
}

Test(checkpoint, nothing_there) {
    small s = open_small();
    refuse_load(s, LOAD_ALL, KR_IO, latest, "No such file");
    cr_assert_eq(kr_checkpoint_load("/nowhere/at/all", s.session, LOAD_ALL, NULL), KR_IO);
    cr_assert_not_null(strstr(kr_status_message(), "/nowhere/at"));
    static const char *const bad[] = {"", "/", ".", "..", "///", "a/..", "/tmp/."};
    for (size_t k = 0; k < sizeof bad / sizeof *bad; k++) {
        cr_assert_eq(kr_checkpoint_load(bad[k], s.session, LOAD_ALL, NULL), KR_BAD_ARGUMENT, "'%s'", bad[k]);
        cr_assert_eq(kr_checkpoint_save(bad[k], s.session, "{}", false), KR_BAD_ARGUMENT);
        cr_assert_eq(kr_checkpoint_remove(bad[k]), KR_BAD_ARGUMENT);
    }
    close_small(s);
}

// Damage -------------------------------------------------------------------------------------------------------------

static void damaged(small s, const char *file, const char *how, size_t at) {
    cr_assert_eq(seed_of(s, 1), -2, "%s %s at %zu was not noticed", file, how, at);
    const char *m = kr_status_message();
    cr_assert_not_null(strstr(m, latest), "%s", m);
    cr_assert_not_null(strstr(m, file), "%s %s at %zu: %s", file, how, at, m);
}

Test(checkpoint, every_file_cut_and_changed_everywhere) {
    small a = open_small(), b = open_small();
    save_seed(a, 1);
    for (int k = 0; k < FILES; k++) {
        char *data;
        size_t bytes;
        const char *path = in_latest(files[k]);
        cr_assert_eq(kr_file_read(path, &data, &bytes), KR_OK);
        for (size_t n = 0; n < bytes; n++) {
            cr_assert_eq(truncate(path, (off_t)n), 0);
            damaged(b, files[k], "cut", n);
            put_file(path, data, bytes);
            data[n] ^= (char)(1 << n % 8);
            put_file(path, data, bytes);
            damaged(b, files[k], "changed", n);
            data[n] ^= (char)(1 << n % 8);
            put_file(path, data, bytes);
        }
        data = realloc(data, bytes + 1);
        data[bytes] = '\n';
        put_file(path, data, bytes + 1);
        damaged(b, files[k], "grown", bytes);
        unlink(path);
        damaged(b, files[k], "missing", 0);
        mkdir(path, 0700);
        damaged(b, files[k], "a directory", 0);
        rmdir(path);
        put_file(path, data, bytes);
        free(data);
        cr_assert_eq(seed_of(b, 1), 1);
    }
    close_small(a);
    close_small(b);
}

/// A checkpoint by someone else: checksums are right, the compressed content is not what it should be.
Test(checkpoint, hostile_content) {
    small a = open_small(), b = open_small();
    save_seed(a, 1);
    static const char *const content_of[] = {"", "x", "not zstd at all", "\x28\xB5\x2F\xFD",
                                             "\x28\xB5\x2F\xFD\x20\x04\x21\x00\x00{}  "};
    for (size_t k = 0; k < sizeof content_of / sizeof *content_of; k++) {
        const size_t n = k == 4 ? 13 : strlen(content_of[k]);
        put_file(in_latest("optimizer.safetensors.zst"), content_of[k], n);
        char *old, text[2048];
        size_t bytes;
        cr_assert_eq(kr_file_read(in_latest("MANIFEST"), &old, &bytes), KR_OK);
        char *from = strstr(old, "optimizer"), *rest = strchr(from, '\n') + 1, *last = strstr(old, "MANIFEST");
        int length = snprintf(text, sizeof text, "%.*soptimizer.safetensors.zst %zu %016llx\n%.*s", (int)(from - old),
                              old, n, (unsigned long long)kr_hash(content_of[k], n), (int)(last - rest), rest);
        length += snprintf(text + length, sizeof text - (size_t)length, "MANIFEST %016llx\n",
                           (unsigned long long)kr_hash(text, (size_t)length));
        put_file(in_latest("MANIFEST"), text, (size_t)length);
        free(old);
        damaged(b, "optimizer.safetensors.zst", "replaced", k);
    }
    close_small(a);
    close_small(b);
}
