/// Passes one by one, for tests of a single one: random graphs, compiled up to it.
#ifndef KRAIT_TESTS_PASSES_H
#define KRAIT_TESTS_PASSES_H

#include "compiler/memory/placement.h"
#include "compiler/pass.h"
#include "random_graph.h"

#include <criterion/criterion.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/// Random graph number `seed`: recurrences run forward, models train in one of the ways there are.
__attribute__((unused)) static kr_graph *graph_for(uint64_t seed, kr_compile_options *options) {
    static const kr_goal goals[4] = {KR_GOAL_TRAIN, KR_GOAL_GRADIENTS, KR_GOAL_ACCUMULATE, KR_GOAL_TRAIN_LAST};
    *options = (kr_compile_options){
        .goal = seed % 2 ? KR_GOAL_FORWARD : goals[seed / 2 % 4], .target = &kr_target_cpu, .accumulation = 2, .no_fuse = seed % 7 == 3,
        .optimizer = {.beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1, .max_norm = 1}};
    return options->goal == KR_GOAL_FORWARD ? random_recurrence(seed) : random_model(seed);
}

/// Runs the passes up to the layout pass, and the schedule pass too if asked for.
__attribute__((unused)) static void compile_up_to(kr_compilation *c, bool scheduled) {
    static kr_status (*const passes[])(kr_compilation *) = {kr_pass_specialise, kr_pass_autodiff, kr_pass_optimizer,
                                                            kr_pass_simplify, kr_pass_fuse, kr_pass_layout};
    for (size_t k = 0; k < sizeof passes / sizeof *passes; k++) check_ok(passes[k](c), "pass");
    if (scheduled) check_ok(kr_pass_schedule(c), "schedule");
    check_ok(kr_graph_verify(c->g), "verify");
}

#endif
