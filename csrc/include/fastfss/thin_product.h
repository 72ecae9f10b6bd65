// Products of a large matrix X, read once, with a few vectors: what pooling, matching and their
// gradients are made of.
//
//   row_dots      out[m][r] = sum_k w[m][k] X[r][k]      pooling channels-first, matching
//   channels-last row_sums      out[m][k] = sum_r w[r][m] X[r][k]      pooling channels-last,
//   matching channels-first outer         Y[r][k]   = sum_m g[r][m] w[m][k]      gradients with
//   respect to X
//
// X is float32 or bfloat16, everything else float32. The first two also give the rows' or the
// columns' sums of squares in the same pass. A single core streams X; the accumulators stay in
// registers.
#pragma once

#include <algorithm>
#include <cstdint>

#include "fastfss/vec.h"

namespace fastfss::FASTFSS_ISA {

// Vector registers that may hold accumulators; the others hold operands.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kAccumulators = 24;
#else
constexpr int kAccumulators = 12;
#endif

// Vectors w beyond these many take another pass over a block of X, which then lies in the L2 cache.
constexpr int kMostDots = 5;
constexpr int kMostSums = 10;

inline int64_t padded(int64_t length) { return (length + kWidth - 1) / kWidth * kWidth; }

// body.template operator()<count>() for a count in 1..kMost known at run time only.
template <int kMost, class Body>
inline void with_constant(int count, const Body& body) {
  if constexpr (kMost > 1) {
    if (count < kMost) return with_constant<kMost - 1>(count, body);
  }
  body.template operator()<kMost>();
}

// `total` in pieces of at most kMost, as equal as possible: 12 is 6 + 6, not 10 + 2.
template <int kMost, class Body>
inline void in_groups(int64_t total, const Body& body) {
  const int64_t groups = (total + kMost - 1) / kMost;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t begin = total * g / groups;
    body(begin, static_cast<int>(total * (g + 1) / groups - begin));
  }
}

// The end of a row that is no whole vector: the row's last kWidth values, those before `from`
// zeroed. No masked load is needed and nothing is read outside the row.
template <class T>
inline VFloat load_end(const T* row, int64_t from, int64_t length) {
  const int rest = static_cast<int>(length - from);
  if (length < kWidth) return load_first(row, rest);
  VInt lane;
  for (int i = 0; i < kWidth; ++i) lane[i] = i;
  const VFloat all = load(row + length - kWidth);
  return lane >= kWidth - rest ? all : VFloat{};
}

// ---- row_dots

template <class T, int kRows, int M, bool kSquares, bool kPrefetch>
inline void row_dots_block(const T* x, int64_t stride, int64_t length, const float* w,
                           int64_t w_stride, float* out, int64_t out_stride, float* squares) {
  VFloat dot[kRows][M] = {};
  VFloat square[kRows] = {};
  const auto step = [&](const auto& load_x, int64_t k_of_w) {
    VFloat weight[M];
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) weight[m] = load(w + m * w_stride + k_of_w);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      if constexpr (kPrefetch) __builtin_prefetch(x + (kRows + r) * stride + k_of_w);
      const VFloat value = load_x(x + r * stride);
      if constexpr (kSquares) square[r] += value * value;
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) dot[r][m] += value * weight[m];
    }
  };
  int64_t k = 0;
  for (; k + kWidth <= length; k += kWidth) {
    step([&](const T* row) { return load(row + k); }, k);
  }
  if (k < length) step([&](const T* row) { return load_end(row, k, length); }, padded(length));
  for (int r = 0; r < kRows; ++r) {
    for (int m = 0; m < M; ++m) out[m * out_stride + r] = sum(dot[r][m]);
    if constexpr (kSquares) squares[r] = sum(square[r]);
  }
}

// Rows in flight for M vectors w. Eight rows are eight streams: 1.1 to 1.3 of a plain read's time
// for up to three w; two or four rows, 1.5 to 3 (they wait for memory; a load of w serves fewer
// rows).
constexpr int dots_rows(int m, bool squares) { return std::min(8, kAccumulators / (m + squares)); }

template <class T, int M, bool kSquares, bool kPrefetch>
[[gnu::noinline]] void row_dots_group(const T* x, int64_t stride, int64_t rows, int64_t length,
                                      const float* w, int64_t w_stride, float* out,
                                      int64_t out_stride, float* squares) {
  constexpr int kRows = dots_rows(M, kSquares);
  int64_t r = 0;
  for (; r + kRows <= rows; r += kRows) {
    row_dots_block<T, kRows, M, kSquares, kPrefetch>(x + r * stride, stride, length, w, w_stride,
                                                     out + r, out_stride, squares + r);
  }
  for (; r < rows; ++r) {
    row_dots_block<T, 1, M, kSquares, false>(x + r * stride, stride, length, w, w_stride, out + r,
                                             out_stride, squares + r);
  }
}

// The vectors w, as row_dots wants them: [count][dots_stride(length)], the length followed by zeros
// up to a whole vector, then the last vector again as load_end delivers the end of a row.
inline int64_t dots_stride(int64_t length) { return padded(length) + kWidth; }

