// Golden cases of blocks: forward and gradients over the whole sequence, then the same sequence through carries, the
// first tokens in one call and the rest one by one. Parameters have the names of published checkpoints.
#include "tools/golden/golden.h"

#include <string.h>

/// What a block is called in the files, and where a language model's configuration has its keys.
static const struct layer {
    const char *op, *block, *keys;
} layers[] = {
    {"mamba1_block", "mamba1", "ssm_cfg"},      {"mamba2_block", "mamba2", "ssm_cfg"},
    {"mamba3_siso_block", "mamba3", "ssm_cfg"}, {"mamba3_mimo_block", "mamba3", "ssm_cfg"},
    {"mha_block", "attention", "attn_cfg"},
};

/// A block and all that it is told.
typedef struct subject {
    const kr_block_kind *kind;
    kr_settings keys;
    kr_block_config config;
} subject;

static kr_value build(kr_graph *g, const subject *s, kr_value u) {
    return kr_block_build(g, s->kind, &s->keys, &s->config, u);
}

/// The block's configuration from `cfg`, read as a part of a language model's.
static kr_status configure(kr_golden *c, const struct layer *layer, subject *out) {
    const char *text;
    KR_TRY(kr_golden_text(c, "cfg", &text));
    const char *json = kr_pool_format(c->pool, "{\"%s\": %s}", layer->keys, text);
    KR_FAIL_IF(!json, KR_NO_MEMORY, "no memory for its configuration");
    kr_model_config model;
    KR_TRY(kr_model_config_parse(json, strlen(json), &model));
    const kr_tensor_entry *u = kr_tensors_find(c->file, "in.u");
    KR_FAIL_IF(!u || u->shape.rank != 3, KR_BAD_FILE, "it has no tensor \"in.u\" [B, L, d_model]");
    out->keys = model.keys;
    out->config = (kr_block_config){.d_model = u->shape.dim[2]};
    return KR_OK;
}

static kr_status whole_sequence(kr_golden *c, const subject *s) {
    kr_golden_graph b;
    KR_TRY(kr_golden_begin(c, &b));
    kr_graph_carries(b.g, false);
    const kr_value u = kr_golden_input(&b, "u", KR_GOLDEN_PLAIN);
    kr_golden_output(&b, "y", build(b.g, s, u), KR_GOLDEN_PLAIN);
    for (int k = 0; k < kr_tensors_count(c->file); k++) {
        const char *name = kr_tensors_at(c->file, k)->name;
        if (!strncmp(name, "grad.param.", 11))
            kr_golden_expect(&b, kr_pool_format(c->pool, "grad.%s", name + 11), name, KR_GOLDEN_PLAIN);
    }
    return kr_golden_run(&b, "in.param.");
}

// Pieces of the sequence ------------------------------------------------------------------------------------------

typedef struct recurrent {
    kr_session *session;
    kr_plan *prefill, *step;             ///< prefill may be null: all tokens one by one
    int64_t batch, length, width, first; ///< first: tokens of the first call
    const float *u;
    float *y;
} recurrent;

