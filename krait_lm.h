/// Language models for programs: running a trained one, and training one on a text.
///
///     cc program.c $(pkg-config --cflags --libs krait-lm)
#ifndef KRAIT_LM_H
#define KRAIT_LM_H

#include "krait.h"
#include "tools/lm/lm.h"
#include "tools/train/train.h"

#endif
