/// The precision of a whole graph: before any pass, every op that has an attribute of that name gets it. Gradients take
/// over the attribute of the product they belong to.
#include "compiler/pass.h"
#include "runtime/cpu/bf16.h"

#include <string.h>

kr_status kr_precision_set(kr_graph *g, kr_precision precision) {
    if (precision == KR_PRECISION_F32) return KR_OK; // a graph may have products that are chosen one by one
    KR_FAIL_IF((unsigned)precision > KR_PRECISION_BF16_EMULATED, KR_BAD_ARGUMENT, "precision: unknown value %d",
               (int)precision);
    KR_FAIL_IF(
        precision == KR_PRECISION_BF16 && kr_bf16_best() == KR_BF16_EMULATED, KR_UNSUPPORTED,
        "precision bf16 needs AMX or AVX512_BF16, and this process has neither (best instruction set level: %s): "
        "take f32, or bf16-emulated, which rounds alike but is slower than f32",
        kr_isa_name(kr_isa_best()));
    for (int i = 0; i < kr_graph_nodes(g); i++) {
        kr_node *n = kr_graph_node(g, i);
        for (int k = 0; k < KR_ATTR_INTEGERS && n->op->attr.i[k]; k++)
            if (!strcmp(n->op->attr.i[k], "precision")) n->attrs.i[k] = precision;
    }
    return KR_OK;
}
