// Golden cases of blocks: forward and gradients over the whole sequence, then the same sequence through carries, the
// first tokens in one call and the rest one by one. Parameters have the names of published checkpoints.
#include "tools/golden.h"

#include <string.h>

/// The block's configuration from `cfg`, read as the ssm_cfg of a language model.
static kr_status configure(kr_golden *c, const char *layer, kr_block_config *out) {
    const char *text;
    KR_TRY(kr_golden_text(c, "cfg", &text));
    KR_FAIL_IF(*text != '{', KR_BAD_FILE, "its metadata \"cfg\" is not a JSON object");
    const char *json = kr_pool_format(c->pool, "{\"ssm_cfg\": {\"layer\": \"%s\", %s}", layer, text + 1);
    KR_FAIL_IF(!json, KR_NO_MEMORY, "no memory for its configuration");
    kr_model_config model;
    KR_TRY(kr_model_config_parse(json, strlen(json), &model));
    const kr_tensor_entry *u = kr_tensors_find(c->file, "in.u");
    KR_FAIL_IF(!u || u->shape.rank != 3, KR_BAD_FILE, "it has no tensor \"in.u\" [B, L, d_model]");
    *out = model.block;
    out->d_model = u->shape.dim[2];
    return KR_OK;
}

static kr_status whole_sequence(kr_golden *c, const kr_block_kind *kind, const kr_block_config *config) {
    kr_golden_graph b;
    KR_TRY(kr_golden_begin(c, &b));
    kr_graph_carries(b.g, false);
    const kr_value u = kr_golden_input(&b, "u", KR_GOLDEN_PLAIN);
    kr_golden_output(&b, "y", kind->build(b.g, config, u), KR_GOLDEN_PLAIN);
    for (int k = 0; k < kr_tensors_count(c->file); k++) {
        const char *name = kr_tensors_at(c->file, k)->name;
        if (!strncmp(name, "grad.param.", 11))
            kr_golden_expect(&b, kr_pool_format(c->pool, "grad.%s", name + 11), name, KR_GOLDEN_PLAIN);
    }
    return kr_golden_run(&b, "in.param.");
}

// Through carries -------------------------------------------------------------------------------------------------

typedef struct recurrent {
    kr_session *session;
    kr_plan *prefill, *step;             ///< prefill may be null: all tokens one by one
    int64_t batch, length, width, first; ///< first: tokens of the first call
    const float *u;
    float *y;
} recurrent;

static kr_status compile(const kr_block_kind *kind, const kr_block_config *config, int64_t batch, int64_t length,
                         kr_session *session, kr_plan **plan) {
    kr_graph *g;
    KR_TRY(kr_graph_new(&g));
    kr_graph_carries(g, true);
    kr_output(g, "y", kind->build(g, config, kr_input(g, "u", KR_F32, KR_SHAPE(batch, length, config->d_model))));
    kr_status status = kr_graph_status(g);
    if (!status) status = kr_compile(g, &(kr_compile_options){.goal = KR_GOAL_FORWARD}, plan, NULL);
    kr_graph_free(g);
    return status ? status : kr_session_add(session, *plan);
}

/// Tokens [at, at + count) of every row through `plan`.
static kr_status feed(kr_golden *c, recurrent *r, kr_plan *plan, int64_t at, int64_t count) {
    const size_t row = (size_t)(count * r->width), bytes = (size_t)r->batch * row * sizeof(float);
    float *u = kr_pool_take(c->pool, bytes + 1), *y = kr_pool_take(c->pool, bytes + 1);
    KR_FAIL_IF(!u || !y, KR_NO_MEMORY, "no memory for %lld tokens", (long long)count);
    for (int64_t b = 0; b < r->batch; b++)
        memcpy(u + b * count * r->width, r->u + (b * r->length + at) * r->width, row * sizeof *u);
    KR_TRY(kr_plan_run(r->session, plan, (kr_binding[]){{"u", u, bytes}, {"y", y, bytes}}, 2, 0));
    for (int64_t b = 0; b < r->batch; b++)
        memcpy(r->y + (b * r->length + at) * r->width, y + b * count * r->width, row * sizeof *y);
    return KR_OK;
}

/// The convolution's window lies time-last in the file and has an oldest column that is never read again.
static kr_status read_state(kr_golden *c, const char *state, const char *tensor, kr_golden_tensor *out) {
    if (strcmp(state, "conv_state")) return kr_golden_read(c, tensor, KR_GOLDEN_PLAIN, out);
    KR_TRY(kr_golden_read(c, tensor, KR_GOLDEN_TIME_LAST, out));
    KR_FAIL_IF(out->shape.rank != 3 || out->shape.dim[1] < 1, KR_BAD_FILE, "tensor \"%s\" is not [B, E, W]", tensor);
    const int64_t batch = out->shape.dim[0], columns = out->shape.dim[1], width = out->shape.dim[2];
    for (int64_t b = 0; b < batch; b++)
        memmove(out->data + b * (columns - 1) * width, out->data + (b * columns + 1) * width,
                (size_t)((columns - 1) * width) * sizeof *out->data);
    out->shape.dim[1] = columns - 1;
    out->count = batch * (columns - 1) * width;
    return KR_OK;
}

