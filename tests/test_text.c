// The text form of graphs: printing what was parsed from a print gives the same bytes, at every stage of the compiler;
// what is wrong with a text is told with its place; nothing that a text can hold makes the parser crash.
#include "compiler/compiler.h"
#include "models/models.h"

#include <criterion/criterion.h>
#include <locale.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static char *print(const kr_graph *g, size_t *bytes) {
    char *text = NULL;
    size_t size = 0;
    FILE *to = open_memstream(&text, &size);
    cr_assert_not_null(to);
    cr_assert_eq(kr_graph_print(g, to), KR_OK, "%s", kr_status_message());
    fclose(to);
    if (bytes) *bytes = size;
    return text;
}

static bool same_attributes(const kr_node *a, const kr_node *b) {
    for (int k = 0; k < KR_ATTR_INTEGERS; k++)
        if (a->attrs.i[k] != b->attrs.i[k]) return false;
    for (int k = 0; k < KR_ATTR_REALS; k++)
        if (memcmp(&a->attrs.r[k], &b->attrs.r[k], sizeof(double)) && !(isnan(a->attrs.r[k]) && isnan(b->attrs.r[k])))
            return false;
    return kr_shape_equal(&a->attrs.shape, &b->attrs.shape);
}

static bool same_name(const char *a, const char *b) { return a && b ? !strcmp(a, b) : !(a && *a) && !(b && *b); }

/// Prints, parses, compares the graphs node by node and their prints byte by byte.
static void round_trip(const kr_graph *g, const char *what) {
    size_t bytes, again_bytes;
    char *text = print(g, &bytes);
    kr_graph *parsed;
    cr_assert_eq(kr_graph_parse(text, bytes, what, &parsed), KR_OK, "%s\n%s", kr_status_message(), text);
    cr_assert_eq(kr_graph_verify(parsed), KR_OK, "%s: %s", what, kr_status_message());
    char *again = print(parsed, &again_bytes);
    cr_assert(bytes == again_bytes && !memcmp(text, again, bytes), "%s: the second print differs", what);
    int k = 0;
    for (int i = 0; i < kr_graph_nodes(g); i++) {
        const kr_node *a = kr_graph_node(g, i);
        if (a->dead) continue;
        const kr_node *b = kr_graph_node(parsed, k++);
        cr_assert(a->op == b->op && same_attributes(a, b), "%s: node %d (%s) has other attributes", what, i,
                  a->op->name);
        cr_assert(same_name(a->scope, b->scope) && same_name(a->name, b->name), "%s: node %d (%s) has another name",
                  what, i, a->op->name);
        cr_assert(a->init.kind == b->init.kind && a->init.a == b->init.a, "%s: node %d starts otherwise", what, i);
    }
    cr_assert_eq(k, kr_graph_nodes(parsed));
    kr_graph_free(parsed);
    free(again);
    free(text);
}

static kr_model_config tiny(void) {
    kr_model_config c = kr_model_defaults();
    c.vocab_size = 37;
    c.d_model = 12;
    c.n_layer = 2;
    strcpy(c.layer, "mamba1");
    cr_assert_eq(kr_settings_set(&c.keys, "d_state", "4"), KR_OK);
    return c;
}

static kr_graph *model(kr_mode mode, int64_t length) {
    kr_graph *g;
    const kr_model_config c = tiny();
    cr_assert_eq(kr_model_build(&c, mode, 2, length, &g), KR_OK, "%s", kr_status_message());
    return g;
}

Test(text, models_round_trip) {
    static const char *const modes[] = {"train", "eval", "prefill", "decode", "logits"};
    for (int k = 0; k < 5; k++) {
        kr_mode mode;
        cr_assert(kr_mode_parse(modes[k], &mode));
        kr_graph *g = model(mode, mode == KR_MODE_DECODE ? 1 : 9);
        round_trip(g, modes[k]);
        kr_graph_free(g);
    }
}

