/// Operands and attributes of the training ops by name.
#ifndef KRAIT_OPS_TRAIN_ARGS_H
#define KRAIT_OPS_TRAIN_ARGS_H

#include "runtime/kernel.h"

enum { ADAMW_BETA1, ADAMW_BETA2, ADAMW_EPS, ADAMW_WEIGHT_DECAY, ADAMW_MAX_NORM }; // attrs.r
enum { ADAMW_P, ADAMW_G, ADAMW_M, ADAMW_V, ADAMW_LEARNING_RATE, ADAMW_STEP, ADAMW_SQ_NORM, ADAMW_INPUTS };
enum { ADAMW_NEW_P, ADAMW_NEW_M, ADAMW_NEW_V, ADAMW_OUTPUTS };
enum { COUNT_STEP_STEP, COUNT_STEP_SQ_NORM, COUNT_STEP_INPUTS };
enum { COUNT_STEP_NEXT, COUNT_STEP_OUTPUTS };
enum { SQ_NORM_SUM, SQ_NORM_OUTPUTS }; // of sq_norm, whose inputs are any number of values

#endif
