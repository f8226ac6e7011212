/// A program outside of Krait that knows only what `meson install` installs: it builds a small network in C, trains it,
/// and runs it on new data with the trained parameters. The same text is shown in the README's chapter on the library.
#include <krait/krait.h>

#include <math.h>

enum { BATCH = 64, HIDDEN = 32, STEPS = 300 };

/// y = W2 tanh(W1 x + b1) + b2, to learn sin(x1) * x2.
static kr_value network(kr_graph *g) {
    kr_init uniform = {KR_INIT_UNIFORM, 1, 0, 0}, zeros = {KR_INIT_ZEROS, 0, 0, 0};
    kr_value x = kr_input(g, "x", KR_F32, KR_SHAPE(BATCH, 2));
    kr_value w1 = kr_param(g, "w1", KR_SHAPE(HIDDEN, 2), uniform, KR_PARAM_DECAY);
    kr_value b1 = kr_param(g, "b1", KR_SHAPE(HIDDEN), uniform, 0);
    kr_value w2 = kr_param(g, "w2", KR_SHAPE(1, HIDDEN), uniform, KR_PARAM_DECAY);
    kr_value b2 = kr_param(g, "b2", KR_SHAPE(1), zeros, 0);
    return kr_linear(g, kr_tanh(g, kr_linear(g, x, w1, b1)), w2, b2);
}

static void examples(uint64_t stream, float x[BATCH][2], float y[BATCH]) {
    for (int i = 0; i < BATCH; i++) {
        for (int k = 0; k < 2; k++) x[i][k] = 4 * kr_random_uniform(7, stream, (uint64_t)(2 * i + k)) - 2;
        y[i] = sinf(x[i][0]) * x[i][1];
    }
}

static kr_status learn(kr_session *session, float *first, float *last) {
    kr_graph *g = 0;
    KR_TRY(kr_graph_new(&g));
    kr_value wanted = kr_input(g, "y", KR_F32, KR_SHAPE(BATCH, 1));
    kr_value error = kr_square(g, kr_sub(g, network(g), wanted));
    kr_output(g, "loss", kr_mean(g, kr_reshape(g, error, KR_SHAPE(BATCH)), 0, true));

    kr_compile_options options = {.goal = KR_GOAL_TRAIN, .optimizer = {0.9, 0.99, 1e-8, 0.01, 1.0}};
    kr_plan *plan = 0;
    kr_plan_stats stats;
    kr_status status = kr_compile(g, &options, &plan, &stats);
    kr_graph_free(g);
    KR_TRY(status);
    status = kr_session_add(session, plan);
    if (status == KR_OK) status = kr_session_init(session, 1);
    for (int t = 1; t <= STEPS && status == KR_OK; t++) {
        float x[BATCH][2], y[BATCH], learning_rate = 0.03f, loss = 0;
        examples((uint64_t)t, x, y);
        kr_binding run[] = {{"x", x, sizeof x}, {"y", y, sizeof y}, {"loss", &loss, sizeof loss},
                            {"learning_rate", &learning_rate, sizeof learning_rate}};
        status = kr_plan_run(session, plan, run, 4, 0);
        if (t == 1) *first = loss;
        *last = loss;
    }
    kr_plan_free(plan);
    return status;
}

/// A second plan of the same session finds the trained parameters by their names.
static kr_status apply(kr_session *session, float x[BATCH][2], float y[BATCH]) {
    kr_graph *g = 0;
    KR_TRY(kr_graph_new(&g));
    kr_output(g, "y", network(g));
    kr_compile_options options = {.goal = KR_GOAL_FORWARD};
    kr_plan *plan = 0;
    kr_plan_stats stats;
    kr_status status = kr_compile(g, &options, &plan, &stats);
    kr_graph_free(g);
    KR_TRY(status);
    kr_binding run[] = {{"x", x, sizeof(float[BATCH][2])}, {"y", y, sizeof(float[BATCH])}};
    status = kr_session_add(session, plan);
    if (status == KR_OK) status = kr_plan_run(session, plan, run, 2, 0);
    kr_plan_free(plan);
    return status;
}

int main(void) {
    kr_device *device = 0;
    kr_session *session = 0;
    float first = 0, last = 0, x[BATCH][2], wanted[BATCH], got[BATCH];
    double error = 0;

    kr_status status = kr_device_cpu(&device);
    if (status == KR_OK) status = kr_session_open(device, 2, &session);
    if (status == KR_OK) status = learn(session, &first, &last);
    examples(1 << 20, x, wanted);
    if (status == KR_OK) status = apply(session, x, got);
    if (status != KR_OK)
        fprintf(stderr, "%s: %s (%s)\n", kr_status_name(status), kr_status_message(), kr_status_place());
    kr_session_close(session);
    kr_device_close(device);
    if (status != KR_OK) return 1;

    for (int i = 0; i < BATCH; i++) error += (got[i] - wanted[i]) * (got[i] - wanted[i]) / BATCH;
    printf("loss %.4f at the first step, %.4f at the last, %.4f on new data\n", first, last, error);
    return first > 0.3f && last < 0.1f && error < 0.1 ? 0 : 1;
}
