/// Offsets for buffers with known life spans (offline dynamic storage allocation). Greedy: visit the buffers in
/// some order of importance and put each into the tightest gap between those already placed that are alive with it.
/// Several orders are tried and the best kept; on training graphs the first usually meets the lower bound.
///   source Pisarchyk & Lee 2020, "Efficient Memory Management for Deep Neural Net Inference", arXiv:2001.03288
#include "compiler/compiler.h"
#include "compiler/memory/occupancy.h"

#include <stdlib.h>

enum { ORDERS = 5 };

static size_t round_up(size_t bytes, size_t align) { return (bytes + align - 1) / align * align; }

// Steps -----------------------------------------------------------------------------------------------------------

/// Steps in which some item begins, ascending. Items that are alive together are so in one of these, so nothing happens
/// between them.
typedef struct beginnings {
    int *step;
    int count;
} beginnings;

static int ascending(const void *a, const void *b) {
    const int x = *(const int *)a, y = *(const int *)b;
    return (x > y) - (x < y);
}

static bool find_beginnings(const kr_arena_item *items, size_t count, beginnings *out) {
    *out = (beginnings){.step = malloc((count + 1) * sizeof *out->step)};
    if (!out->step) return false;
    for (size_t i = 0; i < count; i++) out->step[i] = items[i].first;
    qsort(out->step, count, sizeof *out->step, ascending);
    for (size_t i = 0; i < count; i++)
        if (!i || out->step[i] != out->step[out->count - 1]) out->step[out->count++] = out->step[i];
    return true;
}

/// How many of them come before `step`, or in it.
static int until(const beginnings *b, int step) {
    int low = 0, high = b->count;
    while (low < high) {
        const int middle = low + (high - low) / 2;
        if (b->step[middle] <= step) low = middle + 1;
        else high = middle;
    }
    return low;
}

/// The item's life, in numbers of beginnings.
static int first_of(const beginnings *b, const kr_arena_item *i) { return until(b, i->first) - 1; }
static int last_of(const beginnings *b, const kr_arena_item *i) { return until(b, i->last) - 1; }

size_t kr_arena_bound(const kr_arena_item *items, size_t count, size_t align) {
    beginnings b;
    int64_t live = 0, most = 0, *change = calloc(count + 2, sizeof *change);
    if (find_beginnings(items, count, &b) && change) {
        for (size_t i = 0; i < count; i++) {
            change[first_of(&b, &items[i])] += (int64_t)round_up(items[i].size, align);
            change[last_of(&b, &items[i]) + 1] -= (int64_t)round_up(items[i].size, align);
        }
        for (int t = 0; t < b.count; t++) {
            live += change[t];
            most = live > most ? live : most;
        }
    }
    free(b.step);
    free(change);
    return (size_t)most;
}

// Packing ---------------------------------------------------------------------------------------------------------

typedef struct entry {
    double key;
    size_t index;
} entry;

static int by_key(const void *a, const void *b) {
    const entry *x = a, *y = b;
    if (x->key != y->key) return x->key > y->key ? -1 : 1;
    return x->index < y->index ? -1 : x->index > y->index;
}

/// Importance under order k: bytes; bytes times life; life; first step, earliest first; last step, latest first.
static double importance(const kr_arena_item *b, int k) {
    const double size = (double)b->size, life = b->last - b->first + 1.0;
    switch (k) {
    case 0: return size;
    case 1: return size * life;
    case 2: return life * 1e15 + size;
    case 3: return -(double)b->first * 1e15 + size;
    default: return (double)b->last * 1e15 + size;
    }
}

/// The tightest gap between what is taken that holds `size`, the lowest of several; else the end.
static size_t best_offset(const kr_extents *taken, size_t size) {
    size_t best = SIZE_MAX, best_gap = SIZE_MAX, end = 0;
    for (int k = 0; k < taken->count; k++) {
        const size_t gap = taken->list[k].low - end;
        if (gap >= size && gap < best_gap) {
            best_gap = gap;
            best = end;
        }
        end = taken->list[k].high;
    }
    return best != SIZE_MAX ? best : end;
}

/// Packs in the given order. False: no memory.
static bool pack_in_order(const kr_arena_item *items, const entry *order, size_t count, size_t align,
                          const beginnings *steps, size_t *offsets, size_t *peak) {
    kr_occupancy occupied;
    kr_extents taken = {0};
    bool room = kr_occupancy_make(&occupied, steps->count);
    *peak = 0;
    for (size_t i = 0; i < count && room; i++) {
        const kr_arena_item *b = &items[order[i].index];
        const size_t size = round_up(b->size, align);
        size_t *offset = &offsets[order[i].index];
        *offset = 0;
        if (!size) continue;
        const int first = first_of(steps, b), last = last_of(steps, b);
        room = kr_occupancy_find(&occupied, first, last, &taken);
        if (!room) break;
        *offset = best_offset(&taken, size);
        *peak = *offset + size > *peak ? *offset + size : *peak;
        room = kr_occupancy_take(&occupied, first, last, (kr_extent){*offset, *offset + size});
    }
    free(taken.list);
    kr_occupancy_free(&occupied);
    return room;
}

kr_status kr_arena_pack(kr_arena_item *items, size_t count, size_t align, size_t *peak) {
    *peak = 0;
    for (size_t i = 0; i < count; i++)
        KR_FAIL_IF(items[i].first < 0 || items[i].last < items[i].first, KR_BAD_ARGUMENT,
                   "arena: item %zu lives from %d to %d", i, items[i].first, items[i].last);
    beginnings steps;
    entry *order = malloc((count + 1) * sizeof *order);
    size_t *offsets = malloc((count + 1) * sizeof *offsets);
    bool room = find_beginnings(items, count, &steps) && order && offsets;
    const size_t bound = kr_arena_bound(items, count, align);
    size_t best = SIZE_MAX;
    for (int k = 0; k < ORDERS && room && count && best > bound; k++) {
        for (size_t i = 0; i < count; i++) order[i] = (entry){importance(&items[i], k), i};
        qsort(order, count, sizeof *order, by_key);
        size_t now;
        room = pack_in_order(items, order, count, align, &steps, offsets, &now);
        if (!room || now >= best) continue;
        best = now;
        for (size_t i = 0; i < count; i++) items[i].offset = offsets[i];
    }
    free(steps.step);
    free(order);
    free(offsets);
    KR_FAIL_IF(!room, KR_NO_MEMORY, "arena: no memory for %zu items", count);
    if (count) *peak = best;
    return KR_OK;
}
