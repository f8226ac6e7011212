/// From graph, placements and buffers to a plan: slots, and one step per node that is not a view or a source.
#include "compiler/cost.h"
#include "compiler/memory/memory.h"
#include "compiler/memory/placement.h"
#include "compiler/pass.h"

#include <stdlib.h>
#include <string.h>

static kr_slot slot_of_source(const kr_graph *g, const kr_node *n, kr_slot_kind kind) {
    const kr_value v = n->out[0];
    kr_slot slot = {
        .kind = kind, .name = n->name, .dtype = kr_value_dtype(g, v), .shape = kr_value_shape(g, v), .init = n->init};
    slot.bytes = kr_tensor_bytes(slot.dtype, &slot.shape);
    if (kind == KR_SLOT_CONST) {
        slot.splat = n->attrs.r[0];
        slot.bytes = kr_dtype_size(slot.dtype);
        slot.shape = KR_SCALAR;
    }
    return slot;
}

static kr_status add_slot(kr_compilation *c, const kr_slot *slot, int buffer) {
    const int index = kr_plan_add_slot(c->plan, slot);
    KR_FAIL_IF(index < 0, KR_NO_MEMORY, "%s", kr_status_message());
    c->memory->buffers[buffer].slot = index;
    if (slot->kind != KR_SLOT_ACTIVATION && slot->kind != KR_SLOT_GRADIENT)
        c->stats.slot_bytes[slot->kind] += slot->bytes;
    return KR_OK;
}

static kr_status make_slots(kr_compilation *c) {
    kr_memory *m = c->memory;
    const kr_slot arenas[] = {
        {.kind = KR_SLOT_ACTIVATION, .dtype = KR_U8, .shape = KR_SHAPE((int64_t)c->stats.peak), .bytes = c->stats.peak},
        {.kind = KR_SLOT_GRADIENT, .dtype = KR_U8, .shape = KR_SHAPE((int64_t)c->stats.slot_bytes[KR_SLOT_GRADIENT]),
         .bytes = c->stats.slot_bytes[KR_SLOT_GRADIENT]}};
    const int activation = kr_plan_add_slot(c->plan, &arenas[0]);
    const int gradient = arenas[1].bytes ? kr_plan_add_slot(c->plan, &arenas[1]) : -1;
    KR_FAIL_IF(activation < 0 || (gradient < 0 && arenas[1].bytes), KR_NO_MEMORY, "%s", kr_status_message());
    for (int i = 0; i < m->count; i++)
        if (m->buffers[i].kind == KR_SLOT_ACTIVATION) m->buffers[i].slot = activation;
        else if (m->buffers[i].kind == KR_SLOT_GRADIENT) m->buffers[i].slot = gradient;
    for (int i = 0; i < kr_graph_nodes(c->g); i++) {
        const kr_node *n = kr_graph_node(c->g, i);
        if (!kr_node_source(n)) continue;
        const int b = m->of_value[n->out[0].id];
        const kr_slot slot = slot_of_source(c->g, n, m->buffers[b].kind);
        KR_TRY(add_slot(c, &slot, b));
    }
    for (int i = 0; i < kr_graph_outputs(c->g); i++) {
        const kr_graph_output *o = kr_graph_output_at(c->g, i);
        kr_slot slot = {.kind = KR_SLOT_IO, .name = o->name, .is_output = true, .dtype = kr_value_dtype(c->g, o->value),
                        .shape = kr_value_shape(c->g, o->value)};
        slot.bytes = kr_tensor_bytes(slot.dtype, &slot.shape);
        KR_TRY(add_slot(c, &slot, m->of_value[o->value.id]));
    }
    return KR_OK;
}

static kr_operand operand(const kr_compilation *c, kr_value v) {
    kr_operand o = {.slot = -1, .dtype = kr_value_dtype(c->g, v), .shape = kr_value_shape(c->g, v)};
    if (!v.id) return o;
    const kr_placement *p = &c->placements[v.id];
    const int b = c->memory->of_value[p->root];
    if (b < 0) return o; // an output that nobody reads
    const kr_buffer *buffer = &c->memory->buffers[b];
    o.slot = buffer->slot;
    o.offset = buffer->offset;
    if (kr_shape_count(&o.shape))
        o.offset += (size_t)p->layout.offset * kr_dtype_size(o.dtype); // else: no element, no place
    memcpy(o.stride, p->layout.stride, sizeof o.stride);
    return o;
}

