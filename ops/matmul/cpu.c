/// y = act(op(a) op(b) + bias) or op(a) op(b) + bias + residual, five ways, chosen by shape, build and machine:
///   a few rows (decode)  b streams through once: dot products along K, or sums of rows of b
///   AVX2 and AVX-512     tiles in registers (ops/cpu/tile.h); every thread packs and multiplies a share of its own
///   with AMX             operands in three parts of bf16 (ops/cpu/tile_split.h), where the product is large enough
///   rounded to bf16      tiles of pairs (ops/cpu/tile_bf16.h), for any number of rows
///   the base build       OpenBLAS, single-threaded, on blocks of the result, which uses what the machine has
/// The bits of tiles do not depend on how a product is shared out; blocks for OpenBLAS are cut by the shape only. So
/// every number of threads computes the same bits.
#include "ops/cpu/tile_split.h"
#include "ops/matmul/args.h"

#include <cblas.h>

enum { F32, BF16, BF16_AS_F32 }; // precisions
enum { NONE, SILU, RELU, GELU, SIGMOID, SOFTPLUS };
enum {
    FEW = 8,         // rows, where b is read along K
    GROUP_ROWS = 4,  // as many of them at a time; no more where b is read across
    TOGETHER = 2,    // rows of b at a time: a line of each, in the order in which they lie
    AHEAD = 6 << 10, // floats that are prefetched before they are wanted
    COLUMNS = 64,    // of a unit in that case
    VECTORS = COLUMNS / KR_LANES,
    STEP = 4, // rows that a share of a product begins at a multiple of
#ifdef __AVX__
    USE_TILES = 1,
#else
    USE_TILES = 0, // OpenBLAS has what the machine has
#endif
};

typedef struct product {
    int64_t m, n, k, batch;
    const float *a, *b, *bias, *residual;
    float *c;
    int64_t lda, ldb, ldc, ldr;             // elements from row to row, as stored
    int64_t step_a, step_b, step_c, step_r; // elements from one entry of the batch to the next
    int ta, tb, activation, precision;
    kr_bf16_path path;
    int split; // in parts of bf16
} product;

static product describe(const kr_call *call) {
    const kr_arg *a = &call->in[MATMUL_A], *b = &call->in[MATMUL_B], *bias = &call->in[MATMUL_BIAS],
                 *residual = &call->in[MATMUL_RESIDUAL], *c = &call->out[MATMUL_Y];
    const int64_t *da = a->shape.dim + a->shape.rank - 2, *dc = c->shape.dim + c->shape.rank - 2;
    product p = {.m = dc[0],
                 .n = dc[1],
                 .batch = 1,
                 .ta = call->attrs->i[MATMUL_TRANSPOSE_A] != 0,
                 .tb = call->attrs->i[MATMUL_TRANSPOSE_B] != 0,
                 .activation = (int)call->attrs->i[MATMUL_ACTIVATION],
                 .precision = (int)call->attrs->i[MATMUL_PRECISION],
                 .path = call->attrs->i[MATMUL_PRECISION] == BF16 ? call->bf16 : KR_BF16_EMULATED};
    p.k = da[!p.ta];
    p.a = a->data, p.b = b->data, p.bias = bias->data, p.residual = residual->data, p.c = c->data;
    p.lda = kr_arg_pitch(a), p.ldb = kr_arg_pitch(b), p.ldc = kr_arg_pitch(c);
    p.ldr = p.residual ? kr_arg_pitch(residual) : 0;
    for (int axis = 0; axis + 2 < c->shape.rank; axis++) p.batch *= c->shape.dim[axis];
    const int shared = b->shape.rank == 2;
    if (shared && !p.ta) { // all leading axes are rows
        p.m *= p.batch;
        p.batch = 1;
    }
    p.split = p.precision == F32 && split_pays(p.m, p.n, p.k, call->bf16);
    p.step_a = da[0] * p.lda;
    p.step_b = shared ? 0 : b->shape.dim[b->shape.rank - 2] * p.ldb;
    p.step_c = p.m * p.ldc;
    p.step_r = p.m * p.ldr;
    return p;
}

// Epilogue --------------------------------------------------------------------------------------------------------

