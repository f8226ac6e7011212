#include "blocks.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

// Sizes -----------------------------------------------------------------------------------------------------------

typedef struct dice {
    uint64_t stream, at;
} dice;

static int64_t roll(dice *d, int64_t sides) {
    return (int64_t)((double)kr_random_uniform(31, d->stream, d->at++) * (double)sides);
}
#define ONE_OF(d, ...) \
    ((const int64_t[]){__VA_ARGS__})[roll(d, sizeof((const int64_t[]){__VA_ARGS__}) / sizeof(int64_t))]

/// Heads of 3, 5 or 16 channels, and a model width that gives them.
static int64_t draw_heads(dice *d, kr_block_config *c) {
    const int64_t heads = ONE_OF(d, 1, 2, 3, 4, 6);
    c->headdim = ONE_OF(d, 3, 5, 16);
    c->expand = heads * c->headdim % 2 ? 1 : ONE_OF(d, 1, 2);
    c->d_model = heads * c->headdim / c->expand;
    c->d_state = ONE_OF(d, 1, 6, 7, 16);
    c->ngroups = heads % 2 ? ONE_OF(d, 1, heads) : ONE_OF(d, 1, 2, heads);
    c->chunk_size = ONE_OF(d, 0, 4, 5, 7, 16);
    return heads;
}

static void draw_mamba2(dice *d, kr_block_config *c) {
    draw_heads(d, c);
    if (roll(d, 4) == 0) { // channels beside the scan
        c->d_ssm = c->expand * c->d_model;
        c->d_model = c->d_ssm + ONE_OF(d, 1, 2, 5);
        c->expand = 1;
    }
    c->d_conv = ONE_OF(d, 1, 2, 3, 4);
    c->no_rmsnorm = roll(d, 3) == 0;
    c->norm_before_gate = roll(d, 2);
    c->D_has_hdim = roll(d, 2);
    if (roll(d, 3) == 0) c->dt_limit_min = 0.01, c->dt_limit_max = 0.2;
}

static void draw_mamba3(dice *d, kr_block_config *c) {
    draw_heads(d, c);
    c->is_mimo = roll(d, 2);
    c->mimo_rank = ONE_OF(d, 1, 2, 3, 4);
    c->is_outproj_norm = roll(d, 2);
    c->rope_fraction = roll(d, 2) ? 0.5 : 1;
    if (roll(d, 3) == 0) c->A_floor = 0.6;
    c->a_activation = roll(d, 3) == 0 ? KR_A_SOFTPLUS : KR_A_HEAVY_TAIL;
}

static void draw_attention(dice *d, kr_attention_config *a) {
    a->num_heads = ONE_OF(d, 1, 2, 3, 4, 6);
    a->num_heads_kv = a->num_heads % 2 ? ONE_OF(d, 1, a->num_heads) : ONE_OF(d, 1, 2, a->num_heads);
    a->head_dim = ONE_OF(d, 3, 5, 6, 16);
    a->rotary_emb_dim = ONE_OF(d, 0, 2, a->head_dim / 2 * 2);
    a->rotary_emb_interleaved = roll(d, 2);
    a->rotary_emb_base = ONE_OF(d, 0, 100);
    a->window = ONE_OF(d, 0, 0, 1, 3, 8);
    a->d_conv = ONE_OF(d, 0, 0, 1, 3);
    a->mlp_dim = ONE_OF(d, 0, 0, 5);
    a->qkv_proj_bias = roll(d, 2);
    a->out_proj_bias = roll(d, 2);
    a->softmax_scale = roll(d, 2) ? 0 : 0.3;
}

