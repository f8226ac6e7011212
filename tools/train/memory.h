/// What a set of plans needs, before it is allocated, and what the process holds.
#ifndef KRAIT_TOOLS_TRAIN_MEMORY_H
#define KRAIT_TOOLS_TRAIN_MEMORY_H

#include "compiler/compiler.h"

/// What a set of plans will hold when they share a session, known before anything is allocated.
typedef struct kr_memory_need {
    size_t slot_bytes[KR_SLOT_KIND_COUNT];
    size_t arenas;     ///< their sum
    size_t data;       ///< text in memory
    size_t process;    ///< program, libraries and graphs: resident now
    size_t threads;    ///< stacks and the buffers that OpenBLAS keeps for each thread
    size_t saving;     ///< buffers while a checkpoint is written
    size_t total;      ///< expected resident memory of the process
} kr_memory_need;
kr_memory_need kr_memory_estimate(kr_plan *const *plans, int count, int threads, size_t data);
void kr_memory_print(const kr_memory_need *, const kr_plan_stats *, FILE *);
/// The curve of memory against time, as a table with a mark at the choice; `besides`: bytes beside the arenas that
/// count too.
void kr_memory_curve_print(const kr_memory_curve *, size_t besides, FILE *);
/// The same as a JSON array of objects.
void kr_memory_curve_json(const kr_memory_curve *, size_t besides, FILE *);
/// Where nothing fits: says what would. Gives KR_BAD_ARGUMENT.
kr_status kr_memory_refuse(const kr_memory_curve *, int64_t wanted, size_t besides);
/// Resident memory of this process now, and its highest so far; 0 where the system does not say.
size_t kr_memory_resident(void);
size_t kr_memory_highest(void);
/// Memory that the machine could still give; 0 where the system does not say.
size_t kr_memory_available(void);

#endif
