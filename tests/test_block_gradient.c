/// Gradients of whole blocks against differences of their forward pass.
#include "blocks.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { INPUTS = 4, PARAMS = 48 };

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
static void move(landscape *l, int slot, float *data, const float *from, const float *direction, int64_t n,
                 double step) {
    float *to = slot < 0 ? data : malloc((size_t)n * 4 + 4);
    for (int64_t i = 0; i < n; i++) to[i] = (float)(from[i] + step * direction[i]);
    if (slot < 0) return;
    check_ok(kr_session_write(l->place.session, slot, to, (size_t)n * 4), "write");
    free(to);
}

/// A difference of fourth order along `direction`.
static double difference(landscape *l, int slot, float *data, const float *from, const float *direction, int64_t n,
                         double h) {
    double at[5];
    for (int k = -2; k <= 2; k++) {
        move(l, slot, data, from, direction, n, k * h);
        at[k + 2] = loss_of(l);
    }
    move(l, slot, data, from, direction, n, 0);
    return (8 * (at[3] - at[1]) - (at[4] - at[0])) / (12 * h);
}

/// Slope along a random direction: by the gradient, and by differences. Small steps see the roundings of y, large ones
/// leave the neighbourhood where a norm of few channels is smooth: one of three must agree.
static void check_slope(landscape *l, const char *name, int slot, float *data, int64_t n, const float *grad) {
    static const double steps[] = {1e-2, 3e-3, 1e-3};
    float *from = malloc((size_t)n * 4 + 4), *direction = blocks_random(n, kr_hash(name, strlen(name)));
    double slope = 0, norm = 0, noise = 0, got[3];
    bool agrees = false;
    if (slot < 0) memcpy(from, data, (size_t)n * 4);
    else check_ok(kr_session_read(l->place.session, slot, from, (size_t)n * 4), "read");
    for (int64_t i = 0; i < n; i++) slope += (double)grad[i] * direction[i], norm += (double)grad[i] * grad[i];
    loss_of(l);
    for (int64_t i = 0; i < l->n; i++) noise += (double)l->y[i] * l->weight[i] * l->y[i] * l->weight[i];
    for (int k = 0; k < 3; k++) {
        const double h = steps[k] / sqrt(1 + (double)n / 64);
        got[k] = agrees ? slope : difference(l, slot, data, from, direction, n, h);
        agrees |= fabs(got[k] - slope) <= 3e-3 * sqrt(norm) + 3e-7 / h * sqrt(noise);
    }
    cr_assert(agrees, "%s: the gradient of %s (norm %g) gives the slope %g, differences give %g, %g and %g",
              blocks_label(l->v), name, sqrt(norm), slope, got[0], got[1], got[2]);
    free(from), free(direction);
}

/// Of x, the goal and every parameter, at a point away from the ones and zeros where parameters start.
static void check_gradients(const variant *v, int64_t L) {
    const int64_t n = blocks_size(v, L), G = v->batch * v->config.d_model;
    landscape l = {.v = v,
                   .place = blocks_open(v, 2),
                   .forward = blocks_plan(v, L, 0, 0),
                   .backward = blocks_plan(v, L, 0, BLOCKS_LOSS),
                   .n = n,
                   .x = blocks_random(n, 8),
                   .y = malloc((size_t)n * 4 + 4),
                   .weight = blocks_random(n, 9)};
    kr_session *s = l.place.session;
    check_ok(kr_session_add(s, l.forward), "add");
    check_ok(kr_session_add(s, l.backward), "add");
    check_ok(kr_session_init(s, 12), "init");
    const size_t bytes = (size_t)n * 4;
    float *dx = malloc(bytes + 4), *dgoal = malloc((size_t)G * 4), *dw[PARAMS] = {0};
    kr_binding io[64] = {{"x", l.x, bytes}, {"weight", l.weight, bytes}, {"grad.x", dx, bytes}};
    char names[PARAMS][128];
    int count = 3;
    l.io[l.io_count++] = io[0];
    l.io[l.io_count++] = (kr_binding){"y", l.y, bytes};
    if (v->goal) {
        io[count++] = l.io[l.io_count++] = (kr_binding){"goal", l.place.goal, (size_t)G * 4};
        io[count++] = (kr_binding){"grad.goal", dgoal, (size_t)G * 4};
    }
    for (int i = 0; i < kr_session_slots(s); i++) {
        const kr_slot *slot = kr_session_slot(s, i);
        const int64_t many = kr_shape_count(&slot->shape);
        float *shift = blocks_random(many, 500 + (uint64_t)i), *start = malloc(slot->bytes + 4);
        check_ok(kr_session_read(s, i, start, slot->bytes), "read");
        move(&l, i, NULL, start, shift, many, 0.1);
        free(shift), free(start);
        snprintf(names[i], sizeof names[i], "grad.%s", slot->name);
        dw[i] = malloc(slot->bytes + 4);
        io[count++] = (kr_binding){names[i], dw[i], slot->bytes};
    }
    check_ok(kr_plan_run(s, l.backward, io, count, 0), blocks_label(v));
    check_slope(&l, "x", -1, l.x, n, dx);
    if (v->goal) check_slope(&l, "goal", -1, l.place.goal, G, dgoal);
    for (int i = 0; i < kr_session_slots(s); i++) {
        const kr_slot *slot = kr_session_slot(s, i);
        check_slope(&l, slot->name, i, NULL, kr_shape_count(&slot->shape), dw[i]);
        free(dw[i]);
    }
    blocks_close(l.place);
    kr_plan_free(l.forward), kr_plan_free(l.backward);
    free(l.x), free(l.y), free(l.weight), free(dx), free(dgoal);
}

Test(block_gradient, slopes) {
    EACH_VARIANT(v) {
        // Clamps have kinks; the norm of one number is its sign
        const char *state = kr_settings_get(&v.keys, "d_state");
        check_ok(kr_settings_set(&v.keys, "dt_limit", "0,inf"), "dt_limit");
        check_ok(kr_settings_set(&v.keys, "A_floor", "1e-4"), "A_floor");
        if (state && !strcmp(state, "1")) check_ok(kr_settings_set(&v.keys, "d_state", "2"), "d_state");
        check_gradients(&v, v.number % 3 ? v.chunk + 3 : 1);
    }
}