inline void finish_dots_weights(float* w, int64_t count, int64_t length) {
  const int64_t whole = length / kWidth * kWidth;
  for (int64_t m = 0; m < count; ++m, w += dots_stride(length)) {
    std::fill(w + length, w + dots_stride(length), 0.0f);
    if (whole < length) store(w + padded(length), load_end(w, whole, length));
  }
}

// out[count][out_stride], and squares[rows] unless null.
template <class T>
inline void row_dots(const T* x, int64_t stride, int64_t rows, int64_t length, const float* w,
                     int64_t count, float* out, int64_t out_stride, float* squares) {
  const int64_t w_stride = dots_stride(length);
  // 24 rows: three groups of eight, and 350 KB of a 60 x 60 map, for further passes from L2.
  constexpr int64_t kBlock = 24;
  for (int64_t r = 0; r < rows; r += kBlock) {
    const int64_t block = std::min(kBlock, rows - r);
    in_groups<kMostDots>(count, [&](int64_t m, int size) {
      with_constant<kMostDots>(size, [&]<int M>() {
        const T* from = x + r * stride;
        const float* weights = w + m * w_stride;
        float* to = out + m * out_stride + r;
        const auto run = [&]<bool kSquares, bool kPrefetch>() {
          row_dots_group<T, M, kSquares, kPrefetch>(from, stride, block, length, weights, w_stride,
                                                    to, out_stride, squares + (kSquares ? r : 0));
        };
        // The next rows are asked for ahead of time where the hardware foresees them badly: few
        // streams, or streams of less than a page. Up to 1.5 times faster there, slower elsewhere.
        // Passes after the first find the block in L2.
        constexpr bool kFewStreams = dots_rows(M, false) < 8;
        const bool prefetch = kFewStreams || length * sizeof(T) < 4096;
        if (m > 0) return run.template operator()<false, false>();
        if (squares == nullptr) {
          return prefetch ? run.template operator()<false, true>()
                          : run.template operator()<false, false>();
        }
        return prefetch ? run.template operator()<true, true>()
                        : run.template operator()<true, false>();
      });
    });
  }
}

// ---- row_sums

template <class T, int kVectors, int M, bool kSquares>
inline void row_sums_tile(const T* x, int64_t stride, int64_t rows, const float* w,
                          int64_t w_stride, bool first, int64_t ahead, float* out,
                          int64_t out_stride, float* squares) {
  VFloat total[kVectors][M] = {};
  VFloat square[kVectors] = {};
  if (!first) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      if constexpr (kSquares) square[v] = load(squares + v * kWidth);
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) total[v][m] = load(out + m * out_stride + v * kWidth);
    }
  }
  for (int64_t r = 0; r < rows; ++r, x += stride, w += w_stride) {
    VFloat value[kVectors];
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      __builtin_prefetch(x + v * kWidth + ahead);
      value[v] = load(x + v * kWidth);
      if constexpr (kSquares) square[v] += value[v] * value[v];
    }
    // m outside: one splat serves all vectors and its register is free again.
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const VFloat weight = splat(w[m]);
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) total[v][m] += value[v] * weight;
    }
  }
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; ++v) {
    if constexpr (kSquares) store(squares + v * kWidth, square[v]);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) store(out + m * out_stride + v * kWidth, total[v][m]);
  }
}

// One block of rows. The end of the columns that is no whole vector is computed as the row's last
// kWidth columns, into the place after the whole vectors; row_sums moves it where it belongs.
template <class T, int M, bool kSquares>
[[gnu::noinline]] void row_sums_group(const T* x, int64_t stride, int64_t rows, int64_t length,
                                      const float* w, int64_t w_stride, bool first, float* out,
                                      int64_t out_stride, float* squares) {
  constexpr int kVectors = std::min(4, kAccumulators / (M + kSquares));
  constexpr int64_t kTile = kVectors * kWidth;
  // A tile is too narrow for the hardware to foresee the next one: 2.5 times a plain read's time
  // without this prefetch, 1.2 to 1.3 with it. Eight cache lines ahead; at the end of the rows,
  // into the next block of rows.
  constexpr int64_t kAhead = 512 / sizeof(T);
  int64_t k = 0;
  for (; k + kTile <= length; k += kTile) {
    const int64_t ahead = k + kAhead < length ? kAhead : rows * stride + k + kAhead - length - k;
    row_sums_tile<T, kVectors, M, kSquares>(x + k, stride, rows, w, w_stride, first, ahead, out + k,
                                            out_stride, squares + k);
  }
  for (; k + kWidth <= length; k += kWidth) {
    row_sums_tile<T, 1, M, kSquares>(x + k, stride, rows, w, w_stride, first, 0, out + k,
                                     out_stride, squares + k);
  }
  if (k < length && length >= kWidth) {
    row_sums_tile<T, 1, M, kSquares>(x + length - kWidth, stride, rows, w, w_stride, first, 0,
                                     out + k, out_stride, squares + k);
  } else if (k < length) {
    for (int64_t r = 0; r < rows; ++r) {  // fewer columns than a vector has lanes
      for (int64_t i = 0; i < length; ++i) {
        const float value = to_float(x[r * stride + i]);
        for (int m = 0; m < M; ++m) {
          float& total = out[m * out_stride + i];
          total = (first && r == 0 ? 0.0f : total) + w[r * w_stride + m] * value;
        }
        if constexpr (kSquares) squares[i] = (first && r == 0 ? 0.0f : squares[i]) + value * value;
      }
    }
  }
}

