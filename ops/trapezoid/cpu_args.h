/// The operands of Mamba-3's scan as its kernels see them, and the heads of a unit of work.
#ifndef KRAIT_OPS_TRAPEZOID_CPU_ARGS_H
#define KRAIT_OPS_TRAPEZOID_CPU_ARGS_H

#include "ops/trapezoid/args.h"
#include "ops/trapezoid/cpu_engine.h"
#include "ops/trapezoid/work.h"

typedef struct trapezoid {
    kr_chunk_size size;
    kr_rotate_size rotate;
    source keys[2], x, adt, dt, trap, z, ang;  ///< keys: k and q
    const float *bias[2], *mimo, *D, *k0, *v0; ///< k0 and v0: both or neither
    const int32_t *reset;
    int64_t apart;   ///< from the first of a pair to the second; 0: next to each other
    bool own_angles; ///< every head has its ang
} trapezoid;

static trapezoid trapezoid_of(const kr_attrs *t, const kr_arg *in, const kr_arg *k0, const kr_arg *v0,
                              const kr_arg *reset) {
    const int64_t heads = in[TRAPEZOID_ADT].shape.dim[2], rank = t->i[TRAPEZOID_RANK];
    const bool rotates = t->i[TRAPEZOID_GROUPS] > 0;
    trapezoid s = {.keys = {source_of(&in[TRAPEZOID_K]), source_of(&in[TRAPEZOID_Q])},
                   .x = source_of(&in[TRAPEZOID_X]),
                   .adt = source_of(&in[TRAPEZOID_ADT]),
                   .dt = source_of(&in[TRAPEZOID_DT]),
                   .trap = source_of(&in[TRAPEZOID_TRAP]),
                   .z = source_of(&in[TRAPEZOID_Z]),
                   .ang = source_of(&in[TRAPEZOID_ANG]),
                   .bias = {in[TRAPEZOID_K_BIAS].data, in[TRAPEZOID_Q_BIAS].data},
                   .mimo = in[TRAPEZOID_MIMO_X].data,
                   .D = in[TRAPEZOID_D].data,
                   .reset = reset->data};
    if (k0->data && v0->data) s.k0 = k0->data, s.v0 = v0->data;
    const int64_t states = rotates ? in[TRAPEZOID_K_BIAS].shape.dim[2]
                           : heads ? in[TRAPEZOID_K].shape.dim[2] / heads / rank
                                   : 0;
    s.size = kr_chunk_measure(in[TRAPEZOID_K].shape.dim[0], in[TRAPEZOID_K].shape.dim[1], heads,
                              rotates ? t->i[TRAPEZOID_GROUPS] : 0, rank,
                              heads ? in[TRAPEZOID_X].shape.dim[2] / heads : 0, states, t->i[TRAPEZOID_CHUNK]);
    s.own_angles = rotates && in[TRAPEZOID_ANG].shape.rank == 4;
    s.rotate = kr_rotate_measure(&s.size, rotates, rotates ? kr_arg_cols(&in[TRAPEZOID_ANG]) : 0);
    s.apart = t->i[TRAPEZOID_HALF] ? states / 2 : 0;
    return s;
}

/// Batch row, the number of its first token, the heads of a unit and the head at hand.
typedef struct place {
    int64_t b, row, group, first_head, head_end, head;
} place;

static place place_of(const kr_chunk_size *s, int64_t unit) {
    const int64_t in_group = s->heads / s->groups, block = unit % s->blocks, end = (block + 1) * s->block;
    place at = {.b = unit / s->blocks / s->groups, .group = unit / s->blocks % s->groups};
    at.row = at.b * s->length;
    at.head = at.first_head = at.group * in_group + block * s->block;
    at.head_end = at.group * in_group + (end < in_group ? end : in_group);
    return at;
}

/// The heads of a unit, one after the other: place `at` of each.
#define EACH_HEAD(s, unit, at) for (place at = place_of(s, unit); at.head < at.head_end; at.head++)

static bool last_of_unit(place at) { return at.head + 1 == at.head_end; }

/// The state of a head: [states, width]; in the backward pass [width, states].
static matrix state_at(const kr_chunk_size *s, const chunk *c, place at, bool backward) {
    return state_of(c, s, at.head - at.first_head, backward);
}

static bool is_reset(const trapezoid *s, int64_t row) { return s->reset && s->reset[row] > 0; }

#endif
