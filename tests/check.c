#include "tests/check.h"
#include "runtime/cpu/bf16.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

// Tensors in any layout ---------------------------------------------------------------------------------------------

enum layout { PACKED, ROWS, STRIDED, BROADCAST };
enum { GUARD = 128, FILL = 0xff }; // 0xff bytes are NaN as f32, f64 and bf16, and -1 or 255 as integers

/// A tensor and every byte of its allocation, so that stray writes show.
typedef struct box {
    kr_arg arg;
    unsigned char *base;
    size_t bytes, guard;
} box;

/// Packed row-major strides; `flat` is an axis of stride 0, or -1.
static void pack(kr_arg *a, int flat) {
    int64_t step = 1;
    for (int k = a->shape.rank - 1; k >= 0; k--) {
        a->stride[k] = k == flat ? 0 : step;
        step *= k == flat ? 1 : a->shape.dim[k];
    }
}

static int64_t offset_of(const kr_arg *a, int64_t index) {
    int64_t at = 0;
    for (int k = a->shape.rank - 1; k >= 0; k--) {
        at += index % a->shape.dim[k] * a->stride[k];
        index /= a->shape.dim[k];
    }
    return at;
}

/// Outputs have guard bands; inputs end where their last element does, so that AddressSanitizer sees reads beyond.
/// `flat` is an axis to give stride 0, or -1 (strided and broadcast layouts only).
static box make_box(kr_dtype dtype, const kr_shape *shape, enum layout layout, int flat, bool guarded) {
    box b = {.arg = {.dtype = dtype, .shape = *shape}, .guard = guarded ? GUARD : 0};
    if (shape->rank < 0) return b;
    kr_arg *a = &b.arg;
    const int rank = shape->rank;
    if (layout == PACKED || layout == BROADCAST) pack(a, layout == BROADCAST ? flat : -1);
    int64_t step = 1;
    if (layout == ROWS)
        for (int k = rank - 1; k >= 0; k--) {
            a->stride[k] = step;
            step *= k == rank - 1 ? a->shape.dim[k] + 3 : a->shape.dim[k];
        }
    if (layout == STRIDED) { // first axis fastest, and gaps
        step = 2;
        for (int k = 0; k < rank; k++) {
            a->stride[k] = step;
            step = step * a->shape.dim[k] + 1;
        }
    }
    if (layout == STRIDED && flat >= 0 && flat < rank) a->stride[flat] = 0;
    int64_t last = 0;
    for (int k = 0; k < rank; k++) last += a->shape.dim[k] > 0 ? (a->shape.dim[k] - 1) * a->stride[k] : 0;
    const size_t used = kr_shape_count(shape) ? (size_t)(last + 1) * kr_dtype_size(dtype) : 0;
    b.bytes = used + 2 * b.guard;
    if (posix_memalign((void **)&b.base, 64, b.bytes ? b.bytes : 1)) cr_assert(false, "no memory for the test");
    memset(b.base, FILL, b.bytes);
    a->data = b.base + b.guard;
    return b;
}

static void box_write(box *b, const double *values) {
    const int64_t n = kr_shape_count(&b->arg.shape);
    for (int64_t i = 0; i < n; i++) check_set(b->arg.data, b->arg.dtype, offset_of(&b->arg, i), values[i]);
}

/// A packed copy, in the box's own dtype.
static void *box_read(const box *b) {
    const int64_t n = kr_shape_count(&b->arg.shape);
    const size_t size = kr_dtype_size(b->arg.dtype);
    unsigned char *to = malloc((size_t)n * size + 1);
    for (int64_t i = 0; i < n; i++)
        memcpy(to + (size_t)i * size, (unsigned char *)b->arg.data + (size_t)offset_of(&b->arg, i) * size, size);
    return to;
}

/// Every byte outside of the elements is as it was.
static void box_check_guards(const box *b, const char *what) {
    const int64_t n = kr_shape_count(&b->arg.shape);
    const size_t size = kr_dtype_size(b->arg.dtype);
    unsigned char *owned = calloc(b->bytes + 1, 1);
    for (int64_t i = 0; i < n; i++) memset(owned + b->guard + (size_t)offset_of(&b->arg, i) * size, 1, size);
    for (size_t i = 0; i < b->bytes; i++)
        cr_assert(owned[i] || b->base[i] == FILL, "%s: wrote outside of the output, at byte %td of %zu", what,
                  (ptrdiff_t)i - (ptrdiff_t)b->guard, b->bytes - 2 * b->guard);
    free(owned);
}

