/// Tile programs and the pass that makes them: kernels against an oracle, plans with and without fusion bit by bit,
/// what is fused and what is left alone, memory that does not grow.
#include "check.h"
#include "models/models.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

// Kernels ---------------------------------------------------------------------------------------------------------

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }

static double value_of(const kr_instruction *c, const double *r) {
    const double x = r[c->in[0]], y = r[c->in[1]], z = r[c->in[2]];
    const char *op = c->op->name;
    if (!strcmp(op, "add")) return x + y;
    if (!strcmp(op, "mul")) return x * y;
    if (!strcmp(op, "silu")) return x * sigmoid(x);
    if (!strcmp(op, "sigmoid")) return sigmoid(x);
    if (!strcmp(op, "affine")) return (float)c->a * x + (float)c->b;
    if (!strcmp(op, "clamp")) return x < (float)c->a ? (float)c->a : x > (float)c->b ? (float)c->b : x;
    if (!strcmp(op, "where")) return x != 0 ? y : z;
    cr_assert_str_eq(op, "neg");
    return -x;
}

static kr_program program_of(const kr_attrs *attrs) {
    kr_program p;
    kr_program_of(&(kr_node){.attrs = *attrs}, &p);
    return p;
}

static void oracle(const kr_attrs *attrs, const kr_shape *in_shape, const double *const *in, const kr_shape *out_shape,
                   double *const *out) {
    const kr_program p = program_of(attrs);
    const int64_t n = kr_shape_count(&in_shape[0]);
    int64_t inner = 1, middle = 1;
    for (int k = 0; k < in_shape[0].rank; k++)
        if (k >= p.axis) *(k < p.axis + p.axes ? &middle : &inner) *= in_shape[0].dim[k];
    if (p.sums && out[0]) memset(out[0], 0, (size_t)kr_shape_count(&out_shape[0]) * sizeof(double));
    for (int64_t i = 0; i < n; i++) {
        double r[KR_PROGRAM_INPUTS + KR_PROGRAM_LENGTH] = {0};
        for (int k = 0; k < KR_PROGRAM_INPUTS && in[k]; k++) r[k] = in[k][i];
        for (int k = 0; k < p.length; k++) r[KR_PROGRAM_INPUTS + k] = value_of(&p.code[k], r);
        for (int k = 0; k < p.outputs; k++)
            if (out[p.sums + k]) out[p.sums + k][i] = r[p.out[k]];
        if (p.sums && out[0]) out[0][i / (middle * inner) * inner + i % inner] += r[p.summed];
    }
}

/// The attributes of a program on `inputs` inputs of this shape, through the builder.
static kr_attrs attrs_of(const kr_program *p, kr_shape shape, int inputs, const char **op) {
    kr_graph *g;
    kr_value in[KR_PROGRAM_INPUTS];
    check_ok(kr_graph_new(&g), "graph");
    for (int k = 0; k < inputs; k++) in[k] = kr_input(g, (char[]){'a' + (char)k, 0}, KR_F32, shape);
    const kr_value v = kr_fused(g, p, in, inputs);
    check_ok(kr_graph_status(g), "program");
    const kr_attrs attrs = kr_value_node(g, v)->attrs;
    *op = kr_value_node(g, v)->op->name;
    kr_graph_free(g);
    return attrs;
}

enum { X = 0, T = KR_PROGRAM_INPUTS };
#define OP(name, ...) {.op = kr_op_find(#name), .in = {__VA_ARGS__}}
#define REAL(name, x, p, q) {.op = kr_op_find(#name), .in = {x}, .a = p, .b = q}

/// x1 is read again after results that may take over its memory are there; constants; a result that nobody needs.
static kr_program gate(void) {
    return (kr_program){.length = 8, .outputs = 3, .out = {T + 1, T + 5, T + 6},
        .code = {OP(silu, X + 1), OP(mul, X + 0, T + 0), REAL(affine, T + 1, 0.5, -2), REAL(clamp, T + 2, -2.2, -1.9),
                 OP(add, T + 3, X + 1), OP(where, X + 2, T + 4, X + 0), OP(neg, T + 5), OP(mul, T + 6, T + 6)}};
}

static void check_program(const kr_program *p, kr_shape shape, int inputs) {
    check_case c = {.attrs = {{0}, {0}, {0}}, .inputs = inputs, .seed = 5};
    c.attrs = attrs_of(p, shape, inputs, &c.op);
    for (int k = 0; k < inputs; k++) c.shape[k] = shape;
    check_forward(&c, oracle);
}

