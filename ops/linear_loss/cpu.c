/// A round is a block of rows: their logits, then their losses and gradients in the same place, then what these add to
/// dx and dW. See op.c.
///
/// Every stage is cut by the shapes and the machine alone. Logits and dx are cut into blocks of the result; every block
/// of dW belongs to one unit of work, which adds the rounds to it one after another, so there are no partial sums to
/// combine. Products are made as those of matmul are, of parts in bf16 where that is faster (tile_split.h).
#include "ops/cpu/tile_split.h"
#include "ops/linear_loss/args.h"
#include "ops/linear_loss/rounds.h"
#include "ops/softmax/cpu_row.h"

#ifndef __AVX__
#include <cblas.h>
#endif

enum { F32, BF16, BF16_EMULATED }; // the attribute "precision"

/// One round: rows [first, first + rows) of all.
typedef struct loss_round {
    int64_t all, first, rows, V, D; // V: words that count; the products leave the others out
    int64_t ldx, ldw, pitch;        // floats from row to row of x, of the weight, and of the logits
    const float *x, *weight;
    const int32_t *target;
    kr_linear_loss_head *head;
    float *losses, *logits;
    int last;
    int rounded;       // operands are rounded to bf16
    kr_bf16_path path; // how bf16 is multiplied: of rounded operands, or of parts
} loss_round;

static loss_round describe(const kr_call *call) {
    const kr_arg *x = &call->in[LINEAR_LOSS_X], *weight = &call->in[LINEAR_LOSS_WEIGHT];
    const int64_t words = weight->shape.dim[0], valid = call->attrs->i[LINEAR_LOSS_VALID_VOCAB], all = kr_arg_rows(x);
    const int64_t each = call->attrs->i[LINEAR_LOSS_ROWS], first = call->round * each;
    loss_round b = {.all = all, .first = first, .D = kr_arg_cols(x), .V = valid > 0 ? valid : words};
    b.rows = all - first < each ? all - first : each;
    b.ldx = kr_arg_pitch(x), b.ldw = kr_arg_pitch(weight), b.pitch = kr_linear_loss_pitch(words);
    b.x = (const float *)x->data + first * b.ldx;
    b.weight = weight->data;
    b.target = (const int32_t *)call->in[LINEAR_LOSS_TARGETS].data + first;
    b.head = call->work;
    b.losses = (float *)(b.head + 1);
    b.logits = b.losses + (each + 15) / 16 * 16;
    b.last = first + b.rows == all;
    b.rounded = call->attrs->i[LINEAR_LOSS_PRECISION] != F32;
    b.path = call->attrs->i[LINEAR_LOSS_PRECISION] == BF16_EMULATED ? KR_BF16_EMULATED : call->bf16;
    return b;
}

/// c = op(a) op(b), added to c where p->from is c. Sizes may be 0.
static void multiply(const tile_product *p, const loss_round *b) {
    if (p->m <= 0 || p->n <= 0) return;
    if (!p->k) {
        for (int64_t r = 0; r < p->m && !p->from; r++)
            __builtin_memset(p->c + r * p->ldc, 0, (size_t)p->n * sizeof *p->c);
        return;
    }
    if (b->rounded) {
        bf16_multiply(p, b->path);
        return;
    }
#if defined(__AVX512F__)
    if (split_pays(p->m, p->n, p->k, b->path)) split_multiply(p);
    else tile_multiply(p);
#elif defined(__AVX__)
    tile_multiply(p);
#else // OpenBLAS has what the machine has
    cblas_sgemm(CblasRowMajor, p->ta ? CblasTrans : CblasNoTrans, p->tb ? CblasTrans : CblasNoTrans, (int)p->m,
                (int)p->n, (int)p->k, 1.0f, p->a, (int)p->lda, p->b, (int)p->ldb, p->from ? 1.0f : 0.0f, p->c,
                (int)p->ldc);
#endif
}

/// A grid of blocks over a result.
typedef struct grid {
    int64_t rows, cols, across, blocks;
} grid;

static grid cut(int64_t m, int64_t n, int64_t rows, int64_t cols) {
    const int64_t across = (n + cols - 1) / cols;
    return (grid){rows, cols, across, (m + rows - 1) / rows * across};
}

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

KR_KERNEL(linear_cross_entropy_logits) {
    enum { ROWS = 252, COLS = 512 };
    const loss_round b = describe(call);
    const grid g = cut(b.rows, b.V, ROWS, COLS);
    int64_t begin, end;
    if (!part && !call->round) {
        int64_t counted = 0;
        for (int64_t r = 0; r < b.all; r++) counted += b.target[r] >= 0;
        b.head->counted = counted;
        b.head->loss = 0;
    }
    kr_share(g.blocks, part, parts, &begin, &end);
    for (int64_t unit = begin; unit < end; unit++) {
        const int64_t row = unit / g.across * g.rows, col = unit % g.across * g.cols;
        multiply(&(tile_product){.m = least(g.rows, b.rows - row), .n = least(g.cols, b.V - col), .k = b.D,
                                 .a = b.x + row * b.ldx, .lda = b.ldx,
                                 .b = b.weight + col * b.ldw, .ldb = b.ldw, .tb = 1,
                                 .c = b.logits + row * b.pitch + col, .ldc = b.pitch}, &b);
    }
}

