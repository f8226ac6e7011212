/// The language of Krait: graphs, values, and every op with its shape rule, gradient rule and cost. How a target does
/// an op, and with which kernels, is a kr_impl (runtime/target.h).
///
/// A graph is SSA: nodes in an order in which every value is made before it is used. Building never fails at the
/// call: the first error sticks to the graph (kr_graph_status) and later calls return the empty value, so block code
/// reads as algebra.
#ifndef KRAIT_OPS_OPS_H
#define KRAIT_OPS_OPS_H

#include "runtime/runtime.h"

#ifdef __cplusplus
extern "C" {
#endif

// ---------------------------------------------------------------------------------------------------------------
// Graphs and values

typedef struct kr_graph kr_graph;
typedef struct kr_op kr_op;

/// A value of a graph: a handle, cheap to copy. id 0 is the empty value: "absent" for optional inputs, and what
/// builders return after an error.
typedef struct kr_value {
    uint32_t id;
} kr_value;
#ifndef __cplusplus
#define KR_NONE ((kr_value){0})
#endif

/// A node: one op applied to inputs. Owned by the graph.
typedef struct kr_node {
    const kr_op *op;
    kr_attrs attrs;
    int inputs, outputs;
    kr_value *in;       ///< empty values for absent optional inputs
    kr_value *out;
    const char *scope;  ///< "backbone.layers.3.mixer"
    const char *name;   ///< sources only: input, param, carry; else null
    kr_init init;       ///< param only
    bool dead;          ///< removed at the next kr_graph_sort
    int64_t rank;       ///< preferred place in the order; see kr_graph_sort
} kr_node;

/// What kind of source a node is.
typedef enum kr_source {
    KR_NOT_SOURCE = 0,
    KR_SOURCE_INPUT,
    KR_SOURCE_PARAM,
    KR_SOURCE_CONST,
    KR_SOURCE_CARRY
} kr_source;
kr_source kr_node_source(const kr_node *);

kr_status kr_graph_new(kr_graph **out);
void kr_graph_free(kr_graph *);
/// The first error of building, or KR_OK. It is recorded again as this thread's newest status message:
/// op, scope, shapes seen, what is wanted, and the file and line of the builder call.
kr_status kr_graph_status(const kr_graph *);
/// Makes the graph fail with the newest status of this thread (for builders of composed ops).
void kr_graph_fail(kr_graph *, kr_status code);
/// Remembers the place of the builder call that follows; used by the builder macros. Gives back g.
kr_graph *kr_graph_here(kr_graph *g, const char *file, int line);
/// An independent copy; values keep their ids.
kr_status kr_graph_clone(const kr_graph *, kr_graph **out);

/// Opens a scope: names of parameters and carries made inside are prefixed "outer.name.". printf-style.
__attribute__((format(printf, 2, 3))) void kr_scope_push(kr_graph *, const char *format, ...);
void kr_scope_pop(kr_graph *);
const char *kr_scope_path(const kr_graph *);

int kr_graph_nodes(const kr_graph *);                  ///< nodes in order, dead ones included until the next sort
kr_node *kr_graph_node(const kr_graph *, int index);
uint32_t kr_graph_values(const kr_graph *);            ///< ids are 1 .. this
kr_dtype kr_value_dtype(const kr_graph *, kr_value);
kr_shape kr_value_shape(const kr_graph *, kr_value);
int64_t kr_value_count(const kr_graph *, kr_value);    ///< elements
kr_node *kr_value_node(const kr_graph *, kr_value);    ///< the producer
int kr_value_output(const kr_graph *, kr_value);       ///< which of the producer's outputs it is

/// A name under which the outside sees a value after a run.
typedef struct kr_graph_output {
    const char *name;
    kr_value value;
} kr_graph_output;
/// "After the run, the storage of source `target` (a carry or a param) holds `value`."
typedef struct kr_graph_assign {
    kr_value target, value;
} kr_graph_assign;
void kr_output(kr_graph *, const char *name, kr_value);
int kr_graph_outputs(const kr_graph *);
kr_graph_output *kr_graph_output_at(const kr_graph *, int index);
kr_value kr_graph_output_find(const kr_graph *, const char *name); ///< empty when there is none
int kr_graph_assigns(const kr_graph *);
kr_graph_assign *kr_graph_assign_at(const kr_graph *, int index);
/// `target` must be a param or carry of the same dtype and shape as `value`.
void kr_assign(kr_graph *, kr_value target, kr_value value);

// For passes. ----------------------------------------------------------------------------------------------------

/// Appends a node: checks dtypes and shapes through the op's rule, gives the first output. `in` has `inputs` entries.
kr_value kr_append(kr_graph *, const kr_op *, const kr_attrs *, const kr_value *in, int inputs);
/// The k-th output of the node that made v.
kr_value kr_sibling(const kr_graph *, kr_value v, int k);
/// Every use of `from` (inputs, outputs, assigned values) reads `to`, from the next kr_graph_sort or kr_graph_prune
/// on (for one node: kr_graph_settle). `to` must not depend on `from`.
void kr_graph_replace(kr_graph *, kr_value from, kr_value to);
/// What `v` was replaced by, or v.
kr_value kr_graph_current(const kr_graph *, kr_value v);
/// Is every element of v the same constant, known now? (A const, also through views.)
bool kr_value_is_splat(const kr_graph *, kr_value v, double *splat);
/// Gives a node other attributes, and its outputs the shapes that follow. fails as the op's shape rule does, and then
/// nothing was changed
kr_status kr_graph_set_attrs(kr_graph *, kr_node *, const kr_attrs *);
/// Makes one node read what its inputs were replaced by.
void kr_graph_settle(kr_graph *, kr_node *);
/// Drops dead nodes and restores an order in which values are made before they are used, as close to ascending
/// `rank` as that allows; then renumbers ranks. New nodes get the rank of kr_graph_set_rank.
kr_status kr_graph_sort(kr_graph *);
/// Rank for nodes appended from now on; -1: after everything.
void kr_graph_set_rank(kr_graph *, int64_t rank);
/// Scope for nodes appended from now on (null: the scope stack's).
void kr_graph_set_scope(kr_graph *, const char *scope);
/// Removes nodes that no output, assign or effect needs. Gives how many.
int kr_graph_prune(kr_graph *);
/// Checks everything a legal graph promises: inputs defined before use, shapes and dtypes as the rules derive them
/// again, one producer per value, arities, assigns and outputs in place.
kr_status kr_graph_verify(const kr_graph *);
void kr_graph_clear_outputs(kr_graph *);
void kr_graph_clear_assigns(kr_graph *);

// Text form ------------------------------------------------------------------------------------------------------

/// Prints the graph; parsing the text and printing again gives the same bytes. docs/graph-text.md has the grammar.
kr_status kr_graph_print(const kr_graph *, FILE *);
/// Reads the text form. Errors name `label`, line and column, and what was expected.
kr_status kr_graph_parse(const char *text, size_t bytes, const char *label, kr_graph **out);

// ---------------------------------------------------------------------------------------------------------------
// Ops: what they mean

/// Names of an op's attributes, as the text form prints them. A null name ends each list.
typedef struct kr_attr_names {
    const char *i[KR_ATTR_INTEGERS + 1];
    const char *r[KR_ATTR_REALS + 1];
    const char *shape;  ///< null when the op has no shape attribute
} kr_attr_names;

enum {
    KR_OP_VIEW = 1,        ///< output is input 0's memory under another shape or stride: no kernel
    KR_OP_NO_GRADIENT = 2, ///< not differentiable, on purpose: autodiff stops there (integers, optimiser, gradients)
    KR_OP_SOURCE = 4,      ///< no inputs: input, param, const, carry
    KR_OP_ELEMENTWISE = 8, ///< out[i] depends on in[i] alone; fusable; strided inputs; any exact in-place is safe
    KR_OP_VARIADIC = 16,   ///< any number of inputs >= 1
    KR_OP_COMMUTES = 32,   ///< in[0] and in[1] may be swapped
    KR_OP_CHEAP = 64,      ///< rematerialisation may recompute it freely
    KR_OP_JOIN = 128,      ///< output is the inputs side by side along axis attrs.i[0] (not negative): the planner may
                           ///< let the producers of inputs write straight into their slice of the output
    KR_OP_PROGRAM = 256,   ///< the attributes hold a tile program: kr_program_of
    KR_OP_ADDS = 512,      ///< output is in[0] + in[1]: fusion may leave it to an op that adds an input (see `added`)
    KR_OP_SUMS = 1024,     ///< output is the sum of in[0] over axis attrs.i[0]: it may end a tile program
    KR_OP_SAME_ORDER = 2048, ///< a view of all elements in their order: its own `view` with the input's shape undoes it
};
/// Most that a signature has.
enum { KR_MAX_INPUTS = 24, KR_MAX_OUTPUTS = 16 };

/// What a layout looks like to the compiler: strides in elements and an offset in elements from the root buffer.
typedef struct kr_layout {
    kr_shape shape;
    int64_t stride[KR_MAX_RANK];
    int64_t offset;
} kr_layout;

/// An input or output by name, with its shapes in the language of ops/graph/signature.h.
typedef struct kr_operand_rule {
    const char *name, *shape;
    unsigned flags; ///< of inputs: KR_OPTIONAL
    kr_dtype dtype; ///< KR_F32 is 0
} kr_operand_rule;
enum { KR_OPTIONAL = 1 }; ///< the input may be absent
/// Values that an attribute may have.
typedef struct kr_attr_range {
    bool given;
    double least, most;
} kr_attr_range;
/// What an op takes and gives. Lists of operands end at the first without a name; of variadic ops the last input stands
/// for all that follow.
typedef struct kr_signature {
    kr_operand_rule in[KR_MAX_INPUTS + 1], out[KR_MAX_OUTPUTS + 1];
    kr_attr_range i[KR_ATTR_INTEGERS], r[KR_ATTR_REALS];
} kr_signature;
/// The lengths that letters stand for, for `check` (ops/graph/signature.h).
typedef struct kr_letters kr_letters;

/// An implementation that an op brings along.
typedef struct kr_own_impl {
    const char *target;
    const kr_impl *impl;
} kr_own_impl;

/// What an operation means: one constant per op, in its family's op.c. How a target does it is a kr_impl
/// (runtime/target.h).
struct kr_op {
    const char *name;
    int inputs;         ///< all of them, optional ones included; the least number when variadic
    int outputs;        ///< the most there are; how many: kr_op_outputs
    unsigned flags;
    uint32_t zero_absent;///< mask of optional inputs for which an all-zero constant means the same as absent
    int added;          ///< 1 + the optional input that is added to output 0 at the end; 0: there is none
    int adds_first;     ///< 1 + the optional input that is added to in[0] before anything; output 1 is the sum. 0: none
    const char *const
        *activations;   ///< names of elementwise ops that the op can apply to output 0 at the end, null last
    int activation;     ///< the integer attribute that says which: 1 + its place in that list, 0 for none
    uint32_t keeps_in;  ///< mask of inputs that the gradient rule reads
    uint32_t keeps_out; ///< mask of outputs that the gradient rule reads
    kr_attr_names attr;
    /// Operands, shapes and dtypes, declared; null: `shape` has code of its own.
    const kr_signature *signature;
    /// What a signature cannot say: relations between attributes and lengths, and lengths that only the op knows. All
    /// inputs fit the signature by then. May be null.
    kr_status (*check)(const kr_op *, const kr_attrs *, const kr_shape *in_shape, kr_letters *);
    /// Where there is no signature: output shapes and dtypes, or why not (status with a message "op: what it got, what
    /// it wants").
    /// in_shape/in_dtype of absent inputs: rank -1.
    kr_status (*shape)(const kr_attrs *, const kr_shape *in_shape, const kr_dtype *in_dtype, int inputs,
                       kr_shape *out_shape, kr_dtype *out_dtype);
    /// Appends the gradient: dout[k] is empty when no gradient reaches output k; din[i] starts empty and may stay so.
    /// The node's own values are n->in[i], n->out[k].
    void (*grad)(kr_graph *, const kr_node *n, const kr_value *dout, kr_value *din);
    /// A simpler value for output 0, or the empty value. Must not change any bit of the result that a reader sees,
    /// except where that is documented. New nodes may be appended.
    kr_value (*simplify)(kr_graph *, const kr_node *n);
    /// Views only: layout of the output from that of input 0; false when strides cannot express it (then it is copied).
    bool (*view)(const kr_attrs *, const kr_layout *in, const kr_shape *out_shape, kr_layout *out);
    /// FLOPs and bytes of memory traffic; null: bytes of all inputs and outputs, one FLOP per output element. Absent
    /// inputs, and outputs that nobody reads (skip_out), have rank -1.
    void (*cost)(const kr_attrs *, const kr_shape *in, const kr_shape *out, int inputs, double *flops, double *bytes);
    /// How many outputs a node with these attributes has; null: always `outputs`.
    int (*count)(const kr_attrs *);
    /// Only for ops that are not in Krait's table (a block's own): how targets do them, a null target last.
    const kr_own_impl *own;
};
int kr_op_outputs(const kr_op *, const kr_attrs *);
/// Shapes and dtypes of the outputs by the op's signature or rule, or why there are none.
kr_status kr_op_shapes(const kr_op *, const kr_attrs *, const kr_shape *in_shape, const kr_dtype *in_dtype, int inputs,
                       kr_shape *out_shape, kr_dtype *out_dtype);
/// Null where the op declares no names.
const char *kr_op_input_name(const kr_op *, int input);
/// May the input be absent (under some attributes)?
bool kr_op_may_miss(const kr_op *, int input);

/// The table: every op there is.
extern const kr_op *const kr_ops[];
extern const int kr_op_count;
/// Null when there is none of that name.
const kr_op *kr_op_find(const char *name);
/// Nearest known name, for messages; null when nothing is near.
const char *kr_op_nearest(const char *name);

// Targets --------------------------------------------------------------------------------------------------------

/// The CPU: the target of whoever names none.
extern const kr_target kr_target_cpu;
/// The target of a device by its name, up to the colon of "cuda:1": "cpu", or one in a shared object libkrait_NAME.so
/// that exports `const kr_target kr_target_NAME`. It is looked for in the directories of KRAIT_TARGET_PATH, beside
/// libkrait, and where the system looks; it stays
/// loaded.
/// fails KR_BAD_ARGUMENT: no name of a target; KR_UNSUPPORTED: no such file here, or built for another Krait
kr_status kr_target_find(const char *device, const kr_target **out);
/// Opens "cpu", "cuda", "cuda:1": a target's name, and what that target makes of the rest. `target` may be null.
kr_status kr_device_open(const char *name, const kr_target **target, kr_device **out);
/// What a target has for an op; null: nothing.
const kr_impl *kr_op_impl(const kr_op *, const kr_target *);
/// The same. fails KR_UNSUPPORTED naming op and target
kr_status kr_target_impl(const kr_target *, const kr_op *, const kr_impl **out);

// ---------------------------------------------------------------------------------------------------------------
// Builders. Each is a function and a macro of the same name that notes the caller's file and line.
// Shapes: [...] is any number of leading axes. Axes may be negative (from the end). All computing is in f32.

// Sources and views (ops/graph/source.c, ops/view/op.c)

/// Fed at each run by its name (as given: scopes do not apply).
kr_value kr_input(kr_graph *, const char *name, kr_dtype, kr_shape);
enum { KR_PARAM_DECAY = 1 };
/// Trainable; full name is scope path + "." + name. KR_PARAM_DECAY: the optimiser applies weight decay.
/// Asking for the same name again gives the same value (tied weights).
kr_value kr_param(kr_graph *, const char *name, kr_shape, kr_init, unsigned flags);
/// Every element is `value`.
kr_value kr_const(kr_graph *, double value, kr_dtype, kr_shape);
enum { KR_CARRY_STATE = 0, KR_CARRY_OPTIMIZER = 1, KR_CARRY_GRADIENT = 2 };
/// State from the run before (zero at first), named as params are. In graphs built without live carries
/// (kr_graph_carries(g, false)) it is a zero constant, and kr_carry_set does nothing.
kr_value kr_carry(kr_graph *, const char *name, kr_dtype, kr_shape);
/// A carry of another kind, with its full name as given; always live.
kr_value kr_carry_kind(kr_graph *, const char *full_name, kr_dtype, kr_shape, int kind);
void kr_carry_set(kr_graph *, kr_value carry, kr_value next);
void kr_graph_carries(kr_graph *, bool live);

kr_value kr_reshape(kr_graph *, kr_value, kr_shape);   ///< same element count; one dimension may be -1
kr_value kr_slice(kr_graph *, kr_value, int axis, int64_t start, int64_t length);
kr_value kr_transpose(kr_graph *, kr_value, int axis_a, int axis_b);
kr_value kr_broadcast(kr_graph *, kr_value, kr_shape); ///< numpy rules
kr_value kr_concat(kr_graph *, const kr_value *, int count, int axis);
kr_value kr_pad(kr_graph *, kr_value, int axis, int64_t before, int64_t after); ///< with zeros
kr_value kr_copy(kr_graph *, kr_value);                ///< packed row-major copy
/// Splits an axis into pieces of the given lengths (slices).
void kr_split(kr_graph *, kr_value, int axis, const int64_t *lengths, int count, kr_value *pieces);
/// x for the forward pass, nothing for the backward pass.
kr_value kr_stop_gradient(kr_graph *, kr_value);

// Elementwise (ops/elementwise/map.def is the table; ops/elementwise/op.c). Inputs broadcast by numpy rules.
kr_value kr_map(kr_graph *, const char *op_name, const kr_value *in, int count, double a, double b);
kr_value kr_add(kr_graph *, kr_value, kr_value);
kr_value kr_sub(kr_graph *, kr_value, kr_value);
kr_value kr_mul(kr_graph *, kr_value, kr_value);
kr_value kr_div(kr_graph *, kr_value, kr_value);
kr_value kr_maximum(kr_graph *, kr_value, kr_value);
kr_value kr_minimum(kr_graph *, kr_value, kr_value);
kr_value kr_neg(kr_graph *, kr_value);
kr_value kr_exp(kr_graph *, kr_value);
kr_value kr_log(kr_graph *, kr_value);
kr_value kr_sqrt(kr_graph *, kr_value);
kr_value kr_rsqrt(kr_graph *, kr_value);
kr_value kr_square(kr_graph *, kr_value);
kr_value kr_abs(kr_graph *, kr_value);
kr_value kr_reciprocal(kr_graph *, kr_value);
kr_value kr_sigmoid(kr_graph *, kr_value);
kr_value kr_silu(kr_graph *, kr_value);
kr_value kr_tanh(kr_graph *, kr_value);
kr_value kr_relu(kr_graph *, kr_value);
kr_value kr_gelu(kr_graph *, kr_value);        ///< tanh form
kr_value kr_softplus(kr_graph *, kr_value);    ///< x above 20, log1p(exp x) below
kr_value kr_heavy_tail(kr_graph *, kr_value);  ///< 1+x for x >= 0, 1/(1-x) below (Mamba-3 A activation)
kr_value kr_affine(kr_graph *, kr_value, double scale, double shift); ///< scale*x + shift
kr_value kr_clamp(kr_graph *, kr_value, double lo, double hi);        ///< gradient passes at equality
kr_value kr_where(kr_graph *, kr_value condition, kr_value yes, kr_value no); ///< condition != 0 (f32 or bool)
kr_value kr_cast(kr_graph *, kr_value, kr_dtype);

// Reductions (ops/reduce/op.c). Axes are removed unless keep.
kr_value kr_sum(kr_graph *, kr_value, int axis, bool keep);
kr_value kr_mean(kr_graph *, kr_value, int axis, bool keep);
kr_value kr_max(kr_graph *, kr_value, int axis, bool keep);
kr_value kr_cumsum(kr_graph *, kr_value, int axis, bool reverse);
/// Sums broadcast axes away: the reverse of kr_broadcast to `shape`.
kr_value kr_sum_to(kr_graph *, kr_value, kr_shape);

// Tile programs (ops/fused/op.c): what elementwise chains become. Made by the fuse pass; not differentiable.
enum { KR_PROGRAM_INPUTS = 8, KR_PROGRAM_LENGTH = 21, KR_PROGRAM_OUTPUTS = 3, KR_PROGRAM_REALS = 3 };
/// One elementwise op. Registers: i < KR_PROGRAM_INPUTS is input i, KR_PROGRAM_INPUTS + k the result of instruction k.
typedef struct kr_instruction {
    const kr_op *op;
    int in[3];
    double a, b;        ///< the op's real attributes; at most KR_PROGRAM_REALS instructions of a program have any
} kr_instruction;
typedef struct kr_program {
    int length, outputs;
    kr_instruction code[KR_PROGRAM_LENGTH];
    int out[KR_PROGRAM_OUTPUTS];  ///< registers of results, each once; at least one, unless there is a sum
    bool sums; ///< output 0 is the sum of register `summed` over axes [axis, axis + axes), the others follow
    int summed, axis, axes;
    kr_shape sum_shape;           ///< with as many elements as the axes that are left
} kr_program;
/// May op be an instruction?
bool kr_program_takes(const kr_op *, int *reals);
/// All inputs f32 and of one shape (through kr_broadcast where they are smaller). Gives output 0.
kr_value kr_fused(kr_graph *, const kr_program *, const kr_value *in, int inputs);
/// The program of a node with KR_OP_PROGRAM.
void kr_program_of(const kr_node *, kr_program *);

// Products (ops/matmul/op.c)
enum { KR_ACT_NONE = 0, KR_ACT_SILU, KR_ACT_RELU, KR_ACT_GELU, KR_ACT_SIGMOID, KR_ACT_SOFTPLUS };
/// op(a) [..., M, K] by op(b) [..., K, N] to [..., M, N]; leading axes equal, or absent in b (one matrix for all).
/// bias [N]?, residual [..., M, N]? (added after the activation; may be accumulated in place).
kr_value kr_matmul(kr_graph *, kr_value a, kr_value b, bool transpose_a, bool transpose_b, kr_value bias,
                   kr_value residual, int activation);
/// y = x W^T + b. x [..., in], weight [out, in], bias [out]? to [..., out].
kr_value kr_linear(kr_graph *, kr_value x, kr_value weight, kr_value bias);

// Norms (ops/norm/op.c)
/// RMSNorm over the last axis with everything around it that one pass over memory can do:
///   r = x + residual?;  v = r (or r*silu(z) when z and not norm_before_gate)
///   y = v / sqrt(mean_group(v^2) + eps) * weight + bias?;  then y*silu(z) when z and norm_before_gate
///   x, residual?, z? [..., D]; weight, bias? [D]; group_size 0 means D and must divide D
///   *stream (may be null) gets r, the new residual stream. z with residual is not allowed.
///   source Zhang & Sennrich 2019, arXiv:1910.07467; gated form: Dao & Gu 2024, arXiv:2405.21060
kr_value kr_rms_norm_full(kr_graph *, kr_value x, kr_value residual, kr_value z, kr_value weight, kr_value bias,
                          double eps, int64_t group_size, bool norm_before_gate, kr_value *stream);
kr_value kr_rms_norm(kr_graph *, kr_value x, kr_value weight, double eps);
/// LayerNorm with residual add, biased variance. bias optional.
kr_value kr_layer_norm_full(kr_graph *, kr_value x, kr_value residual, kr_value weight, kr_value bias, double eps,
                            kr_value *stream);

// Embedding, softmax, loss (ops/embedding/op.c, ops/softmax/op.c, ops/linear_loss/op.c)
/// ids i32 [...], weight [V, D] to [..., D]. Ids outside [0, V) give zeros and no gradient.
kr_value kr_embedding(kr_graph *, kr_value weight, kr_value ids);
kr_value kr_softmax(kr_graph *, kr_value x); ///< over the last axis
/// Mean token loss. logits [..., V], targets i32 [...]; targets < 0 (that is, -100) are ignored; no counted
/// target gives 0. Gives the mean as a [1]; *per_token (may be null) [...] is 0 where ignored; *lse (may be null)
/// [...]. valid_vocab > 0 leaves logits at and above it out of the softmax (padded vocabulary rows).
kr_value kr_cross_entropy(kr_graph *, kr_value logits, kr_value targets, int64_t valid_vocab, kr_value *per_token,
                          kr_value *lse);

/// kr_cross_entropy of the logits x weight^T, of which no more than a block of rows is ever in memory, neither here
/// nor in the gradient. x [..., D]; weight [V, D]; targets i32 [...]; the rest as above.
/// source Hsu et al. 2024, arXiv:2410.10989 (the gradient of a block of rows is made with its loss)
kr_value kr_linear_cross_entropy(kr_graph *, kr_value x, kr_value weight, kr_value targets, int64_t valid_vocab,
                                 kr_value *per_token, kr_value *lse);

// Sequences (ops/conv/op.c, ops/linear_scan/op.c, ops/selective_scan/op.c). Time is axis 1, channels are last.
/// Causal depthwise convolution. x [B, L, C]; weight [C, W]; bias [C]?; state [B, W-1, C]? holds the previous
/// raw inputs, oldest first (absent: zeros); reset i32 [B, L]?: 1 where a new document starts: taps do not reach over
/// it.
/// *next (may be null) gets the new state [B, W-1, C] (inputs before the last reset count as zeros in it).
kr_value kr_causal_conv1d(kr_graph *, kr_value x, kr_value weight, kr_value bias, kr_value state, kr_value reset,
                          bool silu, kr_value *next);
/// h_t = a_t*h_{t-1} + b_t along axis 1. a, b [B, L, C]; h0 [B, C]?; reset i32 [B, L]?: h_{t-1} counts as 0 there.
/// Gives h [B, L, C]; *last (may be null) [B, C].
kr_value kr_linear_scan(kr_graph *, kr_value a, kr_value b, kr_value h0, kr_value reset, kr_value *last);
/// Mamba-1 selective scan (S6; docs/book/2-mamba.md).
///   u, delta, z? [B, L, E]; A [E, N] negative; Bm, Cm [B, L, G, N] or [B, L, N] (G = 1) or [E, N] (constant);
///   D?, delta_bias? [E]; h0? [B, E, N]; reset? i32 [B, L]
///   gives out [B, L, E]; *last (may be null) [B, E, N]
///   source Gu & Dao 2023, arXiv:2312.00752, algorithm 2
typedef struct kr_selective_scan_args {
    kr_value u, delta, A, B, C, D, z, delta_bias, h0, reset;
    bool delta_softplus;
} kr_selective_scan_args;
kr_value kr_selective_scan(kr_graph *, const kr_selective_scan_args *, kr_value *last);

/// Mamba-2 state-space duality (SSD; docs/book/3-mamba-2.md), in chunks: O(L) time and memory, states recomputed in
/// the gradient.
///   x, z? [B, L, H*P]; dt [B, L, H] raw; A [H] negative; Bm, Cm [B, L, G*N]; D? [H] or [H*P]; dt_bias? [H];
///   h0? [B, H, P, N]; reset? i32 [B, L]; head h reads group h / (H/G)
///   d = clamp(softplus(dt + dt_bias), dt_min, dt_max)   (softplus optional)
///   gives y (times silu(z) when z) [B, L, H*P]; *last (may be null) [B, H, P, N]
///   source Dao & Gu 2024, arXiv:2405.21060, section 6
typedef struct kr_ssd_scan_args {
    kr_value x, dt, A, B, C, D, z, dt_bias, h0, reset;
    int64_t groups, chunk;        ///< chunk 0: the best for the shapes
    double dt_min, dt_max;        ///< 0 and infinity: no clamp
    bool dt_softplus;
} kr_ssd_scan_args;
kr_value kr_ssd_scan(kr_graph *, const kr_ssd_scan_args *, kr_value *last);

/// The Mamba-3 scan (docs/book/4-mamba-3.md): trapezoid rule and MIMO rank, in the same chunks as ssd_scan.
///   S_t = exp(adt_t) (S_{t-1} + (1 - lambda_t) dt_t U_{t-1}) + lambda_t dt_t U_t,   o_{t,r} = S_t q_{t,r} + D v_{t,r}
///   with lambda = sigmoid(trap), v_{t,r} = mimo_x_r x_t, U_t = sum_r v_{t,r} (outer) k_{t,r}
///   k, q [B, L, H*R*N] laid out (h r n), rotated; x [B, L, H*P]; adt [B, L, H] = A*dt < 0; dt [B, L, H] > 0;
///   trap [B, L, H] before sigmoid; mimo_x? [H, R, P] (absent: R = 1, ones); D? [H]; z? [B, L, H*P] (R = 1 only);
///   h0? [B, H, P, N]; k0? [B, R, H, N] (rotated); v0? [B, H, P] (previous raw x); reset? i32 [B, L]
///   With k_bias, q_bias [H, R, N] and ang (before tanh) [B, L, S], one for all heads, or [B, L, H, S], k and q come as
///   K and Q [B, L, R*G*N], laid out (r g n), and are rotated here: k_{t,r} = Rot(theta_t) (K_{t,r} + k_bias_r), q
/// alike,
///   theta_t = theta_{t-1} + pi tanh(ang_t) dt_t (mod 2 pi) from theta0? [B, H, S] on (from 0 after a reset). S <= N/2
///   pairs rotate, the rest pass; the heads' k and q are never written down.
///   gives o [B, L, R*H*P] laid out (r h p), with z o silu(z); *last (may be null): the state, rotated k, raw x and
///   angle after the last token
///   source Lahoti et al. 2026, arXiv:2603.15569
typedef struct kr_trapezoid_scan_args {
    kr_value k, q, x, adt, dt, trap, mimo_x, D, z, h0, k0, v0, reset;
    kr_value k_bias, q_bias, ang, theta0;
    int64_t rank, chunk;
    int64_t groups;               ///< of K and Q, with biases (0: one)
    bool half;                    ///< pairs (j, j + N/2), else (2j, 2j + 1)
} kr_trapezoid_scan_args;
typedef struct kr_trapezoid_scan_state {
    kr_value h, k, v, theta;
} kr_trapezoid_scan_state;
kr_value kr_trapezoid_scan(kr_graph *, const kr_trapezoid_scan_args *, kr_trapezoid_scan_state *last);

// Attention (ops/attention/op.c; docs/book/5-hybrids-and-memory.md)
/// Rotary embedding of heads: x [B, L, H*Dh]; position? i32 [1] or absent (0): index of the first token;
/// the first rotary_dim of every head's Dh coordinates rotate by (position + t) * base^(-2i/rotary_dim).
kr_value kr_rope(kr_graph *, kr_value x, kr_value position, int64_t heads, int64_t rotary_dim, double base,
                 bool interleaved);
/// Causal attention with grouped queries; keeps only the log-sum-exp for the gradient.
///   q [B, Lq, H*Dh]; k, v [B, Lk, Hkv*Dh]; aligned bottom-right: query t sees keys s <= t + (Lk - Lq), and with
///   window > 0 only the last `window` of them; key_count? i32 [1]: only the first that many keys exist (a cache that
/// is
///   not full), and alignment counts from there; reset? i32 [B, Lk]: queries do not see keys of earlier documents
///   gives [B, Lq, H*Dh]
typedef struct kr_attention_args {
    kr_value q, k, v, key_count, reset;
    int64_t heads, kv_heads, window;
    double scale;              ///< 0: 1/sqrt(Dh)
    bool not_causal;
} kr_attention_args;
kr_value kr_attention(kr_graph *, const kr_attention_args *);
/// cache [B, Lmax, C] with rows position .. position + L - 1 replaced by x [B, L, C]; position i32 [1]. In place where
/// the cache dies. No gradient.
kr_value kr_cache_write(kr_graph *, kr_value cache, kr_value x, kr_value position);

// Training (ops/train/op.c)
/// Sum of squares of all values, f32 [1].
kr_value kr_sq_norm(kr_graph *, const kr_value *, int count);
typedef struct kr_adamw_args {
    kr_value p, g, m, v;      ///< all the same shape
    kr_value learning_rate;   ///< f32 [1]
    kr_value step;            ///< i64 [1]: number of this update, from 1; the bias corrections are 1 - beta^step
    kr_value sq_norm;         ///< f32 [1]?: global squared gradient norm; not finite: nothing is updated
    double beta1, beta2, eps, weight_decay;
    double max_norm;          ///< clip to this global norm; 0: do not clip
} kr_adamw_args;
/// Decoupled AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101). Gives the new p; m and v are outputs 1 and 2
/// (kr_sibling).
kr_value kr_adamw(kr_graph *, const kr_adamw_args *);
/// The number of this update from that of the one before, i64 [1]: step + 1, or step where sq_norm (f32 [1]?) is not
/// finite and kr_adamw updates nothing.
kr_value kr_count_step(kr_graph *, kr_value step, kr_value sq_norm);

#include "ops/here.h"

#ifdef __cplusplus
}
#endif
#endif