Test(text, every_pass_round_trips) {
    static const kr_goal goals[] = {KR_GOAL_FORWARD, KR_GOAL_GRADIENTS, KR_GOAL_TRAIN, KR_GOAL_ACCUMULATE,
                                    KR_GOAL_TRAIN_LAST};
    for (int goal = 0; goal < 5; goal++)
        for (int k = 0; kr_pass_name(k); k++) {
            kr_graph *g = model(KR_MODE_TRAIN, 9);
            const kr_compile_options options = {.goal = goals[goal],
                                                .stop_after = kr_pass_name(k),
                                                .accumulation = 2,
                                                .optimizer = {0.9, 0.95, 1e-8, 0.1, 1.0}};
            char what[64];
            snprintf(what, sizeof what, "goal %d after %s", goal, kr_pass_name(k));
            cr_assert_eq(kr_compile(g, &options, NULL, NULL), KR_OK, "%s: %s", what, kr_status_message());
            round_trip(g, what);
            kr_graph_free(g);
        }
}

/// A parsed graph is a graph like any other: compiled, it gives the same stages as the one that was built.
Test(text, parsed_graph_compiles_to_the_same_text) {
    kr_graph *built = model(KR_MODE_TRAIN, 9), *parsed;
    size_t bytes;
    char *text = print(built, &bytes);
    cr_assert_eq(kr_graph_parse(text, bytes, "model", &parsed), KR_OK, "%s", kr_status_message());
    const kr_compile_options options = {
        .goal = KR_GOAL_TRAIN, .stop_after = "schedule", .optimizer = {0.9, 0.95, 1e-8, 0.1, 1.0}};
    cr_assert_eq(kr_compile(built, &options, NULL, NULL), KR_OK, "%s", kr_status_message());
    cr_assert_eq(kr_compile(parsed, &options, NULL, NULL), KR_OK, "%s", kr_status_message());
    char *a = print(built, NULL), *b = print(parsed, NULL);
    cr_assert_str_eq(a, b);
    free(text), free(a), free(b);
    kr_graph_free(built);
    kr_graph_free(parsed);
}

static kr_graph *sources(void) {
    kr_graph *g;
    cr_assert_eq(kr_graph_new(&g), KR_OK);
    kr_input(g, "a \"quoted\" \\ name\n\x7f", KR_F32, KR_SHAPE(2, 0, 3));
    kr_input(g, "größe", KR_I32, KR_SCALAR);
    kr_scope_push(g, "scope %d", 1);
    static const kr_init inits[] = {{KR_INIT_ZEROS, 0, 0, 0},          {KR_INIT_CONSTANT, 1.5, 0, 0},
                                    {KR_INIT_UNIFORM, 0.1, 0, 0},      {KR_INIT_NORMAL, 0.02, 0, 0},
                                    {KR_INIT_LOG_ARANGE, 0, 0, 0},     {KR_INIT_LOG_UNIFORM, 1, 16, 0},
                                    {KR_INIT_DT_BIAS, 1e-3, 0.1, 1e-4}};
    for (int k = 0; k < KR_INIT_COUNT; k++) {
        char name[16];
        snprintf(name, sizeof name, "p%d", k);
        kr_param(g, name, KR_SHAPE(3, 4), inits[k], k % 2 ? KR_PARAM_DECAY : 0);
    }
    kr_scope_pop(g);
    static const double reals[] = {0,
                                   -0.0,
                                   1,
                                   -1,
                                   1e-5,
                                   0.1,
                                   1.0 / 3,
                                   3.141592653589793,
                                   5e-324,
                                   2.2250738585072014e-308,
                                   1.7976931348623157e308,
                                   123456789012345680.0,
                                   1e21,
                                   INFINITY,
                                   -INFINITY,
                                   NAN};
    for (size_t k = 0; k < sizeof reals / sizeof *reals; k++) kr_const(g, reals[k], KR_F32, KR_SHAPE(1));
    for (int dtype = 0; dtype < KR_DTYPE_COUNT; dtype++) kr_const(g, 1, (kr_dtype)dtype, KR_SHAPE(1, 2, 3, 4, 5, 6));
    const kr_value carry = kr_carry(g, "state", KR_F32, KR_SHAPE(2, 3));
    const kr_value m = kr_carry_kind(g, "m", KR_F32, KR_SHAPE(2), KR_CARRY_OPTIMIZER);
    kr_carry_kind(g, "g", KR_F32, KR_SHAPE(2), KR_CARRY_GRADIENT);
    kr_assign(g, carry, kr_const(g, 7, KR_F32, KR_SHAPE(2, 3)));
    kr_assign(g, m, m);
    kr_output(g, "out", carry);
    kr_output(g, "", m);
    cr_assert_eq(kr_graph_status(g), KR_OK, "%s", kr_status_message());
    return g;
}

