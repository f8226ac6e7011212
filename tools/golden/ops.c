// Golden cases of single ops. Sequences lie time-last in the files, channel-last in Krait.
#include "tools/golden/golden.h"

#include <math.h>
#include <string.h>

#define IN(name) kr_golden_input(&b, name, KR_GOLDEN_PLAIN)
#define IN_TIME(name) kr_golden_input(&b, name, KR_GOLDEN_TIME_LAST)

kr_status kr_golden_causal_conv1d(kr_golden *c) {
    const char *activation;
    kr_golden_graph b;
    KR_TRY(kr_golden_text(c, "activation", &activation));
    KR_TRY(kr_golden_begin(c, &b));
    kr_value next;
    const kr_value x = IN_TIME("x"), weight = IN("weight"), bias = IN("bias"), state = IN_TIME("initial_state");
    const kr_value y = kr_causal_conv1d(b.g, x, weight, bias, state, KR_NONE, !strcmp(activation, "silu"), &next);
    kr_golden_output(&b, "y", y, KR_GOLDEN_TIME_LAST);
    kr_golden_output(&b, "final_state", next, KR_GOLDEN_TIME_LAST);
    return kr_golden_run(&b, NULL);
}

kr_status kr_golden_selective_scan(kr_golden *c) {
    int64_t softplus;
    kr_golden_graph b;
    KR_TRY(kr_golden_integer(c, "delta_softplus", &softplus));
    KR_TRY(kr_golden_begin(c, &b));
    kr_value last;
    // B and C that do not depend on time are [E, N] in both.
    const kr_selective_scan_args args = {.u = IN_TIME("u"),
                                         .delta = IN_TIME("delta"),
                                         .A = IN("A"),
                                         .B = IN_TIME("B"),
                                         .C = IN_TIME("C"),
                                         .D = IN("D"),
                                         .z = IN_TIME("z"),
                                         .delta_bias = IN("delta_bias"),
                                         .h0 = IN("initial_state"),
                                         .delta_softplus = softplus != 0};
    kr_golden_output(&b, "y", kr_selective_scan(b.g, &args, &last), KR_GOLDEN_TIME_LAST);
    kr_golden_output(&b, "final_state", last, KR_GOLDEN_PLAIN);
    return kr_golden_run(&b, NULL);
}

kr_status kr_golden_rmsnorm_gated(kr_golden *c) {
    double eps;
    int64_t group, before;
    kr_golden_graph b;
    KR_TRY(kr_golden_real(c, "eps", &eps));
    KR_TRY(kr_golden_integer(c, "group_size", &group));
    KR_TRY(kr_golden_integer(c, "norm_before_gate", &before));
    KR_TRY(kr_golden_begin(c, &b));
    kr_golden_output(
        &b, "y", kr_rms_norm_full(b.g, IN("x"), KR_NONE, IN("z"), IN("weight"), KR_NONE, eps, group, before != 0, NULL),
        KR_GOLDEN_PLAIN);
    return kr_golden_run(&b, NULL);
}

kr_status kr_golden_add_rmsnorm(kr_golden *c) {
    double eps;
    kr_golden_graph b;
    KR_TRY(kr_golden_real(c, "eps", &eps));
    KR_TRY(kr_golden_begin(c, &b));
    kr_value stream;
    const kr_value x = IN("x"), residual = IN("residual"), weight = IN("weight"), bias = IN("bias");
    kr_golden_output(&b, "y", kr_rms_norm_full(b.g, x, residual, KR_NONE, weight, bias, eps, 0, false, &stream),
                     KR_GOLDEN_PLAIN);
    kr_golden_output(&b, "residual_out", stream, KR_GOLDEN_PLAIN);
    return kr_golden_run(&b, NULL);
}

kr_status kr_golden_add_layernorm(kr_golden *c) {
    double eps;
    kr_golden_graph b;
    KR_TRY(kr_golden_real(c, "eps", &eps));
    KR_TRY(kr_golden_begin(c, &b));
    kr_value stream;
    const kr_value x = IN("x"), residual = IN("residual"), weight = IN("weight"), bias = IN("bias");
    kr_golden_output(&b, "y", kr_layer_norm_full(b.g, x, residual, weight, bias, eps, &stream), KR_GOLDEN_PLAIN);
    kr_golden_output(&b, "residual_out", stream, KR_GOLDEN_PLAIN);
    return kr_golden_run(&b, NULL);
}