Test(fuse, programs_match_the_oracle) {
    const kr_shape shapes[] = {KR_SHAPE(1), KR_SHAPE(3, 40), KR_SHAPE(2, 5, 10), KR_SHAPE(2, 0, 7), KR_SHAPE(3, 1030),
                               KR_SHAPE(2, 3, 100), KR_SHAPE(150, 17), KR_SHAPE(5000), KR_SCALAR};
    const kr_program p = gate();
    for (size_t k = 0; k < sizeof shapes / sizeof *shapes; k++) check_program(&p, shapes[k], 3);
}

Test(fuse, longest_program_with_all_inputs) {
    kr_program p = {.length = KR_PROGRAM_LENGTH, .outputs = 1, .out = {T + KR_PROGRAM_LENGTH - 1}};
    for (int k = 0; k < p.length; k++)
        p.code[k] = (kr_instruction)OP(add, k ? T + k - 1 : X,
                                       k % 3 ? X + k % KR_PROGRAM_INPUTS : T + (k > 5 ? k - 5 : 0));
    p.code[0] = (kr_instruction)OP(add, X + 7, X + 6);
    for (int k = 1; k < p.length; k += 2) p.code[k] = (kr_instruction)OP(sigmoid, T + k - 1);
    check_program(&p, KR_SHAPE(3, 700), KR_PROGRAM_INPUTS);
}

Test(fuse, sums_match_the_oracle) {
    kr_program p = gate();
    const struct { kr_shape shape, sum; int axis, axes; } cases[] = {
        {KR_SHAPE(3, 40), KR_SHAPE(40), 0, 1},         {KR_SHAPE(3, 40), KR_SHAPE(3, 1), 1, 1},
        {KR_SHAPE(2, 5, 10), KR_SHAPE(10), 0, 2},      {KR_SHAPE(2, 5, 10), KR_SHAPE(2, 10), 1, 1},
        {KR_SHAPE(2, 5, 10), KR_SHAPE(1), 0, 3},       {KR_SHAPE(2, 0, 7), KR_SHAPE(2, 7), 1, 1},
        {KR_SHAPE(2, 3, 1030), KR_SHAPE(1030), 0, 2},  {KR_SHAPE(900, 17), KR_SHAPE(17), 0, 1},
        {KR_SHAPE(20000), KR_SCALAR, 0, 1},            {KR_SHAPE(3, 33, 5, 4), KR_SHAPE(3, 20), 1, 1},
    };
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        p.sums = true, p.summed = T + 4, p.axis = cases[k].axis, p.axes = cases[k].axes, p.sum_shape = cases[k].sum;
        for (p.outputs = 0; p.outputs < 3; p.outputs += 2) check_program(&p, cases[k].shape, 3);
    }
}

Test(fuse, wrong_programs_are_refused) {
    const struct { kr_program p; const char *message;
    } wrongs[] = {
        {{.length = 0, .outputs = 1, .out = {T}}, "empty"},
        {{.length = 1, .outputs = 1, .out = {T}, .code = {OP(neg, X + 1)}}, "reads input 1"},
        {{.length = 1, .outputs = 1, .out = {T}, .code = {OP(neg, T)}}, "reads result 0"},
        {{.length = 1, .outputs = 1, .out = {X}, .code = {OP(neg, X)}}, "no result"},
        {{.length = 1, .outputs = 1, .out = {T + 1}, .code = {OP(neg, X)}}, "no result"},
        {{.length = 1, .outputs = 2, .out = {T, T}, .code = {OP(neg, X)}}, "twice"},
        {{.length = 1, .outputs = 0, .code = {OP(neg, X)}}, "no output"},
        {{.length = 1, .outputs = 1, .out = {T}, .code = {OP(softmax, X)}}, "has no op"},
        {{.length = 1, .outputs = 1, .out = {T}, .code = {OP(neg, 99)}}, "at most"},
        {{.length = 1, .sums = true, .summed = T, .axis = 1, .axes = 2, .sum_shape = KR_SCALAR, .code = {OP(neg, X)}},
         "axes 1 to 2"},
        {{.length = 1, .sums = true, .summed = T, .axis = 1, .axes = 1, .sum_shape = KR_SHAPE(3), .code = {OP(neg, X)}},
         "want 2"},
        {{.length = 4,
          .outputs = 1,
          .out = {T + 3},
          .code = {REAL(affine, X, 1, 2), REAL(affine, T, 1, 2), REAL(affine, T, 1, 2), REAL(affine, T, 1, 2)}},
         "with constants"},
    };
    for (size_t k = 0; k < sizeof wrongs / sizeof *wrongs; k++) {
        kr_graph *g;
        check_ok(kr_graph_new(&g), "graph");
        const kr_value x = kr_input(g, "x", KR_F32, KR_SHAPE(2, 3));
        cr_expect(!kr_fused(g, &wrongs[k].p, &x, 1).id);
        cr_expect(kr_graph_status(g) && strstr(kr_status_message(), wrongs[k].message), "got %s, want %s",
                  kr_status_message(), wrongs[k].message);
        kr_graph_free(g);
    }
}