Test(text, sources_round_trip) {
    kr_graph *g = sources();
    round_trip(g, "sources");
    kr_graph_free(g);
}

Test(text, the_locale_does_not_matter) {
    static const char *const commas[] = {"de_DE.UTF-8", "de_DE.utf8", "fr_FR.UTF-8", "de_DE"};
    bool set = false;
    for (int k = 0; k < 4 && !set; k++) set = setlocale(LC_NUMERIC, commas[k]) != NULL;
    if (!set) cr_skip_test("no locale with a decimal comma is installed");
    kr_graph *g = sources();
    char *text = print(g, NULL);
    cr_assert_not_null(strstr(text, "0.3333333333333333"));
    round_trip(g, "sources");
    free(text);
    kr_graph_free(g);
}

/// What a text may leave out, and what it may add.
Test(text, hand_written) {
    static const char text[] = "krait graph 1  # a comment\r\n"
                               "\n"
                               "  %x = input \"x\" : f32[2, 3]\n"
                               "%w=param \"w\":f32[4,3]# no initialiser, no blanks\n"
                               "%y = matmul(%x, %w, _, _) {transpose_b=1}\n"
                               "output \"y\" = %y\n"
                               "end   # nothing after it\n\n  \n";
    kr_graph *g;
    cr_assert_eq(kr_graph_parse(text, sizeof text - 1, "hand", &g), KR_OK, "%s", kr_status_message());
    const kr_shape shape = kr_value_shape(g, kr_graph_output_find(g, "y"));
    cr_assert(shape.rank == 2 && shape.dim[0] == 2 && shape.dim[1] == 4);
    round_trip(g, "hand");
    kr_graph_free(g);
}

/// The example of docs/graph-text.md is one.
Test(text, documented_example) {
    char path[4096], *page;
    size_t bytes;
    snprintf(path, sizeof path, "%s/docs/graph-text.md", getenv("KRAIT_SOURCE"));
    cr_assert_eq(kr_file_read(path, &page, &bytes), KR_OK, "%s", kr_status_message());
    char *start = strstr(page, "    krait graph 1\n"), *stop = start ? strstr(start, "    end\n") : NULL;
    cr_assert(start && stop, "the page has no example");
    kr_graph *g;
    kr_plan *plan;
    cr_assert_eq(kr_graph_parse(start, (size_t)(stop + 8 - start), "docs/graph-text.md", &g), KR_OK, "%s",
                 kr_status_message());
    round_trip(g, "example");
    const kr_compile_options options = {.goal = KR_GOAL_FORWARD};
    cr_assert_eq(kr_compile(g, &options, &plan, NULL), KR_OK, "%s", kr_status_message());
    kr_plan_free(plan);
    kr_graph_free(g);
    free(page);
}

