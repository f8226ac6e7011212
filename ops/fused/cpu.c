/// The interpreter of tile programs: a few hundred elements at a time go through the whole program while they are in
/// L1, so that every input is read from memory once and every output written once, whatever lies between.
///
/// Floor. A program moves 4 bytes an element for each input and output; instructions cost two loads and a store of L1
/// each, 1/16 of a cycle an element, besides their arithmetic. So add, mul and their like vanish behind memory, and
/// exponentials cost what they cost. Where tensors are contiguous, instructions read and write them in place.
///
/// Bits. Instructions are the functions of map.def that the separate ops run (ops/elementwise/cpu_run.h): a fused
/// program gives the bits of its ops one by one. A sum goes through ops/reduce/cpu_walk.h, which takes elements in an
/// order of its own.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=off") // across statements gcc would: the bits of an op would depend on its neighbours
#endif
#define KR_WALK_OPERANDS 11 // the inputs and outputs of a program

#include "ops/fused/fused.h"
#include "ops/elementwise/cpu_run.h"
#include "ops/reduce/cpu_walk.h"
#include "ops/cpu/strided.h"

enum { BLOCK = 512, STRIP = 512, SHORT = 64 };

static run_function *const functions[KR_CODES] = {
    0,
#define MAP(name, arity, reals, flags, value) run_##name,
#define MAP_F(name, kept, value, derivative) run_##name, run_##name##_grad,
#define MAP_G(name, arity, reals, value) run_##name,
#include "ops/elementwise/map.def"
};

/// One call of a program. Operands of the walk are the outputs, then the inputs.
typedef struct machine {
    kr_tile p;
    kr_walk w;
    int inputs, registers;
    int used[KR_FUSED_REGISTERS];   ///< is the register read or put out?
    int output[KR_FUSED_REGISTERS]; ///< which output the register is, or -1
    int direct
        [KR_FUSED_OUTPUTS]; ///< may its instruction write the tensor? Not when an input that lies there is read later
    int64_t before;                 ///< where the last elements to be summed began
    int filled[KR_FUSED_INPUTS];    ///< the input is one value everywhere and its strip holds it already
    float *strip[KR_FUSED_REGISTERS];
    // Vectors of short rows are stored whole, so a strip has room for one more.
    float strips[KR_FUSED_REGISTERS][STRIP + KR_LANES] __attribute__((aligned(64)));
} machine;

/// Where the results of instructions go: a strip is free again after its last reader.
static void assign_strips(machine *m) {
    int last[KR_FUSED_REGISTERS], strips = m->inputs, free_strip[KR_FUSED_REGISTERS], free_count = 0;
    for (int r = 0; r < m->registers; r++)
        last[r] = m->output[r] >= 0 || (m->p.sums && r == m->p.summed) ? m->registers : -1;
    for (int k = 0; k < m->p.length; k++)
        for (int j = 0; j < m->p.code[k].arity; j++) {
            const int r = m->p.code[k].in[j];
            if (last[r] < KR_FUSED_INPUTS + k) last[r] = KR_FUSED_INPUTS + k;
        }
    for (int r = 0; r < m->registers; r++) m->used[r] = last[r] >= 0;
    for (int i = 0; i < m->inputs; i++) m->strip[i] = m->strips[i];
    for (int k = 0; k < m->p.length; k++) {
        const int now = KR_FUSED_INPUTS + k;
        for (int r = KR_FUSED_INPUTS; r < now; r++)
            if (last[r] == now) free_strip[free_count++] = (int)(m->strip[r] - m->strips[0]) / (STRIP + KR_LANES);
        m->strip[now] = m->strips[free_count ? free_strip[--free_count] : strips++];
    }
    for (int o = 0; o < m->p.outputs; o++) {
        m->direct[o] = 1;
        for (int i = 0; i < m->inputs; i++)
            if (m->w.data[m->p.outputs + i] == m->w.data[o] && last[i] > m->p.out[o]) m->direct[o] = 0;
    }
}

static void machine_make(machine *m, const kr_call *call) {
    const kr_arg *args[KR_WALK_OPERANDS];
    kr_fused_unpack(call->attrs, &m->p);
    m->inputs = call->inputs;
    m->registers = KR_FUSED_INPUTS + m->p.length;
    for (int r = 0; r < m->registers; r++) m->output[r] = -1;
    for (int o = 0; o < m->p.outputs; o++) {
        args[o] = &call->out[m->p.sums + o];
        m->output[m->p.out[o]] = o;
    }
    for (int i = 0; i < m->inputs; i++) {
        args[m->p.outputs + i] = &call->in[i];
        m->filled[i] = 0;
    }
    kr_walk_make(&m->w, args, m->p.outputs + m->inputs);
    assign_strips(m);
}