// Calls -------------------------------------------------------------------------------------------------------------

static void copy_view(const kr_arg *from, const kr_layout *layout, const kr_arg *to) {
    const kr_arg view = {.data = from->data, .dtype = from->dtype, .shape = layout->shape};
    kr_arg v = view;
    memcpy(v.stride, layout->stride, sizeof v.stride);
    const size_t size = kr_dtype_size(from->dtype);
    const int64_t n = kr_shape_count(&to->shape);
    for (int64_t i = 0; i < n; i++)
        memcpy((unsigned char *)to->data + (size_t)offset_of(to, i) * size,
               (unsigned char *)from->data + (size_t)(layout->offset + offset_of(&v, i)) * size, size);
}

const kr_target *check_device(kr_device **device) {
    const char *name = getenv("KRAIT_TEST_DEVICE");
    const kr_target *target;
    kr_device *opened;
    check_ok(kr_device_open(name ? name : "cpu", &target, &opened), "device");
    if (device) *device = opened;
    else kr_device_close(opened);
    return target;
}

const char *check_level_name(kr_isa level) { return level == CHECK_REFERENCE ? "reference" : kr_isa_name(level); }

const kr_target *check_target(kr_isa level) {
    static const kr_target *reference;
    if (level != CHECK_REFERENCE) return &kr_target_cpu;
    if (!reference) check_ok(kr_target_find("reference", &reference), "KRAIT_TARGET_PATH names the folder of tests");
    return reference;
}

kr_status check_call(const kr_op *op, const kr_attrs *attrs, const kr_arg *in, int inputs, const kr_arg *out,
                     kr_isa isa, int parts, bool reverse) {
    if (op->flags & KR_OP_VIEW) {
        kr_layout from = {.shape = in[0].shape}, to;
        memcpy(from.stride, in[0].stride, sizeof from.stride);
        KR_FAIL_IF(!op->view(attrs, &from, &out[0].shape, &to), KR_UNSUPPORTED, "%s: no view of this layout", op->name);
        copy_view(&in[0], &to, &out[0]);
        return KR_OK;
    }
    const kr_impl *impl;
    KR_TRY(kr_target_impl(check_target(isa), op, &impl));
    kr_shape in_shape[inputs + 1], out_shape[CHECK_MAX];
    for (int i = 0; i < inputs; i++) in_shape[i] = in[i].shape;
    for (int k = 0; k < kr_op_outputs(op, attrs); k++) out_shape[k] = out[k].shape;
    const size_t work_bytes = impl->work ? impl->work(attrs, in_shape, out_shape, inputs) : 0;
    unsigned char *work = NULL;
    if (posix_memalign((void **)&work, 64, work_bytes + GUARD)) KR_FAIL(KR_NO_MEMORY, "no memory for the test");
    memset(work, FILL, work_bytes + GUARD);
    kr_call call = {.in = in, .out = out, .inputs = inputs, .outputs = kr_op_outputs(op, attrs),
                          .work = work_bytes ? work : NULL, .attrs = attrs, .bf16 = kr_bf16_best()};
    const int64_t rounds = impl->rounds ? impl->rounds(attrs, in_shape, out_shape, inputs) : 1;
    for (; call.round < rounds; call.round++)
        for (int s = 0; s < impl->stages; s++) {
            kr_kernel *kernel = kr_stage_kernel((const kr_stage *)impl->kernels + s,
                                                isa == CHECK_REFERENCE ? KR_ISA_BASE : isa);
            for (int p = 0; p < parts; p++) kernel(&call, reverse ? parts - 1 - p : p, parts);
        }
    bool whole = true;
    for (size_t i = 0; i < GUARD; i++) whole &= work[work_bytes + i] == FILL;
    free(work);
    KR_FAIL_IF(!whole, KR_BAD_ARGUMENT, "%s: wrote beyond its workspace of %zu bytes", op->name, work_bytes);
    return KR_OK;
}

/// What the op leaves open as this target makes it. False when what the case fixes is not what the target has: states
/// that one target saved are given to another's gradient.
static bool settle(check_case *c, const kr_target *target) {
    const kr_op *op = kr_op_find(c->op);
    cr_assert(op, "there is no op \"%s\"", c->op);
    const kr_impl *impl = kr_op_impl(op, target);
    if (impl && impl->specialise && impl->specialise(target, &c->attrs, c->shape, c->inputs) != KR_OK) return false;
    kr_shape out_shape[CHECK_MAX] = {{0}};
    kr_dtype out_dtype[CHECK_MAX] = {0};
    return target == &kr_target_cpu ||
           kr_op_shapes(op, &c->attrs, c->shape, c->dtype, c->inputs, out_shape, out_dtype) == KR_OK;
}

