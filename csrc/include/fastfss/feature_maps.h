// A batch of feature maps (B, C, h, w) as a batch of matrices with contiguous rows.
#pragma once

#include "fastfss/tensor.h"

namespace fastfss::FASTFSS_ISA {

// Channels-first: C rows of h*w values. Channels-last: h*w rows of C values. Rows and batch items
// may lie at any distance; fastfss/ops/_layout.py makes sure that a tensor is one of the two.
struct FeatureMaps {
  bool channels_last;
  int64_t batch, channels, height, width;
  int64_t batch_stride, row_stride;

  FeatureMaps(const TensorView& view, bool channels_last)
      : channels_last(channels_last),
        batch(view.size[0]),
        channels(view.size[1]),
        height(view.size[2]),
        width(view.size[3]),
        batch_stride(view.stride[0]),
        // A dimension of size 1 has a meaningless stride.
        row_stride(!channels_last ? view.stride[1]
                                  : (width > 1 ? view.stride[3] : view.stride[2])) {}

  int64_t positions() const { return height * width; }
  int64_t rows() const { return channels_last ? positions() : channels; }
  int64_t row_length() const { return channels_last ? channels : positions(); }
};

}  // namespace fastfss::FASTFSS_ISA
