// Vectors of float, as wide as the instruction set in whose namespace this is compiled.
//
// Written with the compiler's vector extension (GCC, Clang), so that the same kernel text serves
// SSE, NEON, AVX2 and AVX-512. Everything lives in the set's own namespace: an inline function must
// never be merged by the linker with the copy made for another set.
#pragma once

#include <cstdint>
#include <cstring>

#include "fastfss/tensor.h"

namespace fastfss::FASTFSS_ISA {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

typedef float VFloat __attribute__((vector_size(kWidth * 4)));
typedef int32_t VInt __attribute__((vector_size(kWidth * 4)));
typedef uint32_t VUInt __attribute__((vector_size(kWidth * 4)));
typedef uint16_t VUShort __attribute__((vector_size(kWidth * 2)));

// value - 0 is value for every value, -0 included, so the compiler broadcasts and computes nothing;
// value + 0 costs an addition, which in a matrix product's inner loop is a fifth of the time.
inline VFloat splat(float value) { return value - VFloat{}; }

inline VFloat load(const float* from) {
  VFloat v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

inline void store(float* to, VFloat v) { std::memcpy(to, &v, sizeof v); }

inline VFloat load(const BFloat16* from) {
  VUShort half;
  std::memcpy(&half, from, sizeof half);
  return (VFloat)(__builtin_convertvector(half, VUInt) << 16);
}

// Round to nearest even, as torch does; NaN stays NaN.
inline void store(BFloat16* to, VFloat v) {
  const VUInt bits = (VUInt)v;
  const VUInt rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const VUInt is_nan = (VUInt)(v != v);
  const VUShort half = __builtin_convertvector((rounded & ~is_nan) | (is_nan & 0x7FC0u), VUShort);
  std::memcpy(to, &half, sizeof half);
}

inline float to_float(float value) { return value; }
inline float to_float(BFloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

template <class T>
inline T from_float(float value);
template <>
inline float from_float<float>(float value) {
  return value;
}
template <>
inline BFloat16 from_float<BFloat16>(float value) {
  if (value != value) return 0x7FC0;
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return static_cast<BFloat16>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

// The first count < kWidth values; the others are zero.
template <class T>
inline VFloat load_first(const T* from, int count) {
  T buffer[kWidth] = {};
  std::memcpy(buffer, from, sizeof(T) * count);
  return load(buffer);
}

template <class T>
inline void store_first(T* to, VFloat v, int count) {
  T buffer[kWidth];
  store(buffer, v);
  std::memcpy(to, buffer, sizeof(T) * count);
}

inline float sum(VFloat v) {
  float total = 0;
  for (int i = 0; i < kWidth; ++i) total += v[i];
  return total;
}

inline VFloat max(VFloat a, VFloat b) { return a > b ? a : b; }

}  // namespace fastfss::FASTFSS_ISA