#define H "krait graph 1\n"
#define X "%1 = input \"x\" : f32[2,3]\n"
static const struct wrong {
    const char *text, *message;
} wrongs[] = {
    {"", "t:1:1: the first line must be 'krait graph 1'"},
    {"krait graph 2\nend\n", "t:1:1: the first line must be"},
    {"krait graph 1 now\nend\n", "t:1:15: expected the end of the line, found 'now'"},
    {H, "t:2:1: the text ends before the line 'end'"},
    {H X, "t:3:1: the text ends before the line 'end'"},
    {H "end\n" X, "t:3:1: expected the end of the line, found '%1'"},
    {H "foo\nend\n", "t:2:1: expected a value such as %1, assign, output or end, found 'foo'"},
    {H "\x01\nend\n", "found the byte 0x01"},
    {H "%1 = input \"x\" : f32[2,3\nend\n",
     "t:2:25: expected ']' after the dimensions of a shape, found the end of the line"},
    {H "%1 = input \"x\" : f33[2]\nend\n", "t:2:18: unknown dtype 'f33'"},
    {H "%1 = input \"x\" : f32[-2]\nend\n", "t:2:22: dimension -2 is negative"},
    {H "%1 = input \"x\" : f32[1,2,3,4,5,6,7]\nend\n", "t:2:34: a shape has more than 6 dimensions"},
    {H "%1 = input \"x\" : f32[9223372036854775808]\nend\n", "does not fit in 64 bits"},
    {H "%1 = input \"x\" : f32[9223372036854775807]\nend\n", "t:2:6: source: shape"},
    {H "%1 = input \"x\nend\n", "t:2:12: a string is not closed on its line"},
    {H "%1 = input \"\\q\" : f32[1]\nend\n", "t:2:13: a string has an unknown escape"},
    {H X "%2 = input \"x\" : f32[2,3]\nend\n", "t:3:12: the input \"x\" exists already"},
    {H X "%1 = input \"y\" : f32[2,3]\nend\n", "t:3:1: %1 is defined already"},
    {H X "%2 = exp(%3) : f32[2,3]\nend\n", "t:3:10: %3 is not defined before this line"},
    {H X "%2 = exp(%2) : f32[2,3]\nend\n", "t:3:10: %2 is not defined before this line"},
    {H X "%2 = exq(%1) : f32[2,3]\nend\n", "t:3:6: unknown op 'exq'; did you mean 'exp'?"},
    {H X "%2 = exp(%1, %1) : f32[2,3]\nend\n", "t:3:6: exp: 2 inputs, want 1"},
    {H X "%2 = exp() : f32[2,3]\nend\n", "t:3:6: exp: 0 inputs, want 1"},
    {H X "%2 = exp(_) : f32[2,3]\nend\n", "t:3:6: exp: input 0 is missing"},
    {H X "%2, %3 = exp(%1) : f32[2,3]\nend\n", "t:3:1: exp makes 1 value, the line names 2"},
    {H X "%2, %2 = exp(%1) : f32[2,3]\nend\n", "t:3:5: %2 is defined already"},
    {H X "%2 = exp(%1) {ax=1} : f32[2,3]\nend\n", "t:3:15: exp has no attribute 'ax'"},
    {H X "%2 = matmul(%1, %1, _, _) {transpose_b=1, transpose_b=1}\nend\n", "attribute 'transpose_b' is given twice"},
    {H X "%2 = matmul(%1, %1, _, _) {transpose_b=0.5}\nend\n", "expected an integer, found '0.5'"},
    {H X "%2 = matmul(%1, %1, _, _)\nend\n", "t:3:6: matmul: "},
    {H X "%2 = exp(%1) : f32[3,2]\nend\n", "t:3:16: output 0 of exp is declared f32 [3, 2], its rule gives f32 [2, 3]"},
    {H X "%2 = exp(%1) : i32[2,3]\nend\n", "t:3:16: output 0 of exp is declared i32 [2, 3], its rule gives f32 [2, 3]"},
    {H X "%2 = exp(%1) : f32[2,3], f32[2,3]\nend\n", "expected the end of the line, found ','"},
    {H X "%2 = exp(%1) : f32[2,3] @ scope\nend\n", "t:3:27: expected '\"' before a scope, found 'scope'"},
    {H X "%2 = exp(%1) : f32[2,3] rest\nend\n", "t:3:25: expected the end of the line, found 'rest'"},
    {H X "%2 exp(%1)\nend\n", "t:3:4: expected '=' after the values that a node makes, found 'exp'"},
    {H X "% = exp(%1)\nend\n", "t:3:2: expected a name or number after '%'"},
    {H X "assign %1 = %1\nend\n", "t:3:1: assign: the target is not a param or carry"},
    {H X "%2 = carry \"c\" state : f32[3]\nassign %2 = %1\nend\n", "t:4:1: assign to \"c\""},
    {H X "%2 = carry \"c\" stat : f32[3]\nend\n", "t:3:16: expected state, optimizer or gradient, found 'stat'"},
    {H X "%2 = param \"p\" init=norm(1) : f32[3]\nend\n", "t:3:21: unknown initialiser 'norm'"},
    {H X "%2 = param \"p\" init=normal : f32[3]\nend\n", "expected '(' before a number of the initialiser"},
    {H X "%2 = param \"p\" init=normal(1, 2) : f32[3]\nend\n", "expected ')' after the numbers of the initialiser"},
    {H X "%2 = param \"p\" : i32[3]\nend\n", "t:3:18: a param is f32, not i32"},
    {H X "%2 = const abc : f32[3]\nend\n", "t:3:12: expected the constant, found 'abc'"},
    {H X "%2 = fused(%1)\nend\n", "t:3:15: expected '{' before a program, found the end of the line"},
    {H X "%2 = fused(%1) {}\nend\n", "t:3:17: expected a result such as t0, sum or out, found '}'"},
    {H X "%2 = fused(%1) {t1 = exp(x0), out t0}\nend\n", "t:3:17: expected the result t0"},
    {H X "%2 = fused(%1) {t0 = exq(x0), out t0}\nend\n", "t:3:22: 'exq' is not an elementwise op, which"},
    {H X "%2 = fused(%1) {t0 = sum(x0), out t0}\nend\n", "t:3:22: 'sum' is not an elementwise op, which"},
    {H X "%2 = fused(%1) {t0 = exp(y0), out t0}\nend\n", "t:3:26: expected a register such as x0 or t0, found 'y0'"},
    {H X "%2 = fused(%1) {t0 = exp(x8), out t0}\nend\n", "t:3:26: a program has at most 8 inputs"},
    {H X "%2 = fused(%1) {t0 = exp(x1), out t0}\nend\n", "fused: instruction 0 reads input 1, which is not there"},
    {H X "%2 = fused(%1) {t0 = exp(t0), out t0}\nend\n", "t:3:26: t0 is read before it is defined"},
    {H X "%2 = fused(%1) {t0 = add(x0), out t0}\nend\n", "t:3:28: expected ',' before the next operand, found ')'"},
    {H X "%2 = fused(%1) {t0 = affine(x0, shift=1), out t0}\nend\n", "t:3:33: expected scale="},
    {H X "%2 = fused(%1) {t0 = exp(x0), out x0}\nend\n", "fused: an output is no result"},
    {H X "%2 = fused(%1) {t0 = exp(x0), out t0 t0}\nend\n", "t:3:1: fused makes 2 values, the line names 1"},
    {H X "%2 = fused(%1) {t0 = exp(x0), out t0 t0 t0 t0}\nend\n", "a program puts out at most 3 results"},
    {H X "%2 = fused(%1) {t0 = exp(x0), sum t0 axis=0 axes=1 shape=[3]}\nend\n", "fused: the program has a sum"},
    {H X "%2 = fused_sum(%1) {t0 = exp(x0), sum t0 axis=0 axes=1 shape=[2]}\nend\n", "the sum is [2], want 3 elements"},
    {H X "%2 = fused_sum(%1) {t0 = exp(x0), sum t0 axis=9 axes=1 shape=[2]}\nend\n", "axis is 9, want 0 to 6"},
    {H X "output \"y\" = %1\noutput \"y\" = %1\nend\n", "t:4:1: output \"y\": the name is taken"},
    {H X "output \"y\" = _\nend\n", "t:3:14: expected '%' before the name of a value, found '_'"},
};