// Plans with and without ------------------------------------------------------------------------------------------

typedef struct dice {
    uint64_t seed, count;
} dice;

static int roll(dice *d, int sides) { return (int)(kr_random_uniform(d->seed, 9, d->count++) * (float)sides); }

/// A random graph of elementwise ops on [B, L, C] with everything that fusion must see: broadcasts, slices, values that
/// are outputs, diamonds through ops that cannot be fused, sums, pieces written into joins. Values stay near 1.
static kr_graph *random_graph(uint64_t seed, int64_t B, int64_t L, int64_t C) {
    static const char *const unary[] = {"sigmoid", "tanh", "silu",       "softplus", "neg",
                                        "abs",     "relu", "heavy_tail", "gelu"};
    static const char *const binary[] = {"add", "sub", "mul", "maximum", "minimum", "mul"};
    dice d = {.seed = seed};
    kr_graph *g;
    check_ok(kr_graph_new(&g), "graph");
    kr_value v[80];
    const kr_init init = {.kind = KR_INIT_UNIFORM, .a = 1};
    const kr_value wide = kr_input(g, "wide", KR_F32, KR_SHAPE(B, L, 3 * C));
    int n = 0;
    v[n++] = kr_input(g, "x", KR_F32, KR_SHAPE(B, L, C));
    for (int k = 0; k < 3; k++) v[n++] = kr_slice(g, wide, 2, k * C, C);
    v[n++] = kr_add(g, v[0], kr_param(g, "row", KR_SHAPE(C), init, 0));
    v[n++] = kr_mul(g, v[1], kr_param(g, "one", KR_SHAPE(1), init, 0));
    v[n++] = kr_mul(g, v[2], kr_param(g, "column", KR_SHAPE(L, 1), init, 0));
    v[n++] = kr_sub(g, v[3], kr_const(g, 0.25, KR_F32, KR_SHAPE(B, 1, 1)));
    const int steps = 8 + roll(&d, 50);
    for (int k = 0; k < steps; k++) {
        const kr_value a = v[n - 1 - roll(&d, n < 6 ? n : 6)], b = v[roll(&d, n)];
        kr_value made;
        switch (roll(&d, 14)) {
        case 0: made = kr_cumsum(g, kr_tanh(g, a), 1, roll(&d, 2)); break;
        case 1: made = kr_softmax(g, a); break;
        case 2: made = kr_mul(g, kr_sum(g, kr_tanh(g, a), 2, true), b); break;
        case 3: made = kr_transpose(g, kr_tanh(g, kr_transpose(g, a, 1, 2)), 1, 2); break;
        case 4:
            made = kr_concat(g,
                             (kr_value[]){kr_slice(g, kr_exp(g, kr_tanh(g, a)), 2, 0, C / 2),
                                          kr_slice(g, kr_neg(g, b), 2, C / 2, C - C / 2)},
                             2, -1);
            break;
        case 5: made = kr_clamp(g, kr_affine(g, a, 1.5, -0.5), -2, 2); break;
        case 6: made = kr_where(g, kr_relu(g, a), a, b); break;
        case 7: made = kr_div(g, a, kr_affine(g, kr_square(g, kr_tanh(g, b)), 1, 1)); break;
        case 8: case 9: case 10: made = kr_map(g, unary[roll(&d, 9)], &a, 1, 0, 0); break;
        default: made = kr_map(g, binary[roll(&d, 6)], (kr_value[]){kr_tanh(g, a), b}, 2, 0, 0); break;
        }
        v[n++] = made;
        if (!roll(&d, 8)) {
            char name[16];
            snprintf(name, sizeof name, "o%d", k);
            kr_output(g, name, made);
        }
    }
    kr_output(g, "loss", kr_sum(g, kr_reshape(g, kr_tanh(g, kr_mul(g, v[n - 1], v[n - 2])), KR_SHAPE(-1)), 0, true));
    check_ok(kr_graph_status(g), "random graph");
    return g;
}

