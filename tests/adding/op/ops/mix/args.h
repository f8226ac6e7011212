/// Operands and attributes of mix by name.
#ifndef KRAIT_OPS_MIX_ARGS_H
#define KRAIT_OPS_MIX_ARGS_H

enum { MIX_X, MIX_Y, MIX_INPUTS };
enum { MIX_Z, MIX_OUTPUTS };
enum { MIX_SHARE }; // attrs.r

#endif
