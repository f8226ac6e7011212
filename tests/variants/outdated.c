#include "models/models.h"

/// A block that says it was built for a Krait of long ago.
static kr_value nothing(kr_graph *g, const kr_block_config *c, kr_value x) {
    (void)g, (void)c;
    return x;
}

static const kr_block_kind kind = {.name = "outdated", .build = nothing};
extern const kr_block_shared kr_block_export;
const kr_block_shared kr_block_export = {KR_BLOCK_ABI - 1, 8, &kind};
