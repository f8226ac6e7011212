/// Blocks, and language models made of blocks. Parameter names are the official ones (state-spaces/mamba), so that
/// published checkpoints load by name.
#ifndef KRAIT_MODELS_H
#define KRAIT_MODELS_H

#include "ops/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

// Keys of blocks -------------------------------------------------------------------------------------------------

typedef enum kr_key_type {
    KR_KEY_IS_INT = 1, ///< int64_t
    KR_KEY_IS_REAL,    ///< double, finite
    KR_KEY_IS_BOOL,    ///< bool
    KR_KEY_IS_CHOICE,  ///< int: index into `choices`
    KR_KEY_IS_RANGE,   ///< double[2]: low <= high, both at least `lo`; high may be infinite
} kr_key_type;

/// One hyper-parameter of a block: what may be said about it in krait.yaml, in config.json and from C, and the field
/// of the block's own struct that gets the value. A table of keys ends with a null name.
typedef struct kr_key {
    const char *name;    ///< "d_state"; official modules' names where they have one
    kr_key_type type;
    size_t offset;       ///< of the field
    double value;        ///< where none is given: a number, 0 or 1, an index; KR_KEY_DERIVED: see kr_key_or
    double lo, hi;       ///< least and largest value
    const char *choices; ///< KR_KEY_IS_CHOICE: "heavy_tail|softplus"
    const char *help;    ///< a few words
} kr_key;

/// The default of a key whose block works it out from other sizes. The field is then KR_KEY_AUTO (an integer) or NaN (a
/// real); a user can say so with the word `auto`, and can write no number that means it.
#define KR_KEY_DERIVED __builtin_nan("")
#define KR_KEY_AUTO INT64_MIN
static inline int64_t kr_key_or(int64_t value, int64_t derived) { return value == KR_KEY_AUTO ? derived : value; }

