// The planner's figures for people and for programs.
#include "compiler/compiler.h"

#include <math.h>

size_t kr_plan_stats_bytes(const kr_plan_stats *s) {
    size_t bytes = 0;
    for (int k = 0; k < KR_SLOT_KIND_COUNT; k++) bytes += s->slot_bytes[k];
    return bytes;
}

/// A peak over a bound of 0 is perfect too.
static double ratio(const kr_plan_stats *s) {
    return s->bound ? (double)s->peak / (double)s->bound : s->peak ? INFINITY : 1;
}

static void print_text(const kr_plan_stats *s, FILE *to) {
    fprintf(to, "nodes            %d\n", s->nodes);
    fprintf(to, "steps            %d, with %d barriers\n", s->steps, s->barriers);
    fprintf(to, "parameters       %d tensors, %lld elements\n", s->params, (long long)s->param_elements);
    fprintf(to, "work             %.6g FLOP, %.6g bytes of traffic per run\n", s->flops, s->bytes);
    fprintf(to, "memory           %zu bytes\n", kr_plan_stats_bytes(s));
    for (int k = 0; k < KR_SLOT_KIND_COUNT; k++)
        fprintf(to, "  %-14s %zu\n", kr_slot_kind_name((kr_slot_kind)k), s->slot_bytes[k]);
    fprintf(to, "activation arena %zu bytes, bound %zu, ratio %.4f, %zu without reuse\n", s->peak, s->bound, ratio(s),
            s->sum);
    if (s->recomputed)
        fprintf(to, "recomputed       %d nodes, %.1f %% more time (estimated)\n", s->recomputed, 100 * s->extra);
}

static void print_json(const kr_plan_stats *s, FILE *to) {
    fprintf(to,
            "{\"nodes\": %d, \"steps\": %d, \"barriers\": %d, \"params\": %d, \"param_elements\": %lld, \"flops\": "
            "%.17g, \"bytes\": %.17g, ",
            s->nodes, s->steps, s->barriers, s->params, (long long)s->param_elements, s->flops, s->bytes);
    fputs("\"arenas\": {", to);
    for (int k = 0; k < KR_SLOT_KIND_COUNT; k++)
        fprintf(to, "%s\"%s\": %zu", k ? ", " : "", kr_slot_kind_name((kr_slot_kind)k), s->slot_bytes[k]);
    fprintf(to, "}, \"memory\": %zu, \"peak\": %zu, \"bound\": %zu, \"ratio\": ", kr_plan_stats_bytes(s), s->peak,
            s->bound);
    if (isfinite(ratio(s))) fprintf(to, "%.6f", ratio(s));
    else fputs("null", to); // JSON has no infinity
    fprintf(to, ", \"sum\": %zu, \"recomputed\": %d, \"extra\": %.6g}\n", s->sum, s->recomputed, s->extra);
}

void kr_stats_print(const kr_plan_stats *s, FILE *to, bool json) { (json ? print_json : print_text)(s, to); }
