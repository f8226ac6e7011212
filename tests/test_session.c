/// Sessions: memory shared by plans, runs, checks of values, and the device that the host cannot look into.
#include "plans.h"

#include "runtime/cpu/internal.h"

#include <cblas.h>
#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

// Allocations, counted while `counting` ----------------------------------------------------------------------

static volatile int counting;
static int counted;

#if defined(__SANITIZE_ADDRESS__)
#define UNDER_ASAN
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define UNDER_ASAN
#endif
#endif

#if defined(UNDER_ASAN)
#include <sanitizer/asan_interface.h>
#elif defined(__GLIBC__)
#define COUNTED
void *__libc_malloc(size_t);
void *__libc_calloc(size_t, size_t);
void *__libc_realloc(void *, size_t);
void *__libc_memalign(size_t, size_t);
static void count(void) {
    if (counting) __atomic_add_fetch(&counted, 1, __ATOMIC_RELAXED);
}
void *malloc(size_t bytes) {
    count();
    return __libc_malloc(bytes);
}
void *calloc(size_t n, size_t bytes) {
    count();
    return __libc_calloc(n, bytes);
}
void *realloc(void *old, size_t bytes) {
    count();
    return __libc_realloc(old, bytes);
}
int posix_memalign(void **out, size_t align, size_t bytes) {
    count();
    *out = __libc_memalign(align, bytes);
    return *out ? 0 : ENOMEM;
}
void *aligned_alloc(size_t align, size_t bytes) {
    count();
    return __libc_memalign(align, bytes);
}
void *mmap(void *at, size_t bytes, int access, int flags, int fd, off_t offset) {
    count();
    return (void *)syscall(SYS_mmap, at, bytes, access, flags, fd, offset);
}
#endif

// Kernels --------------------------------------------------------------------------

static const kr_stage stage_product = {{product}}, stage_sum = {{sum}};

enum { N = 1000 };

/// y = x * w; h = h + y (a carry); optionally with a larger activation arena; two steps through the arena.
static kr_plan *running_sum(size_t extra) {
    kr_plan *plan;
    must(kr_plan_new("cpu", &plan));
    const int s = add_slot(plan, KR_SLOT_ACTIVATION, NULL, KR_U8, KR_SHAPE((int64_t)(4 * N + extra)));
    const int x = add_slot(plan, KR_SLOT_IO, "x", KR_F32, KR_SHAPE(N)), y = add_output(plan, "y", KR_SHAPE(N));
    kr_slot w = {
        .kind = KR_SLOT_PARAM, .name = "w", .shape = KR_SHAPE(N), .bytes = 4 * N, .init = {KR_INIT_NORMAL, 0.5, 0, 0}};
    const int weight = kr_plan_add_slot(plan, &w);
    const int h = add_slot(plan, KR_SLOT_CARRY, "h", KR_F32, KR_SHAPE(N));
    kr_slot one = {.kind = KR_SLOT_CONST, .shape = KR_SHAPE(N), .bytes = 4 * N, .splat = 1};
    const int ones = kr_plan_add_slot(plan, &one);
    must(add_step(plan, "product", &stage_product, 1, (kr_operand[]){row(x, 0, N), row(weight, 0, N)}, 2,
                  row(s, extra, N), absent));
    must(add_step(plan, "sum", &stage_sum, 1, (kr_operand[]){row(h, 0, N), row(s, extra, N)}, 2, row(h, 0, N), absent));
    must(add_step(plan, "product", &stage_product, 1, (kr_operand[]){row(h, 0, N), row(ones, 0, N)}, 2, row(y, 0, N),
                  absent));
    must(kr_plan_finish(plan));
    return plan;
}

static float x[N], y[N], w[N], h[N], want[N];

static void fill(void) {
    for (int k = 0; k < N; k++) x[k] = kr_random_normal(5, 5, (uint64_t)k);
}

static kr_status run(kr_session *s, kr_plan *plan, unsigned flags) {
    return kr_plan_run(s, plan, (kr_binding[]){{"x", x, sizeof x}, {"y", y, sizeof y}}, 2, flags);
}

// Sharing --------------------------------------------------------------------------