/// tanh form: x/2 * (1 + tanh u) = x * sigmoid(2u), u = sqrt(2/pi) * (x + 0.044715 x^3)
KR_INLINE kr_vf gelu(kr_vf x) {
    return x * kr_v_sigmoid(x * (kr_v_set(1.595769122f) + kr_v_set(0.07135481628f) * (x * x)));
}

KR_INLINE kr_vf activate(kr_vf x, int activation) {
    switch (activation) {
    case SILU: return kr_v_silu(x);
    case RELU: return kr_v_select(x < kr_v_set(0), kr_v_set(0), x); // NaN stays
    case GELU: return gelu(x);
    case SIGMOID: return kr_v_sigmoid(x);
    case SOFTPLUS: return kr_v_softplus(x);
    default: return x;
    }
}

KR_INLINE void activate_rows(float *c, int64_t rows, int64_t cols, int64_t pitch, int activation) {
    for (int64_t r = 0; r < rows; r++) {
        float *y = c + r * pitch;
        for (int64_t j = 0; j < cols; j += KR_LANES)
            kr_v_store_n(y + j, activate(kr_v_load_n(y + j, cols - j), activation), cols - j);
    }
}

static void activate_block(float *c, int64_t rows, int64_t cols, int64_t pitch, int activation) {
    switch (activation) { // one loop per activation, with the choice outside
    case SILU: activate_rows(c, rows, cols, pitch, SILU); break;
    case RELU: activate_rows(c, rows, cols, pitch, RELU); break;
    case GELU: activate_rows(c, rows, cols, pitch, GELU); break;
    case SIGMOID: activate_rows(c, rows, cols, pitch, SIGMOID); break;
    case SOFTPLUS: activate_rows(c, rows, cols, pitch, SOFTPLUS); break;
    default: break;
    }
}

/// c = residual + bias, the value that a product is added to. residual may be c itself.
static void prepare_block(const product *p, float *c, const float *residual, int64_t column, int64_t rows,
                          int64_t cols) {
    if (residual == c && !p->bias) return;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t j = 0; j < cols; j += KR_LANES) {
            kr_vf v = residual ? kr_v_load_n(residual + r * p->ldr + j, cols - j) : kr_v_set(0);
            if (p->bias) v += kr_v_load_n(p->bias + column + j, cols - j);
            kr_v_store_n(c + r * p->ldc + j, v, cols - j);
        }
}

// Few rows --------------------------------------------------------------------------------------------------------

/// What the sum of one row's columns starts from.
KR_INLINE kr_vf start(const product *p, int64_t entry, int64_t row, int64_t column, int64_t left) {
    kr_vf v = p->residual ? kr_v_load_n(p->residual + entry * p->step_r + row * p->ldr + column, left) : kr_v_set(0);
    if (p->bias) v += kr_v_load_n(p->bias + column, left);
    return v;
}

/// b is [N, K]: dot products along K of `m` rows of a with `cols` rows of b, 16 partial sums each. `next` is what
/// follows in memory, prefetched line by line (the prefetcher of the machine stops at every page), or null.
KR_INLINE void dot_columns(const product *p, const float *a, const float *b, const float *next, float *sums, int m,
                           int cols) {
    kr_vf acc[GROUP_ROWS][TOGETHER];
    for (int r = 0; r < m; r++)
        for (int j = 0; j < cols; j++) acc[r][j] = kr_v_set(0);
    int64_t k = 0;
    for (; k + KR_LANES <= p->k; k += KR_LANES) {
        for (int j = 0; next && j < cols; j++) __builtin_prefetch(next + k * cols + j * KR_LANES);
        for (int j = 0; j < cols; j++) {
            const kr_vf w = kr_v_load(b + j * p->ldb + k);
            for (int r = 0; r < m; r++) acc[r][j] += kr_v_load(a + r * p->lda + k) * w;
        }
    }
    if (k < p->k)
        for (int j = 0; j < cols; j++) {
            const kr_vf w = kr_v_load_n(b + j * p->ldb + k, p->k - k);
            for (int r = 0; r < m; r++) acc[r][j] += kr_v_load_n(a + r * p->lda + k, p->k - k) * w;
        }
    for (int r = 0; r < m; r++)
        for (int j = 0; j < cols; j++) sums[r * COLUMNS + j] = kr_v_sum(acc[r][j]);
}

