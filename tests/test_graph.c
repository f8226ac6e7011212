/// Building graphs: sticky errors, scopes, carries, rewriting, verification.
#include "check.h"

#include <criterion/criterion.h>
#include <string.h>

static kr_graph *graph(void) {
    kr_graph *g;
    check_ok(kr_graph_new(&g), "new graph");
    return g;
}

static void expect_error(kr_graph *g, kr_status code, const char *const *parts) {
    cr_assert_eq(kr_graph_status(g), code, "status is %s: %s", kr_status_name(kr_graph_status(g)), kr_status_message());
    for (int i = 0; parts[i]; i++)
        cr_assert(strstr(kr_status_message(), parts[i]), "\"%s\" does not say \"%s\"", kr_status_message(), parts[i]);
}

Test(graph, first_error_sticks_and_names_op_scope_shapes_and_line) {
    kr_graph *g = graph();
    kr_scope_push(g, "layers.%d", 3);
    const kr_value x = kr_input(g, "x", KR_F32, KR_SHAPE(2, 3));
    const kr_value w = kr_param(g, "w", KR_SHAPE(5, 7), (kr_init){0}, 0);
    const int line = __LINE__ + 1;
    const kr_value bad = kr_linear(g, x, w, KR_NONE);
    cr_assert_eq(bad.id, 0);
    const kr_value later = kr_add(g, bad, x); // passes the emptiness on
    cr_assert_eq(later.id, 0);
    kr_scope_pop(g);
    char place[64];
    snprintf(place, sizeof place, "test_graph.c:%d", line);
    expect_error(g, KR_BAD_SHAPE, (const char *[]){"matmul", "layers.3", "[5, 7]", place, NULL});
    kr_graph_free(g);
}

Test(graph, misuse_is_an_error) {
    kr_graph *g = graph();
    kr_input(g, "x", KR_F32, KR_SHAPE(2));
    kr_input(g, "x", KR_F32, KR_SHAPE(2));
    expect_error(g, KR_BAD_ARGUMENT, (const char *[]){"\"x\"", "taken", NULL});
    kr_graph_free(g);

    g = graph();
    kr_param(g, "w", KR_SHAPE(2), (kr_init){0}, 0);
    kr_param(g, "w", KR_SHAPE(3), (kr_init){0}, 0);
    expect_error(g, KR_BAD_SHAPE, (const char *[]){"\"w\"", "[2]", "[3]", NULL});
    kr_graph_free(g);

    g = graph();
    kr_input(g, "x", KR_F32, KR_SHAPE(INT64_MAX / 2, 8));
    expect_error(g, KR_BAD_SHAPE, (const char *[]){"too large", NULL});
    kr_graph_free(g);

    g = graph();
    kr_scope_pop(g);
    expect_error(g, KR_BAD_ARGUMENT, (const char *[]){"pop without a push", NULL});
    kr_graph_free(g);

    g = graph();
    const kr_value x = kr_input(g, "x", KR_F32, KR_SHAPE(2));
    kr_assign(g, x, x);
    expect_error(g, KR_BAD_ARGUMENT, (const char *[]){"not a param or carry", NULL});
    kr_graph_free(g);
}

Test(graph, scopes_name_params_and_tie_them) {
    kr_graph *g = graph();
    kr_scope_push(g, "backbone");
    kr_scope_push(g, "layers.%d", 0);
    const kr_value a = kr_param(g, "w", KR_SHAPE(2, 2), (kr_init){0}, 0);
    cr_assert_str_eq(kr_value_node(g, a)->name, "backbone.layers.0.w");
    const kr_value b = kr_param(g, "w", KR_SHAPE(2, 2), (kr_init){0}, 0);
    cr_assert_eq(a.id, b.id, "the same name gives the same value");
    kr_scope_pop(g);
    kr_scope_pop(g);
    cr_assert_str_eq(kr_scope_path(g), "");
    check_ok(kr_graph_status(g), "graph");
    kr_graph_free(g);
}

