/// Golden vectors: files with inputs and the results that are right for them (tests/golden/README.md). Every case is
/// run the way users run things: a graph, compiled, in a session.
#ifndef KRAIT_TOOLS_GOLDEN_H
#define KRAIT_TOOLS_GOLDEN_H

#include "compiler/compiler.h"
#include "models/models.h"

/// A case under way: its file, where it runs, and the worst comparison so far.
typedef struct kr_golden {
    const kr_tensor_file *file;
    const kr_target *target; ///< that plans are compiled for
    kr_device *device;
    int threads;
    kr_pool *pool; ///< dies with the case
    int compared;  ///< tensors
    double worst;  ///< largest error, as a share of its tolerance; NaN counts as infinite
    double error, tolerance;
    double within; ///< tolerance of this case's tensors; 0: KR_GOLDEN_TOLERANCE
    char worst_name[160];
    char skipped[160]; ///< why the case cannot run here; empty: it can
} kr_golden;

/// A tensor of the file in double precision, in Krait's layout. data is null when the file does not have it.
typedef struct kr_golden_tensor {
    kr_shape shape;
    int64_t count;
    double *data;
} kr_golden_tensor;

/// How a tensor lies in the file.
typedef enum kr_golden_layout {
    KR_GOLDEN_PLAIN = 0,
    KR_GOLDEN_TIME_LAST, ///< [B, ..., L] where Krait has [B, L, ...]
} kr_golden_layout;

bool kr_golden_has(const kr_golden *, const char *name);
/// fails KR_BAD_FILE when the file does not have it.
kr_status kr_golden_read(kr_golden *, const char *name, kr_golden_layout, kr_golden_tensor *out);
/// Metadata. fails KR_BAD_FILE: missing, or not a number.
kr_status kr_golden_text(const kr_golden *, const char *key, const char **out);
kr_status kr_golden_real(const kr_golden *, const char *key, double *out);
kr_status kr_golden_integer(const kr_golden *, const char *key, int64_t *out);
/// The elements as f32 (or i32), in the case's pool.
float *kr_golden_f32(kr_golden *, const kr_golden_tensor *);
int32_t *kr_golden_i32(kr_golden *, const kr_golden_tensor *);
/// Takes note of max |got - want| against absolute + relative * max |want|. fails KR_NO_MEMORY.
kr_status kr_golden_compare(kr_golden *, const char *name, const float *got, const kr_golden_tensor *want,
                            double absolute, double relative);
void kr_golden_compare_f64(kr_golden *, const char *name, const double *got, const kr_golden_tensor *want,
                           double absolute, double relative);

/// |a - b| <= 1e-5 (1 + max |b|): what the reference itself reaches in f32, with a little room.
#define KR_GOLDEN_TOLERANCE 1e-5
/// Compares with the tolerance of the case, absolute and relative alike.
kr_status kr_golden_compare_usual(kr_golden *, const char *name, const float *got, const kr_golden_tensor *want);
/// Moves every element of got by the multiple of 2 pi that brings it nearest to want: an angle has no other value.
void kr_golden_wrap(float *got, const kr_golden_tensor *want);

// Graphs fed from a file (tools/golden/graph.c) -----------------------------------------------------------------

/// A graph with `in.X` as inputs, and what comes out of it compared with `out.Y` and `grad.X`.
typedef struct kr_golden_graph {
    kr_golden *c;
    kr_graph *g;
    kr_value loss;    ///< sum over outputs of <out, dout> so far
    kr_status status; ///< the first failure of reading the file
    struct {
        const char *name, *tensor; ///< "grad.x" of the plan, "grad.x" of the file
        kr_golden_tensor want;
        float *got;
        bool angle; ///< compared modulo 2 pi
    } checks[48];
    int check_count;
    kr_binding bindings[96];
    int binding_count;
} kr_golden_graph;