KR_INLINE void dot_rows(const product *p, const float *a, const float *b, const float *next, float *sums, int64_t m,
                        int cols) {
    switch (m) {
    case 1: dot_columns(p, a, b, next, sums, 1, cols); break;
    case 2: dot_columns(p, a, b, next, sums, 2, cols); break;
    case 3: dot_columns(p, a, b, next, sums, 3, cols); break;
    default: dot_columns(p, a, b, next, sums, GROUP_ROWS, cols); break;
    }
}

static void dot_unit(const product *p, int64_t entry, int64_t column) {
    const float *a = p->a + entry * p->step_a, *b = p->b + entry * p->step_b + column * p->ldb;
    const int64_t cols = p->n - column < COLUMNS ? p->n - column : COLUMNS;
    const int64_t rest = (p->n - column) * p->k; // behind b, where its rows are not apart
    float sums[FEW * COLUMNS] = {0};
    for (int64_t j = 0; j < cols;) {
        const int together = cols - j >= TOGETHER ? TOGETHER : 1;
        const float *row = b + j * p->ldb;
        const int ahead = p->ldb == p->k && (j + TOGETHER) * p->k + AHEAD <= rest;
        for (int64_t r = 0; r < p->m; r += GROUP_ROWS) { // the second time b comes from the first cache
            const float *next = ahead && !r ? row + AHEAD : 0, *rows = a + r * p->lda;
            if (together == TOGETHER) dot_rows(p, rows, row, next, sums + r * COLUMNS + j, p->m - r, TOGETHER);
            else dot_rows(p, rows, row, next, sums + r * COLUMNS + j, p->m - r, 1);
        }
        j += together;
    }
    for (int r = 0; r < p->m; r++) {
        float *c = p->c + entry * p->step_c + r * p->ldc + column;
        for (int64_t v = 0; v < cols; v += KR_LANES) {
            const kr_vf y = start(p, entry, r, column + v, cols - v) + kr_v_load(sums + r * COLUMNS + v);
            kr_v_store_n(c + v, y, cols - v);
        }
    }
}

/// b is [K, N]: every row of b times one element of a, added up in registers.
KR_INLINE void sum_rows_unit(const product *p, int64_t entry, int64_t column, int m) {
    const float *a = p->a + entry * p->step_a, *b = p->b + entry * p->step_b + column;
    const int64_t cols = p->n - column < COLUMNS ? p->n - column : COLUMNS;
    const int64_t along_m = p->ta ? 1 : p->lda, along_k = p->ta ? p->lda : 1;
    kr_vf acc[GROUP_ROWS][VECTORS];
    for (int r = 0; r < m; r++)
        for (int v = 0; v < VECTORS; v++) acc[r][v] = kr_v_set(0);
    if (cols == COLUMNS) {
        for (int64_t k = 0; k < p->k; k++)
            for (int v = 0; v < VECTORS; v++) {
                const kr_vf w = kr_v_load(b + k * p->ldb + v * KR_LANES);
                for (int r = 0; r < m; r++) acc[r][v] += kr_v_set(a[r * along_m + k * along_k]) * w;
            }
    } else {
        for (int64_t k = 0; k < p->k; k++)
            for (int v = 0; v * KR_LANES < cols; v++) {
                const kr_vf w = kr_v_load_n(b + k * p->ldb + v * KR_LANES, cols - v * KR_LANES);
                for (int r = 0; r < m; r++) acc[r][v] += kr_v_set(a[r * along_m + k * along_k]) * w;
            }
    }
    for (int r = 0; r < m; r++) {
        float *c = p->c + entry * p->step_c + r * p->ldc + column;
        for (int v = 0; v * KR_LANES < cols; v++) {
            const int64_t at = v * KR_LANES;
            kr_v_store_n(c + at, start(p, entry, r, column + at, cols - at) + acc[r][v], cols - at);
        }
    }
}