static void sharing(kr_status open(kr_device **)) {
    kr_device *device;
    kr_session *s;
    fill();
    must(open(&device));
    must(kr_session_open(device, 2, &s));
    cr_expect_eq(kr_session_threads(s), 2);
    kr_plan *small = running_sum(0), *large = running_sum(3 << 20);
    must(kr_session_add(s, small));
    must(kr_session_add(s, small)); // again: nothing
    must(kr_session_init(s, 7));
    must(run(s, small, 0));
    size_t before[KR_SLOT_KIND_COUNT], after[KR_SLOT_KIND_COUNT];
    kr_session_memory(s, before);
    must(kr_session_add(s, large)); // the arena moves
    kr_session_memory(s, after);
    cr_expect_eq(after[KR_SLOT_PARAM], before[KR_SLOT_PARAM]);
    cr_expect_eq(after[KR_SLOT_CARRY], before[KR_SLOT_CARRY]);
    cr_expect_eq(after[KR_SLOT_ACTIVATION], 4 * N + (3 << 20));
    cr_expect_eq(after[KR_SLOT_IO], 2 * before[KR_SLOT_IO]);
    cr_expect_geq(before[KR_SLOT_PARAM], 4 * N);
    cr_expect_eq(kr_session_slots(s), 2);
    const int i = kr_session_find(s, "w"), j = kr_session_find(s, "h");
    cr_expect_eq(i, 0);
    cr_expect_eq(j, 1);
    cr_expect_eq(kr_session_slot(s, j)->kind, KR_SLOT_CARRY);
    must(kr_session_read(s, i, w, sizeof w));
    for (int round = 1; round < 5; round++) {
        must(run(s, round % 2 ? large : small, 0));
        must(kr_session_read(s, j, h, sizeof h));
        for (int k = 0; k < N; k++) want[k] = 0;
        for (int r = 0; r <= round; r++)
            for (int k = 0; k < N; k++) want[k] += x[k] * w[k];
        cr_expect_arr_eq(y, want, sizeof want, "round %d", round);
        cr_expect_arr_eq(h, want, sizeof want, "round %d", round);
    }
    must(kr_session_reset_carries(s));
    must(run(s, small, 0));
    for (int k = 0; k < N; k++) want[k] = x[k] * w[k];
    cr_expect_arr_eq(y, want, sizeof want, "carries start again");
    for (int k = 0; k < N; k++) w[k] = 2;
    must(kr_session_write(s, i, w, sizeof w));
    must(kr_session_reset_carries(s));
    must(run(s, large, 0));
    for (int k = 0; k < N; k++) want[k] = x[k] * 2;
    cr_expect_arr_eq(y, want, sizeof want, "written parameters are used");
    kr_plan_free(small); // plans may go before the session
    kr_plan *third = running_sum(5 << 20);
    must(kr_session_add(s, third));
    must(run(s, third, 0));
    must(run(s, large, 0));
    kr_plan_free(third);
    kr_plan_free(large);
    kr_session_close(s);
    kr_device_close(device);
}

Test(session, plans_share_by_name) { sharing(kr_device_cpu); }
Test(session, plans_share_by_name_on_the_guarded_device) { sharing(kr_device_guarded); }

Test(session, a_new_plan_at_the_address_of_a_freed_one) {
    kr_device *device;
    kr_session *s;
    must(kr_device_cpu(&device));
    must(kr_session_open(device, 1, &s));
    fill();
    for (int k = 0; k < 8; k++) {
        kr_plan *plan = running_sum((size_t)k * 4);
        cr_expect_eq(run(s, plan, 0), KR_BAD_ARGUMENT, "not added yet");
        must(kr_session_add(s, plan));
        must(run(s, plan, 0));
        kr_plan_free(plan);
    }
    kr_session_close(s);
    kr_device_close(device);
}

Test(session, slots_that_differ_are_refused) {
    kr_device *device;
    kr_session *s;
    must(kr_device_cpu(&device));
    must(kr_session_open(device, 1, &s));
    kr_plan *first = running_sum(0);
    must(kr_session_add(s, first));
    static const struct {
        kr_slot_kind kind;
        const char *name;
        kr_dtype dtype;
        int64_t length;
        const char *message;
    } cases[] = {
        {KR_SLOT_PARAM, "w", KR_F32, N + 1,
         "session: \"w\" is parameter f32 [1000], the new plan has parameter f32 [1001]"},
        {KR_SLOT_PARAM, "w", KR_BF16, N,
         "session: \"w\" is parameter f32 [1000], the new plan has parameter bf16 [1000]"},
        {KR_SLOT_OPTIMIZER, "h", KR_F32, N,
         "session: \"h\" is carry f32 [1000], the new plan has optimizer f32 [1000]"},
    };
    size_t before[KR_SLOT_KIND_COUNT], after[KR_SLOT_KIND_COUNT];
    kr_session_memory(s, before);
    for (int k = 0; k < 3; k++) {
        kr_plan *plan;
        must(kr_plan_new("cpu", &plan));
        add_slot(plan, KR_SLOT_PARAM, "new", KR_F32, KR_SHAPE(5));
        add_slot(plan, cases[k].kind, cases[k].name, cases[k].dtype, KR_SHAPE(cases[k].length));
        cr_expect_eq(kr_session_add(s, plan), KR_BAD_ARGUMENT, "not finished");
        must(kr_plan_finish(plan));
        cr_expect_eq(kr_session_add(s, plan), KR_BAD_SHAPE);
        cr_expect_str_eq(kr_status_message(), cases[k].message);
        kr_plan_free(plan);
    }
    kr_session_memory(s, after);
    cr_expect_arr_eq(before, after, sizeof before, "nothing of a refused plan stays");
    cr_expect_eq(kr_session_find(s, "new"), -1);
    kr_plan_free(first);
    kr_session_close(s);
    kr_device_close(device);
}

