/// What the tests of checkpoints share: a folder for each test, and a session of a few slots of every persistent kind,
/// whose content is made from a seed and recognised by it.
#ifndef KRAIT_TESTS_CHECKPOINTS_H
#define KRAIT_TESTS_CHECKPOINTS_H

#include "runtime/runtime.h"

#include <criterion/criterion.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[64], latest[96];
static kr_device *device;

static const kr_slot slots[] = {
    {.kind = KR_SLOT_PARAM, .name = "embedding.weight", .dtype = KR_F32, .shape = {2, {17, 5}}},
    {.kind = KR_SLOT_OPTIMIZER, .name = "embedding.weight.m", .dtype = KR_F32, .shape = {2, {17, 5}}},
    {.kind = KR_SLOT_PARAM, .name = "layers.0.half", .dtype = KR_BF16, .shape = {1, {3}}},
    {.kind = KR_SLOT_OPTIMIZER, .name = "step", .dtype = KR_I64, .shape = {0, {0}}},
    {.kind = KR_SLOT_CARRY, .name = "layers.0.ssm", .dtype = KR_F32, .shape = {3, {1, 4, 6}}},
    {.kind = KR_SLOT_PARAM, .name = "layers.0.none", .dtype = KR_F32, .shape = {2, {0, 5}}},
    {.kind = KR_SLOT_OPTIMIZER, .name = "embedding.weight.v", .dtype = KR_F32, .shape = {2, {17, 5}}},
    {.kind = KR_SLOT_GRADIENT, .name = "embedding.weight.sum", .dtype = KR_F32, .shape = {2, {17, 5}}},
};
enum { SLOTS = sizeof slots / sizeof *slots };

static inline void make_folder(void) {
    strcpy(folder, "/tmp/krait-checkpoint-XXXXXX");
    cr_assert_not_null(mkdtemp(folder));
    snprintf(latest, sizeof latest, "%s/latest", folder);
    cr_assert_eq(kr_device_cpu(&device), KR_OK);
}

static inline void remove_folder(void) {
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    cr_assert_eq(system(command), 0);
    kr_device_close(device);
}

typedef struct small {
    kr_plan *plan;
    kr_session *session;
} small;

static inline small open_with(const kr_slot *list, int count, kr_device *on) {
    small s;
    cr_assert_eq(kr_plan_new("cpu", &s.plan), KR_OK);
    for (int k = 0; k < count; k++) {
        kr_slot slot = list[k];
        slot.bytes = kr_tensor_bytes(slot.dtype, &slot.shape);
        cr_assert_neq(kr_plan_add_slot(s.plan, &slot), -1, "%s", kr_status_message());
    }
    cr_assert_eq(kr_plan_finish(s.plan), KR_OK, "%s", kr_status_message());
    cr_assert_eq(kr_session_open(on, 1, &s.session), KR_OK);
    cr_assert_eq(kr_session_add(s.session, s.plan), KR_OK, "%s", kr_status_message());
    return s;
}

static inline small open_small(void) { return open_with(slots, SLOTS, device); }

static inline void close_small(small s) {
    kr_session_close(s.session);
    kr_plan_free(s.plan);
}

/// Any bits at all, NaNs of every kind included.
static inline void content(const char *name, uint64_t seed, unsigned char *to, size_t bytes) {
    for (size_t k = 0; k < bytes; k++)
        to[k] = (unsigned char)(kr_random_uniform(seed, kr_hash(name, strlen(name)), k) * 256);
}

static inline void fill(small s, uint64_t seed) {
    for (int k = 0; k < kr_session_slots(s.session); k++) {
        const kr_slot *slot = kr_session_slot(s.session, k);
        unsigned char data[1024];
        content(slot->name, seed, data, slot->bytes);
        cr_assert_eq(kr_session_write(s.session, k, data, slot->bytes), KR_OK);
    }
}

/// Do all slots of these kinds (bits) have the content of that seed?
static inline bool has(small s, uint64_t seed, unsigned kinds) {
    for (int k = 0; k < kr_session_slots(s.session); k++) {
        const kr_slot *slot = kr_session_slot(s.session, k);
        unsigned char data[1024], want[1024];
        if (!(kinds >> slot->kind & 1)) continue;
        content(slot->name, seed, want, slot->bytes);
        cr_assert_eq(kr_session_read(s.session, k, data, slot->bytes), KR_OK);
        if (memcmp(data, want, slot->bytes) != 0) return false;
    }
    return true;
}

enum {
    PARAMS = 1 << KR_SLOT_PARAM,
    OPTIMIZER = 1 << KR_SLOT_OPTIMIZER,
    CARRIES = 1 << KR_SLOT_CARRY | 1 << KR_SLOT_GRADIENT,
    LOAD_ALL = KR_LOAD_PARAMS | KR_LOAD_OPTIMIZER | KR_LOAD_CARRIES | KR_LOAD_STATE,
};

static const char *const files[] = {"model.safetensors", "optimizer.safetensors.zst", "carry.safetensors.zst",
                                    "state.json", "MANIFEST"};
enum { FILES = sizeof files / sizeof *files };

static inline const char *in_latest(const char *file) {
    static char path[2][256];
    static int turn;
    turn = !turn;
    snprintf(path[turn], sizeof path[turn], "%s/%s", latest, file);
    return path[turn];
}

/// Without cutting an old file to nothing first, for which some file systems would sync.
static inline void put_file(const char *path, const void *data, size_t bytes) {
    const int fd = open(path, O_WRONLY | O_CREAT, 0666);
    cr_assert(fd >= 0, "%s", path);
    cr_assert_eq(write(fd, data, bytes), (ssize_t)bytes);
    cr_assert_eq(ftruncate(fd, (off_t)bytes), 0);
    close(fd);
}

static inline bool there(const char *path) { return access(path, F_OK) == 0; }

static inline int entries_of(const char *path) {
    DIR *d = opendir(path);
    cr_assert_not_null(d, "%s", path);
    int n = 0;
    while (readdir(d)) n++;
    closedir(d);
    return n - 2;
}

static inline void save_seed(small s, uint64_t seed) {
    char state[64];
    snprintf(state, sizeof state, "{\"step\": %d}\n", (int)seed);
    fill(s, seed);
    cr_assert_eq(kr_checkpoint_save(latest, s.session, state, true), KR_OK, "%s", kr_status_message());
}

/// Loads everything and says which seed it all has; -1: a mixture; -2: there is nothing that loads.
static inline int seed_of(small s, int seeds) {
    char *state = NULL, want[64];
    fill(s, 999);
    const kr_status status = kr_checkpoint_load(latest, s.session, LOAD_ALL, &state);
    if (status) cr_assert(has(s, 999, PARAMS | OPTIMIZER | CARRIES), "a failed load changed something");
    int found = status ? -2 : -1;
    for (int seed = 1; seed <= seeds && !status; seed++) {
        snprintf(want, sizeof want, "{\"step\": %d}\n", seed);
        if (has(s, (uint64_t)seed, PARAMS | OPTIMIZER | CARRIES) && strcmp(state, want) == 0) found = seed;
    }
    free(state);
    return found;
}

#endif
