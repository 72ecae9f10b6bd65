// Matrix products of packed operands, the ground under dense_match and dense_correlation.
//
// Two products, both with *positions* in the vector lanes:
//   scores   S[j][i]  = sum_c K[c][j] Q[c][i]        product():    left K, right Q, epilogue on S
//   values   O[d][i] += sum_j V[d][j] W[j][i]        accumulate(): W made from S by the caller
//
// An *engine* says how operands are stored and multiplied:
//
//   FloatEngine        float32, any instruction set; also bfloat16 tensors, widened on packing
//   Bfloat16Engine     bfloat16 x bfloat16 -> float32 by vdpbf16ps (set avx512_bf16)
//   TileEngine<Tiles>  the same by AMX tiles, or by their emulation (gemm_amx.h)
//
// BestEngine<T> (gemm_engines.h, which includes all) is the fastest for tensors of T in this set.
//
// Operands are packed (gemm_pack.h) into panels of Engine::kPanel positions, zero beyond the last
// position and the last channel. Panels follow each other at left_size, right_size, value_size
// elements. In units of 32 bits, which hold a float or a pair of bfloat16:
//
//   FloatEngine     left = right [C][48]                 value [D][48]  W [rows][48]
//   Bfloat16Engine  left = right [C/2][48] channel pairs  value [D][24]  W [rows/2][48] row pairs
//
// so one packed copy serves a float32 tensor in all three places.
//
// Cost of a tile of 8 x 48 (AVX-512): 24 multiply-adds, 8 broadcasts and 3 loads a step of the
// depth, so 12 cycles of the two multipliers against 5.5 of the two load ports, in 28 of 32
// registers. Measured on one core of a Zen 5 at 4.3 GHz whose registers reach 274 GFLOP/s (547 with
// vdpbf16ps): scores 250, values 258 GFLOP/s at 1024 channels. AVX2's 6 x 16 reaches 90 % of its
// 135, the portable 4 x 8 on SSE2, without FMA, 70 % of its 61.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "fastfss/tensor.h"
#include "fastfss/vec.h"
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace fastfss::FASTFSS_ISA {

inline int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Round to nearest even to bfloat16, in the low 16 bits of each lane. The same for every engine,
// and NaN stays NaN (the values packed may be any; weights are checked by nobody).
inline VUInt bfloat16_bits(VFloat v) {
#if defined(__AVX512BF16__)
  typedef uint16_t Half __attribute__((vector_size(kWidth * 2)));
  return __builtin_convertvector((Half)_mm512_cvtneps_pbh((__m512)v), VUInt);
#else
  const VUInt bits = (VUInt)v;
  const VUInt rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  return v == v ? rounded : (bits >> 16 | 0x40u);
#endif
}

// kWidth pairs (first, second) of bfloat16; the arguments become what was stored.
inline void put_pair(BFloat16* to, VFloat& first, VFloat& second) {
  const VUInt low = bfloat16_bits(first), high = bfloat16_bits(second) << 16;
  const VUInt pair = low | high;
  std::memcpy(to, &pair, sizeof pair);
  first = (VFloat)(low << 16);
  second = (VFloat)high;
}

// ---- How one step of the depth is multiplied

struct FloatDot {
  using Element = float;
  static constexpr int kPerUnit = 1;
  using Unit = VFloat;
  static Unit load_unit(const Element* from) { return load(from); }
  static Unit broadcast(const Element* from) { return splat(*from); }
  static VFloat multiply_add(VFloat sum, Unit a, Unit b) { return sum + a * b; }
};

#if defined(__AVX512BF16__)
struct Bfloat16Dot {
  using Element = BFloat16;
  static constexpr int kPerUnit = 2;
  using Unit = VUInt;
  static Unit load_unit(const Element* from) {
    Unit v;
    std::memcpy(&v, from, sizeof v);
    return v;
  }
  static Unit broadcast(const Element* from) {
    uint32_t pair;
    std::memcpy(&pair, from, sizeof pair);
    return pair - Unit{};
  }
  static VFloat multiply_add(VFloat sum, Unit a, Unit b) {
    return (VFloat)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
  }
};
#endif

// ---- The engine of vector registers

template <class Dot>
struct VectorEngine {
  using Element = typename Dot::Element;
  static constexpr int kPerUnit = Dot::kPerUnit;
  static constexpr int kPanel = 48;
  // The register tile: kRows x kVectors sums, kVectors of the right operand and one broadcast.
#if defined(__AVX512F__) || defined(__aarch64__)
  static constexpr int kRows = 8, kVectors = 3;  // 28 of 32 registers
#elif defined(__AVX2__)
  static constexpr int kRows = 6, kVectors = 2;  // 15 of 16
#else
  static constexpr int kRows = 4, kVectors = 2;  // 12 of 16: without FMA the product needs one too
#endif
  static constexpr int kColumns = kVectors * kWidth;
  static_assert(kPanel % kRows == 0 && kPanel % kColumns == 0);
  // A packed operand's channels are a multiple of this: pairs for the depth, rows for the values.
  static constexpr int kPadding = kPerUnit * kRows;
  // Channels of a chunk of the scores' depth, in units: 192 x 48 of the right operand are 36 KiB
  // and stay in a 48 KiB L1 while the left rows pass.
  static constexpr int kChunk = 192;
  // Whether the packed forms are one and the same, so that one copy serves.
  static constexpr bool kLeftIsRight = true;
  static constexpr bool kValueIsRight = kPerUnit == 1;

  // State that a thread must hold around its calls: none.
  struct Session {};

  // Elements of one packed panel.
  static int64_t right_size(int64_t channels) { return round_up(channels, kPadding) * kPanel; }
  static int64_t left_size(int64_t channels) { return right_size(channels); }
  static int64_t value_size(int64_t channels) { return right_size(channels); }
  // Elements of the weights of `rows` positions for one panel of columns.
  static int64_t weights_size(int64_t rows) { return round_up(rows, kPanel) * kPanel; }
  // Rows of an accumulator panel [rows][kPanel] for `channels` values.
  static int64_t value_rows(int64_t channels) { return round_up(channels, kPadding); }

  // S = left^T right for left rows [0, rows) and `panels` right panels; `rows` may span several
  // left panels. scores: [panels][round_up(rows, kPanel)][kPanel] floats of scratch, which stay in
  // the L2. epilogue(panel, row, count, values) is called once for each tile, when its `count` rows
  // (even; some beyond `rows`, made of zeros) are complete and still in the L1: values[r * kPanel +
  // lane].
  template <class Epilogue>
  static void product(Session&, const Element* left, int64_t rows, const Element* right, int panels,
                      int64_t channels, float* scores, const Epilogue& epilogue) {
    const int64_t depth = round_up(channels, kPerUnit) / kPerUnit;
    const int64_t capacity = round_up(rows, kPanel);
    for (int64_t begin = 0; begin == 0 || begin < depth; begin += kChunk) {
      const int64_t count = depth - begin < kChunk ? depth - begin : kChunk;
      const bool last = begin + kChunk >= depth;
      for (int panel = 0; panel < panels; ++panel) {
        const Element* b = right + panel * right_size(channels) + begin * kPanel * kPerUnit;
        for (int64_t row = 0; row < rows; row += kRows) {
          const Element* a = left + row / kPanel * left_size(channels) +
                             (begin * kPanel + row % kPanel) * kPerUnit;
          float* out = scores + (panel * capacity + row) * kPanel;
          if (!last) prefetch_chunk(a + kChunk * kPanel * kPerUnit, row, panel, panels);
          for (int column = 0; column < kPanel; column += kColumns) {
            tile<1, kPanel>(a, b + column * kPerUnit, count, 0, 1, count, out + column, begin > 0);
          }
          if (last) epilogue(panel, row, kRows, out);
        }
      }
    }
  }

  // O += V W for `panels` panels of columns. values are the value panels that hold positions
  // [0, rows); weights the [rows][kPanel] made with put_weights, those of the next panel
  // weights_size(rows) further; out [panels][value_rows(channels)][kPanel]. Where started[panel] is
  // false, out is set instead of added to, so that fresh memory needs no clearing.
  // The values are the large operand: they pass once, and the weights come from the L2 again for
  // every kRows channels, 192 bytes for 12 cycles.
  static void accumulate(Session&, const Element* values, int64_t rows, const Element* weights,
                         int panels, int64_t channels, float* out, const bool* started) {
    const int64_t segments = (rows + kPanel - 1) / kPanel;
    const int64_t rest = round_up(rows - (segments - 1) * kPanel, kPerUnit) / kPerUnit;
    const int64_t out_size = value_rows(channels) * kPanel;
    for (int64_t d = 0; d < channels; d += kRows) {
      for (int panel = 0; panel < panels; ++panel) {
        float* sums = out + panel * out_size + d * kPanel;
        for (int line = 0; line < kRows * kPanel; line += 16) {
          __builtin_prefetch(sums + kRows * kPanel + line, 1);
        }
        for (int column = 0; column < kPanel; column += kColumns) {
          tile<kPanel / kPerUnit, 1>(values + d * kPanel,
                                     weights + panel * weights_size(rows) + column * kPerUnit,
                                     kPanel / kPerUnit, value_size(channels), segments, rest,
                                     sums + column, started[panel]);
        }
      }
    }
  }

  // Weights of rows row and row + 1 (row even) at lanes [lane, lane + kWidth). The arguments become
  // what was stored: rounded, in an engine of bfloat16.
  static void put_weights(Element* weights, int64_t row, int lane, VFloat& first, VFloat& second) {
    if constexpr (kPerUnit == 1) {
      store(weights + row * kPanel + lane, first);
      store(weights + (row + 1) * kPanel + lane, second);
    } else {
      put_pair(weights + row * kPanel + lane * 2, first, second);
    }
  }

 private:
  // Brings a slice of the next chunk of a left panel, which often lies in the L3, to the L2; the
  // tiles of all panels together bring the whole.
  static void prefetch_chunk(const Element* next, int64_t row, int panel, int panels) {
    const int64_t offset = row % kPanel;
    const int64_t slice = kChunk * kRows * kPerUnit / panels;
    next += (panel * (kPanel / kRows) + offset / kRows) * slice - offset * kPerUnit;
    for (int64_t i = 0; i < slice; i += 64 / sizeof(Element)) __builtin_prefetch(next + i, 0, 2);
  }

  // out[r][0..kColumns) (+)= sum over depth; strides in units. The depth is cut into segments of
  // `length` units, `last` in the last one, between which the left operand jumps `jump` elements.
  template <int kRowStride, int kDepthStride>
  __attribute__((noinline)) static void tile(const Element* left, const Element* right,
                                             int64_t length, int64_t jump, int64_t segments,
                                             int64_t last, float* out, bool accumulate) {
    VFloat sums[kRows][kVectors];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 3
      for (int v = 0; v < kVectors; ++v) {
        sums[r][v] = accumulate ? load(out + r * kPanel + v * kWidth) : VFloat{};
      }
    }
    for (int64_t segment = 0; segment < segments; ++segment) {
      const Element* a = left + segment * jump;
      const int64_t steps = segment + 1 < segments ? length : last;
      for (int64_t step = 0; step < steps; ++step) {
        typename Dot::Unit b[kVectors];
#pragma GCC unroll 3
        for (int v = 0; v < kVectors; ++v) b[v] = Dot::load_unit(right + v * kWidth * kPerUnit);
        // The line that the next rows of the panel will read at this depth.
        if constexpr (kDepthStride > 1) __builtin_prefetch(a + 16 * kPerUnit);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          const typename Dot::Unit x = Dot::broadcast(a + r * kRowStride * kPerUnit);
#pragma GCC unroll 3
          for (int v = 0; v < kVectors; ++v) {
            sums[r][v] = Dot::multiply_add(sums[r][v], x, b[v]);
          }
        }
        a += kDepthStride * kPerUnit;
        right += kPanel * kPerUnit;
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 3
      for (int v = 0; v < kVectors; ++v) store(out + r * kPanel + v * kWidth, sums[r][v]);
    }
  }
};

using FloatEngine = VectorEngine<FloatDot>;
#if defined(__AVX512BF16__)
using Bfloat16Engine = VectorEngine<Bfloat16Dot>;
#endif

}  // namespace fastfss::FASTFSS_ISA
