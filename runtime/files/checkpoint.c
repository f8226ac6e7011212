/// A session to and from a directory: model.safetensors, optimizer.safetensors.zst, carry.safetensors.zst (when asked),
/// state.json and MANIFEST. How the directory gets its name is in replace.c, what makes it whole in manifest.c.
///
/// Tensors pass through one buffer in pieces, so that saving needs hardly more memory than training. The bytes depend
/// on nothing but the state: no times, no names of machines, and the order is that in which the session got its slots.
#include "runtime/files/internal.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/// The tensor files of a checkpoint.
static const struct group {
    const char *file;
    unsigned kinds; // bits: kr_slot_kind
    bool compressed;
    unsigned load;    // the flag that asks for it
    const char *what; // in messages
} groups[] = {
    {"model.safetensors", 1u << KR_SLOT_PARAM, false, KR_LOAD_PARAMS, "parameters"},
    {"optimizer.safetensors.zst", 1u << KR_SLOT_OPTIMIZER, true, KR_LOAD_OPTIMIZER, "optimiser state"},
    {"carry.safetensors.zst", 1u << KR_SLOT_CARRY | 1u << KR_SLOT_GRADIENT, true, KR_LOAD_CARRIES,
     "carried state"}, // accumulated gradients are carried from run to run too
};
enum { GROUPS = sizeof groups / sizeof *groups, PIECE = 1 << 22 };

// "pt" is what other readers of the format want to see before they trust the order of axes.
static const char *const metadata[] = {"format", "pt", "krait", KR_VERSION};

/// The slots of a kind as entries of a file; index[k] is the session's number of entry k.
typedef struct listing {
    kr_tensor_entry *entries;
    int *index, *order;
    int count;
} listing;

static bool belongs(const struct group *g, const kr_slot *s) { return g->kinds >> s->kind & 1; }

static kr_status list_slots(const kr_session *session, const struct group *g, listing *l) {
    const size_t most = (size_t)kr_session_slots(session) + 1;
    *l = (listing){calloc(most, sizeof *l->entries), calloc(most, sizeof *l->index), calloc(most, sizeof *l->order), 0};
    KR_FAIL_IF(!l->entries || !l->index || !l->order, KR_NO_MEMORY, "no memory to list %zu tensors", most);
    for (int k = 0; k < kr_session_slots(session); k++) {
        const kr_slot *s = kr_session_slot(session, k);
        if (!belongs(g, s)) continue;
        const size_t bytes = kr_tensor_bytes(s->dtype, &s->shape);
        l->entries[l->count] = (kr_tensor_entry){s->name, s->dtype, s->shape, NULL, bytes};
        l->index[l->count++] = k;
    }
    return KR_OK;
}

static void listing_free(listing *l) {
    free(l->entries);
    free(l->index);
    free(l->order);
}

static kr_status write_tensors(kr_writer *w, kr_session *session, const listing *l, const char *header,
                               size_t header_bytes) {
    KR_TRY(kr_writer_put(w, header, header_bytes));
    void *buffer = malloc(PIECE);
    KR_FAIL_IF(!buffer, KR_NO_MEMORY, "no memory to write tensors");
    kr_status status = KR_OK;
    for (int k = 0; k < l->count; k++) {
        const int slot = l->order[k];
        const size_t bytes = l->entries[slot].bytes;
        for (size_t at = 0; at < bytes && !status; at += PIECE) {
            const size_t piece = bytes - at < PIECE ? bytes - at : PIECE;
            status = kr_session_read_at(session, l->index[slot], at, buffer, piece);
            if (!status) status = kr_writer_put(w, buffer, piece);
        }
    }
    free(buffer);
    return status;
}