Test(session, constants_of_every_dtype_and_empty_slots) {
    kr_device *device;
    kr_session *s;
    must(kr_device_guarded(&device));
    must(kr_session_open(device, 1, &s));
    for (int dtype = 0; dtype < KR_DTYPE_COUNT; dtype++) {
        enum { LENGTH = 40001 };
        kr_plan *plan;
        must(kr_plan_new("cpu", &plan));
        const size_t size = kr_dtype_size((kr_dtype)dtype);
        const double value = dtype == KR_BOOL ? 1 : dtype == KR_U8 ? 200 : -7;
        kr_slot slot = {.kind = KR_SLOT_CONST,
                        .dtype = (kr_dtype)dtype,
                        .shape = KR_SHAPE(LENGTH),
                        .bytes = LENGTH * size,
                        .splat = value};
        cr_assert_eq(kr_plan_add_slot(plan, &slot), 0);
        slot.shape = KR_SHAPE(3, 0), slot.bytes = 0;
        cr_assert_eq(kr_plan_add_slot(plan, &slot), 1);
        add_slot(plan, KR_SLOT_ACTIVATION, NULL, KR_U8, KR_SHAPE(0));
        must(kr_plan_finish(plan));
        must(kr_session_add(s, plan));
        const kr_bound *b = kr_session_bound(s, plan);
        for (int k = 0; k < 3; k++) cr_expect_not_null(b->address[k], "null means absent to a kernel");
        char *got = malloc(LENGTH * size), *expected = malloc(LENGTH * size);
        must(kr_device_read(device, got, b->address[0], LENGTH * size));
        must(kr_splat((kr_dtype)dtype, value, expected, LENGTH));
        cr_expect_arr_eq(got, expected, LENGTH * size, "%s", kr_dtype_name((kr_dtype)dtype));
        must(kr_plan_run(s, plan, NULL, 0, 0));
        free(got);
        free(expected);
        kr_plan_free(plan);
    }
    float half[3];
    must(kr_splat(KR_F32, 0.5, half, 3));
    cr_expect_float_eq(half[2], 0.5f, 0);
    cr_expect_eq(kr_splat(KR_U8, 256, half, 1), KR_BAD_ARGUMENT);
    cr_expect_eq(kr_splat(KR_I32, 3e9, half, 1), KR_BAD_ARGUMENT);
    cr_expect_eq(kr_splat(KR_I64, NAN, half, 1), KR_BAD_ARGUMENT);
    kr_session_close(s);
    kr_device_close(device);
}

// First values --------------------------------------------------------------------------

