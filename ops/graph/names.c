/// Sources and outputs by name. Models of a thousand layers have ten thousand parameters, and each is looked up when it
/// is asked for, so the names stand in a hash table: open addressing, entries are never taken out. One whose node died,
/// or whose output was cleared, counts as absent and is written over when the name comes back.
#include "ops/graph/internal.h"

#include <stdlib.h>
#include <string.h>

struct kr_name {
    const char *text;  ///< null: a free entry
    const kr_op *op;   ///< which kind of source; null: an output
    kr_node *node;
    int output;        ///< index
};

/// The entry of the name, or the free one where it belongs. There is always a free one.
static kr_name *entry_of(const kr_names *names, const kr_op *op, const char *text) {
    size_t k = (size_t)kr_hash(text, strlen(text)) & (names->room - 1);
    for (; names->entries[k].text; k = (k + 1) & (names->room - 1))
        if (names->entries[k].op == op && !strcmp(names->entries[k].text, text)) break;
    return &names->entries[k];
}

static bool enter(kr_names *names, const kr_name *name) {
    if (2 * (names->count + 1) > names->room) {
        kr_names wider = {.room = names->room ? 2 * names->room : 256};
        wider.entries = calloc(wider.room, sizeof *wider.entries);
        if (!wider.entries) {
            kr_status_record(KR_NO_MEMORY, __FILE__, __LINE__, "graph: no memory for %zu names", wider.room);
            return false;
        }
        for (size_t k = 0; k < names->room; k++) {
            const kr_name *old = &names->entries[k];
            if (!old->text) continue;
            *entry_of(&wider, old->op, old->text) = *old;
            wider.count++;
        }
        free(names->entries);
        *names = wider;
    }
    kr_name *at = entry_of(names, name->op, name->text);
    names->count += !at->text;
    *at = *name;
    return true;
}

kr_value kr_source_find(const kr_graph *g, const kr_op *op, const char *text) {
    if (!g->names.room) return KR_NONE;
    const kr_name *found = entry_of(&g->names, op, text);
    return found->text && !found->node->dead ? found->node->out[0] : KR_NONE;
}

bool kr_source_name(kr_graph *g, kr_node *n, const char *text) {
    n->name = text;
    return enter(&g->names, &(kr_name){.text = text, .op = n->op, .node = n});
}

kr_value kr_graph_output_find(const kr_graph *g, const char *text) {
    if (!g->names.room) return KR_NONE;
    const kr_name *found = entry_of(&g->names, NULL, text);
    const bool there = found->text && found->output < g->output_count && g->outputs[found->output].name == found->text;
    return there ? g->outputs[found->output].value : KR_NONE;
}

bool kr_output_name(kr_graph *g, int index) {
    return enter(&g->names, &(kr_name){.text = g->outputs[index].name, .output = index});
}
