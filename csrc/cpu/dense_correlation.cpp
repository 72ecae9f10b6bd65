// dense_correlation of one layer: for each item of the batch
//   S[i][j] = q_i . s_j
//   out[i][j] = max(0, S[i][j] / ((|q_i| + eps) (|s_j| + eps)))
// Both operands are packed once, their norms on the way; the epilogue scales, clamps and writes
// each tile of S, still in the L1, to its place in the stacked output.
//
// HSNet, ResNet-50 at 400 px, 13 layers: 30.7 GFLOP and 110 MB of float32 output. Floor: 112 ms at
// the 274 GFLOP/s of one Zen 5 core in float32 (56 ms with vdpbf16ps), besides 8 ms or more of
// writing. Measured: see bench/ops/test_dense_correlation.py.
#include "fastfss/dense_correlation.h"

#include <algorithm>
#include <cmath>

#include "fastfss/gemm_engines.h"
#include "fastfss/parallel.h"

namespace fastfss::FASTFSS_ISA {
namespace {

// Panels of queries and of supports in a block, as in dense_match.
constexpr int kQueryPanels = 4;
constexpr int kSupportPanels = 4;

// All positions of an item, packed for one side of the product.
template <class Engine>
struct Packed {
  using Element = typename Engine::Element;
  static constexpr int kPanel = Engine::kPanel;

  Packed(const Matrix& from, bool is_left, float eps, int threads)
      : panels((from.positions + kPanel - 1) / kPanel),
        size(is_left ? Engine::left_size(from.channels) : Engine::right_size(from.channels)),
        data(panels * size),
        inverse_norm(panels * kPanel) {
    parallel_for(panels, threads, [&](int64_t begin, int64_t end) {
      for (int64_t panel = begin; panel < end; ++panel) {
        const int64_t first = panel * kPanel;
        const int count = static_cast<int>(std::min<int64_t>(kPanel, from.positions - first));
        Forms<Element> forms;
        const bool as_left = is_left && !Engine::kLeftIsRight;
        (as_left ? forms.left : forms.right) = data.get() + panel * size;
        float* scale = inverse_norm.get() + first;
        pack_panel<Engine>(from, {nullptr, first, count}, forms, scale);
        for (int p = 0; p < kPanel; ++p) scale[p] = 1.0f / (std::sqrt(scale[p]) + eps);
      }
    });
  }

  int64_t panels, size;
  Buffer<Element> data;
  Buffer<float> inverse_norm;
};

// One tile of S, [count][kPanel], to out; `columns` of its columns exist.
template <int kPanel, class T>
void write_tile(const float* tile, int count, int columns, const float* query_scale,
                const float* support_scale, bool clamp, T* out, int64_t row_stride) {
  for (int r = 0; r < count; ++r, tile += kPanel, out += row_stride) {
    for (int lane = 0; lane < columns; lane += kWidth) {
      VFloat v = load(tile + lane) * (load(support_scale + lane) * query_scale[r]);
      // This order keeps NaN, as torch's clamp does.
      if (clamp) v = v < 0.0f ? VFloat{} : v;
      if (lane + kWidth <= columns) {
        store(out + lane, v);
      } else {
        store_first(out + lane, v, columns - lane);
      }
    }
  }
}

template <class Engine, class T>
void correlate(const DenseCorrelationArgs& args, int64_t b, int threads) {
  constexpr int kPanel = Engine::kPanel;
  const Matrix query = item(args.query, b), support = item(args.support, b);
  const Packed<Engine> left(query, true, args.eps, threads);
  const Packed<Engine> right(support, false, args.eps, threads);
  T* out = args.out.as<T>() + b * args.out.stride[0];
  const int64_t row_stride = args.out.stride[1];
  parallel_for(left.panels, threads, [&](int64_t begin, int64_t end) {
    typename Engine::Session session;
    const Buffer<float> scores(kQueryPanels * kSupportPanels * kPanel * kPanel);
    for (int64_t first = begin; first < end; first += kQueryPanels) {
      const int64_t start = first * kPanel;
      const int64_t stop = std::min<int64_t>(first + kQueryPanels, end) * kPanel;
      const int64_t rows = std::min(stop, query.positions) - start;
      for (int64_t column = 0; column < right.panels; column += kSupportPanels) {
        const int panels =
            static_cast<int>(std::min<int64_t>(kSupportPanels, right.panels - column));
        Engine::product(session, left.data.get() + first * left.size, rows,
                        right.data.get() + column * right.size, panels, query.channels,
                        scores.get(), [&](int panel, int64_t row, int count, float* values) {
                          const int64_t j = (column + panel) * kPanel;
                          const int64_t i = start + row;
                          write_tile<kPanel>(
                              values, static_cast<int>(std::min<int64_t>(count, rows - row)),
                              static_cast<int>(std::min<int64_t>(kPanel, support.positions - j)),
                              left.inverse_norm.get() + i, right.inverse_norm.get() + j, args.clamp,
                              out + i * row_stride + j, row_stride);
                        });
      }
    }
  });
}

template <class Engine, class T>
void correlate_batch(const DenseCorrelationArgs& args) {
  const int64_t batch = args.query.size[0];
  const int outer = batch >= args.threads ? args.threads : 1;
  const int inner = outer > 1 ? 1 : args.threads;
  parallel_for(batch, outer, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) correlate<Engine, T>(args, b, inner);
  });
}

}  // namespace

void dense_correlation(const DenseCorrelationArgs& args) {
  if (args.query.dtype == DType::kFloat32) {
    correlate_batch<BestEngine<float>, float>(args);
  } else {
    correlate_batch<BestEngine<BFloat16>, BFloat16>(args);
  }
}

#if !defined(__AVX2__)  // the portable set alone
void dense_correlation_emulated_amx(const DenseCorrelationArgs& args) {
  correlate_batch<TileEngine<EmulatedTiles>, BFloat16>(args);
}
#endif

}  // namespace fastfss::FASTFSS_ISA
