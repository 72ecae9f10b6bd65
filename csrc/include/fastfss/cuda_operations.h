// The operations that have kernels in CUDA C++; csrc/cuda. Tensors lie on the current device, and
// nothing waits for it. A launch that fails throws std::runtime_error with the runtime's words.
#pragma once

#include <vector>

#include "fastfss/tensor.h"

namespace fastfss::cuda {

using Stream = void*;  // cudaStream_t, without CUDA's headers

struct MaskedAveragePool {
  TensorView features;  // [B, C, h, w], float32, float16 or bfloat16
  bool channels_last;
  TensorView masks;  // [B, M, H, W], bytes or floats of the three kinds, any strides
  bool shrink_mask;  // the mask is resized to the features; else the features to the mask
  bool align_corners;
  float eps;
  TensorView weights;  // [B, M, pool_row(h * w)] float32: scratch
  TensorView parts;    // [B, S, M, C + 1] float32: scratch of channels-last maps
  TensorView out;      // [B, M, C], contiguous, of the features' dtype
};
// The floats that one mask takes in `weights`, and S.
int64_t pool_row(int64_t positions);
int pool_splits(int64_t batch, int64_t channels, int64_t positions);
void masked_average_pool(const MaskedAveragePool& call, Stream stream);

struct PrototypeMatch {
  TensorView features;  // [B, C, h, w]
  bool channels_last;
  TensorView prototypes;  // [B, P, C], of the features' dtype, C contiguous
  float scale, eps;
  TensorView scores;  // [B, P, h, w], contiguous, their dtype
  TensorView norms;   // [B, 1, h, w] float32: |x|
};
void prototype_match(const PrototypeMatch& call, Stream stream);

struct CorrelationLayer {
  TensorView query;           // [B, C, N], any strides
  TensorView support;         // [B, C, M]
  TensorView query_packed;    // [B, N, C'], or no data where the maps are packed already:
  TensorView support_packed;  // [B, M, C'], C' = C rounded up to 8: scratch
  TensorView query_scales;    // [B, N] float32: scratch
  TensorView support_scales;  // [B, M]
};
struct DenseCorrelation {
  std::vector<CorrelationLayer> layers;
  TensorView out;  // [B, L, N, M], contiguous, of the maps' dtype
  float eps;
  bool clamp;
};
// Whether [B, C, N] is [B, N, C] in memory in the way that the products read.
bool correlation_packed(const TensorView& maps);
void dense_correlation(const DenseCorrelation& call, Stream stream);

// Up to 8 input channels and 16 output channels, an even number; k 3 or 5; an even stride.
struct CenterPivotConv4d {
  TensorView x;               // [B, I, ha, wa, hb, wb], float16 or bfloat16, [ha, wa, hb, wb] dense
  TensorView query_weight;    // [O, I, k, k], contiguous, of x's dtype
  TensorView support_weight;  // [O, I, k, k]
  TensorView query_bias;      // [O]
  TensorView support_bias;    // [O]
  int stride;                 // over the support
  TensorView scratch;         // CenterPivotPlan::scratch bytes
  TensorView out;             // [B, ha, wa, ceil(hb / stride), ceil(wb / stride), O], contiguous
  // [2, B, blocks, O] float32, or no data: the mean of a block's results, and their squared
  // deviations from it. A block is CenterPivotPlan::together query positions, the last one fewer.
  TensorView statistics;
};
// Zeros where shared memory does not hold what a block needs.
struct CenterPivotPlan {
  int64_t scratch;
  int together;
};
CenterPivotPlan center_pivot_plan(const TensorView& x, int kernel, int stride);
void center_pivot_conv4d(const CenterPivotConv4d& call, Stream stream);

}  // namespace fastfss::cuda