/// Rows of a table of keys over the struct `config`. A field of another type does not compile.
#define KR_KEY_INT(config, field, value, lo, hi, help) \
    {#field, KR_KEY_IS_INT, KR_KEY_FIELD(config, field, int64_t), value, lo, hi, 0, help}
#define KR_KEY_REAL(config, field, value, lo, hi, help) \
    {#field, KR_KEY_IS_REAL, KR_KEY_FIELD(config, field, double), value, lo, hi, 0, help}
#define KR_KEY_BOOL(config, field, value, help) \
    {#field, KR_KEY_IS_BOOL, KR_KEY_FIELD(config, field, bool), value, 0, 1, 0, help}
#define KR_KEY_CHOICE(config, field, value, choices, help) \
    {#field, KR_KEY_IS_CHOICE, KR_KEY_FIELD(config, field, int), value, 0, 0, choices, help}
#define KR_KEY_RANGE(config, field, lo, help) /* double field[2]; [lo, infinity] where none is given */ \
    {#field, KR_KEY_IS_RANGE, KR_KEY_FIELD(config, field[0], double), lo, lo, 0, 0, help}
#define KR_KEY_FIELD(config, field, type) \
    (offsetof(config, field) + 0 * sizeof(char[_Generic(((config *)0)->field, type: 1, default: -1)]))

/// Values that were given, as text: "64", "1e-3", "true", "softplus", "0.01,0.5" or "auto". Keys that stand in a
/// section of their own are called "section.key". What is not in here has the default of its block; 0 is 0.
enum { KR_SETTINGS_MAX = 64 };
typedef struct kr_settings {
    int count;
    struct { char name[64], value[56]; } at[KR_SETTINGS_MAX];
} kr_settings;
/// Sets or replaces one. Whether a block has that key, and the value's range, are checked when the block is built.
/// fails KR_BAD_ARGUMENT: a name or value that is empty or too long; KR_UNSUPPORTED: too many
__attribute__((format(printf, 3, 4))) kr_status kr_settings_set(kr_settings *, const char *name, const char *format,
                                                                ...);
const char *kr_settings_get(const kr_settings *, const char *name); ///< null: not given

// Blocks ---------------------------------------------------------------------------------------------------------

/// What a block is told beside its own keys.
typedef struct kr_block_config {
    int64_t d_model;
    int n_layer;         ///< for the rescaled initialisation of out_proj; 0: no rescaling
    bool zero_bias;      ///< Linear biases start at 0 (as in the language model)
    int64_t capacity;    ///< tokens that a cache of the past holds; 0: no cache (training)
    kr_value reset;      ///< i32 [B, L]: 1 where a document starts; may be empty
    kr_value goal;       ///< f32 [B, d_model]: what the text is about (tinymamba); may be empty
    const void *keys;    ///< the block's own struct, filled through its table of keys
} kr_block_config;

/// A kind of block: x [B, L, d_model] to [B, L, d_model]. Carries its state through kr_carry.
typedef struct kr_block_kind {
    const char *name;     ///< "mamba1"
    const char *official; ///< ssm_cfg.layer, "Mamba1"; may be null
    const kr_key *keys;   ///< its hyper-parameters; null: none
    size_t config_bytes;  ///< size of the struct that they fill
    const char *section;  ///< a map in krait.yaml that its keys stand in, "attention"; null: they stand in the model
    const char *official_section; ///< the same in config.json, "attn_cfg"; null: as `section`, or ssm_cfg
    kr_value (*build)(kr_graph *, const kr_block_config *, kr_value x);
} kr_block_kind;
/// The blocks that Krait brings.
extern const kr_block_kind *const kr_block_kinds[];
extern const int kr_block_kind_count;
enum { KR_BLOCK_KINDS_MAX = 128, KR_BLOCK_KEYS_BYTES = 1024 }; ///< kinds in all; most bytes of a kind's struct
/// Makes a block of one's own known by its name, from now on and for the whole process. `kind` must stay where it is.
/// Not to be called while another thread uses models.
/// fails KR_BAD_ARGUMENT: no name, no builder, a name (either one) or section that another block has, a table of keys
/// that is not in order; KR_UNSUPPORTED: too many
kr_status kr_block_register(const kr_block_kind *kind);
const kr_block_kind *kr_block_at(int index);          ///< Krait's, then those registered; null after the last
const kr_block_kind *kr_block_find(const char *name); ///< by either name; null when there is none

/// Fills a kind's struct: the values given, defaults for the others. Settings of other kinds are passed over.
/// fails KR_BAD_ARGUMENT: a value of another type or out of range; the message names the key and what it wants
kr_status kr_block_read(const kr_block_kind *, const kr_settings *, void *keys);
/// Builds a block with these settings (config->keys is not read). What kr_block_read refuses makes the graph fail.
kr_value kr_block_build(kr_graph *, const kr_block_kind *, const kr_settings *, const kr_block_config *, kr_value x);

/// What a shared object with a block in it exports under the name kr_block_export. The numbers say for which Krait it
/// was built: kr_block_config, kr_key and the builders of ops/ops.h are the interface.
typedef struct kr_block_shared {
    uint32_t abi, config_bytes;
    const kr_block_kind *kind;
} kr_block_shared;
enum { KR_BLOCK_ABI = 2 }; ///< changes when a built block can no longer be used
#define KR_BLOCK_EXPORT(kind)                                                                                         \
    extern const kr_block_shared kr_block_export;                                                                     \
    const kr_block_shared kr_block_export = {KR_BLOCK_ABI, sizeof(kr_block_config), &(kind)}

// Parts of blocks ------------------------------------------------------------------------------------------------

/// "<name>.weight" [out, in] and, if asked for, "<name>.bias" [out]. x [..., in] to [..., out]. The weight starts
/// uniform by fan-in, times `scale`.
kr_value kr_block_linear(kr_graph *, const kr_block_config *, const char *name, kr_value x, int64_t out, bool bias,
                         double scale);
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

/// A language model: embedding, pre-norm residual blocks, final norm, tied head (docs/book/5).
typedef struct kr_model_config {
    char name[64];
    int64_t vocab_size;                ///< without padding
    int64_t pad_vocab_size_multiple;   ///< 8
    int64_t d_model;
    int n_layer;
    char layer[32];                    ///< block of every layer that `layers` does not name
    char layers[2048];                 ///< "mamba3,mamba3,attention,...": one block a layer; empty: all `layer`
    int64_t d_intermediate;            ///< gated MLP after every mixer, with a norm of its own; 0: none
    int64_t context;                   ///< tokens that attention caches hold when generating
    bool rms_norm;                     ///< else LayerNorm
    bool tie_embeddings;
    double norm_epsilon;               ///< 1e-5
    bool reset_input;                  ///< training and evaluation have an input "reset" i32 [B, L]: 1 where a document
                                       ///< starts
    bool carry_state;                  ///< training goes on from the state of the run before, through which no gradient
                                       ///< flows (truncated back-propagation); attention starts afresh in every row
    kr_settings keys;                  ///< of the blocks
} kr_model_config;
/// Block of layer `index`: its kind, or null when there is no layer `index` or no such block.
const kr_block_kind *kr_model_layer(const kr_model_config *, int index);
/// The kinds of its layers, each once, then all others that are known. Gives how many of its own; *all: how many.
int kr_model_kinds(const kr_model_config *, const kr_block_kind *kinds[KR_BLOCK_KINDS_MAX], int *all);
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
/// Writes it in that form, of the blocks' keys those that were given; free() the result. Null when memory ends.
char *kr_model_config_json(const kr_model_config *);
/// The same with every key of its blocks, given or not.
char *kr_model_config_json_complete(const kr_model_config *);

#ifdef __cplusplus
}
#endif
#endif