/// z becomes dloss/dz; `id` counts, or is negative and the gradient is 0. A target outside of the vocabulary makes its
/// row NaN, as it does the loss: an update that heeds the gradient's norm then leaves the parameters alone.
static void differentiate(float *z, int64_t n, int32_t id, float total, float share) {
    if (id < 0) {
        __builtin_memset(z, 0, (size_t)n * sizeof *z);
        return;
    }
    if (id < n) z[id] -= total;
    const kr_vf scale = kr_v_set(id < n ? share / total : __builtin_nanf(""));
    for (int64_t i = 0; i < n; i += KR_LANES) kr_v_store_n(z + i, kr_v_load_n(z + i, n - i) * scale, n - i);
}

KR_KERNEL(linear_cross_entropy_rows) {
    const loss_round b = describe(call);
    float *per_token = call->out[LINEAR_LOSS_PER_TOKEN].data, *lse = call->out[LINEAR_LOSS_LSE].data;
    const int training = call->out[LINEAR_LOSS_DX].data || call->out[LINEAR_LOSS_DWEIGHT].data;
    const float share = b.head->counted ? 1.0f / (float)b.head->counted : 0;
    int64_t begin, end;
    kr_share(b.rows, part, parts, &begin, &end);
    for (int64_t r = begin; r < end; r++) {
        float *z = b.logits + r * b.pitch;
        const int32_t id = b.target[r];
        float total = 0, all = 0, loss = 0;
        if (id >= 0 || lse) {
            const float most = b.V ? row_max(z, b.V) : 0, hit = id >= 0 && id < b.V ? z[id] : __builtin_nanf("");
            total = row_exp_sum(z, b.V, most, training ? z : 0);
            all = most + kr_v_log(kr_v_set(total))[0];
            if (id >= 0) loss = all - hit;
        }
        b.losses[r] = loss;
        if (per_token) per_token[b.first + r] = loss;
        if (lse) lse[b.first + r] = all;
        if (training) differentiate(z, b.V, id, total, share);
    }
}

static void add_losses(const loss_round *b, float *loss) {
    double sum = b->head->loss;
    for (int64_t r = 0; r < b->rows; r++) sum += (double)b->losses[r];
    b->head->loss = sum;
    if (b->last) *loss = b->head->counted ? (float)(sum / (double)b->head->counted) : 0;
}

/// The round's rows of dx = dlogits W.
static void multiply_dx(const loss_round *b, float *dx, int64_t pitch, int part, int parts) {
    enum { ROWS = 252, COLS = 128, WIDEST = 320, SPLIT_COLS = 384 }; // fewer passes over the logits to be split
    const int64_t cols = b->rounded || split_pays(b->rows, b->D, b->V, b->path) ? SPLIT_COLS : COLS;
    const grid g = cut(b->rows, b->D, ROWS, b->D <= WIDEST ? WIDEST : cols);
    int64_t begin, end;
    kr_share(g.blocks, part, parts, &begin, &end);
    for (int64_t unit = begin; unit < end; unit++) {
        const int64_t row = unit / g.across * g.rows, col = unit % g.across * g.cols;
        multiply(&(tile_product){.m = least(g.rows, b->rows - row), .n = least(g.cols, b->D - col), .k = b->V,
                                 .a = b->logits + row * b->pitch, .lda = b->pitch,
                                 .b = b->weight + col, .ldb = b->ldw,
                                 .c = dx + (b->first + row) * pitch + col, .ldc = pitch}, b);
    }
}

/// dW += dlogits^T x. Blocks are small enough to stay in the second cache while x goes by; a small vocabulary gives
/// four of them.
static void multiply_dweight(const loss_round *b, float *dweight, int64_t words, int part, int parts) {
    enum { ROWS = 192, FEW = 8 * ROWS };
    const int64_t half = (b->D / 2 + PANEL - 1) / PANEL * PANEL;
    const grid g = b->V > FEW ? cut(b->V, b->D, ROWS, b->D + !b->D)
                              : cut(b->V, b->D, kr_linear_loss_step(b->V / 2 + 1), half ? half : 1);
    int64_t begin, end;
    kr_share(g.blocks, part, parts, &begin, &end);
    for (int64_t unit = begin; unit < end; unit++) {
        const int64_t row = unit / g.across * g.rows, col = unit % g.across * g.cols;
        float *c = dweight + row * b->D + col;
        multiply(&(tile_product){.m = least(g.rows, b->V - row), .n = least(g.cols, b->D - col), .k = b->rows,
                                 .a = b->logits + row, .lda = b->pitch, .ta = 1,
                                 .b = b->x + col, .ldb = b->ldx,
                                 .c = c, .ldc = b->D, .from = b->first ? c : 0, .ldf = b->D}, b);
    }
    if (part || b->first || words == b->V) return;
    __builtin_memset(dweight + b->V * b->D, 0, (size_t)((words - b->V) * b->D) * sizeof *dweight);
}

KR_KERNEL(linear_cross_entropy_products) {
    const loss_round b = describe(call);
    const kr_arg *dx = &call->out[LINEAR_LOSS_DX], *dweight = &call->out[LINEAR_LOSS_DWEIGHT];
    if (!part) add_losses(&b, call->out[LINEAR_LOSS_LOSS].data);
    if (dx->data) multiply_dx(&b, dx->data, kr_arg_pitch(dx), part, parts);
    if (dweight->data) multiply_dweight(&b, dweight->data, dweight->shape.dim[0], part, parts);
}