/// What the op says of its work: cost and rounds.
static kr_status measure(kr_compilation *c, const kr_node *n, const kr_impl *impl, const kr_operand *in,
                         const kr_operand *out, kr_step *step) {
    kr_shape *shapes = malloc((size_t)(n->inputs + n->outputs + 1) * sizeof *shapes);
    KR_FAIL_IF(!shapes, KR_NO_MEMORY, "lower: no memory for a step of %d operands", n->inputs + n->outputs);
    for (int i = 0; i < n->inputs; i++) shapes[i] = in[i].shape;
    for (int i = 0; i < n->outputs; i++) {
        shapes[n->inputs + i] = out[i].shape;
        if (out[i].slot < 0) shapes[n->inputs + i].rank = -1; // nobody reads it
    }
    step->rounds = impl->rounds ? impl->rounds(&n->attrs, shapes, shapes + n->inputs, n->inputs) : 1;
    kr_node_cost(c->g, n, shapes, shapes + n->inputs, &step->flops, &step->bytes);
    c->stats.flops += step->flops;
    c->stats.bytes += step->bytes;
    free(shapes);
    return KR_OK;
}

/// A join whose pieces are all written in place has nothing left to do.
static bool nothing_to_do(const kr_compilation *c, const kr_node *n) {
    if (!(n->op->flags & KR_OP_JOIN)) return false;
    const kr_placement *whole = &c->placements[n->out[0].id];
    const int axis = (int)n->attrs.i[0];
    int64_t at = 0;
    for (int i = 0; i < n->inputs; i++) {
        const kr_placement *piece = &c->placements[n->in[i].id];
        if (piece->root != whole->root ||
            piece->layout.offset != whole->layout.offset + at * whole->layout.stride[axis])
            return false;
        at += piece->layout.shape.dim[axis];
    }
    return true;
}

static kr_status add_step(kr_compilation *c, int index) {
    const kr_node *n = kr_graph_node(c->g, index);
    if ((n->op->flags & (KR_OP_VIEW | KR_OP_SOURCE)) || nothing_to_do(c, n)) return KR_OK;
    const kr_impl *impl = NULL;
    const kr_status found = kr_target_impl(c->options->target, n->op, &impl);
    if (found) return kr_status_prefix(found, "node %d, scope %s", index, n->scope && n->scope[0] ? n->scope : "-");
    kr_operand *operands = calloc((size_t)(n->inputs + n->outputs + 1), sizeof *operands);
    KR_FAIL_IF(!operands, KR_NO_MEMORY, "lower: no memory for a step of %d operands", n->inputs + n->outputs);
    kr_operand *in = operands, *out = operands + n->inputs;
    for (int i = 0; i < n->inputs; i++) in[i] = operand(c, n->in[i]);
    for (int i = 0; i < n->outputs; i++) out[i] = operand(c, n->out[i]);
    kr_step step = {.op = n->op->name, .scope = n->scope, .node = index, .kernels = impl->kernels,
                    .stages = impl->stages, .inputs = n->inputs, .outputs = n->outputs, .in = in, .out = out,
                    .work = {.slot = -1}, .attrs = n->attrs};
    const int w = c->memory->work[index];
    if (w >= 0) {
        const kr_buffer *b = &c->memory->buffers[w];
        step.work = (kr_operand){
            .slot = b->slot, .offset = b->offset, .dtype = KR_U8, .shape = KR_SHAPE((int64_t)b->bytes), .stride = {1}};
    }
    kr_status status = measure(c, n, impl, in, out, &step);
    if (!status) status = kr_plan_add_step(c->plan, &step);
    free(operands);
    return status;
}

kr_status kr_pass_lower(kr_compilation *c) {
    KR_TRY(kr_plan_new(c->options->target->name, &c->plan));
    KR_TRY(make_slots(c));
    for (int i = 0; i < kr_graph_nodes(c->g); i++) {
        const kr_node *n = kr_graph_node(c->g, i);
        KR_TRY(add_step(c, i));
        if (kr_node_source(n) != KR_SOURCE_PARAM) continue;
        c->stats.params++;
        c->stats.param_elements += kr_value_count(c->g, n->out[0]);
    }
    c->stats.nodes = kr_graph_nodes(c->g);
    c->stats.steps = kr_plan_steps(c->plan);
    KR_TRY(kr_plan_finish(c->plan));
    for (int i = 0; i < c->stats.steps; i++) {
        const kr_step *s = kr_plan_step(c->plan, i);
        c->stats.barriers += s->barrier + s->stages - 1;
    }
    return KR_OK;
}