static void few_rows(const product *p, int part, int parts) {
    const int64_t blocks = (p->n + COLUMNS - 1) / COLUMNS;
    int64_t begin, end;
    kr_share(p->batch * blocks, part, parts, &begin, &end);
    for (int64_t unit = begin; unit < end; unit++) {
        const int64_t entry = unit / blocks, column = unit % blocks * COLUMNS;
        if (p->tb) {
            dot_unit(p, entry, column);
        } else {
            switch (p->m) {
            case 1: sum_rows_unit(p, entry, column, 1); break;
            case 2: sum_rows_unit(p, entry, column, 2); break;
            case 3: sum_rows_unit(p, entry, column, 3); break;
            default: sum_rows_unit(p, entry, column, GROUP_ROWS); break;
            }
        }
        const int64_t cols = p->n - column < COLUMNS ? p->n - column : COLUMNS;
        activate_block(p->c + entry * p->step_c + column, p->m, cols, p->ldc, p->activation);
    }
}

// Blocks ----------------------------------------------------------------------------------------------------------

typedef struct grid {
    int64_t rows, cols; // of a block
    int64_t row_blocks, col_blocks;
} grid;

static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// Cycles that a block takes in OpenBLAS for every step along K: its products (27 a cycle), the packing of its columns
/// of b and rows of a (half a cycle for an element), and a share of what starting a block takes. Measured on one
/// AVX-512 core; only the proportions matter.
static double block_time(const product *p, int64_t rows, int64_t cols) {
    return (double)rows * (double)cols / 27 + (double)(rows + cols) / 2 + 1500 / (double)(p->k + 1);
}

/// Cuts M by N into blocks without knowing the number of threads, which must not show in the result: of a few dozen
/// ways, the one with the least time summed over 1, 2, 4, 8 and 16 threads, weighted by how common those are.
static grid cut(const product *p) {
    static const int8_t counts[] = {1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 64};
    enum { COUNTS = sizeof counts };
    grid best = {p->m, p->n, 1, 1};
    double least = __builtin_inf();
    for (int i = 0; i < COUNTS; i++) {
        const int64_t rows = ceil_div(ceil_div(p->m, counts[i]), TILE_ROWS) * TILE_ROWS, down = ceil_div(p->m, rows);
        if (i && down < counts[i]) break;
        for (int j = 0; j < COUNTS && counts[i] * counts[j] <= 64; j++) {
            const int64_t cols = ceil_div(ceil_div(p->n, counts[j]), PANEL) * PANEL, across = ceil_div(p->n, cols);
            if (j && across < counts[j]) continue;
            const int64_t blocks = p->batch * down * across;
            const double rounds = (double)blocks + 8 * (double)((blocks + 1) >> 1) + 8 * (double)((blocks + 3) >> 2) +
                                  4 * (double)((blocks + 7) >> 3) + 4 * (double)((blocks + 15) >> 4);
            const double time = rounds * block_time(p, rows < p->m ? rows : p->m, cols < p->n ? cols : p->n);
            if (time >= least) continue;
            least = time;
            best = (grid){rows, cols, down, across};
        }
    }
    return best;
}

/// Rows row to row + rows, columns column to column + cols of one entry.
typedef struct block {
    int64_t entry, row, column, rows, cols;
} block;

static void multiply_in_tiles(const product *p, const block *at) {
    const tile_product t = {
        .m = at->rows,
        .n = at->cols,
        .k = p->k,
        .a = p->a + at->entry * p->step_a + (p->ta ? at->row : at->row * p->lda),
        .b = p->b + at->entry * p->step_b + (p->tb ? at->column * p->ldb : at->column),
        .from = p->residual ? p->residual + at->entry * p->step_r + at->row * p->ldr + at->column : 0,
        .bias = p->bias ? p->bias + at->column : 0,
        .c = p->c + at->entry * p->step_c + at->row * p->ldc + at->column,
        .lda = p->lda,
        .ldb = p->ldb,
        .ldf = p->ldr,
        .ldc = p->ldc,
        .ta = p->ta,
        .tb = p->tb,
        .finish = p->activation ? activate_block : 0,
        .how = p->activation,
    };
#ifdef __AVX512F__
    if (p->split) {
        split_multiply(&t);
        return;
    }
#endif
    if (p->precision == F32) tile_multiply(&t);
    else bf16_multiply(&t, p->path);
}

