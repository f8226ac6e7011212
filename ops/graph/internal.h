/// What the files of ops/ share and nobody else sees.
#ifndef KRAIT_OPS_GRAPH_INTERNAL_H
#define KRAIT_OPS_GRAPH_INTERNAL_H

#include "ops/ops.h"

typedef struct kr_value_info {
    kr_dtype dtype;
    kr_shape shape;
    kr_node *node;
    int output;
    uint32_t forward; ///< kr_graph_replace: read this value instead; 0: itself
} kr_value_info;

struct kr_graph {
    kr_pool *pool;
    kr_node **nodes;
    int node_count, node_room;
    kr_value_info *values; ///< entry 0 is the empty value
    uint32_t value_count, value_room;
    kr_graph_output *outputs;
    int output_count, output_room;
    kr_graph_assign *assigns;
    int assign_count, assign_room;
    char scope[512];
    int scope_marks[32], scope_depth; ///< length of `scope` before each push
    const char *scope_override;
    bool carries_live;
    int64_t rank_override; ///< -1: after everything
    int64_t next_rank;
    kr_status status;
    char message[1024];
    char place[128];       ///< of the error
    const char *file;      ///< of the builder call under way
    int line;
};

extern const kr_op kr_op_input, kr_op_param, kr_op_const, kr_op_carry;

/// For a target's specialise: sets an attribute that says how many f32 of a forward pass are saved for its gradient, or
/// checks the one that is there. `shape` is how this target lays them out.
kr_status kr_settle_saved(const char *op, const kr_target *, int64_t *attribute, kr_shape shape);
/// For the rules of a pair of ops: the shape of what one saves for the other, whose content is the target's own.
static inline kr_shape kr_saved_shape(int64_t elements) { return KR_SHAPE(elements); }

/// A program as attributes; false when it does not fit in them. What it says is checked by the shape rule.
bool kr_program_pack(const kr_program *, kr_attrs *);

/// Grows an array from realloc by doubling; false when memory ends (status recorded).
bool kr_grow(void *array_pointer, int *room, int count, size_t element);
/// The full name of `name` in the open scopes, in the graph's pool.
const char *kr_scoped_name(kr_graph *, const char *name);
/// Fails the graph with this message: op, scope and place are added.
__attribute__((format(printf, 3, 4))) void kr_graph_fail_with(kr_graph *, kr_status code, const char *format, ...);

#endif