static kr_status save_group(const struct group *g, int directory, const char *path, kr_session *session,
                            kr_manifest *manifest) {
    listing l;
    char *label = kr_path_join(path, g->file), *header = NULL;
    size_t header_bytes = 0;
    uint64_t data_bytes;
    kr_writer *w = NULL;
    kr_status status = label ? list_slots(session, g, &l) : KR_NO_MEMORY;
    if (!label) return status;
    if (!status && (l.count > 0 || g->load == KR_LOAD_PARAMS)) {
        status = kr_tensors_make_header(l.entries, l.count, metadata, 2, &header, &header_bytes, l.order, &data_bytes);
        if (!status) status = kr_writer_open(directory, g->file, label, g->compressed, header_bytes + data_bytes, &w);
        if (!status) status = write_tensors(w, session, &l, header, header_bytes);
        kr_file_sum sum;
        const kr_status closed = kr_writer_close(w, status ? NULL : &sum);
        if (!status) status = closed;
        if (!status) {
            manifest->file[manifest->count].name = g->file;
            manifest->file[manifest->count++].sum = sum;
        }
    }
    listing_free(&l);
    free(header);
    free(label);
    return status;
}

static kr_status save_state(int directory, const char *path, const char *state, kr_manifest *manifest) {
    char *label = kr_path_join(path, "state.json");
    if (!label) return KR_NO_MEMORY;
    kr_writer *w = NULL;
    kr_file_sum sum;
    kr_status status = kr_writer_open(directory, "state.json", label, false, strlen(state), &w);
    if (!status) status = kr_writer_put(w, state, strlen(state));
    const kr_status closed = kr_writer_close(w, status ? NULL : &sum);
    if (!status) status = closed;
    if (!status) {
        manifest->file[manifest->count].name = "state.json";
        manifest->file[manifest->count++].sum = sum;
    }
    free(label);
    return status;
}

static kr_status save_all(const kr_place *p, kr_session *session, const char *state, bool carries) {
    if (mkdirat(p->parent, p->fresh, 0777) != 0)
        KR_FAIL(KR_IO, "%s: cannot create %s beside it: %m", p->path, p->fresh);
    const int directory = openat(p->parent, p->fresh, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0) KR_FAIL(KR_IO, "%s: cannot open %s beside it: %m", p->path, p->fresh);
    kr_manifest manifest = {0};
    kr_status status = KR_OK;
    for (int k = 0; k < GROUPS && !status; k++)
        if (carries || groups[k].load != KR_LOAD_CARRIES)
            status = save_group(&groups[k], directory, p->path, session, &manifest);
    if (!status) status = save_state(directory, p->path, state ? state : "{}\n", &manifest);
    if (!status) status = kr_manifest_write(directory, p->path, &manifest);
    if (!status && !kr_sync(directory))
        status = kr_status_record(KR_IO, __FILE__, __LINE__, "%s: cannot sync %s: %m", p->path, p->fresh);
    close(directory);
    return status;
}

kr_status kr_checkpoint_save(const char *path, kr_session *session, const char *state, bool carries) {
    kr_place p;
    kr_status status = kr_place_open(path, true, &p);
    if (!status) {
        status = save_all(&p, session, state, carries);
        if (status) {
            status = kr_status_prefix(status, "checkpoint not saved, the one before is kept");
            char reason[2048]; // cleaning up may fail for the same reason
            snprintf(reason, sizeof reason, "%s", kr_status_message());
            if (kr_place_discard(&p, p.fresh)) kr_status_record(status, __FILE__, __LINE__, "%s", reason);
        } else {
            status = kr_place_install(&p);
        }
    }
    kr_place_close(&p);
    return status;
}

/// One file of a checkpoint being loaded. Mappings outlive the directory, so another process may replace the
/// checkpoint while it is read.
typedef struct part {
    char *label;
    kr_mapped mapped;
    kr_unpacker *unpacker;
    kr_tensor_file *tensors;
    uint64_t hash;
    bool there;
} part;
enum { STATE = GROUPS, PARTS };

static const char *part_name(int k) { return k == STATE ? "state.json" : groups[k].file; }

static unsigned part_flag(int k) { return k == STATE ? (unsigned)KR_LOAD_STATE : groups[k].load; }