static void multiply_in_blas(const product *p, const block *at) {
    const float *a = p->a + at->entry * p->step_a + (p->ta ? at->row : at->row * p->lda);
    const float *b = p->b + at->entry * p->step_b + (p->tb ? at->column * p->ldb : at->column);
    const float *residual = p->residual ? p->residual + at->entry * p->step_r + at->row * p->ldr + at->column : 0;
    float *c = p->c + at->entry * p->step_c + at->row * p->ldc + at->column;
    const int adds = residual || p->bias || !p->k;
    if (adds) prepare_block(p, c, residual, at->column, at->rows, at->cols);
    if (p->k)
        cblas_sgemm(CblasRowMajor, p->ta ? CblasTrans : CblasNoTrans, p->tb ? CblasTrans : CblasNoTrans, (int)at->rows,
                    (int)at->cols, (int)p->k, 1.0f, a, (int)p->lda, b, (int)p->ldb, adds ? 1.0f : 0.0f, c, (int)p->ldc);
    activate_block(c, at->rows, at->cols, p->ldc, p->activation);
}

static void in_blocks(const product *p, int part, int parts) {
    const grid g = cut(p);
    const int64_t per_entry = g.row_blocks * g.col_blocks;
    int64_t begin, end;
    kr_share(p->batch * per_entry, part, parts, &begin, &end);
    for (int64_t unit = begin; unit < end; unit++) {
        block at = {unit / per_entry, unit % per_entry / g.col_blocks * g.rows, unit % g.col_blocks * g.cols, 0, 0};
        at.rows = p->m - at.row < g.rows ? p->m - at.row : g.rows;
        at.cols = p->n - at.column < g.cols ? p->n - at.column : g.cols;
        multiply_in_blas(p, &at);
    }
}

/// How many threads share the columns, where parts / that many share the rows: a divisor of `parts`, by the cycles that
/// the largest share takes for every step along K. Its products take 1/27, to pack an element takes half a cycle.
/// In bf16 products take next to nothing, and what counts is that both operands come from memory to be packed.
static int threads_across(const product *p, int parts) {
    int best = 1;
    double least = __builtin_inf();
    for (int across = 1; across <= parts; across++) {
        if (parts % across) continue;
        const double rows = (double)(ceil_div(ceil_div(p->m, STEP) * p->batch, parts / across) * STEP);
        const double cols = (double)(ceil_div(ceil_div(p->n, KR_LANES), across) * KR_LANES);
        double time = rows * cols / 27 + (p->ta ? rows / 2 : rows / 8) + cols / 2;
        if (p->precision != F32) time = rows * cols / 400 + rows + cols;
        if (time >= least) continue;
        least = time;
        best = across;
    }
    return best;
}

/// A block per thread and entry. An element has the same bits in whatever block, so these may depend on the number of
/// threads.
static void in_tiles(const product *p, int part, int parts) {
    const int across = threads_across(p, parts), down = parts / across;
    const int64_t steps = ceil_div(p->m, STEP);
    int64_t begin, end, left, right;
    kr_share(p->batch * steps, part / across, down, &begin, &end);
    kr_share(ceil_div(p->n, KR_LANES), part % across, across, &left, &right);
    right = right * KR_LANES < p->n ? right * KR_LANES : p->n;
    while (begin < end) {
        const int64_t entry = begin / steps, first = begin % steps;
        const int64_t last = end - begin < steps - first ? first + end - begin : steps;
        const int64_t bottom = last * STEP < p->m ? last * STEP : p->m;
        const block at = {entry, first * STEP, left * KR_LANES, bottom - first * STEP, right - left * KR_LANES};
        if (at.cols > 0) multiply_in_tiles(p, &at);
        begin += last - first;
    }
}

KR_KERNEL(matmul) {
    const product p = describe(call);
    if (!p.m || !p.n || !p.batch) return;
    if (p.precision != F32 && p.k) in_tiles(&p, part, parts);
    else if (p.tb ? p.m <= FEW && !p.ta : p.m <= GROUP_ROWS) few_rows(&p, part, parts);
    else if (USE_TILES && p.k) in_tiles(&p, part, parts);
    else in_blocks(&p, part, parts);
}