Test(session, init_depends_on_seed_and_name_only) {
    static float first[N], second[N];
    static uint16_t narrow[N];
    for (int round = 0; round < 2; round++) {
        kr_device *device;
        kr_session *s;
        must(round ? kr_device_guarded(&device) : kr_device_cpu(&device));
        must(kr_session_open(device, 1 + round, &s));
        kr_plan *plan = running_sum(0), *other;
        must(kr_plan_new("cpu", &other));
        kr_slot slot = {.kind = KR_SLOT_PARAM,
                        .name = "bf16",
                        .dtype = KR_BF16,
                        .shape = KR_SHAPE(N),
                        .bytes = 2 * N,
                        .init = {KR_INIT_CONSTANT, 1.5, 0, 0}};
        kr_plan_add_slot(other, &slot);
        add_slot(other, KR_SLOT_OPTIMIZER, "m", KR_F32, KR_SHAPE(N));
        add_slot(other, KR_SLOT_GRADIENT, "gradient.w", KR_F32, KR_SHAPE(N));
        must(kr_plan_finish(other));
        must(kr_session_add(s, round ? other : plan)); // in any order
        must(kr_session_add(s, round ? plan : other));
        for (int k = 0; k < kr_session_slots(s); k++) {
            memset(w, 0x41, sizeof w);
            must(kr_session_write(s, k, w, kr_session_slot(s, k)->bytes));
        }
        must(kr_session_init(s, 11));
        must(kr_session_read(s, kr_session_find(s, "w"), round ? second : first, sizeof first));
        must(kr_session_read(s, kr_session_find(s, "bf16"), narrow, sizeof narrow));
        for (int k = 0; k < N; k++) cr_assert_float_eq(kr_bf16_to_f32(narrow[k]), 1.5f, 0);
        static const char *const zeroed[] = {"m", "h", "gradient.w"};
        for (int k = 0; k < 3; k++) {
            must(kr_session_read(s, kr_session_find(s, zeroed[k]), w, sizeof w));
            for (int i = 0; i < N; i++) cr_assert_float_eq(w[i], 0, 0, "%s", zeroed[k]);
        }
        must(kr_session_init(s, 12));
        must(kr_session_read(s, kr_session_find(s, "w"), w, sizeof w));
        cr_expect_arr_neq(w, first, sizeof w, "another seed");
        cr_expect_eq(kr_session_read(s, 0, w, 3), KR_BAD_SHAPE);
        cr_expect_eq(kr_session_write(s, 99, w, 3), KR_BAD_ARGUMENT);
        kr_session_close(s);
        kr_plan_free(plan);
        kr_plan_free(other);
        kr_device_close(device);
    }
    cr_expect_arr_eq(first, second, sizeof first);
    double mean = 0, square = 0;
    for (int k = 0; k < N; k++) mean += first[k] / N, square += (double)first[k] * first[k] / N;
    cr_expect(fabs(mean) < 0.06 && fabs(sqrt(square) - 0.5) < 0.05);
}

// Runs --------------------------------------------------------------------------

Test(session, runs_allocate_nothing) {
    kr_device *device;
    kr_session *s;
    fill();
    must(kr_device_cpu(&device));
    must(kr_session_open(device, 3, &s));
    kr_plan *plan = running_sum(0);
    must(kr_session_add(s, plan));
    must(run(s, plan, 0)); // the team starts
    counting = 1;
    void *volatile own_block = malloc(1);
    free(own_block);
    const int own = counted;
    kr_status status = KR_OK;
    for (int k = 0; k < 20 && !status; k++) status = run(s, plan, 0);
    for (int k = 0; k < 5 && !status; k++) status = run(s, plan, KR_RUN_CHECK | KR_RUN_PROFILE);
    const int after = counted;
    counting = 0;
    must(status);
    cr_expect_eq(after, own, "%d allocations in the runs", after - own);
#ifdef COUNTED
    cr_expect_gt(own, 0, "the counter counts");
#endif
    kr_plan_free(plan);
    kr_session_close(s);
    kr_device_close(device);
}

Test(session, bindings_are_checked) {
    kr_device *device;
    kr_session *s;
    must(kr_device_cpu(&device));
    must(kr_session_open(device, 0, &s));
    cr_expect_eq(kr_session_threads(s), kr_cpu_count());
    kr_plan *plan = running_sum(0);
    must(kr_session_add(s, plan));
    const struct {
        kr_binding list[2];
        int count;
        const char *message;
    } cases[] = {
        {{{"z", x, sizeof x}}, 1, "run: nothing is named \"z\": the plan has inputs x; outputs y"},
        {{{NULL, x, sizeof x}}, 1, "run: nothing is named \"(null)\""},
        {{{"w", x, sizeof x}}, 1, "run: nothing is named \"w\""},
        {{{"x", x, 12}}, 1, "run: input \"x\" is f32 [1000] with 4000 bytes, got 12"},
        {{{"x", NULL, sizeof x}}, 1, "run: input \"x\" is bound to null"},
        {{{"x", x, sizeof x}, {"x", x, sizeof x}}, 2, "run: input \"x\" is bound twice"},
        {{{"y", y, sizeof y}}, 1, "run: input \"x\" is not bound"},
    };
    for (size_t k = 0; k < sizeof cases / sizeof cases[0]; k++) {
        cr_expect_neq(kr_plan_run(s, plan, cases[k].list, cases[k].count, 0), KR_OK);
        cr_expect(strstr(kr_status_message(), cases[k].message), "%s", kr_status_message());
    }
    must(kr_plan_run(s, plan, (kr_binding[]){{"x", x, sizeof x}}, 1, 0)); // outputs may be left out
    kr_session *none;
    cr_expect_eq(kr_session_open(device, -1, &none), KR_BAD_ARGUMENT);
    cr_expect_eq(kr_session_open(device, 100000, &none), KR_BAD_ARGUMENT);
    cr_expect_null(none);
    kr_plan_free(plan);
    kr_session_close(s);
    kr_device_close(device);
}

