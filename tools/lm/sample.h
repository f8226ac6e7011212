/// Choosing the next token.
#ifndef KRAIT_TOOLS_LM_SAMPLE_H
#define KRAIT_TOOLS_LM_SAMPLE_H

#include "tools/lm/lm.h"

typedef struct kr_candidate {
    float logit;
    int32_t id;
} kr_candidate;
/// One id in [0, n) from logits [n]. The random number is element `index` of the seed's stream, so text repeats from
/// its seed. scratch has n entries. Ties: the lower id.
int32_t kr_sample(const float *logits, int32_t n, const kr_lm_sampling *, uint64_t index, kr_candidate *scratch);

#endif
