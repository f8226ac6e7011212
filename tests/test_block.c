/// Contracts of every block, for random sizes that are multiples of nothing: forward = any split through carries = token by
/// token; packed documents = separate ones, outputs and gradients; the same bits for any number of threads; nothing in,
/// nothing out; gradients against differences of the forward pass.
#include "check.h"
#include "models/models.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { VARIANTS = 10, INPUTS = 4 };

/// A block with sizes of its own.
typedef struct variant {
    const kr_block_kind *kind;
    kr_block_config config;
    int64_t batch, chunk; ///< chunk: tokens after which the block's op may begin a new chunk
    bool goal;            ///< has the input "goal" [B, d_model]
    int number;
} variant;

// Sizes -----------------------------------------------------------------------------------------------------------

typedef struct dice {
    uint64_t stream, at;
} dice;

static int64_t roll(dice *d, int64_t sides) {
    return (int64_t)((double)kr_random_uniform(31, d->stream, d->at++) * (double)sides);
}
#define ONE_OF(d, ...) ((const int64_t[]){__VA_ARGS__})[roll(d, sizeof((const int64_t[]){__VA_ARGS__}) / sizeof(int64_t))]

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

static variant draw(int kind, int number) {
    const char *name = kr_block_kinds[kind]->name;
    dice dice = {.stream = kr_hash(name, strlen(name)) + (uint64_t)number}, *d = &dice;
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

#define EACH_VARIANT(v)                                \
    for (int kind_ = 0; kind_ < kr_block_kind_count; kind_++) \
        for (int number_ = 0; number_ < VARIANTS; number_++)  \
            for (variant v = draw(kind_, number_), *once_ = &v; once_; once_ = NULL)

static int64_t size(const variant *v, int64_t length) { return v->batch * length * v->config.d_model; }

static const char *label(const variant *v) {
    static char text[64];
    snprintf(text, sizeof text, "%s, variant %d", v->kind->name, v->number);
    return text;
}

// Running ---------------------------------------------------------------------------------------------------------

enum { CARRIES = 1, RESET = 2, LOSS = 4 };

/// x [B, L, d_model] to y, with the inputs "goal" and (RESET) "reset"; LOSS: "loss" = sum y * weight.
static kr_plan *plan_of(const variant *v, int64_t length, int64_t capacity, unsigned flags) {
    kr_graph *g;
    kr_plan *plan;
    kr_block_config c = v->config;
    check_ok(kr_graph_new(&g), "graph");
    kr_graph_carries(g, flags & CARRIES);
    const kr_shape shape = KR_SHAPE(v->batch, length, c.d_model);
    const kr_value x = kr_input(g, "x", KR_F32, shape);
    if (flags & CARRIES) c.attention.capacity = capacity;
    if (flags & RESET) c.reset = kr_input(g, "reset", KR_I32, KR_SHAPE(v->batch, length));
    if (v->goal) c.goal = kr_input(g, "goal", KR_F32, KR_SHAPE(v->batch, c.d_model));
    const kr_value y = v->kind->build(g, &c, x);
    kr_output(g, "y", y);
    if (flags & LOSS) {
        const kr_value weighed = kr_mul(g, y, kr_stop_gradient(g, kr_input(g, "weight", KR_F32, shape)));
        kr_output(g, "loss", kr_sum(g, kr_reshape(g, weighed, KR_SHAPE(-1)), 0, true));
    }
    check_ok(kr_graph_status(g), label(v));
    const kr_compile_options options = {.goal = flags & LOSS ? KR_GOAL_GRADIENTS : KR_GOAL_FORWARD};
    check_ok(kr_compile(g, &options, &plan, NULL), label(v));
    kr_graph_free(g);
    return plan;
}

static void fill(float *x, int64_t n, uint64_t stream) {
    for (int64_t i = 0; i < n; i++) x[i] = kr_random_normal(5, stream, (uint64_t)i);
}

static float *random_of(int64_t n, uint64_t stream) {
    float *x = malloc((size_t)n * 4 + 4);
    fill(x, n, stream);
    return x;
}

typedef struct place {
    kr_device *device;
    kr_session *session;
    float *goal;
} place;

static place open_place(const variant *v, int threads) {
    place p;
    check_ok(kr_device_cpu(&p.device), "device");
    check_ok(kr_session_open(p.device, threads, &p.session), "session");
    p.goal = random_of(v->batch * v->config.d_model, 77);
    return p;
}

static void close_place(place p) {
    kr_session_close(p.session);
    kr_device_close(p.device);
    free(p.goal);
}

/// Largest difference as a share of the largest element.
static double worst(const float *a, const float *b, int64_t n) {
    double most = 0, scale = 1e-3;
    for (int64_t i = 0; i < n; i++) {
        most = fmax(most, isfinite(a[i]) ? fabs((double)a[i] - b[i]) : INFINITY);
        scale = fmax(scale, fabs((double)b[i]));
    }
    return most / scale;
}

/// Copies tokens [at, at + count) of every row between rows of `length` tokens and rows of `count`.
static void cut(const variant *v, void *piece, void *whole, int64_t length, int64_t at, int64_t count, int64_t width, bool out) {
    const size_t bytes = (size_t)(count * width) * 4;
    for (int64_t b = 0; b < v->batch; b++) {
        char *p = (char *)piece + (size_t)b * bytes, *w = (char *)whole + (b * length + at) * width * 4;
        memcpy(out ? w : p, out ? p : w, bytes);
    }
}

/// Runs `length` tokens, cut at the given lengths (0 ends the list when `length` is reached), through live carries; with
/// `cuts` null in one piece without carries. reset may be null.
static void run(const variant *v, float *x, int32_t *reset, float *y, int64_t length, const int64_t *cuts) {
    const unsigned flags = (cuts ? CARRIES : 0) | (reset ? RESET : 0);
    const int64_t whole[] = {length}, D = v->config.d_model;
    place p = open_place(v, 2);
    kr_plan *plans[128] = {0};
    const int64_t *list = cuts ? cuts : whole;
    for (int64_t at = 0, i = 0; at < length || !i; at += list[i++]) {
        cr_assert_leq(at + list[i], length);
        kr_plan **plan = &plans[list[i]];
        if (*plan) continue;
        *plan = plan_of(v, list[i], length, flags);
        check_ok(kr_session_add(p.session, *plan), "add");
    }
    check_ok(kr_session_init(p.session, 11), "init");
    float *in = malloc((size_t)size(v, length) * 4 + 4), *out = malloc((size_t)size(v, length) * 4 + 4);
    int32_t *starts = malloc((size_t)(v->batch * length) * 4 + 4);
    for (int64_t at = 0, i = 0; at < length || !i; at += list[i++]) {
        const int64_t count = list[i];
        const size_t bytes = (size_t)size(v, count) * 4;
        kr_binding io[INPUTS] = {{"x", in, bytes}, {"y", out, bytes}};
        int n = 2;
        if (v->goal) io[n++] = (kr_binding){"goal", p.goal, (size_t)(v->batch * D) * 4};
        if (reset) io[n++] = (kr_binding){"reset", starts, (size_t)(v->batch * count) * 4};
        cut(v, in, x, length, at, count, D, false);
        if (reset) cut(v, starts, reset, length, at, count, 1, false);
        check_ok(kr_plan_run(p.session, plans[count], io, n, 0), label(v));
        cut(v, out, y, length, at, count, D, true);
    }
    free(in), free(out), free(starts);
    close_place(p);
    for (size_t i = 0; i < sizeof plans / sizeof *plans; i++) kr_plan_free(plans[i]);
}

/// y and the gradients of loss = sum y * weight with regard to x and all parameters, one after another.
typedef struct result {
    float *y, *dx, *dw;
    int64_t weights;
} result;

static result run_gradients(const variant *v, int64_t length, float *x, int32_t *reset, float *weight, int threads) {
    place p = open_place(v, threads);
    kr_plan *plan = plan_of(v, length, 0, LOSS | (reset ? RESET : 0));
    check_ok(kr_session_add(p.session, plan), "add");
    check_ok(kr_session_init(p.session, 11), "init");
    const size_t bytes = (size_t)size(v, length) * 4;
    result r = {.y = malloc(bytes + 4), .dx = malloc(bytes + 4)};
    for (int i = 0; i < kr_session_slots(p.session); i++) r.weights += kr_shape_count(&kr_session_slot(p.session, i)->shape);
    r.dw = malloc((size_t)r.weights * 4 + 4);
    kr_binding io[64] = {{"x", x, bytes}, {"y", r.y, bytes}, {"grad.x", r.dx, bytes}, {"weight", weight, bytes}};
    int count = 4;
    if (reset) io[count++] = (kr_binding){"reset", reset, (size_t)(v->batch * length) * 4};
    if (v->goal) io[count++] = (kr_binding){"goal", p.goal, (size_t)(v->batch * v->config.d_model) * 4};
    char names[48][128];
    float *at = r.dw;
    for (int i = 0; i < kr_session_slots(p.session); i++) {
        const kr_slot *slot = kr_session_slot(p.session, i);
        snprintf(names[i], sizeof names[i], "grad.%s", slot->name);
        io[count++] = (kr_binding){names[i], at, slot->bytes};
        at += slot->bytes / 4;
    }
    check_ok(kr_plan_run(p.session, plan, io, count, 0), label(v));
    close_place(p);
    kr_plan_free(plan);
    return r;
}

static void free_result(result r) { free(r.y), free(r.dx), free(r.dw); }

// Contracts -------------------------------------------------------------------------------------------------------

Test(block, step_equals_forward_equals_any_split) {
    EACH_VARIANT(v) {
        const int64_t c = v.chunk, L = c > 16 ? c + 3 : 2 * c + 3, n = size(&v, L);
        float *x = random_of(n, 1), *whole = malloc((size_t)n * 4), *got = malloc((size_t)n * 4);
        int64_t ones[64];
        for (int i = 0; i < 64; i++) ones[i] = 1;
        const int64_t splits[][8] = {{L}, {c, L - c}, {c - 1, 1, L - c}, {c + 1, L - c - 1}, {2, 0, 1, L - 3}, {L - 1, 1}};
        run(&v, x, NULL, whole, L, NULL);
        for (int k = -1; k < 6; k++) {
            run(&v, x, NULL, got, L, k < 0 ? ones : splits[k]);
            cr_assert(worst(got, whole, n) < 1e-5, "%s: split %d is off by %g", label(&v), k, worst(got, whole, n));
        }
        free(x), free(whole), free(got);
    }
}

Test(block, the_future_does_not_matter) {
    EACH_VARIANT(v) {
        v.batch = 1; // the first tokens of a longer sequence lie together
        const int64_t c = v.chunk, L = c + 4, n = size(&v, L), lengths[] = {0, 1, c - 1, c, c + 1};
        float *x = random_of(n, 2), *whole = malloc((size_t)n * 4), *got = malloc((size_t)n * 4);
        run(&v, x, NULL, whole, L, NULL);
        for (int k = 0; k < 5; k++) {
            run(&v, x, NULL, got, lengths[k], NULL);
            cr_assert(worst(got, whole, size(&v, lengths[k])) < 1e-5, "%s: %ld tokens are off by %g", label(&v),
                      (long)lengths[k], worst(got, whole, size(&v, lengths[k])));
        }
        free(x), free(whole), free(got);
    }
}

/// Random documents: 1 where one starts.
static void draw_starts(const variant *v, int32_t *reset, int64_t length) {
    dice d = {.stream = 900 + (uint64_t)v->number};
    for (int64_t i = 0; i < v->batch * length; i++) reset[i] = roll(&d, 4) == 0;
}

Test(block, packed_documents_equal_separate_ones) {
    EACH_VARIANT(v) {
        v.batch = 1;
        const int64_t L = v.chunk + 9, D = v.config.d_model;
        int32_t *reset = malloc((size_t)L * 4);
        float *x = random_of(size(&v, L), 3), *weight = random_of(size(&v, L), 4);
        draw_starts(&v, reset, L); // the first token is a start or not: it makes no difference
        result packed = run_gradients(&v, L, x, reset, weight, 2);
        float *sum = calloc((size_t)packed.weights + 1, 4);
        for (int64_t at = 0, end; at < L; at = end) {
            for (end = at + 1; end < L && !reset[end]; end++) {}
            const int64_t n = (end - at) * D;
            result alone = run_gradients(&v, end - at, x + at * D, NULL, weight + at * D, 2);
            cr_assert(worst(packed.y + at * D, alone.y, n) < 1e-5, "%s: document at %ld differs by %g", label(&v), (long)at,
                      worst(packed.y + at * D, alone.y, n));
            cr_assert(worst(packed.dx + at * D, alone.dx, n) < 2e-5, "%s: gradient of the document at %ld differs by %g",
                      label(&v), (long)at, worst(packed.dx + at * D, alone.dx, n));
            for (int64_t w = 0; w < packed.weights; w++) sum[w] += alone.dw[w];
            free_result(alone);
        }
        cr_assert(worst(packed.dw, sum, packed.weights) < 2e-5, "%s: gradients of parameters differ by %g", label(&v),
                  worst(packed.dw, sum, packed.weights));
        free_result(packed);
        free(reset), free(sum), free(x), free(weight);
    }
}

Test(block, packed_documents_through_carries) {
    EACH_VARIANT(v) {
        if (!strcmp(v.kind->name, "attention")) continue; // generating, all of the cache is one document
        const int64_t c = v.chunk, L = c + 9, n = size(&v, L), cuts[] = {3, c, 1, 0, 4, 1};
        int32_t *reset = malloc((size_t)(v.batch * L) * 4);
        float *x = random_of(n, 5), *whole = malloc((size_t)n * 4), *got = malloc((size_t)n * 4);
        draw_starts(&v, reset, L);
        run(&v, x, reset, whole, L, NULL);
        run(&v, x, reset, got, L, cuts);
        cr_assert(worst(got, whole, n) < 1e-5, "%s: off by %g", label(&v), worst(got, whole, n));
        free(reset), free(x), free(whole), free(got);
    }
}

Test(block, same_bits_for_any_number_of_threads) {
    EACH_VARIANT(v) {
        const int64_t L = v.chunk + 9, n = size(&v, L);
        float *x = random_of(n, 6), *weight = random_of(n, 7);
        result one = run_gradients(&v, L, x, NULL, weight, 1);
        for (int threads = 2; threads <= 5; threads++) {
            result many = run_gradients(&v, L, x, NULL, weight, threads);
            cr_assert_arr_eq(one.y, many.y, (size_t)n * 4, "%s: y differs with %d threads", label(&v), threads);
            cr_assert_arr_eq(one.dx, many.dx, (size_t)n * 4, "%s: dx differs with %d threads", label(&v), threads);
            cr_assert_arr_eq(one.dw, many.dw, (size_t)one.weights * 4, "%s: dw differs with %d threads", label(&v), threads);
            free_result(many);
        }
        free_result(one);
        free(x), free(weight);
    }
}

Test(block, nothing_in_nothing_out) {
    EACH_VARIANT(v) {
        float none = 0;
        for (int k = 0; k < 3; k++) {
            v.batch = k == 1 ? 0 : 2;
            result r = run_gradients(&v, k == 1 ? 3 : 0, &none, k == 2 ? &(int32_t){0} : NULL, &none, 2);
            for (int64_t w = 0; w < r.weights; w++) cr_assert_eq(r.dw[w], 0, "%s: a gradient out of nothing", label(&v));
            free_result(r);
        }
    }
}

// Gradients -------------------------------------------------------------------------------------------------------

/// A block whose loss can be had at any point, in double, from y in f32.
typedef struct landscape {
    const variant *v;
    place place;
    kr_plan *forward, *backward;
    kr_binding io[INPUTS];
    int io_count;
    int64_t n;
    float *x, *y, *weight;
} landscape;

static double loss_of(landscape *l) {
    double loss = 0;
    check_ok(kr_plan_run(l->place.session, l->forward, l->io, l->io_count, 0), "run");
    for (int64_t i = 0; i < l->n; i++) loss += (double)l->y[i] * l->weight[i];
    return loss;
}

/// Element-wise x + step * direction into `data` (slot < 0) or a parameter.
static void move(landscape *l, int slot, float *data, const float *from, const float *direction, int64_t n, double step) {
    float *to = slot < 0 ? data : malloc((size_t)n * 4 + 4);
    for (int64_t i = 0; i < n; i++) to[i] = (float)(from[i] + step * direction[i]);
    if (slot < 0) return;
    check_ok(kr_session_write(l->place.session, slot, to, (size_t)n * 4), "write");
    free(to);
}

/// Slope along a random direction: by the gradient, and by a difference of fourth order.
static void check_slope(landscape *l, const char *name, int slot, float *data, int64_t n, const float *grad) {
    float *from = malloc((size_t)n * 4 + 4), *direction = random_of(n, kr_hash(name, strlen(name)));
    double slope = 0, norm = 0, noise = 0, at[5];
    if (slot < 0) memcpy(from, data, (size_t)n * 4);
    else check_ok(kr_session_read(l->place.session, slot, from, (size_t)n * 4), "read");
    for (int64_t i = 0; i < n; i++) slope += (double)grad[i] * direction[i], norm += (double)grad[i] * grad[i];
    const double h = 1e-2 / sqrt(1 + (double)n / 64);
    for (int k = -2; k <= 2; k++) {
        move(l, slot, data, from, direction, n, k * h);
        at[k + 2] = loss_of(l);
    }
    move(l, slot, data, from, direction, n, 0);
    for (int64_t i = 0; i < l->n; i++) noise += (double)l->y[i] * l->weight[i] * l->y[i] * l->weight[i];
    const double difference = (8 * (at[3] - at[1]) - (at[4] - at[0])) / (12 * h), error = fabs(difference - slope);
    const double allowed = 3e-3 * sqrt(norm) + 3e-7 / h * sqrt(noise);
    cr_assert(error <= allowed, "%s: the gradient of %s gives the slope %g, a difference %g (allowed: %g apart)", label(l->v),
              name, slope, difference, allowed);
    free(from), free(direction);
}

static void check_gradients(const variant *v, int64_t L) {
    const int64_t n = size(v, L), G = v->batch * v->config.d_model;
    landscape l = {.v = v, .place = open_place(v, 2), .forward = plan_of(v, L, 0, 0), .backward = plan_of(v, L, 0, LOSS),
                   .n = n, .x = random_of(n, 8), .y = malloc((size_t)n * 4 + 4), .weight = random_of(n, 9)};
    kr_session *s = l.place.session;
    check_ok(kr_session_add(s, l.forward), "add");
    check_ok(kr_session_add(s, l.backward), "add");
    check_ok(kr_session_init(s, 12), "init");
    const size_t bytes = (size_t)n * 4;
    float *dx = malloc(bytes + 4), *dgoal = malloc((size_t)G * 4), *dw[48] = {0};
    kr_binding io[64] = {{"x", l.x, bytes}, {"weight", l.weight, bytes}, {"grad.x", dx, bytes}};
    char names[48][128];
    int count = 3;
    l.io[l.io_count++] = io[0];
    l.io[l.io_count++] = (kr_binding){"y", l.y, bytes};
    if (v->goal) {
        io[count++] = l.io[l.io_count++] = (kr_binding){"goal", l.place.goal, (size_t)G * 4};
        io[count++] = (kr_binding){"grad.goal", dgoal, (size_t)G * 4};
    }
    for (int i = 0; i < kr_session_slots(s); i++) { // away from where everything starts at ones or zeros
        const kr_slot *slot = kr_session_slot(s, i);
        const int64_t many = kr_shape_count(&slot->shape);
        float *shift = random_of(many, 500 + (uint64_t)i), *start = malloc(slot->bytes + 4);
        check_ok(kr_session_read(s, i, start, slot->bytes), "read");
        move(&l, i, NULL, start, shift, many, 0.1);
        free(shift), free(start);
        snprintf(names[i], sizeof names[i], "grad.%s", slot->name);
        dw[i] = malloc(slot->bytes + 4);
        io[count++] = (kr_binding){names[i], dw[i], slot->bytes};
    }
    check_ok(kr_plan_run(s, l.backward, io, count, 0), label(v));
    check_slope(&l, "x", -1, l.x, n, dx);
    if (v->goal) check_slope(&l, "goal", -1, l.place.goal, G, dgoal);
    for (int i = 0; i < kr_session_slots(s); i++) {
        const kr_slot *slot = kr_session_slot(s, i);
        check_slope(&l, slot->name, i, NULL, kr_shape_count(&slot->shape), dw[i]);
        free(dw[i]);
    }
    close_place(l.place);
    kr_plan_free(l.forward), kr_plan_free(l.backward);
    free(l.x), free(l.y), free(l.weight), free(dx), free(dgoal);
}

Test(block, gradients_are_slopes) {
    EACH_VARIANT(v) {
        v.config.dt_limit_min = v.config.dt_limit_max = v.config.A_floor = 0; // these have kinks
        check_gradients(&v, v.number % 3 ? v.chunk + 3 : 1);
    }
}