static kr_status compile(const kr_golden *c, const subject *s, int64_t batch, int64_t length, kr_session *session,
                         kr_plan **plan) {
    kr_graph *g;
    KR_TRY(kr_graph_new(&g));
    kr_graph_carries(g, true);
    kr_output(g, "y", build(g, s, kr_input(g, "u", KR_F32, KR_SHAPE(batch, length, s->config.d_model))));
    kr_status status = kr_graph_status(g);
    const kr_compile_options forward = {.goal = KR_GOAL_FORWARD, .target = c->target};
    if (!status) status = kr_compile(g, &forward, plan, NULL);
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

// States ------------------------------------------------------------------------------------------------------------

/// [B, E, W] to [B, W - 1, E]: the window lies time-last in the file, and its oldest column is never read again.
static kr_status read_window(kr_golden *c, const char *tensor, kr_golden_tensor *out) {
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

/// Keys (part 0) or values (part 1) out of [B, tokens, 2, Hkv, Dh], as [B, tokens, Hkv*Dh].
static kr_status read_cache(kr_golden *c, const char *tensor, int part, kr_golden_tensor *out) {
    KR_TRY(kr_golden_read(c, tensor, KR_GOLDEN_PLAIN, out));
    KR_FAIL_IF(out->shape.rank != 5 || out->shape.dim[2] != 2, KR_BAD_FILE, "tensor \"%s\" is not [B, L, 2, Hkv, Dh]",
               tensor);
    const int64_t rows = out->shape.dim[0] * out->shape.dim[1], width = out->shape.dim[3] * out->shape.dim[4];
    for (int64_t r = 0; r < rows; r++)
        memmove(out->data + r * width, out->data + (2 * r + part) * width, (size_t)width * sizeof *out->data);
    out->shape = KR_SHAPE(out->shape.dim[0], out->shape.dim[1], width);
    out->count = rows * width;
    return KR_OK;
}

/// How the states of the files are called in Krait. A cache is compared as far as it is filled.
static const struct state {
    const char *name, *carry;
    enum { WHOLE, WINDOW, ANGLE, KEYS, VALUES } kind;
} states[] = {
    {"conv_state", "conv_state", WINDOW},
    {"ssm_state", "ssm_state", WHOLE},
    {"angle", "angle_state", ANGLE},
    {"ssm", "ssm_state", WHOLE},
    {"k", "k_state", WHOLE},
    {"v", "v_state", WHOLE},
    {"kv_cache", "key_cache", KEYS},
    {"kv_cache", "value_cache", VALUES},
};

static kr_status compare_state(kr_golden *c, kr_session *s, const struct state *state, const char *tensor) {
    char is[160], want[160];
    kr_golden_tensor t;
    const bool cache = state->kind == KEYS || state->kind == VALUES;
    if (state->kind == WINDOW) KR_TRY(read_window(c, tensor, &t));
    else if (cache) KR_TRY(read_cache(c, tensor, state->kind == VALUES, &t));
    else KR_TRY(kr_golden_read(c, tensor, KR_GOLDEN_PLAIN, &t));
    const int index = kr_session_find(s, state->carry);
    KR_FAIL_IF(index < 0, KR_BAD_FILE, "the block has no carry \"%s\"", state->carry);
    kr_shape shape = kr_session_slot(s, index)->shape;
    const int64_t count = kr_shape_count(&shape), room = cache && shape.rank == 3 ? shape.dim[1] : 0;
    if (room > t.shape.dim[1]) shape.dim[1] = t.shape.dim[1];
    KR_FAIL_IF(!kr_shape_equal(&shape, &t.shape), KR_BAD_SHAPE, "tensor \"%s\" is %s, the carry is %s", tensor,
               kr_shape_text(&t.shape, is), kr_shape_text(&shape, want));
    float *got = kr_pool_take(c->pool, (size_t)(count + 1) * sizeof *got);
    KR_FAIL_IF(!got, KR_NO_MEMORY, "no memory for tensor \"%s\"", tensor);
    KR_TRY(kr_session_read(s, index, got, (size_t)count * sizeof *got));
    for (int64_t b = 0, filled = shape.dim[1] * shape.dim[2]; room && b < shape.dim[0]; b++)
        memmove(got + b * filled, got + b * room * shape.dim[2], (size_t)filled * sizeof *got);
    if (state->kind == ANGLE) kr_golden_wrap(got, &t);
    return kr_golden_compare_usual(c, tensor, got, &t);
}

/// Compares every carry with `out.<when>_<state>`.
static kr_status compare_states(kr_golden *c, kr_session *s, const char *when) {
    int compared = 0;
    for (size_t k = 0; k < sizeof states / sizeof *states; k++) {
        const char *tensor = kr_pool_format(c->pool, "out.%s_%s", when, states[k].name);
        if (!kr_golden_has(c, tensor)) continue;
        KR_TRY(compare_state(c, s, &states[k], tensor));
        compared++;
    }
    KR_FAIL_IF(!compared, KR_BAD_FILE, "it has no tensor \"out.%s_...\"", when);
    return KR_OK;
}

// Through carries -------------------------------------------------------------------------------------------------

/// Where the reference cannot go step by step the file has no states; the outputs must be the same all the same.
static kr_status run_recurrent(kr_golden *c, const subject *s, recurrent *r) {
    kr_golden_tensor u, y;
    const bool with_states = kr_tensors_metadata(c->file, "prefill_len") != NULL;
    KR_TRY(kr_golden_read(c, "in.u", KR_GOLDEN_PLAIN, &u));
    KR_TRY(kr_golden_read(c, "out.y", KR_GOLDEN_PLAIN, &y));
    KR_FAIL_IF(u.shape.rank != 3 || !kr_shape_equal(&u.shape, &y.shape), KR_BAD_FILE,
               "in.u and out.y are not [B, L, d_model]");
    r->batch = u.shape.dim[0], r->length = u.shape.dim[1], r->width = u.shape.dim[2];
    r->first = r->length / 2;
    if (with_states) KR_TRY(kr_golden_integer(c, "prefill_len", &r->first));
    KR_FAIL_IF(r->first < 0 || r->first > r->length, KR_BAD_FILE, "its prefill_len is %lld of %lld tokens",
               (long long)r->first, (long long)r->length);
    r->u = kr_golden_f32(c, &u);
    r->y = kr_pool_take(c->pool, (size_t)(y.count + 1) * sizeof *r->y);
    KR_FAIL_IF(!r->u || !r->y, KR_NO_MEMORY, "no memory for the sequence");
    KR_TRY(kr_session_open(c->device, c->threads, &r->session));
    if (r->first) KR_TRY(compile(c, s, r->batch, r->first, r->session, &r->prefill));
    KR_TRY(compile(c, s, r->batch, 1, r->session, &r->step));
    KR_TRY(kr_session_init(r->session, 0));
    KR_TRY(kr_golden_write_params(c, r->session, "in.param."));
    if (r->first) {
        KR_TRY(feed(c, r, r->prefill, 0, r->first));
        if (with_states) KR_TRY(compare_states(c, r->session, "prefill"));
    }
    for (int64_t t = r->first; t < r->length; t++) KR_TRY(feed(c, r, r->step, t, 1));
    if (with_states) KR_TRY(compare_states(c, r->session, "final"));
    return kr_golden_compare_usual(c, "out.y step by step", r->y, &y);
}

kr_status kr_golden_block(kr_golden *c) {
    const char *op;
    KR_TRY(kr_golden_text(c, "op", &op));
    const struct layer *layer = NULL;
    for (size_t k = 0; k < sizeof layers / sizeof *layers; k++)
        if (!strcmp(op, layers[k].op)) layer = &layers[k];
    subject s = {.kind = layer ? kr_block_find(layer->block) : NULL};
    if (!s.kind) {
        snprintf(c->skipped, sizeof c->skipped, "%.100s is not there yet", op);
        return KR_OK;
    }
    KR_TRY(configure(c, layer, &s));
    KR_TRY(whole_sequence(c, &s));
    s.config.capacity = kr_tensors_find(c->file, "in.u")->shape.dim[1];
    recurrent r = {0};
    const kr_status status = run_recurrent(c, &s, &r);
    kr_session_close(r.session);
    kr_plan_free(r.prefill);
    kr_plan_free(r.step);
    return status;
}
