// Products of the training steps in oneDNN, to hold against `krait bench op matmul` on the same shapes. Not part of the
// build: it answers whether oneDNN would be worth a dependency (docs/benchmarks.md has the answer). On Debian:
//
//   apt install libdnnl-dev
//   g++ -O2 -o onednn tools/compare/onednn.cpp -ldnnl && OMP_NUM_THREADS=2 ./onednn
//
// Every product cycles over eight sets of buffers, so that operands come from L3 as in a step, not from L2. bf16 operands
// are bf16 in memory here; Krait's are f32 that it rounds on the way.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <dnnl.hpp>
#include <vector>

namespace {

struct Product {
    const char *name;
    int64_t m, n, k;
    bool transpose_a, transpose_b; // stored [k, m], [n, k]
};

const Product products[] = {
    {"2048x160 1098x160 transpose_b=1", 2048, 1098, 160, false, true},
    {"2048x320 160x320 transpose_b=1", 2048, 160, 320, false, true},
    {"2048x1098 1098x160", 2048, 160, 1098, false, false},
    {"2048x1098 2048x160 transpose_a=1", 1098, 160, 2048, true, false},
    {"2048x160 2048x320 transpose_a=1", 160, 320, 2048, true, false},
    {"1024x768 3072x768 transpose_b=1", 1024, 3072, 768, false, true},
    {"1024x1536 768x1536 transpose_b=1", 1024, 768, 1536, false, true},
    {"1024x3072 1024x768 transpose_a=1", 3072, 768, 1024, true, false},
};

double seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

dnnl::memory::desc matrix(int64_t rows, int64_t columns, dnnl::memory::data_type type, bool transposed) {
    const dnnl::memory::dims strides = transposed ? dnnl::memory::dims{1, rows} : dnnl::memory::dims{columns, 1};
    return {{rows, columns}, type, strides};
}

// Small numbers, none of them denormal.
void fill(dnnl::memory &to) {
    const size_t bytes = to.get_desc().get_size();
    auto *data = static_cast<uint8_t *>(to.get_data_handle());
    for (size_t i = 0; i < bytes; i++) data[i] = i % 2 ? 0x3d : static_cast<uint8_t>(i * 37);
}

double median_seconds(const Product &p, dnnl::memory::data_type type, dnnl::engine &engine, dnnl::stream &stream) {
    const auto a = matrix(p.m, p.k, type, p.transpose_a), b = matrix(p.k, p.n, type, p.transpose_b);
    const auto c = matrix(p.m, p.n, dnnl::memory::data_type::f32, false);
#if DNNL_VERSION_MAJOR >= 3
    const dnnl::matmul multiply(dnnl::matmul::primitive_desc(engine, a, b, c));
#else
    const dnnl::matmul multiply(dnnl::matmul::primitive_desc(dnnl::matmul::desc(a, b, c), engine));
#endif
    struct Operands {
        dnnl::memory a, b, c;
    };
    std::vector<Operands> sets;
    for (int i = 0; i < 8; i++) {
        sets.push_back({dnnl::memory(a, engine), dnnl::memory(b, engine), dnnl::memory(c, engine)});
        fill(sets.back().a);
        fill(sets.back().b);
    }
    std::vector<double> times;
    for (int run = -8; run < 56; run++) {
        Operands &o = sets[static_cast<size_t>(run + 8) % sets.size()];
        const double start = seconds();
        multiply.execute(stream, {{DNNL_ARG_SRC, o.a}, {DNNL_ARG_WEIGHTS, o.b}, {DNNL_ARG_DST, o.c}});
        stream.wait();
        if (run >= 0) times.push_back(seconds() - start);
    }
    std::nth_element(times.begin(), times.begin() + static_cast<long>(times.size() / 2), times.end());
    return times[times.size() / 2];
}

} // namespace

int main() {
    dnnl::engine engine(dnnl::engine::kind::cpu, 0);
    dnnl::stream stream(engine);
    for (const auto type : {dnnl::memory::data_type::f32, dnnl::memory::data_type::bf16})
        for (const Product &p : products) {
            const double flops = 2.0 * static_cast<double>(p.m) * static_cast<double>(p.n) * static_cast<double>(p.k);
            const double t = median_seconds(p, type, engine, stream);
            std::printf("%s  %-34s %7.1f GFLOP/s\n", type == dnnl::memory::data_type::f32 ? "f32 " : "bf16", p.name,
                        flops / t * 1e-9);
        }
}
