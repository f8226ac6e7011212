/// The executor: a plan is one parallel region. Every thread walks all steps and does its part of each; threads wait
/// for each other only where a step asks for a barrier and between the stages of a step.
///
/// Decaying states run into denormal numbers, which cost a hundred cycles each on x86 and mean nothing here, so they
/// are flushed to zero for the time of a run.
#include "runtime/cpu/internal.h"

#include <omp.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
/// Flush-to-zero and denormals-are-zero, on top of what the caller had. Gives back the latter.
static unsigned flush_denormals(void) {
    const unsigned before = _mm_getcsr();
    _mm_setcsr(before | 0x8040);
    return before;
}
static void restore_denormals(unsigned before) { _mm_setcsr(before); }
#else
static unsigned flush_denormals(void) { return 0; }
static void restore_denormals(unsigned before) { (void)before; }
#endif

// Values that are not finite --------------------------------------------------------------------------

/// Whether element `at` is NaN or infinite; by its bits, because the compiler may take finite maths for granted.
static bool not_finite(const kr_arg *arg, int64_t at, double *value) {
    const char *p = (const char *)arg->data + at * (int64_t)kr_dtype_size(arg->dtype);
    if (arg->dtype == KR_F64) {
        uint64_t bits;
        memcpy(&bits, p, sizeof bits);
        if ((bits & 0x7FF0000000000000u) != 0x7FF0000000000000u) return false;
        memcpy(value, p, sizeof bits);
        return true;
    }
    uint32_t bits;
    if (arg->dtype == KR_F32) {
        memcpy(&bits, p, sizeof bits);
    } else {
        uint16_t half;
        memcpy(&half, p, sizeof half);
        bits = (uint32_t)half << 16;
    }
    if ((bits & 0x7F800000u) != 0x7F800000u) return false;
    float single;
    memcpy(&single, &bits, sizeof bits);
    *value = single;
    return true;
}

int64_t kr_first_not_finite(const kr_arg *arg, double *value) {
    if (!arg->data || (arg->dtype != KR_F32 && arg->dtype != KR_F64 && arg->dtype != KR_BF16)) return -1;
    const int rank = arg->shape.rank;
    const int64_t total = kr_shape_count(&arg->shape), cols = kr_arg_cols(arg);
    const int64_t step = rank ? arg->stride[rank - 1] : 1;
    for (int64_t row = 0; row * cols < total; row++) {
        int64_t at = 0, rest = row;
        for (int k = rank - 2; k >= 0; k--) {
            at += rest % arg->shape.dim[k] * arg->stride[k];
            rest /= arg->shape.dim[k];
        }
        for (int64_t c = 0; c < cols; c++)
            if (not_finite(arg, at + c * step, value)) return row * cols + c;
    }
    return -1;
}

// What is found is written by thread 0 between barriers.

/// Before a step, because its outputs may take the place of its inputs.
static void check_inputs(const kr_bound_step *s, kr_finding *f) {
    f->input = -1;
    for (int k = 0; k < s->call.inputs && f->input < 0; k++) {
        f->input_at = kr_first_not_finite(&s->call.in[k], &f->input_value);
        if (f->input_at >= 0) f->input = k;
    }
}

static void check_outputs(const kr_bound_step *s, kr_finding *f) {
    for (int k = 0; k < s->call.outputs && !f->step; k++) {
        f->at = kr_first_not_finite(&s->call.out[k], &f->value);
        if (f->at < 0) continue;
        f->step = s;
        f->output = k;
    }
}

// Running --------------------------------------------------------------------------

static void wait_for_all(int parts) {
    if (parts == 1) return;
#pragma omp barrier
}

static void run_step(const kr_bound *bound, int i, int part, int parts) {
    const kr_bound_step *s = &bound->steps[i];
    kr_kernel *const *kernel = ((const kr_cpu_choice *)bound->state)->kernel[i];
    kr_call call = s->call;
    do {
        if (call.round) wait_for_all(parts);
        kernel[0](&call, part, parts);
        for (int stage = 1; stage < s->step->stages; stage++) {
            wait_for_all(parts);
            kernel[stage](&call, part, parts);
        }
    } while (++call.round < s->step->rounds);
}

static void run_freely(const kr_bound *bound, int part, int parts) {
    for (int i = 0; i < bound->step_count; i++) {
        if (bound->steps[i].step->barrier) wait_for_all(parts);
        run_step(bound, i, part, parts);
    }
}

/// Step by step, so that thread 0 can look at results and at the clock in between.
static void run_watched(const kr_bound *bound, int part, int parts, unsigned flags, kr_finding *f) {
    const bool check = flags & KR_RUN_CHECK, profile = flags & KR_RUN_PROFILE;
    for (int i = 0; i < bound->step_count; i++) {
        const kr_bound_step *s = &bound->steps[i];
        if (check && part == 0) check_inputs(s, f);
        wait_for_all(parts);
        const double start = profile ? kr_seconds() : 0;
        run_step(bound, i, part, parts);
        wait_for_all(parts);
        if (profile && part == 0) bound->plan->profile[i] += 1e9 * (kr_seconds() - start);
        if (!check) continue;
        if (part == 0) check_outputs(s, f);
        wait_for_all(parts);
        if (f->step) return;
    }
}

kr_status kr_execute(kr_bound *bound, int threads, unsigned flags) {
    KR_TRY(kr_cpu_choose(bound, kr_isa_best())); // the level may be lowered between runs
    if (bound->step_count == 0) return KR_OK;
    // In a parallel region of the caller there is a team of one; nothing else may cut the team behind our back.
    const int team = omp_in_parallel() ? 1 : threads;
    const int caller_dynamic = omp_get_dynamic();
    omp_set_dynamic(0);
    kr_finding found = {0};
#pragma omp parallel num_threads(team) shared(found)
    {
        const unsigned before = flush_denormals();
        const int blas_before = kr_blas_alone();
        const int part = omp_get_thread_num(), parts = omp_get_num_threads();
        if (flags & (KR_RUN_CHECK | KR_RUN_PROFILE)) {
            run_watched(bound, part, parts, flags, &found);
        } else {
            run_freely(bound, part, parts);
        }
        kr_blas_restore(blas_before);
        restore_denormals(before);
    }
    omp_set_dynamic(caller_dynamic);
    if (flags & KR_RUN_PROFILE) bound->plan->profiled_runs++;
    return kr_report_not_finite(bound, &found);
}

void kr_zero_parallel(void *to, size_t bytes, int threads) {
    enum { BLOCK = 2 << 20 }; // a huge page: two threads never touch the same one first
    char *p = to;
    const int64_t blocks = (int64_t)((bytes + BLOCK - 1) / BLOCK);
    const int team = blocks < 2 || omp_in_parallel() ? 1 : threads > 0 ? threads : kr_cpu_count();
#pragma omp parallel for schedule(static) num_threads(team) if (team > 1)
    for (int64_t k = 0; k < blocks; k++) {
        const size_t begin = (size_t)k * BLOCK;
        memset(p + begin, 0, bytes - begin < BLOCK ? bytes - begin : BLOCK);
    }
}
