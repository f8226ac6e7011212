/// The precision of a whole graph: before any pass, every op that has an attribute of that name gets it. Gradients take
/// over the attribute of the product they belong to.
#include "compiler/pass.h"

#include <string.h>

kr_status kr_precision_set(const kr_target *target, kr_graph *g, kr_precision precision) {
    if (precision == KR_PRECISION_F32) return KR_OK; // a graph may have products that are chosen one by one
    KR_FAIL_IF((unsigned)precision > KR_PRECISION_BF16_EMULATED, KR_BAD_ARGUMENT, "precision: unknown value %d",
               (int)precision);
    if (precision == KR_PRECISION_BF16) KR_TRY(target->multiplies_bf16(target));
    for (int i = 0; i < kr_graph_nodes(g); i++) {
        kr_node *n = kr_graph_node(g, i);
        for (int k = 0; k < KR_ATTR_INTEGERS && n->op->attr.i[k]; k++)
            if (!strcmp(n->op->attr.i[k], "precision")) n->attrs.i[k] = precision;
    }
    return KR_OK;
}
