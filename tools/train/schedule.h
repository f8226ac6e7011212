/// Learning-rate schedules.
#ifndef KRAIT_TOOLS_TRAIN_SCHEDULE_H
#define KRAIT_TOOLS_TRAIN_SCHEDULE_H

#include "tools/config/settings.h"

/// Linear warm-up over `warmup` steps, then the kind. WSD is flat and falls over the last `decay` steps.
typedef struct kr_schedule {
    kr_schedule_kind kind;
    double lr_max, lr_min;
    int64_t warmup, total;
    int64_t decay;    ///< WSD: steps of the final fall
    bool square_root; ///< WSD: fall with 1 - sqrt(p) instead of linearly
} kr_schedule;
/// Learning rate of the update that follows `step` finished ones: 0, 1, ... Pure; steps past `total` keep the last
/// value.
double kr_schedule_lr(const kr_schedule *, int64_t step);


/// The schedule that the settings ask for: what the learning rate of each step follows from.
kr_schedule kr_train_schedule(const kr_train_settings *);

#endif
