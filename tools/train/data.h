/// The text that is learned: rows for training, windows for evaluation.
#ifndef KRAIT_TOOLS_TRAIN_DATA_H
#define KRAIT_TOOLS_TRAIN_DATA_H

#include "runtime/runtime.h"

/// A text as bytes; the last tenth is held out.
typedef struct kr_data kr_data;
/// Opens any file (mapped) or a .zst file (unpacked into memory). Rows have length + 1 bytes.
/// fails KR_IO; KR_BAD_FILE: broken .zst; KR_BAD_ARGUMENT: too short for this length (says how long it must be)
kr_status kr_data_open(const char *path, int64_t length, kr_data **out);
/// The same over memory that outlives the result.
kr_status kr_data_from(const void *bytes, size_t count, int64_t length, const char *label, kr_data **out);
void kr_data_close(kr_data *);
const char *kr_data_path(const kr_data *);
int64_t kr_data_train_bytes(const kr_data *);
int64_t kr_data_held_out_bytes(const kr_data *);
/// Bytes of memory that the data may take when all of it has been read.
size_t kr_data_memory(const kr_data *);
/// Identity of the content: length, a hash of it (of the ends and 64 pieces between them when it is large), and how it
/// is split into documents.
uint64_t kr_data_fingerprint(const kr_data *);
/// From now on the text is documents: each ends with `separator`. Reads all of it. To be called once.
/// fails KR_BAD_ARGUMENT: the separator stands nowhere in the text
kr_status kr_data_split(kr_data *, const char *separator);
/// Documents, pieces after the last separator included.
int64_t kr_data_documents(const kr_data *);

enum { KR_IGNORED = -100 }; ///< a target that does not count in the loss
/// Row `row` of the run (rows are counted from its start): length + 1 bytes at a random place of the training
/// part, as tokens [length] and targets [length], the same shifted by one. Depends on (seed, row) alone.
/// reset (may be null) gets 1 where a document starts, else 0; the first token of a document is nobody's target.
void kr_data_row(const kr_data *, uint64_t seed, int64_t row, int32_t *tokens, int32_t *targets, int32_t *reset);
/// The same for training that carries its state on: row r is the next piece of stream r % streams, which runs through
/// the training part from a place of its own, round and round; reset[0] is 1 where it starts over.
void kr_data_stream(const kr_data *, uint64_t seed, int64_t streams, int64_t row, int32_t *tokens, int32_t *targets,
                    int32_t *reset);
/// Consecutive windows of `length` bytes of the held-out part, that can be predicted in full.
int64_t kr_data_windows(const kr_data *);
/// Held-out window `index`; past the last one all targets are ignored.
void kr_data_window(const kr_data *, int64_t index, int32_t *tokens, int32_t *targets, int32_t *reset);

#endif
