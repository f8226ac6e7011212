// What a run will need, before it is allocated. The rules are the session's: activation and gradient arenas are shared
// by its plans (the largest counts), named memory exists once, inputs, outputs and constants are each plan's own.
#include "tools/train/memory.h"
#include "tools/cli/text.h"

#include <string.h>
#include <unistd.h>

/// Stack in use and thread-local data of libomp; the rest is what OpenBLAS packs for each thread, which grows with the
/// products up to a bound of its own. And what saving a checkpoint takes: a piece of a tensor, and zstd's window.
/// Measured: 0.7 to 1.5 MiB for a thread where tensors have a few MiB, 6.2 MiB where they have 12 and more; 5.8 MiB.
enum { BYTES_PER_THREAD = 1 << 20, PACKED_SHARE = 8, PACKED_AT_MOST = 6 << 20, SAVING_AT_MOST = 6 << 20 };

static size_t least(size_t a, size_t b) { return a < b ? a : b; }

/// Bytes of the largest tensor that a step reads or writes.
static size_t largest_operand(kr_plan *const *plans, int count) {
    size_t largest = 0;
    for (int p = 0; p < count; p++)
        for (int k = 0; k < kr_plan_steps(plans[p]); k++) {
            const kr_step *s = kr_plan_step(plans[p], k);
            for (int i = 0; i < s->inputs + s->outputs; i++) {
                const kr_operand *o = i < s->inputs ? &s->in[i] : &s->out[i - s->inputs];
                const size_t bytes = o->slot < 0 ? 0 : kr_tensor_bytes(o->dtype, &o->shape);
                if (bytes > largest) largest = bytes;
            }
        }
    return largest;
}

static bool is_named(const kr_slot *s) {
    return s->name && (s->kind == KR_SLOT_PARAM || s->kind == KR_SLOT_OPTIMIZER || s->kind == KR_SLOT_CARRY ||
                       s->kind == KR_SLOT_GRADIENT);
}

/// Whether a plan before number `before` has that named slot.
static bool is_known(kr_plan *const *plans, int before, const kr_slot *s) {
    for (int p = 0; p < before; p++)
        for (int k = 0; k < kr_plan_slots(plans[p]); k++) {
            const kr_slot *other = kr_plan_slot(plans[p], k);
            if (is_named(other) && !strcmp(other->name, s->name)) return true;
        }
    return false;
}

kr_memory_need kr_memory_estimate(kr_plan *const *plans, int count, int threads, size_t data) {
    kr_memory_need need = {
        .data = data, .process = kr_memory_resident(),
        .threads = (size_t)threads *
                   (BYTES_PER_THREAD + least(largest_operand(plans, count) / PACKED_SHARE, PACKED_AT_MOST))};
    for (int p = 0; p < count; p++)
        for (int k = 0; k < kr_plan_slots(plans[p]); k++) {
            const kr_slot *s = kr_plan_slot(plans[p], k);
            const bool arena = s->kind == KR_SLOT_ACTIVATION || (s->kind == KR_SLOT_GRADIENT && !s->name);
            size_t *sum = &need.slot_bytes[s->kind];
            if (arena) *sum = s->bytes > *sum ? s->bytes : *sum;
            else if (!is_named(s) || !is_known(plans, p, s)) *sum += (s->bytes + 63) / 64 * 64;
        }
    for (int kind = 0; kind < KR_SLOT_KIND_COUNT; kind++) need.arenas += need.slot_bytes[kind];
    need.saving = least(need.slot_bytes[KR_SLOT_PARAM], SAVING_AT_MOST);
    need.total = need.arenas + need.data + need.process + need.threads + need.saving;
    return need;
}

