/// Showing what the compiler makes of a model.
#ifndef KRAIT_TOOLS_INSPECT_GRAPH_H
#define KRAIT_TOOLS_INSPECT_GRAPH_H

#include "runtime/runtime.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

enum { KR_EMIT_TEXT = 0, KR_EMIT_DOT, KR_EMIT_STATS };

typedef struct kr_inspect_settings {
    const char *model, *from;   ///< a model of the configuration, or a graph in text form
    const char *config;         ///< null: ./krait.yaml or the built-in one
    const char *after;          ///< a pass of the compiler; null or "build": before any
    int mode;                   ///< kr_mode; -1: not given
    int precision;              ///< kr_precision
    int emit;                   ///< KR_EMIT_TEXT and the like
    int64_t batch_size, seq_len; ///< 0: as in pretraining
    int64_t memory;             ///< budget of the arenas, bytes; 0: none
    bool json, memory_report;
} kr_inspect_settings;

/// Writes the graph, or the figures of its plan.
/// fails KR_BAD_ARGUMENT: settings that exclude each other, an unknown pass or model; KR_IO: `to` cannot be written
kr_status kr_inspect_graph(const kr_inspect_settings *, FILE *to);

#endif
