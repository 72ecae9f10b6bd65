// What dense_match and its gradient share: items of a batch, and which key positions count.
#pragma once

#include <algorithm>
#include <cmath>

#include "fastfss/gemm_engines.h"

namespace fastfss::FASTFSS_ISA {

inline bool same(const TensorView& a, const TensorView& b) {
  return a.data == b.data && a.size == b.size && a.stride == b.stride;
}

// Item b of [B, positions], as a matrix of one channel.
inline Matrix row_item(const TensorView& tensor, int64_t b) {
  const int64_t bytes = tensor.dtype == DType::kFloat32 ? 4 : 2;
  return {static_cast<char*>(tensor.data) + b * tensor.stride[0] * bytes,
          tensor.dtype,
          1,
          tensor.size[1],
          1,
          tensor.stride[1]};
}

// The key positions with a weight.
class Selection {
 public:
  // mask: [B, positions] float32, or no data: all ones. Afterwards order holds the selected
  // positions and then the others, ascending both.
  Selection(const TensorView& mask, int64_t b, int64_t positions) : order_(positions) {
    if (mask.data != nullptr) {
      mask_ = mask.as<float>() + b * mask.stride[0];
      stride_ = mask.stride[1];
    }
    for (int64_t i = 0; i < positions; ++i) {
      if (weight(i) != 0) order_[count_++] = static_cast<int32_t>(i);
    }
    int64_t next = count_;
    for (int64_t i = 0; next < positions; ++i) {
      if (weight(i) == 0) order_[next++] = static_cast<int32_t>(i);
    }
  }

  int64_t count() const { return count_; }
  const int32_t* order() const { return order_.get(); }
  float weight(int64_t position) const { return mask_ ? mask_[position * stride_] : 1.0f; }

  // `count` entries of order from `first` on, as a plain range where they are consecutive.
  Positions positions(int64_t first, int64_t count) const {
    const int32_t* index = order_.get() + first;
    const bool range = count > 0 && index[count - 1] - index[0] == count - 1;
    return {range ? nullptr : order_.get(), range ? index[0] : first, static_cast<int>(count)};
  }

 private:
  const float* mask_ = nullptr;
  int64_t stride_ = 0;
  int64_t count_ = 0;
  Buffer<int32_t> order_;
};

// Squares of norms -> 1 / max(norm, eps).
inline void invert_norms(float* squares, int count, float eps) {
  for (int p = 0; p < count; ++p) squares[p] = 1.0f / std::max(std::sqrt(squares[p]), eps);
}

}  // namespace fastfss::FASTFSS_ISA
