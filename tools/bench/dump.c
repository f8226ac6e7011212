// krait bench model --dump FILE: what another program needs to compute the same: the weights as they start (official
// names), the batch, and the loss that comes out of them, in one safetensors file.
#include "tools/bench/bench.h"

#include <stdlib.h>
#include <string.h>

/// Entry of a parameter with its data; free() the data.
static kr_status read_param(const kr_bench_trial *t, int index, kr_tensor_entry *out) {
    const kr_slot *slot = kr_session_slot(t->session, index);
    void *data = malloc(slot->bytes + 1);
    KR_FAIL_IF(!data, KR_NO_MEMORY, "no memory for %s", slot->name);
    *out = (kr_tensor_entry){slot->name, slot->dtype, slot->shape, data, slot->bytes};
    return kr_session_read(t->session, index, data, slot->bytes);
}

/// Runs once; the loss is that of the weights before the step.
static kr_status first_loss(kr_bench_trial *t, float *loss) {
    kr_binding all[4];
    KR_FAIL_IF(kr_plan_find(t->plan, "loss") < 0, KR_BAD_ARGUMENT, "--dump: this mode has no loss; want train or eval");
    memcpy(all, t->bindings, sizeof t->bindings);
    all[t->binding_count] = (kr_binding){"loss", loss, sizeof *loss};
    return kr_plan_run(t->session, t->plan, all, t->binding_count + 1, 0);
}

static kr_status write_all(const char *path, const kr_tensor_entry *entries, int count) {
    FILE *to = fopen(path, "wbe");
    KR_FAIL_IF(!to, KR_IO, "%s: cannot be written", path);
    const kr_status status = kr_tensors_write(to, entries, count, NULL, 0);
    if (fclose(to) && !status) KR_FAIL(KR_IO, "%s: cannot be written", path);
    return status;
}

kr_status kr_bench_trial_dump(kr_bench_trial *t, const char *path) {
    const int slots = kr_session_slots(t->session);
    kr_tensor_entry *entries = calloc((size_t)slots + 3, sizeof *entries);
    KR_FAIL_IF(!entries, KR_NO_MEMORY, "no memory for the weights");
    int count = 0;
    kr_status status = KR_OK;
    for (int k = 0; k < slots && !status; k++)
        if (kr_session_slot(t->session, k)->kind == KR_SLOT_PARAM) status = read_param(t, k, &entries[count++]);
    float loss = 0;
    if (!status) status = first_loss(t, &loss);
    const int params = count;
    const kr_shape batch = KR_SHAPE(t->batch, t->length);
    const size_t bytes = (size_t)(t->batch * t->length) * sizeof *t->ids;
    entries[count++] = (kr_tensor_entry){"batch.tokens", KR_I32, batch, t->ids, bytes};
    entries[count++] = (kr_tensor_entry){"batch.targets", KR_I32, batch, t->ids + 1, bytes};
    entries[count++] = (kr_tensor_entry){"loss", KR_F32, KR_SHAPE(1), &loss, sizeof loss};
    if (!status) status = write_all(path, entries, count);
    for (int k = 0; k < params; k++) free((void *)entries[k].data);
    free(entries);
    return status;
}