Test(graph, carries_are_zero_constants_when_not_live) {
    kr_graph *g = graph();
    kr_graph_carries(g, false);
    const kr_value h = kr_carry(g, "h", KR_F32, KR_SHAPE(2, 3));
    double splat = 1;
    cr_assert(kr_value_is_splat(g, h, &splat));
    cr_assert_eq(splat, 0);
    kr_carry_set(g, h, kr_add(g, h, kr_const(g, 1, KR_F32, KR_SHAPE(2, 3))));
    cr_assert_eq(kr_graph_assigns(g), 0);
    check_ok(kr_graph_status(g), "graph");
    kr_graph_free(g);

    g = graph();
    const kr_value live = kr_carry(g, "h", KR_F32, KR_SHAPE(2, 3));
    kr_carry_set(g, live, kr_add(g, live, kr_const(g, 1, KR_F32, KR_SHAPE(2, 3))));
    cr_assert_eq(kr_graph_assigns(g), 1);
    check_ok(kr_graph_verify(g), "verify");
    kr_graph_free(g);
}

Test(graph, rewriting_sorts_and_prunes) {
    kr_graph *g = graph();
    const kr_value x = kr_input(g, "x", KR_F32, KR_SHAPE(4));
    const kr_value y = kr_exp(g, x);
    const kr_value z = kr_add(g, y, x);
    kr_output(g, "z", z);
    kr_graph_set_rank(g, kr_value_node(g, y)->rank);
    const kr_value better = kr_square(g, x); // appended last, wanted first
    kr_graph_replace(g, y, better);
    check_ok(kr_graph_sort(g), "sort");
    cr_assert_eq(kr_graph_prune(g), 1, "exp is not needed any more");
    check_ok(kr_graph_verify(g), "verify");
    cr_assert_eq(kr_graph_nodes(g), 3);
    cr_assert_eq(kr_graph_node(g, 1)->out[0].id, better.id);
    kr_graph_free(g);
}

Test(graph, verify_finds_planted_faults) {
    kr_graph *g = graph();
    const kr_value x = kr_input(g, "x", KR_F32, KR_SHAPE(4));
    const kr_value y = kr_exp(g, x), z = kr_exp(g, y);
    kr_output(g, "z", z);
    check_ok(kr_graph_verify(g), "verify");
    kr_value_node(g, y)->in[0] = z; // read before it is made
    cr_assert_neq(kr_graph_verify(g), KR_OK);
    cr_assert(strstr(kr_status_message(), "before it is made"));
    cr_assert_neq(kr_graph_sort(g), KR_OK, "a cycle cannot be sorted");
    cr_assert(strstr(kr_status_message(), "cycle"));
    kr_value_node(g, y)->in[0] = KR_NONE;
    cr_assert_neq(kr_graph_verify(g), KR_OK);
    kr_graph_free(g);
}

Test(graph, a_clone_is_independent) {
    kr_graph *g = graph(), *c;
    kr_output(g, "y", kr_exp(g, kr_input(g, "x", KR_F32, KR_SHAPE(4))));
    check_ok(kr_graph_clone(g, &c), "clone");
    kr_graph_free(g);
    check_ok(kr_graph_verify(c), "verify");
    const kr_value more = kr_neg(c, kr_graph_output_find(c, "y"));
    kr_output(c, "more", more);
    check_ok(kr_graph_verify(c), "verify");
    kr_graph_free(c);
}

Test(table, every_op_is_complete) {
    for (int i = 0; i < kr_op_count; i++) {
        const kr_op *o = kr_ops[i];
        const bool quiet = o->flags & (KR_OP_VIEW | KR_OP_SOURCE);
        cr_expect(!o->shape != !o->signature, "%s has no shape rule, or two", o->name);
        const kr_impl *impl = kr_op_impl(o, &kr_target_cpu);
        cr_expect_eq(quiet, !impl, "%s: views and sources have no implementation, all others have", o->name);
        cr_expect(!impl || (impl->kernels && impl->stages >= 1 && impl->stages <= KR_MAX_STAGES), "%s has no kernel",
                  o->name);
        cr_expect(!(o->flags & KR_OP_VIEW) || o->view, "%s is a view without a layout rule", o->name);
        cr_expect(o->grad || (o->flags & KR_OP_NO_GRADIENT), "%s has no gradient and does not say so", o->name);
        cr_expect(!(o->grad && (o->flags & KR_OP_NO_GRADIENT)), "%s has a gradient and says it has none", o->name);
        for (int k = 0; impl && k < impl->stages; k++)
            cr_expect(((const kr_stage *)impl->kernels)[k].build[KR_ISA_BASE], "%s stage %d has no baseline kernel",
                      o->name, k);
        cr_expect_eq(kr_op_find(o->name), o, "%s is in the table twice", o->name);
    }
    cr_assert_str_eq(kr_op_nearest("selectiv_scan"), "selective_scan");
}
