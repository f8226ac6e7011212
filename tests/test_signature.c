/// The unifier of signatures: every feature of the language, every message, and shapes of any kind.
#include "ops/graph/signature.h"
#include "tests/check.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#define NO_INPUT CHECK_ABSENT

typedef struct call {
    kr_shape in[KR_MAX_INPUTS], out[KR_MAX_OUTPUTS];
    kr_dtype dtype[KR_MAX_INPUTS], out_dtype[KR_MAX_OUTPUTS];
    kr_attrs attrs;
    kr_status status;
} call;

static int count_inputs(const kr_signature *s) {
    int n = 0;
    while (s->in[n].name) n++;
    return n;
}

static void run(const kr_op *op, call *c) {
    c->status = kr_op_shapes(op, &c->attrs, c->in, c->dtype, count_inputs(op->signature), c->out, c->out_dtype);
}

static void gives(const kr_op *op, call c, int output, kr_shape want) {
    char got[160], wanted[160];
    run(op, &c);
    check_ok(c.status, op->name);
    cr_assert(kr_shape_equal(&c.out[output], &want), "output %d is %s, want %s", output,
              kr_shape_text(&c.out[output], got), kr_shape_text(&want, wanted));
}

static void refuses(const kr_op *op, call c, kr_status code, const char *message) {
    run(op, &c);
    cr_assert_eq(c.status, code, "%s, want \"%s\"", kr_status_name(c.status), message);
    cr_assert_str_eq(kr_status_message(), message);
}

// Letters, products and attributes ----------------------------------------------------------------------------------

enum { X, DT, KEYS, QUERIES, D, H0, RESET };
enum { Y, LAST };
static const kr_signature scan_signature = {
    .in = {[X] = {"x", "B L H*P"},
           [DT] = {"dt", "B L H"},
           [KEYS] = {"B", "B L groups*N"},
           [QUERIES] = {"C", "B L groups*N"},
           [D] = {"D", "H | H*P", KR_OPTIONAL},
           [H0] = {"h0", "B H P N", KR_OPTIONAL},
           [RESET] = {"reset", "B L", KR_OPTIONAL, KR_I32}},
    .out = {[Y] = {"y", "B L H*P"}, [LAST] = {"last", "B H P N"}},
    .i = {KR_AT_LEAST(1)},
};
static const kr_op scan = {.name = "scan", .attr = {.i = {"groups"}}, .signature = &scan_signature};

static call scan_call(void) {
    return (call){.in = {KR_SHAPE(2, 16, 32), KR_SHAPE(2, 16, 4), KR_SHAPE(2, 16, 64), KR_SHAPE(2, 16, 64), NO_INPUT,
                         NO_INPUT, NO_INPUT},
                  .dtype = {[RESET] = KR_I32},
                  .attrs = {.i = {2}}};
}

Test(signature, outputs_are_derived) {
    call c = scan_call();
    gives(&scan, c, Y, KR_SHAPE(2, 16, 32));
    gives(&scan, c, LAST, KR_SHAPE(2, 4, 8, 32));
    c.in[D] = KR_SHAPE(4);
    c.in[H0] = KR_SHAPE(2, 4, 8, 32);
    c.in[RESET] = KR_SHAPE(2, 16);
    gives(&scan, c, LAST, KR_SHAPE(2, 4, 8, 32));
    c.in[D] = KR_SHAPE(32);
    gives(&scan, c, LAST, KR_SHAPE(2, 4, 8, 32));
}