/// All outputs of a plan, one after the other.
static float *run(kr_plan *plan, int threads, int64_t *elements) {
    kr_device *device;
    kr_session *session;
    check_ok(kr_device_cpu(&device), "device");
    check_ok(kr_session_open(device, threads, &session), "session");
    check_ok(kr_session_add(session, plan), "add");
    check_ok(kr_session_init(session, 3), "init");
    kr_binding b[256];
    int count = 0;
    *elements = 0;
    size_t room = 4;
    for (int k = 0; k < kr_plan_slots(plan); k++) room += kr_plan_slot(plan, k)->bytes;
    float *all = calloc(1, room), *inputs = calloc(1, room), *next = inputs;
    for (int k = 0; k < kr_plan_slots(plan); k++) {
        const kr_slot *s = kr_plan_slot(plan, k);
        const int64_t n = (int64_t)(s->bytes / 4);
        if (s->kind != KR_SLOT_IO) continue;
        cr_assert(count < 256);
        b[count++] = (kr_binding){s->name, s->is_output ? all + *elements : next, s->bytes};
        if (s->is_output) *elements += n;
        else if (s->dtype == KR_I32) for (int64_t i = 0; i < n; i++) *(int32_t *)(void *)next++ = (int32_t)(i * 7 % 50);
        else
            for (int64_t i = 0; i < n; i++)
                *next++ = 2 * kr_random_uniform(7, kr_hash(s->name, strlen(s->name)), (uint64_t)i) - 1;
    }
    check_ok(kr_plan_run(session, plan, b, count, 0), "run");
    kr_session_close(session);
    kr_device_close(device);
    free(inputs);
    return all;
}

static kr_plan *plan_of(kr_graph *g, kr_goal goal, bool fuse, kr_plan_stats *stats) {
    kr_plan *plan;
    const kr_compile_options how = {.goal = goal, .no_fuse = !fuse, .optimizer = {0.9, 0.95, 1e-8, 0.1, 1}};
    check_ok(kr_compile(g, &how, &plan, stats), "compile");
    kr_graph_free(g);
    return plan;
}

Test(fuse, random_graphs_give_the_same_bits) {
    static const int64_t shapes[][3] = {{2, 3, 10}, {1, 1, 1}, {2, 5, 70},  {3, 7, 33},   {0, 4, 5},
                                        {2, 0, 5},  {2, 3, 0}, {1, 600, 2}, {4, 40, 330}, {7, 1, 128}};
    const kr_isa best = kr_isa_best();
    int fused_steps = 0;
    for (uint64_t seed = 0; seed < 60; seed++) {
        const int64_t *s = shapes[seed % 10];
        const kr_goal goal = seed % 3 ? KR_GOAL_GRADIENTS : KR_GOAL_FORWARD;
        kr_plan_stats plain_stats, stats;
        kr_plan *plain = plan_of(random_graph(seed, s[0], s[1], s[2]), goal, false, &plain_stats);
        kr_plan *plan = plan_of(random_graph(seed, s[0], s[1], s[2]), goal, true, &stats);
        cr_assert(stats.steps < plain_stats.steps, "seed %d: %d steps, %d without fusion", (int)seed, stats.steps,
                  plain_stats.steps);
        for (int k = 0; k < kr_plan_steps(plan); k++) fused_steps += !strncmp(kr_plan_step(plan, k)->op, "fused", 5);
        for (kr_isa isa = KR_ISA_BASE; isa <= best; isa++) {
            check_ok(kr_isa_limit(isa), "level");
            int64_t n, m;
            float *want = run(plain, 1, &n);
            for (int threads = 1; threads <= 5; threads += 1 + (seed > 20)) {
                float *got = run(plan, threads, &m);
                cr_assert_eq(n, m);
                for (int64_t i = 0; i < n; i++)
                    cr_assert(!memcmp(&want[i], &got[i], 4), "seed %d, %s, %d threads, element %ld of %ld: %a, want %a",
                              (int)seed, kr_isa_name(isa), threads, (long)i, (long)n, got[i], want[i]);
                free(got);
            }
            free(want);
        }
        check_ok(kr_isa_limit(best), "level");
        kr_plan_free(plain);
        kr_plan_free(plan);
    }
    cr_assert_gt(fused_steps, 100);
}

