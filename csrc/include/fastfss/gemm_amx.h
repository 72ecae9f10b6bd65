// The engine of AMX: bfloat16 products by tiles of 16 rows x 64 bytes.
//
// NEVER RUN ON AMX HARDWARE: the machines at hand have none. What is tested, bit for bit, is the
// engine on EmulatedTiles: packing, indexing, padding, order of loads. HardwareTiles differs only
// in the five members below; their encoding was checked in the disassembly. csrc/cpu/isa.cpp asks
// Linux for the tile state before the set is ever chosen.
//
// tdpbf16ps: C[m][n] += sum_k A[m][2k] B[k][2n] + A[m][2k+1] B[k][2n+1], so A has rows of 32
// channels and B rows of 16 pairs, which is the other engines' form of the right operand and of the
// weights.
//   left [C/32][64][32]: tiles of 1 KiB     right [C/2][64] pairs of channels
//   value [D][64]: A rows of 32 positions   W [rows/2][64] pairs of positions
#pragma once

#include "fastfss/gemm_pack.h"

namespace fastfss::FASTFSS_ISA {

#if defined(__AMX_BF16__)
// Owns the thread's tile registers: configured on construction, released with the object. Written
// in assembly because GCC's intrinsics want literal register numbers and do not tell the compiler
// that they read and write memory.
class HardwareTiles {
 public:
  HardwareTiles() {
    struct alignas(64) Configuration {
      uint8_t palette = 1;
      uint8_t start_row = 0;
      uint8_t reserved[14] = {};
      uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } configuration;
    static_assert(sizeof configuration == 64);
    asm volatile("ldtilecfg %0" ::"m"(configuration));
  }
  ~HardwareTiles() { asm volatile("tilerelease" ::); }
  HardwareTiles(const HardwareTiles&) = delete;
  HardwareTiles& operator=(const HardwareTiles&) = delete;

  template <int kTile>
  void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
  }
  template <int kTile>
  void load(const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(kTile) : "memory");
  }
  template <int kTile>
  void store(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(kTile) : "memory");
  }
  template <int kSum, int kLeft, int kRight>
  void multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kLeft), "i"(kRight));
  }
};
#endif

// The same in plain C++, for tests.
class EmulatedTiles {
 public:
  template <int kTile>
  void zero() {
    std::memset(tiles_[kTile], 0, sizeof tiles_[kTile]);
  }
  template <int kTile>
  void load(const void* from, int64_t stride) {
    for (int row = 0; row < 16; ++row) {
      std::memcpy(tiles_[kTile][row], static_cast<const char*>(from) + row * stride, 64);
    }
  }
  template <int kTile>
  void store(void* to, int64_t stride) {
    for (int row = 0; row < 16; ++row) {
      std::memcpy(static_cast<char*>(to) + row * stride, tiles_[kTile][row], 64);
    }
  }
  template <int kSum, int kLeft, int kRight>
  void multiply() {
    for (int m = 0; m < 16; ++m) {
      float sums[16];
      std::memcpy(sums, tiles_[kSum][m], 64);
      for (int k = 0; k < 16; ++k) {
        for (int n = 0; n < 16; ++n) {
          sums[n] += to_float(half(kLeft, m, 2 * k)) * to_float(half(kRight, k, 2 * n));
          sums[n] += to_float(half(kLeft, m, 2 * k + 1)) * to_float(half(kRight, k, 2 * n + 1));
        }
      }
      std::memcpy(tiles_[kSum][m], sums, 64);
    }
  }

 private:
  BFloat16 half(int tile, int row, int i) const {
    BFloat16 value;
    std::memcpy(&value, tiles_[tile][row] + 2 * i, sizeof value);
    return value;
  }
  alignas(64) unsigned char tiles_[8][16][64];
};

template <class Tiles>
struct TileEngine {
  using Element = BFloat16;
  static constexpr int kPanel = 64;
  // Four sums (tiles 0 to 3) of two left (4, 5) and two right (6, 7) tiles: 32 x 32, with one load
  // for each product of 16 cycles.
  static constexpr int kRows = 32;
  static constexpr int kPadding = 32;
  // 256 channels of a right panel are 32 KiB and stay in a 48 KiB L1; the sums, 4 KiB for 512
  // cycles of products, pass through memory once a chunk.
  static constexpr int kChunk = 256;
  static constexpr bool kLeftIsRight = false;
  static constexpr bool kValueIsRight = false;
  using Session = Tiles;

  static int64_t right_size(int64_t channels) { return round_up(channels, kPadding) * kPanel; }
  static int64_t left_size(int64_t channels) { return right_size(channels); }
  static int64_t value_size(int64_t channels) { return right_size(channels); }
  static int64_t weights_size(int64_t rows) { return round_up(rows, kPanel) * kPanel; }
  static int64_t value_rows(int64_t channels) { return round_up(channels, kPadding); }