kr_status kr_golden_begin(kr_golden *, kr_golden_graph *);
/// Input X from `in.X`, whose gradient is compared with `grad.X` where the file has that; the empty value when the file
/// has no such input.
kr_value kr_golden_input(kr_golden_graph *, const char *name, kr_golden_layout);
/// The same under another name in the graph ("x" read from `in.x` as "silu", compared with `grad.silu`).
kr_value kr_golden_input_as(kr_golden_graph *, const char *name, const char *as, kr_golden_layout);
/// Output Y, compared with `out.Y`; `dout.Y` weighs it in the loss.
void kr_golden_output(kr_golden_graph *, const char *name, kr_value, kr_golden_layout);
/// The same for angles, which are compared modulo 2 pi.
void kr_golden_angle(kr_golden_graph *, const char *name, kr_value);
/// The value counts in the loss with weight 1 for each element.
void kr_golden_weigh(kr_golden_graph *, kr_value value, kr_value weight);
/// Compares the plan's output `name` with the tensor of the file.
void kr_golden_expect(kr_golden_graph *, const char *name, const char *tensor, kr_golden_layout);
/// Compiles (with gradients when something counts in the loss), runs, compares, frees the graph. `params` are written
/// from the tensors `<prefix>NAME` of the file; null: there are none.
kr_status kr_golden_run(kr_golden_graph *, const char *params);
/// Frees the graph of a case that is given up.
void kr_golden_drop(kr_golden_graph *);

/// Reads slot `slot` of the session and compares it with `tensor` of the file.
kr_status kr_golden_compare_slot(kr_golden *, kr_session *, const char *slot, const char *tensor, double absolute,
                                 double relative);
/// Writes slot `index` of the session from `tensor` of the file.
kr_status kr_golden_write_slot(kr_golden *, kr_session *, int index, const char *tensor);
/// Writes every parameter of the session from tensor `<prefix>NAME`; every such tensor must be a parameter.
kr_status kr_golden_write_params(kr_golden *, kr_session *, const char *prefix);

// Kinds of cases ------------------------------------------------------------------------------------------------

kr_status kr_golden_causal_conv1d(kr_golden *);
kr_status kr_golden_selective_scan(kr_golden *);
kr_status kr_golden_ssd(kr_golden *);
kr_status kr_golden_mamba3_siso(kr_golden *);
kr_status kr_golden_mamba3_mimo(kr_golden *);
kr_status kr_golden_attention(kr_golden *);
kr_status kr_golden_gated_mlp(kr_golden *);
kr_status kr_golden_rmsnorm_gated(kr_golden *);
kr_status kr_golden_add_rmsnorm(kr_golden *);
kr_status kr_golden_add_layernorm(kr_golden *);
kr_status kr_golden_linear(kr_golden *);
kr_status kr_golden_embedding(kr_golden *);
kr_status kr_golden_elementwise(kr_golden *);
kr_status kr_golden_cross_entropy(kr_golden *);
kr_status kr_golden_adamw(kr_golden *);
kr_status kr_golden_clip_grad_norm(kr_golden *);
kr_status kr_golden_lr_schedule(kr_golden *);
/// Any kind of block ("mamba1_block").
kr_status kr_golden_block(kr_golden *);
kr_status kr_golden_language_model(kr_golden *);

/// Runs the case of an open file by its metadata `op`; c->skipped says why when it cannot run here.
kr_status kr_golden_case(kr_golden *);

// Directories (tools/golden/directory.c) ------------------------------------------------------------------------

typedef struct kr_golden_totals {
    int passed, failed, skipped;
} kr_golden_totals;
/// Runs every *.safetensors file of a directory; a line for each goes to `to`.
/// fails KR_IO: the directory cannot be read; KR_NO_MEMORY. A case that fails is counted.
kr_status kr_golden_directory(const char *path, const kr_target *, kr_device *, int threads, FILE *to,
                              kr_golden_totals *);

#endif
