// The products of center_pivot_conv4d: of rows of operands, each at an address of its own, with the
// weights of the taps that lie inside of the grid.
//
//   sums[p][o] += sum over runs, e < count:  line[p][offset + e] weights[row][begin + e][o]
//
// A *run* is what lies together in memory: some taps in a row of the window, all channels of each.
// A *product* packs weights and multiplies runs by them:
//
//   VectorProduct<Dot>    operands broadcast from where they lie, by as many pointers as a tile has
//                         rows; weights in the vectors' lanes
//   TileProduct<Tiles>    by AMX tiles (center_pivot_tiles.h)
#pragma once

#include <algorithm>
#include <vector>

#include "fastfss/gemm_engines.h"
#include "fastfss/thin_product.h"

namespace fastfss::FASTFSS_ISA {

template <class T>
struct Run {
  const T* const* line;  // of each position
  int64_t offset;        // from there to the run
  int64_t begin;         // the element of the window's row at which it begins
  int64_t count;         // elements
  int64_t row;           // of the window
  // Between the lines of neighbouring positions, where all are equally far apart; else 0.
  int64_t step;
};

// bfloat16 maps on a CPU without its dot product: widened as they are read.
struct WideningDot : FloatDot {
  static Unit broadcast(const BFloat16* from) { return splat(to_float(*from)); }
};

template <class T>
struct DotFor {
  using type = WideningDot;
};
template <>
struct DotFor<float> {
  using type = FloatDot;
};
#if defined(__AVX512BF16__)
template <>
struct DotFor<BFloat16> {
  using type = Bfloat16Dot;
};
#endif

// Weights of one pivot, [O][I][k][k], as a product packs them; none without a pivot.
template <class Element>
struct PackedWeights {
  Buffer<Element> data;
  int64_t outputs = 0, inputs = 0, kernel = 0;
};

template <class Dot, class T>
class VectorProduct {
 public:
  using Element = typename Dot::Element;
  static constexpr int kPerUnit = Dot::kPerUnit;
  // Vectors of outputs in a tile. With four, ten loads serve 24 multiply-adds.
  static constexpr int kMostVectors = kAccumulators == 24 ? 4 : 2;
  // Positions that are multiplied together, and what their number is padded to.
  static constexpr int64_t kPositions = 1, kPositionPadding = 1;
  // Taps over the query from a copy of the maps with zeros around them: of maps that are not stored
  // position by position, and of few channels, where a cache line gives one tap of the original.
  static bool copies_window(int64_t bytes_a_position, bool dense) {
    return bytes_a_position <= 64 || !dense;
  }

  // [vectors in groups][tap][unit][vectors of the group][kWidth lanes]: a group's taps in a row.
  static PackedWeights<Element> pack(const TensorView& weight) {
    const int64_t outputs = weight.size[0], inputs = weight.size[1], kernel = weight.size[2];
    const int64_t vectors = (outputs + kWidth - 1) / kWidth, taps = kernel * kernel;
    const int64_t units = inputs / kPerUnit;
    Buffer<Element> to(vectors * kWidth * taps * inputs);
    const T* from = weight.as<const T>();
    in_groups<kMostVectors>(vectors, [&](int64_t first, int count) {
      // Read as they lie, kWidth outputs at a time: written in order, every read is a cache miss.
      const int64_t row = count * kWidth * kPerUnit;
      Element* group = to.get() + first * kWidth * taps * inputs;
      for (int64_t lane = 0; lane < count * kWidth; ++lane) {
        const int64_t o = first * kWidth + lane;
        const T* weights = from + o * inputs * taps;
        for (int64_t i = 0; i < inputs; ++i) {
          Element* at = group + i / kPerUnit * row + lane * kPerUnit + i % kPerUnit;
          for (int64_t tap = 0; tap < taps; ++tap, at += units * row) {
            *at = from_float<Element>(o < outputs ? to_float(*weights++) : 0.0f);
          }
        }
      }
    });
    return {std::move(to), outputs, inputs, kernel};
  }

