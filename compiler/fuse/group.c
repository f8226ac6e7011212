/// Groups of nodes that may become one: who reads their values, and whether it pays (fuse.c says by what rule).
#include "compiler/fuse/fuse.h"

bool kr_group_has(const kr_group *s, int node) {
    for (int k = 0; k < s->count; k++)
        if (s->member[k] == node) return true;
    return false;
}

/// Who reads a value of a group that runs at `place`. The look ends as soon as the answers are known, because a value
/// may have a reader in every layer.
typedef struct outside {
    const kr_group *group;
    int place;
    int first, last; ///< readers: the least of those outside that were met, and the last if there is none outside
    bool through_view;  ///< a member reads it through a view, which a program cannot
} outside;

static bool note_reader(void *context, int reader, bool direct) {
    outside *o = context;
    if (reader > o->last) o->last = reader;
    const bool member = kr_group_has(o->group, reader);
    if (!member) o->first = reader < o->first ? reader : o->first;
    else o->through_view |= !direct && reader != o->group->ending;
    const bool rest_is_outside = direct && reader > o->place; // readers ascend, and no member comes after the place
    return !rest_is_outside && o->first >= o->place;
}

/// Is a view of it kept? A view that is kept needs what it looks at.
static bool kept(const kr_fusion *r, kr_value v) {
    if (r->uses.pinned[v.id]) return true;
    for (int k = r->uses.at[v.id]; k < r->uses.at[v.id + 1]; k++) {
        const kr_node *n = kr_graph_node(r->g, r->uses.list[k]);
        if ((n->op->flags & KR_OP_VIEW) && kept(r, n->out[0])) return true;
    }
    return false;
}

bool kr_group_puts_out(const kr_fusion *r, const kr_group *s, kr_value v) {
    outside o = {.group = s, .place = r->uses.nodes, .first = r->uses.nodes, .last = -1}; // any reader outside will do
    kr_uses_each(&r->uses, v, note_reader, &o);
    return o.first < r->uses.nodes || kept(r, v);
}

/// Do heavy nodes run between the two places that are no members? Elementwise ones may yet join, and their values
/// vanish.
static bool others_between(const kr_fusion *r, const kr_group *s, int from, int to) {
    if (!kr_work_between(r->heavy, from, to)) return false;
    int others = r->heavy[to - 1] - r->heavy[from];
    for (int k = 0; k < s->count; k++) others -= !r->fusable[s->member[k]] && s->member[k] > from && s->member[k] < to;
    return others > 0;
}

bool kr_group_may_form(const kr_fusion *r, const kr_group *s) {
    const int place = s->member[s->count - 1];
    size_t longer = 0, gone = 0;
    uint32_t counted[4 * (KR_PROGRAM_LENGTH + 1)];
    int roots = 0;
    for (int k = 0; k < s->count; k++) {
        const kr_node *n = kr_graph_node(r->g, s->member[k]);
        for (int j = 0; j < n->outputs; j++) {
            outside o = {.group = s, .place = place, .first = r->uses.nodes, .last = -1};
            kr_uses_each(&r->uses, n->out[j], note_reader, &o);
            if (o.through_view || o.first < place) return false;
            if (o.first == r->uses.nodes && !kept(r, n->out[j]) && others_between(r, s, s->member[k], o.last))
                gone += kr_value_bytes(r->g, n->out[j]);
        }
        for (int j = 0; j < n->inputs; j++) {
            const uint32_t root = r->uses.root[n->in[j].id];
            if (!n->in[j].id || r->last[root] >= place || kr_group_has(s, r->uses.node[root])) continue;
            bool known = false;
            for (int i = 0; i < roots && !known; i++) known = counted[i] == root;
            if (known || !others_between(r, s, r->last[root], place)) continue;
            if (roots < (int)(sizeof counted / sizeof *counted)) counted[roots++] = root;
            longer += kr_value_bytes(r->g, (kr_value){root});
        }
    }
    return longer <= gone + r->slack;
}
