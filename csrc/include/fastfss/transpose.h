// The transpose of a square of kWidth x kWidth floats held in registers.
#pragma once

#include <utility>

#include "fastfss/vec.h"

namespace fastfss::FASTFSS_ISA {

// The lanes of a whose bit kStep is clear and, in the places where it is set, those of b (low), or
// the other halves of both (high).
template <int kStep, int... kLane>
inline VFloat interleave_low(VFloat a, VFloat b, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(a, b, ((kLane & kStep) ? kWidth + kLane - kStep : kLane)...);
}

template <int kStep, int... kLane>
inline VFloat interleave_high(VFloat a, VFloat b, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(a, b, ((kLane & kStep) ? kWidth + kLane : kLane + kStep)...);
}

// One stage of log2(kWidth): swaps the off-diagonal blocks of size kStep. Lanes move as bits, so
// other 32-bit contents may travel as floats.
template <int kStep>
inline void transpose_stage(VFloat (&rows)[kWidth]) {
  constexpr auto lanes = std::make_integer_sequence<int, kWidth>();
#pragma GCC unroll 16
  for (int r = 0; r < kWidth; ++r) {
    if (r & kStep) continue;
    const VFloat a = rows[r], b = rows[r + kStep];
    rows[r] = interleave_low<kStep>(a, b, lanes);
    rows[r + kStep] = interleave_high<kStep>(a, b, lanes);
  }
}

inline void transpose(VFloat (&rows)[kWidth]) {
  transpose_stage<1>(rows);
  transpose_stage<2>(rows);
  if constexpr (kWidth > 4) transpose_stage<4>(rows);
  if constexpr (kWidth > 8) transpose_stage<8>(rows);
}

}  // namespace fastfss::FASTFSS_ISA