Test(text, errors_say_what_and_where) {
    for (size_t k = 0; k < sizeof wrongs / sizeof *wrongs; k++) {
        kr_graph *g = (kr_graph *)1;
        const kr_status status = kr_graph_parse(wrongs[k].text, strlen(wrongs[k].text), "t", &g);
        cr_expect_neq(status, KR_OK, "this was accepted:\n%s", wrongs[k].text);
        cr_expect_null(g);
        cr_expect(status && strstr(kr_status_message(), wrongs[k].message), "text:\n%s\ngot  %s\nwant %s",
                  wrongs[k].text, kr_status_message(), wrongs[k].message);
    }
}

Test(text, cut_anywhere) {
    kr_graph *g = model(KR_MODE_PREFILL, 3), *parsed;
    size_t bytes;
    char *text = print(g, &bytes);
    for (size_t cut = 0; cut + 1 < bytes; cut += bytes < 4000 || cut > bytes - 400 || cut < 2000 ? 1 : 7) {
        char *copy = malloc(cut); // exactly as long, so that AddressSanitizer sees any read past it
        memcpy(copy, text, cut);
        cr_assert_neq(kr_graph_parse(copy, cut, "cut", &parsed), KR_OK, "accepted after %zu of %zu bytes", cut, bytes);
        cr_assert(!strncmp(kr_status_message(), "cut:", 4), "no place in: %s", kr_status_message());
        free(copy);
    }
    free(text);
    kr_graph_free(g);
}