/// Blocks of every kind: the loss stays, and memory does not grow. (The last 4 % are for the schedule, which can no
/// longer move one op of a program by itself.)
Test(fuse, models_need_no_more_memory) {
    static const char *const blocks[] = {"mamba1", "mamba2", "mamba3", "attention", "gated_mlp", "tinymamba"};
    for (int k = 0; k < 6; k++)
        for (int mimo = 0; mimo <= !strcmp(blocks[k], "mamba3"); mimo++) {
            float *out[2];
            kr_plan_stats stats[2];
            for (int fuse = 0; fuse < 2; fuse++) {
                kr_model_config c = kr_model_defaults();
                c.d_model = 64, c.n_layer = 3, c.vocab_size = 50;
                check_ok(kr_settings_set(&c.keys, "d_state", "16"), "d_state");
                check_ok(kr_settings_set(&c.keys, "headdim", "16"), "headdim");
                check_ok(kr_settings_set(&c.keys, "is_mimo", mimo ? "true" : "false"), "is_mimo");
                snprintf(c.layer, sizeof c.layer, "%s", blocks[k]);
                kr_graph *g;
                int64_t n;
                check_ok(kr_model_build(&c, KR_MODE_TRAIN, 2, 96, &g), blocks[k]);
                kr_plan *plan = plan_of(g, KR_GOAL_GRADIENTS, fuse, &stats[fuse]);
                out[fuse] = run(plan, 2, &n);
                kr_plan_free(plan);
            }
            cr_expect_lt(stats[1].steps, stats[0].steps, "%s: %d steps, %d without fusion", blocks[k], stats[1].steps,
                         stats[0].steps);
            cr_expect(stats[1].peak <= 1.04 * (double)stats[0].peak, "%s: %zu bytes, %zu without fusion", blocks[k],
                      stats[1].peak, stats[0].peak);
            cr_expect(fabsf(out[1][0] - out[0][0]) <= 1e-6f * fabsf(out[0][0]), "%s: loss %g, %g without fusion",
                      blocks[k], out[1][0], out[0][0]);
            free(out[0]);
            free(out[1]);
        }
}

// What is fused ---------------------------------------------------------------------------------------------------

static kr_graph *graph(void) {
    kr_graph *g;
    check_ok(kr_graph_new(&g), "graph");
    return g;
}

static void fuse(kr_graph *g, kr_goal goal) {
    check_ok(kr_compile(g, &(kr_compile_options){.goal = goal, .stop_after = "fuse"}, NULL, NULL), "fuse");
}

/// Nodes of an op; null: all that run.
static int count(const kr_graph *g, const char *op) {
    int found = 0;
    for (int i = 0; i < kr_graph_nodes(g); i++) {
        const kr_node *n = kr_graph_node(g, i);
        found += op ? !strcmp(n->op->name, op) : !kr_node_source(n) && !(n->op->flags & KR_OP_VIEW);
    }
    return found;
}

Test(fuse, chains_are_cut_at_the_limit) {
    kr_graph *g = graph();
    kr_value v = kr_input(g, "x", KR_F32, KR_SHAPE(4, 4));
    for (int k = 0; k < 50; k++) v = kr_tanh(g, v);
    kr_output(g, "y", v);
    fuse(g, KR_GOAL_FORWARD);
    cr_expect_eq(count(g, "fused"), (50 + KR_PROGRAM_LENGTH - 1) / KR_PROGRAM_LENGTH);
    cr_expect_eq(count(g, "tanh"), 0);
    kr_graph_free(g);

    g = graph();
    v = kr_input(g, "x", KR_F32, KR_SHAPE(4, 4));
    for (int k = 0; k < 12; k++) v = kr_add(g, v, kr_input(g, (char[]){'a' + (char)k, 0}, KR_F32, KR_SHAPE(4, 4)));
    kr_output(g, "y", v);
    fuse(g, KR_GOAL_FORWARD);
    cr_expect_eq(count(g, "fused"), 2, "13 inputs are two programs' worth");
    kr_graph_free(g);
}

