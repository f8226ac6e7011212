/// Operands and attributes of attention and of the cache of keys and values by name.
#ifndef KRAIT_OPS_ATTENTION_ARGS_H
#define KRAIT_OPS_ATTENTION_ARGS_H

#include "runtime/kernel.h"

enum { ATTENTION_HEADS, ATTENTION_KV_HEADS, ATTENTION_WINDOW, ATTENTION_NOT_CAUSAL }; // attrs.i
enum { ATTENTION_SCALE };                                                             // attrs.r
enum { ATTENTION_Q, ATTENTION_K, ATTENTION_V, ATTENTION_KEY_COUNT, ATTENTION_RESET, ATTENTION_INPUTS };
enum { ATTENTION_O, ATTENTION_LSE, ATTENTION_OUTPUTS };
// The gradient op: upstream gradients, the forward inputs, what the forward op gave.
enum {
    ATTENTION_GRAD_DO,
    ATTENTION_GRAD_DLSE,
    ATTENTION_GRAD_FORWARD,
    ATTENTION_GRAD_O = ATTENTION_GRAD_FORWARD + ATTENTION_INPUTS,
    ATTENTION_GRAD_LSE,
    ATTENTION_GRAD_INPUTS
};
enum { ATTENTION_GRAD_DQ, ATTENTION_GRAD_DK, ATTENTION_GRAD_DV, ATTENTION_GRAD_OUTPUTS };

enum { CACHE_WRITE_CACHE, CACHE_WRITE_X, CACHE_WRITE_POSITION, CACHE_WRITE_INPUTS };
enum { CACHE_WRITE_Y, CACHE_WRITE_OUTPUTS };

#endif
