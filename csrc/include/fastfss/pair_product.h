// Sums over channels of two feature maps' products, for prototypes that differ from position to
// position: <x, y>, <y, y> and <x, x> of every position, each map read once.
#pragma once

#include <algorithm>
#include <cstdint>

#include "fastfss/thin_product.h"
#include "fastfss/vec.h"

namespace fastfss::FASTFSS_ISA {

// The three sums of a range of positions, each with room for padded(count) values; xx null where it
// is not wanted.
struct PairSums {
  float *xy, *yy, *xx;
};

// ---- channels-last: sums along the rows of X and Y

template <class T, bool kWithXX>
inline void pair_row_dots(const T* x, const T* y, int64_t length, const PairSums& out, int64_t r) {
  // Four of each: a sum waits four cycles for its own addition.
  VFloat xy[4] = {}, yy[4] = {}, xx[4] = {};
  const auto add = [&](int v, VFloat a, VFloat b) {
    xy[v] += a * b;
    yy[v] += b * b;
    if constexpr (kWithXX) xx[v] += a * a;
  };
  int64_t k = 0;
  for (; k + 4 * kWidth <= length; k += 4 * kWidth) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) add(v, load(x + k + v * kWidth), load(y + k + v * kWidth));
  }
  for (; k + kWidth <= length; k += kWidth) add(0, load(x + k), load(y + k));
  if (k < length) add(0, load_end(x, k, length), load_end(y, k, length));
  out.xy[r] = sum((xy[0] + xy[1]) + (xy[2] + xy[3]));
  out.yy[r] = sum((yy[0] + yy[1]) + (yy[2] + yy[3]));
  if constexpr (kWithXX) out.xx[r] = sum((xx[0] + xx[1]) + (xx[2] + xx[3]));
}

template <class T>
void pair_row_dots(const T* x, int64_t x_stride, const T* y, int64_t y_stride, int64_t rows,
                   int64_t length, const PairSums& out) {
  for (int64_t r = 0; r < rows; ++r, x += x_stride, y += y_stride) {
    out.xx != nullptr ? pair_row_dots<T, true>(x, y, length, out, r)
                      : pair_row_dots<T, false>(x, y, length, out, r);
  }
}

// ---- channels-first: sums over the rows of X and Y

template <class T, int kVectors, bool kWithXX>
inline void pair_row_sums_tile(const T* x, int64_t x_stride, const T* y, int64_t y_stride,
                               int64_t rows, bool first, const PairSums& out, int64_t to) {
  VFloat xy[kVectors] = {}, yy[kVectors] = {}, xx[kVectors] = {};
  if (!first) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      xy[v] = load(out.xy + to + v * kWidth);
      yy[v] = load(out.yy + to + v * kWidth);
      if constexpr (kWithXX) xx[v] = load(out.xx + to + v * kWidth);
    }
  }
  for (int64_t r = 0; r < rows; ++r, x += x_stride, y += y_stride) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      __builtin_prefetch(x + v * kWidth + 512 / sizeof(T));
      __builtin_prefetch(y + v * kWidth + 512 / sizeof(T));
      const VFloat a = load(x + v * kWidth), b = load(y + v * kWidth);
      xy[v] += a * b;
      yy[v] += b * b;
      if constexpr (kWithXX) xx[v] += a * a;
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    store(out.xy + to + v * kWidth, xy[v]);
    store(out.yy + to + v * kWidth, yy[v]);
    if constexpr (kWithXX) store(out.xx + to + v * kWidth, xx[v]);
  }
}

template <class T, bool kWithXX>
void pair_row_sums_of(const T* x, int64_t x_stride, const T* y, int64_t y_stride, int64_t rows,
                      int64_t length, const PairSums& out) {
  if (length < kWidth) {
    for (int64_t i = 0; i < length; ++i) {
      float xy = 0, yy = 0, xx = 0;
      for (int64_t r = 0; r < rows; ++r) {
        const float a = to_float(x[r * x_stride + i]), b = to_float(y[r * y_stride + i]);
        xy += a * b;
        yy += b * b;
        xx += a * a;
      }
      out.xy[i] = xy;
      out.yy[i] = yy;
      if constexpr (kWithXX) out.xx[i] = xx;
    }
    return;
  }
  constexpr int kVectors = 4;
  constexpr int64_t kBlock = 32;  // as in row_sums
  for (int64_t r = 0; r < rows; r += kBlock) {
    const int64_t block = std::min(kBlock, rows - r);
    const T *from_x = x + r * x_stride, *from_y = y + r * y_stride;
    int64_t k = 0;
    for (; k + kVectors * kWidth <= length; k += kVectors * kWidth) {
      pair_row_sums_tile<T, kVectors, kWithXX>(from_x + k, x_stride, from_y + k, y_stride, block,
                                               r == 0, out, k);
    }
    for (; k + kWidth <= length; k += kWidth) {
      pair_row_sums_tile<T, 1, kWithXX>(from_x + k, x_stride, from_y + k, y_stride, block, r == 0,
                                        out, k);
    }
    if (k < length) {  // the last whole vector, kept after the others until the rows are done
      const int64_t last = length - kWidth;
      pair_row_sums_tile<T, 1, kWithXX>(from_x + last, x_stride, from_y + last, y_stride, block,
                                        r == 0, out, k);
    }
  }
  move_end(out.xy, length);
  move_end(out.yy, length);
  if constexpr (kWithXX) move_end(out.xx, length);
}

template <class T>
void pair_row_sums(const T* x, int64_t x_stride, const T* y, int64_t y_stride, int64_t rows,
                   int64_t length, const PairSums& out) {
  out.xx != nullptr ? pair_row_sums_of<T, true>(x, x_stride, y, y_stride, rows, length, out)
                    : pair_row_sums_of<T, false>(x, x_stride, y, y_stride, rows, length, out);
}

}  // namespace fastfss::FASTFSS_ISA