/// exp and mul around a running sum: together they would have to run before and after it.
Test(fuse, no_cycle_through_what_cannot_be_fused) {
    kr_graph *g = graph();
    const kr_value a = kr_exp(g, kr_cumsum(g, kr_input(g, "x", KR_F32, KR_SHAPE(4, 4)), 0, false));
    kr_output(g, "a", a);
    kr_output(g, "y", kr_mul(g, a, kr_softmax(g, a)));
    fuse(g, KR_GOAL_FORWARD);
    cr_expect_eq(count(g, "fused"), 0);
    cr_expect_eq(count(g, "exp"), 1);
    check_ok(kr_graph_verify(g), "verify");
    kr_graph_free(g);
}

/// The gate of a block: silu(z) is not kept for the backward pass, and each saved value is read once there.
Test(fuse, backward_of_a_gate_is_one_program) {
    kr_graph *g = graph();
    const kr_init init = {.kind = KR_INIT_UNIFORM, .a = 1};
    const kr_value x = kr_input(g, "x", KR_F32, KR_SHAPE(64, 32));
    const kr_value w = kr_param(g, "w", KR_SHAPE(64, 32), init, 0), o = kr_param(g, "o", KR_SHAPE(32, 32), init, 0);
    kr_value half[2];
    kr_split(g, kr_linear(g, x, w, KR_NONE), -1, (int64_t[]){32, 32}, 2, half);
    const kr_value y = kr_linear(g, kr_mul(g, half[0], kr_silu(g, half[1])), o, KR_NONE);
    kr_output(g, "loss", kr_sum(g, kr_reshape(g, kr_softmax(g, y), KR_SHAPE(-1)), 0, true));
    fuse(g, KR_GOAL_GRADIENTS);
    cr_expect_eq(count(g, "fused"), 2);
    for (int i = 0; i < kr_graph_nodes(g); i++) {
        const kr_node *n = kr_graph_node(g, i);
        if (!(n->op->flags & KR_OP_PROGRAM)) continue;
        cr_expect(n->inputs <= 3 && n->outputs == (n->inputs == 3 ? 2 : 1), "%d inputs, %d outputs", n->inputs,
                  n->outputs);
    }
    cr_expect_eq(count(g, "silu") + count(g, "mul") + count(g, "silu_grad"), 0);
    kr_graph_free(g);
}

/// A value that everything else would have to be kept for stays a value of its own.
Test(fuse, inputs_are_not_kept_alive_for_a_program) {
    kr_graph *g = graph();
    const kr_shape s = KR_SHAPE(64, 64);
    kr_value part[3], v = kr_input(g, "x", KR_F32, s);
    for (int k = 0; k < 3; k++) part[k] = kr_cumsum(g, v, k % 2, k == 2);
    const kr_value early = kr_mul(g, kr_add(g, part[0], part[1]), part[2]);
    for (int k = 0; k < 6; k++) v = kr_softmax(g, k ? v : early);
    kr_output(g, "y", kr_add(g, v, kr_neg(g, early)));
    fuse(g, KR_GOAL_FORWARD);
    int programs = 0;
    for (int i = 0; i < kr_graph_nodes(g); i++) {
        const kr_node *n = kr_graph_node(g, i);
        programs += (n->op->flags & KR_OP_PROGRAM) != 0;
        cr_expect(!(n->op->flags & KR_OP_PROGRAM) || n->inputs <= 3);
    }
    cr_expect_eq(programs, 2, "add and mul, then neg and add");
    kr_graph_free(g);
}

Test(fuse, a_large_sum_ends_a_program) {
    for (int large = 0; large < 2; large++) {
        kr_graph *g = graph();
        const kr_value x = kr_input(g, "x", KR_F32, KR_SHAPE(8, large ? 1024 : 16, 40));
        const kr_value rows = kr_reshape(g, kr_square(g, kr_tanh(g, x)), KR_SHAPE(-1, 40));
        kr_output(g, "y", kr_sum(g, rows, 0, false));
        fuse(g, KR_GOAL_FORWARD);
        cr_expect_eq(count(g, "fused_sum"), large);
        cr_expect_eq(count(g, NULL), 2 - large);
        kr_graph_free(g);
    }
}

// Additions -------------------------------------------------------------------------------------------------------

static const kr_init half_uniform = {.kind = KR_INIT_UNIFORM, .a = 0.5};

