/// How a tile program lies in the attributes of a node: shared by the op and its kernels.
///
/// A program is up to 21 elementwise instructions. Registers 0 to 7 are the node's inputs, 8 + k is the result of
/// instruction k. An instruction takes 21 bits: code, then three registers of 5 bits; three of them fill an integer
/// attribute. The last integer says what comes out. Constants of instructions that have any (affine, clamp) are pairs
/// of real attributes, in the order of the instructions.
#ifndef KRAIT_OPS_FUSED_FUSED_H
#define KRAIT_OPS_FUSED_FUSED_H

#include "runtime/kernel.h"

enum {
    KR_FUSED_INPUTS = 8, KR_FUSED_LENGTH = 21, KR_FUSED_OUTPUTS = 3, KR_FUSED_REALS = 3,
    KR_FUSED_REGISTERS = KR_FUSED_INPUTS + KR_FUSED_LENGTH
};

/// Codes of instructions, in the order of map.def. 0 is none.
enum {
    KR_CODE_NONE,
#define MAP(name, arity, reals, flags, value) KR_CODE_##name,
#define MAP_F(name, kept, value, derivative) KR_CODE_##name, KR_CODE_##name##_grad,
#define MAP_G(name, arity, reals, value) KR_CODE_##name,
#include "ops/elementwise/map.def"
    KR_CODES
};

typedef struct kr_fused_instruction {
    int code, arity;
    uint8_t in[3];
    float a, b;
} kr_fused_instruction;

/// Outputs are registers of results; with `sums` the node's first output is the sum of register `summed` over axes
/// [axis, axis + axes), and the `outputs` follow it.
typedef struct kr_tile {
    int length, outputs, sums, summed, axis, axes;
    int out[KR_FUSED_OUTPUTS];
    kr_fused_instruction code[KR_FUSED_LENGTH];
} kr_tile;

enum {
    KR_FUSED_HEAD = KR_ATTR_INTEGERS - 1, KR_FUSED_CODE_BITS = 6, KR_FUSED_REGISTER_BITS = 5,
    KR_FUSED_BITS = KR_FUSED_CODE_BITS + 3 * KR_FUSED_REGISTER_BITS, KR_FUSED_EACH = 3
};

/// Operands and constants of a code: 16 when it has constants, plus the number of operands.
static inline int kr_fused_form(int code) {
    enum { NO_REALS = 0, SCALE_SHIFT = 16, LO_HI = 16 };
    static const uint8_t form[KR_CODES] = {
        0,
#define MAP(name, arity, reals, flags, value) (arity) + (reals),
#define MAP_F(name, kept, value, derivative) 1, 2,
#define MAP_G(name, arity, reals, value) (arity) + (reals),
#include "ops/elementwise/map.def"
    };
    return code > 0 && code < KR_CODES ? form[code] : 0;
}

/// Takes `bits` bits off the low end.
static inline int kr_fused_take(uint64_t *from, int bits) {
    const int value = (int)(*from & ((1u << bits) - 1));
    *from >>= bits;
    return value;
}

/// The program of a node's attributes. What it holds is checked by the shape rule, not here.
static inline void kr_fused_unpack(const kr_attrs *attrs, kr_tile *p) {
    uint64_t head = (uint64_t)attrs->i[KR_FUSED_HEAD];
    int reals = 0;
    p->length = kr_fused_take(&head, 5);
    p->outputs = kr_fused_take(&head, 2);
    for (int k = 0; k < KR_FUSED_OUTPUTS; k++) p->out[k] = kr_fused_take(&head, KR_FUSED_REGISTER_BITS);
    p->sums = kr_fused_take(&head, 1);
    p->summed = kr_fused_take(&head, KR_FUSED_REGISTER_BITS);
    p->axis = kr_fused_take(&head, 3);
    p->axes = kr_fused_take(&head, 3);
    if (p->length > KR_FUSED_LENGTH) p->length = KR_FUSED_LENGTH;
    for (int k = 0; k < p->length; k++) {
        uint64_t word = (uint64_t)attrs->i[k / KR_FUSED_EACH] >> (k % KR_FUSED_EACH * KR_FUSED_BITS);
        kr_fused_instruction *c = &p->code[k];
        c->code = kr_fused_take(&word, KR_FUSED_CODE_BITS);
        for (int j = 0; j < 3; j++) c->in[j] = (uint8_t)kr_fused_take(&word, KR_FUSED_REGISTER_BITS);
        const int form = kr_fused_form(c->code);
        c->arity = form & 15;
        c->a = c->b = 0;
        if (form >> 4 && reals < KR_FUSED_REALS) {
            c->a = (float)attrs->r[2 * reals];
            c->b = (float)attrs->r[2 * reals + 1];
            reals++;
        }
    }
}

#endif
