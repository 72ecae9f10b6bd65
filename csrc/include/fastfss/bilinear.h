// Bilinear resizing as torch.nn.functional.interpolate does it (no antialias), and its adjoint.
//
// Along one axis, position t of the new grid lies at s(t) of the old one,
//   align_corners:  s(t) = t (old - 1) / (new - 1)          else:  s(t) = max(0, (t + 1/2) old /
//   new - 1/2)
// and takes (1 - a) x[i] + a x[min(i + 1, old - 1)], i = floor(s), a = s - i. Computed in float32,
// as torch does: at position 400 of a mask the rounding of s is 3e-5, and must be the same one.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "fastfss/scratch.h"
#include "fastfss/vec.h"

namespace fastfss::FASTFSS_ISA {

struct Taps {
  struct Tap {
    int64_t first, second;  // positions of the old grid; equal at its end
    float of_first, of_second;
  };
  int64_t old_size;
  std::vector<Tap> at;  // one for each position of the new grid; `first` never decreases

  Taps(int64_t old_size, int64_t new_size, bool align_corners) : old_size(old_size), at(new_size) {
    const float scale =
        align_corners
            ? (new_size > 1 ? static_cast<float>(old_size - 1) / static_cast<float>(new_size - 1)
                            : 0.0f)
            : static_cast<float>(old_size) / static_cast<float>(new_size);
    for (int64_t t = 0; t < new_size; ++t) {
      const float position = static_cast<float>(t);
      const float source =
          align_corners ? scale * position : std::max(0.0f, scale * (position + 0.5f) - 0.5f);
      const int64_t first = std::min(static_cast<int64_t>(source), old_size - 1);
      const float rest = std::clamp(source - static_cast<float>(first), 0.0f, 1.0f);
      at[t] = {first, std::min(first + 1, old_size - 1), 1.0f - rest, rest};
    }
  }
};

// out[h][w] = the image, resized. Reads four pixels a position, so it does not matter that this is
// scalar: 8 us for 473 x 473 -> 60 x 60, beside 400 us for the features.
template <class T>
inline void resize(const T* image, int64_t row_stride, const Taps& rows, const Taps& columns,
                   float* __restrict out) {
  const int64_t width = static_cast<int64_t>(columns.at.size());
  const bool same = columns.old_size == width;
  const Taps::Tap* x = columns.at.data();
  for (const Taps::Tap& y : rows.at) {
    const T* upper = image + y.first * row_stride;
    // A row of no weight need not be fetched: 473 -> 60 with align_corners steps by 8 exactly.
    const T* lower = y.of_second == 0.0f ? upper : image + y.second * row_stride;
    if (same && y.of_second == 0.0f) {  // a mask on the features' grid: row by row
      for (int64_t i = 0; i < width; ++i) out[i] = to_float(upper[i]);
    } else {
      const float of_upper = y.of_first, of_lower = y.of_second;
      for (int64_t i = 0; i < width; ++i) {
        const int64_t first = x[i].first, second = x[i].second;
        const float left = of_upper * to_float(upper[first]) + of_lower * to_float(lower[first]);
        const float right = of_upper * to_float(upper[second]) + of_lower * to_float(lower[second]);
        out[i] = x[i].of_first * left + x[i].of_second * right;
      }
    }
    out += width;
  }
}

// The adjoint: every pixel of a large image is handed back to the four positions of the small grid
// that the resize to the image's size would read for it. Rows first, whole vectors at a time; then
// columns, as a product with a band matrix: 16 columns of the small grid depend on a short range of
// the large one's.
class AdjointResize {
 public:
  // `rows` and `columns` lead from the small grid to the large one.
  AdjointResize(const Taps& rows, const Taps& columns)
      : rows_(rows), height_(rows.old_size), width_(columns.old_size) {
    const auto& at = columns.at;
    const auto first_at_least = [&](int64_t position) {
      return std::partition_point(at.begin(), at.end(),
                                  [&](auto& tap) { return tap.first < position; }) -
             at.begin();
    };
    for (int64_t column = 0; column < width_; column += kWidth) {
      const int64_t begin = first_at_least(column - 1), end = first_at_least(column + kWidth);
      bands_.push_back({column, begin, end, static_cast<int64_t>(band_.size())});
      band_.resize(band_.size() + (end - begin) * kWidth, 0.0f);
      float* weight = band_.data() + bands_.back().offset;
      for (int64_t x = begin; x < end; ++x, weight += kWidth) {
        const int64_t first = at[x].first - column, second = at[x].second - column;
        if (first >= 0) weight[first] += at[x].of_first;
        if (second >= 0 && second < kWidth) weight[second] += at[x].of_second;
      }
    }
  }

  // out[h][w] from image[H][row_stride].
  template <class T>
  void operator()(const T* image, int64_t row_stride, float* out) const {
    const int64_t wide = static_cast<int64_t>(band_width());
    const int64_t stride = (wide + kWidth - 1) / kWidth * kWidth;
    Scratch gathered = scratch(height_ * stride);
    std::fill_n(gathered.get(), height_ * stride, 0.0f);
    for (const Taps::Tap& y : rows_.at) {
      add_row(image, wide, y.of_first, gathered.get() + y.first * stride);
      if (y.of_second != 0.0f) {
        add_row(image, wide, y.of_second, gathered.get() + y.second * stride);
      }
      image += row_stride;
    }
    int64_t row = 0;
    for (; row + 8 <= height_; row += 8)
      columns<8>(gathered.get() + row * stride, stride, out + row * width_);
    for (; row < height_; ++row)
      columns<1>(gathered.get() + row * stride, stride, out + row * width_);
  }

 private:
  struct Band {
    int64_t column;      // the first of kWidth columns of the small grid
    int64_t begin, end;  // the columns of the large grid that reach them
    int64_t offset;      // of their weights [end - begin][kWidth] in band_
  };

  int64_t band_width() const { return bands_.back().end; }

  template <class T>
  static void add_row(const T* from, int64_t count, float factor, float* to) {
    const VFloat weight = splat(factor);
    int64_t x = 0;
    for (; x + kWidth <= count; x += kWidth) store(to + x, load(to + x) + weight * load(from + x));
    for (; x < count; ++x) to[x] += factor * to_float(from[x]);
  }

  // Eight rows share a load of the weights and are eight independent sums.
  template <int kRows>
  void columns(const float* gathered, int64_t stride, float* out) const {
    for (const Band& band : bands_) {
      VFloat total[kRows] = {};
      const float* weight = band_.data() + band.offset;
      for (int64_t x = band.begin; x < band.end; ++x, weight += kWidth) {
        const VFloat weights = load(weight);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) total[r] += gathered[r * stride + x] * weights;
      }
      const int count = static_cast<int>(std::min<int64_t>(kWidth, width_ - band.column));
      for (int r = 0; r < kRows; ++r) store_first(out + r * width_ + band.column, total[r], count);
    }
  }

  const Taps& rows_;
  int64_t height_, width_;
  std::vector<Band> bands_;
  std::vector<float> band_;
};

}  // namespace fastfss::FASTFSS_ISA