/// Threads beyond the processors, and denormal numbers, which runs flush and leave to the caller as they were.
Test(session, denormals_are_flushed_in_runs_only) {
    kr_device *device;
    kr_session *s;
    must(kr_device_cpu(&device));
    must(kr_session_open(device, 2 * kr_cpu_count() + 1, &s));
    kr_plan *plan = running_sum(0);
    must(kr_session_add(s, plan));
    for (int k = 0; k < N; k++) x[k] = 1e-20f, w[k] = 1e-20f;
    must(kr_session_write(s, kr_session_find(s, "w"), w, sizeof w));
    must(run(s, plan, 0));
#if defined(__x86_64__)
    for (int k = 0; k < N; k++) cr_assert_float_eq(y[k], 0, 0);
#endif
    volatile float tiny = 1e-20f;
    cr_expect_gt(tiny * tiny, 0.0f);
    kr_plan_free(plan);
    kr_session_close(s);
    kr_device_close(device);
}

static int threads_of_process(void) {
    int count = 0;
    DIR *tasks = opendir("/proc/self/task");
    for (struct dirent *entry; tasks && (entry = readdir(tasks));) count += entry->d_name[0] != '.';
    if (tasks) closedir(tasks);
    return count;
}

static void large_product(const kr_call *call, int part, int parts) {
    (void)part, (void)parts;
    const int n = (int)call->in[0].shape.dim[0];
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, n, n, n, 1, call->in[0].data, n, call->in[1].data, n, 0,
                call->out[0].data, n);
}

Test(session, blas_in_a_team_of_one_stays_alone) {
    enum { SIDE = 400 };
    static const kr_stage stage = {{large_product}};
    kr_device *device;
    kr_session *s;
    kr_plan *plan;
    must(kr_device_cpu(&device));
    must(kr_session_open(device, 1, &s));
    must(kr_plan_new("cpu", &plan));
    const kr_operand a = tensor(add_slot(plan, KR_SLOT_PARAM, "a", KR_F32, KR_SHAPE(SIDE, SIDE)), 0,
                                KR_SHAPE(SIDE, SIDE));
    const kr_operand b = tensor(add_output(plan, "b", KR_SHAPE(SIDE, SIDE)), 0, KR_SHAPE(SIDE, SIDE));
    must(add_step(plan, "product", &stage, 1, (kr_operand[]){a, a}, 2, b, absent));
    must(kr_plan_finish(plan));
    must(kr_session_add(s, plan));
    omp_set_num_threads(4);
    const int before = threads_of_process(); // the test's own
    must(kr_plan_run(s, plan, NULL, 0, 0));
    cr_expect_eq(threads_of_process(), before, "%d threads, were %d", threads_of_process(), before);
    cr_expect_eq(omp_get_max_threads(), 4);
    kr_plan_free(plan);
    kr_session_close(s);
    kr_device_close(device);
}

// Memory ----------------------------------------------------------------------

#ifdef UNDER_ASAN
Test(session, what_lies_between_slots_is_poisoned) {
    kr_device *device;
    kr_session *s;
    kr_plan *plan;
    must(kr_device_cpu(&device));
    must(kr_session_open(device, 1, &s));
    must(kr_plan_new("cpu", &plan));
    for (int64_t n = 0; n < 40; n++) {
        char name[8];
        snprintf(name, sizeof name, "p%d", (int)n);
        add_slot(plan, KR_SLOT_PARAM, name, KR_F32, KR_SHAPE(n));
    }
    must(kr_plan_finish(plan));
    must(kr_session_add(s, plan));
    for (int64_t n = 0; n < 40; n++) {
        char *start = kr_session_bound(s, plan)->address[n];
        cr_expect_eq((uintptr_t)start % 64, 0);
        cr_expect_null(__asan_region_is_poisoned(start, (size_t)n * 4));
        for (int k = 0; k < 64; k++)
            cr_expect(__asan_address_is_poisoned(start + n * 4 + k), "%d behind %d", k, (int)n);
    }
    kr_plan_free(plan);
    kr_session_close(s);
    kr_device_close(device);
}
#endif

