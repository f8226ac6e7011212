/// What units of ssd_scan's gradient have to say to each other. Before it: what a segment of time adds to the gradient
/// of the state before it, and by what its decay takes that of the state after it through, so that all segments can
/// start at once. After it: sums over batch rows and segments, in one order.
#include "ops/ssd/cpu_grad.h"

/// Prefetches what head number h of the group reads of chunk i.
static void prefetch_carry(const grad *g, const work *w, unit u, int64_t i, int64_t h) {
    const ssd *s = &g->s;
    const kr_chunk_size *z = &s->size;
    const int64_t p = z->width, row = u.b * z->length + i * z->chunk, first = u.group * s->cut.in_group;
    w->ahead->count = 0;
    if (i < u.begin) return;
    prefetch_rows(w->ahead, g->dout.at ? g->dout.at + row * g->dout.pitch + (first + h) * p : 0, g->dout.pitch,
                  w->tokens, p);
    prefetch_rows(w->ahead, s->z.at ? s->z.at + row * s->z.pitch + (first + h) * p : 0, s->z.pitch, w->tokens, p);
    if (h) return;
    prefetch_rows(w->ahead, s->dt.at + row * s->dt.pitch + first, s->dt.pitch, w->tokens, s->cut.in_group);
    prefetch_rows(w->ahead, s->C.at + row * s->C.pitch + u.group * z->states, s->C.pitch, w->tokens, z->states);
}

static void carry_unit(const grad *g, work *w, unit u) {
    const ssd *s = &g->s;
    const kr_chunk_size *z = &s->size;
    const int64_t first = heads_at(s, u, u.segment);
    for (int64_t i = u.end - 1; i >= u.begin; i--) {
        const int64_t row = u.b * z->length + i * z->chunk;
        w->tokens = chunk_tokens(z, i);
        load_matrix(w->q, s->C.at + row * s->C.pitch + u.group * z->states, s->C.pitch, w->tokens, z->states);
        for (int64_t h = 0; h < s->cut.in_group; h += KR_SSD_BUNDLE) {
            const bundle at = bundle_at(s, u, h);
            float *decay = g->work + g->at.decay + first + h;
            load_steps(s, w, row, at, false);
            for (int64_t lane = 0; lane < at.count; lane++) {
                const float e = of_head(w, KR_SSD_FROM_START, lane)[w->tokens - 1];
                const matrix adjoint = {g->work + g->at.state + (first + h + lane) * w->state_floats, w->state_pitch};
                const bool begins = i + 1 == u.end, wraps = h + lane + 1 == s->cut.in_group;
                prefetch_carry(g, w, u, wraps ? i - 1 : i, wraps ? 0 : h + lane + 1);
                load_dy(g, w, row, at.head + lane, lane);
                if (begins) clear_matrix(adjoint, z->states, z->width);
                carry_adjoint(s, w, adjoint, begins ? 0 : e);
                decay[lane] = begins ? e : e * decay[lane];
            }
        }
    }
}

/// The first segment of a row has none before it that would want to know.
KR_KERNEL(ssd_scan_grad_carry) {
    const grad g = grad_of(call);
    if (g.s.cut.segments < 2) return;
    EACH_UNIT_OF(g.s.cut.units, {
        prefetch ahead = {.count = 0};
        work w = work_of(&g.s.size, &g.layout, g.work + slot * g.layout.floats, &ahead);
        for (int64_t i = begin; i < end; i++) {
            const unit u = unit_of(&g.s, i);
            if (u.segment) carry_unit(&g, &w, u);
        }
    });
}

/// dA, dD and ddt_bias of one head: sums over batch rows and segments.
KR_KERNEL(ssd_scan_grad_sum) {
    const grad g = grad_of(call);
    const kr_chunk_size *s = &g.s.size;
    const int64_t rows = s->batch * g.s.cut.segments, p = s->width, skips = s->width_pitch ? s->width_pitch : KR_LANES;
    const float *work = call->work;
    float *dA = call->out[SSD_GRAD_DA].data, *dD = call->out[SSD_GRAD_DD].data,
          *dbias = call->out[SSD_GRAD_DDT_BIAS].data;
    int64_t begin, end;
    kr_share(s->heads, part, parts, &begin, &end);
    for (int64_t head = begin; head < end; head++) {
        float a = 0, bias = 0;
        for (int64_t i = 0; i < rows; i++)
            a += work[g.at.dA + i * s->heads + head], bias += work[g.at.dbias + i * s->heads + head];
        if (dA) dA[head] = a;
        if (dbias && g.s.dt_bias) dbias[head] = bias;
        if (!dD || !g.s.D) continue;
        for (int64_t j = 0; j < (g.s.D_per_channel ? p : 1); j += KR_LANES) {
            kr_vf sum = kr_v_set(0);
            for (int64_t i = 0; i < rows; i++) sum += kr_v_load(work + g.at.skip + (i * s->heads + head) * skips + j);
            if (g.s.D_per_channel) kr_v_store_n(dD + head * p + j, sum, p - j);
            else dD[head] = kr_v_sum(sum);
        }
    }
}
