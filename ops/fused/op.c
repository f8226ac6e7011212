/// Tile programs: many elementwise ops as one node, which reads every input once and writes only what somebody needs.
/// `fused` gives results as they are; `fused_sum` also sums one of them, as the op sum does, while it is at hand.
/// Programs are made after differentiation, so they have no gradient. fused.h says how attributes hold one.
#include "ops/fused/fused.h"

#include "ops/graph/internal.h"
#include "ops/reduce/cut.h"

#include <string.h>

_Static_assert((int)KR_PROGRAM_INPUTS == (int)KR_FUSED_INPUTS && (int)KR_PROGRAM_LENGTH == (int)KR_FUSED_LENGTH &&
               (int)KR_PROGRAM_OUTPUTS == (int)KR_FUSED_OUTPUTS && (int)KR_PROGRAM_REALS == (int)KR_FUSED_REALS &&
               (int)KR_FUSED_LENGTH <= KR_FUSED_HEAD * (int)KR_FUSED_EACH && KR_CODES <= 1 << KR_FUSED_CODE_BITS &&
               2 * (int)KR_FUSED_REALS <= KR_ATTR_REALS, "programs and attributes are of one size");

extern const kr_op kr_op_fused, kr_op_fused_sum;

#define MAP(name, arity, reals, flags, value) extern const kr_op kr_op_##name;
#define MAP_F(name, kept, value, derivative) extern const kr_op kr_op_##name, kr_op_##name##_grad;
#define MAP_G(name, arity, reals, value) extern const kr_op kr_op_##name;
#include "ops/elementwise/map.def"

/// Ops by code.
static const kr_op *const op_of_code[KR_CODES] = {
    NULL,
#define MAP(name, arity, reals, flags, value) &kr_op_##name,
#define MAP_F(name, kept, value, derivative) &kr_op_##name, &kr_op_##name##_grad,
#define MAP_G(name, arity, reals, value) &kr_op_##name,
#include "ops/elementwise/map.def"
};

static int code_of(const kr_op *op) {
    int code = KR_CODES - 1;
    while (code > 0 && op_of_code[code] != op) code--;
    return code;
}

bool kr_program_takes(const kr_op *op, int *reals) {
    if (!(op->flags & KR_OP_ELEMENTWISE)) return false;
    const int form = kr_fused_form(code_of(op));
    if (reals) *reals = form >> 4;
    return form != 0;
}

// Packing ---------------------------------------------------------------------------------------------------------

/// Appends `bits` bits; false when the value does not fit in them.
static bool put(uint64_t *to, int *at, int value, int bits) {
    if (value < 0 || value >> bits) return false;
    *to |= (uint64_t)value << *at;
    *at += bits;
    return true;
}

bool kr_program_pack(const kr_program *p, kr_attrs *attrs) {
    uint64_t word[KR_ATTR_INTEGERS] = {0}, *head = &word[KR_FUSED_HEAD];
    int at = 0, reals = 0;
    *attrs = (kr_attrs){0};
    if (p->length < 0 || p->length > KR_PROGRAM_LENGTH || p->outputs < 0 || p->outputs > KR_PROGRAM_OUTPUTS)
        return false;
    bool fits = put(head, &at, p->length, 5) && put(head, &at, p->outputs, 2);
    for (int k = 0; k < KR_PROGRAM_OUTPUTS; k++)
        fits &= put(head, &at, k < p->outputs ? p->out[k] : 0, KR_FUSED_REGISTER_BITS);
    fits &= put(head, &at, p->sums, 1) && put(head, &at, p->sums ? p->summed : 0, KR_FUSED_REGISTER_BITS) &&
            put(head, &at, p->sums ? p->axis : 0, 3) && put(head, &at, p->sums ? p->axes : 0, 3);
    if (p->sums) attrs->shape = p->sum_shape;
    for (int k = 0; k < p->length; k++) {
        const kr_instruction *c = &p->code[k];
        const int code = code_of(c->op), form = kr_fused_form(code);
        at = k % KR_FUSED_EACH * KR_FUSED_BITS;
        fits &= put(&word[k / KR_FUSED_EACH], &at, code, KR_FUSED_CODE_BITS);
        for (int j = 0; j < 3; j++)
            fits &= put(&word[k / KR_FUSED_EACH], &at, j < (form & 15) ? c->in[j] : 0, KR_FUSED_REGISTER_BITS);
        if (!(form >> 4)) continue;
        if (reals == KR_PROGRAM_REALS) return false;
        attrs->r[2 * reals] = c->a;
        attrs->r[2 * reals + 1] = c->b;
        reals++;
    }
    memcpy(attrs->i, word, sizeof word);
    return fits;
}

