#include "ops/cpu/lanes.h"

#include "ops/mix/args.h"

KR_KERNEL(mix) {
    const float *x = call->in[MIX_X].data, *y = call->in[MIX_Y].data;
    float *z = call->out[MIX_Z].data;
    const kr_vf share = kr_v_set((float)call->attrs->r[MIX_SHARE]), rest = kr_v_set(1) - share;
    const int64_t n = kr_arg_rows(&call->out[MIX_Z]) * kr_arg_cols(&call->out[MIX_Z]);
    int64_t begin, end;
    kr_share((n + KR_LANES - 1) / KR_LANES, part, parts, &begin, &end);
    for (int64_t i = begin * KR_LANES; i < end * KR_LANES && i < n; i += KR_LANES)
        kr_v_store_n(z + i, share * kr_v_load_n(x + i, n - i) + rest * kr_v_load_n(y + i, n - i), n - i);
}
