/// The log of a run: metrics.jsonl and TensorBoard events.
#ifndef KRAIT_TOOLS_TRAIN_METRICS_H
#define KRAIT_TOOLS_TRAIN_METRICS_H

#include "runtime/runtime.h"

/// One logged step. `step` counts finished updates (1 is the first).
typedef struct kr_metric {
    int64_t step, tokens;
    double loss, lr, grad_norm, tokens_per_second, seconds;
    double eval_loss;  ///< NaN: not evaluated at this step
} kr_metric;
/// metrics.jsonl and a TensorBoard event file in a directory.
typedef struct kr_metrics kr_metrics;
/// Lines of metrics.jsonl for steps after `resumed` (logged by a run that was killed before it could save) are
/// dropped; what is kept stays as it was. 0: start afresh.
kr_status kr_metrics_open(const char *directory, int64_t resumed, kr_metrics **out);
kr_status kr_metrics_write(kr_metrics *, const kr_metric *);
kr_status kr_metrics_close(kr_metrics *);
/// Every line of metrics.jsonl. *out from malloc.
kr_status kr_metrics_read(const char *directory, kr_metric **out, int *count);

#endif