void kr_memory_print(const kr_memory_need *need, const kr_plan_stats *stats, FILE *to) {
    char a[32], b[32];
    fprintf(to, "memory\n");
    for (int kind = 0; kind < KR_SLOT_KIND_COUNT; kind++) {
        if (!need->slot_bytes[kind]) continue;
        fprintf(to, "  %-22s %12s", kr_slot_kind_name((kr_slot_kind)kind),
                kr_bytes_text((double)need->slot_bytes[kind], a));
        if (kind == KR_SLOT_ACTIVATION && stats->bound)
            fprintf(to, "   lower bound %s, ratio %.3f, without reuse %s", kr_bytes_text((double)stats->bound, a),
                    (double)stats->peak / (double)stats->bound, kr_bytes_text((double)stats->sum, b));
        fputc('\n', to);
    }
    fprintf(to, "  %-22s %12s\n", "arenas together", kr_bytes_text((double)need->arenas, a));
    fprintf(to, "  %-22s %12s\n", "text", kr_bytes_text((double)need->data, a));
    fprintf(to, "  %-22s %12s\n", "program and libraries", kr_bytes_text((double)need->process, a));
    fprintf(to, "  %-22s %12s\n", "threads", kr_bytes_text((double)need->threads, a));
    fprintf(to, "  %-22s %12s\n", "saving", kr_bytes_text((double)need->saving, a));
    fprintf(to, "  %-22s %12s\n", "expected resident", kr_bytes_text((double)need->total, a));
}

void kr_memory_curve_print(const kr_memory_curve *c, size_t besides, FILE *to) {
    fprintf(to, "  %12s %12s %9s   %s\n", "memory, MiB", "time, s", "more time", "recomputed in the backward part");
    for (int k = 0; k < c->count; k++) {
        const kr_memory_point *p = &c->at[k];
        fprintf(to, "%c %12.1f %12.4f %7.1f %%   %s\n", k == c->chosen ? '*' : ' ',
                (double)(p->bytes + besides) / 0x1p20, p->seconds, 100 * p->extra, p->recomputed ? p->what : "nothing");
    }
    fprintf(to, "  times are estimates, for two cores at fixed rates; * is the choice\n");
}

void kr_memory_curve_json(const kr_memory_curve *c, size_t besides, FILE *to) {
    fputc('[', to);
    for (int k = 0; k < c->count; k++) {
        const kr_memory_point *p = &c->at[k];
        fprintf(to, "%s{\"memory\": %zu, \"seconds\": %.6g, \"extra\": %.6g, \"recomputed\": %d, \"what\": \"%s\", "
                "\"chosen\": %s}", k ? ", " : "", p->bytes + besides, p->seconds, p->extra, p->recomputed, p->what,
                k == c->chosen ? "true" : "false");
    }
    fputc(']', to);
}

kr_status kr_memory_refuse(const kr_memory_curve *c, int64_t wanted, size_t besides) {
    const double least = (double)(c->at[c->count - 1].bytes + besides), most = (double)(c->at[0].bytes + besides);
    KR_FAIL(KR_BAD_ARGUMENT, "--memory %.1fMB is too little: the smallest plan found needs %.1fMB, the one without "
            "recomputation %.1fMB; a smaller --batch-size or a shorter --seq-len needs less", (double)wanted / 1e6,
            least / 1e6 + 0.05, most / 1e6 + 0.05); // rounded up, so that what is said is enough
}

size_t kr_memory_resident(void) {
    unsigned long long size, resident = 0;
    FILE *file = fopen("/proc/self/statm", "re");
    if (!file) return 0;
    if (fscanf(file, "%llu %llu", &size, &resident) != 2) resident = 0;
    fclose(file);
    return (size_t)resident * (size_t)sysconf(_SC_PAGESIZE);
}

/// Kilobytes in the first line of a file of /proc that reads as `format`, "KEY: %llu"; 0 where there is none.
static size_t proc_kilobytes(const char *path, const char *format) {
    FILE *file = fopen(path, "re");
    char line[160];
    unsigned long long kilobytes = 0;
    if (!file) return 0;
    while (fgets(line, sizeof line, file))
        if (sscanf(line, format, &kilobytes) == 1) break;
    fclose(file);
    return (size_t)kilobytes;
}

/// Not getrusage: its figure goes through exec, so that a large program that starts this one would be in it.
size_t kr_memory_highest(void) { return proc_kilobytes("/proc/self/status", "VmHWM: %llu") * 1024; }

size_t kr_memory_available(void) { return proc_kilobytes("/proc/meminfo", "MemAvailable: %llu") * 1024; }
