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

static void set(variant *v, const char *key, int64_t value) {
    check_ok(kr_settings_set(&v->keys, key, "%ld", (long)value), key);
}
/// 0 leaves it to the block.
static void set_or_auto(variant *v, const char *key, int64_t value) {
    if (value) set(v, key, value);
    else check_ok(kr_settings_set(&v->keys, key, "auto"), key);
}
static void set_real(variant *v, const char *key, double value) {
    check_ok(kr_settings_set(&v->keys, key, "%.17g", value), key);
}
static void set_bool(variant *v, const char *key, int64_t value) {
    check_ok(kr_settings_set(&v->keys, key, value ? "true" : "false"), key);
}

/// Heads of 3, 5 or 16 channels, and a model width that gives them. Gives the scan's width.
static int64_t draw_heads(dice *d, variant *v) {
    const int64_t heads = ONE_OF(d, 1, 2, 3, 4, 6), headdim = ONE_OF(d, 3, 5, 16);
    const int64_t expand = heads * headdim % 2 ? 1 : ONE_OF(d, 1, 2), state = ONE_OF(d, 1, 6, 7, 16);
    set(v, "headdim", headdim);
    set(v, "expand", expand);
    v->config.d_model = heads * headdim / expand;
    set(v, "d_state", state);
    set(v, "ngroups", heads % 2 ? ONE_OF(d, 1, heads) : ONE_OF(d, 1, 2, heads));
    v->chunk = ONE_OF(d, 0, 4, 5, 7, 16);
    set_or_auto(v, "chunk_size", v->chunk);
    return heads * headdim;
}

static void draw_mamba2(dice *d, variant *v) {
    const int64_t width = draw_heads(d, v);
    if (roll(d, 4) == 0) { // channels beside the scan
        set(v, "d_ssm", width);
        v->config.d_model = width + ONE_OF(d, 1, 2, 5);
        set(v, "expand", 1);
    }
    set(v, "d_conv", ONE_OF(d, 1, 2, 3, 4));
    set_bool(v, "rmsnorm", roll(d, 3) != 0);
    set_bool(v, "norm_before_gate", roll(d, 2));
    set_bool(v, "D_has_hdim", roll(d, 2));
    if (roll(d, 3) == 0) check_ok(kr_settings_set(&v->keys, "dt_limit", "0.01,0.2"), "dt_limit");
}

static void draw_mamba3(dice *d, variant *v) {
    draw_heads(d, v);
    set_bool(v, "is_mimo", roll(d, 2));
    set(v, "mimo_rank", ONE_OF(d, 1, 2, 3, 4));
    set_bool(v, "is_outproj_norm", roll(d, 2));
    set_real(v, "rope_fraction", roll(d, 3) * 0.5); // 0: no angles
    if (roll(d, 3) == 0) set_real(v, "A_floor", 0.6);
    check_ok(kr_settings_set(&v->keys, "a_activation", roll(d, 3) == 0 ? "softplus" : "heavy_tail"), "a_activation");
}

static void draw_attention(dice *d, variant *v) {
    const int64_t heads = ONE_OF(d, 1, 2, 3, 4, 6), kv = heads % 2 ? ONE_OF(d, 1, heads) : ONE_OF(d, 1, 2, heads);
    const int64_t size = ONE_OF(d, 3, 5, 6, 16);
    set(v, "attention.num_heads", heads);
    set(v, "attention.num_heads_kv", kv);
    set(v, "attention.head_dim", size);
    set(v, "attention.rotary_emb_dim", ONE_OF(d, 0, 2, size / 2 * 2));
    set_bool(v, "attention.rotary_emb_interleaved", roll(d, 2));
    if (roll(d, 2)) set(v, "attention.rotary_emb_base", 100);
    set(v, "attention.window", ONE_OF(d, 0, 0, 1, 3, 8));
    set(v, "attention.d_conv", ONE_OF(d, 0, 0, 1, 3));
    set(v, "attention.mlp_dim", ONE_OF(d, 0, 0, 5));
    set_bool(v, "attention.qkv_proj_bias", roll(d, 2));
    set_bool(v, "attention.out_proj_bias", roll(d, 2));
    if (roll(d, 2) == 0) set_real(v, "attention.softmax_scale", 0.3);
}

variant blocks_draw(int kind, int number) {
    const char *name = kr_block_kinds[kind]->name;
    dice own = {.stream = kr_hash(name, strlen(name)) + (uint64_t)number}, *d = &own;
    variant v = {.kind = kr_block_kinds[kind], .number = number};
    v.config.d_model = ONE_OF(d, 1, 7, 16, 24, 33);
    set_bool(&v, "bias", roll(d, 2));
    set_bool(&v, "conv_bias", roll(d, 2));
    if (!strcmp(name, "mamba2")) draw_mamba2(d, &v);
    else if (!strcmp(name, "mamba3")) draw_mamba3(d, &v);
    else if (!strcmp(name, "attention")) draw_attention(d, &v);
    else { // a block passes over keys that it does not have
        set(&v, "d_state", ONE_OF(d, 1, 3, 6, 16));
        set(&v, "d_conv", ONE_OF(d, 1, 2, 3, 4));
        set(&v, "expand", ONE_OF(d, 1, 2, 3));
        set_or_auto(&v, "dt_rank", ONE_OF(d, 0, 1, 2));
        set_or_auto(&v, "hidden", ONE_OF(d, 0, 5, 130));
        if (roll(d, 2)) set(&v, "base_decay", 3);
        v.goal = !strcmp(name, "tinymamba") && roll(d, 2);
    }
    static int levels = 0; // the variants use them one after another
    if (!levels) levels = (int)kr_isa_best() + 1;
    check_ok(kr_isa_limit((kr_isa)(number % levels)), "level");
    if (!v.chunk) v.chunk = ONE_OF(d, 5, 32);
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
    if (flags & BLOCKS_CARRIES) c.capacity = capacity;
    if (flags & BLOCKS_RESET) c.reset = kr_input(g, "reset", KR_I32, KR_SHAPE(v->batch, length));
    if (v->goal) c.goal = kr_input(g, "goal", KR_F32, KR_SHAPE(v->batch, c.d_model));
    const kr_value y = kr_block_build(g, v->kind, &v->keys, &c, x);
    kr_output(g, "y", y);
    if (flags & BLOCKS_LOSS) {
        const kr_value weighed = kr_mul(g, y, kr_stop_gradient(g, kr_input(g, "weight", KR_F32, shape)));
        kr_output(g, "loss", kr_sum(g, kr_reshape(g, weighed, KR_SHAPE(-1)), 0, true));
    }
    check_ok(kr_graph_status(g), blocks_label(v));
    const kr_compile_options options = {.goal = flags & BLOCKS_LOSS ? KR_GOAL_GRADIENTS : KR_GOAL_FORWARD,
                                        .target = check_device(NULL)};
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
    check_device(&p.device);
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
