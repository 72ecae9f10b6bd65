// The mean of feature maps under soft masks; csrc/cpu/masked_average_pool.cpp.
#pragma once

#include "fastfss/tensor.h"

namespace fastfss {

struct PoolMasks {
  TensorView masks;  // [B, M, H, W], float32, bfloat16 or bytes; rows contiguous
  bool shrink_mask;  // the mask is resized to the features; else the features to the mask
  bool align_corners;
  float eps;
};

struct MaskedAveragePool {
  TensorView features;  // [B, C, h, w], float32 or bfloat16
  bool channels_last;
  PoolMasks pool;
  TensorView out;  // [B, M, C], contiguous, of the features' dtype
  int threads;
};

struct MaskedAveragePoolBackward {
  TensorView grad;      // [B, M, C], contiguous, of the features' dtype
  TensorView features;  // [B, C, h, w]
  bool channels_last;
  PoolMasks pool;
  TensorView grad_features;  // [B, C, h, w], in the features' layout; no data: not wanted
  TensorView grad_weights;   // [B, M, h, w] float32: the gradient of the resized masks; likewise
  int threads;
};

void masked_average_pool(const MaskedAveragePool& call);
void masked_average_pool_backward(const MaskedAveragePoolBackward& call);

// The code for each instruction set; the functions above choose.
namespace portable {
void masked_average_pool(const MaskedAveragePool& call);
void masked_average_pool_backward(const MaskedAveragePoolBackward& call);
}  // namespace portable
namespace avx2 {
void masked_average_pool(const MaskedAveragePool& call);
void masked_average_pool_backward(const MaskedAveragePoolBackward& call);
}  // namespace avx2
namespace avx512 {
void masked_average_pool(const MaskedAveragePool& call);
void masked_average_pool_backward(const MaskedAveragePoolBackward& call);
}  // namespace avx512

}  // namespace fastfss
