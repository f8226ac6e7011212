/// A segment tree in time whose nodes hold unions of addresses. A life span is made of at most two nodes a level, so
/// taking and finding cost the logarithm of the number of steps, times the ranges of a union. These are few where
/// buffers lie close together, which is what a planner makes of them: neighbours that touch are one range. Comparing
/// every buffer with every other one instead takes as long for a few layers, and ever longer for more.
#include "compiler/memory/occupancy.h"

#include <stdlib.h>
#include <string.h>

/// Adds a range to a union.
static bool unite(kr_extents *r, kr_extent added) {
    int from = 0, to = r->count; // the first range that ends at added.low or after
    while (from < to) {
        const int middle = from + (to - from) / 2;
        if (r->list[middle].high < added.low) from = middle + 1;
        else to = middle;
    }
    for (; to < r->count && r->list[to].low <= added.high; to++) { // up to `to` they touch it
        if (r->list[to].low < added.low) added.low = r->list[to].low;
        if (r->list[to].high > added.high) added.high = r->list[to].high;
    }
    if (from == to && r->count == r->room) {
        const int room = r->room ? 2 * r->room : 4;
        kr_extent *larger = realloc(r->list, (size_t)room * sizeof *larger);
        if (!larger) return false;
        r->list = larger;
        r->room = room;
    }
    memmove(r->list + from + 1, r->list + to, (size_t)(r->count - to) * sizeof *r->list);
    r->list[from] = added;
    r->count += 1 - (to - from);
    return true;
}

bool kr_occupancy_make(kr_occupancy *o, int steps) {
    *o = (kr_occupancy){.leaves = 1};
    while (o->leaves < steps) o->leaves *= 2;
    o->whole = calloc(2 * (size_t)o->leaves, sizeof *o->whole);
    o->some = calloc(2 * (size_t)o->leaves, sizeof *o->some);
    return o->whole && o->some;
}

void kr_occupancy_free(kr_occupancy *o) {
    for (int k = 0; k < 2 * o->leaves; k++) {
        if (o->whole) free(o->whole[k].list);
        if (o->some) free(o->some[k].list);
    }
    free(o->whole);
    free(o->some);
}

/// The span of steps in hand, and the node under way with its own.
typedef struct visit {
    int first, last, node, begin, end;
} visit;

static visit half(const visit *v, bool right) {
    const int middle = v->begin + (v->end - v->begin) / 2;
    return (visit){v->first, v->last, 2 * v->node + right, right ? middle + 1 : v->begin, right ? v->end : middle};
}

static bool apart(const visit *v) { return v->last < v->begin || v->first > v->end; }
static bool covers(const visit *v) { return v->first <= v->begin && v->end <= v->last; }

static bool take(kr_occupancy *o, visit v, kr_extent range) {
    if (apart(&v)) return true;
    if (!unite(&o->some[v.node], range)) return false;
    if (covers(&v)) return unite(&o->whole[v.node], range);
    return take(o, half(&v, false), range) && take(o, half(&v, true), range);
}

bool kr_occupancy_take(kr_occupancy *o, int first, int last, kr_extent range) {
    return take(o, (visit){first, last, 1, 0, o->leaves - 1}, range);
}

static bool find(const kr_occupancy *o, visit v, kr_extents *out) {
    if (apart(&v)) return true;
    const kr_extents *here = covers(&v) ? &o->some[v.node] : &o->whole[v.node];
    for (int k = 0; k < here->count; k++)
        if (!unite(out, here->list[k])) return false;
    return covers(&v) || (find(o, half(&v, false), out) && find(o, half(&v, true), out));
}

bool kr_occupancy_find(const kr_occupancy *o, int first, int last, kr_extents *out) {
    out->count = 0;
    return find(o, (visit){first, last, 1, 0, o->leaves - 1}, out);
}