variant blocks_draw(int kind, int number) {
    const char *name = kr_block_kinds[kind]->name;
    dice own = {.stream = kr_hash(name, strlen(name)) + (uint64_t)number}, *d = &own;
    variant v = {.kind = kr_block_kinds[kind], .config = kr_block_defaults(), .number = number};
    kr_block_config *c = &v.config;
    c->d_model = ONE_OF(d, 1, 7, 16, 24, 33);
    c->bias = roll(d, 2);
    c->conv_bias = roll(d, 2);
    if (!strcmp(name, "mamba2")) draw_mamba2(d, c);
    else if (!strcmp(name, "mamba3")) draw_mamba3(d, c);
    else if (!strcmp(name, "attention")) draw_attention(d, &c->attention);
    else {
        c->d_state = ONE_OF(d, 1, 3, 6, 16);
        c->d_conv = ONE_OF(d, 1, 2, 3, 4);
        c->expand = ONE_OF(d, 1, 2, 3);
        c->dt_rank = ONE_OF(d, 0, 1, 2);
        c->hidden = ONE_OF(d, 0, 5, 130);
        c->base_decay = (double)ONE_OF(d, 0, 3);
        v.goal = !strcmp(name, "tinymamba") && roll(d, 2);
    }
    static int levels = 0; // the variants take turns in using them
    if (!levels) levels = (int)kr_isa_best() + 1;
    check_ok(kr_isa_limit((kr_isa)(number % levels)), "level");
    v.chunk = c->chunk_size > 0 ? c->chunk_size : ONE_OF(d, 5, 32);
    v.batch = ONE_OF(d, 1, 1, 2, 3);
    return v;
}

int64_t blocks_size(const variant *v, int64_t length) { return v->batch * length * v->config.d_model; }

const char *blocks_label(const variant *v) {
    static char text[64];
    snprintf(text, sizeof text, "%s, variant %d", v->kind->name, v->number);
    return text;
}

// Running ---------------------------------------------------------------------------------------------------------

kr_plan *blocks_plan(const variant *v, int64_t length, int64_t capacity, unsigned flags) {
    kr_graph *g;
    kr_plan *plan;
    kr_block_config c = v->config;
    check_ok(kr_graph_new(&g), "graph");
    kr_graph_carries(g, flags & BLOCKS_CARRIES);
    const kr_shape shape = KR_SHAPE(v->batch, length, c.d_model);
    const kr_value x = kr_input(g, "x", KR_F32, shape);
    if (flags & BLOCKS_CARRIES) c.attention.capacity = capacity;
    if (flags & BLOCKS_RESET) c.reset = kr_input(g, "reset", KR_I32, KR_SHAPE(v->batch, length));
    if (v->goal) c.goal = kr_input(g, "goal", KR_F32, KR_SHAPE(v->batch, c.d_model));
    const kr_value y = v->kind->build(g, &c, x);
    kr_output(g, "y", y);
    if (flags & BLOCKS_LOSS) {
        const kr_value weighed = kr_mul(g, y, kr_stop_gradient(g, kr_input(g, "weight", KR_F32, shape)));
        kr_output(g, "loss", kr_sum(g, kr_reshape(g, weighed, KR_SHAPE(-1)), 0, true));
    }
    check_ok(kr_graph_status(g), blocks_label(v));
    const kr_compile_options options = {.goal = flags & BLOCKS_LOSS ? KR_GOAL_GRADIENTS : KR_GOAL_FORWARD};
    check_ok(kr_compile(g, &options, &plan, NULL), blocks_label(v));
    kr_graph_free(g);
    return plan;
}

float *blocks_random(int64_t n, uint64_t stream) {
    float *x = malloc((size_t)n * 4 + 4);
    for (int64_t i = 0; i < n; i++) x[i] = kr_random_normal(5, stream, (uint64_t)i);
    return x;
}

place blocks_open(const variant *v, int threads) {
    place p;
    check_ok(kr_device_cpu(&p.device), "device");
    check_ok(kr_session_open(p.device, threads, &p.session), "session");
    p.goal = blocks_random(v->batch * v->config.d_model, 77);
    return p;
}

void blocks_close(place p) {
    kr_session_close(p.session);
    kr_device_close(p.device);
    free(p.goal);
}

double blocks_worst(const float *a, const float *b, int64_t n) {
    double most = 0, scale = 1e-3;
    for (int64_t i = 0; i < n; i++) {
        most = fmax(most, isfinite(a[i]) ? fabs((double)a[i] - b[i]) : INFINITY);
        scale = fmax(scale, fabs((double)b[i]));
    }
    return most / scale;
}