Test(signature, messages_name_operand_and_letters) {
    call c = scan_call();
    c.in[QUERIES] = KR_SHAPE(2, 16, 48);
    refuses(&scan, c, KR_BAD_SHAPE,
            "scan: C is [2, 16, 48], want [B L groups*N] = [2, 16, 64] with B = 2, L = 16 (from x), groups = 2, N = 32 "
            "(from B)");
    c = scan_call();
    c.in[X] = KR_SHAPE(2, 16, 33);
    refuses(&scan, c, KR_BAD_SHAPE, "scan: x is [2, 16, 33], want [B L H*P] with H = 4 (from dt)");
    c = scan_call();
    c.in[X] = KR_SHAPE(2, 16);
    refuses(&scan, c, KR_BAD_SHAPE, "scan: x is [2, 16], want [B L H*P]");
    c = scan_call();
    c.in[D] = KR_SHAPE(5);
    refuses(&scan, c, KR_BAD_SHAPE, "scan: D is [5], want [H] or [H*P] with H = 4 (from dt), P = 8 (from x)");
    c = scan_call();
    c.in[RESET] = KR_SHAPE(2, 16);
    c.dtype[RESET] = KR_F32;
    refuses(&scan, c, KR_BAD_SHAPE, "scan: reset is f32 [2, 16], want i32 [B L]");
    c = scan_call();
    c.in[DT] = NO_INPUT;
    refuses(&scan, c, KR_BAD_ARGUMENT, "scan: dt is missing, want [B L H]");
    c = scan_call();
    c.attrs.i[0] = 0;
    refuses(&scan, c, KR_BAD_ARGUMENT, "scan: groups is 0, want at least 1");
}

Test(signature, products_of_nothing) {
    call c = scan_call();
    c.in[X] = KR_SHAPE(2, 16, 0), c.in[DT] = KR_SHAPE(2, 16, 0);
    gives(&scan, c, LAST, KR_SHAPE(2, 0, 0, 32)); // no operand says P
    c.in[H0] = KR_SHAPE(2, 0, 7, 32);
    gives(&scan, c, LAST, KR_SHAPE(2, 0, 7, 32));
    c.in[X] = KR_SHAPE(2, 16, 5);
    refuses(&scan, c, KR_BAD_SHAPE, "scan: x is [2, 16, 5], want [B L H*P] with H = 0 (from dt)");
}

Test(signature, overflow_is_a_misfit) {
    call c = scan_call();
    c.in[H0] = KR_SHAPE(2, 4, 8, INT64_MAX);
    refuses(&scan, c, KR_BAD_SHAPE,
            "scan: h0 is [2, 4, 8, 9223372036854775807], want [B H P N] = [2, 4, 8, 32] with B = 2 (from x), H = 4 "
            "(from dt), P = 8 (from x), N = 32 (from B)");
    c = scan_call();
    c.attrs.i[0] = INT64_MAX;
    refuses(&scan, c, KR_BAD_SHAPE,
            "scan: B is [2, 16, 64], want [B L groups*N] with B = 2, L = 16 (from x), groups = 9223372036854775807");
    c = scan_call();
    c.in[X] = KR_SHAPE(2, 16, 1ll << 40), c.in[DT] = KR_SHAPE(2, 16, 1);
    c.in[KEYS] = c.in[QUERIES] = KR_SHAPE(2, 16, 1ll << 41);
    refuses(&scan, c, KR_BAD_SHAPE, "scan: last would be [2, 1, 1099511627776, 1099511627776], which is too large");
}

// Leading axes, sums, numbers and the shape of an input -------------------------------------------------------------

static const kr_signature rows_signature = {
    .in = {{"x", "... D"},
           {"rows", "...", KR_OPTIONAL, KR_I32},
           {"w", "...? D-1", KR_OPTIONAL},
           {"one", "1", KR_OPTIONAL}},
    .out = {{"y", "... D+2"}, {"pairs", "D 2*D"}, {"dw", "@w"}},
};
static const kr_op rows = {.name = "rows", .signature = &rows_signature};

