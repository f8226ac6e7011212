/// What an op takes and gives, declared: every operand has a name and its shapes in a small language, and one unifier
/// checks shapes and dtypes, derives those of the outputs, and says what is wrong.
///
///   x    "B L H*P"      an axis each; letters stand for lengths and mean the same everywhere in a signature
///   dt   "B L H"        a word that starts in lower case is an integer attribute of the op: "B L groups*N"
///   h    "B W-1 C"      products may have a number added or taken away; numbers may stand anywhere
///   y    "... D"        any number of leading axes, the same everywhere; "...? D": those, or none at all
///   D    "H | H*P"      alternatives
///   b    "transposed ? N K : K N"     one or the other, as the attribute is not zero or zero; either side may be
/// "absent"
///   any  "any"          a shape of which nothing is known (inputs only)
///   dx   "@x"           the shape of that input, [0] where it is absent (outputs only)
///
/// A product is solved for its one unknown letter by division. An operand whose letters are not known yet waits for
/// those
/// behind it, so the order of operands does not matter to what is accepted; it decides which operand an error names.
/// Alternatives of one rank wait until everything else is known. A factor of nothing (0 = 0*P) that no operand says is
/// 0.
#ifndef KRAIT_OPS_GRAPH_SIGNATURE_H
#define KRAIT_OPS_GRAPH_SIGNATURE_H

#include "ops/ops.h"

/// For rules: `least` or more; from `least` to `most`; 0 or 1.
#define KR_AT_LEAST(low) \
    { true, (low), __builtin_inf() }
#define KR_BETWEEN(low, high) \
    { true, (low), (high) }
#define KR_YES_OR_NO \
    { true, 0, 1 }

/// The length that a letter stands for, to be asked in an op's `check`, when all inputs are known to fit; -1 where no
/// operand says.
int64_t kr_letter(const kr_letters *, const char *name);
/// Says what a letter of the outputs stands for. Where an input has said it, that must be the same.
kr_status kr_letter_let(kr_letters *, const char *name, int64_t value);

#endif
