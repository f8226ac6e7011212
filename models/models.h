/// Blocks, and language models made of blocks. Parameter names are the official ones (state-spaces/mamba), so that
/// published checkpoints load by name.
#ifndef KRAIT_MODELS_H
#define KRAIT_MODELS_H

#include "ops/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

/// Hyper-parameters of one block. Names follow the official modules; 0 or negative means "the default".
typedef struct kr_block_config {
    int64_t d_model;
    int64_t d_state;     ///< Mamba-1: 16
    int64_t d_conv;      ///< 4
    int64_t expand;      ///< 2
    int64_t dt_rank;     ///< ceil(d_model / 16)
    bool bias;           ///< in_proj and out_proj
    bool conv_bias;      ///< on unless no_conv_bias
    double dt_min, dt_max, dt_init_floor, dt_scale; ///< 1e-3, 0.1, 1e-4, 1
    int n_layer;         ///< for the rescaled initialisation of out_proj; 0: no rescaling
    bool zero_bias;      ///< Linear biases start at 0 (as in the language model)
    kr_value reset;      ///< i32 [B, L]: 1 where a document starts; may be empty
} kr_block_config;
/// The official defaults of a block kind.
kr_block_config kr_block_defaults(void);

/// A kind of block: x [B, L, d_model] to [B, L, d_model]. Carries its state through kr_carry.
typedef struct kr_block_kind {
    const char *name;     ///< "mamba1"
    const char *official; ///< ssm_cfg.layer, "Mamba1"; may be null
    kr_value (*build)(kr_graph *, const kr_block_config *, kr_value x);
} kr_block_kind;
extern const kr_block_kind *const kr_block_kinds[];
extern const int kr_block_kind_count;
const kr_block_kind *kr_block_find(const char *name); ///< by either name; null when there is none

/// A language model: embedding, pre-norm residual blocks, final norm, tied head (MATH 11).
typedef struct kr_model_config {
    char name[64];
    int64_t vocab_size;                ///< without padding
    int64_t pad_vocab_size_multiple;   ///< 8
    int64_t d_model;
    int n_layer;
    char layer[32];                    ///< block of every layer
    bool rms_norm;                     ///< else LayerNorm
    bool tie_embeddings;
    double norm_epsilon;               ///< 1e-5
    kr_block_config block;             ///< d_model and n_layer are filled in by kr_model_build
} kr_model_config;
kr_model_config kr_model_defaults(void);
/// Rows of the embedding: vocab_size rounded up to the multiple.
int64_t kr_model_vocab(const kr_model_config *);

typedef enum kr_mode {
    KR_MODE_TRAIN = 0, ///< inputs "tokens", "targets" i32 [B, L]; output "loss" f32 [1]
    KR_MODE_EVAL,      ///< the same, to be compiled forward only
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
