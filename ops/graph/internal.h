/// What the files of ops/graph share and nobody else sees.
#ifndef KRAIT_OPS_GRAPH_INTERNAL_H
#define KRAIT_OPS_GRAPH_INTERNAL_H

#include "ops/ops.h"

/// Operand k in a mask of operands (kr_op, kr_impl).
#define BIT(k) (1u << (k))

typedef struct kr_value_info {
    kr_dtype dtype;
    kr_shape shape;
    kr_node *node;
    int output;
    uint32_t forward; ///< kr_graph_replace: read this value instead; 0: itself
    bool assigned;    ///< the target of an assign
} kr_value_info;

typedef struct kr_name kr_name;
typedef struct kr_names {
    kr_name *entries; ///< `room` of them: 0 or a power of two
    size_t count, room;
} kr_names;

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
    kr_names names;        ///< of sources and outputs (ops/graph/names.c)
    char scope[512];
    int scope_marks[32], scope_depth; ///< length of `scope` before each push
    const char *scope_override;
    bool carries_live;
    int64_t rank_override; ///< -1: after everything
    int64_t next_rank;
    kr_status status;
    char message[1024];
    const char *file;      ///< of the builder call under way
    int line;
};

extern const kr_op kr_op_input, kr_op_param, kr_op_const, kr_op_carry;

/// For a target's specialise: sets an attribute that says how many f32 of a forward pass are saved for its gradient, or
/// checks the one that is there. `shape` is how this target lays them out.
kr_status kr_specialise_saved(const char *op, const kr_target *, int64_t *attribute, kr_shape shape);
/// For the rules of a pair of ops: the shape of what one saves for the other, whose content is the target's own.
static inline kr_shape kr_saved_shape(int64_t elements) { return KR_SHAPE(elements); }

/// A program as attributes; false when it does not fit in them. What it says is checked by the shape rule.
bool kr_program_pack(const kr_program *, kr_attrs *);

/// Grows an array from realloc by doubling; false when memory ends (status recorded).
bool kr_grow(void *array_pointer, int *room, int count, size_t element);
/// The source of this kind and name that is alive, or the empty value.
kr_value kr_source_find(const kr_graph *, const kr_op *, const char *name);
/// Names a source (`name` is kept as it is) so that it is found; false when memory ends (status recorded).
bool kr_source_name(kr_graph *, kr_node *, const char *name);
/// The same for the output at an index, which has its name.
bool kr_output_name(kr_graph *, int index);
/// The full name of `name` in the open scopes, in the graph's pool.
const char *kr_scoped_name(kr_graph *, const char *name);
/// Fails the graph with this message: op, scope and place are added.
__attribute__((format(printf, 3, 4))) void kr_graph_fail_with(kr_graph *, kr_status code, const char *format, ...);

#endif
