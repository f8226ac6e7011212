/// Packing of buffers into an arena on random instances.
#include "compiler/compiler.h"

#include <criterion/criterion.h>
#include <stdlib.h>

enum { ALIGN = 64 };

static size_t rounded(size_t bytes) { return (bytes + ALIGN - 1) / ALIGN * ALIGN; }

/// A reproducible number in [0, below).
static size_t draw(uint64_t *counter, size_t below) {
    uint32_t word[4];
    kr_philox(42, 0, (*counter)++, word);
    return below ? word[0] % below : 0;
}

static void check_placement(const kr_arena_item *b, size_t n, size_t peak, const char *what) {
    size_t sum = 0;
    for (size_t i = 0; i < n; i++) {
        sum += rounded(b[i].size);
        cr_assert_eq(b[i].offset % ALIGN, 0, "%s: item %zu is at %zu", what, i, b[i].offset);
        cr_assert_leq(b[i].offset + b[i].size, peak, "%s: item %zu ends beyond the peak", what, i);
        for (size_t j = 0; j < i; j++) {
            const bool together = b[i].first <= b[j].last && b[j].first <= b[i].last;
            const bool apart = b[i].offset + b[i].size <= b[j].offset || b[j].offset + b[j].size <= b[i].offset;
            cr_assert(!together || apart || !b[i].size || !b[j].size, "%s: items %zu and %zu overlap", what, i, j);
        }
    }
    cr_assert_geq(peak, kr_arena_bound(b, n, ALIGN), "%s: below the bound", what);
    cr_assert_leq(peak, sum, "%s: above the sum", what);
}

Test(arena, random_instances) {
    uint64_t counter = 0;
    for (int instance = 0; instance < 300; instance++) {
        const size_t n = draw(&counter, 60), steps = 1 + draw(&counter, 40);
        kr_arena_item *b = calloc(n + 1, sizeof *b), *again = calloc(n + 1, sizeof *b);
        for (size_t i = 0; i < n; i++) {
            b[i].first = (int)draw(&counter, steps);
            b[i].last = b[i].first + (int)draw(&counter, steps);
            b[i].size = draw(&counter, instance % 3 ? 5000 : 3); // sizes of 0 occur
            again[i] = b[i];
        }
        size_t peak, second;
        cr_assert_eq(kr_arena_pack(b, n, ALIGN, &peak), KR_OK);
        check_placement(b, n, peak, "random");
        cr_assert_eq(kr_arena_pack(again, n, ALIGN, &second), KR_OK);
        cr_assert_eq(peak, second);
        for (size_t i = 0; i < n; i++) cr_assert_eq(b[i].offset, again[i].offset, "placement is not deterministic");
        free(b);
        free(again);
    }
}

Test(arena, meets_the_bound_on_a_training_chain) {
    // Activations live until their backward step, as in a chain of layers: the bound is reachable.
    enum { LAYERS = 24 };
    kr_arena_item b[3 * LAYERS];
    for (int i = 0; i < LAYERS; i++) {
        b[3 * i] = (kr_arena_item){.first = i, .last = 2 * LAYERS - i, .size = 4096};
        b[3 * i + 1] = (kr_arena_item){.first = i, .last = i + 1, .size = 1000};
        b[3 * i + 2] = (kr_arena_item){.first = 2 * LAYERS - i, .last = 2 * LAYERS - i + 1, .size = 4096};
    }
    size_t peak;
    cr_assert_eq(kr_arena_pack(b, 3 * LAYERS, ALIGN, &peak), KR_OK);
    check_placement(b, 3 * LAYERS, peak, "chain");
    cr_assert_leq((double)peak, 1.02 * (double)kr_arena_bound(b, 3 * LAYERS, ALIGN));
}

Test(arena, one_alone_and_none) {
    size_t peak = 7;
    cr_assert_eq(kr_arena_pack(NULL, 0, ALIGN, &peak), KR_OK);
    cr_assert_eq(peak, 0);
    kr_arena_item b = {.first = 3, .last = 3, .size = 100};
    cr_assert_eq(kr_arena_pack(&b, 1, ALIGN, &peak), KR_OK);
    cr_assert_eq(peak, 128);
    b.last = 2;
    cr_assert_eq(kr_arena_pack(&b, 1, ALIGN, &peak), KR_BAD_ARGUMENT, "an item that dies before it is born is refused");
}