kr_status kr_golden_linear(kr_golden *c) {
    kr_golden_graph b;
    KR_TRY(kr_golden_begin(c, &b));
    kr_golden_output(&b, "y", kr_linear(b.g, IN("x"), IN("weight"), IN("bias")), KR_GOLDEN_PLAIN);
    return kr_golden_run(&b, NULL);
}

kr_status kr_golden_gated_mlp(kr_golden *c) {
    int64_t hidden;
    kr_golden_graph b;
    KR_TRY(kr_golden_integer(c, "hidden", &hidden));
    KR_TRY(kr_golden_begin(c, &b));
    const kr_value both = kr_linear(b.g, IN("x"), IN("fc1.weight"), IN("fc1.bias"));
    const kr_value up = kr_slice(b.g, both, -1, 0, hidden), gate = kr_slice(b.g, both, -1, hidden, hidden);
    const kr_value y = kr_linear(b.g, kr_mul(b.g, up, kr_silu(b.g, gate)), IN("fc2.weight"), IN("fc2.bias"));
    kr_golden_output(&b, "y", y, KR_GOLDEN_PLAIN);
    return kr_golden_run(&b, NULL);
}

kr_status kr_golden_embedding(kr_golden *c) {
    kr_golden_graph b;
    KR_TRY(kr_golden_begin(c, &b));
    kr_golden_output(&b, "y", kr_embedding(b.g, IN("weight"), IN("ids")), KR_GOLDEN_PLAIN);
    return kr_golden_run(&b, NULL);
}

/// Every function gets an input of its own, fed with the same x, so that its derivative stands alone.
static kr_value function_of(kr_golden_graph *b, const char *name) {
    return kr_golden_input_as(b, "x", name, KR_GOLDEN_PLAIN);
}

kr_status kr_golden_elementwise(kr_golden *c) {
    double floor;
    kr_golden_graph b;
    KR_TRY(kr_golden_real(c, "A_floor", &floor));
    KR_TRY(kr_golden_begin(c, &b));
    const struct {
        const char *name;
        kr_value y;
    } all[] = {
        {"softplus", kr_softplus(b.g, function_of(&b, "softplus"))},
        {"silu", kr_silu(b.g, function_of(&b, "silu"))},
        {"sigmoid", kr_sigmoid(b.g, function_of(&b, "sigmoid"))},
        {"tanh_pi", kr_affine(b.g, kr_tanh(b.g, function_of(&b, "tanh_pi")), M_PI, 0)},
        {"heavy_tail", kr_heavy_tail(b.g, function_of(&b, "heavy_tail"))},
        {"mamba3_A", kr_clamp(b.g, kr_neg(b.g, kr_heavy_tail(b.g, function_of(&b, "mamba3_A"))), -INFINITY, -floor)},
    };
    for (size_t k = 0; k < sizeof all / sizeof *all; k++) {
        // The plan's output must not be called as its input is.
        const char *label = kr_pool_format(c->pool, "out.%s", all[k].name);
        kr_output(b.g, label, all[k].y);
        kr_golden_expect(&b, label, label, KR_GOLDEN_PLAIN);
        kr_golden_weigh(&b, all[k].y, KR_NONE);
    }
    return kr_golden_run(&b, NULL);
}

kr_status kr_golden_cross_entropy(kr_golden *c) {
    kr_golden_graph b;
    KR_TRY(kr_golden_begin(c, &b));
    kr_value per_token, lse;
    const kr_value logits = IN("logits"), targets = IN("targets");
    kr_golden_output(&b, "loss", kr_cross_entropy(b.g, logits, targets, 0, &per_token, &lse), KR_GOLDEN_PLAIN);
    kr_golden_output(&b, "per_token", per_token, KR_GOLDEN_PLAIN);
    kr_golden_output(&b, "lse", lse, KR_GOLDEN_PLAIN);
    return kr_golden_run(&b, NULL);
}