void kr_program_of(const kr_node *n, kr_program *p) {
    kr_tile f;
    int reals = 0;
    kr_fused_unpack(&n->attrs, &f);
    *p = (kr_program){.length = f.length, .outputs = f.outputs, .sums = f.sums, .summed = f.summed, .axis = f.axis,
                      .axes = f.axes, .sum_shape = n->attrs.shape};
    for (int k = 0; k < f.outputs; k++) p->out[k] = f.out[k];
    for (int k = 0; k < f.length; k++) {
        kr_instruction *c = &p->code[k];
        *c = (kr_instruction){.op = op_of_code[f.code[k].code < KR_CODES ? f.code[k].code : 0]};
        for (int j = 0; j < 3; j++) c->in[j] = f.code[k].in[j];
        if (!(kr_fused_form(f.code[k].code) >> 4)) continue;
        c->a = n->attrs.r[2 * reals];
        c->b = n->attrs.r[2 * reals + 1];
        reals++;
    }
}

// Descriptors -----------------------------------------------------------------------------------------------------

/// Registers exist before they are read, and every output is a result, once.
static kr_status check_program(const kr_tile *p, int inputs) {
    KR_FAIL_IF(inputs > KR_FUSED_INPUTS, KR_BAD_ARGUMENT, "fused: %d inputs, want at most %d", inputs, KR_FUSED_INPUTS);
    KR_FAIL_IF(p->length < 1, KR_BAD_ARGUMENT, "fused: the program is empty");
    for (int k = 0; k < p->length; k++) {
        KR_FAIL_IF(!p->code[k].arity, KR_BAD_ARGUMENT, "fused: instruction %d has no op", k);
        for (int j = 0; j < p->code[k].arity; j++) {
            const int r = p->code[k].in[j];
            KR_FAIL_IF(r < KR_FUSED_INPUTS ? r >= inputs : r >= KR_FUSED_INPUTS + k, KR_BAD_ARGUMENT,
                       "fused: instruction %d reads %s %d, which is not there", k,
                       r < KR_FUSED_INPUTS ? "input" : "result", r < KR_FUSED_INPUTS ? r : r - KR_FUSED_INPUTS);
        }
    }
    for (int k = 0; k < p->outputs + p->sums; k++) {
        const int r = k < p->outputs ? p->out[k] : p->summed;
        KR_FAIL_IF(r < KR_FUSED_INPUTS || r >= KR_FUSED_INPUTS + p->length, KR_BAD_ARGUMENT,
                   "fused: an output is no result of an instruction");
        for (int j = 0; j < k && k < p->outputs; j++)
            KR_FAIL_IF(p->out[j] == r, KR_BAD_ARGUMENT, "fused: result %d is put out twice", r - KR_FUSED_INPUTS);
    }
    return KR_OK;
}