  template <class Epilogue>
  static void product(Session& tiles, const Element* left, int64_t rows, const Element* right,
                      int panels, int64_t channels, float* scores, const Epilogue& epilogue) {
    const int64_t depth = round_up(channels, kPadding);
    const int64_t capacity = round_up(rows, kPanel);
    for (int64_t begin = 0; begin < depth; begin += kChunk) {
      const int64_t end = depth - begin < kChunk ? depth : begin + kChunk;
      for (int panel = 0; panel < panels; ++panel) {
        const Element* b = right + panel * right_size(channels);
        for (int64_t row = 0; row < rows; row += kRows) {
          const Element* a = left + row / kPanel * left_size(channels) + row % kPanel * 32;
          float* out = scores + (panel * capacity + row) * kPanel;
          for (int column = 0; column < kPanel; column += 32) {
            open(tiles, out + column, begin > 0);
            for (int64_t c = begin; c < end; c += 32) {
              step(tiles, a + c * kPanel, 64, 16 * 32, b + c * kPanel + 2 * column);
            }
            close(tiles, out + column);
          }
          if (end == depth) epilogue(panel, row, kRows, out);
        }
      }
    }
  }

  static void accumulate(Session& tiles, const Element* values, int64_t rows,
                         const Element* weights, int panels, int64_t channels, float* out,
                         const bool* started) {
    for (int64_t d = 0; d < channels; d += 32) {
      for (int panel = 0; panel < panels; ++panel) {
        const Element* b = weights + panel * weights_size(rows);
        float* sums = out + (panel * value_rows(channels) + d) * kPanel;
        for (int column = 0; column < kPanel; column += 32) {
          open(tiles, sums + column, started[panel]);
          for (int64_t row = 0; row < rows; row += 32) {
            const Element* a =
                values + row / kPanel * value_size(channels) + d * kPanel + row % kPanel;
            step(tiles, a, 2 * kPanel, 16 * kPanel, b + row * kPanel + 2 * column);
          }
          close(tiles, sums + column);
        }
      }
    }
  }

  static void put_weights(Element* weights, int64_t row, int lane, VFloat& first, VFloat& second) {
    put_pair(weights + row * kPanel + lane * 2, first, second);
  }

 private:
  static constexpr int64_t kSumStride = kPanel * sizeof(float);

  static void open(Tiles& tiles, const float* out, bool accumulate) {
    if (accumulate) {
      tiles.template load<0>(out, kSumStride);
      tiles.template load<1>(out + 16, kSumStride);
      tiles.template load<2>(out + 16 * kPanel, kSumStride);
      tiles.template load<3>(out + 16 * kPanel + 16, kSumStride);
    } else {
      tiles.template zero<0>();
      tiles.template zero<1>();
      tiles.template zero<2>();
      tiles.template zero<3>();
    }
  }

  // One depth of 32: left rows at `stride` bytes, the second tile of rows `next` elements further;
  // right rows of pairs, the second tile of columns 16 pairs further.
  static void step(Tiles& tiles, const Element* left, int64_t stride, int64_t next,
                   const Element* right) {
    constexpr int64_t kPairStride = 2 * kPanel * sizeof(Element);
    tiles.template load<4>(left, stride);
    tiles.template load<6>(right, kPairStride);
    tiles.template multiply<0, 4, 6>();
    tiles.template load<7>(right + 32, kPairStride);
    tiles.template multiply<1, 4, 7>();
    tiles.template load<5>(left + next, stride);
    tiles.template multiply<2, 5, 6>();
    tiles.template multiply<3, 5, 7>();
  }

  static void close(Tiles& tiles, float* out) {
    tiles.template store<0>(out, kSumStride);
    tiles.template store<1>(out + 16, kSumStride);
    tiles.template store<2>(out + 16 * kPanel, kSumStride);
    tiles.template store<3>(out + 16 * kPanel + 16, kSumStride);
  }
};

template <class Tiles>
void write_forms(TileEngine<Tiles>, const float* block, int64_t begin, int channels,
                 Forms<BFloat16> to) {
  constexpr int kPanel = TileEngine<Tiles>::kPanel;
  static_assert(kBlock == 32);
  if (to.value) write_position_pairs<kPanel>(block, channels, to.value + begin * kPanel);
  if (!to.left && !to.right) return;
  alignas(64) BFloat16 pairs[kBlock * kPanel];
  write_channel_pairs<kPanel>(block, channels, pairs);
  if (to.right) std::memcpy(to.right + begin * kPanel, pairs, sizeof pairs);
  for (int p = 0; to.left && p < kPanel; p += kWidth) {
    for (int pair = 0; pair < 16; pair += kWidth) {
      VFloat square[kWidth];  // pairs of bfloat16, moved as bits
      for (int r = 0; r < kWidth; ++r) {
        std::memcpy(&square[r], pairs + ((pair + r) * kPanel + p) * 2, sizeof square[r]);
      }
      transpose(square);
      for (int r = 0; r < kWidth; ++r) {
        std::memcpy(to.left + begin * kPanel + (p + r) * 32 + pair * 2, &square[r],
                    sizeof square[r]);
      }
    }
  }
}

}  // namespace fastfss::FASTFSS_ISA
