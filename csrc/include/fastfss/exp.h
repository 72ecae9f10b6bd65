// exp of a vector of floats.
//
//   exp(x) = 2^n exp(r),  n = round(x / ln 2),  r = x - n ln 2 in [-0.347, 0.347]
//   exp(r) = 1 + r + r^2 q(r),  q of degree 4, fitted to 0.05 * 2^-24 relative error
//
// At most 1.01 ulp of error over the range below, with and without FMA (tests/ops/test_exp.py).
#pragma once

#include "fastfss/vec.h"

namespace fastfss::FASTFSS_ISA {

// For x <= 88 (no overflow is handled); 0 below -87.33, where the result would be subnormal; NaN
// stays.
inline VFloat exp(VFloat x) {
  constexpr float kLowest = -87.33f;
  const VFloat bounded = x < kLowest ? splat(kLowest) : x;  // this order keeps NaN
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits of the mantissa.
  constexpr float kMagic = 12582912.0f;
  const VFloat shifted = bounded * 1.44269504f + kMagic;
  const VFloat n = shifted - kMagic;
  // ln 2 in two parts, the first with 9 bits, so that n times it is exact also without FMA.
  const VFloat r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;
  VFloat q = splat(0x1.6a2256p-10f);
  q = q * r + 0x1.123b02p-7f;
  q = q * r + 0x1.5558f8p-5f;
  q = q * r + 0x1.555490p-3f;
  q = q * r + 0x1.fffffcp-2f;
  const VFloat fraction = (q * (r * r) + r) + 1.0f;
  const VInt power = ((VInt)shifted - (VInt)splat(kMagic) + 127) << 23;
  const VFloat result = fraction * (VFloat)power;
  return x < kLowest ? VFloat{} : result;
}

}  // namespace fastfss::FASTFSS_ISA
