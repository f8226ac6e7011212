/// What the CPU's devices do when a plan is bound: kernels by instruction set level, and the path of products in bf16.
#include "runtime/cpu/bf16.h"
#include "runtime/cpu/internal.h"

#include <stdlib.h>

enum { MOST_THREADS = 1024 };

kr_status kr_cpu_prepare(void) {
    KR_TRY(kr_isa_environment());
    KR_TRY(kr_bf16_environment());
    kr_blas_prepare();
    return KR_OK;
}

kr_status kr_cpu_team(kr_device *device, int wanted, int *threads) {
    KR_FAIL_IF(wanted < 0 || wanted > MOST_THREADS, KR_BAD_ARGUMENT,
               "session: %d threads, want 1 to %d, or 0 for all processors", wanted, MOST_THREADS);
    *threads = ((kr_cpu_device *)device)->threads = wanted ? wanted : kr_cpu_count();
    return KR_OK;
}

kr_status kr_cpu_bind(kr_device *device, kr_bound *b) {
    (void)device;
    kr_cpu_choice *choice = b->state = calloc(1, sizeof *choice);
    KR_FAIL_IF(!choice, KR_NO_MEMORY, "no memory to bind a plan");
    choice->isa = -1;
    choice->kernel = calloc((size_t)b->step_count + 1, sizeof *choice->kernel);
    KR_FAIL_IF(!choice->kernel, KR_NO_MEMORY, "no memory to bind a plan of %d steps", b->step_count);
    for (int i = 0; i < b->step_count; i++) b->steps[i].call.bf16 = kr_bf16_best();
    return kr_cpu_choose(b, kr_isa_best());
}

void kr_cpu_unbind(kr_device *device, kr_bound *b) {
    (void)device;
    kr_cpu_choice *choice = b->state;
    if (choice) free(choice->kernel);
    free(choice);
    b->state = NULL;
}

kr_status kr_cpu_choose(kr_bound *b, kr_isa isa) {
    kr_cpu_choice *choice = b->state;
    if (choice->isa == (int)isa) return KR_OK;
    choice->isa = -1;
    for (int i = 0; i < b->step_count; i++) {
        const kr_step *step = b->steps[i].step;
        const kr_stage *stages = step->kernels;
        for (int k = 0; k < step->stages; k++) {
            choice->kernel[i][k] = stages ? kr_stage_kernel(&stages[k], isa) : NULL;
            KR_FAIL_IF(!choice->kernel[i][k], KR_UNSUPPORTED, "%s (node %d, %s): the cpu has no kernel for stage %d",
                       step->op, step->node, step->scope, k);
        }
    }
    choice->isa = (int)isa;
    return KR_OK;
}