/// Elements [at, at + n) of an operand whose rows are shorter than a strip, a vector at a time.
static void gather_rows(const kr_walk *w, int operand, const int64_t *from, int64_t n, float *to) {
    const int last = w->rank - 1;
    int64_t index[KR_MAX_RANK];
    memcpy(index, from, (size_t)w->rank * sizeof *index);
    while (n > 0) {
        const int64_t room = w->dim[last] - index[last], run = n < room ? n : room, step = w->stride[operand][last];
        const float *p = (const float *)(const void *)kr_walk_address(w, operand, index);
        if (step == 1)
            for (int64_t i = 0; i < run; i += KR_LANES) kr_v_store(to + i, kr_v_load_n(p + i, run - i));
        else if (step == 0)
            for (int64_t i = 0; i < run; i += KR_LANES) kr_v_store(to + i, kr_v_set(*p));
        else
            for (int64_t i = 0; i < run; i++) to[i] = p[i * step];
        to += run;
        n -= run;
        index[last] += run;
        kr_walk_carry(w, index);
    }
}

static void scatter_rows(const kr_walk *w, int operand, const int64_t *from, int64_t n, const float *strip) {
    const int last = w->rank - 1;
    int64_t index[KR_MAX_RANK];
    memcpy(index, from, (size_t)w->rank * sizeof *index);
    while (n > 0) {
        const int64_t room = w->dim[last] - index[last], run = n < room ? n : room, step = w->stride[operand][last];
        float *p = (float *)(void *)kr_walk_address(w, operand, index);
        if (step == 1)
            for (int64_t i = 0; i < run; i += KR_LANES) kr_v_store_n(p + i, kr_v_load(strip + i), run - i);
        else
            for (int64_t i = 0; i < run; i++) p[i * step] = strip[i];
        strip += run;
        n -= run;
        index[last] += run;
        kr_walk_carry(w, index);
    }
}

/// Where n elements from `index` lie, or null when they are not contiguous.
static float *in_place(const kr_walk *w, int operand, const int64_t *index, int64_t n) {
    const int last = w->rank - 1;
    if ((w->stride[operand][last] != 1 && n != 1) || index[last] + n > w->dim[last]) return 0;
    return (float *)(void *)kr_walk_address(w, operand, index);
}

static int one_value(const kr_walk *w, int operand) {
    for (int k = 0; k < w->rank; k++)
        if (w->stride[operand][k] && w->dim[k] > 1) return 0;
    return 1;
}

/// n elements of input i: in place where whole vectors of them can be read, else in its strip.
static const float *load(machine *m, int i, const int64_t *index, int64_t n) {
    const int operand = m->p.outputs + i;
    if (m->filled[i]) return m->strip[i];
    if (one_value(&m->w, operand)) {
        const float value = *(const float *)(const void *)m->w.data[operand];
        for (int64_t k = 0; k < STRIP; k++) m->strip[i][k] = value;
        m->filled[i] = 1;
        return m->strip[i];
    }
    const float *p = in_place(&m->w, operand, index, n);
    if (p && n % KR_LANES == 0) return p;
    gather_rows(&m->w, operand, index, n, m->strip[i]);
    for (int64_t k = n; k % KR_LANES; k++) m->strip[i][k] = 0; // what lies beyond is computed too, and thrown away
    return m->strip[i];
}

/// Runs the program over n <= STRIP elements from flat index `at`. Gives where register `wanted` is (0: it is ignored).
static const float *run_strip(machine *m, int64_t at, int64_t n, int wanted) {
    const kr_tile *p = &m->p;
    const int64_t padded = (n + KR_LANES - 1) / KR_LANES * KR_LANES;
    int64_t index[KR_MAX_RANK];
    const float *at_register[KR_FUSED_REGISTERS];
    kr_walk_at(&m->w, m->p.outputs, at, index); // of an input: outputs may be absent
    for (int i = 0; i < m->inputs; i++) at_register[i] = m->used[i] ? load(m, i, index, n) : 0;
    float *later[KR_FUSED_OUTPUTS] = {0};
    for (int k = 0; k < p->length; k++) {
        const kr_fused_instruction *c = &p->code[k];
        const int r = KR_FUSED_INPUTS + k, o = m->output[r];
        if (!m->used[r]) continue;
        float *to = m->strip[r];
        if (o >= 0 && m->w.data[o]) {
            float *direct = m->direct[o] && n == padded ? in_place(&m->w, o, index, n) : 0;
            if (direct) to = direct;
            else later[o] = to;
        }
        const float *in[3] = {0};
        for (int j = 0; j < c->arity; j++) in[j] = at_register[c->in[j]];
        functions[c->code](in, to, padded, c->a, c->b);
        at_register[r] = to;
    }
    for (int o = 0; o < p->outputs; o++)
        if (later[o]) scatter_rows(&m->w, o, index, n, later[o]);
    return at_register[wanted];
}

