/// Offsets for buffers with known life spans (offline dynamic storage allocation). Greedy: visit the buffers in
/// some order of importance and put each into the tightest gap between those already placed that are alive with it.
/// Several orders are tried and the best kept; on training graphs the first usually meets the lower bound.
///   source Pisarchyk & Lee 2020, "Efficient Memory Management for Deep Neural Net Inference", arXiv:2001.03288
#include "compiler/compiler.h"

#include <stdlib.h>
#include <string.h>

static size_t round_up(size_t bytes, size_t align) { return (bytes + align - 1) / align * align; }

size_t kr_arena_bound(const kr_arena_item *items, size_t count, size_t align) {
    int last = 0;
    for (size_t i = 0; i < count; i++) last = items[i].last > last ? items[i].last : last;
    int64_t *change = calloc((size_t)last + 2, sizeof *change), live = 0, most = 0;
    if (!change) return 0;
    for (size_t i = 0; i < count; i++) {
        change[items[i].first] += (int64_t)round_up(items[i].size, align);
        change[items[i].last + 1] -= (int64_t)round_up(items[i].size, align);
    }
    for (int t = 0; t <= last; t++) {
        live += change[t];
        most = live > most ? live : most;
    }
    free(change);
    return (size_t)most;
}

typedef struct entry {
    double key;
    size_t index;
} entry;

static int by_key(const void *a, const void *b) {
    const entry *x = a, *y = b;
    if (x->key != y->key) return x->key > y->key ? -1 : 1;
    return x->index < y->index ? -1 : x->index > y->index;
}

/// Importance under order k: bytes; bytes times life; life; bytes, earlier first; first step.
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

/// Places in the given order; `placed` keeps indices sorted by offset.
static size_t pack_in_order(const kr_arena_item *items, const entry *order, size_t count, size_t align, size_t *offsets,
                             size_t *placed) {
    size_t peak = 0, done = 0;
    for (size_t i = 0; i < count; i++) {
        const kr_arena_item *b = &items[order[i].index];
        const size_t size = round_up(b->size, align);
        size_t best = SIZE_MAX, best_gap = SIZE_MAX, end = 0;
        for (size_t k = 0; k < done && size; k++) {
            const kr_arena_item *other = &items[placed[k]];
            if (other->last < b->first || other->first > b->last) continue;
            const size_t at = offsets[placed[k]];
            if (at > end && at - end >= size && at - end < best_gap) {
                best_gap = at - end;
                best = end;
            }
            const size_t after = at + round_up(other->size, align);
            end = after > end ? after : end;
        }
        const size_t offset = best != SIZE_MAX ? best : size ? end : 0;
        offsets[order[i].index] = offset;
        peak = offset + size > peak ? offset + size : peak;
        size_t k = done++;
        for (; k && offsets[placed[k - 1]] > offset; k--) placed[k] = placed[k - 1];
        placed[k] = order[i].index;
    }
    return peak;
}

kr_status kr_arena_pack(kr_arena_item *items, size_t count, size_t align, size_t *peak) {
    *peak = 0;
    if (!count) return KR_OK;
    for (size_t i = 0; i < count; i++)
        KR_FAIL_IF(items[i].first < 0 || items[i].last < items[i].first, KR_BAD_ARGUMENT,
                   "arena: item %zu lives from %d to %d", i, items[i].first, items[i].last);
    entry *order = malloc(count * sizeof *order);
    size_t *offsets = malloc(count * sizeof *offsets), *placed = malloc(count * sizeof *placed);
    kr_status status = KR_OK;
    if (!order || !offsets || !placed)
        status = kr_status_record(KR_NO_MEMORY, __FILE__, __LINE__, "arena: no memory for %zu items", count);
    const size_t bound = kr_arena_bound(items, count, align);
    size_t best = SIZE_MAX;
    for (int k = 0; k < 5 && !status && best > bound; k++) {
        for (size_t i = 0; i < count; i++) order[i] = (entry){importance(&items[i], k), i};
        qsort(order, count, sizeof *order, by_key);
        const size_t now = pack_in_order(items, order, count, align, offsets, placed);
        if (now >= best) continue;
        best = now;
        for (size_t i = 0; i < count; i++) items[i].offset = offsets[i];
    }
    *peak = status ? 0 : best;
    free(order);
    free(offsets);
    free(placed);
    return status;
}