/// Compares every carry with `out.<when>_<state>`.
static kr_status compare_states(kr_golden *c, kr_session *s, const char *when) {
    const char *list = kr_tensors_metadata(c->file, "state_names");
    while (list && *list) {
        const size_t length = strcspn(list, ",");
        char state[64], tensor[128], is[160], want[160];
        snprintf(state, sizeof state, "%.*s", (int)length, list);
        snprintf(tensor, sizeof tensor, "out.%s_%s", when, state);
        list += length + (list[length] == ',');
        kr_golden_tensor t;
        KR_TRY(read_state(c, state, tensor, &t));
        const int index = kr_session_find(s, state);
        KR_FAIL_IF(index < 0, KR_BAD_FILE, "the block has no carry \"%s\"", state);
        const kr_slot *slot = kr_session_slot(s, index);
        KR_FAIL_IF(!kr_shape_equal(&slot->shape, &t.shape), KR_BAD_SHAPE, "tensor \"%s\" is %s, the carry is %s",
                   tensor, kr_shape_text(&t.shape, is), kr_shape_text(&slot->shape, want));
        float *got = kr_pool_take(c->pool, (size_t)(t.count + 1) * sizeof *got);
        KR_FAIL_IF(!got, KR_NO_MEMORY, "no memory for tensor \"%s\"", tensor);
        KR_TRY(kr_session_read(s, index, got, (size_t)t.count * sizeof *got));
        KR_TRY(kr_golden_compare(c, tensor, got, &t, KR_GOLDEN_TOLERANCE, KR_GOLDEN_TOLERANCE));
    }
    return KR_OK;
}

static kr_status run_recurrent(kr_golden *c, const kr_block_kind *kind, const kr_block_config *config, recurrent *r) {
    kr_golden_tensor u, y;
    KR_TRY(kr_golden_integer(c, "prefill_len", &r->first));
    KR_TRY(kr_golden_read(c, "in.u", KR_GOLDEN_PLAIN, &u));
    KR_TRY(kr_golden_read(c, "out.y", KR_GOLDEN_PLAIN, &y));
    KR_FAIL_IF(u.shape.rank != 3 || !kr_shape_equal(&u.shape, &y.shape), KR_BAD_FILE,
               "in.u and out.y are not [B, L, d_model]");
    r->batch = u.shape.dim[0], r->length = u.shape.dim[1], r->width = u.shape.dim[2];
    KR_FAIL_IF(r->first < 0 || r->first > r->length, KR_BAD_FILE, "its prefill_len is %lld of %lld tokens",
               (long long)r->first, (long long)r->length);
    r->u = kr_golden_f32(c, &u);
    r->y = kr_pool_take(c->pool, (size_t)(y.count + 1) * sizeof *r->y);
    KR_FAIL_IF(!r->u || !r->y, KR_NO_MEMORY, "no memory for the sequence");
    KR_TRY(kr_session_open(c->device, c->threads, &r->session));
    if (r->first) KR_TRY(compile(kind, config, r->batch, r->first, r->session, &r->prefill));
    KR_TRY(compile(kind, config, r->batch, 1, r->session, &r->step));
    KR_TRY(kr_session_init(r->session, 0));
    KR_TRY(kr_golden_write_params(c, r->session, "in.param."));
    if (r->first) {
        KR_TRY(feed(c, r, r->prefill, 0, r->first));
        KR_TRY(compare_states(c, r->session, "prefill"));
    }
    for (int64_t t = r->first; t < r->length; t++) KR_TRY(feed(c, r, r->step, t, 1));
    KR_TRY(compare_states(c, r->session, "final"));
    return kr_golden_compare(c, "out.y step by step", r->y, &y, KR_GOLDEN_TOLERANCE, KR_GOLDEN_TOLERANCE);
}

kr_status kr_golden_block(kr_golden *c) {
    const char *op;
    char name[64];
    KR_TRY(kr_golden_text(c, "op", &op));
    snprintf(name, sizeof name, "%.*s", (int)(strlen(op) - strlen("_block")), op);
    const kr_block_kind *kind = kr_block_find(name);
    if (!kind) {
        snprintf(c->skipped, sizeof c->skipped, "the block %s is not there yet", name);
        return KR_OK;
    }
    kr_block_config config;
    KR_TRY(configure(c, name, &config));
    KR_TRY(whole_sequence(c, kind, &config));
    if (!kr_tensors_metadata(c->file, "state_names")) return KR_OK; // the reference has no step for this configuration
    recurrent r = {0};
    const kr_status status = run_recurrent(c, kind, &config, &r);
    kr_session_close(r.session);
    kr_plan_free(r.prefill);
    kr_plan_free(r.step);
    return status;
}
