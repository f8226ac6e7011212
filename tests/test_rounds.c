/// Steps whose stages run several times: every stage of a round waits for all threads, and so does the next round.
#include "plans.h"

#include <criterion/criterion.h>
#include <string.h>

enum { N = 1000, ROUNDS = 7 };

/// work = y turned by one element, which another thread may have written in the round before.
static void turn(const kr_call *call, int part, int parts) {
    const float *y = call->out[0].data, *x = call->in[0].data;
    float *work = call->work;
    int64_t begin, end;
    kr_share(N, part, parts, &begin, &end);
    for (int64_t k = begin; k < end; k++) work[k] = call->round ? y[(k + 1) % N] : x[k];
}

/// y = the other half of work, and the round.
static void add(const kr_call *call, int part, int parts) {
    const float *work = call->work;
    float *y = call->out[0].data;
    int64_t begin, end;
    kr_share(N, part, parts, &begin, &end);
    for (int64_t k = begin; k < end; k++) y[k] = work[(k + N / 2) % N] + (float)call->round;
}

static const kr_stage stages[] = {{{turn}}, {{add}}};

/// A plan of two such steps, one after the other.
static kr_plan *plan_of(int64_t rounds) {
    kr_plan *plan;
    must(kr_plan_new("cpu", &plan));
    const int arena = add_slot(plan, KR_SLOT_ACTIVATION, NULL, KR_U8, KR_SHAPE(8 * N));
    const int x = add_slot(plan, KR_SLOT_IO, "x", KR_F32, KR_SHAPE(N)), y = add_output(plan, "y", KR_SHAPE(N));
    const kr_operand work = {.slot = arena, .dtype = KR_U8, .shape = KR_SHAPE(4 * N), .stride = {1}};
    const kr_operand first = row(x, 0, N), between = row(arena, 4 * N, N), last = row(y, 0, N);
    kr_step step = {.op = "rounds", .kernels = stages, .stages = 2, .rounds = rounds, .inputs = 1, .outputs = 1,
                    .in = &first, .out = &between, .work = work};
    must(kr_plan_add_step(plan, &step));
    step.in = &between;
    step.out = &last;
    must(kr_plan_add_step(plan, &step));
    must(kr_plan_finish(plan));
    return plan;
}

static void expect(int64_t rounds, const float *x, float *y) {
    float work[N], now[N];
    memcpy(now, x, sizeof now);
    for (int step = 0; step < 2; step++)
        for (int round = 0; round < rounds; round++) {
            for (int k = 0; k < N; k++) work[k] = now[round ? (k + 1) % N : k];
            for (int k = 0; k < N; k++) now[k] = work[(k + N / 2) % N] + (float)round;
        }
    memcpy(y, now, sizeof now);
}

Test(rounds, all_threads_wait_between_stages_and_rounds) {
    static float x[N], y[N], want[N];
    static const int64_t counts[] = {0, 1, ROUNDS}; // 0 means 1
    for (int k = 0; k < N; k++) x[k] = (float)(k * 37 % 101);
    for (int c = 0; c < 3; c++) {
        expect(counts[c] ? counts[c] : 1, x, want);
        for (int threads = 1; threads <= 5; threads++)
            for (int watched = 0; watched < 2; watched++) {
                kr_device *device;
                kr_session *s;
                must(kr_device_cpu(&device));
                must(kr_session_open(device, threads, &s));
                kr_plan *plan = plan_of(counts[c]);
                must(kr_session_add(s, plan));
                for (int again = 0; again < 20; again++) {
                    memset(y, 0, sizeof y);
                    const kr_binding io[] = {{"x", x, sizeof x}, {"y", y, sizeof y}};
                    must(kr_plan_run(s, plan, io, 2, watched ? KR_RUN_PROFILE : 0));
                    cr_assert(!memcmp(y, want, sizeof y), "%lld rounds, %d threads", (long long)counts[c], threads);
                }
                kr_session_close(s);
                kr_plan_free(plan);
                kr_device_close(device);
            }
    }
}
