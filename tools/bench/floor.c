// The roof over a kernel: how fast this machine could at best do what it does.
//
// A limit that is too low shows shares above 100 %; one that is too high hides what could be won. So traffic is held
// against the caches that its data can really sit in, and work that is mostly no multiply-adds (exp and its kin)
// against the rate at which vector instructions issue, which is half the FLOP rate: a multiply-add is one instruction
// and two FLOP.
#include "tools/bench/bench.h"

#include <math.h>
#include <string.h>

// Least number of vector instructions for an element of output 0; for scans, for a token, channel and state.
// An exponential is a multiply, a rounding, a subtraction, five or six multiply-adds of the polynomial and a scaling:
// 9; with its argument scaled and bounded beforehand, as in the scans, 7 and the product dt A. A quotient costs about
// four.
static const struct {
    const char *op;
    double each;
    bool of_input; // for an element of input 0 instead
} instructions[] = {
    {"exp", 9, false},
    {"log", 10, false},
    {"sigmoid", 14, false},
    {"silu", 15, false},
    {"silu_grad", 18, false},
    {"tanh", 15, false},
    {"gelu", 18, false},
    {"gelu_grad", 24, false},
    {"softplus", 20, false},
    {"softplus_grad", 14, false},
    {"softmax", 12, false},
    {"cross_entropy", 11, true},
    {"cross_entropy_grad", 11, false},
    // 7 for exp(dt A), 1 for dt u B, 1 for the state, 1 for its part of y
    {"selective_scan", 10, false},
    // those of the forward pass but for y, since states are computed again; 8 multiply-adds of the sweep back
    {"selective_scan_grad", 17, false},
    // 4 taps, and silu
    {"causal_conv1d", 19, false},
};

static double elements(const kr_operand *o) { return o->slot < 0 ? 0 : (double)kr_shape_count(&o->shape); }
static double bytes_of(const kr_operand *o) { return elements(o) * (double)kr_dtype_size(o->dtype); }

/// Last dimension.
static double last(const kr_operand *o) {
    return o->slot < 0 || o->shape.rank < 1 ? 0 : (double)o->shape.dim[o->shape.rank - 1];
}

double kr_bench_states(const kr_step *step) {
    const size_t length = strlen(step->op);
    const bool gradient = length > 5 && !strcmp(step->op + length - 5, "_grad");
    const int stem = (int)length - (gradient ? 5 : 0);
    const kr_operand *in = step->in;
    // In gradient ops the forward inputs come after the gradients of the outputs: two, or five of trapezoid_scan.
    if (stem == 14 && !strncmp(step->op, "selective_scan", 14)) {
        if (gradient) in += 2;
        return elements(&in[0]) * last(&in[2]); // u [B, L, E]; A [E, N]
    }
    if (stem == 8 && !strncmp(step->op, "ssd_scan", 8)) {
        if (gradient) in += 2;
        return elements(&in[0]) * last(&in[3]) / (double)step->attrs.i[0]; // x [B, L, H P]; B [B, L, G N]; groups
    }
    if (stem == 14 && !strncmp(step->op, "trapezoid_scan", 14)) {
        if (gradient) in += 5;
        // k [B, L, H R N] or, of keys that are shared, k_bias [H, R, N]; x [B, L, H P]; adt [B, L, H]
        const double heads = last(&in[3]), rank = (double)step->attrs.i[0], shared = last(&in[9]);
        return heads > 0 ? elements(&in[2]) * (shared > 0 ? shared : last(&in[0]) / heads / rank) : 0;
    }
    return 0;
}

/// Products of bf16 tiles for one product of the step: see kr_bench_work.
static double tile_products(const kr_step *step) {
    const kr_op *op = kr_op_find(step->op);
    for (int k = 0; op && k < KR_ATTR_INTEGERS && op->attr.i[k]; k++)
        if (!strcmp(op->attr.i[k], "precision")) return step->attrs.i[k] ? 1 : 6;
    return 0;
}

kr_bench_work kr_bench_step_work(const kr_step *step) {
    kr_bench_work w = {.flops = step->flops, .tile_products = tile_products(step)};
    double all = 0, out = 0;
    for (int k = 0; k < step->outputs; k++) out += bytes_of(&step->out[k]);
    for (int k = 0; k < step->inputs; k++) all += bytes_of(&step->in[k]);
    all += out;
    // The cost rule knows how much goes by (a row of a table many times, one that is not picked never); operands know
    // what is written, and in how much memory it all lies.
    w.written = out < step->bytes ? out : step->bytes;
    w.read = step->bytes - w.written;
    w.set = step->bytes < all ? step->bytes : all;
    for (size_t k = 0; k < sizeof instructions / sizeof *instructions; k++) {
        if (strcmp(step->op, instructions[k].op)) continue;
        const double states = kr_bench_states(step);
        const kr_operand *of = instructions[k].of_input ? step->in : step->out;
        w.lane_ops = instructions[k].each * (states > 0 ? states : elements(of));
    }
    return w;
}

/// Seconds for a byte of level `level` where `share` of the traffic is written: between what was measured for reads,
/// for one write to two reads, and for writes alone.
static double per_byte(const kr_bench_limits *l, int level, double share) {
    const double read = 1 / l->bandwidth[KR_BENCH_READ][level], triad = 1 / l->bandwidth[KR_BENCH_TRIAD][level],
                 fill = 1 / l->bandwidth[KR_BENCH_FILL][level], third = 1.0 / 3;
    if (share <= third) return read + (triad - read) * share / third;
    return triad + (fill - triad) * (share - third) / (1 - third);
}

/// Share of the accesses that a cache serves when `times` its size is gone through again and again and a new line takes
/// the place of any: a line of `times` C others is still there with probability exp(-misses / C), so h = exp(-(1-h)
/// times). Processors come near that just above the size of their caches, where strict least-recently-used would keep
/// nothing.
static double hit_rate(double times) {
    if (times <= 1) return 1;
    double h = 0;
    for (int k = 0; k < 64; k++) h = exp((h - 1) * times);
    return h;
}

double kr_bench_floor(const kr_bench_limits *l, kr_isa isa, const kr_bench_work *w, const char **of) {
    const double traffic = w->read + w->written, peak = l->flops[isa];
    double memory = 0, left = traffic, most_here = 0;
    int level = 0;
    for (int k = 0; k < KR_BENCH_LEVELS && left > 0; k++) {
        const double room = (double)l->level_bytes[k] * l->threads;
        const double here = k + 1 < KR_BENCH_LEVELS ? left * hit_rate(w->set / room) : left;
        const double seconds = here * per_byte(l, k, w->written / traffic);
        if (seconds > most_here) most_here = seconds, level = k;
        memory += seconds;
        left -= here;
    }
    const double tiles = isa == KR_ISA_AVX512 && w->tile_products > 0 ? l->amx / w->tile_products : 0;
    const double rate = tiles > peak ? tiles : peak;
    const double arithmetic = rate > 0 ? w->flops / rate : 0, issue = peak > 0 ? w->lane_ops / (peak / 2) : 0;
    const char *name = kr_bench_level_names[level];
    double most = memory;
    if (arithmetic > most) most = arithmetic, name = "arithmetic";
    if (issue > most) most = issue, name = "instructions";
    if (of) *of = name;
    return most;
}
