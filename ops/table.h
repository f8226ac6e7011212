/// The only list of ops. Everything that walks all ops (tests, printers, the parser, docs) walks this one.
#ifndef KRAIT_OPS_TABLE_H
#define KRAIT_OPS_TABLE_H

// Sources and views: no kernels, no implementations.
#define OPS_WITHOUT_KERNELS(X) \
    X(input) \
    X(param) \
    X(const) \
    X(carry) \
    X(reshape) \
    X(slice) \
    X(transpose) \
    X(broadcast) \
    X(stop_gradient) \
    OPS_END(X)

// What runs: every target has an implementation, or says that it has none.
#define OPS_WITH_KERNELS(X) \
    X(concat) \
    X(pad) \
    X(copy) \
    X(add) \
    X(sub) \
    X(mul) \
    X(div) \
    X(maximum) \
    X(minimum) \
    X(neg) \
    X(affine) \
    X(clamp) \
    X(where) \
    X(cast) \
    X(exp) \
    X(exp_grad) \
    X(log) \
    X(log_grad) \
    X(sqrt) \
    X(sqrt_grad) \
    X(rsqrt) \
    X(rsqrt_grad) \
    X(square) \
    X(square_grad) \
    X(abs) \
    X(abs_grad) \
    X(reciprocal) \
    X(reciprocal_grad) \
    X(sigmoid) \
    X(sigmoid_grad) \
    X(silu) \
    X(silu_grad) \
    X(tanh) \
    X(tanh_grad) \
    X(relu) \
    X(relu_grad) \
    X(gelu) \
    X(gelu_grad) \
    X(softplus) \
    X(softplus_grad) \
    X(heavy_tail) \
    X(heavy_tail_grad) \
    X(maximum_grad_x) \
    X(maximum_grad_y) \
    X(minimum_grad_x) \
    X(minimum_grad_y) \
    X(clamp_grad) \
    X(div_grad_y) \
    X(fused) \
    X(fused_sum) \
    X(sum) \
    X(mean) \
    X(max) \
    X(max_grad) \
    X(cumsum) \
    X(embedding) \
    X(embedding_grad) \
    X(softmax) \
    X(softmax_grad) \
    X(cross_entropy) \
    X(cross_entropy_grad) \
    X(linear_cross_entropy) \
    X(selective_scan) \
    X(selective_scan_grad) \
    X(sq_norm) \
    X(adamw) \
    X(count_step) \
    X(linear_scan) \
    X(linear_scan_grad) \
    X(matmul) \
    X(rms_norm) \
    X(rms_norm_grad) \
    X(layer_norm) \
    X(layer_norm_grad) \
    X(causal_conv1d) \
    X(causal_conv1d_grad) \
    X(ssd_scan) \
    X(ssd_scan_grad) \
    X(trapezoid_scan) \
    X(trapezoid_scan_grad) \
    X(rope) \
    X(attention) \
    X(attention_grad) \
    X(cache_write) \
    OPS_END(X)

#define OPS(X) OPS_WITHOUT_KERNELS(X) OPS_WITH_KERNELS(X)
#define OPS_END(X)

#endif