/// x + w2 tanh(w1 norm(x + r)), twice: products take residuals, norms take sums, gradients of norms take gradients.
static kr_graph *residuals(void) {
    kr_graph *g = graph();
    kr_value x = kr_input(g, "x", KR_F32, KR_SHAPE(3, 5, 24));
    const kr_value r = kr_input(g, "r", KR_F32, KR_SHAPE(3, 5, 24));
    for (int k = 0; k < 2; k++) {
        kr_scope_push(g, "%d", k);
        const kr_value sum = kr_add(g, x, r), one = kr_param(g, "norm", KR_SHAPE(24), half_uniform, 0);
        const kr_value n = k ? kr_layer_norm_full(g, sum, KR_NONE, one, KR_NONE, 1e-5, NULL)
                             : kr_rms_norm(g, sum, one, 1e-5);
        const kr_value up = kr_linear(g, n, kr_param(g, "up", KR_SHAPE(30, 24), half_uniform, 0), KR_NONE);
        x = kr_add(g, sum,
                   kr_linear(g, kr_tanh(g, up), kr_param(g, "down", KR_SHAPE(24, 30), half_uniform, 0), KR_NONE));
        kr_scope_pop(g);
    }
    kr_output(g, "y", x);
    kr_output(g, "loss", kr_sum(g, kr_reshape(g, kr_square(g, x), KR_SHAPE(-1)), 0, true));
    check_ok(kr_graph_status(g), "residuals");
    return g;
}

/// A target may allow less than one op alone needs.
Test(fuse, a_sum_ends_no_program_beyond_the_limits) {
    kr_target narrow = kr_target_cpu;
    narrow.program.inputs = 1;
    narrow.program.large = 1;
    kr_graph *g = graph();
    const kr_value product = kr_mul(g, kr_input(g, "x", KR_F32, KR_SHAPE(8, 4)), kr_input(g, "y", KR_F32, KR_SHAPE(8, 4)));
    kr_output(g, "two", kr_sum(g, product, 0, false));
    kr_output(g, "one", kr_sum(g, kr_silu(g, kr_input(g, "z", KR_F32, KR_SHAPE(8, 4))), 0, false));
    check_ok(kr_compile(g, &(kr_compile_options){.target = &narrow, .stop_after = "fuse"}, NULL, NULL), "fuse");
    cr_expect_eq(count(g, "mul"), 1);
    cr_expect_eq(count(g, "silu"), 0);
    cr_expect_eq(count(g, "fused_sum"), 1);
    kr_graph_free(g);
}

Test(fuse, additions_go_into_products_and_norms) {
    kr_graph *g = residuals();
    fuse(g, KR_GOAL_GRADIENTS);
    int residual = 0, stream = 0, dstream = 0;
    for (int i = 0; i < kr_graph_nodes(g); i++) {
        const kr_node *n = kr_graph_node(g, i);
        residual += !strcmp(n->op->name, "matmul") && n->in[3].id;
        stream += n->op->adds_first && n->in[n->op->adds_first - 1].id;
        dstream += strstr(n->op->name, "norm_grad") && n->in[n->op->added - 1].id;
    }
    cr_expect_eq(residual, 2);
    cr_expect_eq(stream, 2);
    cr_expect_eq(dstream, 2);
    kr_graph_free(g);
    int64_t n, m;
    kr_plan *plain = plan_of(residuals(), KR_GOAL_GRADIENTS, false, NULL),
            *plan = plan_of(residuals(), KR_GOAL_GRADIENTS, true, NULL);
    float *want = run(plain, 1, &n), *got = run(plan, 3, &m);
    cr_assert(n == m && n > 1000);
    for (int64_t i = 0; i < n; i++)
        cr_assert(fabsf(got[i] - want[i]) <= 1e-4f * (1 + fabsf(want[i])), "element %ld: %g, want %g", (long)i, got[i],
                  want[i]);
    free(want), free(got);
    kr_plan_free(plain);
    kr_plan_free(plan);
}

/// A chain of products with every activation there is between them.
static kr_graph *activated(void) {
    kr_graph *g = graph();
    kr_value x = kr_input(g, "x", KR_F32, KR_SHAPE(37, 24));
    kr_value (*const f[])(kr_graph *, kr_value) = {(kr_silu), (kr_relu), (kr_gelu), (kr_sigmoid), (kr_softplus)};
    for (int k = 0; k < 5; k++) {
        const char *const w[] = {"w0", "w1", "w2", "w3", "w4"}, *const b[] = {"b0", "b1", "b2", "b3", "b4"};
        x = f[k](g,
                 kr_linear(g, x, kr_input(g, w[k], KR_F32, KR_SHAPE(24, 24)), kr_input(g, b[k], KR_F32, KR_SHAPE(24))));
    }
    kr_output(g, "y", x);
    check_ok(kr_graph_status(g), "activations");
    return g;
}