/// What was added is resident before the first run.
Test(session, memory_is_touched_when_added) {
    enum { BIG = 24 << 20 };
    kr_device *device;
    kr_session *s;
    kr_plan *plan;
    must(kr_device_cpu(&device));
    must(kr_session_open(device, 2, &s));
    must(kr_plan_new("cpu", &plan));
    add_slot(plan, KR_SLOT_ACTIVATION, NULL, KR_U8, KR_SHAPE(BIG));
    add_slot(plan, KR_SLOT_OPTIMIZER, "m", KR_F32, KR_SHAPE(BIG / 4));
    must(kr_plan_finish(plan));
    must(kr_session_add(s, plan));
    const kr_bound *b = kr_session_bound(s, plan);
    static unsigned char resident[BIG / 4096 + 2];
    for (int k = 0; k < 2; k++) {
        char *start = (char *)((uintptr_t)b->address[k] / 4096 * 4096);
        cr_assert_eq(mincore(start, BIG - 4096, resident), 0);
        for (int page = 0; page < BIG / 4096 - 1; page++) cr_assert(resident[page] & 1, "slot %d, page %d", k, page);
    }
    kr_plan_free(plan);
    kr_session_close(s);
    kr_device_close(device);
}

// Pieces ------------------------------------------------------------------------------------------------------

/// Parameters larger than what is made at a time begin as kr_init_fill says, and move in pieces.
Test(session, large_parameters_in_pieces) {
    enum { TALL = 1051, WIDE = 2001, ALL = TALL * WIDE };
    static const kr_init_kind kinds[] = {KR_INIT_NORMAL, KR_INIT_LOG_ARANGE, KR_INIT_DT_BIAS, KR_INIT_CONSTANT};
    static const char *const names[] = {"a", "b", "c", "d"};
    float *whole = malloc(ALL * sizeof *whole), *got = malloc(ALL * sizeof *got);
    for (int bf16 = 0; bf16 < 2; bf16++) {
        kr_device *device;
        kr_session *s;
        kr_plan *plan;
        must(kr_device_guarded(&device));
        must(kr_session_open(device, 1, &s));
        must(kr_plan_new("cpu", &plan));
        kr_slot slot = {.kind = KR_SLOT_PARAM, .dtype = bf16 ? KR_BF16 : KR_F32, .shape = KR_SHAPE(TALL, WIDE)};
        slot.bytes = kr_tensor_bytes(slot.dtype, &slot.shape);
        for (int k = 0; k < 4; k++) {
            slot.name = names[k];
            slot.init = (kr_init){kinds[k], 0.01, 0.1, 1e-4};
            cr_assert_geq(kr_plan_add_slot(plan, &slot), 0);
        }
        must(kr_plan_finish(plan));
        must(kr_session_add(s, plan));
        must(kr_session_init(s, 5));
        for (int k = 0; k < 4; k++) {
            const kr_init init = {kinds[k], 0.01, 0.1, 1e-4};
            kr_init_fill(&init, 5, names[k], whole, ALL, WIDE);
            for (int i = 0; bf16 && i < ALL; i++) {
                const uint16_t half = kr_f32_to_bf16(whole[i]);
                memcpy((char *)whole + 2 * i, &half, 2);
            }
            must(kr_session_read(s, k, got, slot.bytes));
            cr_assert_arr_eq(got, whole, slot.bytes, "%s, %s", names[k], kr_dtype_name(slot.dtype));
        }
        must(kr_session_write_at(s, 2, slot.bytes - 1000, whole, 1000));
        must(kr_session_read_at(s, 2, slot.bytes - 1004, got, 1004));
        cr_expect_arr_eq((char *)got + 4, whole, 1000);
        must(kr_session_read_at(s, 2, slot.bytes, got, 0));
        cr_expect_eq(kr_session_read_at(s, 2, slot.bytes - 3, got, 4), KR_BAD_SHAPE);
        cr_expect_eq(kr_session_write_at(s, 2, SIZE_MAX, got, 4), KR_BAD_SHAPE);
        cr_expect_eq(kr_session_read_at(s, 4, 0, got, 4), KR_BAD_ARGUMENT);
        kr_session_close(s);
        kr_device_close(device);
        kr_plan_free(plan);
    }
    free(whole);
    free(got);
}