Test(signature, leading_axes) {
    call c = {.in = {KR_SHAPE(3, 5, 7), NO_INPUT, NO_INPUT, NO_INPUT}, .dtype = {[1] = KR_I32}};
    gives(&rows, c, 0, KR_SHAPE(3, 5, 9));
    gives(&rows, c, 1, KR_SHAPE(7, 14));
    gives(&rows, c, 2, KR_SHAPE(0));
    c.in[1] = KR_SHAPE(3, 5);
    c.in[2] = KR_SHAPE(6);
    c.in[3] = KR_SHAPE(1);
    gives(&rows, c, 2, KR_SHAPE(6));
    c.in[2] = KR_SHAPE(3, 5, 6);
    gives(&rows, c, 2, KR_SHAPE(3, 5, 6));
    c.in[2] = KR_SHAPE(5, 6);
    refuses(&rows, c, KR_BAD_SHAPE, "rows: w is [5, 6], want [...? D-1] = [3, 5, 6] with D = 7 (from x)");
    c.in[2] = NO_INPUT;
    c.in[1] = KR_SHAPE(5, 3);
    refuses(&rows, c, KR_BAD_SHAPE, "rows: rows is [5, 3], want [...] = [3, 5]");
    c.in[1] = NO_INPUT;
    c.in[3] = KR_SHAPE(2);
    refuses(&rows, c, KR_BAD_SHAPE, "rows: one is [2], want [1] = [1]");
    c.in[3] = NO_INPUT;
    c.in[0] = KR_SCALAR;
    refuses(&rows, c, KR_BAD_SHAPE, "rows: x is [], want [... D]");
    c.in[0] = KR_SHAPE(0);
    gives(&rows, c, 0, KR_SHAPE(2));
    c.in[2] = KR_SHAPE(0); // D-1 would be -1
    refuses(&rows, c, KR_BAD_SHAPE, "rows: w is [0], want [...? D-1] with D = 0 (from x)");
}

static const kr_signature deep_signature = {.in = {{"ids", "..."}, {"table", "V W"}},
                                            .out = {{"y", "... W"}, {"z", "V-3"}}};
static const kr_op deep = {.name = "deep", .signature = &deep_signature};

Test(signature, outputs_that_are_no_shapes) {
    refuses(&deep, (call){.in = {KR_SHAPE(1, 1, 1, 1, 1, 1), KR_SHAPE(3, 4)}}, KR_BAD_SHAPE,
            "deep: y would be [... W] with W = 4 (from table), which is no shape of at most 6 axes and 2^47 bytes");
    refuses(&deep, (call){.in = {KR_SHAPE(1), KR_SHAPE(2, 4)}}, KR_BAD_SHAPE,
            "deep: z would be [V-3] with V = 2 (from table), which is no shape of at most 6 axes and 2^47 bytes");
    gives(&deep, (call){.in = {KR_SHAPE(1), KR_SHAPE(3, 4)}}, 1, KR_SHAPE(0));
}

// What attributes decide --------------------------------------------------------------------------------------------

static const kr_signature product_signature = {
    .in = {{"a", "turned ? K M : M K"},
           {"bias", "biased ? M : absent"},
           {"free", "biased ? L | L L2 : absent"},
           {"all", "any", KR_OPTIONAL}},
    .out = {{"y", "turned ? M K : K M"}},
    .r = {KR_BETWEEN(0, 1)},
};
static const kr_op product = {
    .name = "product", .attr = {.i = {"turned", "biased"}, .r = {"share"}}, .signature = &product_signature};

Test(signature, attributes_choose) {
    call c = {.in = {KR_SHAPE(2, 3), NO_INPUT, NO_INPUT, NO_INPUT}};
    gives(&product, c, 0, KR_SHAPE(3, 2));
    c.attrs.i[0] = 1;
    gives(&product, c, 0, KR_SHAPE(3, 2));
    c.in[1] = KR_SHAPE(3);
    refuses(&product, c, KR_BAD_SHAPE, "product: bias is [3], want none with biased = 0");
    c.attrs.i[1] = 1;
    refuses(&product, c, KR_BAD_ARGUMENT, "product: free is missing, want [L] or [L L2] (biased = 1)");
    c.in[2] = KR_SHAPE(5, 6);
    gives(&product, c, 0, KR_SHAPE(3, 2));
    c.in[2] = KR_SHAPE(5);
    c.in[3] = KR_SHAPE(9, 9, 9, 9);
    gives(&product, c, 0, KR_SHAPE(3, 2));
    c.dtype[3] = KR_I32;
    refuses(&product, c, KR_BAD_SHAPE, "product: all is i32 [9, 9, 9, 9], want f32");
    c.dtype[3] = KR_F32;
    c.in[1] = KR_SHAPE(2);
    refuses(&product, c, KR_BAD_SHAPE, "product: bias is [2], want [M] = [3] (biased = 1) with M = 3 (from a)");
    c.in[1] = KR_SHAPE(3);
    c.attrs.r[0] = 1.5;
    refuses(&product, c, KR_BAD_ARGUMENT, "product: share is 1.5, want 0 to 1");
    cr_expect(kr_op_may_miss(&product, 1) && kr_op_may_miss(&product, 3) && !kr_op_may_miss(&product, 0));
    cr_expect_str_eq(kr_op_input_name(&product, 1), "bias");
}