const kr_op *check_shapes(const check_case *given, kr_shape *in_shape, kr_dtype *in_dtype, kr_shape *out_shape,
                          kr_dtype *out_dtype) {
    check_case settled = *given, *c = &settled;
    const kr_op *op = kr_op_find(c->op);
    cr_assert(op, "there is no op \"%s\"", c->op);
    check_ok(settle(c, &kr_target_cpu) ? KR_OK : KR_BAD_SHAPE, c->op);
    for (int i = 0; i < c->inputs; i++) {
        in_shape[i] = c->shape[i];
        in_dtype[i] = c->dtype[i];
    }
    memset(out_shape, 0, CHECK_MAX * sizeof *out_shape);
    memset(out_dtype, 0, CHECK_MAX * sizeof *out_dtype);
    check_ok(kr_op_shapes(op, &c->attrs, in_shape, in_dtype, c->inputs, out_shape, out_dtype), c->op);
    return op;
}

kr_status check_refused(const check_case *given, int input, kr_shape shape, const char *part) {
    check_case c = *given;
    kr_shape out[CHECK_MAX];
    kr_dtype type[CHECK_MAX];
    c.shape[input] = shape;
    const kr_status status = kr_op_shapes(kr_op_find(c.op), &c.attrs, c.shape, c.dtype, c.inputs, out, type);
    cr_assert_neq(status, KR_OK, "%s takes input %d though \"%s\"", c.op, input, part);
    cr_assert(strstr(kr_status_message(), part), "\"%s\" is not in \"%s\"", part, kr_status_message());
    return status;
}

// Forward -----------------------------------------------------------------------------------------------------------

/// One way of calling the op.
typedef struct variant {
    const char *label;
    bool packed;         ///< every tensor
    enum layout in[CHECK_MAX], out[CHECK_MAX];
    int flat;            ///< axis of stride 0 in strided inputs, or -1
    uint32_t skip;       ///< outputs that nobody reads
    int alias[CHECK_MAX];///< input whose memory the output takes over, or -1
} variant;

typedef struct forward {
    const check_case *c;
    check_oracle *oracle;
    const kr_op *op;
    const kr_impl *impl; ///< of the target that runs; null for views
    kr_isa first, last;  ///< its levels
    kr_shape in_shape[CHECK_MAX], out_shape[CHECK_MAX];
    kr_dtype in_dtype[CHECK_MAX], out_dtype[CHECK_MAX];
    double *in[CHECK_MAX];
    double **want; ///< of these inputs
} forward;

static double **run_oracle(const forward *f, double *const *in) {
    double **out = calloc(CHECK_MAX, sizeof *out);
    for (int k = 0; k < kr_op_outputs(f->op, &f->c->attrs); k++)
        out[k] = calloc((size_t)kr_shape_count(&f->out_shape[k]) + 1, sizeof **out);
    f->oracle(&f->c->attrs, f->in_shape, (const double *const *)in, f->out_shape, out);
    return out;
}

static void free_all(void **p) {
    for (int i = 0; i < CHECK_MAX; i++) free(p[i]);
}

/// Values as a stride of 0 along `axis` makes them: all as at index 0.
static double *flatten(const double *x, const kr_shape *shape, int axis) {
    const int64_t n = kr_shape_count(shape);
    double *y = malloc((size_t)(n + 1) * sizeof *y);
    int64_t inner = 1;
    for (int k = axis + 1; k < shape->rank; k++) inner *= shape->dim[k];
    for (int64_t i = 0; i < n; i++) y[i] = x[i - i / inner % shape->dim[axis] * inner];
    return y;
}

