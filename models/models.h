/// Blocks, and language models made of blocks. Parameter names are the official ones (state-spaces/mamba), so that
/// published checkpoints load by name.
#ifndef KRAIT_MODELS_H
#define KRAIT_MODELS_H

#include "ops/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

/// Attention and its options; names as in the official attn_cfg.
typedef struct kr_attention_config {
    int64_t num_heads;       ///< 0: d_model / 64, at least 1
    int64_t num_heads_kv;    ///< 0: num_heads
    int64_t head_dim;        ///< 0: d_model / num_heads
    int64_t mlp_dim;         ///< gated MLP beside the heads; rounded up to a multiple of 256; 0: none
    int64_t d_conv;          ///< taps of a convolution over q, k and v; 0: none
    int64_t rotary_emb_dim;  ///< coordinates of each head that turn; 0: none
    double rotary_emb_base;  ///< 10000
    bool rotary_emb_interleaved;
    bool qkv_proj_bias, out_proj_bias;
    bool not_causal;
    double softmax_scale;    ///< 0: 1 / sqrt(head_dim)
    int64_t window;          ///< keys that a query sees, itself included; 0: all
    int64_t capacity;        ///< tokens that the key-value cache holds; 0: no cache (training)
} kr_attention_config;

/// How Mamba-3 turns its projection into A: -heavy_tail (official since 2026-06), or -softplus (before).
typedef enum kr_a_activation { KR_A_HEAVY_TAIL = 0, KR_A_SOFTPLUS } kr_a_activation;

/// Hyper-parameters of one block. Names follow the official modules; 0 or negative means "the default of the block".
typedef struct kr_block_config {
    int64_t d_model;
    int64_t d_state;     ///< Mamba-1: 16; Mamba-2 and -3: 128
    int64_t d_conv;      ///< 4
    int64_t expand;      ///< 2
    int64_t dt_rank;     ///< Mamba-1: ceil(d_model / 16)
    int64_t headdim;     ///< Mamba-2 and -3: 64
    int64_t ngroups;     ///< Mamba-2 and -3: 1
    int64_t d_ssm;       ///< Mamba-2: width that goes through the scan; 0: all of expand * d_model
    int64_t chunk_size;  ///< 0: chosen by the op
    int64_t mimo_rank;   ///< Mamba-3 MIMO: 4
    int64_t hidden;      ///< gated MLP: 0: int(8 d_model / 3), rounded up to a multiple of 128
    bool is_mimo, is_outproj_norm;         ///< Mamba-3
    bool no_rmsnorm, norm_before_gate;     ///< Mamba-2
    bool D_has_hdim;                       ///< Mamba-2: D per channel
    double rope_fraction;                  ///< Mamba-3: 0.5
    double A_floor;                        ///< Mamba-3: 1e-4
    kr_a_activation a_activation;          ///< Mamba-3
    double dt_limit_min, dt_limit_max;     ///< Mamba-2: clamp of the step size; 0 and 0: none
    double base_decay;                     ///< tinymamba: 1
    bool bias;           ///< in_proj and out_proj
    bool conv_bias;
    double dt_min, dt_max, dt_init_floor, dt_scale; ///< 1e-3, 0.1, 1e-4, 1
    kr_attention_config attention;
    int n_layer;         ///< for the rescaled initialisation of out_proj; 0: no rescaling
    bool zero_bias;      ///< Linear biases start at 0 (as in the language model)
    kr_value reset;      ///< i32 [B, L]: 1 where a document starts; may be empty
    kr_value goal;       ///< f32 [B, d_model]: what the text is about (tinymamba); may be empty
} kr_block_config;
/// The official defaults of a block kind.
kr_block_config kr_block_defaults(void);

/// A kind of block: x [B, L, d_model] to [B, L, d_model]. Carries its state through kr_carry.
typedef struct kr_block_kind {
    const char *name;     ///< "mamba1"
    const char *official; ///< ssm_cfg.layer, "Mamba1"; may be null
    kr_value (*build)(kr_graph *, const kr_block_config *, kr_value x);
} kr_block_kind;
/// The blocks that Krait brings.
extern const kr_block_kind *const kr_block_kinds[];
extern const int kr_block_kind_count;
/// Makes a block of one's own known by its name, from now on and for the whole process. `kind` must stay where it is.
/// Not to be called while another thread uses models.
/// fails KR_BAD_ARGUMENT: no name, no builder, a name (either one) that another block has; KR_UNSUPPORTED: too many
kr_status kr_block_register(const kr_block_kind *kind);
const kr_block_kind *kr_block_at(int index);          ///< Krait's, then those registered; null after the last
const kr_block_kind *kr_block_find(const char *name); ///< by either name; null when there is none