static kr_status shape_of(const kr_attrs *attrs, const kr_shape *in_shape, const kr_dtype *in_dtype, int inputs,
                          kr_shape *out_shape, kr_dtype *out_dtype, bool sums) {
    static const kr_attrs none;
    kr_tile p;
    char got[160], want[160];
    kr_fused_unpack(attrs ? attrs : &none, &p);
    KR_TRY(check_program(&p, inputs));
    KR_FAIL_IF(p.sums != sums || (!sums && !p.outputs), KR_BAD_ARGUMENT, "fused: the program has %s",
               p.sums ? "a sum; that is fused_sum" : sums ? "no sum; that is fused" : "no output");
    for (int i = 0; i < inputs; i++) {
        KR_FAIL_IF(!kr_shape_equal(&in_shape[i], &in_shape[0]), KR_BAD_SHAPE, "fused: input %d is %s, want %s", i,
                   kr_shape_text(&in_shape[i], got), kr_shape_text(&in_shape[0], want));
        KR_FAIL_IF(in_dtype[i] != KR_F32, KR_BAD_SHAPE, "fused: input %d is %s, want f32", i,
                   kr_dtype_name(in_dtype[i]));
    }
    for (int k = 0; k < p.outputs + p.sums; k++) out_shape[k] = in_shape[0], out_dtype[k] = KR_F32;
    if (!sums) return KR_OK;
    KR_FAIL_IF(p.axes < 1 || p.axis + p.axes > in_shape[0].rank, KR_BAD_SHAPE, "fused_sum: axes %d to %d of %s", p.axis,
               p.axis + p.axes - 1, kr_shape_text(&in_shape[0], got));
    const kr_reduce_cut c = kr_reduce_cut_axes(&in_shape[0], p.axis, p.axes);
    bool real = attrs->shape.rank >= 0 && attrs->shape.rank <= KR_MAX_RANK;
    for (int k = 0; real && k < attrs->shape.rank; k++) real = attrs->shape.dim[k] >= 0;
    KR_FAIL_IF(!real || kr_shape_count(&attrs->shape) != c.outer * c.inner, KR_BAD_SHAPE,
               "fused_sum: the sum is %s, want %lld elements", real ? kr_shape_text(&attrs->shape, got) : "no shape",
               (long long)(c.outer * c.inner));
    out_shape[0] = attrs->shape;
    return KR_OK;
}

static kr_status fused_shape(const kr_attrs *attrs, const kr_shape *in_shape, const kr_dtype *in_dtype, int inputs,
                             kr_shape *out_shape, kr_dtype *out_dtype) {
    return shape_of(attrs, in_shape, in_dtype, inputs, out_shape, out_dtype, false);
}
static kr_status fused_sum_shape(const kr_attrs *attrs, const kr_shape *in_shape, const kr_dtype *in_dtype, int inputs,
                                 kr_shape *out_shape, kr_dtype *out_dtype) {
    return shape_of(attrs, in_shape, in_dtype, inputs, out_shape, out_dtype, true);
}

static int count(const kr_attrs *attrs) {
    kr_tile p;
    kr_fused_unpack(attrs, &p);
    return p.outputs + p.sums;
}

/// A FLOP per instruction and element, and every input and output once.
static void cost(const kr_attrs *attrs, const kr_shape *in, const kr_shape *out, int inputs, double *flops,
                 double *bytes) {
    kr_tile p;
    (void)out;
    kr_fused_unpack(attrs, &p);
    const double elements = (double)kr_shape_count(&in[0]);
    *flops = elements * (p.length + p.sums);
    *bytes = 4 * elements * (inputs + p.outputs);
}


const kr_op kr_op_fused = {
    .name = "fused", .inputs = 1, .outputs = KR_FUSED_OUTPUTS,
    .flags = KR_OP_ELEMENTWISE | KR_OP_CHEAP | KR_OP_VARIADIC | KR_OP_NO_GRADIENT | KR_OP_PROGRAM,
    .shape = fused_shape, .cost = cost, .count = count,
};

const kr_op kr_op_fused_sum = {
    .name = "fused_sum", .inputs = 1, .outputs = 1 + KR_FUSED_OUTPUTS,
    .flags = KR_OP_CHEAP | KR_OP_VARIADIC | KR_OP_NO_GRADIENT | KR_OP_PROGRAM, .shape = fused_sum_shape, .cost = cost,
    .count = count,
};

kr_value (kr_fused)(kr_graph *g, const kr_program *p, const kr_value *in, int inputs) {
    if (g->status) return KR_NONE;
    kr_attrs attrs;
    if (!kr_program_pack(p, &attrs)) {
        kr_graph_fail_with(g, KR_BAD_ARGUMENT,
                           "fused: %d instructions and %d outputs, or more than %d instructions with "
                           "constants: want at most %d, %d and %d",
                           p->length, p->outputs, KR_PROGRAM_REALS, KR_PROGRAM_LENGTH, KR_PROGRAM_OUTPUTS,
                           KR_PROGRAM_REALS);
        return KR_NONE;
    }
    return kr_append(g, p->sums ? &kr_op_fused_sum : &kr_op_fused, &attrs, in, inputs);
}