Test(fuse, activations_go_into_products) {
    kr_graph *g = activated();
    fuse(g, KR_GOAL_FORWARD);
    int64_t seen = 0;
    for (int i = 0; i < kr_graph_nodes(g); i++) {
        const kr_node *n = kr_graph_node(g, i);
        if (!strcmp(n->op->name, "matmul")) seen = seen * 10 + n->attrs.i[n->op->activation];
        else cr_expect(kr_node_source(n), "%s is left", n->op->name);
    }
    cr_expect_eq(seen, 12345, "the products do %ld", (long)seen);
    kr_graph_free(g);
    int64_t n, m;
    kr_plan *plain = plan_of(activated(), KR_GOAL_FORWARD, false, NULL),
            *plan = plan_of(activated(), KR_GOAL_FORWARD, true, NULL);
    float *want = run(plain, 1, &n), *got = run(plan, 3, &m);
    cr_assert(n == m && n == 37 * 24);
    for (int64_t i = 0; i < n; i++)
        cr_assert(fabsf(got[i] - want[i]) <= 1e-6f * (1 + fabsf(want[i])), "element %ld: %g, want %g", (long)i, got[i],
                  want[i]);
    free(want), free(got);
    kr_plan_free(plain);
    kr_plan_free(plan);
}

/// The product is an output by itself, or is read twice: it must stay as it is.
Test(fuse, a_product_that_others_need_keeps_its_value) {
    kr_graph *g = graph();
    const kr_value x = kr_input(g, "x", KR_F32, KR_SHAPE(4, 4)),
                   y = kr_linear(g, x, kr_input(g, "w", KR_F32, KR_SHAPE(4, 4)), KR_NONE);
    kr_output(g, "y", y);
    kr_output(g, "z", kr_add(g, x, y));
    const kr_value twice = kr_linear(g, kr_softmax(g, x), kr_input(g, "v", KR_F32, KR_SHAPE(4, 4)), KR_NONE);
    kr_output(g, "doubled", kr_add(g, twice, twice));
    fuse(g, KR_GOAL_FORWARD);
    for (int i = 0; i < kr_graph_nodes(g); i++) {
        const kr_node *n = kr_graph_node(g, i);
        cr_expect(strcmp(n->op->name, "matmul") || !n->in[3].id);
    }
    cr_expect_eq(count(g, "add"), 2);
    kr_graph_free(g);
}

Test(fuse, an_activation_that_its_gradient_needs_stays) {
    kr_graph *g = graph();
    const kr_value x = kr_input(g, "x", KR_F32, KR_SHAPE(4, 4)), w = kr_param(g, "w", KR_SHAPE(4, 4), (kr_init){0}, 0);
    const kr_value y = kr_silu(g, kr_linear(g, x, w, KR_NONE));
    kr_output(g, "loss", kr_reshape(g, kr_mean(g, kr_reshape(g, y, KR_SHAPE(16)), 0, true), KR_SHAPE(1)));
    fuse(g, KR_GOAL_GRADIENTS);
    for (int i = 0; i < kr_graph_nodes(g); i++) {
        const kr_node *n = kr_graph_node(g, i);
        cr_expect(strcmp(n->op->name, "matmul") || !n->attrs.i[n->op->activation]);
    }
    kr_graph_free(g);
}

/// A row added to a product would have to be written out as a matrix first.
Test(fuse, nothing_is_copied_to_be_a_residual) {
    kr_graph *g = graph();
    const kr_value x = kr_input(g, "x", KR_F32, KR_SHAPE(4, 4)),
                   y = kr_linear(g, x, kr_input(g, "w", KR_F32, KR_SHAPE(4, 4)), KR_NONE);
    kr_output(g, "y", kr_add(g, y, kr_input(g, "row", KR_F32, KR_SHAPE(4))));
    check_ok(kr_compile(g, &(kr_compile_options){.stop_after = "layout"}, NULL, NULL), "layout");
    cr_expect_eq(count(g, "copy"), 0);
    cr_expect_eq(count(g, "add"), 1);
    kr_graph_free(g);
}
