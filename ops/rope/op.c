/// Rotary position embedding: pair i of every head turns by position * base^(-2i/rotary_dim), so that the product of a
/// query and a key depends on how far apart they are (MATH 8). The gradient turns back by the same angles.
///
/// source Su et al. 2021, arXiv:2104.09864
#include "ops/graph/internal.h"
#include "ops/cpu/kernels.h"

KR_KERNEL_DECLARE(rope)

#define BIT(k) (1u << (k))

enum { HEADS, ROTARY_DIM, INTERLEAVED, BACK };
enum { BASE };

static kr_status rope_shape(const kr_attrs *t, const kr_shape *in, const kr_dtype *dtype, int inputs, kr_shape *out,
                            kr_dtype *out_dtype) {
    (void)inputs;
    char text[160];
    const int64_t heads = t->i[HEADS], turning = t->i[ROTARY_DIM], width = in[0].rank == 3 ? in[0].dim[2] : 0;
    KR_FAIL_IF(in[0].rank != 3 || dtype[0] != KR_F32, KR_BAD_SHAPE,
               "rope: x is %s %s, want f32 [batch, length, heads*coordinates]", kr_dtype_name(dtype[0]),
               kr_shape_text(&in[0], text));
    KR_FAIL_IF(heads < 1 || width % heads, KR_BAD_ARGUMENT, "rope: %lld heads, want a divisor of the %lld columns of x",
               (long long)heads, (long long)width);
    KR_FAIL_IF(turning < 0 || turning % 2 || turning > width / heads, KR_BAD_ARGUMENT,
               "rope: rotary_dim is %lld, want an even number up to the %lld coordinates of a head", (long long)turning,
               (long long)(width / heads));
    KR_FAIL_IF(!(t->r[BASE] >= 1 && t->r[BASE] <= 1e30), KR_BAD_ARGUMENT, "rope: base is %g, want 1 to 1e30",
               t->r[BASE]);
    KR_FAIL_IF(in[1].rank >= 0 && (dtype[1] != KR_I32 || kr_shape_count(&in[1]) != 1), KR_BAD_SHAPE,
               "rope: position is %s %s, want i32 [1]", kr_dtype_name(dtype[1]), kr_shape_text(&in[1], text));
    out[0] = in[0];
    out_dtype[0] = KR_F32;
    return KR_OK;
}

static void rope_derivative(kr_graph *g, const kr_node *n, const kr_value *dout, kr_value *din) {
    kr_attrs t = n->attrs;
    t.i[BACK] = !t.i[BACK];
    din[0] = kr_append(g, n->op, &t, (kr_value[]){dout[0], n->in[1]}, 2);
}

static void rope_cost(const kr_attrs *t, const kr_shape *in, const kr_shape *out, int inputs, double *flops,
                      double *bytes) {
    (void)out, (void)inputs;
    const double tokens = (double)(in[0].dim[0] * in[0].dim[1]);
    *flops = tokens * 3 * (double)(t->i[HEADS] * t->i[ROTARY_DIM]) + 25 * (double)(in[0].dim[1] * t->i[ROTARY_DIM]);
    *bytes = 8 * (double)kr_shape_count(&in[0]);
}

static const kr_stage rope_stages[] = {KR_STAGE(rope)};
/// x, position?; `back` turns by the negative angles: the gradient.
const kr_op kr_op_rope = {
    .name = "rope", .inputs = 2, .outputs = 1, .optional = BIT(1), .zero_absent = BIT(1), .keeps_in = BIT(1),
    .attr = {.i = {"heads", "rotary_dim", "interleaved", "back"}, .r = {"base"}}, .shape = rope_shape,
    .grad = rope_derivative, .cost = rope_cost,
};
KR_CPU(rope,
    .rows_in = BIT(0), .rows_out = BIT(0), .inplace = {BIT(0)}, KR_STAGES(rope_stages))

kr_value(kr_rope)(kr_graph *g, kr_value x, kr_value position, int64_t heads, int64_t rotary_dim, double base,
                  bool interleaved) {
    const kr_attrs t = {.i = {heads, rotary_dim, interleaved}, .r = {base}};
    return kr_append(g, &kr_op_rope, &t, (kr_value[]){x, position}, 2);
}
