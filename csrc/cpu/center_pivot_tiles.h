// The products of center_pivot_conv4d (center_pivot_products.h) by AMX tiles, or by their
// emulation.
//
// NEVER RUN ON AMX HARDWARE, as the rest of gemm_amx.h. Operands are gathered: 32 positions by a
// chunk of their runs' elements, as tiles of 16 positions x 32 elements. A row of the window is cut
// at every 32nd element, where the weights' tiles begin; elements of a cut tile that lie beside the
// run are zero. So 64 and more channels fill their tiles, and 16 channels go two taps a tile.
//
// Cost of HSNet's mixers, 128 to 128 channels: 128 products of 16 cycles a chunk, against 512 loads
// and stores of the gather and 512 of the sums.
#pragma once

#include "center_pivot_products.h"

namespace fastfss::FASTFSS_ISA {

template <class Tiles>
class TileProduct {
 public:
  using Element = BFloat16;
  static constexpr int kPerUnit = 2;
  static constexpr int kOutputs = 16;  // of a tile
  static constexpr int kMostVectors = 128 / kWidth;
  // Several rows of the query: of 50 positions the fourth tile of 16 would be nearly empty.
  static constexpr int64_t kPositions = 160, kPositionPadding = 32;
  static bool copies_window(int64_t, bool) { return true; }

  // [vectors in groups][row of the window][32 elements][16 outputs]: tiles of 16 pairs x 16
  // outputs.
  static PackedWeights<Element> pack(const TensorView& weight) {
    const int64_t outputs = weight.size[0], inputs = weight.size[1], kernel = weight.size[2];
    const int64_t vectors = (outputs + kWidth - 1) / kWidth, steps = steps_of(inputs, kernel);
    Buffer<Element> to(vectors * padded_outputs(1) * kernel * steps * kStep);
    std::fill_n(to.get(), vectors * padded_outputs(1) * kernel * steps * kStep, Element{});
    const BFloat16* from = weight.as<const BFloat16>();
    in_groups<kMostVectors>(vectors, [&](int64_t first, int count) {
      const int64_t tiles = padded_outputs(count) / kOutputs;
      Element* group = to.get() + first * padded_outputs(1) * kernel * steps * kStep;
      const int64_t end = std::min(outputs, (first + count) * kWidth);
      for (int64_t o = first * kWidth; o < end; ++o) {
        const int64_t tile = (o - first * kWidth) / kOutputs,
                      lane = (o - first * kWidth) % kOutputs;
        const BFloat16* weights = from + o * inputs * kernel * kernel;
        for (int64_t i = 0; i < inputs; ++i) {
          for (int64_t row = 0; row < kernel; ++row) {
            for (int64_t tap = 0; tap < kernel; ++tap) {
              const int64_t e = tap * inputs + i;
              const int64_t at = (row * steps + e / kStep) * tiles + tile;
              group[at * kTile + e % kStep / 2 * 32 + 2 * lane + e % 2] = *weights++;
            }
          }
        }
      }
    });
    return {std::move(to), outputs, inputs, kernel};
  }

  // As VectorProduct's; sums of positions up to a multiple of 32 are scratch.
  template <int V>
  void multiply(const PackedWeights<Element>& weights, int64_t first,
                const std::vector<Run<BFloat16>>& runs, int64_t count, float* sums,
                int64_t stride) {
    const int64_t steps = steps_of(weights.inputs, weights.kernel);
    constexpr int64_t kTiles = padded_outputs(V) / kOutputs;
    const Element* group =
        weights.data.get() + first * padded_outputs(1) * weights.kernel * steps * kStep;
    pieces_.clear();
    for (const Run<BFloat16>& run : runs) {
      const int64_t end = run.begin + run.count;
      for (int64_t begin = run.begin; begin < end;) {
        const int64_t step = begin / kStep;
        const int64_t stop = std::min(end, (step + 1) * kStep);
        pieces_.push_back({run.line, run.offset + begin - run.begin, begin % kStep, stop - begin,
                           group + (run.row * steps + step) * kTiles * kTile});
        begin = stop;
      }
    }
    for (std::size_t from = 0; from < pieces_.size(); from += kMostSteps) {
      const int64_t depth = std::min<int64_t>(kMostSteps, pieces_.size() - from);
      const Piece* pieces = &pieces_[from];
      for (int64_t p = 0; p < count; p += 2 * kRows) {
        gather(pieces, depth, p, std::min(count - p, 2 * kRows));
        for (int64_t tile = 0; tile < kTiles; tile += 2) {
          float* out = sums + p * stride + tile * kOutputs;
          if (tile + 1 < kTiles) {
            multiply_block<2>(pieces, depth, tile, out, stride);
          } else {
            multiply_block<1>(pieces, depth, tile, out, stride);
          }
        }
      }
    }
  }