/// What a shared object with a block in it exports under the name kr_block_export. The numbers say for which Krait it
/// was built: kr_block_config and the builders of ops/ops.h are the interface.
typedef struct kr_block_shared {
    uint32_t abi, config_bytes;
    const kr_block_kind *kind;
} kr_block_shared;
enum { KR_BLOCK_ABI = 1 }; ///< changes when a built block can no longer be used
#define KR_BLOCK_EXPORT(kind)                                                                                         \
    extern const kr_block_shared kr_block_export;                                                                     \
    const kr_block_shared kr_block_export = {KR_BLOCK_ABI, sizeof(kr_block_config), &(kind)}

// Parts of blocks ------------------------------------------------------------------------------------------------

/// "<name>.weight" [out, in] and, when the configuration has biases, "<name>.bias" [out]. x [..., in] to [..., out].
/// The weight starts uniform by fan-in, times `scale`.
kr_value kr_block_linear(kr_graph *, const kr_block_config *, const char *name, kr_value x, int64_t out, double scale);
/// Depthwise causal convolution with "conv1d.weight" [C, 1, taps] and, if asked for, "conv1d.bias" [C]; x [B, L, C];
/// state [B, taps - 1, C] holds the inputs before, *next those to be kept.
kr_value kr_block_conv(kr_graph *, const kr_block_config *, kr_value x, int64_t taps, bool bias, bool silu,
                       kr_value state, kr_value *next);
/// How many pieces of `size` make up `whole`: heads from a width. Where they do not, the graph fails, and the message
/// names both keys; the result is then 1.
int64_t kr_block_count(kr_graph *, const char *whole_name, int64_t whole, const char *size_name, int64_t size);
/// The `scale` for a block's last linear map: smaller by sqrt(n_layer) (GPT-2's rule as the official language model
/// applies it).
double kr_block_output_scale(const kr_block_config *);

/// A language model: embedding, pre-norm residual blocks, final norm, tied head (MATH 11).
typedef struct kr_model_config {
    char name[64];
    int64_t vocab_size;                ///< without padding
    int64_t pad_vocab_size_multiple;   ///< 8
    int64_t d_model;
    int n_layer;
    char layer[32];                    ///< block of every layer that `layers` does not name
    char layers[2048];                 ///< "mamba3,mamba3,attention,...": one block a layer; empty: all `layer`
    int64_t d_intermediate;            ///< gated MLP after every mixer, with a norm of its own; 0: none
    int64_t context;                   ///< tokens that attention caches hold when generating; 0: 4096
    bool rms_norm;                     ///< else LayerNorm
    bool tie_embeddings;
    double norm_epsilon;               ///< 1e-5
    bool reset_input;                  ///< training and evaluation have an input "reset" i32 [B, L]: 1 where a document
                                       ///< starts
    bool carry_state;                  ///< training goes on from the state of the run before, through which no gradient
                                       ///< flows (truncated back-propagation); attention starts afresh in every row
    kr_block_config block;             ///< d_model and n_layer are filled in by kr_model_build
} kr_model_config;
/// Block of layer `index`: its kind, or null when the configuration names none that exists.
const kr_block_kind *kr_model_layer(const kr_model_config *, int index);
kr_model_config kr_model_defaults(void);
/// Rows of the embedding: vocab_size rounded up to the multiple.
int64_t kr_model_vocab(const kr_model_config *);

typedef enum kr_mode {
    KR_MODE_TRAIN = 0, ///< inputs "tokens", "targets" i32 [B, L]; output "loss" f32 [1]
    KR_MODE_EVAL,      ///< the same, to be compiled forward only; carries not live
    KR_MODE_PREFILL,   ///< input "tokens"; output "logits" [B, V] of the last position; carries live
    KR_MODE_DECODE,    ///< prefill at length 1
    KR_MODE_LOGITS,    ///< input "tokens"; output "logits" [B, L, V]; carries not live
} kr_mode;
bool kr_mode_parse(const char *name, kr_mode *out);

/// Checks the configuration (messages name the key) and builds the graph.
kr_status kr_model_build(const kr_model_config *, kr_mode, int64_t batch, int64_t length, kr_graph **out);
/// Reads the official config.json (state-spaces) or the same keys from Krait's state.json.
kr_status kr_model_config_parse(const char *json, size_t bytes, kr_model_config *out);
/// Writes it in that form; free() the result. Null when memory ends.
char *kr_model_config_json(const kr_model_config *);

#ifdef __cplusplus
}
#endif
#endif