/// How many elements from `at` make a strip: as many as fit, but not beyond the end of a long row, within which
/// operands lie contiguously; long rows are cut evenly.
static int64_t strip_length(const kr_walk *w, int64_t at, int64_t end) {
    const int64_t row = kr_walk_inner(w);
    int64_t n = STRIP;
    if (row >= SHORT) {
        const int64_t pieces = (row + STRIP - 1) / STRIP, left = row - at % row;
        n = (row / pieces + KR_LANES - 1) / KR_LANES * KR_LANES;
        if (n > left) n = left;
    }
    return n < end - at ? n : end - at;
}

/// Prefetches what the strip at `at` will touch, so that it arrives while the one before is computed: strips are too
/// short, and rows of slices too far apart, for the hardware to see them coming.
static void prefetch_operands(const machine *m, int64_t at, int64_t n) {
    enum { LINE = 64 / sizeof(float) };
    const int last = m->w.rank - 1, operands = m->p.outputs + m->inputs;
    int64_t index[KR_MAX_RANK];
    kr_walk_at(&m->w, m->p.outputs, at, index);
    while (n > 0) {
        const int64_t room = m->w.dim[last] - index[last], run = n < room ? n : room;
        for (int k = 0; k < operands; k++) {
            if (m->w.stride[k][last] != 1 || !m->w.data[k]) continue;
            const float *p = (const float *)(const void *)kr_walk_address(&m->w, k, index);
            for (int64_t i = 0; i < run; i += LINE) __builtin_prefetch(p + i);
            if (run % LINE) __builtin_prefetch(p + run - 1);
        }
        n -= run;
        index[last] += run;
        kr_walk_carry(&m->w, index);
    }
}

KR_KERNEL(fused) {
    machine m;
    machine_make(&m, call);
    int64_t begin, end;
    kr_share((m.w.total + BLOCK - 1) / BLOCK, part, parts, &begin, &end);
    begin *= BLOCK;
    end = end * BLOCK < m.w.total ? end * BLOCK : m.w.total;
    for (int64_t at = begin, n; at < end; at += n) {
        n = strip_length(&m.w, at, end);
        if (at + n < end) prefetch_operands(&m, at + n, strip_length(&m.w, at + n, end));
        run_strip(&m, at, n, 0);
    }
}

// A sum at the end -------------------------------------------------------------------------------------------------

/// The elements of what is summed; the outputs are written on the way.
static const float *fetch(void *of, int64_t at, int64_t n, float *temp) {
    machine *m = (machine *)of;
    const int64_t next = at + (at - m->before); // sums go through rows at one distance
    if (next > at && next + n <= m->w.total) prefetch_operands(m, next, n);
    m->before = at;
    for (int64_t done = 0, run; done < n; done += run) {
        run = strip_length(&m->w, at + done, at + n);
        memcpy(temp + done, run_strip(m, at + done, run, m->p.summed), (size_t)run * sizeof *temp);
    }
    return temp;
}

KR_KERNEL(fused_sum) {
    machine m;
    machine_make(&m, call);
    const kr_reduce_cut c = kr_reduce_cut_axes(&call->in->shape, m.p.axis, m.p.axes);
    m.before = 0;
    const source results = {fetch, &m};
    first_stage(SUM, 1, &results, &c, (float *)call->out->data, (float *)call->work, part, parts);
}

KR_KERNEL(fused_sum_second) {
    kr_tile p;
    kr_fused_unpack(call->attrs, &p);
    const kr_reduce_cut c = kr_reduce_cut_axes(&call->in->shape, p.axis, p.axes);
    second_stage(SUM, 1, &c, (float *)call->out->data, (const float *)call->work, part, parts);
}