 private:
  static constexpr int64_t kRows = 16, kStep = 32;    // positions and elements of a tile
  static constexpr int64_t kTile = kStep * kOutputs;  // elements of a tile of either side
  // 256 elements of 32 positions are 16 KiB and stay in the L1 with the sums.
  static constexpr int64_t kMostSteps = 8;

  static constexpr int64_t padded_outputs(int64_t vectors) {
    return (vectors * kWidth + kOutputs - 1) / kOutputs * kOutputs;
  }
  static int64_t steps_of(int64_t inputs, int64_t kernel) {
    return (kernel * inputs + kStep - 1) / kStep;
  }

  // What of a run meets one step of the weights.
  struct Piece {
    const BFloat16* const* line;
    int64_t offset;
    int64_t lead, count;  // zeros before, elements
    const Element* weights;
  };

  // operands_[step][2][16 positions][32 elements]; rows beyond the last position stay as they are.
  void gather(const Piece* piece, int64_t depth, int64_t first, int64_t count) {
    Element* to = operands_.get();
    for (int64_t step = 0; step < depth; ++step, ++piece, to += 2 * kTile) {
      for (int64_t p = 0; p < count; ++p) {
        Element* row = to + p * kStep;
        const BFloat16* from = piece->line[first + p] + piece->offset;
        if (piece->count == kStep) {
          std::memcpy(row, from, kStep * sizeof(Element));
          continue;
        }
        std::memset(row, 0, kStep * sizeof(Element));
        std::memcpy(row + piece->lead, from, piece->count * sizeof(Element));
      }
    }
  }

  // 32 positions by kColumns tiles of outputs: sums in tiles 0 to 3, operands in 4 and 5.
  template <int kColumns>
  void multiply_block(const Piece* piece, int64_t depth, int64_t tile, float* sums,
                      int64_t stride) {
    const int64_t bytes = stride * static_cast<int64_t>(sizeof(float));
    float* below = sums + kRows * stride;
    tiles_.template load<0>(sums, bytes);
    tiles_.template load<2>(below, bytes);
    if constexpr (kColumns == 2) {
      tiles_.template load<1>(sums + kOutputs, bytes);
      tiles_.template load<3>(below + kOutputs, bytes);
    }
    const Element* operand = operands_.get();
    for (int64_t step = 0; step < depth; ++step, ++piece, operand += 2 * kTile) {
      const Element* weights = piece->weights + tile * kTile;
      tiles_.template load<4>(operand, kTileStride);
      tiles_.template load<6>(weights, kTileStride);
      tiles_.template multiply<0, 4, 6>();
      tiles_.template load<5>(operand + kTile, kTileStride);
      tiles_.template multiply<2, 5, 6>();
      if constexpr (kColumns == 2) {
        tiles_.template load<7>(weights + kTile, kTileStride);
        tiles_.template multiply<1, 4, 7>();
        tiles_.template multiply<3, 5, 7>();
      }
    }
    tiles_.template store<0>(sums, bytes);
    tiles_.template store<2>(below, bytes);
    if constexpr (kColumns == 2) {
      tiles_.template store<1>(sums + kOutputs, bytes);
      tiles_.template store<3>(below + kOutputs, bytes);
    }
  }

  static constexpr int64_t kTileStride = 64;  // bytes
  Tiles tiles_;
  Buffer<Element> operands_{zeroed(kMostSteps * 2 * kTile)};
  std::vector<Piece> pieces_;

  static Buffer<Element> zeroed(int64_t count) {
    Buffer<Element> memory(count);
    std::fill_n(memory.get(), count, Element{});
    return memory;
  }
};

}  // namespace fastfss::FASTFSS_ISA