// Where the last kWidth columns were computed after the whole vectors: the missing ones go to their
// place.
inline void move_end(float* row, int64_t length) {
  const int64_t rest = length % kWidth;
  if (rest == 0 || length < kWidth) return;
  float lanes[kWidth];
  std::copy_n(row + length - rest, kWidth, lanes);
  std::copy(lanes + kWidth - rest, lanes + kWidth, row + length - rest);
}

// w[rows][count], out[count][padded(length)], squares[padded(length)] unless null. What lies in out
// after `length` values is scratch.
template <class T>
inline void row_sums(const T* x, int64_t stride, int64_t rows, int64_t length, const float* w,
                     int64_t count, float* out, float* squares) {
  const int64_t out_stride = padded(length);
  // 32 rows share a load and a store of the totals; 16 rows: 15 % slower with ten w, 64 rows:
  // equal.
  constexpr int64_t kBlock = 32;
  for (int64_t r = 0; r < rows; r += kBlock) {
    const int64_t block = std::min(kBlock, rows - r);
    in_groups<kMostSums>(count, [&](int64_t m, int size) {
      with_constant<kMostSums>(size, [&]<int M>() {
        const T* from = x + r * stride;
        const float* weights = w + r * count + m;
        float* to = out + m * out_stride;
        if (squares != nullptr && m == 0) {
          row_sums_group<T, M, true>(from, stride, block, length, weights, count, r == 0, to,
                                     out_stride, squares);
        } else {
          row_sums_group<T, M, false>(from, stride, block, length, weights, count, r == 0, to,
                                      out_stride, nullptr);
        }
      });
    });
  }
  for (int64_t m = 0; m < count; ++m) move_end(out + m * out_stride, length);
  if (squares != nullptr) move_end(squares, length);
}

// ---- outer

template <class T, int kRows, int kVectors, class Start>
inline void outer_tile(const float* g, int64_t count, const float* w, int64_t w_stride,
                       const Start& start, int64_t r, int64_t k, T* y, int64_t y_stride) {
  VFloat total[kRows][kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) total[i][v] = start(r + i, k + v * kWidth, kWidth);
  }
  for (int64_t m = 0; m < count; ++m) {
    VFloat weight[kVectors];
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) weight[v] = load(w + m * w_stride + k + v * kWidth);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const VFloat factor = splat(g[(r + i) * count + m]);
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) total[i][v] += factor * weight[v];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) store(y + (r + i) * y_stride + k + v * kWidth, total[i][v]);
  }
}

template <class T, int kRows, class Start>
inline void outer_rows(const float* g, int64_t count, const float* w, int64_t w_stride,
                       const Start& start, int64_t r, int64_t length, T* y, int64_t y_stride) {
  constexpr int kVectors = kAccumulators == 24 ? 4 : 2;
  int64_t k = 0;
  for (; k + kVectors * kWidth <= length; k += kVectors * kWidth) {
    outer_tile<T, kRows, kVectors>(g, count, w, w_stride, start, r, k, y, y_stride);
  }
  for (; k + kWidth <= length; k += kWidth) {
    outer_tile<T, kRows, 1>(g, count, w, w_stride, start, r, k, y, y_stride);
  }
  if (k < length &&
      length >= kWidth) {  // the last whole vector of the row, partly for a second time
    outer_tile<T, kRows, 1>(g, count, w, w_stride, start, r, length - kWidth, y, y_stride);
  } else if (k < length) {
    for (int i = 0; i < kRows; ++i) {
      VFloat total = start(r + i, 0, static_cast<int>(length));
      for (int64_t m = 0; m < count; ++m) {
        total += g[(r + i) * count + m] * load_first(w + m * w_stride, static_cast<int>(length));
      }
      store_first(y + (r + i) * y_stride, total, static_cast<int>(length));
    }
  }
}

// Y[rows][y_stride] = start + sum_m g[rows][count] w[count][w_stride]; start(r, k, lanes) gives the
// values that Y begins with at row r, columns k to k + lanes.
template <class T, class Start>
inline void outer(const float* g, int64_t count, const float* w, int64_t w_stride,
                  const Start& start, int64_t rows, int64_t length, T* y, int64_t y_stride) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4)
    outer_rows<T, 4>(g, count, w, w_stride, start, r, length, y, y_stride);
  for (; r < rows; ++r) outer_rows<T, 1>(g, count, w, w_stride, start, r, length, y, y_stride);
}

}  // namespace fastfss::FASTFSS_ISA