/// Under the lock of the folder: reads MANIFEST and maps the files that are asked for.
static kr_status open_parts(const char *path, unsigned what, part parts[PARTS]) {
    kr_place p;
    kr_status status = kr_place_open(path, false, &p);
    int directory = -1;
    if (!status) {
        directory = openat(p.parent, p.name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (directory < 0)
            status = kr_status_record(KR_IO, __FILE__, __LINE__, "%s: cannot open the checkpoint: %m", p.path);
    }
    kr_manifest manifest = {0};
    if (!status) status = kr_manifest_read(directory, p.path, &manifest);
    for (int k = 0; k < PARTS && !status; k++) {
        const int at = kr_manifest_find(&manifest, part_name(k));
        if (!(what & part_flag(k))) continue;
        parts[k].label = kr_path_join(p.path, part_name(k));
        if (!parts[k].label) status = KR_NO_MEMORY;
        if (status || at < 0) continue;
        parts[k].there = true;
        parts[k].hash = manifest.file[at].sum.hash;
        status = kr_map_open(directory, part_name(k), parts[k].label, &parts[k].mapped);
    }
    if (directory >= 0) close(directory);
    kr_place_close(&p);
    return status;
}

static kr_status check_hash(const part *p) {
    const uint64_t hash = kr_hash(p->mapped.data, p->mapped.bytes);
    KR_FAIL_IF(hash != p->hash, KR_BAD_FILE,
               "%s: its checksum is %016llx, MANIFEST says %016llx; the checkpoint is damaged, "
               "use another",
               p->label, (unsigned long long)hash, (unsigned long long)p->hash);
    return KR_OK;
}

static kr_status open_packed(part *p) {
    uint64_t total;
    size_t header_bytes;
    unsigned char prefix[KR_HEADER_PREFIX];
    KR_TRY(kr_unpacker_open(&p->mapped, p->label, &p->unpacker, &total));
    KR_FAIL_IF(total < sizeof prefix, KR_BAD_FILE, "%s: unpacks to %llu bytes, want at least 8", p->label,
               (unsigned long long)total);
    KR_TRY(kr_unpacker_take(p->unpacker, prefix, sizeof prefix));
    KR_TRY(kr_tensors_prefix(prefix, total, p->label, &header_bytes));
    char *header = malloc(header_bytes + 1);
    KR_FAIL_IF(!header, KR_NO_MEMORY, "%s: no memory for its header", p->label);
    kr_status status = kr_unpacker_take(p->unpacker, header, header_bytes);
    if (!status)
        status = kr_tensors_header(header, header_bytes, total - sizeof prefix - header_bytes, p->label, &p->tensors);
    free(header);
    KR_TRY(status);
    size_t at = 0; // data comes as a stream, so the header must list it in order
    for (int k = 0; k < p->tensors->count; at += p->tensors->entries[k++].bytes)
        KR_FAIL_IF(p->tensors->offsets[k] != at, KR_BAD_FILE, "%s: its tensors are not in the order of their data",
                   p->label);
    return KR_OK;
}

static kr_status check_slot(const kr_slot *s, const part *p, bool fewer) {
    char have[160], want[160];
    const kr_tensor_entry *e = kr_tensors_find(p->tensors, s->name);
    if (!e && fewer && s->kind == KR_SLOT_OPTIMIZER) return KR_OK;
    KR_FAIL_IF(!e, KR_BAD_FILE, "%s: has no '%s', which the model has", p->label, s->name);
    KR_FAIL_IF(e->dtype != s->dtype || !kr_shape_equal(&e->shape, &s->shape), KR_BAD_SHAPE,
               "%s: '%s' is %s %s, the model's is %s %s", p->label, s->name, kr_dtype_name(e->dtype),
               kr_shape_text(&e->shape, have), kr_dtype_name(s->dtype), kr_shape_text(&s->shape, want));
    return KR_OK;
}

/// Every slot has its tensor (but for KR_LOAD_FEWER) and every tensor its slot.
static kr_status check_group(const struct group *g, const kr_session *session, part *p, bool fewer) {
    int wanted = 0;
    for (int k = 0; k < kr_session_slots(session); k++) wanted += belongs(g, kr_session_slot(session, k));
    KR_FAIL_IF(!p->there && wanted, KR_BAD_FILE, "%s: the checkpoint was saved without %s, and %d tensors need it",
               p->label, g->what, wanted);
    if (!p->there) return KR_OK;
    KR_TRY(check_hash(p));
    KR_TRY(g->compressed ? open_packed(p) : kr_tensors_parse(p->mapped.data, p->mapped.bytes, p->label, &p->tensors));
    for (int k = 0; k < kr_session_slots(session); k++) {
        const kr_slot *s = kr_session_slot(session, k);
        if (belongs(g, s)) KR_TRY(check_slot(s, p, fewer));
    }
    for (int k = 0; k < p->tensors->count; k++) {
        char shown[128];
        const int slot = kr_session_find(session, p->tensors->entries[k].name);
        KR_FAIL_IF(slot < 0 || !belongs(g, kr_session_slot(session, slot)), KR_BAD_FILE,
                   "%s: has '%s', which the model does not have", p->label,
                   kr_printable(p->tensors->entries[k].name, shown));
    }
    return KR_OK;
}

static kr_status load_group(kr_session *session, const part *p) {
    void *buffer = p->unpacker ? malloc(PIECE) : NULL;
    KR_FAIL_IF(p->unpacker && !buffer, KR_NO_MEMORY, "%s: no memory to read tensors", p->label);
    kr_status status = KR_OK;
    for (int k = 0; k < p->tensors->count; k++) {
        const kr_tensor_entry *e = &p->tensors->entries[k];
        const int slot = kr_session_find(session, e->name);
        for (size_t at = 0; at < e->bytes && !status; at += PIECE) {
            const size_t piece = e->bytes - at < PIECE ? e->bytes - at : PIECE;
            if (p->unpacker) status = kr_unpacker_take(p->unpacker, buffer, piece);
            if (!status)
                status = kr_session_write_at(session, slot, at, buffer ? buffer : (const char *)e->data + at, piece);
        }
    }
    free(buffer);
    return status;
}

static kr_status load_state(const part *p, char **state) {
    KR_FAIL_IF(!p->there, KR_BAD_FILE, "%s: is missing from the checkpoint", p->label);
    KR_TRY(check_hash(p));
    char *text = malloc(p->mapped.bytes + 1);
    KR_FAIL_IF(!text, KR_NO_MEMORY, "%s: no memory for %zu bytes", p->label, p->mapped.bytes);
    if (p->mapped.bytes) memcpy(text, p->mapped.data, p->mapped.bytes);
    text[p->mapped.bytes] = 0;
    *state = text;
    return KR_OK;
}

/// Everything is checked before the first tensor changes.
static kr_status load_parts(kr_session *session, unsigned what, part parts[PARTS], char **state) {
    for (int k = 0; k < GROUPS; k++)
        if (what & groups[k].load) KR_TRY(check_group(&groups[k], session, &parts[k], what & KR_LOAD_FEWER));
    if (what & KR_LOAD_STATE) KR_TRY(load_state(&parts[STATE], state));
    for (int k = 0; k < GROUPS; k++)
        if (parts[k].tensors) KR_TRY(load_group(session, &parts[k]));
    return KR_OK;
}

kr_status kr_checkpoint_load(const char *path, kr_session *session, unsigned what, char **state) {
    if (state) *state = NULL;
    KR_FAIL_IF(!session && (what & ~(unsigned)KR_LOAD_STATE), KR_BAD_ARGUMENT,
               "%s: without a session only the state of a checkpoint can be loaded", path);
    part parts[PARTS] = {0};
    char *text = NULL;
    kr_status status = open_parts(path, what, parts);
    if (!status) status = load_parts(session, what, parts, &text);
    for (int k = 0; k < PARTS; k++) {
        kr_tensors_close(parts[k].tensors);
        kr_unpacker_close(parts[k].unpacker);
        kr_map_close(&parts[k].mapped);
        free(parts[k].label);
    }
    if (state && !status) {
        *state = text;
    } else {
        free(text);
    }
    return status;
}