/// All part counts at one level, against what the oracle makes of the same inputs.
static void run_level(const forward *f, const variant *v, kr_isa isa, double *const *in, double *const *want) {
    void *first[CHECK_MAX] = {0};
    static const int part_counts[] = {1, 3, 2, 5};
    for (int t = 0; t < (CHECK_SANITIZED ? 2 : 4); t++) {
        const int parts = part_counts[t];
        char what[256];
        box in_box[CHECK_MAX] = {0}, out_box[CHECK_MAX] = {0};
        kr_arg in_arg[CHECK_MAX], out_arg[CHECK_MAX];
        unsigned char *before[CHECK_MAX] = {0};
        for (int i = 0; i < f->c->inputs; i++) {
            in_box[i] = make_box(f->in_dtype[i], &f->in_shape[i], v->in[i], v->flat, false);
            if (in[i]) box_write(&in_box[i], in[i]);
            in_arg[i] = in_box[i].arg;
            before[i] = malloc(in_box[i].bytes + 1);
            if (in_box[i].bytes) memcpy(before[i], in_box[i].base, in_box[i].bytes);
        }
        uint32_t taken = 0;
        for (int k = 0; k < kr_op_outputs(f->op, &f->c->attrs); k++) {
            out_box[k] = make_box(f->out_dtype[k], &f->out_shape[k], v->out[k], -1, true);
            if (v->alias[k] >= 0) {
                taken |= 1u << v->alias[k];
                box_write(&out_box[k], in[v->alias[k]]);
                in_arg[v->alias[k]].data = out_box[k].arg.data;
                memcpy(in_arg[v->alias[k]].stride, out_box[k].arg.stride, sizeof in_arg[0].stride);
            }
            out_arg[k] = out_box[k].arg;
            if (v->skip >> k & 1) out_arg[k].data = NULL;
        }
        snprintf(what, sizeof what, "%s (%s, %s, %d parts)", f->c->op, check_level_name(isa), v->label, parts);
        check_ok(check_call(f->op, &f->c->attrs, in_arg, f->c->inputs, out_arg, isa, parts, parts == 3), what);
        for (int k = 0; k < kr_op_outputs(f->op, &f->c->attrs); k++) {
            snprintf(what, sizeof what, "%s output %d (%s, %s, %d parts)", f->c->op, k, check_level_name(isa), v->label,
                     parts);
            box_check_guards(&out_box[k], what);
            if (v->skip >> k & 1) continue;
            const int64_t n = kr_shape_count(&f->out_shape[k]);
            void *got = box_read(&out_box[k]);
            check_close(got, f->out_dtype[k], want[k], n, f->c->tolerance ? f->c->tolerance : 1e-5, what);
            if (!first[k]) first[k] = got;
            else {
                cr_assert(!memcmp(got, first[k], (size_t)n * kr_dtype_size(f->out_dtype[k])),
                          "%s: other bits than with 1 part", what);
                free(got);
            }
        }
        for (int i = 0; i < f->c->inputs; i++)
            cr_assert((taken >> i & 1) || !in_box[i].bytes || !memcmp(before[i], in_box[i].base, in_box[i].bytes),
                      "%s: changed input %d", what, i);
        free_all((void **)before);
        for (int i = 0; i < CHECK_MAX; i++) {
            free(in_box[i].base);
            free(out_box[i].base);
        }
    }
    free_all(first);
}

static void run_variant(const forward *f, const variant *v) {
    double *in[CHECK_MAX] = {0};
    for (int i = 0; i < f->c->inputs; i++) {
        if (!f->in[i]) continue;
        const bool flat = v->flat >= 0 && v->in[i] >= STRIDED && v->flat < f->in_shape[i].rank;
        const size_t bytes = (size_t)kr_shape_count(&f->in_shape[i]) * sizeof **in;
        if (flat) in[i] = flatten(f->in[i], &f->in_shape[i], v->flat);
        else {
            in[i] = malloc(bytes + 1);
            memcpy(in[i], f->in[i], bytes);
        }
    }
    double **want = v->flat < 0 ? f->want : run_oracle(f, in);
    static int turn;
    const int levels = (int)f->last - (int)f->first + 1, own = v->packed ? -1 : turn++ % levels;
    for (int level = 0; level < levels; level++)
        if (!CHECK_SANITIZED || own < 0 || level == own) run_level(f, v, (kr_isa)(f->first + level), in, want);
    if (v->flat >= 0) {
        free_all((void **)want);
        free(want);
    }
    free_all((void **)in);
}

static variant plain(const char *label) {
    variant v = {.label = label, .flat = -1};
    for (int k = 0; k < CHECK_MAX; k++) v.alias[k] = -1;
    return v;
}

static bool can_alias(const forward *f, int input, int output) {
    const uint32_t *masks = f->impl->inplace;
    return output < KR_INPLACE_OUTPUTS && (masks[output] >> input & 1) && f->in[input] && f->in_dtype[input] == f->out_dtype[output] &&
           kr_shape_equal(&f->in_shape[input], &f->out_shape[output]);
}