// What only the op knows --------------------------------------------------------------------------------------------

static kr_status halves(const kr_op *op, const kr_attrs *t, const kr_shape *in, kr_letters *l) {
    (void)t, (void)in;
    KR_FAIL_IF(kr_letter(l, "L") % 2, KR_BAD_SHAPE, "%s: L is odd", op->name);
    cr_assert_eq(kr_letter(l, "Nobody"), -1);
    return kr_letter_let(l, "T", kr_letter(l, "L") / 2);
}
static const kr_signature half_signature = {.in = {{"x", "L"}, {"saved", "T L", KR_OPTIONAL}}, .out = {{"y", "T 3"}}};
static const kr_op half = {.name = "half", .signature = &half_signature, .check = halves};

Test(signature, a_check_adds_letters) {
    call c = {.in = {KR_SHAPE(8), NO_INPUT}};
    gives(&half, c, 0, KR_SHAPE(4, 3));
    c.in[1] = KR_SHAPE(4, 8);
    gives(&half, c, 0, KR_SHAPE(4, 3));
    c.in[1] = KR_SHAPE(5, 8);
    refuses(&half, c, KR_BAD_SHAPE, "half: saved is [5, 8], want [T L] = [4, 8] with T = 4, L = 8 (from x)");
    c = (call){.in = {KR_SHAPE(7), NO_INPUT}};
    refuses(&half, c, KR_BAD_SHAPE, "half: L is odd");
}

static const kr_signature open_signature = {.in = {{"x", "H*P"}}, .out = {{"y", "H"}}};
static const kr_op open_op = {.name = "open", .signature = &open_signature};
static const kr_signature variadic_signature = {.in = {{"first", "L"}, {"more", "L", KR_OPTIONAL}},
                                                .out = {{"y", "L"}}};
static const kr_op variadic = {.name = "variadic", .flags = KR_OP_VARIADIC, .signature = &variadic_signature};

Test(signature, what_no_operand_says_is_an_error) {
    refuses(&open_op, (call){.in = {KR_SHAPE(12)}}, KR_BAD_ARGUMENT,
            "open: the shape of x does not say all of its letters");
}

Test(signature, the_last_input_stands_for_those_behind_it) {
    kr_shape in[40], out[1];
    kr_dtype dtype[40] = {KR_F32}, out_dtype[1];
    for (int k = 0; k < 40; k++) in[k] = KR_SHAPE(3);
    check_ok(kr_op_shapes(&variadic, NULL, in, dtype, 40, out, out_dtype), "variadic");
    in[39] = KR_SHAPE(4);
    cr_assert_eq(kr_op_shapes(&variadic, NULL, in, dtype, 40, out, out_dtype), KR_BAD_SHAPE);
    cr_assert_str_eq(kr_status_message(), "variadic: more is [4], want [L] = [3] with L = 3 (from first)");
}

// The ops of the table ----------------------------------------------------------------------------------------------