  // Adds the products of `runs` with the weights of V vectors of outputs from vector `first` on,
  // for positions [0, count).
  template <int V>
  void multiply(const PackedWeights<Element>& weights, int64_t first,
                const std::vector<Run<T>>& runs, int64_t count, float* sums, int64_t stride) {
    if (runs.empty()) return;
    constexpr int64_t kRow = V * kWidth * kPerUnit;  // weights of one unit
    const int64_t inputs = weights.inputs;
    const Element* group =
        weights.data.get() + first * kWidth * weights.kernel * weights.kernel * inputs;
    const int64_t of_row = weights.kernel * inputs / kPerUnit * kRow;
    if constexpr (V == 1 && kAccumulators == 24) {
      const bool whole = runs[0].step == inputs && runs[0].count == weights.kernel * inputs;
      if (whole && (weights.kernel == 3 || weights.kernel == 5)) {
        in_groups<kMostSliding>(count, [&](int64_t p, int rows) {
          with_constant<kMostSliding>(rows, [&]<int R>() {
            const auto slide = weights.kernel == 5 ? slide_tile<R, 5> : slide_tile<R, 3>;
            slide(runs, p, inputs, group, of_row, sums + p * stride, stride);
          });
        });
        return;
      }
    }
    segments_.clear();
    constexpr int64_t kMostUnits = kChunkBytes / (kRow * static_cast<int64_t>(sizeof(Element)));
    for (const Run<T>& run : runs) {
      int64_t offset = run.offset;
      const Element* at = group + run.row * of_row + run.begin / kPerUnit * kRow;
      for (int64_t units = run.count / kPerUnit; units > 0; units -= kMostUnits) {
        segments_.push_back({run.line, offset, std::min(units, kMostUnits), at});
        offset += kMostUnits * kPerUnit;
        at += kMostUnits * kRow;
      }
    }
    for (std::size_t from = 0; from < segments_.size();) {
      std::size_t to = from;
      for (int64_t units = 0; to < segments_.size(); ++to) {
        units += segments_[to].units;
        if (to > from && units > kMostUnits) break;
      }
      in_groups<most_rows(V)>(count, [&](int64_t p, int rows) {
        with_constant<most_rows(V)>(rows, [&]<int R>() {
          multiply_tile<R, V>(&segments_[from], to - from, p, sums + p * stride, stride);
        });
      });
      from = to;
    }
  }

 private:
  static constexpr int kMostRows = 8;  // as many pointers as the registers hold
  static constexpr int most_rows(int vectors) {
    return std::min(kMostRows, kAccumulators / vectors);
  }
  // Sums of a sliding row: with five weights and an operand 22 of 32 registers.
  static constexpr int kMostSliding = 16;
  // Weights used by all tiles of a row before the next ones: 32 of the L1's 48 KiB.
  static constexpr int64_t kChunkBytes = 32 << 10;

  // A piece of a run whose weights fit a chunk.
  struct Segment {
    const T* const* line;
    int64_t offset;
    int64_t units;
    const Element* weights;
  };

  // sums[R][stride] += the segments' products, from position `first` of their lines on.
  template <int R, int V>
  [[gnu::noinline]] static void multiply_tile(const Segment* segment, int64_t count, int64_t first,
                                              float* sums, int64_t stride) {
    VFloat total[R][V];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) total[r][v] = load(sums + r * stride + v * kWidth);
    }
    for (; count > 0; --count, ++segment) {
      const T* row[R];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) row[r] = segment->line[first + r] + segment->offset;
      const Element* weights = segment->weights;
      const int64_t length = segment->units * kPerUnit;
      for (int64_t k = 0; k < length; k += kPerUnit) {
        typename Dot::Unit w[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) w[v] = Dot::load_unit(weights + v * kWidth * kPerUnit);
        weights += V * kWidth * kPerUnit;
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          const typename Dot::Unit x = Dot::broadcast(row[r] + k);
#pragma GCC unroll 4
          for (int v = 0; v < V; ++v) total[r][v] = Dot::multiply_add(total[r][v], x, w[v]);
        }
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) store(sums + r * stride + v * kWidth, total[r][v]);
    }
  }

  // Whole rows of the window at R neighbouring positions, `inputs` elements apart. An operand
  // serves the K positions that see it: of five taps at 16 positions 25 loads for 80 multiply-adds.
  template <int R, int K>
  [[gnu::noinline]] static void slide_tile(const std::vector<Run<T>>& runs, int64_t first,
                                           int64_t inputs, const Element* group, int64_t of_row,
                                           float* sums, int64_t stride) {
    VFloat total[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) total[r] = load(sums + r * stride);
    for (const Run<T>& run : runs) {
      const T* x = run.line[first] + run.offset;
      const Element* weights = group + run.row * of_row;
      for (int64_t i = 0; i < inputs; i += kPerUnit) {
        typename Dot::Unit w[K];
#pragma GCC unroll 8
        for (int tap = 0; tap < K; ++tap) {
          w[tap] = Dot::load_unit(weights + (tap * inputs + i) * kWidth);
        }
        const T* from = x + i;
#pragma GCC unroll 32
        for (int seen = 0; seen < R + K - 1; ++seen, from += inputs) {
          const typename Dot::Unit operand = Dot::broadcast(from);
#pragma GCC unroll 8
          for (int tap = 0; tap < K; ++tap) {
            const int r = seen - tap;
            if (r >= 0 && r < R) total[r] = Dot::multiply_add(total[r], operand, w[tap]);
          }
        }
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) store(sums + r * stride, total[r]);
  }

  std::vector<Segment> segments_;
};

}  // namespace fastfss::FASTFSS_ISA
