// Learning-rate schedules. Step t = 0, 1, ...; W warm-up steps; T steps in all.
//     t < W       lr = lr_max (t + 1) / W
//     cosine      p = min(1, (t - W) / (T - W)); lr = lr_min + (lr_max - lr_min) (1 + cos(pi p)) / 2
//     WSD         lr_max until T - D; then p = min(1, (t - (T - D)) / D) and
//                 linear lr_max + (lr_min - lr_max) p, or lr_min + (lr_max - lr_min) (1 - sqrt p)
// WSD (warm-up, stable, decay; Hu et al. 2024, arXiv:2404.06395) needs no T in advance: a run can be extended from
// any checkpoint of its flat part. The fall with 1 - sqrt p is Haegele et al. 2024, arXiv:2405.18392.
#include "tools/train/schedule.h"

#include <math.h>

static double fraction(int64_t part, int64_t whole) {
    if (whole <= 0) return 1;
    const double p = (double)part / (double)whole;
    return p < 1 ? p : 1;
}

double kr_schedule_lr(const kr_schedule *s, int64_t step) {
    const double span = s->lr_max - s->lr_min;
    if (step < s->warmup) return s->lr_max * (double)(step + 1) / (double)s->warmup;
    switch (s->kind) {
    case KR_SCHEDULE_COSINE:
        return s->lr_min + span * (1 + cos(M_PI * fraction(step - s->warmup, s->total - s->warmup))) / 2;
    case KR_SCHEDULE_WSD: {
        const int64_t fall = s->total - s->decay;
        if (step < fall) return s->lr_max;
        const double p = fraction(step - fall, s->decay);
        return s->square_root ? s->lr_min + span * (1 - sqrt(p)) : s->lr_max + (s->lr_min - s->lr_max) * p;
    }
    case KR_SCHEDULE_CONSTANT: break;
    }
    return s->lr_max;
}

kr_schedule kr_train_schedule(const kr_train_settings *s) {
    const int64_t tenth = s->steps / 10 > 0 ? s->steps / 10 : 1;
    return (kr_schedule){
        .kind = (kr_schedule_kind)s->schedule, .lr_max = s->learning_rate,
        .lr_min = s->min_learning_rate < 0 ? s->learning_rate / 10 : s->min_learning_rate,
        .warmup = s->warmup, .total = s->steps, .decay = s->decay_steps < 0 ? tenth : s->decay_steps,
    };
}
