// center_pivot_conv4d, whole or one pivot at a time, with or without the group norm and ReLU that
// follow it. The formula is in fastfss/ops/center_pivot_conv4d.py, the algorithm in
// csrc/cpu/center_pivot_conv4d.cpp.
#pragma once

#include <cstdint>

#include "fastfss/tensor.h"

namespace fastfss {

struct CenterPivotConv4dArgs {
  // A null pointer leaves a convolution out. Strides as they come, but fastest with channels or,
  // few of them, support columns contiguous. Weights have an even number of channels in bfloat16:
  // maps may have one less.
  TensorView x;               // [B, ha, wa, hb, wb, I] float32 or bfloat16: over the support
  TensorView pruned;          // [B, ha, wa, hc, wc, I], x at every stride-th: over the query
  TensorView support_weight;  // [O, I', k, k] contiguous, the same dtype
  TensorView query_weight;    // likewise
  TensorView bias;            // [O] float32 contiguous
  TensorView start;           // [B, ha, wa, hc, wc, O] float32: added; or null. B and ha may lie
                              // apart, what is inside is contiguous
  TensorView out;          // likewise, x's dtype or float32; may be start. With a norm, contiguous
  TensorView norm_weight;  // [O] float32: group norm and ReLU; or null
  TensorView norm_bias;    // likewise
  int64_t stride = 1;
  int64_t groups = 1;
  float eps = 1e-5f;
  int threads = 1;
};

void center_pivot_conv4d(const CenterPivotConv4dArgs& args);

// With emulated AMX tiles; for tests, slow. bfloat16 maps only.
void center_pivot_conv4d_emulated_amx(const CenterPivotConv4dArgs& args);

namespace portable {
void center_pivot_conv4d(const CenterPivotConv4dArgs& args);
void center_pivot_conv4d_emulated_amx(const CenterPivotConv4dArgs& args);
}  // namespace portable
namespace avx2 {
void center_pivot_conv4d(const CenterPivotConv4dArgs& args);
}
namespace avx512 {
void center_pivot_conv4d(const CenterPivotConv4dArgs& args);
}
namespace avx512_bf16 {
void center_pivot_conv4d(const CenterPivotConv4dArgs& args);
}
namespace amx {
void center_pivot_conv4d(const CenterPivotConv4dArgs& args);
}

}  // namespace fastfss
