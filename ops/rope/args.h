/// Operands and attributes of the rotary position embedding by name.
#ifndef KRAIT_OPS_ROPE_ARGS_H
#define KRAIT_OPS_ROPE_ARGS_H

#include "runtime/kernel.h"

enum { ROPE_HEADS, ROPE_ROTARY_DIM, ROPE_INTERLEAVED, ROPE_BACK }; // attrs.i
enum { ROPE_BASE };                                                // attrs.r
enum { ROPE_X, ROPE_POSITION, ROPE_INPUTS };
enum { ROPE_Y, ROPE_OUTPUTS };

#endif
