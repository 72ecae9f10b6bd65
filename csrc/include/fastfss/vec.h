// Vectors of float, as wide as the instruction set in whose namespace this is compiled.
//
// Written with the compiler's vector extension (GCC, Clang), so that the same kernel text serves
// SSE, NEON, AVX2 and AVX-512. Everything lives in the set's own namespace: an inline function must
// never be merged by the linker with the copy made for another set.
#pragma once

#include <cstdint>
#include <cstring>

#include "fastfss/tensor.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

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
typedef uint8_t VUByte __attribute__((vector_size(kWidth)));

// value - 0 is value for every value, -0 included, so the compiler broadcasts and computes nothing;
// value + 0 costs an addition, which in a matrix product's inner loop is a fifth of the time.
inline VFloat splat(float value) { return value - VFloat{}; }

inline VFloat load(const float* from) {
  VFloat v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

// GCC 12 makes four instructions of a widening __builtin_convertvector that x86 does in one. The
// form with a (full) mask is the same instruction, without GCC's false warning of an uninitialised
// value.
inline VUInt widen(const uint16_t* from) {
#if defined(__AVX512F__)
  return (VUInt)_mm512_maskz_cvtepu16_epi32(
      0xFFFF, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(__AVX2__)
  return (VUInt)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
  VUShort half;
  std::memcpy(&half, from, sizeof half);
  return __builtin_convertvector(half, VUInt);
#endif
}

inline VUInt widen(const uint8_t* from) {
#if defined(__AVX512F__)
  return (VUInt)_mm512_maskz_cvtepu8_epi32(0xFFFF,
                                           _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#elif defined(__AVX2__)
  return (VUInt)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
#else
  VUByte bytes;
  std::memcpy(&bytes, from, sizeof bytes);
  return __builtin_convertvector(bytes, VUInt);
#endif
}

inline VFloat load(const BFloat16* from) { return (VFloat)(widen(from) << 16); }

inline VFloat load(const uint8_t* from) {
  return __builtin_convertvector((VInt)widen(from), VFloat);
}

inline void store(float* to, VFloat v) { std::memcpy(to, &v, sizeof v); }

// Round to nearest even, as torch does; NaN stays NaN.
inline void store(BFloat16* to, VFloat v) {
  const VUInt bits = (VUInt)v;
  const VUInt rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const VUInt is_nan = (VUInt)(v != v);
  const VUShort half = __builtin_convertvector((rounded & ~is_nan) | (is_nan & 0x7FC0u), VUShort);
  std::memcpy(to, &half, sizeof half);
}

inline float to_float(float value) { return value; }
inline float to_float(uint8_t value) { return value; }
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

template <int kLanes>
struct Lanes {
  typedef float Vector __attribute__((vector_size(kLanes * 4)));
};

// By halves of the register: log2(kWidth) additions, where a loop over the lanes makes kWidth.
template <int kLanes>
inline float sum_lanes(typename Lanes<kLanes>::Vector v) {
  if constexpr (kLanes == 2) {
    return v[0] + v[1];
  } else {
    typename Lanes<kLanes / 2>::Vector half[2];
    std::memcpy(half, &v, sizeof v);
    return sum_lanes<kLanes / 2>(half[0] + half[1]);
  }
}

inline float sum(VFloat v) { return sum_lanes<kWidth>(v); }

inline float sum(const float* from, int64_t count) {
  VFloat total[4] = {};
  int64_t i = 0;
  for (; i + 4 * kWidth <= count; i += 4 * kWidth) {
    for (int v = 0; v < 4; ++v) total[v] += load(from + i + v * kWidth);
  }
  float rest = 0;
  for (; i < count; ++i) rest += from[i];
  return sum((total[0] + total[1]) + (total[2] + total[3])) + rest;
}

// to[count] = from[count], rounded to T.
template <class T>
inline void convert(const float* from, int64_t count, T* to) {
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) store(to + i, load(from + i));
  for (; i < count; ++i) to[i] = from_float<T>(from[i]);
}

inline VFloat max(VFloat a, VFloat b) { return a > b ? a : b; }

}  // namespace fastfss::FASTFSS_ISA
