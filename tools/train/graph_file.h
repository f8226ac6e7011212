/// Graphs written by hand that can be trained and run.
#ifndef KRAIT_TOOLS_TRAIN_GRAPH_FILE_H
#define KRAIT_TOOLS_TRAIN_GRAPH_FILE_H

#include "ops/ops.h"

/// A graph in text form that can be trained: inputs "tokens", "targets" and perhaps "reset", i32 [B, L]; output "loss",
/// f32 and one element; to let it write also "logits" [B, L, V].
typedef struct kr_graph_file {
    const char *label;   ///< its path
    char *text;
    size_t bytes;
    int64_t batch, length;
    int64_t vocabulary;  ///< V; 0: it has no such output
    bool reset;          ///< it has that input
    bool state;          ///< it has state carries
    uint64_t fingerprint;
} kr_graph_file;
/// fails KR_IO; KR_BAD_FILE with line and column; KR_BAD_ARGUMENT: says what the graph lacks, or has too much of
kr_status kr_graph_file_open(const char *path, kr_graph_file *out);
/// Without carry_state, and for evaluation, state is zero in every run, as in the graphs of models.
kr_status kr_graph_file_build(const kr_graph_file *, bool training, bool carry_state, kr_graph **out);
void kr_graph_file_close(kr_graph_file *);

#endif