/// Every word of a rule in lower case is an attribute of its op, and what stands behind "@" an input.
static void check_words(const kr_op *op, const kr_operand_rule *r) {
    if (*r->shape == '@') {
        bool found = false;
        for (int k = 0; op->signature->in[k].name; k++) found |= !strcmp(op->signature->in[k].name, r->shape + 1);
        cr_assert(found, "%s: %s has the shape of %s, which is no input", op->name, r->name, r->shape + 1);
        return;
    }
    for (const char *p = r->shape; *p; p++) {
        const size_t n = strspn(p, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789");
        if (!n) {
            cr_assert(strchr(" .*?:|+-", *p), "%s: %s: '%c' in \"%s\"", op->name, r->name, *p, r->shape);
            continue;
        }
        bool found = (*p >= 'A' && *p <= 'Z') || (*p >= '0' && *p <= '9') || !strncmp(p, "absent", n) ||
                     !strncmp(p, "any", n);
        for (int k = 0; k < KR_ATTR_INTEGERS && op->attr.i[k]; k++)
            found |= strlen(op->attr.i[k]) == n && !strncmp(p, op->attr.i[k], n);
        cr_assert(found, "%s: %s: no attribute \"%.*s\"", op->name, r->name, (int)n, p);
        p += n - 1;
    }
}

Test(signature, those_of_the_table_are_complete) {
    int signatures = 0;
    for (int i = 0; i < kr_op_count; i++) {
        const kr_op *op = kr_ops[i];
        if (!op->signature) continue;
        int outputs = 0;
        signatures++;
        cr_assert_eq(count_inputs(op->signature), op->inputs, "%s declares %d inputs", op->name,
                     count_inputs(op->signature));
        for (int k = 0; k < op->inputs; k++) check_words(op, &op->signature->in[k]);
        for (; op->signature->out[outputs].name; outputs++) check_words(op, &op->signature->out[outputs]);
        cr_assert_eq(outputs, op->outputs, "%s declares %d outputs", op->name, outputs);
        for (int k = 0; k < KR_ATTR_INTEGERS; k++)
            cr_assert(!op->signature->i[k].given || op->attr.i[k], "%s", op->name);
        for (int k = 0; k < KR_ATTR_REALS; k++) cr_assert(!op->signature->r[k].given || op->attr.r[k], "%s", op->name);
    }
    cr_assert_gt(signatures, 0);
}

static uint64_t state = 1;
static int64_t roll(int64_t n) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (int64_t)(state >> 33) % n;
}
static int64_t any_length(void) {
    static const int64_t hostile[] = {0, -1, INT64_MAX, INT64_MAX / 2, 1ll << 32, 1ll << 31, INT64_MIN, INT64_MAX - 1};
    return roll(6) ? roll(5) : hostile[roll(8)];
}

/// Any shapes, dtypes and attributes: a status and never a crash (the sanitizers watch), and outputs that can be.
Test(signature, any_shape_gives_a_status) {
    int accepted = 0;
    for (int turn = 0; turn < 400; turn++)
        for (int i = 0; i < kr_op_count; i++) {
            const kr_op *op = kr_ops[i];
            if (!op->signature) continue;
            call c = {.status = KR_OK};
            for (int k = 0; k < op->inputs; k++) {
                c.in[k].rank = (int32_t)roll(8) - 1;
                for (int n = 0; n < KR_MAX_RANK; n++) c.in[k].dim[n] = any_length();
                c.dtype[k] = roll(8) ? op->signature->in[k].dtype : (kr_dtype)roll(KR_DTYPE_COUNT);
                if (k && roll(3) == 0) c.in[k] = c.in[0];
                if (kr_op_may_miss(op, k) && roll(2)) c.in[k].rank = -1;
            }
            for (int k = 0; k < KR_ATTR_INTEGERS; k++) c.attrs.i[k] = roll(3) ? roll(3) : any_length();
            for (int k = 0; k < KR_ATTR_REALS; k++) c.attrs.r[k] = (double)roll(3);
            c.attrs.shape.rank = (int32_t)roll(4) - 1;
            for (int n = 0; n < KR_MAX_RANK; n++) c.attrs.shape.dim[n] = any_length();
            run(op, &c);
            accepted += !c.status;
            if (!c.status)
                for (int k = 0; k < op->outputs; k++)
                    cr_assert_neq(kr_tensor_bytes(c.out_dtype[k], &c.out[k]), SIZE_MAX, "%s", op->name);
            else
                cr_assert(!strncmp(kr_status_message(), op->name, strlen(op->name)), "%s: %s", op->name,
                          kr_status_message());
        }
    cr_assert_gt(accepted, 0);
}
