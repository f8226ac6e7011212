/// Runs a block in three ways: a sequence at once, the same token by token, and backwards. Prints how far the first two are
/// apart, and one derivative beside the difference quotient.
#include <krait/krait.h>

#include <math.h>
#include <stdio.h>

#ifndef BLOCK
#define BLOCK kr_block_mingru
#endif
extern const kr_block_kind BLOCK;
enum { LENGTH = 12, WIDTH = 6 };

/// The block on x [1, length, WIDTH] as a plan; `live`: its state outlives the run.
static kr_status plan_of(int64_t length, bool live, kr_goal goal, kr_plan **out) {
    kr_graph *g;
    KR_TRY(kr_graph_new(&g));
    kr_graph_carries(g, live);
    kr_block_config c = kr_block_defaults();
    c.d_model = WIDTH;
    const kr_value y = BLOCK.build(g, &c, kr_input(g, "x", KR_F32, KR_SHAPE(1, length, WIDTH)));
    kr_output(g, "y", y);
    kr_output(g, "loss", kr_mean(g, kr_square(g, kr_reshape(g, y, KR_SHAPE(-1))), 0, true));
    const kr_status status = kr_compile(g, &(kr_compile_options){.goal = goal}, out, NULL);
    kr_graph_free(g);
    return status;
}

static kr_status run(kr_session *s, float *x) {
    kr_plan *whole, *step, *back;
    float y[LENGTH * WIDTH], one[WIDTH], dx[LENGTH * WIDTH], loss[3], apart = 0;
    KR_TRY(plan_of(LENGTH, false, KR_GOAL_FORWARD, &whole));
    KR_TRY(plan_of(1, true, KR_GOAL_FORWARD, &step));
    KR_TRY(plan_of(LENGTH, false, KR_GOAL_GRADIENTS, &back));
    KR_TRY(kr_session_add(s, whole));
    KR_TRY(kr_session_add(s, step));
    KR_TRY(kr_session_add(s, back));
    KR_TRY(kr_session_init(s, 1));

    kr_binding all[] = {{"x", x, sizeof y}, {"y", y, sizeof y}, {"loss", loss, sizeof *loss}, {"grad.x", dx, sizeof dx}};
    KR_TRY(kr_plan_run(s, whole, all, 2, 0));
    for (int t = 0; t < LENGTH; t++) {
        KR_TRY(kr_plan_run(s, step, (kr_binding[]){{"x", x + t * WIDTH, sizeof one}, {"y", one, sizeof one}}, 2, 0));
        for (int i = 0; i < WIDTH; i++) apart = fmaxf(apart, fabsf(one[i] - y[t * WIDTH + i]));
    }
    printf("steps and whole differ by less than 1e-6: %s\n", apart < 1e-6f ? "yes" : "no");

    const float h = 1e-2f, middle = x[7];
    for (int k = -1; k <= 1; k++) {
        x[7] = middle + (float)k * h;
        all[2].data = loss + 1 + k;
        KR_TRY(kr_plan_run(s, back, all, k ? 3 : 4, 0));
    }
    const float quotient = (loss[2] - loss[0]) / (2 * h);
    printf("gradient and quotient agree to 1 %%: %s\n", fabsf(dx[7] - quotient) < 0.01f * fabsf(quotient) ? "yes" : "no");
    kr_plan_free(whole), kr_plan_free(step), kr_plan_free(back);
    return KR_OK;
}

int main(void) {
    kr_device *device;
    kr_session *session;
    float x[LENGTH * WIDTH];
    for (int i = 0; i < LENGTH * WIDTH; i++) x[i] = kr_random_normal(1, 0, (uint64_t)i);
    kr_status status = kr_device_cpu(&device);
    if (!status) status = kr_session_open(device, 1, &session);
    if (!status) status = run(session, x);
    if (status) return printf("%s\n", kr_status_message()), 1;
    kr_session_close(session);
    kr_device_close(device);
    return 0;
}