static void check_layouts(const forward *f) {
    const kr_impl *op = f->impl;
    const int n = f->c->inputs;
    variant all_in = plain("rows inputs"), strided = plain("strided inputs"), both = plain("rows inputs and outputs");
    for (int i = 0; i < n; i++) {
        variant one = plain("one input in rows");
        if (op->rows_in >> i & 1) {
            one.in[i] = all_in.in[i] = both.in[i] = ROWS;
            run_variant(f, &one);
        }
        if (op->strided_in >> i & 1) {
            one.label = "one strided input";
            one.in[i] = strided.in[i] = STRIDED;
            if (!(op->rows_in >> i & 1)) all_in.in[i] = both.in[i] = ROWS;
            run_variant(f, &one);
        }
    }
    for (int k = 0; k < f->op->outputs; k++)
        if (op->rows_out >> k & 1) both.out[k] = ROWS;
    if (op->rows_in || op->strided_in) run_variant(f, &all_in);
    if (op->rows_in || op->strided_in || op->rows_out) run_variant(f, &both);
    if (!op->strided_in) return;
    run_variant(f, &strided);
    for (int axis = 0; axis < KR_MAX_RANK; axis++) {
        bool any = false;
        for (int i = 0; i < n; i++) any |= (op->strided_in >> i & 1) && axis < f->in_shape[i].rank;
        variant flat = strided;
        flat.label = "broadcast inputs";
        flat.flat = axis;
        if (!any) continue;
        run_variant(f, &flat);
        for (int i = 0; i < n; i++) {
            variant one = plain("one broadcast input");
            one.flat = axis;
            one.in[i] = BROADCAST;
            if (op->strided_in >> i & 1) run_variant(f, &one);
        }
    }
}

static void check_aliases(const forward *f) {
    variant all = plain("all in place");
    uint32_t used = 0;
    int aliases = 0;
    for (int k = 0; k < kr_op_outputs(f->op, &f->c->attrs) && k < 3; k++)
        for (int i = 0; i < f->c->inputs; i++) {
            if (!can_alias(f, i, k)) continue;
            variant one = plain("in place");
            one.alias[k] = i;
            run_variant(f, &one);
            if (all.alias[k] < 0 && !(used >> i & 1)) {
                all.alias[k] = i;
                used |= 1u << i;
                aliases++;
            }
        }
    if (aliases > 1) run_variant(f, &all);
}

static void check_skips(const forward *f) {
    variant none = plain("all optional outputs skipped");
    for (int k = 0; k < kr_op_outputs(f->op, &f->c->attrs); k++) {
        if (!(f->impl->skip_out >> k & 1)) continue;
        none.skip |= 1u << k;
        variant one = plain("one output skipped");
        one.skip = 1u << k;
        run_variant(f, &one);
    }
    if (none.skip) run_variant(f, &none);
}

/// Every variant that a target promises, at its levels. False when the case is another target's.
static bool forward_on(const check_case *c, check_oracle *oracle, kr_isa first, kr_isa last) {
    check_case settled = *c;
    const kr_target *target = check_target(first);
    if (!settle(&settled, target)) return false;
    forward f = {.c = &settled, .oracle = oracle, .first = first, .last = last};
    f.op = check_shapes(&settled, f.in_shape, f.in_dtype, f.out_shape, f.out_dtype);
    f.impl = kr_op_impl(f.op, target);
    for (int i = 0; i < c->inputs; i++) {
        if (c->shape[i].rank < 0) continue;
        const int64_t n = kr_shape_count(&c->shape[i]);
        const bool given = c->lo[i] != 0 || c->hi[i] != 0;
        f.in[i] = malloc((size_t)(n + 1) * sizeof(double));
        check_random(f.in[i], n, c->dtype[i], given ? c->lo[i] : -1, given ? c->hi[i] : 1, c->seed, (uint64_t)i);
    }
    f.want = run_oracle(&f, f.in);
    variant packed = plain("packed");
    packed.packed = true;
    run_variant(&f, &packed);
    if (!(f.op->flags & KR_OP_VIEW)) {
        check_layouts(&f);
        check_aliases(&f);
        check_skips(&f);
    }
    free_all((void **)f.want);
    free(f.want);
    free_all((void **)f.in);
    return true;
}

void check_forward(const check_case *c, check_oracle *oracle) {
    cr_assert(forward_on(c, oracle, KR_ISA_BASE, kr_isa_best()), "%s: %s", c->op, kr_status_message());
    forward_on(c, oracle, CHECK_REFERENCE, CHECK_REFERENCE);
}