/// Bytes changed, dropped, doubled and swapped at random places: an error or a legal graph, never a crash.
Test(text, damaged_texts_never_crash) {
    kr_graph *g = model(KR_MODE_TRAIN, 5), *parsed;
    const kr_compile_options options = {
        .goal = KR_GOAL_TRAIN, .stop_after = kr_pass_name(3), .optimizer = {0.9, 0.95, 1e-8, 0.1, 1}};
    cr_assert_eq(kr_compile(g, &options, NULL, NULL), KR_OK, "%s", kr_status_message());
    size_t bytes;
    char *text = print(g, &bytes);
    static const char spice[] = "0123456789-.,()[]{}=:%_\"\\@#\n aefx";
    uint64_t n = 0;
    for (int round = 0; round < 1500; round++) {
        char *copy = malloc(bytes + 1);
        memcpy(copy, text, bytes);
        size_t length = bytes;
        const int changes = 1 + round % 3;
        for (int k = 0; k < changes; k++) {
            const size_t at = (size_t)(kr_random_uniform(7, 0, n++) * (float)length);
            const float what = kr_random_uniform(7, 1, n++);
            if (at >= length) continue;
            if (what < 0.6f) copy[at] = spice[(size_t)(kr_random_uniform(7, 2, n++) * (float)(sizeof spice - 1))];
            else if (what < 0.8f) memmove(copy + at, copy + at + 1, --length - at);
            else copy[at] = (char)(unsigned char)(kr_random_uniform(7, 3, n++) * 256);
        }
        char *exact = malloc(length);
        memcpy(exact, copy, length);
        free(copy);
        if (kr_graph_parse(exact, length, "damaged", &parsed) == KR_OK) {
            cr_assert_eq(kr_graph_verify(parsed), KR_OK, "%s", kr_status_message());
            round_trip(parsed, "damaged");
            kr_graph_free(parsed);
        }
        free(exact);
    }
    free(text);
    kr_graph_free(g);
}
